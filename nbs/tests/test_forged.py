"""What lies in a run folder was written by anybody: it is held against what it claims to come from before it is sealed, and what can be no record is refused in a sentence.

A row of a table is (name, what is done, what the sentence must say).
"""
import json, shutil

import pytest
import torch
from safetensors.torch import load_file, save

from cifar_resnet import job as job_module, scale
from cifar_resnet.job import job, publish
from cifar_resnet.model import METADATA, load_weights, weights_file, weights_metadata
from cifar_resnet.runs import read_json, seal, write_history, write_json
from cifar_resnet.scale import sweep
from cifar_resnet.train import load_run
from test_every_write import DATA, RECIPE
from test_hostile import forged_seal, sealed_file

NAN = float('nan')
RUN = dict(RECIPE, epochs=1)


def rows(*table): return pytest.mark.parametrize('what, said', [pytest.param(what, said, id=name) for name, what, said in table])


def refused(said, action, *args, **kw):
    with pytest.raises((ValueError, OSError)) as e: action(*args, **kw)
    words = str(e.value)
    assert said in words and '\n' not in words and len(words) < 600, words


def run_in(out, **kw): return job(RUN, out, device='cpu', progress=False, draw=False, data=DATA, **kw)


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp('finished')/'run'
    run_in(out)
    return out

@pytest.fixture
def folder(finished, tmp_path): return shutil.copytree(finished, tmp_path/'run')


def about(folder, sealed=False, **changes):
    "Change fields of run.json, and seal it anew if wanted."
    found = {k: v for k, v in {**json.loads((folder/'run.json').read_text()), **changes}.items() if v is not ...}
    if sealed and 'seal' not in changes: found['seal'] = forged_seal(found)
    (folder/'run.json').write_text(json.dumps(found))

def says(**changes): return lambda folder: about(folder, **changes)


# 1. A run to be resumed, whose files are not its own

def logits(said=None, **changes):
    "Change the logits, and what their file says of itself, if that is given."
    def change(folder):
        path, known = folder/'logits.safetensors', job_module._said(folder)
        known = {**known, **said} if said is not None else {}
        held = {**load_file(path), **{k: change(load_file(path)) if callable(change) else change for k, change in changes.items()}}
        path.write_bytes(save({k: v for k, v in held.items() if v is not None}, {METADATA: json.dumps({k: v for k, v in known.items() if v is not None})}))
    return change

def perfect(stored): return torch.nn.functional.one_hot(stored['test_labels'], 10).float()*9

def weights(change=lambda v: v, **claims):
    def write(folder):
        path = folder/'weights.safetensors'
        model, said = load_weights(path), {k: v for k, v in weights_metadata(path).items() if k not in load_weights(path).config}
        model.load_state_dict({k: change(v) for k, v in model.state_dict().items()})
        path.write_bytes(weights_file(model, **{**said, **claims}))
    return write

def earlier_checkpoint(folder):
    "The run is in the middle of its training again."
    shutil.rmtree(folder/'checkpoints')
    shutil.copytree(folder.parent/'stopped'/'checkpoints', folder/'checkpoints')

