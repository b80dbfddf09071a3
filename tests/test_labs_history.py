"The labs ensemble_weights and curves without a browser: what controls do, no traceback, little is sent."

import itertools
import json
import re

import ipywidgets
import numpy as np
import pandas as pd
import pytest
from lab_page import keep_all, kept
from scipy.signal import savgol_filter

from multiexit_nb import arms, curves_lab, weights_lab, widgets
from multiexit_nb.analysis import compare, weights
from multiexit_nb.history import tidy
from multiexit_nb.runs import Run

RNG = np.random.default_rng(0)


def made(folder, method, epochs, M=4, seed=0, finished=True, model="tiny", **args):
    "A run that was never trained, with the history that its method would have written."
    run = arms.example_run(
        folder,
        method,
        seed,
        [70 + 3 * m for m in range(M)],
        model=model,
        epochs=epochs,
        **({"method_args": args} if args else {}),
    )
    rows = []
    for e in range(1, epochs + 1):
        val = dict(
            top1=[60 + 3 * m + e / epochs + RNG.normal() for m in range(M)],
            top5=[90.0] * M,
            anytime=[70.0] * M,
            ce=[1.0] * M,
        )
        said = {}
        if method in ("mate", "dbt", "hdkd"):
            val |= dict(
                gap=[float(g) for g in RNG.normal(3, 1, M - (method != "mate"))], teacher_top1=[70.0] * M
            )
        if method == "mate":
            val["weights"] = RNG.dirichlet(np.ones(M), M).tolist()
        if method == "dbt":
            said["temperature"] = 1.05**e
        if method == "hdkd":
            said["gamma"] = np.tril(RNG.random((M, M))).tolist()
        rows += tidy(dict(epoch=e, train=dict(loss=dict(ce=1.0), top1=[50.0] * M), method=said, val=val))
    pd.DataFrame(rows).astype({"exit": "Int64"}).to_csv(run.path / "history.csv", index=False)
    if not finished:
        (run.path / "result.json").unlink()
    return run


@pytest.fixture
def runs(tmp_path, monkeypatch):
    "With and without weights, gaps, a temperature, γ; 2, 3 or 4 exits; 1 to 30 epochs; one at work."
    monkeypatch.setenv("MULTIEXIT_RUNS", str(tmp_path))
    return [
        made(tmp_path, "mate", 30, alpha=3.0),
        made(tmp_path, "mate", 12, seed=1, alpha=3.0),
        made(tmp_path, "mate", 1, M=2, alpha=1.0),
        made(tmp_path, "dbt", 9, M=3),
        made(tmp_path, "hdkd", 6),
        made(tmp_path, "branchynet", 4, model="resnet18"),
        made(tmp_path, "mate", 5, seed=2, finished=False, alpha=3.0),
    ]


def fine(lab, says=""):
    "An answer is one line, and never of an unforeseen kind."
    text = lab.line.value
    assert not re.search(r"\w(Error|Exception|Warning|Iteration):", text), text
    assert says in text if says else "⚠" not in text, text
    return lab


@pytest.mark.parametrize("kind", [weights_lab.WeightsLab, curves_lab.CurvesLab])
def test_a_lab_opens_with_runs_made_on_the_spot(kind, monkeypatch):
    train = widgets.demo_run
    for module in (weights_lab, curves_lab):
        monkeypatch.setattr(module, "demo_run", lambda **k: train(**k | dict(epochs=1, images_per_class=20)))
    lab = fine(kind())
    assert {r.parameters["dataset"] for r in widgets.finished_runs()} == {"digits"} and "mate" in [
        r.parameters["method"] for r in lab.picker.value
    ]
    assert "application/vnd.jupyter.widget-view+json" in lab._repr_mimebundle_()
    assert all(
        len(box.children[0].data)
        for box in ([lab.frame] if kind is curves_lab.CurvesLab else [lab.matrix, lab.lines, lab.gaps])
    )


# ---------------------------------------------------------------- ensemble_weights
def test_a_run_without_teachers_is_answered_and_the_lab_goes_on(runs):
    lab = fine(weights_lab.WeightsLab(runs[5]), "no learning gaps")
    assert "only MATE" in lab.sentence.value and not lab.gaps.children and not lab.by_epoch.children
    assert all("no figure to keep" in said for view in keep_all(lab).values() for said in view)
    lab.picker.value = (runs[0], runs[5])
    assert fine(lab).gaps.children and lab.matrix.children and lab.slider in lab.by_epoch.children
    lab.picker.value = (runs[5],)
    assert not fine(lab, "no learning gaps").gaps.children and not lab.table.value


