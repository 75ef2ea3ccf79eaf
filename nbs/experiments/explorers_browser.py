"""How fast the explorers answer a click, in a browser, and what they look like.

    pip install -e '.[browser]'                                  # and a Chromium or Chrome
    python nbs/experiments/explorers_browser.py                  # print the latencies
    python nbs/experiments/explorers_browser.py --publish        # and write nbs/results/explorers_browser.json
    python nbs/experiments/explorers_browser.py --pictures DIR   # instead draw each, at two widths, in two themes
"""
import io, os, platform, sys
from importlib.metadata import version
from pathlib import Path
from statistics import median

import torch
from PIL import Image

sys.path.append(str(Path(__file__).parents[1]/'tests'))                 # helpers that tests share
from browsing import TABS, app_server, browser, changed, missing, open_app, open_tab, picture, shown, slider

ROUNDS, WIDTHS, THEMES, MOST_BYTES = 20, (1280, 800), ('light', 'dark'), 120_000
# The page's own clock, from the event that a person causes to the first picture that is loaded after it.
CLOCK = '''img => {
    const clock = window.cifarClock = {start: null, end: null};
    for (const kind of ['click', 'change', 'keydown'])
        document.addEventListener(kind, e => { clock.start ??= e.timeStamp }, true);
    img.addEventListener('load', () => { if (clock.start !== null) clock.end ??= performance.now() });
}'''


def took(explorer, act) -> float: # ms
    "How long after the event the picture was another one."
    page, old = explorer.page, shown(explorer)
    page.evaluate('Object.assign(cifarClock, {start: null, end: null})')
    act()
    changed(explorer, old)
    page.wait_for_function('cifarClock.end !== null')
    page.wait_for_timeout(150)
    return page.evaluate('cifarClock.end - cifarClock.start')


def ways(explorer, tab):
    "What a visitor does there: (what, [an act for each round]); each has another picture than the one before."
    page = explorer.page
    def classes():
        explorer.get_by_label('against', exact=True).select_option(label='likeliest other')
        select = explorer.get_by_label('class', exact=True)
        after_predicted_and_true = range(2, select.locator('option').count())
        return [lambda i=i: select.select_option(index=i) for i in after_predicted_and_true]
    def keys(name):
        there_and_back = ['ArrowRight']*(ROUNDS//2) + ['ArrowLeft']*(ROUNDS//2)
        return [lambda key=key: slider(explorer, name).press(key) for key in there_and_back]
    def click(name): return [lambda: explorer.get_by_role('button', name=name, exact=True).click()]*ROUNDS
    def cells():
        open_cells = explorer.locator('button[title*="predicted"]:not([disabled])')
        open_cells.nth(ROUNDS).click()
        page.wait_for_timeout(2000)
        return [lambda i=i: open_cells.nth(i).click() for i in range(ROUNDS)]
    return dict(Maps=lambda: [('choose a class', classes()), ('show another image', keys('image'))],
                Mistakes=lambda: [('open a cell of the confusion matrix', cells())],
                Augmentation=lambda: [('move the angle slider', keys('angle'))],
                Training=lambda: [('train on one batch', click('One batch'))])[tab]()


def measure(page):
    "A row for each thing that a visitor does."
    rows = []
    for tab in TABS:
        explorer = open_tab(page, tab)
        picture(explorer).evaluate(CLOCK)
        for what, acts in ways(explorer, tab):
            ms = [took(explorer, act) for act in acts[:ROUNDS]]
            rows.append(dict(what=f'{tab}: {what}', median_ms=round(median(ms)), worst_ms=round(max(ms)), n=len(ms)))
            print(rows[-1], flush=True)
    return rows


def small(data):
    "A screenshot with a palette, as small as need be: fewer colours until it fits."
    image = Image.open(io.BytesIO(data)).convert('RGB')
    for colours in (256, 128, 64, 32, 16):
        out = io.BytesIO()
        image.quantize(colours, dither=Image.Dither.NONE).save(out, 'PNG', optimize=True)
        if out.tell() <= MOST_BYTES: break
    return out.getvalue()


def draw(folder):
    "A PNG of each explorer, width and theme; those of the light theme at 1280 are explorer-NAME.png, for README."
    folder.mkdir(parents=True, exist_ok=True)
    with browser() as b:
        for theme in THEMES:
            with app_server('--theme', theme) as address:
                for width in WIDTHS:
                    page = b.new_page(viewport=dict(width=width, height=1400))
                    open_app(page, address)
                    for tab, kind in TABS.items():
                        explorer = open_tab(page, tab)
                        name = f'explorer-{kind}' + ('' if (theme, width) == ('light', 1280) else f'-{theme}-{width}')
                        if tab == 'Training': train_until(explorer, 2 if '-light' in name or '-dark' in name else 14)
                        page.mouse.move(0, 0)
                        page.wait_for_timeout(300)
                        end = explorer.bounding_box()
                        height = min(1400, end['y'] + end['height'] + 20)
                        data = small(page.screenshot(clip=dict(x=0, y=0, width=width, height=height)))
                        (folder/f'{name}.png').write_bytes(data)
                        print(f'{name}.png {len(data)/1000:.0f} kB', flush=True)
                    page.close()


def train_until(explorer, epoch):
    "Pause in this epoch: on a busy machine that takes longer, and the curves are the same."
    explorer.get_by_role('button', name='Run', exact=True).click()
    explorer.get_by_text(f'Epoch {epoch} of').wait_for(timeout=600_000)
    explorer.get_by_role('button', name='Pause', exact=True).click()
    explorer.get_by_text('Paused.').wait_for(timeout=20_000)


if __name__ == '__main__':
    args = sys.argv[1:]
    draws = args[:1] == ['--pictures'] and len(args) == 2
    if not draws and args not in ([], ['--publish']): sys.exit(__doc__)
    if why := missing('voila', 'playwright'): sys.exit(f'explorers_browser.py: {why}')
    if draws: sys.exit(draw(Path(args[1])))
    with app_server() as address, browser() as b:
        page = b.new_page(viewport=dict(width=1280, height=1000))
        open_app(page, address)
        found = dict(
            command='python nbs/experiments/explorers_browser.py --publish',
            browser=f'Chromium {b.version}',
            cpus=os.cpu_count(), machine=platform.machine(), threads=torch.get_num_threads(),
            versions={p: version(p) for p in ('torch', 'ipywidgets', 'voila', 'playwright')},
            table=measure(page))
    if args == ['--publish']:
        from cifar_resnet.runs import write_json
        write_json(Path(__file__).parent.parent/'results'/'explorers_browser.json', found)
