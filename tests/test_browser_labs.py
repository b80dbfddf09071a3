"""The six labs in a real JupyterLab, in headless Chromium: what is drawn is read back.

One visit of a lab for each theme: it is looked at in every view and size, then used as a person would.
"""
import subprocess
import sys
from pathlib import Path

import pytest
from lab_page import CHROMIUM, DRAWN, PLOT, STILL, holds, listed, notebook, press, says, still, voila
from tiny import make_run

LABS = Path(__file__).resolve().parent.parent/"nbs"/"labs"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")]
SIZES = ((1280, 800), (1440, 900), (1920, 1080))


@pytest.fixture(scope="module")
def labs(tmp_path_factory, lab_server):
    "A JupyterLab over all labs, with runs of three methods."
    runs = tmp_path_factory.mktemp("runs")
    for method in ("dbt", "hdkd", "mate"):
        make_run(runs, method=method, epochs=8, images_per_class=30, batch_size=16, lr=0.05)
    return lab_server(runs, *LABS.glob("*.ipynb"))


def ready(page, name):
    "Until the lab can be used: it has drawn something, or (train) can be started."
    if name == "train":
        page.wait_for_selector("button:has-text('Start'):not([disabled])", timeout=120_000)
    else:
        seen = "p => p.data && p.data.length && p.getBoundingClientRect().width > 0"
        page.wait_for_function(f"[...{PLOT}].some({seen})", timeout=120_000)
    still(page)


# ---- what is asked of every lab ----

BOX = """() => {
    const lab = document.querySelector('.mx-lab'), b = lab.getBoundingClientRect();
    const parts = [...lab.querySelectorAll('select, input, button, .js-plotly-plot')];
    const seen = parts.filter(e => e.offsetParent);
    const named = e => e.ariaLabel || (e.id && lab.querySelector(`label[for="${e.id}"]`));
    const out = seen.filter(e => e.getBoundingClientRect().right > b.right + 1);
    const boxes = [...lab.querySelectorAll('.mx-controls .widget-vbox')];
    const clipped = boxes.filter(e => e.scrollHeight > e.clientHeight + 1);     // only the column scrolls
    const fields = seen.filter(e => e.matches('select, input:not([type=checkbox])'));
    return {height: b.height, wide: lab.scrollWidth - lab.clientWidth, top: b.top,
            clipped: clipped.length, out: out.map(e => e.outerHTML.slice(0, 80)),
            unnamed: fields.filter(e => !named(e)).length}; }"""
COVERED = f"""[...{PLOT}].filter(p => p.offsetParent).filter(p => {{
    const t = p.querySelector('.gtitle'), m = p.querySelector('.modebar-group');
    if (!t || !m) return false;
    const a = t.getBoundingClientRect(), b = m.getBoundingClientRect();
    return a.right > b.left && a.left < b.right && a.bottom > b.top && a.top < b.bottom; }}).length"""


def nothing_is_cut_off(page, height: int):
    "No field or figure is beyond the lab's edge or without a name, and no toolbar covers a title."
    box = page.evaluate(BOX)
    assert box["height"] <= height - 120 and box["wide"] <= 0, box
    assert not box["out"] and not box["clipped"] and not box["unnamed"], box
    assert page.evaluate(COVERED) == 0, "a toolbar covers a title"


def every_view(page):
    "Each view of the lab, one after the other, and the first again."
    buttons = page.locator(".mx-views button")
    count = buttons.count()
    for k in range(max(1, count)):
        if count:
            buttons.nth(k).click()
        still(page)
        yield k
    if count:
        buttons.first.click()
        still(page)


TOP_OF = "document.querySelector('{}').getBoundingClientRect().top"
BELOW_THE_EDGE = f"({TOP_OF.format('.mx-lab')} - {TOP_OF.format('.jp-NotebookPanel-notebook')})"


def is_on_one_screen(page, name, theme, folder):
    "JupyterLab's list of files is open: every view at every size."
    holds(page, f"{BELOW_THE_EDGE} >= -1 && {BELOW_THE_EDGE} < 40")
    for width, height in SIZES[::-1]:
        page.set_viewport_size(dict(width=width, height=height))
        for view in every_view(page):
            nothing_is_cut_off(page, height)
            page.screenshot(path=folder/f"{name}-{theme}-{width}-{view}.png")


