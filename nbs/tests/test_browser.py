"The explorers as a visitor has them: clicked, dragged and typed into in a browser, behind Voilà and in JupyterLab."
import io, re, time

import numpy as np
import pytest
from PIL import Image

from browsing import (STARTING_S, Watch, app_server, browser, changed, lab_server, message, missing, open_app, open_tab, picture, pixels, shown,
                      slider)

pytestmark = [pytest.mark.browser, pytest.mark.skipif(bool(missing('voila', 'playwright')), reason=str(missing('voila', 'playwright')))]
HOSTILE = '<img src=x onerror=alert(1)>.png'


@pytest.fixture(scope='module')
def chrome():
    with browser() as b: yield b


@pytest.fixture(scope='module')
def site():
    with app_server() as address: yield address


@pytest.fixture(scope='module')
def visit(chrome, site):
    "One visit for all tests: its page, and what went wrong on it."
    page = chrome.new_page(viewport=dict(width=1280, height=1000))
    watch = Watch(page, site)
    open_app(page, site)
    yield page, watch
    page.close()


@pytest.fixture(autouse=True)
def no_trouble(request):
    "No test leaves an error on the page."
    yield
    if 'visit' in request.fixturenames:
        page, watch = request.getfixturevalue('visit')
        page.wait_for_timeout(100)
        found, watch.found[:] = list(watch.found), []
        assert not found, '\n'.join(found)


@pytest.fixture
def maps(visit): return open_tab(visit[0], 'Maps')

@pytest.fixture
def mistakes(visit): return open_tab(visit[0], 'Mistakes')

@pytest.fixture
def augmentation(visit): return open_tab(visit[0], 'Augmentation')

@pytest.fixture
def training(visit): return open_tab(visit[0], 'Training')


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, 'PNG')
    return buffer.getvalue()


def upload(explorer, name, data):
    with explorer.page.expect_file_chooser() as chooser: explorer.locator('button.widget-upload').click()
    chooser.value.set_files(dict(name=name, mimeType='image/png', buffer=data))


def still(explorer, seconds=2.):
    "The picture's address, if it stays the same for so long."
    before = shown(explorer)
    explorer.page.wait_for_timeout(seconds*1000)
    assert shown(explorer) == before
    return before


def test_the_page_looks_like_an_app(visit):
    page, _ = visit
    assert page.title() == 'cifar_resnet: look inside a network'
    assert page.get_by_role('heading', name=page.title()).is_visible()
    assert page.get_by_role('tab').all_inner_texts() == ['Maps', 'Mistakes', 'Augmentation', 'Training']
    for hidden in ('#loading', '.jp-InputArea', '.jp-OutputPrompt', '.jp-RenderedText'): assert not page.locator(hidden).filter(visible=True).count(), hidden
    assert 'import' not in page.locator('body').inner_text()


def test_while_python_starts_the_page_says_so(chrome, site):
    page = chrome.new_page()
    watch = Watch(page, site)
    page.goto(site, wait_until='commit')
    page.get_by_text('Python is starting').wait_for(state='visible', timeout=20_000)
    assert page.title() == 'cifar_resnet: look inside a network' and not watch.found
    page.close()                                                        # Voilà ends the kernel


@pytest.mark.parametrize('tab', ['Maps', 'Mistakes', 'Augmentation', 'Training'])
def test_every_tab_opens_with_a_picture(visit, tab):
    explorer = open_tab(visit[0], tab)
    explorer.page.wait_for_function('img => img.complete && img.naturalWidth > 100', arg=picture(explorer).element_handle(), timeout=20_000)


def test_another_class_has_another_map(maps):
    select, old = maps.get_by_label('class', exact=True), shown(maps)
    here = pixels(maps)
    names = select.locator('option').all_inner_texts()
    select.select_option(index=len(names) - 1)
    second = changed(maps, old)
    assert pixels(maps) != here
    select.select_option(index=0)
    changed(maps, second)
    assert pixels(maps) == here                                         # and back


