"""What strangers bring to the figures, the tests of maps and the explorers: it is drawn as what it is, or refused in one sentence.

A row of a table of refusals is (name, what is done, what the sentence must say).
"""
import io, warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from cifar_resnet.core import seeded
from cifar_resnet.data import Images
from cifar_resnet.evaluate import predict
from cifar_resnet.explore import (augmentation_explorer, augmentation_picture, bars, cell_images, cell_picture, explain_picture,
                                  gradcam_explorer, label, maps_picture, mistake_explorer, subject, tile)
from cifar_resnet.faithful import (cascade, centroid, erasing, held_norms, hide_patches, influence, iou, localisation, mass_accuracy,
                                   occlusion, pointing, rank_accuracy, rank_correlation, references)
from cifar_resnet.gradcam import METHODS, NOT_ADDITIVE, gradcam
from cifar_resnet.model import WEIGHTS, load_weights, resnet18
from cifar_resnet.plots import (as_pictures, class_bars, confusion, contrasts, curves, lr_drops, mistakes, picture_grid, png,
                                reliability, table)
from cifar_resnet.stepper import layer_norms, training_stepper

NAN, INF = float('nan'), float('inf')
PICTURES = np.random.default_rng(0).integers(0, 256, (3,32,32,3)).astype(np.uint8)
GREY = PICTURES[...,0]
NAMES = ['a'*40, '$x_1$ and $y^2$', '<b>bold</b> & __init__']                    # long; a formula; HTML and Markdown
HISTORY = [dict(epoch=e, lr=1e-3 if e < 3 else 1e-4, train_loss=2/e, train_accuracy=.5, valid_loss=1.8/e, valid_accuracy=.6) for e in range(1, 5)]
ACCURACIES = [{'class': name, 'accuracy': a, 'low': a - .02, 'high': a + .015} for name, a in zip(NAMES, (.9, .5, .7))]
BINS = np.stack([np.arange(10), np.linspace(.05, .95, 10), np.linspace(.1, .9, 10)], 1)
X, Y = torch.randn(3,3,32,32, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 2, 3])
with seeded('test_strangers_figures'): NET = resnet18(width=8).eval()


def refusals(*table): return pytest.mark.parametrize('action, said', [pytest.param(action, said, id=name) for name, action, said in table])

def refused(action, said):
    "One line that says `said`, and no words of NumPy, PyTorch or matplotlib."
    with pytest.raises(ValueError) as e: action()
    assert said in str(e.value) and len(str(e.value).splitlines()) == 1, str(e.value)


# 1. pictures

def texts(fig): return [t.get_text() for t in fig.texts]
def drawn(fig): return [ax.images[0].get_array() for ax in fig.axes]

NCHW = torch.from_numpy(PICTURES).permute(0,3,1,2)

@pytest.mark.parametrize('given, expected', [
    pytest.param(PICTURES, PICTURES, id='array'),
    pytest.param([*PICTURES], PICTURES, id='list'),
    pytest.param(torch.from_numpy(PICTURES), PICTURES, id='tensor'),
    pytest.param(NCHW, PICTURES, id='channels first'),
    pytest.param([*NCHW], PICTURES, id='list of tensors'),
    pytest.param(NCHW/255, PICTURES, id='floats from 0 to 1'),
    pytest.param((PICTURES/255).astype(np.float64), PICTURES, id='float64'),
    pytest.param(PICTURES.astype(np.int64), PICTURES, id='int64'),
    pytest.param((NCHW/255).requires_grad_(), PICTURES, id='with a gradient'),
    pytest.param([Image.fromarray(p) for p in PICTURES], PICTURES, id='PIL'),
    pytest.param([Image.fromarray(p) for p in GREY], GREY[...,None].repeat(3, 3), id='PIL, grey'),
    pytest.param(GREY, GREY[...,None].repeat(3, 3), id='grey'),
    pytest.param(GREY[:,None], GREY[...,None].repeat(3, 3), id='grey, channels first'),
    pytest.param(GREY > 99, 255*np.uint8(GREY > 99)[...,None].repeat(3, 3), id='masks'),
    pytest.param(np.concatenate([PICTURES, np.full((3,32,32,1), 255, np.uint8)], 3), PICTURES, id='RGBA'),
    pytest.param([PICTURES[0], PICTURES[1,:16]], [PICTURES[0], PICTURES[1,:16]], id='of two sizes')])