def axe_finds_nothing_serious(page):
    "Names, roles, contrast: every rule of axe-core, in every view."
    axe = Path(pytest.importorskip("axe_playwright_python").__file__).with_name("axe.min.js")
    page.evaluate(axe.read_text())
    for _ in every_view(page):
        found = page.evaluate("async () => (await axe.run('.mx-lab')).violations")
        serious = [v for v in found if v["impact"] in ("serious", "critical")]
        assert not serious, [(v["id"], v["nodes"][0]["html"][:200]) for v in serious]


FOCUSABLE = """[...document.querySelector('.mx-lab').querySelectorAll(
        'select, input, button, summary, .noUi-handle, [contenteditable=true]')
    ].filter(e => e.offsetParent && !e.disabled && !e.closest('[disabled]'))"""


def tab_reaches_every_control(page):
    "In the order of the page, from the first to the last, and none is cut off where it stands."
    count = page.evaluate(f"{FOCUSABLE}.length")
    page.evaluate(f"{FOCUSABLE}[0].focus()")
    place = f"""(() => {{ const e = document.activeElement, b = e.getBoundingClientRect();
        const lab = document.querySelector('.mx-lab').getBoundingClientRect();
        const inside = b.left >= lab.left - 1 && b.right <= lab.right + 1 && b.top >= 0
                       && b.bottom <= innerHeight;
        return [{FOCUSABLE}.indexOf(e), inside]; }})()"""
    reached = [page.evaluate(place)]
    while reached[-1][0] < count - 1 and len(reached) < 2*count:
        page.keyboard.press("Tab")
        reached.append(page.evaluate(place))
    assert [k for k, _ in reached if k >= 0] == list(range(count))
    assert not [k for k, inside in reached if not inside]


# ---- what a person does in each ----

STATUS = "document.querySelector('.mx-status').innerText"     # the prose says "paused" as well
EPOCH = f"{STATUS}.match(/epoch [0-9.]+ of/)[0]"


def field(page, text):
    return page.locator(f".widget-text:has-text('{text}') input").first


def choose_digits(page):
    field(page, "data set").fill("digits")
    page.keyboard.press("Tab")


def use_train(page):
    choose_digits(page)
    start_pause_move_and_stop(page)
    press(page, "New")
    train_to_the_end(page)


def start_pause_move_and_stop(page):
    field(page, "per class").fill("40")
    page.keyboard.press("Tab")
    press(page, "Start")
    page.wait_for_function("document.body.innerText.includes('starting')", timeout=10_000)
    holds(page, f"({PLOT}[0].data[0] || {{}}).name == 'exit 1'")
    press(page, "Pause")
    holds(page, f"{STATUS}.includes('paused')")
    where = page.evaluate(EPOCH)
    page.locator(".widget-slider:has-text('α') .noUi-handle").focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    says(page, "α 3 → 3.3")
    assert page.evaluate(EPOCH) == where
    press(page, "Go on")
    page.wait_for_function(f"{EPOCH} != '{where}'", timeout=60_000)
    press(page, "Stop")
    holds(page, f"{STATUS}.includes('finished')")


def train_to_the_end(page):
    "Test scores in words, and a point for each epoch, exit and ensemble."
    field(page, "epochs").fill("3")
    page.keyboard.press("Tab")
    press(page, "Start")
    page.wait_for_function(f"{STATUS}.includes('on test, exits 1')", timeout=240_000)
    whole = "p => p.data.filter(t => t.x && t.x.length == 3).length == 5"     # four exits, the ensemble
    page.wait_for_function(f"[...{PLOT}].some({whole})", timeout=60_000)
    holds(page, f"{PLOT}[1]._fullLayout.xaxis.range[1] < 4")       # not that of the empty figure before
    assert page.evaluate(f"({PLOT}[0].layout.shapes || []).length") == 0      # nor flags of another run
    box = page.evaluate(BOX)
    assert box["wide"] <= 0 and not box["clipped"], box


def use_exits(page):
    shares = f"[...({PLOT}[0]?.data?.[0]?.y?._inputArray || {PLOT}[0]?.data?.[0]?.y || [])].join()"
    holds(page, f"{shares} != ''")
    before = page.evaluate(shares)
    page.locator(".widget-slider .noUi-handle").first.focus()
    page.keyboard.press("Home")       # everybody leaves at once
    holds(page, f"{shares} != '{before}'")
    page_images(page)


