"""Apple's GPU, mps, as far as that can be tested without one: it is taken where PyTorch sees it, and what it lacks (float64, speed
with channels last) is not asked of it. Nothing here was run on a Mac."""
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cifar_resnet import augment, core, faithful, job as jobs, layers, plots, train as training
from cifar_resnet.core import computes, memory_format, pick_device, pick_precision
from cifar_resnet.data import shapes10
from cifar_resnet.evaluate import predict
from cifar_resnet.gradcam import gradcam, receptive_centres
from cifar_resnet.model import resnet18
from cifar_resnet.recipe import Recipe
from cifar_resnet.train import Training

MPS = torch.device('mps')
TRAIN, TEST = shapes10(n_train=200, n_test=20)
SMALL = dict(dataset='shapes10', width=4, epochs=1, batch_size=20, limit=60)


@pytest.fixture
def mac(monkeypatch):
    "A machine whose GPU is mps: what is put on it is noted, and stays where it is."
    asked = []
    def ones(n, device):
        asked.append(str(device))
        return SimpleNamespace(device=torch.device(device), sum=lambda: torch.tensor(1.))
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: True)
    monkeypatch.setattr(core.torch, 'ones', ones)
    return asked


@pytest.mark.trust('other hands', "which device 'auto' is")
@pytest.mark.parametrize('name, device', [('auto', 'mps'), ('mps', 'mps'), ('cpu', 'cpu')])
def test_a_mac(mac, name, device):
    assert pick_device(name).type == device and mac == [device]          # it was tried


@pytest.mark.trust('other hands', "which device 'auto' is")
def test_cuda_comes_first(mac, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    assert pick_device('auto').type == 'cuda'


@pytest.mark.trust('other hands', "which device 'auto' is")
def test_neither(monkeypatch):
    for backend in (torch.cuda, torch.backends.mps): monkeypatch.setattr(backend, 'is_available', lambda: False)
    assert pick_device('auto').type == 'cpu'
    with pytest.raises(ValueError, match=r"device 'mps' cannot be used: choose auto or cpu \(no GPU is visible here\)"): pick_device('mps')


@pytest.mark.trust('other hands', "which device 'auto' is")
@pytest.mark.parametrize('cuda, mps, words', [(True, False, 'auto, cpu, cuda'), (False, True, 'auto, cpu, mps'), (True, True, 'auto, cpu, cuda')])
def test_what_there_is_to_choose(monkeypatch, cuda, mps, words):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: mps)
    with pytest.raises(ValueError, match=f"device 'gpu' cannot be used: choose {words}$"): pick_device('gpu')


@pytest.mark.skipif(torch.backends.mps.is_available(), reason='mps works here')
def test_a_gpu_that_is_seen_and_does_not_work(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: True)
    with pytest.raises(ValueError, match="device 'mps' cannot be used"): pick_device('auto')


@pytest.mark.parametrize('width', [4, 16, 64])
def test_it_computes_in_float32(width):
    assert pick_precision('auto', MPS, width) == 'float32' and computes(MPS, 'float32')
    for word in ('bf16', 'fp16'):
        with pytest.warns(UserWarning, match=r'no instructions for .* here \(mps\)'): pick_precision(word, MPS, width)


def test_the_usual_batch_is_that_of_a_cpu():
    assert Recipe().filled('mps').batch_size == Recipe().filled('cpu').batch_size


@pytest.mark.parametrize('device, order', [('mps', torch.contiguous_format), ('cuda', torch.channels_last), ('cpu', torch.channels_last)])
def test_the_order_of_memory(device, order): assert memory_format(torch.device(device)) == order


# it has no float64

class NoDoubles(TorchDispatchMode):
    "Inside, no operation may give a tensor of float64."
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if any(isinstance(v, torch.Tensor) and v.dtype == torch.float64 for v in tree_leaves(out)): raise TypeError(f'float64 from {func}')
        return out


def test_the_watch_works():
    with NoDoubles(), pytest.raises(TypeError, match='float64 from'): torch.zeros(2).double()
    with NoDoubles(), pytest.raises(TypeError, match='float64 from'): torch.from_numpy(np.zeros(2))[:1] + 1


@pytest.mark.trust('other hands', 'no float64 where the device computes')
@pytest.mark.parametrize('recipe', [dict(), dict(recipe='best'), dict(recipe='best', optimiser='adam', average=1), dict(norm='batch', filters='free'),
                                    dict(clip=1.), dict(optimiser='sgd'), dict(flip='random')], ids=str)
