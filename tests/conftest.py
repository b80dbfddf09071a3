"""Every test has run and data folders of its own, and small networks have one thread.

Shared: `tiny_run(**p)` and `finished_run`, trained once in a session (tiny.py); `lab_server`, notebooks in
the session's one JupyterLab (lab_page.py).
"""
import json
import os
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")     # read when torch starts, here and in kernels

import pytest
from lab_page import Place, serve
from project import ROOT, copy_to
from tiny import make_run


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("MULTIEXIT_RUNS", str(tmp_path/"runs"))
    monkeypatch.setenv("MULTIEXIT_DATASETS", str(tmp_path/"datasets"))
    monkeypatch.setenv("MULTIEXIT_EXAMPLES", str(tmp_path/"examples"))     # none: tests that want them say so
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


@pytest.fixture(scope="session")
def jupyter(tmp_path_factory):
    "One JupyterLab for all tests of a session: its address, and the folder it serves."
    home = tmp_path_factory.mktemp("jupyter")
    folder = home/"labs"
    folder.mkdir()
    with serve(folder, home, MULTIEXIT_ROOT=str(ROOT), MULTIEXIT_DEVICE="cpu") as address:
        yield address, folder


@pytest.fixture(scope="module")
def lab_server(jupyter):
    "lab_server(runs, *notebooks): a place of JupyterLab with copies for each theme, as rdm-dark.ipynb."
    address, top = jupyter

    def start(runs: Path, *notebooks: Path) -> Place:
        folder = Path(tempfile.mkdtemp(dir=top))
        for path in map(Path, notebooks):
            nb = json.loads(path.read_text())
            first = next(c for c in nb["cells"] if c["cell_type"] == "code")
            first["source"] = [f"import os; os.environ['MULTIEXIT_RUNS'] = {str(runs)!r}\n", *first["source"]]
            for theme in ("light", "dark"):
                (folder/f"{path.stem}-{theme}.ipynb").write_text(json.dumps(nb))
        return Place(address, folder.name)
    return start
