"Figures speak for themselves: what is drawn is said, single mistakes are seen, nothing is cut or crowded, however many there are."
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from cifar_resnet.gradcam import overlay
from cifar_resnet.plots import class_bars, confusion, contrasts, mistakes, picture_grid

hard = pytest.mark.trust('commands and figures', 'figures')
PICTURES = np.random.default_rng(0).integers(0, 256, (20,32,32,3)).astype(np.uint8)
LONG = ['Bedlington terrier of the northern hills', 'W'*40, '$x$ and y', 'cat']


def named(n): return [f'{LONG[i % 4]} {i}' for i in range(n)]

def counts(n, *wrong, right=900):
    "So many right answers of each class, and mistakes (true, predicted, how many)."
    matrix = np.diag([right]*n)
    for i, j, k in wrong: matrix[i,j] = k
    return matrix

def boxes(fig):
    "Where all texts of a figure lie; to lay it out must warn of nothing."
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        fig.draw_without_rendering()
    charts = [ax for ax in fig.axes if ax.axison]
    texts = [*fig.texts, *(t for ax in charts for t in [*ax.texts, *ax.get_xticklabels(), *ax.get_yticklabels(), ax.title, ax._left_title, ax.xaxis.label])]
    return [t.get_window_extent() for t in texts if t.get_text() and t.get_visible()]

def inches(fig): return fig.get_size_inches()[0]

def apart(boxes): return not any(a.x0 < b.x1 - 1 and b.x0 < a.x1 - 1 and a.y0 < b.y1 - 1 and b.y0 < a.y1 - 1 for i, a in enumerate(boxes) for b in boxes[:i])

def luminance(colour): return np.dot(colour[:3], [.2126, .7152, .0722])


# the confusion matrix

def cells(fig):
    "The colours (C,C,3), from 0 to 1, that the cells of a confusion matrix have."
    found = np.ones((*fig.axes[0].images[0].get_array().shape, 3))
    for image in fig.axes[0].images:                                                          # one above the other
        colours = image.to_rgba(image.get_array())
        found = np.where(colours[...,3:] > 0, colours[...,:3], found)
    return found

@hard
@pytest.mark.parametrize('n', [2, 5, 10, 20, 37, 100])
@pytest.mark.parametrize('most', [1, 9, 450])
def test_a_single_mistake_is_seen(n, most):
    between = [(n-1, j, round(most*share)) for j, share in enumerate((.4, .48, .52, .58, .63)) if 3 < j + 4 < n]
    fig = confusion(counts(n, (0, 1, 1), (1, 0, most), *between), named(n))
    seen = cells(fig)
    one, nothing, right = seen[0,1], (seen[0,n-1] if n > 2 else np.ones(3)), seen[0,0]
    assert luminance(nothing) - luminance(one) > .1 and one[2] - one[0] > .1, one             # blue, and not white
    assert abs(right - right[0]).max() < 1e-6 and .03 < 1 - right[0] < .3                     # a pale grey
    for text in fig.axes[0].texts:                                                            # a count can be read in its cell
        j, i = text.get_position()
        dark = luminance(seen[i,j]) < .5
        assert text.get_color() == ('white' if dark else 'black'), (i, j, text.get_text())

@hard
def test_a_confusion_matrix_says_what_its_colours_are():
    title = confusion(counts(3, (0, 1, 1)), ['a', 'b', 'c']).axes[0].get_title('left')
    assert title == 'Grey diagonal: right. Blue: taken for another class.'
    clean = confusion(counts(3), ['a', 'b', 'c'])
    assert clean.axes[0].get_title('left') == 'Grey diagonal: right. There are no mistakes.' and len(clean.axes) == 1   # no bar of nothing

@hard
def test_ticks_of_the_colour_bar_are_all_different(cases):
    shares = [1, 2, 3, 7, 10, 11, 19, 21, 29, 33, 41, 45, 52, 77, 104, 130, 213, 297, 350, 444, 512, 666, 801, 999]
    cases(len(shares))
    for k in shares:
        fig = confusion(counts(2, (0, 1, k), right=1000 - k), ['a', 'b'])
        fig.draw_without_rendering()
        labels = [t.get_text() for t in fig.axes[1].get_yticklabels()]
        assert len(set(labels)) == len(labels) and labels[0].strip('.0%') == '' and all(label.endswith('%') for label in labels), (k, labels)

@hard
@pytest.mark.parametrize('n', [2, 10, 20, 37, 100])
def test_a_confusion_matrix_is_not_crowded(n):
    fig = confusion(counts(n, (0, 1, 1), (1, 0, 80)), named(n))
    boxes(fig)
    assert inches(fig) <= (6 if n <= 20 else 8)
    texts = [t.get_window_extent() for t in fig.axes[0].texts]
    names = [t.get_window_extent() for t in fig.axes[0].get_yticklabels()]
    assert apart(texts) and apart(names)


# mistakes, and why

def maps(n):
    left, right = torch.rand(2, n, 4, 4, generator=torch.Generator().manual_seed(0))
    return [overlay(PICTURES[:n], left), overlay(PICTURES[:n], right), overlay(PICTURES[:n], left - right, signed=True)]

def why(n, names): return contrasts(PICTURES[:n], maps(n) if n else [PICTURES[:0]]*3, names, names, names, np.full(n, 1.5), np.full(n, 1.))
def shown(n, names): return mistakes(PICTURES[:n], names, names, np.full(n, .5), n, 200)
def short(n): return [f'class {i}' for i in range(n)]

