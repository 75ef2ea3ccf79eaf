"Trained weights to begin from: what is kept, what is new, what is written down, and which files are none."
import json, math, shutil, warnings
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save, save_file
from torch import nn

from cifar_resnet import cli, model as module
from cifar_resnet.core import seeded
from cifar_resnet.data import Images, mean_std, shapes10
from cifar_resnet.job import job, run_folder
from cifar_resnet.model import METADATA, load_weights, resnet18, weights_file, weights_metadata, weights_path
from cifar_resnet.recipe import Recipe, saved_recipe
from cifar_resnet.runs import save_checkpoint
from cifar_resnet.scale import sweep
from cifar_resnet.train import Pretrained, Training, first_model, load_run, read_pretrained, with_weights

TRAIN, TEST = shapes10(n_train=200, n_test=40)
SMALL = Recipe(dataset='shapes10', width=2, epochs=2, batch_size=20, limit=60)
NEXT = replace(SMALL, width=None, seed=1)                    # the width is that of the file
MEAN, STD = (.1, .2, .3), (.4, .5, .6)


def only(data, names):
    "The pictures of some classes, numbered in this order."
    new = {data.classes.index(name): i for i, name in enumerate(names)}
    which = np.flatnonzero(np.isin(data.labels, list(new)))
    return Images(data.images[which], np.array([new[c] for c in data.labels[which].tolist()]), tuple(names))


def written(path, width=2, classes=TRAIN.classes, change=lambda model: None, **about):
    "A file of weights."
    with seeded('a trained network', 0): model = resnet18(width=width, num_classes=len(classes))
    module.centre_filters(model)
    change(model)
    return planted(path, model, **{**dict(classes=list(classes), mean=MEAN, std=STD), **about})


def planted(path, model=None, **about):
    "A file of weights as they are written, also where `weights_file` would refuse to."
    model = model or resnet18(width=2)
    path.write_bytes(save(model.state_dict(), {METADATA: json.dumps({**model.config, **about})}))
    return path


@pytest.fixture
def file(tmp_path): return written(tmp_path/'weights.safetensors')


@pytest.fixture(scope='module')
def parent(tmp_path_factory):
    "A finished run."
    return job(SMALL, tmp_path_factory.mktemp('parent')/'run', device='cpu', progress=False, draw=False, data=(TRAIN, TEST))


def quick(recipe, out, **kw): return job(recipe, out, device='cpu', progress=False, draw=False, data=(TRAIN, TEST), **kw)


def equal(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def alike(a, b):
    "Up to the rounding of a projection that changes nothing."
    return a.keys() == b.keys() and all(torch.allclose(a[k], b[k], atol=1e-6) for k in a)


# what a training begins with

def test_the_same_classes_keep_the_head(file):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        t = Training(NEXT, TRAIN, device='cpu', weights=file)
    assert alike(t.model.state_dict(), load_weights(file).state_dict()) and t.head == 'kept'
    assert (t.mean, t.std) == (MEAN, STD) != mean_std(TRAIN.images)
    assert (t.recipe.width, t.recipe.weights) == (2, read_pretrained(file).sha256)


@pytest.mark.parametrize('names', [TRAIN.classes[:3], TRAIN.classes[::-1], TRAIN.classes[1:] + ('disc',)],
                         ids=['fewer', 'another order', 'one moved'])
def test_other_classes_get_the_head_that_the_seed_draws(file, names):
    data = only(TRAIN, names)
    recipe = replace(NEXT, limit=None)
    with pytest.warns(UserWarning, match='the head is new, drawn by seed 1, since .* knows other classes'):
        t = Training(recipe, data, device='cpu', weights=file)
    trained, drawn = load_weights(file).state_dict(), Training(replace(recipe, width=2), data, device='cpu').model.state_dict()
    assert t.head == 'new' and t.model.config['num_classes'] == len(names)
    for k, v in t.model.state_dict().items(): assert torch.allclose(v, drawn[k] if k.startswith('head.') else trained[k], atol=1e-6), k


def test_drawn_weights_are_as_before():
    t = Training(SMALL, TRAIN, device='cpu')
    with seeded('init', 0): model = first_model(t.recipe, 10)
    assert equal(t.model.state_dict(), model.state_dict()) and (t.head, t.recipe.weights) == (None, None)


def test_zero_mean_filters_are_projected_after_loading_and_said(tmp_path):
    def lift(model):
        for p in model.parameters():
            if p.ndim == 4: p.data += .1
    path = written(tmp_path/'free.safetensors', change=lift)
    with pytest.warns(UserWarning, match='--filters free keeps it'): t = Training(NEXT, TRAIN, device='cpu', weights=path)
    assert all(m.weight.mean((1,2,3)).abs().max() < 1e-6 for m in t.model.modules() if isinstance(m, nn.Conv2d))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        free = Training(replace(NEXT, filters='free'), TRAIN, device='cpu', weights=path)
    assert equal(free.model.state_dict(), load_weights(path).state_dict())


def test_an_average_begins_with_the_trained_weights(file):
    t = Training(replace(NEXT, average=1), TRAIN, device='cpu', weights=file)
    assert t.averaged is not t.model and alike(t.averaged.state_dict(), load_weights(file).state_dict())


def test_half_precision_and_the_statistics_of_batchnorm(tmp_path):
    with seeded('batch', 0): model = resnet18('batch', width=2)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d): m.running_mean += 1
    (tmp_path/'half.safetensors').write_bytes(weights_file(model.half(), classes=list(TRAIN.classes), mean=MEAN, std=STD))
    t = Training(replace(NEXT, filters='free'), TRAIN, device='cpu', weights=tmp_path/'half.safetensors')
    assert t.recipe.norm == 'batch' and t.model.stem[1].running_mean.min() == 1
    assert all(p.dtype == torch.float32 for p in t.model.parameters())


