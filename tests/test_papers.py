"""Every table and figure of the papers: which runs fill it.

Runs that were never trained stand in, one for every cell of every grid.
"""
import functools
import json
import math
import random
import statistics
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from multiexit_nb import arms, experiment, sweep
from multiexit_nb.analysis import published as pub
from multiexit_nb.analysis.grids import grid_files, grid_text
from multiexit_nb.analysis.matching import by_identity, find, paper_rows
from multiexit_nb.analysis.paper import item_of, list_items
from multiexit_nb.core import InputError
from multiexit_nb.methods import CHANGES, run_arguments
from multiexit_nb.parameters import cell_parameters
from multiexit_nb.recipe import Recipe
from multiexit_nb.runs import Run

ROOT = Path(__file__).resolve().parent.parent
GRIDS = ROOT/"data"/"sweeps"
FIVE = ("dbt", "dih", "eed", "hdkd", "mate")
MORE = ("table text 4.4.3", "figure 4.4")      # beside the 39
COUNTED = [(p, n) for p, n in list_items() if p in FIVE and n not in MORE]


def cells(kind: str, name: str):
    "The cells of a grid file, as a sweep has them."
    return sweep.cells(sweep.read_grid(GRIDS/kind/f"{name}.yaml"))


def seedless(p: dict) -> str:
    "Parameters but for the seeds; a run to learn from, whose id tells its seed, by what it is."
    sources = {k: v.rsplit("-", 2)[0] for k, v in named_runs(p).items()}
    own = {k: v for k, v in p.items() if k not in arms.REPLICATE}
    return json.dumps(own | dict(method_args=p.get("method_args", {}) | sources), sort_keys=True)


def named_runs(p: dict) -> dict:
    "The runs that the parameters of a cell name."
    args = p.get("method_args", {})
    return {k: args[k] for k in run_arguments(p["method"]) if k in args}


def grids_of(item, form) -> list[str]:
    return list(form.grid.values()) if isinstance(form.grid, dict) else [form.grid] if form.grid else []


# ---------------------------------------------------------------- stand-ins
@functools.cache
def defaults() -> dict:
    "The parameters of train.ipynb."
    found = json.loads((ROOT/"nbs/train.ipynb").read_text())["cells"]
    source = next("".join(c["source"]) for c in found if "parameters" in c["metadata"].get("tags", []))
    return {n: p.default for n, p in cell_parameters(source).items()}


@functools.cache
def about(dataset: str, image_size: int) -> dict:
    classes, size = arms.dataset_info(dataset, image_size=image_size or None)
    return dict(num_classes=classes, image_size=size)


def history(M: int, epochs: int) -> str:
    "Twelve epochs at most, with all that a figure may read."
    at = sorted({1, epochs, *np.linspace(1, epochs, 12).astype(int).tolist()})
    rows = []
    for e in at:
        for m in range(1, M + 1):
            for split in ("val", "test"):
                top = 50 + m + e/epochs
                for metric, value in (("top1", top), ("anytime", top), ("gap", 1 + e % 2)):
                    rows += [(e, split, m, metric, value)]
                rows += [(e, split, i, f"weights/{m}", (1 + (i == m)*e/epochs)/M) for i in range(1, M + 1)]
            rows += [(e, "train", m, "top1", 60 + m + e/epochs)]
        rows += [(e, "train", None, "temperature", 1.05**min(e, 20))]
    table = pd.DataFrame(rows, columns=["epoch", "split", "exit", "metric", "value"])
    return table.astype(dict(exit="Int64")).to_csv(index=False)


