"""Sweeps over the engines of clusters, on this machine: workers that are killed midway, and what an engine costs.

    python nbs/experiments/clusters.py                   # all parts, into nbs/results/clusters.json
    python nbs/experiments/clusters.py dask overhead     # these
"""
import json, os, subprocess, sys, tempfile, threading, time
from collections import Counter
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import torch
import on_slurm
from engines import NotRun, with_nfs
from cifar_resnet.fetch import file_hash
from cifar_resnet.runs import now, provenance, read_json, write_json
from cifar_resnet.scale import engine, sweep
from cifar_resnet.train import read_about

HERE = Path(__file__).parent
RESULTS = HERE.parent/'results'/'clusters.json'
RECIPE = dict(dataset='shapes10', width=8, epochs=10, limit=200)
TINY = dict(dataset='shapes10', width=2, epochs=1, limit=40, batch_size=20)


# A Dask cluster: processes of their own, in network namespaces of their own where that is allowed

def system(*command): subprocess.run(command, check=True, capture_output=True)

@contextmanager
def network(number):
    "Yield the addresses of this machine and of a namespace that is joined to it by a cable, and what begins a command there."
    name, ours, theirs = f'sweep{number}', f'10.77.{number}.1', f'10.77.{number}.2'
    def there(*command): system('ip', 'netns', 'exec', name, *command)
    try:
        system('ip', 'netns', 'add', name)
        system('ip', 'link', 'add', f'{name}a', 'type', 'veth', 'peer', 'name', f'{name}b')
        system('ip', 'link', 'set', f'{name}b', 'netns', name)
        system('ip', 'addr', 'add', f'{ours}/24', 'dev', f'{name}a')
        system('ip', 'link', 'set', f'{name}a', 'up')
        there('ip', 'addr', 'add', f'{theirs}/24', 'dev', f'{name}b')
        there('ip', 'link', 'set', f'{name}b', 'up')
        there('ip', 'link', 'set', 'lo', 'up')
        yield ours, theirs, ['ip', 'netns', 'exec', name]
    except (OSError, subprocess.CalledProcessError): yield '127.0.0.1', '127.0.0.1', []
    finally:
        with suppress(OSError, subprocess.CalledProcessError): system('ip', 'netns', 'del', name)


def begun(stack, command, log):
    "A process that ends with the block."
    paths = os.pathsep.join(filter(None, [str(HERE), str(HERE.parent.parent), os.environ.get('PYTHONPATH')]))
    env = dict(os.environ, PYTHONPATH=paths, OMP_NUM_THREADS='1')
    process = subprocess.Popen(command, env=env, stdout=open(log, 'w'), stderr=subprocess.STDOUT)
    stack.callback(lambda: (process.kill(), process.wait()))
    return process


@contextmanager
def dask_cluster(folder, workers=('worker 1', 'worker 2')):
    "Yield the address of a scheduler, its workers' processes by name, and the kind of network."
    dask, port = [sys.executable, '-m', 'dask'], 18786
    with ExitStack() as stack:
        begun(stack, [*dask, 'scheduler', '--host', '0.0.0.0', '--port', str(port), '--no-dashboard'], folder/'scheduler.log')
        processes, kinds = {}, set()
        for i, name in enumerate(workers, 1):
            ours, theirs, there = stack.enter_context(network(i))
            kinds.add('a network namespace for each worker' if there else '127.0.0.1')
            command = [*there, *dask, 'worker', f'tcp://{ours}:{port}', '--host', theirs, '--name', name, '--no-nanny',
                       '--nthreads', '1', '--no-dashboard', '--local-directory', str(folder/'local')]
            processes[name] = begun(stack, command, folder/f'{name}.log')
        wait_for_workers(f'tcp://127.0.0.1:{port}', len(workers))
        yield f'tcp://127.0.0.1:{port}', processes, ', '.join(sorted(kinds))


def wait_for_workers(address, n):
    from distributed import Client
    with Client(address, timeout=60) as client: client.wait_for_workers(n, timeout=120)


# Who does what, and when

def note(path, **line):
    with open(path, 'a') as f: f.write(json.dumps(line) + '\n')


def noted(path, fn, key, *args):
    "What a worker does, with a line when it begins and one when it ends."
    from distributed import get_worker
    about = dict(run=f'{key[0]}-{key[1]}', node=get_worker().name)
    note(path, what='begin', at=time.time(), **about)
    try: return fn(key, *args)
    finally: note(path, what='end', at=time.time(), **about)


class Noted:
    "An executor whose workers note what they do."
    def __init__(self, executor, path): self.executor, self.path = executor, path
    def submit(self, fn, *args): return self.executor.submit(noted, str(self.path), fn, *args)


def bars(path, killed):
    "Who trained which run from when to when, in seconds; a worker that was killed left no end."
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    first, found = lines[0]['at'], []
    for line in lines:
        at = line.pop('at') - first
        if line.pop('what') == 'begin': found.append(dict(line, begin=at, end=None, killed=False))
        else: next(bar for bar in found if bar['end'] is None and line.items() <= bar.items())['end'] = at
    for bar in found:
        if bar['end'] is None: bar.update(end=killed['at'] - first, killed=True)
    return found


