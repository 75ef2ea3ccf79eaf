"The explorers without a browser: what clicks do, what is escaped, what is drawn."
import io
from dataclasses import replace
from datetime import datetime

import ipywidgets as widgets
import numpy as np
import pytest
import torch
from PIL import Image

from cifar_resnet.augment import denormalise
from cifar_resnet.core import visible
from cifar_resnet.data import Images, shapes10, split
from cifar_resnet.evaluate import confidence, confusion_counts, predict
from cifar_resnet.explore import (PAGE, Explorer, _fitting, _font, _uploaded, augmentation_explorer, augmentation_picture,
                                  below, beside, cell_images, cut, doubts, explain_picture, gradcam_explorer, label,
                                  maps_picture, message_html, mistake_explorer, sentence, subject)
from cifar_resnet.gradcam import gradcam
from cifar_resnet.job import job
from cifar_resnet.plots import ORANGE
from cifar_resnet.train import Recipe

TINY = Recipe(dataset='shapes10', width=4, epochs=1, batch_size=16, limit=64)
PAYLOADS = ['<script>alert(1)</script>', '<img src=x onerror=alert(1)>', '"><svg onload=alert(1)>', "'><iframe src=javascript:alert(1)>",
            '<b>bold</b>', '&lt;b&gt;', '</p></div><h1>out', '{{7*7}}', '`rm -rf`', '\u202egpj.exe\n<br>']
SMALL = subject(n=80)


def html_of(widget, found=None):
    "Every HTML that a widget and its children hold."
    found = [] if found is None else found
    if isinstance(widget, (widgets.HTML, widgets.HTMLMath)): found.append(widget.value)
    for child in getattr(widget, 'children', ()): html_of(child, found)
    return found


def uploading(name, data):
    "What a FileUpload of this version of ipywidgets would hold."
    if widgets.__version__ < '8': return {name: dict(metadata=dict(name=name), content=data)}
    about = dict(name=name, type='image/png', size=len(data), last_modified=datetime.now())
    return (dict(about, content=memoryview(data)),)


def png_file(colour='red', size=(64, 48)):
    buffer = io.BytesIO()
    Image.new('RGB', size, colour).save(buffer, 'PNG')
    return buffer.getvalue()


@pytest.mark.parametrize('payload', PAYLOADS)
def test_texts_are_escaped(payload):
    "As a class's name, a file's, an error's: in no HTML do the words of others act."
    hostile = replace(SMALL, data=Images(SMALL.data.images, SMALL.data.labels, (payload, *SMALL.data.classes[1:])))
    pages = [gradcam_explorer(hostile), mistake_explorer(hostile)]
    pages[0].put(target=0, against=1)
    pages[0].upload.set_trait('value', uploading(payload, b'no picture'))
    pages[1].matrix.buttons[0,0].click()
    pages[0].fail(ValueError(payload))
    for html in [h for p in pages for h in html_of(p)]:
        for tag in ('<script', '<img', '<svg', '<iframe', '<b>', '<h1', '<br'): assert tag not in html.lower()
    assert '&amp;lt;b' in message_html('&lt;b') and sentence(ValueError(payload)) == visible(' '.join(payload.split()))


def test_what_a_run_shows(tmp_path):
    "Its test images; the held-out ones, if the test set is closed."
    train, test = shapes10()
    for read in (False, True):
        run = job(TINY, tmp_path/'run', device='cpu', progress=False, read_test=read, draw=False)
        shown = subject(run.folder)
        assert len(shown.data) == 64 and ('held-out' in shown.name) != read
        expected = test.images if read else train.images[split(train.labels)[1]]
        assert (shown.data.images == expected[:64]).all()
        assert torch.allclose(shown.logits, predict(run.model, shown.input(shown.data.images)), atol=1e-4)
        assert shown.temperature == run.metrics['temperature']
        gradcam_explorer(run); mistake_explorer(run.folder)


def test_confidences_are_calibrated():
    facts = explain_picture(SMALL, SMALL.data.images[4])
    assert torch.allclose(facts.probabilities, confidence(SMALL.logits[[4]], SMALL.temperature)[0], atol=1e-5) and SMALL.temperature != 1


def test_evidence_against_a_class_is_shown_if_asked_for():
    facts = explain_picture(SMALL, SMALL.data.images[4])
    facts.maps = -torch.ones(2,8,8)
    def first_map(signed):
        drawn = maps_picture(SMALL.data.images[4], facts, SMALL.data.classes, signed=signed)
        return np.asarray(drawn.convert('RGB').crop((185, 25, 335, 175))).astype(int)
    positive, signed = first_map(False), first_map(True)
    assert (np.ptp(positive, 2) == 0).all() and (signed[...,2] > signed[...,0]).all()          # grey; blue


