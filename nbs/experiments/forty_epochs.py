"""All that asks for a GPU, in one command that may be stopped at any time: about 25 minutes on an H200.

    python nbs/experiments/forty_epochs.py                        # all of it
    python nbs/experiments/forty_epochs.py --budget_s 500         # nine minutes at most; exit code 3: not done yet, the same command goes on
    python nbs/experiments/forty_epochs.py --small                # the same steps, tiny, on drawn pictures: does the command work?

One step after the other, in the order of what is wanted most:

backend    which backend is the fastest here, cold start included; and does it train as the plain one does?
first     one run of the strict recipe
search    which plateau suits the strict recipe, and which levers the best one: one seed each, judged on held-out images; the test set stays closed
final     both recipes as chosen: results, figures, and the best recipe's weights (half precision, with the accuracy of that very file)
notebook  the run notebook, executed
three     both recipes, three seeds
five      ... and five
bench     speed, where the time goes, the ceiling
norms     the strict recipe with every norm

A step that fails is reported, and the next one begins; the same command tries it again. In each run the test set is read once, of the candidates' runs not at all.
What is finished is never done again: it stands in forty_epochs.json in the folder --work. Results go to --results, weights to --weights, the notebook to the folder --work.
"""
import argparse, math, os, shutil, subprocess, sys, tempfile, time, traceback
from functools import partial
from pathlib import Path

import torch
import torch._dynamo

from cifar_resnet.benchmarks import cold_start, in_turn, our_loop
from cifar_resnet.core import pick_device
from cifar_resnet.data import cifar10, shapes10
from cifar_resnet.job import draw_figures, publish, release
from cifar_resnet.scale import sweep
from cifar_resnet.model import NORMS, WEIGHTS
from cifar_resnet.runs import read_json, write_json
from cifar_resnet.train import Recipe, load_run

ROOT = Path(__file__).resolve().parents[2]
STEPS = 'backend', 'first', 'search', 'final', 'notebook', 'three', 'five', 'bench', 'norms'
BACKENDS = 'eager', 'rows', 'compile', 'rows+compile', 'rows+graph'

# What is tried, each against the recipe as it stands. The first name is that recipe.
SEARCH = {
    'strict': {'as-it-is': {}, 'factor.25': dict(plateau_factor=.25), 'patience1': dict(plateau_patience=1), 'batch256': dict(batch_size=256)},
    'best': {'as-it-is': {}, 'batch256': dict(batch_size=256), 'sgd': dict(optimiser='sgd', lr=.1, weight_decay=5e-4), 'lr4e-3': dict(lr=4e-3), 'map8x8': dict(strides=(1,1,2,2))},
}
TINY = dict(dataset='shapes10', width=4, epochs=2, limit=160)


class TimeIsUp(Exception): "The budget is spent; what was begun goes on next time."


class Work:
    "The plan's folder, what is known so far, and the time that is left."
    def __init__(self, args):
        self.__dict__.update(vars(args))
        self.until, self.device = time.monotonic() + args.budget_s, pick_device(args.device)
        self.work = Path(args.work); self.work.mkdir(parents=True, exist_ok=True)
        self.path = self.work/'forty_epochs.json'
        self.known = read_json(self.path) if self.path.exists() else dict(done=[])
        self.base = TINY if args.small else {}

    def left(self): return self.until - time.monotonic()

    def note(self, **what):
        "Remember what was found."
        self.known.update(what)
        write_json(self.path, self.known)

    def need(self, seconds):
        "Do not begin what cannot be finished."
        if self.left() < seconds: raise TimeIsUp

    def sweep(self, name, recipes, seeds, **kw):
        "A sweep in a folder of its own, to its end."
        backend = self.known.get('backend', 'eager')
        recipes = {n: {**self.base, **fields} for n, fields in recipes.items()}
        found = sweep(recipes, seeds, self.work/name, [str(self.device)], budget_s=self.left(), data_dir=self.data_dir, backend=backend, **kw)
        for row in found['table']: print(f'{name}: {row["name"]}', {k: f'{v["mean"]:.2%}' for k, v in row.items() if isinstance(v, dict)}, f'{row["train_seconds"]:.0f} s', flush=True)
        for row in found['failed']: print(f'{name}: {row["name"]} failed: {row["error"]}', flush=True)
        if found['left']: raise TimeIsUp
        if not found['runs']: raise RuntimeError(f'no run of {name} succeeded')
        return found

    def recipe(self, track): return dict(self.known.get('chosen', {}).get(track, {}), recipe=track)