def test_pictures_of_every_kind(given, expected):
    found = as_pictures(given)
    assert len(found) == len(expected) and all(np.array_equal(a, b) and a.dtype == np.uint8 for a, b in zip(found, expected))
    assert all(np.array_equal(a, b) for a, b in zip(drawn(picture_grid(given)), expected))

@refusals(
    ('one picture', lambda: picture_grid(PICTURES[0]), 'give one in a list'),
    ('one PIL picture', lambda: picture_grid(Image.fromarray(PICTURES[0])), 'give one in a list'),
    ('a path', lambda: picture_grid('x.png'), "not 'x.png'"),
    ('paths', lambda: picture_grid(['x.png']), "a picture must be an array (H,W,3)"),
    ('a dict', lambda: picture_grid({'a': PICTURES}), 'not a dict'),
    ('normalised', lambda: picture_grid(NCHW/255*4 - 2), 'must have values from 0 to 1, not -2 to 2'),
    ('floats of bytes', lambda: picture_grid(PICTURES.astype(float)), 'must have values from 0 to 1, not 0 to 255'),
    ('too large', lambda: picture_grid(PICTURES.astype(int)*2), 'must have values from 0 to 255'),
    ('NaN', lambda: picture_grid([np.full((4,4,3), NAN)]), 'must have values from 0 to 1, not nan'),
    ('features', lambda: picture_grid(np.zeros((2,64,8,8))), 'a picture must be an array (H,W,3)'),
    ('titles of others', lambda: picture_grid(PICTURES, ['a', 'b']), '3 titles are needed, one for each, not 2'),
    ('one title', lambda: picture_grid(PICTURES, 'abc'), "titles must be a list of 3 texts, not 'abc'"),
    ('predictions of others', lambda: picture_grid(PICTURES, NAMES, NAMES[:1]), '3 preds are needed'),
    ('names of others', lambda: mistakes(PICTURES, NAMES[:2], NAMES, [.5]*3), '3 true classes are needed'),
    ('confidences of others', lambda: mistakes(PICTURES, NAMES, NAMES, [.5]), '3 confidences are needed'),
    ('confidences in words', lambda: mistakes(PICTURES, NAMES, NAMES, ['high']*3), 'confidences must be 3 numbers, not a list'),
    ('margins of others', lambda: contrasts(PICTURES, [PICTURES]*3, NAMES, NAMES, NAMES, [1], [1]*3), '3 margins and sums of evidence are needed'),
    ('percent', lambda: mistakes(PICTURES, NAMES, NAMES, [51, 93, 40]), 'confidences must be from 0 to 1, not 51'),
    ('two maps', lambda: contrasts(PICTURES, [PICTURES]*2, NAMES, NAMES, NAMES, [1]*3, [1]*3), '3 images need three maps each'),
    ('maps of others', lambda: contrasts(PICTURES, [PICTURES[:2]]*3, NAMES, NAMES, NAMES, [1]*3, [1]*3), '3 images need three maps each'),
    ('no figure', lambda: png(PICTURES), 'a figure of matplotlib is needed, not a NumPy array'))
def test_pictures_refused(action, said): refused(action, said)


# 2. names: of 40 letters, with $, _ and <b>, for 2 and for 100 classes

def boxes(fig, texts):
    "Where texts lie, in pixels; drawing must warn of nothing."
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        png(fig)
    return [t.get_window_extent() for t in texts if t.get_text()]

def apart(boxes): return not any(a.x0 < b.x1 - 1 and b.x0 < a.x1 - 1 and a.y0 < b.y1 - 1 and b.y0 < a.y1 - 1 for i, a in enumerate(boxes) for b in boxes[:i])

def contrasted(names, margin=1.): return contrasts(PICTURES, [PICTURES]*3, names, names, names, torch.full((3,), margin), torch.full((3,), margin))

