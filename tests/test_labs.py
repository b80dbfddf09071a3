"""The labs train and exits without a browser: what buttons and sliders do."""

import json
import time
from types import SimpleNamespace

import ipywidgets as W
import layouts
import pytest
import torch
from lab_page import CHROMIUM, until
from project import ROOT
from tiny import TINY

from multiexit_nb import exits_lab, experiment, lab_figures, steer, train_figures, train_lab, widgets
from multiexit_nb.analysis import curves, thresholds
from multiexit_nb.core import InputError
from multiexit_nb.figures import figure
from multiexit_nb.methods import list_methods
from multiexit_nb.outputs import Outputs
from multiexit_nb.runs import Run, list_runs

QUICK = TINY | dict(epochs=3, lr=0.05)


def test_a_page_that_is_opened_later_gets_the_figure_as_it_is_now():
    "Reloaded, or served by voila: it asks for the state, where plotly leaves the figure as it began."
    a, b = figure("one"), figure("two")
    a.add_scatter(y=[1, 2]), b.add_bar(y=[5])
    state = lab_figures.redraw(lab_figures.figure_view(a), b).get_state()
    assert [t["type"] for t in state["_widget_data"]] == ["bar"] and state["_widget_layout"]["title"][
        "text"
    ] == "two"


def bars(*heights, **look):
    fig = figure("bars", xaxis_type="category")
    return fig.add_bar(x=["1", "2"], y=heights, **look).add_scatter(y=[1, 2])


def test_only_what_has_changed_is_sent_and_in_one_message():
    "The kinds of the axes with it: plotly.js forgets them where a trace gets new numbers."
    view, sent = lab_figures.figure_view(bars(1, 2)), []
    view.observe(lambda change: sent.append(change.new), ["_py2js_update", "_py2js_relayout"])
    lab_figures.redraw(view, bars(1, 2))
    assert not [m for m in sent if m]
    lab_figures.redraw(view, bars(1, 3))
    (message,) = [m for m in sent if m]
    assert list(message["style_data"]) == ["y"] and message["style_traces"] == [0]
    assert message["layout_data"] == {"xaxis.type": "category"}


def test_a_figure_keeps_nothing_of_the_one_before_it():
    "No range, no line, no note: an empty figure's axes, or an older run's flags, would be a wrong picture."
    before = bars(1, 2).update_xaxes(range=[0, 20], dtick=5).update_yaxes(type="log")
    before.add_vline(x=1).add_vline(x=2).add_annotation(text="1", x=1, y=1)
    view = lab_figures.figure_view(figure("empty", xaxis_range=[0, 9]))
    for fig in (before, bars(1, 2)):
        lab_figures.redraw(view, fig)
    fresh = lab_figures.figure_view(bars(1, 2)).layout.to_plotly_json()
    shown = {k: v for k, v in view.layout.to_plotly_json().items() if v not in ((), [])}
    assert shown == {k: v for k, v in fresh.items() if v not in ((), [])}


def test_what_is_gone_is_gone_and_what_a_person_did_stays():
    view = lab_figures.figure_view(bars(1, 2, text=["a", "b"]))
    view.plotly_relayout({"xaxis.range": [0, 1]})      # zoomed into
    view.plotly_restyle({"visible": "legendonly"}, 1)    # a click on its name
    lab_figures.redraw(view, bars(2, 3))
    assert view.data[0].text is None and list(view.data[0].y) == [2, 3]
    assert view.layout.xaxis.range == (0, 1) and view.data[1].visible == "legendonly"


def test_a_session_steps_holds_and_writes_down_what_is_moved():
    s = steer.Session(QUICK | dict(schedule="constant", epochs=30)).step()
    until(lambda: s.state == "paused")
    assert s.epoch == 1
    s.set("alpha", 1.5)
    s.set("lr", 0.01)
    until(lambda: len(s.run.events) == 2)
    assert s.run.events[["name", "old", "value"]].values.tolist() == [["alpha", 3.0, 1.5], ["lr", 0.05, 0.01]]
    assert s.training.method.alpha.tolist() == [1.5] * 4 and s.training.recipe.lr == 0.01
    with pytest.raises(InputError, match="no such|unknown"):
        s.set("alfa", 1)
    s.go()
    s.pause()
    until(lambda: s.state == "paused")
    where = s.position
    time.sleep(0.3)
    assert s.position == where and s.alive
    s.go()
    until(lambda: s.over)
    assert s.state == "finished" and s.run.finished and s.epoch == 30
    lr = s.history[s.history.metric == "lr"].value.tolist()
    assert lr == [0.05] + [0.01]*29


