"Links are true: they lead to the repository that this copy is; in a fork, to the fork; to nobody's if it has no name."
import importlib.util, os, re, shutil, subprocess, sys
from configparser import ConfigParser
from pathlib import Path

import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell

ROOT = Path(__file__).parent.parent.parent
def other(kind): return pytest.mark.trust('other hands', kind)


NAMED = ['*.*', '.github/**/*', '.ci/pages.py', 'cifar_resnet/*.py', 'nbs/*.*', 'nbs/images/*']

@pytest.fixture
def copy(tmp_path, monkeypatch):
    "A copy of everything that names the repository, in a folder of its own."
    monkeypatch.delenv('GITHUB_REPOSITORY', raising=False)
    for path in [p for pattern in NAMED for p in ROOT.glob(pattern) if p.is_file() and p.name != '.git']:
        to = tmp_path/'copy'/path.relative_to(ROOT)
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, to)
    return tmp_path/'copy'

def pages(copy, *args, **env):
    "What the command says in that copy: None, or the sentence that it fails with."
    with pytest.MonkeyPatch.context() as m:
        for name, value in env.items(): m.setenv(name, value)
        return script(copy).main(list(args))

def script(copy):
    "The script of that copy, as a module that has just been loaded."
    spec = importlib.util.spec_from_file_location(f'pages_{abs(hash(copy))}', copy/'.ci'/'pages.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

def cloned(copy, url):
    "That copy as a clone of `url`."
    for command in (['init', '-q'], ['remote', 'add', 'origin', url]):
        subprocess.run(['git', '-C', copy, *command], check=True)
    return copy

def contents(copy):
    return {p.relative_to(copy): p.read_bytes() for p in copy.rglob('*') if p.is_file() and '.git' not in p.parts}

def owners(copy):
    "Who is named as the owner of this repository, and in which files."
    found, repo = {}, script(copy).CFG['repo']
    before = r'''github\.com/|/github/|codespaces\.new/|hub\.load\(['"]'''
    here = rf'(?:{before})([\w-]+)/{repo}\b|([\w-]+)\.github\.io/{repo}\b'
    for path, data in contents(copy).items():
        if path.suffix in ('.ipynb', '.md', '.cff', '.txt', '.yml') or path.name in ('_modidx.py', 'hubconf.py'):
            for owner in re.findall(here, data.decode()): found.setdefault(''.join(owner), set()).add(str(path))
    return found


# whose it is

PAGES = script(ROOT)

@other('addresses of a remote')
@pytest.mark.parametrize('url', [
    'https://github.com/ada/lab', 'https://github.com/ada/lab.git', 'https://github.com/ada/lab/',
    'https://www.github.com/ada/lab', 'https://GitHub.com/ada/lab.git\n', 'http://github.com/ada/lab',
    'https://x-access-token:secret@github.com/ada/lab',
    'git@github.com:ada/lab.git', 'git@github.com:ada/lab', 'git@github.com:/ada/lab.git', 'github.com:ada/lab.git',
    'ssh://git@github.com/ada/lab.git', 'ssh://git@github.com:22/ada/lab', 'ssh://git@ssh.github.com:443/ada/lab.git',
    'git://github.com/ada/lab.git'])
def test_an_address_on_github_names_owner_and_repository(url): assert PAGES.on_github(url) == ('ada', 'lab')

@other('addresses of a remote')
@pytest.mark.parametrize('url', [
    '', 'https://gitlab.com/ada/lab', 'git@gitlab.com:ada/lab.git', 'https://gist.github.com/ada/lab',
    '/srv/github.com/ada/lab', '../github.com/ada/lab', 'file:///github.com/ada/lab',
    'https://github.com.evil.org/ada/lab', 'https://evil.org/github.com/ada/lab', 'git@evil-github.com:ada/lab',
    'https://github.com/ada', 'https://github.com/ada/lab/tree/main', 'https://github.com/ädä/lab',
    "https://github.com/ada/lab';rm", 'https://github.com/a b/lab'])
def test_another_address_names_nobody(url): assert PAGES.on_github(url) is None

@other('names with dots and dashes')
@pytest.mark.parametrize('name', ['cifar_resnet', 'cifar-resnet.git', 'my.lab', 'a', 'lab-2'])
def test_a_name_is_taken_whole(name): assert PAGES.on_github(f'git@github.com:a-b-1/{name}.git') == ('a-b-1', name)

@other('GITHUB_REPOSITORY')
@pytest.mark.parametrize('said', ['ada', 'ada/', '/lab', 'a/lab/x', 'a/lab; rm', 'https://github.com/a/lab', "a/'lab"])
@pytest.mark.parametrize('args', [[], ['--check']])
def test_a_malformed_variable_is_named(said, args, copy):
    with pytest.raises(SystemExit) as e: pages(copy, *args, GITHUB_REPOSITORY=said)
    assert 'not of the form owner/name' in str(e.value) and repr(said) in str(e.value)

def test_nobody_can_register_the_name_that_stands_for_nobody(): assert '_' in PAGES.NOBODY


# a copy, a clone, a fork

@other('a copy without a name')
@pytest.mark.parametrize('url', [None, 'https://gitlab.com/ada/lab', '/srv/git/lab.git'])
def test_where_no_remote_is_on_github_nothing_changes(url, copy):
    if url: cloned(copy, url)
    before = contents(copy)
    assert pages(copy) is None and contents(copy) == before

@other('a fork')
@pytest.mark.parametrize('url', ['https://github.com/grace-h/cifar_resnet.git', 'git@github.com:grace-h/lab.2.git'])
def test_a_fork_has_its_own_links_everywhere(url, copy, capsys):
    was = '/'.join(PAGES.settings())
    (copy/'hubconf.py').write_text(f'''"torch.hub.load('{was}', 'resnet18') from https://github.com/{was}"\n''')
    (copy/'CHANGELOG.md').write_text(f'https://github.com/{was}/releases/tag/0.1.0\nhttps://github.com/{was}_2\n')
    original, before = contents(copy), owners(copy)
    assert len(before) == 1
    assert pages(cloned(copy, url)) is None
    repo = PAGES.on_github(url)[1]
    again = f'GITHUB_REPOSITORY={was} python .ci/pages.py'
    assert capsys.readouterr().out == f'the pages name grace-h/{repo} now; {again} makes them name {was} again\n'
    after = owners(copy)
    assert set(after) == {'grace-h'} and after['grace-h'] >= before[PAGES.CFG['user']]
    left = [data.count(was.encode()) for data in contents(copy).values()]
    assert sum(left) == 1 and f'https://github.com/{was}_2' in (copy/'CHANGELOG.md').read_text()      # another's
    assert f'git clone https://github.com/grace-h/{repo} && cd {repo}\npip install' in (copy/'README.md').read_text()
    assert pages(copy, '--check') is None                                            # and they agree
    assert pages(copy, '--check', GITHUB_REPOSITORY=f'grace-h/{repo}') is None
    said = pages(copy, '--check', GITHUB_REPOSITORY='ada/lab')
    assert said == f'the pages name grace-h/{repo}, this is ada/lab: run python .ci/pages.py and commit'
    assert pages(copy, GITHUB_REPOSITORY=was) is None                        # there and back: not a byte is lost
    assert contents(copy) == original

@other('pages that disagree')
def test_each_place_that_disagrees_is_named(copy, cases):
    user = PAGES.CFG['user']
    notebooks = ['nbs/00_core.ipynb', 'nbs/index.ipynb']
    places = ['README.md', 'CITATION.cff', 'cifar_resnet/_modidx.py', 'nbs/llms.txt', *notebooks]
    cases(len(places))
    for place in places:
        text = (copy/place).read_text(encoding='utf-8')
        (copy/place).write_text(text.replace(user, 'mallory', 1), encoding='utf-8')
    said = pages(copy, '--check')
    assert said.startswith('stale: ') and said.endswith(': run python .ci/pages.py and commit') and '\n' not in said
    assert set(said[len('stale: '):].rsplit(':', 1)[0].split(', ')) == set(places)
    assert pages(copy) is None and pages(copy, '--check') is None

@other('pages that disagree')
def test_a_wrong_argument_writes_nothing(copy):
    before = contents(copy)
    done = subprocess.run([sys.executable, copy/'.ci'/'pages.py', '--chekc'], capture_output=True, text=True)
    assert done.returncode == 1 and 'python .ci/pages.py --check' in done.stderr and contents(copy) == before


# the first cell, in Colab and on Kaggle

CORE = nbformat.read(ROOT/'nbs'/'00_core.ipynb', 4)
CELL = next(c.source for c in CORE.cells if c.source.startswith(f'#| hide\n{PAGES.FIRST}'))
class Colab(InteractiveShell): __module__ = 'google.colab._shell'

@pytest.fixture
def first(tmp_path, monkeypatch):
    "What the first cell does on a host: the error that it ends with, and the commands that it gave."
    def run(host, url, online=True, there=False):
        (tmp_path/'host').mkdir()
        (tmp_path/'bin').mkdir()
        lab, given = tmp_path/'host'/PAGES.CFG['repo'], []
        if there: lab.mkdir()
        does = f'mkdir {lab}' if online else 'exit 128'
        (tmp_path/'bin'/'git').write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/git\n{does}\n')
        (tmp_path/'bin'/'git').chmod(0o755)
        monkeypatch.setenv('PATH', f"{tmp_path/'bin'}:{os.environ['PATH']}")
        monkeypatch.delenv('KAGGLE_KERNEL_RUN_TYPE', raising=False)
        if host == 'kaggle': monkeypatch.setenv('KAGGLE_KERNEL_RUN_TYPE', 'Interactive')
        shell = (Colab if host == 'colab' else InteractiveShell)()
        for name in ('pip', 'cd'):
            note = lambda line, name=name: given.append(f'{name} {line}')
            shell.register_magic_function(note, magic_name=name)
        source = re.sub(r'(?m)^url = .*$', f'url = {url!r}', CELL)
        source = re.sub("'/content'|'/kaggle/working'", repr(str(tmp_path/'host')), source)
        with monkeypatch.context() as m:
            m.setattr('builtins.get_ipython', lambda: shell, raising=False)
            done = shell.run_cell(source)
        asked = (tmp_path/'git').read_text() if (tmp_path/'git').exists() else ''
        return done.error_in_exec or done.error_before_exec, asked, [line.replace(str(lab), 'LAB') for line in given]
    return run

URL = 'https://github.com/ada/cifar_resnet'
INSTALLED = ['pip install -q LAB captum', 'cd -q LAB/nbs']

@other('the first cell')
@pytest.mark.parametrize('host', ['colab', 'kaggle'])
def test_a_notebook_that_comes_alone_fetches_its_package(host, first):
    error, asked, given = first(host, URL)
    assert error is None and f' {URL} ' in asked and given == INSTALLED

@other('the first cell')
@pytest.mark.parametrize('host', ['colab', 'kaggle'])
def test_what_is_there_is_not_fetched_again(host, first): assert first(host, URL, there=True) == (None, '', INSTALLED)

@other('the first cell')
@pytest.mark.parametrize('host', ['colab', 'kaggle'])
def test_a_copy_without_a_name_fetches_nothing_and_says_so(host, first):
    error, asked, given = first(host, '')
    assert isinstance(error, SystemExit) and (asked, given) == ('', [])
    assert str(error) == 'This copy names no repository: open it from your own fork, after python .ci/pages.py'

@other('the first cell')
@pytest.mark.parametrize('host', ['colab', 'kaggle'])
def test_without_the_internet_one_sentence_says_where_to_turn_it_on(host, first):
    error, asked, given = first(host, URL, online=False)
    assert isinstance(error, SystemExit) and asked and given == []
    assert str(error).startswith(f'{URL} could not be fetched: turn on the internet')

@other('the first cell')
@pytest.mark.parametrize('url', ['', URL])
def test_elsewhere_it_does_nothing(url, first): assert first('jupyter', url) == (None, '', [])

@other('the first cell')
def test_every_notebook_begins_with_it_and_this_repository(cases):
    notebooks = [p for p in sorted((ROOT/'nbs').glob('*.ipynb')) if p.stem != 'index']
    cases(len(notebooks))
    for path in notebooks:
        code = [c.source for c in nbformat.read(path, 4).cells if c.cell_type == 'code']
        assert PAGES.first_cell() == next(source for source in code if 'default_exp' not in source), path.name
    assert ("url = ''\n" in PAGES.first_cell()) == (PAGES.CFG['user'] == PAGES.NOBODY)


# who made it

@other('authors')
def test_authors_and_version_are_said_once(copy):
    config = ConfigParser(delimiters=['='])
    config.read(ROOT/'settings.ini', encoding='utf-8')
    cfg = config['DEFAULT']
    cff = (ROOT/'CITATION.cff').read_text(encoding='utf-8')
    assert f"  - name: {cfg['author']}\n" in cff and f"\nversion: {cfg['version']}\n" in cff
    asking = [sys.executable, 'setup.py', '--author', '--version', '--url', '--author-email']
    said = subprocess.run(asking, cwd=copy, capture_output=True, text=True).stdout
    *_, author, version, url, email = said.splitlines()
    assert (author, version, url) == (cfg['author'], cfg['version'], cfg['git_url'])
    assert email in ('', 'None', 'UNKNOWN')                     # nobody's address is nobody's to give

@other('authors')
@pytest.mark.parametrize('name', ['settings.ini', 'setup.py', 'CITATION.cff', 'README.md'])
def test_no_address_of_a_person_is_given(name):
    assert re.findall(r'\S+@\w+\.\w+', (ROOT/name).read_text(encoding='utf-8')) == []