@pytest.mark.parametrize('draw', [
    lambda names: picture_grid(PICTURES, names), lambda names: picture_grid(PICTURES, names, names),
    lambda names: mistakes(PICTURES, names, names, [.5, .6, .7]), contrasted], ids=['titles', 'two lines', 'mistakes', 'contrasts'])
@pytest.mark.parametrize('names', [NAMES, ['W'*40]*3, ['a\nb', '\t', ''], np.array(NAMES), torch.tensor([3, 7, 9]), ['x'*9999]*3],
                         ids=['odd', 'wide', 'lines', 'array', 'numbers', 'endless'])
def test_titles_do_not_collide(draw, names):
    fig = draw(names)
    assert apart(boxes(fig, fig.texts)) and not any(t.get_parse_math() for t in fig.texts)

def test_names_are_written_as_they_are():
    assert texts(picture_grid(PICTURES, ['$x$ and $y$', '<b>', '_a_'])) == ['$x$ and $y$', '<b>', '_a_']
    assert texts(picture_grid(PICTURES, torch.tensor([3, 7, 9]))) == ['3', '7', '9']
    called = [t for t in texts(mistakes(PICTURES, NAMES, NAMES, [.5, .6, .7])) if t.startswith('called')]
    assert [t[-3:] for t in called] == ['50%', '60%', '70%'] and '…' in called[0]           # the middle goes, not the confidence

def named(n): return [f'{i} {NAMES[i % 3]}' for i in range(n)]

@pytest.mark.parametrize('n, counts, names', [(2, True, 2), (10, True, 10), (20, True, 20), (100, False, 50), (400, False, 50)])
def test_confusion_of_so_many_classes(n, counts, names):
    fig = confusion(torch.randint(1, 1000, (n,n), generator=torch.Generator().manual_seed(0)), named(n))
    ax = fig.axes[0]
    labels = [*ax.get_xticklabels(), *ax.get_yticklabels()]
    assert apart(boxes(fig, ax.texts)) and len(ax.texts) == (n*n if counts else 0)
    assert apart(boxes(fig, ax.get_yticklabels())) and .4*names <= len(ax.get_yticklabels()) <= names
    assert not any(t.get_parse_math() for t in labels) and labels[0].get_text().startswith('0 aaa')
    assert ax.get_window_extent().width > .5*fig.bbox.width                              # names leave room for the matrix
    for i, t in zip(ax.get_yticks(), ax.get_yticklabels()): assert t.get_text().startswith(f'{i} ')   # each at its own class

@pytest.mark.parametrize('n', [2, 100])
def test_class_bars_of_so_many_classes(n):
    fig = class_bars([{'class': name, 'accuracy': .9 - i/200, 'low': .3, 'high': .95} for i, name in enumerate(named(n))])
    ax = fig.axes[0]
    assert apart(boxes(fig, [*ax.get_yticklabels(), *ax.texts])) and not any(t.get_parse_math() for t in ax.get_yticklabels())
    assert ax.get_window_extent().width > .5*fig.bbox.width

@pytest.mark.parametrize('text, cell', [
    ('<b>x</b>', '&lt;b>x&lt;/b>'), ('$a$', r'\$a\$'), ('a|b', r'a\|b'), ('a\nb', 'a b'), ('`a<b|$c$`', r'`a<b\|$c$`'), ('[run](x.json)', '[run](x.json)')])
def test_texts_in_tables(text, cell): assert table([{text: text}]).data.splitlines() == [f'| {cell} |', '| --- |', f'| {cell} |']


# 3. numbers: NaN, infinity, texts, other types

@pytest.mark.parametrize('bad', [NAN, INF, None, ''])
def test_a_missing_number_leaves_the_others(bad):
    ax = curves([HISTORY[0], {**HISTORY[1], 'valid_loss': bad}, *HISTORY[2:]], best=1).axes[0]
    found = [line.get_ydata() for line in ax.lines if line.get_label() == 'held out'][0]
    assert np.isfinite(found).tolist() == [True, False, True, True] and np.isfinite(ax.get_ylim()).all()

