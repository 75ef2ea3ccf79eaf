"A sweep over the real Dask: a scheduler and workers in processes of their own, some of which are killed."
import threading

import pytest

from cifar_resnet import scale as scale_module
from cifar_resnet.cli import sweep_main
from cifar_resnet.runs import read_json
from cifar_resnet.scale import engine, sweep
from compared import same, weights
from processes import finish, wait_for

distributed = pytest.importorskip('distributed', reason='pip install distributed')
from dask_processes import cluster

TINY = dict(dataset='shapes10', width=2, epochs=4, limit=40, batch_size=20)         # 8 batches
FLAGS = [str(word) for k, v in TINY.items() for word in (f'--{k}', v)]


def trust(what): return pytest.mark.trust('many machines', what)
def saved(folder): return any((folder/'checkpoints').glob('*.pt'))
def resumed(folder): return read_json(folder/'run.json')['resumed_at']


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    "Seeds 0 to 2, trained here, undisturbed."
    top = tmp_path_factory.mktemp('whole')
    sweep({'strict': TINY}, [0, 1, 2], top, ['cpu'])
    return top

def as_undisturbed(top, whole, seeds): return all(same(weights(top/f'strict-{i}'), weights(whole/f'strict-{i}')) for i in seeds)

class Sweeping(threading.Thread):
    "A sweep in the background."
    def __init__(self, *args, **kw):
        super().__init__(daemon=True)
        self.args, self.kw, self.found = args, kw, None
        self.start()

    def run(self): self.found = sweep(*self.args, **self.kw, save_every_s=0)

    def done(self, timeout=120):
        self.join(timeout)
        assert not self.is_alive(), 'the sweep hangs'
        return self.found


@trust('a worker killed midway: the engine gives its run to another, which goes on to the bit')
def test_a_killed_worker(tmp_path, whole):
    with cluster(tmp_path, batch_s=.2) as (address, _, workers), engine(f'dask:{address}') as executor:
        background = Sweeping({'strict': TINY}, [0, 1], tmp_path, executor=executor)
        wait_for(lambda: saved(tmp_path/'strict-0') and saved(tmp_path/'strict-1'))
        workers['w0'].kill()
        found = background.done()
    assert not found['failed'] and len(found['runs']) == 2 and as_undisturbed(tmp_path, whole, (0, 1))
    assert sorted(map(len, (resumed(tmp_path/'strict-0'), resumed(tmp_path/'strict-1')))) == [0, 1]       # one was with the killed worker

@trust('a worker killed midway: the engine gives its run to another, which goes on to the bit')
def test_more_often_than_the_engine_allows(tmp_path, whole):
    "Dask gives a run up whose workers died too often: it has failed, and the same call goes on with it."
    with cluster(tmp_path, workers=1, batch_s=.2, allowed_failures=0) as (address, _, workers), engine(f'dask:{address}') as executor:
        background = Sweeping({'strict': TINY}, [0], tmp_path, executor=executor)
        wait_for(lambda: saved(tmp_path/'strict-0'))
        workers['w0'].kill()
        [row] = background.done()['failed']
    assert 'no result from its worker (KilledWorker' in row['error'] and row['error'].endswith('the same call goes on with it')
    assert sweep({'strict': TINY}, [0], tmp_path, ['cpu'])['runs'] and resumed(tmp_path/'strict-0') and as_undisturbed(tmp_path, whole, [0])

@trust('a scheduler that is lost ends the sweep, and nothing else')
def test_a_killed_scheduler(tmp_path, whole):
    with cluster(tmp_path, workers=1, batch_s=.2) as (address, head, workers), engine(f'dask:{address}') as executor:
        background = Sweeping({'strict': TINY}, [0, 1], tmp_path, executor=executor)
        wait_for(lambda: saved(tmp_path/'strict-0') or saved(tmp_path/'strict-1'))
        head.kill()
        found = background.done()
    assert len(found['failed']) == 2 and all('scheduler was lost' in row['error'] for row in found['failed'])
    assert len(sweep({'strict': TINY}, [0, 1], tmp_path, ['cpu'])['runs']) == 2 and as_undisturbed(tmp_path, whole, (0, 1))

@trust('the command trains on the workers of a Dask scheduler')
def test_the_command(tmp_path, whole, capsys):
    "Two threads of one worker: the bits of two processes."
    with cluster(tmp_path, workers=1, nthreads=2) as (address, *_):
        argv = ['-', *FLAGS, '--seeds', '0,1,2', '--out', str(tmp_path/'out'), '--executor', f'dask:{address}']
        assert sweep_main(argv) == 0
        assert sweep_main([*argv[:-4], '--out', str(tmp_path/'out2'), *argv[-2:], '--budget_s', '.01']) == 3
    said = capsys.readouterr()
    assert said.err.count(' is done: held out ') == 3 and 'strict: 3 runs' in said.out and '3 runs are left; the same command goes on' in said.err
    assert as_undisturbed(tmp_path/'out', whole, (0, 1, 2))

@trust('the command trains on the workers of a Dask scheduler')
def test_a_client_will_do(tmp_path):
    with cluster(tmp_path, workers=1) as (address, *_), distributed.Client(address) as client:
        assert len(sweep({'strict': TINY}, [0], tmp_path, executor=client)['runs']) == 1

@trust('an engine that is none, or not there, is one sentence')
def test_no_worker_yet(tmp_path, monkeypatch):
    monkeypatch.setattr(scale_module, 'GRACE_S', 1)
    with cluster(tmp_path, workers=0) as (address, *_), pytest.warns(UserWarning, match=f'no worker has come to {address} yet'):
        with engine(f'dask:{address}') as executor: found = sweep({'strict': TINY}, [0], tmp_path, executor=executor, budget_s=.1)
    assert found['left'] == 1
