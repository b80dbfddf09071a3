"""The report: statistics against numpy and scipy, tables in three forms, gaps; every ready-made grid expands and agrees with the papers."""
import functools
import io
import json
import math
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from multiexit_nb import experiment, sweep
from multiexit_nb.analysis import report
from multiexit_nb.core import InputError
from multiexit_nb.methods import list_methods
from multiexit_nb.runs import published

ROOT = Path(__file__).resolve().parent.parent
TOP1 = {"branchynet": ("default", [80.0, 88.0, 90.0, 91.0]), "byot": ("mate", [82.0, 89.0, 90.0, 91.5]), "mate": ("paper", [84.0, 90.0, 91.0, 92.0])}


@pytest.fixture
def runs(tmp_path):
    rng = np.random.default_rng(1)
    for method, (preset, base) in TOP1.items():
        for seed in range(4): report.example_run(tmp_path/"runs", method, seed, base + rng.normal(0, 0.5, 4), preset=preset)
    return tmp_path/"runs"


def scores(runs, method, exit):
    return np.array([r.result["test"]["top1"][exit - 1] for r in report.finished_runs(runs) if r.parameters["method"] == method])


# ---------------------------------------------------------------- statistics
def test_means_and_spreads_are_scipys(runs):
    s = report.summary(report.results(runs)).query("metric == 'top1' and method == 'mate (paper)' and exit == 2").iloc[0]
    x = scores(runs, "mate", 2)
    assert s.n == 4 and s["mean"] == pytest.approx(x.mean()) and s["std"] == pytest.approx(x.std(ddof=1))
    low, high = stats.t.interval(0.95, 3, x.mean(), stats.sem(x))
    assert s.ci == pytest.approx((high - low)/2) and s.se == pytest.approx(1.96*stats.sem(x))
    assert all(np.isnan(report.spread([70.0], k)) for k in ("std", "ci", "se"))
    with pytest.raises(InputError, match="spread='sd'"): report.spread([1, 2], "sd")


def test_paired_tests_are_scipys(runs):
    t = report.paired_tests(report.results(runs), "branchynet")
    assert len(t) == 8 and set(t.other) == {"branchynet"}
    for r in t.itertuples():
        a, b = scores(runs, r.method.split()[0], r.exit), scores(runs, "branchynet", r.exit)
        assert r.p == pytest.approx(stats.ttest_rel(a, b).pvalue) and r.difference == pytest.approx((a - b).mean()) and r.n == 4
        assert r.ci == pytest.approx(stats.t.ppf(0.975, 3)*stats.sem(a - b))
    assert np.allclose(t.p_holm, report.holm(t.p))
    assert len(report.paired_tests(report.results(runs))) == 12     # all three pairs
    with pytest.raises(InputError, match="Did you mean 'branchynet'"): report.paired_tests(report.results(runs), "branchinet")


def test_holm_by_hand():
    assert report.holm([.01, .04, .03]) == pytest.approx([.03, .06, .06])
    assert report.holm([.04, np.nan, .01]) == pytest.approx([.04, np.nan, .02], nan_ok=True)
    assert report.holm([.6, .7]) == pytest.approx([1, 1]) and len(report.holm([])) == 0


def test_no_p_value_from_nothing():
    assert np.isnan(report.paired_p([1.])) and np.isnan(report.paired_p([.5, .5, .5]))
    d = [.3, .5, -.1, .8, .4, .6]
    assert report.paired_p(d) == pytest.approx(stats.ttest_1samp(d, 0).pvalue)
    assert report.paired_p(d, "wilcoxon") == pytest.approx(stats.wilcoxon(d).pvalue) and np.isnan(report.paired_p(d[:5], "wilcoxon"))
    with pytest.raises(InputError, match="test='z'"): report.paired_p(d, "z")


def test_one_seed_is_a_gap_in_spread_and_test(tmp_path):
    for m in ("eed", "mate"): report.example_run(tmp_path, m, 0, [70, 71])
    res = report.results(tmp_path)
    text = report.table_by_exit(res).markdown()
    assert "70.00** |" in text and "One seed has no spread" in text and "± 0" not in text
    tests = report.paired_tests(res)
    assert tests.p.isna().all() and tests.p_holm.isna().all() and "p\u00a0" not in report.table_of_tests(tests).markdown().split("*±")[0]


