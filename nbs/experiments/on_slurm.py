"""Sweeps on a real Slurm of two nodes, their jobs cancelled, requeued and warned midway: is a run that was disturbed the
same, to the bit, as one that was left alone? `clusters.py slurm` publishes it; alone it prints what came of it:

    python nbs/experiments/on_slurm.py
"""
import os, subprocess, tempfile, threading, time
from contextlib import contextmanager
from pathlib import Path

import engines
from cifar_resnet import scale
from cifar_resnet.fetch import file_hash
from cifar_resnet.train import read_about

HERE = Path(__file__).resolve().parent
RECIPE = dict(dataset='shapes10', width=8, epochs=10, limit=200)
KNOCKS = {                        # what happens to a job midway, by the commands that do it
    'cancelled': ['scancel'],
    'requeued': ['scontrol requeue'],
    'time-is-nearly-over': ['scancel --signal=USR2'],
    'makes-room': ['scancel --signal=TERM', 'scancel --signal=USR2'],
}


class Noted(scale.SlurmExecutor):
    "The executor, which also notes which job is which run."
    does = None
    def submit(self, fn, key, *args):
        future = super().submit(self.does or fn, key, *args)
        self.runs[future.job.job_id] = key[0]
        return future


def noted(folder, **how):
    executor = Noted(scale.slurm_executor(folder, **how).executor)
    executor.runs = {}
    return executor


@contextmanager
def watched(runs, every_s=.2):
    "Inside the block note when which job runs where -> a list of dicts: run, node, begin, end (seconds from now)."
    bars, at_work, over, began = [], {}, threading.Event(), time.monotonic()
    def look():
        while not over.wait(every_s):
            now, rows = time.monotonic() - began, engines.asked('squeue', '-h', '-o', '%A %t %N').splitlines()
            here = {tuple(row.split()[::2]) for row in rows if row.split()[1] == 'R'}
            for job in here - at_work.keys():
                bars.append(dict(run=job[0], node=job[1], begin=now, end=now))
                at_work[job] = bars[-1]
            for job in at_work.keys() - here: del at_work[job]
            for bar in at_work.values(): bar['end'] = now
    thread = threading.Thread(target=look)
    thread.start()
    try: yield bars
    finally:
        over.set()
        thread.join()
        bars[:] = [dict(bar, run=runs[bar['run']]) for bar in bars if bar['run'] in runs]


def knock(kind, out, runs, done, seen):
    "When the run of that name has two epochs behind it, and has not saved yet, give its job a knock."
    folder = out/f'{kind}-0'
    while _epochs(folder) < 2:
        if done.wait(.05): return
    job = next(job for job, name in runs.items() if name == kind)
    seen[kind] = dict(
        epochs=_epochs(folder),
        saved_before=bool([*(folder/'checkpoints').glob('*.pt')]),
        finished=(folder/'weights.safetensors').exists())
    for command in KNOCKS[kind]:
        subprocess.run([*command.split(), job], check=True)
        time.sleep(1)                   # the second may come when the run has ended already


def _epochs(folder):
    "How many epochs a run has behind it."
    try: return len((folder/'history.csv').read_text().splitlines()) - 1
    except FileNotFoundError: return 0


def disturbed(folder, **how):
    """A sweep of one recipe under several names, each of which gets a knock of its own; then the same call once more.
    -> what was seen, beside a run that was left alone. Inside of `engines.slurm`."""
    alone = scale.sweep({'alone': RECIPE}, [0], folder/'alone', devices=['cpu'])['runs'][0]
    out, executor, done, seen = folder/'slurm', noted(folder/'jobs', **how), threading.Event(), {}
    threads = [threading.Thread(target=knock, args=(kind, out, executor.runs, done, seen)) for kind in KNOCKS]
    train = lambda: scale.sweep(dict.fromkeys(KNOCKS, RECIPE), [0], out, executor=executor, save_every_s=1e6)
    with watched(executor.runs) as bars:
        for thread in threads: thread.start()
        first = train()
        done.set()
        again = train()
    for thread in threads: thread.join()
    for kind in seen:
        cut = next(bar for bar in bars if bar['run'] == kind)
        cut['cut'] = not seen[kind]['finished']
    whole = file_hash(folder/'alone'/'alone-0'/'weights.safetensors')
    rows = {row['name']: row for row in again['runs']}
    return dict(
        knocks=[dict(kind=kind, commands=KNOCKS[kind], **found,
                     resumed_at=read_about(out/f'{kind}-0')['resumed_at'],
                     same_bits=file_hash(out/f'{kind}-0'/'weights.safetensors') == whole,
                     same_accuracy=rows[kind]['valid_accuracy'] == alone['valid_accuracy'])
                for kind, found in seen.items()],
        failed_first=[row['name'] for row in first['failed']],
        failed=again['failed'], left=again['left'],
        bars=[dict(bar, begin=round(bar['begin'], 1), end=round(bar['end'], 1)) for bar in bars])


def slowly(*args, trainer):
    "What a worker does, two seconds a batch."
    class Slow(trainer):
        def learn(self, *batch):
            time.sleep(2)
            return super().learn(*batch)
    return scale.on_worker(*args, trainer=Slow)


def out_of_time(folder):
    "A run that takes longer than its job has, with no knock but Slurm's own. Minutes, of waiting mostly."
    executor = noted(folder/'jobs', time=3, signal_delay_s=60)
    executor.does = slowly
    with watched(executor.runs) as bars:
        found = scale.sweep({'out-of-time': RECIPE}, [0], folder/'slurm', executor=executor, save_every_s=1e6)
    for bar in bars[:-1]: bar['cut'] = True
    weights = file_hash(folder/'slurm'/'out-of-time-0'/'weights.safetensors')
    return dict(
        minutes=3, resumed_at=read_about(folder/'slurm'/'out-of-time-0')['resumed_at'], failed=found['failed'],
        same_bits=weights == file_hash(folder/'alone'/'alone-0'/'weights.safetensors'),
        bars=[dict(bar, begin=round(bar['begin'], 1), end=round(bar['end'], 1)) for bar in bars])


def slurm_part():
    "What `clusters.py` publishes of Slurm; raises engines.NotRun where there can be none."
    with tempfile.TemporaryDirectory() as folder, engines.slurm(Path(folder)/'engine') as nodes:
        scale.ASK_EVERY_S, folder = 1, Path(folder)
        os.environ['PYTHONPATH'] = os.pathsep.join([str(HERE), os.environ.get('PYTHONPATH', '')])       # for `slowly`
        version = engines.asked('sbatch', '--version').split()[-1]
        return dict(engine=f'Slurm {version}', nodes=[*nodes], recipe=RECIPE, **disturbed(folder),
                    out_of_time=out_of_time(folder))


if __name__ == '__main__':
    import json
    print(json.dumps(slurm_part(), indent=1))
