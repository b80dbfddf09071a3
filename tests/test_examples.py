"The shipped example runs: what they say is true, labs open on them, and nothing writes to them."
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from project import ROOT

from multiexit_nb import arms, studies, widgets
from multiexit_nb.core import InputError
from multiexit_nb.evaluate import evaluate
from multiexit_nb.files import read_manifest
from multiexit_nb.runs import Run, list_runs, with_examples
from multiexit_nb.text import one_line

SHIPPED = ROOT/"data"/"examples"
NAMES = sorted(path.name for path in SHIPPED.iterdir())


@pytest.fixture
def examples(monkeypatch):
    monkeypatch.setenv("MULTIEXIT_EXAMPLES", str(SHIPPED))


def contents(folder: Path) -> dict:
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


@pytest.mark.parametrize("name", NAMES)
def test_one_says_what_its_weights_say(name, examples):
    "Checksums, scores and outputs belong to the weights that are shipped; the study's results say so too."
    run = Run.load(name)
    said = run.outputs("test")
    scored = evaluate(run.model(), run.data().test, keep="test")
    assert run.result["test"]["top1"] == pytest.approx(scored.scores["top1"], abs=.06)     # two images
    assert (said.answers == scored.outputs.answers).float().mean() > .9995
    for ours, theirs in ((said.confidence(), scored.outputs.confidence()),
                         (said.cross_entropy(), scored.outputs.cross_entropy())):
        torch.testing.assert_close(ours, theirs, rtol=.01, atol=.01)
    results, about = studies.read_results("digit_pairs_methods")
    arm = next(a for a, p in about["arms"].items() if p["method"] == run.parameters["method"])
    rows = results[(results.arm == arm) & (results.seed == run.parameters["seed"])]
    of_study = rows[(rows.split == "test") & (rows.metric == "top1")].sort_values("exit").value.tolist()
    assert run.result["test"]["top1"] == pytest.approx(of_study, abs=.11)     # rounded to float16
    assert set(read_manifest(run.path)) == {f.name for f in run.path.iterdir()} - {"manifest.json"}
    assert sum(map(len, contents(run.path).values())) < 2e6


def test_they_stand_in_where_there_are_no_own_runs(examples, tiny_run):
    alone = list_runs().run.tolist()
    assert sorted(list_runs().run) == NAMES and set(list_runs().note) == {"example"}
    assert sorted(r.id for r in arms.finished_runs()) == NAMES
    with pytest.raises(InputError, match="example-mate"):
        Run.load("exmple-mate")
    own = tiny_run()
    assert list_runs().run.tolist() == [own.id] and [r.id for r in arms.finished_runs()] == [own.id]
    assert len(list_runs(os.environ["MULTIEXIT_RUNS"])) == 1
    assert [r.id for r in with_examples([own])] == [own.id, *alone]      # the first example is the same one
    beside = widgets.finished_runs()
    assert beside[0].id == own.id and sorted(r.id for r in beside[1:]) == NAMES
    marked = [one_line(widgets.run_text(r)).partition(" · ")[0].endswith(", example") for r in beside]
    assert marked == [False, True, True, True]
    seconds = re.search(r"\d{8}-\d{6}", own.id)[0]
    assert [widgets.called(r) for r in beside] == [seconds, *["example"]*3]
    assert [widgets.run_text(r).count("example") for r in beside] == [0, 1, 1, 1]
    named = shutil.copytree(own.path, own.path.with_name("what-somebody-called-it-" + "x"*40))
    assert widgets.run_text(Run(named)).endswith(" · what-somebody-called-it-xxxxxxxxxxxxxxx…")
    assert widgets.run_name(Run(named)).endswith(", what-somebody-…")
    assert [r.id for r in with_examples(beside)] == [r.id for r in beside]


