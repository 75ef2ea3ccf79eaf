"The explorers without a browser: what clicks do, what is escaped, what goes on exactly."
import asyncio, io, threading, time
from dataclasses import replace

import ipywidgets as widgets
import numpy as np
import pytest
import torch
from PIL import Image

from cifar_resnet import explore
from cifar_resnet.cli import main
from cifar_resnet.data import Images, shapes10, split
from cifar_resnet.evaluate import confidence, predict
from cifar_resnet.explore import (Explorer, Stepper, _uploaded, app, augmentation_explorer, augmentation_picture, card, gradcam_explorer, look, look_picture,
                                  mistake_explorer, said, sentence, subject, training_stepper)
from cifar_resnet.job import job, sweep
from cifar_resnet.plots import ORANGE
from cifar_resnet.runs import read_json
from cifar_resnet.train import Recipe, Training

TINY = Recipe(dataset='shapes10', width=4, epochs=4, batch_size=16, limit=64)          # four batches an epoch
PAYLOADS = ['<script>alert(1)</script>', '<img src=x onerror=alert(1)>', '"><svg onload=alert(1)>', "'><iframe src=javascript:alert(1)>", '<b>bold</b>', '&lt;b&gt;', '</p></div><h1>out', '{{7*7}}', '`rm -rf`', '\u202egpj.exe\n<br>']
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
    return (dict(name=name, type='image/png', size=len(data), content=memoryview(data), last_modified=__import__('datetime').datetime.now()),)


def png_file(colour='red', size=(64, 48)):
    buffer = io.BytesIO()
    Image.new('RGB', size, colour).save(buffer, 'PNG')
    return buffer.getvalue()


@pytest.mark.parametrize('payload', PAYLOADS)
def test_texts_are_escaped(payload, tmp_path):
    "As a class's name, a file's, an error's: in no HTML do the words of others act."
    hostile = replace(SMALL, data=Images(SMALL.data.images, SMALL.data.labels, (payload, *SMALL.data.classes[1:])))
    pages = [gradcam_explorer(hostile), mistake_explorer(hostile)]
    pages[0].put(target=0, against=1)
    pages[0].upload.set_trait('value', uploading(payload, b'no picture'))
    pages[1].matrix.buttons[0,0].click()
    def fails(): raise ValueError(payload)
    pages[0].fail(ValueError(payload))
    page = training_stepper(replace(TINY, limit=32), tmp_path/'run', 'cpu')
    page.new.value = payload
    next(b for row in page.children for b in getattr(row, 'children', ()) if getattr(b, 'description', '') == 'Change').click()
    page.stepper.close()
    for html in [h for p in (*pages, page) for h in html_of(p)]:
        for tag in ('<script', '<img', '<svg', '<iframe', '<b>', '<h1', '<br'): assert tag not in html.lower()
    assert '&amp;lt;b' in said('&lt;b') and sentence(ValueError(payload)) == ' '.join(payload.split())


def test_what_a_run_shows(tmp_path):
    "Its test images; the held-out ones, if the test set is closed."
    train, test = shapes10()
    for read in (False, True):
        run = job(replace(TINY, epochs=1), tmp_path/'run', device='cpu', progress=False, read_test=read, draw=False)
        shown = subject(run.folder)
        assert len(shown.data) == 64 and ('held-out' in shown.name) != read
        assert (shown.data.images == (test.images[:64] if read else train.images[split(train.labels)[1]][:64])).all()
        assert torch.allclose(shown.logits, predict(run.model, shown.input(shown.data.images)), atol=1e-4)
        assert shown.temperature == run.metrics['temperature']
        gradcam_explorer(run); mistake_explorer(run.folder)


def test_confidences_are_calibrated():
    seen = look(SMALL, SMALL.data.images[4])
    assert torch.allclose(seen.probabilities, confidence(SMALL.logits[[4]], SMALL.temperature)[0], atol=1e-5) and SMALL.temperature != 1


