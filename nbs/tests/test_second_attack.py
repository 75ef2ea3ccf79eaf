"A second attack on what withstood the first: run folders, sweeps, fetching and commands, by other means."
import ast, os, sys
from collections import Counter
from pathlib import Path

import pytest

from cifar_resnet.cli import main

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