@pytest.mark.parametrize('name, value', [('method', 'hirescam'), ('layer', 0)])
def test_another_method_and_layer(maps, name, value):
    select, old, here = maps.get_by_label(name, exact=True), shown(maps), pixels(maps)
    was = select.input_value()
    select.select_option(**({'index': value} if isinstance(value, int) else {'label': value}))
    new = changed(maps, old)
    select.select_option(value=was)
    changed(maps, new)
    assert pixels(maps) == here


def test_a_picture_of_ones_own(maps):
    old, said = shown(maps), message(maps).inner_text()
    upload(maps, 'mine.png', png(np.random.default_rng(0).integers(0, 256, (50, 40, 3), np.uint8)))
    changed(maps, old)
    assert message(maps).inner_text() != said
    assert maps.get_by_label('show').locator('option:checked').inner_text() == 'mine.png'


@pytest.mark.parametrize('data', [b'this is text', png(np.zeros((64, 64, 3), np.uint8))[:60]], ids=['text', 'half a picture'])
def test_a_file_that_is_no_picture(maps, data):
    old = shown(maps)
    upload(maps, HOSTILE, data)
    line = message(maps).get_by_text(HOSTILE)                           # as text, so it was escaped
    line.wait_for(timeout=10_000)
    assert '\n' not in line.inner_text().strip() and 'Traceback' not in line.inner_text()
    assert not maps.page.locator('img[src="x"]').count()
    assert shown(maps) == old
    maps.get_by_label('class', exact=True).select_option(index=3)       # the explorer lives on
    changed(maps, old)
    maps.get_by_label('class', exact=True).select_option(index=0)


def test_a_picture_with_a_hostile_name(maps):
    old = shown(maps)
    upload(maps, HOSTILE, png(np.full((32, 32, 3), 90, np.uint8)))
    changed(maps, old)
    assert not maps.page.locator('img[src="x"]').count()


def test_a_large_picture_keeps_the_connection(maps):
    "An upload is one message: above 10 MiB Tornado would close the connection, were it not told otherwise."
    old, big = shown(maps), png(np.random.default_rng(0).integers(0, 256, (2200, 2200, 3), np.uint8))
    assert len(big) > 12*2**20
    upload(maps, 'large.png', big)
    new = changed(maps, old, 60)
    maps.get_by_label('class', exact=True).select_option(index=2)
    changed(maps, new)


def test_cells_of_the_confusion_matrix(mistakes):
    cells = mistakes.locator('button[title*="predicted"]')
    assert cells.count() == 100
    title = re.compile(r'true (.+), predicted (.+): ([\d,]+) images?$')
    found = [title.match(t).groups() for t in cells.evaluate_all('all => all.map(b => b.title)')]
    wrong = [(t, p, n) for t, p, n in found if t != p and n != '0']
    wrong.sort(key=lambda cell: int(cell[2].replace(',', '')))
    for true, predicted, n in (wrong[0], wrong[-2]):                    # the page begins with the last
        old = shown(mistakes)
        mistakes.locator(f'button[title^="true {true}, predicted {predicted}:"]').click()
        changed(mistakes, old)
        words = message(mistakes).inner_text()
        assert n in words and true in words and predicted in words
    assert all(cells.nth(i).is_disabled() for i, (_, _, n) in enumerate(found) if n == '0')


@pytest.mark.parametrize('name', ['angle', 'hole', 'padding'])
def test_a_slider_by_the_keyboard(augmentation, name):
    handle, old, here = slider(augmentation, name), shown(augmentation), pixels(augmentation)
    was = handle.get_attribute('aria-valuenow')
    key = 'ArrowRight' if was != handle.get_attribute('aria-valuemax') else 'ArrowLeft'
    for _ in range(3): handle.press(key)
    changed(augmentation, old)
    augmentation.page.wait_for_timeout(500)
    assert handle.get_attribute('aria-valuenow') != was and pixels(augmentation) != here


