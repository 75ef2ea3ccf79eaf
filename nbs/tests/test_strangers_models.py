"""Models that strangers bring: what a layer's axes mean, where the logits are, which run of a layer is meant.

A value is either captum's gradient put together by hand, in the way that the row says, or arithmetic; what cannot be
known for sure must be a sentence that names what was seen and which argument settles it.
"""
import math, warnings
from collections import namedtuple
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
from captum._utils.gradient import compute_layer_gradients_and_eval
from PIL import Image
from torch import nn

from cifar_resnet.core import seeded
from cifar_resnet.gradcam import (METHODS, contrast, gradcam, map_layers, overlay, receptive_fields, upsample, weighted)
from cifar_resnet.model import resnet18

pytestmark = pytest.mark.filterwarnings('ignore:no positive evidence', 'ignore:no evidence at all', 'ignore:at layer', 'ignore::FutureWarning')


def images(n=2, side=32, wide=None, channels=3):
    return torch.randn(n, channels, side, wide or side, generator=torch.Generator().manual_seed(1))

def made(make, *args, **kw):
    "A model with random weights everywhere: many start with a head of zeros, and then no logit has a gradient."
    with seeded('strangers', str(args)):
        model = make(*args, **kw).eval()
        with torch.no_grad():
            for p in model.parameters(): p.add_(.02*torch.randn_like(p))
    return model

def by_hand(model, x, target, layer, read, method='gradcam', logits=lambda out: out):
    """Signed maps from captum's gradients and activations, and the size of what they are sums of.
    `read`: (B,...) -> (B,C,h,w), written out for this layer."""
    module = model.get_submodule(layer)
    grads, acts = compute_layer_gradients_and_eval(lambda x: logits(model(x)), module, x, target)
    a, g = read(acts[0].detach()), read(grads[0])
    return weighted(a, g, method), (a*g).abs().sum(1).max().item()


# 1. Networks from torchvision, timm and transformers

def cells_last(a): return a.permute(0, 3, 1, 2)                                   # (B,h,w,C)
def cells_first(a): return a                                                      # (B,C,h,w)
def tokens(left_out, h, w=None):                                                  # (B,left_out+h·w,C)
    return lambda a: a[:, left_out:].reshape(len(a), h, w or h, -1).permute(0, 3, 1, 2)
def its_logits(out): return out.logits

def torchvision_model(name, **kw): return getattr(torchvision.models, name)(weights=None, **kw)
def small_vit(**kw):
    kw = dict(image_size=32, patch_size=4, num_layers=3, num_heads=2, hidden_dim=24, mlp_dim=32, num_classes=7) | kw
    return torchvision.models.VisionTransformer(**kw)
def small_swin(norm=None):
    return torchvision.models.SwinTransformer([2, 2], 12, [1, 2], [2, 2], [4, 4], num_classes=7)

def of_timm(name, **kw):
    timm = pytest.importorskip('timm', reason='timm is not installed')
    return timm.create_model(name, pretrained=False, num_classes=7, **kw)
def of_transformers(config, model, **kw):
    transformers = pytest.importorskip('transformers', reason='transformers is not installed')
    return getattr(transformers, model)(getattr(transformers, config)(num_labels=7, **kw))
VIT = dict(hidden_size=24, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=4)

REAL = {          # what: how it is made, the side of its pictures, a layer, how it is read, the default layer, its logits
    'torchvision ViT-B/16': (lambda: torchvision_model('vit_b_16', num_classes=7), 224,
        'encoder.layers.encoder_layer_10', tokens(1, 14), 'encoder.layers.encoder_layer_11.ln_1'),
    'torchvision Swin-T': (lambda: torchvision_model('swin_t', num_classes=7), 224, 'norm', cells_last, 'permute'),
    'torchvision ConvNeXt-T': (lambda: torchvision_model('convnext_tiny', num_classes=7), 64,
        'features.7.2.block.2', cells_last, 'features'),
    'torchvision ResNet-50': (lambda: torchvision_model('resnet50', num_classes=7), 64, 'layer4', cells_first, 'layer4'),
    'a small ViT': (small_vit, 32, 'encoder.layers.encoder_layer_1', tokens(1, 8), 'encoder.layers.encoder_layer_2.ln_1'),
    'a small Swin': (small_swin, 32, 'features.1.0.norm1', cells_last, 'permute'),
    'timm DeiT': (lambda: of_timm('deit_tiny_patch16_224', img_size=64, depth=3), 64,
        'blocks.1', tokens(1, 4), 'blocks.2.norm1'),
    'timm DeiT, distilled': (lambda: of_timm('deit_tiny_distilled_patch16_224', img_size=64, depth=3), 64,
        'blocks.1', tokens(2, 4), 'blocks.2.norm1'),
    'timm ViT with registers': (lambda: of_timm('vit_small_patch14_reg4_dinov2', img_size=56, depth=3), 56,
        'blocks.1', tokens(5, 4), 'blocks.2.norm1'),
    'timm ViT, mean of tokens': (lambda: of_timm('vit_tiny_patch16_224', img_size=64, depth=2, global_pool='avg',
        class_token=False), 64, 'blocks.1', tokens(0, 4), 'blocks'),
    'timm Swin-T': (lambda: of_timm('swin_tiny_patch4_window7_224', img_size=64, window_size=4, embed_dim=12, depths=(1,1,1,1)),
        64, 'layers.2.blocks.0', cells_last, 'norm'),
    'timm Swin-T, inside a block': (lambda: of_timm('swin_tiny_patch4_window7_224', img_size=64, window_size=4, embed_dim=12,
        depths=(1,1,1,1)), 64, 'layers.2.blocks.0.mlp', tokens(0, 4), 'norm'),
    'timm ConvNeXt': (lambda: of_timm('convnext_atto'), 64, 'stages.3', cells_first, 'norm_pre'),
    'timm CoAtNet': (lambda: of_timm('coatnet_pico_rw_224', img_size=64), 64, 'stages.3', cells_first, 'norm'),
    'timm MambaOut': (lambda: of_timm('mambaout_femto'), 64, 'stages.3', cells_last, 'stages'),
    'transformers ViT': (lambda: of_transformers('ViTConfig', 'ViTForImageClassification', **VIT), 32,
        'vit.layers.1', tokens(1, 8), 'vit.layers.2.layernorm_before', its_logits),
    'transformers DeiT': (lambda: of_transformers('DeiTConfig', 'DeiTForImageClassification', **VIT), 32,
        'deit.layers.1', tokens(2, 8), 'deit.layers.2.layernorm_before', its_logits),
    'transformers DINOv2 with registers': (lambda: of_transformers('Dinov2WithRegistersConfig',
        'Dinov2WithRegistersForImageClassification', **VIT), 32,
        'dinov2_with_registers.layernorm', tokens(5, 8), 'dinov2_with_registers.layernorm', its_logits),
    'transformers Swin': (lambda: of_transformers('SwinConfig', 'SwinForImageClassification', image_size=32, patch_size=2,
        embed_dim=12, depths=[1,1], num_heads=[2,2], window_size=4), 32,
        'swin.layernorm', tokens(0, 8), 'swin.layernorm', its_logits),
    'transformers Swin, as many cells as a table of biases': (lambda: of_transformers('SwinConfig', 'SwinForImageClassification',
        image_size=64, patch_size=2, embed_dim=24, depths=[1,1], num_heads=[2,2], window_size=4), 64,
        'swin.layernorm', tokens(0, 16), 'swin.layernorm', its_logits),
    'transformers ConvNeXt': (lambda: of_transformers('ConvNextConfig', 'ConvNextForImageClassification',
        hidden_sizes=[8,16], depths=[1,1], num_stages=2), 64,
        'convnext.encoder.stages.1', cells_first, 'convnext.encoder.stages.1', its_logits)}

