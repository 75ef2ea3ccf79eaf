"The explorers on a telephone, 390 pixels wide, at night: nothing is cut, nothing glares, no tooltip says null."
import io

import numpy as np
import pytest
from PIL import Image

from browsing import TABS, Watch, app_process, app_server, browser, changed, missing, open_app, open_tab, shown

pytestmark = [pytest.mark.browser, pytest.mark.skipif(bool(missing('voila', 'playwright')), reason=str(missing('voila', 'playwright')))]
WIDTH, HEIGHT = 390, 844
# What of a page a reader cannot see: beyond the right or left edge, or cut off by an element around it.
CUT = '''width => [...document.querySelectorAll('#rendered_cells *')].filter(e => {
    const box = e.getBoundingClientRect(), style = getComputedStyle(e);
    if (!box.width || !box.height || style.visibility === 'hidden') return false;
    const out = box.right > width + 1 || box.left < -1;
    return out || style.overflowX !== 'visible' && e.scrollWidth > e.clientWidth + 1;
}).map(e => `${e.tagName} ${e.className} ${e.innerText.slice(0, 40)}`)'''
NO_TIP = '''() => [...document.querySelectorAll('[title="null"], [title="undefined"]')].map(e => `${e.tagName} ${e.className}`)'''


@pytest.fixture(scope='module')
def visit():
    with app_server('--theme', 'dark') as address, browser() as b:
        page = b.new_page(viewport=dict(width=WIDTH, height=HEIGHT))
        watch = Watch(page, address)
        open_app(page, address)
        yield page
        assert not watch.found


@pytest.mark.trust('page and explorers', 'a narrow page')
@pytest.mark.parametrize('tab', TABS)
def test_nothing_is_cut(visit, tab):
    explorer = open_tab(visit, tab)
    if tab == 'Training':
        old = shown(explorer)
        explorer.get_by_role('button', name='One batch', exact=True).click()
        changed(explorer, old, 60)
    assert visit.evaluate('document.documentElement.scrollWidth') <= WIDTH
    assert visit.evaluate(CUT, WIDTH) == []
    for box in (img.bounding_box() for img in explorer.locator('.cifar-picture').all()): assert 300 < box['width'] <= 350     # as it was drawn


@pytest.mark.trust('page and explorers', 'a narrow page')
def test_counts_of_three_digits_are_not_cut(visit):
    "As CIFAR-10 has them on the diagonal."
    mistakes = open_tab(visit, 'Mistakes')
    mistakes.locator('.cifar-matrix button').evaluate_all("all => all.forEach(b => { b.dataset.was = b.innerText; b.innerText = '888' })")
    found = visit.evaluate(CUT, WIDTH)
    mistakes.locator('.cifar-matrix button').evaluate_all('all => all.forEach(b => b.innerText = b.dataset.was)')
    assert found == []


@pytest.mark.trust('page and explorers', 'a dark page')
@pytest.mark.parametrize('tab', TABS)
def test_nothing_glares(visit, tab):
    "Hardly a pixel of an explorer is nearly white: handles of sliders and letters are."
    shot = Image.open(io.BytesIO(open_tab(visit, tab).screenshot())).convert('L')
    assert (np.asarray(shot) > 220).mean() < .04


@pytest.mark.trust('page and explorers', 'tooltips')
def test_no_tooltip_is_null(visit):
    for tab in TABS: open_tab(visit, tab)
    assert visit.evaluate(NO_TIP) == []


NO_RING = '''() => { const e = document.activeElement, style = getComputedStyle(e);
    return e === document.body || style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2 ? '' : `${e.tagName} ${e.className}` }'''


@pytest.mark.trust('page and explorers', 'by the keyboard alone')
@pytest.mark.parametrize('tab', TABS)
def test_where_the_keyboard_is_can_be_seen(visit, tab):
    "Sliders, menus, boxes, buttons: whatever the tab key reaches has a ring."
    open_tab(visit, tab)
    visit.get_by_role('tab', name=tab, exact=True).focus()
    without = set()
    for _ in range(18):
        visit.keyboard.press('Tab')
        without.add(visit.evaluate(NO_RING))
    assert without <= {''}


# The page shows a network of a hundred classes whose names have forty letters, with spaces and without.
HUNDRED = '''
import cifar_resnet.page as page
SOURCE = """
import torch
from dataclasses import replace
from cifar_resnet.explore import subject
from cifar_resnet.model import resnet18
from cifar_resnet.stepper import app
torch.manual_seed(0)
it, logits = subject(n=300), torch.randn(300, 100)
names = tuple(f'a name of forty letters, in words  {i:04d}' if i % 2 else f'{"x"*37}{i:03d}' for i in range(100))
data = replace(it.data, labels=torch.arange(300).numpy() % 100, classes=names)
app(replace(it, model=resnet18(width=8, num_classes=100).eval(), logits=logits, data=data))
"""
notebook = page._app_notebook
def other(*args):
    nb = notebook(*args)
    nb['cells'][0]['source'] = SOURCE
    return nb
page._app_notebook = other
'''


@pytest.mark.trust('page and explorers', 'a narrow page')
def test_a_hundred_long_names_are_not_cut(visit, cases):
    cases(3)
    with app_process(before=HUNDRED) as app:
        page = visit.context.browser.new_page(viewport=dict(width=WIDTH, height=HEIGHT))
        open_app(page, app.address)
        for tab in ('Maps', 'Mistakes', 'Augmentation'):
            open_tab(page, tab)
            page.wait_for_timeout(500)
            assert page.evaluate('document.documentElement.scrollWidth') <= WIDTH and page.evaluate(CUT, WIDTH) == []
