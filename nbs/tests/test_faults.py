"""Faults put in on purpose, each proved to have happened: there is always a checkpoint that loads, no more than one save interval is lost,
and what goes on from it ends with the bits of a run that nothing happened to."""
import errno, io, os, random, shutil, signal, subprocess, time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import doomed
from cifar_resnet import job, runs
from cifar_resnet.cli import main
from cifar_resnet.data import shapes10
from cifar_resnet.runs import SCHEMA, load_checkpoint, only_one, read_json, save_checkpoint
from cifar_resnet.train import Recipe, Training
from processes import finish, start, wait_for
from test_resume import bits

RANDOM = random.Random(0)


def checkpoint(n): return dict(n=n, weights=torch.full((1000,), n))
def loaded(folder):
    "The number of the newest checkpoint that loads, once its content is what was saved."
    state = load_checkpoint(folder)
    assert (state['weights'] == state['n']).all()
    return state['n']


@pytest.fixture
def three(tmp_path):
    "A folder to which checkpoints 1, 2 and 3 were saved."
    for n in (1, 2, 3): save_checkpoint(tmp_path/'c', checkpoint(n), n)
    return tmp_path/'c'


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    "The folder of a run that nothing happened to."
    out = tmp_path_factory.mktemp('whole')/'run'
    assert doomed.run(out) == 0
    return out


def outcome(out):
    "All that a run ends with, to the bit, but for times and places."
    timed = {'train_seconds', 'peak_memory_bytes', 'started', 'ended', 'resumed_at', 'resumed', 'files', 'seal'}
    about = {k: v for k, v in read_json(out/'run.json').items() if k not in timed}
    history = [line.rsplit(',', 1)[0] for line in (out/'history.csv').read_text().splitlines()]
    pictures = [(out/f'{name}.png').read_bytes() for name in ('misclassified', 'gradcam', 'confusion')]
    return about, history, pictures, [bits(load_file(out/name)) for name in ('weights.safetensors', 'logits.safetensors')]


def goes_on(out, whole):
    "Resumed, the run ends like the whole one, and has read the test set once."
    assert doomed.run(out, '--resume') == 0
    assert outcome(out) == outcome(whole) and outcome(out)[0]['test_reads'] == 1


def last_line(log): return Path(log).read_text().strip().splitlines()[-1]


# 1. Processes that are stopped or killed

@pytest.mark.trust('faults', 'SIGINT or SIGTERM in a batch')
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_signal(number, whole, tmp_path):
    out, log = tmp_path/'run', tmp_path/'log'
    process = start(log, doomed.run, out)
    wait_for(lambda: (out/'history.csv').exists() and (out/'history.csv').read_text().count('\n') > 1, process)
    os.kill(process.pid, number)
    assert finish(process) == 130 and 'with --resume goes on' in last_line(log)
    goes_on(out, whole)


@pytest.mark.trust('faults', 'SIGKILL before the first checkpoint: --resume begins anew')
def test_killed_before_the_first_checkpoint(whole, tmp_path):
    assert finish(start(tmp_path/'log', doomed.die_early, tmp_path/'run')) == -signal.SIGKILL
    assert not list((tmp_path/'run'/'checkpoints').glob('*.pt'))
    goes_on(tmp_path/'run', whole)


@pytest.mark.trust('faults', 'a second signal, while the first waits for the end of a batch')
@pytest.mark.parametrize('first, second, code', [(signal.SIGINT, signal.SIGINT, 130), (signal.SIGTERM, signal.SIGTERM, -signal.SIGTERM), (signal.SIGTERM, signal.SIGINT, 130)])
def test_second_signal(first, second, code, whole, tmp_path):
    out, log, now = tmp_path/'run', tmp_path/'log', tmp_path/'now'
    process = start(log, doomed.run_slowly, out, now)
    wait_for(now.exists, process)
    os.kill(process.pid, first)
    wait_for(lambda: 'stopping after this batch' in log.read_text(), process)
    begun = time.monotonic()
    os.kill(process.pid, second)
    assert finish(process) == code and time.monotonic() - begun < 10
    goes_on(out, whole)


@pytest.mark.trust('faults', 'SIGKILL at a random moment of a loop that saves')
@pytest.mark.parametrize('delay', [RANDOM.uniform(0, .1) for _ in range(20)], ids=range(20))
def test_sigkill_while_saving(delay, tmp_path):
    folder, log = tmp_path/'c', tmp_path/'saved'
    process = start(tmp_path/'log', doomed.save_for_ever, folder, log)
    wait_for(log.exists, process)
    time.sleep(delay)
    process.kill()
    assert finish(process) == -signal.SIGKILL
    done = int(log.read_text().rpartition('\n')[0].splitlines()[-1])
    assert done <= loaded(folder) <= done + 1
    save_checkpoint(folder, checkpoint(done + 2), done + 2)
    assert loaded(folder) == done + 2 and len(list(folder.iterdir())) <= 4           # two checkpoints with their hashes, no remains