@pytest.mark.parametrize('what', REAL)
def test_real_networks_are_read_as_captum_and_the_hand_say(what):
    make, side, layer, read, last, *logits = REAL[what]
    model, x = made(make), images(1 if side > 200 else 2, side)
    for method in METHODS:
        expected, size = by_hand(model, x, 3, layer, read, method, *logits)
        torch.testing.assert_close(gradcam(model, x, 3, layer, method, relu=False), expected, rtol=1e-3, atol=1e-5*size)
    default = gradcam(model, x, 3, relu=False)
    assert default.abs().max() > 0                            # the class listens there
    torch.testing.assert_close(default, gradcam(model, x, 3, last, relu=False))


# 2. What a layer's axes mean, on small networks of one's own

class Net(nn.Module):
    "A first layer, what `body` makes of it (a layer), and logits from the mean over everything but images and channels."
    def __init__(self, first, body, mean=(2,3), channels=8):
        super().__init__()
        self.first, self.body, self.mean, self.head = first, body, mean, nn.Linear(channels, 4)
    def forward(self, x): return self.head(self.body(self.first(x)).mean(self.mean))

class Do(nn.Module):
    "A function as a layer."
    def __init__(self, f): super().__init__(); self.f = f
    def forward(self, *args): return self.f(*args)

def patches(channels=8, size=4): return nn.Conv2d(3, channels, size, size)          # 32×32 -> 8×8
def last(): return Do(cells_tolast)
def cells_tolast(a): return a.permute(0, 2, 3, 1)
def flat_tokens(a): return a.flatten(2).transpose(1, 2)                             # (B,h·w,C)

class Strict(Net):
    "Takes pictures of its own size only."
    def forward(self, x):
        if x.shape[2:] != (32, 32): raise ValueError('this network takes 32×32')
        return super().forward(x)

class WithToken(nn.Module):
    "Tokens with others in front, in the middle or behind, mixed by attention; the mean of `heard` is classified."
    def __init__(self, before=1, after=0, heard=None):
        super().__init__()
        self.embed, self.before, self.heard = patches(), before, heard
        self.extra = nn.Parameter(torch.randn(1, before + after, 8))
        self.block, self.head = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Linear(8, 4)
    def forward(self, x):
        t, extra = flat_tokens(self.embed(x)), self.extra.expand(len(x), -1, -1)
        n = self.before if self.before >= 0 else t.shape[1]//2
        if self.before < 0: t = torch.cat([t[:, :n], extra, t[:, n:]], 1)
        else: t = torch.cat([extra[:, :n], t, extra[:, n:]], 1)
        t = self.block(t)
        return self.head(t.mean(1) if self.heard is None else t[:, self.heard])

class Middle(nn.Module):
    "A scan over tokens with the class token in their middle, as in Vision Mamba, behind a convolutional stem."
    def __init__(self):
        super().__init__()
        self.stem, self.token = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1)), nn.Parameter(torch.randn(8))
        self.norm, self.scan, self.head = nn.LayerNorm(8), nn.GRU(8, 8, batch_first=True, bidirectional=True), nn.Linear(16, 4)
    def forward(self, x):
        t = flat_tokens(self.stem(x))
        t = self.norm(torch.cat([t[:, :32], self.token.expand(len(x), 1, -1), t[:, 32:]], 1))
        return self.head(self.scan(t)[0][:, 32])

class Sequence(nn.Module):
    "Tokens first, then images: (L,B,C), as nn.TransformerEncoderLayer has it by default."
    def __init__(self):
        super().__init__()
        self.embed, self.block, self.head = patches(), nn.TransformerEncoderLayer(8, 2, 16), nn.Linear(8, 4)
    def forward(self, x): return self.head(self.block(self.embed(x).flatten(2).permute(2, 0, 1)).mean(0))

class Biased(nn.Module):
    "Returns a table of position biases from a layer, which is the same for every image."
    def __init__(self):
        super().__init__()
        self.embed, self.table, self.head = patches(), Table(), nn.Linear(8, 4)
    def forward(self, x):
        t = flat_tokens(self.embed(x))
        return self.head(((t @ t.transpose(1, 2) + self.table().mean(1)).softmax(2) @ t).mean(1))

class Table(nn.Module):
    def __init__(self): super().__init__(); self.bias = nn.Parameter(torch.randn(1, 2, 64, 64))
    def forward(self): return self.bias*1

class Attention(nn.Module):
    "Attention weights (B,heads,L,L) from a layer."
    def __init__(self):
        super().__init__()
        self.embed, self.tokens, self.weights, self.head = patches(), Do(flat_tokens), nn.Softmax(-1), nn.Linear(8, 4)
    def forward(self, x):
        t = self.tokens(self.embed(x))
        w = self.weights((t @ t.transpose(1, 2))[:, None].repeat(1, 2, 1, 1))
        return self.head((w.mean(1) @ t).mean(1))

def first(c, size=4): return Net(patches(c, size), nn.ReLU(), channels=c)
def backwards(a): return a.permute(0, 3, 1, 2)
AXES = {          # what: the network, the pictures, a layer, how it is read by hand
    'as many channels as rows, first': (lambda: first(8), images(), 'body', cells_first),
    'as many channels as rows, last': (lambda: Net(patches(), last(), (1,2)), images(), 'body', cells_last),
    'as many channels as rows, a head for one size': (lambda: nn.Sequential(patches(), nn.ReLU(), nn.Flatten(), nn.Linear(512, 4)),
        images(), '1', cells_first),
    'more channels than rows, last, of one size': (lambda: Strict(patches(24), last(), (1,2), 24), images(), 'body', cells_last),
    'rows and columns differ, first': (lambda: first(8), images(wide=64), 'body', cells_first),
    'rows and columns differ, last': (lambda: Net(patches(), last(), (1,2)), images(wide=64), 'body', cells_last),
    'three channels, last': (lambda: Net(patches(3), last(), (1,2), 3), images(), 'body', cells_last),
    'as many images as channels': (lambda: Net(patches(3), last(), (1,2), 3), images(3), 'body', cells_last),
    'as many images as rows': (lambda: Net(patches(), last(), (1,2)), images(8), 'body', cells_last),
    'strides that differ': (lambda: Net(nn.Conv2d(3, 8, 3, (4,2), 1), nn.ReLU()), images(), 'body', cells_first),
    'fixed to 4×4 whatever the picture': (lambda: Net(patches(8, 2), nn.AdaptiveAvgPool2d(4)), images(), 'body', cells_first),
    'as many rows as columns as channels, of one size': (lambda: Strict(patches(), last(), (1,2)), images(), 'body', cells_last),
    'patches without a convolution, of one size': (lambda: linear_patches(), images(), 'body', tokens(0, 8)),
    'tokens without a class token': (lambda: Net(patches(), Do(flat_tokens), 1), images(), 'body', tokens(0, 8)),
    'tokens of a wide picture': (lambda: Net(patches(), Do(flat_tokens), 1), images(wide=64), 'body', tokens(0, 8, 16)),
    'tokens, channels first': (lambda: Net(patches(24), Do(lambda a: a.flatten(2)), 2, 24), images(), 'body',
        lambda a: a.unflatten(2, (8,8))),
    'as many tokens as channels': (lambda: Net(patches(64), Do(flat_tokens), 1, 64), images(), 'body', tokens(0, 8)),
    'a class token': (lambda: WithToken(1, 0, 0), images(), 'block.norm1', tokens(1, 8)),
    'a class token and registers': (lambda: WithToken(5, 0, 0), images(), 'block.norm1', tokens(5, 8)),
    'a class token behind': (lambda: WithToken(0, 1), images(), 'block', lambda a: tokens(0, 8)(a[:, :64])),
    'a class token in the middle': (Middle, images(), 'norm', lambda a: tokens(0, 8)(torch.cat([a[:, :32], a[:, 33:]], 1))),
    'tokens first, then images': (Sequence, images(), 'block', lambda a: tokens(0, 8)(a.transpose(0, 1))),
    'tokens first, one image': (Sequence, images(1), 'block', lambda a: tokens(0, 8)(a.transpose(0, 1)))}