def test_the_slider_moves_through_the_epochs(runs):
    lab = fine(weights_lab.WeightsLab(runs[0]))
    w = weights.teacher_weights(runs[0].history)
    assert lab.slider.options == tuple(range(1, 31)) and lab.slider.value == 30 and lab.window.value == 11
    view, lines = lab.matrix.children[0], lab.lines.children[0]
    for e in (1, 17, 30, 2):
        lab.slider.value = e
        assert (
            lab.matrix.children[0] is view
            and np.allclose(view.data[0].z, weights.weights_at(w, e))
            and f"epoch {e}" in view.layout.title.text
        )
        assert (
            lab.lines.children[0] is lines
            and lines.layout.shapes[0].x0 == e
            and lines.get_state()["_widget_layout"]["shapes"][0]["x0"] == e
        )
    s = weights.weight_summary(weights.weights_at(w, 2))
    assert f"{s.own[3]:.0%}" in lab.sentence.value and f"{s.draws_on[4]:.1f} of 4" in lab.sentence.value
    lab.play.value = 9  # the play button
    assert lab.slider.value == 10
    lab.teacher.value = 3
    assert (
        "exit 3" in lab.lines.children[0].layout.title.text
        and lab.lines.children[0].layout.shapes[0].x0 == 10
        and np.allclose(lab.lines.children[0].data[1].y, w.xs(3, level="teacher")[2], atol=1e-6)
    )


def test_the_curves_lab_opens_with_plain_finished_runs_of_one_subject(runs):
    runs[1].event(2, "lr", 0.1, 0.01)
    known = [Run(r.path) for r in (runs[6], runs[1], runs[0], runs[4], runs[5])]
    chosen = curves_lab.first_runs(known)  # not the unfinished one, the steered one, another network's
    assert [r.path for r in chosen] == [runs[0].path, runs[4].path]


def test_a_second_run_stands_beside_the_first_at_the_same_epoch(runs):
    lab = fine(weights_lab.WeightsLab(runs[0]))
    offered = {r for _, r in lab.beside.options if r}
    assert {runs[0], runs[1], runs[6]} <= offered and runs[2] not in offered  # two exits are not four
    lab.beside.value = runs[1]
    lab.slider.value = 7
    view, second = fine(lab).matrix.figure, weights.teacher_weights(runs[1].history)
    assert np.allclose(view.data[1].z, weights.weights_at(second, 7))
    assert view.data[0].zmax == view.data[1].zmax
    assert "epochs=12" in view.layout.annotations[1].text and lab.second_lines.figure.layout.shapes[0].x0 == 7
    lab.beside.value = ""
    assert len(fine(lab).matrix.figure.data) == 2 and not lab.second_lines.children


def test_gaps_are_smoothed_and_tabled(runs):
    lab = fine(weights_lab.WeightsLab(runs[0]))
    gaps, shown = (
        weights.gaps_by_epoch(runs[0].history),
        lambda: [t for t in lab.gaps.children[0].data if t.name],
    )
    assert (
        np.allclose(shown()[1].y, savgol_filter(gaps[2], 11, 3), atol=1e-4)
        and len(lab.gaps.children[0].data) == 8
    )
    lab.raw.value, lab.degree.value, lab.window.value = False, 1, 29
    assert (
        np.allclose(shown()[3].y, savgol_filter(gaps[4], 29, 1), atol=1e-4)
        and len(lab.gaps.children[0].data) == 4
    )
    lab.window.value = 1
    assert (
        np.allclose(shown()[0].y, gaps[1], atol=1e-4)
        and f"{gaps[1].mean():.2f} ± {gaps[1].std():.2f}" in lab.table.value
    )
    lab.paper.value = True
    assert "5.67 ± 1.57" in lab.table.value and "MATE&#x27;s paper" in lab.table.value
    lab.window.value = 29
    lab.picker.value = (runs[0], runs[3])
    assert (
        "dbt" in fine(lab, "dbt: fewer epochs than the window").line.value
        and len({t.name for t in shown()}) == 2
    )


def test_runs_without_weights_or_teachers_are_answered(runs):
    lab = weights_lab.WeightsLab()
    for run in runs[3:5]:
        lab.picker.value = (run,)
        assert (
            not fine(lab).by_epoch.children
            and lab.teacher.disabled
            and "only MATE" in lab.sentence.value
            and not lab.matrix.children
        )
        lab.teacher.value = lab.teacher.options[-1][1]
        lab.slider.value = lab.slider.options[0]
        fine(lab)
    lab.picker.value = ()
    fine(lab, "no run is chosen")
    lab.picker.value = (runs[2],)  # one epoch, two exits
    for row, slider in ((fine(lab).by_epoch, lab.slider), (lab.by_window, lab.window)):
        assert row.children and slider not in row.children, (
            "a slider with one option cannot be drawn: the page would stay blank"
        )
    assert len(lab.matrix.children[0].data[0].z) == 2
    assert runs[5] not in [r for _, r in lab.picker.options] and runs[6] in [r for _, r in lab.picker.options]
    lab.picker.value = (runs[6],)
    assert fine(lab).slider.options == (1, 2, 3, 4, 5)
    assert "no learning gaps" in weights_lab.WeightsLab(runs[5]).line.value


