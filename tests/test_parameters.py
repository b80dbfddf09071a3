"""A value with a type, a range and a meaning: declared once, read the same from a cell, a command line and
a sweep."""
import inspect
from pathlib import Path
from typing import Annotated, Literal

import pytest

from multiexit_nb import experiment, sweep, trainer
from multiexit_nb.core import InputError
from multiexit_nb.experiment import PARAMETERS, check_parameters, prepare, recipe_of
from multiexit_nb.methods import list_methods, register
from multiexit_nb.parameters import (
    LARGEST,
    Param,
    Parameter,
    numbers_in,
    parameters_of,
    read_parameters,
    read_yaml,
)
from multiexit_nb.recipe import Recipe
from multiexit_nb.runs import Run

TINY = dict(dataset="digits", images_per_class=14, model="tiny", exits="sepconv", method="mate", epochs=1,
            batch_size=64, precision="fp32", channels_last="false")


def one_line(error) -> bool:
    return "\n" not in str(error.value) and len(str(error.value)) < 2000


# ---- one parameter ----

@pytest.mark.parametrize("kind, value, found", [
    (int, "3", 3), (float, 3, 3.), (float, "1e-3", 0.001), (bool, "true", True), (bool, "No", False),
    (str, None, ""),
    (str, 7, "7"), (float | None, None, None), (list[int] | None, ["1", 2], [1, 2]),
    (Literal["auto", True], "true", True),
    (float | Literal["auto"], "auto", "auto"), (dict[int, list[int]], {"1": [2]}, {1: [2]}),
    (dict, {"a": [1, {"b": None}]}, ...),
    (tuple[int | float, ...], [1, 0.5], (1, 0.5))])
def test_values_that_fit(kind, value, found):
    got = Parameter("x", kind).check(value)
    want = value if found is ... else found
    assert got == want and type(got) is type(want)


@pytest.mark.parametrize("kind, value", [
    (int, 1.5), (int, True), (int, "1.5"), (float, "nan"), (float, "1e999"), (float, 10**400), (float, False),
    (bool, 1), (bool, "2"),
    (str, 1.5), (str, True), (str, "a\nb"), (str, "\udc80"), (str, "a\0"), (str, b"a"), (list[int], "12"),
    (list[int], [True]),
    (dict, [("a", 1)]), (dict, {"a": float("inf")}), (dict, {"a\n": 1}), (dict, {None: 1}),
    (dict, {"a": {1, 2}}), (Literal["a"], ["a"]),
    (dict, {"a": 2*LARGEST}), (float, 2*LARGEST), (float, -2*LARGEST), (int, "9"*5000),
    (Literal[True, "auto"], 1)])
def test_values_that_do_not(kind, value):
    with pytest.raises(InputError, match="^x=") as e:
        Parameter("x", kind).check(value)
    assert one_line(e)


def test_deep_and_endless_values_are_refused():
    endless = {}
    endless["a"] = endless
    deep = []
    for _ in range(50):
        deep = [deep]
    for value in (endless, {"a": deep}):
        with pytest.raises(InputError, match="^x="):
            Parameter("x", dict).check(value)


def test_ends_of_a_range():
    half_open = Parameter("x", float, 0.5, Param("", 0, 1, open="high"))
    assert half_open.check(0) == 0 and half_open.expected == "number ≥ 0 and < 1"
    for wrong in (1, -1e-9):
        with pytest.raises(InputError, match="expected number ≥ 0 and < 1"):
            half_open.check(wrong)
    each = Parameter("x", list[int], [1], Param("", low=1))
    with pytest.raises(InputError, match=r"x=\[2, 0\]: expected list\[whole number\] ≥ 1"):
        each.check([2, 0])


def test_where_they_are_declared():
    class Thing:
        def __init__(self, task, *, weight: Annotated[float, Param("of it", low=0)] = 1., plain: int = 2,
                     must: str):
            pass
    found = parameters_of(Thing)
    assert ([(p.name, p.kind, p.default) for p in found.values()]
            == [("weight", float, 1.), ("plain", int, 2), ("must", str, ...)])
    assert found["weight"].doc == "of it" and found["plain"].doc == ""
    assert parameters_of(Recipe)["lr"].default == 0.1


@pytest.mark.parametrize("text, value", [
    ("1e-3", 0.001), ("1E5", 1e5), ("-.5", -0.5), ("007", "007"), ("1:30", "1:30"),
    ("2026-11-21", "2026-11-21"), ("0x10", "0x10"),
    ("yes", True), ("~", None), ("[1, 2.]", [1, 2.0]), ("1_000", "1_000"), ("&a {b: 1}", {"b": 1})])
