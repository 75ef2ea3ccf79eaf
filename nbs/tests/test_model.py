"What 05_model promises in all its cases; its notebook shows one of each."
import json
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import nn

from cifar_resnet import model as module
from cifar_resnet.core import seeded
from cifar_resnet.model import (NORMS, Block, LayerNorm, PixelNorm, RowNorm, by_rows, centre_filters, check_model,
                                load_weights, resnet18, stage, weights_file, weights_metadata)

X = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def trained(model):
    "Gains and biases as if it had been trained."
    with seeded('as if trained', 0):
        for m in model.modules():
            if isinstance(m, nn.GroupNorm): nn.init.normal_(m.weight, 1, .3); nn.init.normal_(m.bias, 0, .3)
    return model


@pytest.mark.parametrize('name', NORMS)
def test_a_norm_keeps_the_shape(name):
    assert NORMS[name](32)(torch.randn(2, 32, 4, 4)).shape == (2, 32, 4, 4)
    assert resnet18(name, width=32)(X[:2]).shape == (2, 10)


def test_the_pixel_norm_is_0_on_average_at_every_pixel():
    assert PixelNorm(8)(torch.randn(4, 8, 5, 5)*3 + 1).mean(1).abs().max() < 1e-5


def test_a_block_is_the_equation():
    with seeded('block', 0): block, x = Block(4, 6, 2, LayerNorm), torch.randn(2, 4, 8, 8)
    first, norm1, act, second, norm2 = block.convs
    f = norm2(F.conv2d(norm1(F.conv2d(x, first.weight, stride=2, padding=1)).relu(), second.weight, padding=1))
    s = block.short[1](F.conv2d(x, block.short[0].weight, stride=2))
    torch.testing.assert_close(block(x), (f + s).relu())
    assert [len(b.short) if isinstance(b.short, nn.Sequential) else 0 for b in stage(4, 6, 1, LayerNorm)] == [2, 0]


def test_the_logits_are_the_head_of_the_mean():
    model = resnet18(width=8)
    torch.testing.assert_close(model(X), F.linear(model.features(X).mean((2, 3)), model.head.weight, model.head.bias))


@pytest.mark.parametrize('wrong, answer', [
    (dict(norm='x'), 'choose layer, batch, group8'),
    (dict(strides=(1,2,3)), 'four numbers, each 1 or 2'),
    (dict(strides=(1,2,2)), 'four numbers, each 1 or 2'),
    (dict(norm='group32', width=16), 'choose a larger width'),
    (dict(norm='group8', width=4), 'choose a larger width'),
    (dict(norm='instance', strides=(2,2,2,2)), 'last map larger than 2×2'),
    (dict(width=0), 'width of at least 1'),
    (dict(num_classes=1), 'at least 2 classes'),
])
def test_wrong_arguments_get_a_sentence(wrong, answer):
    with pytest.raises(ValueError, match=answer): resnet18(**wrong)
    with pytest.raises(ValueError, match=answer):
        check_model(**{**dict(norm='layer', strides=(1,2,2,2), width=64, num_classes=10), **wrong})


def test_the_row_norm_is_the_layer_norm_and_so_are_its_gradients():
    plain = trained(resnet18(width=8).to(memory_format=torch.channels_last))
    rows, x = by_rows(deepcopy(plain)), X.to(memory_format=torch.channels_last)
    assert sum(type(m) is RowNorm for m in rows.modules()) == 20
    torch.testing.assert_close(rows(x), plain(x), atol=1e-5, rtol=1e-5)
    for a, b in zip(*(torch.autograd.grad(m(x).square().sum(), [*m.parameters()]) for m in (rows, plain))):
        assert (a - b).abs().max() <= 1e-3*b.abs().max()


def test_only_whole_filters_of_convolutions_are_centred():
    model = resnet18(width=8)
    head, norm = model.head.weight.detach().clone(), model.stem[1].weight.detach().clone()
    centre_filters(model)
    filters = [m.weight.detach() for m in model.modules() if isinstance(m, nn.Conv2d)]
    for w in filters: assert w.mean((1, 2, 3)).abs().max() < 1e-7
    assert max(w.mean((2, 3)).abs().max() for w in filters) > .01            # a channel of a filter may keep a mean
    assert torch.equal(model.head.weight, head) and torch.equal(model.stem[1].weight, norm)


@pytest.fixture
def file(tmp_path):
    path = tmp_path/'weights.safetensors'
    path.write_bytes(weights_file(resnet18(width=8, strides=(1,1,2,2)), classes=[*'abcdefghij']))
    return path


def rewritten(path, change, **about):
    "The file with other weights, or another word about them."
    weights = load_weights(path).state_dict()
    change(weights)
    path.write_bytes(save(weights, {k: json.dumps(v) for k, v in {**weights_metadata(path), **about}.items()}))
    return path


@pytest.mark.parametrize('change, about, why', [
    (lambda w: w.pop('head.bias'), {}, 'Missing key'),
    (lambda w: w.update({'head.bias': torch.zeros(3)}), {}, 'size mismatch'),
    (lambda w: w.update({'head.bias': torch.full((10,), float('nan'))}), {}, 'not all are finite'),
    (lambda w: None, dict(width=16), 'size mismatch'),
    (lambda w: None, dict(norm='x'), 'there is no norm'),
    (lambda w: None, dict(strides=[1,2]), 'four numbers'),
])
def test_files_that_hold_no_model_of_ours(file, change, about, why):
    with pytest.raises(ValueError, match=f'does not hold the weights of one of our models .*{why}'):
        load_weights(rewritten(file, change, **about))


def test_a_file_that_is_missing(tmp_path):
    with pytest.raises(OSError): load_weights(tmp_path/'none')


def test_a_loaded_model_evaluates(file): assert not any(m.training for m in load_weights(file).modules())


def test_pretrained(file, monkeypatch):
    "The file says what is not asked for; another request is refused."
    monkeypatch.setattr(module, 'WEIGHTS', file.parent)
    with pytest.raises(FileNotFoundError, match='train a model'): resnet18(pretrained=True)
    file.rename(file.parent/'cifar10.safetensors')
    assert resnet18(pretrained=True).config == dict(norm='layer', strides=(1,1,2,2), width=8, num_classes=10)
    assert resnet18(width=8, strides=[1,1,2,2], pretrained=True).config['width'] == 8
    with pytest.raises(ValueError, match='the pretrained model has width 8, not 7'): resnet18(width=7, pretrained=True)
