"The download against a server on this machine that behaves badly in various ways."
import hashlib, os, socket, struct, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from cifar_resnet.fetch import fetch

DATA = os.urandom(200_000)
SHA = hashlib.sha256(DATA).hexdigest()


class Bad(BaseHTTPRequestHandler):
    "The path says what goes wrong."
    def log_message(self, *args): pass

    def send(self, data, code=200, length=None, **headers):
        self.send_response(code)
        self.send_header('Content-Length', str(len(data) if length is None else length))
        for k, v in headers.items(): self.send_header(k.replace('_', '-'), v)
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        self.server.asked.append(self.headers.get('Range'))
        start = int((self.headers.get('Range') or 'bytes=0-')[6:-1])
        first = len(self.server.asked) == 1
        match self.path.strip('/'):
            case 'good': self.send(DATA[start:], 206 if start else 200, Content_Range=f'bytes {start}-{len(DATA)-1}/{len(DATA)}')
            case 'ignores-range': self.send(DATA[:1000], length=len(DATA)) if first else self.send(DATA)
            case 'wrong-range': self.send(DATA[:1000], length=len(DATA)) if first else self.send(DATA[500:], 206, Content_Range=f'bytes 500-{len(DATA)-1}/{len(DATA)}') if start else self.send(DATA)
            case 'breaks-once': self.send(DATA[:120_000], length=len(DATA)) if first else self.send(DATA[start:], 206, Content_Range=f'bytes {start}-{len(DATA)-1}/{len(DATA)}')
            case 'other-file': self.send(os.urandom(len(DATA)))
            case 'too-long': self.send(DATA + b'more')
            case 'too-short': self.send(DATA[:1000])
            case 'to-http': self.send(b'', 302, Location='http://example.org/file')
            case 'gone': self.send(b'', 404)
            case 'resets':
                self.send(DATA[:1000], length=len(DATA))
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))       # closing it resets the connection
                self.connection.close()
            case 'nothing-to-resume': self.send(b'', 416) if start else self.send(DATA)
            case 'stalls':
                self.send(DATA[:1000], length=len(DATA))
                time.sleep(3)


@pytest.fixture
def server():
    server = ThreadingHTTPServer(('127.0.0.1', 0), Bad); server.asked = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def url(server, what): return f'http://127.0.0.1:{server.server_port}/{what}'


@pytest.mark.trust('hostile', 'servers')
@pytest.mark.parametrize('what', ['good', 'ignores-range', 'breaks-once'])
def test_gets_there(what, server, tmp_path):
    assert fetch([url(server, what)], tmp_path/'file', SHA, len(DATA)).read_bytes() == DATA
    assert os.listdir(tmp_path) == ['file']


@pytest.mark.trust('hostile', 'servers')
@pytest.mark.parametrize('what, said', [
    ('other-file', 'wrong SHA-256'), ('too-long', 'sent more than'), ('too-short', 'closed after'), ('to-http', 'http://example.org/file is not https'),
    ('gone', 'HTTP Error 404'), ('stalls', 'timed out'), ('resets', 'reset by peer|closed after')])
def test_fails_and_the_next_mirror_helps(what, said, server, tmp_path):
    with pytest.raises(OSError, match=said): fetch([url(server, what)], tmp_path/'file', SHA, len(DATA), tries=2, timeout=.5)
    assert not (tmp_path/'file').exists()
    assert fetch([url(server, what), url(server, 'good')], tmp_path/'file', SHA, len(DATA), tries=1, timeout=.5).read_bytes() == DATA


@pytest.mark.trust('hostile', 'servers')
def test_goes_on_where_it_stopped(server, tmp_path):
    (tmp_path/'file.part').write_bytes(DATA[:150_000])
    assert fetch([url(server, 'good')], tmp_path/'file', SHA, len(DATA)).read_bytes() == DATA
    assert server.asked == ['bytes=150000-']


@pytest.mark.trust('hostile', 'servers')
def test_a_wrong_part_is_thrown_away(server, tmp_path):
    (tmp_path/'file.part').write_bytes(b'x'*150_000)
    assert fetch([url(server, 'good')], tmp_path/'file', SHA, len(DATA)).read_bytes() == DATA


@pytest.mark.trust('hostile', 'servers')
def test_a_part_longer_than_the_file(server, tmp_path):
    (tmp_path/'file.part').write_bytes(DATA + b'more')
    assert fetch([url(server, 'nothing-to-resume')], tmp_path/'file', SHA, len(DATA)).read_bytes() == DATA


def test_a_whole_file_is_not_fetched_again(server, tmp_path):
    (tmp_path/'file').write_bytes(DATA)
    fetch([url(server, 'good')], tmp_path/'file', SHA)
    assert server.asked == []


@pytest.mark.trust('hostile', 'servers')
def test_a_server_that_answers_another_range(server, tmp_path):
    assert fetch([url(server, 'wrong-range'), url(server, 'good')], tmp_path/'file', SHA, len(DATA), tries=3).read_bytes() == DATA


def test_a_wrong_file_is_fetched_again(server, tmp_path):
    (tmp_path/'file').write_bytes(b'wrong')
    assert fetch([url(server, 'good')], tmp_path/'file', SHA).read_bytes() == DATA


def test_another_range_is_named(server, tmp_path):
    with pytest.raises(OSError, match='another part'): fetch([url(server, 'wrong-range')], tmp_path/'file', SHA, len(DATA), tries=2)
