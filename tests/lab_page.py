"""A JupyterLab of its own in headless Chromium, for the tests that look at what a person sees."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def until(condition, seconds=90):
    "Wait for something that another thread or process brings about."
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def save_rows(lab) -> list:
    "The rows of buttons that keep a figure and its table, of a lab without a browser."
    return [w for w in lab.stage.children if "mx-save" in w._dom_classes]


@contextlib.contextmanager
def serve(folder, home, **env):
    "JupyterLab over a folder, with a home of its own: its address (the token is t)."
    config = home/"config"/"labconfig"
    config.mkdir(parents=True)
    (config/"page_config.json").write_text(
        json.dumps({"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}})
    )
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    p = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "jupyterlab",
            "--no-browser",
            "--allow-root",
            "--ip=127.0.0.1",
            f"--port={port}",
            "--ServerApp.port_retries=0",
            "--ServerApp.token=t",
            f"--ServerApp.root_dir={folder}",
            "--LabApp.expose_app_in_browser=True",
            "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
        ],
        env={**os.environ, "HOME": str(home), "JUPYTER_CONFIG_DIR": str(home/"config"), **env},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{address}/api?token=t")
                break
            except OSError:
                time.sleep(0.25)
        yield address
    finally:
        os.killpg(p.pid, signal.SIGKILL)
        p.wait()


@contextlib.contextmanager
def notebook(address, name, theme="light", width=1500, height=1500, files=False):
    """A notebook opened and run: the page, its errors, and requests elsewhere.

    With `files` it stands beside JupyterLab's list of files.
    """
    from playwright.sync_api import sync_playwright

    errors, elsewhere = [], []
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport=dict(width=width, height=height))
        page.on("pageerror", lambda e: errors.append(str(e)))
        page.on(
            "request",
            lambda r: (
                elsewhere.append(r.url)
                if not r.url.startswith((address, "data:", "blob:", "ws://127.0.0.1"))
                else None
            ),
        )
        page.goto(f"{address}/lab/tree/{name}?token=t&reset")
        page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=90_000)
        page.evaluate("window.jupyterapp.restored")
        page.evaluate(
            "window.jupyterapp.commands.execute('apputils:change-theme', "
            f"{{theme: 'JupyterLab {theme.title()}'}})"
        )  # it is remembered
        page.evaluate("""async () => { const w = window.jupyterapp.shell.currentWidget; await w.context.ready;
                         await w.sessionContext.ready;
                         window.jupyterapp.commands.execute('notebook:run-all-cells'); }""")
        if not files:
            page.evaluate("window.jupyterapp.commands.execute('application:toggle-left-area')")
        try:
            yield page, errors, elsewhere
        finally:
            browser.close()
