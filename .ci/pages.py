"""Whose repository this is, and what follows from it: badges, Colab cells, README.md, llms.txt and every other link.

    python .ci/pages.py            # write them
    python .ci/pages.py --check    # change nothing; fail if anything would change

Owner and name are those of GITHUB_REPOSITORY, else of the git remote `origin` if it is on GitHub, else settings.ini's.
In a fork that is to give something back, GITHUB_REPOSITORY=owner/name python .ci/pages.py keeps the other's links.
"""
import ast
import os
import re
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parent.parent
NOBODY = 'YOUR_ACCOUNT'            # GitHub's names have no underscore: nobody can register this one
config = ConfigParser(delimiters=['='])
config.read(ROOT/'settings.ini', encoding='utf-8')
CFG = config['DEFAULT']
PATH = {
    '03_data': 'data',
    '04_augment': 'augment',
    '05_model': 'model',
    '09_train': 'train',
    '10_gradcam': 'gradcam',
    '19_cifar10_40_epochs': 'the run',
}
ENDING = '<!-- path -->'
BADGES = '<!-- badges -->'
WIDGET = 'application/vnd.jupyter.widget-view+json'       # GitHub has no kernel to show one
FIRST = '# In Colab and on Kaggle: fetch the repository'


# whose it is

GITHUB = re.compile(r"""(?aix)
    (?: (?:https?|git|ssh)://(?:[^/@\s]+@)?(?:www\.|ssh\.)?github\.com(?::\d+)?/    # https://github.com/owner/name.git
      | (?:[^/@:\s]+@)?github\.com:/? )                                             # git@github.com:owner/name.git
    ([\w-]+) / ([\w.-]+?) (?:\.git)? /?""")


def on_github(url):
    "Owner and name in the address of a git remote, or None if it is not on GitHub."
    found = GITHUB.fullmatch(url.strip())
    return found and found.groups()


def origin(root):
    "The address of the remote `origin`; '' where there is none, no clone, or no git."
    if not (root/'.git').exists(): return ''
    asking = ['git', '-C', root, 'remote', 'get-url', 'origin']
    try: return subprocess.run(asking, capture_output=True, text=True).stdout
    except OSError: return ''


def workflow():
    "Owner and name of the repository whose workflow this is, or None outside a workflow."
    said = os.environ.get('GITHUB_REPOSITORY', '')
    if said and not re.fullmatch(r'[\w-]+/[\w.-]+', said):
        sys.exit(f'GITHUB_REPOSITORY is {said!r}, which is not of the form owner/name: unset it, or put it right')
    return tuple(said.split('/')) if said else None


def settings(): return CFG['user'], CFG['repo']


def own(text, was):
    "`text`, with its links to this repository, whoever owned it when they were written, made links to its owner's."
    names = '|'.join(map(re.escape, sorted({CFG['lib_name'], CFG['repo'], was}, key=len, reverse=True)))
    before = r'''github\.com/|/github/|githubusercontent\.com/|codespaces\.new/|torch\.hub\.\w+\(\s*['"]|GITHUB_REPOSITORY='''
    text = re.sub(rf'({before})[\w-]+/(?:{names})(?![\w-])', rf"\g<1>{CFG['user']}/{CFG['repo']}", text)
    return re.sub(rf'https://[\w-]+\.github\.io/(?:{names})(?![\w-])', f"{CFG['doc_host']}{CFG['doc_baseurl']}", text)


def with_values(text, pattern, **values):
    "`text`, with the value of each key: `pattern` has KEY where the key stands, and what comes after it is replaced."
    for key, value in values.items():
        text = re.sub(rf"(?m)({pattern.replace('KEY', key)})[^'\n]*", lambda m: m[1] + value, text)
    return text


# what a notebook gets

def badges(path):
    "A line of badges: where this notebook opens with one click. The front page's open 14, and it has some more."
    git, name = CFG['git_url'], '14_explore.ipynb' if path.stem == 'index' else path.name
    blob = f"{git}/blob/{CFG['branch']}"
    owner = f"{CFG['user']}/{CFG['repo']}"
    colab = f"https://colab.research.google.com/github/{owner}/blob/{CFG['branch']}/nbs/{name}"
    kaggle = f'https://kaggle.com/kernels/welcome?src={blob}/nbs/{name}'
    codespaces = f'https://codespaces.new/{owner}'
    python = f"https://img.shields.io/badge/python-{CFG['min_python']}+-0072B2"
    lines = [
        f'[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({colab})',
        f'[![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)]({kaggle})',
        f'[![Open in Codespaces](https://img.shields.io/badge/open_in-Codespaces-24292f)]({codespaces})']
    if path.stem == 'index':
        lines += [
            f'[![test]({git}/actions/workflows/test.yml/badge.svg)]({git}/actions/workflows/test.yml)',
            f"[![Python {CFG['min_python']}+]({python})]({blob}/settings.ini)",
            f'[![Apache-2.0](https://img.shields.io/badge/licence-Apache--2.0-009E73)]({blob}/LICENSE)',
            f"[documentation]({CFG['doc_host']}{CFG['doc_baseurl']})"]
    return '\n'.join([BADGES, *lines])


