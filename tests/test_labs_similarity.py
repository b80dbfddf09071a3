"The labs rdm and confusion without a browser: what controls do, no traceback, little is sent."

import itertools
import json
import re
import time

import ipywidgets
import numpy as np
import pytest
import torch
from lab_page import keep_all, kept, until
from tiny import TINY

from multiexit_nb import confusion_lab, rdm_lab, widgets
from multiexit_nb.analysis import agreement, rdm
from multiexit_nb.core import InputError, MultiExitOutput
from multiexit_nb.figures import exit_colours


@pytest.fixture
def runs(tiny_run):
    "Two finished runs."
    return [tiny_run(method=method, lr=0.05) for method in ("mate", "branchynet")]


def settled(lab, says=""):
    "Wait until the lab is through; an answer is one line, and never of an unforeseen kind."
    until(lambda: not lab.job.running and not lab.busy)
    text = lab.line.value + lab.job.line.value
    assert not re.search(r"\w(Error|Exception|Warning):", text), text
    assert says in text if says else "⚠" not in text, text
    return lab


@pytest.fixture
def small(runs, monkeypatch):
    "The rdm lab with three images of three classes each."
    monkeypatch.setattr(rdm_lab, "MOST_IMAGES", 60)
    lab = rdm_lab.RdmLab()
    lab.classes.value = (1, 4, 7)
    lab.per_class.value = 3
    return settled(lab)


@pytest.mark.parametrize("kind", [rdm_lab.RdmLab, confusion_lab.ConfusionLab])
def test_a_lab_opens_with_a_run_made_on_the_spot(kind, monkeypatch):
    for k in ("epochs", "images_per_class"):
        monkeypatch.setitem(widgets._DEMO, k, TINY[k])
    lab = kind()
    assert [r.parameters["dataset"] for r in widgets.finished_runs()] == ["digits"]
    assert "application/vnd.jupyter.widget-view+json" in lab._repr_mimebundle_()
    figures = [
        w
        for w in (getattr(lab, n, None) for n in ("pictures", "similar", "matrix", "square"))
        if hasattr(w, "layout") and hasattr(w, "data")
    ]
    for view in lab.choose.options:
        lab.choose.value = view
    assert len(figures) == 2 and all(len(f.data) for f in figures)


def test_the_rdm_lab_shows_what_the_functions_give(runs):
    lab = settled(rdm_lab.RdmLab())
    run, M = lab.first.value, lab.exits[0].value
    rows = rdm.balanced(lab.tested[run.id].labels, lab.per_class.value)
    out = rdm.representations(run, rows)
    d = rdm.rdm(rdm.patterns(out, M, "probabilities"), lab.tested[run.id].labels[rows])
    assert list(lab.shown) == [f"exit {M}, before", f"exit {M}, after"] and np.allclose(
        lab.shown[f"exit {M}, after"], d, atol=1e-5
    )
    assert list(lab.drawn.rows) == rows.tolist() and len(rows) >= 300
    assert lab.matrix.shape == (2 * M, 2 * M) and lab.colours == [exit_colours(M)[-1]] * 2
    b = rdm.blocks(d)
    assert (
        f"two images of one class {b['within']:.2g} apart, of different classes {b['between']:.2g}"
        in lab.blocks.value
    )
    assert lab.pictures.data[1].z.tolist() == rdm.plot_rdm({"a": d}).data[0].z.tolist()
    assert lab.table().shape == (2 * len(rows), len(rows))


def test_two_runs_stand_below_each_other_in_one_order(small):
    lab = small
    lab.order.value = "by similarity"
    lab.second.value = lab.second.options[2][1]
    settled(lab)
    assert (
        len(lab.pictures.data) == 4
        and len(lab.shown) == 4
        and len(lab.matrix) == 16
        and len({tuple(d.index) for d in lab.shown.values()}) == 1
    )
    methods = [w.value.parameters["method"] for w in (lab.first, lab.second)]
    assert [t.split(",")[0] for t in lab.shown] == [methods[0]] * 2 + [methods[1]] * 2 and set(methods) == {
        "mate",
        "branchynet",
    }
    lab.second.value = lab.first.value  # a run beside itself: at another exit
    settled(lab)
    assert (
        list(lab.shown) == ["exit 4, before", "exit 4, after", "exit 1, before", "exit 1, after"]
        and len(lab.matrix) == 8
    )
    lab.exits[1].value = 4
    settled(lab, "choose another exit")
    lab.second.value = ""
    settled(lab)
    assert len(lab.pictures.data) == 2 and lab.exits[1].disabled


