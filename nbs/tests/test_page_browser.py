"A page ends its Python when it goes, whichever way it goes, and survives a file that is too large. In a browser; processes are counted."
import os, re, signal

import pytest

from browsing import FLAGS, Watch, app_process, browser, chromium, kernels, missing, open_app, until

pytestmark = [pytest.mark.browser, pytest.mark.skipif(bool(missing('voila', 'playwright')), reason=str(missing('voila', 'playwright')))]
lifetime = pytest.mark.trust('page and explorers', 'a kernel of cifar_app ends with its page')
# A page whose Python starts at once: a file can be chosen, and its size is shown.
LIGHT = '''
import cifar_resnet.page as page
page.MOST, page.UPLOAD_MB = 2, 3
notebook, SOURCE = page._app_notebook, """
import ipywidgets
chosen, size = ipywidgets.FileUpload(description='choose', multiple=True), ipywidgets.Label('nothing')
chosen.observe(lambda change: setattr(size, 'value', f"{sum(len(f['content']) for f in change['new'])} bytes"), 'value')
ipywidgets.VBox([chosen, size])
"""
def light(*args):
    nb = notebook(*args)
    nb['cells'][0]['source'] = SOURCE
    return nb
page._app_notebook = light
'''
GONE_S = 45                                  # 10 on an idle machine


@pytest.fixture(scope='module')
def chrome():
    with browser() as b: yield b


@pytest.fixture(scope='module')
def app():
    with app_process(before=LIGHT) as it: yield it


def visit(context, app):
    "An open page: itself, and its kernel's process."
    before, page = kernels(app), context.new_page()
    page.goto(app.address, wait_until='commit', timeout=60_000)
    page.get_by_role('button', name='choose').wait_for(timeout=180_000)
    return page, (kernels(app) - before).pop()


def gone(app, kernel): return lambda: kernel not in kernels(app)


def close(page): page.close(run_before_unload=True)
def close_the_window(page): page.context.close()
def navigate_away(page): page.goto('about:blank')
def crash(page):
    try: page.goto('chrome://crash', timeout=2000)
    except Exception: pass


@lifetime
@pytest.mark.parametrize('go', [close, close_the_window, navigate_away, crash])
def test_a_page_that_goes_ends_its_kernel(chrome, app, go):
    context = chrome.new_context()
    page, kernel = visit(context, app)
    page.wait_for_timeout(500)
    go(page)
    until(gone(app, kernel), GONE_S)
    assert not kernels(app)
    context.close()


@lifetime
def test_reloads_leave_one_kernel(chrome, app, cases):
    "Also with all places taken: the old page's place is the new one's."
    cases(2)
    context = chrome.new_context()
    other, page = (visit(context, app)[0] for _ in range(2))
    for _ in range(2):
        before = kernels(app)
        page.reload(wait_until='commit')
        page.get_by_role('button', name='choose').wait_for(timeout=180_000)
        until(lambda: len(kernels(app)) == 2 and kernels(app) != before, GONE_S)
    page.goto(re.sub(r'\?.*', '', page.url), wait_until='commit')                 # the cookie is enough
    page.get_by_role('button', name='choose').wait_for(timeout=180_000)
    context.close()
    until(lambda: not kernels(app), GONE_S)


@lifetime
def test_a_browser_that_is_killed(chrome, app):
    import psutil
    others = set(psutil.Process().children(recursive=True))
    another = chrome.browser_type.launch(executable_path=chromium(), args=FLAGS)
    _, kernel = visit(another, app)
    for p in set(psutil.Process().children(recursive=True)) - others: p.kill()
    until(gone(app, kernel), GONE_S)


@pytest.mark.trust('page and explorers', 'more pages of cifar_app than there is room for')
def test_one_page_too_many_says_so(chrome, app):
    context = chrome.new_context()
    for _ in range(2): visit(context, app)
    page = context.new_page()
    assert page.goto(app.address).status == 503
    assert 'close one of them, and reload this page' in page.inner_text('body') and len(kernels(app)) == 2
    context.pages[0].close()
    until(lambda: len(kernels(app)) == 1, GONE_S)
    page.reload(wait_until='commit')
    page.get_by_role('button', name='choose').wait_for(timeout=180_000)
    context.close()
    until(lambda: not kernels(app), GONE_S)