def first_cell():
    "What fetches the package where a notebook comes alone. Without a name it fetches nothing: whose would it be?"
    url = '' if CFG['user'] == NOBODY else CFG['git_url']
    return f"""#| hide
{FIRST}, install it, go to its notebooks. Elsewhere this cell does nothing.
import os
url = '{url}'
in_colab, on_kaggle = 'google.colab' in str(get_ipython()), 'KAGGLE_KERNEL_RUN_TYPE' in os.environ
host = '/content' if in_colab else '/kaggle/working' if on_kaggle else ''
if host and not url:
    raise SystemExit('This copy names no repository: open it from your own fork, after python .ci/pages.py')
if host:
    lab = f"{{host}}/{CFG['repo']}"
    !test -d {{lab}} || git clone -q --depth 1 -b {CFG['branch']} {{url}} {{lab}}
    if not os.path.isdir(lab):
        raise SystemExit(f'{{url}} could not be fetched: turn on the internet (Kaggle: Settings), run this cell again')
    %pip install -q {{lab}} captum
    %cd -q {{lab}}/nbs"""


def clone():
    "The line before the first command of the front page."
    if CFG['user'] == NOBODY: return f"cd {CFG['repo']}    # the folder that you cloned or unpacked"
    return f"git clone {CFG['git_url']} && cd {CFG['repo']}"


def short_path(path):
    "The line at a notebook's end: where it stands, and where to go on."
    names = {stem: f'{stem[:2]} {name}' for stem, name in PATH.items()}
    steps = [f'**{name}**' if stem == path.stem else f'[{name}]({stem}.ipynb)' for stem, name in names.items()]
    stems = [*PATH, 'index']
    after = stems[stems.index(path.stem) + 1] if path.stem in PATH else ''
    here = 'The short path' if after else 'This is a side room. The short path'
    map_of_all = ' The map of all rooms is [the front page](index.ipynb).'
    on = f' Next: [{PATH[after]}]({after}.ipynb).' if after in PATH else map_of_all
    how = 'an hour for prose and figures; skip what you do not need of the code'
    return f"{ENDING}\n---\n{here} ({how}): {' → '.join(steps)}.{on}"


def title(nb):
    "Where a notebook's title stands, and what it says: (index of its cell, title, description)."
    for i, cell in enumerate(nb.cells):
        if found := re.match(r'# (.+)\n> (.+)', cell.source): return i, *found.groups()


def shown(source):
    "An exported cell that gives a public name its value is on its page: nbdev shows functions and classes only."
    if not source.startswith('#| export\n'): return source
    targets = [t for line in ast.parse(source).body for t in getattr(line, 'targets', [])]
    names = [n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)]
    return source.replace('export', 'exports', 1) if any(n[0] != '_' for n in names) else source


def linked(path, was):
    "A notebook's JSON text, with its badges, first cell, links and last line, and without widgets."
    nb = nbformat.read(path, 4)
    nb.metadata.pop('widgets', None)
    stem = path.stem.partition('_')[0]
    if path.stem != 'index':
        nb.cells = [c for c in nb.cells if not c.source.startswith((ENDING, BADGES))]
        nb.cells.insert(title(nb)[0] + 1, nbformat.v4.new_markdown_cell(BADGES, id=f'{stem}-badges'))
        nb.cells.append(nbformat.v4.new_markdown_cell(short_path(path), id=f'{stem}-path'))
    for cell in nb.cells:
        if 'outputs' in cell: cell.outputs = [o for o in cell.outputs if WIDGET not in o.get('data', {})]
        for printed in (o for o in cell.get('outputs', []) if 'text' in o): printed.text = own(printed.text, was)
        cell.source = shown(own(cell.source, was))
        if cell.source.startswith(BADGES): cell.source = badges(path)
        elif cell.source.startswith(f'#| hide\n{FIRST}'): cell.source = first_cell()
        elif path.stem == 'index':
            cell.source = re.sub(r'(?m)^.*(?=\npip install -e \. && cifar_resnet )', clone(), cell.source)
    return nbformat.writes(nb) + '\n'


