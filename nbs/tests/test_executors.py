"A sweep over an executor: whatever its workers do, no run is lost, failed for nothing, or trained twice."
import os, pickle, signal, socket, sys, threading, time, warnings
from concurrent.futures import CancelledError, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cifar_resnet import scale as scale_module
from cifar_resnet.cli import sweep_main
from cifar_resnet.data import _made
from cifar_resnet.runs import only_one, read_json
from cifar_resnet.scale import engine, on_worker, sweep
from cifar_resnet.train import Training, load_run
from compared import same, weights
from processes import SERVER
from test_first_use import MEMBERS, SMALL, server, url

TINY = dict(dataset='shapes10', width=2, epochs=2, limit=40, batch_size=20)         # 4 batches
FLAGS = [str(word) for k, v in TINY.items() for word in (f'--{k}', v)]


def trust(what): return pytest.mark.trust('many machines', what)


class AtOnce:
    "An executor without workers: what is submitted is done at once, in another folder; `spoil` may return a future instead."
    def __init__(self, spoil=lambda key: None, at=None): self.spoil, self.at, self.given = spoil, at, []

    def submit(self, f, *args):
        self.given.append(args)
        if spoilt := self.spoil(args[0]): return spoilt
        future, usual = Future(), os.getcwd()
        if self.at: os.chdir(self.at)
        try: future.set_result(f(*args))
        except BaseException as e: future.set_exception(e)
        finally: os.chdir(usual)
        return future


def failed(e):
    future = Future()
    future.set_exception(e)
    return future

def cancelled():
    future = Future()
    future.cancel()
    return future

def finished(value):
    future = Future()
    future.set_result(value)
    return future

def raising(e):
    raise e


@pytest.fixture(scope='module', autouse=True)
def drawn_once():
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(scale_module, 'load_data', lru_cache(scale_module.load_data))
        yield

@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    "Seeds 0, 1 and 2, trained here, undisturbed."
    top = tmp_path_factory.mktemp('whole')
    sweep({'strict': TINY}, [0, 1, 2], top, ['cpu'])
    return top

@pytest.fixture
def epochs(monkeypatch):
    "The epochs that are trained, one entry each."
    found, usual = [], Training.close_epoch
    monkeypatch.setattr(Training, 'close_epoch', lambda self: (found.append((self.recipe.seed, self.epoch)), usual(self))[1])
    return found

@pytest.fixture
def slow(monkeypatch):
    "A batch takes a fifth of a second."
    usual = Training.learn
    monkeypatch.setattr(Training, 'learn', lambda self, *batch: (time.sleep(.2), usual(self, *batch))[1])


# What an engine can do to a run

DIES = {
    'is lost': lambda: failed(BrokenProcessPool('A process in the process pool was terminated abruptly')),
    'lacks the package': lambda: failed(ModuleNotFoundError("No module named 'cifar_resnet'")),
    'has a full disk': lambda: failed(OSError(28, 'No space left on device', '/there/run.json')),
    'is told to stop': lambda: failed(KeyboardInterrupt('stopped in epoch 1 after batch 3')),
    'was called off': cancelled,
    'does not take it': lambda: raising(TypeError('Could not serialize object')),
    'is closed': lambda: raising(RuntimeError('cannot schedule new futures after shutdown')),
    'has another clock': lambda: finished(None),
    'is out of memory': lambda: failed(MemoryError()),
}
WORDS = {
    'is lost': 'terminated abruptly', 'lacks the package': "No module named 'cifar_resnet'", 'has a full disk': 'No space left', 'is told to stop': 'stopped in epoch 1',
    'was called off': 'cancelled', 'does not take it': 'Could not serialize', 'is closed': 'after shutdown', 'has another clock': 'clocks', 'is out of memory': 'too little memory',
}

@trust('a worker that dies, is lost or refuses fails one run, and the same call goes on')
@pytest.mark.parametrize('what', DIES)
def test_one_worker(what, tmp_path, whole):
    spoil = lambda key: DIES[what]() if key[1] == 1 else None
    found = sweep({'strict': TINY}, [0, 1, 2], tmp_path, executor=AtOnce(spoil))
    [row] = found['failed']
    assert WORDS[what] in row['error'] and row['error'].endswith('the same call goes on with it') and '\n' not in row['error']
    assert sorted(row['seed'] for row in found['runs']) == [0, 2] and read_json(tmp_path/'sweep.json') == found
    again = sweep({'strict': TINY}, [0, 1, 2], tmp_path, executor=AtOnce())
    assert not again['failed'] and len(again['runs']) == 3 and same(weights(tmp_path/'strict-1'), weights(whole/'strict-1'))

