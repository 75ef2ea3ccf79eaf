"What the tests of interrupts run in processes of their own: sweeps whose processes start within a moment, and note their numbers."
import fcntl, multiprocessing, os, signal, sys, termios, time
from contextlib import suppress
from functools import lru_cache

import doomed
from cifar_resnet import scale
from cifar_resnet.cli import main, sweep_main
from cifar_resnet.train import Training

WORK = scale._work
FIELDS = '--dataset shapes10 --width 2 --epochs 10 --limit 40 --batch_size 20'.split()      # 20 batches
SEEDS = range(3)


def forked(parent, threads, device, run):
    "`scale._work` in a process that was forked: it closes what a spawned one would not have, and notes its number beside the sweep."
    for fd in map(int, os.listdir('/proc/self/fd')):
        if fd > 2 and fd != parent.fileno():
            with suppress(OSError): os.close(fd)
    name, seed = run[0]
    doomed.note(run[2].parent/f'{name}-{seed}.pid', os.getpid())
    WORK(parent, threads, device, run)


def patient(*args):
    "The same; a batch takes a tenth of a second, so that a run is not over before it is disturbed."
    learn = Training.learn
    def slowly(*batch):
        time.sleep(.1)
        return learn(*batch)
    Training.learn = slowly
    forked(*args)


def sweep(out, *more, work=patient):
    "The command, two runs at a time, three in all; it saves when it is stopped, and at the end."
    scale.START, scale._work = 'fork', work               # within a moment, and the pictures are drawn once for all
    scale.load_data = lru_cache(scale.load_data)
    scale.load_data('shapes10', None, 'clean')
    return spawned(out, *more)


def spawned(out, *more):
    return sweep_main(['-', *FIELDS, '--seeds', ','.join(map(str, SEEDS)), '--out', str(out), '--devices', 'cpu,cpu', *more])


def slow(parent, threads, device, run):
    "The same; the third batch takes half a minute."
    def dawdle():
        doomed.note(run[2].parent/f'slow-{run[0][1]}', 'now')
        for _ in range(3000): time.sleep(.01)
    doomed.at_call(Training, 'learn', 3, dawdle)
    forked(parent, threads, device, run)


def slow_sweep(out): return sweep(out, work=slow)
def quick_sweep(out): return sweep(out, work=forked)


def in_a_terminal(name, command, *args):
    "A command that has a terminal of its own."
    os.setsid()
    terminal = os.open(name, os.O_RDWR)
    fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
    for stream in (0, 1, 2): os.dup2(terminal, stream)
    sys.stdout = sys.stderr = open(1, 'w', buffering=1)
    return command(*args)


def under_nohup(command, *args):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    return command(*args)


def run(out, *more):
    "One run, which saves when it is stopped, and at the end."
    return main([*FIELDS, '--device', 'cpu', '--out', str(out), *more])


def run_with_loaders(out):
    "A long run with two loaders, forked off as by the command on most machines."
    multiprocessing.set_start_method('fork', force=True)
    return run(out, '--workers', '2', '--limit', '400', '--batch_size', '1', '--save_every_s', '.2')
