"""Every test has run and data folders of its own, and small networks have one thread.

Shared: `tiny_run(**p)` and `finished_run`, trained once in a session (tiny.py); `lab_server`, a JupyterLab
of its own (lab_page.py).
"""
import contextlib
import os
import shutil
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")     # read when torch starts, here and in kernels

import pytest
from lab_page import serve
from project import ROOT, copy_to
from tiny import make_run


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("MULTIEXIT_RUNS", str(tmp_path/"runs"))
    monkeypatch.setenv("MULTIEXIT_DATASETS", str(tmp_path/"datasets"))
    monkeypatch.setenv("MULTIEXIT_DEVICE", "cpu")


@pytest.fixture
def tiny_run(own_folders):
    "tiny_run(**parameters): a finished run in this test's own folder of runs."
    return lambda **p: make_run(os.environ["MULTIEXIT_RUNS"], **p)


@pytest.fixture
def finished_run(tiny_run):
    "One finished run, by mate, of two epochs."
    return tiny_run()


@pytest.fixture
def copy(tmp_path) -> Path:
    "A copy of the project that a test may change."
    return copy_to(tmp_path/"copy")


@pytest.fixture(scope="module")
def lab_server(tmp_path_factory):
    "lab_server(runs, *notebooks): the address of a JupyterLab over copies for each theme, as rdm-dark.ipynb."
    with contextlib.ExitStack() as stack:
        def start(runs: Path, *notebooks: Path) -> str:
            home = tmp_path_factory.mktemp("jupyter")
            (home/"labs").mkdir()
            for path in map(Path, notebooks):
                for theme in ("light", "dark"):
                    shutil.copy(path, home/"labs"/f"{path.stem}-{theme}.ipynb")
            where = dict(MULTIEXIT_ROOT=str(ROOT), MULTIEXIT_RUNS=str(runs), MULTIEXIT_DEVICE="cpu")
            return stack.enter_context(serve(home/"labs", home, **where))
        yield start
