"What a recipe asks of the engine, it does: order, pictures, rates, averages, projections, gradients, checkpoints."
import math, tempfile
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from fastcore.test import test_close as close
from torch.optim import SGD, Adam, AdamW

from cifar_resnet.augment import augment, draws
from cifar_resnet.core import rng, seeded
from cifar_resnet.data import shapes10
from cifar_resnet.evaluate import predict
from cifar_resnet.model import resnet18
from cifar_resnet.runs import write_json
from cifar_resnet.train import (FilterMuon, Recipe, Training, as_matrix, first_model, load_run, read_about, with_backend)

TRAIN, TEST = shapes10()
TINY = Recipe(dataset='shapes10', width=8, epochs=3, batch_size=64, limit=320)


def training(**fields): return Training(replace(TINY, **fields), TRAIN, device='cpu')


@pytest.mark.parametrize('seed, epoch', [(0,0), (0,1), (1,0)])
def test_order_and_pictures_are_those_of_seed_and_epoch(seed, epoch):
    t = training(seed=seed, batch_size=320)
    t.epoch = epoch; t.open_epoch()
    x, y = t.next_batch()
    order = rng('order', seed, epoch).permutation(320)
    drawn = torch.from_numpy(draws(320, seed, epoch)[order])
    assert torch.equal(y, t.labels[order]) and torch.equal(x, augment(t.images[order], drawn, t.mean, t.std))
    with seeded('init', seed): assert torch.equal(t.model.head.weight, resnet18(width=8).head.weight)
    assert t.opt.param_groups[0]['weight_decay'] == 1e-4 and t.batch[0] is x


def test_the_first_loss_is_that_of_a_guess():
    t = training()
    losses = torch.stack([t.step() for _ in range(5)])
    assert abs(losses[0] - math.log(10)) < .2


def test_first_model():
    x = torch.rand(2,8,5,5)
    assert torch.equal(first_model(Recipe(width=8, last_gain=0).filled(), 10).stages[0][1](x), x)     # a block that begins as its shortcut
    with pytest.raises(ValueError, match='choose eager, rows, compile, graph'): with_backend(None, 'warp')
    assert [type(with_backend(resnet18(width=2), name).stem[1]).__name__ for name in ('eager', 'rows')] == ['LayerNorm', 'RowNorm']


@pytest.mark.parametrize('memory', [torch.channels_last, torch.contiguous_format])
def test_muon(memory):
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(4, 8, 3).to(memory_format=memory)
    old, opt = layer.weight.detach().clone(), FilterMuon(layer.parameters(), lr=.1, weight_decay=0)
    assert opt.matrices[0].data_ptr() == layer.weight.data_ptr()           # one memory
    layer(torch.randn(2,4,5,5)).square().sum().backward()
    opt.step()
    moved = as_matrix(old - layer.weight)
    s = torch.linalg.svdvals(moved)
    assert s.min() > .5*s.max()                                            # nearly orthogonal ...
    close(moved.square().mean().sqrt(), .2*.1, eps=.006)                   # ... and as long as AdamW's usual step


class Still(Training):
    "Learns nothing: every batch has a loss that is given."
    def learn(self, xb, yb):
        self.correct = torch.tensor(0)
        return torch.tensor(self.loss_of(xb))


def test_the_plateau_counts_epochs_and_the_mean_counts_images():
    t = Still(replace(TINY, limit=70, epochs=8), TRAIN, device='cpu')
    t.loss_of = lambda xb: len(xb)/2**(5 + t.epoch)                        # falls, while the held-out loss stays; a last batch of 6
    for _ in t: pass
    close([row['lr'] for row in t.history][4:], [2.5e-4]*3 + [6.25e-5], eps=1e-9)
    close(t.history[0]['train_loss'], (64*64 + 6*6)/70/32, eps=1e-6)
    assert t.best['epoch'] == 1                                            # of equal ones the first


@pytest.mark.parametrize('fields, epoch, train_loss, watches', [
    ({}, 0, .91*math.log(10), False),                                      # it has learnt nothing yet
    ({}, 0, .89*math.log(10), True),
    (dict(warmup=2), 0, 1, False),                                         # the rate still rises
    (dict(warmup=2), 1, 1, True),
    (dict(schedule='linear'), 2, 1, False),                                # the rate falls in any case
])
def test_when_the_plateau_watches(fields, epoch, train_loss, watches):
    t = training(**fields)
    t.epoch = epoch
    assert t.plateau_watches(train_loss) == watches