def test_a_slider_by_the_mouse(augmentation):
    handle, old = slider(augmentation, 'angle'), shown(augmentation)
    box = handle.bounding_box()
    mouse = augmentation.page.mouse
    mouse.move(box['x'] + box['width']/2, box['y'] + box['height']/2)
    mouse.down()
    mouse.move(box['x'] + 40, box['y'] + box['height']/2, steps=5)
    mouse.move(box['x'] - 25, box['y'] + box['height']/2, steps=5)
    mouse.up()
    changed(augmentation, old)


def press(training, name): training.get_by_role('button', name=name, exact=True).click()


def pause(training, name='Pause'):
    press(training, name)
    training.get_by_text(dict(Pause='Paused.', Stop='Stopped.')[name]).wait_for(timeout=20_000)              # the batch that was on its way, and a drawing
    training.page.wait_for_timeout(200)

def run(training):
    press(training, 'Run')
    training.get_by_text('Running.').wait_for(timeout=10_000)


def test_one_batch(training):
    old, said = shown(training), message(training).inner_text()
    press(training, 'One batch')
    changed(training, old)
    training.page.wait_for_function('([e, old]) => e.innerText !== old', arg=[message(training).element_handle(), said], timeout=5000)


def test_run_and_pause(training):
    pictures = {shown(training)}
    run(training)
    while len(pictures) < 4: pictures.add(changed(training, shown(training), 30))
    pause(training)
    still(training)
    run(training)                                                       # and on
    changed(training, shown(training), 30)
    pause(training)


def test_the_page_answers_while_a_network_trains(visit):
    page, _ = visit
    training = open_tab(page, 'Training')
    run(training)
    maps = open_tab(page, 'Maps')
    old, start = shown(maps), time.monotonic()
    maps.get_by_label('class', exact=True).select_option(index=5)
    changed(maps, old, 10)
    assert time.monotonic() - start < 5
    maps.get_by_label('class', exact=True).select_option(index=0)
    training = open_tab(page, 'Training')
    pause(training, 'Stop')
    still(training, 1)
    old = shown(training)
    press(training, 'Reset')
    changed(training, old)


def test_explorers_leave_each_other_alone(visit):
    page, _ = visit
    before = {tab: pixels(open_tab(page, tab)) for tab in ('Mistakes', 'Augmentation', 'Training')}
    maps = open_tab(page, 'Maps')
    old = shown(maps)
    maps.get_by_role('button', name='Random mistake').click()
    changed(maps, old)
    assert before == {tab: pixels(open_tab(page, tab)) for tab in before}


def test_what_cannot_start_is_said_without_a_traceback(chrome, tmp_path):
    from cifar_resnet.cli import main
    assert main(f'--dataset shapes10 --width 8 --epochs 1 --limit 100 --out {tmp_path/"run"}'.split()) == 0
    with app_server('--run', str(tmp_path/'run'), '--theme', 'dark') as address:
        page = chrome.new_page()
        watch = Watch(page, address)
        open_app(page, address)
        assert page.locator('body').get_attribute('data-jp-theme-light') == 'false'
        assert page.evaluate('getComputedStyle(document.querySelector("#rendered_cells")).backgroundColor.match(/\\d+/g).slice(0, 3).every(c => c < 80)')
        assert not watch.found
        (tmp_path/'run'/'weights.safetensors').unlink()
        page.goto(address, wait_until='commit')
        page.get_by_text('could not start').wait_for(timeout=STARTING_S*1000)
        words = page.locator('body').inner_text()
        assert 'Traceback' not in words and str(tmp_path) not in words and 'import' not in words
        page.close()


