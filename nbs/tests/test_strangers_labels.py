"""Labels, logits, images and arguments as strangers bring them: taken for what they surely are, or one sentence; never
another number, and never an error of somebody else's."""
import multiprocessing, pickle, re

import albumentations as A
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cifar_resnet.augment import albumentations_batches, augment, batches, denormalise, draws, flips, normalise, plain_augmentation
from cifar_resnet.data import Images, shapes10, split
from cifar_resnet.evaluate import (accuracy, accuracy_without, as_logits, calibration, class_accuracies, confidence, confused_pairs,
                                   confusion_counts, fit_temperature, misclassified, predict, predict_views, wilson)
from cifar_resnet.job import job
from cifar_resnet.model import check_model, resnet18
from cifar_resnet.recipe import Recipe
from cifar_resnet.train import Training

LOGITS = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
LABELS = torch.randint(0, 3, (40,), generator=torch.Generator().manual_seed(1))
NAMES = 'cat', 'dog', 'frog'

# everything where logits and labels meet
MEETINGS = dict(
    accuracy=accuracy,
    misclassified=lambda logits, labels: misclassified(logits, labels, order='confident'),
    confusion_counts=confusion_counts,
    class_accuracies=class_accuracies,
    confused_pairs=confused_pairs,
    accuracy_without=lambda logits, labels: accuracy_without(logits, labels, [1]),
    fit_temperature=fit_temperature,
    calibration=lambda logits, labels: calibration(confidence(logits), labels),
)
EVERYWHERE = pytest.mark.parametrize('f', MEETINGS.values(), ids=MEETINGS)


def same(a, b):
    if isinstance(a, dict): return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)): return len(a) == len(b) and all(map(same, a, b))
    return np.allclose(a, b, atol=1e-6) if not isinstance(a, str) else a == b


@EVERYWHERE
@pytest.mark.parametrize('labels', [
    *(LABELS.to(t) for t in (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.float32, torch.float64)),
    *(LABELS.numpy().astype(t) for t in ('i1', 'u1', 'i2', '>i2', 'u2', 'i4', 'u4', 'i8', 'u8', 'f2', 'f8')),
    LABELS.numpy()[::-1].copy()[::-1], LABELS.tolist(), tuple(LABELS.tolist()), list(LABELS), F.one_hot(LABELS), F.one_hot(LABELS).bool(), F.one_hot(LABELS).float().numpy(),
    F.one_hot(LABELS).tolist(), LABELS.bfloat16(), F.one_hot(LABELS).bfloat16(), LABELS.to_sparse(), LABELS.numpy().astype(object), np.ma.array(LABELS.numpy()),
    F.one_hot(LABELS).numpy().astype(object),
], ids=lambda v: f'{type(v).__name__} {getattr(v, "dtype", "")}')
def test_labels_of_any_kind(f, labels): assert same(f(LOGITS, labels), f(LOGITS, LABELS))


@EVERYWHERE
@pytest.mark.parametrize('logits', [LOGITS.numpy(), LOGITS.tolist(), list(LOGITS), LOGITS.double(), LOGITS.clone().requires_grad_(),
                                    LOGITS.numpy()[::-1].copy()[::-1]], ids=lambda v: f'{type(v).__name__} {getattr(v, "dtype", "")}')
def test_logits_of_any_kind(f, logits): assert same(f(logits, LABELS), f(LOGITS, LABELS))


def test_whole_numbers_are_logits_too():
    votes = (10*LOGITS).round().long()
    assert accuracy(votes, LABELS) == accuracy(votes.double(), LABELS) and as_logits(votes).dtype == torch.float64


def test_a_class_that_is_ruled_out():
    "-inf is a logit: nothing is taken for that class."
    out = LOGITS.clone()
    out[:,0] = -torch.inf
    assert confusion_counts(out, LABELS)[:,0].sum() == 0 and confidence(out)[:,0].max() == 0
    with pytest.raises(ValueError, match='a temperature needs finite logits'): fit_temperature(out, LABELS)