def test_warmup():
    t, risen = training(warmup=1.5, lr=.015), []
    for _ in range(10): t.step(); risen.append(t.rate)
    close(risen, [.002, .004, .006, .008, .01, .012, .014, .015, .015, .015], eps=1e-9)


def go_to(step, **fields):
    "A training on a line, stepped to a place."
    t = training(**{**dict(schedule='linear', lr=.01), **fields})
    while t.steps < step: t.step()
    return t


def test_a_line_changed_by_hand():
    t = go_to(10, epochs=4, warmup=1)
    t.edit('epochs', 6)                                                    # twenty steps left instead of ten
    close([t.rate_at(i) for i in (10, 20, 29)], [.01*10/15, .01*5/15, .01*.5/15], eps=1e-12)
    t.edit('lr', .02)
    close([t.rate_at(i) for i in (10, 20, 29)], [.02, .01, .001], eps=1e-12)
    with pytest.raises(ValueError, match='means nothing where the rate falls in a line'): t.edit('plateau_patience', 3)
    t = go_to(10, epochs=4); t.edit('epochs', 2)                           # ended here
    assert (t.recipe.epochs, t.slope) == (2, (10, .005))
    t = go_to(10, epochs=2); t.edit('epochs', 4)                           # all epochs are done; on from the last step's rate
    close([t.rate_at(i) for i in (10, 15)], [.001, .0005], eps=1e-12)
    t = go_to(10, epochs=2); t.edit('lr', 1e-3); t.edit('epochs', 3); close(t.rate_at(10), 1e-3, eps=1e-12)
    t = go_to(3, epochs=1, warmup=1); t.edit('clip', 1); t.edit('lr', .02)
    close([t.rate_at(i) for i in (3, 4)], [.016, .02], eps=1e-12)
    planned, t = [go_to(2, epochs=3, warmup=.5) for _ in range(2)]
    t.edit('epochs', 3)                                                    # to what it was: nothing changes
    assert [t.rate_at(i) for i in range(15)] == [planned.rate_at(i) for i in range(15)]


def test_edits_are_kept_and_repeated():
    t = Training(TINY, TRAIN, tempfile.mkdtemp(), 'cpu')
    t.step()
    t.edit('lr', 2e-4)
    assert t.edits == [dict(step=1, field='lr', old=1e-3, new=2e-4)]
    t.edit('plateau_patience', 5); t.save()
    t.edit('smoothing', .2); t.save()                                      # at the same place: saved all the same
    again = Training.resume(t.folder, TRAIN, 'cpu')
    assert (again.rate, again.plateau.patience, again.recipe.smoothing, again.planned.lr) == (2e-4, 5, .2, 1e-3)
    again.step()
    for field, value, words in (('lr', -1, 'lr must be positive'), ('epochs', 0, 'epochs cannot be 0: epoch 1 has begun'), ('flip', 'random', 'between two epochs')):
        with pytest.raises(ValueError, match=words): again.edit(field, value)
    assert len(again.edits) == 3


def test_mirror_images_are_changed_between_epochs():
    t = training(); t.run_epoch()
    mirrored = training(flip='random')
    mirrored.epoch = t.epoch; mirrored.open_epoch()
    t.edit('flip', 'random')
    assert torch.equal(next(t.stream)[0], next(mirrored.stream)[0])         # its pictures from the first batch on
    t.edit('flip', 'none')
    assert [e['field'] for e in t.edits] == ['flip', 'flip']


def test_an_edit_notes_the_rate_in_force():
    t = training(); t.step()
    t.opt.param_groups[0]['lr'] = 1e-5                                      # as a plateau would
    t.edit('lr', 1e-4)
    assert (t.edits[-1]['old'], t.rate) == (1e-5, 1e-4)
    rising = training(warmup=2, lr=1e-2)
    rising.edit('lr', 2e-2); rising.step()                                  # ten batches up to the rate
    assert (rising.edits[-1]['old'], rising.rate) == (1e-2, 2e-3)


