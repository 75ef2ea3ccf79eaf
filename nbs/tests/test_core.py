"What 00_core promises in all its cases; its notebook shows one of each."
import itertools, warnings
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import nn

from cifar_resnet.core import evaluating, in_float32, pick_device, pick_precision, rng, sentence

CPU, CUDA = torch.device('cpu'), torch.device('cuda')


@pytest.mark.parametrize('seed', [0, np.int64(0)])
def test_the_numbers_are_pinned(seed):
    "An upgrade of NumPy that changed them would change every experiment."
    assert rng('order', seed, 7).integers(1000, size=4).tolist() == [682, 258, 965, 398]


def test_every_part_of_the_key_counts():
    keys = [('x',), ('x', 7), ('x', 7, 0), ('x', 7, 0, 0), ('x', '7'), ('y', 7), ('x', 70)]
    assert len({rng(*key).random() for key in keys}) == len(keys)


def test_a_key_must_have_a_name_in_json():
    with pytest.raises(TypeError): rng('order', object())


@pytest.mark.parametrize('name', ['gpu', 'cuda:99', 'meta?', ''])
def test_devices_that_are_not_there(name):
    with pytest.raises(ValueError, match='cannot be used: choose auto'): pick_device(name)


def able(**has): return patch.object(torch.cpu, 'get_capabilities', lambda: has, create=True)


@pytest.mark.parametrize('feature', ['avx512_bf16', 'amx_bf16', 'bf16'])
@pytest.mark.parametrize('width, precision', [(8, 'float32'), (15, 'float32'), (16, 'bfloat16'), (64, 'bfloat16')])
def test_a_cpu_that_computes_in_bfloat16(feature, width, precision):
    with able(**{feature: True}): assert pick_precision('auto', CPU, width) == precision


@pytest.mark.parametrize('has', [{}, dict(avx512_bf16=False, avx512_f=True), dict(avx512_fp16=True)])
def test_a_cpu_that_emulates_bfloat16(has):
    with able(**has):
        assert pick_precision('auto', CPU) == 'float32'
        with pytest.warns(UserWarning, match='no instructions for bfloat16 here'): assert pick_precision('bf16', CPU) == 'bfloat16'


@pytest.mark.parametrize('feature', ['avx512_fp16', 'amx_fp16', 'fp16_arith'])
def test_a_cpu_that_computes_in_float16(feature):
    with able(**{feature: True}), warnings.catch_warnings():
        warnings.simplefilter('error')
        assert pick_precision('fp16', CPU) == 'float16'


def test_a_pytorch_that_cannot_tell(monkeypatch):
    monkeypatch.delattr(torch.cpu, 'get_capabilities', raising=False)
    assert pick_precision('auto', CPU) == 'float32'


@pytest.mark.parametrize('bf16, precision', [(True, 'bfloat16'), (False, 'float16')])
def test_gpus(bf16, precision):
    with patch.object(torch.cuda, 'is_bf16_supported', lambda including_emulation: bf16):
        assert pick_precision('auto', CUDA, width=8) == precision


@pytest.mark.parametrize('name', ['half', 'FP32', '', None, 16])
def test_words_that_are_no_precision(name):
    with pytest.raises(ValueError, match='choose auto, fp32, bf16, fp16'): pick_precision(name)


def test_in_float32_ends_an_autocast_for_a_while():
    one = torch.ones(2, 2)
    with torch.autocast('cpu', torch.bfloat16):
        with in_float32(CPU): assert (one @ one).dtype == torch.float32
        assert (one @ one).dtype == torch.bfloat16


class Merging(nn.Linear):
    "Acts when it is told to train or to evaluate, as merged adapters do."
    def train(self, mode=True):
        self.merged = not mode
        return super().train(mode)


@pytest.mark.parametrize('mode', [True, False])
def test_a_module_is_told_its_mode(mode):
    model = nn.Sequential(Merging(12, 10)).train(mode)
    with evaluating(model): assert model[0].merged and not model[0].training
    assert (model[0].training, model[0].merged) == (mode, not mode)


def test_every_combination_of_modes_with_one_module_in_two_places():
    shared = nn.Dropout(0)
    model = nn.Sequential(nn.Sequential(nn.Flatten(), shared), nn.Sequential(shared, nn.Linear(12, 10)))
    for modes in itertools.product([True, False], repeat=len(list(model.modules()))):
        for m, mode in zip(model.modules(), modes): m.training = mode
        with evaluating(model): assert not any(m.training for m in model.modules())
        assert [m.training for m in model.modules()] == list(modes)


def test_the_modes_come_back_after_an_error():
    model = nn.Sequential(Merging(12, 10)).train()
    with pytest.raises(KeyError), evaluating(model): raise KeyError
    assert model.training and model[0].training and not model[0].merged


@pytest.mark.parametrize('error, words', [
    (FileNotFoundError(2, 'No such file or directory', 'runs/x'), 'runs/x: No such file or directory'),
    (OSError('the disk is full'), 'the disk is full'),
    (ValueError('two\nlines'), 'two lines'),
    (ValueError(), 'ValueError'),
    (KeyError('x'), "KeyError: 'x'"),
    (FloatingPointError('the loss is nan'), 'the loss is nan'),
    (MemoryError(), 'there is too little memory: choose a smaller --batch_size or --width'),
    (torch.OutOfMemoryError('CUDA out of memory'), 'there is too little memory: choose a smaller --batch_size or --width'),
])
def test_sentences(error, words): assert sentence(error) == words