def test_evidence_against_a_class_is_shown_if_asked_for():
    seen = look(SMALL, SMALL.data.images[4])
    seen.maps = -torch.ones(2,8,8)
    positive, signed = (np.asarray(look_picture(SMALL.data.images[4], seen, SMALL.data.classes, signed=s).crop((175, 25, 325, 175))).astype(int) for s in (False, True))     # the first map
    assert (np.ptp(positive, 2) == 0).all() and (signed[...,2] > signed[...,0]).all()          # grey; blue


def test_the_first_epoch_is_number_one():
    page = augmentation_explorer(SMALL)
    same = augmentation_picture(SMALL.data.images, 0, mean=SMALL.mean, std=SMALL.std)[0]
    assert page.picture.value == card(same)


def test_a_cell_is_true_by_predicted():
    page = mistake_explorer(SMALL)
    t, p = next((t, p) for (t, p), b in page.matrix.buttons.items() if b.description and t > p)
    page.matrix.buttons[t,p].click()
    assert f'of the class {SMALL.data.classes[t]}, called {SMALL.data.classes[p]}.' in page.said.value


def test_uploads_of_both_versions_of_ipywidgets():
    assert _uploaded({'a.png': dict(metadata={}, content=b'x')}) == [('a.png', b'x')] == _uploaded((dict(name='a.png', content=memoryview(b'x')),))


def test_own_pictures():
    page = gradcam_explorer(SMALL)
    first = page.picture.value
    page.upload.set_trait('value', uploading('mine.png', png_file()))
    assert page.controls['shown'].value == 0 and page.picture.value != first and 'it is' not in page.said.value
    assert 'has only 64×48' not in page.said.value
    page.controls['target'].value = 'true'
    assert 'has no true class here: choose another class' in page.said.value and ORANGE in page.said.value
    page.controls['target'].value = 'predicted'
    mine = page.picture.value
    page.upload.set_trait('value', uploading('other.png', png_file('blue', (16, 16))))
    assert page.controls['shown'].value == 1 and 'has only 16×16 pixels' in page.said.value and page.picture.value != mine
    other = page.picture.value
    page.upload.set_trait('value', uploading('letter.png', b'Dear reader'))
    assert 'letter.png cannot be read as a picture' in page.said.value and page.picture.value == other
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
                assert 'color:' not in page.said.value, page.said.value              # no trouble
                pictures.add(page.picture.value)
            assert len(pictures) > 1
            control.value = values[0]


def test_random_mistakes():
    page = gradcam_explorer(SMALL)
    next(b for b in page.children[1].children if getattr(b, 'description', '') == 'Random mistake').click()
    seen = {page.controls['image'].value}
    for _ in range(12):
        next(b for b in page.children[1].children if getattr(b, 'description', '') == 'Random mistake').click()
        seen.add(page.controls['image'].value)
    assert len(seen) > 3 and seen <= set(SMALL.wrong.tolist())
    right = replace(SMALL, data=Images(SMALL.data.images, SMALL.logits.argmax(1).numpy(), SMALL.data.classes))
    page = gradcam_explorer(right)
    next(b for b in page.children[1].children if getattr(b, 'description', '') == 'Random mistake').click()
    assert 'makes no mistake' in page.said.value
    assert 'called' in mistake_explorer(right).said.value                        # only the diagonal is left to open


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
    "The same Image all the time: its bytes are swapped."
    page = gradcam_explorer(SMALL)
    images = lambda w: [id(w)] if isinstance(w, widgets.Image) else [i for child in getattr(w, 'children', ()) for i in images(child)]
    before = images(page)
    page.put(image=7); page.fail(ValueError('no')); page.put(image=8)
    assert len(before) == 1 and images(page) == before


def test_memory_is_bounded():
    page = Explorer('x', lambda i: (Image.new('RGB', (4, 4)), str(i)), dict(i=widgets.IntSlider(0, 0, 1000)), [], remembered=8)
    for i in range(1, 30): page.controls['i'].value = i
    assert page.drawn == 30 and page.remembered.cache_info().currsize == 8


