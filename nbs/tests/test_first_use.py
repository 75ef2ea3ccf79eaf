"The first use of a data folder, by several at once, from mirrors that drip or hang, in folders that others share: a server in threads, no network."
import hashlib, io, os, random, stat, tarfile, threading, time, warnings
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cifar_resnet import data as data_module, fetch as fetch_module
from cifar_resnet.cli import main
from cifar_resnet.data import CIFAR10, _made
from cifar_resnet.fetch import alone, fetch, readable
from cifar_resnet.job import check_no_stranger
from processes import finish, start, wait_for

DATA = random.Random(0).randbytes(300_000)                 # the same in each process
SHA = hashlib.sha256(DATA).hexdigest()
MEMBERS = dict(data_batch_1=DATA[:1000], test_batch=DATA[1000:2000])


def trust(what): return pytest.mark.trust('hard knocks', what)

def packed():
    "A small archive of the official layout, the same bytes in each process (gzip would note the time)."
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode='w') as tar:
        for name, content in MEMBERS.items():
            info = tarfile.TarInfo(f'{CIFAR10.folder}/{name}'); info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()

PACKED = packed()
SMALL = replace(CIFAR10, sha256=hashlib.sha256(PACKED).hexdigest(), size=len(PACKED),
                members={name: (len(content), hashlib.md5(content).hexdigest()) for name, content in MEMBERS.items()})


class Slow(BaseHTTPRequestHandler):
    "The path says how."
    def log_message(self, *args): pass

    def send(self, data, length=None):
        self.send_response(200); self.send_header('Content-Length', str(length or len(data))); self.end_headers()
        self.wfile.write(data)

    def drip(self, data):
        "A byte now and then, for ten seconds."
        for byte in data[:200]:
            if self.server.over.is_set(): return
            self.wfile.write(bytes([byte])); time.sleep(.05)

    def do_GET(self):
        path = self.path.strip('/')
        self.server.asked.append(path)
        with suppress(OSError):
            match path:
                case 'good': self.send(DATA)
                case 'archive': self.server.gate.wait(120); self.send(PACKED)
                case 'drips': self.send(DATA[:1000], len(DATA)); self.drip(DATA[1000:])
                case 'drips-its-head': self.drip(b'HTTP/1.0 200 OK\r\n' + b'X-Header: of no use whatsoever\r\n'*1000)
                case 'hangs': self.server.over.wait(60)
                case 'hangs-midway': self.send(DATA[:150_000], len(DATA)); self.server.over.wait(60)
                case 'other': self.send(os.urandom(len(DATA)))
                case _: self.send_error(404)


@pytest.fixture
def server():
    server = ThreadingHTTPServer(('127.0.0.1', 0), Slow)
    server.asked, server.over, server.gate, server.daemon_threads = [], threading.Event(), threading.Event(), True
    server.gate.set()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.over.set(); server.shutdown()

def url(server, path): return f'http://127.0.0.1:{server.server_port}/{path}'


# 1. Mirrors

@trust('mirrors that drip, hang, lack the file or have another')
@pytest.mark.parametrize('path, said', [
    ('drips', 'fewer than 10,000 bytes a second for 1 s'), ('drips-its-head', 'fewer than 10,000'), ('hangs', 'fewer than 10,000'),
    ('hangs-midway', 'timed out'), ('gone', '404'), ('other', 'wrong SHA-256')])
def test_the_next_mirror(path, said, server, tmp_path):
    started = time.monotonic()
    with pytest.raises(OSError, match=said): fetch([url(server, path)], tmp_path/'file', SHA, len(DATA), timeout=1)
    assert fetch([url(server, path), url(server, 'good')], tmp_path/'file', SHA, len(DATA), timeout=1).read_bytes() == DATA
    assert time.monotonic() - started < 30 and server.asked.count(path) == 2                      # it is not asked again and again
    assert [p.name for p in tmp_path.iterdir()] == ['file']

def test_a_slow_mirror_that_is_quick_enough(server, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch_module, 'LEAST', 5)
    with pytest.raises(OSError, match='closed after 1,0|fewer than 5 bytes'):
        monkeypatch.setattr(Slow, 'drip', lambda self, data: (time.sleep(2.5), self.wfile.write(data[:9])))
        fetch([url(server, 'drips')], tmp_path/'file', SHA, len(DATA), tries=1, timeout=5)


# 2. Several at once

def fetching(address, path, code):
    "A process: its own exit code if it has the file."
    warnings.showwarning = lambda message, *args, **kw: print(message, flush=True)
    return code if fetch([address], path, SHA, len(DATA)).read_bytes() == DATA else 9

def unpacking(address, top):
    warnings.showwarning = lambda message, *args, **kw: print(message, flush=True)
    folder = _made(Path(top), None, SMALL, [address])
    return 0 if {p.name: p.read_bytes() for p in folder.iterdir()} == MEMBERS else 9

@trust('several processes fetch and unpack into one folder')
def test_three_at_once(server, tmp_path, cases):
    cases(3)
    top = tmp_path/'data'
    said = lambda: [(tmp_path/f'log{i}').read_text() if (tmp_path/f'log{i}').exists() else '' for i in range(3)]
    server.gate.clear()
    three = [start(tmp_path/f'log{i}', unpacking, url(server, 'archive'), top) for i in range(3)]
    wait_for(lambda: sum('another process is making' in words for words in said()) == 2)          # and say so
    server.gate.set()
    assert [finish(p) for p in three] == [0, 0, 0] and server.asked == ['archive']
    assert {p.name for p in top.iterdir()} == {CIFAR10.folder, CIFAR10.file}                      # no lock, no part
    assert sum(words.count('another process is making') for words in said()) == 2                 # in one line each