@pytest.mark.parametrize('what', AXES)
def test_axes_that_can_be_told(what):
    make, x, layer, read = AXES[what]
    model = made(make)
    for method in METHODS:
        expected, size = by_hand(model, x, 1, layer, read, method)
        for found in (gradcam(model, x, 1, layer, method, relu=False), gradcam(model, x, 'all', layer, method, relu=False)[:,1]):
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5*size)

def unsure(shape): return rf'but \({shape}\) for 7 images, and which of its axes are places is not sure: say so by reshape= '
def linear_patches(position=True):
    "Patches without a convolution, and a position for each: nothing tells what grid they are."
    cut = Do(lambda x: x.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2))
    return Strict(nn.Sequential(cut, nn.Linear(48, 8)), nn.Identity(), 1)

class Mixed(Net):
    "What the body returns is mixed over all places before, so that nothing is seen where it was; of one size."
    def __init__(self, *args, **kw):
        super().__init__(*args, **kw)
        self.mix = nn.Linear(64, 64, bias=False)
    def forward(self, x):
        if x.shape[2:] != (32, 32): raise ValueError('this network takes 32×32')
        a = self.first(x)
        return self.head(self.body(self.mix(a.flatten(2)).view_as(a)).mean(self.mean))

class NonLocal(nn.Module):
    "Attention of places to places, (B,1,64,64), as in non-local networks."
    def __init__(self): super().__init__(); self.c, self.soft, self.h = patches(), nn.Softmax(-1), nn.Linear(8, 4)
    def forward(self, x):
        q = self.c(x).flatten(2)
        return self.h((q @ self.soft((q.transpose(1, 2) @ q)[:, None])[:, 0].mT).mean(2))

class Queries(nn.Module):
    "As many learned queries as there are cells: they are no places."
    def __init__(self):
        super().__init__()
        self.e, self.q = patches(16), nn.Parameter(torch.randn(1, 64, 16))
        self.d, self.h = nn.TransformerDecoderLayer(16, 2, 32, batch_first=True), nn.Linear(16, 4)
    def forward(self, x): return self.h(self.d(self.q.expand(len(x), -1, -1), flat_tokens(self.e(x))).mean(1))

class ZeroTable(Biased):
    "A table of zeros for as many heads as there are images."
    def __init__(self, heads):
        super().__init__()
        self.table.bias = nn.Parameter(torch.zeros(heads, 1, 64, 64))

class SevenHeads(Biased):
    "A table of biases for seven heads, as many as there are images of noise."
    def __init__(self): super().__init__(); self.table.bias = nn.Parameter(torch.randn(7, 1, 64, 64))

class Diffuse(nn.Module):
    "Attention of places to places, once every place has been mixed with all others."
    def __init__(self): super().__init__(); self.c, self.a, self.h = patches(), Do(self.attention), nn.Linear(8, 4)
    def attention(self, q): return (q.transpose(1, 2) @ q)[:, None]
    def forward(self, x):
        q = self.c(x).flatten(2)
        q = q + 100*q.mean(2, keepdim=True)
        return self.h((q @ self.a(q)[:, 0]).mean(2))

def order(f): return lambda: Net(patches(), Do(f), 1)
SHUFFLED = torch.randperm(64, generator=torch.Generator().manual_seed(0))
NOT_SURE = {      # what: the network, the pictures, the layer, what is said
    'mixed, channels last, of one size': (lambda: Mixed(patches(), last(), (1,2)), images(), 'body', unsure('7, 8, 8, 8')),
    'attention of places to places': (NonLocal, images(), 'soft', unsure('7, 1, 64, 64')),
    'a Gram matrix': (lambda: Net(patches(16), Do(lambda a: (a.flatten(2) @ a.flatten(2).mT)[:, None]), channels=1), images(), 'body', unsure('7, 1, 16, 16')),
    'learned queries': (Queries, images(), 'd', unsure('7, 64, 16')),
    'tokens column by column': (order(lambda a: flat_tokens(a.mT)), images(), 'body', unsure('7, 64, 8')),
    'tokens from the end': (order(lambda a: flat_tokens(a).flip(1)), images(), 'body', unsure('7, 64, 8')),
    'tokens in random order': (order(lambda a: flat_tokens(a)[:, SHUFFLED]), images(), 'body', unsure('7, 64, 8')),
    'tokens block by block': (order(lambda a: a.unfold(2,4,4).unfold(3,4,4).flatten(4).flatten(2, 4).mT), images(), 'body', unsure('7, 64, 8')),
    'rows exchanged with columns': (lambda: Net(patches(), Do(lambda a: a.mT)), images(), 'body', unsure('7, 8, 8, 8')),
    'attention of places that are mixed': (Diffuse, images(), 'a', unsure('7, 1, 64, 64')),
    'a table for seven heads': (SevenHeads, images(), 'table', 'does not return a map|returns 7 maps'),
    'a table of zeros': (lambda: ZeroTable(7), images(), 'table', 'does not return a map|returns 7 maps'),
    'a row of 16 columns, which is no 4×4': (lambda: Net(nn.Conv2d(3, 8, (32,2), (32,2)), Do(lambda a: flat_tokens(a)), 1), images(),
        'body', unsure('7, 16, 8')),
    'position biases': (Biased, images(1), 'table', r'layer table returns 1 maps for 7 images: choose a layer that returns one for each'),
    'attention of tokens to tokens': (Attention, images(), 'weights', unsure('7, 2, 64, 64')),
    'windows': (lambda: Net(patches(), Do(lambda a: a.unfold(2,4,4).unfold(3,4,4).permute(0,2,3,1,4,5).flatten(0,2)), (1,2,3), 8),
        images(1), 'body', 'returns 28 maps for 7 images'),
    'logits': (lambda: first(8), images(), 'head', r'does not return a map \(B,C,h,w\), but \(7, 4\) for 7 images; choose one of'),
    'five axes': (lambda: Net(patches(), Do(lambda a: a.unflatten(1, (2,4)))), images(), 'body', unsure('7, 2, 4, 8, 8'))}

@pytest.mark.parametrize('what', NOT_SURE)
def test_axes_that_cannot_be_told(what):
    make, x, layer, said = NOT_SURE[what]
    with seeded('strangers', what): model = make()
    if what == 'windows': model.forward = lambda x: model.head(model.body(model.first(x)).mean((2,3)).unflatten(0, (len(x), -1)).mean(1))
    if what == 'five axes': model.forward = lambda x: model.head(model.body(model.first(x)).flatten(1, 2).mean((2,3)))
    with pytest.raises(ValueError, match=said) as e: gradcam(model, x, 1, layer)
    assert len(str(e.value).splitlines()) == 1

def test_layers_that_are_passed_over_are_said():
    "The last map that is sure is not the last map."
    model, x = made(lambda: Strict(nn.Sequential(patches(24), nn.ReLU()), Do(lambda a: a.flatten(2)[:, :, :60].transpose(1, 2)), 1, 24)), images()
    for _ in range(2):
        with pytest.warns(UserWarning, match=r"layers behind 'first', such as 'body' with \(7, 60, 24\) for 7 images, are passed over") as said:
            gradcam(model, x, 1)
        assert said[0].filename == __file__