@pytest.fixture
def stepper(tmp_path):
    made = []
    def make(recipe=TINY, folder='run', **kw):
        made.append(Stepper(recipe, tmp_path/folder, 'cpu', **kw))
        return made[-1]
    yield make
    for s in made:
        if s.thread.is_alive(): s.ask('close'); s.thread.join(20)


def test_pause_within_one_batch(stepper):
    "However long it runs: after the batch that is being computed, it is still."
    s = stepper(replace(TINY, epochs=1000))
    begun, go = [], threading.Semaphore(0)
    learn = s.training.learn
    def slow(x, y):
        begun.append(1); go.acquire()
        return learn(x, y)
    s.training.learn = slow
    s.ask('run')
    for _ in range(5): go.release()
    while len(begun) < 6: time.sleep(.01)
    s.ask('pause')                                # in the middle of the sixth
    go.release(); s.wait(20)
    assert s.training.steps == 6 and not s.look().running
    go.release(); time.sleep(.2)
    assert s.training.steps == 6


@pytest.mark.parametrize('seed', range(6))
def test_any_order_of_clicks_is_exact(seed, stepper, tmp_path):
    "Batches, epochs, pauses, changes, stops and new beginnings from the folder, drawn at random: the weights are those of a plain loop with the same changes."
    g = np.random.default_rng(seed)
    s, told = stepper(), []
    while s.training.epoch < 3:
        wish = g.choice(['batch', 'epoch', 'pause', 'edit', 'stop', 'reopen'], p=[.3, .15, .1, .15, .15, .15])
        if wish == 'edit':
            args = [('lr', float(g.choice([1e-4, 2e-3]))), ('smoothing', .1), ('weight_decay', .01), ('plateau_patience', 0), ('clip', .5)][g.integers(5)]
            told.append((s.training.steps, *args)); s.ask('edit', *args)
        elif wish == 'reopen':
            if s.training.steps == 0: continue
            s.close(); s = stepper()
        else: s.ask(str(wish))
        s.wait()
        assert s.look().trouble == ''
    plain, told = Training(TINY, s.train, device='cpu'), list(told)
    while plain.steps < s.training.steps or told:
        while told and told[0][0] == plain.steps: plain.edit(*told.pop(0)[1:])
        if plain.steps < s.training.steps: plain.step()
    for name, value in plain.model.state_dict().items(): assert torch.equal(value, s.training.model.state_dict()[name]), name
    assert plain.edits == s.training.edits


def test_edits_are_in_the_run(stepper, tmp_path, capsys):
    s = stepper()
    s.ask('batch'); s.wait()
    assert not (tmp_path/'run').exists()                      # nothing on disk before something is saved
    s.ask('edit', 'clip', 1.); s.ask('stop'); s.wait()
    about = read_json(tmp_path/'run'/'run.json')
    assert about['edits'] == [dict(step=1, field='clip', old=0., new=1.)] and about['recipe']['clip'] == 0 and not about['finished']
    s.ask('edit', 'clip', 2.); s.ask('stop'); s.wait()         # no batch in between: saved all the same
    s.close()
    again = stepper()
    assert [e['new'] for e in again.training.edits] == [1., 2.]
    again.close()
    assert main(['--out', str(tmp_path/'run'), '--resume', '--device', 'cpu']) == 0                # and the command finishes it
    assert 'edited by hand (2×): see run.json' in capsys.readouterr().out and len(read_json(tmp_path/'run'/'run.json')['edits']) == 2


def test_it_saves_while_it_runs(stepper, tmp_path):
    s = stepper(save_every_s=0)
    s.ask('batch'); s.wait()
    assert (tmp_path/'run'/'checkpoints'/'000000001.pt').exists()