@trust('a worker that dies, is lost or refuses fails one run, and the same call goes on')
def test_what_cannot_be_pickled(tmp_path):
    with ProcessPoolExecutor(1, SERVER) as pool: found = sweep({'strict': TINY}, [0], tmp_path, executor=pool, weights=None, save_every_s=lambda: 1)
    assert 'pickle' in found['failed'][0]['error'] and found['failed'][0]['error'].count('\n') == 0

@trust('a worker that dies, is lost or refuses fails one run, and the same call goes on')
def test_a_killed_pool(tmp_path, whole):
    "The pool is broken then: every run that it had has failed, and goes on with the next pool."
    with ProcessPoolExecutor(1, SERVER) as pool:
        pool.submit(os.getpid).result()
        threading.Timer(1, lambda: [os.kill(pid, signal.SIGKILL) for pid in [*pool._processes]]).start()
        found = sweep({'strict': {**TINY, 'epochs': 2000}}, [0, 1], tmp_path/'long', executor=pool, save_every_s=0)
    assert len(found['failed']) == 2 and all('terminated abruptly' in row['error'] for row in found['failed'])
    with ProcessPoolExecutor(2, SERVER) as pool: found = sweep({'strict': TINY}, [0, 1], tmp_path/'short', executor=pool)
    assert not found['failed'] and all(same(weights(tmp_path/'short'/f'strict-{i}'), weights(whole/f'strict-{i}')) for i in (0, 1))

@trust('rows are written as they come')
def test_rows_as_they_come(tmp_path):
    "While one worker has not answered yet, the rows of the others are in sweep.json."
    late, seen = Future(), []
    def look():
        while not seen:
            with_rows = (tmp_path/'sweep.json').exists() and len(read_json(tmp_path/'sweep.json')['runs']) == 2
            if with_rows: seen.append(read_json(tmp_path/'sweep.json')['left']); late.set_exception(OSError('gone'))
            time.sleep(.01)
    threading.Thread(target=look, daemon=True).start()
    said = []
    found = sweep({'strict': TINY}, [0, 1, 2], tmp_path, executor=AtOnce(lambda key: late if key[1] == 0 else None), say=said.append)
    assert seen == [1] and len(found['failed']) == 1
    assert said[0].endswith('on AtOnce') and said[1].startswith('strict seed 1 is done: held out ') and said[3].startswith('strict seed 0 failed: no result')


@trust('rows are written as they come')
def test_workers_that_compute_otherwise(tmp_path, whole):
    "What precisions the workers chose is known afterwards only; a sweep that mixes them says so then."
    rows = {row['seed']: row for row in read_json(whole/'sweep.json')['runs']}
    other = lambda key: finished(dict(rows[key[1]], precision=['float32', 'bfloat16'][key[1]]))
    with pytest.warns(UserWarning, match='mixes precisions'): sweep({'strict': TINY}, [0, 1], tmp_path/'mixed', executor=AtOnce(other))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        sweep({'strict': TINY}, [0], tmp_path/'one', executor=AtOnce(other))


# Two workers, one run

@trust('a run that another worker holds is waited for, and trained once')
def test_two_workers_have_the_same_run(tmp_path, epochs, whole, cases):
    "As after a network that was cut: the engine gives a run to a second worker while the first one is still at it."
    cases(6)
    give = lambda i: on_worker(('strict', 0), dict(TINY, seed=0), str(tmp_path/str(i)), np.inf, time.time(), dict(read_test=False))
    for i in range(6):
        epochs.clear()
        with ThreadPoolExecutor(3) as pool: rows = [future.result() for future in [pool.submit(give, i) for _ in range(3)]]
        assert rows[0] == rows[1] == rows[2] and 'error' not in rows[0]
        assert epochs == [(0, 0), (0, 1)] and same(weights(tmp_path/str(i)/'strict-0'), weights(whole/'strict-0'))