@pytest.mark.parametrize('typed, words', [
    (dict(width=4), 'has width 2, not 4: leave width out'),
    (dict(strides=(1,1,2,2)), r'has strides \(1, 2, 2, 2\), not \(1, 1, 2, 2\): leave strides out'),
    (dict(norm='batch'), 'has norm layer, not batch: leave norm out'),
    (dict(last_gain=0), 'last_gain is the first gain of weights that are drawn'),
    (dict(weights='0'*64), 'begins from weights with the SHA-256 000000000000…, not'),
])
def test_what_is_typed_must_fit(file, typed, words):
    with pytest.raises(ValueError, match=words): Training(replace(NEXT, **typed), TRAIN, device='cpu', weights=file)
    with pytest.raises(ValueError, match=words): job({'dataset': 'shapes10', **typed}, file.parent/'out', weights=file, device='cpu')
    assert not (file.parent/'out').exists()


@pytest.mark.parametrize('typed', [dict(width=2), dict(strides=(1,2,2,2)), dict(norm='layer'), dict(last_gain=1)])
def test_what_is_typed_and_fits(file, typed):
    assert with_weights(replace(NEXT, **typed), read_pretrained(file)).width == 2


# files that are none

def with_nan(path):
    weights, about = load_file(path), weights_metadata(path)
    weights['head.bias'][0] = math.nan
    path.write_bytes(save(weights, {k: json.dumps(v) for k, v in about.items()}))


@pytest.mark.parametrize('damage, words', [
    (lambda p: p.write_bytes(p.read_bytes()[:-9]), 'does not hold the weights of one of our models'),
    (lambda p: p.write_bytes(b''), 'does not hold the weights of one of our models'),
    (lambda p: p.write_text('{"a": 1}'), 'does not hold the weights of one of our models'),
    (lambda p: torch.save(resnet18(width=2).state_dict(), p), 'does not hold the weights of one of our models'),
    (lambda p: save_file({'a': torch.zeros(1)}, p), 'another program wrote it: it does not say norm'),
    (lambda p: save_file({'a': torch.zeros(1)}, p, {'format': 'pt'}), 'another program wrote it: it does not say norm'),
    (with_nan, 'not all are finite numbers'),
    (lambda p: planted(p, width=2.5), 'width must be a whole number'),
    (lambda p: p.write_bytes(weights_file(resnet18(width=2))), 'does not say its classes'),
    (lambda p: p.write_bytes(weights_file(resnet18(width=2), classes=list(TRAIN.classes))), 'does not say its mean'),
    (lambda p: written(p, classes=TRAIN.classes[:4] + (5,)), 'its classes are not 5 names'),
    (lambda p: planted(p, classes=['a', 'b'], mean=MEAN, std=STD), 'its classes are not 10 names'),
    (lambda p: planted(p, classes='abcdefghij', mean=MEAN, std=STD), 'its classes are not 10 names'),
    (lambda p: written(p, mean=[.5, .5]), 'mean and std must be three numbers between 0 and 1'),
    (lambda p: written(p, std=[63., 62., 67.]), 'mean and std must be three numbers between 0 and 1'),
    (lambda p: written(p, std=None), 'mean and std must be three numbers between 0 and 1'),
    (lambda p: (p.unlink(), p.mkdir()), 'there is no file .*weights.safetensors: give the weights.safetensors of a run'),
    (lambda p: p.unlink(), 'there is no file'),
])
def test_a_file_that_is_none(file, damage, words):
    damage(file)
    for begin in (read_pretrained, lambda f: Training(NEXT, TRAIN, device='cpu', weights=f), lambda f: quick(NEXT, file.parent/'out', weights=f)):
        with pytest.raises((ValueError, OSError), match=words) as e: begin(file)
        assert '\n' not in str(e.value)
    assert not (file.parent/'out').exists()


