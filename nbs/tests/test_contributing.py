"CONTRIBUTING.md to the letter: a norm, a method and a data set are added to a copy of the repository."
import json, os, re, shlex, shutil, subprocess, sys
from pathlib import Path

import numpy as np
import pytest

from cifar_resnet import cli
from cifar_resnet.data import shapes10

ROOT = Path(__file__).parent.parent.parent
GUIDE = (ROOT/'.github'/'CONTRIBUTING.md').read_text(encoding='utf-8')
SECTIONS = dict(part.split('\n', 1) for part in re.split(r'(?m)^## ', GUIDE)[1:])
ADDITIONS = [title for title in SECTIONS if title.startswith('Add ')]
SMALL = '--epochs 1 --limit 40 --width 8'                  # what is typed here beyond the guide

def hands(kind): return pytest.mark.trust('other hands', kind)
def commands(title): return '\n'.join(re.findall(r'```sh\n(.*?)\n```', SECTIONS[title], re.S)).splitlines()

def changes(title):
    "What a section changes: (notebook, lines before, lines after)."
    found = re.findall(r'In `(nbs/\S+\.ipynb)`[^\n]*:\n\n((?:```diff\n.*?```\n+)+)', SECTIONS[title], re.S)
    for notebook, blocks in found:
        for block in re.findall(r'```diff\n(.*?)```', blocks, re.S):
            lines = block.splitlines()
            yield notebook, *('\n'.join(line[1:] for line in lines if line[0] in kept) for kept in (' -', ' +'))

def change(path, before, after):
    "Put the lines `after` in the place of `before`, which must stand in the notebook exactly once."
    notebook = json.loads(path.read_text(encoding='utf-8'))
    sources = [''.join(cell['source']) for cell in notebook['cells']]
    times = sum(f'\n{source}\n'.count(f'\n{before}\n') for source in sources)
    assert times == 1, f'{times} times in {path.name}:\n{before}'
    for cell, source in zip(notebook['cells'], sources): cell['source'] = source.replace(before, after)
    path.write_text(json.dumps(notebook), encoding='utf-8')


@pytest.fixture(scope='module')
def copy(tmp_path_factory):
    "The repository with all additions, exported; and what to run there."
    top = tmp_path_factory.mktemp('contributing')/'cifar_resnet'
    left_out = shutil.ignore_patterns('.git', 'runs', '_*docs', '_proc', 'build', 'dist', '.venv', '*.egg-*', '__py*')
    shutil.copytree(ROOT, top, ignore=left_out)
    for title in ADDITIONS:
        for notebook, before, after in changes(title): change(top/notebook, before, after)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ['PATH']])
    def run(command):
        return subprocess.run(command, shell=True, cwd=top, capture_output=True, text=True, timeout=300,
                              env={**os.environ, 'PYTHONPATH': str(top), 'PATH': path})
    done = run('nbdev_export')
    assert done.returncode == 0, done.stderr
    run.top = top
    return run

@pytest.fixture
def digits(copy):
    "The data set that the guide adds, drawn by us."
    for part, data in zip(('train', 'test'), shapes10(n_train=60, n_test=20)):
        np.savez(copy.top/f'digits-{part}.npz', images=data.images, labels=data.labels)
    return copy.top


def test_it_has_what_people_come_for():
    assert set(ADDITIONS) == {'Add a norm', 'Add an attribution method', 'Add a data set'}

@hands('what CONTRIBUTING says, done')
@pytest.mark.parametrize('title', ADDITIONS)
def test_an_addition_can_be_used(copy, digits, title):
    *_, last = commands(title)
    command = last.replace('FOLDER', str(digits))
    done = copy(f'{command} {SMALL}' if last.startswith('cifar_resnet ') else command)
    assert done.returncode == 0 and 'Traceback' not in done.stderr, done.stderr
    assert 'test accuracy' in done.stdout or 'torch.Size([2, 4, 4])' in done.stdout

@hands('what CONTRIBUTING says, done')
@pytest.mark.parametrize('title', ADDITIONS)
def test_without_its_lines_there_is_none(title, capsys):
    "The same command fails here: it sees the addition, and not something else."
    *_, last = commands(title)
    command, *words = shlex.split(last)
    if command == 'cifar_resnet':
        assert cli.main(words) == 2 and 'there is no ' in capsys.readouterr().err
    else:
        with pytest.raises(ValueError, match='there is no method'): exec(words[-1], {})

@hands('what CONTRIBUTING says, done')
@pytest.mark.parametrize('what', [
    'nbdev_test --path nbs/05_model.ipynb',
    'nbdev_test --path nbs/08_recipe.ipynb',
    'python -m pytest -q nbs/tests/test_recipe.py nbs/tests/test_data.py -k "names or entry or such or wrong"'])
def test_what_the_guide_tells_to_run_afterwards_passes(copy, what):
    "All but what takes long: the notebooks 03 and 10, and the rest of the tests."
    done = copy(what)
    assert done.returncode == 0, done.stdout + done.stderr

@hands('what CONTRIBUTING says, done')
@pytest.mark.parametrize('title', SECTIONS)
def test_the_files_that_it_names_are_there(title):
    named = re.findall(r'nbs/\S+?\.(?:ipynb|py)\b', SECTIONS[title])
    linked = [(ROOT/'.github'/link).resolve() for link in re.findall(r'\]\(((?!https?:)[^)]+)\)', SECTIONS[title])]
    assert all((ROOT/path).exists() for path in named) and all(path.exists() for path in linked)
