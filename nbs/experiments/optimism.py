"""What an accuracy is worth that was the reason for the choice: the optimism of choosing on the test set, measured.

    CIFAR10_DIR=... python nbs/experiments/optimism.py              # print the table
    CIFAR10_DIR=... python nbs/experiments/optimism.py --publish    # and write it to nbs/results/optimism.json

`SEEDS` narrow networks learn the same 5,000 images by the same recipe; only their seeds differ. Each is then tested on
the 10,000 test images, and on 20,000 training images that no network has seen ("fresh"). Whoever chooses the best of n
by a test set, and reports its accuracy there, reports too much; the fresh images say by how much. (Their own
difficulty is subtracted: the mean difference of all.)
"""
import sys
from pathlib import Path

import numpy as np
import torch

from cifar_resnet.augment import normalise
from cifar_resnet.core import rng
from cifar_resnet.data import cifar10, data_folder
from cifar_resnet.evaluate import predict
from cifar_resnet.runs import write_json
from cifar_resnet.train import Recipe, Training

SEEDS, FRESH, LAST = 16, 20_000, 5
RECIPE = dict(width=8, limit=5000, epochs=10, batch_size=50, norm='batch')    # it starts fast; this is not about norms
DRAWS = 4000


def right_answers(train, test, seed):
    "Which images a network gets right after each of its last epochs: bool (epochs, images), of test and fresh."
    training = Training(Recipe(seed=seed, **RECIPE), train, device='cpu')
    seen = np.concatenate([training.train_idx, training.valid_idx])
    fresh = train.take(np.setdiff1d(np.arange(len(train)), seen)[:FRESH])
    x = [normalise(torch.from_numpy(part.images), training.mean, training.std) for part in (test, fresh)]
    found = [], []
    for row in training:
        if row['epoch'] <= RECIPE['epochs'] - LAST: continue
        for part, x_, rows in zip((test, fresh), x, found):
            rows.append(predict(training.model, x_).argmax(1).numpy() == part.labels)
    print(f'seed {seed}: test {found[0][-1].mean():.2%}, fresh {found[1][-1].mean():.2%}', flush=True)
    return [np.array(rows) for rows in found]


def optimism(test, fresh, n, size):
    """Accuracy on `size` test images less that on fresh ones, of the best of `n` rows by those test images:
    mean and 95% range of many random choices of rows and images."""
    g, usual, found = rng('optimism', n, size), test.mean() - fresh.mean(), []
    for _ in range(DRAWS):
        rows = g.choice(len(test), n, replace=False)
        some = test if size == test.shape[1] else test[:, g.choice(test.shape[1], size, replace=False)]
        accuracy = some[rows].mean(1)
        found.append(accuracy.max() - fresh[rows[accuracy.argmax()]].mean() - usual)
    low, high = np.percentile(found, [2.5, 97.5])
    return dict(mean=round(100*float(np.mean(found)), 2), low=round(100*float(low), 2), high=round(100*float(high), 2))


def of_epochs(found):
    "The same choice among the last epochs of one run: the row of the table."
    by_epoch = [optimism(test, fresh, LAST, test.shape[1])['mean'] for test, fresh in found]
    low, high = (round(float(np.percentile(by_epoch, q)), 2) for q in (2.5, 97.5))
    return {'chosen from': f'the last {LAST} epochs of a run', 'test images': 10_000,
            'mean': round(float(np.mean(by_epoch)), 2), 'low': low, 'high': high}


def publish(table, test):
    "`test`: bool (seeds, test images), the answers of the last epoch."
    write_json(Path(__file__).parent.parent/'results'/'optimism.json', dict(
        command='python nbs/experiments/optimism.py --publish',
        unit='percentage points', recipe=RECIPE, seeds=SEEDS, fresh_images=FRESH,
        test_accuracy=round(float(test.mean()), 4),
        sd_of_seeds=round(float(test.mean(1).std(ddof=1)), 4),
        table=table))


if __name__ == '__main__':
    if sys.argv[1:] not in ([], ['--publish']): sys.exit(__doc__)
    if not (data_folder()/'cifar-10-batches-py').exists():
        sys.exit('set CIFAR10_DIR to the folder that contains cifar-10-batches-py')
    train, test = cifar10()
    found = [right_answers(train, test, seed) for seed in range(SEEDS)]
    last = [np.array([f[i][-1] for f in found]) for i in (0, 1)]
    table = [{'chosen from': f'{n} seeds', 'test images': size, **optimism(*last, n, size)}
             for size in (1000, 10_000) for n in (1, 4, 16)]
    table.append(of_epochs(found))
    for row in table: print(row)
    if sys.argv[1:]: publish(table, last[0])