@pytest.mark.parametrize('what', [None, 3, {}, [], b'x', resnet18(width=1).state_dict(), resnet18(width=1)], ids=lambda v: type(v).__name__)
def test_what_is_no_path(what):
    with pytest.raises(ValueError, match='weights are a file or a run folder, not [a-zN3]'): weights_path(what)
    with pytest.raises(ValueError, match='weights are a file or a run folder'): load_weights(what)


def test_what_comes_with_the_package(file, monkeypatch):
    monkeypatch.setattr(module, 'WEIGHTS', file.parent)
    with pytest.raises(FileNotFoundError, match='no trained weights come with this version'): read_pretrained('pretrained')
    file.rename(file.with_name('cifar10.safetensors'))
    assert read_pretrained('pretrained').path == file.with_name('cifar10.safetensors')


# the run

def test_the_folder_of_a_run_will_do_and_all_is_written_down(parent, tmp_path):
    run = quick(NEXT, tmp_path/'next', weights=parent.folder)
    assert run.recipe.weights == read_pretrained(parent.folder/'weights.safetensors').sha256
    m = run.metrics
    assert (m['mean'], m['std'], m['head']) == (parent.metrics['mean'], parent.metrics['std'], 'kept')
    assert weights_metadata(run.folder/'weights.safetensors')['mean'] == m['mean']
    assert parent.metrics['head'] is None and not any(str(parent.folder) in p.read_text() for p in run.folder.glob('*.json'))
    shutil.copy(parent.folder/'weights.safetensors', tmp_path/'moved.safetensors')
    assert quick(NEXT, tmp_path/'next', weights=tmp_path/'moved.safetensors').metrics == m         # finished: only loaded


def test_the_mean_of_the_file_reaches_the_results(tmp_path):
    "The held-out accuracy in run.json is that of the weights, fed with the mean of the file."
    run = quick(NEXT, tmp_path/'run', weights=written(tmp_path/'w.safetensors'))
    best = min(run.history, key=lambda row: row['valid_loss'])
    assert run.metrics['mean'] == list(MEAN) and run.metrics['valid_loss'] == pytest.approx(best['valid_loss'], abs=1e-5)


def test_it_never_shares_a_folder_with_a_run_from_scratch(file):
    scratch = replace(SMALL, seed=1).filled()
    tuned = with_weights(NEXT, read_pretrained(file)).filled()
    assert replace(tuned, weights=None) == scratch and run_folder(tuned) != run_folder(scratch)
    assert tuned.hash() != replace(tuned, weights='0'*64).hash()


def test_an_earlier_recipe_has_its_hash():
    before = {k: v for k, v in asdict(SMALL.filled()).items() if k != 'weights'}
    assert saved_recipe(before) == SMALL.filled() and saved_recipe(before).hash() == SMALL.filled().hash() == '6e009d93'


@pytest.mark.parametrize('value', ['', 'x', '0'*63, 'A'*64, 3, True, '/home/weights.safetensors'])
def test_a_hash_is_a_hash(value):
    with pytest.raises(ValueError, match='weights must be the SHA-256 of a file'): Recipe(weights=value)


def stopped(out, file, **kw):
    with pytest.raises(KeyboardInterrupt): quick(NEXT, out, weights=file, budget_s=1e-9, **kw)
    return out


def test_it_goes_on_without_the_file_to_the_bit(file, tmp_path):
    whole = quick(NEXT, tmp_path/'whole', weights=file)
    cut, kept = stopped(tmp_path/'cut', file), file.read_bytes()
    file.unlink()
    run = quick(dict(dataset='shapes10'), cut, resume=True)
    assert equal(run.model.state_dict(), whole.model.state_dict())
    for k in ('mean', 'std', 'head', 'recipe', 'valid_loss', 'test_loss'): assert run.metrics[k] == whole.metrics[k]
    assert [row['train_loss'] for row in run.history] == [row['train_loss'] for row in whole.history]
    file.write_bytes(kept)


@pytest.mark.parametrize('names', [TRAIN.classes, TRAIN.classes[:4]], ids=['head kept', 'head new'])
@pytest.mark.parametrize('average', [0, 1])
@pytest.mark.filterwarnings('ignore:the head is new')
def test_stopped_anywhere(file, tmp_path, names, average):
    data, recipe = only(TRAIN, names), replace(NEXT, average=average, limit=None, batch_size=40)
    def end(t):
        for _ in t: pass
        return {**t.model.state_dict(), **{f'averaged {k}': v for k, v in t.averaged.state_dict().items()}}
    whole = end(Training(recipe, data, device='cpu', weights=file))
    for done in range(1, 5):
        t = Training(recipe, data, tmp_path/str(done), 'cpu', weights=file)
        for _ in range(done): t.step()
        t.save()
        again = Training.resume(tmp_path/str(done), data, 'cpu')
        assert (again.mean, again.std) == (MEAN, STD) and equal(end(again), whole)


