"The identities of 11_faithful, on networks, pictures and maps that hypothesis draws."
import numpy as np
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from cifar_resnet.core import seeded
from cifar_resnet.evaluate import spread
from cifar_resnet.faithful import centroid, iou, localisation, mass_accuracy, pointing, rank_accuracy, rank_correlation
from cifar_resnet.gradcam import contrast, gradcam, tapped, upsample
from cifar_resnet.model import resnet18

networks = st.fixed_dictionaries(dict(
    norm=st.sampled_from(['layer', 'batch', 'pixel', 'group8', 'none']),
    width=st.sampled_from([8, 16]),
    num_classes=st.integers(2, 12),
    strides=st.sampled_from([(1,2,2,2), (1,1,2,2), (2,2,2,1)])))
SEEDS = st.integers(0, 10_000)
quick = settings(deadline=None, max_examples=25, derandomize=True)


def drawn(config, seed, n=3, side=32):
    with seeded('identities', seed):
        model = resnet18(**config).eval()
        with torch.no_grad():
            for p in model.parameters(): p.add_(.05*torch.randn_like(p))
        return model, torch.randn(n, 3, side, side), torch.randint(0, config['num_classes'], (2, n))


def close(a, b, eps=1e-5):
    difference, size = (a - b).abs().max(), b.abs().max()
    assert difference <= eps*max(size.item(), 1e-3), difference/size


@quick
@given(networks, SEEDS, st.integers(1, 5), st.sampled_from([16, 32, 40]))
def test_the_last_block(config, seed, n, side):
    model, x, (p, q) = drawn(config, seed, n, side)
    with torch.no_grad(): A, logits = model.features(x), model(x)
    w, b, Z = model.head.weight.detach(), model.head.bias.detach(), A[0,0].numel()
    every = gradcam(model, x, 'all', 'stages', relu=False)
    close(every, torch.einsum('nk,bkhw->bnhw', w/Z, A))                                          # = CAM/Z
    close(every, gradcam(model, x, 'all', 'stages', 'hirescam', relu=False))                     # = HiResCAM
    close(every.sum((2,3)) + b, logits)                                                          # completeness
    why = contrast(model, x, q, p, 'stages')
    margin = logits[range(n), p] - logits[range(n), q]
    close(why.difference.sum((1,2)) + b[p] - b[q], margin, 1e-4)                                 # nearly equal numbers
    one = gradcam(model, x, p, 'stages', relu=False)
    close(one, every[range(n), p])
    close(gradcam(model, x.flip(0), p.flip(0), 'stages', relu=False).flip(0), one)               # images do not mix


@quick
@given(networks, SEEDS)
def test_a_scaled_head_scales_the_map(config, seed):
    model, x, (p, _) = drawn(config, seed)
    before = gradcam(model, x, p, 'stages', relu=False)
    with torch.no_grad(): model.head.weight.mul_(3); model.head.bias.add_(7)
    close(gradcam(model, x, p, 'stages', relu=False), 3*before)


@quick
@given(SEEDS, st.sampled_from([8, 16]),
       st.sampled_from(['stages.3.1.convs.3', 'stages.3.0.convs.0', 'stages.1.0.convs.3']))
def test_before_a_layer_norm_nothing_adds_up(seed, width, name):
    model, x, (p, _) = drawn(dict(norm='layer', width=width, num_classes=10, strides=(1,2,2,2)), seed)
    with tapped({name: model.get_submodule(name)}) as seen: logits = model(x)
    a = seen[name]
    g = torch.autograd.grad(logits[range(len(x)), p].sum(), a)[0]
    a = a.detach()
    assert ((g*a).sum((1,2,3)).abs() < 1e-3*(g*a).abs().sum((1,2,3))).all()                      # up to the norm's eps
    assert (g.sum((1,2,3)).abs() < 1e-4*g.abs().sum((1,2,3))).all()


@quick
@given(SEEDS, st.integers(1, 6), st.integers(2, 5), st.booleans())
def test_hirescam_is_0_where_the_head_is_blind(seed, channels, classes, mean):
    with seeded('blind', seed):
        eye, weight = nn.Conv2d(3, channels, 3, padding=1), torch.randn(classes, channels, 8, 8)
        x = torch.randn(2,3,8,8)
    weight[:,:,4:] = 0
    class Blind(nn.Module):
        def __init__(self): super().__init__(); self.eye = eye
        def forward(self, x): return (self.eye(x)[:,None]*weight).sum((2,3,4))
    for target in (0, 'all'):
        maps = gradcam(Blind(), x, target, 'eye', 'hirescam', relu=False)
        assert (maps[...,4:,:] == 0).all() and (maps[...,:4,:] != 0).any()
        close(maps.sum((-2,-1)), Blind()(x).detach() if target=='all' else Blind()(x)[:,0].detach())
        assert (gradcam(Blind(), x, target, 'eye', relu=False)[...,4:,:] != 0).any()