def test_a_training_step(recipe):
    t = Training(Recipe(**{**SMALL, **recipe}), TRAIN, device='cpu')
    with NoDoubles():
        t.open_epoch()
        for _ in range(2): t.step()
        predict(t.averaged, t.valid_x)


@pytest.mark.trust('other hands', 'no float64 where the device computes')
@pytest.mark.parametrize('act', [
    lambda net, x: predict(net, x),
    lambda net, x: gradcam(net, x),
    lambda net, x: gradcam(net, x, 'all', relu=False),
    lambda net, x: gradcam(net, x, layer=['stages.0', 'stages.3'], method='layercam'),
    lambda net, x: augment.normalise(torch.from_numpy(TEST.images), (.5,)*3, (.25,)*3),
    lambda net, x: augment.augment(torch.from_numpy(TEST.images), torch.from_numpy(augment.draws(20, 0, 0)), (.5,)*3, (.25,)*3),
], ids=['predict', 'map', 'all maps', 'layers', 'normalise', 'augment'])
@pytest.mark.filterwarnings('ignore:.*(positive evidence|gradient times activation)')
def test_what_else_is_computed_there(act):
    net, x = resnet18(width=4).eval(), torch.randn(3, 3, 32, 32)
    with NoDoubles(): act(net, x)


class Apple(torch.Tensor):
    "A tensor that says it is on mps, and refuses what mps refuses."
    device = property(lambda self: MPS)
    def cpu(self): return self.as_subclass(torch.Tensor)
    def to(self, device): return self if torch.device(device) == MPS else self.cpu()
    def double(self): raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")
    def numpy(self): raise TypeError("can't convert mps:0 device type tensor to numpy")


def there(values): return values.as_subclass(Apple)


HEAT, MASK = torch.rand(3, 8, 8), torch.rand(3, 8, 8) > .5


def same(a, b):
    if isinstance(a, dict): return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (tuple, list)): return all(map(same, a, b))
    return np.array_equal(np.asarray(a), np.asarray(b), equal_nan=True)


@pytest.mark.trust('other hands', 'no float64 where the device computes')
@pytest.mark.parametrize('act', [
    lambda on: faithful.pointing(on(HEAT), MASK),
    lambda on: faithful.centroid(on(HEAT)),
    lambda on: faithful.localisation(on(HEAT), on(MASK)),
    lambda on: receptive_centres(on(torch.rand(4, 4, 32, 32, generator=torch.Generator().manual_seed(0)))),
    lambda on: plots._plain(on(HEAT)),
    lambda on: core.as_pictures([on(torch.ones(4, 5, 3)/2)]),
    lambda on: core.as_labels(on(torch.tensor([0., 2., 1.]))),
    lambda on: layers._moved(on(torch.arange(6*4*5).view(6, 4, 5)**2.), 0),
], ids=['pointing', 'centroid', 'localisation', 'receptive fields', 'figure', 'pictures', 'labels', 'axes'])
def test_what_needs_float64_goes_to_the_cpu(act):
    assert same(act(there), act(lambda values: values))


def test_the_stand_in_refuses():
    for refused in (lambda: there(HEAT).double(), lambda: there(HEAT).numpy()):
        with pytest.raises(TypeError): refused()
    assert there(HEAT).cpu().double().numpy().shape == HEAT.shape


# the order of memory

@pytest.mark.trust('other hands', 'plain order of memory where channels last are slow')
@pytest.mark.parametrize('plain', [True, False])
def test_convolutions_get_the_order_that_the_device_wants(plain, monkeypatch, tmp_path):
    "Weights and inputs of every convolution, in training and in evaluation: plain throughout, or (so that this can fail) not."
    order = torch.contiguous_format if plain else torch.channels_last
    for module in (augment, training, jobs): monkeypatch.setattr(module, 'memory_format', lambda device: order)
    seen = []
    def conv(self, x, real=nn.Conv2d.forward):
        seen.append(x.is_contiguous() and self.weight.is_contiguous())
        return real(self, x)
    monkeypatch.setattr(nn.Conv2d, 'forward', conv)
    run = jobs.job(Recipe(**SMALL), tmp_path/'run', device='cpu', progress=False, draw=False, data=(TRAIN, TEST))
    assert run.metrics['test_reads'] == 1 and len(seen) > 150 and all(seen) == plain


def test_the_help_says_that_it_was_not_tried():
    from cifar_resnet.cli import train_parser
    assert 'mps (Apple: not tried)' in ' '.join(train_parser().format_help().split())
