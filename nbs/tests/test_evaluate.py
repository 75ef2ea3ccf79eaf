"What 06_evaluate promises in all its cases, on logits made up so that the answer is known; its notebook shows a network."
from collections import Counter
from statistics import NormalDist

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cifar_resnet.evaluate import (accuracy, accuracy_without, calibration, class_accuracies, confidence, confused_pairs,
                                   confusion_counts, fit_temperature, misclassified, predict, predict_views, spread, wilson)

# Logits of 2,000 images of three classes; each label is drawn from the softmax of its logits, so they are as sure as they should be.
G = np.random.default_rng(0)
LOGITS = torch.from_numpy(G.normal(0, 2, (2000,3))).float()
LABELS = (LOGITS + torch.from_numpy(G.gumbel(size=(2000,3)))).argmax(1)
RIGHT = F.one_hot(LABELS).float()          # logits of a network that knows everything
X = torch.randn(7, 3, 4, 5, generator=torch.Generator().manual_seed(0))      # not square


def linear():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Dropout(.5), nn.Linear(60, 10))


@pytest.mark.parametrize('mode', [True, False])
def test_predict_leaves_every_mode_and_is_in_eval_mode(mode):
    net = linear()
    net[1].train(mode)
    assert torch.equal(predict(net, X), net[2](X.flatten(1)))          # without dropout
    assert net.training and net[1].training == mode


def test_predict_gives_normal_float32_tensors_on_the_cpu():
    net = linear()
    logits = predict(net, X, bs=3)
    assert (logits.shape, logits.dtype, logits.device.type) == ((7,10), torch.float32, 'cpu')
    assert not logits.is_inference() and not logits.requires_grad
    assert predict(net.double(), X.double()).dtype == torch.float32


def test_predict_is_the_same_in_parts_and_inside_an_autocast():
    net = linear()
    torch.testing.assert_close(predict(net, X, bs=3), predict(net, X))
    with torch.autocast('cpu', torch.bfloat16): inside = predict(net, X)
    assert torch.equal(inside, predict(net, X))


def moved(x, by):
    "By 1: down-right; the gap is 0."
    out, (H, W) = torch.zeros_like(x), x.shape[-2:]
    for i, j in np.ndindex(H, W):
        if 0 <= i-by < H and 0 <= j-by < W: out[:,:,i,j] = x[:,:,i-by,j-by]
    return out


def test_six_views_by_hand_pixel_after_pixel():
    net = linear()
    by_hand = sum(weight*predict(net, view) for weight, by in ((.25, 0), (.125, -1), (.125, 1))
                  for view in (moved(X, by), torch.from_numpy(moved(X, by).numpy()[...,::-1].copy())))
    torch.testing.assert_close(predict_views(net, X), by_hand)
    assert (by_hand - predict(net, X)).abs().max() > .1


def test_a_network_that_sees_the_mean_colour_only_sees_no_difference():
    torch.manual_seed(0)
    colour = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 10))
    framed = F.pad(X, (1,1,1,1))                                       # nothing leaves the picture
    torch.testing.assert_close(predict_views(colour, framed), predict(colour, framed))


def test_six_views_keep_to_the_batch_size():
    net, sizes = linear(), []
    net.register_forward_hook(lambda m, inputs, out: sizes.append(len(out)))
    out = predict_views(net, X, bs=3)
    assert sizes == [3,3,1]*6
    assert (out.shape, out.dtype, out.device.type, out.is_inference()) == ((7,10), torch.float32, 'cpu', False)


@pytest.mark.parametrize('right, n', [(0, 1), (1, 1), (0, 20), (20, 20), (7, 10), (9003, 10_000)])
def test_wilson_by_hand(right, n):
    p, z = right/n, NormalDist().inv_cdf(.975)
    middle, half = p + z*z/2/n, z*(p*(1-p)/n + z*z/4/n/n)**.5
    assert wilson(right, n) == pytest.approx(((middle - half)/(1 + z*z/n), (middle + half)/(1 + z*z/n)), abs=1e-9)


def test_mistakes_in_order():
    wrong = [i for i in range(2000) if LOGITS[i].argmax() != LABELS[i]]
    assert misclassified(LOGITS, LABELS, 5000).tolist() == wrong
    assert misclassified(LOGITS, LABELS, 5).tolist() == wrong[:5]
    conf = LOGITS.softmax(1).amax(1)
    assert misclassified(LOGITS, LABELS, 5, 'confident').tolist() == sorted(wrong, key=lambda i: -conf[i])[:5]
    assert len(misclassified(RIGHT, LABELS)) == 0                      # nothing wrong: nothing to show
    with pytest.raises(ValueError, match='choose index or confident'): misclassified(LOGITS, LABELS, order='x')