def test_yaml(text, value):
    assert read_yaml(text) == value and type(read_yaml(text)) is type(value)


@pytest.mark.parametrize("text",
                         ["[", "{a: 1, a: 2}", "!!python/object:os.system x", "9"*5000, "["*5000, "{[1]: 2}",
                          "a: b: c", "\t- x"])
def test_what_is_not_yaml(text):
    with pytest.raises(InputError) as e:
        read_yaml(text)
    assert one_line(e)


# ---- every number there is ----

def test_every_number_of_an_experiment_has_an_upper_bound():
    for p in PARAMETERS.values():
        if p.kind in (int, float) or "number" in p.type_text:
            assert p.low is not None and p.high is not None, p.name
        assert p.doc and p.check(p.default) == p.default, p.name
        for n in (10**30, -10**30, float("nan"), float("inf"), 10**400):
            if p.kind in (int, float):
                with pytest.raises(InputError):
                    p.check(n)


@pytest.mark.parametrize("method", list_methods())
def test_hyperparameters_are_parameters(method):
    for p in parameters_of(register[method]).values():
        assert p.doc, p.name
        assert p.check(p.default) == (list(p.default) if isinstance(p.default, tuple) else p.default)
        if numbers_in(p.default):
            with pytest.raises(InputError):
                p.check(1e308)


# ---- a notebook's cell ----

CELL = ("dataset: str = 'digits'  # which\nlr: float = 0.1  # rate\nepochs: int = 3\nmethod_args: dict = {}\n"
        "nesterov: bool = False\nmilestones: list = [0.5]")


def test_parameters_cell_and_what_papermill_adds():
    default = dict(dataset="digits", lr=0.1, epochs=3, method_args={}, nesterov=False, milestones=[0.5])
    assert read_parameters(["1 + 1", CELL]) == (default, set())
    behind = '# Parameters\nlr = 1\ndataset = "cifar10"\nmethod_args = {"alpha": 1.5}\n'
    values, explicit = read_parameters(["1 + 1", CELL, behind, "x = 3"])
    assert values == default | dict(lr=1., dataset="cifar10", method_args={"alpha": 1.5})
    assert explicit == {"lr", "dataset", "method_args"}
    # changed and run again
    values, _ = read_parameters([CELL, "# Parameters\nlr = 5\n", "work()", CELL.replace("0.1", "0.3")])
    assert values["lr"] == 0.3
    with pytest.raises(InputError, match="no parameters cell"):
        read_parameters(["1 + 1"])


@pytest.mark.parametrize("line, says", [
    ("lr = 'x'", "lr='x': expected number"), ("epochs = 2.5", "epochs=2.5"), ("nesterov = 1", "nesterov=1"),
    ("method_args = 'alpha'", "expected map"), ("epoch = 3", "Did you mean 'epochs'"),
    ("lr = float('nan')", "lr=float"),
    ("milestones = [0.5, float('inf')]", "milestones="),
    ("method_args = {'alpha': float('nan')}", "method_args="),
    ("lr = 1/3", "lr=1 / 3"), ("lr = epochs = 1", "gives no name a value"),
    ("lr, epochs = 1, 2", "gives no name a value"),
    ("lr; epochs = 1", "gives no name a value"), ("learning-rate = 1", "values given to papermill"),
    ("# lr = 1", "#"),
    ("lr = 1 # = 2", "#"), ("import os; lr = 1", "gives no name a value"),
    ("a.b = 1", "gives no name a value"), (" = 1", "papermill"),
    ("1 = 2", "papermill"), ("dataset = 1.5", "expected text"), ("dataset = True", "expected text"),
    ("lr += 1", "no name a value")])
def test_what_is_no_value_is_an_error_and_not_the_default(line, says):
    with pytest.raises(InputError, match=says) as e:
        read_parameters([CELL, f"# Parameters\n{line}\n"])
    assert one_line(e)


@pytest.mark.parametrize("cell, says", [
    (CELL.replace("0.1", "1/3"), "lr=1 / 3"), (CELL + "\nprint(lr)", "gives no name a value"),
    (CELL + "\nseed = 3", "seed: expected a type"),
    (CELL.replace("3\n", "3:\n"), "the parameters cell: "),
    (CELL.replace("float", "Float"), "lr: expected a type")])
def test_a_damaged_cell_is_not_passed_over_for_an_older_one(cell, says):
    with pytest.raises(InputError, match=says):
        read_parameters([CELL, "work()", cell])


