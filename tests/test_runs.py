"""Run folders, published tables, and the batch parameters."""
import json
import math
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from tiny import make_run

from multiexit_nb import experiment, runs
from multiexit_nb.core import InputError
from multiexit_nb.data import load_dataset
from multiexit_nb.history import tidy
from multiexit_nb.methods import describe_method, list_methods
from multiexit_nb.published_tables import published_for
from multiexit_nb.record import read_about
from multiexit_nb.runs import Run, list_runs, published

TINY = dict(dataset="digits", images_per_class=14, model="tiny", exits="sepconv", method="mate", epochs=2,
            batch_size=64, precision="fp32", channels_last="false")


def finished(**kw):
    e = experiment.prepare({**TINY, **kw}, set(TINY) | set(kw))
    data = e.load()
    t = e.start(data, bar=False)
    for _ in e.epochs(t):
        pass
    e.run.finish(t)
    return e.run, t.net, data


def test_a_run_answers_without_training():
    run, net, data = finished()
    again = Run.load(run.id)
    assert again.finished and again.parameters["method"] == "mate" and again.parameters["lr"] == 0.1
    about = json.loads((run.path/"params.json").read_text())
    assert set(about) >= {"parameters", "versions", "commit", "started", "device", "decided"}
    assert about["decided"]["precision"] == "fp32"
    out = again.outputs()
    assert out.logits.shape == (4, len(data.test), 10) and torch.equal(out.labels, data.test.labels)
    x, _ = next(data.test.batches(len(data.test)))
    with torch.no_grad():
        z = again.model()(x).logits
    assert torch.allclose(z, out.logits, atol=0.05)      # float16
    assert again.outputs("val").labels.tolist() == data.val.labels.tolist()
    with pytest.raises(InputError, match="split='train'"):
        again.outputs("train")
    acc = 100*(z.argmax(-1) == data.test.labels).float().mean(1)
    assert again.result["test"]["top1"] == pytest.approx(acc.tolist(), abs=0.5)
    h = again.history
    assert list(h.columns) == ["epoch", "split", "exit", "metric", "value"]
    assert set(h.epoch) == {1, 2} and set(h.split) == {"train", "val"}
    assert h[(h.metric == "weights/1") & (h.epoch == 2)].exit.tolist() == [1, 2, 3, 4]
    rows = list_runs()
    assert rows[["run", "state", "method"]].values.tolist() == [[run.id, "finished", "mate"]]


def test_the_data_of_a_run_are_those_it_was_trained_on():
    for changes in ({}, dict(split_seed=3), dict(select="best-test")):
        run, _, data = finished(epochs=1, **changes)
        again = run.data()
        assert repr(again) == repr(data) and again.class_names == data.class_names
        for split in ("train", "val", "test", "unlabelled"):
            assert torch.equal(getattr(again, split).rows, getattr(data, split).rows)


def test_a_finished_run_is_not_scored_again():
    run, _, _ = finished()
    before = (run.path/"result.json").read_bytes()
    e = experiment.prepare({**TINY, "resume": run.id}, {"resume"})
    t = e.start(e.load(), bar=False)
    assert list(t) == [] and e.run.finish(t)["test"] == run.result["test"]
    assert (run.path/"result.json").read_bytes() == before


def test_nothing_half_written_counts_as_finished():
    run, _, _ = finished()
    (run.path/"outputs.safetensors").write_bytes(b"\x10")
    with pytest.raises(InputError, match="outputs.safetensors is damaged"):
        run.outputs()
    again, whole = Run.load(run.id), (run.path/"result.json").read_bytes()
    (run.path/"result.json").unlink()
    with pytest.raises(InputError, match="result.json is damaged: it is missing"):
        Run.load(run.id).finished  # noqa: B018
    (run.path/"result.json").write_bytes(whole[:-20])
    with pytest.raises(InputError, match="result.json is damaged"):
        again.result  # noqa: B018
    (run.path/"params.json").write_text('{"parameters": ')
    with pytest.raises(InputError, match="params.json is damaged"):
        Run.load(run.path)
    assert list_runs().state.tolist() == ["damaged"] and "params.json is damaged" in list_runs().note[0]


def test_runs_that_cannot_be(tmp_path, monkeypatch):
    Run.create({}, "mine")
    with pytest.raises(InputError, match="'mine' exists"):
        Run.create({}, "mine")
    with pytest.raises(InputError, match="run_id"):
        Run.create({}, "../escape")
    with pytest.raises(InputError, match="unknown run 'mein'. Did you mean 'mine'"):
        Run.load("mein")
    (tmp_path/"file").write_text("")
    monkeypatch.setenv("MULTIEXIT_RUNS", str(tmp_path/"file"/"runs"))
    with pytest.raises(InputError, match="cannot write"):
        Run.create({})
    with pytest.raises(InputError, match="cannot write into"):
        experiment.prepare(TINY, set(TINY))