UNFINISHED = [
    ('another mean', says(mean=[.5, .5, .5]), 'another mean'),
    ('a mean that is a little off', lambda f: about(f, mean=[m + 1e-6 for m in read_json(f/'run.json')['mean']]), 'another mean'),
    ('another deviation', says(std=[.2, .2, .2]), 'another std'),
    ('classes in another order', says(classes=list(DATA[0].classes)[::-1]), 'classes'),
    ('two classes', says(classes=['a', 'b']), 'classes'),
    ('another hash of the data', says(data_sha256='0'*64), 'other data'),
    ('another hash of the test images', says(test_sha256='0'*64), 'other data'),
    ('another hash of the split', says(split_sha256='0'*64), 'another split_sha256'),
    ('another name of the data', says(data='cifar10'), 'another data'),
    ('another seed beside the recipe', says(seed=7), 'another seed'),
    ('another hash of the recipe', says(recipe_hash='00000000'), 'another recipe_hash'),
    ('fewer parameters', says(parameters=7), 'another parameters'),
    ('labels of other images', logits({}, held_out_labels=lambda s: s['held_out_labels'].flip(0)), 'other held_out labels'),
    ('test labels of other images', logits({}, test_labels=lambda s: (s['test_labels'] + 1) % 10), 'other test labels'),
    ('logits of fewer images', logits({}, test=lambda s: s['test'][:9], test_labels=lambda s: s['test_labels'][:9]), 'other test labels'),
    ('logits of nine classes', logits({}, held_out=lambda s: s['held_out'][:,:9].contiguous(), held_out_labels=lambda s: s['held_out_labels'].clamp(max=8)), 'logits of 9 classes, not 10'),
    ('perfect logits that say nothing of their origin', logits(test=perfect), 'does not come from the weights of this run'),
    ('logits of other weights', logits(dict(weights='0'*64)), 'does not come from the weights of this run'),
    ('logits at another mean', logits(dict(mean=[.5]*3)), 'does not come from the mean of this run'),
    ('logits at another deviation', logits(dict(std=[.2]*3)), 'does not come from the std of this run'),
    ('logits of other test images', logits(dict(test_images='0'*64)), 'does not come from the test images of this run'),
    ('logits of nameless held-out images', logits(dict(held_out_images=None)), 'does not come from the held out images of this run'),
    ('the views of a recipe without any', logits({}, test_tta=perfect), 'has not the views'),
    ('other weights', weights(lambda v: v*1.01), 'does not hold the weights that this run ends with'),
    ('weights that name another mean', weights(mean=[.5]*3), 'does not hold the weights that this run ends with'),
    ('weights that name another epoch', weights(epoch=3), 'does not hold the weights that this run ends with'),
    ('the same weights, in a file of other bytes', weights(lambda v: v, more='x'), 'does not come from the weights of this run'),
    ('logits before the training is done', earlier_checkpoint, 'is there before the training is done'),
]

@pytest.fixture(scope='module')
def stopped(tmp_path_factory):
    out = tmp_path_factory.mktemp('stopped')/'run'
    with pytest.raises(KeyboardInterrupt): run_in(out, budget_s=1e-9)
    return out

@pytest.mark.trust('hard knocks', 'what is not of this run is not sealed')
@rows(*UNFINISHED)
def test_nothing_untrue_is_sealed(what, said, folder, stopped):
    about(folder, finished=False)
    shutil.copytree(stopped, folder.parent/'stopped')
    what(folder)
    before = {name: (folder/name).read_bytes() for name in ('weights.safetensors', 'logits.safetensors')}
    refused(said, run_in, folder, resume=True)
    assert not json.loads((folder/'run.json').read_text())['finished']
    assert before == {name: (folder/name).read_bytes() for name in before}

@pytest.mark.trust('hard knocks', 'what is not of this run is not sealed')
@pytest.mark.parametrize('what', [lambda folder: None, lambda folder: (folder/'logits.safetensors').unlink(), lambda folder: (folder/'split.npz').write_text('x'), lambda folder: (folder/'split.npz').unlink(),
                                  lambda folder: [(folder/name).unlink() for name in ('weights.safetensors', 'logits.safetensors')], says(test_sha256=...), says(test_accuracy=.99, valid_accuracy=.99)],
                         ids=['control', 'no logits', 'another split', 'no split', 'no weights', 'no hash of the test images', 'results that it has not yet'])
def test_what_can_be_made_again_is(what, folder, finished):
    "What the checkpoint and the data say all about is written once more."
    about(folder, finished=False)
    what(folder)
    found, known = run_in(folder, resume=True).metrics, read_json(finished/'run.json')
    for name in ('test_accuracy', 'valid_loss', 'test_reads', 'test_sha256', 'split_sha256'): assert found[name] == known[name]
    assert found['files']['split.npz'] == known['files']['split.npz']

