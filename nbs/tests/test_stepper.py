"The training stepper without a browser: what clicks do, what is escaped, and what goes on exactly."
import asyncio, threading, time
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from cifar_resnet import stepper as stepper_module
from cifar_resnet.cli import main
from cifar_resnet.explore import subject
from cifar_resnet.job import job
from cifar_resnet.scale import sweep
from cifar_resnet.runs import read_json
from cifar_resnet.stepper import Stepper, app, layer_norms, step_picture, training_stepper
from cifar_resnet.train import Recipe, Training

TINY = Recipe(dataset='shapes10', width=4, epochs=4, batch_size=16, limit=64)          # four batches an epoch


@pytest.fixture
def stepper(tmp_path):
    made = []
    def make(recipe=TINY, folder='run', **kw):
        made.append(Stepper(recipe, tmp_path/folder, 'cpu', **kw))
        return made[-1]
    yield make
    for s in made:
        if s.thread.is_alive(): s.ask('close'); s.thread.join(20)


def button_of(page, words):
    inside = [b for row in page.children for b in getattr(row, 'children', ())]
    return next(b for b in inside if getattr(b, 'description', '') == words)


def assert_same_weights(one, other):
    for name, value in one.model.state_dict().items():
        assert torch.equal(value, other.model.state_dict()[name]), name


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
    assert s.training.steps == 6 and not s.view().running
    go.release(); time.sleep(.2)
    assert s.training.steps == 6


@pytest.mark.parametrize('seed', range(6))
def test_any_order_of_clicks_is_exact(seed, stepper, tmp_path):
    "Commands, changes and new beginnings from the folder, drawn at random: the weights are those of a plain loop."
    g = np.random.default_rng(seed)
    s, told = stepper(), []
    while s.training.epoch < 3:
        command = g.choice(['batch', 'epoch', 'pause', 'edit', 'stop', 'reopen'], p=[.3, .15, .1, .15, .15, .15])
        if command == 'edit':
            changes = [('lr', float(g.choice([1e-4, 2e-3]))), *dict(smoothing=.1, weight_decay=.01, plateau_patience=0, clip=.5).items()]
            args = changes[g.integers(5)]
            told.append((s.training.steps, *args)); s.ask('edit', *args)
        elif command == 'reopen':
            if s.training.steps == 0: continue
            s.close(); s = stepper()
        else: s.ask(str(command))
        s.wait()
        assert s.view().error == ''
    plain, told = Training(TINY, s.train, device='cpu'), list(told)
    while plain.steps < s.training.steps or told:
        while told and told[0][0] == plain.steps:
            _, *change = told.pop(0)
            if not stepper_module._is_already(plain, *change): plain.edit(*change)
        if plain.steps < s.training.steps: plain.step()
    assert_same_weights(plain, s.training)
    assert plain.edits == s.training.edits


def test_edits_are_in_the_run(stepper, tmp_path, capsys):
    s = stepper()
    s.ask('batch'); s.wait()
    assert not (tmp_path/'run').exists()                      # nothing on disk before something is saved
    s.ask('edit', 'clip', 1.); s.ask('stop'); s.wait()
    about = read_json(tmp_path/'run'/'run.json')
    assert about['edits'] == [dict(step=1, field='clip', old=0., new=1.)]
    assert about['recipe']['clip'] == 0 and not about['finished']
    s.ask('edit', 'clip', 2.); s.ask('stop'); s.wait()         # no batch in between: saved all the same
    s.close()
    again = stepper()
    assert [e['new'] for e in again.training.edits] == [1., 2.]
    again.close()
    assert main(['--out', str(tmp_path/'run'), '--resume', '--device', 'cpu']) == 0                # and the command finishes it
    assert 'edited by hand (2×): see run.json' in capsys.readouterr().out
    assert len(read_json(tmp_path/'run'/'run.json')['edits']) == 2


def test_it_saves_while_it_runs(stepper, tmp_path):
    s = stepper(save_every_s=0)
    s.ask('batch'); s.wait()
    assert (tmp_path/'run'/'checkpoints'/'000000001.pt').exists()


SAVED = pytest.mark.trust('hard knocks', 'a training by hand whose Python ends')


