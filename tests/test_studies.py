"""Studies: every file reads and its runs can be run; results travel; verdicts are computed."""
import numpy as np
import pytest

from multiexit_nb import studies
from multiexit_nb.core import InputError
from multiexit_nb.experiment import prepare
from multiexit_nb.runs import Run

SMALL = """
about: A try.
sweep:
  base: {dataset: digits, images_per_class: 20, model: tiny, epochs: 2, batch_size: 64, precision: fp32}
  runs:
    - {name: mate, method: mate}
    - {name: exit-wise, method: branchynet}
  grid: {seed: [10, 11]}
splits: seed
questions:
  - {claim: MATE-1, arm: mate, against: exit-wise, exit: 1, expect: higher, interest: 200}
  - {claim: MATE-5, arm: mate, metric: weights/1, exit: 1, split: val, expect: same, level: 0.25, interest: 1}
  - {claim: EED-4, arm: mate, metric: anytime, minus: top1, exit: 4, expect: higher, interest: 200}
  - {claim: MATE-3, arm: mate, metric: gap, exit: 1, split: val, over: std, expect: higher, interest: 200}
"""


@pytest.fixture
def small(tmp_path):
    (tmp_path/"small.yaml").write_text(SMALL)
    return tmp_path/"small.yaml"


@pytest.mark.parametrize("name", studies.list_studies())
def test_every_study_can_be_run(name):
    study = studies.read_study(name)
    assert study.about and study.questions and len(study.seeds) >= 5
    for cell in study.cells:
        if cell.parameters["seed"] == study.seeds[0]:
            prepare(cell.parameters, set(cell.parameters), coming=cell.after)


@pytest.mark.parametrize("splits", ["one", "seed"])
def test_a_run_of_a_study_learns_from_a_run_of_its_own_seed_and_waits_for_it(small, splits):
    teach = "- {name: kd, method: kd, exits: none, method_args: {teacher: exit-wise}}"
    text = SMALL.replace("    - {name: exit-wise", f"    {teach}\n    - {{name: exit-wise")
    small.write_text(text.replace("splits: seed", f"splits: {splits}"))
    cells = studies.read_study(str(small)).cells
    of = {c.id: c for c in cells}
    students = [c for c in cells if c.name == "kd"]
    assert len(students) == 2
    for c in students:
        teacher = of[c.parameters["method_args"]["teacher"]]
        assert c.after == (teacher.id,) and teacher.name == "exit-wise"
        assert teacher.parameters["seed"] == c.parameters["seed"]
    first, second = studies.waves(cells)
    assert second == students and len(first) == 4


def test_a_study_runs_goes_on_and_is_answered_from_its_file(small, tmp_path, capsys):
    folder, study = tmp_path/"runs"/"s", studies.read_study(str(small))
    assert {c.parameters["split_seed"] for c in study.cells} == {10, 11}
    studies.bring(study.cells[0], folder)
    before = (folder/study.cells[0].id/"weights.safetensors").stat().st_mtime_ns
    for cell in study.cells:
        studies.bring(cell, folder)
    assert (
        folder/study.cells[0].id/"weights.safetensors").stat().st_mtime_ns == before, "what is finished stays"
    file = studies.collect(study, folder, tmp_path/"small.parquet")
    table, about = studies.read_results(str(file))
    assert file.stat().st_size < 20_000
    assert set(about["seconds"]) == {f"{arm}/{seed}" for arm in study.arms for seed in (10, 11)}
    told = studies.verdicts(study, table)
    assert len(told) == 4 and set(told.verdict) <= {"holds", "undecided", "no difference larger than 200"}
    first = {c.id: Run(folder/c.id).result["test"]["top1"][0] for c in study.cells}
    mean = {arm: np.mean([first[c.id] for c in study.cells if c.name == arm]) for arm in study.arms}
    assert told.difference[0] == pytest.approx(mean["mate"] - mean["exit-wise"], abs=1e-4)


@pytest.mark.parametrize("old, new, line", [
    ("arm: mate, against: exit-wise", "arm: mat, against: exit-wise", "unknown arm in MATE-1: 'mat'.*'mate'"),
    ("seed: [10, 11]", "lr: [0.1]", "expected a list of seeds"),
    ("splits: seed", "searched: [11]", "none on which settings were searched"),
    ("expect: higher, interest: 200", "expect: better", "expect='better': expected 'higher'"),
    ("about: A try.", "abut: A try.", "Did you mean 'about'"),
    ("{name: mate, ", "{", "expected a name for every line")])
def test_what_is_wrong_in_a_study_is_one_line(small, old, new, line):
    small.write_text(SMALL.replace(old, new, 1))
    with pytest.raises(InputError, match="(?s)" + line.replace("[", r"\[")) as e:
        studies.read_study(str(small))
    assert "\n" not in str(e.value)


def test_damaged_results_are_one_line(tmp_path):
    (tmp_path/"x.parquet").write_bytes(b"PAR1nothing")
    with pytest.raises(InputError, match="x.parquet is damaged"):
        studies.read_results(str(tmp_path/"x.parquet"))


def test_intervals_cover_as_often_as_they_say():
    draws = np.random.default_rng(0).normal(1, 2, (4000, 8))
    inside = [low < 1 < high for low, high in map(studies.interval, draws)]
    assert np.mean(inside) == pytest.approx(.95, abs=.01)


def test_the_number_of_seeds_that_would_decide_decides():
    q = studies.Question("X", "a", "higher", interest=.5)
    d = np.array([.3, .5, -.4, .9, .1])
    n = studies.seeds_to_decide(d, q)
    repeated = np.resize(d, 5*(n//5 + 1))
    assert not studies.verdict_of(*studies.interval(d), "higher", 0, .5)
    assert studies.verdict_of(*studies.interval(repeated), "higher", 0, .5)