@pytest.mark.trust('faults', 'a kill at a chosen call: before or after fsync or rename, of hash or checkpoint')
@pytest.mark.parametrize('after', [False, True], ids=['before', 'after'])
@pytest.mark.parametrize('call', ['fsync', 'replace', 'unlink'])
@pytest.mark.parametrize('when', [9, 10, 11, 12])
def test_kill_at_a_call(call, when, after, tmp_path):
    when = dict(fsync=2*when, replace=when, unlink={9: 15, 10: 16, 11: 19, 12: 20}[when])[call]      # folders are synced, too; of four files that a save unlinks the last two are there
    process = start(tmp_path/'log', doomed.save_and_die, tmp_path/'c', call, when, after)
    assert finish(process) == -signal.SIGKILL
    assert 4 <= loaded(tmp_path/'c') <= 7


@pytest.mark.trust('faults', 'SIGKILL in training: no more than one save interval is lost')
@pytest.mark.parametrize('interval', [0, .1, .3, 1.])
def test_no_more_than_an_interval_is_lost(interval, tmp_path):
    log = tmp_path/'batches'
    process = start(tmp_path/'log', doomed.train_for_ever, tmp_path, log, interval)
    wait_for(lambda: log.exists() and log.read_text().count('\n') > 5, process)
    time.sleep(1.5)
    process.kill()
    assert finish(process) == -signal.SIGKILL
    rows = [line.split() for line in log.read_text().splitlines()]
    done, times = [int(r[0]) for r in rows], [float(r[1]) for r in rows]
    state = load_checkpoint(tmp_path/'checkpoints')
    lost = times[-1] - times[done.index(state['epoch']*3 + state['at'])]
    slowest = max(b - a for a, b in zip(times, times[1:]))
    assert lost <= interval + 2*slowest, f'{lost:.2f} s are lost'
    assert interval == 0 or lost < times[-1] - times[0]


@pytest.mark.trust('faults', 'a kill after training: while the logits are computed, stored, judged, drawn or sealed')
@pytest.mark.parametrize('name, when, after', [('write_weights', 1, False), ('write_weights', 1, True), ('predict', 1, False), ('predict', 2, False), ('predict', 2, True), ('store_logits', 2, True), ('figures', 1, False), ('sealed', 1, True)])
def test_kill_at_the_end(name, when, after, whole, tmp_path):
    out = tmp_path/'run'
    assert finish(start(tmp_path/'log', doomed.run_and_die, out, name, when, after)) == -signal.SIGKILL
    assert not read_json(out/'run.json')['finished']
    goes_on(out, whole)


# 2. A disk that fails

ERRORS = errno.ENOSPC, errno.EIO, errno.EACCES


@pytest.mark.trust('faults', 'ENOSPC, EIO or EACCES at any step of a save')
@pytest.mark.parametrize('number', ERRORS, ids=[errno.errorcode[e] for e in ERRORS])
@pytest.mark.parametrize('step', ['open', 'write', 'fsync', 'replace'])
@pytest.mark.parametrize('when', [1, 2], ids=['hash', 'checkpoint'])
def test_errors_of_the_system(step, number, when, three, monkeypatch):
    fired = []
    def fail(*args, **kw):
        fired.append(1)
        raise OSError(number, os.strerror(number))
    with monkeypatch.context() as m:
        if step in ('open', 'write'):
            opened = []
            class Failing(io.FileIO):
                def write(self, data): fail()
            def spoilt(path, mode):
                opened.append(1)
                return open(path, mode) if len(opened) < when else fail() if step == 'open' else Failing(path, 'w')
            m.setattr(runs, 'open', spoilt, raising=False)
        else:
            m.setattr(os, step, getattr(os, step))                          # noted by the patch, so that it is put back
            doomed.at_call(os, step, 2*when - 1 if step == 'fsync' else when, fail)       # a file is synced, and then its folder
        with pytest.raises(OSError) as e: save_checkpoint(three, checkpoint(4), 4)
    assert fired and e.value.errno == number
    assert loaded(three) == 3 and not list(three.glob('*.part'))
    save_checkpoint(three, checkpoint(4), 4)
    assert loaded(three) == 4