# ---------------------------------------------------------------- runs
def test_only_seeds_are_averaged(tmp_path):
    for seed in range(2): report.example_run(tmp_path, "mate", seed, [70, 80])
    report.example_run(tmp_path, "mate", 2, [50, 60], method_args=dict(alpha=1.0))
    report.example_run(tmp_path/"x", "mate", 0, [10, 20], epochs=9).path.rename(tmp_path/"other")
    s = report.summary(report.results(tmp_path)).query("metric == 'top1' and exit == 1").set_index("method")
    assert dict(s["mean"]) == {"mate, epochs=5": 70, "mate, epochs=9": 10, "mate (alpha=1.0)": 50}
    assert dict(s.n) == {"mate, epochs=5": 2, "mate, epochs=9": 1, "mate (alpha=1.0)": 1}
    assert any("epochs (5, 9)" in line for line in report.uneven(tmp_path))


def test_the_newest_of_twins_counts(tmp_path):
    report.example_run(tmp_path, "eed", 0, [70, 80])
    twin = report.example_run(tmp_path/"x", "eed", 0, [60, 75])
    about = json.loads((twin.path/"params.json").read_text()) | dict(started="later")
    (twin.path/"params.json").write_text(json.dumps(about))
    twin.path.rename(tmp_path/"twin")
    res = report.results(tmp_path).query("metric == 'top1'")
    assert res.value.tolist() == [60, 75] and set(res.run) == {"twin"}


def test_unfinished_runs_and_empty_folders(runs, tmp_path):
    (next(runs.iterdir())/"result.json").unlink()
    assert len(report.finished_runs(runs)) == 11
    assert len(report.results([])) == 0 and len(report.paired_tests(report.results([]))) == 0 and len(report.beside_papers([])) == 0
    with pytest.raises(InputError, match="no such folder"): report.finished_runs(tmp_path/"nowhere")


# ---------------------------------------------------------------- forms
def test_three_forms_hold_the_same_numbers(runs, tmp_path):
    table = report.table_by_exit(report.results(runs), pm="ci")
    x = scores(runs, "mate", 1)
    cell = f"{x.mean():.2f} ± {stats.t.ppf(.975, 3)*stats.sem(x):.2f}"
    md, latex = table.markdown(), table.latex()
    assert f"**{cell}**".replace(" ", "\u00a0") in md and (r"\textbf{" + cell + "}").replace("±", r"$\pm$") in latex
    rows = [line for line in md.splitlines() if line.startswith("|")]
    assert len(rows) == 6 and len({line.count("|") for line in rows}) == 1
    body = latex.split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()
    assert latex.count(r"\toprule") == 1 and len(body) == 4 and all(line.count("&") == 5 and line.endswith(r"\\") for line in body)
    back = pd.read_csv(io.StringIO(table.csv()))
    assert back.query("method == 'mate (paper)' and exit == 1")["mean"].item() == pytest.approx(x.mean())
    files = report.save_table(table, tmp_path/"out", "accuracy")
    assert sorted(f.name for f in files) == ["accuracy.csv", "accuracy.md", "accuracy.tex"] and files[0].read_text() == md
    with pytest.raises(InputError, match="unknown format 'docx'"): report.save_table(table, tmp_path, "x", ["docx"])


def test_latex_is_escaped():
    assert report.tex("a_b & 5 % ± –") == r"a\_b \& 5 \% $\pm$ --"
    assert report.number(None) == "–" == report.number(np.nan) and report.number(-1.234, .5) == "−1.23 ± 0.50" and report.number(-0.001, sign=True) == "0.00"


# ---------------------------------------------------------------- the papers
def test_a_paper_table_with_stand_ins(runs):
    table = report.paper_table("mate", 2, runs, instead=dict(cifar100="digits", vgg16="tiny"))
    row = table.numbers.query("model_id == 'vgg16' and method == 'mate' and exit == '1'").iloc[0]
    assert row.ours == pytest.approx(scores(runs, "mate", 1).mean()) and row.value == 70.79 and row.difference == pytest.approx(row.ours - 70.79) and row.n == 4
    assert table.cells.loc[("VGG16", "1", "ours"), "dks"] == "–" and table.cells.loc[("VGG16", "1", "ours"), "mate"].startswith(f"{row.ours:.2f} ±")
    assert "digits in place of cifar100" in " ".join(table.notes) and "best test accuracy" in " ".join(table.notes)
    assert report.paper_table("mate", 2, runs).numbers.ours.isna().all()      # digits are not CIFAR-100


