"""What is written is accepted when it is read, the same run writes the same files, and a file is a file."""
import ast, copy, json, math, multiprocessing, os, shutil, signal, socket, subprocess, sys, time
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save

import cifar_resnet
from cifar_resnet import cli, job as module, runs
from cifar_resnet.data import BATCHES, FOLDER, Images, load_data
from cifar_resnet.fetch import check_file, file_hash, open_file, read_file, take_members
from cifar_resnet.job import job, open_run, release, store_logits, stored_logits
from cifar_resnet.model import METADATA, WEIGHTS, check_weights, find_not_finite, load_weights, resnet18, weights_file, weights_metadata
from cifar_resnet.pictures import read_picture
from cifar_resnet.recipe import BEFORE, Recipe, saved_recipe
from cifar_resnet.runs import READABLE, SCHEMA, append_history, load_checkpoint, read_history, read_json, save_checkpoint, write_history
from cifar_resnet.scale import sweep
from cifar_resnet.train import Training, load_run, read_about, read_pretrained

NAN, INF = math.nan, math.inf
EARLIER = Path(__file__).parent/'earlier'
CLASSES = tuple('abcdefghij')
def part(n, seed=0): return Images(np.random.default_rng(seed).integers(0, 256, (n, 32, 32, 3), np.uint8), np.arange(n) % 10, CLASSES)
DATA, TEST = part(200), part(50, 1)
SMALL = dict(dataset='shapes10', width=2, epochs=2, batch_size=60)      # three batches an epoch
USUAL = Recipe(**SMALL)
def kind(name): return pytest.mark.trust('hard knocks', name)
def rows(*table): return pytest.mark.parametrize('what, said', [row[1:] for row in table], ids=[row[0] for row in table])
def run(folder, **how): return job(USUAL, folder, device='cpu', data=(DATA, TEST), progress=False, draw=False, **how)

def one_sentence(said, action, kinds=ValueError):
    with pytest.raises(kinds, match=said) as e: action()
    assert '\n' not in str(e.value)


# 1. what is written is accepted

@kind('wild recipes: what is written is accepted')
@pytest.mark.parametrize('wild', [
    dict(), dict(norm='none', lr=1.), dict(norm='none', lr=1e10), dict(lr=1e299), dict(lr=1e30, optimiser='sgd'), dict(lr=1., optimiser='muon'),
    dict(norm='batch', lr=1e15, optimiser='adamw'), dict(norm='batch', lr=1e8, average=1), dict(norm='pixel', lr=1e20), dict(norm='instance', lr=1e18, flip='random'),
    dict(weight_decay=1e299), dict(weight_decay=1e30, optimiser='adamw'), dict(clip=1e-300), dict(clip=1e299, lr=1.), dict(warmup=1e9), dict(last_gain=1e30),
    dict(last_gain=1e19, norm='batch'), dict(norm='none', optimiser='sgd', lr=1e5, filters='zero_mean'), dict(smoothing=.999, lr=100.), dict(schedule='linear', lr=1e25),
    dict(average=1e-9, lr=1.), dict(average=1e9), dict(plateau_factor=1e-300), dict(plateau_threshold=.999999, plateau_start=1e299)], ids=str)
def test_wild_recipes(wild, tmp_path):
    "After every batch: either it is saved, and can be gone on from, or the run stops with a sentence, and the checkpoint before can."
    t, saved = Training(Recipe(**SMALL | wild), DATA, tmp_path, 'cpu'), None
    try:
        for _ in range(6):
            t.step(); t.save()
            saved = t.epoch, t.at
    except FloatingPointError as e: assert 'no longer a finite number' in str(e) and '\n' not in str(e)
    if saved is None: return
    again = Training.resume(tmp_path, DATA, 'cpu')
    assert (again.epoch, again.at) == saved