@pytest.mark.parametrize('f', [class_accuracies, lambda *a, **kw: confused_pairs(*a, k=9, **kw)], ids=['class_accuracies', 'confused_pairs'])
def test_names(f):
    names = [NAMES[i] for i in LABELS]
    assert f(LOGITS, names, classes=NAMES) == f(LOGITS, np.array(names), classes=list(NAMES)) == f(LOGITS, LABELS, classes=NAMES)
    with pytest.raises(ValueError, match="there is no class 'Cat': choose from cat, dog, frog"): f(LOGITS, ['Cat']*40, classes=NAMES)
    with pytest.raises(ValueError, match='3 columns of logits need 3 classes, not 2'): f(LOGITS, LABELS, classes=['cat', 'dog'])
    for odd in (3, {*NAMES}, dict.fromkeys(NAMES)):
        with pytest.raises(ValueError, match='classes must be a list of 3 names, by label, not'): f(LOGITS, LABELS, classes=odd)
    with pytest.raises(ValueError, match='classes has one name twice'): f(LOGITS, LABELS, classes=['cat', 'cat', 'dog'])


@EVERYWHERE
@pytest.mark.parametrize('labels, words', [
    (LABELS[1:], '40 images need 40 labels, not 39'),
    ([], '40 images need 40 labels, not 0'),
    (LABELS - 1, 'whole numbers from 0 to 2, not -1'),
    (LABELS + 1, 'whole numbers from 0 to 2, not .* to 3'),
    (LABELS + .5, 'labels must be whole numbers, not .* such as'),
    (np.full(40, np.nan), 'labels must be whole numbers'),
    (['cat']*40, "there is no class 'cat': give class numbers"),
    ([None]*40, 'labels must be class numbers or names, and one is None'),
    ([*LABELS.tolist()[1:], None], 'class numbers or names, and one is None'),
    ([*LABELS.tolist()[1:], [0]], 'not rows of several lengths'),
    (np.ma.array(LABELS.numpy(), mask=LABELS.numpy() == 1), r'some labels are masked \(hidden\): leave those images out'),
    (LABELS.to('meta'), 'labels have no data'),
    (LABELS[:,None], r'not a column \(40, 1\): give labels\[:,0\]'),
    (torch.ones(40, 1), r'not a column \(40, 1\)'),
    (np.full(40, 2**63 + 1, np.uint64), 'whole numbers from 0 to 2, not 9'),
    (LABELS > 0, 'true or false'),
    (F.one_hot(LABELS, 4), 'one-hot labels have 4 columns for 3 classes'),
    (torch.ones(40, 3), 'labels in rows must be one-hot'),
    (LABELS[:,None,None], r'labels must be \(N,\)'),
    (torch.tensor(1), r'labels must be \(N,\)'),
    (None, r'labels must be \(N,\)'),
], ids=lambda v: v[:24] if isinstance(v, str) else '')
def test_labels_that_are_none(f, labels, words):
    with pytest.raises(ValueError, match=words) as e: f(LOGITS, labels)
    assert '\n' not in str(e.value)


@EVERYWHERE
@pytest.mark.parametrize('logits, words', [
    (LOGITS[:,0], r'logits must be numbers \(N,C\)'),
    (LOGITS[None], r'logits must be numbers \(N,C\)'),
    (LOGITS[:,:1], 'at least 2 classes'),
    (LOGITS > 0, r'logits must be numbers \(N,C\)'),
    ([[1., 2.], [3.]], r'logits must be numbers \(N,C\)'),
    ([['a', 'b']]*40, r'logits must be numbers \(N,C\)'),
    (None, r'logits must be numbers \(N,C\)'),
    (torch.where(torch.arange(40)[:,None] == 7, -torch.inf, LOGITS), 'all logits of image 7 are -inf'),
    (np.ma.array(LOGITS.numpy(), mask=LOGITS.numpy() > 1), 'some logits are masked'),
    (torch.where(LOGITS == LOGITS[7,1], torch.nan, LOGITS), 'one of image 7 is NaN or infinite'),
    (torch.where(LOGITS == LOGITS[7,1], torch.inf, LOGITS), 'one of image 7 is NaN or infinite'),
], ids=lambda v: v[:24] if isinstance(v, str) else '')
def test_logits_that_are_none(f, logits, words):
    with pytest.raises(ValueError, match=words): f(logits, LABELS)


@pytest.mark.parametrize('f', [accuracy, fit_temperature, MEETINGS['calibration'], MEETINGS['accuracy_without']])
def test_no_image_has_no_measure(f):
    with pytest.raises(ValueError, match='there are no images|no image is left'): f(LOGITS[:0], LABELS[:0])


