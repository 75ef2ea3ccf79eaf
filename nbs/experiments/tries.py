"""What the best recipe is made of: one change each, in small. About an hour of one CPU core that computes in bfloat16.

    CIFAR10_DIR=... python nbs/experiments/tries.py --out DIR              # what is finished is kept
    CIFAR10_DIR=... python nbs/experiments/tries.py --out DIR --publish    # and write nbs/results/tries.json
    ... --only adamw                                                 # one of them

Width 32, all 45,000 training images, 5 epochs, one seed; compared by the held-out images. Five epochs are no forecast
for forty: they show how fast a change learns.
"""
import argparse, os, sys
from pathlib import Path

from cifar_resnet.scale import sweep
from cifar_resnet.runs import read_history, write_json

RESULTS = Path(__file__).parent.parent/'results'/'tries.json'
COMMON = dict(recipe='best', width=32, epochs=5)
TRIES = {'as-it-is': {}, 'half-the-rate': dict(lr=1e-3), 'adamw': dict(optimiser='adamw')}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', required=True)
    parser.add_argument('--data_dir', default=os.environ.get('CIFAR10_DIR'))
    parser.add_argument('--only', nargs='+', choices=TRIES, default=list(TRIES))
    parser.add_argument('--publish', action='store_true')
    args = parser.parse_args()
    rows = []
    for name in args.only:
        recipe, out = {**COMMON, **TRIES[name]}, Path(args.out)/name
        found = sweep({name: recipe}, [0], out, ['cpu'], data_dir=args.data_dir, precision='bf16')
        if found['failed']: raise RuntimeError(found['failed'][0]['error'])
        [run], history = found['runs'], read_history(out/f'{name}-0'/'history.csv')
        noted = {k: run[k] for k in ('train_seconds', 'precision', 'hardware', 'git_revision', 'recipe')}
        rows.append(dict(name=name, change=TRIES[name], held_out=[row['valid_accuracy'] for row in history], **noted))
        print(name, [f'{a:.3f}' for a in rows[-1]['held_out']], flush=True)
    if args.publish:
        command = 'python nbs/experiments/tries.py --out DIR --publish'
        write_json(RESULTS, dict(command=command, common=COMMON, table=rows))


if __name__ == '__main__': sys.exit(main())