def all_run(chrome, address, words):
    "A page of JupyterLab whose notebook, which holds these words, is being run, and who watches it."
    page = chrome.new_page(viewport=dict(width=1280, height=1000))
    page.goto(address, wait_until='commit')
    page.get_by_text(words).first.wait_for(timeout=STARTING_S*1000)
    watch = Watch(page, address)
    page.locator('.jp-Notebook-ExecutionIndicator[data-status=idle]').wait_for(timeout=STARTING_S*1000)     # the kernel listens
    page.locator('.jp-Cell').first.click()
    page.get_by_role('menuitem', name='Run', exact=True).click()
    page.get_by_role('menuitem', name='Run All Cells', exact=True).click()
    return page, watch


@pytest.mark.skipif(bool(missing('jupyterlab')), reason=str(missing('jupyterlab')))
def test_two_explorers_in_jupyterlab(chrome, tmp_path):
    with lab_server(tmp_path, ['from cifar_resnet.explore import gradcam_explorer', 'gradcam_explorer()', 'gradcam_explorer()']) as address:
        page, watch = all_run(chrome, address, 'gradcam_explorer()')
        page.locator('.cifar-gradcam').nth(1).wait_for(state='attached', timeout=STARTING_S*1000)
        one, other = (page.locator('.cifar-gradcam').nth(i) for i in (0, 1))
        one.scroll_into_view_if_needed()
        page.wait_for_function('() => [...document.querySelectorAll("img.cifar-picture, .cifar-picture img")].filter(i => i.naturalWidth > 100).length == 4', timeout=30_000)
        old, before = shown(one), pixels(other)
        assert pixels(one) == before
        one.get_by_label('class', exact=True).select_option(index=4)
        changed(one, old)
        assert pixels(one) != before and pixels(other) == before
        assert not watch.found
        page.close()


PAYLOADS = ['<script>alert(1)</script>', '<img src=x onerror=alert(1)>', '"><svg onload=alert(1)>', "'><iframe src=javascript:alert(1)>", '<b>bold</b>', '&lt;b&gt;', '</p></div><h1>out', '{{7*7}}', '<a href=javascript:alert(1)>x</a>', '<style>*{display:none}</style>']
HOSTILE_NAMES = f'''
from dataclasses import replace
from cifar_resnet.explore import gradcam_explorer, mistake_explorer, augmentation_explorer, subject
it = subject(n=60)
it = replace(it, name={PAYLOADS[1]!r}, data=replace(it.data, classes=tuple({PAYLOADS!r})))
'''


@pytest.mark.skipif(bool(missing('jupyterlab')), reason=str(missing('jupyterlab')))
def test_names_of_classes_are_words(chrome, tmp_path):
    "Ten names that would act if they were HTML: in labels, choices, tooltips and sentences they are words."
    with lab_server(tmp_path, [HOSTILE_NAMES, 'gradcam_explorer(it)', 'mistake_explorer(it)', 'augmentation_explorer(it)']) as address:
        page, watch = all_run(chrome, address, 'gradcam_explorer(it)')
        maps, mistakes, augmentation = (page.locator(f'.cifar-{kind}') for kind in ('gradcam', 'mistakes', 'augmentation'))
        augmentation.wait_for(state='attached', timeout=STARTING_S*1000)
        select = maps.get_by_label('class', exact=True)
        names = [' '.join(name.split()) for name in select.locator('option').all_inner_texts()][2:]
        assert names == PAYLOADS
        for i in range(len(PAYLOADS)):
            select.select_option(index=i + 2)
            page.wait_for_timeout(300)
        mistakes.locator('button[title*="predicted"]:not([disabled])').nth(3).click()
        assert PAYLOADS[1] in maps.inner_text() and PAYLOADS[1] in mistakes.inner_text()
        for explorer in (maps, mistakes, augmentation):
            for acting in ('script', 'iframe', 'b', 'h1', 'style:not(.cifar-look)', 'img[src="x"]', 'a[href^=javascript]', 'svg[onload]'): assert not explorer.locator(acting).count(), acting
        assert not watch.found
        page.close()
