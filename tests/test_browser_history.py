"""The labs ensemble_weights and curves in a real JupyterLab, in headless Chromium."""
import pytest
from lab_page import CHROMIUM, PLOT, holds, listed, notebook, press, says
from project import ROOT
from tiny import make_run

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")]


@pytest.fixture(scope="module")
def labs(tmp_path_factory, lab_server):
    "Both labs, with three small runs."
    runs = tmp_path_factory.mktemp("runs")
    for method in ("dbt", "hdkd", "mate"):
        make_run(runs, epochs=8, images_per_class=30, method=method, lr=0.02)
    return lab_server(runs, *(ROOT/"nbs"/"labs"/f"{name}.ipynb" for name in ("ensemble_weights", "curves")))


SEEN = f"[...{PLOT}].filter(p => p.offsetParent)"
MATRIX = f"{PLOT}[0].calcdata[0][0].z.map(r => [...r]).flat().join()"


def title(page, plot, text):
    holds(page, f"{PLOT}[{plot}]?.layout?.title?.text?.includes('{text}')")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_ensemble_weights_in_jupyterlab(labs, theme, tmp_path):
    with notebook(labs, f"ensemble_weights-{theme}.ipynb", theme, height=2000) as (page, errors, elsewhere):
        says(page, "draws on")
        title(page, 0, "epoch 8")
        before = page.evaluate(MATRIX)
        page.locator(".widget-slider:has-text('epoch') .noUi-handle").first.focus()
        for _ in range(5):
            page.keyboard.press("ArrowLeft")
        title(page, 0, "epoch 3")
        holds(page, f"{MATRIX} != '{before}'")
        holds(page, f"{PLOT}[1].layout.shapes[0].x0 == 3")
        assert before
        listed(page, "teacher of").select_option("exit 3")
        title(page, 1, "exit 3")
        page.locator("select[multiple]").first.select_option(index=[0, 1, 2])
        press(page, "gaps")
        names = f"{SEEN}.flatMap(p => p.data || []).filter(t => t.name).map(t => t.name)"
        holds(page, f"new Set({names}).size == 3")
        page.screenshot(path=tmp_path/f"ensemble_weights-{theme}.png")
    assert not errors and not elsewhere


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_curves_in_jupyterlab(labs, theme, tmp_path):
    views = [("stability", "Stability"), ("temperature and confidence", "Annealing"),
             ("γ, learned loss weights", "what exit 1 learns from")]
    with notebook(labs, f"curves-{theme}.ipynb", theme, height=1300) as (page, errors, elsewhere):
        holds(page, f"{PLOT}[0]?.data?.length == 12")     # three runs, four exits
        for view, text in views:
            listed(page, "show").select_option(view)
            holds(page, f"{SEEN}.length == 1 && {SEEN}[0].layout.title.text.includes('{text}')")
            page.screenshot(path=tmp_path/f"curves-{text.split()[0]}-{theme}.png")
        listed(page, "show").select_option("beside the papers")
        says(page, "no published number fits")
        listed(page, "published").select_option("cifar100 · vgg16")
        says(page, "as if they were cifar100")
        page.screenshot(path=tmp_path/f"curves-papers-{theme}.png")
    assert not errors and not elsewhere
