"The command `cifar_app`, without a browser: what it says, where it listens, and how it ends."
import json, os, re, signal, socket, subprocess, sys
from importlib.util import find_spec
from urllib.request import urlopen

import pytest

from browsing import APP, end
from cifar_resnet.cli import app_main

voila = pytest.mark.skipif(not find_spec('voila'), reason="no voila: pip install -e '.[app]'")


def start(*flags, **kw): return subprocess.Popen([sys.executable, '-c', APP, '--no_browser', *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kw)


@voila
@pytest.mark.parametrize('argv, said', [
    ('--run nowhere', 'nowhere holds no finished run'),
    ('--run .', 'holds no finished run'),
    ('--run ~nobody_such/run', 'there is no home folder'),
    ('--ip no.such.address.invalid', 'is no address'),
    ('--ip 999.1.1.1', 'is no address'),
    ('--ip 192.0.2.7', 'cannot be listened at'),                       # of another machine
    ('--port 70000', 'must be at most 65535'),
    ('--port -1', 'must be at most 65535, and at least 0'),
])
def test_bad_flags(argv, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert app_main([*argv.split(), '--no_browser']) == 2
    out, err = capsys.readouterr()
    assert said in err and err.count('\n') == 1 and not out and not list(tmp_path.iterdir())


@pytest.mark.parametrize('argv', ['--port high', '--theme blue', '--host 0.0.0.0'])
def test_flags_that_do_not_parse(argv, capsys):
    with pytest.raises(SystemExit) as stop: app_main(argv.split())
    err = capsys.readouterr().err
    assert stop.value.code == 2 and err.count('\n') == 1 and '--help lists the flags' in err


@voila
def test_a_port_in_use(capsys):
    with socket.create_server(('127.0.0.1', 0)) as taken:
        port = taken.getsockname()[1]
        assert app_main(['--port', str(port), '--no_browser']) == 2
    err = capsys.readouterr().err
    assert f'127.0.0.1:{port} cannot be listened at' in err and 'choose another --port' in err and err.count('\n') == 1


def test_without_voila(capsys, monkeypatch):
    monkeypatch.delitem(sys.modules, 'cifar_resnet.page', raising=False)
    monkeypatch.setitem(sys.modules, 'voila', None)
    monkeypatch.setitem(sys.modules, 'voila.app', None)
    assert app_main([]) == 2
    assert capsys.readouterr().err == "cifar_app: this needs Voilà: in the repository's folder type pip install -e '.[app]'\n"


@voila
def test_it_says_where_serves_and_ends_cleanly(tmp_path):
    "The kernel is this Python, even where a kernel called python3 belongs to another one."
    other = tmp_path/'kernels'/'python3'
    other.mkdir(parents=True)
    (other/'kernel.json').write_text(json.dumps(dict(argv=['/bin/false'], display_name='another', language='python')))
    process = start('--port', '0', env={**os.environ, 'TMPDIR': str(tmp_path), 'JUPYTER_PATH': str(tmp_path)}, cwd=tmp_path)
    address, token = re.fullmatch(r'(http://127\.0\.0\.1:\d+/)(\?token=[\w-]{32})   \(Ctrl-C ends it\)\n', process.stdout.readline()).groups()
    with urlopen(address + token, timeout=180) as page: html = page.read().decode()            # a kernel is at work now
    assert '<title>cifar_resnet: look inside a network</title>' in html and 'vnd.jupyter.widget-view' in html
    assert not re.findall(r'(?:src|href)="(?:https?:)?//', html)                      # all from this machine
    with urlopen(f'{address}{token}&theme=dark&template=reveal', timeout=180) as page: assert 'theme-light' in page.read().decode()
    with pytest.raises(OSError): socket.create_connection((outer_address(), int(address.split(':')[2][:-1])), timeout=2)
    code, took = end(process)
    out, err = process.communicate()
    assert (code, out, err) == (0, '', '') and took < 60
    assert not list(tmp_path.glob('cifar_app-*')) and not list(tmp_path.glob('voila_*'))


@voila
def test_it_ends_cleanly_when_told_to(tmp_path):
    process = start('--port', '0', env={**os.environ, 'TMPDIR': str(tmp_path)}, cwd=tmp_path)
    process.stdout.readline()
    code, _ = end(process, signal.SIGTERM)
    assert (code, *process.communicate()) == (0, '', '') and not list(tmp_path.iterdir())


def outer_address():
    "An address of this machine other than loopback; where there is none, one that nobody has."
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        try: s.connect(('192.0.2.1', 9))                                              # nothing is sent
        except OSError: return '192.0.2.1'
        return s.getsockname()[0]