@trust('who fetches is killed: the next one goes on')
def test_the_one_who_fetches_dies(server, tmp_path):
    first = start(tmp_path/'first', fetching, url(server, 'hangs-midway'), tmp_path/'file', 0)
    wait_for(lambda: (tmp_path/'file.part').exists() and (tmp_path/'file.part').stat().st_size > 0 or server.asked, first)
    second = start(tmp_path/'second', fetching, url(server, 'good'), tmp_path/'file', 7)
    wait_for(lambda: 'another process is making' in (tmp_path/'second').read_text() if (tmp_path/'second').exists() else False, second)
    first.kill()
    assert finish(second) == 7 and [p.name for p in tmp_path.glob('file*')] == ['file']

@trust('a folder without locks')
def test_without_locks(server, tmp_path, monkeypatch):
    def no_locks(*args): raise OSError(37, 'No locks available')
    monkeypatch.setattr(fetch_module.fcntl, 'flock', no_locks)
    (tmp_path/'file.part').write_bytes(b'of somebody who is at work')
    assert fetch([url(server, 'good')], tmp_path/'file', SHA, len(DATA)).read_bytes() == DATA
    assert (tmp_path/'file.part').read_bytes() == b'of somebody who is at work'


# 3. What lies in the place of ours

def link(path): path.symlink_to(path.parent/'outside')
def hard_link(path): os.link(path.parent/'outside', path)
def folder(path): path.mkdir(); (path/'x').touch()
def pipe(path): os.mkfifo(path)
def link_to_nothing(path): path.symlink_to(path.parent/'nothing')

@trust('a link, a pipe or a folder in the place of a .part or a .lock')
@pytest.mark.parametrize('name', ['file.part', 'file.lock'])
@pytest.mark.parametrize('plant', [link, hard_link, folder, pipe, link_to_nothing])
def test_planted(plant, name, server, tmp_path):
    (tmp_path/'outside').write_text('dear to me')
    plant(tmp_path/name)
    assert fetch([url(server, 'good')], tmp_path/'file', SHA, len(DATA)).read_bytes() == DATA
    assert (tmp_path/'outside').read_text() == 'dear to me' and not (tmp_path/'nothing').exists() and not (tmp_path/'file').is_symlink()

@trust('a link or leftovers in the place of the folder that is unpacked into')
@pytest.mark.parametrize('plant', [link, folder, link_to_nothing, Path.touch])
def test_planted_beside_an_archive(plant, server, tmp_path):
    (tmp_path/'outside').mkdir()
    plant(tmp_path/f'{CIFAR10.folder}.part')
    (tmp_path/CIFAR10.file).write_bytes(PACKED)
    made = _made(tmp_path, tmp_path/CIFAR10.file, SMALL, [])
    assert {p.name: p.read_bytes() for p in made.iterdir()} == MEMBERS and not any((tmp_path/'outside').iterdir())

@trust("another user's .part")
def test_another_users_part(server, tmp_path, monkeypatch):
    (tmp_path/'file.part').write_bytes(DATA[:1000])
    user = os.geteuid()
    monkeypatch.setattr(fetch_module.os, 'geteuid', lambda: user + 1)
    assert fetch([url(server, 'good')], tmp_path/'file', SHA, len(DATA)).read_bytes() == DATA
    assert (tmp_path/'file.part').read_bytes() == DATA[:1000]

@trust("another user's lock")
def test_another_users_lock(server, tmp_path, monkeypatch):
    "It cannot be written; to read it is enough to wait for it."
    usual = os.open
    def only_read(path, flags, *args, **kw):
        if str(path).endswith('.lock') and flags & os.O_RDWR: raise PermissionError(13, 'Permission denied', str(path))
        return usual(path, flags, *args, **kw)
    (tmp_path/'file.lock').touch()
    monkeypatch.setattr(fetch_module.os, 'open', only_read)
    with alone(tmp_path/'file') as sure: assert sure


# 4. Who may read

@trust('a second user may read what lies in a shared folder')
@pytest.mark.parametrize('umask', [0o022, 0o077])
@pytest.mark.parametrize('mode', [0o755, 0o775, 0o700, 0o750])
def test_readable(mode, umask, tmp_path, server):
    top = tmp_path/'shared'; top.mkdir()
    top.chmod(mode)
    before = os.umask(umask)
    try: made = _made(top, None, SMALL, [url(server, 'archive')])
    finally: os.umask(before)
    rights = lambda path: stat.S_IMODE(path.stat().st_mode)
    for path in (top/CIFAR10.file, *made.iterdir()): assert rights(path) & mode & 0o444 == mode & 0o444 and not rights(path) & 0o022, oct(rights(path))
    assert rights(made) & mode & 0o555 == mode & 0o555


# 5. What is left of ours is no stranger

TINY = '--dataset shapes10 --width 2 --epochs 1 --limit 40 --batch_size 20 --device cpu'.split()

@trust('leftovers in a run folder without a run')
@pytest.mark.parametrize('names', [['run.json.part'], ['.lock'], ['checkpoints/.lock', 'run.json.part']])
def test_leftovers(names, tmp_path):
    out = tmp_path/'run'
    for name in names:
        (out/name).parent.mkdir(parents=True, exist_ok=True)
        (out/name).write_text('{"half": ')
    assert main([*TINY, '--out', str(out)]) == 0
    assert not (out/'run.json.part').exists()

@pytest.mark.parametrize('name', ['film.part', 'run.json.part.txt', 'x.lock'])
def test_what_is_not_ours(name, tmp_path):
    (tmp_path/name).touch()
    with pytest.raises(FileExistsError, match='holds something else'): check_no_stranger(tmp_path)