def test_position_biases_are_never_the_default():
    model = made(Biased)
    assert 'table' not in map_layers(model, images(1)) and gradcam(model, images(1), 1).shape == (1, 8, 8)


RESHAPED = {      # what: the network, the layer, reshape, how it is read by hand
    'by a function': (linear_patches, 'body', tokens(0, 8), tokens(0, 8)),
    'tokens': (linear_patches, 'body', 'tokens', tokens(0, 8)),
    'tokens behind a class token': (lambda: WithToken(1, 0, 0), 'block.norm1', 'tokens', tokens(1, 8)),
    'channels last': (lambda: Strict(patches(), last(), (1,2)), 'body', 'channels_last', cells_last),
    'channels first': (lambda: Strict(patches(), nn.ReLU()), 'body', 'channels_first', cells_first)}

@pytest.mark.parametrize('what', RESHAPED)
def test_whoever_knows_says_so(what):
    make, layer, reshape, read = RESHAPED[what]
    model, x = made(make), images()
    for method in METHODS:
        expected, size = by_hand(model, x, 2, layer, read, method)
        found = gradcam(model, x, 2, layer, method, relu=False, reshape=reshape)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5*size)
    why = contrast(model, x, 1, 2, layer, reshape=reshape)
    torch.testing.assert_close(why.target, gradcam(model, x, 2, layer, relu=False, reshape=reshape))
    assert receptive_fields(model, x, layer, reshape).shape[2:] == (32, 32)

@pytest.mark.parametrize('reshape, said', [
    ('token', "no reshape 'token': give a function to .*, or one of channels_first, channels_last, tokens"),
    ('channels_last', 'reshape does not fit a Tensor'),
    (lambda a: a, r'must give a map \(B,C,h,w\) for each of 2 images, not a Tensor \(2, 64, 8\)'),
    (lambda a: a[:1, None], 'for each of 2 images'),
    (lambda a: None, 'not None'),
    (lambda a: a.view(7, 7), 'reshape does not fit a Tensor'),
    (3, 'no reshape 3')])
def test_a_wrong_reshape(reshape, said):
    with pytest.raises(ValueError, match=said): gradcam(made(linear_patches), images(), 1, 'body', reshape=reshape)

def test_the_same_model_is_watched_once():
    model, x, runs = made(lambda: first(8)), images(), []
    model.first.register_forward_hook(lambda *_: runs.append(1))
    gradcam(model, x, 1); once = len(runs)
    gradcam(model, x, 1)
    assert len(runs) == once + 1                                     # and then a map costs one forward pass
    model.body = nn.Sequential(nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1))  # another module: it is watched again
    assert gradcam(model, x, 1).shape == (2, 4, 4)


# 3. Where the logits are

class Heads(nn.Module):
    "Returns what `make` makes of two heads' logits."
    def __init__(self, make, classes=(4, 3)):
        super().__init__()
        self.eye = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())
        self.one, self.two, self.make = nn.Linear(8, classes[0]), nn.Linear(8, classes[1]), make
    def forward(self, x):
        a = self.eye(x).mean((2,3))
        return self.make(self.one(a), self.two(a))

Record = namedtuple('Record', 'first second')
class Output(dict):
    "As the ModelOutput of transformers: a dict whose entries are attributes."
    __getattr__ = dict.__getitem__

OUTPUTS = {       # what: what the model returns of its heads, output=, the logits by hand
    'a tensor': (lambda a, b: a, None, lambda out: out),
    'a ModelOutput': (lambda a, b: Output(loss=None, logits=a, hidden_states=b), None, lambda out: out.logits),
    'a dict with logits': (lambda a, b: dict(logits=a, features=b), None, lambda out: out['logits']),
    'a record with logits': (lambda a, b: SimpleNamespace(logits=a, other=b), None, lambda out: out.logits),
    'a tuple of one': (lambda a, b: (a,), None, lambda out: out[0]),
    'a dict of one': (lambda a, b: dict(score=a), None, lambda out: out['score']),
    'heads by key': (lambda a, b: dict(kind=a, colour=b), 'colour', lambda out: out['colour']),
    'another than the logits': (lambda a, b: dict(logits=a, aside=b), 'aside', lambda out: out['aside']),
    'heads by index': (lambda a, b: (a, b), 1, lambda out: out[1]),
    'heads by index, from the end': (lambda a, b: [a, b], -1, lambda out: out[-1]),
    'an attribute': (lambda a, b: SimpleNamespace(kind=a, colour=b), 'colour', lambda out: out.colour),
    'a named tuple by index': (lambda a, b: Record(a, b), 1, lambda out: out.second),
    'by a function': (lambda a, b: [[a], [b]], lambda out: out[1][0], lambda out: out[1][0]),
    'a sum of heads': (lambda a, b: (a[:, :3], b), lambda out: out[0] + out[1], lambda out: out[0] + out[1])}

@pytest.mark.parametrize('what', OUTPUTS)
def test_logits_are_found(what):
    make, output, read = OUTPUTS[what]
    model, x = made(Heads, make), images()
    logits = read(model(x)).detach()
    expected = [by_hand(model, x, c, 'eye', cells_first, 'gradcam', read) for c in range(logits.shape[1])]
    every = gradcam(model, x, 'all', 'eye', relu=False, output=output)
    for c, (m, size) in enumerate(expected): torch.testing.assert_close(every[:,c], m, rtol=1e-4, atol=1e-6*size)
    best = logits.argmax(1)
    torch.testing.assert_close(gradcam(model, x, relu=False, output=output), every[range(2), best])          # the default layer
    why = contrast(model, x, (best + 1) % logits.shape[1], output=output)
    torch.testing.assert_close(why.margin, logits[range(2), best] - logits[range(2), (best + 1) % logits.shape[1]])

@pytest.mark.parametrize('make, output, said', [
    (lambda a, b: (a, b), None, r'not a tuple with 0: a Tensor \(2, 4\) of float32, 1: a Tensor \(2, 3\) of float32: output= says'),
    (lambda a, b: dict(kind=a, colour=b), None, "not a dict with 'kind': a Tensor"),
    (lambda a, b: dict(kind=a), 'colour', "no output 'colour': the model returns a dict with 'kind'"),
    (lambda a, b: (a, b), 2, 'no output 2: the model returns a tuple with 0'),
    (lambda a, b: a, 'kind', "no output 'kind': the model returns a Tensor"),
    (lambda a, b: SimpleNamespace(kind=a), None, 'not a SimpleNamespace: output= says'),
    (lambda a, b: a, lambda out: out.argmax(1), r'not a Tensor \(2,\) of int64'),
    (lambda a, b: a[:, :, None], None, r'must give logits \(B,C\), one row an image, not a Tensor \(2, 4, 1\)'),
    (lambda a, b: a.argmax(1), None, 'not a Tensor .* of int64'),
    (lambda a, b: None, None, 'not None'),
    (lambda a, b: a.tolist(), None, 'not a list')])
def test_logits_that_are_not_found(make, output, said):
    with pytest.raises(ValueError, match=said) as e: gradcam(made(Heads, make), images(), 1, 'eye', output=output)
    assert len(str(e.value).splitlines()) == 1


ONE = {           # what: what the model returns of its single logit z (B,1)
    '(B,1)': lambda z, _: z,
    '(B,)': lambda z, _: z[:,0],
    'of a dict': lambda z, _: dict(logits=z),
    'a probability': lambda z, _: z.sigmoid(),
    'a probability (B,)': lambda z, _: z.sigmoid()[:,0]}