@pytest.mark.trust('page and explorers', 'strangers at the door of cifar_app')
def test_another_web_site_starts_nothing(chrome, app, cases):
    "A page of another server, with a picture, a frame, a fetch, a connection and a link to ours, in a browser that has our cookie."
    cases(5)
    import http.server, threading
    class Site(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            here = re.sub(r'\?.*', '', app.address)
            body = f'''<img src="{here}"><iframe src="{here}"></iframe><a href="{here}">go</a><script>
                fetch("{here}", {{mode: "no-cors", credentials: "include"}}); window.line = "waits"
                const line = new WebSocket("{here}api/kernels/0-0-0-0-0/channels".replace("http", "ws"))
                line.onopen = () => window.line = "open"; line.onerror = () => window.line = "refused"</script>'''
            self.send_response(200); self.send_header('Content-Type', 'text/html'); self.end_headers()
            self.wfile.write(body.encode())
        def log_message(self, *args): pass
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Site)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        context = chrome.new_context()
        page, kernel = visit(context, app)
        other = context.new_page()
        other.goto(f'http://127.0.0.1:{server.server_port}/')
        other.wait_for_function('window.line !== "waits"', timeout=20_000)
        other.wait_for_timeout(1000)
        assert other.evaluate('window.line') == 'refused' and kernels(app) == {kernel}
        other.click('a')
        assert 'Another web site asked' in other.inner_text('body') and kernels(app) == {kernel}
        context.close()
    finally: server.shutdown()
    until(lambda: not kernels(app), GONE_S)


def choose(page, *sizes):
    with page.expect_file_chooser() as chooser: page.get_by_role('button', name='choose').click()
    chooser.value.set_files([dict(name=f'{i} <b>photo</b>.png', mimeType='image/png', buffer=b'\0'*n) for i, n in enumerate(sizes)])


@pytest.mark.trust('page and explorers', 'a file too large for the page of cifar_app')
def test_files_too_large(chrome, app, cases):
    "A sentence at once, and the page goes on: alone, and two that are too large together."
    cases(2)
    context = chrome.new_context()
    page, kernel = visit(context, app)
    watch = Watch(page, app.address)
    said, size = page.locator('#said'), page.locator('.widget-label').last
    for sizes, mb in (([3*2**20 + 1], 4), ([2*2**20]*2, 4)):
        before = size.inner_text()
        choose(page, *sizes)
        said.wait_for(state='visible', timeout=20_000)
        assert f'has {mb} MB, and at most 3 can be sent: make the picture smaller' in said.inner_text() and '<b>photo</b>' in said.inner_text()
        page.wait_for_timeout(1000)
        assert size.inner_text() == before                                        # it was not sent
        choose(page, 1000 + len(sizes))                                                   # and a small one after it
        until(lambda: size.inner_text() == f'{1000 + len(sizes)} bytes', 30)
        assert not said.is_visible()
    choose(page, 3*2**20)
    until(lambda: size.inner_text() == f'{3*2**20} bytes', 30)
    assert not watch.found and kernels(app) == {kernel}
    context.close()
    until(lambda: not kernels(app), GONE_S)


@pytest.mark.trust('page and explorers', 'a page of cifar_app whose Python is gone')
def test_a_page_says_that_python_is_gone(chrome):
    with app_process(before=LIGHT) as app:
        page, _ = visit(chrome, app)
        os.kill(app.pid, signal.SIGTERM)
        page.get_by_text('Python cannot be reached').wait_for(timeout=60_000)
        page.close()


@lifetime
def test_a_training_that_goes_on_ends_with_its_page(chrome):
    with app_process() as app:
        page = chrome.new_page()
        training = open_app(page, app.address, 'Training')
        kernel, = kernels(app)
        training.get_by_role('button', name='Run', exact=True).click()
        busy = lambda: open(f'/proc/{kernel}/stat').read().rpartition(')')[2].split()[11]
        before = int(busy())
        until(lambda: int(busy()) > before + 200, 60)                             # two seconds of computing
        page.close()
        until(gone(app, kernel), GONE_S)