def test_the_average():
    t = training(average=2)
    by_hand = [p.detach().clone() for p in t.model.parameters()]
    for _ in range(5):
        t.step()
        by_hand = [a + (p.detach() - a)/10 for a, p in zip(by_hand, t.model.parameters())]
    for a, p in zip(by_hand, t.averaged.parameters()): close(a, p.detach(), eps=1e-6)
    losses = [F.cross_entropy(predict(m, t.valid_x), t.valid_y).item() for m in (t.averaged, t.model)]
    close(t.history[0]['valid_loss'], losses[0], eps=1e-6); assert abs(losses[0] - losses[1]) > 1e-3
    for kept, a in zip(t.best['weights'].values(), t.averaged.state_dict().values()): assert torch.equal(kept, a)


def test_the_average_copies_what_batchnorm_counts():
    t = training(norm='batch', average=2)
    t.step()
    for a, b in zip(t.averaged.buffers(), t.model.buffers(), strict=True): assert torch.equal(a, b)
    assert any(b.abs().sum() > 1 for b in t.averaged.buffers())


def test_zero_mean_filters_stay_so():
    t = training(filters='zero_mean', average=2, optimiser='muon')
    for _ in range(7): t.step()
    for m in (t.model, t.averaged):
        for w in (m.weight for m in m.modules() if isinstance(m, torch.nn.Conv2d)): assert w.mean((1,2,3)).abs().max() < 1e-7
    free = training(filters='free'); free.step()
    assert free.model.stem[0].weight.mean((1,2,3)).abs().max() > 1e-4


def first_gradient(**fields):
    "The first gradient of a training, as one vector, and the loss."
    t = training(**fields)
    loss = t.step()
    return torch.cat([p.grad.flatten() for p in t.model.parameters()]), loss.item()


def test_clipping_and_smoothing():
    (whole, loss), (clipped, _) = first_gradient(), first_gradient(clip=.1)
    close(clipped.norm(), .1, eps=1e-4); close(clipped/.1, whole/whole.norm(), eps=1e-4); assert whole.norm() > .2
    t = training()
    x, y = t.next_batch()
    log_p = t.model(x).log_softmax(1).detach()
    close(first_gradient(smoothing=.1)[1], (.9*loss - .1*log_p.mean()).item(), eps=1e-5)
    assert not torch.equal(next(training(flip='random').stream)[0], x)


@pytest.mark.parametrize('name, kind', dict(adam=Adam, adamw=AdamW, sgd=SGD, muon=FilterMuon).items())
def test_optimisers(name, kind): assert type(training(optimiser=name).opt) is kind


def test_albumentations_give_the_same_first_loss():
    slow, fast = (Training(replace(TINY, filters='free'), TRAIN, device='cpu', workers=workers) for workers in (0, None))
    close(slow.step().item(), fast.step().item(), eps=1e-3)


def test_half_precision_trains_and_is_evaluated_in_whole():
    recipe = Recipe(dataset='shapes10', width=16, epochs=2, batch_size=32, limit=64)
    t = Training(recipe, TRAIN, device='cpu', precision='bf16')
    assert (t.precision, {p.dtype for p in t.model.parameters()}) == ('bfloat16', {torch.float32})
    assert t.step() != Training(recipe, TRAIN, device='cpu', precision='fp32').step()
    t.step()
    assert t.history[0]['valid_loss'] == F.cross_entropy(predict(t.model, t.valid_x), t.valid_y).item()
    with pytest.raises(ValueError, match='choose auto, fp32, bf16, fp16'): Training(recipe, TRAIN, precision='fp8')


def test_folders_that_hold_no_run(tmp_path):
    with pytest.raises(FileNotFoundError, match='holds no finished run'): load_run(tmp_path/'run')
    for text in ('', '[]', '{"finished": true}', '{"recipe": {"epochz": 3}, "finished": false}'):
        (tmp_path/'run.json').write_text(text)
        with pytest.raises(ValueError, match='run.json is damaged'): read_about(tmp_path)
    write_json(tmp_path/'run.json', {})
    with pytest.raises(ValueError, match='run.json is damaged'): read_about(tmp_path)