def test_going_on_with_other_weights(file, tmp_path):
    cut, other = stopped(tmp_path/'cut', file), written(tmp_path/'other.safetensors', mean=(.2,)*3)
    with pytest.raises(ValueError, match='holds a run with weights .*…, not .*…: leave --weights out'): quick(NEXT, cut, resume=True, weights=other)
    with pytest.raises(ValueError, match='it began from weights with .*, not from'): Training.resume(cut, TRAIN, 'cpu', weights=other)
    with pytest.raises(ValueError, match='holds a run with weights .*…, not None: add --weights FILE'): quick(NEXT, cut)
    Training.resume(cut, TRAIN, 'cpu', weights=file)
    assert quick(NEXT, cut, resume=True, weights=file).metrics['finished']


def test_a_run_from_scratch_is_not_gone_on_with_by_weights(file, tmp_path):
    with pytest.raises(KeyboardInterrupt): quick(replace(SMALL, seed=1), tmp_path/'run', budget_s=1e-9)
    with pytest.raises(ValueError, match='holds a run with weights None, not .*…: leave --weights out'): quick(NEXT, tmp_path/'run', resume=True, weights=file)
    with pytest.raises(ValueError, match='it began from drawn weights, not from'): Training.resume(tmp_path/'run', TRAIN, 'cpu', weights=file)


def test_a_hash_alone_begins_nothing(file):
    recipe = with_weights(NEXT, read_pretrained(file))
    for begin in (lambda: Training(recipe, TRAIN, device='cpu'), lambda: quick(recipe, file.parent/'out')):
        with pytest.raises(ValueError, match='begins from trained weights .*: give their file'): begin()
    assert not (file.parent/'out').exists()


def test_a_run_that_lost_its_checkpoints_needs_the_file_again(file, tmp_path):
    cut = stopped(tmp_path/'cut', file)
    shutil.rmtree(cut/'checkpoints')
    with pytest.raises(ValueError, match='give their file'): quick(NEXT, cut, resume=True)
    assert quick(NEXT, cut, resume=True, weights=file).metrics['finished']


@pytest.mark.parametrize('mean', [None, (.5, .5), (math.nan,)*3, (.5, .5, 2.)])
def test_a_checkpoint_without_a_sound_mean(file, tmp_path, mean):
    t = Training(NEXT, TRAIN, tmp_path, 'cpu', weights=file)
    t.step()
    save_checkpoint(tmp_path/'checkpoints', {**t.state(), 'mean': mean}, 1)
    with pytest.raises(ValueError, match='the checkpoint in .* does not fit: mean and std must be three'): Training.resume(tmp_path, TRAIN, 'cpu')


# the command

def command(*words): return cli.main([*map(str, words), '--device', 'cpu'])


def test_the_command(parent, tmp_path, capsys):
    flags = '--dataset', 'shapes10', '--epochs', 1, '--limit', 40, '--batch_size', 20, '--out', tmp_path/'run'
    assert command(*flags, '--weights', parent.folder) == 0
    assert load_run(tmp_path/'run').recipe.weights and load_run(tmp_path/'run').recipe.width == 2
    assert command(*flags, '--weights', parent.folder, '--width', 4) == 2
    assert 'has width 2, not 4: leave width out' in capsys.readouterr().err
    assert command(*flags) == 2 and 'add --weights FILE' in capsys.readouterr().err
    assert command(*flags, '--weights', tmp_path/'none') == 2
    said = capsys.readouterr().err
    assert said.count('\n') == 1 and 'there is no file' in said


def test_a_sweep(parent, tmp_path):
    rows = dict(short=dict(dataset='shapes10', epochs=1, limit=40, batch_size=20), long=dict(dataset='shapes10', epochs=2, limit=40, batch_size=20))
    done = sweep(rows, [0], tmp_path, ['cpu'], weights=parent.folder)
    assert [row['recipe']['weights'] for row in done['runs']] == [read_pretrained(parent.folder).sha256]*2 and not done['failed']
    assert sweep(rows, [0], tmp_path, ['cpu'], weights=parent.folder) == done
    with pytest.raises(ValueError, match='holds results of .* with another recipe'): sweep(rows, [0], tmp_path, ['cpu'])
    wide = sweep(dict(wide=dict(rows['short'], width=4)), [0], tmp_path/'wide', ['cpu'], weights=parent.folder)
    assert 'has width 2, not 4: leave width out' in wide['failed'][0]['error']
