"""Sweeps on a real Slurm of two nodes, their jobs cancelled, queued again and warned midway: is a run that was disturbed
the same, to the bit, as one that was left alone? `clusters.py` publishes it; alone it prints what came of it:

    python nbs/experiments/on_slurm.py
"""
import os, subprocess, sys, tempfile, threading, time
from contextlib import closing, contextmanager
from pathlib import Path

import engines
from cifar_resnet import scale
from cifar_resnet.fetch import file_hash

RECIPE = dict(dataset='shapes10', width=8, epochs=8, limit=200)
KNOCKS = {                        # what happens to a job midway, by the command that does it
    'cancelled': ['scancel'],
    'queued again': ['scontrol', 'requeue'],
    'warned': ['scancel', '--signal=USR2'],          # as Slurm does before a job's time is over
}


class Noted(scale.SlurmExecutor):
    "The executor, which also notes which job is which run."
    def submit(self, fn, key, *args):
        future = super().submit(fn, key, *args)
        self.runs[future.job.job_id] = f'{key[0]}-{key[1]}'
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
        for bar in bars: bar['run'] = runs.get(bar['run'], bar['run'])


def knock(out, run, command, runs, done):
    "When a run has saved for the first time, give its job a knock."
    while not [*(out/run/'checkpoints').glob('*.safetensors')]:
        if done.wait(.05): return
    job = next(job for job, name in runs.items() if name == run)
    subprocess.run([*command, job], check=True)
    KNOCKED.append(dict(run=run, epochs=_epochs(out/run), finished=(out/run/'weights.safetensors').exists()))

KNOCKED = []


def _epochs(folder):
    "How many epochs a run had behind it."
    try: return len((folder/'history.csv').read_text().splitlines()) - 1
    except FileNotFoundError: return 0


def hashes(out, seeds): return {f'strict-{seed}': file_hash(out/f'strict-{seed}'/'weights.safetensors') for seed in seeds}


def disturbed(folder, recipe=RECIPE, save_every_s=.1, **how):
    "A sweep whose first runs get a knock each, called until all is done -> what was seen. Inside of `engines.slurm`."
    seeds = range(len(KNOCKS) + 1)
    alone = scale.sweep({'strict': recipe}, seeds, folder/'alone', devices=['cpu'])
    out, executor, done = folder/'slurm', noted(folder/'jobs', **how), threading.Event()
    knocks = {f'strict-{seed}': kind for seed, kind in enumerate(KNOCKS)}
    threads = [threading.Thread(target=knock, args=(out, run, KNOCKS[kind], executor.runs, done))
               for run, kind in knocks.items()]
    KNOCKED.clear()
    with watched(executor.runs) as bars:
        for thread in threads: thread.start()
        first = scale.sweep({'strict': recipe}, seeds, out, executor=executor, save_every_s=save_every_s)
        done.set()
        again = scale.sweep({'strict': recipe}, seeds, out, executor=executor, save_every_s=save_every_s)
    for thread in threads: thread.join()
    same = {run: found == hashes(folder/'alone', seeds)[run] for run, found in hashes(out, seeds).items()}
    cut = {knocked['run'] for knocked in KNOCKED if not knocked['finished']}
    for run, kind in knocks.items():
        of_run = [bar for bar in bars if bar['run'] == run]
        if of_run and run in cut: of_run[0]['cut'] = kind
    return dict(
        runs=len(seeds), knocks=[dict(row, kind=knocks[row['run']]) for row in KNOCKED],
        failed_first=[f'{row["name"]}-{row["seed"]}' for row in first['failed']],
        left=again['left'], failed=again['failed'], same_bits=same, same_table=_table(again) == _table(alone),
        bars=[{k: round(v, 2) if isinstance(v, float) else v for k, v in bar.items()} for bar in bars])


def _table(found): return [{k: v for k, v in row.items() if k != 'train_seconds'} for row in found['table']]


def slurm_part():
    "What `clusters.py` publishes of Slurm; raises engines.NotRun where there can be none."
    with tempfile.TemporaryDirectory() as folder, engines.slurm(Path(folder)/'engine') as nodes:
        scale.ASK_EVERY_S = 1
        version = engines.asked('sbatch', '--version').split()[-1]
        return dict(engine=f'Slurm {version}', nodes=[*nodes], recipe=RECIPE, **disturbed(Path(folder)))


if __name__ == '__main__':
    import json
    print(json.dumps(slurm_part(), indent=1))