def test_rows_as_a_file_has_them():
    read = [{k: str(v) for k, v in row.items()} for row in HISTORY]
    frame = SimpleNamespace(to_dict=lambda kind: read)
    for rows in (read, frame):
        assert lr_drops(rows) == lr_drops(HISTORY) == [3]
        for a, b in zip(curves(rows).axes, curves(HISTORY).axes):
            for x, y in zip(a.lines, b.lines, strict=True): assert np.array_equal(x.get_xydata(), y.get_xydata())

def test_a_class_that_was_not_measured_comes_last():
    rows = [{'class': 'none', 'accuracy': NAN, 'low': None, 'high': None}, *ACCURACIES]
    ax = class_bars(rows).axes[0]
    assert [t.get_text() for t in ax.texts] == ['50.0%', '70.0%', '90.0%', '–'] and ax.get_yticklabels()[-1].get_text() == 'none'

def test_numbers_that_are_none_are_dashes():
    assert 'called cat, –' in texts(mistakes(PICTURES[:1], ['dog'], ['cat'], [NAN]))
    assert 'margin – = places –, biases –' in texts(contrasted(NAMES, INF))
    assert reliability((NAN, BINS), (.1, BINS)).axes[0].get_title().endswith('ECE –')

def test_matrices_of_every_kind():
    counts = [[90, 0], [12, 7]]
    expected = [t.get_text() for t in confusion(np.array(counts), ['a', 'b']).axes[0].texts]
    for given in (counts, torch.tensor(counts), np.array(counts, float)):
        assert [t.get_text() for t in confusion(given, ('a', 'b')).axes[0].texts] == expected
    for bins in (torch.from_numpy(BINS), BINS.tolist()): assert np.array_equal(reliability((.1, bins), (.1, bins)).axes[0].lines[1].get_xydata(), BINS[1:,1:])

@refusals(
    ('no history', lambda: curves('history.csv'), "rows must be a list of dicts, not 'history.csv'"),
    ('columns', lambda: curves({'epoch': [1], 'lr': [1]}), 'rows must be a list of dicts, not a dict'),
    ('no rate', lambda: curves([dict(epoch=1)]), 'each row needs epoch, lr'),
    ('a word', lambda: curves([{**HISTORY[0], 'valid_loss': 'low'}]), 'valid_loss must be a number in each row'),
    ('another epoch', lambda: curves(HISTORY, best=9), 'best is epoch 9, which the history of 4 epochs does not have'),
    ('shares', lambda: confusion(np.full((2,2), .5), ['a', 'b']), 'whole numbers from 0 on, not shares'),
    ('NaN counts', lambda: confusion(np.full((2,2), NAN), ['a', 'b']), 'whole numbers from 0 on'),
    ('infinite counts', lambda: confusion(np.full((2,2), INF), ['a', 'b']), 'whole numbers from 0 on'),
    ('a row of counts', lambda: confusion(np.ones(3, int), ['a']), 'a confusion matrix must be (C,C)'),
    ('logits', lambda: confusion(np.ones((5,3)), ['a', 'b', 'c']), 'a confusion matrix must be (C,C)'),
    ('a path', lambda: confusion('x.npy', ['a']), "counts, not 'x.npy'"),
    ('too few names', lambda: confusion(np.eye(3), ['a', 'b']), '3 class names are needed, one for each, not 2'),
    ('names in one', lambda: confusion(np.eye(3), 'abc'), "class names must be a list of 3 texts, not 'abc'"),
    ('accuracies in percent', lambda: class_bars([{**ACCURACIES[0], 'accuracy': 91}]), 'accuracies must be from 0 to 1, not 91'),
    ('accuracies alone', lambda: class_bars([.5, .6]), 'rows must be a list of dicts'),
    ('an error alone', lambda: reliability(.1, .2), 'a diagram needs a pair'),
    ('bins of two columns', lambda: reliability((.1, BINS[:,:2]), (.1, BINS)), 'a table of bins must be (bins,3)'),
    ('no rows', lambda: table([]), 'at least one row'),
    ('rows of two kinds', lambda: table([dict(a=1), dict(b=1)]), "rows of a table have the same keys, not ['a'] and ['b']"))
def test_numbers_refused(action, said): refused(action, said)


# 4. maps and masks