@trust('a run that another worker holds is waited for, and trained once')
def test_a_run_that_is_begun_just_now(tmp_path, monkeypatch, whole):
    "Another worker begins the run, and is gone, after this one has seen an empty place: it looks once more, and goes on."
    usual, calls = scale_module.job, []
    def late(*args, **kw):
        calls.append(kw['resume'])
        if len(calls) == 1:
            with pytest.raises(KeyboardInterrupt): usual(*args, **{**kw, 'budget_s': 1e-9})
        return usual(*args, **kw)
    monkeypatch.setattr(scale_module, 'job', late)
    found = sweep({'strict': TINY}, [0], tmp_path, executor=AtOnce())
    assert calls == [False, True] and not found['failed'] and same(weights(tmp_path/'strict-0'), weights(whole/'strict-0'))

@trust('a run that another worker holds is waited for, and trained once')
def test_a_lock_that_is_held_is_waited_for(tmp_path):
    (tmp_path/'strict-0'/'checkpoints').mkdir(parents=True)
    held, begun = threading.Event(), []
    def hold():
        with only_one(tmp_path/'strict-0'/'checkpoints'):
            held.set(); time.sleep(1); begun.append((tmp_path/'strict-0'/'run.json').exists())
    threading.Thread(target=hold).start(); held.wait()
    with ThreadPoolExecutor(1) as pool: found = sweep({'strict': TINY}, [0], tmp_path, executor=pool)
    assert begun == [False] and len(found['runs']) == 1 and not found['failed']

@trust('a run that another worker holds is waited for, and trained once')
def test_not_longer_than_there_is_time(tmp_path):
    (tmp_path/'strict-0'/'checkpoints').mkdir(parents=True)
    with only_one(tmp_path/'strict-0'/'checkpoints'), ThreadPoolExecutor(1) as pool:
        found = sweep({'strict': TINY}, [0], tmp_path, executor=pool, budget_s=1)
    assert (found['runs'], found['failed'], found['left']) == ([], [], 1)

@trust('a run that another worker holds is waited for, and trained once')
def test_two_workers_fetch_once(server, tmp_path):
    with ThreadPoolExecutor(4) as pool: found = [*pool.map(lambda _: _made(tmp_path, None, SMALL, [url(server, 'archive')]), range(4))]
    assert server.asked == ['archive'] and {p.name: p.read_bytes() for p in found[0].iterdir()} == MEMBERS and len(set(found)) == 1


# Time

@trust('time that is up is no failure, on whichever clock')
def test_a_budget(tmp_path, monkeypatch, whole):
    "One worker, three runs: it saves the one that it has begun after the batch in which time is up, and does not begin the others."
    usual = Training.learn
    def until_time_is_up(self, *batch):
        while self.at == 1 and time.monotonic() < self.until: time.sleep(.05)
        return usual(self, *batch)
    with monkeypatch.context() as patched, ThreadPoolExecutor(1) as pool:
        patched.setattr(Training, 'learn', until_time_is_up)
        found = sweep({'strict': TINY}, [0, 1, 2], tmp_path, executor=pool, budget_s=6)
    assert found['left'] == 3 and not found['failed'] and any((tmp_path/'strict-0'/'checkpoints').glob('*.pt')) and not (tmp_path/'strict-1').exists()
    with ThreadPoolExecutor(3) as pool: found = sweep({'strict': TINY}, [0, 1, 2], tmp_path, executor=pool)
    assert len(found['runs']) == 3 and read_json(tmp_path/'strict-0'/'run.json')['resumed_at'] == [1.0]
    assert all(same(weights(tmp_path/f'strict-{i}'), weights(whole/f'strict-{i}')) for i in range(3))

@trust('time that is up is no failure, on whichever clock')
@pytest.mark.parametrize('left_s, ago, trains', [(5, 6, False), (600, 0, True), (600, -7200, True), (600, 7200, False), (np.inf, 1e9, True)],
                         ids=['too late', 'in time', 'a clock that is behind', 'a clock that is ahead', 'no budget'])
def test_a_workers_clock(left_s, ago, trains, tmp_path):
    row = on_worker(('strict', 0), dict(TINY, seed=0), str(tmp_path), left_s, time.time() - ago, dict(read_test=False))
    assert (row is not None) == trains and (tmp_path/'strict-0').exists() == trains

@trust('time that is up is no failure, on whichever clock')
@pytest.mark.parametrize('ago, left', [(0, 600), (100, 500), (-7200, 600)])
def test_what_is_left_for_a_worker(ago, left, tmp_path, monkeypatch):
    "What a run has waited is taken off; a clock that is behind adds nothing."
    monkeypatch.setattr(scale_module, '_one', lambda key, fields, out, until, *args, **kw: until - time.monotonic())
    assert left - 30 < on_worker(('strict', 0), TINY, str(tmp_path), 600, time.time() - ago, {}) <= left