@hard
@pytest.mark.parametrize('n', [0, 1, 2, 3, 5, 19, 20])
@pytest.mark.parametrize('names', [short, named])
@pytest.mark.parametrize('draw', [why, shown])
def test_so_many_mistakes(draw, names, n):
    fig = draw(n, names(n))
    found = boxes(fig)
    page = fig.bbox
    assert apart(found) and inches(fig) < 7
    if n: assert all(b.x0 > -1 and b.x1 < page.x1 + 1 and b.y0 > -1 and b.y1 < page.y1 + 1 for b in found)       # nothing beyond the edge
    pictures = [ax.get_window_extent() for ax in fig.axes]
    assert apart([*pictures, *found]) and len(pictures) == n*(4 if draw is why else 1)

@hard
@pytest.mark.parametrize('n, total, of, said', [
    (0, 0, 200, 'None misclassified among 200 images'),
    (1, 1, 200, 'The only one misclassified among 200 images'),
    (5, 5, 10_000, 'All 5 misclassified among 10,000 images'),
    (20, 812, 10_000, 'The first 20 of 812 misclassified among 10,000 images'),
    (3, None, None, 'The first 3 misclassified')])
def test_how_many_there_are(n, total, of, said):
    fig = mistakes(PICTURES[:n], short(n), short(n), np.full(n, .5), total, of)
    assert ' '.join(t.get_text() for t in fig.texts).startswith(said)

@hard
def test_titles_name_the_colours_that_are_drawn():
    "What the caption calls yellow, orange and blue is of these colours; titles have the colour that the heading gives them."
    fig = why(2, ['cat', 'dog'])
    said = ' '.join(t.get_text() for t in fig.texts)
    assert 'predicted class (orange title)' in said and 'true one (blue)' in said and 'yellower' in said
    titles = [t.get_color() for t in fig.texts if t.get_text() == 'cat']
    assert titles == ['#D55E00', '#0072B2']
    grey = np.full((1,64,64,3), 128, np.uint8)
    ramp = torch.linspace(0, 1, 64).expand(1, 64, 64)
    heat = overlay(grey, ramp)[0,32].astype(int)
    yellow = heat[:,:2].min(1) - heat[:,2]                                                    # red and green above blue
    assert (np.diff(yellow[12:52:4]) >= 0).all() and yellow[-8:].min() > 50 and abs(yellow[:8]).max() < 10
    for value, (low, high) in ((1, (2, 0)), (-1, (0, 2))):                                    # orange: much red, little blue; blue: the reverse
        pixel = overlay(grey, value*torch.ones(1, 64, 64), opacity=1, signed=True)[0,32,32].astype(int)
        assert pixel[high] > pixel[low] + 100

@hard
def test_no_mistakes_need_no_explanation(): assert [t.get_text() for t in why(0, []).texts] == ['No mistakes, nothing to explain']

@hard
@pytest.mark.parametrize('columns', [1, 2, 3, 5])
def test_a_caption_is_folded_into_its_figure(columns):
    fig = picture_grid(PICTURES[:columns], short(columns), cols=columns, heading='A heading of quite some length, which one picture cannot hold', caption='What the colours mean. '*6)
    found = boxes(fig)
    assert apart(found) and all(b.x1 < fig.bbox.x1 + 1 for b in found)
    whole = ' '.join(t.get_text() for t in fig.texts)
    assert whole.count('What the colours mean.') == 6 and 'one picture cannot hold' in whole

@hard
@pytest.mark.parametrize('name', ['\x1b[2J', 'a\x07b', '\u202egnp.exe', 'x\x00y', '\x9b31m'])
def test_names_that_control_a_terminal_are_drawn_as_escapes(name):
    with warnings.catch_warnings():
        warnings.simplefilter('error')                                                        # a glyph that the font lacks
        fig = shown(1, [name])
        fig.draw_without_rendering()
    assert all(t.get_text().isprintable() for t in fig.texts) and '\\' in ''.join(t.get_text() for t in fig.texts)


# classes one by one

@hard
@pytest.mark.parametrize('n', [1, 2, 10, 25, 100])
def test_bars_of_so_many_classes(n):
    fig = class_bars([{'class': name, 'accuracy': .9 - i/200, 'low': .3, 'high': .95} for i, name in enumerate(named(n))])
    ax = fig.axes[0]
    assert apart(boxes(fig)) and inches(fig) < 6 and '95% interval' in ax.get_xlabel()
    bottom, top = ax.get_ylim()
    assert bottom - max(bar.get_y() + bar.get_height() for bar in ax.patches) < .5 and min(bar.get_y() for bar in ax.patches) - top < .5   # no empty rows


# a picture of one's own

@hard
@pytest.mark.parametrize('top', [1, 3, 10])
def test_the_figure_of_a_picture_of_ones_own(top):
    from cifar_resnet.job import _explained
    answer = [{'class': name, 'confidence': .5, 'positive': i != 1} for i, name in enumerate(named(top))]
    fig = _explained(np.asarray(Image.fromarray(PICTURES[0]).resize((192, 192))), PICTURES[0], answer, torch.rand(top, 4, 4, generator=torch.Generator().manual_seed(0)))
    said = ' '.join(t.get_text() for t in fig.texts)
    assert apart([*boxes(fig), *(ax.get_window_extent() for ax in fig.axes)]) and inches(fig) < 6.6
    assert 'yellower' in said and 'confidence' in said and 'as the network gets it' in said and len(fig.axes) == top + 2
