"""What a person sees: the report and the labs rdm and confusion in a real JupyterLab, in headless Chromium."""
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from lab_page import CHROMIUM, FLAGS, notebook, serve

ROOT = Path(__file__).resolve().parent.parent
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")]

@pytest.fixture(scope="module")
def report(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("report")
    (tmp_path/"book").mkdir()
    subprocess.run([sys.executable, "-m", "papermill", ROOT/"nbs"/"train.ipynb", tmp_path/"book"/"out.ipynb", "-p", "epochs", "2",
                    "-p", "images_per_class", "14"], env={**os.environ, "MULTIEXIT_ROOT": str(ROOT), "MULTIEXIT_RUNS": str(tmp_path)}, check=True, cwd=tmp_path,
                   capture_output=True)
    return tmp_path/"book"/"out.ipynb"


@pytest.fixture
def lab(tmp_path, report):
    "A JupyterLab of its own over the report's folder: its address."
    with serve(report.parent, tmp_path) as address: yield address


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_report_is_drawn_in_jupyterlab(lab, theme, tmp_path):
    from playwright.sync_api import sync_playwright
    errors, elsewhere = [], []
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport=dict(width=1300, height=1000))
        page.on("pageerror", lambda e: errors.append(str(e)))
        page.on("request", lambda r: elsewhere.append(r.url) if not r.url.startswith((lab, "data:", "blob:", "ws://127.0.0.1")) else None)
        page.goto(f"{lab}/lab/tree/out.ipynb?token=t&reset")
        page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=60_000)
        page.evaluate("window.jupyterapp.restored")
        if theme == "dark": page.evaluate("window.jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'})")
        drawn = set()
        for _ in range(200):      # cells outside the view are drawn when they come into it
            drawn |= set(page.evaluate("[...document.querySelectorAll('.js-plotly-plot .gtitle')].map(e => e.textContent)"))
            if len(drawn) >= 6: break
            page.mouse.move(650, 600)
            page.mouse.wheel(0, 350)
            page.wait_for_timeout(150)
        page.screenshot(path=tmp_path/f"report-{theme}.png")
        browser.close()
    assert {"Accuracy on val", "Loss terms on the training batches", "What an exit costs and gives (test)"} <= drawn and len(drawn) == 6
    assert not errors and not elsewhere


# ---------------------------------------------------------------- the labs rdm and confusion
@pytest.fixture(scope="module")
def labs(tmp_path_factory):
    "A JupyterLab over the two labs, a kernel for each theme, with two finished runs: its address."
    from multiexit_nb import widgets
    home, runs = tmp_path_factory.mktemp("jupyter"), tmp_path_factory.mktemp("runs")
    (home/"labs").mkdir()
    for name in ("rdm", "confusion"):
        for theme in ("light", "dark"): shutil.copy(ROOT/"nbs"/"labs"/f"{name}.ipynb", home/"labs"/f"{name}-{theme}.ipynb")
    with pytest.MonkeyPatch.context() as m:
        for k, v in dict(RUNS=str(runs), DEVICE="cpu").items(): m.setenv(f"MULTIEXIT_{k}", v)
        for method in ("branchynet", "eed"): widgets.demo_run(epochs=3, method=method)
    with serve(home/"labs", home, MULTIEXIT_ROOT=str(ROOT), MULTIEXIT_RUNS=str(runs), MULTIEXIT_DEVICE="cpu") as address: yield address


def says(page, text): page.wait_for_function("t => document.body.innerText.includes(t)", arg=text, timeout=60_000)
def listed(page, text): return page.locator(f".widget-dropdown:has(label:text-is('{text}')) select").first
def drawn(page, plot, panels): page.wait_for_function(f"(document.querySelectorAll('.js-plotly-plot')[{plot}] || {{data: []}}).data.length == {panels}", timeout=60_000)


def click_cell(page, plot, x, y):
    "Click on a cell of a heat map by its numbers on the axes; the mouse goes there first, as a person's does."
    where = page.evaluate("""([plot, x, y]) => { const g = document.querySelectorAll('.js-plotly-plot')[plot], b = g.getBoundingClientRect(), l = g._fullLayout;
                             return [b.left + l._size.l + l.xaxis.l2p(x), b.top + l._size.t + l.yaxis.l2p(y)]; }""", [plot, x, y])
    page.mouse.move(where[0] - 3, where[1] - 3)
    page.mouse.move(*where, steps=4)
    page.wait_for_timeout(200)
    page.mouse.click(*where)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_rdm_in_jupyterlab(labs, theme, tmp_path):
    title = "document.querySelectorAll('.js-plotly-plot .gtitle')[0].textContent"
    with notebook(labs, f"rdm-{theme}.ipynb", theme, height=2300) as (page, errors, elsewhere):
        says(page, "of different classes")
        drawn(page, 0, 2)
        page.wait_for_function(f"{title}.includes('correlation')", timeout=60_000)
        listed(page, "distance").select_option("cosine")
        page.wait_for_function(f"{title}.includes('cosine')", timeout=30_000)
        listed(page, "beside").select_option(index=2)
        drawn(page, 0, 4)
        says(page, "branchynet, exit 4, before")
        listed(page, "order").focus()
        page.keyboard.press("ArrowDown")            # JupyterLab leaves it to the list
        page.wait_for_function("document.querySelectorAll('.js-plotly-plot')[0].querySelectorAll('.xtick text').length > 12", timeout=30_000)    # classes are mixed: names of some rows
        assert listed(page, "order").input_value() == "by similarity"
        listed(page, "exit").select_option("exit 1")
        says(page, "exit 1, after")
        page.wait_for_timeout(2500)
        assert page.evaluate("[...document.querySelectorAll('.js-plotly-plot')[0].querySelectorAll('.annotation-text')].map(e => e.textContent)[0]").endswith("exit 1, before")
        page.screenshot(path=tmp_path/f"rdm-{theme}.png")
    assert not errors and not elsewhere


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_confusion_in_jupyterlab(labs, theme, tmp_path):
    with notebook(labs, f"confusion-{theme}.ipynb", theme, height=1500) as (page, errors, elsewhere):
        says(page, "Images of a cell")
        drawn(page, 1, 1)
        page.locator("label:has-text('mistakes only') input").uncheck()
        page.wait_for_timeout(1500)
        click_cell(page, 0, 6, 6)
        says(page, "6, rightly recognised")
        page.wait_for_function("document.querySelectorAll('img[title^=\"image\"]').length > 3 && [...document.querySelectorAll('img[title^=\"image\"]')].every(i => i.title.endsWith(': 6'))")
        page.locator("button:has-text('two exits')").click()
        page.wait_for_timeout(1500)
        click_cell(page, 1, 1, 0)
        says(page, "only exit 4 right")
        page.screenshot(path=tmp_path/f"confusion-{theme}.png")
        listed(page, "it is").focus()               # by keyboard
        page.keyboard.press("Home")
        listed(page, "answered").focus()
        page.keyboard.press("Home")
        page.keyboard.press("ArrowDown")
        says(page, "0, taken for 1")
        page.keyboard.press("ArrowUp")
        says(page, "0, rightly recognised")
        page.locator("button[title='the next images']").click()
        says(page, "13 to 24 shown")
        page.locator("button:has-text('mistakes')").first.click()
        listed(page, "exit").select_option("exit 4")
        page.wait_for_function("document.querySelectorAll('.js-plotly-plot .gtitle')[0].textContent.startsWith('Exit 4')")
        click_cell(page, 0, 3, 3)
        says(page, "Exit 4: 3, rightly recognised")
    assert not errors and not elsewhere