@trust('time that is up is no failure, on whichever clock')
def test_a_worker_that_never_answers(tmp_path, monkeypatch):
    monkeypatch.setattr(scale_module, 'GRACE_S', .5)
    said, silent = [], Future()
    silent.set_running_or_notify_cancel()
    found = sweep({'strict': TINY}, [0], tmp_path, executor=AtOnce(lambda key: silent), budget_s=.5, say=said.append)
    assert found['left'] == 1 and not found['failed'] and said[-1] == 'time is up: 1 run is left, and no worker is at work on what is left'


# Ctrl-C

@trust('Ctrl-C calls off what has not begun, and says what goes on')
def test_ctrl_c(tmp_path, slow, whole):
    "The first run is being trained, the second has not begun."
    def press():
        while not any(tmp_path.glob('strict-0/checkpoints/*.pt')): time.sleep(.01)
        os.kill(os.getpid(), signal.SIGINT)
    threading.Thread(target=press, daemon=True).start()
    with ThreadPoolExecutor(1) as pool:
        with pytest.raises(KeyboardInterrupt) as e: sweep({'strict': TINY}, [0, 1], tmp_path, executor=pool, save_every_s=0)
    assert str(e.value) == 'stopped: 2 runs are left, and no worker is at work on what is left'
    assert not (tmp_path/'strict-1').exists() and not read_json(tmp_path/'strict-0'/'run.json')['finished']      # saved, and no more
    with ThreadPoolExecutor(1) as pool: assert len(sweep({'strict': TINY}, [0, 1], tmp_path, executor=pool)['runs']) == 2
    assert read_json(tmp_path/'strict-0'/'run.json')['resumed_at'] and same(weights(tmp_path/'strict-0'), weights(whole/'strict-0'))

@trust('Ctrl-C calls off what has not begun, and says what goes on')
def test_ctrl_c_where_a_worker_is_elsewhere(tmp_path, monkeypatch):
    "What another machine has begun it finishes: its lock tells of it."
    monkeypatch.setattr(scale_module, 'LAST_WORDS_S', .2)
    far = Future()
    far.set_running_or_notify_cancel()
    (tmp_path/'strict-0'/'checkpoints').mkdir(parents=True)
    threading.Timer(1, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    with only_one(tmp_path/'strict-0'/'checkpoints'), pytest.raises(KeyboardInterrupt) as e:
        sweep({'strict': TINY}, [0, 1], tmp_path, executor=AtOnce(lambda key: far))
    assert str(e.value) == 'stopped: 2 runs are left; workers are still training strict seed 0, and what they finish is found there'


# Where a worker is

@trust('a worker in another folder finds what was meant')
def test_paths(tmp_path, monkeypatch):
    "Relative paths of the caller: the sweep's folder, a folder of pictures, trained weights."
    for name in ('here', 'there'): (tmp_path/name).mkdir()
    monkeypatch.chdir(tmp_path/'here')
    random = np.random.default_rng(0)
    for name in ('a', 'b'):
        for i in range(12):
            path = Path(f'pictures/train/{name}/{i}.png')
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 255, (32, 32, 3), np.uint8)).save(path)
    fields = dict(TINY, dataset='folder:pictures', limit=8, batch_size=4)
    with pytest.warns(UserWarning, match='has no test'): found = sweep({'own': fields}, [0], 'out', executor=AtOnce(at=tmp_path/'there'))
    assert not found['failed'] and found['runs'][0]['recipe']['dataset'] == 'folder:pictures' and Path('out/own-0/run.json').exists()
    more = dict(TINY, dataset='shapes10'); del more['width']
    found = sweep({'more': more}, [0], 'more', executor=AtOnce(at=tmp_path/'there'), weights='out/own-0')
    assert not found['failed'] and not any((tmp_path/'there').iterdir())

@trust('a worker in another folder finds what was meant')
def test_what_is_sent_is_small_and_plain(tmp_path):
    executor = AtOnce()
    sweep({'strict': TINY}, [0], tmp_path, executor=executor, data_dir='~/somewhere')
    [args] = executor.given
    assert len(pickle.dumps((on_worker, *args))) < 1000 and args[-1]['data_dir'] == str(Path.home()/'somewhere')
    assert pickle.loads(pickle.dumps(on_worker)) is on_worker


# What makes no sense