def test_pointing_at_a_cell_shows_its_two_images(small):
    from plotly.callbacks import InputDeviceState, Points

    heat, d = small.pictures.data[0], next(iter(small.shown.values()))
    for f in heat._hover_callbacks:
        f(heat, Points([[1, 5]], [5], [1], "", 0), InputDeviceState())
    images = [int(d.index[i][1]) for i in (1, 5)]
    assert all(f'alt="image {i}:' in small.pair.value for i in images)
    assert small.pair.value.count("<img") == 2
    assert f"{d.iloc[1, 5]:.3g}</b> apart" in small.pair.value


def test_a_button_that_is_grey_says_why(small):
    assert small.again.disabled and "not now: what is shown is what is wanted" == small.again.tooltip


def test_the_draw_of_images_is_what_its_controls_say(small):
    lab = small
    labels = lab.tested[lab.first.value.id].labels
    assert labels[list(lab.drawn.rows)].tolist() == [1] * 3 + [4] * 3 + [7] * 3
    before = lab.drawn.rows
    lab.seed.value = 1
    assert settled(lab).drawn.rows != before
    lab.ten.click()
    settled(lab)
    lab.per_class.value = 10_000  # as many as there are
    settled(lab)
    assert len(lab.drawn.rows) == 10 * lab.per_class.max <= rdm_lab.MOST_IMAGES
    lab.classes.value = ()
    settled(lab, "no class is chosen")
    lab.classes.value = (3,)
    lab.per_class.value = 1
    settled(lab, "too few to compare")
    lab.per_class.value = 5
    assert "take two classes" in settled(lab).blocks.value
    lab.all.click()
    assert len(set(labels[list(settled(lab).drawn.rows)])) == 10


def combinations(lab, names):
    for values in itertools.product(
        *([o[1] if isinstance(o, tuple) else o for o in getattr(lab, n).options] for n in names)
    ):
        for n, v in zip(names, values, strict=True):
            getattr(lab, n).value = v
        yield dict(zip(names, values, strict=True))


def check_combinations(lab, names):
    n = 0
    for now in combinations(lab, names):
        settled(
            lab,
            "needs values ≥ 0" if now.get("distance") == "poisson" and now.get("after") == "logits" else "",
        )
        n += 1
    return n


def test_what_is_wanted_while_something_else_fails_is_computed(small, monkeypatch):
    compute, first, second = small.compute, *small.distance.options[:2]
    def fails(query, tell):
        if query.distance == second:
            small.distance.value = first     # chosen before the error is there
            raise InputError("not this one")
        compute(query, tell)
    small.distance.value = first
    settled(small)
    monkeypatch.setattr(small, "compute", fails)
    small.distance.value = second
    assert settled(small).drawn.distance == first and not small.busy


def test_no_control_of_the_rdm_lab_leads_into_a_traceback(small):
    assert check_combinations(small, ["distance", "after"]) == 10
    small.after.value = "probabilities"
    assert check_combinations(small, ["by", "distance"]) == 10
    assert check_combinations(small, ["measure"]) == 7 and check_combinations(small, ["order"]) == 2


@pytest.mark.slow
def test_all_combinations_of_the_rdm_lab(small):
    small.second.value = small.second.options[2][1]
    assert check_combinations(small, ["distance", "after", "by", "order"]) == 40
    small.distance.value = "correlation"
    assert check_combinations(small, ["after", "by", "order", "measure"]) == 56


def test_the_epoch_slider_asks_the_networks_that_were_kept(tiny_run):
    "It is there where all chosen runs kept some; what is drawn is what the network of that epoch says."
    kept, plain = tiny_run(snapshots=1, epochs=3), tiny_run()
    lab = settled(rdm_lab.RdmLab(kept))
    lab.per_class.value = 2
    assert [e for _, e in lab.epoch.options] == [1, 2, 3, 0] and lab.epoch.value == 0
    assert not lab.epoch.layout.display
    drawn = {}
    for epoch in (1, 3, 0):
        lab.epoch.value = epoch
        shown = settled(lab).shown
        out = rdm.representations(kept, lab.drawn.rows, epoch=epoch)
        labels = lab.tested[kept.id].labels[list(lab.drawn.rows)]
        expected = rdm.rdm(rdm.patterns(out, 4), labels)
        drawn[epoch] = shown["exit 4, before"].to_numpy()
        assert np.allclose(drawn[epoch], expected)
    assert not np.allclose(drawn[1], drawn[3])
    assert "epoch" not in lab.pictures.layout.title.text
    lab.second.value = plain
    assert settled(lab).epoch.layout.display == "none" and lab.epoch.value == 0