def test_no_image_has_no_mistake():
    assert len(misclassified(LOGITS[:0], LABELS[:0])) == 0 == len(class_accuracies(LOGITS[:0], [])) == len(confused_pairs(LOGITS[:0], []))
    assert confusion_counts(LOGITS[:0], []).tolist() == [[0]*3]*3


@EVERYWHERE
@pytest.mark.parametrize('labels', [[1], [1, 1]], ids=['one image', 'classes without one'])
def test_few_images(f, labels):
    if f is not MEETINGS['accuracy_without'] or len(labels) > 1: f(LOGITS[:len(labels)], labels)


@pytest.mark.parametrize('right, n', [(0, 0), (1, 0), (-1, 3), (4, 3)])
def test_what_is_no_accuracy(right, n):
    with pytest.raises(ValueError, match='is no accuracy'): wilson(right, n)


@pytest.mark.parametrize('indices', [[.5], ['a'], [[1], [2]], [True]])
def test_what_is_no_index(indices):
    with pytest.raises(ValueError, match='indices must be whole numbers'): accuracy_without(LOGITS, LABELS, indices)


@pytest.mark.parametrize('temperature', [0, -1, float('nan'), float('inf'), '1', None])
def test_what_is_no_temperature(temperature):
    with pytest.raises(ValueError, match='temperature must be a positive number'): confidence(LOGITS, temperature)


@pytest.mark.parametrize('probabilities', [LOGITS, 100*LOGITS.softmax(1), -LOGITS.softmax(1)])
def test_logits_are_no_probabilities(probabilities):
    with pytest.raises(ValueError, match=re.escape('give confidence(logits)')): calibration(probabilities, LABELS)


@pytest.mark.parametrize('bins', [0, -1, 1.5, None, True])
def test_what_is_no_number_of_bins(bins):
    with pytest.raises(ValueError, match='bins must be a positive whole number'): calibration(LOGITS.softmax(1), LABELS, bins)


# the split, and a training

@pytest.mark.parametrize('kind', ['i1', 'u1', 'i2', 'i4', 'f8'])
def test_the_split_is_the_same_for_labels_of_any_kind(kind):
    labels = np.arange(100) % 7
    for part, again in zip(split(labels), split(labels.astype(kind)), strict=True): assert (part == again).all()
    for part, again in zip(split(labels), split(labels.tolist()), strict=True): assert (part == again).all()


@pytest.mark.parametrize('labels, held', [([2]*10, 1), ([0]*20 + [5], 2)], ids=['one class', 'a class of one'])
def test_small_splits(labels, held):
    train_idx, valid_idx = split(labels)
    assert len(valid_idx) == held and sorted([*train_idx, *valid_idx]) == list(range(len(labels)))


@pytest.mark.parametrize('how, words', [
    (dict(labels=[]), 'there are no images to split'),
    (dict(labels=[0, -1]), 'whole numbers'),
    (dict(labels=[.5]), 'whole numbers'),
    (dict(labels=np.ones((20, 1))), 'not a column'),
    (dict(labels=[1e30]), 'labels must be whole numbers, not 1e'),
    (dict(labels=np.array([2**63 + 1], np.uint64)), 'labels must be whole numbers, not 9'),
    (dict(labels=[0]*20 + [1]*20, limit=18), 'limit 18 leaves out 1 of 2 classes: give at least 19, or shuffle the images'),
    (dict(labels=[0, 1, 2]*20, limit=2), 'limit 2 leaves out 1 of 3 classes: give at least'),
    (dict(labels=[0]), '1 images are too few'),
    (dict(labels=[0, 1]), '2 images are too few'),
    (dict(share=2), 'share must be from 0 to 1'),
    (dict(share=float('nan')), 'share must be from 0 to 1'),
    (dict(limit=0), 'limit must be a positive'),
    (dict(limit=-3), 'limit must be a positive'),
    (dict(limit=2.5), 'limit must be a positive'),
])
def test_what_cannot_be_split(how, words):
    with pytest.raises(ValueError, match=words): split(**{**dict(labels=[0, 1]*20), **how})


TRAIN, TEST = shapes10(n_train=120, n_test=20)
TINY = Recipe(dataset='shapes10', width=1, epochs=1, batch_size=20, limit=40)