def test_text_is_read_by_its_parameter():
    given = ("# Parameters\nnesterov = 'true'\nlr = '1e-3'\nmilestones = '[1, 2]'\n"
             "method_args = '{alpha: 1e-1}'\n")
    values, _ = read_parameters([CELL, given])
    assert values["nesterov"] is True and values["lr"] == 0.001 and values["milestones"] == [1, 2]
    assert values["method_args"] == {"alpha": 0.1}


# ---- the roads to an experiment ----

WRONG = [
    (dict(method="mat"), "Did you mean 'mate'"),
    (dict(model="resnet19"), "unknown model 'resnet19'. Did you mean 'resnet18'"),
    (dict(dataset="digit"), "Did you mean 'digits'"), (dict(preset="papr"), "Did you mean 'paper'"),
    (dict(exits="sepcon"), "Did you mean 'sepconv'"),
    (dict(method_args={"alhpa": 1}), "Did you mean 'alpha'"),
    (dict(method_args={"alpha": -1}), "alpha"), (dict(method_args={"alpha": "x"}), "alpha"),
    (dict(method_args={"alpha": float("nan")}), "method_args"), (dict(method_args={1: 2}), "method_args|'1'"),
    (dict(method_args={"num_classes": 3}), "num_classes is not given here"),
    (dict(method_args={"preset": "paper"}), "preset is not"),
    (dict(model_args={"widht": 4}), "width"), (dict(model_args={"exits": "conv"}), "exits is not given here"),
    (dict(model_args={"num_classes": 3}), "num_classes is not"),
    (dict(model_args={"width": 10**9}), "width|GB|cannot be"),
    (dict(recipe="mats"), "Did you mean 'mate'"), (dict(lr=-0.1), "lr=-0.1"), (dict(epochs=0), "epochs=0"),
    (dict(epochs=10**30), "epochs"),
    (dict(split_seed=2**64), "split_seed"), (dict(image_size=10**5), "image_size"),
    (dict(milestones=[True]), "milestones"),
    (dict(method="eed", method_args={"teacher_exits": [1, 7]}), "teacher_exits"),
    (dict(model="resnet18", image_size=3), "image_size"),
    (dict(device="cuda:9"), "device"), (dict(device="gpu"), "unknown device"),
    (dict(images_per_class=1), "images_per_class"),
    (dict(dataset="imagefolder:/no/such"), "existing folder"),
    (dict(exits="linear"), "one width at every exit"),
    (dict(resume="x"), "unknown run"), (dict(run_id="../x"), "run_id"), (dict(run_id="x"*300), "run_id"),
    (dict(run_id=".."), "run_id"),
    (dict(tracker="tensorbord"), "Did you mean 'tensorboard'"),
    (dict(method="kd", exits="none"), "kd needs a teacher"),
    (dict(learning_rate=0.1), "unknown parameter"),
    (dict(method_args={"teacher": 3}), "teacher|hyperparameter")]


@pytest.mark.parametrize("wrong, says", WRONG, ids=[str(w)[:60] for w, _ in WRONG])
def test_wrong_input_is_one_line_before_any_data(wrong, says, monkeypatch):
    monkeypatch.setattr("multiexit_nb.experiment.data_of", lambda *a, **k: pytest.fail("data were loaded"))
    with pytest.raises(InputError, match=says) as e:
        prepare({**TINY, **wrong}, set(TINY) | set(wrong))
    assert one_line(e)
    assert not Path(experiment.settings()["runs"]).exists()      # nothing left that looks like a run


def test_a_run_id_that_is_taken_is_said_before_any_data():
    Run.create(TINY, "mine")
    with pytest.raises(InputError, match="'mine' exists"):
        prepare({**TINY, "run_id": "mine"})


def test_a_named_recipe_fills_in_what_is_left():
    p = ({k: v for k, v in TINY.items() if k not in ("epochs", "batch_size")}
         | dict(epochs=30, batch_size=128, milestones=[0.5, 0.75]))
    assert recipe_of({**p, "recipe": "dih"}, set()).epochs == 200
    r = recipe_of({**p, "recipe": "dih"}, {"epochs"})
    assert (r.epochs, r.batch_size, r.nesterov) == (30, 64, True)
    paper = recipe_of({**p, "method": "dbt", "preset": "paper"}, set())
    assert paper == Recipe.preset("dbt-cifar", precision="fp32", channels_last=False)


def test_what_was_given_is_what_is_recorded():
    given = dict(lr=1e-3, seed=7, model_args={"at": [1, 2]}, method_args={"alpha": [1., 2, 3.]},
                 tracker_args={"a": None})
    p = prepare(TINY | given, set(TINY) | set(given)).parameters
    assert {n: p[n] for n in given} == given and set(p) == set(PARAMETERS)
    assert p["channels_last"] is False and check_parameters({n: v for n, v in p.items()}) == p


