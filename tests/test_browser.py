"What a person sees: the report and the labs rdm and confusion in a real JupyterLab, in Chromium."
import os
import subprocess
import sys

import pytest
from lab_page import CHROMIUM, PLOT, holds, listed, notebook, opened, press, says
from project import ROOT
from tiny import make_run

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")]
GREAT = {"Accuracy on val", "Loss terms on the training batches", "What an exit costs and gives (test)"}


@pytest.fixture(scope="module")
def report(tmp_path_factory, lab_server):
    "A place with the notebook `train`, run by papermill."
    top = tmp_path_factory.mktemp("report")
    given = ["-p", "dataset", "digits", "-p", "epochs", "2", "-p", "images_per_class", "14"]
    env = {**os.environ, "MULTIEXIT_ROOT": str(ROOT), "MULTIEXIT_RUNS": str(top), "MULTIEXIT_DEVICE": "cpu"}
    subprocess.run([sys.executable, "-m", "papermill", ROOT/"nbs"/"train.ipynb", top/"out.ipynb", *given],
                   env=env, check=True, cwd=top, capture_output=True)
    return lab_server(top, top/"out.ipynb")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_report_is_drawn_in_jupyterlab(report, theme, tmp_path):
    titles = f"[...{PLOT}].map(p => p.querySelector('.gtitle')?.textContent || '')"
    with opened(report, f"out-{theme}.ipynb", theme, width=1300, height=1000) as (page, errors, elsewhere):
        drawn = set()
        for _ in range(200):      # cells outside the view are drawn when they come into it
            drawn |= set(page.evaluate(titles))
            if len(drawn - {""}) >= 6:
                break
            page.mouse.move(650, 600)
            page.mouse.wheel(0, 350)
            page.wait_for_timeout(150)
        page.screenshot(path=tmp_path/f"report-{theme}.png")
    assert GREAT <= drawn and len(drawn - {""}) >= 6
    assert not errors and not elsewhere


# The labs rdm and confusion
@pytest.fixture(scope="module")
def labs(tmp_path_factory, lab_server):
    "The two labs, a kernel for each theme, with two finished runs."
    runs = tmp_path_factory.mktemp("runs")
    for method in ("branchynet", "eed"):
        make_run(runs, epochs=3, images_per_class=0, lr=0.05, method=method)
    return lab_server(runs, *(ROOT/"nbs"/"labs"/f"{name}.ipynb" for name in ("rdm", "confusion")))


def drawn(page, plot, panels):
    holds(page, f"({PLOT}[{plot}] || {{}}).data?.length == {panels}")


def click_cell(page, plot, x, y):
    "Click on a cell of a heat map by its numbers on the axes; the mouse goes there first, as a hand does."
    where = page.evaluate("""([plot, x, y]) => {
        const g = document.querySelectorAll('.js-plotly-plot')[plot], b = g.getBoundingClientRect();
        const l = g._fullLayout;
        return [b.left + l._size.l + l.xaxis.l2p(x), b.top + l._size.t + l.yaxis.l2p(y)]; }""", [plot, x, y])
    page.mouse.move(where[0] - 3, where[1] - 3)
    page.mouse.move(*where, steps=4)
    page.wait_for_timeout(200)
    page.mouse.click(*where)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_rdm_in_jupyterlab(labs, theme, tmp_path):
    title = f"{PLOT}[0].querySelector('.gtitle').textContent"
    with notebook(labs, f"rdm-{theme}.ipynb", theme, height=2300) as (page, errors, elsewhere):
        says(page, "of different classes")
        drawn(page, 0, 2)
        holds(page, f"{title}.includes('correlation')")
        listed(page, "distance").select_option("cosine")
        holds(page, f"{title}.includes('cosine')")
        listed(page, "beside").select_option(index=2)
        drawn(page, 0, 4)
        says(page, "branchynet, exit 4, before")
        listed(page, "order").focus()
        page.keyboard.press("ArrowDown")            # JupyterLab leaves it to the list
        holds(page, f"{PLOT}[0].querySelectorAll('.xtick text').length > 12")   # mixed: names of some rows
        assert listed(page, "order").input_value() == "by similarity"
        listed(page, "exit").select_option("exit 1")
        says(page, "exit 1, after")
        holds(page, f"{PLOT}[0].querySelector('.annotation-text').textContent.endsWith('exit 1, before')")
        page.screenshot(path=tmp_path/f"rdm-{theme}.png")
    assert not errors and not elsewhere


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_confusion_in_jupyterlab(labs, theme, tmp_path):
    images = "[...document.querySelectorAll('img[title^=\"image\"]')]"
    with notebook(labs, f"confusion-{theme}.ipynb", theme, height=1500) as (page, errors, elsewhere):
        says(page, "Images of a cell")
        drawn(page, 1, 1)
        page.locator("label:has-text('mistakes only') input").uncheck()
        page.wait_for_timeout(1500)
        click_cell(page, 0, 6, 6)
        says(page, "6, rightly recognised")
        holds(page, f"{images}.length > 3 && {images}.every(i => i.title.endsWith(': 6'))")
        press(page, "two exits")
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
        press(page, "mistakes")
        listed(page, "exit").select_option("exit 4")
        holds(page, f"{PLOT}[0].querySelector('.gtitle').textContent.startsWith('Exit 4')")
        click_cell(page, 0, 3, 3)
        says(page, "Exit 4: 3, rightly recognised")
    assert not errors and not elsewhere