@pytest.mark.parametrize('dtype', [torch.int64, torch.int32, torch.uint8])
@pytest.mark.parametrize('C, n', [(3, 2000), (100, 500), (2, 1), (10, 0)])
def test_the_confusion_matrix_by_counting(C, n, dtype):
    "In 100 classes a product of small integers would overflow."
    g = torch.Generator().manual_seed(C)
    logits, labels = torch.randn(n, C, generator=g), torch.randint(0, C, (n,), generator=g).to(dtype)
    by_hand = np.zeros((C, C), dtype=np.int64)
    for true, pred in zip(labels.tolist(), logits.argmax(1).tolist()): by_hand[true,pred] += 1
    counts = confusion_counts(logits, labels)
    assert type(counts) is np.ndarray and counts.dtype == np.int64 and counts.shape == (C, C) and counts.flags.writeable
    assert (counts == by_hand).all()
    assert (confusion_counts(logits, labels.numpy()) == by_hand).all()


def test_classes_that_do_not_occur_have_rows_of_zeros():
    assert confusion_counts(torch.eye(3)[[0,1]], torch.tensor([0,0])).tolist() == [[1,1,0], [0,0,0], [0,0,0]]


@pytest.mark.parametrize('label', [3, -1])
def test_a_label_that_is_no_class(label):
    with pytest.raises(ValueError): confusion_counts(torch.eye(3), torch.tensor([0, 1, label]))


def test_class_by_class():
    rows = class_accuracies(LOGITS, LABELS, ['zero', 'one', 'two'])
    for c, row in enumerate(rows):
        own = LABELS == c
        assert row['class'] == ['zero', 'one', 'two'][c] and row['images'] == own.sum()
        assert row['right'] == (LOGITS[own].argmax(1) == c).sum() and row['accuracy'] == row['right']/row['images']
        assert (row['low'], row['high']) == wilson(row['right'], row['images'])
    absent = class_accuracies(torch.eye(3)[[0,2,1]], torch.tensor([0,2,2]))          # no image of class 1, so no accuracy
    assert [(row['class'], row['right'], row['images']) for row in absent] == [(0,1,1), (2,1,2)]
    with pytest.raises(ValueError): class_accuracies(LOGITS, LABELS, ['zero', 'one'])


def test_confused_pairs():
    pairs = confused_pairs(LOGITS, LABELS, 2)
    counted = Counter((t, p) for t, p in zip(LABELS.tolist(), LOGITS.argmax(1).tolist()) if t != p).most_common(2)
    assert [((row['true'], row['predicted']), row['images']) for row in pairs] == counted
    few = confused_pairs(torch.eye(3)[[1,0,2,2,1]], torch.tensor([2,1,1,2,2]), classes='abc')    # two pairs occur once
    assert [tuple(row.values()) for row in few] == [('c','b',2,2/3), ('b','a',1,1/2), ('b','c',1,1/2)]
    assert confused_pairs(RIGHT, LABELS) == []


def test_without_some_of_the_images():
    wrong = misclassified(LOGITS, LABELS, 5000)
    without = accuracy_without(LOGITS, LABELS, wrong[:100])
    assert (without['right'], without['images']) == (2000 - len(wrong), 1900)
    assert (without['low'], without['high']) == wilson(without['right'], 1900)
    assert accuracy_without(LOGITS, LABELS, [])['accuracy'] == accuracy(LOGITS, LABELS)
    assert accuracy_without(LOGITS, LABELS, np.array([7, 7, 1999, 2000, 9999]))['images'] == 1998     # twice is once; two were never read
    with pytest.raises(ValueError, match='no image is left of 3'): accuracy_without(LOGITS[:3], LABELS[:3], range(10))


def test_spread():
    three = spread([1, 2, 3])
    assert (three['mean'], three['sd']) == (2, 1)                      # of the population that the runs are drawn from
    assert three['ci95'] == pytest.approx([2 - 4.302653/3**.5, 2 + 4.302653/3**.5], abs=1e-6)
    assert spread([.5]) == dict(mean=.5, sd=None, ci95=None)


def test_the_temperature():
    T = fit_temperature(LOGITS, LABELS)
    assert abs(T - 1) < .1                                             # they are as sure as they should be
    assert fit_temperature(3*LOGITS, LABELS) == pytest.approx(3*T, abs=1e-3)
    assert torch.equal(confidence(LOGITS, T), (LOGITS/T).softmax(1))
    before, after = calibration(confidence(3*LOGITS), LABELS)[0], calibration(confidence(3*LOGITS, 3*T), LABELS)[0]
    assert after < .03 < before


def test_few_images_that_are_all_right_do_not_justify_certainty():
    few = LOGITS[:50]
    T = fit_temperature(few, few.argmax(1))
    assert T > .1 and confidence(few, T).amax(1).mean() < .999


def test_the_calibration_error_by_hand():
    probabilities = torch.tensor([[1.,0], [1,0], [.3,.7], [.7,.3], [.05,.95]])
    ece, table = calibration(probabilities, torch.tensor([0,1,1,1,1]), bins=10)
    assert table.shape == (10,3) and table[:,0].tolist() == [0]*7 + [2,0,3]
    np.testing.assert_allclose(table[[7,9]], [[2,.7,.5], [3,2.95/3,2/3]], atol=1e-6)
    assert ece == pytest.approx((2*.2 + 3*(2.95/3 - 2/3))/5, abs=1e-6)
    assert calibration(torch.tensor([[1.,0],[1,0]]), torch.tensor([0,1]))[0] == .5
