"A second attack on what withstood the first: run folders, sweeps, fetching and commands, by other means."
import ast, json, os, sys
from collections import Counter
from pathlib import Path

import pytest

from cifar_resnet.cli import explain_main, main, sweep_main

def hard(kind): return pytest.mark.trust('hard knocks', kind)

ROOT = Path(__file__).parents[2]


# a name that is defined twice: the later definition silently takes the place of the earlier one

def twice(body):
    "The functions, classes and plain names that a body of statements defines more than once; of its classes too."
    names = Counter()
    for node in body:
        if isinstance(node, ast.Assign): names.update(t.id for t in node.targets if isinstance(t, ast.Name))
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names[node.name] += not any(ast.unparse(d).endswith('.setter') for d in node.decorator_list)
        if isinstance(node, ast.ClassDef): yield from twice(node.body)
    yield from (name for name, n in names.items() if n > 1)

@hard('two definitions of one name')
@pytest.mark.parametrize('path', [*(ROOT/'cifar_resnet').glob('*.py'), *Path(__file__).parent.glob('*.py')], ids=lambda p: p.stem)
def test_no_name_is_defined_twice(path): assert not [*twice(ast.parse(path.read_text()).body)]


# whoever was to read is gone, or never was

TINY = '--dataset shapes10 --width 2 --epochs 2 --limit 60 --device cpu --no_test'.split()

def full(): return open('/dev/full', 'w')

def unread():
    "A pipe whose reader has ended."
    reader, writer = os.pipe(); os.close(reader)
    return os.fdopen(writer, 'w')

UNHEARD = dict(full=full, unread=unread, closed=lambda: None)

@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp('finished')/'run'
    assert main([*TINY, '--out', str(out)]) == 0
    return out

@hard('progress that nobody reads ends no training')
@pytest.mark.parametrize('make', UNHEARD.values(), ids=UNHEARD)
def test_progress_unheard(make, tmp_path, monkeypatch, finished):
    with monkeypatch.context() as m:
        m.setattr(sys, 'stderr', stream := make())
        assert main([*TINY, '--out', str(tmp_path/'run')]) == 0
    if stream: stream.close()                            # as Python does at its end
    assert (tmp_path/'run'/'weights.safetensors').read_bytes() == (finished/'weights.safetensors').read_bytes()

@hard('results that nobody can read')
@pytest.mark.parametrize('make', [full, unread])
def test_results_unheard(make, finished, monkeypatch, capsys):
    with monkeypatch.context() as m:
        m.setattr(sys, 'stdout', stream := make())
        assert main([*TINY, '--out', str(finished)]) == 2
    stream.close()
    said = capsys.readouterr().err
    assert said.count('\n') == 1 and 'cannot be printed' in said and 'once more' in said

@hard('results that nobody can read')
def test_results_closed(finished, monkeypatch, capsys):
    with monkeypatch.context() as m:
        m.setattr(sys, 'stdout', None)
        assert main([*TINY, '--out', str(finished)]) == 0
    assert not capsys.readouterr().err


# a run is published into a folder that is another run's

def held(folder): return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}

@hard('a run is published into another run')
@pytest.mark.parametrize('left', ['weights.safetensors', 'logits.safetensors', 'split.npz', 'checkpoints'])
@pytest.mark.parametrize('named', [True, False], ids=['before', 'after'])
def test_published_into_another_run(left, named, finished, tmp_path, capsys, monkeypatch):
    other = tmp_path/'other'
    (other/left).mkdir(parents=True)
    (other/'run.json').write_text('precious')
    if named: argv = ['--out', str(tmp_path/'new')]
    else:
        monkeypatch.setattr('cifar_resnet.job.run_folder', lambda recipe: finished)       # known only when it is trained
        argv = []
    assert main([*TINY, *argv, '--publish', str(other)]) == 2
    said = capsys.readouterr().err
    assert f'another run (it holds {left}): choose another --publish' in said and said.count('\n') == 1
    assert (other/'run.json').read_text() == 'precious' and not (tmp_path/'new').exists()

@hard('a run is published into another run')
def test_published_into_itself(finished):
    before = held(finished)
    assert main([*TINY, '--out', str(finished), '--publish', str(finished)]) == 0 and held(finished) == before


# what cannot be a path, a seed or a table

@hard('a path with a zero byte')
@pytest.mark.parametrize('command, argv', [
    (main, [*TINY, '--out', 'a\0b']), (main, [*TINY, '--publish', 'a\0b']), (explain_main, ['a\0b', '--run', '.']),
    (sweep_main, ['a\0b']), (sweep_main, ['-', '--out', 'a\0b'])])
def test_zero_byte(command, argv, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command(argv) == 2
    said = capsys.readouterr().err
    assert r"a\x00b' holds a zero byte" in said and said.count('\n') == 1 and not any(tmp_path.iterdir())

@hard('seeds of thousands of digits')
def test_endless_seed(tmp_path, capsys):
    assert sweep_main(['-', '--seeds', '9'*5000, '--out', str(tmp_path/'out')]) == 2
    said = capsys.readouterr().err
    assert 'give whole numbers' in said and len(said) < 300

@hard('a table that names something twice')
@pytest.mark.parametrize('text, name', [('{"a": {}, "a": {"lr": 0.1}}', 'a'), ('{"a": {"lr": 0.2, "lr": 0.1}}', 'lr')])
def test_named_twice(text, name, tmp_path, capsys):
    (tmp_path/'table.json').write_text(text)
    assert sweep_main([str(tmp_path/'table.json'), '--out', str(tmp_path/'out')]) == 2
    assert f"it names '{name}' twice" in capsys.readouterr().err and not (tmp_path/'out').exists()
