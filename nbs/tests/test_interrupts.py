"""Ctrl-C, closed terminals and kills, of sweeps with several processes and of runs with loaders: everything ends, what was begun is saved,
no lock stays behind, and the same command goes on to the same bits."""
import os, pty, select, signal, time
from contextlib import suppress
from pathlib import Path

import pytest

import swept
from cifar_resnet.cli import sweep_main
from cifar_resnet.runs import load_checkpoint, only_one, read_json
from cifar_resnet.train import load_run
from processes import finish, start, wait_for

if not hasattr(os, 'fork') or not Path('/proc/self/stat').exists(): pytest.skip('needs Linux', allow_module_level=True)


def trust(what): return pytest.mark.trust('hard knocks', what)

def alive(pid):
    "Whether a process is there, and no zombie."
    try: return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] not in 'ZX'
    except OSError: return False

def children(pid):
    "The processes that a process has started, and that live."
    def parent(p):
        with suppress(OSError, ValueError): return int((p/'stat').read_text().rpartition(')')[2].split()[1])
    return [int(p.name) for p in Path('/proc').iterdir() if p.name.isdecimal() and parent(p) == pid and alive(p.name)]

def pids(out): return {int(p.stem.rpartition('-')[2]): int(p.read_text()) for p in out.parent.glob('*.pid')}
def begun(out): return {int(p.name.rpartition('-')[2]) for p in out.glob('strict-*')}
def saved(out, seed): return any((out/f'strict-{seed}'/'checkpoints').glob('*.pt'))

def bits(out):
    "What each run of a sweep ended with."
    return {row['seed']: (row['valid_accuracy'], row['valid_loss'], {k: v.tolist() for k, v in load_run(out/f'strict-{row["seed"]}').model.state_dict().items()})
            for row in read_json(out/'sweep.json')['runs']}


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    "What a sweep ends with that nothing happens to, one run after the other."
    out = tmp_path_factory.mktemp('whole')/'sweep'
    assert sweep_main(['-', *swept.FIELDS, '--seeds', ','.join(map(str, swept.SEEDS)), '--out', str(out), '--devices', 'cpu']) == 0
    return bits(out)


def training(log, seeds=(0, 1)):
    "Whether each of these runs is being trained."
    return lambda: log.exists() and all(f'strict seed {seed} 1/10' in log.read_text() for seed in seeds)

def goes_on(out, whole, tmp_path):
    assert finish(start(tmp_path/'again', swept.quick_sweep, out)) == 0, (tmp_path/'again').read_text()
    assert bits(out) == whole and 'Traceback' not in (tmp_path/'again').read_text()


# 1. Asked to stop

@trust('a sweep in several processes is asked to stop')
@pytest.mark.parametrize('everybody', [False, True], ids=['the parent', 'everybody'])
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_stop(number, everybody, whole, tmp_path):
    "Ctrl-C in a terminal goes to everybody, `kill` to the parent. (A SIGTERM to everybody stops each of them.)"
    out, log = tmp_path/'sweep', tmp_path/'log'
    process = start(log, swept.sweep, out)
    wait_for(training(log), process)
    for pid in [*(pids(out).values() if everybody else ()), process.pid][::-1]: os.kill(pid, number)
    assert finish(process) == 130
    assert not any(map(alive, pids(out).values()))
    assert all(saved(out, seed) for seed in begun(out)) and begun(out) < set(swept.SEEDS)      # no further run was begun
    said = log.read_text()
    assert 'Traceback' not in said and said.strip().splitlines()[-1].startswith('cifar_sweep: stopped: ') and said.strip().endswith('the same command goes on')
    assert said.count('stopping after this batch') == 1
    goes_on(out, whole, tmp_path)

@trust('a sweep in several processes is asked to stop')
def test_stop_as_it_is(tmp_path):
    "Processes that are spawned, as the command does it."
    out, log = tmp_path/'sweep', tmp_path/'log'
    process = start(log, swept.spawned, out)
    wait_for(training(log), process, 240)
    its = children(process.pid)
    for pid in (*its, process.pid): os.kill(pid, signal.SIGINT)
    assert finish(process) == 130 and len(its) >= 2 and not any(map(alive, its[1:]))
    words = log.read_text()
    trained = {seed for seed in begun(out) if f'strict seed {seed} 1/10' in words}             # the third may just have begun
    assert {0, 1} <= trained and 'Traceback' not in words
    assert all(saved(out, seed) or read_json(out/f'strict-{seed}'/'run.json')['finished'] for seed in trained)

@trust('the second Ctrl-C of a sweep is immediate')
def test_second(tmp_path):
    out, log = tmp_path/'sweep', tmp_path/'log'
    process = start(log, swept.slow_sweep, out)
    wait_for(lambda: all((tmp_path/f'slow-{seed}').exists() for seed in (0, 1)), process)
    os.kill(process.pid, signal.SIGINT)
    wait_for(lambda: 'stopping after this batch' in log.read_text(), process)
    asked = time.monotonic()
    os.kill(process.pid, signal.SIGINT)
    assert finish(process) == 130 and time.monotonic() - asked < 15
    assert not any(map(alive, pids(out).values())) and 'Traceback' not in log.read_text()

