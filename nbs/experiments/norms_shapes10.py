"""What does it cost to have no BatchNorm, and what do the maps look like? Small networks on Shapes-10 that differ in
their norm only: about an hour on one core.

    python nbs/experiments/norms_shapes10.py --out DIR                   # train them (resumable), measure, print
    python nbs/experiments/norms_shapes10.py --out DIR --devices cpu,cpu # two at a time
    python nbs/experiments/norms_shapes10.py --out DIR --publish         # and write .json and .png to nbs/results

Each is what `cifar_sweep` trains; its maps are those of the true class, on test pictures that no network has seen.
(group32 needs a wider network.)
"""
import argparse, sys
from pathlib import Path

import torch

from cifar_resnet.augment import normalise
from cifar_resnet.data import shapes10
from cifar_resnet.faithful import localisation
from cifar_resnet.gradcam import gradcam, overlay, upsample
from cifar_resnet.evaluate import spread
from cifar_resnet.scale import sweep
from cifar_resnet.plots import picture_grid, png
from cifar_resnet.runs import write_atomic, write_json
from cifar_resnet.train import load_run

RESULTS = Path(__file__).parent.parent/'results'
NORMS = 'layer', 'batch', 'group8', 'instance', 'pixel', 'none'
COMMON = dict(dataset='shapes10', width=8, strides=(1,1,2,2), filters='free', epochs=35)    # free: one change at a time
MEASURES = 'pointing', 'mass'
TEST = shapes10(n_train=10, n_test=1000, seed=1)[1]
LABELS, SILHOUETTE = torch.from_numpy(TEST.labels), torch.from_numpy(TEST.masks['filled'])


def maps(run):
    "The maps of the true classes, raw."
    x = normalise(torch.from_numpy(TEST.images), run.metrics['mean'], run.metrics['std'])
    return torch.cat([gradcam(run.model, *part) for part in zip(x.split(250), LABELS.split(250))])


def measured(folder, row):
    "A recipe's row with what its networks' maps are worth."
    runs = [load_run(folder/f'{row["name"]}-{seed}') for seed in row['seeds']]
    found = [localisation(upsample(maps(run)), SILHOUETTE) for run in runs]
    spreads = {k: spread([f[k].mean().item() for f in found]) for k in MEASURES}
    return dict(norm=row['name'], runs=row['runs'], test_accuracy=row['test_accuracy'], **spreads,
                train_seconds=row['train_seconds'])


def figure(folder, norms, n=3):
    "The same test pictures, looked at by one network of each norm."
    heats = [overlay(TEST.images[:n], maps(load_run(folder/f'{norm}-0'))[:n]) for norm in norms]
    columns = [TEST.images[:n], *heats]
    pictures = [column[i] for i in range(n) for column in columns]
    titles = [title for i in range(n) for title in (TEST.classes[TEST.labels[i]], *norms)]
    return picture_grid(pictures, titles, cols=len(columns), size=1.05)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', required=True)
    parser.add_argument('--seeds', default='0,1,2')
    parser.add_argument('--devices', default='cpu')
    parser.add_argument('--publish', action='store_true')
    args = parser.parse_args()
    recipes, seeds = {norm: dict(COMMON, norm=norm) for norm in NORMS}, [int(s) for s in args.seeds.split(',')]
    found = sweep(recipes, seeds, args.out, args.devices.split(','), read_test=True)
    for row in found['table']: row['seeds'] = [run['seed'] for run in found['runs'] if run['name'] == row['name']]
    rows = [measured(Path(args.out), row) for row in found['table']]
    for row in rows:
        print(row['norm'], row['runs'], {k: f'{row[k]["mean"]:.3f}' for k in ('test_accuracy', *MEASURES)})
    for row in found['failed']: print(row['name'], row['seed'], 'failed:', row['error'])
    if args.publish:
        write_json(RESULTS/'norms_shapes10.json', dict(
            command='python nbs/experiments/norms_shapes10.py --out DIR --publish',
            recipe=found['runs'][0]['recipe'], pictures=len(TEST), table=rows, failed=found['failed']))
        write_atomic(RESULTS/'norms_shapes10.png', png(figure(Path(args.out), [row['norm'] for row in rows])))


if __name__ == '__main__': sys.exit(main())