@pytest.mark.parametrize("argv, name, value", [
    (["-p", "lr", "1e-3"], "lr", 0.001), (["-p", "run_id", "no"], "run_id", "no"),
    (["-p", "run_id", "2026-11-21"], "run_id", "2026-11-21"),
    (["-p", "run_id", "007"], "run_id", "007"), (["-p", "channels_last", "false"], "channels_last", False),
    (["-p", "nesterov", "true"], "nesterov", True), (["-p", "milestones", "[.5, 3]"], "milestones", (0.5, 3)),
    (["-p", "method_args", "{alpha: 1e-1}"], "method_args", {"alpha": 0.1}),
    (["-y", "{lr: 1e-3, epochs: 2}"], "lr", 0.001)])
def test_command_line(argv, name, value):
    p, explicit = trainer.arguments(argv)
    assert p[name] == value and name in explicit


@pytest.mark.parametrize("argv", [
    ["-p", "learning-rate", "0.5"], ["-p", "batch size", "3"], ["-p", "class", "3"], ["-p", "", "3"],
    ["-y", "{1: 2}"], ["-p", "lr", "nan"],
    ["-p", "lr", ".inf"], ["-y", "{lr: .nan}"], ["-y", "{milestones: [0.5, .inf]}"],
    ["-p", "batch_size", "1:30"], ["-p", "epochs", "["],
    ["-y", "{run_id: no}"], ["-y", "{run_id: 1.10}"], ["-y", "[lr]"], ["-y", "lr"], ["-p", "epochs", "1_0.5"],
    ["-y", "{lr: 1, lr: 2}"]])
def test_wrong_arguments_are_one_line_and_no_run(argv, capsys, monkeypatch):
    monkeypatch.setattr("multiexit_nb.experiment.data_of", lambda *a, **k: pytest.fail("data were loaded"))
    assert trainer.main([*argv, "-p", "epochs", "1", "-p", "method", "nope"] if "epochs" not in argv
                        else argv) == 1
    said = capsys.readouterr().err
    assert said.startswith("InputError: ") and said.count("\n") == 1 and "nope" not in said


def test_ctrl_c_is_one_line_and_130(capsys, monkeypatch):
    def stopped(*a):
        raise KeyboardInterrupt
    monkeypatch.setattr(trainer, "prepare", stopped)
    assert trainer.main([]) == 130 and capsys.readouterr().err.count("\n") == 1


def test_help_says_everything(capsys):
    with pytest.raises(SystemExit):
        trainer.main(["--help"])
    text = capsys.readouterr().out
    for p in PARAMETERS.values():
        assert f"  {p.name} " in text and p.doc in text, p.name


def test_a_sweep_reads_as_a_command_line_does(tmp_path, capsys):
    grid = tmp_path/"g.yaml"
    grid.write_text("base: {lr: 1e-3, epochs: 1, precision: fp32}\ngrid: {momentum: [0.5, 9e-1]}")
    assert [c.parameters["momentum"] for c in sweep.checked(sweep.read_grid(grid, lr=0.002))] == [0.5, 0.9]
    assert sweep.read_grid(grid)["base"]["lr"] == 0.001
    for argv in (["-p", "lr", "nan"], ["-p", "learning-rate", "1"], ["-p", "epochs", "1:30"]):
        assert sweep.main([str(grid), "--list", *argv]) == 1
        assert capsys.readouterr().err.count("\n") == 1


# ---- where it was made is not where it is opened ----

def test_a_run_opens_without_its_device_and_its_tracker():
    made = prepare(TINY, set(TINY))
    run = Run.create(made.parameters | dict(device="cuda:7", tracker="dvclive"), "elsewhere", device="cuda:7",
                     num_classes=10, image_size=32)
    with pytest.warns(UserWarning, match="made on cuda:7, which is not here: it is opened on cpu"):
        e = prepare(dict(resume=run.id), {"resume"})
    assert e.device.type == "cpu" and e.run.id == run.id
    with pytest.raises(InputError, match="device"):
        prepare(dict(resume=run.id, device="cuda:7"), {"resume", "device"})


def test_one_road():
    "Nobody trains an experiment but by the experiment's own methods."
    e = prepare(TINY, set(TINY))
    training = e.start(e.load(), bar=False)
    assert [r["epoch"] for r in e.epochs(training)] == [1]
    result = e.run.finish(training)
    again = prepare(dict(resume=e.run.id), {"resume"}).complete(bar=False)
    assert again.id == e.run.id and again.result["test"] == result["test"]
    assert inspect.signature(experiment.run_experiment).parameters.keys() == {"p", "explicit", "bar"}
