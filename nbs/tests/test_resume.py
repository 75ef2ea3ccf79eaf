"""Stopped anywhere and resumed, a run ends with the very bits of one that was never stopped: weights, moments, scheduler, rates, history.

Every test is run twice: in float32, and in bfloat16, where a resumed run finds its precision in the checkpoint.
"""
import os, signal
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from cifar_resnet import runs, train
from cifar_resnet.data import shapes10
from cifar_resnet.runs import load_checkpoint, save_checkpoint
from cifar_resnet.train import Recipe, Training

DATA = shapes10(n_train=200)[0]
# Three batches an epoch. Nothing improves by half, so the plateau strikes after epochs 2 and 4, with a cooldown between.
RECIPE = Recipe(dataset='shapes10', width=4, epochs=6, batch_size=20, limit=60, filters='free', plateau_factor=.5, plateau_patience=0, plateau_threshold=.5, plateau_cooldown=1, plateau_start=99)
DROPS = [1e-3]*2 + [5e-4]*2 + [2.5e-4]*2
BATCHES = 3*RECIPE.epochs


@pytest.fixture(params=['fp32', 'bf16'])
def how(request):
    "How a run begins. (Where bfloat16 is only emulated the bits are those of the emulation.)"
    return dict(device='cpu', precision=request.param)


def bits(x):
    "Anything, as something that == compares to the bit; seconds are left out."
    if isinstance(x, dict): return {k: bits(v) for k, v in x.items() if k != 'seconds'}
    if isinstance(x, (list, tuple)): return [bits(v) for v in x]
    return (x.dtype, x.shape, x.contiguous().cpu().numpy().tobytes()) if isinstance(x, torch.Tensor) else x


def end(training):
    "All that a run ends with."
    for _ in training: pass
    return bits(dict(history=training.history, best=training.best, **{part: getattr(training, part).state_dict() for part in train.PARTS}))


_whole = {}
def whole(how, recipe=RECIPE, **kw):
    "What the uninterrupted run ends with."
    key = (recipe, *how.items(), *kw.items())
    if key not in _whole: _whole[key] = end(Training(recipe, DATA, **how, **kw))
    return _whole[key]


def test_the_run_has_what_the_stop_points_need(how):
    assert [row['lr'] for row in whole(how)['history']] == DROPS
    assert whole(how)['best']['epoch'] == 3
    assert whole(how) == end(Training(RECIPE, DATA, **how))


# 1. After a batch

@pytest.mark.trust('stop points', 'after a batch (every one of a run)')
@pytest.mark.parametrize('done', range(1, BATCHES + 1))
def test_after_batch(done, tmp_path, how):
    stopped = Training(RECIPE, DATA, tmp_path, **how)
    for _ in range(done): stopped.step()
    stopped.save()
    assert end(Training.resume(tmp_path, DATA, device='cpu')) == whole(how)


@pytest.mark.trust('stop points', 'several times in a row')
@pytest.mark.parametrize('stops', [(2, 5, 11), (3, 6, 9), (7, 8, 9), range(1, BATCHES)], ids=['scattered', 'between epochs', 'three batches running', 'every batch'])
def test_several_times(stops, tmp_path, how):
    training, done = Training(RECIPE, DATA, tmp_path, **how), 0
    for stop in stops:
        for _ in range(stop - done): training.step()
        training.save()
        training, done = Training.resume(tmp_path, DATA, device='cpu'), stop
    assert end(training) == whole(how)


# 2. In the middle of something: the last checkpoint is older, and what came after it is done again

class Crash(BaseException): "Stands for a process that is gone."


@contextmanager
def crash(monkeypatch, owner, name, when, after=False):
    "The call number `when` (from 1) of `owner.name` crashes, before or after it has done its work; and it must come to that."
    calls, usual = [], getattr(owner, name)
    def deadly(*args, **kw):
        calls.append(1)
        if len(calls) == when and not after: raise Crash
        result = usual(*args, **kw)
        if len(calls) == when: raise Crash
        return result
    with monkeypatch.context() as m:
        m.setattr(owner, name, deadly)
        with pytest.raises(Crash): yield
    assert len(calls) == when


# Epoch 1 is the one before a drop, 2 has the drop, 3 the cooldown and the best weights, 4 another drop and comes after the best, 6 is the last.
@pytest.mark.trust('stop points', 'in validation, and around the scheduler\'s step, in every epoch')
@pytest.mark.parametrize('epoch', range(1, RECIPE.epochs + 1))
@pytest.mark.parametrize('place', ['before validation', 'after validation', "before the scheduler's step", "after the scheduler's step", 'before the next epoch opens'])
def test_while_an_epoch_closes(place, epoch, tmp_path, monkeypatch, how):
    training = Training(RECIPE, DATA, tmp_path, **how, save_every_s=0)
    owner, name = dict(validation=(train, 'predict'), step=(train.ReduceLROnPlateau, 'step'), opens=(Training, 'open_epoch'))[place.split()[-1]]
    with crash(monkeypatch, owner, name, epoch, after=place.startswith('after')):
        for _ in training: pass
    assert end(Training.resume(tmp_path, DATA, device='cpu')) == whole(how)