@pytest.mark.trust('hard knocks', 'a finished run that lost a file, or has another, is not tested')
@rows(
    ('no split', lambda folder: (folder/'split.npz').unlink(), 'has lost its split.npz'),
    ('no history', lambda folder: (folder/'history.csv').unlink(), 'has lost its history.csv'),
    ('no weights', lambda folder: (folder/'weights.safetensors').unlink(), 'has lost its weights.safetensors'),
    ('other weights', weights(lambda v: v*1.01), 'weights.safetensors is not the file'),
    ('other logits', logits({}, held_out=lambda s: -s['held_out']), 'logits.safetensors is not the file'),
)
def test_a_finished_run_is_tested_only_as_it_was(what, said, tmp_path):
    run_in(tmp_path/'run', read_test=False)
    before = (tmp_path/'run'/'run.json').read_bytes()
    what(tmp_path/'run')
    refused(said, run_in, tmp_path/'run')
    assert (tmp_path/'run'/'run.json').read_bytes() == before

@pytest.mark.trust('hard knocks', 'a finished run that lost a file, or has another, is not tested')
def test_a_file_that_changes_while_it_is_tested_is_not_sealed(tmp_path, monkeypatch):
    run_in(tmp_path/'run', read_test=False)
    usual = job_module.report
    def meanwhile(run, notes):
        write_history(run.folder/'history.csv', [dict(row, valid_accuracy=1.) for row in run.history])
        return usual(run, notes)
    monkeypatch.setattr(job_module, 'report', meanwhile)
    refused('history.csv is not the file', run_in, tmp_path/'run')
    assert read_json(tmp_path/'run'/'run.json')['test_reads'] == 0

def test_logits_that_were_lost_are_made_again(folder, tmp_path):
    "Also of a finished run that was not tested: two writes, each announced."
    run_in(tmp_path/'shut', read_test=False)
    (tmp_path/'shut'/'logits.safetensors').unlink()
    assert run_in(tmp_path/'shut').metrics['test_accuracy'] == load_run(folder).metrics['test_accuracy']


# 2. run.json, sealed by a forger

def sealed_with(text):
    "Put a text in the place of the number of parameters, as only a hand can write it."
    def change(folder):
        about(folder, parameters='HERE')
        (folder/'run.json').write_text((folder/'run.json').read_text().replace('"HERE"', text))
    return change

FORGED = [
    ('NaN', sealed_with('NaN'), 'NaN is no finite number'),
    ('Infinity', sealed_with('-Infinity'), '-Infinity is no finite number'),
    ('a number without end', sealed_with('1e999'), '1e999 is no finite number'),
    ('a number of many digits', sealed_with('9'*400), 'its parameters cannot be'),
    ('nested ever deeper', sealed_with('['*100_000), 'nested too deeply'),
    ('no seal', says(seal=...), "no field 'seal'"),
    ('an empty seal', says(seal=''), "its seal cannot be ''"),
    ('a seal that is null', says(seal=None), 'its seal cannot be None'),
    ('a seal that is a list', says(seal=['a']*1000), 'its seal cannot be ['),
    ('a seal that is a table', says(seal={'a': 1}), 'its seal cannot be {'),
    ('a huge seal', says(seal='a'*10**6), 'its seal cannot be'),
    ('another seal', says(seal='0'*64), 'it was changed after the run had sealed it'),
    ('hashes that are numbers', says(sealed=True, files={k: 7 for k in ('weights.safetensors', 'logits.safetensors', 'history.csv', 'split.npz')}), 'its files cannot be'),
    ('an announced file that is none of a run', says(sealed=True, changing={'../x': []}), 'its changing cannot be'),
    ('an announced hash that is a number', says(sealed=True, changing={'history.csv': 7}), 'its changing cannot be'),
    ('announced hashes that are numbers', says(sealed=True, changing={'history.csv': [7]}), 'its changing cannot be'),
    ('an accuracy of seven', says(sealed=True, test_accuracy=7.), 'its test_accuracy cannot be 7.0'),
    ('an accuracy in words', says(sealed=True, test_accuracy='0.9'), "its test_accuracy cannot be '0.9'"),
    ('an accuracy below nothing', says(sealed=True, valid_accuracy=-.5), 'its valid_accuracy cannot be -0.5'),
    ('an interval of words', says(sealed=True, test_accuracy_ci95=['a', 'b']), 'its test_accuracy_ci95 cannot be'),
    ('an interval of one end', says(sealed=True, valid_accuracy_ci95=[.1]), 'its valid_accuracy_ci95 cannot be'),
    ('an interval the wrong way', says(sealed=True, valid_accuracy_ci95=[.9, .1]), 'its valid_accuracy_ci95 cannot be'),
    ('a loss below nothing', says(sealed=True, test_loss=-1.), 'its test_loss cannot be -1.0'),
    ('mistakes below nothing', says(sealed=True, misclassified=-1), 'its misclassified cannot be -1'),
    ('seven reads', says(sealed=True, test_reads=7), 'its test_reads cannot be 7'),
    ('a seed in words', says(sealed=True, seed='0'), "its seed cannot be '0'"),
    ('a seed of true', says(sealed=True, seed=True), 'its seed cannot be True'),
    ('another seed than the recipe', says(sealed=True, seed=5), 'seed 5'),
    ('seconds of many digits', says(sealed=True, train_seconds=10**400), 'its train_seconds cannot be'),
    ('seconds below nothing', says(sealed=True, train_seconds=-1.), 'its train_seconds cannot be -1.0'),
    ('an epoch that was not', says(sealed=True, epoch=9), 'weights of epoch 9'),
    ('epoch 0', says(sealed=True, epoch=0), 'its epoch cannot be 0'),
    ('no parameters', says(sealed=True, parameters=0), 'its parameters cannot be 0'),
    ('edits that are none', says(sealed=True, edits=[7]), 'its edits cannot be [7]'),
    ('resumed in words', says(sealed=True, resumed_at=['x']), "its resumed_at cannot be ['x']"),
    ('three classes', says(sealed=True, classes=['a', 'b', 'c']), '3 classes'),
]