def spoil(part, value):
    def change(t):
        with torch.no_grad():
            if part == 'losses': t.losses[t.at - 1] = value
            elif part == 'moment': t.opt.state[t.model.head.weight]['exp_avg_sq'][0, 0] = value
            elif part == 'rate': t.opt.param_groups[0]['lr'] = value
            elif part == 'best': t.best['weights']['head.bias'][0] = value
            elif part == 'buffer': t.model.stem[1].running_var[0] = value
            else: getattr(t, part).head.bias[0] = value
    return change

@kind('a state that is not finite is not saved')
@pytest.mark.parametrize('part', ['losses', 'model', 'averaged', 'moment', 'rate', 'best', 'buffer'])
@pytest.mark.parametrize('value', [NAN, INF, -INF], ids=str)
def test_not_finite(part, value, tmp_path):
    t = Training(Recipe(**SMALL, average=1, norm='batch'), DATA, tmp_path, 'cpu')
    for _ in range(4): t.step()
    t.save()
    before = {p.name: p.read_bytes() for p in (tmp_path/'checkpoints').iterdir()}
    t.step(); spoil(part, value)(t)
    one_sentence('no longer a finite number in epoch 2, batch 2 of 3: nothing was saved', t.save, FloatingPointError)
    assert before == {p.name: p.read_bytes() for p in (tmp_path/'checkpoints').iterdir()}
    assert Training.resume(tmp_path, DATA, 'cpu').at == 1


@kind('a state that could not be gone on from is not saved')
def test_not_to_be_gone_on_from(tmp_path):
    t = Training(USUAL, DATA, tmp_path, 'cpu')
    t.step(); t.save()
    t.step(); t.right += 10**6
    one_sentence('could not be gone on from .it counts what has not happened yet.: the last good checkpoint stays', t.save, FloatingPointError)
    assert Training.resume(tmp_path, DATA, 'cpu').at == 1


@kind('a state that is not finite is not saved')
@pytest.mark.parametrize('values, at', [
    (dict(a=[1., dict(b=(0, NAN))]), 'a.1.b.1'), ([torch.tensor([1., -INF])], '0'), (torch.tensor(NAN), 'it'), (INF, 'it'), (dict(a=torch.ones(3), b=[1, 'nan', None, True]), None),
    ({}, None), (torch.tensor([2**60]), None), (dict(half=torch.tensor(65504.).half()), None), (torch.tensor(1e5).half(), 'it')], ids=str)
def test_find_not_finite(values, at): assert find_not_finite(values) == at


# 2. the newest checkpoint may be a stranger's

def other(data=DATA, change=lambda state: None, **recipe):
    "Plants a checkpoint of another training as the newest."
    def plant(folder):
        t = Training(Recipe(**SMALL | recipe), data, device='cpu')
        for _ in range(4): t.step()
        state = copy.deepcopy(t.state())
        change(state)
        save_checkpoint(folder, state, 99, keep=9)
    return plant

def damaged(change):
    def plant(folder):
        other()(folder)
        change(folder/'000000099.pt')
    return plant

@pytest.fixture
def begun(tmp_path):
    "The folder of a run that was stopped after two batches."
    t = Training(USUAL, DATA, tmp_path/'run', 'cpu')
    (tmp_path/'run').mkdir()
    open_run(t, CLASSES)
    for _ in range(2): t.step()
    t.save()
    return tmp_path/'run'

@pytest.fixture(scope='module')
def whole(tmp_path_factory): return run(tmp_path_factory.mktemp('whole')/'run')