@pytest.mark.parametrize('n', [1, 3])
@pytest.mark.parametrize('what', ONE)
def test_a_single_logit_has_two_sides(what, n):
    model, x = made(Heads, ONE[what], (1, 1)), images(n)
    a = model.eye(x)
    z = model.one(a.mean((2,3)))[:,0].detach()
    with torch.no_grad(): model.one.bias -= z[0] + .1                    # the first image is a no
    z = z - z[0] - .1
    slope = z.sigmoid()*(1 - z.sigmoid()) if 'probability' in what else torch.ones(n)
    plus = (torch.einsum('k,bkhw->bhw', model.one.weight[0], a)/a[0,0].numel()*slope[:,None,None]).detach()
    every = gradcam(model, x, 'all', 'eye', relu=False)
    torch.testing.assert_close(every, torch.stack([-plus, plus], 1), rtol=1e-4, atol=1e-7)      # the negative first
    for target in (0, 1): torch.testing.assert_close(gradcam(model, x, target, 'eye', relu=False), every[:,target])
    sign = torch.where(z > 0, 1, -1)[:,None,None]
    torch.testing.assert_close(gradcam(model, x, relu=False), plus*sign, rtol=1e-4, atol=1e-7)
    assert z[0] < 0
    for target in (2, -1):
        with pytest.raises(ValueError, match='between 0 and 1, since the model has 2 classes'): gradcam(model, x, target)


# 4. A module that runs more than once, and one that nobody listens to

class Shared(nn.Module):
    "One ReLU, run three times; its name comes first."
    def __init__(self):
        super().__init__()
        self.act, self.a, self.b, self.c = nn.ReLU(), nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1)
        self.head = nn.Linear(8, 4)
    def maps(self, x):
        one = self.act(self.a(x)); two = self.act(self.b(one)); return one, two, self.act(self.c(two))
    def forward(self, x): return self.head(self.maps(x)[2].mean((2,3)))

def test_each_run_of_a_shared_module():
    model, x = made(Shared), images()
    one, two, three = (m.detach().requires_grad_() for m in model.maps(x))
    behind = {'act@0': (one, lambda a: model.act(model.c(model.act(model.b(a))))), 'act@1': (two, lambda a: model.act(model.c(a))),
              'act@2': (three, lambda a: a), 'act': (three, lambda a: a), None: (three, lambda a: a)}
    for layer, (a, rest) in behind.items():
        g, = torch.autograd.grad(model.head(rest(a).mean((2,3)))[:,1].sum(), a)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore' if layer == 'act' else 'error')           # who says which is not warned
            found = gradcam(model, x, 1, layer, 'hirescam', relu=False)
        torch.testing.assert_close(found, weighted(a, g, 'hirescam').detach(), rtol=1e-4, atol=1e-6)
    both = gradcam(model, x, 1, ['act@0', 'b'])
    assert [(k, m.shape[1]) for k, m in both.items()] == [('act@0', 16), ('b', 8)]
    assert list(map_layers(model, x)) == ['a', 'b', 'c', 'act']                     # in the order of runs, not of names
    for layer in ('act@x', 'act@'):
        with pytest.raises(ValueError, match=f'no layer called {layer!r}'): gradcam(model, x, 1, layer)
    with pytest.raises(ValueError, match="there is no 'act@3': act runs 3×, the first is act@0"): gradcam(model, x, 1, 'act@3')

class Aside(Shared):
    "Something is computed last, and thrown away."
    def __init__(self): super().__init__(); self.aside = nn.Conv2d(8, 2, 1)
    def forward(self, x):
        maps = self.maps(x)
        y = self.head(maps[2].mean((2,3)))
        self.aside(maps[2])
        return y

def test_the_default_is_listened_to():
    model, x = made(Aside), images()
    torch.testing.assert_close(gradcam(model, x, 1), gradcam(model, x, 1, 'act@2'))

def test_a_head_of_zeros_costs_no_search():
    model, x = made(small_vit), images()
    nn.init.zeros_(model.heads.head.weight)
    with pytest.warns(UserWarning, match='no evidence at all, for or against'): assert gradcam(model, x, 1).sum() == 0
    nn.init.normal_(model.heads.head.weight)
    assert gradcam(model, x, 1, relu=False).abs().max() > 0                      # nothing was remembered

@pytest.mark.parametrize('layer, arity', [('one', 1), ('pair', 2)])
def test_layers_that_return_tuples(layer, arity):
    class Tuples(nn.Module):
        def __init__(self):
            super().__init__()
            self.eye, self.one, self.pair = nn.Conv2d(3, 8, 4, 4), Do(lambda a: (a*2, None)), Do(lambda a: (a, a.mean((2,3))))
            self.head = nn.Linear(8, 4)
        def forward(self, x):
            a, none = self.one(self.eye(x))
            assert none is None
            return self.head(self.pair(a)[1])
    model, x = made(Tuples), images()
    if arity == 1:
        expected = torch.einsum('k,bkhw->bhw', model.head.weight[1], 2*model.eye(x)).detach()/64
        torch.testing.assert_close(gradcam(model, x, 1, 'one', relu=False), expected, rtol=1e-4, atol=1e-6)
    else:
        with pytest.raises(ValueError, match='layer pair returns no tensor that could be a map'): gradcam(model, x, 1, 'pair')


# 5. Maps that say nothing

def test_one_cell_that_was_spread():
    "VGG ends in an adaptive pool: of a picture of 32×32 that is one cell, laid out as 7×7."
    with seeded('strangers', 'vgg'): model = torchvision.models.vgg11(weights=None, num_classes=4)
    x = images()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        default = gradcam(model, x, 1, relu=False)
    assert 'avgpool' not in map_layers(model, x) and default.shape == (2, 2, 2)
    with pytest.warns(UserWarning, match="all cells of layer 'avgpool' are the same") as said: gradcam(model, x, 1, 'avgpool', relu=False)
    assert said[0].filename == __file__
    large = gradcam(model, images(1, 224), 1, relu=False)                     # 7×7 cells that differ
    torch.testing.assert_close(large, gradcam(model, images(1, 224), 1, 'avgpool', relu=False))

@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize('target', [1, 'all'])
def test_numbers_that_are_not_finite(value, target):
    model, x = made(Heads, lambda a, b: a), images(4)
    clean = gradcam(model, x, target, 'eye', relu=False)
    x[1] = value; x[3,0,5,5] = value
    with pytest.warns(UserWarning, match=r"layer 'eye' are not finite \(NaN or infinity\) for images 1, 3") as said:
        found = gradcam(model, x, target, 'eye', relu=False)
    assert said[0].filename == __file__
    torch.testing.assert_close(found[::2], clean[::2])                        # the others are as they were
    one = found if target == 1 else found[:,1]
    grey = np.full((4,32,32,3), 100, np.uint8)
    shared = overlay(grey, one, scale='shared', signed=True)
    assert (shared[::2] == overlay(grey[::2], one[::2], scale='shared', signed=True)).all()
    assert (overlay(grey, one)[1] == 100).all()                               # nothing is drawn where nothing is known

def test_infinite_gradients():
    "The square root of 0 has an infinite slope."
    model = made(Heads, lambda a, b: (a - a.detach()).sqrt())
    with pytest.warns(UserWarning, match='not finite .* for images 0, 1'): gradcam(model, images(), 1, 'eye')


# 6. What cannot be watched

def exported():
    model = made(Heads, lambda a, b: a)
    return torch.export.export(model, (images(),))

