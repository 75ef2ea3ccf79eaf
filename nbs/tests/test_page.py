"The explorers' page is for whoever started it alone: strangers of every kind ask a server, and its Pythons end with their pages. Without a browser."
import asyncio, http.client, os, re, signal, socket, stat, sys, threading, time
from http.cookies import SimpleCookie
from importlib.util import find_spec
from types import SimpleNamespace
from urllib.parse import parse_qs, urlsplit

import pytest

from browsing import app_process, kernels, until
from cifar_resnet.page import Door, door_for, listen_at, refusal, url

voila = pytest.mark.skipif(not find_spec('voila'), reason="no voila: pip install -e '.[app]'")
stranger = pytest.mark.trust('page and explorers', 'strangers at the door of cifar_app')
lifetime = pytest.mark.trust('page and explorers', 'a kernel of cifar_app ends with its page')
# A page of one slider: its Python starts at once. Two places, and little time.
LIGHT = '''
import os, cifar_resnet.page as page
page.MOST, page.CONNECT_S, page.LONE_S, page.UPLOAD_MB = 2, 3, 2, 1
notebook = page._app_notebook
def light(*args):
    nb = notebook(*args)
    nb['cells'][0]['source'] = f'import ipywidgets, os, time; time.sleep(120*os.path.exists({os.path.abspath("slow")!r})); ipywidgets.IntSlider()'
    nb['cells'][0]['source'] += f'; import atexit; _ = atexit.register(lambda: time.sleep(2*os.path.exists({os.path.abspath("clings")!r})))'
    return nb
page._app_notebook = light
'''
GONE_S = 60                                  # 10 on an idle machine


# The door, without a server.
MINE, HERE = 'cifar_app=sesame', '127.0.0.1:8866'
AT_HOME = Door('sesame', frozenset({'localhost', 'mybox'}))
OUTSIDE = Door('sesame', frozenset({'localhost', 'mybox', 'mybox.lan'}), outside=True)


def request(path='/', cookie=MINE, method='GET', host=HERE, **headers):
    path, _, query = path.partition('?')
    arguments = {k: [v.encode() for v in values] for k, values in parse_qs(query, keep_blank_values=True).items()}
    headers = {**({} if host is None else {'Host': host}), **{k.replace('_', '-'): v for k, v in headers.items()}}
    return SimpleNamespace(path=path, method=method, query_arguments=arguments, headers=headers, cookies=SimpleCookie(cookie))


@stranger
@pytest.mark.parametrize('host, at_home, outside', [
    (HERE, True, True), ('localhost:8866', True, True), ('LOCALHOST', True, True), ('localhost.', True, True), ('[::1]:8866', True, True),
    ('127.8.8.8', True, True), ('mybox:80', True, True), ('mybox.lan', False, True), ('192.168.1.7:8866', False, True), ('[fe80::1]', False, True),
    ('evil.example', False, False), ('evil.example:8866', False, False), ('localhost.evil.example', False, False), ('127.0.0.1.evil.example', False, False),
    ('evil.example#localhost', False, False), ('', False, False), (None, False, False), (':8866', False, False), ('[::1', False, False), ('0x7f.1', False, False),
])
def test_names(host, at_home, outside):
    for door, comes_in in ((AT_HOME, at_home), (OUTSIDE, outside)):
        words = refusal(request(host=host), door)
        assert (words == '') == comes_in
        assert comes_in or 'use the address that cifar_app printed' in words


@stranger
@pytest.mark.parametrize('how', [
    dict(cookie=''), dict(cookie='cifar_app='), dict(cookie='cifar_app=sesam'), dict(cookie='cifar_app=SESAME'), dict(cookie='cifar_app=sesame2'), dict(cookie='other=sesame'),
    dict(cookie='', path='/?token='), dict(cookie='', path='/?token=wrong'), dict(cookie='', path='/?token=sesame&token=wrong'), dict(cookie='', path='/?Token=sesame'),
    dict(cookie='', path='/?token=s%C3%A9same'), dict(cookie='', path='/?token=%ff%fe'), dict(cookie='cifar_app=s\u00e9same'),
    dict(cookie='', path='/?token=sesame', method='POST'), dict(cookie='', path='/?token=sesame', method='HEAD'),
    dict(cookie='', path='/voila/static/voila.js?token=sesame'), dict(cookie='', path='/api/kernels/1-1-1-1-1/channels?token=sesame'),
    dict(cookie='', Authorization='token sesame'), dict(cookie='', X_Forwarded_For='127.0.0.1'), dict(cookie='', path='//'),
])
def test_without_the_token(how):
    assert 'is for whoever started it: open the address' in refusal(request(**how), AT_HOME)


