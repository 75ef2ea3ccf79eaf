"""The small networks that come with the package, trained anew: some ten minutes on one CPU core.

    python nbs/experiments/small_nets.py           # all of them, into cifar_resnet/weights/
    python nbs/experiments/small_nets.py NAME ...  # only these

They are what `cifar_resnet --dataset shapes10 --width 8 ...` trains, with one thread, stored in half precision.
Their test pictures stay unread.
"""
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from cifar_resnet.job import job
from cifar_resnet.model import WEIGHTS, weights_file
from cifar_resnet.runs import write_atomic
from cifar_resnet.train import Recipe

FINE = (1,1,2,2)                  # strides that leave a last map of 8×8 cells
NETS = {
    'shapes10': dict(strides=FINE),
    'shapes10-batch': dict(strides=FINE, norm='batch'),
    'shapes10-shortcut': dict(strides=FINE, variant='shortcut', filters='free', epochs=35),
    'shapes10-shortcut-zero-mean': dict(strides=FINE, variant='shortcut'),
    'shapes10-distractors': dict(strides=FINE, variant='distractors'),
    'shapes10-coarse': dict(strides=(1,2,2,2)),
}
EPOCHS = 24                       # half the width of the quick start's network learns more slowly


def train(name, folder, **other):
    "The run of a small network."
    recipe = Recipe(dataset='shapes10', width=8, **{'epochs': EPOCHS, **NETS[name], **other})
    return job(recipe, folder, device='cpu', read_test=False)


def store(run, path):
    "Its weights, in half precision, as one small file."
    m = run.metrics
    write_atomic(path, weights_file(run.model.half(), classes=m['classes'], mean=m['mean'], std=m['std']))


if __name__ == '__main__':
    names = sys.argv[1:] or list(NETS)
    if unknown := sorted(set(names) - set(NETS)):
        sys.exit(f'there is no network {", ".join(unknown)}: choose {", ".join(NETS)}')
    torch.set_num_threads(1)      # so that the bits do not depend on the number of cores
    for name in names:
        with TemporaryDirectory() as folder: run = train(name, Path(folder)/'run')
        store(run, WEIGHTS/f'{name}.safetensors')
        print(f'{name}: held-out accuracy {run.metrics["valid_accuracy"]:.1%}', flush=True)