@pytest.mark.trust('faults', 'a disk that returns other bytes than were written')
def test_lying_disk(three, monkeypatch):
    with monkeypatch.context() as m:
        m.setattr(Path, 'read_bytes', lambda self: b'other')
        with pytest.raises(OSError, match='returned other bytes'): save_checkpoint(three, checkpoint(4), 4)
    assert loaded(three) == 3 and not list(three.glob('*.part'))


@pytest.mark.trust('faults', 'a state that cannot be pickled')
@pytest.mark.parametrize('error', [TypeError, MemoryError, RecursionError])
def test_failing_pickle(error, three):
    class Stubborn:
        def __reduce__(self): raise error('no')
    with pytest.raises(error): save_checkpoint(three, dict(n=4, weights=Stubborn()), 4)
    assert loaded(three) == 3 and not list(three.glob('*.part'))


@pytest.fixture
def small_disk(tmp_path):
    "A real file system of 2 MB."
    folder = tmp_path/'disk'
    folder.mkdir()
    try: done = subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=2m', 'tmpfs', folder], capture_output=True, text=True)
    except OSError as e: pytest.skip(f'no file system can be mounted here: {e}')
    if done.returncode: pytest.skip(f'no file system can be mounted here: {done.stderr.strip()}')
    yield folder
    subprocess.run(['umount', '-l', folder], check=True)


@pytest.mark.trust('faults', 'a small file system that is really full')
def test_full_disk(small_disk, capsys):
    weights = lambda n: dict(n=n, weights=torch.full((75_000,), n))          # 600 kB: three fit, and no more
    for n in (1, 2, 3): save_checkpoint(small_disk/'c', weights(n), n)
    (small_disk/'filler').write_bytes(bytes(300_000))
    with pytest.raises(OSError) as e: save_checkpoint(small_disk/'c', weights(4), 4)
    assert e.value.errno == errno.ENOSPC and loaded(small_disk/'c') == 3
    (small_disk/'filler').unlink()
    save_checkpoint(small_disk/'c', weights(4), 4)
    assert loaded(small_disk/'c') == 4
    assert main(['--dataset', 'shapes10', '--out', str(small_disk/'run')]) == 2
    assert 'MB are free there: choose another --out' in capsys.readouterr().err


@pytest.mark.trust('faults', 'disk use at every rename of a run: never above what was said beforehand')
@pytest.mark.parametrize('width', [4, 32])
def test_disk_bound(width, tmp_path, monkeypatch):
    used, usual = [], os.replace
    def measured(a, b):
        used.append(sum(p.stat().st_size for p in tmp_path.rglob('*') if p.is_file()))
        usual(a, b)
    monkeypatch.setattr(os, 'replace', measured)
    assert doomed.run(tmp_path/'run', '--epochs', '2', '--width', str(width)) == 0
    said = read_json(tmp_path/'run'/'run.json')['disk_bytes']
    assert len(used) > 10 and max(used) <= said and (width == 4 or max(used) > .6*said)


@pytest.mark.trust('faults', 'a disk that fails in the middle of a run')
@pytest.mark.parametrize('number', ERRORS, ids=[errno.errorcode[e] for e in ERRORS])
def test_run_on_a_failing_disk(number, whole, tmp_path):
    out, log = tmp_path/'run', tmp_path/'log'
    assert finish(start(log, doomed.run_on_a_failing_disk, out, number, 40)) == 2
    assert f'cannot be written ({os.strerror(number)}): when that is repaired, --resume goes on' in last_line(log)
    goes_on(out, whole)


@pytest.mark.trust('faults', 'the folder deleted in the middle of a run')
def test_deleted_folder(tmp_path):
    out, log = tmp_path/'run', tmp_path/'log'
    assert finish(start(log, doomed.run_and_delete, out)) == 2
    assert 'cannot be written (No such file or directory)' in last_line(log) and not out.exists()


# 3. Files that were changed afterwards