@pytest.mark.parametrize('kind', [np.int8, np.uint8, np.int16, np.int32, np.uint64])
def test_a_training_on_labels_of_any_type(kind, tmp_path):
    other = lambda data: Images(data.images, data.labels.astype(kind), data.classes)
    expected, found = (Training(TINY, data, device='cpu') for data in (TRAIN, other(TRAIN)))
    assert expected.step() == found.step() and expected.data_sha256 == found.data_sha256
    if kind == np.int16: job(TINY, tmp_path/'run', device='cpu', progress=False, draw=False, data=(other(TRAIN), other(TEST)))


@pytest.mark.parametrize('n', [1, 10, 20])
def test_too_few_images_to_hold_one_out(n):
    with pytest.raises(ValueError, match=f'{n} images are too few'): Training(Recipe(dataset='shapes10', width=1), TRAIN.take(slice(n)), device='cpu')


# images for a network

NET, X = resnet18(width=1), torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(2))
BOTH = pytest.mark.parametrize('how', [predict, predict_views])


@BOTH
def test_a_network_without_parameters(how): assert how(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), X).shape == (4, 3)


@BOTH
@pytest.mark.parametrize('x, words', [
    (X.numpy(), r'images must be a tensor \(B,C,H,W\), .* of floating point numbers.*not a NumPy array'),
    (X.tolist(), 'images must be a tensor'),
    (None, 'images must be a tensor'),
    (X[0], r'give images\[None\]'),
    (X[:0], 'at least one'),
    (X.byte(), 'not a Tensor .* of uint8'),
    (X.permute(0,2,3,1), r'give images.permute\(0,3,1,2\)'),
    (X[:,:1], r'the model does not take a Tensor \(1?4?, 1'),
    (X.double(), 'the model does not take'),
    (X.to('meta'), 'the model does not take'),
], ids=lambda v: v[:20] if isinstance(v, str) else '')
def test_images_that_are_none(how, x, words):
    with pytest.raises(ValueError, match=words): how(NET, x)
    assert NET.training                                        # as before


@BOTH
@pytest.mark.parametrize('bs', [0, -1, 2.5, None, '250', True])
def test_what_is_no_batch_size(how, bs):
    with pytest.raises(ValueError, match='bs must be a positive whole number'): how(NET, X, bs)


@BOTH
@pytest.mark.parametrize('model, words', [(None, 'model must be a module'), ('resnet18', 'model must be a module'), (nn.Conv2d(3, 4, 1), r'must return logits \(N,C\)'),
                                          (nn.MultiheadAttention(4, 1), 'the model does not take')])
def test_models_that_give_no_logits(how, model, words):
    with pytest.raises(ValueError, match=words): how(model, X)


# pixels

PIXELS, MEAN, STD = torch.from_numpy(TRAIN.images[:6]), (.5, .4, .3), (.2, .2, .2)
DRAWS = torch.from_numpy(draws(6, 0, 0))
NO_PIXELS = pytest.mark.parametrize('images, words', [
    (PIXELS.tolist(), r'images must be pixels, \(B,H,W,3\) uint8, not a list'),
    (PIXELS.float(), 'of float32'),
    (PIXELS/255, 'of float32'),
    (PIXELS.numpy().astype(float), 'of float64'),
    (PIXELS.int(), 'of int32'),
    (PIXELS > 9, 'of bool'),
    (PIXELS.permute(0,3,1,2), r'look like \(B,3,H,W\)'),
    (PIXELS.permute(0,3,1,2).numpy(), r'look like \(B,3,H,W\)'),
    (PIXELS[0], r'give images\[None\]'),
    (PIXELS[...,:1], r'not a Tensor \(6, 32, 32, 1\)'),
    (None, 'not None'),
], ids=lambda v: v[:20] if isinstance(v, str) else '')


@NO_PIXELS
def test_what_are_no_pixels(images, words):
    order, labels = torch.arange(6), torch.zeros(6).long()
    for f in (lambda: normalise(images, MEAN, STD), lambda: augment(images, DRAWS, MEAN, STD),
              lambda: batches(images, labels, order, DRAWS, 2, MEAN, STD), lambda: albumentations_batches(images, labels, order, DRAWS, 2, MEAN, STD)):
        with pytest.raises(ValueError, match=words): f()


def test_pixels_in_an_array_are_pixels():
    array = PIXELS.numpy()[:,:,::-1]                           # a view that goes backwards
    array.flags.writeable = False
    assert torch.equal(normalise(array, np.array(MEAN), list(STD)), normalise(torch.from_numpy(array.copy()), torch.tensor(MEAN), STD))
    assert torch.equal(augment(PIXELS.numpy(), DRAWS.numpy(), MEAN, STD), augment(PIXELS, DRAWS, MEAN, STD))