def backend(w):
    "Time every backend; one that fails here, or trains otherwise than the plain one, is out."
    train = shapes10(n_train=2000)[0] if w.small else cifar10(w.data_dir)[0]
    recipe = Recipe(**{**w.base, 'epochs': 10_000}).filled(w.device.type)
    steps, found = 40*45_000/recipe.batch_size, w.known.get('backends', {})
    for name in BACKENDS[:2] if w.small else BACKENDS:
        if name in found: continue
        w.need(0 if w.small else 60)
        try:
            started = cold_start(recipe, train, w.device, name)
            losses = started.losses.tolist()
            plain = found.get('eager', dict(losses=losses))['losses']
            seconds = min(in_turn({name: our_loop(started.training)}, 3, 2, 80)[name])
            found[name] = dict(cold_start_seconds=started.seconds, batch_seconds=seconds, forty_epochs_seconds=started.seconds + steps*seconds, losses=losses)
            if not all(abs(a - b) < .02*b for a, b in zip(losses, plain)): found[name]['error'] = 'it does not train as the plain network does'
        except Exception as e: found[name] = dict(error=' '.join(str(e).split())[:300])
        if not all(map(math.isfinite, found[name].get('losses', []))): found[name].pop('losses')
        print(f'backend {name}: {found[name]}', flush=True)
        w.note(backends=found)
        started = None
        if w.device.type == 'cuda': torch.cuda.empty_cache()
    good = {name: row['forty_epochs_seconds'] for name, row in found.items() if 'error' not in row}
    w.note(backend=min(good, key=good.get, default='eager'))


def first(w):
    "It is also the first candidate of the search."
    w.note(first=w.sweep('search-strict', {'as-it-is': dict(recipe='strict')}, [0], read_test=True))


def search(w):
    "The candidates of each recipe; the one with the best held-out accuracy is chosen. The strict one must have annealed its rate 50-fold."
    chosen, tables, winners = {}, {}, {}
    for track, candidates in SEARCH.items():
        names = list(candidates)[:2] if w.small else candidates
        found = w.sweep(f'search-{track}', {name: dict(candidates[name], recipe=track) for name in names}, [0])
        rows = [row for row in found['runs'] if row['name'] in candidates]
        annealed = [row for row in rows if track != 'strict' or row['rate_falls_by'] >= 50]
        winner = max(annealed or rows, key=lambda row: row['valid_accuracy'])['name']
        chosen[track], tables[track], winners[track] = candidates[winner], rows, winner
        print(f'search: {track} takes {winner}', flush=True)
    w.note(chosen=chosen, search=tables, winners=winners)


def final(w, seeds=1):
    "Both tracks, and what of it goes into the repository. Seed 0 was trained by the search; now its test set is read."
    for track, winner in w.known.get('winners', {}).items():
        there, here = w.work/f'search-{track}'/f'{winner}-0', w.work/'final'/f'{track}-0'
        if not here.exists():
            shutil.copytree(there, here.with_name(f'{here.name}.part'), dirs_exist_ok=True)
            here.with_name(f'{here.name}.part').rename(here)
    w.note(final=w.sweep('final', {track: w.recipe(track) for track in SEARCH}, list(range(seeds)), read_test=True))
    w.need(0 if w.small else 30)
    into_the_repository(w)


def into_the_repository(w):
    "Figures and numbers of seed 0 of both recipes, the weights of the best one, and what was found on the way."
    test = shapes10()[1].take(slice(TINY['limit'])) if w.small else cifar10(w.data_dir)[1]
    for track in SEARCH:
        run, folder = load_run(w.work/'final'/f'{track}-0'), Path(w.results)/f'cifar10-{track}'
        if not (run.folder/'gradcam.png').exists(): draw_figures(run, test)
        publish(run, folder)
    Path(w.weights).mkdir(parents=True, exist_ok=True)
    about = release(run, Path(w.weights)/'cifar10.safetensors', test, w.device)
    print('weights:', {k: about[k] for k in ('test_accuracy', 'sha256')}, flush=True)
    write_json(Path(w.results)/'forty_epochs.json', dict(command='python nbs/experiments/forty_epochs.py', **{k: w.known.get(k) for k in ('backends', 'backend', 'first', 'search', 'winners', 'chosen', 'final')}, weights=about))


