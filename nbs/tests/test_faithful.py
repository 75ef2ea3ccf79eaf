"The tests of maps themselves, where they could go wrong without a word."
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cifar_resnet.augment import normalise
from cifar_resnet.core import rng, seeded
from cifar_resnet.data import shapes10
from cifar_resnet.evaluate import predict
from cifar_resnet.faithful import (cascade, centroid, erasing, held_norms, hide_patches, influence, iou, localisation, mass_accuracy,
                                   occlusion, pointing, rank_accuracy, references)
from cifar_resnet.gradcam import gradcam, receptive_centres, receptive_fields, upsample
from cifar_resnet.model import WEIGHTS, load_weights, resnet18, weights_metadata

X = torch.randn(3,3,32,32, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([1, 2, 3])


def net(**kw):
    with seeded('test_faithful'): return resnet18(width=8, **kw).eval()


class OnePixel(nn.Module):
    "The logit of class 0 is the red of one pixel; that of class 1 is 0."
    def __init__(self, row, column): super().__init__(); self.place, self.one = (row, column), nn.Parameter(torch.ones(()))
    def forward(self, x): return torch.stack([x[:,0][(..., *self.place)]*self.one, 0*x[:,0,0,0]], 1)


@pytest.mark.parametrize('row, column', [(0, 0), (5, 20), (31, 31), (17, 2)])
def test_occlusion_and_erasing_find_the_only_pixel_that_matters(row, column):
    model, x = OnePixel(row, column), torch.zeros(2,3,32,32)
    x[:,0,row,column] = 9
    falls = occlusion(model, x, torch.zeros(2, dtype=torch.long))
    expected = torch.zeros(4, 4); expected[row//8,column//8] = 9 - 9/1024
    assert torch.allclose(falls, expected.expand(2, -1, -1), atol=1e-6)
    heat = torch.zeros(2,32,32); heat[:,row,column] = 1
    first, last = (erasing(model, x, torch.zeros(2, dtype=torch.long), h, steps=64) for h in (heat, -heat))
    high, low = torch.tensor([9., 9/1024]).sigmoid()
    assert torch.allclose(first[0], torch.tensor([high, *[low]*64])) and torch.allclose(last[0], torch.tensor([*[high]*64, low]))
    back = erasing(model, x, torch.zeros(2, dtype=torch.long), heat, insert=True, steps=64)
    assert torch.allclose(back[0], torch.tensor([low, *[high]*64]))


def test_the_oracle_is_as_coarse_as_the_map():
    images, mask = np.zeros((2,32,32,3), np.uint8), torch.zeros(2,32,32, dtype=torch.bool)
    mask[:,3:9,10:17] = True
    for cells in (4, 8):
        expected = upsample(mask.float().reshape(2, cells, 32//cells, cells, 32//cells).mean((2,4)))
        found = references(images, mask, (cells, cells))
        assert torch.allclose(found['oracle'], expected) and torch.allclose(found['inverse'], expected.amax() - expected)


SQUARE = torch.zeros(1,4,4, dtype=torch.bool); SQUARE[0,:2,:2] = True                                # a quarter of the picture
EXACT, FLAT = SQUARE.float(), torch.ones(1,4,4)
WIDE = EXACT.clone(); WIDE[0,:,0] = 1                                                                # four right, two beside
FAINT = WIDE.clone(); FAINT[0,2:,0] = .4                                                             # the same, but the two are faint


@pytest.mark.parametrize('measure, heat, expected', [
    *((f, EXACT, 1) for f in (pointing, mass_accuracy, rank_accuracy, iou)),
    *((f, WIDE, 4/6) for f in (pointing, mass_accuracy, rank_accuracy, iou)),
    *((f, heat, .25) for f in (pointing, mass_accuracy, rank_accuracy, iou) for heat in (FLAT, 0*FLAT)),
    (pointing, FAINT, 1), (rank_accuracy, FAINT, 1), (iou, FAINT, 1), (mass_accuracy, FAINT, 4/4.8),
    (pointing, -EXACT, 0), (mass_accuracy, -EXACT, .25)])
def test_measures_by_head(measure, heat, expected):
    assert measure(heat, SQUARE).item() == pytest.approx(expected, abs=1e-6)


def test_centroids_by_head():
    assert centroid(EXACT)[0].tolist() == [.5, .5] and centroid(0*FLAT)[0].tolist() == [1.5, 1.5]
    shifted = localisation(EXACT.roll((1,2), (1,2)), SQUARE)
    assert (shifted['down'].item(), shifted['right'].item()) == pytest.approx((1, 2))


def of_network(name, variant='clean', n=100):
    "A network that comes with the package, and pictures that it has not seen."
    about, test = weights_metadata(WEIGHTS/f'{name}.safetensors'), shapes10(variant, n_train=1, n_test=n)[1]
    x = normalise(torch.from_numpy(test.images), about['mean'], about['std'])
    return load_weights(WEIGHTS/f'{name}.safetensors'), test, x, torch.from_numpy(test.labels), {k: torch.from_numpy(m) for k, m in test.masks.items()}


def test_maps_lie_on_the_object():
    model, test, x, y, masks = of_network('shapes10')
    raw = gradcam(model, x, y)
    measured = upsample(raw, centres=receptive_centres(receptive_fields(model, x[:24])))
    maps = {'map': upsample(raw), 'measured': measured, **references(test.images, masks['filled'], raw.shape[1:])}
    found = {name: {k: v.double().mean().item() for k, v in localisation(heat, masks['filled']).items()} for name, heat in maps.items()}
    area = masks['filled'].float().mean().item()
    assert found['uniform']['pointing'] == pytest.approx(area, abs=1e-4) and found['uniform']['mass'] == pytest.approx(area, abs=1e-4)
    order = [found[name]['mass'] for name in ('oracle', 'measured', 'map', 'edges', 'uniform', 'inverse')]
    assert order == sorted(order, reverse=True)
    assert found['map']['pointing'] > .75*found['oracle']['pointing']
    assert found['oracle']['mass'] < .8                                                              # cells of four pixels cost even the truth
    assert abs(found['measured']['down']) < 1 and abs(found['measured']['right']) < 1


def test_the_map_of_a_cheat_leaves_the_object():
    heats = {}
    for name in ('shapes10-shortcut', 'shapes10-shortcut-zero-mean', 'shapes10'):
        model, test, x, y, masks = of_network(name, 'shortcut')
        heats[name] = upsample(gradcam(model, x, y))
    near, filled = F.max_pool2d(masks['tag'][:,None].float(), 5, 1, 2)[:,0] > 0, masks['filled']
    share = lambda name, mask: pointing(heats[name], mask).mean()
    assert share('shapes10-shortcut', near) > 5*near.float().mean() and share('shapes10-shortcut', filled) < filled.float().mean()
    assert share('shapes10-shortcut-zero-mean', near) < .2*share('shapes10-shortcut', near)          # and yet it reads the square
    assert share('shapes10', near) < .05 and share('shapes10', filled) > .8


def test_deletion_begins_where_insertion_ends():
    model, test, x, y, masks = of_network('shapes10', n=40)
    p = predict(model, x).softmax(1)
    probability = lambda target: p.gather(1, target[:,None])[:,0]
    for heat in (upsample(gradcam(model, x, y, relu=False)), torch.from_numpy(rng('erasing', 0).random((len(x),32,32)))):
        deletion, insertion = (erasing(model, x, y, heat, insert, 8, 4) for insert in (False, True))
        assert deletion.shape == (len(x), 5)
        assert torch.allclose(deletion[:,0], probability(y), atol=1e-5) and torch.allclose(insertion[:,-1], probability(y), atol=1e-5)
        assert torch.allclose(deletion[:,-1], insertion[:,0], atol=1e-5)
        other = (y + 1) % 10                                                                         # the class that is asked for, not the predicted one
        assert torch.allclose(erasing(model, x, other, heat, steps=1)[:,0], probability(other), atol=1e-5)


def test_hidden_patches_get_the_mean_colour():
    heat = torch.zeros(3,32,32); heat[:,8:16,24:] = 1
    first = [*hide_patches(X, heat, patch=8, steps=16)][1]
    assert torch.allclose(first[:,:,8:16,24:], X.mean((2,3), keepdim=True).expand(-1, -1, 8, 8))
    first[:,:,8:16,24:] = X[:,:,8:16,24:]
    assert torch.equal(first, X)


def test_a_map_smaller_than_the_object():
    mask = torch.zeros(1,4,4, dtype=torch.bool); mask[0,:2,:2] = True
    heat = torch.zeros(1,4,4); heat[0,0,0] = 1
    assert iou(heat, mask).item() == .25 and mass_accuracy(heat, mask).item() == 1


def test_a_map_without_evidence_knows_nothing():
    mask = torch.zeros(1,4,4, dtype=torch.bool); mask[0,0,:2] = True
    for heat in (torch.zeros(1,4,4), -torch.ones(1,4,4), -torch.rand(1,4,4)):
        for f in (mass_accuracy, iou): assert f(heat, mask).item() == .125
    assert mass_accuracy(torch.full((1,512,512), 60000., dtype=torch.half), torch.ones(1,512,512, dtype=torch.bool)).item() == 1


def test_cascade_forgets_what_it_names_and_nothing_else():
    model = net()
    known = {k: v.clone() for k, v in model.state_dict().items()}
    seen, parts = set(), ['head', 'stages.3.1', 'stem']
    for part, forgetful in cascade(model, parts, seed=1):
        seen |= {k for k in known if k.startswith(part)}
        changed = {k for k, v in forgetful.state_dict().items() if not torch.equal(v, known[k])}
        assert {k for k in seen if known[k].dim() > 1} <= changed <= seen
    assert all(torch.equal(v, known[k]) for k, v in model.state_dict().items())
    weights = [next(iter(cascade(model, ['head'], seed)))[1].head.weight for seed in (1, 1, 2)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_cascade_refuses_what_it_cannot_draw():
    attention = nn.Sequential(nn.Linear(4, 4), nn.MultiheadAttention(4, 2))
    with pytest.raises(ValueError, match='1.* .MultiheadAttention. has weights, but no reset_parameters'): list(cascade(attention, ['1']))
    with pytest.raises(ValueError, match="no part 'layer4': choose of stem, stages, head"): list(cascade(net(), ['layer4']))


def test_held_norms():
    model, other = net(), X.flip(0)*2 + 1
    usual = predict(model, X)
    with held_norms(model, X):
        assert torch.allclose(predict(model, X), usual, atol=1e-5)
        held = predict(model, other)
        gradcam(model, X, 1, 'stages.2', relu=False)                    # gradients, too
        with pytest.raises(ValueError, match='of 3 images are held: give as many, not 1'): predict(model, X[:1])
    assert torch.equal(predict(model, X), usual) and (predict(model, other) - held).abs().max() > .01
    assert not any(m._forward_hooks for m in model.modules())


def test_with_held_norms_a_net_without_bias_is_local():
    "With the statistics held, a far patch cannot move a cell that no convolution reaches from there."
    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.GroupNorm(1, 4, affine=False), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))
            self.head = nn.Linear(4, 2)
        def forward(self, x): return self.head(self.features(x).mean((2,3)))
    with seeded('test_faithful'): model = Small()
    free, held = influence(model, X), influence(model, X, hold=True)
    assert (free[0] > 1e-3).all() and (held[0,11:] < 1e-5).all() and (held[0,:,11:] < 1e-5).all() and (held[0,:8,:8] > 1e-3).all()


@pytest.mark.parametrize('call, said', [
    (lambda: occlusion(net(), X, Y, cells=5), '5×5 cells do not tile'),
    (lambda: influence(net(), X, cells=33), '33×33 cells do not tile'),
    (lambda: erasing(net(), X, Y, X[:,0], patch=5), 'patches of 5 do not tile'),
    (lambda: next(hide_patches(X, X[:,0], patch=5)), 'patches of 5 do not tile'),
    (lambda: occlusion(net(), X, Y[:1]), '3 images need 3 labels, not 1'),
    (lambda: erasing(net(), X, Y[:1], X[:,0]), '3 images need 3 labels, not 1')])
def test_refused(call, said):
    with pytest.raises(ValueError, match=said): call()