def stand_in(folder: Path, cell, number: int):
    "A run of a cell that was never trained: record, history and small outputs."
    given = {k: v for k, v in cell.parameters.items()
             if k in Recipe.__dataclass_fields__ and k != "channels_last"}
    recipe = Recipe.preset(cell.parameters.get("recipe") or "default", **given)
    p = defaults() | cell.parameters | {k: getattr(recipe, k) for k in Recipe.__dataclass_fields__}
    facts = about(p["dataset"], p["image_size"])
    M = 2 if "+" in p["model"] else arms.network_settings(p, facts["image_size"])["num_exits"]
    path = folder/cell.id
    path.mkdir(parents=True)
    top = [50. + m + number % 7 for m in range(M)]
    test = dict(top1=top, top5=[x + 20 for x in top], anytime=top)
    result = dict(select=p["select"], selected_epoch=p["epochs"], last_epoch=p["epochs"], test=test,
                  test_last=test, seconds=1.)
    learned = {k: v for k, v in named_runs(p).items() if k != "teacher"}
    record = dict(parameters=p, changes=CHANGES, started=f"{number:05}", epochs=p["epochs"], learned=learned)
    (path/"params.json").write_text(json.dumps(record | facts))
    (path/"result.json").write_text(json.dumps(result))
    (path/"history.csv").write_text(history(M, p["epochs"]))
    g = torch.Generator().manual_seed(number)
    outputs = {f"{s}.logits": torch.randn(M, 40, 8, generator=g).half() for s in ("val", "test")}
    save_file(outputs | {f"{s}.labels": torch.arange(40) % 8 for s in ("val", "test")},
              path/"outputs.safetensors")


@pytest.fixture(scope="module", params=[pytest.param("full", marks=pytest.mark.slow), "quick"])
def standing(request, tmp_path_factory):
    "(kind, index of stand-ins for all grids of that kind, id of a cell → its parameters)."
    kind, folder = request.param, tmp_path_factory.mktemp(request.param)
    made = {c.id: c for file in sorted((GRIDS/kind).glob("*.yaml")) for c in cells(kind, file.stem)}
    for number, cell in enumerate(made.values()):
        stand_in(folder, cell, number)
    return kind, by_identity([Run(folder/i) for i in made]), {i: c.parameters for i, c in made.items()}


def gaps(item, form, index) -> list:
    "What of an item is not filled: arms that lack a run, and published numbers without ours."
    lack = [f.parameters for f in find(item, index, form) if len(f.runs) < form.seeds]
    if item.name.startswith("figure"):
        return lack
    table = item.name.removeprefix("table ")
    rows = paper_rows(item.paper.name, table, index, form="quick" if form.quick else "full")
    def place(a):
        return tuple(a.labels[k] for k in ("dataset", "model_id", "method"))
    mine = {place(a): a.parameters for a in item.arms_in(form)}
    # a quick form has a stand-in for some networks only
    left_out = {place(a) for a in item.arms} - set(mine)
    for r in rows[rows.value.notna() & rows.ours.isna()].itertuples():
        p = mine.get((r.dataset, r.model_id, r.method))
        small = (form.quick and p and str(r.exit).isdigit()
                 and int(r.exit) > arms.network_settings(p, 32)["num_exits"])
        if (r.dataset, r.model_id, r.method) not in left_out and not small:
            lack.append((r.dataset, r.model_id, r.method, r.exit))
    return lack


def test_every_item_is_filled_by_its_own_grid_and_nothing_else(standing):
    "39 tables and figures: each arm has its runs, all of them from the item's own grid."
    kind, index, ids = standing
    filled, lacking = [], {}
    for paper, name in COUNTED:
        item = item_of(paper, name)
        form = item.forms[kind]
        own = {seedless(c.parameters) for g in grids_of(item, form) for c in cells(kind, g)}
        used = {seedless(ids[r.id]) for f in find(item, index, form) for r in f.runs}
        assert used <= own, f"{paper} {name}: runs from elsewhere"
        lack = gaps(item, form, index)
        if lack:
            lacking[f"{paper} {name}"] = lack
        else:
            filled.append(f"{paper} {name}")
    print(f"{kind}: {len(filled)}/{len(COUNTED)}", {k: (len(v), v[:3]) for k, v in lacking.items()})
    assert len(COUNTED) == 39
    assert not lacking


