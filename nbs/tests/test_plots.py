"Figures hold what they were given: what their bars, whiskers and points say, and how large their files are."
import io

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from cifar_resnet.plots import class_bars, confusion, curves, mistakes, picture_grid, png, reliability, table

HISTORY = [dict(epoch=e, lr=1e-3, train_loss=2/e, train_accuracy=.9 - .8/e, valid_loss=1.8/e, valid_accuracy=.88 - .7/e) for e in range(1, 6)]
ACCURACIES = [{'class': name, 'accuracy': a, 'low': a - .02, 'high': a + .015} for name, a in dict(airplane=.91, bird=.86, cat=.79, ship=.95).items()]
CONF = np.linspace(.05, .95, 10)
BEFORE, AFTER = (np.stack([40*np.arange(10)**2, CONF, right], 1) for right in (CONF**1.5, CONF + .02*np.cos(9*CONF)))
PICTURES = np.arange(2*32*32*3).reshape(2, 32, 32, 3).astype(np.uint8)
CHARTS = dict(
    curves=lambda: curves(HISTORY, best=2),
    confusion=lambda: confusion(np.diag([3, 4]), ['cat', 'dog']),
    class_bars=lambda: class_bars(ACCURACIES),
    reliability=lambda: reliability((.1, BEFORE), (.02, AFTER)))


def opened(fig): return Image.open(io.BytesIO(png(fig)))


def test_size_in_pixels():
    width, height = opened(curves(HISTORY)).size
    assert 750 < width < 830 and 280 < height < 330


@pytest.mark.parametrize('name', CHARTS)
def test_charts_have_a_palette_and_pyplot_forgets_them(name):
    assert opened(CHARTS[name]()).mode == 'P'
    assert plt.get_fignums() == []


@pytest.mark.parametrize('fig', [picture_grid(PICTURES), mistakes(PICTURES[:1], ['cat'], ['dog'], [.5])], ids=['picture_grid', 'mistakes'])
def test_pictures_keep_their_colours(fig): assert opened(fig).mode != 'P'


def test_curves_mark_the_epoch_that_is_kept():
    for ax, what in zip(curves(HISTORY, best=2).axes, ('loss', 'accuracy'), strict=True):
        train, valid, kept = (line.get_xydata() for line in ax.lines)
        assert train[:,1].tolist() == [row[f'train_{what}'] for row in HISTORY]
        assert valid[:,1].tolist() == [row[f'valid_{what}'] for row in HISTORY]
        assert kept.tolist() == [[2, HISTORY[1][f'valid_{what}']]]


def test_confusion_prints_the_counts():
    texts = confusion(np.array([[90, 0], [1_200, 7]]), ['cat', 'dog']).axes[0].texts
    assert [(t.get_position(), t.get_text()) for t in texts] == [((0, 0), '90'), ((0, 1), '1,200'), ((1, 1), '7')]
    assert [(t.get_weight(), t.get_color()) for t in texts] == [('bold', 'black'), ('normal', 'white'), ('bold', 'black')]


def test_class_bars():
    ax = class_bars(ACCURACIES).axes[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == ['cat', 'bird', 'airplane', 'ship']          # the worst first
    assert np.allclose([bar.get_width() for bar in ax.patches], [.79, .86, .91, .95])
    whiskers = [s[:,0] for s in ax.collections[0].get_segments()]
    assert np.allclose(whiskers, [[.77, .805], [.84, .875], [.89, .925], [.93, .965]])


def test_reliability():
    left, right, *strips = reliability((.113, BEFORE), (.016, AFTER)).axes
    assert [ax.get_title() for ax in (left, right)] == ['before the temperature: ECE 11.30%', 'after the temperature: ECE 1.60%']
    for ax, strip, bins in zip((left, right), strips, (BEFORE, AFTER), strict=True):
        assert np.allclose(ax.lines[1].get_xydata(), bins[1:,1:])                  # the first bin has no images, and no point
        assert np.allclose([bar.get_height() for bar in strip.patches], bins[:,0])
        assert np.allclose([bar.get_x() + bar.get_width()/2 for bar in strip.patches], CONF)


def test_a_table_tells_true_from_one():
    assert table([dict(images=50_000, estimated=True)]).data.splitlines()[2] == '| 50,000 | True |'