def test_every_choice_of_runs_in_the_weights_lab(runs):
    lab, n = weights_lab.WeightsLab(), 0
    options = [r for _, r in lab.picker.options]
    for chosen in [*itertools.islice(itertools.combinations(options, 2), 0, None, 4), tuple(options)]:
        lab.picker.value = chosen
        assert "⚠" not in lab.line.value
        for control in (lab.of, lab.teacher, lab.degree, lab.window):
            values = [o[1] if isinstance(o, tuple) else o for o in control.options]
            for v in {values[0], values[-1]} if values else ():
                control.value = v
                n += 1
                assert "⚠" not in lab.line.value
        if lab.slider.options:
            lab.slider.value = lab.slider.options[0]
        assert "⚠" not in lab.line.value
    assert n > 20


def test_the_weights_lab_opens_with_a_finished_run(runs, monkeypatch):
    monkeypatch.setattr(weights_lab, "begun_runs", lambda: [Run(r.path) for r in runs[::-1]])
    assert [r.path for r in weights_lab.WeightsLab().picker.value] == [runs[2].path]


def test_runs_that_begin_and_go_on_are_found(runs, tmp_path):
    for lab in (weights_lab.WeightsLab(runs[6]), curves_lab.CurvesLab([runs[6]])):
        new = made(tmp_path, "mate", 2, seed=7 + len(lab.picker.options))
        h = runs[6].history
        pd.concat([h, h[h.epoch == h.epoch.max()].assign(epoch=h.epoch.max() + 1)]).to_csv(
            runs[6].path / "history.csv", index=False
        )
        lab.again.click()
        assert new in [r for _, r in fine(lab).picker.options] and lab.picker.value == (runs[6],)
        n = h.epoch.max() + 1
        assert lab.slider.options[-1] == n if hasattr(lab, "slider") else lab.made[1].epoch.max() == n


# ---------------------------------------------------------------- curves
def test_the_curves_lab_shows_what_the_functions_give(runs):
    lab = fine(curves_lab.CurvesLab(runs[:2]))
    t = compare.by_epoch({"a": [runs[0].history], "b": [runs[1].history]})
    assert np.allclose(lab.made[1]["mean"], t["mean"]) and np.allclose(
        lab.frame.children[0].data[0].y, t[(t.exit == 1) & (t.name == "a")]["mean"], atol=1e-4
    )
    assert set(lab.made[1].name) == set(weights_lab.named(runs[:2]))
    assert sorted(n.split(", ")[-1] for n in set(lab.made[1].name)) == ["epochs=12", "epochs=30"]
    lab.metric.value = "gap"
    assert np.allclose(
        lab.made[1][lab.made[1].name == lab.made[1].name.iloc[0]]["mean"],
        compare.by_epoch({"a": [runs[0].history]}, "gap")["mean"],
    )
    lab.panels.value = "a panel per run"
    assert len(lab.frame.children[0].data) == 8
    lab.split.value = "train"
    assert fine(lab, "was not logged").made is None and not lab.frame.children
    lab.metric.value = "top1"
    assert set(fine(lab).made[1]["mean"]) == {50.0}
    lab.seeds.value = False
    lab.view.value, lab.last.value = "stability", 5
    own = compare.stability({"a": [runs[0].history]}, 5)
    assert (
        np.allclose(lab.made[1].wobble[:4], own.wobble)
        and lab.metric.layout.display == "none"
        and lab.last.layout.display == ""
    )


def test_each_view_for_the_methods_that_have_it(runs):
    lab = curves_lab.CurvesLab(runs)

    def view(name, chosen, says=""):
        lab.picker.value, lab.view.value = (), name
        lab.picker.value = tuple(chosen)
        return fine(lab, says).made

    assert (
        np.allclose(
            view("temperature and confidence", [runs[0], runs[3]])[1].iloc[:, 0], 1.05 ** np.arange(1, 10)
        )
        and len(lab.frame.children[0].data) == 2
    )  # τ and its limit; an example keeps no outputs
    view("temperature and confidence", runs[:2], "only DBT")
    assert list(view("γ, learned loss weights", [runs[4]])[1].columns.get_level_values(1)) == [1, 2, 3, 4]
    lab.student.value = 3
    assert list(lab.made[1].columns.get_level_values(1)) == [3, 4]
    view("γ, learned loss weights", runs[:2], "none of these runs logged γ")
    got = view("against a hyperparameter", [runs[0], runs[2]])
    assert lab.swept.value in ("alpha", "epochs")
    lab.swept.value = "alpha"
    assert sorted(set(lab.made[1].x)) == [1.0, 3.0] and got
    view("against a hyperparameter", [runs[0]], "no number differs")
    view("beside the papers", [runs[0]], "choose another under")
    lab.instead.value = ("cifar100", "vgg16")
    assert (
        fine(lab).made[1].published[0] == 70.79
        and "as if they were cifar100" in lab.frame.children[0].layout.title.text
    )
    view("beside the papers", [runs[6]], "an unfinished run")
    view("stability", [runs[2]], "at least two epochs")
    lab.view.value, lab.picker.value = "stability", tuple(runs[:2])
    lab.which.value = "seeds_std"
    lab.seeds.value = False
    fine(lab, "several seeds")