@SAVED
@pytest.mark.parametrize('before', [[], ['stop'], ['stop', 'batch']], ids=['never saved', 'stopped', 'stopped, and went on'])
def test_what_was_trained_in_a_folder_is_saved_when_python_ends(stepper, tmp_path, before):
    "As a closed page ends it: in the middle of a run that nobody stopped."
    s = stepper(save_every_s=1000)
    for command in ('batch', 'batch', *before): s.ask(command); s.wait()
    s.ask('run' if before != ['stop'] else 'pause')
    s.end()
    assert not s.thread.is_alive() and not s.seen.error
    again = stepper(None)
    assert again.training.steps == s.training.steps >= 2
    assert_same_weights(again.training, s.training)
    again.ask('batch'); again.wait()                       # and nobody keeps it locked
    assert not again.view().error


@SAVED
def test_a_page_without_a_run_folder_leaves_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    s = Stepper(TINY, device='cpu')
    s.ask('batch'); s.wait()
    s.end()
    assert not any(tmp_path.iterdir())


@SAVED
def test_it_ends_though_it_cannot_save(stepper, monkeypatch):
    s = stepper(save_every_s=1000)
    s.ask('batch'); s.wait()
    def full(): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(s.training, 'save', full)
    s.end()
    assert not s.thread.is_alive() and 'No space left' in s.seen.error and not s.locked


@pytest.mark.trust('hard knocks', 'a change by hand that changes nothing')
@pytest.mark.parametrize('field', ['lr', 'clip', 'epochs', 'weight_decay', 'flip'])
def test_the_same_value_is_no_change(stepper, field):
    s = stepper()
    value = getattr(s.training.recipe, field)
    s.ask('edit', field, value); s.wait()
    assert s.view().edits == [] and not s.seen.error
    s.ask('batch'); s.ask('edit', 'lr', s.training.recipe.lr); s.wait()
    assert len(s.view().edits) == (s.training.rate != s.training.recipe.lr)       # while it warms up, that is another peak
    s.ask('edit', 'width', 4); s.wait()
    assert 'cannot be changed on the way' in s.view().error


def test_errors_are_said_and_survived(stepper, tmp_path, monkeypatch):
    s = stepper()
    s.ask('batch'); s.wait()
    def full(*args, **kw): raise OSError(28, 'No space left on device')
    with monkeypatch.context() as m:
        m.setattr(stepper_module, 'open_run', full)
        s.ask('stop'); s.wait()
    assert 'No space left on device' in s.view().error
    s.ask('stop'); s.wait()                                    # now there is room
    assert s.view().error == '' and (tmp_path/'run'/'run.json').exists()
    s.ask('edit', 'lr', 1e30); s.ask('run'); s.wait()
    assert 'no longer a finite number' in s.view().error and not s.view().running
    assert (s.training.steps, s.training.rate, s.training.edits) == (1, 1e-3, [])       # back at what was saved
    s.ask('epoch'); s.wait()
    assert s.view().error == '' and s.training.steps == 4


def test_not_finite_before_anything_was_saved(stepper, tmp_path):
    s = stepper()
    s.ask('edit', 'lr', 1e30); s.ask('run'); s.wait()
    assert 'no longer a finite number' in s.view().error and s.training.steps == 0 and not (tmp_path/'run').exists()
    s.ask('epoch'); s.wait(); s.ask('stop'); s.wait()
    assert s.view().error == '' and stepper_again(s).training.steps == 4


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
    assert 'too little memory' in s.view().error and s.training.steps == 1
    s.ask('epoch'); s.wait()
    plain = Training(TINY, s.train, device='cpu')
    for _ in range(4): plain.step()
    assert s.view().error == '' and s.training.steps == 4
    assert_same_weights(plain, s.training)


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
    assert 'somebody else trained in' in two.view().error
    two.ask('reset'); two.wait(); two.ask('batch'); two.wait(); two.ask('stop'); two.wait()
    assert two.view().error == '' and two.folder.name == 'run-1'
    one.ask('batch'); one.wait()
    assert one.view().error == '' and one.training.steps == 9


def test_after_a_stop_the_command_finishes_it(stepper, tmp_path, capsys):
    "The page need not be closed; it does not train on behind the command's back."
    s = stepper()
    s.ask('batch'); s.wait(); s.ask('stop'); s.wait()
    assert main(['--out', str(tmp_path/'run'), '--resume', '--device', 'cpu']) == 0
    s.ask('batch'); s.wait()
    assert 'somebody else trained in' in s.view().error and s.training.steps == 1