def test_the_first_epoch_is_number_one():
    page = augmentation_explorer(SMALL)
    same = augmentation_picture(SMALL.data.images, 0, mean=SMALL.mean, std=SMALL.std)[0]
    assert [i.value for i in page.pictures.children] == cut(same)


def test_a_cell_is_true_by_predicted():
    page = mistake_explorer(SMALL)
    t, p = next((t, p) for (t, p), b in page.matrix.buttons.items() if b.description and t > p)
    page.matrix.buttons[t,p].click()
    assert f'of the class {SMALL.data.classes[t]}, called {SMALL.data.classes[p]}.' in page.message.value


def test_uploads_of_both_versions_of_ipywidgets():
    assert _uploaded({'a.png': dict(metadata={}, content=b'x')}) == [('a.png', b'x')]
    assert _uploaded((dict(name='a.png', content=memoryview(b'x')),)) == [('a.png', b'x')]


def test_own_pictures():
    page = gradcam_explorer(SMALL)
    first = page.picture.value
    page.upload.set_trait('value', uploading('mine.png', png_file()))
    assert page.controls['shown'].value == 0 and page.picture.value != first and 'it is' not in page.message.value
    assert 'has only 64×48' not in page.message.value
    page.controls['target'].value = 'true'
    assert 'has no true class here: choose another class' in page.message.value and ORANGE in page.message.value
    page.controls['target'].value = 'predicted'
    mine = page.picture.value
    page.upload.set_trait('value', uploading('other.png', png_file('blue', (16, 16))))
    assert page.controls['shown'].value == 1 and 'has only 16×16 pixels' in page.message.value and page.picture.value != mine
    other = page.picture.value
    page.upload.set_trait('value', uploading('letter.png', b'Dear reader'))
    assert 'letter.png cannot be read as a picture' in page.message.value and page.picture.value == other
    page.controls['shown'].value = -1
    page.controls['against'].value = 'true'
    assert page.picture.value == first


def test_every_choice_draws():
    "All classes, layers, methods and switches, on a network that is right and one that is wrong."
    for i in (int(SMALL.wrong[0]), int(np.setdiff1d(range(80), SMALL.wrong)[0])):
        page = gradcam_explorer(SMALL, i)
        for name in ('target', 'against', 'layer', 'method', 'colours', 'fields', 'scale'):
            control = page.controls[name]
            values = [o[1] if isinstance(o, tuple) else o for o in control.options]
            pictures = set()
            for value in values:
                control.value = value
                assert 'color:' not in page.message.value, page.message.value              # no trouble
                pictures.add(page.pictures.whole().tobytes())
            assert len(pictures) > 1
            control.value = values[0]


def click_random_mistake(page):
    next(b for b in page.children[1].children if getattr(b, 'description', '') == 'Random mistake').click()


def test_random_mistakes():
    page = gradcam_explorer(SMALL)
    seen = set()
    for _ in range(13):
        click_random_mistake(page)
        seen.add(page.controls['image'].value)
    assert len(seen) > 3 and seen <= set(SMALL.wrong.tolist())
    right = replace(SMALL, data=Images(SMALL.data.images, SMALL.logits.argmax(1).numpy(), SMALL.data.classes))
    page = gradcam_explorer(right)
    click_random_mistake(page)
    assert 'makes no mistake' in page.message.value
    assert 'called' in mistake_explorer(right).message.value                        # only the diagonal is left to open


def test_two_explorers_do_not_disturb_each_other():
    one, two = gradcam_explorer(SMALL, 3), gradcam_explorer(SMALL, 3)
    before = two.picture.value
    one.put(image=7, target=2, layer='stem')
    one.upload.set_trait('value', uploading('mine.png', png_file()))
    assert two.picture.value == before and len(two.controls['shown'].options) == 1
    one, two = mistake_explorer(SMALL), mistake_explorer(SMALL)
    cell = next(at for at, b in one.matrix.buttons.items() if b.description and at != one.controls['cell'].value)
    one.matrix.buttons[cell].click()
    assert two.controls['cell'].value != cell and one.picture.value != two.picture.value


def test_one_image_and_never_another():
    "The same Image for each column all the time: its bytes are swapped."
    page = gradcam_explorer(SMALL)
    def images(w):
        if isinstance(w, widgets.Image): return [id(w)]
        return [i for child in getattr(w, 'children', ()) for i in images(child)]
    before = images(page)
    page.put(image=7); page.fail(ValueError('no')); page.put(image=8)
    assert len(before) == 2 and images(page) == before


def test_memory_is_bounded():
    page = Explorer('x', lambda i: (Image.new('RGB', (4, 4)), str(i)), dict(i=widgets.IntSlider(0, 0, 1000)), [], remembered=8)
    for i in range(1, 30): page.controls['i'].value = i
    assert page.drawn == 30 and page.remembered.cache_info().currsize == 8