@stranger
@pytest.mark.parametrize('headers', [
    dict(Sec_Fetch_Site='cross-site'), dict(Sec_Fetch_Site='same-site'), dict(Sec_Fetch_Site='nonsense'), dict(Origin='https://evil.example'), dict(Origin='null'), dict(Origin=''),
    dict(Origin='http://127.0.0.1:9999'), dict(Origin='http://localhost:8866'), dict(Origin='http://127.0.0.1:8866.evil.example'), dict(Origin='http://evil@127.0.0.1:8866'),
    dict(Origin='http://127.0.0.1:8866', Sec_Fetch_Site='cross-site'),
])
@pytest.mark.parametrize('path, method', [('/', 'GET'), ('/api/kernels/1-1-1-1-1/channels', 'GET'), ('/voila/api/shutdown/1-1-1-1-1', 'POST')])
def test_sent_by_another_site(path, method, headers):
    assert 'Another web site asked' in refusal(request(path, method=method, **headers), AT_HOME)


@stranger
@pytest.mark.parametrize('path', ['/../etc/passwd', '/voila/static/../../app.ipynb', '/voila/static/%2e%2e/app.ipynb', '/voila/static/..%2fapp.ipynb',
                                  '/voila/static/..%5capp.ipynb', '/voila/static/\\..\\x', '/voila/templates/../static/x', '/voila/static/a%00.js', '/./'])
def test_paths_that_leave(path): assert refusal(request(path), AT_HOME) == 'There is no such file.'


@pytest.mark.parametrize('how', [dict(), dict(Sec_Fetch_Site='none'), dict(Sec_Fetch_Site='same-origin', Origin='http://127.0.0.1:8866'), dict(cookie='', path='/?token=sesame'),
                                 dict(cookie='', path='/?token=sesame', Sec_Fetch_Site='cross-site'), dict(cookie='a=b; cifar_app=sesame'), dict(Origin='https://127.0.0.1:8866')])
def test_who_started_it_comes_in(how): assert refusal(request(**how), AT_HOME) == ''


def test_a_token_is_new_at_each_start_and_long():
    tokens = {door_for('127.0.0.1', '127.0.0.1', 8866).token for _ in range(20)}
    assert len(tokens) == 20 and min(map(len, tokens)) >= 32


@pytest.mark.parametrize('ip, outside', [('127.0.0.1', False), ('localhost', False), ('127.3.2.1', False), ('0.0.0.0', True)])
def test_other_machines_are_let_in_only_when_asked_for(ip, outside):
    address, port = listen_at(ip, 0)
    door = door_for(ip, address, port)
    assert door.outside == outside and {ip, 'localhost', socket.gethostname().lower()} <= door.names
    assert url(address, port, door).startswith('http://127.') and url(address, port, door).endswith(door.token)


# A server.
@pytest.fixture(scope='module')
def app():
    with app_process(before=LIGHT) as it: yield it


def port(app): return urlsplit(app.address).port
def mine(app): return f'cifar_app_{port(app)}={app.token}'


def ask(app, path='/', method='GET', cookie=None, timeout=120, **headers):
    "(status, text, headers) of a request as written, with the owner's cookie if `cookie` is not given."
    connection = http.client.HTTPConnection('127.0.0.1', port(app), timeout=timeout)
    try:
        connection.putrequest(method, path, skip_host='Host' in headers)
        for name, value in {'Cookie': mine(app) if cookie is None else cookie, **headers}.items(): connection.putheader(name.replace('_', '-'), value)
        connection.endheaders()
        answer = connection.getresponse()
        return answer.status, answer.read().decode('utf-8', 'replace'), answer.headers
    finally: connection.close()


def open_page(app, **how):
    "A page as curl gets it, which connects to nothing: (status, its kernel's id or the sentence)."
    status, text, _ = ask(app, f'/?token={app.token}', cookie='', **how)
    if status != 200: return status, re.search('<p>(.*)</p>', text)[1]
    return status, re.search(r'"kernelId": "([\w-]+)"', text)[1]


