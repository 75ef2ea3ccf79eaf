"What somebody meets who has never been here: the help of each command, the front page, and tables that can be read."
import re, shlex
from dataclasses import asdict
from pathlib import Path

import pytest

from cifar_resnet import cli
from cifar_resnet.plots import RARE, reliability, table
from cifar_resnet.recipe import Recipe
from cifar_resnet.runs import read_json

def hard(kind): return pytest.mark.trust('commands and figures', kind)

ROOT = Path(__file__).parent.parent.parent
README = (ROOT/'README.md').read_text(encoding='utf-8')
COMMANDS = dict(
    cifar_resnet=cli.main,
    cifar_sweep=cli.sweep_main,
    cifar_explain=cli.explain_main,
    cifar_bench=cli.bench_main,
    cifar_app=cli.app_main)

@pytest.fixture
def helps(monkeypatch, capsys):
    "What a command's --help says in a terminal of 80 columns."
    monkeypatch.setenv('COLUMNS', '80')
    def of(command):
        with pytest.raises(SystemExit): COMMANDS[command](['--help'])
        return capsys.readouterr().out
    return of

@pytest.fixture
def parses(monkeypatch, capsys):
    "Whether a command line would be carried out: it is read, and nothing is run."
    monkeypatch.setattr(cli, '_run', lambda name, action, *again: 'read')
    def line(words):
        command, *argv = shlex.split(words, comments=True)
        try: return COMMANDS[command](argv) == 'read'
        except SystemExit: return False
    return line


# the help

@hard('help')
@pytest.mark.parametrize('command', COMMANDS)
def test_help_fits_and_ends_with_examples_that_work(command, helps, parses):
    said = helps(command)
    assert max(map(len, said.splitlines())) <= 80
    assert said.startswith(f'usage: {command} ') and len(said.split('\n\n')[0].splitlines()) <= 4
    examples = re.findall(rf'^  ({command} .*?)(?:  .*)?$', said.partition('such as:')[2], re.M)
    assert examples and all(map(parses, examples))
    assert not parses(f'{command} --no_such_flag')

@hard('help')
@pytest.mark.parametrize('field', [f for f in cli._typed_fields() if f.name != 'batch_size'], ids=lambda f: f.name)
def test_help_tells_what_a_flag_is_if_it_is_not_typed(field, helps):
    told = re.search(rf'^  --{field.name} (.*?)(?=^  --|^\S)', helps('cifar_resnet'), re.M | re.S)[1]
    usual = asdict(Recipe().filled())[field.name]
    value = ','.join(map(str, usual)) if isinstance(usual, tuple) else str(usual)
    assert (f'(default: {value})' in ' '.join(told.split())) == (usual is not None)

@hard('help')
def test_a_sweep_lists_seeds_and_not_the_seed_that_it_refuses(helps, tmp_path, capsys):
    said = helps('cifar_sweep')
    assert '  --seeds TEXT' in said and '--seed INT' not in said
    assert cli.sweep_main(['-', '--seed', '3', '--out', str(tmp_path/'x')]) == 2
    assert 'a sweep has --seeds, not --seed' in capsys.readouterr().err


# the front page

BLOCKS = re.findall(r'^```(\w+)\n(.*?)^```', README, re.M | re.S)
TYPED = [line for kind, block in BLOCKS if kind == 'sh' for line in block.splitlines()]

@hard('front page')
def test_no_line_of_code_is_cut_off_on_the_page(cases):
    lines = [line for _, block in BLOCKS for line in block.splitlines()]
    cases(len(lines))
    assert len(lines) > 20 and [line for line in lines if len(line) > 95] == []

@hard('front page')
@pytest.mark.parametrize('line', [line for line in TYPED if line.startswith('cifar_')])
def test_each_command_on_the_page_can_be_typed(line, parses): assert parses(line.replace(' ... ', ' '))

@hard('front page')
def test_what_a_run_says_at_its_end_is_what_the_published_one_said():
    about = read_json(ROOT/'nbs'/'results'/'shapes10-strict'/'run.json')
    said = README.partition('## Two commands')[2].partition('## What is trained')[0]
    assert f'test accuracy {about["test_accuracy"]:.2%}' in said
    assert f'runs/shapes10-strict-{about["recipe_hash"]}-0' in said

@hard('front page')
def test_no_column_of_a_table_is_empty():
    tables = re.findall(r'(?:^\|.*\n){3,}', README, re.M)
    for rows in tables:
        cells = [[c.strip() for c in row.strip('|\n').split('|')] for row in rows.splitlines()]
        columns = zip(*(row for i, row in enumerate(cells) if i != 1 and len(row) == len(cells[0])))
        assert all(set(column[1:]) != {'–'} for column in columns), rows
    assert len(tables) > 3


# words and numbers

@hard('advice that works')
def test_nobody_is_sent_to_a_package_index_for_what_lies_in_a_clone(cases):
    "The package is installed from its folder; under its name there may be anything on an index."
    texts = [(p, p.read_text(encoding='utf-8')) for where in ('cifar_resnet', 'nbs/tests') for p in (ROOT/where).glob('*.py')]
    cases(len(texts))
    assert [p.name for p, text in [(ROOT/'README.md', README), *texts] if re.search(r'pip install [^-\n]{0,2}cifar_resnet(?!\S* @ git)', text)] == []

@hard('figures')
def test_a_reliability_diagram_says_how_it_is_read():
    bins = [[0, 0, 0], [400, .3, .4], [3, .8, 1.]]
    fig = reliability((.1, bins), (.02, bins))
    said = fig.get_suptitle().replace('\n', ' ')
    for word in ('grey line', 'ECE: the mean distance', 'temperature', f'fewer than {RARE} images'): assert word in said
    fig.canvas.draw()
    left, right = (getattr(fig._suptitle.get_window_extent(), side)/fig.dpi for side in ('x0', 'x1'))
    assert 0 <= left and right <= fig.get_size_inches()[0]

@hard('plain English')
def test_whoever_is_written_where_it_is_meant(cases):
    "'For who started it' is no English."
    odd = re.compile(r'(?i)\b(?:for|to|by|than) who (?!(?:is|are) (?:it|this)\b)\w.{20}')
    cells = [(p.name, ''.join(c['source'])) for p in sorted((ROOT/'nbs').glob('*.ipynb')) for c in read_json(p)['cells']]
    cases(len(cells))
    assert [(name, found[0]) for name, text in [('README.md', README), *cells] for found in odd.finditer(text)] == []

@hard('plain English')
@pytest.mark.parametrize(('name', 'ends', 'shown'), [
    ('test_accuracy_ci95', [.985534284784823, .9989023694773171], '98.55% to 99.89%'),
    ('valid_accuracy_ci95', (.5, 1.), '50.00% to 100.00%'),
    ('ci95', [.06747789391875449, .1391887727479122], '0.06748 to 0.1392'),
    ('strides', (1, 2, 2, 2), '(1, 2, 2, 2)'),
    ('test_accuracy_ci95', None, 'None'),
])
def test_an_interval_in_a_table_has_the_digits_that_count(name, ends, shown):
    assert table([{name: ends}]).data.splitlines()[-1] == f'| {shown} |'