@pytest.mark.trust('hard knocks', 'a run.json that can be none')
@rows(*FORGED)
def test_run_json(what, said, folder):
    what(folder)
    refused(said, load_run, folder)
    before = (folder/'run.json').read_bytes()
    refused('', run_in, folder)
    assert (folder/'run.json').read_bytes() == before

def test_run_json_control(folder):
    about(folder, sealed=True, changing={'logits.safetensors': ['0'*64]}, hardware='another one')
    assert load_run(folder).metrics['hardware'] == 'another one'
    assert run_in(folder).metrics.get('changing') is None                  # what was announced is brought to its end

@pytest.mark.trust('hard knocks', 'NaN is never written as JSON')
@pytest.mark.parametrize('write', [lambda p: write_json(p, dict(a=NAN)), lambda p: seal(dict(a=NAN)), lambda p: write_json(p, [float('inf')])])
def test_nan_is_not_written(write, tmp_path):
    refused('not JSON compliant', write, tmp_path/'x.json')
    assert not (tmp_path/'x.json').exists()


# 3. history.csv and report.json

HEAD = 'epoch,lr,train_loss,train_accuracy,valid_loss,valid_accuracy,seconds\n'

@pytest.mark.trust('hard knocks', 'a history.csv that can be none')
@rows(
    ('empty', b'', 'run.json'),
    ('no rows', HEAD.encode(), 'run.json'),
    ('a loss of NaN', (HEAD + '1,.1,nan,.5,1,.5,1\n').encode(), 'its row 1 cannot be'),
    ('a rate without end', (HEAD + '1,inf,1,.5,1,.5,1\n').encode(), 'its row 1 cannot be'),
    ('an accuracy of 2', (HEAD + '1,.1,1,.5,1,2,1\n').encode(), 'its row 1 cannot be'),
    ('a loss below nothing', (HEAD + '1,.1,-1,.5,1,.5,1\n').encode(), 'its row 1 cannot be'),
    ('epoch 2 first', (HEAD + '2,.1,1,.5,1,.5,1\n').encode(), 'its row 1 cannot be'),
    ('an epoch twice', (HEAD + '1,.1,1,.5,1,.5,1\n'*2).encode(), 'its row 2 cannot be'),
    ('words', (HEAD + '1,a,b,c,d,e,f\n').encode(), 'it should have the columns'),
    ('too few columns', (HEAD + '1,.1\n').encode(), 'it should have the columns'),
    ('no UTF-8', b'\xff\xfe', 'it should have the columns'),
    ('a null', (HEAD + '1,.1,1,.5,1,.5,\0\n').encode(), 'it should have the columns'),
    ('a field of a megabyte', (HEAD + '1,.1,1,.5,1,.5,' + '1'*10**6 + '\n').encode(), 'it should have the columns'),
)
def test_history(what, said, folder):
    sealed_file('history.csv', what)(folder)
    refused('history.csv', load_run, folder)
    refused(said, load_run, folder)

