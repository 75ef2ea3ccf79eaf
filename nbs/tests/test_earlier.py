"""Files outlive code: what an earlier version wrote is read, and means what it meant then, whatever is usual today.

The runs in `earlier/` were written by the versions that their names tell: width 1, 40 drawn pictures, three epochs of two batches, one thread.
"""
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from cifar_resnet.data import shapes10
from cifar_resnet.fetch import file_hash
from cifar_resnet.job import job
from cifar_resnet.runs import SCHEMA, check_about, read_json, seal, up_to_date, write_json
from cifar_resnet.scale import sweep
from cifar_resnet.train import Recipe, Training, load_run, read_about

EARLIER = Path(__file__).parent/'earlier'
ASKED = dict(dataset='shapes10', width=1, epochs=3, limit=40, batch_size=20)
THEN = dict(filters='free', schedule='plateau')
DATA = shapes10()[0]


@pytest.fixture
def earlier(tmp_path):
    "A copy of an earlier run, by its name."
    return lambda name: Path(shutil.copytree(EARLIER/name, tmp_path/name))


def test_a_finished_run(earlier):
    run = load_run(earlier('schema2-finished'))
    assert (run.recipe.filters, run.recipe.schedule) == ('free', 'plateau')
    assert (run.metrics['precision'], run.metrics['test_accuracy']) == ('float32', read_json(EARLIER/'schema2-finished'/'run.json')['test_accuracy'])
    assert run.recipe.hash() == run.metrics['recipe_hash']             # the name of its folder is still the same


def test_a_finished_run_of_schema_3(earlier):
    written = read_json(EARLIER/'schema3-finished'/'run.json')
    run = load_run(earlier('schema3-finished'))
    assert run.metrics['backend'] == written['engine'] == 'eager' and 'engine' not in run.metrics
    for field in ('precision', 'test_accuracy', 'seal'): assert run.metrics[field] == written[field]
    assert run.metrics['schema'] == SCHEMA and run.recipe.hash() == written['recipe_hash']
    assert len(run.history) == 3 and run.metrics['parameters'] == sum(p.numel() for p in run.model.parameters())


def test_a_finished_run_is_found_by_its_command_and_not_taken_for_todays_recipe(earlier):
    folder = earlier('schema2-finished')
    before = (folder/'run.json').read_bytes()
    assert job(dict(ASKED, **THEN), folder, device='cpu', draw=False).metrics['epoch'] == 3
    with pytest.raises(ValueError, match='filters free, not zero_mean: add --filters free if that is the one you mean'): job(ASKED, folder, device='cpu', draw=False)
    assert (folder/'run.json').read_bytes() == before                  # sealed by the version that trained it


@pytest.mark.parametrize('field, value', [('test_accuracy', .5), ('backend', 'graph'), ('engine', 'graph')])
def test_a_changed_digit_is_seen(field, value, earlier):
    for name in ('schema2-finished', 'schema3-finished'):
        folder = earlier(name)
        write_json(folder/'run.json', {**read_json(folder/'run.json'), field: value})
        with pytest.raises(ValueError, match='changed after the run had sealed it'): load_run(folder)


def test_a_changed_file_is_seen(earlier):
    folder = earlier('schema3-finished')
    history = (folder/'history.csv').read_text()
    (folder/'history.csv').write_text(history[:-2] + ('1' if history[-2] != '1' else '2') + '\n')
    with pytest.raises(ValueError, match='history.csv is not the file that the run wrote'): load_run(folder)


@pytest.mark.parametrize('name, field', [
    ('schema2-finished', 'amp'), ('schema2-finished', 'engine'), ('schema3-finished', 'precision'), ('schema3-finished', 'engine')])
def test_each_schema_has_its_own_fields(name, field):
    about = read_json(EARLIER/name/'run.json')
    check_about(about)
    del about[field]
    with pytest.raises(ValueError, match=f"it has no field '{field}'"): check_about(about)


@pytest.mark.parametrize('schema', [0, 1, SCHEMA + 1, None, '3', [3]])
def test_other_schemas_are_refused(schema):
    about = read_json(EARLIER/'schema3-finished'/'run.json')
    with pytest.raises(ValueError, match='it was written by another version of this package'): check_about({**about, 'schema': schema})


@pytest.mark.parametrize('earlier_record, today', [
    (dict(schema=2, amp='None', engine='rows'), dict(precision='float32', backend='rows')),
    (dict(schema=2, amp='torch.bfloat16', engine='eager'), dict(precision='bfloat16', backend='eager')),
    (dict(schema=2, amp='torch.float16', engine='graph'), dict(precision='float16', backend='graph')),
    (dict(schema=2, scaler={}), dict(scaler={}, precision=None)),                              # checkpoints
    (dict(schema=2, scaler=dict(scale=1.)), dict(scaler=dict(scale=1.), precision='float16')),
    (dict(schema=3, precision='float16', engine='compile'), dict(precision='float16', backend='compile')),
    (dict(schema=3, precision='bfloat16', scaler={}), dict(precision='bfloat16', scaler={})),
    (dict(schema=SCHEMA, precision='float32', backend='eager'), dict(precision='float32', backend='eager'))])
