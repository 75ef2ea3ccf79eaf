"What hosts and strangers read beside the code: workflows, forms, versions, the container, and what a release refuses."
import ast, json, os, re, runpy, subprocess, sys
from configparser import ConfigParser
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent.parent
GITHUB = ROOT/'.github'
WORKFLOWS = sorted((GITHUB/'workflows').glob('*.yml'))
CONFIG = ConfigParser(delimiters=['='])
CONFIG.read(ROOT/'settings.ini', encoding='utf-8')
CFG = CONFIG['DEFAULT']
SECRET = r'ghp_\w{20}|github_pat_\w{20}|pypi-\w{20}|hf_[A-Za-z]{20}|BEGIN [A-Z ]*PRIVATE KEY|secrets\.'

def hands(kind): return pytest.mark.trust('other hands', kind)
def text(path): return (ROOT/path).read_text(encoding='utf-8')
def jobs(path): return yaml.safe_load(path.read_text(encoding='utf-8'))['jobs']
def steps(path): return [step for job in jobs(path).values() for step in job['steps']]
def named(paths): return dict(argvalues=paths, ids=lambda path: path.name)


# workflows

@hands('workflows')
@pytest.mark.parametrize('path', **named(WORKFLOWS))
def test_an_action_is_one_commit_and_says_its_version(path):
    used = re.findall(r'uses: (\S+)(.*)', path.read_text(encoding='utf-8'))
    assert len(used) == sum('uses' in step for step in steps(path)) > 0
    for action, comment in used:
        assert re.fullmatch(r'[\w-]+/[\w/-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+', action + comment), action + comment

@hands('workflows')
def test_an_action_is_the_same_commit_everywhere():
    commits = {}
    for path in WORKFLOWS:
        for action, commit in re.findall(r'uses: (\S+)@(.*)', path.read_text(encoding='utf-8')):
            commits.setdefault(action, set()).add(commit)
    assert all(len(found) == 1 for found in commits.values()), commits

@hands('workflows')
@pytest.mark.parametrize('path', **named(WORKFLOWS))
def test_a_workflow_may_do_little_and_ends(path):
    workflow = yaml.safe_load(path.read_text(encoding='utf-8'))
    assert workflow['permissions'] == {'contents': 'read'} and 'concurrency' in workflow
    assert 'pull_request_target' not in workflow[True]                      # YAML reads `on` as true
    assert all(job['timeout-minutes'] <= 120 for job in workflow['jobs'].values())
    for step in steps(path):
        if step.get('uses', '').startswith('actions/checkout@'): assert step['with']['persist-credentials'] is False

@hands('workflows')
def test_only_the_job_that_publishes_may_say_who_it_is():
    publish = jobs(GITHUB/'workflows'/'release.yml')['publish']
    assert publish['permissions'] == {'id-token': 'write', 'attestations': 'write'}
    assert publish['environment']['name'] == 'pypi'
    assert not any('run' in step for step in publish['steps'])              # who can say it runs no code of ours
    assert [step for step in publish['steps'] if 'password' in step.get('with', {})] == []

OPEN = [path for folder in (GITHUB, ROOT/'.ci', ROOT/'.devcontainer') for path in folder.rglob('*') if path.is_file()]

@hands('workflows')
@pytest.mark.parametrize('path', **named(sorted(OPEN)))
def test_no_file_holds_a_secret(path): assert not re.search(SECRET, path.read_text(encoding='utf-8'))


# a release

@pytest.fixture
def release(tmp_path):
    "The step of release.yml that compares tag, settings.ini and CHANGELOG.md: (exit code, what it said)."
    names = {step.get('name', ''): step.get('run') for step in steps(GITHUB/'workflows'/'release.yml')}
    code = next(run for name, run in names.items() if name.startswith('The tag'))
    def run(tag, version='0.1.0', heading='## [0.1.0] - 2026-12-01'):
        settings = text('settings.ini').replace(f"version = {CFG['version']}", f'version = {version}')
        (tmp_path/'settings.ini').write_text(settings)
        (tmp_path/'CHANGELOG.md').write_text(f'# Changelog\n\n{heading}\n')
        done = subprocess.run(['bash', '-e', '-c', code], cwd=tmp_path, env={**os.environ, 'GITHUB_REF_NAME': tag},
                              capture_output=True, text=True)
        return done.returncode, done.stdout.strip()
    return run

@hands('a release that would be wrong')
def test_a_release(release): assert release('v0.1.0') == (0, '')

@hands('a release that would be wrong')
@pytest.mark.parametrize('tag, how, said', [
    ('v0.2.0', {}, 'the tag is v0.2.0, but settings.ini has the version 0.1.0'),
    ('0.1.0', {}, 'tag v0.1.0, or change settings.ini'),
    ('v0.1.0', dict(version='0.2.0'), 'the tag is v0.1.0, but settings.ini has the version 0.2.0'),
    ('v0.1', {}, 'the tag is v0.1,'),
    ('v0.1.0', dict(heading='## [0.1.0] - unreleased'), "has no line '## [0.1.0] - YYYY-MM-DD'"),
    ('v0.1.0', dict(heading='## [0.1.1] - 2026-12-01'), "has no line '## [0.1.0] - YYYY-MM-DD'"),
    ('v0.1.0', dict(heading='## [0x1x0] - 2026-12-01'), "has no line '## [0.1.0] - YYYY-MM-DD'"),
])
def test_a_release_that_would_be_wrong(release, tag, how, said):
    code, line = release(tag, **how)
    assert code == 1 and said in line and line.startswith('::error::') and '\n' not in line