NOT_WATCHED = {
    'TorchScript, scripted': (lambda: torch.jit.script(nn.Sequential(nn.Conv2d(3,4,3), nn.ReLU())), 'layers of a compiled TorchScript module cannot'),
    'TorchScript, traced': (lambda: torch.jit.trace(made(resnet18, width=4), images()), 'layers of a compiled TorchScript module cannot'),
    'an exported program': (exported, 'layers of a compiled exported program cannot'),
    'its module': (lambda: exported().module(), 'layers of a compiled exported program cannot'),
    'weights alone': (lambda: made(resnet18, width=4).state_dict(), 'not an OrderedDict: build the model, and load_state_dict'),
    'a function': (lambda: lambda x: x, 'must be a torch.nn.Module, not a function'),
    'a path': (lambda: 'runs/x', "must be a torch.nn.Module, not 'runs/x'"),
    'nothing': (lambda: None, 'must be a torch.nn.Module, not None')}

@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('what', NOT_WATCHED)
def test_what_cannot_be_watched(what):
    make, said = NOT_WATCHED[what]
    model = make()
    for call in (lambda: gradcam(model, images(), 1), lambda: map_layers(model, images()), lambda: contrast(model, images(), 1),
                 lambda: receptive_fields(model, images())):
        with pytest.raises(ValueError, match=said): call()


# 7. Wrong types

X = images()
WRONG_IMAGES = {
    'a list': ([[1.]], 'images must be a tensor .*, not a list'),
    'a NumPy array': (X.numpy(), r'not a NumPy array \(2, 3, 32, 32\) of float32'),
    'a path': ('cat.png', "not 'cat.png'"),
    'a dict': (dict(x=X), 'not a dict'),
    'a picture': (Image.new('RGB', (32, 32)), 'not an Image'),
    'one image': (X[0], r'not a Tensor \(3, 32, 32\) of float32: give images\[None\]'),
    'no image': (X[:0], 'with at least one image'),
    'bytes': ((X*50).byte(), r'of floating point numbers .*, not a Tensor \(2, 3, 32, 32\) of uint8'),
    'channels last': (X.permute(0,2,3,1), r'they look like \(B,H,W,C\), and must be \(B,C,H,W\): give images.permute\(0,3,1,2\)'),
    'one channel': (X[:,:1], 'the model does not take a Tensor .*channel'),
    'half precision': (X.half(), 'the model does not take a Tensor .* of float16')}

@pytest.mark.parametrize('what', WRONG_IMAGES)
@pytest.mark.parametrize('call', [gradcam, map_layers, receptive_fields, lambda m, x: contrast(m, x, 1)],
                         ids=['gradcam', 'map_layers', 'receptive_fields', 'contrast'])
def test_wrong_images(what, call):
    x, said = WRONG_IMAGES[what]
    with pytest.raises(ValueError, match=said) as e: call(made(resnet18, width=4), x)
    assert len(str(e.value).splitlines()) == 1

@pytest.mark.parametrize('target, said', [
    ('cat', "None or 'all', not 'cat'"), (dict(a=1), 'not a dict'), ([1, 'x'], 'not a list'), (1.5, 'must be class numbers'),
    (True, 'must be class numbers'), ([[1, 2]], r'2 images need 2 targets \(or one int\), not \(1, 2\)'), (object(), 'not an object')])
def test_wrong_targets(target, said):
    with pytest.raises(ValueError, match=said): gradcam(made(resnet18, width=4), X, target)

@pytest.mark.parametrize('target', [[1, 2], (1, 2), np.array([1, 2], np.int16), torch.tensor([1, 2], dtype=torch.uint8)])
def test_targets_of_any_whole_type(target):
    model = made(resnet18, width=4)
    torch.testing.assert_close(gradcam(model, X, target), gradcam(model, X, torch.tensor([1, 2])))


# 8. Pictures under an overlay

def picture(h=6, w=5, seed=0): return np.random.default_rng(seed).integers(0, 256, (2, h, w, 3), np.uint8)
P, GREY, MAPS = picture(), picture()[...,:1], torch.tensor([[[1., 0.]]*2, [[0., 2.]]*2])
ALPHA = np.concatenate([P, np.full((2,6,5,1), 51, np.uint8)], 3)                    # a fifth opaque
ON_WHITE = np.uint8(P*.2 + 255*.8 + .5)
SAME = {          # what: the pictures, and (B,H,W,3) uint8 that must give the same overlay
    'uint8 HWC': (P, P), 'a tensor': (torch.from_numpy(P), P), 'a list': ([*P], P), 'PIL pictures': ([Image.fromarray(p) for p in P], P),
    'CHW': (P.transpose(0,3,1,2), P), 'CHW, a tensor of floats': (torch.from_numpy(P).permute(0,3,1,2)/255, P),
    'whole numbers': (P.astype(np.int64), P), 'true and false': (P > 100, np.uint8(255*(P > 100))),
    'floats': (P/255, P), 'float32': (np.float32(P/255), P), 'float16': (torch.from_numpy(P/255).half(), P),
    'grey HWC': (GREY, GREY.repeat(3, 3)), 'grey CHW': (GREY.transpose(0,3,1,2), GREY.repeat(3, 3)), 'grey (B,H,W)': (GREY[...,0], GREY.repeat(3, 3)),
    'grey floats': (GREY[...,0]/255, GREY.repeat(3, 3)),
    'alpha HWC': (ALPHA, ON_WHITE), 'alpha CHW': (ALPHA.transpose(0,3,1,2), ON_WHITE), 'alpha floats': (ALPHA/255, ON_WHITE)}

@pytest.mark.parametrize('what', SAME)
def test_pictures_as_people_have_them(what):
    given, same = SAME[what]
    found, expected = overlay(given, MAPS).astype(int), overlay(same, MAPS).astype(int)
    assert found.shape == (2,6,5,3) and abs(found - expected).max() <= (1 if 'float16' in what or 'alpha' in what else 0)

@pytest.mark.parametrize('mode', ['L', 'P', '1', 'LA', 'CMYK', 'YCbCr', 'HSV', 'LAB', 'RGBA', 'F', 'I'])
def test_pictures_of_pillow_in_any_mode(mode):
    given = Image.fromarray(P[0]).convert('L' if mode in ('LA', 'F', 'I') else 'RGB').convert(mode)
    expected = overlay(np.asarray(given.convert('RGB')), MAPS[:1])
    assert (overlay(given, MAPS[:1]) == expected).all() and (overlay([given], MAPS[:1]) == expected).all()

def test_maps_of_a_part_of_the_picture():
    with pytest.warns(UserWarning, match='maps of 7×7 cells are stretched over pictures of 60×40 pixels') as said:
        overlay(np.zeros((1,60,40,3), np.uint8), torch.ones(1,7,7))
    assert said[0].filename == __file__
    for wrong in (dict(scale=True), dict(opacity=2), dict(opacity=-1)):
        with pytest.raises(ValueError, match='must be'): overlay(P, MAPS, **wrong)

def test_a_model_that_needs_more_than_pictures():
    class Two(nn.Module):
        def __init__(self): super().__init__(); self.c = patches()
        def forward(self, x, words=None): return self.c(x).mean((2,3)) + words.shape[0]
    with pytest.raises(ValueError, match='if it needs more than pictures, wrap it'): gradcam(Two(), images(), 1)

@pytest.mark.parametrize('given', [P[0], P[0].transpose(2,0,1), P[:1], P[0]/255], ids=['HWC', 'CHW', 'a batch', 'floats'])
def test_one_picture(given): assert (overlay(given, MAPS[:1]) == overlay(P[:1], MAPS[:1])).all()