@kind("a stranger's checkpoint does not hide an older own one")
@rows(
    ('another seed', other(seed=7), 'belongs to another recipe than its run.json .seed 7, not 0'),
    ('another rate', other(lr=.1), 'lr 0.1, not 0.001'),
    ('another width', other(width=3), 'width 3, not 2'),
    ('another norm', other(norm='batch'), 'norm batch, not layer'),
    ('other data', other(part(200, 5)), 'was trained on other data'),
    ('another precision', other(change=lambda s: s.update(precision='bfloat16')), 'it began in bfloat16, not float32'),
    ('a version to come', other(change=lambda s: s.update(schema=SCHEMA + 1)), 'another version'),
    ('a version before all', other(change=lambda s: s.update(schema=0)), 'another version'),
    ('moments of infinity', other(change=lambda s: s['opt']['state'][0]['exp_avg_sq'].fill_(INF)), 'opt.state.0.exp_avg_sq is not finite'),
    ('weights of NaN', other(change=lambda s: s['model']['head.bias'].fill_(NAN)), 'model.head.bias is not finite'),
    ('history of infinity', other(change=lambda s: s['history'][0].update(train_loss=INF)), 'history.0.train_loss is not finite'),
    ('without a part', other(change=lambda s: s.pop('plateau')), "it lacks 'plateau'"),
    ('a list', lambda folder: save_checkpoint(folder, [1], 99, keep=9), 'another version'),
    ('cut', damaged(lambda p: p.write_bytes(p.read_bytes()[:99])), 'SHA-256'),
    ('empty', damaged(lambda p: p.write_bytes(b'')), 'SHA-256'),
    ('without its hash', damaged(lambda p: p.with_suffix('.sha256').unlink()), 'no SHA-256'),
    ('a folder', damaged(lambda p: (p.unlink(), p.mkdir())), 'directory'),
    ('a pipe', damaged(lambda p: (p.unlink(), os.mkfifo(p))), 'is a device or a pipe'))
def test_strangers(what, said, begun, whole):
    what(begun/'checkpoints')
    with pytest.warns(UserWarning, match=f'going back to 000000002.pt, since a newer checkpoint cannot be used .000000099.pt: .*{said}'): found = run(begun, resume=True)
    assert found.metrics['resumed_at'] == [2/3] and found.metrics['test_accuracy'] == whole.metrics['test_accuracy']
    for a, b in zip(found.model.parameters(), whole.model.parameters()): assert torch.equal(a, b)
    strip = lambda history: [{k: v for k, v in row.items() if k != 'seconds'} for row in history]
    assert strip(found.history) == strip(whole.history)

@kind("a stranger's checkpoint does not hide an older own one")
def test_only_strangers(begun):
    for p in (begun/'checkpoints').iterdir(): p.unlink()
    other(seed=7)(begun/'checkpoints')
    one_sentence('belongs to another recipe than its run.json .seed 7, not 0.: remove the checkpoints', lambda: run(begun, resume=True))
    assert (begun/'checkpoints'/'000000099.pt').exists() and read_json(begun/'run.json')['resumed_at'] == []


# 3. a field of the recipe needs a schema, or a meaning for runs that lack it

RECIPE_FIELDS = 'dataset recipe seed epochs batch_size width strides norm last_gain flip optimiser lr weight_decay warmup clip average smoothing plateau_factor plateau_patience plateau_threshold plateau_cooldown plateau_start variant limit'.split()
BY_SCHEMA = {2: RECIPE_FIELDS, 3: [*RECIPE_FIELDS, 'filters', 'schedule'], 4: [*RECIPE_FIELDS, 'filters', 'schedule', 'weights']}

@kind('fields of a recipe, by schema')
def test_fields_by_schema():
    "Red? A field was added: give it a meaning in BEFORE for runs that lack it, a new schema, and a line above."
    assert set(BY_SCHEMA) == set(READABLE)
    assert sorted(f.name for f in fields(Recipe)) == sorted(BY_SCHEMA[SCHEMA])

@kind('fields of a recipe, by schema')
@pytest.mark.parametrize('schema', sorted(BY_SCHEMA))
def test_a_field_that_was_not_yet(schema):
    new = {f.name for f in fields(Recipe)} - set(BY_SCHEMA[schema])
    assert new <= set(BEFORE)
    told = {k: v for k, v in Recipe().filled().__dict__.items() if k in BY_SCHEMA[schema]}
    assert {k: getattr(saved_recipe(told), k) for k in new} == {k: BEFORE[k] for k in new}