@pytest.mark.trust('stop points', 'inside a batch')
@pytest.mark.parametrize('batch', [2, 7, 12])
@pytest.mark.parametrize('place', ['forward pass', 'before the optimiser', 'after the optimiser'])
def test_inside_a_batch(place, batch, tmp_path, monkeypatch, how):
    training = Training(RECIPE, DATA, tmp_path, **how, save_every_s=0)
    owner, name = (train.F, 'cross_entropy') if place == 'forward pass' else (training.opt, 'step')
    when = batch + (batch - 1)//3 if place == 'forward pass' else batch              # validation calls it once an epoch, too
    with crash(monkeypatch, owner, name, when, after=place.startswith('after')):
        for _ in training: pass
    assert end(Training.resume(tmp_path, DATA, device='cpu')) == whole(how)


@pytest.mark.trust('stop points', 'inside a save')
@pytest.mark.parametrize('when', [3, 4, 9, 10], ids=['at a hash', 'at a checkpoint', 'at a later hash', 'at a later checkpoint'])
@pytest.mark.parametrize('after', [False, True], ids=['before the rename', 'after it'])
def test_inside_a_save(when, after, tmp_path, monkeypatch, how):
    training = Training(RECIPE, DATA, tmp_path, **how, save_every_s=0)
    with crash(monkeypatch, runs.os, 'replace', when, after):
        for _ in training: pass
    assert end(Training.resume(tmp_path, DATA, device='cpu')) == whole(how)


# 3. By a signal

@pytest.mark.trust('stop points', 'by SIGINT or SIGTERM')
@pytest.mark.parametrize('signal_', [signal.SIGINT, signal.SIGTERM], ids=['SIGINT', 'SIGTERM'])
@pytest.mark.parametrize('place', ['in a batch', 'in validation', "in the scheduler's step"])
def test_by_a_signal(signal_, place, tmp_path, monkeypatch, how):
    training, fired = Training(RECIPE, DATA, tmp_path, **how), []
    owner, name = {'in a batch': (Training, 'learn'), 'in validation': (train, 'predict'), "in the scheduler's step": (train.ReduceLROnPlateau, 'step')}[place]
    usual = getattr(owner, name)
    def signalled(*args, **kw):
        fired.append(1)
        if len(fired) == 4: os.kill(os.getpid(), signal_)
        return usual(*args, **kw)
    with monkeypatch.context() as m:
        m.setattr(owner, name, signalled)
        with pytest.raises(KeyboardInterrupt, match='stopped'):
            for _ in training: pass
    assert len(fired) == 4
    assert end(Training.resume(tmp_path, DATA, device='cpu')) == whole(how)


@pytest.mark.trust('stop points', 'by a budget of seconds')
def test_by_a_budget(tmp_path, how):
    training = Training(RECIPE, DATA, tmp_path, **how, budget_s=1e-3)
    with pytest.raises(KeyboardInterrupt, match='stopped in epoch 1 after batch 1'):
        for _ in training: pass
    assert end(Training.resume(tmp_path, DATA, device='cpu')) == whole(how)


# 4. Other ways to train, and a damaged newest checkpoint

@pytest.mark.trust('stop points', 'augmentation by albumentations, with other numbers of workers before and after')
@pytest.mark.parametrize('before, after', [(0, 0), (0, 1), (1, 2), (2, 0)])
def test_albumentations(before, after, tmp_path, how):
    recipe = replace(RECIPE, epochs=2)
    stopped = Training(recipe, DATA, tmp_path, **how, workers=before)
    for _ in range(4): stopped.step()
    stopped.save()
    assert end(Training.resume(tmp_path, DATA, device='cpu', workers=after)) == whole(how, recipe, workers=0)


@pytest.mark.trust('stop points', 'every norm')
@pytest.mark.parametrize('norm', ['batch', 'group8', 'instance', 'pixel', 'none'])
def test_norms(norm, tmp_path, how):
    recipe = replace(RECIPE, norm=norm, width=8, epochs=3)
    stopped = Training(recipe, DATA, tmp_path, **how)
    for _ in range(4): stopped.step()
    stopped.save()
    assert end(Training.resume(tmp_path, DATA, device='cpu')) == whole(how, recipe)


@pytest.mark.trust('stop points', 'what other recipes add: mirror, warm-up, a rate that falls in a line, clipping, averages, optimisers, zero-mean filters')
@pytest.mark.parametrize('done', [1, 4, 5, 9])
@pytest.mark.parametrize('fields', [dict(recipe='best'), dict(recipe='best', schedule='plateau', filters='free', plateau_start=99), dict(optimiser='muon', filters='zero_mean', schedule='linear'), dict(optimiser='sgd', lr=.1, flip='random', clip=.5, average=.7, warmup=1.5), dict(norm='batch', average=.1)], ids=['best', 'best on a plateau', 'muon', 'sgd', 'batch'])
def test_other_recipes(fields, done, tmp_path, how):
    recipe = replace(RECIPE, width=8, epochs=4, **fields)
    stopped = Training(recipe, DATA, tmp_path, **how)
    for _ in range(done): stopped.step()
    stopped.save()
    assert end(Training.resume(tmp_path, DATA, device='cpu')) == whole(how, recipe)