def test_what_is_moved_again_before_the_next_step_has_changed_once():
    "As a slider does that is moved by keyboard: on a slow machine each key is a change of its own."
    s = steer.Session(QUICK)
    for value in (3.1, 3.2, 3.3):
        s.set("alpha", value)
    s.set("temperature", 2.0)
    s.set("temperature", 3.0)  # where it was: nothing has happened
    assert s.run.events[["name", "old", "value"]].values.tolist() == [["alpha", 3.0, 3.3]]
    s.step().wait_for("paused")
    s.set("alpha", 3.0)
    until(lambda: len(s.run.events) == 2)
    assert s.run.events.value.tolist() == [3.3, 3.0]
    s.leave()


def test_a_session_goes_through_all_phases():
    s = steer.Session(QUICK | dict(method="imta", epochs=2, method_args={"stage2_epochs": 1}))
    assert s.training.total == 3 and "of 3" in s.status()
    s.go()
    until(lambda: s.over)
    assert s.state == "finished" and s.epoch == 3 and s.run.finished


def test_stop_within_an_epoch_drops_it_and_finishes_the_run():
    s = steer.Session(QUICK).step()
    until(lambda: s.state == "paused")
    s.go()
    until(lambda: s.images > 0 or s.epoch > 1)
    s.pause()
    until(lambda: s.state == "paused")
    epoch = s.epoch
    s.stop()
    until(lambda: s.over)
    assert s.run.result["last_epoch"] == epoch and len(s.history.epoch.unique()) == epoch
    assert s.run.steered == f"stopped at epoch {epoch} of 3" and "⚑ stopped" in widgets.run_text(s.run)


def test_an_unfinished_run_goes_on_with_what_was_moved():
    s = steer.Session(QUICK).step()
    until(lambda: s.state == "paused")
    s.set("temperature", 2.0)
    until(lambda: len(s.run.events) == 1)
    s.leave()  # as when the kernel is closed
    until(lambda: not s.alive)
    assert not s.run.finished and [r.id for r in train_lab.unfinished_runs()] == [s.run.id]
    again = steer.Session(dict(resume=s.run.id))
    assert again.epoch == 1 and again.training.method.temperature == 2.0
    again.go()
    until(lambda: again.over)
    assert again.state == "finished" and again.run.result["last_epoch"] == 3


def test_a_fork_takes_over_weights_momentum_and_epoch():
    s = steer.Session(QUICK).step()
    s.wait_for("paused")
    f = s.fork(dict(method="eed", preset="default", method_args={}))
    assert f.epoch == 1 and all(
        torch.equal(a, b)
        for a, b in zip(f.training.net.state_dict().values(), s.training.net.state_dict().values())
    )
    ours, theirs = (
        x.training.optimizer.optimizer.state[next(x.training.net.parameters())]["momentum_buffer"]
        for x in (f, s)
    )
    assert torch.equal(ours, theirs) and ours.abs().sum() > 0
    assert f.run.events.name.tolist() == ["fork"] and f.run.events.old.tolist() == [s.run.id]
    assert f.run.steered == f"forked at epoch 1 from {s.run.id}" and f.run.id in [
        r.id for r in train_lab.unfinished_runs()
    ]
    with pytest.raises(InputError, match="more epochs"):
        s.fork(dict(epochs=1))
    s.leave()


def test_both_branches_of_a_fork_go_on_alike():
    "Same lr (moved by hand), same batches, the parent goes on: only the method can make a difference."
    s = steer.Session(QUICK | dict(epochs=4)).step()
    s.wait_for("paused")
    s.set("lr", 0.02)
    until(lambda: len(s.run.events) == 1)
    same, other = s.fork({}), s.fork(dict(method="branchynet", preset="default", method_args={}))
    for x in (s, same, other):
        x.go()
    for x in (s, same, other):
        x.wait_for("finished")

    def late(x, metric):
        return x.history[(x.history.metric == metric) & (x.history.epoch > 1)].value.tolist()

    losses = [m for m in s.history.metric.unique() if m.startswith("loss/")]
    assert all(late(s, m) == late(same, m) for m in ("lr", *losses)) and len(late(s, "lr")) == 3
    assert late(s, "lr") == late(other, "lr") and other.run.finished


