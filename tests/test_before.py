"""Runs made by version 0.1.0 are opened, rebuilt and gone on with, as what they were."""
import shutil
from pathlib import Path

import pytest
import torch

from multiexit_nb.core import settings
from multiexit_nb.experiment import run_experiment
from multiexit_nb.runs import Run, list_runs

BEFORE = Path(__file__).parent/"runs_0.1.0"


@pytest.fixture
def folder():
    "The runs folder, with what 0.1.0 left: a finished run, and the same stopped after two of four epochs."
    runs = Path(settings()["runs"])
    shutil.copytree(BEFORE, runs)
    return runs


def test_a_run_of_0_1_0_is_what_it_was(folder):
    run = Run.load("old-mate")
    assert set(list_runs().run) == {"old-mate", "old-mate-stopped"} and run.finished
    assert run.parameters["method_args"]["t_squared"] is True      # it had T², which is no default any more
    outputs = run.outputs("test")
    top1 = (100*outputs.right.double().mean(1)).tolist()
    assert top1 == pytest.approx(run.result["test"]["top1"], abs=1e-4)
    data = run.data()
    x, y = next(data.test.batches(len(data.test)))
    with torch.no_grad():
        hits = (run.model().eval()(x).logits.argmax(-1) == y).sum(1)
    assert hits.tolist() == pytest.approx(outputs.right.sum(1).tolist(), abs=1)     # float16


def test_a_run_that_0_1_0_began_ends_as_it_would_have(folder):
    whole = Run.load("old-mate")
    run = run_experiment({"resume": "old-mate-stopped"}, {"resume"}, bar=False)
    ours, theirs = run.weights(), whole.weights()
    assert set(ours) == set(theirs)
    apart = max((ours[k].double() - theirs[k].double()).abs().max().item() for k in ours)
    assert apart < 0.05, "bit for bit on the machine that made them; elsewhere rounding grows over 30 steps"
    assert run.result["test"]["top1"] == pytest.approx(whole.result["test"]["top1"], abs=3)