def test_nothing_writes_to_them(examples):
    before = contents(SHIPPED)
    run = Run.load("example-mate")
    table = list_runs()
    assert run.keep("table", table) is table
    for attempt in (run.hold, lambda: run.event(1., "lr", .1, .2), lambda: run.write("x", Path.touch)):
        with pytest.raises(InputError, match="run example-mate is an example: it is not written"):
            attempt()
    with pytest.raises(InputError, match="its checkpoint is not there"):
        run.check_resume()
    assert contents(SHIPPED) == before


def test_every_lab_opens_on_them_and_trains_nothing(examples, monkeypatch):
    "From an empty folder of runs; all of them write nothing."
    from multiexit_nb import confusion_lab, curves_lab, exits_lab, rdm_lab, weights_lab

    def trained(*_, **__):
        raise AssertionError("a lab trained a run")

    monkeypatch.setattr(widgets, "run_experiment", trained)
    before = contents(SHIPPED)
    for lab in (exits_lab.ExitsLab, confusion_lab.ConfusionLab, rdm_lab.RdmLab, weights_lab.WeightsLab,
                curves_lab.CurvesLab):
        opened = lab()
        assert not opened.line.value, (lab.__name__, opened.line.value)
    assert contents(SHIPPED) == before and not Path(os.environ["MULTIEXIT_RUNS"]).exists()


def test_the_page_of_a_run_says_what_the_study_found(examples, finished_run):
    "Means, spread and paired intervals against numbers computed here; nothing for settings no study has."
    from scipy import stats

    from multiexit_nb import summary
    assert summary.study_of(finished_run) is None
    run = Run.load("example-dbt")
    found = summary.study_of(run)
    assert (found.study, found.arm, found.exit_wise) == ("digit_pairs_methods", "dbt", "exit-wise")
    t = found.results
    t = t[(t.split == "test") & (t.metric == "top1")].set_index(["arm", "exit", "seed"]).value.sort_index()
    shown = summary.over_seeds(run, found)
    assert shown.index.tolist() == ["exit-wise, 10 seeds", "dbt, 10 seeds", "this run, seed 20"]
    assert shown.iloc[2].tolist() == [f"{v:.1f}" for v in run.result["test"]["top1"]]
    for exit, column in enumerate(shown, 1):
        for row, arm in enumerate(("exit-wise", "dbt")):
            v = t[arm, exit].to_numpy(float)
            assert shown.iloc[row][column] == f"{v.mean():.1f} ± {v.std(ddof=1):.1f}"
    said = summary.gain_in_words(found)
    for exit in (1, 4):
        d = (t["dbt", exit] - t["exit-wise", exit]).to_numpy(float)
        low, high = stats.t.interval(.95, len(d) - 1, d.mean(), stats.sem(d))
        words = f"exit {exit} **{d.mean():+.1f} points** (95 % interval {low:+.1f} … {high:+.1f})"
        assert words.replace("-", "−") in said and (low > 0 or high < 0)
    of_mate = summary.study_of(Run.load("example-mate"))
    assert "exit 4 **−0.5 points** (95 % interval −1.1 … 0.0, which may be none)" in (
        summary.gain_in_words(of_mate))


@pytest.mark.slow
def test_the_command_makes_them(tmp_path):
    "Of one epoch: the files of those that are shipped, and a run that answers."
    env = os.environ | {"MULTIEXIT_ROOT": str(ROOT), "MULTIEXIT_EXAMPLES": str(tmp_path/"made")}
    command = [sys.executable, str(ROOT/".ci"/"examples.py"), str(tmp_path/"made"), "--epochs", "1"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert set(contents(tmp_path/"made")) == set(contents(SHIPPED))
    for name in NAMES:
        made, shipped = Run(tmp_path/"made"/name), Run(SHIPPED/name)
        assert made.parameters == shipped.parameters | dict(epochs=1, **{
            k: v for k, v in made.parameters.items() if k not in shipped.parameters})
        assert made.outputs().num_exits == 4 and made.result["last_epoch"] == 1