def test_no_run_is_trained_twice(standing):
    "Two grids that need the same run name the same cell."
    kind, index, ids = standing
    count = sum(len(runs) for runs in index.found.values())
    assert count == len(ids), "cells that differ in nothing that matters"


def test_a_figure_that_would_say_nothing_is_a_sentence(tmp_path):
    "A temperature that stayed where it was; a run that recorded nothing that the figure shows."
    small = dict(dataset="digits", images_per_class=40, model="msdnet", exits="msdnet", epochs=8,
                 batch_size=32, model_args=dict(num_exits=4, channels=8, growth=4), unlabelled_ratio=0.0)
    run = arms.example_run(tmp_path, "dbt", 0, [50, 60, 70, 80], preset="paper", **small)
    instead = {"cifar100(150)": "digits(40)", "msdnet_dbt_cifar": "msdnet"}
    with pytest.raises(InputError, match="DBT Figure 6.*no temperature"):
        pub.paper_figure("dbt", 6, [run], instead=instead)
    rows = [(e, "train", None, "temperature", 1.0) for e in range(1, 9)]
    table = pd.DataFrame(rows, columns=["epoch", "split", "exit", "metric", "value"])
    table.astype(dict(exit="Int64")).to_csv(run.path/"history.csv", index=False)
    g = torch.Generator().manual_seed(0)
    outputs = {f"{s}.logits": torch.randn(4, 40, 10, generator=g).half() for s in ("val", "test")}
    labels = {f"{s}.labels": torch.arange(40) % 10 for s in ("val", "test")}
    save_file(outputs | labels, run.path/"outputs.safetensors")
    with pytest.raises(InputError, match=r"DBT Figure 6 would say nothing: nothing in it varies \(1, 0.5\)"):
        pub.paper_figure("dbt", 6, [run], instead=instead)


def test_every_figure_is_drawn(standing):
    kind, index, _ = standing
    for paper, name in list_items("figure"):
        if (paper, name) == ("dih", "figure 2"):
            continue        # needs weights and images: below
        fig = pub.paper_figure(paper, name.split()[1], index, form=kind)
        assert len(fig.data), (paper, name)
        assert fig.layout.title.text.startswith(f"{paper.upper()} Figure")
        assert ("stand-ins" in fig.layout.title.text) == (kind == "quick")


# ---------------------------------------------------------------- the grids are those of the papers
@pytest.mark.parametrize("kind", ["full", "quick"])
def test_grids_are_as_the_papers_say(kind):
    for name in grid_files(kind):
        text = (GRIDS/kind/f"{name}.yaml").read_text()
        assert text == grid_text(kind, name), f"{name}: write_grids('data/sweeps')"


def test_one_recipe_a_grid():
    "What is compared is trained alike."
    for file in sorted(GRIDS.glob("*/*.yaml")):
        found = {}
        for c in cells(file.parent.name, file.stem):
            settings = arms.recipe_settings(c.parameters)
            settings.pop("unlabelled_ratio", None)
            found.setdefault(c.parameters["dataset"], set()).add(repr(settings))
        assert all(len(recipes) == 1 for recipes in found.values()), file.name


@pytest.fixture
def cached_networks(monkeypatch):
    "A network is built once for all cells that share it."
    build, kept = experiment.network, {}
    def network(p, num_classes, size):
        key = json.dumps([p["model"], p["exits"], p.get("model_args"), num_classes, size])
        if key not in kept:
            kept[key] = build(p, num_classes, size)
        return kept[key]
    monkeypatch.setattr(experiment, "network", network)


