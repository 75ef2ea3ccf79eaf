"""A finished run is never lost: the process dies in every single write, and the same command ends with what it would have ended with.

A child process is forked with everything in memory, and ends in its n-th write to the disk, n = 1, 2, 3 ..., until it gets to its end. Pictures are stubs that say what they are about.
"""
import os, shutil, signal, time, traceback
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cifar_resnet import job as job_module, runs, scale
from cifar_resnet.data import shapes10
from cifar_resnet.job import PUBLISHED, SHOWN, job, publish, release
from cifar_resnet.model import load_weights, weights_metadata
from cifar_resnet.runs import read_json
from cifar_resnet.scale import sweep
from cifar_resnet.train import load_run
from processes import finish, start
from test_resume import bits
import doomed

DATA = shapes10(n_train=100, n_test=20)
RECIPE = dict(dataset='shapes10', width=2, epochs=2, batch_size=50)
DIED = 77


class Writes:
    "In this process the write number `last` is half done (a removal or a new folder: not at all), and ends it, as if the power had failed."
    def __init__(self, last):
        self.n, self.last = 0, last
        for name in ('mkdir', 'rmdir', 'unlink'): setattr(os, name, self.watched(getattr(os, name)))
        self.usual, runs._write_to_disk = runs._write_to_disk, self.half
        self.append, job_module.append_history = job_module.append_history, self.half_a_row

    def now(self):
        self.n += 1
        return self.n == self.last

    def watched(self, usual):
        def call(path, *args, **kw):
            in_vain = usual.__name__ in ('unlink', 'rmdir') and not kw.get('dir_fd') and not os.path.lexists(path)
            if not in_vain and self.now(): os._exit(DIED)
            return usual(path, *args, **kw)
        return call

    def half_a_row(self, path, row):
        before = Path(path).read_bytes()
        self.append(path, row)
        if not self.now(): return
        Path(path).write_bytes(before + Path(path).read_bytes()[len(before):-9])
        os._exit(DIED)

    def half(self, path, data):
        if self.now():
            Path(path).write_bytes(data[:len(data)//2])
            os._exit(DIED)
        self.usual(path, data)


def dies(action, last):
    "Whether a child process that calls `action` dies in its write number `last`; False if it does not come to that."
    if not (pid := os.fork()):
        try: Writes(last); action()
        except BaseException: traceback.print_exc(); os._exit(1)
        os._exit(0)
    deadline = time.monotonic() + 180
    while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
        if time.monotonic() > deadline: os.kill(pid, signal.SIGKILL); os.waitpid(pid, 0); pytest.fail('it hangs')
        time.sleep(.002)
    code = os.waitstatus_to_exitcode(ended[1])
    assert code in (0, DIED), f'it ended with {code}'
    return code == DIED


def at_every_write(prepare, action, check):
    "Call `check` after each death, on a folder from `prepare` -> how many deaths there were."
    for n in range(1, 1000):
        place = prepare(n)
        if not dies(lambda: action(place), n): break
        try: check(place)
        except BaseException as e: raise AssertionError(f'after a death in write {n}') from e
        shutil.rmtree(place.parent)
    assert n > 3, 'nothing was written'
    return n - 1


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    "Figures that say what they show, data in memory, and no look at git."
    about = lambda run: f'{run.metrics["test_reads"]} {run.metrics["test_accuracy"]} {run.metrics["valid_accuracy"]} {run.metrics["seed"]}'
    monkeypatch.setattr(job_module, 'figures', lambda run, images: {name.removesuffix('.png'): f'{about(run)} {len(images)}' for name in SHOWN[1:]})
    monkeypatch.setattr(job_module.plots, 'png', str.encode)
    monkeypatch.setattr(scale, 'load_data', lambda *args: DATA)
    kept = runs.provenance(torch.device('cpu'))
    monkeypatch.setattr(job_module, 'provenance', lambda device: kept)


def run(out, resume=None, **kw):
    resume = (out/'run.json').exists() if resume is None else resume
    return job(kw.pop('recipe', RECIPE), out, device='cpu', progress=False, data=DATA, resume=resume, **kw)


TIMED = {'train_seconds', 'peak_memory_bytes', 'started', 'ended', 'resumed_at', 'resumed', 'files', 'seal'}

def outcome(out):
    "All that a run ends with, to the bit, but for times. (It can be opened.)"
    about = load_run(out).metrics
    return {k: v for k, v in about.items() if k not in TIMED}, [(out/name).read_bytes() for name in SHOWN if (out/name).exists()], [
        line.rsplit(',', 1)[0] for line in (out/'history.csv').read_text().splitlines()], [bits(load_file(out/f'{name}.safetensors')) for name in ('weights', 'logits')]


def fresh(tmp_path, copy=None):
    def prepare(n):
        place = tmp_path/str(n)/'run'
        place.parent.mkdir()
        if copy: shutil.copytree(copy, place)
        return place
    return prepare


@pytest.mark.trust('hard knocks', 'a death in any write of a run')
def test_a_run(tmp_path, cases):
    run(tmp_path/'whole')
    whole = outcome(tmp_path/'whole')
    def check(out):
        if (out/'run.json').exists() and not read_json(out/'run.json')['finished']:
            with pytest.raises(ValueError, match='add --resume'): run(out, resume=False)
        run(out)
        assert outcome(out) == whole and whole[0]['test_reads'] == 1 and not list(out.glob('*.part'))
    cases(at_every_write(fresh(tmp_path), run, check))


@pytest.mark.trust('hard knocks', 'a death in any write while a finished run is tested')
def test_a_finished_run_that_is_tested(tmp_path, cases):
    run(tmp_path/'shut', read_test=False)
    shutil.copytree(tmp_path/'shut', tmp_path/'whole')
    run(tmp_path/'whole')
    shut, whole = outcome(tmp_path/'shut'), outcome(tmp_path/'whole')
    said = read_json(tmp_path/'shut'/'run.json')
    assert (shut[0]['test_reads'], whole[0]['test_reads']) == (0, 1) and shut[1] != whole[1]
    def check(out):
        opened = load_run(out).metrics                                     # at any moment, by whoever looks
        assert opened['valid_accuracy'] == said['valid_accuracy'] and opened['test_reads'] in (0, 1)
        shutil.copytree(out, out.parent/'still shut')
        run(out.parent/'still shut', resume=False, read_test=False)
        assert outcome(out.parent/'still shut') in (shut, whole)           # by what the seal says, all the rest
        run(out, resume=False)                                             # the same command
        assert outcome(out) == whole and not list(out.glob('*.part'))
    cases(at_every_write(fresh(tmp_path, tmp_path/'shut'), lambda out: run(out, resume=False), check))


def test_figures_of_held_out_images_go_when_the_test_set_is_read(tmp_path):
    run(tmp_path, read_test=False)
    held_out = (tmp_path/'confusion.png').read_bytes()
    run(tmp_path, draw=False)
    assert not (tmp_path/'confusion.png').exists()
    run(tmp_path)
    assert (tmp_path/'confusion.png').read_bytes().startswith(b'1 ') and held_out.startswith(b'0 ')


@pytest.mark.trust('hard knocks', 'a death in any write while a released file is replaced')
def test_a_release(tmp_path, cases):
    first, second = (run(tmp_path/name, recipe=dict(RECIPE, seed=seed), read_test=False, draw=False) for seed, name in enumerate(('a', 'b')))
    old = release(first, tmp_path/'old.safetensors', DATA[1])
    new = release(second, tmp_path/'new.safetensors', DATA[1])
    said = lambda found: {k: v for k, v in found.items() if k != 'sha256'}
    def prepare(n):
        place = fresh(tmp_path)(n)
        shutil.copy(tmp_path/'old.safetensors', place)
        return place
    def check(path):
        there = weights_metadata(path)
        assert there in (weights_metadata(tmp_path/'old.safetensors'), weights_metadata(tmp_path/'new.safetensors'))       # with its accuracy
        assert said(release(second, path, DATA[1])) == said(new) != said(old)
        assert bits(load_weights(path).state_dict()) == bits(load_weights(tmp_path/'new.safetensors').state_dict())
    cases(at_every_write(prepare, lambda path: release(second, path, DATA[1]), check))


def table(found): return [{k: v for k, v in row.items() if k != 'train_seconds'} for row in found['table'] + found['runs']]

@pytest.mark.trust('hard knocks', 'a death in any write of a sweep')
@pytest.mark.parametrize('before', [['one'], ['one', 'two']], ids=['of which one run is done', 'whose runs are tested'])
def test_a_sweep(before, tmp_path, cases):
    recipes = {'one': dict(RECIPE, epochs=1), 'two': dict(RECIPE, epochs=1, flip='random')}
    swept = lambda out, names=recipes, read_test=True: sweep({name: recipes[name] for name in names}, [0], out, ['cpu'], read_test=read_test)
    swept(tmp_path/'before', before, read_test=len(before) < 2)
    whole = swept(tmp_path/'whole')
    runs_of = lambda out: {name: outcome(out/f'{name}-0') for name in recipes}
    wanted = runs_of(tmp_path/'whole')
    def check(out):
        assert table(swept(out)) == table(whole) and runs_of(out) == wanted
        assert not list(out.glob('**/*.part')) and not any((out/f'{name}-0'/'checkpoints').exists() for name in recipes)
        assert all(row['test_reads'] == 1 for row in read_json(out/'sweep.json')['runs'])
    cases(at_every_write(fresh(tmp_path, tmp_path/'before'), swept, check))


@pytest.mark.trust('hard knocks', 'a death in any write while a run is published')
def test_publishing(tmp_path, cases):
    first, second = (run(tmp_path/name, recipe=dict(RECIPE, seed=seed)) for seed, name in enumerate(('a', 'b')))
    publish(first, tmp_path/'old')
    held = lambda folder: {name: (folder/name).read_bytes() for name in PUBLISHED if (folder/name).exists()}
    def check(folder):
        if (folder/'run.json').exists(): assert held(folder) in (held(tmp_path/'a'), held(tmp_path/'b'))      # never some of both
        publish(second, folder)
        assert held(folder) == held(tmp_path/'b') and not list(folder.glob('*.part'))
    cases(at_every_write(fresh(tmp_path, tmp_path/'old'), lambda folder: publish(second, folder), check))


# Two at work in one folder

@pytest.mark.trust('hard knocks', 'a folder that another process changed before it was locked')
@pytest.mark.parametrize('mine, other', [
    ('new', dict()), ('new', dict(read_test=False)), ('new', dict(stop=True)),
    ('stopped', dict()), ('stopped', dict(read_test=False)), ('stopped', dict(stop=True)), ('shut', dict())])
def test_what_was_seen_before_the_lock_is_not_used_after_it(mine, other, tmp_path, monkeypatch):
    out, other = tmp_path/'run', dict(other)
    if mine == 'shut': run(out, read_test=False, draw=False)
    if mine == 'stopped': stopped(out)
    usual, seen = job_module.only_one, {}
    def late(folder):
        monkeypatch.setattr(job_module, 'only_one', usual)
        stopped(out) if other.pop('stop', False) else run(out, draw=False, **other)
        seen.update({p: p.read_bytes() for p in out.iterdir() if p.is_file()})
        return usual(folder)
    monkeypatch.setattr(job_module, 'only_one', late)
    resume = mine == 'stopped'
    with pytest.raises(ValueError, match='was at work|add --resume'): run(out, resume=resume)
    assert seen and seen == {p: p.read_bytes() for p in seen}
    run(out)
    assert outcome(out)[0]['test_reads'] == 1


@pytest.mark.trust('hard knocks', 'a folder that another process changed before it was locked')
def test_a_lock_on_a_file_that_was_removed_is_none(tmp_path, monkeypatch):
    def removed(*args): (tmp_path/'.lock').unlink()
    monkeypatch.setattr(runs.fcntl, 'flock', removed)
    with pytest.raises(ValueError, match='was removed just now'):
        with runs.only_one(tmp_path): pass


def stopped(out):
    with pytest.raises(KeyboardInterrupt): run(out, budget_s=1e-9, save_every_s=0)


@pytest.mark.trust('hard knocks', 'two processes that start in one folder at the same moment')
def test_two_at_the_same_moment(tmp_path):
    both = [start(tmp_path/f'log{i}', doomed.run, tmp_path/'run') for i in (1, 2)]
    codes = [finish(process, 300) for process in both]
    assert 0 in codes and set(codes) <= {0, 2}
    if 2 in codes: assert any(word in (tmp_path/f'log{1 + codes.index(2)}').read_text() for word in ('another process', 'unfinished run'))
    assert load_run(tmp_path/'run').metrics['test_reads'] == 1