def test_a_run_that_was_evaluated_is_not_trained_on(stepper, tmp_path, monkeypatch):
    "Interrupted between its logits and its seal."
    def interrupted(*args): raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr('cifar_resnet.job.draw_figures', interrupted)
        with pytest.raises(KeyboardInterrupt): job(replace(TINY, epochs=1), tmp_path/'run', device='cpu', progress=False)
    with pytest.raises(ValueError, match='trained to its end and evaluated'): stepper(replace(TINY, epochs=1))


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
    assert again.view().error == '' and stepper_again(again).training.steps == 4
    (tmp_path/'other'/'checkpoints').mkdir(parents=True)
    assert stepper(folder='other').training.steps == 0


def test_closed_is_said(tmp_path):
    page = training_stepper(TINY, tmp_path/'run', 'cpu')
    page.stepper.close()
    page.buttons['One batch'].click()
    assert 'was closed: make another one' in page.message.value


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
    assert 'clip must be at least 0' in s.error and s.due
    s.ask('pause'); s.wait()
    assert 'clip must be at least 0' in s.view().error


def test_a_run_edited_by_hand_counts_for_no_recipe(stepper, tmp_path):
    s = stepper(replace(TINY, epochs=1), folder='sweep/tiny-0')
    s.ask('batch'); s.wait(); s.ask('edit', 'lr', .1); s.wait(); s.close()
    recipe = {k: getattr(TINY, k) for k in ('dataset', 'width', 'batch_size', 'limit')} | dict(epochs=1)
    found = sweep({'tiny': recipe}, [0], tmp_path/'sweep', devices=['cpu'])
    assert not found['runs'] and 'was edited by hand' in found['failed'][0]['error']



def test_folders_of_others_are_left_alone(stepper, tmp_path):
    (tmp_path/'run').mkdir(); (tmp_path/'run'/'thesis.tex').write_text('precious')
    with pytest.raises(FileExistsError, match='holds something else'): stepper()
    (tmp_path/'file').write_text('x')
    with pytest.raises(FileExistsError, match='holds something else'): stepper(folder='file')
    assert [p.name for p in (tmp_path/'run').iterdir()] == ['thesis.tex']


def test_a_drop_of_the_rate_is_shown(stepper):
    s = stepper(replace(TINY, plateau_patience=0, plateau_start=100, plateau_threshold=.9, epochs=6))
    for _ in range(3): s.ask('epoch'); s.wait()
    assert any('the plateau lowered the learning rate from 0.001 to 0.00025' in e for e in s.view().events)


def test_the_kernels_loop_draws(tmp_path, monkeypatch):
    "The worker trains, the loop's thread draws; every change is drawn in the end."
    drawn = []
    def drawing(seen, classes):
        drawn.append((seen.steps, threading.get_ident()))
        return Image.new('RGB', (4, 4))
    monkeypatch.setattr(stepper_module, 'step_picture', drawing)
    async def page():
        made = training_stepper(TINY, tmp_path/'run', 'cpu')
        made.buttons['One epoch'].click()
        for _ in range(400):
            await asyncio.sleep(.05)
            if drawn[-1][0] == 4: break
        made.buttons['Stop'].click()
        for _ in range(400):
            await asyncio.sleep(.05)
            if 'saved in' in made.message.value: break
        return made
    made = asyncio.run(page())
    made.stepper.tell = lambda: None                          # that loop is gone
    assert drawn[-1][0] == 4 and {thread for _, thread in drawn} == {threading.get_ident()}
    assert 'saved in' in made.message.value
    made.stepper.close()


def test_slow_drawing_does_not_keep_the_page_from_hearing(tmp_path, monkeypatch):
    "Drawing takes longer than the rest in between: a click is heard after the drawing, and the last picture shows the pause."
    drawn = []
    def slow(seen, classes):
        time.sleep(.8)
        drawn.append(seen.running)
        return Image.new('RGB', (4, 4))
    monkeypatch.setattr(stepper_module, 'step_picture', slow)
    async def page():
        made = training_stepper(replace(TINY, epochs=10_000), tmp_path/'run', 'cpu')
        made.buttons['Run'].click()
        heard, start = [], time.monotonic()
        while time.monotonic() < start + 6:
            await asyncio.sleep(.05)
            heard.append(time.monotonic())
        assert len(drawn) > 3 and max(b - a for a, b in zip(heard, heard[1:])) < 1.6   # never two drawings in a row
        made.buttons['Pause'].click()
        await asyncio.sleep(3)
        return made
    made = asyncio.run(page())
    assert 'Paused.' in made.message.value and not drawn[-1]
    made.stepper.end()