@trust('the terminal of a sweep is closed')
def test_terminal_closed(whole, tmp_path):
    out = tmp_path/'sweep'
    ours, theirs = pty.openpty()
    process = start(tmp_path/'log', swept.in_a_terminal, os.ttyname(theirs), swept.sweep, out)
    said, deadline = b'', time.monotonic() + 120
    while not all(f'strict seed {seed} 1/10'.encode() in said for seed in (0, 1)):
        assert time.monotonic() < deadline and process.is_alive(), said
        if select.select([ours], [], [], 1)[0]: said += os.read(ours, 4096)
    os.close(theirs); os.close(ours)
    finish(process)
    assert not any(map(alive, pids(out).values())) and all(saved(out, seed) for seed in begun(out)) and begun(out) < set(swept.SEEDS)
    goes_on(out, whole, tmp_path)

@trust('the terminal of a run is closed, or nohup was before it')
@pytest.mark.parametrize('nohup', [False, True])
def test_hangup(nohup, tmp_path):
    out, log = tmp_path/'run', tmp_path/'log'
    process = start(log, *([swept.under_nohup] if nohup else []), swept.run, out)
    wait_for(lambda: (out/'history.csv').exists() and (out/'history.csv').read_text().count('\n') > 1, process)
    os.kill(process.pid, signal.SIGHUP)
    assert finish(process) == (0 if nohup else 130)
    assert load_checkpoint(out/'checkpoints') and read_json(out/'run.json')['finished'] == nohup


# 2. Killed

@trust('the parent of a sweep is killed: its processes save, and end')
@pytest.mark.parametrize('at_once', [False, True], ids=['later', 'at once'])
def test_parent_killed(at_once, whole, tmp_path):
    out, log = tmp_path/'sweep', tmp_path/'log'
    process = start(log, swept.sweep, out)
    wait_for(training(log), process)
    process.kill(); finish(process)
    if not at_once:
        wait_for(lambda: not any(map(alive, pids(out).values())))
        assert all(saved(out, seed) for seed in begun(out)) and begun(out) < set(swept.SEEDS)
    goes_on(out, whole, tmp_path)
    assert 'Traceback' not in log.read_text()

@trust('a process of a sweep is ended: one failed row, and the others go on')
@pytest.mark.parametrize('number, said', [(signal.SIGKILL, 'its process was killed by signal 9'), (signal.SIGTERM, 'its process was told to stop')])
def test_child_killed(number, said, whole, tmp_path):
    out, log = tmp_path/'sweep', tmp_path/'log'
    process = start(log, swept.sweep, out)
    wait_for(training(log), process)
    os.kill(pids(out)[0], number)
    assert finish(process) == 2
    found = read_json(out/'sweep.json')
    assert [row['seed'] for row in found['failed']] == [0] and said in found['failed'][0]['error'] and len(found['runs']) == 2
    last = log.read_text().strip().splitlines()[-1]
    assert said in last and 'goes on' in last and 'Traceback' not in log.read_text()
    goes_on(out, whole, tmp_path)


# 3. Loaders

@pytest.fixture
def with_loaders(tmp_path):
    "A run with two loaders in the middle of its training: process, numbers of the loaders, folder, log."
    out, log = tmp_path/'run', tmp_path/'log'
    process = start(log, swept.run_with_loaders, out)
    wait_for(lambda: any((out/'checkpoints').glob('*.pt')) and len(children(process.pid)) == 2, process, 120)
    loaders = children(process.pid)
    yield process, loaders, out, log
    process.kill()
    for pid in loaders:
        with suppress(OSError): os.kill(pid, signal.SIGKILL)

@trust('a run is killed whose loaders live on: its lock is free at once')
def test_loaders_hold_no_lock(with_loaders):
    process, _, out, _ = with_loaders
    os.kill(process.pid, signal.SIGSTOP)                                 # so that it does not replace its loaders
    loaders = children(process.pid)
    for pid in loaders: os.kill(pid, signal.SIGSTOP)
    with pytest.raises(ValueError, match='another process is at work'):
        with only_one(out/'checkpoints'): pass
    process.kill(); finish(process)
    assert loaders and all(map(alive, loaders))
    with only_one(out/'checkpoints'): pass
    for pid in loaders: os.kill(pid, signal.SIGCONT)
    wait_for(lambda: not any(map(alive, loaders)), timeout=20)           # and they end with their parent

@trust('a cluster ends a run and its loaders by SIGTERM: saved')
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_everybody_is_asked_to_stop(number, with_loaders):
    process, _, out, log = with_loaders
    for pid in (*children(process.pid), process.pid):
        with suppress(ProcessLookupError): os.kill(pid, number)
    assert finish(process) == 130 and 'with --resume goes on' in log.read_text() and 'Traceback' not in log.read_text()

@trust('a forked process does not hold a lock of its parent')
def test_fork(tmp_path):
    with only_one(tmp_path):
        if not (child := os.fork()):
            with suppress(BaseException):
                (tmp_path/'forked').touch()
                time.sleep(60)
            os._exit(0)
        wait_for((tmp_path/'forked').exists)
    try:
        with only_one(tmp_path): pass
    finally: os.kill(child, signal.SIGKILL); os.waitpid(child, 0)

@trust('a process that is about to end is waited for')
def test_patience(tmp_path):
    if not (child := os.fork()):
        with suppress(BaseException), only_one(tmp_path):
            (tmp_path/'taken').touch()
            time.sleep(1)
        os._exit(0)
    wait_for((tmp_path/'taken').exists)
    with pytest.raises(ValueError, match='another process'):
        with only_one(tmp_path): pass
    with only_one(tmp_path, wait_s=60): pass
    os.waitpid(child, 0)