MASK = torch.zeros(3,32,32, dtype=torch.bool); MASK[:,4:14,6:20] = True
HEAT = torch.rand(3,32,32, generator=torch.Generator().manual_seed(0)) + .5*MASK
MEASURES = dict(pointing=pointing, mass=mass_accuracy, rank=rank_accuracy, iou=iou)

@pytest.mark.parametrize('measure', MEASURES)
@pytest.mark.parametrize('heat, mask', [
    pytest.param(HEAT.numpy(), MASK.numpy(), id='arrays'),
    pytest.param(HEAT.tolist(), MASK.tolist(), id='lists'),
    pytest.param([*HEAT], [*MASK], id='lists of tensors'),
    pytest.param(HEAT[:,None], MASK[:,None], id='with a channel'),
    pytest.param(HEAT.clone().requires_grad_(), MASK, id='with a gradient'),
    pytest.param(HEAT, MASK.float(), id='masks of 1 and 0'),
    pytest.param(HEAT, 255*MASK.byte(), id='masks of 255 and 0'),
    pytest.param(HEAT, MASK[:1], id='one mask for all')])
def test_maps_of_every_kind(measure, heat, mask):
    found = MEASURES[measure](heat, mask)
    assert torch.equal(found, MEASURES[measure](HEAT, MASK)) and not found.requires_grad

def test_maps_of_whole_numbers():
    assert mass_accuracy(MASK.long(), MASK).tolist() == [1, 1, 1] and centroid(MASK).tolist() == [[8.5, 12.5]]*3

@pytest.mark.parametrize('bad', [NAN, INF, -INF])
def test_a_map_that_is_not_finite_has_no_score_and_spoils_none(bad):
    heat = HEAT.clone(); heat[1,5,5] = bad
    scores = {**MEASURES, 'centroid': lambda heat, mask: centroid(heat)[:,0], 'correlation': lambda heat, mask: torch.from_numpy(rank_correlation(heat, HEAT.flip(1)))}
    for measure in scores.values():
        with pytest.warns(UserWarning, match='a map with NaN or infinity gets the score NaN: 1 of 3') as said: found = measure(heat, MASK)
        assert len(said) == 1 and found.isnan().tolist() == [False, True, False] and torch.equal(found[::2], measure(HEAT, MASK)[::2])
    with pytest.warns(UserWarning, match='1 of 3') as said: found = localisation(heat, MASK)
    assert len(said) == 1 and all(v.isnan().tolist() == [False, True, False] for v in found.values())
    with pytest.warns(UserWarning, match='1 of 3') as said: curves = erasing(NET, X, Y, heat, steps=2)
    assert all('NaN, with a warning' in f.__doc__ for f in (*MEASURES.values(), centroid, localisation))
    assert len(said) == 1 and curves.isnan().all(1).tolist() == [False, True, False] and torch.equal(curves[::2], erasing(NET, X, Y, HEAT, steps=2)[::2])

def test_targets_and_references_of_every_kind():
    for target in (Y.tolist(), Y.numpy(), Y.int(), np.eye(10)[Y]): assert torch.equal(occlusion(NET, X, target), occlusion(NET, X, Y))
    for target in (2, np.int64(2), torch.tensor(2)): assert torch.equal(occlusion(NET, X, target), occlusion(NET, X, torch.full((3,), 2)))
    expected = references(PICTURES, MASK, (8,8))
    for images, mask, grid in ((NCHW/255, MASK.numpy(), [8,8]), ([*PICTURES], 255*MASK.byte(), 8)):
        for name, heat in references(images, mask, grid).items(): assert torch.allclose(heat, expected[name].to(heat)), name
    assert [part for part, _ in cascade(NET, 'head')] == ['head']

