"The six labs in a real JupyterLab at 1280 × 800, its file browser open: what is drawn is read back."
import subprocess
import sys
from pathlib import Path

import pytest
from lab_page import CHROMIUM, PLOT, holds, notebook, press, says
from tiny import make_run

LABS = Path(__file__).resolve().parent.parent/"nbs"/"labs"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")]
NAMES = ("train", "exits", "rdm", "confusion", "ensemble_weights", "curves")


@pytest.fixture(scope="module")
def labs(tmp_path_factory, lab_server):
    "A JupyterLab over all labs, with runs of three methods: its address."
    runs = tmp_path_factory.mktemp("runs")
    for method in ("dbt", "branchynet", "mate"):
        make_run(runs, method=method)
    return lab_server(runs, *(LABS/f"{n}.ipynb" for n in NAMES))


def lab_at(labs, name, theme="light", slow=1):
    return notebook(labs, f"{name}-{theme}.ipynb", theme, width=1280, height=800, files=True, slow=slow)


def settle(page):
    "Until the lab has drawn a figure that can be seen."
    seen = "p => p.data && p.data.length && p.getBoundingClientRect().width > 0"
    page.wait_for_function(f"[...{PLOT}].some({seen})", timeout=120_000)
    page.wait_for_timeout(1500)


BOX = """() => {
    const lab = document.querySelector('.mx-lab'), b = lab.getBoundingClientRect();
    const parts = [...lab.querySelectorAll('select, input, button, .js-plotly-plot')];
    const seen = parts.filter(e => e.offsetParent);
    const named = e => e.ariaLabel || (e.id && lab.querySelector(`label[for="${e.id}"]`));
    const out = seen.filter(e => e.getBoundingClientRect().right > b.right + 1);
    const fields = seen.filter(e => e.matches('select, input:not([type=checkbox])'));
    return {height: b.height, wide: lab.scrollWidth - lab.clientWidth, top: b.top,
            out: out.map(e => e.outerHTML.slice(0, 80)), unnamed: fields.filter(e => !named(e)).length}; }"""
COVERED = f"""[...{PLOT}].filter(p => p.offsetParent).filter(p => {{
    const t = p.querySelector('.gtitle'), m = p.querySelector('.modebar-group');
    if (!t || !m) return false;
    const a = t.getBoundingClientRect(), b = m.getBoundingClientRect();
    return a.right > b.left && a.left < b.right && a.bottom > b.top && a.top < b.bottom; }}).length"""


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", NAMES)
def test_a_lab_is_on_one_screen_and_nothing_is_cut_off(labs, name, theme, tmp_path):
    with lab_at(labs, name, theme) as (page, errors, elsewhere):
        ready(page, name)
        page.screenshot(path=tmp_path/f"{name}-{theme}.png")
        box = page.evaluate(BOX)
        assert box["height"] <= 680 and box["wide"] <= 0 and not box["out"] and not box["unnamed"], box
        assert page.evaluate(COVERED) == 0, "a toolbar covers a title"
        assert 0 < box["top"] < 140, "a lab that was just made stands at the top of the page"
    assert not errors and not elsewhere


def test_a_lab_says_that_its_kernel_has_ended_and_what_to_press(labs):
    with lab_at(labs, "exits") as (page, errors, elsewhere):
        settle(page)
        page.evaluate("window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart()")
        says(page, "run the cell again (Shift + Enter)")


def test_the_true_class_stays_when_images_are_paged(labs):
    "The drawn axis is one of categories, and the bar of the true class is there, image after image."
    with lab_at(labs, "exits") as (page, errors, elsewhere):
        settle(page)
        page.locator("button:has-text('one image')").click()
        bars = f"[...{PLOT}].find(p => p.offsetParent && p.data.length > 2 && p.data[0].type == 'bar')"
        for number in (2, 3, 4, 5):
            page.locator("button[title='the next image']").click()
            page.wait_for_function(f"document.body.innerText.includes('{number} of ')")
            page.wait_for_timeout(500)
            ticks = f"[...{bars}.querySelectorAll('.xtick')].filter(t => t.textContent.includes('✓')).length"
            drawn = page.evaluate(f"[{bars}._fullLayout.xaxis.type, {ticks}]")
            assert drawn == ["category", 1]
    assert not errors and not elsewhere


def test_a_training_answers_at_once_and_ends_with_test_scores(labs):
    with lab_at(labs, "train") as (page, errors, elsewhere):
        page.wait_for_selector("button:has-text('Start'):not([disabled])", timeout=120_000)
        page.locator(".widget-text:has-text('epochs') input").first.fill("3")
        page.locator(".widget-text:has-text('per class') input").fill("40")
        page.keyboard.press("Tab")
        page.locator("button:has-text('Start')").click()
        page.wait_for_function("document.body.innerText.includes('starting')", timeout=10_000)
        page.wait_for_function("document.body.innerText.includes('on test, exits 1')", timeout=120_000)
        first = f"[...{PLOT}].find(p => p.data.some(t => t.name == 'exit 1'))"
        assert page.evaluate(f"{first}.data.filter(t => t.x.length == 3).length") == 5
        assert page.evaluate(BOX)["wide"] <= 0
    assert not errors and not elsewhere


