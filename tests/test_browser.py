"What a person sees of a report, in a real JupyterLab, in Chromium."
import os
import subprocess
import sys

import pytest
from lab_page import CHROMIUM, command, holds, opened
from project import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")]
GREAT = {"Accuracy on val", "Loss terms on the training batches", "What an exit costs and gives (test)"}


COVERED = """p => {
    const box = x => p.querySelector(x)?.getBoundingClientRect(), title = box('.gtitle');
    const above = title?.top < box('.modebar').bottom - 1;
    return above || title?.bottom > box('.svg-container').top + p._fullLayout._size.t + 1; }"""


@pytest.fixture(scope="module")
def report(tmp_path_factory, lab_server):
    "A place with the notebook `train`, run by papermill."
    top = tmp_path_factory.mktemp("report")
    given = ["-p", "dataset", "digits", "-p", "epochs", "2", "-p", "images_per_class", "14"]
    env = {**os.environ, "MULTIEXIT_ROOT": str(ROOT), "MULTIEXIT_RUNS": str(top), "MULTIEXIT_DEVICE": "cpu"}
    subprocess.run([sys.executable, "-m", "papermill", ROOT/"nbs"/"train.ipynb", top/"out.ipynb", *given],
                   env=env, check=True, cwd=top, capture_output=True)
    return lab_server(top, top/"out.ipynb")


def seen(page) -> set[str]:
    "The titles of all figures: each cell is brought into view, and what is there is drawn."
    cells = "window.jupyterapp.shell.currentWidget.content.widgets"
    found = set()
    for i in range(page.evaluate(f"{cells}.length")):
        page.evaluate("i => window.jupyterapp.shell.currentWidget.content.scrollToItem(i)", i)
        outputs = f"({cells}[{i}].model.outputs?.toJSON() ?? [])"
        figures = f"{outputs}.filter(o => 'application/vnd.plotly.v1+json' in (o.data ?? {{}})).length"
        drawn = f"[...{cells}[{i}].node.querySelectorAll('.js-plotly-plot')].filter(p => p._fullLayout)"
        holds(page, f"{drawn}.length >= {figures}")
        found |= set(page.evaluate(f"{drawn}.map(p => p.querySelector('.gtitle')?.textContent || '')"))
        assert not page.evaluate(f"{drawn}.filter({COVERED}).map(p => p.innerText)"), "a title is covered"
    return found


def test_the_report_is_drawn_in_jupyterlab(report, tmp_path):
    "In the light, then in the dark theme."
    with opened(report, "out-light.ipynb", width=1300, height=1000) as (page, errors, elsewhere):
        for theme in ("Light", "Dark"):
            command(page, "apputils:change-theme", theme=f"JupyterLab {theme}")
            drawn = seen(page)
            page.screenshot(path=tmp_path/f"report-{theme}.png")
            assert GREAT <= drawn and len(drawn - {""}) >= 6
        assert not errors and not elsewhere