def epochs(folder):
    "How many epochs a run has behind it."
    try: return len((folder/'history.csv').read_text().splitlines()) - 1
    except FileNotFoundError: return 0


def kill_midway(name, process, out, path, killed):
    "Kill a worker when the run that it has has been saved, and has three epochs behind it."
    def its_run():
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return next((out/line['run'] for line in lines if line['node'] == name), None)
    while not ((run := its_run()) and epochs(run) >= 3 and any((run/'checkpoints').glob('*.pt'))): time.sleep(.05)
    process.kill()
    killed.update(node=name, run=run.name, at=time.time(), epochs=epochs(run))


# The parts

def dask():
    "Four runs on two workers, of which one is killed midway: does each run end with the weights of an undisturbed one?"
    recipes, seeds = {'strict': RECIPE, 'mirrored': {**RECIPE, 'flip': 'random'}}, [0, 1]
    with tempfile.TemporaryDirectory() as top:
        top = Path(top)
        out, notes, killed, said = top/'out', top/'notes', {}, []
        with dask_cluster(top) as (address, workers, where), engine(f'dask:{address}') as executor:
            args = 'worker 1', workers['worker 1'], out, notes, killed
            threading.Thread(target=kill_midway, args=args, daemon=True).start()
            found = sweep(recipes, seeds, out, executor=Noted(executor, notes), save_every_s=.2, say=said.append)
        sweep(recipes, seeds, top/'undisturbed', ['cpu'])
        same = lambda run: file_hash(out/run/'weights.safetensors') == file_hash(top/'undisturbed'/run/'weights.safetensors')
        names = [f'{name}-{seed}' for seed in seeds for name in recipes]
        runs = [dict(run=run, resumed_at=read_about(out/run)['resumed_at'], same_weights=same(run)) for run in names]
        return dict(network=where, recipe=RECIPE, killed={k: v for k, v in killed.items() if k != 'at'},
                    failed=len(found['failed']), runs=runs, bars=bars(notes, killed))


def overhead(sizes=(1, 2, 4, 8), times=5):
    "Tiny runs, in a loop in this process and over two workers: how much of the time is no worker's own work?"
    with tempfile.TemporaryDirectory() as top, ExitStack() as stack:
        address, _, where = stack.enter_context(dask_cluster(Path(top)))
        executor, rows = stack.enter_context(engine(f'dask:{address}')), []
        over = lambda n: timed(n, top, lambda notes: dict(executor=Noted(executor, notes)))
        loop = lambda n: timed(n, top, lambda notes: dict(devices=['cpu']))[0]
        over(4), loop(1)                                                         # all is imported then
        for n in sizes:
            took = [(loop(n), *over(n)) for _ in range(times)]
            rows.append(dict(
                runs=n,
                loop_s=median(loop for loop, _, _ in took),
                dask_s=median(whole for _, whole, _ in took),
                busy_s=median(busy for _, _, busy in took),
                overhead_ms_a_run=1000*median(whole - busy for _, whole, busy in took)/n))
            print(rows[-1], flush=True)
        return dict(network=where, recipe=TINY, workers=2, times=times, table=rows)


def timed(n, top, how):
    "Seconds of a sweep, and of the work of its busiest worker."
    out, began = Path(tempfile.mkdtemp(dir=top)), time.perf_counter()
    found = sweep({'tiny': TINY}, range(n), out, **how(out/'notes'))
    took, busy = time.perf_counter() - began, Counter()
    assert len(found['runs']) == n, found['failed']
    for bar in bars(out/'notes', {}) if (out/'notes').exists() else []: busy[bar['node']] += bar['end'] - bar['begin']
    return took, max(busy.values(), default=took)


def nfs():
    "Locks, renames and a run on NFS, mounted twice in each of several ways."
    with tempfile.TemporaryDirectory() as top:
        said = with_nfs(top, [sys.executable, HERE/'nfs_locks.py'], timeout=1200)
    rows = [json.loads(line.removeprefix('ROW ')) for line in said.splitlines() if line.startswith('ROW ')]
    return dict(where='a Linux kernel of its own (user-mode-linux), its server and its mounts on 127.0.0.1', table=rows)


PARTS = dict(dask=dask, overhead=overhead, slurm=on_slurm.slurm_part, nfs=nfs)


def publish(name, entry):
    "Write a part's entry, beside those that are there."
    about = provenance(torch.device('cpu'))
    versions = dict(about['versions'], **{p: version(p) for p in ('distributed', 'submitit') if find_spec(p)})
    about = dict(command=f'python nbs/experiments/clusters.py {name}', date=now()[:10], versions=versions,
                 **{k: about[k] for k in ('system', 'hardware', 'cpus', 'git_revision')})
    known = read_json(RESULTS) if RESULTS.exists() else {}
    write_json(RESULTS, {**known, name: {**about, **entry}})


def main(names):
    if unknown := [name for name in names if name not in PARTS]:
        sys.exit(f'there is no part {unknown[0]}: choose from {", ".join(PARTS)}')
    torch.set_num_threads(1)                       # as in each worker
    for name in names or PARTS:
        try: entry = PARTS[name]()
        except NotRun as e: entry = {'not run': str(e)}
        publish(name, entry)
        print(name, json.dumps(entry)[:500], flush=True)


if __name__ == '__main__': main(sys.argv[1:])
