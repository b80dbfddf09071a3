"Two CPU processes train as one process does with the same whole batch; the program without a notebook."

import os
import subprocess
import sys

import pytest
import torch

from multiexit_nb import experiment, processes, trainer
from multiexit_nb.core import InputError
from multiexit_nb.methods import list_methods
from multiexit_nb.runs import Run

ENV = os.environ | {"OMP_NUM_THREADS": "1"}
TWO = [
    "-m",
    "torch.distributed.run",
    "--nproc_per_node",
    "2",
    "--rdzv_backend",
    "c10d",
    "--rdzv_endpoint",
    "127.0.0.1:0",
]
SCRIPT = """
import sys, torch
from multiexit_nb.core import seed_everything
from multiexit_nb.data import load_dataset
from multiexit_nb.methods import create_method
from multiexit_nb.models import create_model
from multiexit_nb.trainer import Recipe, train
from multiexit_nb.processes import join
out, names = sys.argv[1], sys.argv[2:]
data, found = load_dataset("digits", images_per_class=30), {}
join(torch.device("cpu"))
rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
for name in names:
    seed_everything(0)
    net = create_model("tiny", 10)
    m = create_method(name, num_exits=4, num_classes=10, feature_dims=net.feature_dims,
                      num_train=len(data.train), num_unlabelled=len(data.unlabelled))
    recipe = Recipe(epochs=1, batch_size=128, precision="fp32", channels_last=False, lr=0.02)
    t = train(net, m, data, recipe, device="cpu", bar=False, checkpoint=f"{out}.{name}")
    r = list(t)[-1]
    kinds = {type(l).__name__ for l in net.modules()}
    found[name] = dict(net=net.state_dict(), method=m.state_dict(), loss=r["train"]["loss"],
                       top1=r["train"]["top1"], val=r["val"]["ce"],
                       kinds=sorted(k for k in kinds if "BatchNorm" in k))
torch.save(found, f"{out}.{rank}")
"""


def trained(folder, n, names):
    "What each of `n` processes ends with."
    out, script = folder/f"of{n}", folder/"script.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, *(TWO if n == 2 else []), script, out, *names],
        env=ENV,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(f"{out}.{r}", weights_only=True) for r in range(n)]


def far(a, b):
    "The largest difference of two state dicts."
    assert a.keys() == b.keys()
    return max((float((a[k].double() - b[k].double()).abs().max()) for k in a), default=0.0)


def near(a, b):
    """Equal to rounding; the moments of a hypergradient to a third of their size.

    Rounding at a ReLU's kink turns whole units of a gradient on and off.
    """
    assert (
        far(
            {k: v for k, v in a.items() if not k.startswith("adam.")},
            {k: v for k, v in b.items() if not k.startswith("adam.")},
        )
        < 1e-4
    )
    for k in a:
        if k.startswith("adam."):
            assert (a[k] - b[k]).abs().max() <= 0.3 * a[k].abs().max(), k
    return True


def same_as_one(folder, names):
    [one], (first, second) = trained(folder, 1, names), trained(folder, 2, names)
    for name in names:
        a, b, c = one[name], first[name], second[name]
        assert "BatchNorm2d" in a["kinds"] and b["kinds"] == [f"Synchronised{k}" for k in a["kinds"]]
        for part in ("net", "method"):
            assert far(b[part], c[part]) == 0, (name, part)  # the same on both processes
            assert near(a[part], b[part]), (name, part)  # and that of one
        assert b["loss"] == c["loss"] and b["val"] == c["val"] and b["top1"] == c["top1"]
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-4) and a["top1"] == pytest.approx(
            b["top1"], abs=0.5
        )
    return first


def test_two_processes_train_as_one(tmp_path):
    found = same_as_one(tmp_path, ["dbt", "mate", "hdkd"])
    assert float(found["hdkd"]["method"]["gamma"].trace()) != 4  # γ did move
    saved = torch.load(tmp_path/"of2.mate", weights_only=True)
    assert len(saved["rng"]) == 2 and not torch.equal(saved["rng"][0]["torch"], saved["rng"][1]["torch"])


