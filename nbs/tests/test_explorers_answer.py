"Every explorer of the notebooks answers after *Run All*; and what it shows, it shows on any page, for any reader."
import io, json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import ipywidgets as widgets
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image, ImageColor

from cifar_resnet import explore, plots, stepper as stepper_module
from cifar_resnet.data import Images
from cifar_resnet.explore import (BLOCKS, COLUMN, INK, USUAL, augmentation_explorer, gradcam_explorer, label, mistake_explorer,
                                  subject)
from cifar_resnet.plots import curves, png, reliability
from cifar_resnet.recipe import Recipe
from cifar_resnet.stepper import training_stepper
from test_explore import png_file, uploading

NOTEBOOKS = Path(__file__).parent.parent
TINY = Recipe(dataset='shapes10', width=4, epochs=4, batch_size=16, limit=64)
CIFAR = 'airplane automobile bird cat deer dog frog horse ship truck'.split()
# Said to each explorer that lives in a kernel: a new value for its first control, or one batch; prints what came of it.
TOUCH = '''
import gc, json

def kinds(o): return {c.__name__ for c in type(o).__mro__}      # the notebook's own classes, or the package's

def look(page): return page.message.value, [bytes(i.value) for i in page.pictures.children]

def touch(page):
    before = look(page)
    if 'StepperPage' in kinds(page):
        page.buttons['One batch'].click()
        page.stepper.wait(200)
        page.draw()
    elif 'cell' in page.controls: [b for at, b in page.matrix.buttons.items() if b.description and at != page.matrix.chosen][0].click()
    else: page.controls['image'].value = 17 if page.controls['image'].value != 17 else 18
    words, pictures = look(page)
    return dict(kind=page._dom_classes[-1], answers=words != before[0] and pictures != before[1], fails='font-weight:bold' in words)

print(json.dumps([touch(o) for o in gc.get_objects() if kinds(o) & {'Explorer', 'StepperPage'}]))
'''


def run_all(name):
    "A notebook's cells in a kernel, and then `TOUCH`: what it prints."
    NotebookClient = pytest.importorskip('nbclient').NotebookClient
    nbformat = pytest.importorskip('nbformat')
    nb = nbformat.read(NOTEBOOKS/name, 4)
    nb.cells.append(nbformat.v4.new_code_cell(TOUCH))
    NotebookClient(nb, timeout=600, kernel_name='python3', resources=dict(metadata=dict(path=str(NOTEBOOKS)))).execute()
    return json.loads(nb.cells[-1].outputs[-1]['text'])


@pytest.mark.trust('page and explorers', 'explorers after Run All')
@pytest.mark.parametrize('name, kinds', [
    ('14_explore.ipynb', ['augmentation', 'demo', 'gradcam', 'gradcam', 'mistakes']),
    ('15_stepper.ipynb', ['augmentation', 'gradcam', 'mistakes', 'training', 'training'])])
def test_every_explorer_answers(name, kinds, cases):
    found = run_all(name)
    cases(len(found))
    assert sorted(f['kind'] for f in found) == [f'cifar-{kind}' for kind in kinds]
    for f in found: assert f['answers'] and not f['fails'], f


@pytest.mark.trust('page and explorers', 'explorers after Run All')
@pytest.mark.parametrize('name, shows', [('14_explore.ipynb', 'gradcam_explorer()'), ('15_stepper.ipynb', 'app()')])
def test_the_first_thing_is_an_explorer(name, shows):
    "Its cell begins with a magic: nbdev would run it otherwise, and put its widgets into every page of the documentation."
    cells = [c for c in json.loads((NOTEBOOKS/name).read_text())['cells'] if c['cell_type'] == 'code']
    first = next(''.join(c['source']) for c in cells if 'default_exp' not in ''.join(c['source']) and 'google.colab' not in ''.join(c['source']))
    assert first.startswith('%') and first.splitlines()[-1] == shows and len(first.splitlines()) == 3


SMALL = subject(n=80)


@pytest.fixture
def page(tmp_path):
    made = training_stepper(TINY, tmp_path/'run', 'cpu')
    yield made
    made.stepper.end()


def press(page, name):
    page.buttons[name].click()
    page.stepper.wait(100)
    page.draw()
    return page.message.value


@pytest.mark.trust('page and explorers', 'words of the stepper')
def test_stopped_is_not_paused(page):
    assert 'Ready.' in page.message.value
    assert 'Ready.' in press(page, 'Stop')                    # nothing was trained, nothing is saved
    for name, state in {'One batch': 'Paused', 'Stop': 'Stopped', 'One epoch': 'Paused', 'Pause': 'Paused', 'Reset': 'Ready'}.items():
        assert f'. {state}.' in press(page, name), name