def test_tidy_skips_exits_without_a_teacher():
    rows = tidy(dict(epoch=3, val=dict(gap=[1.5, None])))
    assert rows == [dict(epoch=3, split="val", exit=1, metric="gap", value=1.5)]


def test_published_tables_are_whole():
    df = published()
    assert set(df.paper) == {"eed", "mate", "dbt", "hdkd", "dih"} and len(df) > 1000
    mate = published("mate", "2").query("model_id == 'resnet18' and method_id == 'mate'")
    assert mate.value.tolist() == [76.18, 78.88, 81.33, 82.19]
    with pytest.raises(InputError, match="unknown table of mate: '77'"):
        published("mate", "77")
    beside = published_for("cifar100", "vgg19", "eed", 4)
    assert "EED Table I, eed(KL, beta=0), top1" in beside and beside.index.tolist() == [1, 2, 3, 4]
    assert len(published_for("digits", "tiny", "mate", 4)) == 0
    few = published_for("cifar100", "msdnet_dbt_cifar", "dbt", 11, images_per_class=150)
    assert "DBT Table 2" in " ".join(few.columns)


# ---- parameters (more in test_parameters.py) ----

@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    "A finished run with one exit, copied into each test's own folder of runs."
    with pytest.MonkeyPatch.context() as m:
        m.setenv("MULTIEXIT_RUNS", str(tmp_path_factory.mktemp("teachers")))
        return finished(method="branchynet", exits="none", epochs=1)[0].path


@pytest.mark.parametrize("method", list_methods())
def test_every_method_passes_the_check_and_starts(method, teacher):
    "By its name alone; one that learns from outside, with a finished run, and one line says so."
    p = {**TINY, "method": method, "exits": "sepconv", "images_per_class": 20}
    if "teacher" in describe_method(method).index:
        p["exits"] = "none"
        with pytest.raises(InputError, match=f"{method} needs a teacher"):
            experiment.prepare(p, set(p))
        shutil.copytree(teacher, Path(experiment.settings()["runs"])/teacher.name)
        p["method_args"] = {"teacher": teacher.name}
    e = experiment.prepare(p, set(p))
    t = e.start(e.load(), bar=False)
    losses = next(t)["train"]["loss"]
    assert t.method.name == method and losses and all(math.isfinite(v) for v in losses.values())


def test_resume_takes_the_runs_own_parameters():
    run, _, _ = finished(run_id="first")
    e = experiment.prepare({**TINY, "method": "mate", "resume": "first"}, {"resume"})
    assert e.recipe.epochs == 2 and e.run.path == run.path
    with pytest.raises(InputError, match="started with lr=0.1, not 0.2: leave lr out"):
        experiment.prepare({**TINY, "lr": 0.2, "resume": "first"}, {"resume", "lr"})


# ---- trackers ----

def told(run):
    "What TensorBoard shows of a run: tag -> {epoch: value}."
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    events = EventAccumulator(str(run.path/"tensorboard"))
    events.Reload()
    return {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


def test_tensorboard_shows_the_history_also_after_a_resume(monkeypatch):
    pytest.importorskip("tensorboard")
    e = experiment.prepare({**TINY, "epochs": 3, "tracker": "tensorboard"}, set(TINY))
    t = e.start(e.load(), bar=False)
    next(t), e.run.log(t), next(t)           # the second epoch was never told: killed before that
    run = experiment.run_experiment({"resume": e.run.id}, {"resume"}, bar=False)
    shown, h = told(run), run.history
    for split, exit, metric in (("val", 2, "top1"), ("train", 4, "top1"), ("val", 3, "weights/1")):
        rows = h[(h.split == split) & (h.exit == exit) & (h.metric == metric)]
        values = dict(zip(rows.epoch, rows.value, strict=True))
        assert len(rows) == 3 and shown[f"{split}_{metric}/exit_{exit}"] == pytest.approx(values, rel=1e-5)
    assert shown["train_loss/ce"].keys() == {1, 2, 3}
    assert shown["test_top1/exit_4"][3] == pytest.approx(run.result["test"]["top1"][3], rel=1e-5)


def test_any_tracker_of_accelerate_and_one_that_fails(monkeypatch):
    from accelerate import tracking
    seen = []

    class Mine(tracking.GeneralTracker):
        name = "mine"
        requires_logging_directory = False
        tracker = property(lambda self: self)

        def __init__(self, project, colour="red"):
            super().__init__()
            self.project = project
            seen.append(("start", project, colour))

        def store_init_configuration(self, values):
            seen.append(("config", values["method"], values["milestones"]))

        def log(self, values, step=None, **kw):
            if step == 2 and "fail" in self.project + str(seen[0]):
                raise ConnectionError("no network")
            seen.append((step, sorted(values)[-1]))

        def finish(self):
            seen.append("finish")

    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "mine", Mine)
    p = {**TINY, "milestones": [0.5], "tracker": "mine"}
    experiment.run_experiment({**p, "tracker_args": {"colour": "blue"}}, set(p), bar=False)
    assert seen[:2] == [("start", "multiexit_nb", "blue"), ("config", "mate", "[0.5]")]
    assert seen[-1] == "finish" and [s[0] for s in seen[2:-1]] == [1, 2, 2]
    seen.clear()
    with pytest.warns(UserWarning, match="tracker mine failed and is left alone: ConnectionError: no"):
        run = experiment.run_experiment({**p, "tracker_args": {"colour": "fail"}}, set(p), bar=False)
    assert run.finished and len(seen) == 3 and set(run.history.epoch) == {1, 2}
    for wrong, says in (("tensorbord", "unknown tracker 'tensorbord'. Did you mean 'tensorboard'"),
                        ("dvclive", "pip install dvclive")):
        with pytest.raises(InputError, match=says):
            experiment.prepare({**TINY, "tracker": wrong}, set(TINY))


