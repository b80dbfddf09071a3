"The site is built from the notebooks by one command, has no link that leads nowhere, and asks nobody else."
import functools
import http.server
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from lab_page import CHROMIUM, FLAGS

ROOT = Path(__file__).resolve().parent.parent
pytest.importorskip("mkdocs_jupyter")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    "The site, built."
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "-q", "--strict", "-f", ".ci/mkdocs.yml"]
    done = subprocess.run([*command, "-d", str(folder)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_every_notebook_and_every_module_has_a_page(site):
    books = [p.relative_to(ROOT/"nbs") for p in (ROOT/"nbs").rglob("*.ipynb") if ".ipynb_" not in str(p)]
    assert not [p for p in books if not (site/p.with_suffix(".html")).is_file()]
    api = (site/"api"/"multiexit_nb.predict.html").read_text()
    assert "Source code in" in api and "exits_in_turn" in api
    mate = (site/"methods"/"mate.html").read_text()
    assert "<math" in mate and "$$" not in mate, "formulas are drawn"
    start = (site/"index.html").read_text()
    assert "Read these eight" in start and (site/"images"/"exits_lab.png").is_file()
    local = re.findall(r'href="((?:\.\./)*[\w./-]+\.(?:html|png))', start)
    assert local and not [t for t in local if not (site/t).is_file()]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_it_is_searched_and_asks_nobody_else(site):
    from playwright.sync_api import sync_playwright
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=site)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, sync_playwright() as play:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address, elsewhere = f"http://127.0.0.1:{server.server_port}", []
        browser = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(color_scheme="dark")
        page.on("request", lambda r: r.url.startswith((address, "data:", "blob:")) or elsewhere.append(r.url))
        page.goto(f"{address}/methods/mate.html")
        assert page.locator("body").get_attribute("data-md-color-scheme") == "slate"
        page.locator("input.md-search__input").fill("temperature")
        page.wait_for_selector(".md-search-result__item", timeout=60_000)
        page.goto(f"{address}/index.html")
        page.wait_for_load_state("networkidle")
        browser.close()
        server.shutdown()
    assert not elsewhere
