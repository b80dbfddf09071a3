"""What a person sees: the report opened in a real JupyterLab, in headless Chromium."""
import os
import subprocess
import sys
from pathlib import Path

import pytest
from lab_page import CHROMIUM, FLAGS, serve

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
