"""What each change to the recipes was worth in small: finished runs side by side, for the notebook on training.

    cifar_resnet --width 16 --limit 10000 --no_test FLAGS --out RUN      # once for each set of FLAGS
    python nbs/experiments/levers.py RUN...                              # a row for each run, from its held-out images
    python nbs/experiments/levers.py RUN... --publish                    # ... and write nbs/results/levers.json

The flags of a row are those fields of its recipe that differ from the named recipe as it is today.
"""
import argparse
from dataclasses import asdict
from pathlib import Path

from cifar_resnet.plots import lr_drops
from cifar_resnet.runs import read_history, read_json, write_json
from cifar_resnet.train import Recipe, saved_recipe

COMMON = dict(width=16, limit=10_000)


def flags(recipe):
    """What was typed for a recipe (of run.json), beside COMMON; fields that it lacks mean what they meant then.
    Raises ValueError for a run without COMMON, or with another seed than 0."""
    given = {k: recipe[k] for k in ('recipe', 'dataset', 'batch_size')}
    usual = asdict(Recipe(**given, **COMMON).filled())
    other = {k: v for k, v in asdict(saved_recipe(recipe).filled()).items() if v != usual[k]}
    if other.keys() & {*COMMON, 'seed'}: raise ValueError(f'these runs cannot be compared: one has {other}')
    named = {} if recipe['recipe'] == Recipe.recipe else dict(recipe=recipe['recipe'])
    typed = lambda v: ','.join(map(str, v)) if isinstance(v, tuple) else v
    return ' '.join(f'--{k} {typed(v)}' for k, v in {**named, **other}.items()) or '(none)'


def row(folder):
    "A run in one line. Raises ValueError if it is not finished."
    about, history = read_json(folder/'run.json'), read_history(folder/'history.csv')
    if not about['finished']: raise ValueError(f'{folder} is not finished')
    drops = lr_drops(history)
    return {
        'flags': flags(about['recipe']),
        'held-out accuracy': about['valid_accuracy'],
        'held-out loss': about['valid_loss'],
        'first drop after epoch': drops[0]-1 if drops else '–',
        'rate falls by': round(max(r['lr'] for r in history)/history[-1]['lr']),
        'weights of epoch': about['epoch'],
    }


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('runs', nargs='+', type=Path, metavar='RUN', help='the folder of a finished run')
    parser.add_argument('--publish', action='store_true', help='write nbs/results/levers.json')
    args = parser.parse_args(argv)
    rows = [row(folder) for folder in args.runs]
    for each in rows: print(each)
    if args.publish:
        command = 'cifar_resnet --width 16 --limit 10000 --no_test FLAGS'
        write_json(Path(__file__).parents[1]/'results'/'levers.json', dict(command=command, seed=0, table=rows))


if __name__ == '__main__': main()
