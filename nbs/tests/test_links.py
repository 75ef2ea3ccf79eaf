"What the documentation shows: links and anchors that exist, a title and a picture for each page, each public name."
import ast, json, re, shutil, subprocess
from base64 import b64decode
from io import BytesIO
from pathlib import Path
from urllib.parse import unquote, urlsplit

import mistune
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent.parent
def other(kind): return pytest.mark.trust('other hands', kind)

NOTEBOOKS = sorted((ROOT/'nbs').glob('*.ipynb'))
PROSE = [*ROOT.glob('*.md'), *ROOT.glob('.github/**/*.md')]
parse = mistune.create_markdown(renderer='ast', plugins=['table', 'strikethrough', 'footnotes', 'math'])


def cells(path): return json.loads(path.read_text(encoding='utf-8'))['cells']
def source(cell): return ''.join(cell['source'])

def texts(path):
    "The pieces of Markdown in a notebook or a Markdown file."
    if path.suffix == '.md': return [path.read_text(encoding='utf-8')]
    found = cells(path)
    tables = [o['data'].get('text/markdown', '') for c in found for o in c.get('outputs', []) if 'data' in o]
    return [source(c) for c in found if c['cell_type'] == 'markdown'] + [''.join(table) for table in tables]

def nodes(tree):
    for node in tree:
        yield node
        yield from nodes(node.get('children', []))

def words(node): return node.get('raw', '') + ''.join(map(words, node.get('children', [])))

def look(text):
    "The links, the pictures (with their words) and the headings of a text."
    links, pictures, headings = [], [], []
    for node in nodes(parse(text)):
        if node['type'] == 'link': links.append(node['attrs']['url'])
        if node['type'] == 'image': pictures.append((node['attrs']['url'], words(node)))
        if node['type'] == 'heading': headings.append(words(node))
    return links, pictures, headings

def page(path):
    found = [look(text) for text in texts(path)]
    return [sum(parts, []) for parts in zip(*found)]

def anchor(heading, path):
    "What leads to a heading: in a notebook as Jupyter and GitHub have it, in a Markdown file as GitHub has it."
    if path.suffix == '.ipynb': return heading.strip().replace(' ', '-')
    return re.sub(r'[^\w\- ]', '', heading.strip().lower()).replace(' ', '-')

def wrong(link, path):
    "What is wrong with a link on the page of `path`; '' if nothing is."
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        fine = re.fullmatch(r'https://[\w-]+(\.[\w-]+)+(/[^\s<>"]*)?', link)
        return '' if fine else f'{link} is no address'
    there = (path.parent/unquote(parts.path)).resolve() if parts.path else path
    if not there.exists(): return f'{link} is not there'
    if not there.is_relative_to(ROOT): return f'{link} leads out of the repository'
    if not parts.fragment or there.suffix not in ('.md', '.ipynb'): return ''
    anchors = [anchor(heading, there) for heading in page(there)[2]]
    return '' if unquote(parts.fragment) in anchors else f'{link}: no such heading'


# links

@other('links')
@pytest.mark.parametrize('path', [*PROSE, *NOTEBOOKS], ids=lambda p: p.name)
def test_each_link_leads_somewhere_and_each_picture_is_there(path, cases):
    links, pictures, _ = page(path)
    cases(len(links) + len(pictures))
    assert [said for link in [*links, *(url for url, _ in pictures)] if (said := wrong(link, path))] == []
    assert [url for url, said in pictures if not said.strip()] == []                # each says what it shows

@pytest.mark.parametrize(('text', 'bad'), [
    ('[a](nowhere.ipynb)', 'is not there'),
    ('![a](images/nothing.png)', 'is not there'),
    ('| x |\n|---|\n| [a](nowhere.md) |', 'is not there'),
    ('[a](../../outside)', 'is not there'),
    ('[a](../..)', 'leads out'),
    ('[a](#no-such)', 'no such heading'),
    ('[a](05_model.ipynb#no-such)', 'no such heading'),
    ('[a](05_model.ipynb#trained-weights-in-a-file)', 'no such heading'),
    ('[a](http://plain.org/x)', 'is no address'),
    ('[a](https:/one.slash)', 'is no address'),
    ('[a](https://nodot)', 'is no address'),
    ('[a](05_model.ipynb)', ''),
    ('[a](06_evaluate.ipynb#Accuracy,-and-how-far-to-trust-it)', ''),
    ('[a](https://a.org/b#c)', '')])
def test_a_link_that_leads_nowhere_is_found(text, bad):
    links, pictures, _ = look(text)
    [said] = [wrong(link, ROOT/'nbs'/'index.ipynb') for link in [*links, *(url for url, _ in pictures)]]
    assert bad in said and bool(bad) == bool(said)

@other('anchors on the site')
@pytest.mark.skipif(not shutil.which('pandoc'), reason='not run: no pandoc')
def test_an_anchor_of_a_notebook_is_the_sites(cases, tmp_path):
    found = [(path, link) for path in NOTEBOOKS for link in page(path)[0] if '#' in link and '://' not in link]
    cases(len(found))
    for path, link in found:
        there = path.parent/link.split('#')[0] if not link.startswith('#') else path
        heading = next(h for h in page(there)[2] if anchor(h, there) == unquote(link.split('#')[1]))
        asking = ['pandoc', '--from', 'markdown', '--lua-filter', ROOT/'nbs'/'anchors.lua']
        html = subprocess.run(asking, input=f'# {heading}\n\n[x]({link})\n', capture_output=True, text=True).stdout
        assert re.search(r'<h1\s+id="([^"]+)"', html)[1] == re.search(r'href="[^"#]*#([^"]+)"', html)[1]
    assert len(found) > 5