@pytest.mark.trust('stop points', 'the newest checkpoint damaged: one further back')
def test_from_the_one_before(tmp_path, how):
    stopped = Training(RECIPE, DATA, tmp_path, **how)
    for _ in range(8):
        stopped.step(); stopped.save()
    newest = max((tmp_path/'checkpoints').glob('*.pt'))
    newest.write_bytes(newest.read_bytes()[:-1])
    with pytest.warns(UserWarning, match='going back to 000000007.pt'): resumed = Training.resume(tmp_path, DATA, device='cpu')
    assert end(resumed) == whole(how)


@pytest.mark.trust('stop points', 'in float16, with a scaler that skips steps')
@pytest.mark.parametrize('done', [1, 4])
@pytest.mark.parametrize('fields', [{}, dict(recipe='best', clip=.5)], ids=['strict', 'best'])
def test_scaler(fields, done, tmp_path):
    recipe, how = replace(RECIPE, epochs=2, **fields), dict(device='cpu', precision='fp16')
    stopped, whole = Training(recipe, DATA, tmp_path, **how), Training(recipe, DATA, **how)
    for t in (stopped, whole): t.scaler.load_state_dict({**t.scaler.state_dict(), 'scale': 2.**40})       # so large that the first steps overflow, and are skipped
    for _ in range(done): stopped.step()
    stopped.save()
    assert end(Training.resume(tmp_path, DATA, device='cpu')) == end(whole)
    assert whole.scaler.get_scale() < 2.**40


@pytest.mark.trust('stop points', 'a rate that falls in a line, changed by hand before')
@pytest.mark.parametrize('done', [1, 4, 6, 8, 11])
def test_changed_line(done, tmp_path, how):
    recipe = replace(RECIPE, schedule='linear', warmup=1, epochs=4)
    edits = {2: ('lr', 5e-4), 5: ('lr', 2e-3), 7: ('epochs', 5)}
    def go_on(training, until):
        while training.steps < until:
            if training.steps in edits and len(training.edits) == [*edits].index(training.steps): training.edit(*edits[training.steps])
            training.step()
        return training
    undisturbed = go_on(Training(recipe, DATA, **how), 15)
    stopped = go_on(Training(recipe, DATA, tmp_path, **how), done)
    stopped.save()
    resumed = go_on(Training.resume(tmp_path, DATA, device='cpu'), 15)
    assert len(resumed.edits) == 3 and end(resumed) == end(undisturbed)


# 5. Negative controls: leave one piece of the state out, and the comparison must see it

def _no_moments(s): s['opt']['state'] = {i: {k: torch.zeros_like(v) for k, v in p.items()} for i, p in s['opt']['state'].items()}
def _first_rate(s): s['opt']['param_groups'][0]['lr'] = 1e-3
def _fresh_plateau(s): s['plateau'] = Training(RECIPE, DATA, device='cpu').plateau.state_dict()
def _no_cooldown(s): s['plateau']['cooldown_counter'] = 0
def _no_best(s): s['best']['valid_loss'] = 1e9
def _epoch_again(s): s.update(at=0, losses=s['losses'][:0], right=0)
def _losses_gone(s): s['losses'] = torch.zeros_like(s['losses'])
def _right_gone(s): s['right'] = 0
def _history_gone(s): s['history'][0] = dict(s['history'][1], epoch=1)
def _no_average(s): s['averaged'] = s['model']
def _other_precision(s): s['precision'] = {'float32': 'bfloat16', 'bfloat16': 'float32'}[s['precision']]
def _another_seed(s): s['recipe'] = {**s['recipe'], 'seed': 1}


@pytest.mark.trust('negative controls', 'a piece of the state left out, and seen')
@pytest.mark.parametrize('forget', [_no_moments, _first_rate, _fresh_plateau, _no_cooldown, _no_best, _epoch_again, _losses_gone, _right_gone, _history_gone, _another_seed, _no_average, _other_precision])
def test_negative_control(forget, tmp_path, how):
    recipe = replace(RECIPE, average=1) if forget is _no_average else RECIPE
    stopped = Training(recipe, DATA, tmp_path/'good', **how)
    place = 3*whole(how)['best']['epoch'] + 1 if forget is _no_best else 8         # after the best epoch; or in the cooldown that follows the first drop
    for _ in range(place): stopped.step()
    stopped.save()
    state = load_checkpoint(tmp_path/'good'/'checkpoints')
    forget(state)
    (tmp_path/'bad').mkdir()
    save_checkpoint(tmp_path/'bad'/'checkpoints', state, place)
    assert end(Training.resume(tmp_path/'bad', DATA, device='cpu')) != whole(how, recipe)
