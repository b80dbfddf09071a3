"Interrupted at the worst moment: while a program is still being imported, and in JupyterLab's own ways."
import json
import os
import signal
import subprocess
import sys
import tomllib
import urllib.request

import pytest
import torch
from faults import tell
from lab_page import CHROMIUM, notebook, press, until
from project import ROOT

from multiexit_nb.experiment import PARAMETERS, run_experiment
from multiexit_nb.files import is_claimed
from multiexit_nb.runs import Run

SCRIPTS = tomllib.loads((ROOT/"pyproject.toml").read_text())["project"]["scripts"]
SLOW = """
import pathlib, time
pathlib.Path({mark!r}).touch()
time.sleep(600)
"""


def heard():
    "Let a program hear Ctrl-C also where a shell started these tests in the background."
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.parametrize("script", SCRIPTS)
def test_ctrl_c_while_a_program_is_imported_is_one_line_and_130(script, tmp_path):
    "PyTorch takes seconds: here one that takes ten minutes."
    (tmp_path/"torch").mkdir()
    (tmp_path/"torch"/"__init__.py").write_text(SLOW.format(mark=str(tmp_path/"begun")))
    module, _, name = SCRIPTS[script].partition(":")
    code = f"import sys; from {module} import {name}; sys.exit({name}())"     # as an installed one does
    env = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    p = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=env, text=True, preexec_fn=heard,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    until((tmp_path/"begun").exists)
    p.send_signal(signal.SIGINT)
    assert p.communicate(timeout=60) == ("", "interrupted: nothing had begun\n") and p.returncode == 130
    tell("Ctrl-C: a program that is still being imported", {"one line and exit code 130": 1})


@pytest.mark.slow
def test_ctrl_c_while_papermills_kernel_imports_leaves_nothing_behind(tmp_path):
    "papermill is a program of its own, and ends with its own word. A terminal tells the kernel as well."
    import psutil
    (tmp_path/"torch").mkdir()
    (tmp_path/"torch"/"__init__.py").write_text(SLOW.format(mark=str(tmp_path/"begun")))
    command = [sys.executable, "-m", "papermill", ROOT/"nbs"/"train.ipynb", tmp_path/"out.ipynb"]
    env = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "MULTIEXIT_ROOT": str(ROOT)}
    p = subprocess.Popen(command, cwd=tmp_path, env=env, preexec_fn=heard, start_new_session=True,
                         stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    until((tmp_path/"begun").exists)
    family = psutil.Process(p.pid).children(recursive=True)
    os.killpg(p.pid, signal.SIGINT)
    _, err = p.communicate(timeout=120)
    _, alive = psutil.wait_procs(family, timeout=60)
    assert p.returncode not in (0, None), err
    assert family and not alive and not (tmp_path/"runs").exists()
    tell("Ctrl-C: papermill, while its kernel imports", {"papermill's own words; nothing is left": 1})


# ---- a lab that is closed while it trains ----

def end_kernels(address: str):
    "As by hand, in JupyterLab's list of what is running."
    def ask(path, method="GET"):
        request = urllib.request.Request(f"{address}/api/{path}?token=t", method=method)
        with urllib.request.urlopen(request) as answer:
            return answer.read()
    for kernel in json.loads(ask("kernels")):
        ask(f"kernels/{kernel['id']}", "DELETE")


def straight_on(run: Run) -> Run:
    "Another run of the same parameters, with what `auto` came to, that nobody disturbs."
    decided = {k: v for k, v in run.about["decided"].items() if k in PARAMETERS}
    p = run.parameters | decided | dict(run_id="straight")
    return run_experiment(p, set(p), bar=False)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_a_lab_that_is_closed_while_it_trains_loses_nothing(lab_server, tmp_path):
    "Its page closed, it trains on; its kernel ended, the run is gone on with, bit for bit."
    runs = tmp_path/"runs"
    place = lab_server(runs, ROOT/"nbs"/"labs"/"train.ipynb")

    def epochs():
        found = list(runs.glob("*/history.csv"))
        return len(Run(found[0].parent).history.epoch.unique()) if found else 0
    with notebook(place, "train-light.ipynb") as (page, errors, elsewhere):
        page.wait_for_selector("button:has-text('Start'):not([disabled])", timeout=120_000)
        page.locator(".widget-text:has-text('data set') input").fill("digits")
        page.locator(".widget-text:has-text('epochs') input").first.fill("60")
        page.locator(".widget-text:has-text('per class') input").fill("80")
        page.keyboard.press("Tab")
        press(page, "Start")
        until(lambda: epochs() > 1)
        page.goto("about:blank")
        seen = epochs()
        until(lambda: epochs() > seen)
        end_kernels(place.address)
    run, = (Run.load(f.parent) for f in runs.glob("*/params.json"))
    until(lambda: not is_claimed(run.path))
    assert not run.finished and not list(run.path.glob(".*.tmp"))
    run_experiment({"resume": run.id}, {"resume"}, bar=False)
    right = straight_on(run).weights()
    assert all(torch.equal(v, right[k]) for k, v in run.weights().items())
    tell("a lab is closed while it trains, its kernel ended", {"goes on, bit for bit": 1})