def ready(page, name):
    "Until the lab can be used: it has drawn something, or (train) can be started."
    if name == "train":
        page.wait_for_selector("button:has-text('Start'):not([disabled])", timeout=120_000)
        page.wait_for_timeout(1500)
    else:
        settle(page)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", NAMES)
def test_axe_finds_nothing_serious(labs, name, theme):
    "Names, roles, contrast: every rule of axe-core, in every view of a lab."
    axe = Path(pytest.importorskip("axe_playwright_python").__file__).with_name("axe.min.js")
    ask = "async () => (await axe.run('.mx-lab')).violations"
    with lab_at(labs, name, theme) as (page, errors, elsewhere):
        ready(page, name)
        page.evaluate(axe.read_text())
        views = page.locator(".mx-views button")
        for k in range(max(1, views.count())):
            if views.count():
                views.nth(k).click()
                page.wait_for_timeout(500)
            found = [v for v in page.evaluate(ask) if v["impact"] in ("serious", "critical")]
            assert not found, [(v["id"], v["nodes"][0]["html"][:200]) for v in found]


FOCUSABLE = """[...document.querySelector('.mx-lab').querySelectorAll(
        'select, input, button, summary, .noUi-handle, [contenteditable=true]')
    ].filter(e => e.offsetParent && !e.disabled && !e.closest('[disabled]'))"""


@pytest.mark.parametrize("name", NAMES)
def test_every_control_is_reached_by_the_tab_key(labs, name):
    "In the order of the page, from the first to the last, and none is cut off where it stands."
    with lab_at(labs, name) as (page, errors, elsewhere):
        ready(page, name)
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


@pytest.fixture
def busy():
    "Two processes that take what time they can get."
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    yield
    for p in others:
        p.kill()
        p.wait()


DRAWN = """(() => { const all = [...document.querySelectorAll('.mx-figure')].filter(p => p.offsetParent);
    return all.length > 0 && all.every(p => p.querySelector('.gtitle') && p.data?.length); })()"""


@pytest.mark.parametrize("name", [n for n in NAMES if n != "train"])
def test_every_figure_is_drawn_on_a_busy_machine(labs, name, busy):
    "A browser with a sixth of its speed, beside two busy processes: all that can be seen has its lines."
    with lab_at(labs, name, slow=6) as (page, errors, elsewhere):
        page.wait_for_function(DRAWN, timeout=180_000)
    assert not errors and not elsewhere


def test_a_figure_follows_its_kernel_from_the_first_change_on(labs, busy):
    "A training that has long begun when the page is at last ready: what it learned before is drawn too."
    with lab_at(labs, "train", slow=6) as (page, errors, elsewhere):
        page.wait_for_selector("button:has-text('Start'):not([disabled])", timeout=120_000)
        page.locator(".widget-text:has-text('epochs') input").first.fill("3")
        page.keyboard.press("Tab")
        press(page, "Start")
        page.wait_for_function("document.body.innerText.includes('on test, exits 1')", timeout=240_000)
        whole = "p => p.data.filter(t => t.x && t.x.length == 3).length == 5"     # four exits, the ensemble
        page.wait_for_function(f"[...{PLOT}].some({whole})", timeout=60_000)
    assert not errors and not elsewhere


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_train_in_jupyterlab(labs, theme, tmp_path):
    status = "document.querySelector('.mx-status').innerText"     # the prose says "paused" as well
    epoch = f"{status}.match(/epoch [0-9.]+ of/)[0]"
    with notebook(labs, f"train-{theme}.ipynb", theme) as (page, errors, elsewhere):
        page.wait_for_selector("button:has-text('Start')", timeout=60_000)
        page.locator(".widget-text:has-text('per class') input").fill("40")
        page.keyboard.press("Tab")
        press(page, "Start")
        holds(page, f"({PLOT}[0].data[0] || {{}}).name == 'exit 1'")
        press(page, "Pause")
        holds(page, f"{status}.includes('paused')")
        where = page.evaluate(epoch)
        page.wait_for_timeout(1500)
        assert page.evaluate(epoch) == where
        page.locator(".widget-slider:has-text('α') .noUi-handle").focus()
        for _ in range(3):
            page.keyboard.press("ArrowRight")
        says(page, "α 3 → 3.3")
        press(page, "Go on")
        page.wait_for_function(f"{epoch} != '{where}'", timeout=60_000)
        page.screenshot(path=tmp_path/f"train-{theme}.png")
        press(page, "Stop")
        holds(page, f"{status}.includes('finished')")
    assert not errors and not elsewhere


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_exits_in_jupyterlab(labs, theme, tmp_path):
    shares = f"[...({PLOT}[0]?.data?.[0]?.y?._inputArray || {PLOT}[0]?.data?.[0]?.y || [])].join()"
    with notebook(labs, f"exits-{theme}.ipynb", theme, height=2300) as (page, errors, elsewhere):
        says(page, "overthinking")
        holds(page, f"{shares} != ''")
        before = page.evaluate(shares)
        page.locator(".widget-slider .noUi-handle").first.focus()
        page.keyboard.press("Home")       # everybody leaves at once
        holds(page, f"{shares} != '{before}'")
        page.screenshot(path=tmp_path/f"exits-{theme}.png")
    assert not errors and not elsewhere
