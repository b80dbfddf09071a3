"A stranger's runs in a real JupyterLab: nothing is executed, fetched or followed; what is refused is named."
import json
import pickle
import shutil
from pathlib import Path

import layouts
import pytest
import torch
from faults import tell
from lab_page import CHROMIUM, command, listed, notebook, press, says
from project import ROOT, load
from tiny import TINY, make_run

from multiexit_nb.grid import cells, read_grid

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")]
SCRIPT = "`<img src=x onerror=window.stranger=1>"          # a file, and a folder, can be called so
LINK = ("![x](http://stranger.invalid/x.png) <script>window.stranger=1</script> "
        "[x](javascript:window.stranger=1)")
BEYOND = '{"parameters": {"epochs": 1e999, "seed": 1' + "0"*400 + ', "image_size": 1' + "0"*40 + "}}"


class Bomb:
    "Unpickled, it writes a file."
    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return Path.write_text, (self.file, "exploded")


def another(run, name: str, *gone: str) -> Path:
    "A copy of a run as an older version would have written it, without checksums: its folder."
    folder = run.path.parent/name
    shutil.copytree(run.path, folder)
    for file in ("manifest.json", *gone):
        (folder/file).unlink()
    change(folder, record=None)
    return folder


def change(folder: Path, **about):
    "Other entries in its params.json; None takes one away."
    file = folder/"params.json"
    record = {k: v for k, v in (json.loads(file.read_text()) | about).items() if v is not None}
    file.write_text(json.dumps(record))


def append(file: Path, row: str):
    file.write_text(file.read_text() + row + "\n")


def with_words(run):
    "Whole runs whose free texts are scripts: names, versions, reasons, events, metrics."
    shutil.copytree(run.path, run.path.parent/SCRIPT)
    folder = another(run, "words")
    about = json.loads((folder/"params.json").read_text())
    change(folder, started=SCRIPT, commit=LINK, versions={SCRIPT: LINK},
           decided=about["decided"] | {"why": LINK})
    append(folder/"history.csv", f"1,train,,{SCRIPT},0.5\n2,train,,{SCRIPT},0.25")
    folder = another(run, "events")
    (folder/"events.csv").write_text(f'epoch,name,old,value\n1.0,fork,"{LINK}",x\n1.5,"{SCRIPT}",1,2\n')
    folder = another(run, "no-numbers")
    (folder/"events.csv").write_text(f"epoch,name,old,value\n1.0,stop,{SCRIPT},{SCRIPT}\n")


def refused(run, outside: Path):
    "Runs that cannot be: every parameter a script, numbers without bounds, links to elsewhere, pickles."
    folder = another(run, "parameters")
    change(folder, parameters={k: SCRIPT if isinstance(v, str) else v for k, v in run.parameters.items()})
    (run.path.parent/"beyond").mkdir()
    (run.path.parent/"beyond"/"params.json").write_text(BEYOND)
    folder = another(run, "links")
    for name in ("history.csv", "outputs.safetensors", "budgeted.csv", ".lock", "tensorboard"):
        (folder/name).unlink(missing_ok=True)
        (folder/name).symlink_to(outside/"victim")
    for name, kept in (("pickles", "result.json"), ("pickles-unfinished", "")):
        folder = another(run, name)
        bomb = pickle.dumps(Bomb(outside/"exploded"))
        for file in ("weights.safetensors", "outputs.safetensors"):
            (folder/file).write_bytes(bomb)
        torch.save(dict(identity=Bomb(outside/"exploded")), folder/"checkpoint.pt")
        if not kept:
            (folder/"result.json").unlink()


def with_class_names(runs: Path, top: Path):
    "A run on images whose classes are called like scripts."
    layouts.imagefolder(top, ("train", "test"))
    for split in ("train", "test"):
        (top/"set"/split/"x").rename(top/"set"/split/SCRIPT)
    return make_run(runs, dataset=f"imagefolder:{top/'set'}", images_per_class=0, batch_size=8, image_size=16)


GRID = dict(base=TINY | dict(epochs=1), runs=[dict(method="mate"), dict(method="branchynet")])


def with_a_sweep(run, top: Path) -> Path:
    "A grid, one of whose runs is a stranger's, and another failed with a script: its file."
    (top/"grid.yaml").write_text(json.dumps(GRID))
    first, second = cells(read_grid(top/"grid.yaml"))
    folder = another(run, first.id, "result.json")
    change(folder, parameters={k: SCRIPT if isinstance(v, str) else v for k, v in run.parameters.items()})
    notes = run.path.parent/".sweep"
    notes.mkdir()
    (notes/f"{second.id}.failed").write_text(f"InputError: {LINK} {SCRIPT}")
    return top/"grid.yaml"


def with_parameters(name: str, to: Path, **given) -> Path:
    "A notebook with parameters as papermill injects them, and a cell before all others."
    nb = load(f"nbs/{name}.ipynb")
    at = next(i for i, c in enumerate(nb["cells"]) if c["id"] == "parameters")
    empty = dict(cell_type="code", execution_count=None, metadata={}, outputs=[])
    more = "".join(f"{k} = {v!r}\n" for k, v in given.items())
    nb["cells"].insert(at + 1, empty | dict(id="injected-parameters", source=["# Parameters\n", more]))
    nb["cells"].insert(at, empty | dict(id="first", source=["import os\n"]))
    to.write_text(json.dumps(nb))
    return to