@refusals(
    ('masks by name', lambda: pointing(HEAT, dict(object=MASK, filled=MASK)), 'not a dict: choose of object, filled'),
    ('maps by layer', lambda: mass_accuracy({'stages.1': HEAT}, MASK), 'not a dict: choose of stages.1'),
    ('small maps', lambda: pointing(HEAT[:,::4,::4], MASK), 'maps (3, 8, 8) and masks (3, 32, 32) do not fit: enlarge the maps by upsample(maps, (32, 32))'),
    ('masks of others', lambda: iou(HEAT, MASK[:2]), 'maps (3, 32, 32) and masks (2, 32, 32) do not fit'),
    ('all classes', lambda: rank_accuracy(HEAT[:,None].expand(-1, 10, -1, -1), MASK), 'maps must be (N,H,W), not a Tensor (3, 10, 32, 32) of float32: choose one for each picture'),
    ('one map', lambda: centroid(HEAT[0]), 'maps must be (N,H,W), not a Tensor (32, 32) of float32: give one as [None]'),
    ('a path', lambda: pointing('map.npy', MASK), "maps must be an array of real numbers, not 'map.npy'"),
    ('ragged', lambda: pointing([[1], [1, 2]], MASK), 'maps must be an array of real numbers, not a list'),
    ('complex', lambda: pointing(HEAT + 1j, MASK), 'real numbers'),
    ('soft masks', lambda: localisation(HEAT, HEAT), 'masks must be true and false, or 1 and 0'),
    ('other cells', lambda: rank_correlation(HEAT, HEAT[:,::2]), 'must have as many cells, not (3, 32, 32) and (3, 16, 32)'),
    ('other pictures', lambda: rank_correlation(HEAT, HEAT[:2]), 'must have as many cells'),
    ('pictures for masks', lambda: references(PICTURES, PICTURES, (8,8)), 'masks must be (N,H,W), not a NumPy array (3, 32, 32, 3) of uint8'),
    ('small masks', lambda: references(PICTURES, MASK[:,::4], (8,8)), 'images (3, 32, 32) and masks (3, 8, 32) do not fit'),
    ('pictures of two sizes', lambda: references([PICTURES[0], PICTURES[0,:9]], MASK[:2], (8,8)), 'all of one size'),
    ('a grid of three', lambda: references(PICTURES, MASK, (3,8,8)), 'a grid is rows and columns'),
    ('small maps to hide by', lambda: erasing(NET, X, Y, HEAT[:,::4,::4]), 'maps (3, 8, 8) and images (3, 32, 32) do not fit: enlarge the maps'),
    ('no steps', lambda: next(hide_patches(X, HEAT, steps=0)), 'steps and patch must be at least 1'),
    ('channels last', lambda: occlusion(NET, X.permute(0,2,3,1), Y, cells=1), 'give images.permute(0,3,1,2)'),
    ('pixels', lambda: occlusion(NET, torch.from_numpy(PICTURES), Y), 'of floating point numbers'),
    ('arrays', lambda: erasing(NET, X.numpy(), Y, HEAT), 'images must be a tensor (B,C,H,W)'),
    ('one image', lambda: influence(NET, X[0]), 'give images[None]'),
    ('another channel', lambda: influence(NET, X[:,:1]), 'the model does not take'),
    ('held for arrays', lambda: held_norms(NET, X.numpy()).__enter__(), 'images must be a tensor (B,C,H,W)'),
    ('a class too many', lambda: occlusion(NET, X, [1, 2, 10]), 'labels must be whole numbers from 0 to 9, not 1 to 10'),
    ('no features', lambda: influence(torch.nn.Linear(2, 2), X), 'a model with a method features is needed, not a Linear'),
    ('weights alone', lambda: next(cascade(NET.state_dict(), ['head'])), 'a model must be a torch.nn.Module'),
    ('another part', lambda: next(cascade(NET, ['fc'])), "the model has no part 'fc': choose of stem, stages, head"))
def test_maps_refused(action, said): refused(action, said)


# 5. LayerCAM

@pytest.mark.parametrize('layer', ['stages.1.1', 'stages.3.1'])
def test_it_is_torchcams(layer):
    torchcam = pytest.importorskip('torchcam.methods', reason='torchcam is not installed: pip install --no-deps torchcam')
    warnings.filterwarnings('ignore', 'at layer')                                       # before a norm, as it says
    with torchcam.LayerCAM(NET, layer) as extractor:
        for i, c in enumerate(Y.tolist()):
            expected = extractor(c, NET(X[i:i+1]), normalized=False)[0]
            assert expected.max() > 0
            found = gradcam(NET, X[i:i+1], c, layer, 'layercam')
            torch.testing.assert_close(found, expected.float(), rtol=0, atol=1e-6*expected.max().item())