@pytest.mark.trust('faults', 'the newest checkpoint cut short')
@pytest.mark.parametrize('keep', [lambda n: 0, lambda n: 1, lambda n: n//2, lambda n: n - 1], ids=['0 bytes', '1 byte', 'half', 'all but one byte'])
def test_cut_short(keep, three):
    newest = three/'000000003.pt'
    os.truncate(newest, keep(newest.stat().st_size))
    with pytest.warns(UserWarning, match='going back to 000000002.pt'): assert loaded(three) == 2


@pytest.mark.trust('faults', 'a bit flipped in a checkpoint or its hash')
@pytest.mark.parametrize('suffix, flips', [('.pt', 200), ('.sha256', 100)])
def test_bit_flips(suffix, flips, three, cases):
    cases(flips)
    path = three/f'000000003{suffix}'
    good = path.read_bytes()
    for bit in RANDOM.sample(range(8*len(good)), flips):
        spoilt = bytearray(good); spoilt[bit//8] ^= 1 << bit % 8
        path.write_bytes(spoilt)
        with pytest.warns(UserWarning, match='going back to 000000002.pt'): assert loaded(three) == 2
    path.write_bytes(good)
    assert loaded(three) == 3


@pytest.mark.trust('faults', 'the hash missing, of another file, or empty')
@pytest.mark.parametrize('text', [None, '0'*64, '', 'the other'])
def test_hash(text, three):
    noted = three/'000000003.sha256'
    if text is None: noted.unlink()
    else: noted.write_text((three/'000000002.sha256').read_text() if text == 'the other' else text)
    with pytest.warns(UserWarning, match='going back to 000000002.pt'): assert loaded(three) == 2


@pytest.mark.trust('faults', 'remains of an interrupted save')
def test_remains(three):
    for name in ('000000004.pt.part', '000000004.sha256', '000000009.sha256.part'): (three/name).write_bytes(b'half of it')
    assert loaded(three) == 3
    save_checkpoint(three, checkpoint(5), 5)
    assert sorted(p.name for p in three.iterdir()) == ['000000003.pt', '000000003.sha256', '000000005.pt', '000000005.sha256']


class Payload:
    "Creates a folder when it is unpickled."
    def __init__(self, path): self.path = str(path)
    def __reduce__(self): return os.mkdir, (self.path,)


@pytest.mark.trust('faults', 'a malicious checkpoint with the right hash')
def test_malicious(three, tmp_path):
    marker = tmp_path/'it ran'
    path = save_checkpoint(three, dict(weights=Payload(marker)), 4)
    with pytest.warns(UserWarning, match='going back to 000000003.pt'): assert loaded(three) == 3
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists()                          # read carelessly, it does run


# 4. The wrong checkpoint

@pytest.fixture
def stopped(tmp_path):
    "A run, stopped in its second epoch; its folder and its newest checkpoint's state."
    out = tmp_path/'run'
    training = Training(Recipe(dataset='shapes10', width=4, epochs=4, limit=60, batch_size=20), shapes10()[0], out, device='cpu')
    for _ in range(4): training.step()
    training.save()
    return out, load_checkpoint(out/'checkpoints')


@pytest.mark.trust('faults', "another recipe's checkpoint: the differing field is named")
@pytest.mark.parametrize('field, value', [('seed', 5), ('lr', .01), ('norm', 'pixel'), ('batch_size', 30)])
def test_another_recipe(field, value, tmp_path):
    out, log = tmp_path/'run', tmp_path/'log'
    assert finish(start(log, doomed.run_and_die, out, 'write_weights', 1, False)) == -signal.SIGKILL
    state = load_checkpoint(out/'checkpoints')
    other = Training(Recipe(**{**state['recipe'], field: value}), shapes10()[0], tmp_path/'other', device='cpu')
    other.step(); other.save()
    shutil.rmtree(out/'checkpoints'); shutil.copytree(tmp_path/'other'/'checkpoints', out/'checkpoints')
    assert finish(start(log, doomed.run, out, '--resume')) == 2
    assert f'belongs to another recipe than its run.json ({field} {value}, not' in last_line(log)


@pytest.mark.trust('faults', 'an older or newer schema')
@pytest.mark.parametrize('schema', [1, SCHEMA + 1, None])
def test_schema(schema, stopped):
    out, state = stopped
    own = load_checkpoint(out/'checkpoints')
    save_checkpoint(out/'checkpoints', {**state, 'schema': schema}, 99)
    with pytest.warns(UserWarning, match='written by another version'): training = Training.resume(out, shapes10()[0], device='cpu')
    assert training.steps == own['epoch']*len(training.losses) + own['at']           # it goes on from the older one, which is its own
    shutil.rmtree(out/'checkpoints')
    save_checkpoint(out/'checkpoints', {**state, 'schema': schema}, 99)
    with pytest.raises(ValueError, match='written by another version'): Training.resume(out, shapes10()[0], device='cpu')


@pytest.mark.trust('faults', 'a checkpoint from a GPU on a machine without one')
def test_from_a_gpu(stopped, monkeypatch):
    out, state = stopped
    with monkeypatch.context() as m:
        m.setattr(torch.serialization, 'location_tag', lambda storage: 'cuda:0')
        path = save_checkpoint(out/'checkpoints', state, 99)
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match='CUDA'): torch.load(path, weights_only=True)         # it does ask for a GPU
    resumed = Training.resume(out, shapes10()[0], device='cpu')
    assert bits(resumed.model.state_dict()) == bits(state['model'])
    for _ in resumed: pass


# 5. Two processes, odd places, numbers that are none

@pytest.mark.trust('faults', 'two processes on one folder')
def test_two_processes(whole, tmp_path):
    out, log, now = tmp_path/'run', tmp_path/'log', tmp_path/'now'
    first = start(log, doomed.run_slowly, out, now)
    wait_for(now.exists, first)
    second = start(tmp_path/'second', doomed.run, out, '--resume')
    assert finish(second) == 2 and 'another process is at work' in last_line(tmp_path/'second')
    first.kill()
    assert finish(first) == -signal.SIGKILL
    goes_on(out, whole)                            # the lock went with its process


@pytest.mark.trust('faults', 'a folder that cannot be locked')
def test_no_lock(tmp_path, monkeypatch):
    def no_locks(*args): raise OSError(errno.ENOLCK, 'No locks available')
    monkeypatch.setattr(runs.fcntl, 'flock', no_locks)
    with pytest.warns(UserWarning, match='cannot be locked'):
        with only_one(tmp_path): pass


@pytest.mark.trust('faults', 'blanks and unicode in the path')
@pytest.mark.parametrize('name', ['a run', ' üñí – 跑 ', "quote's", 'a"b$c'])
def test_odd_paths(name, whole, tmp_path):
    out = tmp_path/name/'run'
    assert finish(start(tmp_path/'log', doomed.run_and_die, out, 'write_weights', 1, False)) == -signal.SIGKILL
    goes_on(out, whole)


@pytest.mark.trust('faults', 'a loss that is no number')
@pytest.mark.parametrize('when', [1, 2, 3, 7, 12])
def test_nan(when, whole, tmp_path):
    out, log = tmp_path/'run', tmp_path/'log'
    assert finish(start(log, doomed.run_with_nan, out, when)) == 2
    assert f'in epoch {(when - 1)//3 + 1}, batch {(when - 1)%3 + 1} of 3' in last_line(log)
    goes_on(out, whole)


# 6. The test set

@pytest.mark.trust('test set', 'other test images change nothing before the end')
def test_training_does_not_depend_on_the_test_set(whole, tmp_path, monkeypatch):
    usual = job.load_data
    def other(*args):
        train, test = usual(*args)
        return train, test.take(np.arange(len(test))[::-1])
    monkeypatch.setattr(job, 'load_data', other)
    assert doomed.run(tmp_path/'run') == 0
    (about, history, _, (weights, logits)), (about_, history_, _, (weights_, logits_)) = outcome(tmp_path/'run'), outcome(whole)
    assert (history, weights) == (history_, weights_)
    assert {k: v for k, v in about.items() if 'test' not in k and k != 'misclassified'} == {k: v for k, v in about_.items() if 'test' not in k and k != 'misclassified'}
    assert logits['held_out'] == logits_['held_out'] and logits['test'] != logits_['test']


@pytest.mark.trust('test set', 'not read before the weights are final, and once')
def test_reads(whole, tmp_path, monkeypatch):
    reads, usual = [], job.TestSet.read
    def counted(self):
        images = usual(self)
        reads.append((self._folder/'history.csv').read_text().count('\n') - 1)
        return images
    monkeypatch.setattr(job.TestSet, 'read', counted)
    assert doomed.run(tmp_path/'run') == 0 and reads == [4]          # once, after four epochs
    assert doomed.run(tmp_path/'run') == 0 and reads == [4]          # asked for again: not again
    assert doomed.run(tmp_path/'shut', '--no_test') == 0 and reads == [4]
    about = read_json(tmp_path/'shut'/'run.json')
    assert about['test_reads'] == 0 and about['test_accuracy'] is about['test_loss'] is about['misclassified'] is None


@pytest.mark.trust('test set', 'what reads it too early, or twice, is stopped')
def test_guard(whole, tmp_path, monkeypatch):
    shut = job.TestSet(shapes10()[1], tmp_path)
    usual = Training.close_epoch
    def curious(self):
        shut.read()
        usual(self)
    monkeypatch.setattr(Training, 'close_epoch', curious)
    with pytest.raises(RuntimeError, match='stays closed until the final weights'): doomed.run(tmp_path/'run')
    with pytest.raises(RuntimeError, match='was read already'): job.TestSet(shapes10()[1], whole).read()
