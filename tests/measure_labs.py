"""How fast the labs are, measured in Chromium: python tests/measure_labs.py [lab … or own]

For each lab: seconds from "run" to the first picture, and the reaction to its key control (from the key to
the last change of a figure; the median of thirty). `own`: the exits lab with a run of a method of one's own.
The runs are those of MULTIEXIT_RUNS; where it names none, the shipped examples. What is measured with a busy
machine says nothing.
"""
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lab_page import PLOT, Place, command, opened, says, serve, still
from project import ROOT, worked_examples
from tiny import TINY

DOWN, UP = "ArrowDown", "ArrowUp"
KEYS = dict(exits=(".widget-slider .noUi-handle", "PageDown", "PageUp"),
            rdm=(".widget-dropdown:has(label:text-is('exit')) select", UP, DOWN),
            confusion=(".widget-dropdown:has(label:text-is('exit')) select", DOWN, UP),
            ensemble_weights=(".widget-slider:has-text('epoch') .noUi-handle", DOWN, UP),
            curves=(".widget-dropdown:has(label:text-is('what')) select", DOWN, UP))
WATCH = """() => {
    window.changed = 0;
    new MutationObserver(found => {
        if (found.some(m => m.target.closest?.('.js-plotly-plot'))) window.changed = performance.now();
    }).observe(document.querySelector('.mx-answer'), {subtree: true, childList: true, attributes: true,
                                                      characterData: true});
    document.addEventListener('keydown', () => window.pressed = performance.now(), true); }"""
DRAWN = f"[...{PLOT}].some(p => p.data?.length && p.getBoundingClientRect().width > 0)"
QUIET = "() => window.changed > window.pressed && performance.now() - window.changed > 250"


def reactions(page, control: str, there: str, back: str, count: int = 30) -> list[float]:
    "Milliseconds from a key to the last change of a figure."
    page.locator(control).first.focus()
    page.evaluate(WATCH)
    found = []
    for i in range(count):
        page.keyboard.press(there if i//2 % 2 == 0 else back)
        page.wait_for_function(QUIET)
        found.append(page.evaluate("window.changed - window.pressed"))
    return found


def measure(place, name: str) -> str:
    with opened(place, f"{name}.ipynb", width=1280, height=800) as (page, _, _):
        begun = time.perf_counter()
        command(page, "notebook:run-all-cells")
        page.wait_for_function(DRAWN, timeout=300_000)
        first = time.perf_counter() - begun
        still(page)
        took = reactions(page, *KEYS[name])
    return f"{name}: first picture {first:.1f} s, reaction {statistics.median(took):.0f} ms " \
           f"(least {min(took):.0f}, most {max(took):.0f})"


def measure_train(place, name: str) -> str:
    "From Start to a word, and to the first point; from a moved α to the flag that tells of it."
    with opened(place, "train.ipynb", width=1280, height=800) as (page, _, _):
        begun = time.perf_counter()
        command(page, "notebook:run-all-cells")
        page.wait_for_selector("button:has-text('Start'):not([disabled])", timeout=300_000)
        ready = time.perf_counter() - begun
        still(page)
        since = "async t => performance.now() - t"
        start = page.evaluate("performance.now()")
        page.locator("button:has-text('Start')").click()
        page.wait_for_function("document.querySelector('.mx-status').innerText.includes('starting')")
        heard = page.evaluate(since, start)
        page.wait_for_function(f"({PLOT}[0].data[0] || {{}}).name == 'exit 1'", timeout=300_000)
        first = page.evaluate(since, start)
        page.locator(".widget-slider:has-text('α') .noUi-handle").focus()
        moved = page.evaluate("performance.now()")
        page.keyboard.press("ArrowRight")
        page.wait_for_function("document.body.innerText.includes('α 3 →')")
        told = page.evaluate(since, moved)
    return f"train: Start after {ready:.1f} s, heard after {heard:.0f} ms, first epoch after " \
           f"{first/1000:.1f} s, a moved α told after {told:.0f} ms"


def train_own(folder, **env):
    "The method of CONTRIBUTING.md as a file in a folder, and a run of it."
    blocks = [b.replace("#| export\n", "") for b in worked_examples()["A method"][1:3]]
    (folder/"my_method.py").write_text("\n".join(blocks))
    given = TINY | dict(method="next_exit", plugins="my_method.py")
    words = [str(w) for name, value in given.items() for w in ("-p", name, value)]
    subprocess.run([sys.executable, "-m", "multiexit_nb.trainer", *words], cwd=folder, check=True,
                   env={**os.environ, **env}, capture_output=True)


def measure_own(place, name: str) -> str:
    "Until the lab asks for the file of the run's method; and from its name to the first picture."
    with opened(place, "exits.ipynb", width=1280, height=800) as (page, _, _):
        begun = time.perf_counter()
        command(page, "notebook:run-all-cells")
        says(page, "was made with my_method.py")
        asked = time.perf_counter() - begun
        page.locator(".widget-text:has-text('plugins') input").fill("my_method.py")
        page.keyboard.press("Enter")
        page.wait_for_function(DRAWN, timeout=300_000)
        first = time.perf_counter() - begun
    return f"own: asked for the file after {asked:.1f} s, first picture {first - asked:.1f} s later"


OTHERS = dict(train=measure_train, own=measure_own)


def main(names):
    top = Path(tempfile.mkdtemp())
    folder, own = top/"labs", top/"own"
    for made in (folder, own, top/"none"):
        made.mkdir()
    env = dict(MULTIEXIT_ROOT=str(ROOT), MULTIEXIT_DEVICE="cpu")
    there = dict(env, MULTIEXIT_RUNS=os.environ.get("MULTIEXIT_RUNS") or str(top/"none"))
    for name in ("train", *KEYS):
        (folder/f"{name}.ipynb").write_text((ROOT/"nbs"/"labs"/f"{name}.ipynb").read_text())
    for name in names:
        given = there
        if name == "own":
            given = dict(env, MULTIEXIT_RUNS=str(own))
            train_own(folder, **given)
        with serve(folder, top/name, **given) as address:
            print(OTHERS.get(name, measure)(Place(address, ""), name), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or ["train", *KEYS, "own"])