@pytest.mark.parametrize('mean, std, words', [
    (.5, STD, 'mean must be three numbers from 0 to 1'),
    ((.5,), STD, 'mean must be three numbers'),
    ((.5,)*4, STD, 'mean must be three numbers'),
    ((125., 122., 113.), STD, 'mean must be three numbers from 0 to 1, for pixels in'),
    (None, STD, 'mean must be three numbers'),
    ('abc', STD, 'mean must be three numbers'),
    ((.5, .5, float('nan')), STD, 'mean must be three numbers'),
    (MEAN, (63., 62., 67.), 'std must be three numbers'),
    (MEAN, (.2, .2, 0.), 'std must be positive'),
    (torch.ones(2), STD, 'mean must be three numbers'),
])
def test_what_is_no_mean(mean, std, words):
    x = normalise(PIXELS, MEAN, STD)
    for f in (lambda: normalise(PIXELS, mean, std), lambda: denormalise(x, mean, std), lambda: augment(PIXELS, DRAWS, mean, std)):
        with pytest.raises(ValueError, match=words): f()


@pytest.mark.parametrize('x', [X.numpy(), X.tolist(), X.permute(0,2,3,1), X[0], PIXELS, X[:,:2], None], ids=str)
def test_what_was_not_normalised(x):
    with pytest.raises(ValueError, match=r'x must be normalised images, a tensor \(B,3,H,W\)'): denormalise(x, MEAN, STD)


@pytest.mark.parametrize('draw', [DRAWS[:5], DRAWS[:,:5], DRAWS[0], DRAWS.tolist(), None], ids=str)
def test_draws_of_other_images(draw):
    with pytest.raises(ValueError, match='6 images need as many rows of draws'): augment(PIXELS, draw, MEAN, STD)


def test_augmented_pictures_are_of_32_pixels():
    with pytest.raises(ValueError, match='images must be 32×32 pixels'): augment(PIXELS[:,:30], DRAWS, MEAN, STD)


def test_an_unknown_flip():
    with pytest.raises(ValueError, match="there is no flip 'up': choose none, random, alternating"): flips(3, 0, 1, 'up')


HOW = pytest.mark.parametrize('how', [batches, albumentations_batches])
FIT = dict(images=PIXELS, labels=torch.tensor([0,1,2,0,1,2]), order=torch.tensor([5,3,1,0,2,4]), table=DRAWS, bs=4)


@HOW
@pytest.mark.parametrize('other', [
    dict(images=PIXELS.numpy()), dict(labels=[0,1,2,0,1,2]), dict(labels=np.array([0,1,2,0,1,2], np.int16)),
    dict(labels=torch.eye(3)[[0,1,2,0,1,2]]), dict(order=[5,3,1,0,2,4]), dict(order=np.array([5,3,1,0,2,4])), dict(table=DRAWS.numpy()),
], ids=lambda v: ' '.join(v))
def test_batches_of_what_surely_fits(how, other):
    for (xa, ya), (xb, yb) in zip(how(*{**FIT, **other}.values(), MEAN, STD), how(*FIT.values(), MEAN, STD), strict=True):
        assert torch.equal(xa, xb) and torch.equal(ya, yb) and ya.dtype == torch.int64


@HOW
@pytest.mark.parametrize('other, words', [
    (dict(labels=[0,1]), '6 images need 6 labels, not 2'),
    (dict(labels=[0,1,2,0,1,.5]), 'labels must be whole numbers'),
    (dict(order=torch.tensor([0,6])), 'order must be indices of 6 images, not 0 to 6'),
    (dict(order=torch.tensor([-1])), 'order must be indices of 6 images'),
    (dict(order=torch.ones(6)), 'order must be whole numbers in one row'),
    (dict(order=torch.ones(6, 1).long()), 'order must be whole numbers in one row'),
    (dict(table=DRAWS[:5]), '6 images need a table of 6 draws'),
    (dict(table=DRAWS[:,:5]), '6 images need a table of 6 draws'),
    (dict(bs=0), 'bs must be a positive whole number'),
    (dict(bs=2.), 'bs must be a positive whole number'),
], ids=lambda v: v[:30] if isinstance(v, str) else '')
def test_batches_of_what_does_not_fit(how, other, words):
    with pytest.raises(ValueError, match=words): how(*{**FIT, **other}.values(), MEAN, STD)           # at once, not at the first batch