@pytest.mark.parametrize('given, said', [
    (P - 100., 'must have values from 0 to 1, not -100 to 148: give uint8 pixels, as before they were normalised'),
    (P*1., 'must have values from 0 to 1, not 0 to 248'),
    (P/255*np.nan, 'must have values from 0 to 1'),
    (P.astype(np.int64)*2, 'must have values from 0 to 255, not 0 to 496'),
    (picture(3, 5), r'either of two axes may be the channels of a NumPy array \(3, 5, 3\)'),
    (np.zeros((2,6,5,2), np.uint8), 'a picture must be an array'),
    (P[:1], 'a picture for each of 2 maps, not 1'), (P[...,None], 'a picture must be an array'), (P[0,0], 'pictures must be several'),
    ([P[0], P[1,:4]], 'pictures of different sizes'), ('cat.png', "not 'cat.png'"), (dict(a=P), 'not a dict'), (None, 'not None')])
def test_pictures_that_are_refused(given, said):
    with pytest.raises(ValueError, match=said): overlay(given, MAPS)

@pytest.mark.parametrize('maps, said', [
    ([[1.]], r'maps must be a tensor \(B,h,w\), as from gradcam, not a list'),
    (dict(a=MAPS, b=MAPS), "maps of several layers: choose one of 'a', 'b'"),
    (MAPS[0], r'not a Tensor \(2, 2\)'), ('map', "not 'map'"), (MAPS[:0], 'maps must be a tensor'), (None, 'not None')])
def test_maps_that_are_refused(maps, said):
    for call in (lambda: overlay(P, maps), lambda: upsample(maps)):
        with pytest.raises(ValueError, match=said): call()

def test_maps_as_people_have_them():
    assert (overlay(P, MAPS.numpy()) == overlay(P, MAPS)).all() and (overlay(P, MAPS.requires_grad_()) == overlay(P, MAPS.detach())).all()
    with pytest.raises(ValueError, match=r'needs maps \(B,h,w\), one for each picture'): overlay(P, MAPS[:,None])
    for size in (32, (8,), 'large', (0, 4)):
        with pytest.raises(ValueError, match='size must be'): upsample(MAPS, size)
    for scale in ([1, 2, 3], 'loud', None, [[1]]*3):
        with pytest.raises(ValueError, match='scale'): overlay(P, MAPS, scale=scale)


# 9. Models with a life of their own

class Stateful(nn.Module):
    "Counts its calls, keeps a state, trains its norm though it is told to evaluate."
    def __init__(self):
        super().__init__()
        self.c, self.bn, self.h, self.calls, self.state = patches(), nn.BatchNorm2d(8), nn.Linear(8, 4), 0, None
        self.register_buffer('seen', torch.zeros(()))
    def forward(self, x):
        self.bn.train()
        self.calls += 1; self.seen += len(x)
        a = self.bn(self.c(x))
        self.state = a.mean((2,3)).detach() if self.state is None else self.state*.5 + a.mean((2,3)).detach()
        return self.h(a.mean((2,3)) + self.state)

def test_noise_leaves_no_trace():
    model, alone, x = made(Stateful), made(Stateful), images()
    gradcam(model, x, 1); alone(x)
    for name, value in alone.state_dict().items(): assert torch.equal(value, model.state_dict()[name]), name
    assert model.calls == 1 and torch.equal(model.state, alone.state) and alone.seen == 2
    before = torch.get_rng_state()
    for call in (lambda: gradcam(model, x, 1), lambda: map_layers(model, x)):
        call()
        assert torch.equal(torch.get_rng_state(), before)

class Checked(Net):
    "Takes what `check` lets through."
    def __init__(self, check): super().__init__(patches(), nn.ReLU()); self.check = check
    def forward(self, x): return super().forward(self.check(x))

def from_0_to_1(x):
    assert x.min() >= 0 and x.max() <= 1, 'pixels from 0 to 1'
    return x
def even(x): a, b = x.chunk(2); assert len(a) == len(b); return a - b

class Siamese(Net):
    "Two pictures, one answer for each of them: the batch must be even."
    def forward(self, x):
        a, b = self.body(self.first(x)).chunk(2)
        assert len(a) == len(b), 'pairs are needed'
        return self.head(torch.cat([a - b, b - a]).mean((2,3)))

@pytest.mark.parametrize('make', [
    lambda: Checked(from_0_to_1), lambda: Checked(torch.sqrt), lambda: Checked(torch.logit),
    lambda: Checked(lambda x: nn.functional.embedding((x*255).long(), torch.linspace(-1, 1, 256)[:, None])[...,0]),
    lambda: Siamese(patches(), nn.ReLU()), lambda: Checked(lambda x: x + .01*torch.randn_like(x))],
    ids=['pixels from 0 to 1', 'roots', 'logits of pixels', 'pixels as words', 'pairs', 'random'])
def test_models_that_do_not_take_any_noise(make):
    model, x = made(make), images().sigmoid()
    torch.manual_seed(3); found = gradcam(model, x, 1, relu=False)
    torch.manual_seed(3); expected, size = by_hand(model, x, 1, 'body', cells_first)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5*size)

def test_borders_are_no_class_tokens():
    "Tokens that two real pictures have in common, and a model that takes no noise."
    model, x = made(lambda: Net(patches(), Do(flat_tokens), 1)), images().abs()
    x[:,:,:4] = x[:,:,-4:] = x[:,:,:,:4] = x[:,:,:,-4:] = 0
    forward = model.forward
    def strict(x): assert (x[:,:,:4] == 0).all(); return forward(x)
    model.forward = strict
    assert gradcam(model, x, 1, 'body', reshape='tokens').shape == (2, 8, 8)

def test_a_model_that_has_changed_is_watched_anew():
    model, x = made(lambda: Net(patches(24), Do(lambda a: a), channels=24)), images()
    gradcam(model, x, 1, 'body'); gradcam(model, x, 1)
    model.body.forward, model.mean = cells_tolast, (1,2)                          # the same modules
    for layer in ('body', None): assert gradcam(model, x, 1, layer).shape == (2, 8, 8)
    for _ in range(20):                                                           # a new module at the old one's address
        model = made(lambda: Net(patches(24), nn.Identity(), channels=24))
        gradcam(model, x, 1, 'body')
        model.body = None; model.body, model.mean = last(), (1,2)
        assert gradcam(model, x, 1, 'body').shape == (2, 8, 8)

def test_another_module_that_returns_the_same_shape():
    model, x = made(lambda: Net(patches(), nn.Identity())), images()
    for body, mean, read in ((nn.Identity(), (2,3), cells_first), (last(), (1,2), cells_last)):
        model.body, model.mean = body, mean
        expected, size = by_hand(model, x, 1, 'body', read, 'hirescam')
        torch.testing.assert_close(gradcam(model, x, 1, 'body', 'hirescam', relu=False), expected, rtol=1e-3, atol=1e-5*size)

def test_shapes_that_depend_on_the_picture():
    "The shape is never what noise had: the network is watched twice, not for ever."
    model, x = made(lambda: Net(patches(24), Do(lambda a: a[:, :, :3 if len(a) == 7 else 5]), channels=24)), images()
    expected, size = by_hand(model, x, 1, 'body', cells_first)
    runs = []
    model.first.register_forward_hook(lambda *_: runs.append(1))
    for _ in range(2):
        torch.testing.assert_close(gradcam(model, x, 1, 'body', relu=False, reshape='channels_first'), expected, rtol=1e-3, atol=1e-5*size)
    assert len(runs) <= 8

def test_a_default_that_training_moves():
    class Gated(Net):
        def __init__(self): super().__init__(patches(), nn.Conv2d(8, 8, 3, 2, 1)); self.g = nn.Parameter(torch.zeros(()))
        def forward(self, x): a = self.first(x); return self.head(a.mean((2,3)) + self.g*self.body(a).mean((2,3)))
    with seeded('gated'): model = Gated()
    x = images()
    assert gradcam(model, x, 1).shape == (2, 8, 8)                                # nobody listens behind the gate
    with torch.no_grad(): model.g += 1
    assert gradcam(model, x, 1).shape == (2, 4, 4)