def on_digits(lab):
    "The lab `train` with the smallest data set chosen: an epoch takes a fraction of a second."
    lab.setup.dataset.value = "digits"
    return lab


def test_the_train_lab_by_its_buttons():
    lab = on_digits(train_lab.TrainLab())
    lab.setup.epochs.value, lab.setup.batch_size.value, lab.setup.images_per_class.value = 4, 128, 60
    assert (
        lab.pause.disabled
        and lab.stop.disabled
        and "nothing has been started" in lab.pause.tooltip
        and "CPU" in lab.status.value
    )
    lab.setup.dataset.value = "no-such-data"
    said = []
    lab.status.observe(lambda change: said.append(change.new), "value")
    lab.start.click()
    assert said[0] == "starting …"  # at once; reading data takes longer
    until(lambda: "no-such-data" in lab.line.value and not lab.opening)
    assert not lab.sessions and not lab.start.disabled
    lab.setup.dataset.value = "digits"
    assert not lab.line.value  # the line goes with its cause
    lab.step.click()
    until(lambda: lab.sessions and lab.session.state == "paused" and len(lab.inner.data) == 2)
    assert not lab.fork.disabled and [len(t.x) for t in lab.accuracy.data] == [1] * 5
    assert [t.type for t in lab.inner.data] == ["heatmap", "scatter"] and lab.which.value == "weights"
    lab.sliders["alpha"].value = 1.0
    until(lambda: "α 3 → 1" in lab.flags.value)
    until(lambda: [(a.text, a.y) for a in lab.accuracy.layout.annotations] == [("1", 1)])  # above the curves
    lab.setup.method.value = "dbt"
    lab.fork.click()
    until(lambda: len(lab.sessions) == 2 and all(s.over for s in lab.sessions), 60)
    until(lambda: lab.status.value.count("on test, exits 1 … 4") == 2)
    assert not lab.line.value and {t.line.dash for t in lab.accuracy.data} == {"solid", "dash"}
    assert [t.x[0] for t in lab.accuracy.data] == [1] * 10  # both go on from the first epoch
    lab.new.click()
    assert lab.bar.value == 0 and not lab.start.disabled and not lab.flags.value


def test_what_is_moved_is_told_with_the_next_step(monkeypatch):
    "However short the time since the figures were drawn."
    monkeypatch.setattr(train_lab, "time", SimpleNamespace(monotonic=lambda: 0.0))
    lab = on_digits(train_lab.TrainLab())
    lab.setup.epochs.value, lab.setup.images_per_class.value = 500, 14
    lab.start.click()
    until(lambda: lab.sessions and lab.session.epoch)
    lab.sliders["alpha"].value = 1.0
    until(lambda: "α 3 → 1" in lab.flags.value)
    assert lab.session.state == "running"
    lab.session.leave()
    until(lambda: not lab.session.alive)


def test_ticks_of_the_losses_can_be_read(finished_run):
    "Powers of ten, or twos and fives where there is only one of them; epochs are whole."
    history = finished_run.history
    loss = history.metric.str.startswith("loss/")
    for span, expected in ((1000, 1), (4, "D2")):
        history.loc[loss, "value"] = [1.0, *[span]*(loss.sum() - 1)]
        for fig in (train_figures.plot_losses(history), curves.plot_losses(history)):
            assert (fig.layout.yaxis.type, fig.layout.yaxis.dtick) == ("log", expected)
        assert train_figures.plot_losses(history).layout.xaxis.dtick == 1


def test_what_was_trained_is_opened_in_exits_and_a_finished_run_stands_behind(finished_run):
    lab = on_digits(train_lab.TrainLab())
    assert lab.open.disabled and "no training is through" in lab.open.tooltip
    lab.setup.epochs.value, lab.setup.images_per_class.value = 1, 14
    lab.beside.value = lab.beside.options[1][1]
    lab.start.click()
    until(lambda: lab.sessions and lab.session.over and not lab.open.disabled)
    behind = [t for t in lab.accuracy.data if t.legendgroup == "beside"]
    expected = finished_run.history.query("metric == 'top1' and split == 'val'")
    assert [list(t.y) for t in behind] == [g.value.tolist() for _, g in expected.groupby("exit")]
    lab.open.click()
    assert "opening" in lab.status.value
    until(lambda: isinstance(lab.children[-1], exits_lab.ExitsLab) and not lab.open.disabled)
    assert lab.children[-1].picker.value == lab.session.run and not lab.line.value


