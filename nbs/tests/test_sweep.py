"A sweep: several at a time, stopped and gone on with; and the command for forty epochs, which is made of sweeps."
import json, re
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

import forty_epochs, levers, swept
from cifar_resnet import scale as scale_module
from cifar_resnet.cli import main, sweep_main
from cifar_resnet.evaluate import spread, wilson
from cifar_resnet.job import job, metrics_from_logits, report
from cifar_resnet.scale import sweep
from cifar_resnet.runs import read_json
from cifar_resnet.train import Recipe, load_run
from processes import finish, start, wait_for

TINY = dict(dataset='shapes10', width=2, epochs=2, limit=80, batch_size=40)


def numbers(found): return {(row['name'], row['seed']): (row['valid_accuracy'], row['valid_loss'], row['recipe_hash']) for row in found['runs']}


def test_two_at_a_time_find_what_one_finds(tmp_path):
    recipes = {'strict': TINY, 'mirrored': {**TINY, 'flip': 'random'}}
    one, two = (sweep(recipes, [0, 1], tmp_path/name, devices) for name, devices in (('one', ['cpu']), ('two', ['cpu', 'cpu'])))
    assert len(one['runs']) == 4 and numbers(one) == numbers(two)
    assert two == read_json(tmp_path/'two'/'sweep.json') and two['left'] == 0
    assert not any((tmp_path/'two').glob('*/checkpoints'))


def test_a_killed_sweep_goes_on(tmp_path):
    (tmp_path/'table.json').write_text(json.dumps({'strict': {**TINY, 'epochs': 25}}))
    argv = [str(tmp_path/'table.json'), '--seeds', '0,1', '--out', str(tmp_path/'sweep'), '--devices', 'cpu', '--save_every_s', '0']
    process = start(tmp_path/'log', sweep_main, argv)
    wait_for(lambda: any((tmp_path/'sweep'/'strict-0'/'checkpoints').glob('*.pt')), process)
    process.kill(); finish(process)
    process = start(tmp_path/'log', sweep_main, argv)
    wait_for(lambda: read_json(tmp_path/'sweep'/'strict-0'/'run.json')['resumed_at'], process)          # not from the beginning
    wait_for(lambda: any((tmp_path/'sweep'/'strict-1'/'checkpoints').glob('*.pt')), process)
    process.terminate()
    assert finish(process) == 130 and 'the same command goes on' in (tmp_path/'log').read_text()
    assert len(read_json(tmp_path/'sweep'/'sweep.json')['runs']) == 1
    assert sweep_main(argv) == 0
    whole = sweep({'strict': {**TINY, 'epochs': 25}}, [0, 1], tmp_path/'whole', ['cpu'])
    assert numbers(read_json(tmp_path/'sweep'/'sweep.json')) == numbers(whole)


def test_a_sweep_trains_nothing_twice(tmp_path, monkeypatch):
    sweep({'strict': TINY}, [0], tmp_path, ['cpu'])
    monkeypatch.setattr(scale_module, 'job', lambda *args, **kw: pytest.fail('trained again'))
    assert len(sweep({'strict': TINY}, [0], tmp_path, ['cpu'])['runs']) == 1


def test_the_test_set_is_opened_when_asked_for_and_once(tmp_path):
    shut = sweep({'strict': TINY}, [0], tmp_path, ['cpu'])['runs'][0]
    assert shut['test_reads'] == 0 and shut['test_accuracy'] is None and load_run(tmp_path/'strict-0').metrics['test_accuracy'] is None
    opened = sweep({'strict': TINY}, [0], tmp_path, ['cpu'], read_test=True)['runs'][0]
    assert opened['test_reads'] == 1 and opened['test_accuracy'] is not None and opened['valid_loss'] == shut['valid_loss']
    assert sweep({'strict': TINY}, [0], tmp_path, ['cpu'])['runs'] == [opened]                            # what was read is not forgotten


def test_damaged_results_are_refused(tmp_path):
    (tmp_path/'sweep.json').write_text('{"runs": [1]}')
    with pytest.raises(ValueError, match='sweep.json is damaged'): sweep({'strict': TINY}, [0], tmp_path, ['cpu'])


@pytest.mark.filterwarnings('ignore:PyTorch knows of no instructions')
def test_mixed_precisions_are_said(tmp_path):
    sweep({'strict': TINY}, [0], tmp_path, ['cpu'], precision='fp32')
    with pytest.warns(UserWarning, match='this sweep mixes precisions .float32: strict; bfloat16: wide'):
        sweep({'strict': TINY, 'wide': {**TINY, 'width': 3}}, [0], tmp_path, ['cpu'], precision='bf16')