def test_sizes_in_turn_cost_one_pass_each():
    model, runs = made(lambda: Net(patches(), nn.ReLU())), []
    model.first.register_forward_hook(lambda *_: runs.append(1))
    for side in (32, 64): gradcam(model, images(2, side), 1)
    runs.clear()
    for side in (32, 64, 32, 64): gradcam(model, images(2, side), 1)
    assert len(runs) == 4

class Keeps(nn.Module):
    "The network reaches a layer's output by another way as well."
    def __init__(self, how):
        super().__init__()
        self.how, self.enc, self.dec, self.h = how, patches(), nn.Conv2d(8, 8, 1), nn.Linear(8, 4)
        if how == 'hook': self.enc.register_forward_hook(lambda m, i, out: setattr(self, 'kept', out))
        if how == 'attribute':
            forward = self.enc.forward
            def keep(x): self.kept = forward(x); return self.kept
            self.enc.forward = keep
    def forward(self, x): a = self.enc(x); return self.h((self.dec(a) + 5*self.kept).mean((2,3)))

@pytest.mark.parametrize('how', ['hook', 'attribute'])
def test_what_a_model_keeps(how):
    model, x = made(Keeps, how), images()
    expected, size = by_hand(made(Keeps, how), x, 1, 'enc', cells_first)
    torch.testing.assert_close(gradcam(model, x, 1, 'enc', relu=False), expected, rtol=1e-3, atol=1e-5*size)
    assert not model.kept.requires_grad                                           # and it is left as it was

def test_a_layer_that_returns_its_input():
    class Adds(nn.Module):
        def __init__(self): super().__init__(); self.enc, self.drop, self.h = patches(), nn.Dropout(), nn.Linear(8, 4)
        def forward(self, x):
            a = self.enc(x)
            b = self.drop(a)
            a += 1
            return self.h((b*b).mean((2,3)))
    model, x = made(Adds), images()
    a = model.enc(x).detach()
    g = 2*a*model.h.weight[1][:,None,None]/64
    torch.testing.assert_close(gradcam(model, x, 1, 'drop', 'hirescam', relu=False), (g*a).sum(1).detach(), rtol=1e-4, atol=1e-6)

@pytest.mark.parametrize('make', [
    lambda z: z.sigmoid().clamp(.01, .99), lambda z: z.sigmoid()[:,0:1], lambda z: z.sigmoid()[:,[0]], lambda z: z.sigmoid().T[0],
    lambda z: z.sigmoid().clone(), lambda z: torch.cat([-z, z], 1).softmax(1)[:,1], lambda z: nn.functional.hardsigmoid(z)])
def test_a_probability_below_a_half_is_a_no(make):
    model, x = made(Heads, lambda z, _: make(z), (1, 1)), images()
    with torch.no_grad(): model.one.bias -= 2
    assert model(x).max() < .5
    torch.testing.assert_close(gradcam(model, x, relu=False), gradcam(model, x, 0, relu=False))
    assert gradcam(model, x, relu=False).abs().max() > 0

def test_single_outputs_that_look_like_probabilities():
    model = made(Heads, lambda z, _: (z.tanh() + 1)/2, (1, 1))
    with pytest.warns(UserWarning, match='single outputs between 0 and 1 are taken for logits') as said: gradcam(model, images())
    assert any(w.filename == __file__ for w in said)

def test_a_head_that_mixes_images():
    model, x = made(Heads, lambda a, b: (torch.eye(len(a)) - 1/len(a)) @ a), images(4)
    every = gradcam(model, x, 'all', 'eye', relu=False)
    for c in range(4): torch.testing.assert_close(every[:,c], gradcam(model, x, c, 'eye', relu=False), rtol=1e-4, atol=1e-6)

def test_a_larger_cache_made_while_watching():
    class Cached(Strict):
        def forward(self, x):
            if not hasattr(self, 'scale') or len(self.scale) < x.shape[2]: self.scale = torch.ones(x.shape[2])
            return Net.forward(self, x*self.scale[:x.shape[2]])
    model = made(lambda: Cached(patches(), last(), (1,2)))
    with torch.inference_mode(): gradcam(model, images().clone(), 1)
    loss = model(images()).sum(); loss.backward()                                 # it can still be trained

def test_threads_do_not_hear_each_other():
    import threading
    model, x, errors, leaked = made(resnet18, width=4), images(), [], []
    expected = gradcam(model, x, 1)
    def explain():
        try:
            for _ in range(15): torch.testing.assert_close(gradcam(model, x, 1), expected)
        except Exception as e: errors.append(e)
    def infer():
        with torch.no_grad():
            for _ in range(30): leaked.append(model(x).requires_grad)
    threads = [threading.Thread(target=f) for f in (explain, explain, infer)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert not errors and not any(leaked) and len(leaked) == 30

def test_nan_weights_are_said():
    model = made(lambda: first(8))
    with torch.no_grad(): model.first.weight[3] = math.nan
    with pytest.warns(UserWarning, match="layer 'body' are not finite"): gradcam(model, images(), 1, 'body', relu=False)

@pytest.mark.filterwarnings('ignore')
def test_an_encoder_with_a_mask():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.e, self.t, self.h = patches(), nn.TransformerEncoder(layer, 1), nn.Linear(8, 4)
        def forward(self, x):
            t = flat_tokens(self.e(x))
            return self.h(self.t(t, src_key_padding_mask=torch.zeros(t.shape[:2], dtype=torch.bool)).mean(1))
    assert gradcam(made(Masked), images(), 1).shape == (2, 8, 8)

@pytest.mark.parametrize('call, said', [
    (lambda m: gradcam(m, images(), 1, method=['gradcam']), 'there is no method'),
    (lambda m: gradcam(m, images(), 1, reshape=['tokens']), 'there is no reshape'),
    (lambda m: gradcam(m, images(), 1, reshape={}), 'there is no reshape'),
    (lambda m: gradcam(m, images(), 1j), 'class numbers'),
    (lambda m: gradcam(m, images(), 1, m), 'no layer like the ResNet given'),
    (lambda m: gradcam(m, images(), 1, output=lambda out: out['a']), 'output does not fit what the model returns, a Tensor'),
    (lambda m: gradcam(nn.Sequential(m), images(), 1, ''), "no layer called ''")])
def test_wrong_arguments(call, said):
    with pytest.raises(ValueError, match=said): call(made(resnet18, width=4))

def test_a_default_device_elsewhere():
    model, x = made(resnet18, width=4), images()
    with torch.device('meta'): found = gradcam(model, x, 1)
    assert found.device.type == 'cpu'

@pytest.mark.filterwarnings('ignore')
def test_a_part_in_torchscript():
    model = nn.Sequential(patches(), nn.ReLU(), torch.jit.script(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))))
    assert gradcam(model, images(), 1).shape == (2, 8, 8)

@pytest.mark.parametrize('name, kw, side, layer', [
    ('hiera_tiny_224', {}, 224, 'blocks.0'), ('nest_tiny', dict(img_size=64), 64, 'levels.0.transformer_encoder.0'),
    ('davit_tiny', {}, 64, 'stages.3.blocks.0.0.attn.proj')])
def test_tokens_of_real_networks_that_are_not_in_order(name, kw, side, layer):
    "Units of a mask, blocks of cells, a window that is mostly padding."
    model = made(of_timm, name, **kw)
    with pytest.raises(ValueError, match='which of its axes are places is not sure'): gradcam(model, images(1, side), 3, layer)
