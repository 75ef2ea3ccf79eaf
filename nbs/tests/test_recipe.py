"A recipe that makes no sense is refused in one sentence; its names are those of the registries; it needs no PyTorch."
import subprocess, sys

import pytest

from cifar_resnet import recipe
from cifar_resnet.augment import FLIPS
from cifar_resnet.data import DATASETS, VARIANTS
from cifar_resnet.model import NORMS, check_model
from cifar_resnet.recipe import CHOICES, FOR_DATASET, PRESETS, RECIPES, Recipe, either, recipe_from
from cifar_resnet.train import OPTIMISERS

WRONG = [
    (dict(dataset='mnist'), f"no dataset 'mnist': choose {either(CHOICES['dataset'])}"),
    (dict(recipe='best?'), 'choose strict or best'),
    (dict(norm=3), 'there is no norm 3: choose layer, batch'),
    (dict(norm='btach'), f"there is no norm 'btach': choose {either(CHOICES['norm'])}"),
    (dict(flip='up'), 'choose none, random or alternating'),
    (dict(optimiser='lion'), 'choose adam, adamw, sgd or muon'),
    (dict(variant='odd'), 'choose clean, distractors, two or shortcut'),
    (dict(epochs=0), 'epochs must be positive'),
    (dict(epochs=200_000), 'epochs must be at most 100,000'),
    (dict(lr=float('nan')), 'lr must be a number'),
    (dict(lr='fast'), 'lr must be a number'),
    (dict(lr=True), 'lr must be a number'),
    (dict(width=16.5), 'width must be a whole number'),
    (dict(limit=-3), 'limit must be positive'),
    (dict(clip=-1), 'clip must be at least 0'),
    (dict(plateau_factor=1.5), 'must be below 1'),
    (dict(smoothing=1), 'must be below 1'),
    (dict(strides='1,2'), 'give four numbers'),
    (dict(strides='a,b'), 'give four numbers'),
    (dict(strides=(1,2,3,2)), 'each 1 or 2'),
    (dict(strides=(1,2,True,2)), 'give four numbers'),
    (dict(norm='group8', width=12), 'multiples of 8'),
    (dict(norm='instance', strides=(2,2,2,2)), 'a last map larger than 2×2'),
    (dict(norm='none', last_gain=0), 'norm none has no gain that last_gain could set: leave last_gain out'),
]


@pytest.mark.parametrize('fields, words', WRONG, ids=[str(fields) for fields, _ in WRONG])
def test_wrong_fields(fields, words):
    with pytest.raises(ValueError) as e: Recipe(**fields).filled()
    assert words in str(e.value) and '\n' not in str(e.value)


def test_unknown_fields():
    with pytest.raises(TypeError): Recipe(learning_rate=1)
    with pytest.raises(ValueError, match="a recipe has no field 'learning_rate'"): recipe_from(dict(learning_rate=1))


def test_names_are_those_of_the_registries():
    assert CHOICES['norm'] == tuple(NORMS)
    assert CHOICES['dataset'] == tuple(DATASETS) == tuple(FOR_DATASET)
    assert CHOICES['optimiser'] == tuple(OPTIMISERS)
    assert CHOICES['flip'] == tuple(FLIPS) and CHOICES['variant'] == tuple(VARIANTS)
    assert set(PRESETS) == set(RECIPES['strict']) == set(RECIPES['best'])


@pytest.mark.parametrize('norm', CHOICES['norm'])
@pytest.mark.parametrize('width', [1, 8, 12, 32])
@pytest.mark.parametrize('strides', [(1,2,2,2), (1,1,2,2), (2,2,2,2)])
def test_a_recipe_knows_which_models_can_be_built(norm, width, strides):
    def sound(check):
        try: check()
        except ValueError: return False
        return True
    assert sound(lambda: Recipe(norm=norm, width=width, strides=strides)) == sound(lambda: check_model(norm, strides, width, 10))


def test_filled():
    assert Recipe().filled('cuda').batch_size == 512 and Recipe().filled('mps').batch_size == Recipe().filled().batch_size == 128
    small = Recipe(dataset='shapes10').filled('cuda')
    assert (small.batch_size, small.filters, small.variant) == (32, 'zero_mean', 'clean') and small.filled() == small
    assert Recipe(clip=1).filled().hash() == Recipe(clip=1.).filled().hash()


def test_no_pytorch_for_a_recipe():
    code = 'import sys; from cifar_resnet.recipe import Recipe; Recipe().filled().hash(); print(*(m for m in ("torch", "numpy") if m in sys.modules))'
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout.strip() == ''


def test_every_field_has_its_comment():
    from dataclasses import fields
    from fastcore.docments import docments
    said = docments(recipe.Recipe)
    assert all(said[f.name] for f in fields(recipe.Recipe))