def connect(app, kernel, cookie=None, sends=None, then=lambda: None, **headers):
    "Connect to a kernel: 'open', what the server closed it with, or the status of its refusal."
    from tornado.httpclient import HTTPClientError, HTTPRequest
    from tornado.websocket import websocket_connect
    async def run():
        address = f'ws://127.0.0.1:{port(app)}/api/kernels/{kernel}/channels?session_id=1'
        try: line = await websocket_connect(HTTPRequest(address, headers={'Cookie': mine(app) if cookie is None else cookie, **headers}))
        except HTTPClientError as e: return e.code
        if sends is not None:
            line.write_message(sends)
            while await line.read_message() is not None: pass
            return line.close_code
        then()
        line.close()
        return 'open'
    return asyncio.run(run())


NO_KERNEL = '00000000-0000-4000-8000-000000000000'


@voila
@stranger
@pytest.mark.parametrize('how, status', [
    (dict(cookie=''), 403),
    (dict(cookie='', path='/?token=wrong'), 403),
    (dict(Host='evil.example'), 403),
    (dict(Host=f'evil.example:8866', path='/?token=TOKEN'), 403),
    (dict(Host='192.168.1.7', path='/?token=TOKEN'), 403),
    (dict(Origin='http://evil.example'), 403),
    (dict(Sec_Fetch_Site='cross-site'), 403),
    (dict(Sec_Fetch_Site='same-site'), 403),
    (dict(path=f'/voila/api/shutdown/{NO_KERNEL}', method='POST', cookie=''), 403),
    (dict(path=f'/voila/api/shutdown/{NO_KERNEL}', method='POST', Origin='http://evil.example'), 403),
    (dict(path=f'/voila/api/shutdown/{NO_KERNEL}', method='GET'), 405),
    (dict(path=f'/voila/api/shutdown/{NO_KERNEL}', method='POST'), 204),
    (dict(path='/voila/api/shutdown/nonsense', method='POST'), 204),
    (dict(path=f'/api/kernels/{NO_KERNEL}', cookie=''), 403),
    (dict(path=f'/api/kernels/{NO_KERNEL}'), 404),
    (dict(path=f'/api/kernels/{NO_KERNEL}', method='DELETE'), 405),
    (dict(path='/api/kernels'), 404),
    (dict(path='/api/kernels', method='POST', Content_Length='0'), 404),
    (dict(path='/api/sessions'), 404), (dict(path='/api/contents'), 404), (dict(path='/api/terminals'), 404), (dict(path='/api/me'), 404), (dict(path='/api'), 404),
    (dict(path='/login'), 404), (dict(path='/logout'), 404), (dict(path='/metrics'), 404), (dict(path='/files/app.ipynb'), 404), (dict(path='/app.ipynb'), 404),
    (dict(path='/voila/files/app.ipynb'), 404), (dict(path='/voila/render/app.ipynb'), 404), (dict(path='/voila/tree'), 404), (dict(path='/voila/api/contents'), 404),
    (dict(path='/voila/templates/lab/static/voila.js'), 404), (dict(path='/voila/templates/cifar_resnet/index.html.j2'), 404),
    (dict(path='/voila/static/../../app.ipynb'), 403), (dict(path='/voila/static/%2e%2e/%2e%2e/app.ipynb'), 403), (dict(path='/voila/static//etc/passwd'), 403),
    (dict(path='/voila/labextensions/..%2f..%2fapp.ipynb'), 403), (dict(path='/voila/labextensions/nothing.js'), 404),
    (dict(path='/voila/static/voila.js', cookie=''), 403), (dict(path='/voila/static/voila.js'), 200),
    (dict(path='/', method='POST', Content_Length='0'), 405), (dict(path='/', method='PUT', Content_Length='0'), 405), (dict(path='/', method='OPTIONS'), 405), (dict(path='/', method='NONSENSE'), 405),
    (dict(path='//', cookie=''), 403), (dict(path='/' + 'a'*5000, cookie=''), 403),
])
def test_requests(app, how, status):
    "None of them starts a kernel, or is answered with more than a sentence."
    how = {k: v.replace('TOKEN', app.token) for k, v in how.items()}
    got, text, headers = ask(app, **how)
    assert got == status and not kernels(app)
    assert app.token not in text and 'Traceback' not in text and 'access-control-allow-origin' not in {k.lower() for k in headers}
    if status == 403 and 'Cookie' not in how and 'path' not in how: assert 'cifar_app printed' in text