def test_hyperparameters_decide_which_line_a_run_counts_for(tmp_path):
    kw = dict(dataset="cifar100", model="resnet18", exits="conv")
    report.example_run(tmp_path, "eed", 0, [70, 75, 78, 79], **kw, method_args=dict(distance="mse"))
    report.example_run(tmp_path, "eed", 0, [60, 65, 68, 69], **kw, method_args=dict(distance="mse", teacher_exits=[1, 4]))
    report.example_run(tmp_path, "eed", 0, [50, 55, 58, 59], **kw, preset="paper")      # no line of the tables
    iv = report.paper_table("eed", "IV", tmp_path).numbers.dropna(subset="ours").set_index("method").ours
    assert dict(iv) == {"eed(teacher=Exit1 + Main)": 69, "eed(teacher=Exit1 + Exit2 + Exit3 + Main)": 79}
    one = report.paper_table("eed", "I", tmp_path).numbers.dropna(subset="ours")
    assert set(one.method) == {"eed(MSE, beta=0)"} and one.set_index("exit").ours.to_dict() == {"main": 79, "1": 70, "2": 75, "3": 78}
    assert set(report.beside_papers(tmp_path).table) == {"I", "IV"}


def test_a_parquet_copy_counts_for_its_data_set(tmp_path):
    report.example_run(tmp_path, "mate", 0, [70, 75, 78, 79], dataset="parquet:/somewhere/cifar100", model="vgg16", preset="paper")
    assert report.beside_papers(tmp_path).groupby("table").ours.first()["2"] == 70


@pytest.mark.parametrize("name", report.list_tables())
def test_every_published_table_can_be_shown(name):
    paper, table = name.split(" ", 1)
    t = report.paper_table(paper, table, [])
    assert t.markdown().count("\n|") == len(t.cells) + 2 and "nan" not in t.markdown().lower() and r"\bottomrule" in t.latex()
    rows = t.numbers
    if rows.metric.isin(report.COSTS).all():
        near = rows[rows.ours.notna()]
        assert len(near) == len(rows) and ((near.ours/near.value - 1).abs() < .06).all()
    else: assert rows[~rows.metric.isin(report.COSTS)].ours.isna().all()
    alone = report.paper_table(paper, table, [], show=("paper",))
    assert "source" not in alone.cells.index.names and len(alone.numbers) == len(rows)


def test_what_there_is_not(runs):
    for call, words in ((lambda: report.paper_table("mat", 2, runs), "unknown paper 'mat'. Did you mean 'mate'"),
                        (lambda: report.paper_table("mate", 12, runs), "unknown table of mate: '12'"),
                        (lambda: report.paper_table("mate", 2, runs, show=("theirs",)), "show='theirs'"),
                        (lambda: report.paper_figure("mate", 4, runs), "unknown figure 'mate 4'"),
                        (lambda: report.paper_figure("dbt", 6, runs), "needs finished runs of dbt"),
                        (lambda: report.paper_figure("mate", 5, runs, dataset="cifar100"), "unknown dataset among the runs: 'cifar100'"),
                        (lambda: report.paper_figure("mate", 8, runs), "fewer than two values of alpha")):
        with pytest.raises(InputError, match=re.escape(words)): call()


# ---------------------------------------------------------------- figures
def test_figure_lines_are_means_over_seeds(runs):
    fig = report.paper_figure("mate", 5, runs)
    lines = {t.name: t for t in fig.data}
    assert set(lines) == {"branchynet", "byot (mate)", "mate (paper)"}
    assert lines["mate (paper)"].y[0] == pytest.approx(scores(runs, "mate", 1).mean())
    assert lines["mate (paper)"].error_y.array[3] == pytest.approx(scores(runs, "mate", 4).std(ddof=1))
    assert len({t.line.dash for t in fig.data}) == 3      # told apart without colours
    by_epoch = report.paper_figure("eed", 5, runs).data[0]
    assert list(by_epoch.x) == [1, 2, 3, 4, 5] and by_epoch.y[-1] == pytest.approx(scores(runs, "branchynet", 4).mean())


