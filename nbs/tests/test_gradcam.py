"Grad-CAM on many models, in many states, beside a calculation that shares no code with it."
import gc, subprocess, sys, warnings
from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam
from torch import nn
from torchvision.models import resnet18 as torchvision_resnet18

from live_memory import peak

from cifar_resnet.core import seeded
from cifar_resnet.gradcam import (METHODS, _affine_between, contrast, gradcam, map_layers, overlay, receptive_centres,
                                  receptive_fields, tapped, upsample, weighted)
from cifar_resnet.model import resnet18

pytestmark = pytest.mark.filterwarnings(
    'ignore:no positive evidence', 'ignore:no evidence at all', 'ignore:at layer', 'ignore:layer .* is called more than once')
X = torch.randn(3,3,32,32, generator=torch.Generator().manual_seed(0))


def plain(model, x, target, layer, method='gradcam'):
    "Signed maps by a full backward pass of a deep graph, one image at a time."
    modes = {m: m.training for m in model.modules()}
    model.eval()
    maps = []
    for i in range(len(x)):
        kept = []
        def keep(module, inputs, out): kept.append(out.clone()); return kept[-1].clone()
        handle = model.get_submodule(layer).register_forward_hook(keep)
        with torch.enable_grad():
            xi = x[i:i+1].clone().requires_grad_()
            y = model(xi)[0]
            c = int(y.argmax()) if target is None else int(torch.as_tensor(target).expand(len(x))[i])
            g = torch.autograd.grad(y[c], kept[-1])[0]
        handle.remove()
        weights = g.mean((2,3), keepdim=True) if method=='gradcam' else g
        maps.append((weights*kept[-1]).sum(1)[0].detach())
    for m, mode in modes.items(): m.training = mode
    return torch.stack(maps)


def layers(*modules): return nn.Sequential(*modules)
def eye(c=6, inplace=False):
    return layers(nn.Conv2d(3, c, 3, 2, 1), nn.ReLU(inplace), nn.Conv2d(c, c, 3, 2, 1), nn.ReLU(inplace))
def flat_head(*before, classes=4): return layers(*before, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, classes))

class MeanHead(nn.Module):
    def __init__(self, f):
        super().__init__()
        self.eye, self.head, self.f = eye(), nn.Linear(6, 4), f
    def forward(self, x): return self.f(self.head, self.eye(x))

class Twice(nn.Module):
    "One ReLU module, called twice."
    def __init__(self):
        super().__init__()
        self.a, self.b, self.act, self.head = nn.Conv2d(3, 5, 3, 2), nn.Conv2d(5, 5, 3, 2), nn.ReLU(), nn.Linear(5, 4)
    def forward(self, x): return self.head(self.act(self.b(self.act(self.a(x)))).mean((2,3)))

class Fork(nn.Module):
    "Two branches that know nothing of each other."
    def __init__(self):
        super().__init__()
        self.left, self.right, self.head = eye(), eye(), nn.Linear(12, 4)
    def forward(self, x): return self.head(torch.cat([self.left(x), self.right(x)], 1).mean((2,3)))

def in_bfloat16(head, a):
    return nn.functional.linear(a.mean((2,3)).bfloat16(), head.weight.bfloat16(), head.bias.bfloat16())

AFFINE_HEADS = {
    'mean': lambda head, a: head(a.mean((2,3))),
    'mean twice': lambda head, a: head(a.mean(3).mean(2)),
    'sum': lambda head, a: head(a.sum((2,3))),
    'pool, flatten': lambda head, a: head(nn.functional.adaptive_avg_pool2d(a, 1).flatten(1)),
    'average pool': lambda head, a: head(nn.functional.avg_pool2d(a, 8).squeeze(3).squeeze(2)),
    'bfloat16 head': in_bfloat16,
    'no bias': lambda head, a: a.mean((2,3)) @ head.weight.T}