@hands('a release that would be wrong')
def test_on_pypi_each_link_of_the_front_page_leads_somewhere(monkeypatch):
    given = {}
    monkeypatch.setattr('setuptools.setup', given.update)
    monkeypatch.chdir(ROOT)
    runpy.run_path('setup.py')
    page = given['long_description']
    assert re.findall(r'\]\((?!https?://|#)([^)]*)', page) == []
    ours = re.findall(rf"{re.escape(CFG['git_url'])}/(?:raw|blob)/{CFG['branch']}/([^)#\s]+)", page)
    assert len(ours) > 30 and [path for path in ours if not (ROOT/path).exists()] == []
    assert all(f"/raw/{CFG['branch']}/" in link for link in re.findall(r'!\[[^]]*\]\((\S+?\.png)\)', page))


# versions

@hands('versions')
def test_one_version():
    from cifar_resnet import __version__
    assert CFG['version'] == __version__ == yaml.safe_load(text('CITATION.cff'))['version']

@hands('versions')
def test_the_changelog_begins_with_this_version():
    assert re.search(r'(?m)^## \[(.*?)\]', text('CHANGELOG.md'))[1] == CFG['version']

@hands('versions')
def test_pythons_that_are_tested_are_those_that_are_promised():
    tested = jobs(GITHUB/'workflows'/'test.yml')['everything']['strategy']['matrix']['python']
    assert min(tested, key=lambda v: int(v.split('.')[1])) == CFG['min_python']
    for image in re.findall(r'python:(\d\.\d+)', text('.github/Dockerfile') + text('.devcontainer/devcontainer.json')):
        assert int(image.split('.')[1]) >= int(CFG['min_python'].split('.')[1])


# the containers

DOCKER = text('.github/Dockerfile')
IGNORE = text('.github/Dockerfile.dockerignore').splitlines()

@hands('containers')
def test_the_container_runs_as_nobody_special():
    assert re.findall(r'(?m)^USER (.*)$', DOCKER) == ['1000'] and '--uid 1000 ' in DOCKER
    assert DOCKER.index('USER 1000') > DOCKER.rindex('\nRUN ')              # what root installed, the page cannot change

@hands('containers')
def test_its_command_is_one_of_ours(monkeypatch):
    from cifar_resnet import cli
    name, *argv = ast.literal_eval(re.search(r'(?m)^CMD (.*)$', DOCKER)[1])
    seen = []
    monkeypatch.setattr(cli, '_run', lambda *args: seen.append(args))
    assert name == 'cifar_app' and f'{name}=cifar_resnet.cli:app_main' in CFG['console_scripts']
    cli.app_main(argv)
    assert seen and f'EXPOSE {argv[argv.index("--port") + 1]}' in DOCKER and '[app]' in DOCKER

@hands('containers')
def test_what_setup_reads_goes_into_the_image():
    included = re.search(r'(?m)^include (.*)$', text('MANIFEST.in'))[1].split()
    needed = {'setup.py', 'MANIFEST.in', 'cifar_resnet', *included}
    assert IGNORE[1] == '*' and {line[1:] for line in IGNORE if line.startswith('!')} >= needed

@hands('containers')
def test_the_codespace_opens_what_there_is():
    box = json.loads(text('.devcontainer/devcontainer.json'))
    assert all((ROOT/path).exists() for path in box['customizations']['codespaces']['openFiles'])
    extras = re.search(r"-e '\.\[(.*?)\]'", box['postCreateCommand'])[1].split(',')
    assert all(f'{extra}_requirements' in CFG for extra in extras) and box['forwardPorts'] == [8866]

@hands('containers')
def test_the_page_has_what_starts_its_python():
    assert 'ipykernel' in CFG['app_requirements'].split()                  # Voilà does not bring it


# forms

FORMS = sorted((GITHUB/'ISSUE_TEMPLATE').glob('*.yml'))

@hands('forms')
@pytest.mark.parametrize('path', **named([path for path in FORMS if path.name != 'config.yml']))
def test_a_form_names_what_there_is(path):
    form = yaml.safe_load(path.read_text(encoding='utf-8'))
    ids = [field['id'] for field in form['body'] if 'id' in field]
    assert form['name'] and form['description'] and len(set(ids)) == len(ids) > 0
    for name in re.findall(r'\b[A-Z]+\.md\b', path.read_text(encoding='utf-8')): assert (GITHUB/name).exists()

@hands('forms')
def test_the_command_that_the_form_asks_for_works():
    form = yaml.safe_load(text('.github/ISSUE_TEMPLATE/bug.yml'))
    command = next(field for field in form['body'] if field.get('id') == 'versions')['attributes']['value']
    code = ast.literal_eval(re.search(r'python -c (".*")', command)[1].replace('\\n', '\\\\n'))
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=300, cwd=ROOT)
    lines = done.stdout.splitlines()
    assert lines[0] == CFG['version'] and len(lines) >= 4

@hands('forms')
@pytest.mark.parametrize('name', ['CHANGELOG.md', '.github/SECURITY.md'])
def test_links_lead_somewhere(name):
    inside = [link for link in re.findall(r'\]\(([^)#\s]+)', text(name)) if '://' not in link]
    assert [link for link in inside if not ((ROOT/name).parent/link).exists()] == []
