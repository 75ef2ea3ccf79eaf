"The front page says what is true: its first screen, the runs in its table, and the modules that its Python names."
import ast, re
from importlib import import_module
from pathlib import Path

import pytest

from cifar_resnet.runs import check_about, read_json

ROOT = Path(__file__).parent.parent.parent
README = (ROOT/'README.md').read_text(encoding='utf-8')
PUBLISHED = sorted((ROOT/'nbs'/'results').glob('cifar10-*/run.json'))


def test_the_first_screen():
    first = README[:README.index('cifar_resnet --dataset shapes10')]
    badge, picture = (re.search(pattern, first) for pattern in (r'\]\((https://colab\S+)\)', r'!\[\w[^]]+\]\(nbs/images/\w+\.png\)'))
    assert badge[1].endswith('14_explore.ipynb')                        # which needs no GPU
    assert first.index('badge.svg') > first.index('colab-badge.svg')    # it is the first
    assert picture and len(first) - len(first[first.index('[!['):picture.start()]) < 1500 and first.count('\n') < 30


@pytest.mark.parametrize('word', ['nbdev', 'LayerNorm only', '5 GB', 'pytorch.org/get-started', 'Grad-CAM'])
def test_words_are_explained_where_they_stand(word):
    sentence = re.search(rf'[^.\n]*{re.escape(word)}[^\n]{{20,}}', README.split('<!-- badges -->')[1].split('## What is trained')[0])
    assert sentence, f'{word} is not said, or nothing comes after it'


@pytest.mark.parametrize('path', PUBLISHED, ids=lambda path: path.parent.name)
def test_a_published_run_is_todays_or_marked(path):
    row = next(line for line in README.splitlines() if line.startswith('|') and f'{path.parent.name}/run.json' in line)
    try: check_about(read_json(path))
    except ValueError: assert '†' in row
    else: assert '†' not in row


def test_a_mark_is_explained(): assert ('†' in README) == ('(† ' in README)


def test_its_python_names_what_there_is():
    code = re.search(r'## From Python\n+```python\n(.*?)```', README, re.S)[1]
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom):
            for name in node.names: assert hasattr(import_module(node.module), name.name)


def test_its_links_lead_somewhere():
    inside = [link for link in re.findall(r'\]\(([^)#\s]+)', README) if '://' not in link]
    assert len(inside) > 30 and [link for link in inside if not (ROOT/link).exists()] == []