OTHER_HEADS = {
    'tanh': lambda head, a: head(a.mean((2,3))).tanh(),
    'max': lambda head, a: head(a.amax((2,3))),
    'square': lambda head, a: head((a*a).mean((2,3))),
    'softmax': lambda head, a: head(a.mean((2,3))).softmax(1),
    'gate': lambda head, a: head(a.mean((2,3)))*a.mean((1,2,3))[:,None],
    'by itself': lambda head, a: a.mean((2,3)) @ (head.weight.T*a.mean()),
    'norm': lambda head, a: head(nn.functional.layer_norm(a.mean((2,3)), (6,)))}
HEADS = {name: f for name, f in {**AFFINE_HEADS, **OTHER_HEADS}.items() if name not in ('bfloat16 head', 'by itself')}
MODELS = {                                            # a function that makes the model, and the layer to look at
    'layer': (lambda: resnet18(width=8), 'stages.3.1'),
    'batch': (lambda: resnet18('batch', width=8), 'stages.3.1'),
    'early': (lambda: resnet18(width=8), 'stages.0.0'),
    '8×8': (lambda: resnet18(width=8, strides=(1,1,2,2)), 'stages'),
    'stem': (lambda: resnet18('none', width=8), 'stem'),
    'torchvision': (lambda: torchvision_resnet18(num_classes=4), 'layer4'),
    'in place': (lambda: flat_head(eye(6, True)), '0.2'),
    'flat': (lambda: layers(eye(), nn.Flatten(), nn.Linear(384, 4)), '0'),
    'twice': (Twice, 'act'),
    'dropout': (lambda: flat_head(eye(), nn.Dropout(.5)), '0'),
    **{name: (partial(MeanHead, f), 'eye') for name, f in HEADS.items()}}


def made(name):
    with seeded('test_gradcam', name): model = MODELS[name][0]()
    return model, MODELS[name][1]


@pytest.mark.parametrize('name', MODELS)
@pytest.mark.parametrize('method', ['gradcam', 'hirescam'])
def test_it_is_what_the_formula_says(name, method):
    model, layer = made(name)
    classes = torch.tensor([3, 0, 1])
    for target in (None, 2, classes):
        expected = plain(model, X, target, layer, method)
        found = gradcam(model, X, target, layer, method, relu=False)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6*max(1, expected.abs().max().item()))
    every = gradcam(model, X, 'all', layer, method, relu=False)
    close = partial(torch.testing.assert_close, rtol=1e-4, atol=2e-6*max(1, every.abs().max().item()))
    for c in range(every.shape[1]): close(every[:,c], plain(model, X, c, layer, method))
    close(gradcam(model, X[:1], 'all', layer, method, relu=False), every[:1])              # fewer images than classes
    torch.testing.assert_close(gradcam(model, X, 'all', [layer], method)[layer], every.relu())


ACTS  = [[[3., 4.], [0., 1.]], [[1., 0.], [2., 2.]]]                        # two channels of 2×2 cells
GRADS = [[[2., 0.], [0., 2.]], [[-1., -1.], [-1., 3.]]]                     # means 1 and 0
BY_HAND = {
    'gradcam': [[3., 4.], [0., 1.]],
    'hirescam': [[6. - 1, 0.], [-2., 2. + 6]],
    'layercam': [[6., 0.], [0., 2. + 6]]}                                   # relu(gradient), cell by cell


@pytest.mark.parametrize('method', BY_HAND)
def test_weighted_by_hand(method):
    acts, grads = torch.tensor([ACTS, ACTS[::-1]]), torch.tensor([GRADS, GRADS[::-1]])
    assert weighted(acts, grads, method).tolist() == [BY_HAND[method]]*2    # the order of the channels does not matter
    if method == 'gradcam': assert torch.equal(weighted(acts, grads), weighted(acts, grads, 'gradcam'))