def page_images(page):
    "The drawn axis is one of categories, and the bar of the true class is there, image after image."
    page.locator("button:has-text('one image')").click()
    bars = f"[...{PLOT}].find(p => p.offsetParent && p.data.length > 2 && p.data[0].type == 'bar')"
    for number in (2, 3, 4, 5):
        page.locator("button[title='the next image']").click()
        says(page, f"{number} of ")
        still(page)
        ticks = f"[...{bars}.querySelectorAll('.xtick')].filter(t => t.textContent.includes('✓')).length"
        assert page.evaluate(f"[{bars}._fullLayout.xaxis.type, {ticks}]") == ["category", 1]


def use_rdm(page):
    title = f"{PLOT}[0].querySelector('.gtitle').textContent"
    says(page, "of different classes")
    drawn(page, 0, 2)
    holds(page, f"{title}.includes('correlation')")
    listed(page, "distance").select_option("cosine")
    holds(page, f"{title}.includes('cosine')")
    listed(page, "beside").select_option(index=2)
    drawn(page, 0, 4)
    says(page, "hdkd, exit 4, before")
    listed(page, "order").focus()
    page.keyboard.press("ArrowDown")            # JupyterLab leaves it to the list
    holds(page, f"{PLOT}[0].querySelectorAll('.xtick text').length > 12")   # mixed: names of some rows
    assert listed(page, "order").input_value() == "by similarity"
    listed(page, "exit").select_option("exit 1")
    says(page, "exit 1, after")
    holds(page, f"{PLOT}[0].querySelector('.annotation-text').textContent.endsWith('exit 1, before')")


def drawn(page, plot, panels):
    holds(page, f"({PLOT}[{plot}] || {{}}).data?.length == {panels}")


def click_cell(page, plot, x, y):
    "Click on a cell of a heat map by its numbers on the axes; the mouse goes there first, as a hand does."
    where = page.evaluate("""([plot, x, y]) => {
        const g = document.querySelectorAll('.js-plotly-plot')[plot];
        g.scrollIntoView({block: 'center'});
        const b = g.getBoundingClientRect(), l = g._fullLayout;
        return [b.left + l._size.l + l.xaxis.l2p(x), b.top + l._size.t + l.yaxis.l2p(y)]; }""", [plot, x, y])
    page.mouse.move(where[0] - 3, where[1] - 3)
    page.mouse.move(*where, steps=4)
    holds(page, f"{PLOT}[{plot}]._hoverdata?.[0]?.pointNumber.join() == '{y},{x}'")
    page.mouse.click(*where)


def use_confusion(page):
    says(page, "Images of a cell")
    images = "[...document.querySelectorAll('img[title^=\"image\"]')]"
    page.locator("label:has-text('mistakes only') input").uncheck()
    still(page)
    click_cell(page, 0, 6, 6)
    says(page, "6, rightly recognised")
    holds(page, f"{images}.length > 3 && {images}.every(i => i.title.endsWith(': 6'))")
    press(page, "two exits")
    still(page)
    click_cell(page, 1, 1, 0)
    says(page, "only exit 4 right")
    choose_cells_by_keyboard(page)
    press(page, "mistakes")
    listed(page, "exit").select_option("exit 4")
    holds(page, f"{PLOT}[0].querySelector('.gtitle').textContent.startsWith('Exit 4')")
    still(page)
    click_cell(page, 0, 3, 3)
    says(page, "Exit 4: 3, rightly recognised")
    listed(page, "exit").select_option("exit 2")
    press(page, "two exits")            # it was not drawn since exit 1
    holds(page, f"{PLOT}[1].querySelector('.x2title, .xtitle').textContent == 'exit 2'")


def choose_cells_by_keyboard(page):
    listed(page, "it is").focus()
    page.keyboard.press("Home")
    listed(page, "answered").focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowDown")
    says(page, "0, taken for 1")
    page.keyboard.press("ArrowUp")
    says(page, "0, rightly recognised")
    page.locator("button[title='the next images']").click()
    says(page, "13 to 24 shown")


SEEN = f"[...{PLOT}].filter(p => p.offsetParent)"
MATRIX = f"{PLOT}[0].calcdata[0][0].z.map(r => [...r]).flat().join()"


def titled(page, plot, text):
    holds(page, f"{PLOT}[{plot}]?.layout?.title?.text?.includes('{text}')")