def test_points_within_an_epoch():
    "The training accuracy so far, before the first epoch is through."
    lab = train_lab.TrainLab()
    session = steer.Session(QUICK, lambda s: s.images and s.pause())
    assert session.so_far() is None
    session.go()
    session.wait_for("paused")
    position, top1 = session.so_far()
    assert session.epoch == 0 and 0 < position < 1 and len(top1) == 4
    lab.sessions = [session]
    lab.draw(force=True)
    assert (
        [t.name for t in lab.accuracy.data] == ["training, so far"]
        and "epoch 0." in lab.status.value
        and "left" in lab.status.value
    )
    session.leave()


def test_the_train_labs_form_begins_as_the_notebook_train_and_starts_what_it_shows(monkeypatch):
    lab, begun = train_lab.TrainLab(), []
    p = experiment.prepare({}, set()).parameters
    shown = [n for n, q in experiment.PARAMETERS.items() if isinstance(vars(lab.setup).get(n), W.DOMWidget)]
    assert {"dataset", "batch_size", "epochs", "lr"} <= {*shown}
    assert {n: vars(lab.setup)[n].value for n in shown} == {n: p[n] for n in shown}
    assert "width 8" in lab.status.value and "schedule cosine" in lab.status.value
    monkeypatch.setattr(lab, "begin", lambda words, make, one: begun.append(make))
    monkeypatch.setattr(train_lab, "Session", lambda p, tell: experiment.prepare(p, set(p)).parameters)
    lab.start.click()
    assert begun[0]() == p


def test_what_was_not_touched_in_the_train_labs_form_follows_data_set_network_and_preset():
    lab = train_lab.TrainLab()
    s = lab.setup
    s.lr.value = 0.3

    def now():
        return s.epochs.value, s.batch_size.value, s.lr.value

    def agrees():
        p = experiment.settled(s.parameters)
        return now() == (p["epochs"], p["batch_size"], p["lr"])

    assert now() == (30, 64, 0.3) and agrees()
    s.dataset.value = "digits"
    assert now() == (30, 128, 0.3) and agrees()
    s.method.value = "eed"
    s.hyper.choice.value = "paper"  # it means a schedule
    assert now() == (200, 128, 0.3) and agrees()
    s.dataset.value = "digit_pears"
    assert "Did you mean &#x27;digit_pairs&#x27;" in lab.line.value and now() == (200, 128, 0.3)
    s.hyper.choice.value = "default"
    assert "digit_pears" in lab.line.value
    s.dataset.value = "digit_pairs"
    assert now() == (30, 64, 0.3) and not lab.line.value and s.own == {"lr": 0.3}


def test_files_of_ones_own_leave_the_train_labs_form_as_it_is(tmp_path):
    lab = train_lab.TrainLab()
    lab.setup.hyper.fields["alpha"].value = "1.5"
    (tmp_path/"nothing.py").write_text("")
    lab.plugins.value = str(tmp_path/"nothing.py")
    assert "known here now" in lab.line.value and lab.setup.method_parameters["method_args"] == {"alpha": 1.5}


def test_every_button_that_is_grey_says_why():
    lab = train_lab.TrainLab()
    buttons = (lab.start, lab.pause, lab.step, lab.stop, lab.fork, lab.new)
    assert [b.disabled for b in buttons] == [False, True, False, True, True, False]
    assert all(b.tooltip.startswith("not now: ") == b.disabled for b in buttons)


@pytest.mark.parametrize("method", list_methods())
def test_controls_give_what_their_presets_mean(method):
    c = widgets.Controls(method)
    for preset in c.choice.options:
        c.choice.value = preset
        assert c.value == {} and not c.line.value
    assert all(w.tooltip for w in c.fields.values())