@kind('fields of a recipe, by schema')
@pytest.mark.parametrize('name', ['schema2-finished', 'schema2-unfinished', 'schema3-finished', 'schema3-unfinished'])
def test_earlier_recipes(name):
    about = read_json(EARLIER/name/'run.json')
    assert set(about['recipe']) == set(BY_SCHEMA[about['schema']]) and read_about(EARLIER/name)['recipe']['filters']


# 4. history.csv grows by a row

def row(epoch): return dict(epoch=epoch, lr=1e-3, train_loss=1/3, train_accuracy=.25, valid_loss=2/3, valid_accuracy=.3, seconds=.01)

@kind('history.csv is appended')
def test_written_twice_however_long(tmp_path, monkeypatch):
    written, usual = [], runs.write_atomic
    monkeypatch.setattr(runs, 'write_atomic', lambda path, data: (written.append(Path(path).name), usual(path, data)))
    for epochs in (1, 7): job(dict(SMALL, epochs=epochs), tmp_path/f'{epochs}', device='cpu', data=(DATA, TEST), progress=False, draw=False)
    assert written.count('history.csv') == 4
    assert [r['epoch'] for r in read_history(tmp_path/'7'/'history.csv')] == [*range(1, 8)]

@kind('history.csv is appended')
def test_a_hundred_thousand_epochs(tmp_path):
    "The last thousand rows cost what the first did (five times that, on a loaded machine), and none is lost."
    path, times = tmp_path/'history.csv', []
    write_history(path, [])
    for start in range(0, 100_000, 1000):
        begun = time.process_time()
        for epoch in range(start + 1, start + 1001): append_history(path, row(epoch))
        times.append(time.process_time() - begun)
    assert np.median(times[-20:]) < 5*np.median(times[:20])
    found = read_history(path)
    assert len(found) == 100_000 and found[-1] == row(100_000)

@kind('history.csv is appended')
def test_nothing_grows_with_the_epochs(tmp_path, monkeypatch):
    "With 50,000 epochs behind it, an epoch costs what it cost at first: the loop keeps no book that it goes through."
    monkeypatch.setattr(Training, 'learn', lambda self, xb, yb: (setattr(self, 'correct', torch.zeros((), dtype=torch.int64)), torch.zeros(()))[1])
    def seconds(epochs):
        t = Training(Recipe(**SMALL | dict(epochs=100_000)), DATA, tmp_path, 'cpu')
        t.history = [row(i + 1) for i in range(epochs)]
        t.epoch = epochs
        costs = []
        for _ in range(8):
            begun = time.process_time(); t.run_epoch(); costs.append(time.process_time() - begun)
        return min(costs)
    first, late = seconds(0), seconds(50_000)
    assert late < 3*first + .02

@kind('history.csv is appended')
@pytest.mark.parametrize('left', [
    b'2,0.001,0.3', b'2,0.001,0.3,0.2,0.3,0.2,1.5\n3,0.', b'\n\n', b'\xff\xfe', b'9,' + b'1.0,'*5 + b'1.0\n', None], ids=['half a row', 'a row too many, and half a one', 'empty lines', 'noise', 'a row of an epoch to come', 'no file'])
def test_mended(left, begun, whole, monkeypatch):
    "After a crash, or from an earlier checkpoint, the file holds exactly the history, also while the run goes on."
    seen, usual = [], module.append_history
    monkeypatch.setattr(module, 'append_history', lambda path, row: (usual(path, row), seen.append([r['epoch'] for r in read_history(path)])))
    path = begun/'history.csv'
    if left is not None: write_history(path, [row(1)]); path.write_bytes(path.read_bytes() + left)
    found = run(begun, resume=True)
    assert seen == [[1], [1, 2]] and [r['epoch'] for r in read_history(path)] == [1, 2] == [r['epoch'] for r in found.history]
    assert path.read_bytes().count(b'\n') == 3 and [r['train_loss'] for r in found.history] == [r['train_loss'] for r in whole.history]