def test_its_sum_is_no_logit():
    maps, logits = gradcam(NET, X, 'all', method='layercam', relu=False), NET(X).detach()
    assert (maps >= 0).all() and (maps.sum((2,3)) > logits - NET.head.bias.detach() + .01).all()


# 6. the explorers: pictures, classes, names, numbers

SMALL = subject(n=60)
FACTS = explain_picture(SMALL, SMALL.data.images[0])

def same(a, b): return np.array_equal(np.asarray(a), np.asarray(b))

def test_explorers_take_pictures_and_classes_of_every_kind():
    picture, classes = SMALL.data.images[0], SMALL.data.classes
    chw = torch.from_numpy(picture).permute(2,0,1)
    for given in (chw, chw/255, Image.fromarray(picture), picture.astype(int)):
        assert torch.equal(explain_picture(SMALL, given).maps, FACTS.maps)
        assert same(tile(given), tile(picture)) and same(maps_picture(given, FACTS, classes), maps_picture(picture, FACTS, classes))
        assert same(augmentation_picture([given]*2, 1)[0], augmentation_picture(np.stack([picture]*2), 1)[0])
    for c in (classes[3], torch.tensor(3), np.int64(3), 3.): assert explain_picture(SMALL, picture, c, classes[5]).target == 3
    assert all(same(a, b) for a, b in zip(cell_images(SMALL, classes[1], classes[1]), cell_images(SMALL, 1, 1)))

def test_a_map_that_is_not_finite_does_not_set_the_scale():
    "One cell that is NaN or infinite is drawn as 0; all others as if it were 0."
    picture, classes = SMALL.data.images[0], SMALL.data.classes
    for bad in (NAN, INF, -INF):
        for how in (dict(shared=True), dict(shared=False, signed=True), dict(cells=True)):
            drawn = []
            for value in (bad, 0):
                maps, blocks = FACTS.maps.clone(), {name: m.clone() for name, m in FACTS.blocks.items()}
                for m in (maps[0], blocks['stem']): m[0,0] = value
                maps[1,0,0] = 0                                                          # the difference is not finite there, either
                drawn.append(maps_picture(picture, SimpleNamespace(**{**vars(FACTS), 'maps': maps, 'blocks': blocks}), classes, **how))
            assert same(*drawn)

def test_an_answer_that_is_no_number():
    with torch.no_grad(): (broken := load_weights(WEIGHTS/'shapes10.safetensors')).head.weight[2] = NAN
    s = replace(SMALL, model=broken)
    page = gradcam_explorer(s, 0)
    page.put(target=2, against=3)
    assert 'logits must be numbers: one of image 0 is NaN or infinite' in page.message.value

@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('layer', ['stages.1.1', 'stages.3.1'])
def test_every_method_in_the_explorer(method, layer):
    page = gradcam_explorer(SMALL, 0)
    before = page.pictures.whole().tobytes()
    page.put(method=method, layer=layer)
    assert 'font-weight:bold' not in page.message.value and (page.pictures.whole().tobytes() == before) == (method == 'gradcam' and layer == 'stages.3.1')
    assert ('The logit of' in page.message.value) == (method not in NOT_ADDITIVE)
    assert (f'The maps of {method} need not add up to a logit' in page.message.value) == (method in NOT_ADDITIVE)

def of_classes(n):
    "The small network's pictures, with a head of n classes and odd names."
    with seeded('of_classes', n): model = resnet18(width=8, strides=(1,1,2,2), num_classes=n).eval()
    data = Images(SMALL.data.images, np.arange(60) % n, tuple(named(n)))
    x = SMALL.input(data.images)
    return replace(SMALL, model=model, data=data, logits=predict(model, x) + 30*torch.nn.functional.one_hot(torch.from_numpy((data.labels + (np.arange(60) % 3 == 0)) % n), n))