class OnePicture(torch.utils.data.Dataset):
    "The same picture again and again, augmented."
    def __init__(self, augmentation): self.augmentation = augmentation
    def __len__(self): return 8
    def __getitem__(self, i): return self.augmentation(image=TRAIN.images[0])['image']


def two_epochs(augmentation, **how):
    torch.manual_seed(0)
    loader = torch.utils.data.DataLoader(OnePicture(augmentation), batch_size=2, num_workers=2, **how)
    return [image.numpy().tobytes() for epoch in range(2) for batch in loader for image in batch]


FORK = pytest.mark.skipif('fork' not in multiprocessing.get_all_start_methods(), reason='no fork here')


@FORK
@pytest.mark.parametrize('nested', [False, True])
@pytest.mark.parametrize('persistent', [False, True])
def test_the_plain_augmentation_repeats_nothing_in_workers(nested, persistent):
    plain = plain_augmentation(MEAN, STD)
    seen = two_epochs(A.Compose([plain]) if nested else plain, persistent_workers=persistent, multiprocessing_context='fork')
    assert len(set(seen)) == 16                                # two epochs of eight
    if not persistent: assert seen == two_epochs(plain_augmentation(MEAN, STD), multiprocessing_context='fork')      # by torch.manual_seed


@FORK
def test_albumentations_own_would_repeat():
    seen = two_epochs(A.Compose(plain_augmentation(MEAN, STD).transforms), multiprocessing_context='fork')
    assert seen[:8] == seen[8:] and len(set(seen)) == 4         # both epochs, and both workers


def test_the_plain_augmentation_can_be_sent_to_a_worker():
    sent = pickle.loads(pickle.dumps(OnePicture(A.Compose([plain_augmentation(MEAN, STD)]))))
    assert sent[0].shape == (32, 32, 3) and (sent[0] != sent[0]).any()


# a network by its arguments

@pytest.mark.parametrize('wrong, words', [
    (dict(num_classes='10'), "num_classes must be a whole number, not '10'"),
    (dict(num_classes=10.), 'num_classes must be a whole number, not 10.0'),
    (dict(num_classes=True), 'num_classes must be a whole number'),
    (dict(num_classes=[10]), 'num_classes must be a whole number, not a list'),
    (dict(width=2.5), 'width must be a whole number, not 2.5'),
    (dict(width='64'), "width must be a whole number, not '64'"),
    (dict(width=10**7), 'width must be at most 2,048'),
    (dict(width=-1), 'a width of at least 1'),
    (dict(strides='1222'), "strides '1222' make no sense"),
    (dict(strides='1,2,2,2'), "strides '1,2,2,2' make no sense"),
    (dict(strides=2), 'strides 2 make no sense'),
    (dict(strides=(1,2,2.,2)), 'make no sense'),
    (dict(strides=(True,2,2,2)), 'make no sense'),
    (dict(strides=()), 'make no sense'),
    (dict(strides={1: 2}), 'make no sense'),
    (dict(norm=['layer']), r"there is no norm \['layer'\]"),
    (dict(norm=nn.BatchNorm2d), 'there is no norm'),
    (dict(norm=dict(width=2)), 'there is no norm'),
    (dict(pretrained='runs/x'), "pretrained is True or False, not 'runs/x': a file is read by load_weights"),
    (dict(pretrained=1), 'pretrained is True or False, not 1'),
], ids=str)
def test_arguments_of_a_network(wrong, words):
    with pytest.raises(ValueError, match=words): resnet18(**wrong)
    if 'pretrained' not in wrong:
        with pytest.raises(ValueError, match=words): check_model(**{**dict(norm='layer', strides=(1,2,2,2), width=64, num_classes=10), **wrong})


@pytest.mark.parametrize('right', [dict(width=np.int64(2)), dict(num_classes=np.uint8(3)), dict(strides=[1,1,2,2]), dict(strides=np.array([1,1,2,2]).tolist())], ids=str)
def test_numbers_of_numpy(right):
    config = resnet18(**{**dict(width=2), **right}).config
    assert all(type(v) in (int, str, tuple) for v in config.values()) and all(type(s) is int for s in config['strides'])