def test_trouble_is_said_and_survived(stepper, tmp_path, monkeypatch):
    s = stepper()
    s.ask('batch'); s.wait()
    def full(*args, **kw): raise OSError(28, 'No space left on device')
    with monkeypatch.context() as m:
        m.setattr(explore, 'open_run', full)
        s.ask('stop'); s.wait()
    assert 'No space left on device' in s.look().trouble
    s.ask('stop'); s.wait()                                    # now there is room
    assert s.look().trouble == '' and (tmp_path/'run'/'run.json').exists()
    s.ask('edit', 'lr', 1e30); s.ask('run'); s.wait()
    assert 'no longer a finite number' in s.look().trouble and not s.look().running
    assert (s.training.steps, s.training.rate, s.training.edits) == (1, 1e-3, [])       # back at what was saved
    s.ask('epoch'); s.wait()
    assert s.look().trouble == '' and s.training.steps == 4


def test_numbers_that_are_none_before_anything_was_saved(stepper, tmp_path):
    s = stepper()
    s.ask('edit', 'lr', 1e30); s.ask('run'); s.wait()
    assert 'no longer a finite number' in s.look().trouble and s.training.steps == 0 and not (tmp_path/'run').exists()
    s.ask('epoch'); s.wait(); s.ask('stop'); s.wait()
    assert s.look().trouble == '' and stepper_again(s).training.steps == 4


def stepper_again(s):
    s.close()
    again = Stepper(None, s.folder, 'cpu')
    again.end()
    return again


def test_a_batch_that_fails_is_not_lost(stepper):
    "Out of memory once, in the second batch: all four are learnt from, as by a plain loop."
    s, learn = stepper(), None
    learn = s.training.learn
    def fails(x, y):
        if s.training.steps == 1 and not failed: failed.append(1); raise torch.OutOfMemoryError('too little memory')
        return learn(x, y)
    failed, s.training.learn = [], fails
    s.ask('epoch'); s.wait()
    assert 'too little memory' in s.look().trouble and s.training.steps == 1
    s.ask('epoch'); s.wait()
    plain = Training(TINY, s.train, device='cpu')
    for _ in range(4): plain.step()
    assert s.look().trouble == '' and s.training.steps == 4
    for name, value in plain.model.state_dict().items(): assert torch.equal(value, s.training.model.state_dict()[name]), name


def test_the_worker_outlives_those_who_listen(stepper):
    s = stepper()
    def gone(): raise RuntimeError('Event loop is closed')
    s.tell = gone
    s.ask('batch'); s.wait()
    s.tell = lambda: None
    s.ask('batch'); s.wait()
    assert s.thread.is_alive() and s.training.steps == 2


def test_two_without_a_folder_do_not_share_one(tmp_path, monkeypatch):
    "Which folder is free is asked again at the first save."
    monkeypatch.chdir(tmp_path)
    one, two = (Stepper(TINY, None, 'cpu') for _ in range(2))
    for s in (one, two): s.ask('epoch'); s.wait()
    one.close(); two.close()
    assert (one.folder, two.folder) == (one.folder.with_name('by-hand-1'), one.folder.with_name('by-hand-2'))
    assert [(f/'checkpoints'/'000000004.pt').exists() for f in (one.folder, two.folder)] == [True, True]


def test_a_folder_that_was_taken_meanwhile_is_left_alone(stepper):
    one, two = stepper(), stepper()
    for _ in range(2): one.ask('epoch'); one.wait()
    two.ask('batch'); two.wait()
    one.ask('stop'); one.wait()
    two.ask('stop'); two.wait()
    assert 'somebody else trained in' in two.look().trouble
    two.ask('reset'); two.wait(); two.ask('batch'); two.wait(); two.ask('stop'); two.wait()
    assert two.look().trouble == '' and two.folder.name == 'run-1'
    one.ask('batch'); one.wait()
    assert one.look().trouble == '' and one.training.steps == 9


