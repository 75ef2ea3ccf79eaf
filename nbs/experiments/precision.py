"""Is bfloat16 on a CPU worth it, and can it be trusted? About half an hour on two CPU cores.

    CIFAR10_DIR=... python nbs/experiments/precision.py --out DIR              # both parts; what is finished is kept
    CIFAR10_DIR=... python nbs/experiments/precision.py --out DIR --publish    # and write nbs/results/precision.json
    ... --only speed                                                     # one part: speed or learning

speed      images a second in float32 and bfloat16, timed in turn, by width and batch: the rule of `pick_precision`
learning   held-out accuracy of the same recipe in both, three seeds each: Shapes-10, and CIFAR-10 (width 16, 10,000
           images, 5 epochs)
"""
import statistics
from pathlib import Path

import torch

from cifar_resnet.benchmarks import in_turn, our_loop
from cifar_resnet.core import computes
from cifar_resnet.data import shapes10
from cifar_resnet.scale import sweep
from cifar_resnet.runs import provenance, read_json, write_json
from cifar_resnet.train import Recipe, Training

from in_parts import in_parts

RESULTS = Path(__file__).parent.parent/'results'/'precision.json'
DEVICE = torch.device('cpu')
WORDS = dict(fp32='float32', bf16='bfloat16')


def speed(args):
    train, rows = shapes10(n_train=5000, n_test=10)[0], []
    for width in (8, 16, 32, 64):
        for batch in (32, 128):
            recipe = Recipe(dataset='shapes10', width=width, batch_size=batch, epochs=10_000)
            ways = {word: our_loop(Training(recipe, train, device='cpu', precision=word)) for word in WORDS.values()}
            took = in_turn(ways, rounds=7, seconds=1.5, at_most=30)
            ratios = [a/b for a, b in zip(took['float32'], took['bfloat16'])]
            speeds = {word: round(batch/statistics.median(t), 1) for word, t in took.items()}
            ratio, low, high = (round(f(ratios), 2) for f in (statistics.median, min, max))
            rows.append(dict(width=width, batch=batch, **speeds, ratio=ratio, ratio_from=low, ratio_to=high))
            print(rows[-1], flush=True)
    return rows


def learning(args):
    recipes, found = dict(shapes10=dict(dataset='shapes10'), cifar10=dict(width=16, epochs=5, limit=10_000)), []
    for name, word in WORDS.items():
        swept = sweep(recipes, args.seeds, Path(args.out)/name, ['cpu'], precision=name, data_dir=args.data_dir)
        if swept['failed']: raise RuntimeError(swept['failed'][0]['error'])
        for row in swept['table']:
            runs = [run for run in swept['runs'] if run['name'] == row['name']]
            assert {run['precision'] for run in runs} == {word}
            found.append(dict(
                data=row['name'], precision=word, runs=row['runs'], valid_accuracy=row['valid_accuracy'],
                seeds=[run['valid_accuracy'] for run in runs],
                train_seconds=row['train_seconds'], recipe=runs[0]['recipe']))
            print({k: v for k, v in found[-1].items() if k != 'recipe'}, flush=True)
    return sorted(found, key=lambda row: row['data'])


PARTS = dict(speed=speed, learning=learning)


def about(): return dict(**provenance(DEVICE), computes_bfloat16=computes(DEVICE, 'bfloat16'))


if __name__ == '__main__': in_parts(__doc__, PARTS, RESULTS, about)