# what is made from them

def readme(text):
    "README.md from index.ipynb's text: {path: bytes}, with the pictures that its cells drew."
    nb = nbformat.reads(text, 4)
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
    body = body.replace(f"]({CFG['git_url']}/blob/{CFG['branch']}/", '](')          # true in any clone
    return {ROOT/'README.md': (re.sub(r'\n{3,}', '\n\n', body).strip() + '\n').encode(), **files}


def page(stem):
    "The address of a notebook's page in the documentation."
    return f"{CFG['doc_host']}{CFG['doc_baseurl']}/{re.sub(r'^[0-9]+[a-z]*_', '', stem)}.html"


def llms(notebooks):
    "llms.txt (llmstxt.org): what this is, its pages in their order, and what can be typed."
    rooms = {path.stem: title(nbformat.reads(text, 4)) for path, text in notebooks.items()}
    name, summary = rooms.pop('index')[1:]
    front = '\n'.join(c.source for c in nbformat.reads(notebooks[ROOT/'nbs'/'index.ipynb'], 4).cells)
    commands = re.search(r'```sh\ncifar_resnet .*?```', front, re.S)[0]
    numbers = {stem: stem.partition('_')[0] for stem in rooms}
    pages = [f'- [{numbers[stem]} {heading}]({page(stem)}): {idea}' for stem, (_, heading, idea) in rooms.items()]
    return '\n'.join([f'# {name}', '', f'> {summary}', '', f"Code: {CFG['git_url']}", '', '## Pages', '', *pages, '',
                      '## Commands', '', commands, ''])


def texts():
    "Other files that may link to the repository."
    patterns = ['*.md', 'hubconf.py', 'CITATION.cff', f"{CFG['lib_name']}/*.py", '.github/**/*.md', '.github/**/*.yml']
    return [p for pattern in patterns for p in sorted(ROOT.glob(pattern)) if p != ROOT/'README.md']


def everything(owner, repo):
    "All the files that this script is responsible for, if the repository is `owner`/`repo`: {path: bytes}."
    was = CFG['repo']
    CFG['user'], CFG['repo'] = owner, repo
    files = {p: own(p.read_text(encoding='utf-8'), was) for p in texts()}
    ini, cff, index = (ROOT/name for name in ('settings.ini', 'CITATION.cff', f"{CFG['lib_name']}/_modidx.py"))
    files[ini] = with_values(ini.read_text(encoding='utf-8'), '^KEY = ', user=owner, repo=repo)
    files[cff] = with_values(files[cff], '^KEY: ', **{'repository-code': CFG['git_url'], 'version': CFG['version']})
    files[cff] = with_values(files[cff], r'^  - KEY: ', name=CFG['author'])
    addresses = {key: CFG[key] for key in ('doc_host', 'doc_baseurl', 'git_url')}
    files[index] = with_values(files[index], "'KEY': '", **addresses)
    notebooks = {p: linked(p, was) for p in sorted((ROOT/'nbs').glob('*.ipynb'))}
    files = {**files, **notebooks, ROOT/'nbs'/'llms.txt': llms(notebooks)}
    return {**{p: text.encode() for p, text in files.items()}, **readme(notebooks[ROOT/'nbs'/'index.ipynb'])}


def check():
    "One sentence if the pages name another repository than the workflow's, or disagree with settings.ini; else None."
    there, here = settings(), workflow()
    if here and here != there:
        return f"the pages name {'/'.join(there)}, this is {'/'.join(here)}: run python .ci/pages.py and commit"
    right = everything(*there)
    stale = [str(p.relative_to(ROOT)) for p, data in right.items() if not p.exists() or p.read_bytes() != data]
    if stale: return f'stale: {", ".join(stale)}: run python .ci/pages.py and commit'


def main(argv):
    "Write all, or check all: what is wrong, in one sentence, or None."
    if argv == ['--check']: return check()
    if argv: return __doc__
    was, now = settings(), workflow() or on_github(origin(ROOT)) or settings()
    for p, data in everything(*now).items():
        p.parent.mkdir(exist_ok=True)
        p.write_bytes(data)
    if now != was:
        was, now = map('/'.join, (was, now))
        print(f'the pages name {now} now; GITHUB_REPOSITORY={was} python .ci/pages.py makes them name {was} again')


if __name__ == '__main__': sys.exit(main(sys.argv[1:]))