@voila
@stranger
def test_a_stranger_cannot_fill_the_memory(app):
    "What is announced as large is not read at all."
    assert ask(app, method='POST', cookie='', Content_Length=str(50*2**20))[0] == 400


@voila
@lifetime
def test_a_kernel_from_its_page_to_its_end(app, cases):
    cases(12)
    status, kernel = open_page(app)
    assert status == 200 and len(kernels(app)) == 1
    for headers in (dict(cookie=''), dict(cookie=f'cifar_app_{port(app)}=wrong'), dict(Origin='http://evil.example'), dict(Origin='null'), dict(Host='evil.example')):
        assert connect(app, kernel, **headers) == 403
    assert connect(app, NO_KERNEL) == 404
    assert connect(app, kernel, Origin=f'http://127.0.0.1:{port(app)}', then=lambda: None) == 'open'
    assert connect(app, kernel) == 'open' and len(kernels(app)) == 1             # it came back in time
    assert connect(app, kernel, sends=b'x'*(3*2**20)) == 1009 and len(kernels(app)) == 1   # too large: only the connection is closed
    assert connect(app, kernel, then=lambda: time.sleep(4)) == 'open' and len(kernels(app)) == 1
    until(lambda: not kernels(app), GONE_S)
    assert connect(app, kernel) == 404
    until(lambda: ask(app, f'/api/kernels/{kernel}')[0] == 404, 20)


@voila
@lifetime
def test_the_last_request_of_a_page_ends_its_kernel(app):
    kernel = open_page(app)[1]
    assert ask(app, f'/voila/api/shutdown/{kernel}', 'POST', cookie='')[0] == 403 and len(kernels(app)) == 1
    assert [ask(app, f'/voila/api/shutdown/{kernel}', 'POST', Origin=f'http://127.0.0.1:{port(app)}')[0] for _ in range(2)] == [204, 204]
    assert not kernels(app)


@voila
@lifetime
def test_a_page_that_never_connects(app):
    open_page(app)
    until(lambda: not kernels(app), GONE_S)


@voila
@lifetime
@pytest.mark.parametrize('when', ['before it is read', 'at once', 'a kernel starts', 'it computes'])
def test_closed_while_python_is_starting(app, when):
    slow = app.said.with_name('slow')
    slow.touch()
    with socket.create_connection(('127.0.0.1', port(app))) as s:
        s.sendall(f'GET /?token={app.token} HTTP/1.1\r\n'.encode())
        time.sleep(.5)                                                           # the server waits for the rest
        if when == 'before it is read': os.kill(app.pid, signal.SIGSTOP)
        s.sendall(f'Host: 127.0.0.1:{port(app)}\r\n\r\n'.encode())
        if when in ('a kernel starts', 'it computes'): until(lambda: kernels(app), 60)
        if when == 'it computes': time.sleep(3)
    os.kill(app.pid, signal.SIGCONT)
    time.sleep(1)
    until(lambda: not kernels(app), GONE_S)
    time.sleep(1)
    slow.unlink()
    assert not kernels(app)                                                      # nor does anything start it again


@voila
@pytest.mark.trust('page and explorers', 'more pages of cifar_app than there is room for')
def test_many_pages_at_once(app, cases):
    cases(6)
    found = []
    threads = [threading.Thread(target=lambda: found.append(open_page(app))) for _ in range(6)]
    for t in threads: t.start()
    most = 0
    while any(t.is_alive() for t in threads):
        most = max(most, len(kernels(app)))
        time.sleep(.05)
    opened, refused = [k for status, k in found if status == 200], [words for status, words in found if status == 503]
    assert 2 <= len(opened) and len(opened) + len(refused) == 6 and most <= 2 and refused
    assert all('close one of them, and reload this page' in words for words in refused)
    until(lambda: not kernels(app), GONE_S)
    assert open_page(app)[0] == 200                                              # and there is room again
    until(lambda: not kernels(app), GONE_S)


