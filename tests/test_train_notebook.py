"""train.ipynb as a program: the papermill contract."""
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import nbformat
import psutil
import pytest
import torch
from lab_page import until

from multiexit_nb.core import InputError
from multiexit_nb.experiment import PARAMETERS, run_experiment
from multiexit_nb.parameters import cell_parameters
from multiexit_nb.runs import Run

ROOT = Path(__file__).resolve().parent.parent
BOOK = ROOT/"nbs"/"train.ipynb"
QUICK = ["-p", "dataset", "digits", "-p", "images_per_class", "14", "-p", "epochs", "2",
         "-p", "batch_size", "64"]


def papermill(*args, book=BOOK, **kw):
    env = {**os.environ, "MULTIEXIT_ROOT": str(ROOT)}
    return subprocess.run([sys.executable, "-m", "papermill", str(book), *map(str, args)],
                          capture_output=True, text=True, env=env,
                          timeout=600, **kw)


def text_of(path):
    out = []
    for c in nbformat.read(path, 4).cells:
        for o in c.get("outputs", []):
            out.append(o.get("text", "") or "".join(o.get("data", {}).get(k, "")
                                                    for k in ("text/markdown", "text/plain")))
    return "\n".join(out)


def figures_of(path):
    return [o["data"]["application/vnd.plotly.v1+json"] for c in nbformat.read(path, 4).cells
            for o in c.get("outputs", [])
            if "application/vnd.plotly.v1+json" in o.get("data", {})]


def test_cleaned_and_then_run_with_parameters(tmp_path):
    "nbdev-clean strips cell tags unless told not to; papermill would then silently run the defaults."
    project = tmp_path/"copy"
    (project/"nbs").mkdir(parents=True)
    for f in ("pyproject.toml", "settings.ini"):
        shutil.copy(ROOT/f, project/f)
    shutil.copy(BOOK, project/"nbs"/"train.ipynb")
    subprocess.run(["nbdev-clean", "--fname", "nbs/train.ipynb"], cwd=project, check=True)
    done = papermill(tmp_path/"out.ipynb", "-p", "method", "dbt", "-p", "run_id", "mine", *QUICK, "-y",
                     "{method_args: {mu: 0.05}}",
                     book=project/"nbs"/"train.ipynb", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = Run.load("mine")
    assert run.finished and run.parameters["method"] == "dbt" and run.parameters["epochs"] == 2
    assert run.history.query("metric == 'temperature'").value.max() > 1.1      # μ was really 0.05
    text = text_of(tmp_path/"out.ipynb")
    assert "**dbt** (default) trains **tiny**" in text and "-p resume mine" in text
    assert "top-1, last epoch" in text
    # samples, accuracy, losses, cost, temperature, gap, budgeted batch
    assert len(figures_of(tmp_path/"out.ipynb")) == 7
    assert {"budgeted.csv", "early_exit.csv", "calibration.csv"} <= {f.name for f in run.path.iterdir()}
    kept = nbformat.read(run.path/"notebook.ipynb", 4)     # the notebook keeps itself in the run
    assert any("Result" in c.source for c in kept.cells)
    assert sum(bool(c.get("outputs")) for c in kept.cells) >= 9


@pytest.mark.parametrize("args, says", [
    (["-p", "methd", "byot"], "InputError: unknown parameter 'methd'. Did you mean 'method'"),
    (["-p", "lr", "-0.1"], "InputError: lr=-0.1: expected number > 0"),
    (["-p", "dataset", "parquet:nowhere"],
     "InputError: dataset='parquet:nowhere': expected an existing file or folder")])
def test_wrong_input_is_one_line_and_a_failure(args, says, tmp_path):
    done = papermill(tmp_path/"out.ipynb", *([] if "lr" in args else QUICK), *args, cwd=tmp_path)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()
    assert last[-1].startswith(says) and "Traceback" not in "\n".join(last[-3:])
    assert not (tmp_path/"runs").exists()


def test_help_reads_like_a_manual():
    text = subprocess.run([sys.executable, "-m", "papermill", "--help-notebook", str(BOOK)],
                          capture_output=True, text=True, check=True).stdout
    for name in ("dataset", "method", "method_args", "epochs", "lr", "precision", "resume"):
        assert f"  {name}:" in text
    assert "Unknown" not in text and "initial learning rate of SGD" in text


def test_the_cell_repeats_what_is_declared():
    "papermill's help reads the cell: names, types, defaults, meanings are those of Setup, Place, Recipe."
    book = nbformat.read(BOOK, 4)
    cell = cell_parameters(next(c.source for c in book.cells if "parameters" in c.metadata.get("tags", [])))
    assert set(cell) == set(PARAMETERS)
    for name, q in PARAMETERS.items():
        assert q.check(cell[name].default) == q.check(q.default), name
        assert cell[name].doc == q.doc, name
        assert cell[name].kind in (q.kind, str, list), name


def test_killed_and_resumed_by_id(tmp_path):
    "Kill -9 of papermill and its kernel; `-p resume` finishes with the weights of a run that nobody killed."
    asked = dict(dataset="digits", epochs=24, images_per_class=14, channels_last="false", precision="fp32")
    words = [word for p in asked.items() for word in ("-p", *map(str, p))]
    command = [sys.executable, "-m", "papermill", BOOK, tmp_path/"out.ipynb", "-p", "run_id", "k", *words]
    env = {**os.environ, "MULTIEXIT_ROOT": str(ROOT)}
    p = subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL, start_new_session=True)
    history = tmp_path/"runs"/"k"/"history.csv"
    until(lambda: p.poll() is not None or history.is_file() and "\n3,val," in history.read_text(), 240)
    assert p.poll() is None
    for q in [*psutil.Process(p.pid).children(recursive=True), p]:
        q.send_signal(signal.SIGKILL)
    p.wait()
    assert not Run.load("k").finished
    with pytest.raises(InputError, match="started with epochs=24, not 3: leave epochs out"):
        run_experiment(dict(resume="k", epochs=3), {"resume", "epochs"}, bar=False)
    assert papermill(tmp_path/"again.ipynb", "-p", "resume", "k", cwd=tmp_path).returncode == 0
    a, b = Run.load("k"), run_experiment(asked | dict(run_id="s"), set(asked) | {"run_id"}, bar=False)
    assert a.finished and sorted(set(a.history.epoch)) == list(range(1, 25))
    assert a.about["decided"]["precision"] == b.about["decided"]["precision"] == "fp32"
    assert a.result["test"] == b.result["test"]
    weights = b.weights()
    assert all(torch.equal(v, weights[k]) for k, v in a.weights().items())