def test_after_a_stop_the_command_finishes_it(stepper, tmp_path, capsys):
    "The page need not be closed; it does not train on behind the command's back."
    s = stepper()
    s.ask('batch'); s.wait(); s.ask('stop'); s.wait()
    assert main(['--out', str(tmp_path/'run'), '--resume', '--device', 'cpu']) == 0
    s.ask('batch'); s.wait()
    assert 'somebody else trained in' in s.look().trouble and s.training.steps == 1


def test_a_run_that_was_judged_is_not_trained_on(stepper, tmp_path, monkeypatch):
    "Interrupted between its logits and its seal."
    def interrupted(*args): raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr('cifar_resnet.job.draw_figures', interrupted)
        with pytest.raises(KeyboardInterrupt): job(replace(TINY, epochs=1), tmp_path/'run', device='cpu', progress=False)
    with pytest.raises(ValueError, match='trained to its end and judged'): stepper(replace(TINY, epochs=1))


def test_the_recipe_of_a_folder(stepper, tmp_path):
    s = stepper()
    s.ask('batch'); s.wait(); s.close()
    with pytest.raises(ValueError, match='holds a run with width 4, not 8: leave the recipe out'): stepper(replace(TINY, width=8))
    again = stepper(None)
    assert again.recipe == s.recipe and again.training.steps == 1
    again.ask('batch'); again.wait(); again.close()
    assert read_json(tmp_path/'run'/'run.json')['resumed_at'] == [.25]


def test_a_run_without_a_checkpoint_begins_anew(stepper, tmp_path):
    s = stepper()
    s.ask('batch'); s.wait(); s.close()
    for p in (tmp_path/'run'/'checkpoints').glob('*.pt'): p.unlink()
    again = stepper(None)
    again.ask('epoch'); again.wait(); again.ask('stop'); again.wait()
    assert again.look().trouble == '' and stepper_again(again).training.steps == 4
    (tmp_path/'other'/'checkpoints').mkdir(parents=True)
    assert stepper(folder='other').training.steps == 0


def test_closed_is_said(tmp_path):
    page = training_stepper(TINY, tmp_path/'run', 'cpu')
    page.stepper.close()
    page.buttons['One batch'].click()
    assert 'was closed: make another one' in page.said.value


def test_clicks_add_up(stepper):
    s = stepper(replace(TINY, epochs=9))
    go, learn = threading.Semaphore(0), s.training.learn
    s.training.learn = lambda x, y: (go.acquire(), learn(x, y))[1]
    for _ in range(3): s.ask('batch')
    for _ in range(9): go.release()
    s.wait()
    assert s.training.steps == 3


def test_a_wrong_change_stops_nothing(stepper):
    s = stepper(replace(TINY, epochs=50))
    s.ask('run'); s.ask('edit', 'clip', -1)
    while s.training.steps < 9: time.sleep(.01)
    assert 'clip must be at least 0' in s.trouble and s.due
    s.ask('pause'); s.wait()
    assert 'clip must be at least 0' in s.look().trouble


def test_a_run_edited_by_hand_counts_for_no_recipe(stepper, tmp_path):
    s = stepper(replace(TINY, epochs=1), folder='sweep/tiny-0')
    s.ask('batch'); s.wait(); s.ask('edit', 'lr', .1); s.wait(); s.close()
    found = sweep({'tiny': {k: getattr(TINY, k) for k in ('dataset', 'width', 'batch_size', 'limit')} | dict(epochs=1)}, [0], tmp_path/'sweep', devices=['cpu'])
    assert not found['runs'] and 'was edited by hand' in found['failed'][0]['error']


def test_the_same_file_twice():
    page = gradcam_explorer(SMALL)
    for n in (1, 2):
        page.upload.set_trait('value', uploading('mine.png', png_file()) if widgets.__version__ >= '8' else uploading(f'mine{n}.png', png_file()))
        assert len(page.controls['shown'].options) == n + 1
    with pytest.raises(ValueError, match='there is no image 80: choose one from 0 to 79'): gradcam_explorer(SMALL, 80)