def test_no_control_of_the_curves_lab_leads_into_a_traceback(runs):
    lab, n = curves_lab.CurvesLab(runs), 0
    for chosen in [(runs[2],), (runs[3],), (runs[6],), tuple(runs), ()]:
        lab.picker.value = chosen
        for name, controls in curves_lab.VIEWS.items():
            lab.view.value = name
            for c in controls:
                w = getattr(lab, c)
                values = (
                    [True, False]
                    if isinstance(w, ipywidgets.Checkbox)
                    else [2, 1000]
                    if isinstance(w, ipywidgets.BoundedIntText)
                    else [o[1] if isinstance(o, tuple) else o for o in w.options]
                )
                for v in {values[0], values[len(values) // 2], values[-1]}:
                    w.value = v
                    n += 1
                    assert not re.search(r"\w(Error|Exception|Iteration):", lab.line.value), (
                        name,
                        c,
                        v,
                        lab.line.value,
                    )
                    assert ("⚠" in lab.line.value) == (lab.made is None), (name, c, v)
    assert n > 90


def test_figures_and_tables_are_kept(runs, tmp_path):
    for lab in (weights_lab.WeightsLab(runs[0]), curves_lab.CurvesLab(runs[:2])):
        assert all("written" in said for view in keep_all(lab).values() for said in view)
    assert kept(tmp_path) == {"teachers.html", "teachers.csv", "curves.html", "curves.csv"}
    lab.picker.value = ()
    assert all("no figure to keep" in said for view in keep_all(lab).values() for said in view)


# ---------------------------------------------------------------- 300 epochs × 8 exits × 10 runs
def test_ten_long_runs_stay_fluid_and_send_little(tmp_path, monkeypatch):
    monkeypatch.setenv("MULTIEXIT_RUNS", str(tmp_path))
    first = made(tmp_path, "mate", 300, M=8)
    for s in range(1, 10):
        r = arms.example_run(tmp_path, "mate", s, [70.0] * 8, epochs=300)
        (r.path / "history.csv").write_bytes((first.path / "history.csv").read_bytes())
    sizes = []
    monkeypatch.setattr(
        ipywidgets.Widget,
        "_send",
        lambda self, msg, buffers=None: sizes.append(
            len(json.dumps(msg, default=str)) + sum(memoryview(b).nbytes for b in buffers or [])
        ),
    )

    def sent(w, v):
        sizes.clear()
        w.value = v
        return sum(sizes)

    lab = fine(weights_lab.WeightsLab(first))
    assert 0 < max(sent(lab.slider, e) for e in (1, 50, 100, 200, 250)) < 60_000
    sent(lab.picker, tuple(r for _, r in lab.picker.options))
    assert max(sent(lab.window, w) for w in (5, 21, 51)) < 700_000
    curves = fine(curves_lab.CurvesLab([Run(p) for p in sorted(tmp_path.iterdir()) if p.is_dir()]))
    assert max(sent(curves.seeds, s) for s in (False, True, False)) < 900_000
    assert len(curves.frame.children[0].data) == 80


def test_students_of_several_teachers_are_one_line(tmp_path):
    "Every seed has a teacher of its own; that does not make another arm."
    teachers = [arms.example_run(tmp_path, "baseline", seed, [70.0], model="resnet20") for seed in (0, 1)]
    students = [
        arms.example_run(tmp_path, "kd", seed, [60.0], model="resnet8", method_args=dict(teacher=t.id))
        for seed, t in enumerate(teachers)
    ]
    assert {n: len(rs) for n, rs in weights_lab.named(students, together=True).items()} == {
        "kd (teacher=resnet20)": 2
    }


def test_a_history_that_cannot_be_read_is_left_out(runs):
    "A stranger's link to a file of another form: the lab opens with the others."
    broken = runs[0].path/"history.csv"
    broken.write_text("precious")
    lab = fine(weights_lab.WeightsLab())
    listed = [run for _, run in lab.picker.options]
    assert listed and runs[0] not in listed
