"""Provenance follows a run: where it went on otherwise than it began, its record says so, and so does the report."""
import shutil
from pathlib import Path

import numpy as np
import pytest

from cifar_resnet import cli, job as module
from cifar_resnet.data import Images
from cifar_resnet.job import computed_by, job, open_run
from cifar_resnet.recipe import Recipe
from cifar_resnet.runs import changed_on_the_way, check_about, provenance, read_json, went_on, write_json
from cifar_resnet.stepper import Stepper
from cifar_resnet.train import Training, load_run, read_about

EARLIER = Path(__file__).parent/'earlier'
rng = np.random.default_rng(0)
CLASSES = tuple('abcdefghij')
PART = lambda n: Images(rng.integers(0, 256, (n, 32, 32, 3), np.uint8), np.arange(n) % 10, CLASSES)
DATA = PART(200), PART(50)
RECIPE = Recipe(dataset='shapes10', width=2, epochs=2, batch_size=60)
kinds = pytest.mark.trust('hard knocks', 'a run that goes on elsewhere')


@pytest.fixture
def begun(tmp_path):
    "The folder of a run that was stopped after two of its six batches."
    t = Training(RECIPE, DATA[0], tmp_path/'run', 'cpu')
    (tmp_path/'run').mkdir()
    open_run(t, CLASSES)
    for _ in range(2): t.step()
    t.save()
    return tmp_path/'run'


def resume(folder, **how): return job(RECIPE, folder, device='cpu', resume=True, data=DATA, progress=False, draw=False, **how)


@kinds
@pytest.mark.parametrize('how, changed', [
    (dict(), {}),
    (dict(save_every_s=0), {}),
    (dict(backend='rows'), dict(backend=['eager', 'rows'])),
    (dict(workers=0), dict(augmentation=['batched', 'albumentations'], workers=[None, 0]))], ids=['the same', 'saved more often', 'backend', 'workers'])
def test_how_it_goes_on(how, changed, begun):
    before = read_json(begun/'run.json')
    run = resume(begun, **how)
    [line] = run.metrics['resumed']
    assert line['changed'] == changed and line['epoch'] == run.metrics['resumed_at'][0] == 2/3
    assert all(run.metrics[field] == before[field] for field in computed_by(Training(RECIPE, DATA[0], device='cpu')))        # as it began
    assert bool(changed_on_the_way(run.metrics)) == bool(changed)


@kinds
@pytest.mark.parametrize('field, value', [
    ('hardware', 'another processor'), ('device', 'cuda:0'), ('system', 'Darwin arm64'), ('cpus', 999), ('threads', 99), ('cpu_capability', 'none'),
    ('deterministic', True), ('cudnn_benchmark', True), ('git_revision', 'f'*40), ('git_clean', 'unknown'), ('versions.torch', '9.9.9'), ('versions.numpy', None)])
def test_where_it_goes_on(field, value, begun, monkeypatch, capsys):
    def elsewhere(device):
        found, (name, _, package) = provenance(device), field.partition('.')
        return {**found, name: {**found['versions'], package: value} if package else value}
    before = computed_by(Training(RECIPE, DATA[0], device='cpu'))
    monkeypatch.setattr(module, 'provenance', elsewhere)
    run = resume(begun)
    old = before['versions'][field[9:]] if '.' in field else before[field]
    assert run.metrics['resumed'][0]['changed'] == {field: [old, value]}
    cli._report(run)
    [said] = [line for line in capsys.readouterr().out.splitlines() if 'resumed under' in line]
    assert f'{field} {str(old)[:40]} → {str(value)[:40]}' in said
    check_about(read_json(begun/'run.json'))


@kinds
def test_as_many_processes(begun, monkeypatch):
    monkeypatch.setattr(Training, 'processes', 2)
    t = Training.resume(begun, DATA[0], 'cpu')
    assert went_on(read_json(begun/'run.json'), computed_by(t), 1.)['resumed'][0]['changed'] == dict(processes=[1, 2])


@kinds
def test_there_and_back(begun):
    "Each line says what is other than when the run last went on; the report compares its end with its beginning."
    about = read_json(begun/'run.json')
    here = computed_by(Training(RECIPE, DATA[0], device='cpu'))
    there = {**here, 'threads': 99, 'versions': {**here['versions'], 'torch': '9'}}
    for how in (there, there, here): about = went_on(about, how, 1.)
    assert [sorted(line['changed']) for line in about['resumed']] == [['threads', 'versions.torch'], [], ['threads', 'versions.torch']]
    assert about['resumed_at'] == [1., 1., 1.] and not changed_on_the_way(about)
    assert changed_on_the_way(went_on(about, there, 2.)).count(';') == 1


@kinds
@pytest.mark.parametrize('name', ['schema2-unfinished', 'schema3-unfinished'])
def test_an_earlier_run_goes_on(name, tmp_path):
    "It lacks the fields: they are not taken for changed. What it has is compared."
    folder = Path(shutil.copytree(EARLIER/name, tmp_path/name))
    before = read_about(folder)
    assert 'resumed' not in before and not changed_on_the_way(before)
    write_json(folder/'run.json', {**read_json(folder/'run.json'), 'hardware': 'a machine of then'})
    run = job(dict(dataset='shapes10', width=1, epochs=3, limit=40, batch_size=20, recipe='best'), folder, device='cpu', resume=True, progress=False, draw=False)
    [line] = run.metrics['resumed']
    assert line['changed']['hardware'][0] == 'a machine of then' and 'workers' not in line['changed']
    assert 'a machine of then → ' in changed_on_the_way(run.metrics)


@kinds
@pytest.mark.parametrize('name', ['schema2-finished', 'schema3-finished'])
def test_an_earlier_run_is_reported(name, capsys):
    cli._report(load_run(EARLIER/name))
    assert 'otherwise' not in capsys.readouterr().out


@kinds
@pytest.mark.parametrize('resumed', [7, {}, [7], [{}], [dict(at='now', epoch=1)], [dict(at='now', epoch=1, changed=[])], [dict(at='now', epoch=1, changed=dict(threads=2))], [dict(at='now', epoch=1, changed=dict(threads=[1]))]])
def test_lines_that_are_none(resumed, begun):
    write_json(begun/'run.json', {**read_json(begun/'run.json'), 'resumed': resumed})
    with pytest.raises(ValueError, match='its resumed cannot be') as e: resume(begun)
    assert '\n' not in str(e.value)


@kinds
def test_by_hand(tmp_path):
    "A training that is stepped in a notebook says it, too."
    def step_and_save():
        s = Stepper(Recipe(dataset='shapes10', width=2, epochs=2, batch_size=16, limit=64), tmp_path/'run', 'cpu')
        try: s.training.step(); s.save()
        finally: s.ask('close'); s.thread.join(60)
    step_and_save(); step_and_save()
    about = read_json(tmp_path/'run'/'run.json')
    assert [(line['epoch'], line['changed']) for line in about['resumed']] == [(.25, {})] and about['resumed_at'] == [.25]