def test_a_run_that_fails_is_told_and_no_run(tmp_path):
    found = sweep({'strict': TINY, 'wild': {**TINY, 'lr': 1e30}}, [0], tmp_path, ['cpu'])
    assert [row['name'] for row in found['runs']] == [row['name'] for row in found['table']] == ['strict']
    assert [row['name'] for row in found['failed']] == ['wild'] and 'no longer a finite number' in found['failed'][0]['error']


def test_views_are_tested_where_a_recipe_mirrors(tmp_path, capsys):
    argv = [str(word) for k, v in TINY.items() for word in (f'--{k}', v)]
    assert [main([*argv, '--recipe', recipe, '--out', str(tmp_path/recipe), '--device', 'cpu']) for recipe in ('best', 'strict')] == [0, 0]
    assert capsys.readouterr().out.count('mean over mirrored and shifted test images: ') == 1
    best, strict = (load_run(tmp_path/recipe).metrics for recipe in ('best', 'strict'))
    assert strict['test_accuracy_tta'] is None and 0 <= best['test_accuracy_tta'] <= 1
    stored = load_file(tmp_path/'best'/'logits.safetensors')
    labels = stored['test_labels']
    assert not torch.equal(stored['test'], stored['test_tta']) and stored['test'].shape == stored['test_tta'].shape
    right, wrong = (F.one_hot((labels + by) % 10, 10).float() for by in (0, 1))
    save_file({**stored, 'test': wrong, 'test_tta': right}, tmp_path/'best'/'logits.safetensors')
    assert (metrics_from_logits(tmp_path/'best')['test_accuracy'], metrics_from_logits(tmp_path/'best')['test_accuracy_tta']) == (0, 1)


def test_the_report_leaves_out_what_the_notes_doubt(tmp_path):
    run = job(TINY, tmp_path/'run', device='cpu', progress=False)
    logits, labels = (load_file(tmp_path/'run'/'logits.safetensors')[k] for k in ('test', 'test_labels'))
    wrong = (logits.argmax(1) != labels).nonzero()[:,0].numpy()
    found = report(run, dict(doubtful=wrong[:5], twins=wrong[5:]))['without']
    assert found['both']['accuracy'] == 1 and found['doubtful']['accuracy'] < 1 > found['twins']['accuracy']
    assert report(run)['without'] == {}
    hot = report(replaced(run, temperature=20.))
    assert hot['ece_before'] == report(run)['ece_before'] and hot['ece_after'] != hot['ece_before']


def replaced(run, **metrics): return SimpleNamespace(**{**vars(run), 'metrics': {**run.metrics, **metrics}})


SMALL = '--small --device cpu --only backend first search final five norms'.split()

def test_forty_epochs_in_pieces(tmp_path, monkeypatch):
    "In pieces of some seconds, the plan of the long run comes to the end that it comes to in one go."
    monkeypatch.setattr(forty_epochs, 'TINY', {**TINY, 'epochs': 3})
    monkeypatch.setattr(forty_epochs, 'SEARCH', {'strict': {'as-it-is': {}, 'lr': dict(lr=1e-2)}, 'best': {'as-it-is': {}}})
    monkeypatch.setattr(forty_epochs, 'in_turn', lambda loops, *a: {name: [dict(eager=2., rows=1.)[name]] for name in loops})   # the clock decides which backend is used, and backends differ in the last digit
    places = lambda name: [f'--{what}={tmp_path/name/what}' for what in ('work', 'results', 'weights')]
    assert forty_epochs.main([*SMALL, *places('whole')]) == 0
    codes = []
    while not codes or codes[-1] == 3: codes.append(forty_epochs.main([*SMALL, *places('pieces'), '--budget_s', '2']))
    assert codes[-1] == 0 and len(codes) > 1
    whole, pieces = (read_json(tmp_path/name/'results'/'forty_epochs.json') for name in ('whole', 'pieces'))
    assert whole['backend'] == pieces['backend'] == 'rows'
    assert numbers(whole['final']) == numbers(pieces['final']) and whole['chosen'] == pieces['chosen'] and len(whole['final']['runs']) == 4
    assert [row['test_reads'] for rows in whole['search'].values() for row in rows] == [1, 0, 0]           # the very first run is the only one that was looked at
    assert max(whole['search']['strict'], key=lambda row: row['valid_accuracy'])['name'] == whole['winners']['strict']
    assert whole['weights']['test_accuracy'] == pieces['weights']['test_accuracy'] and (tmp_path/'whole'/'weights'/'cifar10.safetensors').exists()
    assert [row['name'] for row in read_json(tmp_path/'whole'/'results'/'norms_cifar10.json')['table']] == ['layer', 'batch']


