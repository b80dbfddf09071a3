"What another run has learned: named in a grid, looked up before training, recorded as numbers."
import os
import shutil

import pytest

from multiexit_nb import arms, experiment, sweep
from multiexit_nb.analysis import statistics
from multiexit_nb.core import InputError
from multiexit_nb.grid import cells, read_grid
from multiexit_nb.history import last_matrix
from multiexit_nb.runs import Run

SMALL = dict(dataset="digits", images_per_class=25, model="tiny", exits="sepconv", method="hdkd", epochs=2,
             batch_size=64, precision="fp32", channels_last="false")
FAST = dict(gamma_lr=0.05)
LINES = [dict(method_args=dict(fixed_gamma="teaches")), dict(name="teaches", method_args=FAST)]
GRID = dict(base=SMALL, runs=LINES, grid=dict(seed=[3]))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    "The two runs of the grid, in a folder of runs."
    folder = tmp_path_factory.mktemp("learned")
    with pytest.MonkeyPatch.context() as m:
        m.setenv("MULTIEXIT_RUNS", str(folder))
        m.setenv("MULTIEXIT_DEVICE", "cpu")
        for c in sweep.checked(read_grid(GRID)):
            p = {**c.parameters, "run_id": c.id}
            experiment.run_experiment(p, set(p), bar=False)
    return folder, [c.id for c in cells(read_grid(GRID))]


@pytest.fixture
def pair(trained, tmp_path):
    "(who learned γ, who took it), in this test's own folder."
    folder, ids = trained
    for id in ids:
        shutil.copytree(folder/id, tmp_path/"runs"/id)
    return [Run(tmp_path/"runs"/id) for id in ids]


def test_a_cell_waits_for_whom_it_learns_from():
    first, second = cells(read_grid(GRID))
    assert first.name == "teaches" and second.after == (first.id,)
    assert second.parameters["method_args"] == dict(fixed_gamma=first.id)
    loop = [dict(name=a, method_args=dict(fixed_gamma=b)) for a, b in ("ab", "ba")]
    with pytest.raises(InputError, match="wait for each other"):
        cells(read_grid({**GRID, "runs": loop}))


def test_a_word_that_names_no_run_stays_a_word():
    "A line that is called as the value of another hyperparameter is."
    lines = [dict(name="random", method_args=FAST), dict(method_args=dict(start="random"))]
    assert [c.after for c in cells(read_grid({**GRID, "runs": lines}))] == [(), ()]


def test_the_numbers_are_recorded_and_stay(pair):
    first, second = pair
    learned = last_matrix(first.history, "gamma")
    assert second.parameters["method_args"] == dict(fixed_gamma=learned)
    assert second.about["learned"] == dict(fixed_gamma=first.id)
    assert any(g not in (0, 1) for row in learned for g in row)
    for epoch in (1, 2):
        h = second.history
        assert last_matrix(h[h.epoch <= epoch], "gamma") == learned


def test_the_run_outlives_whom_it_learned_from(pair):
    first, second = pair
    shutil.rmtree(first.path)
    second.model()
    assert experiment.prepare({"resume": second.id}, {"resume"}).run.id == second.id
    assert arms.settings_of(second)["method_args"] == dict(fixed_gamma=first.id)    # its name is gone


def test_identity_is_whose_weights_they_are(pair):
    first, second = pair
    asked = {**SMALL, "method_args": dict(fixed_gamma={**SMALL, "method_args": FAST})}
    assert arms.identity_of(second) == arms.identity(asked)
    other = {**SMALL, "method_args": dict(fixed_gamma=SMALL)}
    assert arms.identity_of(second).differences(arms.identity(other)).keys() == {"fixed_gamma"}
    assert arms.identity_of(first) == arms.identity({**SMALL, "method_args": FAST})
    names = set(statistics.results(pair).method)
    assert names == {"hdkd (gamma_lr=0.05)", "hdkd (fixed_gamma=hdkd (gamma_lr=0.05))"}


@pytest.mark.parametrize("change, words", [
    (dict(fixed_gamma="nobody"), "unknown run 'nobody'"),
    (dict(fixed_gamma="baseline"), "fixed_gamma: run .* has not finished, or has learned no gamma"),
    (dict(fixed_gamma=[[1.0]]), "4 rows of 4")])
def test_what_cannot_be_taken(pair, change, words):
    top = [50, 60, 70, 80]
    baseline = arms.example_run(os.environ["MULTIEXIT_RUNS"], "baseline", 0, top)
    given = {k: baseline.id if v == "baseline" else v for k, v in change.items()}
    with pytest.raises(InputError, match=words):
        experiment.prepare({**SMALL, "method_args": given}, set(SMALL))