def test_folders_of_others_are_left_alone(stepper, tmp_path):
    (tmp_path/'run').mkdir(); (tmp_path/'run'/'thesis.tex').write_text('precious')
    with pytest.raises(FileExistsError, match='holds no run'): stepper()
    (tmp_path/'file').write_text('x')
    with pytest.raises(FileExistsError, match='holds no run'): stepper(folder='file')
    assert [p.name for p in (tmp_path/'run').iterdir()] == ['thesis.tex']


def test_a_drop_of_the_rate_is_shown(stepper):
    s = stepper(replace(TINY, plateau_patience=0, plateau_start=100, plateau_threshold=.9, epochs=6))
    for _ in range(3): s.ask('epoch'); s.wait()
    assert any('the plateau lowered the learning rate from 0.001 to 0.00025' in e for e in s.look().events)


def test_the_kernels_loop_draws(tmp_path, monkeypatch):
    "The worker trains, the loop's thread draws; every change is drawn in the end."
    drawn = []
    monkeypatch.setattr(explore, 'step_picture', lambda seen, classes: drawn.append((seen.steps, threading.get_ident())) or Image.new('RGB', (4, 4)))
    async def page():
        made = training_stepper(TINY, tmp_path/'run', 'cpu')
        made.buttons['One epoch'].click()
        for _ in range(400):
            await asyncio.sleep(.05)
            if drawn[-1][0] == 4: break
        made.buttons['Stop'].click()
        await asyncio.sleep(.5)
        return made
    made = asyncio.run(page())
    made.stepper.tell = lambda: None                          # that loop is gone
    assert drawn[-1][0] == 4 and {thread for _, thread in drawn} == {threading.get_ident()}
    assert 'saved in' in made.said.value
    made.stepper.close()


def test_slow_drawing_does_not_keep_the_page_from_hearing(tmp_path, monkeypatch):
    "A picture takes longer than the rest between two of them: a click is heard after the picture that is being drawn, and the last picture shows the pause."
    drawn = []
    def slow(seen, classes):
        time.sleep(.8)
        drawn.append(seen.running)
        return Image.new('RGB', (4, 4))
    monkeypatch.setattr(explore, 'step_picture', slow)
    async def page():
        made = training_stepper(replace(TINY, epochs=10_000), tmp_path/'run', 'cpu')
        made.buttons['Run'].click()
        heard = []
        while time.monotonic() < start + 6:
            await asyncio.sleep(.05)
            heard.append(time.monotonic())
        assert len(drawn) > 3 and max(b - a for a, b in zip(heard, heard[1:])) < 1.6            # never two in a row without a word in between
        made.buttons['Pause'].click()
        await asyncio.sleep(3)
        return made
    start = time.monotonic()
    made = asyncio.run(page())
    assert 'Paused.' in made.said.value and not drawn[-1]
    made.stepper.end()


def test_the_rate_follows_the_plateau_without_being_an_edit(tmp_path):
    page = training_stepper(TINY, tmp_path/'run', 'cpu')
    page.stepper.training.opt.param_groups[0]['lr'] = 5e-4     # as a plateau would
    page.buttons['One batch'].click(); page.stepper.wait()
    assert page.rate.value == 5e-4 and page.stepper.look().edits == []
    page.rate.value = 1e-4; page.stepper.wait()
    assert [e['new'] for e in page.stepper.look().edits] == [1e-4] and 'edited by hand: lr' in page.said.value
    page.field.value, page.new.value = 'plateau_patience', 'many'
    change = next(b for b in page.children[1].children if getattr(b, 'description', '') == 'Change')
    change.click()
    assert 'plateau_patience must be a whole number, not &#x27;many&#x27;' in page.said.value
    page.new.value = '4'; change.click(); page.stepper.wait()
    assert page.stepper.training.plateau.patience == 4
    page.stepper.close()


def test_all_on_one_page():
    page = app(SMALL)
    names = [page.get_title(i) for i in range(len(page.children))]
    page.children[names.index('Training')].stepper.close()
    assert names == ['Maps', 'Mistakes', 'Augmentation', 'Training']
