"""A sweep on Slurm: a real one of two nodes where it can be started (root, and Debian's slurm-wlm and munge), else not
run. And locks on shared drives."""
import os, subprocess, sys, warnings
from concurrent.futures import as_completed
from contextlib import ExitStack
from types import SimpleNamespace

import pytest

import engines, on_slurm
from cifar_resnet import scale
from cifar_resnet.cli import sweep_main
from cifar_resnet.fetch import locks_reach_all
from cifar_resnet.runs import only_one
from cifar_resnet.scale import SLURM, slurm_executor
from processes import wait_for


SENSELESS = {
    'partitoin=gpu': 'did you mean partition?',
    'nonsense=1': f'choose {", ".join([*SLURM][:3])}',
    'folder=x': 'nothing called',
    'time=soon': 'a whole number above 0, in minutes',
    'time=0': 'a whole number above 0, in minutes',
    'time=-5': 'a whole number above 0, in minutes',
    'time=1.5': 'a whole number above 0, in minutes',
    'time=1': 'too short',
    'gpus=none': 'a whole number above 0',
    'gpus=': 'a whole number above 0',
    'partition=': 'give a word, such as partition=NAME',
    'mem=4GB\n#SBATCH --wrap=x': 'give a word, such as mem=NAME',
    'partition': 'give KEY=VALUE',
    '=gpu': 'give KEY=VALUE',
    'cpus-per-task=many': 'cpus_per_task',                # as Slurm spells it
    'time=5 time=10': "--slurm names 'time' twice",
    'cpus-per-task=1 cpus_per_task=2': "names 'cpus_per_task' twice",
}

@pytest.mark.trust('many machines', 'a sentence about what is asked of Slurm and makes no sense')
@pytest.mark.parametrize('asked', SENSELESS)
def test_senseless(asked, tmp_path, capsys):
    words = asked.split(' ') if asked.count('=') > 1 and 'SBATCH' not in asked else [asked]
    flags = [flag for word in words for flag in ('--slurm', word)]
    assert sweep_main(['-', '--out', str(tmp_path/'sweep'), '--executor', 'slurm', *flags]) == 2
    said = capsys.readouterr().err.strip()
    assert SENSELESS[asked] in said and '\n' not in said
    assert not (tmp_path/'sweep').exists()


@pytest.mark.trust('many machines', 'a sentence where Slurm or what asks it is not there')
@pytest.mark.parametrize('lacks, words', [
    ('submitit', "pip install -e '.[slurm]'"),
    ('sbatch', 'no command sbatch'),
    ('--executor slurm', '--slurm time=60 is of use with --executor slurm'),
    ('a plain path', 'choose another --out'),
])
def test_nothing_there(lacks, words, tmp_path, monkeypatch, capsys):
    if lacks == 'submitit': monkeypatch.setitem(sys.modules, 'submitit', None)
    else: pytest.importorskip('submitit')
    if lacks in ('sbatch', 'a plain path'): monkeypatch.setenv('PATH', str(tmp_path))
    if lacks == 'a plain path': (tmp_path/'sbatch').touch(0o755)
    out = tmp_path/('50%' if lacks == 'a plain path' else 'sweep')
    executor = [] if lacks == '--executor slurm' else ['--executor', 'slurm']
    assert sweep_main(['-', '--out', str(out), *executor, '--slurm', 'time=60']) == 2
    said = capsys.readouterr().err.strip()
    assert words in said and '\n' not in said and not out.exists()


def job_with(folder, result=None):
    "A job as submitit has it, so far as a future asks."
    def answer():
        if isinstance(result, Exception): raise result
        return result
    return SimpleNamespace(job_id='7', result=answer, cancel=lambda check: None, paths=SimpleNamespace(
        folder=folder, result_pickle=folder/'7_0_result.pkl', stderr=folder/'7_0_log.err'))


@pytest.mark.trust('many machines', 'what becomes of a job, by what is known of it')
@pytest.mark.parametrize('answers, comes, state', [
    ([{'7'}]*20, None, 'pending'),
    ([None]*20, None, 'pending'),                       # Slurm does not answer: nobody knows
    ([set()]*3 + [{'7'}] + [set()]*3, None, 'pending'), # it was queued again
    ([set()]*4, None, 'lost'),
    ([set()]*2, (8, None), 'result'),                   # it has ended; its file is seen a little later
    ([{'7'}], (None, ValueError('too wide')), 'raised'),
    ([{'7'}], RuntimeError('a long trace'), 'failed'),
])
def test_what_becomes_of_a_job(answers, comes, state, tmp_path):
    future = scale._SlurmFuture(job_with(tmp_path, comes))
    for queued in answers: future.look(queued)
    if comes:
        assert not future.done()
        (tmp_path/'7_0_result.pkl').touch()
        future.look(set())
    if state == 'pending': assert not future.done()
    elif state == 'result': assert future.result(0) == 8
    elif state == 'raised': assert future.exception(0) is comes[1]
    else:
        assert {'lost': 'ended without a result', 'failed': 'failed: see'}[state] in str(future.exception(0))
        assert '7_0_log.err' in str(future.exception(0))


def test_a_drive_that_does_not_answer(tmp_path):
    future = scale._SlurmFuture(job_with(tmp_path/'gone', (1, None)))
    for _ in range(9): future.look(set())
    assert not future.done()


@pytest.mark.trust('many machines', 'what becomes of a job, by what is known of it')
@pytest.mark.parametrize('squeue', ['exit 1', 'echo 7; exit 1', None])
def test_slurm_does_not_answer(squeue, tmp_path, monkeypatch):
    monkeypatch.setenv('PATH', f'{tmp_path}:/bin')
    if squeue: (tmp_path/'squeue').write_text(f'#!/bin/sh\n{squeue}\n'); (tmp_path/'squeue').chmod(0o755)
    else: monkeypatch.setenv('PATH', str(tmp_path))
    assert scale._slurm_queue() is None


