"""What a person sees: the report opened in a real JupyterLab, in headless Chromium."""
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")]
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]


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
    "A JupyterLab of its own over the report's folder: (address, token)."
    config = tmp_path/"config"/"labconfig"
    config.mkdir(parents=True)
    (config/"page_config.json").write_text(json.dumps({"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}))
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    env = {**os.environ, "HOME": str(tmp_path), "JUPYTER_CONFIG_DIR": str(tmp_path/"config")}
    p = subprocess.Popen([sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}",
                          "--ServerApp.port_retries=0", "--ServerApp.token=t", f"--ServerApp.root_dir={report.parent}",
                          "--LabApp.expose_app_in_browser=True", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"],
                         env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    for _ in range(240):
        try:
            urllib.request.urlopen(f"{address}/api?token=t")
            break
        except OSError: time.sleep(0.25)
    yield address
    os.killpg(p.pid, signal.SIGKILL)
    p.wait()


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
