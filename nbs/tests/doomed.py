"What the fault tests run in processes of their own: things that are killed, or spoilt, at a chosen moment."
import os, shutil, signal, time

import torch

from cifar_resnet import job
from cifar_resnet.cli import main
from cifar_resnet.data import shapes10
from cifar_resnet.runs import save_checkpoint
from cifar_resnet.train import Recipe, Training

TINY = '--dataset shapes10 --width 4 --epochs 4 --limit 60 --batch_size 20 --device cpu'.split()       # 12 batches


def run(out, *argv):
    "The command; a checkpoint after every batch."
    return main([*TINY, '--save_every_s', '0', '--out', str(out), *argv])


def note(log, text):
    "Append a line to a file, at once."
    with open(log, 'a', buffering=1) as f: f.write(f'{text}\n')


def at_call(owner, name, when, act, after=False):
    "From now on `act` is called in the call number `when` (from 1) of `owner.name`, before or after the work."
    usual, calls = getattr(owner, name), []
    def spoilt(*args, **kw):
        calls.append(1)
        if len(calls) == when and not after: act()
        result = usual(*args, **kw)
        if len(calls) == when and after: act()
        return result
    setattr(owner, name, spoilt)


def die(): os.kill(os.getpid(), signal.SIGKILL)


def save_for_ever(folder, log):
    "Save checkpoint after checkpoint; each is noted once it is written."
    for n in range(1, 1_000_000):
        save_checkpoint(folder, dict(n=n, weights=torch.full((100_000,), n)), n)
        note(log, n)


def save_and_die(folder, name, when, after):
    "Save checkpoints 1, 2, 3 ... and die in a call of `os.name`."
    at_call(os, name, when, die, after)
    for n in range(1, 10): save_checkpoint(folder, dict(n=n, weights=torch.full((1000,), n)), n)


def train_for_ever(folder, log, save_every_s):
    "Train without end; every batch is noted with its time."
    recipe = Recipe(dataset='shapes10', width=4, epochs=100_000, limit=60, batch_size=20)
    for _ in Training(recipe, shapes10()[0], folder, device='cpu', save_every_s=save_every_s, on_step=lambda t: note(log, f'{t.epoch*3 + t.at} {time.monotonic()}')): pass


def run_and_die(out, name, when, after):
    "The command, which dies in a call of `job.name`."
    at_call(job, name, when, die, after)
    return run(out)


def die_early(out):
    "The command, which dies in its first batch."
    at_call(Training, 'learn', 1, die)
    return run(out)


def run_slowly(out, log):
    "The command, in which the third batch takes half a minute."
    def dawdle():
        note(log, 'now')
        for _ in range(3000): time.sleep(.01)       # in small pieces: a signal that comes just before a long sleep is seen only after it
    at_call(Training, 'learn', 3, dawdle)
    return run(out)


def run_and_delete(out):
    "The command, whose folder is deleted before the fifth batch."
    at_call(Training, 'learn', 5, lambda: shutil.rmtree(out))
    return run(out)


def run_with_nan(out, when):
    "The command, in which the loss of batch number `when` is no number."
    usual, calls = Training.learn, []
    def spoilt(self, *args):
        calls.append(1)
        return usual(self, *args)*(float('nan') if len(calls) == when else 1)
    Training.learn = spoilt
    return run(out)


def run_on_a_failing_disk(out, number, when):
    "The command, in which every write from number `when` on fails with an error of the system."
    def fail(): raise OSError(number, os.strerror(number))
    for later in range(when, when + 50): at_call(os, 'fsync', later, fail)
    return run(out)
