"""What our locks and files do on NFS: run in a kernel of its own by `clusters.py nfs`, given two mounts of one folder
for each way of mounting it. Prints a row of JSON for each way.

    python nbs/experiments/nfs_locks.py A B [A B ...]
"""
import hashlib, json, multiprocessing, os, re, signal, sys, time, warnings
from pathlib import Path

import torch
from engines import MOUNTS
from cifar_resnet.core import sentence
from cifar_resnet.data import shapes10
from cifar_resnet.fetch import file_hash, locks_reach_all
from cifar_resnet.job import job
from cifar_resnet.runs import only_one, write_atomic
from cifar_resnet.train import Training

RECIPE = dict(dataset='shapes10', width=4, epochs=8, limit=40, batch_size=10)
FORK = multiprocessing.get_context('fork')


def hold(folder, ready, seconds):
    with only_one(folder):
        ready.set()
        time.sleep(seconds)


def held(folder, seconds=1e6):
    "A process that holds the lock of a folder."
    ready = FORK.Event()
    process = FORK.Process(target=hold, args=(folder, ready, seconds))
    process.start()
    assert ready.wait(60), 'nobody got the lock'
    return process


def attempt(folder, wait_s=0):
    "What a second process hears: '' if it gets the lock without a word."
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter('always')
        try:
            with only_one(folder, wait_s): pass
        except ValueError as e: return sentence(e).replace(f'{folder}', 'FOLDER')
    return ''.join(str(w.message) for w in warned).replace(f'{folder}', 'FOLDER')


def killed(process):
    os.kill(process.pid, signal.SIGKILL)
    process.join()


def locks(a, b):
    "Two mounts of one folder: is the second process refused, does it wait, does a killed holder free the lock?"
    holder = held(a)
    second = attempt(b)
    killed(holder)
    began = time.monotonic()
    after = attempt(b, wait_s=60)
    freed = time.monotonic() - began
    holder = held(a, 3)
    began = time.monotonic()
    waits = attempt(b, wait_s=60)
    waited = time.monotonic() - began
    holder.join()
    return dict(reaches_all=locks_reach_all(a), second=second, after_sigkill=after, freed_within_s=freed,
                waiting=waits, waited_s=waited)


def write_on(path, stop):
    "Replace a file over and over by one whose first line is the hash of the rest."
    n = 0
    while not stop.is_set():
        body = os.urandom(1 << 16)
        write_atomic(path, hashlib.sha256(body).hexdigest().encode() + b'\n' + body)
        n += 1


def renames(a, b, seconds=5):
    "One process replaces a file, another reads it on the other mount: how often is it half a file, or gone?"
    stop = FORK.Event()
    writer = FORK.Process(target=write_on, args=(a/'file', stop))
    writer.start()
    while not (b/'file').exists(): time.sleep(.1)
    until, seen = time.monotonic() + seconds, dict(read=0, half=0, stale=0, versions=set())
    while time.monotonic() < until:
        try: name, _, body = (b/'file').read_bytes().partition(b'\n')
        except OSError: seen['stale'] += 1
        else:
            seen['read'] += 1
            seen['half'] += hashlib.sha256(body).hexdigest().encode() != name
            seen['versions'].add(name)
    stop.set()
    writer.join()
    return dict(seen, versions=len(seen['versions']))


class Slow(Training):
    "A batch takes long enough that the run is not over before it is disturbed."
    def learn(self, *batch):
        time.sleep(1)
        return super().learn(*batch)


def train(folder, trainer=Training):
    return job(RECIPE, folder, device='cpu', resume=(folder/'run.json').exists(), save_every_s=0, progress=False,
               draw=False, data=DATA, trainer=trainer)


def a_run(a, b, whole):
    "A run on one mount, a second process on the other; the first is killed, the second goes on with it."
    first = FORK.Process(target=train, args=(a/'run', Slow))
    first.start()
    while not [*(a/'run').glob('checkpoints/*.pt')] and first.is_alive(): time.sleep(.1)
    began = time.monotonic()
    while not (b/'run'/'run.json').exists() and first.is_alive(): time.sleep(.1)
    seen = time.monotonic() - began
    second = told(lambda: train(b/'run'))
    alive = first.is_alive()
    killed(first)
    after = told(lambda: train(b/'run'))
    weights = b/'run'/'weights.safetensors'
    return dict(seen_after_s=seen, second_process=second, killed_midway=alive, after_sigkill=after,
                same_bits=weights.exists() and file_hash(weights) == whole)


def told(what):
    "What a process hears when it trains: '' if it comes to the end."
    try: what()
    except (ValueError, OSError) as e: return re.sub(r'/run/\w+/folder\d', 'FOLDER', sentence(e))
    return ''


if __name__ == '__main__':
    torch.set_num_threads(1)
    DATA = shapes10()
    places = [*map(Path, sys.argv[1:])]
    whole = file_hash(train(Path('/run/undisturbed')).folder/'weights.safetensors')
    for i, (a, b) in enumerate(zip(places[::2], places[1::2])):
        a, b = a/f'folder{i}', b/f'folder{i}'
        a.mkdir()
        while not b.exists(): time.sleep(.1)
        row = dict(mount=[*MOUNTS][i], **locks(a, b), renames=renames(a, b), run=a_run(a, b, whole))
        print('ROW', json.dumps(row), flush=True)