heats = SEEDS.map(lambda s: torch.from_numpy(np.random.default_rng(s).normal(size=(4,8,8))))
def mask_of(seed, share):
    "Masks of about this share of the cells, none of them empty."
    random = torch.from_numpy(np.random.default_rng(seed).random((4,8,8)) < share)
    return random.logical_or(torch.eye(8, dtype=torch.bool))

masks = st.builds(mask_of, SEEDS, st.floats(.05, .9))


@settings(deadline=None, max_examples=100, derandomize=True)
@given(heats, masks)
def test_metrics(heat, mask):
    area = mask.double().mean((1,2))
    for f in (pointing, mass_accuracy, rank_accuracy, iou):
        v = f(heat, mask)
        assert ((0 <= v) & (v <= 1)).all()
        assert torch.allclose(f(3*heat, mask), v)                                                # units do not matter
        assert torch.allclose(f(heat.flip(2), mask.flip(2)), v)                                 # nor does left or right
        assert torch.allclose(f(mask.double(), mask), torch.ones(4).to(f(mask.double(), mask)))  # the truth is best
        assert torch.allclose(f(torch.zeros_like(heat), mask).double(), area)                    # nothing is chance
    assert torch.allclose(mass_accuracy(heat, mask) + mass_accuracy(heat, ~mask), torch.ones(4).double())
    k = mask.sum((1,2))
    best = [h.flatten().argsort(descending=True)[:n] for h, n in zip(heat, k)]                   # no ties here
    hits = torch.stack([m.flatten()[b].double().mean() for m, b in zip(mask, best)])
    assert torch.allclose(rank_accuracy(heat, mask).double(), hits)


@settings(deadline=None, max_examples=50, derandomize=True)
@given(heats, st.integers(-3, 3), st.integers(-3, 3))
def test_a_shift_is_seen_as_one(heat, down, right):
    blob = torch.zeros(4,16,16).double(); blob[:,4:12,4:12] = heat.abs()
    moved = blob.roll((down, right), (1, 2))
    assert torch.allclose(centroid(moved) - centroid(blob), torch.tensor([down, right]).double(), atol=1e-5)
    bias = localisation(moved, blob > 0)
    assert torch.allclose(bias['down'], (centroid(moved) - centroid((blob > 0).double()))[:,0])


@settings(deadline=None, max_examples=50, derandomize=True)
@given(heats, heats)
def test_rank_correlation(a, b):
    from scipy.stats import spearmanr
    expected = [spearmanr(x.flatten(), y.flatten()).statistic for x, y in zip(a, b)]
    assert np.allclose(rank_correlation(a, b), expected) and np.allclose(rank_correlation(a, b.exp()), expected)
    assert (rank_correlation(a, torch.ones_like(b)) == 0).all()


@settings(deadline=None, max_examples=50, derandomize=True)
@given(st.lists(st.floats(-100, 100), min_size=2, max_size=30))
def test_interval(values):
    from scipy.stats import t
    mean, (low, high) = (spread(values)[k] for k in ('mean', 'ci95'))
    expected = t.interval(.95, len(values)-1, np.mean(values), max(np.std(values, ddof=1)/len(values)**.5, 1e-300))
    assert np.allclose((low, high), expected, atol=1e-9) and low <= mean <= high


@settings(deadline=None, max_examples=50, derandomize=True)
@given(SEEDS, st.integers(2, 9), st.integers(2, 9))
def test_upsampling_keeps_between_the_cells(seed, h, w):
    g = np.random.default_rng(seed)
    maps, centres = torch.from_numpy(g.random((2,h,w))), [np.sort(g.choice(32, n, replace=False)) for n in (h, w)]
    full = upsample(maps, centres=centres)
    assert torch.allclose(full[:,centres[0]][:,:,centres[1]], maps.float(), atol=1e-6)    # a cell's own value
    assert full.min() >= maps.min() - 1e-6 and full.max() <= maps.max() + 1e-6