def test_a_bad_value_is_answered_in_a_line():
    c = widgets.Controls("eed")
    c.fields["teacher_exits"].value = "[1, x]"
    assert "teacher_exits" in c.line.value
    c.fields["teacher_exits"].value = "[1, 2]"
    assert not c.line.value and c.value == {"teacher_exits": [1, 2]}


def test_long_work_can_be_cancelled():
    job = widgets.Job()

    def work(j):
        for i in range(1000):
            j.report(i, 1000, "at it")
            time.sleep(0.01)

    job.start(work)
    until(lambda: job.bar.value > 0)
    with pytest.raises(InputError):
        job.start(work)
    job.button.click()
    job.wait(5)
    assert not job.running and job.line.value == "cancelled" and job.bar.value < 1


def test_a_figure_and_its_table_are_written(finished_run):
    fig = figure("f")
    row = widgets.save_row(fig, list_runs, "it")
    for i in (3, 4):
        row.children[i].click()
    assert sorted(f.suffix for f in (finished_run.path.parent / "exports").iterdir()) == [".csv", ".html"]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_a_kept_picture_fits_a_paper(finished_run):
    "At least 1,900 pixels wide: 16 cm at 300 dpi."
    from PIL import Image

    fig = figure("f")
    fig.add_scatter(y=[1, 2])
    with Image.open(lab_figures.export_file(lab_figures.figure_view(fig), None, "it", "png")) as image:
        assert image.width >= 1900 and image.height >= 900


def test_the_exits_lab_by_its_controls(finished_run):
    lab = exits_lab.ExitsLab()
    M = lab.run.leaving.num_exits
    lab.slider.value = 0.0
    assert lab.shares.data[0].y[0] == 100 and lab.now[lab.run.name]["cost"] == float(lab.run.leaving.cost[0])
    lab.slider.value = 1.0
    assert lab.shares.data[0].y[-1] > 50
    lab.slider.value = 0.6
    v = lab.run.leaving.values
    expected = [next((m for m in range(M - 1) if v[m, i] >= 0.6), M - 1) + 1 for i in range(v.shape[1])]
    assert lab.now[lab.run.name]["exits"].tolist() == expected
    lab.mode.value = "budget"
    costs = []
    for x in (0.4, 0.7, 0.95):
        lab.slider.value = x
        costs.append(lab.now[lab.run.name]["cost"])
    assert costs == sorted(costs) and not lab.line.value
    for kind in lab.kind.options:
        lab.kind.value = kind
        lab.next.click()
        lab.back.click()
        lab.back.click()
        assert not lab.line.value
    lab.kind.value = "wrong at the last exit"
    assert lab.rows and not lab.run.leaving.right[-1, lab.rows].any()
    for view in lab.choose.options:
        lab.choose.value = view
        for criterion in thresholds.CRITERIA:
            lab.criterion.value = criterion
            assert not lab.line.value
    assert "data:image/png" in lab.strips.value and lab.near.value.count("<img") == 8


def test_overthinking_and_gained_are_what_they_say():
    logits = (
        torch.eye(2)[torch.tensor([[0, 0, 1, 1], [1, 0, 0, 1]])] * 5
    )  # answers of two exits about four images
    x = thresholds.Leaving(Outputs(logits, torch.zeros(4, dtype=torch.long), "test"), [1, 2])
    rows = [x.rows(k, torch.tensor([1, 2, 2, 1])) for k in thresholds.kinds_of_images(2)]
    assert rows == [[0, 1, 2, 3], [0], [2], [0, 3], [0, 3], [1, 2]]


def test_threshold_and_budget_are_one_place(finished_run):
    "Going from the one to the other keeps the cost, not the number; another run keeps the slider."
    lab = exits_lab.ExitsLab()
    lab.slider.value = 0.5
    before = lab.now[lab.run.name]["cost"]
    lab.mode.value = "budget"
    full = float(lab.run.leaving.cost[-1])
    assert (
        abs(lab.slider.value - before / full) < 0.006 and lab.slider.description == "share of the full cost"
    )
    lab.mode.value = "threshold"
    assert abs(lab.now[lab.run.name]["cost"] - before) < 0.1 * full
    lab.slider.value = 0.33
    lab.picker.value = lab.picker.options[-1][1]
    assert lab.slider.value == 0.33 and not lab.line.value