def test_the_rate_follows_the_plateau_without_being_an_edit(tmp_path):
    page = training_stepper(TINY, tmp_path/'run', 'cpu')
    page.stepper.training.opt.param_groups[0]['lr'] = 5e-4     # as a plateau would
    page.buttons['One batch'].click(); page.stepper.wait()
    assert page.rate.value == 5e-4 and page.stepper.view().edits == []
    page.rate.value = 1e-4; page.stepper.wait()
    assert [e['new'] for e in page.stepper.view().edits] == [1e-4] and 'edited by hand: lr' in page.message.value
    page.field.value, page.new.value = 'plateau_patience', 'many'
    change = button_of(page, 'Change')
    change.click()
    assert 'plateau_patience must be a whole number, not &#x27;many&#x27;' in page.message.value
    page.new.value = '4'; change.click(); page.stepper.wait()
    assert page.stepper.training.plateau.patience == 4
    page.stepper.close()


def test_all_on_one_page():
    page = app(subject(n=80))
    names = [page.get_title(i) for i in range(len(page.children))]
    page.children[names.index('Training')].stepper.close()
    assert names == ['Maps', 'Mistakes', 'Augmentation', 'Training']


def test_norms_of_blocks(stepper):
    model = stepper().training.model
    norms = layer_norms(model)
    head = torch.cat([p.flatten() for p in model.head.parameters()]).norm().item()
    assert abs(norms['head'][0] - head) < 1e-4 and norms['3.1'][1] == 0          # no step yet, no gradient
    assert list(norms) == ['stem', '0.0', '0.1', '1.0', '1.1', '2.0', '2.1', '3.0', '3.1', 'head']


@pytest.mark.parametrize('payload', ['<script>alert(1)</script>', '<img src=x onerror=alert(1)>', '</p></div><h1>out'])
def test_typed_texts_are_escaped(payload, tmp_path):
    page = training_stepper(replace(TINY, limit=32), tmp_path/'run', 'cpu')
    page.new.value = payload
    button_of(page, 'Change').click()
    html = page.message.value
    page.stepper.close()
    assert 'weight_decay must be a number' in html and not any(tag in html for tag in ('<script', '<img', '<h1'))


def test_two_do_not_train_in_one_folder(stepper, tmp_path):
    one, two = stepper(), stepper()
    one.ask('batch'); one.wait(); one.ask('stop'); one.wait()
    two.close()
    two = stepper()
    one.ask('batch'); one.wait()                              # locked from here to the next stop
    two.ask('batch'); two.wait()
    assert 'another process is at work' in two.view().error
    one.close(); two.close()
    run = job({}, tmp_path/'run', device='cpu', resume=True, progress=False, draw=False)
    assert len(run.history) == 4
    with pytest.raises(ValueError, match='holds a finished run'): stepper()


def test_errors_and_what_is_there_afterwards(stepper):
    "(command, its arguments) -> (error, batches trained, learning rate)"
    s = stepper(replace(TINY, epochs=3))
    def asked(*command):
        s.ask(*command); s.wait()
        seen = s.view()
        return seen.error, seen.steps, seen.recipe.lr
    assert asked('edit', 'lr', -1) == ('lr must be positive, not -1', 0, 1e-3)
    s.ask('edit', 'epochs', 1)                                 # commands in a row are obeyed before the next batch
    assert asked('run') == ('', 4, 1e-3)
    assert 'all 1 epochs are done: raise epochs' in asked('batch')[0]
    s.ask('edit', 'epochs', 2)
    assert asked('batch') == ('', 5, 1e-3)
    s.ask('stop'); s.ask('edit', 'lr', 1e30)
    error, *there = asked('run')
    assert 'no longer a finite number' in error and there == [5, 1e-3]            # as it was saved
    assert asked('batch') == ('', 6, 1e-3)
    assert asked('reset') == ('', 0, 1e-3) and s.folder.name == 'run-1' and s.view().edits == []


def test_a_picture_before_and_after_the_first_batch(stepper):
    s = stepper()
    classes, before = s.train.classes, s.view()
    s.ask('batch'); s.wait()
    after = s.view()
    assert before.batch is None and len(after.batch.preds) == 16 == len(after.valid.preds)
    assert len({step_picture(seen, classes).tobytes() for seen in (before, after)}) == 2


def test_moving_the_slider_of_a_closed_stepper_is_said(tmp_path):
    page = training_stepper(TINY, tmp_path/'run', 'cpu')
    page.stepper.close()
    page.rate.value = 1e-4
    assert 'was closed: make another one' in page.message.value