@pytest.fixture
def shown(folder):
    for name in job_module.SHOWN:
        if not (folder/name).exists(): (folder/name).write_text('x')
    return folder

@pytest.mark.trust('hard knocks', 'a report.json that can be none is not published')
@rows(
    ('no JSON', b'{', 'is damaged'),
    ('a list', b'[]', 'it holds no fields'),
    ('NaN', b'{"part": "test", "accuracy": NaN}', 'NaN is no finite number'),
    ('no fields', b'{}', "no field 'part'"),
    ('no UTF-8', b'\xff', 'is damaged'),
    ('of another run', dict(accuracy=.99), 'not about the results'),
    ('of the held-out images', dict(part='held_out'), 'not about the results'),
    ('an accuracy in words', dict(accuracy='1'), "its accuracy cannot be '1'"),
    ('classes that are none', dict(classes=7), 'its classes cannot be 7'),
)
def test_report(what, said, shown, tmp_path):
    held = what if isinstance(what, bytes) else json.dumps({**read_json(shown/'report.json'), **what}).encode()
    (shown/'report.json').write_bytes(held)
    refused(said, publish, load_run(shown), tmp_path/'published')
    assert not (tmp_path/'published').exists()

@pytest.mark.trust('hard knocks', 'a report.json that can be none is not published')
@pytest.mark.parametrize('name', ['report.json', 'curves.png', 'summary.txt'])
def test_a_file_that_is_not_there_is_not_published(name, shown, tmp_path):
    run = load_run(shown)
    publish(run, tmp_path/'published')
    (shown/name).unlink()
    refused(f'has no {name}', publish, run, tmp_path/'published')
    assert read_json(tmp_path/'published'/'run.json') == read_json(shown/'run.json')          # what was there is still whole

@pytest.mark.trust('hard knocks', 'a report.json that can be none is not published')
def test_a_run_that_has_changed_is_not_published(shown, tmp_path):
    run = load_run(shown)
    about(shown, sealed=True, hardware='another one')
    refused('has changed since this run was loaded', publish, run, tmp_path/'published')


# 4. sweep.json

@pytest.fixture(scope='module')
def swept(tmp_path_factory):
    out = tmp_path_factory.mktemp('swept')
    with pytest.MonkeyPatch.context() as m:
        m.setattr(scale, 'load_data', lambda *args: DATA)
        sweep({'a': RUN}, [0], out, ['cpu'])
    return out

def row(**changes): return lambda found: found['runs'][0].update(changes)
def lacks(*names): return lambda found: [found['runs'][0].pop(name) for name in names]
def put(**changes): return lambda found: found.update(changes)