def test_the_same_file_twice():
    page = gradcam_explorer(SMALL)
    for n in (1, 2):
        name = 'mine.png' if widgets.__version__ >= '8' else f'mine{n}.png'
        page.upload.set_trait('value', uploading(name, png_file()))
        assert len(page.controls['shown'].options) == n + 1
    with pytest.raises(ValueError, match='there is no image 80: choose one from 0 to 79'): gradcam_explorer(SMALL, 80)


def test_labels_are_shortened():
    wide = label('a title that is far too long for its place', 100)
    assert wide.size == (100, 19) and below(wide, beside(wide, wide)).size == (210, 48)
    assert _fitting('automobile', 40, 13)[-1] == '…' and _fitting('cat', 40, 13) == 'cat'
    assert 20 < _font(13).getlength(_fitting('automobile', 40, 13)) <= 40


def test_an_explorer_remembers_and_reports():
    def shade(level, size):
        if level == 13: raise ValueError('level <13> brings bad luck: choose another')
        return Image.new('L', (size, size), level).convert('RGB'), f'level {level}'
    page = Explorer('grey', shade, dict(level=widgets.IntSlider(100, 0, 255), size=widgets.fixed(40)), [])
    seen = [page.picture.value]
    for level in (200, 100):
        page.controls['level'].value = level
        seen.append(page.picture.value)
    assert (seen[0] == seen[2], seen[0] == seen[1], page.drawn) == (True, False, 2)      # the third came from memory
    page.controls['level'].value = 13
    assert 'level &lt;13&gt; brings bad luck' in page.message.value and page.picture.value == seen[2]
    page.put(level=7, size=50)
    assert page.drawn == 3 and 'level 7' in page.message.value                          # several at once: drawn once


def test_the_facts_are_those_of_gradcam():
    i, images = SMALL.wrong[0], SMALL.data.images
    true = int(SMALL.data.labels[i])
    facts = explain_picture(SMALL, images[i], instead=true)
    alone = gradcam(SMALL.model, SMALL.input(images[[i]]), relu=False)[0]
    for same in (facts.maps[0], facts.blocks['stages.3.1']): assert torch.allclose(same, alone, atol=1e-5)
    assert facts.instead == true and facts.margin > 0 and facts.blocks['stem'].shape == (32, 32)
    assert explain_picture(SMALL, images[i], 3, 3).instead == facts.target                # no class is compared with itself


def test_settings_and_back():
    page = gradcam_explorer(SMALL)
    before = page.picture.value
    page.put(layer='stages.1.1', colours='signed', fields='cells', scale='each')
    page.put(opacity=.5)
    assert page.picture.value != before and 'Note: at layer' in page.message.value
    page.put(layer='stages.3.1', colours='for', fields='smooth', scale='shared', opacity=.75)
    assert page.picture.value == before


def test_cells_are_those_of_the_confusion_matrix():
    counts = confusion_counts(SMALL.logits, torch.from_numpy(SMALL.data.labels))
    for t, p in np.ndindex(10, 10):
        idx, conf = cell_images(SMALL, t, p)
        assert len(idx) == counts[t,p] and (np.diff(conf) <= 0).all() and (SMALL.data.labels[idx] == t).all()


@pytest.mark.parametrize('i, words', [
    (3, 'its label is doubted: triangle was proposed, and it has a near twin among the training images'),
    (5, 'it has a near twin among the training images'),
    (6, '')])
def test_doubts(i, words):
    noted = replace(SMALL, notes=dict(doubtful=np.array([3]), proposed=np.array([4]), twins=np.array([3, 5])))
    assert doubts(noted, i) == words and doubts(SMALL, i) == ''


def test_pages_of_a_cell():
    many = subject(n=300)
    page = mistake_explorer(many)
    before, (idx, _) = page.picture.value, cell_images(many, 3, 3)
    page.matrix.buttons[3,3].click()
    assert f'{len(idx)} images of the class frame, called frame' in page.message.value and page.picture.value != before
    page.controls['page'].value = 2
    assert f'Number {PAGE+1} is image {idx[PAGE]},' in page.message.value
    page.controls['chosen'].value = 1
    assert f'Number {PAGE+2} is image {idx[PAGE+1]},' in page.message.value


def test_inputs_turn_back_into_pictures():
    x = SMALL.input(SMALL.data.images[:4])
    assert (denormalise(x, SMALL.mean, SMALL.std) == SMALL.data.images[:4]).all()


def test_every_control_of_the_augmentation_draws():
    page = augmentation_explorer(SMALL)
    pictures = [page.picture.value]
    for name, value in dict(angle=40, hole=4, padding=0, seed=3, epoch=9, flip='alternating', image=7).items():
        page.controls[name].value = value
        pictures.append(page.picture.value)
    assert all(a != b for a, b in zip(pictures, pictures[1:]))
    assert augmentation_picture(SMALL.data.images, 5, angle=45)[1] <= 1                    # grey levels