@kind('history.csv is appended')
@pytest.mark.parametrize('make', [lambda p: p.symlink_to(p.parent/'outside'), lambda p: os.mkfifo(p)], ids=['a link', 'a pipe'])
def test_appended_to_a_file_only(make, tmp_path):
    make(tmp_path/'history.csv')
    assert answer(append_history, tmp_path/'history.csv', row(1)).startswith('OSError')
    assert not (tmp_path/'outside').exists()


# 5. the clock

@kind('a clock that is set')
@pytest.mark.parametrize('path', sorted(Path(cifar_resnet.__file__).parent.glob('*.py')), ids=lambda p: p.stem)
def test_no_wall_clock(path):
    "Times are measured by a clock that nobody sets; dates are recorded in one place."
    calls = [ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    wall = [c for c in calls if c in ('time.time', 'time.time_ns', 'time.ctime', 'datetime.utcnow', 'datetime.today')]
    assert wall == (['time.time']*2 if path.stem == 'scale' else [])     # when a run was sent: two machines have no other clock in common
    assert [c for c in calls if c.endswith('datetime.now')] == (['datetime.now'] if path.stem == 'runs' else [])

@kind('a clock that is set')
@pytest.mark.parametrize('jump', [-1e9, 1e9])
def test_a_jump_of_the_clock(jump, tmp_path, monkeypatch):
    "The clock is set while a sweep with a budget is at work: it ends neither sooner nor later."
    usual, calls = time.time, []
    monkeypatch.setattr(time, 'time', lambda: (calls.append(1), usual() + jump*len(calls))[1])
    fields = dict(dataset='shapes10', width=2, epochs=1, batch_size=60, limit=60)
    assert sweep({'a': fields}, [0, 1], tmp_path, ['cpu'], budget_s=500)['left'] == 0
    assert sweep({'b': fields}, [0], tmp_path, ['cpu'], budget_s=1e-9)['left'] == 1


# 6. a file is a file

def answer(action, *args, seconds=60):
    "What a call raises, in a process of its own: what waits inside a library hears no signal."
    ours, its = multiprocessing.Pipe(False)
    child = os.fork()
    if not child:
        said = ''
        try: action(*args)
        except BaseException as e: said = f'{type(e).__name__}: {e}'
        its.send(said)
        os._exit(0)
    try: return ours.recv() if ours.poll(seconds) else 'it waits without end'
    finally: os.kill(child, signal.SIGKILL); os.waitpid(child, 0)

def pipe(path): os.mkfifo(path)
def plug(path):
    here = os.getcwd(); os.chdir(path.parent)                  # the path of a socket must be short
    try: socket.socket(socket.AF_UNIX).bind(path.name)
    finally: os.chdir(here)
def device(path): path.symlink_to('/dev/null')

def in_run(name, act):
    def read(make, tmp):
        folder = Path(shutil.copytree(EARLIER/'schema3-finished', tmp/'run'))
        (folder/name).unlink(); make(folder/name)
        act(folder)
    return read

def in_place(name, act):
    def read(make, tmp):
        make(tmp/name); act(tmp/name)
    return read

def members(make, tmp):
    (tmp/FOLDER).mkdir()
    for name in BATCHES: make(tmp/FOLDER/name)
    load_data('cifar10', tmp)

READERS = {
    'open_file': in_place('x', open_file), 'read_file': in_place('x', read_file), 'file_hash': in_place('x', file_hash), 'check_file': in_place('x', check_file),
    'a picture': in_place('x.png', read_picture), 'an archive to unpack': in_place('x.tar', lambda p: take_members(p, {}, p.parent/'out')),
    'the archive in data_dir': in_place('cifar-10-python.tar.gz', lambda p: load_data('cifar10', p.parent)), 'members in data_dir': members,
    'weights': in_place('w.safetensors', load_weights), 'metadata': in_place('w.safetensors', weights_metadata), 'weights to begin from': in_place('w.safetensors', read_pretrained),
    'a recipe table': in_place('t.json', lambda p: cli._recipes(str(p), {})), 'a record': in_place('run.json', read_json), 'a history': in_place('history.csv', read_history),
    'a checkpoint': in_place('000000001.pt', lambda p: load_checkpoint(p.parent)), 'a lock': in_place('.lock', lambda p: runs.only_one(p.parent).__enter__()),
    'stored logits': in_place('logits.safetensors', lambda p: stored_logits(p.parent)), 'a table of a sweep': in_place('sweep.json', lambda p: sweep({'a': dict(SMALL)}, [0], p.parent, ['cpu'])),
    'run.json of a run': in_run('run.json', load_run), 'history.csv of a run': in_run('history.csv', load_run), 'weights of a run': in_run('weights.safetensors', load_run),
    'logits of a run': in_run('logits.safetensors', load_run), 'split of a run': in_run('split.npz', load_run),
}

SAID = {
    'weights': 'there is no file', 'weights to begin from': 'there is no file', 'members in data_dir': 'is damaged', 'a lock': 'OSError',
}

@kind('pipes, sockets and devices for files')
@pytest.mark.parametrize('make', [pipe, plug, device], ids=lambda f: f.__name__)
@pytest.mark.parametrize('reader', READERS)
def test_a_file_is_a_file(reader, make, tmp_path):
    "A sentence, at once."
    (tmp_path/'d').mkdir()
    said = answer(READERS[reader], make, tmp_path/'d')
    assert '\n' not in said and str(tmp_path) in said and SAID.get(reader, 'is a device or a pipe') in said

@kind('pipes, sockets and devices for files')
@pytest.mark.parametrize('make', [pipe, device], ids=lambda f: f.__name__)
def test_of_commands(make, tmp_path, capsys):
    make(tmp_path/'t.json')
    assert cli.sweep_main([str(tmp_path/'t.json'), '--out', str(tmp_path/'out')]) == 2
    assert capsys.readouterr().err == f'cifar_sweep: {tmp_path}/t.json is a device or a pipe: give a file\n'


# 7. weights

def planted(path, change=lambda weights: None, about={}, model=None):
    "A file of weights as it is written, with something put wrong."
    model = model or resnet18(width=2)
    weights = {k: v.detach().clone() for k, v in model.state_dict().items()}
    change(weights)
    path.write_bytes(save(weights, {METADATA: json.dumps({**model.config, 'classes': [*CLASSES], 'mean': [.5]*3, 'std': [.2]*3, **about})}))
    return path

def fill(name, value): return lambda weights: weights[name].fill_(value)
def everywhere(value): return lambda weights: [w.fill_(value) for w in weights.values()]
def as_type(dtype, name='head.weight'): return lambda weights: weights.update({name: weights[name].to(dtype)})
def shaped(*shape, name='head.weight'): return lambda weights: weights.update({name: torch.zeros(shape)})

@kind('weights that are none, and metadata that lie')
@pytest.mark.parametrize('change, about, said', [
    (everywhere(3e38), {}, 'its logits are not finite'), (fill('stem.0.weight', 3e38), {}, 'its logits are not finite'), (fill('head.bias', 3e38), dict(norm='none'), 'Unexpected key|not finite'),
    (fill('head.bias', NAN), {}, 'not all are finite numbers: head.bias'), (fill('stem.1.weight', -INF), {}, 'not all are finite numbers: stem.1.weight'),
    (lambda w: w.update({'head.bias': torch.full((10,), 1e300, dtype=torch.float64)}), {}, 'not all are finite numbers: head.bias'),
    (as_type(torch.int8), {}, 'head.weight cannot be of int8'), (as_type(torch.int64), {}, 'cannot be of int64'), (as_type(torch.bool), {}, 'cannot be of bool'),
    (as_type(torch.complex64), {}, 'cannot be of complex64'), (shaped(10), {}, 'size mismatch'), (shaped(16, 10), {}, 'size mismatch'), (shaped(0, 0), {}, 'size mismatch'),
    (lambda w: w.pop('head.bias'), {}, 'Missing key'), (lambda w: w.update(more=torch.zeros(1)), {}, 'Unexpected key'),
    *[(lambda w: None, about, said) for about, said in [
        (dict(mean=['nan']*3), 'mean and std must be three numbers'), (dict(mean=[NAN]*3), 'its mean.0 is not a finite number'), (dict(std=[0., 0., 0.]), 'mean and std must be'), (dict(std=[.2, INF, .2]), 'its std.1 is not'),
        (dict(std=[.2]), 'mean and std must be'), (dict(mean=.5), 'mean and std must be'), (dict(mean=None), 'mean and std must be'), (dict(std=[-.2]*3), 'mean and std must be'), (dict(mean=dict(a=1)), 'mean and std must be'), (dict(std=[True]*3), 'mean and std must be'),
        (dict(classes=[]), 'its classes are not 10 names'), (dict(classes=[*CLASSES, 'k']), 'its classes are not 10 names'), (dict(classes='abcdefghij'), 'its classes are not'), (dict(classes=[0]*10), 'its classes are not'), (dict(classes=None), 'its classes are not'),
        (dict(temperature=0), 'its temperature cannot be 0'), (dict(temperature=-1.), 'its temperature cannot be'), (dict(temperature=NAN), 'its temperature is not a finite number'), (dict(temperature='1'), "its temperature cannot be '1'"),
        (dict(num_classes=11), 'its classes are not 11 names'), (dict(num_classes=10**15), 'its classes are not'), (dict(num_classes='10'), 'num_classes must be a whole number'), (dict(width=10**9), 'width must be at most'), (dict(width=None), 'width must be'), (dict(norm=['layer']), 'there is no norm'), (dict(strides=None), 'strides'),
        (dict(test_accuracy=NAN), 'its test_accuracy is not a finite number')]]])
def test_files_of_weights(change, about, said, tmp_path):
    path = planted(tmp_path/'w.safetensors', change, about)
    for read in (load_weights, read_pretrained): one_sentence(f'w.safetensors does not hold the weights of one of our models .*({said})', lambda: read(path))

@kind('weights that are none, and metadata that lie')
@pytest.mark.parametrize('metadata', ['', 'no JSON', '7', '"text"', '[1]', '{}', '{"norm": "layer"}', '{"norm": ' + '['*9999, 'NaN', 'null', '{"norm": "layer", "strides": [1,2,2,2], "width": 2, "num_classes": 1e999}'])
def test_metadata_of_noise(metadata, tmp_path):
    (tmp_path/'w').write_bytes(save(resnet18(width=2).state_dict(), {METADATA: metadata}))
    for read in (weights_metadata, load_weights): one_sentence('w does not hold the weights of one of our models', lambda: read(tmp_path/'w'))

@kind('what is refused is not written: weights')
@pytest.mark.parametrize('change, about', [
    (lambda m: m.head.bias.data.fill_(NAN), {}), (lambda m: [p.data.fill_(3e38) for p in m.parameters()], {}), (lambda m: m.half(), dict(mean=[0., .5, .5])), (lambda m: None, dict(classes=['a'])), (lambda m: None, dict(std=[NAN]*3)),
    (lambda m: None, dict(temperature=INF)), (lambda m: None, dict(width=3.5)), (lambda m: m.half().head.bias.data.fill_(INF), {})])
def test_not_written(change, about):
    model = resnet18(width=2)
    change(model)
    with pytest.raises(ValueError): weights_file(model, **about)

@kind('what is refused is not written: weights')
@pytest.mark.parametrize('norm', ['layer', 'batch', 'group8', 'instance', 'pixel', 'none'])
@pytest.mark.parametrize('type', [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_written_and_read(norm, type, tmp_path):
    model = resnet18(norm, width=8).to(type).train()
    (tmp_path/'w').write_bytes(weights_file(model, classes=CLASSES, mean=(.5, .4, .3), std=(.2, .2, .2)))
    assert model.training and weights_metadata(tmp_path/'w')['classes'] == [*CLASSES]
    for a, b in zip(load_weights(tmp_path/'w').parameters(), model.parameters()): assert torch.equal(a, b.float())

@kind('files outlive code: weights')
@pytest.mark.parametrize('path', sorted(WEIGHTS.glob('*.safetensors')), ids=lambda p: p.stem)
def test_weights_of_the_package(path):
    "They were written when each word of the metadata had an entry of its own."
    assert {'classes', 'mean', 'std'} <= weights_metadata(path).keys()
    check_weights(load_weights(path))

@kind('logits that are not finite are no result')
@pytest.mark.parametrize('value', [NAN, INF, -INF], ids=str)
def test_logits(value, whole, tmp_path, monkeypatch):
    folder = Path(shutil.copytree(whole.folder, tmp_path/'run'))
    (folder/'logits.safetensors').unlink()
    usual = module.predict
    def spoilt(*args):
        logits = usual(*args)
        logits[3, 2] = value
        return logits
    monkeypatch.setattr(module, 'predict', spoilt)
    one_sentence('give logits that are not finite', lambda: store_logits(folder, 'held_out', TEST, whole.metrics, torch.device('cpu')), FloatingPointError)
    assert not (folder/'logits.safetensors').exists()
    one_sentence('give logits that are not finite', lambda: release(whole, tmp_path/'half', TEST), FloatingPointError)


# 8. the same run, the same files

SAME = 'weights.safetensors', 'logits.safetensors', 'split.npz', 'summary.txt', 'report.json', *(f'{name}.png' for name in module.FIGURES)
TIMED = 'started', 'ended', 'train_seconds', 'peak_memory_bytes', 'files', 'seal'
PROGRAM = '''
import itertools, sys, time
ticks = itertools.count()
time.perf_counter = lambda: next(ticks)/1024            # seconds go into the history, and so into checkpoints: here, the same ones
from cifar_resnet.cli import main
sys.exit(main('--dataset shapes10 --width 4 --epochs 2 --limit 60 --batch_size 20 --flip random --average 1 --device cpu --save_every_s 0 --out'.split() + sys.argv[1:]))
'''

@kind('the same run writes the same files')
def test_the_same_bytes(tmp_path, cases):
    "Two processes, in which sets and hashes have another order."
    environment = {**os.environ, 'NO_ALBUMENTATIONS_UPDATE': '1', 'MPLBACKEND': 'agg'}
    processes = [subprocess.Popen([sys.executable, '-c', PROGRAM, str(tmp_path/seed)], env={**environment, 'PYTHONHASHSEED': seed}, stderr=subprocess.PIPE) for seed in ('1', '2')]
    for process in processes: assert process.wait(500) == 0, process.stderr.read()
    one, two = (tmp_path/seed for seed in ('1', '2'))
    found = {str(p.relative_to(one)) for p in one.rglob('*') if p.is_file()}
    assert found == {str(p.relative_to(two)) for p in two.rglob('*') if p.is_file()}
    equal = {name for name in found if (one/name).read_bytes() == (two/name).read_bytes()}
    cases(len(found))
    assert set(SAME) <= found and found - equal == {'run.json'}                       # history and checkpoints, too: their seconds are the same here
    first, second = ({k: v for k, v in read_json(folder/'run.json').items() if k not in TIMED} for folder in (one, two))
    assert first == second and first['finished']
    files = [read_json(folder/'run.json')['files'] for folder in (one, two)]
    assert files[0] == files[1]