def test_moving_on_while_it_computes_and_cancelling(runs, monkeypatch):
    lab = settled(rdm_lab.RdmLab())
    slow = []

    def representations(run, rows, split, tell, epoch, original=rdm.representations):
        for i in range(200):
            tell(i, 200)
            slow.append(i)
            time.sleep(0.01)
        return original(run, rows, split)

    monkeypatch.setattr(rdm, "representations", representations)
    lab.seed.value = 5
    until(lambda: len(slow) > 3)
    assert "asking the network" in lab.job.line.value and not lab.job.button.disabled
    lab.seed.value = 6  # begins anew
    until(lambda: slow.count(0) == 2)
    lab.job.button.click()
    until(lambda: not lab.job.running)
    assert lab.job.line.value == "cancelled" and not lab.again.disabled and lab.seed.value == 6
    monkeypatch.undo()
    lab.again.click()
    settled(lab)
    assert (
        list(lab.drawn.rows)
        == rdm.balanced(lab.tested[lab.first.value.id].labels, lab.per_class.value, seed=6).tolist()
    )


def test_runs_tested_on_other_images_are_not_compared(small, monkeypatch):
    other = small.second.options[2][1]
    fake = widgets.RunWithImages(other)
    fake.labels = fake.labels[::-1]
    monkeypatch.setattr(rdm_lab, "RunWithImages", lambda run: fake)
    small.second.value = other
    settled(small, "tested on different images")
    assert small.second.value == "" and small.exits[1].disabled


def test_figures_and_tables_are_kept(small, runs):
    assert all("written" in said for view in keep_all(small).values() for said in view)
    assert kept(runs[0].path.parent) == {"rdm.html", "rdm.csv"}


# ---------------------------------------------------------------- confusion
def test_the_confusion_lab_shows_the_images_of_a_cell(runs):
    lab = confusion_lab.ConfusionLab()
    said, y = lab.sides()[0][1], lab.tested.labels
    (i, j, n), *_ = agreement.mistakes(agreement.confusion(said, y, 10))
    assert (lab.truth.value, lab.answer.value) == (
        i,
        j,
    ) == lab.common.value and f"{n} image" in lab.where.value
    lab.choose_cell(3, 3)  # what a click does
    assert lab.rows == np.flatnonzero((y == 3) & (said == 3)).tolist() and lab.truth.value == 3
    lab.truth.value, lab.answer.value = 8, 1
    assert lab.rows == np.flatnonzero((y == 8) & (said == 1)).tolist() and lab.strip.value.count(
        "<img"
    ) == min(12, len(lab.rows))
    for cell in agreement.CELLS:
        lab.cell.value = cell
        assert lab.rows == lab.cells[cell].tolist() and not lab.line.value
    lab.cell.value = max(lab.cells, key=lambda c: len(lab.cells[c]))
    assert lab.back.disabled and "1 to 12 shown" in lab.where.value
    lab.next.click()
    assert "13 to 24 shown" in lab.where.value and not lab.back.disabled
    for _ in range(100):
        lab.next.click()
    assert lab.next.disabled and f"to {len(lab.rows)} shown" in lab.where.value
    lab.choose.value = "two exits"
    assert "is right about" in lab.sentence.value


def test_a_view_that_was_hidden_shows_what_is_chosen_by_now(runs):
    "Nothing is drawn that cannot be seen, and nothing old is seen."
    lab, figures = confusion_lab.ConfusionLab(), ["matrix", "square"]
    titles = {n: [] for n in figures}
    for n in figures:
        getattr(lab, n).layout.on_change(lambda layout, *new, n=n: titles[n].append(1), "title", "xaxis")
    lab.exit.value = 2
    assert titles["matrix"] and not titles["square"]
    lab.exit.value = 3
    lab.choose.value = "two exits"
    assert lab.square.layout.xaxis.title.text == "exit 3" and "Exit 3" in lab.sentence.value
    drawn = len(titles["matrix"])
    lab.exit.value, lab.other.value = 1, 2
    assert (lab.square.layout.xaxis.title.text, lab.square.layout.yaxis.title.text) == ("exit 1", "exit 2")
    assert len(titles["matrix"]) == drawn
    lab.choose.value = "mistakes"
    assert lab.matrix.layout.title.text.startswith("Exit 1")


def test_all_exits_are_compared_as_they_are_by_now(small):
    "The matrix of similarities is drawn when it is looked at, also where it was computed before."
    assert not small.similar.data
    small.measure.value = "cosine"
    settled(small)
    small.choose.value = "all exits"
    assert "(cosine)" in small.similar.layout.title.text and len(small.similar.data[0].z) == 8
    small.measure.value = "spearman"
    settled(small)
    assert "(spearman)" in small.similar.layout.title.text