def test_budget_figures_from_outputs(tmp_path, monkeypatch):
    "DBT's budget mode and ensembles, HDKD's curve, DIH's heads and EED's dissimilarities from a real record."
    from multiexit_nb.trainer import train
    p = dict(dataset="digits", images_per_class=14, model="tiny", exits="sepconv", method="dbt", epochs=1, batch_size=64, precision="fp32",
             channels_last="false")
    e = experiment.prepare(p, set(p))
    data = experiment.load(e)
    net, method = experiment.start(e, data)
    t = train(net, method, data, e.recipe, device=e.device, bar=False)
    for _ in t: e.run.log(t)
    e.run.finish(t)
    val, test = (e.run.outputs(s) for s in ("val", "test"))
    top5 = lambda o: (o["logits"].topk(5).indices == o["labels"][:, None]).any(-1).double().mean(-1)*100
    best = [int(top5(val)[:m].argmax()) for m in range(1, 5)]
    got = report.paper_figure("dbt", 3).data[0]
    assert got.name == "distillation, semi-supervised" and list(got.y) == pytest.approx([float(top5(test)[b]) for b in best])
    p10 = (test["logits"][:, 3]/10).softmax(-1)
    assert list(report.paper_figure("dih", 2, image=3).data[4].y) == pytest.approx(p10.mean(0).tolist(), abs=1e-5)
    for paper, n in (("dbt", 5), ("dbt", 6), ("dbt", 7), ("hdkd", 2), ("eed", 4)): assert len(report.paper_figure(paper, n).data)
    rdms = report.before_and_after(e.run, 40)
    assert list(rdms) == ["features", "probabilities"]
    d, rows = rdms["probabilities"], np.array(rdms["probabilities"].index.get_level_values("image"))
    assert len(rows) == 40 and test["labels"][rows].bincount().tolist() == [4]*10
    p = test["logits"][-1][rows].softmax(-1)
    assert d.values[3, 7] == pytest.approx(1 - stats.pearsonr(p[3], p[7])[0], abs=2e-3)      # stored as float16
    x = next(data.test.take(torch.from_numpy(rows)).batches(40))[0]
    f = e.run.model()(x).features[-1].detach()
    assert rdms["features"].values[3, 7] == pytest.approx(1 - stats.pearsonr(f[3], f[7])[0], abs=1e-4)
    monkeypatch.setattr(report.rdm, "representations", lambda *a: (_ for _ in ()).throw(report.InputError("no images here")))
    assert list(report.before_and_after(e.run, 40)) == ["probabilities"] and len(report.paper_figure("eed", 4).data) == 1


def test_students_of_several_teachers_are_one_arm(tmp_path):
    "Every seed has a teacher of its own; the table names its network. In the papers' rows a cohort's student is its last member."
    for seed in (0, 1):
        teacher = report.example_run(tmp_path, "baseline", seed, [70.], model="resnet20", exits="none")
        report.example_run(tmp_path, "kd", seed, [60. + seed], model="resnet8", exits="none", method_args=dict(teacher=teacher.id), dataset="cifar100")
        report.example_run(tmp_path, "dml", seed, [72., 58. + seed], model="resnet20+resnet8", exits="none", dataset="cifar100")
    r = report.results(tmp_path)
    assert set(r.method) == {"baseline", "kd (teacher=resnet20)", "dml"} and len(r[(r.method == "kd (teacher=resnet20)") & (r.metric == "top1")]) == 2
    assert not [line for line in report.uneven(tmp_path) if "teacher" in line]
    rows = report.paper_rows("dih", "3", report.finished_runs(tmp_path))
    ours = rows[rows.model_id == "resnet20>resnet8"].set_index("method_id").ours
    assert ours["kd"] == 61 and ours["dml"] == 59 and math.isnan(ours["takd"])     # the best of the seeds, as the paper has it
    assert rows[(rows.model_id == "resnet110>resnet8") & rows.method_id.isin(["kd", "dml"])].ours.isna().all()


# ---------------------------------------------------------------- ready-made grids
GRIDS = sorted((ROOT/"data"/"sweeps").glob("*/*.yaml"))