def notebook(w):
    "The run notebook from its first cell to its last; its training is a run of its own."
    w.need(0 if w.small else 150)
    env = {**os.environ, 'TQDM_DISABLE': '1', **({'IN_TEST': '1'} if w.small else {}), **({'CIFAR10_DIR': str(Path(w.data_dir).resolve())} if w.data_dir else {})}
    run = 'import sys; from execnb.shell import CaptureShell; CaptureShell().execute(sys.argv[1], sys.argv[2], exc_stop=True)'
    name = '19_cifar10_40_epochs.ipynb'
    subprocess.run([sys.executable, '-c', run, str(ROOT/'nbs'/name), str(w.work.resolve()/name)], check=True, env=env, cwd=ROOT/'nbs', timeout=500)


def benchmarks(w):
    "In a process of its own, with an empty cache of compiled kernels, so that a cold start is one."
    w.need(0 if w.small else 150)
    backends = [e for e, row in w.known.get('backends', {'eager': {}}).items() if 'error' not in row]
    argv = ['--device', w.device.type, '--publish', str(w.results), *(['--quick'] if w.small else ['--pairs', '5', '--backends', *backends])]
    with tempfile.TemporaryDirectory() as empty:
        subprocess.run([sys.executable, '-c', 'import sys; from cifar_resnet.cli import bench_main as main; sys.argv[0] = "cifar_bench"; sys.exit(main())', *argv], check=True, env={**os.environ, 'TORCHINDUCTOR_CACHE_DIR': empty}, timeout=550)


def norms(w):
    names = ['layer', 'batch'] if w.small else [n for n in NORMS if n != 'layer'] + ['layer']
    found = w.sweep('norms', {norm: dict(w.recipe('strict'), norm=norm) for norm in names}, [0], read_test=True)
    write_json(Path(w.results)/'norms_cifar10.json', dict(command='python nbs/experiments/forty_epochs.py', **found))


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data_dir', help='contains cifar-10-batches-py; default: $CIFAR10_DIR')
    parser.add_argument('--work', default='runs/forty_epochs', help='the folder of all runs')
    parser.add_argument('--results', default=str(ROOT/'nbs'/'results'))
    parser.add_argument('--weights', default=str(WEIGHTS))
    parser.add_argument('--device', default='auto')
    parser.add_argument('--budget_s', type=float, default=math.inf)
    parser.add_argument('--only', nargs='+', choices=STEPS, default=STEPS, help='these steps alone')
    parser.add_argument('--small', action='store_true')
    args = parser.parse_args(argv)
    if args.small and (args.results == parser.get_default('results') or args.weights == parser.get_default('weights')): parser.error('--small makes results that mean nothing: give it --results and --weights of its own')
    w, failed = Work(args), []
    torch.backends.cudnn.benchmark = True                   # sizes are fixed: let cuDNN choose its kernels; run.json says so
    torch._dynamo.config.recompile_limit = 64               # many networks are compiled in this one process
    steps = dict(backend=backend, first=first, search=search, final=final, notebook=notebook, three=partial(final, seeds=3), five=partial(final, seeds=5), bench=benchmarks, norms=norms)
    if w.small: steps.update(three=partial(final, seeds=2), five=partial(final, seeds=2))
    for name in args.only:
        if name in w.known['done']: continue
        print(f'{name}: {w.left():.0f} s left', flush=True)
        try: steps[name](w)
        except TimeIsUp:
            print(f'time is up at {name}; the same command goes on', flush=True)
            return 3
        except Exception as e:
            traceback.print_exc()
            failed.append(name)
            if 'CUDA error' in str(e): return 4                 # nothing works after it in this process; the same command goes on
            continue
        w.note(done=[*w.known['done'], name])
    print(f'not done: {", ".join(failed)}; the same command tries again' if failed else 'all is done', flush=True)
    return 1 if failed else 0


if __name__ == '__main__': sys.exit(main())