def all_labs(to: Path) -> Path:
    "The cells of the six labs one below the other: one kernel makes them all."
    books = [json.loads(f.read_text()) for f in sorted((ROOT/"nbs"/"labs").glob("*.ipynb"))]
    programs = [[c for c in nb["cells"] if c["cell_type"] == "code"] for nb in books]
    code = [c | dict(id=f"lab-{i}-{c['id']}") for i, cells in enumerate(programs) for c in cells]
    to.write_text(json.dumps(books[0] | dict(cells=code)))
    return to


@pytest.fixture(scope="module")
def stranger(tmp_path_factory, lab_server):
    "JupyterLab over the six labs and the programs with a stranger's runs; the folder that nobody may touch."
    top = tmp_path_factory.mktemp("stranger")
    outside, runs = top/"outside", top/"runs"
    outside.mkdir()
    (outside/"victim").write_text("precious")
    run = make_run(runs)
    with_class_names(runs, top)
    with_words(run)
    refused(run, outside)
    grid = with_a_sweep(run, top)
    books = [with_parameters("train", top/"again.ipynb", resume=SCRIPT),
             with_parameters("train", top/"pickle.ipynb", resume="pickles-unfinished"),
             with_parameters("sweep", top/"sweep.ipynb", file=str(grid), folder=str(runs)),
             with_parameters("report", top/"report.ipynb"), all_labs(top/"labs.ipynb")]
    return lab_server(runs, *books), outside


# ---- what a person does there ----

def at_rest(page):
    "Until the kernel has worked off all that it was told."
    page.evaluate("""async () => {
        const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
        await kernel.requestExecute({code: ''}).done; }""")


def look_at_all(page):
    "Bring every cell into view."
    page.evaluate("""async () => {
        const book = window.jupyterapp.shell.currentWidget.content;
        for (let i = 0; i < book.widgets.length; i++) {
            await book.scrollToItem(i);
            await new Promise(seen => requestAnimationFrame(() => requestAnimationFrame(seen))); } }""")


def choose_everything(page, lab):
    "Every entry of every list of a lab, once."
    lists = lab.locator(".mx-controls select")
    for i in range(lists.count()):
        choice = lists.nth(i)
        for value in choice.locator("option").all_text_contents():
            still = value in choice.locator("option").all_text_contents()    # lists make each other's entries
            if still and choice.is_visible() and choice.is_enabled():
                choice.select_option(label=value)
                at_rest(page)


def go_to(page, place, name):
    "Another notebook in the same JupyterLab, run; the one before and its kernel are closed."
    page.evaluate("""async path => {
        const app = window.jupyterapp, before = app.shell.currentWidget;
        await before.sessionContext.shutdown();
        before.dispose();
        const now = await app.commands.execute('docmanager:open', {path});
        await now.context.ready; await now.sessionContext.ready; }""", f"{place.folder}/{name}")
    command(page, "notebook:run-all-cells")


def try_to_continue(page):
    "Each unfinished run, in the lab train."
    for value in listed(page, "continue").locator("option").all_text_contents()[1:]:
        listed(page, "continue").select_option(label=value)
        press(page, "Start")
        says(page, "not started")


def nothing_happened(page, elsewhere, outside: Path):
    "No script ran, nothing was asked of another machine, and nothing outside was touched."
    assert page.evaluate("typeof window.stranger") == "undefined"
    assert not elsewhere
    assert [f.name for f in outside.iterdir()] == ["victim"]
    assert (outside/"victim").read_text() == "precious"


BOOKS = {"again": [SCRIPT], "pickle": ["InputError", "checkpoint"], "sweep": ["failed"],
         "report": ["Left out", "beyond", "no-numbers"]}


def test_a_strangers_runs_in_the_notebooks(stranger, tmp_path):
    place, outside = stranger
    with notebook(place, f"{next(iter(BOOKS))}-light.ipynb") as (page, errors, elsewhere):
        for name, said in BOOKS.items():
            if name != next(iter(BOOKS)):
                go_to(page, place, f"{name}-light.ipynb")
            look_at_all(page)
            page.screenshot(path=tmp_path/f"{name}.png")
            for words in said:
                says(page, words)
            at_rest(page)
            nothing_happened(page, elsewhere, outside)
    tell("a stranger's runs in JupyterLab", {"nothing is executed; what is refused is named": len(BOOKS)})


def test_a_strangers_runs_in_the_labs(stranger, tmp_path):
    place, outside = stranger
    count = len(list((ROOT/"nbs"/"labs").glob("*.ipynb")))
    told = "[...document.querySelectorAll('.mx-lab')].filter(l => l.innerText.includes('{}')).length"
    with notebook(place, "labs-light.ipynb") as (page, errors, elsewhere):
        page.wait_for_function(f"{told.format('damaged runs are left out')} == {count}", timeout=240_000)
        at_rest(page)
        labs = page.locator(".mx-lab")
        for i in range(count - 1):        # the last is train
            choose_everything(page, labs.nth(i))
        try_to_continue(page)
        look_at_all(page)
        page.screenshot(path=tmp_path/"labs.png")
        nothing_happened(page, elsewhere, outside)
        assert not errors
    tell("a stranger's runs in JupyterLab", {"nothing is executed; what is refused is named": count})
