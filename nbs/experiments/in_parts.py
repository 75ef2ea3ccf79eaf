"An experiment of several parts: what is finished is kept in a file, and the same command goes on."
import argparse, os
from pathlib import Path

from cifar_resnet.runs import read_json, write_json


def in_parts(
    doc:str,    # the script's docstring, its --help
    parts:dict, # name -> a function of the parsed arguments, which gives something for JSON
    path:Path,  # the file in nbs/results; in --out it has the same name
    about,      # called without arguments: what else is published beside the parts
):
    "Do the parts that were asked for and are not yet in --out; with --publish, write them to `path`."
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', required=True, help='the folder of the runs and of what was found so far')
    parser.add_argument('--data_dir', default=os.environ.get('CIFAR10_DIR'))
    parser.add_argument('--seeds', type=lambda s: [int(n) for n in s.split(',')], default=[0, 1, 2])
    parser.add_argument('--only', nargs='+', choices=parts, default=list(parts))
    parser.add_argument('--publish', action='store_true')
    args = parser.parse_args()
    so_far = Path(args.out)/path.name
    so_far.parent.mkdir(parents=True, exist_ok=True)
    for name in args.only:
        known = read_json(so_far) if so_far.exists() else {}
        if name not in known: write_json(so_far, {**known, name: parts[name](args)})
    if args.publish:
        command = f'python nbs/experiments/{path.stem}.py --out DIR --publish'
        write_json(path, dict(command=command, **about(), **read_json(so_far)))