def test_the_exits_lab_draws_the_true_class_of_every_image(finished_run):
    "As drawn: a category axis, and the bar of the true class."
    lab = exits_lab.ExitsLab()
    lab.choose.value = "one image"
    for number in (1, 2, 30, 7):
        lab.at.value = number
        truth = lab.run.names[int(lab.run.labels[lab.rows[number - 1]])]
        state = lab.image.get_state()
        assert (
            state["_widget_layout"]["xaxis"]["type"] == "category"
            and state["_widget_layout"]["autotypenumbers"] == "strict"
        )
        assert (
            all(f"✓ {truth}" in t["x"] for t in state["_widget_data"]) and f"{number} of" in lab.picture.value
        )


def test_an_image_leaves_where_the_slider_says_also_when_it_is_opened_later(finished_run):
    "The slider was moved while another view was shown."
    lab = exits_lab.ExitsLab()
    lab.choose.value = "one image"
    for threshold, exit in ((0.0, 1), (1.0, lab.run.leaving.num_exits)):
        lab.choose.value = "cost and accuracy"
        lab.slider.value = threshold
        lab.choose.value = "one image"
        assert f"exit {exit} says" in lab.picture.value


def test_a_second_run_stands_on_the_same_axes(tiny_run):
    for method in ("mate", "branchynet"):
        tiny_run(method=method)
    lab = exits_lab.ExitsLab()
    lab.second.value = lab.second.options[2][1]
    assert (
        len(lab.shares.data) == 2
        and len(lab.tradeoff.data) == 6
        and lab.summary.value.count("right") == 2
        and not lab.line.value
    )


def test_demo_run_is_the_newest_finished_one(finished_run):
    assert isinstance(widgets.demo_run(), Run) and " · digits · tiny · " in widgets.run_text(
        widgets.demo_run()
    )
    assert widgets.run_picker().value == widgets.demo_run() and widgets.run_picker(several=True).value == (
        widgets.demo_run(),
    )


def test_plotly_travels_once_and_a_figure_asks_for_what_it_is(monkeypatch):
    "A figure that carried plotly.js itself was ready too late on a busy machine, and stayed white."
    first, second = lab_figures.figure_view(figure("one")), lab_figures.figure_view(figure("two"))
    assert len(first.get_state()["_esm"]) < 5000 and first._plotly is second._plotly
    lab_figures.redraw(first, figure("now").add_bar(y=[5]))
    sent = []
    monkeypatch.setattr(type(first), "_send", lambda self, msg, buffers=None: sent.append(msg))
    first._handle_custom_msg("now", [])
    assert [m["method"] for m in sent] == ["update", "custom"]
    state = sent[0]["state"]
    assert state["_widget_layout"]["title"]["text"] == "now" and len(state["_widget_data"]) == 1


def test_no_page_of_a_lab_speaks_of_a_cell_that_voila_hides():
    "How a cell is run is said in the cell: voila shows the prose, and no code."
    for path in sorted((ROOT/"nbs"/"labs").glob("*.ipynb")):
        cells = json.loads(path.read_text())["cells"]
        prose = "".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
        code = "".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
        assert "Shift + Enter" not in prose and "Shift + Enter" in code, path.name


def test_a_training_of_few_steps_is_doubted_before_it_is_started_and_when_it_is():
    lab = on_digits(train_lab.TrainLab())
    assert lab.doubt.value == ""
    lab.setup.batch_size.value, lab.setup.epochs.value, lab.setup.images_per_class.value = 64, 2, 14
    assert "Only 4 steps in all" in lab.doubt.value
    lab.setup.images_per_class.value = 0      # how many images there are is not known yet
    assert lab.doubt.value == ""
    lab.setup.batch_size.value, lab.setup.epochs.value = 1024, 3
    lab.step.click()
    until(lambda: lab.sessions and lab.session.state == "paused")
    assert "Only 3 steps in all" in lab.doubt.value and not lab.line.value
    lab.session.leave()


def test_a_doubt_about_own_images_needs_no_training(tmp_path):
    layouts.imagefolder(tmp_path, ("train", "test"))
    lab = train_lab.TrainLab()
    lab.setup.dataset.value = f"imagefolder:{tmp_path/'set'}"
    assert "too few to learn much" in lab.doubt.value
    lab.setup.dataset.value = "imagefolder:nowhere"
    assert "⚠" in lab.line.value