def test_up_to_date(earlier_record, today):
    before = dict(earlier_record)
    assert up_to_date(earlier_record) == dict(today, schema=SCHEMA)
    assert earlier_record == before                                     # in memory, on a copy


def test_an_unfinished_run_goes_on_as_what_it_was(earlier):
    folder = earlier('schema2-unfinished')
    was = read_about(folder)['recipe']
    assert {k: was[k] for k in THEN} == THEN and was['warmup'] == 2                  # today's best has zero-mean filters, a line, one epoch
    run = job(dict(ASKED, recipe='best'), folder, device='cpu', resume=True, progress=False, draw=False)
    assert asdict(run.recipe) == was and run.metrics['precision'] == 'float32' and run.metrics['schema'] == SCHEMA
    fresh = Training(Recipe(**was), DATA, device='cpu')
    for row, other in zip(fresh, run.history, strict=True): assert row['train_loss'] == pytest.approx(other['train_loss'], abs=1e-4) and row['lr'] == other['lr']


def test_an_unfinished_run_of_schema_3_goes_on(earlier):
    folder = earlier('schema3-unfinished')
    with pytest.raises(FileNotFoundError, match='holds no finished run'): load_run(folder)
    was = read_about(folder)
    t = Training.resume(folder, DATA, device='cpu')
    assert (t.epoch, t.at) == (1, 1) and t.precision == 'float32'
    run = job(dict(ASKED, recipe='best'), folder, device='cpu', resume=True, progress=False, draw=False)
    assert run.metrics['finished'] and run.metrics['schema'] == SCHEMA and len(run.history) == 3
    assert asdict(run.recipe) == was['recipe'] and run.metrics['backend'] == was['backend'] == 'eager' and 'engine' not in run.metrics
    check_about(read_json(folder/'run.json'))
    for row, other in zip(Training(Recipe(**was['recipe']), DATA, device='cpu'), run.history, strict=True):
        assert row['lr'] == other['lr'] and row['train_loss'] == pytest.approx(other['train_loss'], abs=1e-4)


def test_a_changed_checkpoint_is_not_gone_on_from(earlier):
    path = earlier('schema3-unfinished')/'checkpoints'/'000000003.pt'
    data = bytearray(path.read_bytes()); data[len(data)//2] ^= 1
    path.write_bytes(data)
    with pytest.raises(FileNotFoundError, match='its bytes do not have the SHA-256'): Training.resume(path.parent.parent, DATA, device='cpu')


def test_the_other_precision_is_refused(earlier):
    folder = earlier('schema2-unfinished')
    with pytest.raises(ValueError, match='it began in float32, not bf16: leave precision out'): Training.resume(folder, DATA, 'cpu', precision='bf16')
    assert Training.resume(folder, DATA, 'cpu', precision='fp32').recipe.filters == 'free'


def test_the_test_set_of_an_earlier_run_opened_today(earlier):
    folder = earlier('schema2-finished')
    about = read_json(folder/'run.json')
    about.update(test_reads=0, test_accuracy=None, test_accuracy_ci95=None, test_loss=None, misclassified=None)
    logits = load_file(folder/'logits.safetensors')
    save_file({k: v for k, v in logits.items() if k.startswith('held_out')}, folder/'logits.safetensors')
    about['files']['logits.safetensors'] = file_hash(folder/'logits.safetensors')
    write_json(folder/'run.json', {**about, 'seal': seal(about)})
    run = job(dict(ASKED, **THEN), folder, device='cpu', draw=False)
    assert run.metrics['test_accuracy'] == read_json(EARLIER/'schema2-finished'/'run.json')['test_accuracy']
    assert run.metrics['schema'] == SCHEMA and run.metrics['precision'] == 'float32' and 'amp' not in run.metrics


def test_a_sweep_does_not_take_an_earlier_run_for_todays_recipe(earlier, tmp_path):
    earlier('schema2-unfinished').rename(tmp_path/'best-0')
    found = sweep({'best': dict(ASKED, recipe='best')}, [0], tmp_path, ['cpu'])
    assert not found['runs'] and 'holds a run with filters free, not zero_mean' in found['failed'][0]['error']


def test_names_of_folders_stay():
    assert Recipe().filled().hash() == 'f5be4e35'                     # as the version before there were filters and schedules named it


def test_rows_of_an_earlier_sweep(tmp_path):
    found = sweep({'a': dict(ASKED, **THEN)}, [0], tmp_path, ['cpu'])
    row = found['runs'][0]
    for field in THEN: del row['recipe'][field]
    write_json(tmp_path/'sweep.json', {**found, 'runs': [row]})
    assert sweep({'a': dict(ASKED, **THEN)}, [0], tmp_path, ['cpu'])['runs'] == [row]
    with pytest.raises(ValueError, match='filters free, not zero_mean'): sweep({'a': ASKED}, [0], tmp_path, ['cpu'])
