"""The labs ensemble_weights and curves in a real JupyterLab, in headless Chromium."""
import shutil
from pathlib import Path

import pytest
from lab_page import CHROMIUM, notebook, serve

ROOT = Path(__file__).resolve().parent.parent
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")]


@pytest.fixture(scope="module")
def labs(tmp_path_factory):
    "A JupyterLab over both labs, with three small runs: its address."
    from multiexit_nb import widgets
    home, runs = tmp_path_factory.mktemp("jupyter"), tmp_path_factory.mktemp("runs")
    (home/"labs").mkdir()
    for name in ("ensemble_weights", "curves"):
        for theme in ("light", "dark"): shutil.copy(ROOT/"nbs"/"labs"/f"{name}.ipynb", home/"labs"/f"{name}-{theme}.ipynb")
    with pytest.MonkeyPatch.context() as m:
        for k, v in dict(RUNS=str(runs), DEVICE="cpu").items(): m.setenv(f"MULTIEXIT_{k}", v)
        for method in ("dbt", "hdkd", "mate"): widgets.demo_run(epochs=8, images_per_class=30, method=method, lr=0.02)
    with serve(home/"labs", home, MULTIEXIT_ROOT=str(ROOT), MULTIEXIT_RUNS=str(runs), MULTIEXIT_DEVICE="cpu") as address: yield address


def says(page, text): page.wait_for_function("t => document.body.innerText.includes(t)", arg=text, timeout=120_000)     # the first waits for the kernel as well
def until(page, js): page.wait_for_function(js, timeout=90_000)
def listed(page, text): return page.locator(f".widget-dropdown:has(label:text-is('{text}')) select").first


PLOT = "document.querySelectorAll('.js-plotly-plot')"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_ensemble_weights_in_jupyterlab(labs, theme, tmp_path):
    first = f"({PLOT}[0] || {{}}).layout"
    with notebook(labs, f"ensemble_weights-{theme}.ipynb", theme, height=2000) as (page, errors, elsewhere):
        says(page, "draws on")
        until(page, f"{PLOT}.length == 3 && ({first} || {{title: {{text: ''}}}}).title && {first}.title.text.includes('epoch 8')")
        before = page.evaluate(f"{PLOT}[0].calcdata[0][0].z.map(r => [...r]).flat().join()")
        page.locator(".widget-slider:has-text('epoch') .noUi-handle").first.focus()
        for _ in range(5): page.keyboard.press("ArrowLeft")
        until(page, f"{PLOT}[0].layout.title.text.includes('epoch 3')")
        until(page, f"{PLOT}[0].calcdata[0][0].z.map(r => [...r]).flat().join() != '{before}'")
        until(page, f"{PLOT}[1].layout.shapes[0].x0 == 3")
        assert before
        listed(page, "teacher of").select_option("exit 3")
        until(page, f"{PLOT}[1].layout.title.text.includes('exit 3')")
        page.locator("select[multiple]").first.select_option(index=[0, 1, 2])
        until(page, f"[...new Set({PLOT}[2].data.filter(t => t.name).map(t => t.name))].length == 3")
        page.wait_for_timeout(1500)
        page.screenshot(path=tmp_path/f"ensemble_weights-{theme}.png")
    assert not errors and not elsewhere


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_curves_in_jupyterlab(labs, theme, tmp_path):
    with notebook(labs, f"curves-{theme}.ipynb", theme, height=1300) as (page, errors, elsewhere):
        page.wait_for_selector(".js-plotly-plot", timeout=60_000)
        page.wait_for_timeout(1500)
        page.screenshot(path=tmp_path/f"curves-{theme}.png")
        until(page, f"({PLOT}[0] || {{data: []}}).data.length == 12")     # three runs, four exits
        for view, title in (("stability", "Stability"), ("temperature and confidence", "Annealing"), ("γ, learned loss weights", "what exit 1 learns from")):
            listed(page, "show").select_option(view)
            until(page, f"{PLOT}.length == 1 && {PLOT}[0].layout.title.text.includes('{title}')")
            page.wait_for_timeout(1200)
            page.screenshot(path=tmp_path/f"curves-{title.split()[0]}-{theme}.png")
        listed(page, "show").select_option("beside the papers")
        says(page, "no published number fits")
        listed(page, "published").select_option("cifar100 · vgg16")
        says(page, "as if they were cifar100")
        page.wait_for_timeout(1200)
        page.screenshot(path=tmp_path/f"curves-papers-{theme}.png")
    assert not errors and not elsewhere