def test_clicks_reach_their_cells(runs):
    "As the browser sends them: points with the place in the matrix."
    lab = confusion_lab.ConfusionLab()
    from plotly.callbacks import InputDeviceState, Points

    def click(view, row, col):
        for f in view.data[0]._click_callbacks:
            f(view.data[0], Points([[row, col]], [col], [row], "", 0), InputDeviceState())

    lab.exit.value = 2
    click(lab.matrix, 4, 4)
    assert (lab.truth.value, lab.answer.value) == (4, 4) and (lab.tested.labels[lab.rows] == 4).all()
    lab.picker.value = lab.picker.options[1][1]  # another run: the figures are the same ones
    click(lab.square, 1, 0)
    assert (
        lab.cell.value == "only the first right"
        and lab.rows == lab.cells["only the first right"].tolist()
        and not lab.line.value
    )


def test_no_control_of_the_confusion_lab_leads_into_a_traceback(runs):
    lab, n = confusion_lab.ConfusionLab(), 0
    for run in lab.picker.options:
        lab.picker.value = run[1]
        assert not lab.line.value
    for _ in combinations(lab, ["exit", "other"]):
        n += 1
        assert not lab.line.value
    for now in combinations(lab, ["unit", "grouping"]):
        for lab.mistakes.value in (True, False):
            assert not lab.line.value, now
    for kind in ("common", "truth", "answer", "cell"):
        for _ in combinations(lab, [kind]):
            assert not lab.line.value
    assert n == 16 and set(lab.matrix.layout.to_plotly_json()["xaxis"]["ticktext"]) == set("0123456789")


# ---------------------------------------------------------------- 1,000 classes × 10,000 images
@pytest.fixture
def sent(monkeypatch):
    "Bytes that widgets send."
    sizes = []

    def note(self, msg, buffers=None):
        sizes.append(len(json.dumps(msg, default=str)) + sum(memoryview(b).nbytes for b in buffers or []))

    monkeypatch.setattr(ipywidgets.Widget, "_send", note)
    return sizes


class Few:
    "Stands for pictures: 2 KB each."

    def load(self, rows):
        pass

    def html(self, row, size, text):
        return "x" * 2000 + text


def test_confusion_of_a_thousand_classes_sends_little(runs, sent):
    lab, rng = confusion_lab.ConfusionLab(), np.random.default_rng(0)
    labels, lab.pictures = rng.integers(0, 1000, 10_000), Few()
    lab.tested.labels, lab.tested.names = labels, [f"class {k}" for k in range(1000)]
    answers = np.stack(
        [
            np.where(rng.random(10_000) < s, labels, rng.integers(0, 1000, 10_000))
            for s in (0.3, 0.5, 0.7, 0.8)
        ]
    )
    lab.runs[lab.picker.value.id] = lab.tested, answers
    sent.clear()
    lab.turn()
    size = sum(sent)
    assert not lab.line.value and len(lab.parts) == 40 and 5_000 < size < 200_000, size
    whole = lab.table.to_numpy(float)
    assert lab.matrix.data[0].zmax == lab.full_colour() < np.where(np.eye(40), 0, whole).max()
    assert not any("others" in text for text, _ in lab.common.options)  # no mistake to begin with
    sent.clear()
    lab.grouping.value = "bins"
    assert sum(sent) < 200_000 and list(lab.parts)[0] == "class 0 … class 24"
    sent.clear()
    lab.choose_cell(2, 2)
    assert sum(sent) < 60_000 and (labels[lab.rows] // 25 == 2).all()


def test_rdms_of_a_thousand_classes_send_little(runs, sent, monkeypatch):
    lab = settled(rdm_lab.RdmLab())
    t, rng = lab.tested[lab.first.value.id], np.random.default_rng(0)
    labels = torch.arange(10_000) % 1000
    t.labels, t.names = labels.numpy(), [f"class {k}" for k in range(1000)]
    centres, t.num_exits = rng.normal(size=(1000, 64)), 2

    def representations(run, rows, split, tell, epoch):
        x = torch.from_numpy(centres[labels[list(rows)]] + rng.normal(size=(len(rows), 64)))
        return MultiExitOutput(torch.randn(2, len(rows), 1000), (x,) * 2)

    monkeypatch.setattr(rdm, "representations", representations)
    sent.clear()
    lab.take()
    settled(lab)
    assert (
        len(lab.classes.value) == 10 and len(lab.drawn.rows) == 100
    )  # ten images of a class is all there are
    lab.classes.value = tuple(range(60))
    settled(lab)
    assert len(lab.drawn.rows) == 600 and 50_000 < sum(sent) < 900_000, sum(sent)
    lab.all.click()
    assert len(settled(lab).drawn.rows) == 1000 and len(lab.pictures.data[0].z) == 250