def use_weights(page):
    says(page, "draws on")
    titled(page, 0, "epoch 8")
    before = page.evaluate(MATRIX)
    page.locator(".widget-slider:has-text('epoch') .noUi-handle").first.focus()
    for _ in range(5):
        page.keyboard.press("ArrowLeft")
    titled(page, 0, "epoch 3")
    holds(page, f"{MATRIX} != '{before}'")
    holds(page, f"{PLOT}[1].layout.shapes[0].x0 == 3")
    assert before
    listed(page, "teacher of").select_option("exit 3")
    titled(page, 1, "exit 3")
    page.locator("select[multiple]").first.select_option(index=[0, 1, 2])
    press(page, "gaps")
    names = f"{SEEN}.flatMap(p => p.data || []).filter(t => t.name).map(t => t.name)"
    holds(page, f"new Set({names}).size == 3")


def use_curves(page):
    holds(page, f"{PLOT}[0]?.data?.length == 12")     # three runs, four exits
    views = {"stability": "Stability", "temperature and confidence": "Annealing",
             "γ, learned loss weights": "what exit 1 learns from"}
    for view, text in views.items():
        listed(page, "show").select_option(view)
        holds(page, f"{SEEN}.length == 1 && {SEEN}[0].layout.title.text.includes('{text}')")
        still(page)
        nothing_is_cut_off(page, SIZES[0][1])
    listed(page, "show").select_option("beside the papers")
    says(page, "no published number fits")
    listed(page, "published").select_option("cifar100 · vgg16")
    says(page, "as if they were cifar100")


USES = dict(train=use_train, exits=use_exits, rdm=use_rdm, confusion=use_confusion,
            ensemble_weights=use_weights, curves=use_curves)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", [f.stem for f in sorted(LABS.glob("*.ipynb"))])
def test_a_lab_is_looked_at_and_used(labs, name, theme, tmp_path):
    book = f"{name}-{theme}.ipynb"
    with notebook(labs, book, theme, *SIZES[0], files=True, by_hand=True) as (page, errors, elsewhere):
        ready(page, name)
        is_on_one_screen(page, name, theme, tmp_path)
        axe_finds_nothing_serious(page)
        if theme == "light":
            tab_reaches_every_control(page)
        USES[name](page)
        page.screenshot(path=tmp_path/f"{name}-{theme}-used.png")
        assert not errors and not elsewhere
        says_that_its_kernel_has_ended(page)


def says_that_its_kernel_has_ended(page):
    page.evaluate("window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart()")
    says(page, "run the cell again (Shift + Enter)")


# ---- in voila ----

@pytest.mark.parametrize("name", ["train", "exits"])      # the two that are tallest
def test_voila_shows_prose_and_lab_on_one_screen(labs, name):
    top = "document.querySelector('h1').getBoundingClientRect().top"
    bottom = "document.querySelector('.mx-lab').getBoundingClientRect().bottom"
    with voila(labs, f"{name}-light.ipynb") as (page, errors):
        holds(page, DRAWN)
        for width, height in SIZES:
            page.set_viewport_size(dict(width=width, height=height))
            page.evaluate(STILL)
            box = page.evaluate(BOX)
            assert page.evaluate(top) >= 0 and page.evaluate(bottom) <= height
            assert box["wide"] <= 0 and not box["out"] and not box["clipped"], box
    assert not errors


# ---- on a busy machine ----

@pytest.fixture
def busy():
    "Two processes that take what time they can get, while their parent lives."
    code = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: pass"
    others = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    yield
    for p in others:
        p.kill()
        p.wait()


@pytest.mark.parametrize("name", ["exits", "ensemble_weights"])
def test_every_figure_is_drawn_on_a_busy_machine(labs, name, busy):
    "A browser with a sixth of its speed, beside two busy processes: all that can be seen has its lines."
    whole = "[...document.querySelectorAll('.mx-figure')].filter(p => p.offsetParent)"
    book = f"{name}-light.ipynb"
    with notebook(labs, book, "light", *SIZES[0], files=True, slow=6) as (page, errors, elsewhere):
        ready = f"{whole}.length && {whole}.every(p => p.querySelector('.gtitle') && p.data?.length)"
        page.wait_for_function(ready, timeout=180_000)
    assert not errors and not elsewhere


def test_a_figure_follows_its_kernel_from_the_first_change_on(labs, busy):
    "A training that has long begun when the page is at last ready: what it learned before is drawn too."
    book = "train-light.ipynb"
    with notebook(labs, book, "light", *SIZES[0], files=True, slow=6) as (page, errors, elsewhere):
        page.wait_for_selector("button:has-text('Start'):not([disabled])", timeout=120_000)
        choose_digits(page)
        field(page, "per class").fill("40")
        train_to_the_end(page)
    assert not errors and not elsewhere
