"""Badges, Colab cells, the line at each notebook's end, and README.md: all from settings.ini and index.ipynb.

    python .ci/pages.py            # write them
    python .ci/pages.py --check    # change nothing; fail if anything would change
"""
import re
import sys
from configparser import ConfigParser
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parent.parent
config = ConfigParser(delimiters=['='])
config.read(ROOT/'settings.ini', encoding='utf-8')
CFG = config['DEFAULT']
COLAB = f"https://colab.research.google.com/github/{CFG['user']}/{CFG['repo']}/blob/{CFG['branch']}/nbs"
BADGE = '[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]'
BADGES = f"""<!-- badges -->
{BADGE}({COLAB}/14_explore.ipynb)
[![test]({CFG['git_url']}/actions/workflows/test.yml/badge.svg)]({CFG['git_url']}/actions/workflows/test.yml)
[![Python {CFG['min_python']}+](https://img.shields.io/badge/python-{CFG['min_python']}+-0072B2)]({CFG['git_url']}/blob/{CFG['branch']}/settings.ini)
[![Apache-2.0](https://img.shields.io/badge/licence-Apache--2.0-009E73)]({CFG['git_url']}/blob/{CFG['branch']}/LICENSE)
[documentation]({CFG['doc_host']}{CFG['doc_baseurl']})"""
PATH = {'03_data': 'data', '04_augment': 'augment', '05_model': 'model', '09_train': 'train', '10_gradcam': 'gradcam', '19_cifar10_40_epochs': 'the run'}
ENDING = '<!-- path -->'
SETUP = f"""#| hide
# In Colab: fetch the repository, install it, go to its notebooks. Elsewhere this cell does nothing.
if 'google.colab' in str(get_ipython()):
    !test -d /content/{CFG['repo']} || git clone -q --depth 1 -b {CFG['branch']} {CFG['git_url']} /content/{CFG['repo']}
    %pip install -q /content/{CFG['repo']} captum
    %cd -q /content/{CFG['repo']}/nbs"""


def short_path(path):
    "The line at a notebook's end: where it stands, and where to go on."
    steps = [f'**{stem[:2]} {name}**' if stem == path.stem else f'[{stem[:2]} {name}]({stem}.ipynb)' for stem, name in PATH.items()]
    stems = [*PATH, 'index']
    after = stems[stems.index(path.stem) + 1] if path.stem in PATH else ''
    here = 'The short path' if after else 'This is a side room. The short path'
    on = f' Next: [{PATH[after]}]({after}.ipynb).' if after in PATH else ' The map of all rooms is [the front page](index.ipynb).'
    return f"{ENDING}\n---\n{here} (an hour for prose and figures; skip what you do not need of the code): {' → '.join(steps)}.{on}"


def linked(path):
    "A notebook's JSON text, with its badge, Colab cell and last line as settings.ini has them, and without widgets."
    nb = nbformat.read(path, 4)
    nb.metadata.pop('widgets', None)
    if path.stem != 'index':
        nb.cells = [c for c in nb.cells if not c.source.startswith(ENDING)]
        nb.cells.append(nbformat.v4.new_markdown_cell(short_path(path), id=f'{path.stem.partition("_")[0]}-path'))
    for cell in nb.cells:
        if 'outputs' in cell: cell.outputs = [o for o in cell.outputs if 'application/vnd.jupyter.widget-view+json' not in o.get('data', {})]       # GitHub has no kernel to show them
        if cell.cell_type == 'markdown':
            if cell.source.startswith('<!-- badges -->'): cell.source = BADGES
            cell.source = re.sub(r'git clone https://\S+ && cd \S+', f"git clone {CFG['git_url']} && cd {CFG['repo']}", cell.source)
            cell.source = re.sub(r"torch\.hub\.load\('[\w-]+/[\w-]+'", f"torch.hub.load('{CFG['user']}/{CFG['repo']}'", cell.source)
            if path.stem != 'index': cell.source = re.sub(r'\[!\[Open in Colab\]\([^)]*\)\]\([^)]*\)', f'{BADGE}({COLAB}/{path.name})', cell.source)
        elif re.match(r"#\| hide\n# (In )?Colab", cell.source): cell.source = SETUP
    return nbformat.writes(nb) + '\n'


def readme():
    "README.md from index.ipynb: {path: bytes}, with the pictures that its cells drew."
    nb = nbformat.reads(linked(ROOT/'nbs'/'index.ipynb'), 4)
    nb.cells = [c for c in nb.cells if not re.match(r'#\|\s*hide\b', c.source)]
    alts = [m[1] for c in nb.cells if (m := re.search(r'(?m)^#\| fig-alt: (.*)$', c.source))]
    for cell in nb.cells:
        if re.match(r'#\|\s*echo:\s*false', cell.source): cell.source = 'NOT SHOWN'
    body, resources = MarkdownExporter().from_notebook_node(nb)
    files = {}
    for i, (name, data) in enumerate(resources['outputs'].items()):
        files[ROOT/'nbs'/'images'/f'index_{i}.png'] = data
        body = body.replace(f'![png]({name})', f'![{alts[i]}](nbs/images/index_{i}.png)')
    body = re.sub(r'```\w*\nNOT SHOWN\n```\n*', '', body)
    body = re.sub(r'\]\((?!https?:|nbs/|#)', '](nbs/', body)
    return {ROOT/'README.md': (re.sub(r'\n{3,}', '\n\n', body).strip() + '\n').encode(), **files}


def everything():
    "All the files that this script is responsible for: {path: bytes}."
    files = {p: linked(p).encode() for p in sorted((ROOT/'nbs').glob('*.ipynb'))}
    cff = ROOT/'CITATION.cff'
    files[cff] = re.sub(r'(?m)^(repository-code: ).*$', rf"\g<1>{CFG['git_url']}", cff.read_text(encoding='utf-8')).encode()
    return {**files, **readme()}


if __name__ == '__main__':
    if sys.argv[1:] == ['--check']:
        stale = [str(p.relative_to(ROOT)) for p, data in everything().items() if not p.exists() or p.read_bytes() != data]
        sys.exit(f'stale: {", ".join(stale)}: run python .ci/pages.py' if stale else 0)
    if sys.argv[1:]: sys.exit(__doc__)
    for p, data in everything().items():
        p.parent.mkdir(exist_ok=True)
        p.write_bytes(data)