@pytest.mark.slow
def test_every_method_by_two_processes(tmp_path):
    needs = {
        n: experiment.create_method(
            n, num_exits=4, num_classes=10, feature_dims=(8,) * 4, num_train=100
        ).needs
        for n in list_methods()
    }
    same_as_one(tmp_path, [n for n in needs if not needs[n] & {"teacher", "images", "maps"}])


def test_torchrun_makes_one_run(tmp_path):
    "`torchrun -m multiexit_nb.trainer`: one run folder, as a notebook's."
    env = ENV | {"MULTIEXIT_RUNS": str(tmp_path)}
    command = [
        sys.executable,
        *TWO,
        "-m",
        "multiexit_nb.trainer",
        "-p",
        "dataset",
        "digits",
        "-p",
        "method",
        "dbt",
        "-p",
        "epochs",
        "1",
        "-p",
        "images_per_class",
        "20",
        "-p",
        "run_id",
        "r",
    ]
    done = subprocess.run(
        [*command, "-p", "batch_size", "64", "-y", "{method_args: {mu: 0.3}}"],
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    run = Run.load(tmp_path/"r")
    assert (
        [f.name for f in tmp_path.iterdir()] == ["r"]
        and run.finished
        and run.parameters["method_args"] == {"mu": 0.3}
    )
    assert run.outputs().num_exits == 4 and done.stdout.count("Weights of epoch 1 of 1") == 1


@pytest.mark.parametrize(
    "argv, line",
    [
        (["-p", "methd", "mate"], "unknown parameter 'methd'. Did you mean 'method'"),
        (["-p", "lr", "-0.1"], "lr='-0.1': expected number > 0"),
        (["-y", "3"], "-y=3: expected a map of parameters"),
        (["-y", "{epochs: "], "is not YAML"),
        (["-p", "epochs", "["], "epochs: '[' is not YAML"),
        (["-y", "{epochs: 1.5}"], "epochs=1.5: expected whole number"),
    ],
)
def test_wrong_arguments_are_one_line(argv, line, capsys):
    assert trainer.main(argv) == 1
    assert line in capsys.readouterr().err


def test_batch_size_must_be_shared_out(monkeypatch):
    monkeypatch.setattr("multiexit_nb.training.rank_and_size", lambda: (0, 3))
    with pytest.raises(InputError, match="batch_size=64: expected a multiple of the 3 processes"):
        experiment.run_experiment({"run_id": "never"})


def test_a_given_parameter_is_known_to_be_given():
    values, explicit = trainer.arguments(["-p", "epochs", "3"])
    assert explicit == {"epochs"} and values["epochs"] == 3 and values["method"] == "mate"


def test_synchronised_norm_takes_inputs_of_any_rank():
    for ours, theirs, x in (
        (processes.SynchronisedBatchNorm1d(4), torch.nn.BatchNorm1d(4), torch.randn(6, 4)),
        (processes.SynchronisedBatchNorm2d(4), torch.nn.BatchNorm2d(4), torch.randn(6, 4, 3, 3)),
    ):
        assert torch.allclose(ours(x), theirs(x), atol=1e-5) and torch.allclose(
            ours.running_var, theirs.running_var, atol=1e-5
        )
        assert torch.allclose(ours.eval()(x), theirs.eval()(x), atol=1e-5)


@pytest.mark.slow
def test_notebook_launcher_makes_one_run(tmp_path):
    "From a notebook's kernel: two processes, one run."
    script = (
        "from multiexit_nb import experiment, trainer\n"
        "asked = '{dataset: digits, epochs: 1, images_per_class: 20, batch_size: 64, run_id: r}'\n"
        "p, explicit = trainer.arguments(['-y', asked])\n"
        "experiment.launch(p, 2, explicit)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=ENV | {"MULTIEXIT_RUNS": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert Run.load(tmp_path/"r").finished