def cells(file):
    "The parameters of the cells of a grid, as a sweep has them."
    return [c.parameters for c in sweep.cells(sweep.read_grid(file))]


def without_seeds(found):
    bare = [{k: v for k, v in c.items() if k not in ("seed", "split_seed")} for c in found]
    return list({json.dumps(c, sort_keys=True): c for c in bare}.values())


def declared():
    "The parameters of train.ipynb."
    found = json.loads((ROOT/"nbs/train.ipynb").read_text())["cells"]
    source = next("".join(c["source"]) for c in found if "parameters" in c["metadata"].get("tags", []))
    return experiment.read_parameters([source])[0]


@pytest.fixture
def cached_networks(monkeypatch):
    "A network is built once for all cells that share it."
    build, kept = experiment.network, {}
    def network(p, num_classes, size):
        key = json.dumps([p["model"], p["exits"], p.get("model_args"), num_classes, size])
        if key not in kept: kept[key] = build(p, num_classes, size)
        return kept[key]
    monkeypatch.setattr(experiment, "network", network)


def test_every_grid_is_one_that_trains(cached_networks):
    "Parameters declared by train.ipynb, and network, method, preset and recipe that exist and fit."
    assert len(GRIDS) > 40
    defaults = declared()
    for file in GRIDS:
        grid = sweep.read_grid(file)
        found = sweep.cells(grid)
        count = len(grid["runs"])*math.prod(map(len, grid["grid"].values()))
        assert len(found) == count, f"{file.name}: cells that occur twice"
        seen = set()
        for c in found:
            cell = {k: v for k, v in c.parameters.items() if k not in ("seed", "split_seed")}
            alone = json.dumps({**cell, "method_args": {k: v for k, v in cell.get("method_args", {}).items() if k != "teacher"}}, sort_keys=True)
            if alone in seen: continue
            seen.add(alone)
            for name, value in cell.items(): experiment._typed(name, value, type(defaults[name]).__name__)
            e = experiment.prepare({**defaults, **cell}, set(cell), coming=c.after)
            assert e.parameters["method"] == cell["method"]
            if file.parent.name == "quick": assert e.parameters["epochs"] <= 30 and len(found) <= 40, file.name


@functools.cache
def table_grids():
    "(file, paper, table, its published rows) of every full grid that is named after tables."
    out = []
    for f in GRIDS:
        m = re.match(r"(\w+?)_tables?_(\d)(?:_(\d))?", f.stem)
        if f.parent.name != "full" or not m: continue
        for n in filter(None, m.groups()[1:]):
            rows = published(m[1])
            names = {n, dict(zip("1234", ("I", "II", "III", "IV"), strict=True)).get(n)} if m[1] == "eed" else {n}
            out.append((f, m[1], n, rows[rows.table.isin(names) & rows.method_id.notna() & rows.value.notna()]))
    return out


def test_grids_give_the_lines_of_their_tables():
    "Every method and network of a table whose method there is has a cell that counts for it, and no cell counts for nothing."
    for file, paper, _, rows in table_grids():
        assert len(rows), file.name
        models = {x for f, _, _, same in table_grids() if f == file for m in same.model_id for x in (*m.split(">"), m.replace(">", "+"))}
        found = [SimpleNamespace(parameters=c, result=dict(test=dict(top1=[0.]*(4 if not c["model"].startswith("msdnet") else 5))))
                 for c in without_seeds(cells(file))]
        assert {r.parameters["model"] for r in found} <= models, file.name
        lines = rows[["dataset", "method", "method_id"]].drop_duplicates()
        lines = lines[lines.method_id.isin(list_methods()) & np.array([report.variant(paper, m) is not None for m in lines.method])]
        if "imagenet" in file.name or "cifar100" in file.name: lines = lines[lines.dataset.str.startswith(file.stem.rpartition("_")[2])]
        for line in lines.itertuples():
            assert any(report.same_method(r, paper, line.method, line.method_id, line.dataset) for r in found), (file.name, line)
        if file.stem in ("mate_table_4", "mate_tables_5_6", "eed_table_2_cifar100"): continue      # cells for another table or figure, too
        for r in found:
            assert any(report.same_method(r, paper, line.method, line.method_id, line.dataset) for line in lines.itertuples()), (file.name, r.parameters)