@pytest.mark.parametrize('n', [2, 12, 13, 100])
def test_explorers_of_so_many_classes(n):
    s = of_classes(n)
    pages = [gradcam_explorer(s, 0), mistake_explorer(s), augmentation_explorer(s)]
    pages[0].put(target=1, against=0)
    assert not any('font-weight:bold' in page.message.value for page in pages) and all(len(page.picture.value) > 1000 for page in pages)
    matrix = pages[1].matrix
    if n <= 12: matrix.buttons[1,1].click()
    else:
        assert len(matrix.options) == (pages[1].counts > 0).sum() and matrix.options[0][1][0] != matrix.options[0][1][1]
        matrix.value = (1, 1)
    assert pages[1].controls['cell'].value == (1, 1) and 'of the class 1 $x_1$ and $y^2$, called 1 $x_1$' in pages[1].message.value
    width, height = Image.open(io.BytesIO(pages[1].picture.value)).size
    assert width < 700 and height < 900

@pytest.mark.parametrize('words', ['W'*40, '$x$', '<b>', '\n\t', 'x'*9999, ''])
def test_labels_keep_their_place(words):
    assert label(words, 100).size == (100, 19) and bars([words]*2, [1, NAN], ['red']*2).size == (680, 40)

def test_the_stepper_takes_a_dict(tmp_path):
    page = training_stepper(dict(dataset='shapes10', width=8, limit=64, epochs=1), tmp_path/'run')
    try: assert page.stepper.recipe.limit == 64 and page.stepper.recipe.width == 8
    finally: page.stepper.close()

@refusals(
    ('a path for a picture', lambda: explain_picture(SMALL, 'x.png'), 'a picture must be an array (H,W,3)'),
    ('a normalised picture', lambda: explain_picture(SMALL, SMALL.input(SMALL.data.images[:1])[0]), 'must have values from 0 to 1'),
    ('two pictures', lambda: explain_picture(SMALL, SMALL.data.images[:2]), 'a picture must be an array (H,W,3)'),
    ('another class', lambda: explain_picture(SMALL, SMALL.data.images[0], 10), 'from 0 to 9, not 10'),
    ('another name', lambda: explain_picture(SMALL, SMALL.data.images[0], 'cat'), 'choose from disc, ring, square'),
    ('half a class', lambda: explain_picture(SMALL, SMALL.data.images[0], 0, 1.5), 'labels must be whole numbers'),
    ('names of others', lambda: maps_picture(SMALL.data.images[0], FACTS, ('a', 'b')), '10 classes need as many names, not 2'),
    ('shares of others', lambda: bars(['a', 'b'], [.5], ['red']), '2 names need as many shares and colours'),
    ('a cell that is not there', lambda: cell_images(SMALL, 0, 10), 'from 0 to 9'),
    ('an image that is not there', lambda: gradcam_explorer(SMALL, 60), 'there is no image 60: choose one from 0 to 59'),
    ('an image by name', lambda: gradcam_explorer(SMALL, '3'), "there is no image '3'"),
    ('half an image', lambda: gradcam_explorer(SMALL, 1.5), 'there is no image 1.5'),
    ('nothing chosen', lambda: cell_picture(SMALL, np.array([], int), np.array([]), 0, FACTS), 'there is no image 0'),
    ('nothing to augment', lambda: augmentation_picture(SMALL.data.images, 60), 'there is no image 60'),
    ('logits of others', lambda: replace(SMALL, logits=SMALL.logits[:5]), 'logits must be a tensor (60, 10), a row an image'),
    ('logits of an array', lambda: replace(SMALL, logits=SMALL.logits.numpy()), 'logits must be a tensor (60, 10), a row an image, not a NumPy array'),
    ('a model alone', lambda: mistake_explorer(NET), 'a run must be its folder, what load_run gives, or a Subject, not a ResNet'),
    ('pictures alone', lambda: gradcam_explorer(SMALL.data.images), 'a run must be its folder'),
    ('no images', lambda: subject(n=0), 'at least one image is needed'),
    ('a recipe in words', lambda: training_stepper('strict'), "a recipe must be a Recipe, or a dict of its fields, not 'strict'"),
    ('another field', lambda: training_stepper(dict(widht=8)), "a recipe has no field 'widht'"),
    ('weights alone', lambda: layer_norms(NET.state_dict()), 'a model must be a torch.nn.Module, not an OrderedDict'))
def test_explorers_refuse(action, said): refused(action, said)