def test_small_results_are_kept_apart():
    with pytest.raises(SystemExit): forty_epochs.main(['--small'])


def test_levers_are_the_fields_that_differ():
    recipe = asdict(Recipe(recipe='best', plateau_factor=.25, strides='1,1,2,2', **levers.COMMON).filled())
    assert levers.flags(recipe) == '--recipe best --strides 1,1,2,2 --plateau_factor 0.25'
    assert levers.flags(asdict(Recipe(**levers.COMMON).filled())) == '(none)'
    for other in (dict(seed=1), dict(width=8)):
        with pytest.raises(ValueError, match='cannot be compared'): levers.flags({**recipe, **other})


# What a sweep says

def trust(what): return pytest.mark.trust('hard knocks', what)

LINE = re.compile(r'cifar_sweep: (\w+) seed (\d+) (\d+)/2 held out \d+\.\d%, loss \d+\.\d{3}, rate [\d.e-]+, \d+\.\d s')

@trust('a sweep shows each epoch of each run, in a line of its own')
@pytest.mark.parametrize('devices', ['cpu', 'cpu,cpu'])
def test_lines(devices, tmp_path, monkeypatch, capfd):
    if ',' in devices: monkeypatch.setattr(scale_module, 'START', 'fork'); monkeypatch.setattr(scale_module, '_work', swept.forked)
    (tmp_path/'table.json').write_text(json.dumps({'strict': TINY, 'mirrored': {**TINY, 'flip': 'random'}}))
    argv = [str(tmp_path/'table.json'), '--seeds', '0,1', '--out', str(tmp_path/'sweep'), '--devices', devices]
    assert sweep_main(argv) == 0
    out, err = capfd.readouterr()
    first, *lines = err.splitlines()
    assert first == f'cifar_sweep: 4 runs (2 recipes × 2 seeds), 0 of them done, in {tmp_path/"sweep"}; on {devices.replace(",", ", ")}'
    assert sorted(LINE.fullmatch(line).groups() for line in lines) == [(name, seed, epoch) for name in ('mirrored', 'strict') for seed in '01' for epoch in '12']
    assert all(len(line) < 80 for line in lines) and out.splitlines()[-1] == f'table: {tmp_path/"sweep"/"sweep.json"}'
    assert sweep_main([*argv[:2], '0,1,2', *argv[3:]]) == 0
    first, *lines = capfd.readouterr().err.splitlines()
    assert '6 runs (2 recipes × 3 seeds), 4 of them done' in first and len(lines) == 4

@trust('a sweep shows each epoch of each run, in a line of its own')
def test_failures_are_said_as_they_come(tmp_path):
    said = []
    sweep({'wild': {**TINY, 'lr': 1e30}, 'strict': TINY}, [0], tmp_path, ['cpu'], say=said.append)
    assert said[1].startswith('wild seed 0 failed: the loss is no longer a finite number') and said[2].startswith('strict seed 0 1/2')

@trust('equal runs make no sure mean')
def test_equal_runs(tmp_path, cases):
    "Two runs that agree to the last image: the interval is that of the images."
    cases(3)
    found = sweep({'strict': TINY}, [0, 1], tmp_path, ['cpu'], read_test=True)
    rows = found['runs']
    assert rows[0]['valid_images'] == 80 and rows[0]['test_images'] > 0
    for right in (0, 7, 80):
        same = [dict(row, valid_accuracy=right/80) for row in rows]
        summary = scale_module._summary('strict', same)['valid_accuracy']
        assert summary['sd'] == 0 and summary['ci95'] == pytest.approx(wilson(right, 80))
    old = [{k: v for k, v in row.items() if not k.endswith('_images')} for row in rows]                     # of a sweep of an earlier version
    assert scale_module._summary('strict', old)['valid_accuracy'] == spread([row['valid_accuracy'] for row in rows])

@trust('equal runs make no sure mean')
def test_the_interval_covers_new_seeds_and_new_images(cases):
    "Runs of true accuracies around .9, measured on the same 500 images, which are easier or harder for all of them."
    random, n, hits = np.random.default_rng(0), 500, []
    cases(400)
    for _ in range(400):
        hard, skill = random.random(n), random.normal(.9, .01, 3)
        found = spread([(hard < s).mean() for s in skill], n)['ci95']
        hits.append(found[0] <= .9 <= found[1])
    assert np.mean(hits) > .93
    assert all(0 <= end <= 1 for end in spread([1., .5], 4)['ci95'])