@trust('an engine that is none, or not there, is one sentence')
@pytest.mark.parametrize('executor, devices, said', [(object(), None, 'needs a method submit'), ('dask', None, 'needs a method submit'), (ThreadPoolExecutor, None, 'needs a method submit'), (AtOnce(), ['cpu'], 'leave devices out')])
def test_no_executor(executor, devices, said, tmp_path):
    with pytest.raises(ValueError, match=said): sweep({'strict': TINY}, [0], tmp_path/'out', devices, executor=executor)
    assert not (tmp_path/'out').exists()

@trust('an engine that is none, or not there, is one sentence')
def test_an_executor_without_futures(tmp_path):
    with pytest.raises(ValueError, match='returns 5 for what is submitted, where a future is needed'):
        sweep({'strict': TINY}, [0], tmp_path, executor=AtOnce(lambda key: 5))

@trust('an answer that is no row')
@pytest.mark.parametrize('answer', ['ha', {}, dict(name='b', seed=9), dict(name='strict', seed=0), 5, [('name', 'strict')]])
def test_an_answer_that_is_no_row(answer, tmp_path):
    found = sweep({'strict': TINY}, [0], tmp_path, executor=AtOnce(lambda key: finished(answer)))
    [row] = found['failed']
    assert row['error'].startswith('its worker answered with') and not found['runs']

@trust('arguments that make no sense')
@pytest.mark.parametrize('how, said', [
    (dict(recipes=[TINY]), 'recipes must be a dict'), (dict(seeds=0), 'seeds 0 make no sense'), (dict(seeds='01'), 'seeds'),
    (dict(budget_s='3'), "budget_s '3' makes no sense"), (dict(budget_s=float('nan')), 'budget_s nan')])
def test_arguments_that_make_no_sense(how, said, tmp_path):
    with pytest.raises(ValueError, match=said): sweep(**dict(dict(recipes={'strict': TINY}, seeds=[0], out=tmp_path/'out'), **how))
    assert not (tmp_path/'out').exists()

def test_an_option_that_a_job_does_not_have(tmp_path):
    with pytest.raises(TypeError, match="unexpected keyword argument 'foo'"): sweep({'strict': TINY}, [0], tmp_path/'out', executor=AtOnce(), foo=3)
    assert not (tmp_path/'out').exists()

@trust('an engine that is none, or not there, is one sentence')
@pytest.mark.parametrize('word, said', [
    ('ray', "there is no executor 'ray': choose processes, dask:ADDRESS or slurm"), ('', 'there is no executor'), ('dask', 'dask needs the address of its scheduler'), ('dask:', 'give dask:HOST:PORT'), ('dask:nowhere', 'missing port'),
    ('dask:foo://x:1', 'unknown address scheme'), ('dask:127.0.0.1:9', 'within 1 s'), ('dask:SILENT', 'within 1 s')])
def test_no_engine(word, said, tmp_path, monkeypatch, capsys):
    pytest.importorskip('distributed', reason='pip install distributed')
    monkeypatch.setattr(scale_module._dask_client, '__defaults__', (1,))
    with socket.socket() as silent:
        silent.bind(('127.0.0.1', 0)); silent.listen()
        began = time.monotonic()
        assert sweep_main(['-', *FLAGS, '--out', str(tmp_path/'out'), '--executor', word.replace('SILENT', f'127.0.0.1:{silent.getsockname()[1]}')]) == 2
    assert time.monotonic() - began < 30
    said_all = capsys.readouterr().err
    assert said in said_all and said_all.startswith('cifar_sweep: ') and said_all.count('\n') == 1 and not (tmp_path/'out').exists()

@trust('an engine that is none, or not there, is one sentence')
def test_without_dask(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'distributed', None)
    assert sweep_main(['-', *FLAGS, '--out', str(tmp_path/'out'), '--executor', 'dask:127.0.0.1:9']) == 2
    assert capsys.readouterr().err == "cifar_sweep: this needs Dask: in the repository's folder type pip install -e '.[dask]'\n"

@trust('an engine that is none, or not there, is one sentence')
def test_processes_is_what_there_is_today(tmp_path, whole):
    with engine('processes') as executor: assert executor is None
    assert sweep_main(['-', *FLAGS, '--seeds', '0', '--out', str(tmp_path), '--executor', 'processes', '--devices', 'cpu']) == 0
    assert same(weights(tmp_path/'strict-0'), weights(whole/'strict-0'))