@pytest.mark.parametrize('name', ['mean', 'tanh', 'flat', 'early'])
def test_a_new_method_is_one_line(name, monkeypatch):
    "Also in the closed form for all classes ('mean')."
    monkeypatch.setitem(METHODS, 'mine', torch.relu)
    model, layer = made(name)
    every = gradcam(model, X, 'all', layer, 'mine', relu=False)
    with tapped({layer: model.get_submodule(layer)}) as seen: logits = model.eval()(X)
    for c in range(every.shape[1]):
        g, = torch.autograd.grad(logits[:,c].sum(), seen[layer], retain_graph=True)
        expected = (g.relu()*seen[layer].detach()).sum(1)
        torch.testing.assert_close(every[:,c], expected, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(gradcam(model, X, c, layer, 'mine', relu=False), expected, rtol=1e-4, atol=1e-6)


def test_unknown_methods_are_refused_before_the_network_runs():
    class Never(MeanHead):
        def forward(self, x): raise AssertionError('the network ran')
    for call in (lambda: gradcam(Never(None), X, method='cam'), lambda: contrast(Never(None), X, 1, method='cam'),
                 lambda: weighted(X, X, 'cam')):
        with pytest.raises(ValueError, match="there is no method 'cam': choose gradcam, hirescam, layercam"): call()


def test_one_convolution_by_arithmetic():
    "Behind a mean and a linear layer the weight of a channel is w/Z."
    model, x = flat_head(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU()), X[:,:1]
    signed = torch.einsum('k,bkhw->bhw', model[4].weight[2]/32**2, model[:2](x)).detach()
    for layer in ('1', model[1]):
        torch.testing.assert_close(gradcam(model, x, 2, layer, relu=False), signed)
        torch.testing.assert_close(gradcam(model, x, 2, layer), signed.relu())


@pytest.mark.parametrize('name, watched', [
    ('layer', 'stem'), ('layer', 'stages.1.0'), ('layer', 'stages.3.1'),
    ('torchvision', 'layer2'), ('torchvision', 'layer4')])              # full of in-place ReLUs
def test_it_equals_captums(name, watched):
    model = made(name)[0].eval()
    module = model.get_submodule(watched)
    theirs = LayerGradCam(model, module).attribute(X, 3).sum(1).detach()
    torch.testing.assert_close(gradcam(model, X, 3, module, relu=False), theirs, rtol=1e-4, atol=1e-6)


def test_a_layer_that_the_next_one_overwrites():
    models = []
    for inplace in (True, False):
        with seeded('test_gradcam', 'overwritten'): models.append(flat_head(nn.Conv2d(3, 6, 3), nn.ReLU(inplace)))
    one, other = (gradcam(model, X, 1, '0', relu=False) for model in models)
    assert torch.equal(one, other)


def test_its_import_is_cheap():
    "The module needs NumPy and PyTorch; only `overlay` needs matplotlib, and nothing needs pyplot."
    code = """if True:
        import sys, cifar_resnet.gradcam as g
        heavy = 'albumentations', 'scipy', 'matplotlib', 'matplotlib.pyplot', 'pandas', 'sklearn', 'IPython'
        print(*(name for name in heavy if name in sys.modules))
        import numpy as np, torch
        g.overlay(np.zeros((1,8,8,3), np.uint8), torch.ones(1,2,2))
        print(*(name for name in heavy if name in sys.modules))"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120)
    assert done.stdout == '\nmatplotlib\n', done.stdout + done.stderr


@pytest.mark.parametrize('heads, affine', [(AFFINE_HEADS, True), (OTHER_HEADS, False)])
def test_an_affine_head_is_recognised(heads, affine):
    for name, f in heads.items():
        with seeded('test_gradcam', name): model = MeanHead(f).eval()
        for frozen in (False, True):
            for p in model.parameters(): p.requires_grad_(not frozen)
            with tapped({'eye': model.eye}) as seen: logits = model(X)
            assert _affine_between(logits, seen['eye']) == affine, (name, frozen)


STATES = {                                            # a function of the model: the model in that state, and a context
    'no_grad': lambda m: (m, torch.no_grad()),
    'inference mode': lambda m: (m, torch.inference_mode()),
    'training': lambda m: (m.train(), nullcontext()),
    'frozen': lambda m: (m.requires_grad_(False), nullcontext()),
    'channels last': lambda m: (m.to(memory_format=torch.channels_last), nullcontext()),
    'prefix': lambda m: (nn.DataParallel(m), nullcontext()),
    'compiled': lambda m: (torch.compile(m, backend='eager'), nullcontext())}


@pytest.mark.parametrize('state', STATES)
@pytest.mark.parametrize('name', ['layer', 'batch', 'torchvision', 'in place', 'tanh'])
def test_states(name, state):
    model, layer = made(name)
    expected = {t: gradcam(model.eval(), X, t, layer, relu=False) for t in (1, 'all')}
    model, context = STATES[state](model)
    x = X.contiguous(memory_format=torch.channels_last) if state=='channels last' else X
    with context:
        for t, e in expected.items():
            for asked in (layer, f'module.{layer}'):
                torch.testing.assert_close(gradcam(model, x.clone(), t, asked, relu=False), e, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('context', [torch.no_grad, torch.inference_mode])
def test_fields_where_gradients_are_off(context):
    model, layer = made('mean')
    expected = receptive_fields(model, X, layer)
    with context(): found = receptive_fields(model, X.clone(), layer)
    assert torch.equal(found, expected)


@pytest.mark.parametrize('name', ['layer', 'batch', 'tanh'])
def test_autocast(name):
    model, layer = made(name)
    model.eval()
    for t in (1, 'all'):
        expected = gradcam(model, X, t, layer, relu=False)
        with torch.autocast('cpu', torch.bfloat16): found = gradcam(model, X, t, layer, relu=False)
        assert found.dtype == torch.float32
        assert (found - expected).abs().max() < .05*expected.abs().max()


def state_of(model):
    modules, parameters = list(model.modules()), list(model.parameters())
    return ({n: m.training for n, m in model.named_modules()},
            [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in modules],
            [p.grad for p in parameters], [p.requires_grad for p in parameters],
            torch.is_grad_enabled(), torch.is_inference_mode_enabled(),
            {k: v.clone() for k, v in model.state_dict().items()})

def same(a, b): return a[:-1] == b[:-1] and all(torch.equal(v, b[-1][k]) for k, v in a[-1].items())


CALLS = {
    'one class': lambda m, layer: gradcam(m, X, 1, layer),
    'all': lambda m, layer: gradcam(m, X, 'all', layer),
    'contrast': lambda m, layer: contrast(m, X, 2, layer=layer),
    'several': lambda m, layer: gradcam(m, X, 1, [layer, layer]),
    'layers': lambda m, layer: map_layers(m, X),
    'fields': lambda m, layer: receptive_fields(m, X, layer)}


@pytest.mark.parametrize('call', CALLS)
@pytest.mark.parametrize('name', ['batch', 'torchvision', 'dropout'])
@pytest.mark.parametrize('raises', [False, True])
def test_it_leaves_everything_as_it_was(name, call, raises):
    model, layer = made(name)
    model.train()
    next(m for m in model.modules() if isinstance(m, nn.Linear)).eval()                    # a mixture of modes
    next(model.parameters()).requires_grad_(False)
    if raises:
        def fail(module, inputs, out): raise RuntimeError('on purpose')
        next(m for m in model.modules() if isinstance(m, nn.Linear)).register_forward_hook(fail)   # behind the layer
    before = state_of(model)
    with pytest.raises(RuntimeError, match='on purpose') if raises else nullcontext(): CALLS[call](model, layer)
    assert same(before, state_of(model))


def test_300_calls_leave_no_memory_behind():
    model, layer = made('batch')
    def tensors(): gc.collect(); return sum(isinstance(o, torch.Tensor) for o in gc.get_objects())
    def call(n):
        for i in range(n): gradcam(model, X, 'all' if i % 2 else 1, layer)
    call(50)
    before, memory = tensors(), resident()
    call(300)
    assert tensors() <= before
    assert resident() - memory < 8e6               # one forgotten graph a call: 300 times this model's activations


def resident():
    with open('/proc/self/statm') as f: return int(f.read().split()[1])*4096


@pytest.mark.parametrize('strides', [(1,2,2,2), (1,1,2,2)])
@pytest.mark.parametrize('target', [0, 'all'])
def test_it_needs_no_more_memory_than_a_forward_pass_and_one_activation(strides, target):
    model, x = resnet18(width=16, strides=strides).eval(), X.repeat(5,1,1,1)
    def forward():
        with torch.no_grad(): model(x)
    with torch.no_grad(): activation = model.features(x).nbytes
    assert peak(lambda: gradcam(model, x, target)) <= peak(forward) + activation
    graphs = peak(lambda: plain(model, x[:8], 0, 'stages'))
    assert graphs > 2*peak(lambda: model.features(x[:1]))                                 # the count sees graphs


@pytest.mark.parametrize('name, images, passes', [('layer', 10, 1), ('layer', 3, 4), ('tanh', 3, 4), ('early', 3, 10)])
def test_backward_passes(name, images, passes, monkeypatch):
    "Behind an affine head as many classes as there are images share a backward pass; elsewhere each has its own."
    model, layer = made(name)
    calls, usual = [], torch.autograd.grad
    monkeypatch.setattr(torch.autograd, 'grad', lambda *args, **kw: calls.append(1) or usual(*args, **kw))
    gradcam(model, X.repeat(4,1,1,1)[:images], 'all', layer)
    assert len(calls) == passes


def test_branches_that_know_nothing_of_each_other():
    with seeded('test_gradcam', 'fork'): model = Fork()
    expected = {name: plain(model, X, 1, name) for name in ('left', 'right')}
    for frozen in (False, True):
        model.requires_grad_(not frozen)
        for t in (1, 'all'):
            found = gradcam(model, X, t, ['left', 'right'], relu=False)
            for name, e in expected.items():
                maps = found[name][:,1] if t=='all' else found[name]
                torch.testing.assert_close(maps, e, rtol=1e-4, atol=1e-6)


def test_the_default_is_the_last_map():
    for name in ('layer', 'torchvision', 'in place', 'pool, flatten'):
        model, _ = made(name)
        found = map_layers(model, X)
        assert all(h*w > 1 for _, h, w in found.values())                # the mean over a map is none
        last = list(found)[-1]
        torch.testing.assert_close(gradcam(model, X, 1), gradcam(model, X, 1, last))


class Cut(MeanHead):
    "The gradient is cut between map and logits."
    def __init__(self): super().__init__(None)
    def forward(self, x): return self.head(self.eye(x).mean((2,3)).detach())

class Aside(MeanHead):
    "A layer that nobody listens to."
    def __init__(self):
        super().__init__(AFFINE_HEADS['mean'])
        self.aside = nn.Conv2d(3, 2, 3)
    def forward(self, x): self.aside(x); return super().forward(x)

class Crops(nn.Module):
    "Two crops an image; the logits are their mean."
    def __init__(self):
        super().__init__()
        self.eye, self.head = eye(), nn.Linear(6, 4)
    def forward(self, x): return self.head(self.eye(torch.cat([x, x.flip(3)])).mean((2,3))).view(2, len(x), -1).mean(0)

class Mixing(nn.Module):
    "A view lets images into each other's rows, though none ends up in another's logits."
    def __init__(self):
        super().__init__()
        self.eye, self.w = eye(), nn.Parameter(torch.block_diag(torch.randn(6, 4), torch.randn(6, 4)))
    def forward(self, x): return (self.eye(x).mean((2,3)).view(-1, 12) @ self.w).view(len(x), 4)

class Gate(nn.Module):
    "A gate that the model itself cuts off from the gradient."
    def __init__(self):
        super().__init__()
        self.eye, self.g, self.head = eye(), nn.Conv2d(6, 6, 1), nn.Linear(6, 4)
    def forward(self, x):
        a = self.eye(x)
        with torch.no_grad(): w = self.g(a).sigmoid()*a
        return self.head((a*w).mean((2,3)))

class Sequence(MeanHead):
    def __init__(self): super().__init__(lambda head, a: head(a.flatten(2).transpose(1, 2)))

def ours(): return made('layer')[0]
def small(): return made('mean')[0]
def no_map(): return layers(nn.Flatten(), nn.Linear(3072, 4))

CHOICES = 'choose one of stem.0 8×32×32'
REFUSED = {                       # what: a function that makes the model, the wrong argument, what is said
    'no layer': (ours, dict(layer=[]), f'name at least one layer: {CHOICES}'),
    'maps of crops': (Crops, dict(layer='eye'), 'returns 14 maps for 7 images'),
    'a gate that is cut': (Gate, dict(layer=['eye', 'g']), 'do not depend on layer eye and g'),
    'no such layer': (ours, dict(layer='layer4'), f"no layer called 'layer4': {CHOICES}"),
    'not one of its modules': (ours, dict(layer=nn.ReLU()), f'no layer like the ReLU given: {CHOICES}'),
    'None in a list': (ours, dict(layer=[None]), f'no layer like the NoneType given: {CHOICES}'),
    'not a map': (ours, dict(layer='head'), rf'head does not return a map \(B,C,h,w\), but \(7, 10\) for 7 images; {CHOICES}'),
    'no map at all': (no_map, {}, 'no layer of this model returns a map'),
    'cut': (Cut, dict(layer='eye'), 'the logits do not depend on layer eye'),
    'aside': (Aside, dict(layer='aside'), 'the logits do not depend on layer aside'),
    'no logits': (Sequence, dict(layer='eye'), r'must give logits \(B,C\)'),
    'class too high': (small, dict(target=4), 'between 0 and 3'),
    'class below 0': (small, dict(target=-1), 'between 0 and 3'),
    'two targets': (small, dict(target=torch.tensor([0,1])), '3 images need 3 targets'),
    'a share': (small, dict(target=.5), 'must be class numbers'),
    'a word': (small, dict(target='cat'), "None or 'all'"),
    'no such method': (small, dict(method='cam'), 'choose gradcam, hirescam, layercam')}


@pytest.mark.parametrize('what', REFUSED)
def test_refused(what):
    make, kw, said = REFUSED[what]
    model = make()
    before = state_of(model)
    with pytest.raises(ValueError, match=said): gradcam(model, X, **kw)
    assert same(before, state_of(model))


def test_images_in_each_others_rows():
    with seeded('test_gradcam', 'mixing'): model = Mixing()
    x = X[[0,1,2,0]]
    every = gradcam(model, x, 'all', 'eye', relu=False)
    for c in range(4): torch.testing.assert_close(every[:,c], gradcam(model, x, c, 'eye', relu=False))


def test_a_gate_of_the_models_own():
    with seeded('test_gradcam', 'gate'): model = Gate()
    found = gradcam(model, X, 1, 'eye', relu=False)
    torch.testing.assert_close(found, plain(model, X, 1, 'eye'), rtol=1e-4, atol=1e-7)


def test_more_than_one_call_is_said():
    for name, layer in (('twice', 'act'), ('mean', 'eye')):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter('always')
            gradcam(made(name)[0], X, 1, layer, relu=False)
        expected = ["layer 'act' is called more than once: the map is that of its last call ('act@0' is its first)"]*(name=='twice')
        assert [str(w.message) for w in said] == expected


def test_two_names_of_one_module():
    model, _ = made('mean')
    model.again = model.eye
    torch.testing.assert_close(gradcam(model, X, 1, 'again'), gradcam(model, X, 1, 'eye'))


class Merging(nn.Linear):
    "Does something when it is told to train or to evaluate, as merged adapters do."
    merged = False
    def train(self, mode=True): self.merged = not mode; return super().train(mode)


def test_a_module_with_a_mode_of_its_own():
    model = layers(eye(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), Merging(6, 4))
    for mode in (True, False):
        model.train(mode)
        gradcam(model, X, 1, '0')
        assert (model[3].training, model[3].merged) == (mode, not mode)


def test_a_compiled_model_all_over():
    model, layer = made('batch')
    compiled = torch.compile(model, backend='eager')
    assert list(map_layers(compiled, X)) == list(map_layers(model, X))
    assert torch.equal(receptive_fields(compiled, X, layer), receptive_fields(model, X, layer))


BLACK = np.zeros((3,32,32,3), np.uint8)


@pytest.mark.parametrize('call, said', [
    (lambda m: receptive_fields(m, X, 'head'), 'head does not return a map'),
    (lambda m: receptive_fields(m, X, ['stem', 'stages']), 'not of a list'),
    (lambda m: contrast(m, X, 1, layer=['stem', 'stages']), 'not of a list'),
    (lambda m: upsample(torch.ones(1,2,2), centres=([0, float('nan')], [0, 1])), 'increasing'),
    (lambda m: upsample(torch.ones(1,4,4), centres=([0,8,8,24], [1,9,17,25])), 'increasing'),
    (lambda m: upsample(torch.ones(1,4,4), centres=([0,8,16], [1,9,17,25])), '4 rows and 4 columns'),
    (lambda m: overlay(BLACK - 1., torch.ones(3,4,4)), 'from 0 to 1'),
    (lambda m: overlay(BLACK, torch.ones(1,4,4)), 'each of 1 maps'),
    (lambda m: overlay(BLACK, torch.ones(3,4,4), scale='mine'), "no scale 'mine': choose image or shared")])
def test_the_others_refuse(call, said):
    with pytest.raises(ValueError, match=said): call(made('layer')[0])


@pytest.mark.parametrize('images', [X[0], X[:0], X[0,0]])
def test_images_that_are_none(images):
    with pytest.raises(ValueError, match='at least one image'): gradcam(made('mean')[0], images)


def test_warnings():
    model, _ = made('mean')
    with torch.no_grad(): model.head.weight.copy_(-model.head.weight.abs())
    with pytest.warns(UserWarning, match='no positive evidence for the class in images 0, 1, 2: the map is 0') as said:
        gradcam(model, X, 1, 'eye')
    assert said[0].filename == __file__                   # it points to the caller
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert gradcam(model, X, 'all', 'eye').sum() == 0 and gradcam(model, X, 1, 'eye', relu=False).sum() < 0
        gradcam(made('batch')[0], X, 1, 'stages.1', relu=False)               # no norm takes the scale away here
    model, _ = made('layer')
    for target, layer in ((1, 'stages.1'), ('all', 'stages.1'), (0, 'stages.2.0.convs.0')):
        with pytest.warns(UserWarning, match=f"'{layer}' gradient times activation sums to 0") as said:
            m = gradcam(model, X, target, layer, 'hirescam', relu=False)
        assert said[0].filename == __file__ and abs(m.sum()) < 1e-3*m.abs().sum()


def test_contrast_of_any_model():
    for name in ('layer', 'tanh', 'flat'):
        model, layer = made(name)
        logits = model.eval()(X).detach()
        close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-6)
        for target, instead in ((None, 1), (torch.tensor([0,1,2]), torch.tensor([1,2,3]))):
            why = contrast(model, X, instead, target, layer)
            p, q = logits.argmax(1) if target is None else target, torch.as_tensor(instead).expand(3)
            close(why.margin, logits[range(3), p] - logits[range(3), q])
            close(why.target, plain(model, X, p, layer)); close(why.instead, plain(model, X, q, layer))
            close(why.difference, why.target - why.instead)
            close(why.evidence, why.difference.sum((1,2))); close(why.evidence + why.rest, why.margin)


GREY = np.full((2,32,32,3), 100, np.uint8)


def test_upsampling():
    some = torch.randn(2,4,7)
    expected = nn.functional.interpolate(some[None], (32,28), mode='bilinear', align_corners=False)[0]
    torch.testing.assert_close(upsample(some, (32,28)), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(upsample(torch.ones(2,4,4)), torch.ones(2,32,32))
    assert upsample(torch.rand(2,10,4,4), (8,8)).shape == (2,10,8,8)
    one_cell = torch.zeros(1,4,4)
    one_cell[0,1,2] = 1
    assert upsample(one_cell, centres=([0,8,16,24], [1,9,17,25]))[0].argmax() == 8*32 + 17       # where the cell looks


@pytest.mark.parametrize('nothing', [torch.zeros(2,4,4), -torch.ones(2,4,4)])
def test_without_evidence_the_grey_picture_shows(nothing): assert (overlay(GREY, nothing) == GREY).all()


def test_scales_of_an_overlay():
    corner = torch.zeros(2,4,4)
    corner[0,0,0], corner[1,3,3] = 1, .5
    own, shared = overlay(GREY, corner), overlay(GREY, corner, scale='shared')
    assert (own[0,0,0] == own[1,-1,-1]).all() and (own[1,-1,-1] != shared[1,-1,-1]).any()
    for scale, expected in (([1, .5], own), ([1, 1], shared)):
        assert (overlay(GREY, corner, scale=scale) == expected).all()


def test_a_signed_overlay_is_orange_for_and_blue_against():
    both = overlay(GREY, torch.tensor([[[1.,-1.]], [[-1.,0.]]]), signed=True)
    (for_, against), (against_too, nothing) = both[:,0,[0,-1]].astype(int)
    assert for_[0] > for_[2] and against[2] > against[0]
    assert (against == against_too).all() and (nothing == 100).all()


@pytest.mark.parametrize('stride', [1, 2, 4])
def test_fields_of_a_box(stride):
    "A single convolution of equal weights listens evenly to its window, wherever the picture has pixels."
    model = layers(nn.Conv2d(3, 2, 5, stride, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2))
    nn.init.ones_(model[0].weight)
    fields = receptive_fields(model, X, '0')
    i = np.arange(fields.shape[0])*stride
    low, high = np.maximum(i - 2, 0), np.minimum(i + 2, 31)
    for f, a, b in zip(fields[:,1], low, high):
        rows = f.sum(1)
        assert rows[a:b+1].min() > .99/(b - a + 1) and rows.sum() == pytest.approx(1, abs=1e-5)
    rows, columns = receptive_centres(fields)
    assert rows == pytest.approx((low + high)/2, abs=.05) and columns == pytest.approx((low + high)/2, abs=.05)


def test_rows_are_not_columns():
    model = layers(nn.Conv2d(3, 2, 3, (4, 2), (1, 1)), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2))
    nn.init.ones_(model[0].weight)
    rows, columns = receptive_centres(receptive_fields(model, X, '0'))
    assert rows[1:] == pytest.approx(np.arange(4, 32, 4), abs=.05)
    assert columns[1:] == pytest.approx(np.arange(2, 32, 2), abs=.05)


def test_a_faint_floor_does_not_move_the_centre():
    fields = torch.full((2,2,32,32), 1/1024)
    for i in range(2):
        for j in range(2): fields[i,j,3+20*i:6+20*i,8+10*j:11+10*j] += .1
    rows, columns = receptive_centres(fields)
    assert rows == pytest.approx([4, 24], abs=.3) and columns == pytest.approx([9, 19], abs=.3)