@pytest.mark.trust('page and explorers', 'words of the stepper')
def test_three_digits_of_the_rate(page):
    "1.26e-4 is not 1.3e-4."
    assert page.rate.readout_format == '.3g'
    page.rate.value = 10**-3.9
    page.stepper.wait()
    page.draw()
    assert 'learning rate 0.000126' in page.message.value


def ticks(ax, axis): return [t.get_text() for t in getattr(ax, f'get_{axis}ticklabels')()]

def axes_of(seen, draws):
    fig = Figure()
    ax = fig.subplots()
    draws(ax, seen)
    fig.canvas.draw()
    return ax


EMPTY = SimpleNamespace(losses=[], history=[], batches=57, steps=0, edits=[])
ROW = dict(epoch=1, lr=1e-3, train_loss=2., train_accuracy=.125, valid_loss=1.8, valid_accuracy=.18)
ONE = SimpleNamespace(losses=[(1, 2.3)], history=[ROW], batches=1, steps=1, edits=[])


@pytest.mark.trust('page and explorers', 'axes')
@pytest.mark.parametrize('seen', [EMPTY, ONE], ids=['nothing yet', 'one batch'])
def test_axes_of_a_training_that_began(seen):
    ax = axes_of(seen, stepper_module._loss_curve)
    assert ax.get_xlim() == (0, seen.batches) and ax.get_ylim()[0] == 0 and ax.get_ylim()[1] > 1.8
    ax = axes_of(seen, stepper_module._accuracy_curves)
    assert ax.get_xlim() == (.5, 2.5) and all(t.endswith('%') for t in ticks(ax, 'y'))


@pytest.mark.trust('page and explorers', 'axes')
def test_numbers_of_batches_and_epochs_are_whole():
    seen = SimpleNamespace(**{**vars(EMPTY), 'batches': 3, 'norms': {'stem': (1., 1.)}})
    found, old = [], stepper_module._transparent
    stepper_module._transparent = found.append
    try: stepper_module._curves(seen)
    finally: stepper_module._transparent = old
    for ax in found[0].axes[:2]: assert all(t == int(t) for t in ax.get_xticks())


@pytest.mark.trust('page and explorers', 'axes')
@pytest.mark.parametrize('n', [1, 2, 3, 40])
def test_curves_of_few_epochs(n):
    fig = curves([{**ROW, 'epoch': e} for e in range(1, n + 1)])
    fig.canvas.draw()
    for ax in fig.axes:
        low, high = ax.get_xlim()
        shown = [t for t in ax.get_xticks() if low <= t <= high]
        assert shown and all(t == int(t) for t in shown) and (n > 1 or shown == [1])
    assert all(t.endswith('%') for t in ticks(fig.axes[1], 'y'))