def test_every_grid_is_one_that_trains(cached_networks):
    "Parameters declared by train.ipynb, and network, method, preset and recipe that exist and fit."
    files = sorted(GRIDS.glob("*/*.yaml"))
    assert len(files) > 40
    seen = set()
    for file in files:
        grid = sweep.read_grid(file)
        found = sweep.cells(grid)
        given = len(grid["runs"])*math.prod(map(len, grid["grid"].values()))
        assert len(found) == given, f"{file.name}: cells that occur twice"
        if file.parent.name == "quick":
            assert len(found) <= 40, file.name
        for c in found:
            cell = {k: v for k, v in c.parameters.items() if k not in ("seed", "split_seed")}
            args = {k: v for k, v in cell.get("method_args", {}).items() if k not in named_runs(cell)}
            alone = json.dumps({**cell, "method_args": args}, sort_keys=True)
            if alone in seen:
                continue
            seen.add(alone)
            e = experiment.prepare({**defaults(), **cell}, set(cell), coming=c.after)
            assert e.parameters["method"] == cell["method"]
            if file.parent.name == "quick":
                assert e.parameters["epochs"] <= 30, file.name


# ---------------------------------------------------------------- identity
MATE_2 = dict(dataset="cifar100", model="vgg16", exits="sepconv", recipe="mate", select="best-test",
              method="mate", preset="paper")


@pytest.mark.parametrize("change", [dict(dataset="cifar10"), dict(image_size=64), dict(images_per_class=100),
                                    dict(select="best-val"), dict(model="resnet18"), dict(exits="conv"),
                                    dict(model_args=dict(at=[1, 2, 3])), dict(method="eed"),
                                    dict(preset="default", method_args=dict(alpha=1.0)), dict(epochs=200),
                                    dict(batch_size=64), dict(lr=0.05), dict(milestones=[0.3]),
                                    dict(weight_decay=1e-4), dict(label_smoothing=0.1)])
def test_whatever_differs_is_another_arm(change):
    assert arms.identity(MATE_2).differences(arms.identity(MATE_2 | change))


@pytest.mark.parametrize("change", [dict(seed=3), dict(split_seed=3), dict(device="cpu"),
                                    dict(precision="fp32"), dict(compile=True), dict(epochs=300),
                                    dict(method_args=dict(alpha=3.0, temperature=3)),
                                    dict(unlabelled_ratio=0.5), dict(run_id="x")])
def test_what_does_not_matter_is_the_same_arm(change):
    assert arms.identity(MATE_2) == arms.identity(MATE_2 | change)


def test_unlabelled_images_are_part_of_the_identity():
    "Also those that a data set has without being asked for fewer labels."
    pairs, digits = (dict(dataset=d, model="tiny", method="dbt") for d in ("digit_pairs", "digits"))
    alone = dict(unlabelled_ratio=0.0)
    assert "semi_supervised" in arms.identity(pairs).differences(arms.identity(pairs | alone))
    assert arms.identity(digits) == arms.identity(digits | alone)


def test_a_teacher_is_part_of_the_identity():
    def student(**teacher):
        return dict(dataset="cifar100", model="resnet8", exits="none", recipe="dih", method="kd",
                    method_args=dict(teacher=dict(dataset="cifar100", model="resnet20", exits="none",
                                                  recipe="dih", method="baseline") | teacher))
    assert arms.identity(student()) == arms.identity(student(seed=4))
    assert arms.identity(student()).differences(arms.identity(student(epochs=10))).keys() == {"teacher"}


def test_whose_weights_were_taken_is_part_of_the_identity():
    hdkd = dict(dataset="cifar100", model="msdnet_hdkd_cifar", exits="msdnet", method="hdkd")
    def fixed(**source):
        return {**hdkd, "method_args": dict(fixed_gamma=hdkd | source)}
    random = fixed(method_args=dict(start="random"))
    assert arms.identity(fixed()) == arms.identity(fixed(seed=4))
    assert arms.identity(fixed()).differences(arms.identity(random)).keys() == {"fixed_gamma"}


def test_a_steered_run_fills_nothing(tmp_path):
    run = arms.example_run(tmp_path, "mate", 0, [70, 75, 78, 79],
                           **{k: v for k, v in MATE_2.items() if k != "method"}, epochs=300)
    assert by_identity([run])[MATE_2] == [run]
    run.event(2.5, "alpha", 3., 1.)
    assert by_identity([run])[MATE_2] == []