@pytest.mark.trust('hard knocks', 'a sweep.json that can be none')
@rows(
    ('no rows', put(runs=None), 'its runs cannot be None'),
    ('rows that are a table', put(runs={}), 'its runs cannot be {}'),
    ('a row that is a number', put(runs=[1]), 'row 1: it holds no fields'),
    ('a row that is null', put(runs=[None]), 'row 1: it holds no fields'),
    ('a row that is a list', put(runs=[[]]), 'row 1: it holds no fields'),
    ('a row of no fields', put(runs=[{}]), 'row 1: it has no field'),
    ('a row twice', lambda found: found['runs'].append(found['runs'][0]), 'two rows are of the same run'),
    ('a seed in words', row(seed='0'), "row 1: its seed cannot be '0'"),
    ('a seed of true', row(seed=True), 'row 1: its seed cannot be True'),
    ('a seed of a fraction', row(seed=0.), 'row 1: its seed cannot be 0.0'),
    ('a seed below nothing', row(seed=-1), 'row 1: its seed cannot be -1'),
    ('a seed that is not that of the recipe', row(seed=3), 'row 1: its seed is not that of its recipe'),
    ('a name that is a list', row(name=['a']), "row 1: its name cannot be ['a']"),
    ('an accuracy of NaN', row(valid_accuracy=NAN), 'NaN is no finite number'),
    ('an accuracy of 7', row(valid_accuracy=7.), 'row 1: its valid_accuracy cannot be 7.0'),
    ('an accuracy in words', row(valid_accuracy='good'), "row 1: its valid_accuracy cannot be 'good'"),
    ('no accuracy', row(valid_accuracy=None), 'row 1: its valid_accuracy cannot be None'),
    ('a test accuracy of NaN', row(test_reads=1, test_accuracy=NAN, test_loss=1.), 'NaN is no finite number'),
    ('tested, without a result', row(test_reads=1), 'row 1: its test_accuracy cannot be None'),
    ('views in words', row(test_accuracy_tta='x'), "row 1: its test_accuracy_tta cannot be 'x'"),
    ('seconds in words', row(train_seconds='long'), "row 1: its train_seconds cannot be 'long'"),
    ('a recipe in words', row(recipe='strict'), "row 1: its recipe cannot be 'strict'"),
    ('a recipe of an unknown field', row(recipe=dict(speed=1)), "row 1: a recipe has no field 'speed'"),
    ('a precision that there is not', row(precision='double'), "row 1: its precision cannot be 'double'"),
    *((f'without {name}', lacks(name), f"row 1: it has no field '{name}'") for name in scale.ROW),
)
def test_sweep_json(what, said, swept, tmp_path, monkeypatch):
    out = shutil.copytree(swept, tmp_path/'sweep')
    found = json.loads((out/'sweep.json').read_text())
    what(found)
    (out/'sweep.json').write_text(json.dumps(found))
    before = (out/'sweep.json').read_bytes()
    monkeypatch.setattr(scale, 'job', lambda *args, **kw: pytest.fail('something was trained'))
    refused('sweep.json is damaged', sweep, {'a': RUN}, [0], out, ['cpu'])
    refused(said, sweep, {'a': RUN}, [0], out, ['cpu'])
    assert (out/'sweep.json').read_bytes() == before

@pytest.mark.trust('hard knocks', 'a sweep.json that can be none')
@pytest.mark.parametrize('what', [b'', b'[1]', b'nul', b'\xff', b'['*100_000, b'{"runs": 1e999}'])
def test_sweep_json_that_is_none(what, tmp_path):
    (tmp_path/'sweep.json').write_bytes(what)
    refused('sweep.json is damaged', sweep, {'a': RUN}, [0], tmp_path, ['cpu'])

@pytest.mark.trust('hard knocks', 'a row that its run contradicts is read anew from the run')
@pytest.mark.parametrize('field, value', [('valid_accuracy', .999), ('valid_loss', 0.), ('hardware', 'better'), ('precision', 'bfloat16')])
def test_rows_say_what_their_runs_say(field, value, swept, tmp_path, monkeypatch):
    out = shutil.copytree(swept, tmp_path/'sweep')
    found = read_json(out/'sweep.json')
    known = found['runs'][0][field]
    found['runs'][0][field] = value
    write_json(out/'sweep.json', found)
    monkeypatch.setattr(scale, 'load_data', lambda *args: DATA)
    assert sweep({'a': RUN}, [0], out, ['cpu'])['runs'][0][field] == known != value
    shutil.rmtree(out/'a-0'); write_json(out/'sweep.json', found)                   # gone with its folder: the row is all there is
    assert sweep({'a': RUN}, [0], out, ['cpu'])['runs'][0][field] == value

@pytest.mark.parametrize('seeds', [['0'], [True], [0.], [None]])
def test_seeds_that_are_no_whole_numbers(seeds, tmp_path):
    refused('seed must be a whole number', sweep, {'a': RUN}, seeds, tmp_path/'sweep', ['cpu'])
    assert not (tmp_path/'sweep').exists()
