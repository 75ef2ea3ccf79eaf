"""Servers and a browser for the tests and measurements of the explorers. They ask this machine alone: the browser finds no other."""
import json, os, re, select, shutil, signal, socket, subprocess, sys, tempfile, time
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit
from urllib.request import urlopen

BROWSERS = 'chromium chromium-browser google-chrome google-chrome-stable chrome'.split()
FLAGS = '''--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync
    --no-proxy-server'''.split() + ['--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1']
APP = 'import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); from cifar_resnet.cli import app_main; sys.exit(app_main())'     # in the background a shell lets SIGINT be ignored
STARTING_S = 180                                         # Python, torch and a network, on a busy machine
# What a browser may complain of without a fault of ours.
HARMLESS = [r'favicon\.ico', r'\.map$']                  # an icon that a server lacks; maps from minified scripts to their source


def chromium(): return os.environ.get('CHROMIUM') or next(filter(None, map(shutil.which, BROWSERS)), None)


def missing(*packages):
    "What is missing for the tests in a browser, and how to get it; None if nothing is."
    lacking = [p for p in packages if not find_spec(p)]
    if lacking: return f"no {', '.join(lacking)}: pip install -e '.[browser]'"
    if not chromium(): return 'no Chromium or Chrome: apt-get install chromium, or set CHROMIUM to its path'


def free_port():
    with socket.create_server(('127.0.0.1', 0)) as s: return s.getsockname()[1]


def end(process, by=signal.SIGINT, within=90):
    "Stop a process that we started, and what it says last: (exit code, seconds)."
    start = time.monotonic()
    if process.poll() is None: process.send_signal(by)
    try: process.wait(within)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    return process.returncode, time.monotonic() - start


@contextmanager
def app_process(*flags, before='', **env):
    "The command `cifar_app` on a free port, after the Python `before`: its address as printed, token, process id, and a file of what it complains of."
    with tempfile.TemporaryDirectory() as folder:                      # what is trained by hand lands there
        said = Path(folder)/'said'
        with open(said, 'wb') as f:
            process = subprocess.Popen([sys.executable, '-c', f'{before}\n{APP}', '--port', '0', '--no_browser', *flags], stdout=subprocess.PIPE, stderr=f, text=True, cwd=folder, env={**os.environ, **env})
        try:
            if not select.select([process.stdout], [], [], STARTING_S)[0]: raise TimeoutError(f'cifar_app said nothing for {STARTING_S} s')
            line = process.stdout.readline()
            if not line.startswith('http'): raise RuntimeError(f'cifar_app did not start (exit code {process.wait()}): {said.read_text()}')
            address = line.split()[0]
            yield SimpleNamespace(address=address, token=address.partition('token=')[2], pid=process.pid, said=said)
        finally: end(process)


@contextmanager
def app_server(*flags):
    "The command `cifar_app` on a free port: yields its address, as it prints it."
    with app_process(*flags) as app: yield app.address


def kernels(app):
    "The process ids of the Pythons that a `cifar_app` has started."
    import psutil
    def is_kernel(p):
        try: return 'ipykernel_launcher' in p.cmdline()
        except psutil.Error: return False
    return {p.pid for p in psutil.Process(app.pid).children(recursive=True) if is_kernel(p)}


def until(condition, within_s, what='it never came to that'):
    "Wait for something to hold; the seconds that it took."
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < within_s, what
        time.sleep(.05)
    return time.monotonic() - start