def test_the_spread_of_mates_table_4_is_over_epochs(tmp_path):
    "Computed from the written history by Python's own arithmetic: by epoch, and the mean of that over seeds."
    g, runs, gaps = random.Random(0), [], {}
    for seed in (0, 1):
        run = arms.example_run(tmp_path, "mate", seed, [70, 75, 78, 79], epochs=300,
                               **{k: v for k, v in MATE_2.items() if k != "method"})
        rows = [(e, split, m, "gap", round(g.gauss(9 - m, m + seed), 6))
                for e in range(1, 301) for split in ("val", "test") for m in (1, 2, 3, 4)]
        lines = ["epoch,split,exit,metric,value", *(",".join(map(str, row)) for row in rows)]
        (run.path/"history.csv").write_text("\n".join(lines))
        for m in (1, 2, 3, 4):
            gaps[seed, m] = [v for _, split, exit, _, v in rows if (split, exit) == ("test", m)]
        runs.append(run)
    ours = pub.paper_table("mate", 4, runs).numbers.query("method == 'mate'")
    assert list(ours.exit.astype(int)) == [1, 2, 3, 4]
    for row in ours.itertuples():
        of = [gaps[seed, int(row.exit)] for seed in (0, 1)]
        assert row.ours == pytest.approx(statistics.fmean(map(statistics.fmean, of)), abs=1e-9)
        assert row.ours_std == pytest.approx(statistics.fmean(map(statistics.stdev, of)), abs=1e-9)
        means = [statistics.fmean(v) for v in of]
        assert abs(row.ours_std - statistics.stdev(means)) > .5, "not the spread over seeds"


def test_what_there_is_not(tmp_path):
    for call, words in ((lambda: pub.paper_table("mat", 2, []), "unknown paper 'mat'. Did you mean 'mate'"),
                        (lambda: pub.paper_table("mate", 12, []), "unknown table of mate: '12'"),
                        (lambda: pub.paper_table("mate", 2, [], show=("theirs",)), "show='theirs'"),
                        (lambda: pub.paper_table("mate", 2, [], form="quik"), "unknown form 'quik'"),
                        (lambda: pub.paper_figure("mate", 4, []), "unknown figure of mate: '4'"),
                        (lambda: pub.paper_figure("dbt", 6, []),
                         "data/sweeps/full/dbt_table_2.yaml trains them")):
        with pytest.raises(InputError, match=words):
            call()


def test_dih_figure_2_asks_the_trained_heads(tmp_path):
    "What the heads of the teacher say: from the weights that the student's run kept, not from its exits."
    base = dict(dataset="digits", images_per_class=14, exits="none", epochs=1, batch_size=32,
                precision="fp32", channels_last="false")
    def run(**p):
        return experiment.run_experiment(base | p, set(base | p), bar=False)
    teacher = run(model="resnet14", method="baseline")
    student = run(model="resnet8", method="dih", method_args=dict(teacher=teacher.id))
    instead = {"cifar10": "digits(14)", "resnet110": "resnet14", "resnet8": "resnet8"}
    fig = pub.paper_figure("dih", 2, [teacher, student], instead=instead, image=3)
    said = {t.name: np.asarray(t.y, float) for t in fig.data}
    heads = [n for n in said if n.startswith("head")]
    assert len(heads) == len(teacher.model().backbone.attach["linear"])
    assert list(said)[-2:] == ["teacher", "mean"]
    below = [a.title.text for a in fig.select_xaxes()]
    assert below.count("class") == len(said) - 1 and sum("the image is of" in x for x in below) == 1
    assert said["mean"] == pytest.approx(np.mean([said[n] for n in (*heads, "teacher")], 0), abs=1e-6)
    x = next(student.data().test.take([3]).batches(1))[0]
    with torch.no_grad():
        own = (teacher.model()(x).logits[-1, 0]/10).softmax(-1)
    assert said["teacher"] == pytest.approx(own.numpy(), abs=1e-5)
    assert fig.layout.meta["runs"] == {"dih": [student.id]}
