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
from typing import NamedTuple

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]


def until(condition, seconds=90):
    "Wait for something that another thread or process brings about."
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def keep_all(lab) -> dict[str, list[str]]:
    "For every view of a lab without a browser its two buttons pressed: what the row says to each."
    (row,) = [w for w in lab.stage.children if "mx-save" in w._dom_classes]
    said = {}
    for view in lab.choose.options:
        lab.choose.value = view
        for button in row.children[3:5]:
            button.click()
            said.setdefault(view, []).append(row.children[-1].value)
    assert said, "a lab without views"
    return said


def kept(folder) -> set[str]:
    "What was kept there, without the times in the names."
    return {f.name.split("-2")[0] + f.suffix for f in (folder/"exports").iterdir()}


class Place(NamedTuple):
    "A folder of notebooks in a JupyterLab: its address, and where the folder is."
    address: str
    folder: str


@contextlib.contextmanager
def serve(folder, home, **env):
    "JupyterLab over a folder, with a home of its own: its address (the token is t)."
    config = home/"config"/"labconfig"
    config.mkdir(parents=True)
    quiet = {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}
    (config/"page_config.json").write_text(json.dumps(quiet))
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    options = ["--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}",
               "--ServerApp.port_retries=0", "--ServerApp.token=t", f"--ServerApp.root_dir={folder}",
               "--LabApp.expose_app_in_browser=True",
               "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    own = {"HOME": str(home), "JUPYTER_CONFIG_DIR": str(home/"config")}
    p = subprocess.Popen([sys.executable, "-m", "jupyterlab", *options], env={**os.environ, **own, **env},
                         stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    try:
        until(lambda: answers(f"{address}/api?token=t"), 300)
        yield address
    finally:
        os.killpg(p.pid, signal.SIGKILL)
        p.wait()


def answers(url) -> bool:
    try:
        urllib.request.urlopen(url)
    except OSError:
        return False
    return True


def command(page, name, **options):
    "One of JupyterLab's commands."
    page.evaluate("([name, options]) => window.jupyterapp.commands.execute(name, options)", [name, options])


@contextlib.contextmanager
def opened(place, name, theme="light", width=1500, height=1500, slow=1):
    """A notebook opened (in a browser `slow` times slower than it could be): the page, and lists of page
    errors and of requests elsewhere. Its kernel ends with it, unless the page was left."""
    from playwright.sync_api import sync_playwright
    errors, elsewhere = [], []
    near = (place.address, "data:", "blob:", "ws://127.0.0.1")
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport=dict(width=width, height=height))
        page.on("pageerror", lambda e: errors.append(str(e)))
        page.on("request", lambda r: None if r.url.startswith(near) else elsewhere.append(r.url))
        page.goto(f"{place.address}/lab/tree/{place.folder}/{name}?token=t&reset")
        page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=90_000)
        page.evaluate("window.jupyterapp.restored")
        command(page, "apputils:change-theme", theme=f"JupyterLab {theme.title()}")     # it is remembered
        page.evaluate("""async () => { const w = window.jupyterapp.shell.currentWidget;
                                       await w.context.ready; await w.sessionContext.ready; }""")
        page.context.new_cdp_session(page).send("Emulation.setCPUThrottlingRate", {"rate": slow})
        try:
            yield page, errors, elsewhere
        finally:
            page.evaluate("window.jupyterapp?.shell.currentWidget.sessionContext.shutdown()")
            browser.close()


@contextlib.contextmanager
def notebook(place, name, theme="light", width=1500, height=1500, files=False, slow=1, by_hand=False):
    """As `opened`, and run (with `files` beside JupyterLab's list of files); `by_hand` with Shift + Enter in
    the last cell, which makes another below it."""
    with opened(place, name, theme, width, height, slow) as (page, errors, elsewhere):
        if by_hand:
            page.locator(".jp-CodeCell .cm-content").last.click()
            page.keyboard.press("Shift+Enter")
        else:
            command(page, "notebook:run-all-cells")
        if not files:
            command(page, "application:toggle-left-area")
        yield page, errors, elsewhere


@contextlib.contextmanager
def voila(place, name, width=1280, height=800):
    "A notebook as voila shows it, by the same server: the page, and a list of page errors."
    from playwright.sync_api import sync_playwright
    errors = []
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport=dict(width=width, height=height))
        page.on("pageerror", lambda e: errors.append(str(e)))
        page.goto(f"{place.address}/voila/render/{place.folder}/{name}?token=t", timeout=120_000)
        try:
            yield page, errors
        finally:
            page.goto("about:blank")        # voila ends a kernel when its page is left
            browser.close()


# What tests of labs ask of a page
PLOT = "document.querySelectorAll('.js-plotly-plot')"


def says(page, text):
    "Until the text can be read; the first waits for the kernel as well."
    page.wait_for_function("t => document.body.innerText.includes(t)", arg=text, timeout=120_000)


def holds(page, condition):
    "Until a condition in JavaScript holds."
    page.wait_for_function(condition, timeout=90_000)


def listed(page, text):
    "The list with this label."
    return page.locator(f".widget-dropdown:has(label:text-is('{text}')) select").first


def press(page, text):
    page.locator(f"button:has-text('{text}'):not([disabled])").first.click()


def at_rest(page):
    "Until the kernel has worked off all that it was told."
    page.evaluate("""async () => {
        const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
        await kernel.requestExecute({code: ''}).done; }""")


STILL = """() => new Promise(done => {
    let before = '', same = 0;
    const look = () => {
        const parts = document.querySelectorAll('.mx-lab, .mx-lab button, .mx-lab select, .mx-figure svg');
        const now = JSON.stringify([...parts].map(e => e.getBoundingClientRect()));
        same = now == before ? same + 1 : 0;
        before = now;
        same < 12 ? requestAnimationFrame(look) : done();
    };
    look(); })"""
DRAWN = """(() => { const all = [...document.querySelectorAll('.mx-figure')].filter(p => p.offsetParent);
    return all.length > 0 && all.every(p => p.querySelector('.gtitle')); })()"""


def still(page):
    "Until the kernel has answered, every figure that can be seen is drawn, and nothing moves any more."
    at_rest(page)
    holds(page, DRAWN)
    page.evaluate(STILL)