def test_image_folder_run(tmp_path):
    "From files of a user's own to a result."
    data = load_dataset("digits")
    from PIL import Image
    for i in range(200):
        f = tmp_path/"mine"/str(int(data.train.labels[i]))/f"{i}.png"
        f.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(data.train.source.images[data.train.rows[i]].permute(1, 2, 0).numpy()).save(f)
    run, _, d = finished(dataset=f"imagefolder:{tmp_path/'mine'}", images_per_class=0, epochs=1)
    assert run.finished and d.num_classes == 10 and isinstance(list_runs(), pd.DataFrame)


def test_no_unlabelled_images_if_their_share_is_none(tmp_path, monkeypatch):
    "dbt on CIFAR(X) without the rest: the supervised objective, not eq. 6."
    monkeypatch.setenv("MULTIEXIT_RUNS", str(tmp_path))
    for ratio, needs in ((0., set()), (1., {"unlabelled"})):
        p = dict(dataset="digits", images_per_class=20, model="tiny", exits="sepconv", method="dbt",
                 unlabelled_ratio=ratio)
        e = experiment.prepare(p, set(p))
        _, method = e.build(e.load())
        assert method.needs == needs and bool(method.task.num_unlabelled) == bool(needs)


def test_a_run_is_the_same_from_within_the_runs_folder(monkeypatch):
    run = Run.create({"dataset": "digits"}, "mine")
    monkeypatch.chdir(run.path.parent)
    assert Run.load("mine") == run and Run.load("mine").path.is_absolute()


def test_a_listed_run_is_read_again_only_when_it_changed(tmp_path, monkeypatch):
    "A lab lists a thousand runs at every click: what has not changed is not read."
    for seed in (0, 1):
        make_run(tmp_path, seed=seed, epochs=1)
    first, read = list_runs(tmp_path), []
    monkeypatch.setattr(runs, "read_about", lambda path: read.append(path.name) or read_about(path))
    assert list_runs(tmp_path).equals(first) and not read
    changed = Run(tmp_path/first.run[0])
    changed.claim.take("it")
    changed.event(0.5, "lr", 0.1, 0.2)
    changed.claim.release()
    again = list_runs(tmp_path)
    assert set(read) == {changed.id} and again.note[0] == "lr moved at epoch 0.5"
    (changed.path/"result.json").write_text("{}")
    assert list_runs(tmp_path).state[0] == "damaged"


def test_networks_are_kept_on_the_way_and_change_nothing(tiny_run):
    "The one that was selected is among them; what was kept is not written over with the selected weights."
    plain, run = tiny_run(), tiny_run(snapshots=1)
    assert run.snapshots == [1, 2] and plain.snapshots == []
    selected, weights = run.result["selected_epoch"], [run.weights(epoch=e) for e in run.snapshots]
    for name, w in run.weights().items():
        assert torch.equal(w, plain.weights()[name]) and torch.equal(w, weights[selected - 1][name])
    assert any(not torch.equal(w, weights[1][name]) for name, w in weights[0].items())
    assert not run.model(1).training
    with pytest.raises(InputError, match="epoch"):
        run.model(7)
