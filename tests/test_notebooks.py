"Every reference notebook runs from top to bottom in nbdev's runner: its lessons are tests."
import io
import os
import sys
import tomllib
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
from project import ROOT, batch_notebooks

# run through papermill by tests of their own, as are labs/
ELSEWHERE = batch_notebooks()
PROJECT = "[tool.nbdev]\nlib_path = 'x'\nnbs_path = '.'\n[project]\nname = 'x'\n"
FLAGS = tomllib.loads((ROOT/"pyproject.toml").read_text())["tool"]["nbdev"]["tst_flags"]


def notebooks() -> list[str]:
    folders = ("nbs", "nbs/methods", "nbs/datasets", "nbs/papers", "nbs/tasks")
    found = [p for at in folders for p in (ROOT/at).glob("*.ipynb")]
    kept = [p for p in found if p.stem not in ELSEWHERE and not p.name.startswith("_")]
    return sorted(p.relative_to(ROOT/"nbs").as_posix() for p in kept)


def prepare(scratch: str):
    "Once per process: what notebooks write goes to a temporary folder, and one process takes one core."
    os.environ |= dict(MULTIEXIT_RUNS=f"{scratch}/runs", MULTIEXIT_DATASETS=f"{scratch}/datasets",
                       MULTIEXIT_EXAMPLES=str(ROOT/"data"/"examples"), MULTIEXIT_ROOT=str(ROOT),
                       OMP_NUM_THREADS="1", TQDM_DISABLE="1")


def run_notebook(path: str) -> tuple[bool, str]:
    "Run one notebook; whether it went through, and its traceback."
    from nbdev.test import test_nb as run_nb  # the alias keeps pytest from collecting it
    sys.__stderr__, kept = io.StringIO(), sys.__stderr__   # where nbdev writes the traceback
    try:
        return run_nb(path, skip_flags=FLAGS, basepath=ROOT)[0], sys.__stderr__.getvalue()
    finally:
        sys.__stderr__ = kept


@pytest.fixture(scope="module")
def runner(tmp_path_factory):
    "A process beside pytest's that keeps what it has imported; pytest's own stays clean."
    scratch = str(tmp_path_factory.mktemp("notebooks"))
    with ProcessPoolExecutor(1, get_context("spawn"), prepare, (scratch,)) as pool:
        yield pool
        pool.submit(os._exit, 0)     # whatever a lesson left running is not waited for


@pytest.mark.parametrize("name", notebooks())
def test_notebook_runs(name, runner):
    went_through, traceback = runner.submit(run_notebook, str(ROOT/"nbs"/name)).result()
    assert went_through, traceback


def test_a_failing_cell_is_noticed(tmp_path, runner):
    import nbformat
    for folder, cell in ((tmp_path/"good", "x = 1"), (tmp_path/"bad", "assert 1 == 2")):
        folder.mkdir()
        (folder/"pyproject.toml").write_text(PROJECT)
        nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)])
        nb.metadata.kernelspec = dict(name="python3", language="python", display_name="python3")
        nbformat.write(nb, folder/"a.ipynb")
    assert runner.submit(run_notebook, str(tmp_path/"good/a.ipynb")).result()[0]
    ok, traceback = runner.submit(run_notebook, str(tmp_path/"bad/a.ipynb")).result()
    assert not ok and "AssertionError" in traceback


def test_no_notebook_is_left_out():
    found = (p.relative_to(ROOT/"nbs") for p in (ROOT/"nbs").rglob("*.ipynb"))
    every = {p for p in found if not any(part.startswith(".") for part in p.parts)}
    elsewhere = {p for p in every if p.parts[0] == "labs" or p.stem in ELSEWHERE}
    assert sorted(p.as_posix() for p in every - elsewhere) == notebooks()