@other('links')
def test_the_documentation_takes_along_what_its_pages_show(cases, monkeypatch):
    "nbdev copies the files of subfolders if settings.ini says recursive = True."
    from nbdev.doclinks import nbglob
    monkeypatch.chdir(ROOT/'nbs')
    copied = set(nbglob(ROOT/'nbs', func=Path, file_glob='', file_re=''))
    pages = {path: page(path) for path in NOTEBOOKS}
    needed = [(path.parent/url.split('#')[0]).resolve() for path, (links, pictures, _) in pages.items()
              for url in [*links, *(url for url, _ in pictures)] if '://' not in url and not url.startswith('#')]
    needed += [ROOT/'nbs'/name for name in ('llms.txt', 'styles.css', 'anchors.lua', 'images/index_0.png')]
    cases(len(needed))
    assert len(needed) > 50 and [str(path) for path in needed if path not in copied] == []


# a page of the documentation

@other('title and description')
@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.name)
def test_the_first_cell_holds_title_and_description_and_nothing_that_would_be_lost(path):
    "nbdev makes the site's title of the whole cell: what else stands in it is not shown."
    first = next(source(c) for c in cells(path) if c['cell_type'] == 'markdown')
    assert re.fullmatch(r'# \S.*\n> \S.*(\n\n<!--\n(- [\w-]+: \S.*\n)+-->)?', first)

@other('picture of a page')
@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.name)
def test_each_page_has_one_picture_for_those_who_link_to_it(path):
    code, prose = ([c for c in cells(path) if c['cell_type'] == kind] for kind in ('code', 'markdown'))
    marked = [c for c in code if re.search(r'(?m)^#\| classes: preview-image$', source(c))]
    named = re.findall(r'(?m)^- image: (.*)\n- image-alt: \S{2}.*$', source(prose[0]))
    assert len(marked) + len(named) == 1
    if named: data = (path.parent/named[0]).read_bytes()
    else:
        [cell] = marked
        assert not source(cell).startswith(('#| hide', '#| export'))
        assert re.search(r'(?m)^#\| fig-alt: \S.{20}', source(cell))      # for those who see none
        data = b64decode(next(o['data']['image/png'] for o in cell['outputs'] if 'image/png' in o.get('data', {})))
    assert len(data) < 150_000 and Image.open(BytesIO(data)).width >= 300


# each public name

MODULES = [path for path in NOTEBOOKS if '#| default_exp' in path.read_text(encoding='utf-8')]

def shown(path):
    "The names that a page of the documentation shows, after nbdev has prepared it: nothing is run for that."
    from nbdev.process import NBProcessor
    from nbdev.processors import FilterDefaults
    procs = [p for p in FilterDefaults().procs() if p.__name__ not in ('exec_show_docs', 'add_links')]
    nb = NBProcessor(path, procs)
    nb.process()
    code = [c.source for c in nb.nb.cells if c.cell_type == 'code' and c.source]
    documented = re.findall(r'(?m)^show_doc\((\w+)\)', '\n'.join(code))
    sources = '\n'.join(c for c in code if '#| code-summary: "Exported source"' in c)
    defined = re.findall(r'(?m)^([A-Za-z]\w*(?:, *\w+)*) *=(?!=)', sources)
    return {*documented, *re.findall(r'\w+', ' '.join(defined))}

@other('public names')
@pytest.mark.parametrize('path', MODULES, ids=lambda p: p.name)
def test_each_public_name_is_on_its_page(path, cases, monkeypatch):
    monkeypatch.chdir(path.parent)
    module = re.search(r'#\| default_exp (\w+)', path.read_text(encoding='utf-8'))[1]
    text = (ROOT/'cifar_resnet'/f'{module}.py').read_text(encoding='utf-8')
    public = re.findall(r"'(\w+)'", re.search(r'(?s)__all__ = \[(.*?)\]', text)[1])
    cases(len(public))
    assert public and set(public) - shown(path) == set()


# llms.txt

def test_llms_txt_has_every_page_in_order_and_commands_that_exist():
    text = (ROOT/'nbs'/'llms.txt').read_text(encoding='utf-8')
    from nbdev.doclinks import _nbpath2html
    pages = [_nbpath2html(path).name for path in NOTEBOOKS if path.stem != 'index']
    assert re.findall(r'(?m)^- \[.+\]\(https://\S+/(\w+\.html)\): \S', text) == pages
    assert text.startswith('# cifar_resnet\n\n> ') and 'llms.txt' in (ROOT/'nbs'/'_quarto.yml').read_text()
    scripts = re.search(r'(?m)^console_scripts = (.*)$', (ROOT/'settings.ini').read_text())[1]
    typed = set(re.findall(r'(?m)^(cifar_\w+)', text.partition('## Commands')[2]))
    assert typed and typed <= {script.partition('=')[0] for script in scripts.split()}

@other('imports in cells of their own')
@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.name)
def test_an_import_has_a_cell_of_its_own(path):
    "The documentation's pages are prepared by running every cell that imports something, and no other."
    for cell in cells(path):
        code = source(cell)
        if cell['cell_type'] != 'code' or code.startswith(('#| export', '#| hide')) or re.search(r'(?m)^[%!]', code): continue
        assert len({isinstance(line, (ast.Import, ast.ImportFrom)) for line in ast.parse(code).body}) < 2, code