def bins(n):
    "A table of ten bins: the first without images, the second with 9, all together n."
    images = np.array([0, 9, *[(n - 9)//8]*8])
    conf = np.linspace(.05, .95, 10)
    return np.stack([images, conf, conf], 1)


@pytest.mark.trust('page and explorers', 'few images')
@pytest.mark.parametrize('n, said', [(49, 'only 49 images'), (297, 'only 297 images'), (305, ''), (9001, '')])
def test_a_diagram_of_few_images_says_so(n, said):
    fig = reliability((.1, bins(n)), (.1, bins(n)))
    png(fig)
    for ax in fig.axes[:2]:
        assert ' '.join(t.get_text() for t in ax.texts).startswith(said) and bool(ax.texts) == bool(said)
        grey = next(line for line in ax.lines if line.get_color() == plots.GREY and line.get_marker() == 'o')
        assert len(grey.get_xdata()) == (1 if n > 89 else 9)
        assert all(t.endswith('%') for t in ticks(ax, 'y'))


@pytest.mark.trust('page and explorers', 'few images')
def test_a_diagram_of_many_images_has_room():
    "Without a rare bin the two diagrams fill the figure."
    many = bins(9001)
    many[1,0] = 1000
    fig = reliability((.1, many), (.1, many))
    png(fig)
    assert all(ax.get_position().width > .3 for ax in fig.axes)


def light(colour):
    "Relative luminance, as the contrast of WCAG has it."
    c = np.array(ImageColor.getrgb(colour))/255
    return np.where(c <= .04045, c/12.92, ((c + .055)/1.055)**2.4) @ [.2126, .7152, .0722]


@pytest.mark.trust('page and explorers', 'a dark page')
@pytest.mark.parametrize('paper', ['#ffffff', '#111111', '#212121'])
def test_letters_can_be_read_on_any_page(paper):
    low, high = sorted([light(INK), light(paper)])
    assert (high + .05)/(low + .05) > 3.9


def all_explorers(s, page): return [gradcam_explorer(s), mistake_explorer(s), augmentation_explorer(s), page]


@pytest.mark.trust('page and explorers', 'a narrow page')
def test_pictures_are_columns_on_nothing(page, cases):
    press(page, 'One batch')
    cases(4)
    for explorer in all_explorers(SMALL, page):
        columns = [Image.open(io.BytesIO(image.value)) for image in explorer.pictures.children]
        assert len(columns) > 1
        for c in columns: assert c.mode == 'RGBA' and c.width <= COLUMN + 10 and np.asarray(c)[[0, -1], :, 3].max() == 0
        assert explorer.pictures.whole().width == sum(c.width for c in columns)


@pytest.mark.trust('page and explorers', 'a narrow page')
def test_no_word_is_cut(page, monkeypatch):
    "With the names of CIFAR-10, at the size of a telephone."
    s = replace(SMALL, data=Images(SMALL.data.images, SMALL.data.labels, tuple(CIFAR)))
    fitting, cut = explore._fitting, []
    def watched(words, width, size):
        found = fitting(words, width, size)
        if found.endswith('…'): cut.append(words)
        return found
    monkeypatch.setattr(explore, '_fitting', watched)
    page.stepper.train = Images(page.stepper.train.images, page.stepper.train.labels, tuple(CIFAR))
    press(page, 'One batch')
    for explorer in all_explorers(s, page)[:3]: explorer.refresh()
    assert cut == []
    label('a name that is far too long for its place', 60)
    assert cut                                               # the watch works


@pytest.mark.trust('page and explorers', 'the menu of layers')
def test_ten_layers_and_all():
    page = gradcam_explorer(SMALL)
    names = lambda: [name for _, name in page.controls['layer'].options]
    before = page.picture.value
    assert names() == USUAL and len(USUAL) == 10 and page.all_layers.description == 'all 87'
    page.all_layers.value = True
    assert len(names()) == 87 and page.controls['layer'].value == BLOCKS[-1] and page.picture.value == before
    page.controls['layer'].value = 'stages.0.0.convs.1'
    assert page.picture.value != before
    page.all_layers.value = False                              # a layer that is not among the ten: the last block
    assert names() == USUAL and page.controls['layer'].value == BLOCKS[-1] and page.picture.value == before
    page.put(layer='stages.0.0.convs.1')                       # by code, any layer
    assert page.controls['layer'].value == 'stages.0.0.convs.1' and page.all_layers.value


@pytest.mark.trust('page and explorers', 'a picture of ones own')
def test_own_pictures_can_be_removed():
    page = gradcam_explorer(SMALL)
    shown, first = page.controls['shown'], page.picture.value
    hidden = lambda: (shown.layout.display == 'none', page.remove.layout.display == 'none')
    assert hidden() == (True, True)
    pictures = []
    for name, colour in (('one.png', 'red'), ('two.png', 'blue')):
        page.upload.set_trait('value', uploading(name, png_file(colour)))
        pictures.append(page.picture.value)
    assert hidden() == (False, False) and [n for _, n in shown.options] == [-1, 0, 1]
    shown.value = 0
    page.remove.click()
    assert shown.value == -1 and hidden() == (False, True) and [n for _, n in shown.options] == [-1, 1]
    shown.value = 1
    assert page.picture.value == pictures[1] and list(page.own) == [1]
    page.upload.set_trait('value', uploading('three.png', png_file('green')))
    assert page.picture.value not in pictures                   # it has a number of its own
    for _ in range(2):
        page.remove.click()
        shown.value = shown.options[-1][1]
    assert hidden() == (True, True) and not page.own
    page.controls['against'].value = 'true'
    assert page.picture.value == first


def every(widget):
    yield widget
    for child in getattr(widget, 'children', ()): yield from every(child)


@pytest.mark.trust('page and explorers', 'tooltips')
def test_every_tooltip_says_something_or_nothing(page, cases):
    tip = 'tooltip' if widgets.__version__ >= '8' else 'description_tooltip'
    found = [w for explorer in all_explorers(SMALL, page) for w in every(explorer) if w.has_trait('description')]
    cases(len(found))
    for w in found: assert getattr(w, tip, getattr(w, 'tooltip', '')) is not None, w
    for w in found: assert not isinstance(w, widgets.Button) or w.tooltip, w


@pytest.mark.trust('page and explorers', 'accuracies are percentages')
def test_the_share_of_a_cell():
    page = mistake_explorer(SMALL)
    right = (SMALL.logits.argmax(1).numpy() == SMALL.data.labels).mean()
    assert f'Right: {right:.1%}.' in page.children[0].value
    t, p = page.controls['cell'].value
    assert f'That is {page.counts[t,p]/page.counts[t].sum():.1%} of the class.' in page.message.value
