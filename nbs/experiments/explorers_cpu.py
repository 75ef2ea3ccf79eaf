"""From a change of a control to the bytes of the new picture, at full width: the explorers' work, not the browser's.

    python nbs/experiments/explorers_cpu.py              # print
    python nbs/experiments/explorers_cpu.py --publish    # and write nbs/results/explorers_<device>.json

Goals: 150 ms for a picture that was not there before, 50 ms for one that was.
"""
import os, platform, sys, time, warnings
from importlib.metadata import version
from pathlib import Path
from statistics import median

import torch

from cifar_resnet.core import rng, seeded
from cifar_resnet.data import mean_std, shapes10
from cifar_resnet.evaluate import predict
from cifar_resnet.explore import BLOCKS, Subject, augmentation_explorer, gradcam_explorer, mistake_explorer
from cifar_resnet.model import resnet18
from cifar_resnet.augment import normalise
from cifar_resnet.runs import write_json
from cifar_resnet.stepper import Stepper, step_picture
from cifar_resnet.train import Recipe

N = 30      # changes of each kind


def untrained(n=300):
    "The full network, as it is before training: its pictures cost what those of a trained one cost."
    test = shapes10(n_train=10, n_test=n)[1]
    mean, std = mean_std(test.images)
    with seeded('init', 0): model = resnet18().eval().to(memory_format=torch.channels_last)
    logits = predict(model, normalise(torch.from_numpy(test.images), mean, std))
    return Subject('width 64', model, test, mean, std, logits, 1.)


def took(change, *args):
    start = time.perf_counter()
    change(*args)
    return 1e3*(time.perf_counter() - start)


def row_of(what, picture, ms):
    return dict(what=what, picture=picture, median_ms=round(median(ms), 1), worst_ms=round(max(ms), 1), n=len(ms))


def timed(what, explorer, name, values):
    "Each value in turn, and then all of them once more, from memory: two rows."
    control = explorer.controls[name]
    put = lambda value: setattr(control, 'value', value)
    new, again = ([took(put, v) for v in values] for _ in range(2))
    assert 'color:' not in explorer.message.value, explorer.message.value
    return [row_of(what, 'new', new), row_of(what, 'seen before', again)]


def measure():
    s, g = untrained(), rng('latency')
    maps, mistakes, augmentations = gradcam_explorer(s), mistake_explorer(s), augmentation_explorer(s)
    images = g.permutation(len(s.data))[:N].tolist()
    other_layers = [b for b in BLOCKS if b != maps.controls['layer'].value]
    rows = [
        *timed('maps: the image', maps, 'image', images),
        *timed('maps: the class', maps, 'target', range(10)),
        *timed('maps: the layer', maps, 'layer', other_layers),
        *timed('maps: opacity', maps, 'opacity', [k/N for k in range(N)]),
        *timed('mistakes: the image', mistakes, 'chosen', range(1, 12)),
        *timed('augmentation: the image', augmentations, 'image', images),
        *timed('augmentation: the angle', augmentations, 'angle', [a for a in range(40) if a != 5][:N]),
    ]
    shown = mistakes.controls['cell'].value
    cells = [at for at, b in mistakes.matrix.buttons.items() if b.description and at != shown]
    open_ = lambda at: mistakes.matrix.buttons[at].click()
    rows.append(row_of('mistakes: another cell', 'new', [took(open_, at) for at in cells]))
    stepper = Stepper(Recipe(dataset='shapes10', width=8), Path('never-made'), 'cpu')
    stepper.ask('batch'); stepper.wait()
    t = [took(step_picture, stepper.view(), stepper.train.classes) for _ in range(10)]
    stepper.end()
    return [*rows, row_of('training: the picture (once or twice a second)', 'new', t)]


if __name__ == '__main__':
    if sys.argv[1:] not in ([], ['--publish']): sys.exit(__doc__)
    warnings.filterwarnings('ignore')
    found = dict(
        command='python nbs/experiments/explorers_cpu.py --publish',
        width=64, goal_new_ms=150, goal_seen_before_ms=50,
        threads=torch.get_num_threads(), cpus=os.cpu_count(), machine=platform.machine(),
        versions={p: version(p) for p in ('torch', 'ipywidgets', 'pillow')},
        table=measure())
    for row in found['table']: print(*row.values(), sep='\t')
    if sys.argv[1:]: write_json(Path(__file__).parent.parent/'results'/'explorers_cpu.json', found)
