"""The six labs in a real JupyterLab at 1280 × 800, its file browser open: what is drawn is read back from the page."""
from pathlib import Path

import pytest
from lab_page import CHROMIUM, notebook
from tiny import make_run

LABS = Path(__file__).resolve().parent.parent/"nbs"/"labs"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")]
NAMES = ("train", "exits", "rdm", "confusion", "ensemble_weights", "curves")
PLOT = "document.querySelectorAll('.js-plotly-plot')"


@pytest.fixture(scope="module")
def labs(tmp_path_factory, lab_server):
    "A JupyterLab over all labs, with runs of three methods: its address."
    runs = tmp_path_factory.mktemp("runs")
    for method in ("dbt", "branchynet", "mate"):
        make_run(runs, method=method)
    return lab_server(runs, *(LABS/f"{n}.ipynb" for n in NAMES))


def lab_at(labs, name, theme="light"):
    return notebook(labs, f"{name}-{theme}.ipynb", theme, width=1280, height=800, files=True)


def settle(page):
    "Until the lab has drawn a figure that can be seen."
    page.wait_for_function(f"[...{PLOT}].some(p => p.data && p.data.length && p.getBoundingClientRect().width > 0)",
                           timeout=120_000)
    page.wait_for_timeout(1500)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", [n for n in NAMES if n != "train"])
def test_a_lab_is_on_one_screen_and_nothing_is_cut_off(labs, name, theme):
    with lab_at(labs, name, theme) as (page, errors, elsewhere):
        settle(page)
        box = page.evaluate("""() => { const lab = document.querySelector('.mx-lab'), b = lab.getBoundingClientRect();
            const seen = [...lab.querySelectorAll('select, input, button, .js-plotly-plot')].filter(e => e.offsetParent);
            return {height: b.height, wide: lab.scrollWidth - lab.clientWidth,
                    out: seen.filter(e => e.getBoundingClientRect().right > b.right + 1).map(e => e.outerHTML.slice(0, 80)),
                    unnamed: seen.filter(e => e.matches('select, input:not([type=checkbox])') && !e.ariaLabel
                                              && !(e.id && lab.querySelector(`label[for="${e.id}"]`))).length}; }""")
        assert box["height"] <= 680 and box["wide"] <= 0 and not box["out"] and not box["unnamed"], box
        covered = page.evaluate(f"""[...{PLOT}].filter(p => p.offsetParent).filter(p => {{
            const t = p.querySelector('.gtitle'), m = p.querySelector('.modebar-group');
            if (!t || !m) return false;
            const a = t.getBoundingClientRect(), b = m.getBoundingClientRect();
            return a.right > b.left && a.left < b.right && a.bottom > b.top && a.top < b.bottom; }}).length""")
        assert covered == 0, "a toolbar covers a title"
        top = page.evaluate("document.querySelector('.mx-lab').getBoundingClientRect().top")
        assert 0 < top < 140, "a lab that was just made stands at the top of the page"
    assert not errors and not elsewhere


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
            drawn = page.evaluate(f"""(() => {{ const p = {bars}; return [p._fullLayout.xaxis.type,
                [...p.querySelectorAll('.xtick')].filter(t => t.textContent.includes('✓')).length]; }})()""")
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
        lines = f"[...{PLOT}].find(p => p.data.some(t => t.name == 'exit 1')).data.filter(t => t.x.length == 3).length"
        assert page.evaluate(lines) == 5
        assert page.evaluate("document.querySelector('.mx-lab').scrollWidth <= document.querySelector('.mx-lab').clientWidth")
    assert not errors and not elsewhere