def test_cancelled_wakes_those_who_wait(tmp_path):
    future = scale._SlurmFuture(job_with(tmp_path, (1, None)))
    assert future.cancel() and future.cancel() and [*as_completed([future], timeout=1)] == [future]
    (tmp_path/'7_0_result.pkl').touch()
    future.look(set())                                  # a result that comes too late disturbs nobody
    assert future.cancelled()


@pytest.fixture(scope='module')
def nodes(tmp_path_factory):
    "A real Slurm, to which this process's commands talk."
    pytest.importorskip('submitit')
    if lacks := engines.what_slurm_lacks(): pytest.skip(f'not run: {lacks}')
    usual, scale.ASK_EVERY_S = scale.ASK_EVERY_S, .5
    with ExitStack() as stack:
        try: yield stack.enter_context(engines.slurm(tmp_path_factory.mktemp('engine')))
        except engines.NotRun as e: pytest.skip(f'not run: {e}')
        finally: scale.ASK_EVERY_S = usual


@pytest.mark.trust('many machines', 'a job that Slurm refuses')
@pytest.mark.parametrize('how, words', [
    (dict(partition='nowhere'), 'invalid partition specified: nowhere'),
    (dict(gpus=4), 'Invalid generic resource (gres) specification'),
    (dict(mem='lots'), 'Invalid --mem specification'),
    (dict(nodelist='nowhere'), 'nvalid node name'),
])
def test_refused(how, words, nodes, tmp_path, capfd):
    executor = slurm_executor(tmp_path, **how)
    with pytest.raises(ValueError, match='Slurm refuses the job: ') as e: executor.submit(pow, 2, 3)
    assert words in str(e.value) and '\n' not in str(e.value)
    assert capfd.readouterr() == ('', '')


@pytest.mark.trust('many machines', 'a real job: a result, an exception, cancelled here, cancelled there, killed')
def test_real_jobs(nodes, tmp_path, cases):
    cases(5)
    executor = slurm_executor(tmp_path/'a folder ü', time=7, mem='100M', setup='export SAID=hello')
    said, raised = executor.submit(os.getenv, 'SAID'), executor.submit(int, 'x')
    asked = engines.asked('scontrol', 'show', 'job', said.job.job_id)
    assert 'TimeLimit=00:07:00' in asked and 'MinMemoryNode=100M' in asked and 'Requeue=1' in asked
    assert said.result(120) == 'hello'
    assert isinstance(raised.exception(120), ValueError) and "'x'" in str(raised.exception())
    here, there, killed = (executor.submit(scale.time.sleep, 500) for _ in range(3))
    assert here.cancel() and here.cancelled()
    subprocess.run(['scancel', there.job.job_id], check=True)
    assert 'ended without a result' in str(there.exception(120))
    wait_for(lambda: 'JobState=RUNNING' in engines.asked('scontrol', 'show', 'job', killed.job.job_id), timeout=120)
    subprocess.run(['scancel', '--full', '--signal=KILL', killed.job.job_id], check=True)
    assert 'ended without a result' in str(killed.exception(120))


@pytest.fixture(scope='module')
def seen(nodes, tmp_path_factory): return on_slurm.disturbed(tmp_path_factory.mktemp('sweep'))


@pytest.mark.trust('many machines', 'a job of Slurm disturbed midway: its run saves, goes on, the same to the bit')
@pytest.mark.parametrize('kind', on_slurm.KNOCKS)
def test_disturbed(kind, seen):
    knock, = [row for row in seen['knocks'] if row['kind'] == kind]
    assert not knock['finished'] and not knock['saved_before']             # so what it went on from was saved when told
    assert knock['resumed_at'] and knock['resumed_at'][0] >= 2
    assert knock['same_bits'] and knock['same_accuracy']
    assert (kind in seen['failed_first']) == (kind == 'cancelled')         # the others Slurm began again by itself
    assert len([bar for bar in seen['bars'] if bar['run'] == kind]) >= 2


@pytest.mark.trust('many machines', 'a sweep uses all nodes of Slurm, and leaves nothing')
def test_nodes(nodes, seen):
    assert not seen['left'] and not seen['failed']
    assert {bar['node'] for bar in seen['bars']} == set(nodes)


MOUNT = '36 35 {dev} / /mnt rw,relatime shared:1 - nfs 127.0.0.1:/ rw,vers=3,{lock},addr=127.0.0.1\n'

@pytest.mark.trust('many machines', 'a shared drive whose locks other machines do not see is told apart')
@pytest.mark.parametrize('lock, reaches', [
    ('local_lock=none', True), ('local_lock=posix', True), ('hard', True),
    ('local_lock=all', False), ('local_lock=flock', False), ('nolock,local_lock=all', False),
])
def test_local_locks(lock, reaches, tmp_path, monkeypatch):
    dev = os.stat(tmp_path).st_dev
    other = MOUNT.format(dev='0:4095', lock='local_lock=all')
    (tmp_path/'mounts').write_text(other + MOUNT.format(dev=f'{os.major(dev)}:{os.minor(dev)}', lock=lock))
    assert locks_reach_all(tmp_path, tmp_path/'mounts') == reaches
    monkeypatch.setattr('cifar_resnet.runs.locks_reach_all', lambda folder: locks_reach_all(folder, tmp_path/'mounts'))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        with only_one(tmp_path): pass
    assert [str(w.message).endswith('see to it that none of them works there') for w in said] == [True]*(not reaches)


def test_nothing_is_known(tmp_path): assert locks_reach_all(tmp_path, tmp_path/'none') and locks_reach_all(tmp_path/'none')