def most_kernels(app, does):
    "How many Pythons there were at once while it was done, and until all had ended."
    most, worker = 0, threading.Thread(target=does)
    worker.start()
    start = time.monotonic()
    while worker.is_alive() or kernels(app):
        most = max(most, len(kernels(app)))
        assert time.monotonic() - start < 4*GONE_S
        time.sleep(.02)
    return most


def begin_page(app):
    "The connection of a page that a browser has asked for, and did not get yet."
    s = socket.create_connection(('127.0.0.1', port(app)))
    s.sendall(f'GET /?token={app.token} HTTP/1.1\r\nHost: 127.0.0.1:{port(app)}\r\n\r\n'.encode())
    return s


@voila
@pytest.mark.trust('page and explorers', 'more pages of cifar_app than there is room for')
def test_a_place_is_free_when_its_python_has_ended(app):
    "Reloaded pages whose old Pythons take their time."
    clings = app.said.with_name('clings')
    clings.touch()
    def reload_both():
        for kernel in [open_page(app)[1] for _ in range(2)]:
            assert connect(app, kernel) == 'open'
            threading.Thread(target=ask, args=(app, f'/voila/api/shutdown/{kernel}', 'POST')).start()
        time.sleep(.3)
        for _ in range(2): opened.append(open_page(app)[0])
    opened = []
    assert most_kernels(app, reload_both) == 2 and opened == [200, 200]
    clings.unlink()


@voila
@lifetime
def test_reloaded_again_and_again(app, cases):
    "Each page is left before, while or after its Python starts."
    cases(12)
    def reload_often():
        for i in range(12):
            with begin_page(app): time.sleep(.1*i)
    assert 1 <= most_kernels(app, reload_often) <= 2
    assert open_page(app)[0] == 200                                              # and no place is lost
    until(lambda: not kernels(app), GONE_S)


@voila
@lifetime
def test_closed_while_it_waits_for_a_place(app):
    pages = [open_page(app)[1] for _ in range(2)]
    for kernel in pages: assert connect(app, kernel) == 'open'
    with begin_page(app): time.sleep(.5)
    for kernel in pages: ask(app, f'/voila/api/shutdown/{kernel}', 'POST')
    start = time.monotonic()
    while time.monotonic() - start < 3: assert not kernels(app)


@voila
def test_nobody_else_sees_the_answer_or_puts_it_in_a_frame(app):
    _, _, headers = ask(app, f'/?token={app.token}', cookie='')
    cookies = [c for c in headers.get_all('Set-Cookie') if app.token in c]
    assert len(cookies) == 1 and {'HttpOnly', 'SameSite=Strict'} <= set(re.split('; *', cookies[0])) and cookies[0].startswith(mine(app))
    assert headers['Content-Security-Policy'] == "frame-ancestors 'none'" and headers['Referrer-Policy'] == 'same-origin' and 'no-store' in headers['Cache-Control']
    until(lambda: not kernels(app), GONE_S)


@voila
def test_and_the_terminal_stays_quiet(app):
    "Last of this module's server: nothing of the above was worth a word to its owner."
    assert app.said.read_text() == "", app.said.read_text()


@voila
def test_for_other_machines(tmp_path):
    "With --ip 0.0.0.0 it says so, and the token is asked for as well."
    with app_process('--ip', '0.0.0.0', before=LIGHT) as app:
        until(lambda: '\n' in app.said.read_text(), 20)
        said = app.said.read_text()
        assert said.startswith('cifar_app: other machines reach it at http://') and said.count('\n') == 1 and app.token in said and 'nothing is encrypted' in said
        assert ask(app, cookie='')[0] == 403 and ask(app, cookie='', Host='192.168.1.7')[0] == 403 and ask(app, '/voila/static/voila.js', Host='192.168.1.7')[0] == 200
        assert ask(app, Host='evil.example')[0] == 403 and not kernels(app)


def test_the_token_is_not_on_the_command_line_of_the_browser(tmp_path, monkeypatch):
    from cifar_resnet import page
    seen = []
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setattr(page.webbrowser, 'open', seen.append)
    file = page._open('http://127.0.0.1:1/?token=sesame', tmp_path)
    assert seen == [file.as_uri()] and 'sesame' not in seen[0] and 'url=http://127.0.0.1:1/?token=sesame"' in file.read_text()
    assert stat.S_IMODE(os.stat(file).st_mode) == 0o600 and file.parent == tmp_path
