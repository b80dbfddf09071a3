"A device without memory left: one line with the batch size that was seen to fit, on every road."
import os
import subprocess
import sys

import pytest
import torch
from faults import tell
from project import ROOT
from tiny import TINY

from multiexit_nb import speed, trainer
from multiexit_nb.core import InputError
from multiexit_nb.runs import list_runs
from multiexit_nb.steer import Session

LINE = "batch_size=64: no memory left on cpu. A step with batch_size=16 fits"
FULL = "CUDA out of memory. Tried to allocate 2.00 GiB."


@pytest.fixture(params=[24, 1])
def small(request, monkeypatch):
    "A device on which a step of so many images fits."
    real = speed.Objective.forward

    def forward(self, x, y):
        if len(x) > request.param:
            raise torch.OutOfMemoryError(FULL)
        return real(self, x, y)
    monkeypatch.setattr(speed.Objective, "forward", forward)
    return request.param


def line(images: int) -> str:
    return LINE if images == 24 else "batch_size=64: no memory left on cpu, and not for 2 images either"


def test_on_the_command_line(small, capsys):
    code = trainer.main([x for k, v in TINY.items() for x in ("-p", k, str(v))])
    said = capsys.readouterr().err.splitlines()
    assert code == 1 and "Traceback" not in "".join(said)
    assert said[-1].startswith(f"InputError: {line(small)}")
    assert list_runs().state.tolist() == ["unfinished"]
    tell("no memory left on the device: command line", {"one line with the batch size that fits": 1})


def test_in_a_lab(small):
    session = Session(TINY)
    session.go()
    session.thread.join(60)
    assert session.state == "failed" and session.error.startswith(line(small))
    tell("no memory left on the device: lab", {"one line with the batch size that fits": 1})


def test_scoring_takes_fewer_images_at_a_time(monkeypatch):
    "Whole batches fit in training, the larger ones of scoring do not: half of them are scored at a time."
    from multiexit_nb import training
    real, sizes = training.evaluate, []

    def evaluate(*a, batch_size, **kw):
        sizes.append(batch_size)
        if batch_size > 100:
            raise torch.OutOfMemoryError(FULL)
        return real(*a, batch_size=batch_size, **kw)
    monkeypatch.setattr(training, "evaluate", evaluate)
    session = Session(TINY | dict(epochs=1))
    session.go()
    session.thread.join(60)
    assert session.state == "finished" and sizes[:3] == [256, 128, 64]


def test_another_error_is_none_of_memory(monkeypatch):
    def forward(self, x, y):
        raise RuntimeError("shapes differ")
    monkeypatch.setattr(speed.Objective, "forward", forward)
    with pytest.raises(RuntimeError, match="shapes differ") as e:
        trainer.main([x for k, v in TINY.items() for x in ("-p", k, str(v))])
    assert not isinstance(e.value, InputError)


GREEDY = """
import torch
from multiexit_nb.methods import register
from multiexit_nb.methods.branchynet import BranchyNet

@register("greedy")
class Greedy(BranchyNet):
    "More than 24 images are too many."
    def loss(self, out, targets):
        if len(targets) > 24:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return super().loss(out, targets)
"""


@pytest.mark.slow
def test_by_papermill(tmp_path):
    (tmp_path/"greedy.py").write_text(GREEDY)
    given = TINY | dict(method="greedy", plugins="greedy.py")
    command = [sys.executable, "-m", "papermill", ROOT/"nbs"/"train.ipynb", "out.ipynb", "--no-progress-bar"]
    done = subprocess.run(command + [x for k, v in given.items() for x in ("-p", k, str(v))], cwd=tmp_path,
                          env=os.environ | {"MULTIEXIT_ROOT": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.rstrip().endswith(f"InputError: {LINE}")
    tell("no memory left on the device: papermill", {"one line with the batch size that fits": 1})