@contextmanager
def lab_server(folder, cells, theme='JupyterLab Light'):
    "JupyterLab with a notebook of these cells, and a kernel that is this Python: yields the notebook's address."
    from cifar_resnet.page import _app_files
    folder, port = Path(folder), free_port()
    path = _app_files(folder, None)
    nb = json.loads(path.read_text())
    nb['cells'] = [dict(nb['cells'][0], id=f'cell{i}', source=source) for i, source in enumerate(cells)]
    path.write_text(json.dumps(nb))
    settings = folder/'config'/'labconfig'/'default_setting_overrides.json'
    settings.parent.mkdir(parents=True)
    settings.write_text(json.dumps({'@jupyterlab/apputils-extension:themes': dict(theme=theme),
                                    '@jupyterlab/apputils-extension:notification': dict(fetchNews='false', checkForUpdates=False),
                                    '@jupyterlab/notebook-extension:tracker': dict(windowingMode='none')}))      # else a cell out of sight is not on the page
    env = {**os.environ, 'JUPYTER_CONFIG_DIR': str(folder/'config'), 'JUPYTER_PATH': str(folder), 'JUPYTER_RUNTIME_DIR': str(folder/'runtime'), 'JUPYTERLAB_WORKSPACES_DIR': str(folder/'workspaces')}
    command = [sys.executable, '-m', 'jupyterlab', '--no-browser', '--allow-root', '--ip=127.0.0.1', f'--port={port}', '--ServerApp.port_retries=0', '--IdentityProvider.token=',
               f'--ServerApp.root_dir={folder}', '--LabApp.news_url=None', '--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate', '--log-level=ERROR']
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        address, start = f'http://127.0.0.1:{port}', time.monotonic()
        while True:
            try: urlopen(f'{address}/api', timeout=5).close()
            except OSError:
                if time.monotonic() - start > STARTING_S or process.poll() is not None: raise
                time.sleep(.2)
            else: break
        yield f'{address}/doc/tree/app.ipynb'
    finally: end(process, signal.SIGTERM)


@contextmanager
def browser():
    "A headless browser with nothing in it."
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        b = p.chromium.launch(executable_path=chromium(), args=FLAGS)
        try: yield b
        finally: b.close()


class Watch:
    "What goes wrong on a page: errors it reports, answers that it did not get, and servers elsewhere that it asked."
    def __init__(self, page, address):
        self.found, here = [], urlsplit(address).netloc
        def note(what, url=''):
            if not any(re.search(p, url) for p in HARMLESS): self.found.append(f'{what} {url}'.strip())
        page.on('console', lambda m: note(m.text, m.location.get('url', '')) if m.type == 'error' else None)
        page.on('pageerror', lambda e: note(f'exception: {e}'))
        page.on('dialog', lambda d: (note(f'dialog: {d.message}'), d.dismiss()))
        page.on('request', lambda r: note('asked elsewhere:', r.url) if urlsplit(r.url).scheme in ('http', 'https', 'ws', 'wss') and urlsplit(r.url).netloc != here else None)


def picture(explorer): return explorer.locator('img.cifar-picture, .cifar-picture img').first
def message(explorer): return explorer.locator('.cifar-message').first
COLUMNS = 'img.cifar-picture, .cifar-picture img'                       # of one picture
def shown(explorer):
    "The addresses of the picture's bytes, others after each change."
    return explorer.locator(COLUMNS).evaluate_all("all => all.map(img => img.src).join(' ')")


def pixels(explorer):
    "The picture's bytes, as text: equal pictures are equal."
    return explorer.locator(COLUMNS).evaluate_all('''async all => {
        let text = '';
        for (const img of all) {
            const bytes = new Uint8Array(await (await fetch(img.src)).arrayBuffer());
            for (const b of bytes) text += String.fromCharCode(b) }
        return btoa(text) }''')


def changed(explorer, before, within_s=20):
    "Wait until the picture is another one than `before` and is drawn; its new address."
    explorer.page.wait_for_function('''([explorer, columns, before]) => {
        const all = [...explorer.querySelectorAll(columns)];
        return all.map(img => img.src).join(' ') !== before && all.every(img => img.complete && img.naturalWidth > 0) }''',
        arg=[explorer.element_handle(), COLUMNS, before], timeout=within_s*1000)
    return shown(explorer)


def slider(explorer, name):
    "The handle of the slider with this description."
    box = explorer.locator('.widget-hslider').filter(has=explorer.page.locator('.widget-label', has_text=re.compile(f'^{re.escape(name)}$')))
    return box.locator('[role=slider], .noUi-handle').first


def open_app(page, address, tab=None):
    "Open the explorers' page; the explorer behind a tab, or None."
    page.goto(address, wait_until='commit', timeout=60_000)
    page.locator('.cifar-gradcam').first.wait_for(state='visible', timeout=STARTING_S*1000)
    return tab and open_tab(page, tab)


TABS = dict(Maps='gradcam', Mistakes='mistakes', Augmentation='augmentation', Training='training')


def open_tab(page, tab):
    page.get_by_role('tab', name=tab, exact=True).click()
    explorer = page.locator(f'.cifar-{TABS[tab]}').first
    explorer.wait_for(state='visible', timeout=20_000)
    return explorer
