"""The report: statistics against numpy and scipy, tables in three forms, what stands beside the papers'."""
import io
import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from scipy import stats

from multiexit_nb import arms, experiment
from multiexit_nb.analysis import published as pub
from multiexit_nb.analysis import statistics as report
from multiexit_nb.analysis.matching import COSTS, cost_of, paper_rows
from multiexit_nb.analysis.paper import list_tables
from multiexit_nb.core import InputError
from multiexit_nb.papers.eed import before_and_after
from multiexit_nb.papers.mate import ALPHAS, OWN
from multiexit_nb.runs import list_runs

TOP1 = {"branchynet": ("default", [80.0, 88.0, 90.0, 91.0]), "byot": ("mate", [82.0, 89.0, 90.0, 91.5]),
        "mate": ("paper", [84.0, 90.0, 91.0, 92.0])}


@pytest.fixture
def runs(tmp_path):
    rng = np.random.default_rng(1)
    for method, (preset, base) in TOP1.items():
        for seed in range(4):
            arms.example_run(tmp_path/"runs", method, seed, base + rng.normal(0, 0.5, 4), preset=preset)
    return tmp_path/"runs"


def scores(runs, method, exit):
    return np.array([r.result["test"]["top1"][exit - 1] for r in arms.finished_runs(runs)
                     if r.parameters["method"] == method])


# ---------------------------------------------------------------- statistics
def test_means_and_spreads_are_scipys(runs):
    s = report.summary(report.results(runs))
    s = s.query("metric == 'top1' and method == 'mate (paper)' and exit == 2").iloc[0]
    x = scores(runs, "mate", 2)
    assert s.n == 4 and s["mean"] == pytest.approx(x.mean()) and s["std"] == pytest.approx(x.std(ddof=1))
    low, high = stats.t.interval(0.95, 3, x.mean(), stats.sem(x))
    assert s.ci == pytest.approx((high - low)/2) and s.se == pytest.approx(1.96*stats.sem(x))
    assert all(np.isnan(report.spread([70.0], k)) for k in ("std", "ci", "se"))
    with pytest.raises(InputError, match="spread='sd'"):
        report.spread([1, 2], "sd")


def test_paired_tests_are_scipys(runs):
    t = report.paired_tests(report.results(runs), "branchynet")
    assert len(t) == 8 and set(t.other) == {"branchynet"}
    for r in t.itertuples():
        a, b = scores(runs, r.method.split()[0], r.exit), scores(runs, "branchynet", r.exit)
        assert r.p == pytest.approx(stats.ttest_rel(a, b).pvalue)
        assert r.difference == pytest.approx((a - b).mean())
        assert r.n == 4
        assert r.ci == pytest.approx(stats.t.ppf(0.975, 3)*stats.sem(a - b))
    assert np.allclose(t.p_holm, report.holm(t.p))
    assert len(report.paired_tests(report.results(runs))) == 12     # all three pairs
    with pytest.raises(InputError, match="Did you mean 'branchynet'"):
        report.paired_tests(report.results(runs), "branchinet")


def test_holm_by_hand():
    assert report.holm([.01, .04, .03]) == pytest.approx([.03, .06, .06])
    assert report.holm([.04, np.nan, .01]) == pytest.approx([.04, np.nan, .02], nan_ok=True)
    assert report.holm([.6, .7]) == pytest.approx([1, 1]) and len(report.holm([])) == 0


def test_no_p_value_from_nothing():
    assert np.isnan(report.paired_p([1.])) and np.isnan(report.paired_p([.5, .5, .5]))
    d = [.3, .5, -.1, .8, .4, .6]
    assert report.paired_p(d) == pytest.approx(stats.ttest_1samp(d, 0).pvalue)
    assert report.paired_p(d, "wilcoxon") == pytest.approx(stats.wilcoxon(d).pvalue)
    assert np.isnan(report.paired_p(d[:5], "wilcoxon"))
    with pytest.raises(InputError, match="test='z'"):
        report.paired_p(d, "z")


def test_one_seed_is_a_gap_in_spread_and_test(tmp_path):
    for m in ("eed", "mate"):
        arms.example_run(tmp_path, m, 0, [70, 71])
    res = report.results(tmp_path)
    text = report.table_markdown(report.table_by_exit(res))
    assert "70.00 |" in text and "One seed has no spread" in text and "± 0" not in text
    tests = report.paired_tests(res)
    assert tests.p.isna().all()
    assert tests.p_holm.isna().all()
    assert "p\u00a0" not in report.table_markdown(report.table_of_tests(tests)).split("*±")[0]


# ---------------------------------------------------------------- runs
def test_only_seeds_are_averaged(tmp_path):
    for seed in range(2):
        arms.example_run(tmp_path, "mate", seed, [70, 80])
    arms.example_run(tmp_path, "mate", 2, [50, 60], method_args=dict(alpha=1.0))
    arms.example_run(tmp_path/"x", "mate", 0, [10, 20], epochs=9).path.rename(tmp_path/"other")
    s = report.summary(report.results(tmp_path)).query("metric == 'top1' and exit == 1").set_index("method")
    assert dict(s["mean"]) == {"mate, epochs=5": 70, "mate, epochs=9": 10, "mate (alpha=1.0)": 50}
    assert dict(s.n) == {"mate, epochs=5": 2, "mate, epochs=9": 1, "mate (alpha=1.0)": 1}
    assert any("epochs (5, 9)" in line for line in arms.uneven(tmp_path))


def test_the_newest_of_twins_counts(tmp_path):
    arms.example_run(tmp_path, "eed", 0, [70, 80])
    twin = arms.example_run(tmp_path/"x", "eed", 0, [60, 75])
    about = json.loads((twin.path/"params.json").read_text()) | dict(started="later")
    (twin.path/"params.json").write_text(json.dumps(about))
    twin.path.rename(tmp_path/"twin")
    res = report.results(tmp_path).query("metric == 'top1'")
    assert res.value.tolist() == [60, 75] and set(res.run) == {"twin"}


def test_unfinished_runs_and_empty_folders(runs, tmp_path):
    (next(runs.iterdir())/"result.json").unlink()
    assert len(arms.finished_runs(runs)) == 11
    assert len(report.results([])) == 0
    assert len(report.paired_tests(report.results([]))) == 0
    assert len(pub.beside_papers([])) == 0
    with pytest.raises(InputError, match="no such folder"):
        arms.finished_runs(tmp_path/"nowhere")


# ---------------------------------------------------------------- forms
def test_three_forms_hold_the_same_numbers(runs, tmp_path):
    table = report.table_by_exit(report.results(runs), pm="ci")
    x = scores(runs, "mate", 1)
    cell = f"{x.mean():.2f} ± {stats.t.ppf(.975, 3)*stats.sem(x):.2f}"
    md, latex = report.table_markdown(table), report.table_latex(table)
    assert f"**{cell}**".replace(" ", "\u00a0") in md
    assert (r"\textbf{" + cell + "}").replace("±", r"$\pm$") in latex
    rows = [line for line in md.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 3 and len({line.count("|") for line in rows}) == 1
    body = latex.split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()
    assert latex.count(r"\toprule") == 1
    assert len(body) == 3
    assert all(line.count("&") == 6 and line.endswith(r"\\") for line in body)
    back = pd.read_csv(io.StringIO(table.csv()))
    assert back.query("method == 'mate (paper)' and exit == 1")["mean"].item() == pytest.approx(x.mean())
    files = report.save_table(table, tmp_path/"out", "accuracy")
    assert sorted(f.name for f in files) == ["accuracy.csv", "accuracy.md", "accuracy.tex"]
    assert files[0].read_text() == md
    with pytest.raises(InputError, match="unknown format 'docx'"):
        report.save_table(table, tmp_path, "x", ["docx"])


def test_latex_is_escaped():
    assert report.tex("a_b & 5 % ± –") == r"a\_b \& 5 \% $\pm$ --"
    assert report.number(None) == "–" == report.number(np.nan)
    assert report.number(-1.234, .5) == "−1.23 ± 0.50"
    assert report.number(-0.001, sign=True) == "0.00"


# ---------------------------------------------------------- what a design could have found, and honest bold
def test_the_least_difference_is_found_in_four_of_five_studies():
    "Simulated: with that true difference, a paired t-test at 5 % finds it in about 80 %."
    rng = np.random.default_rng(0)
    n, found = 5, 0
    least = (stats.t.ppf(.975, n - 1) + stats.t.ppf(.8, n - 1))/n**.5      # for s = 1
    d = [-.79056942, 0, 0, 0, .79056942]
    assert report.least_difference(d) == pytest.approx(least*np.std(d, ddof=1))
    for _ in range(2000):
        found += report.paired_p(rng.normal(least, 1, n)) < .05
    assert .7 < found/2000 < .9


def test_the_primary_comparison_is_of_the_mean_over_exits(runs):
    t = report.primary_tests(report.results(runs), "branchynet").set_index("method")
    d = np.mean([scores(runs, "mate", m) - scores(runs, "branchynet", m) for m in range(1, 5)], 0)
    assert t.difference["mate (paper)"] == pytest.approx(d.mean())
    assert t.p["mate (paper)"] == pytest.approx(stats.ttest_1samp(d, 0).pvalue)
    assert t.least["mate (paper)"] == pytest.approx(report.least_difference(d, 2))
    assert set(report.primary_tests(report.results(runs)).other) == {"branchynet"}, "whichever came first"
    assert set(report.primary_tests(report.results(list_runs(runs)[::-1])).other) == {"branchynet"}
    assert len(report.primary_tests(report.results([]))) == 0


def test_the_first_sentences_say_what_was_found_and_how_sure(tmp_path):
    "Exit-wise training of any preset is what others are compared with; what is noise is not told as a find."
    for seed, noise in enumerate((.1, -.2, .15, -.05, 0)):
        arms.example_run(tmp_path, "mate", seed, [70 + noise, 80])
        arms.example_run(tmp_path, "branchynet", seed, [64, 80], preset="dbt")
        arms.example_run(tmp_path, "eed", seed, [64 + 40*noise, 80 - 39*noise])
        arms.example_run(tmp_path, "mate", seed, [60 + 90*noise, 80], model="resnet8")
        arms.example_run(tmp_path, "eed", seed, [60, 80], model="resnet8")
    tests = report.primary_tests(report.results(tmp_path))
    assert set(tests.other) == {"branchynet (dbt)", "eed"}
    resnet, tiny = sorted(report.primary_sentences(tests))
    assert tiny == ("digits, tiny: 1 of 2 differences are beyond chance, the largest: "
                    "mate − branchynet (dbt) = +3.00 points (95 % interval +2.91 … +3.09, n = 5).")
    least = tests.least[tests.model == "resnet8"].item()
    assert resnet.startswith("digits, resnet8: nothing is beyond chance. The largest difference: mate − eed")
    assert 5 < least < 20 and resnet.endswith(f"Could be found: {least:.2f} points.")
    far = tests.assign(least=417., p_holm=1.)     # what a design of two seeds may come to
    assert set(report.table_of_primary(far).cells["could be found"]) == {"nothing"}
    assert all(line.endswith("Could be found: nothing.") for line in report.primary_sentences(far))


def test_nothing_bold_that_is_noise(tmp_path):
    for seed, (a, b) in enumerate(((70., 70.3), (71., 70.9), (70.5, 70.8))):
        arms.example_run(tmp_path, "eed", seed, [a, 80 + seed/100])
        arms.example_run(tmp_path, "mate", seed, [b, 90 + seed/100])
    table = report.table_by_exit(report.results(tmp_path))
    assert [(table.cells.index[i][2], j) for i, j in table.bold] == [("mate", 1)]


def test_a_table_has_the_arms_of_each_network_only(tmp_path):
    "Two networks, with and without a hand in it: no column of dashes, and no settings that nobody set."
    arms.example_run(tmp_path, "eed", 0, [70, 71], batch_size=128, lr=0.1)
    arms.example_run(tmp_path, "eed", 1, [70, 71])
    arms.example_run(tmp_path, "eed", 2, [70, 71]).event(1.5, "alpha", 3., 1.)
    arms.example_run(tmp_path, "kd", 0, [70, 71, 72], model="resnet18")
    table = report.table_by_exit(report.results(tmp_path))
    names = {key[1:] for key in table.cells.index}
    assert names == {("tiny", "eed"), ("tiny", "eed, by hand=alpha moved at epoch 1.5"), ("resnet18", "kd")}
    assert table.cells.loc[("digits", "resnet18", "kd"), "exit 3"] == "72.00"
    assert table.numbers.set_index(["method", "exit"]).n.loc[("eed", 1)] == 2


def test_one_seed_has_wilsons_interval(tmp_path):
    "Of as many images as the result says; an old run's, as its outputs do; else none."
    said, kept, unknown = (arms.example_run(tmp_path, m, 0, [75., 80.]) for m in ("eed", "mate", "dks"))
    result = json.loads((said.path/"result.json").read_text())
    (said.path/"result.json").write_text(json.dumps(result | dict(test_images=100)))
    logits = torch.randn(2, 400, 10).half()
    save_file({"test.logits": logits, "test.labels": torch.arange(400) % 10}, kept.path/"outputs.safetensors")
    assert [report.images_tested(run) for run in (said, kept, unknown)] == [100, 400, None]
    table = report.table_by_exit(report.results(tmp_path))
    low, high = report.accuracy_interval(75., 400)
    at = table.cells["exit 1"].droplevel([0, 1])
    assert at["mate"] == f"75.00 [{low:.1f}, {high:.1f}]" and at["dks"] == "75.00"
    assert report.WILSON in table.notes


def test_every_number_leads_to_its_runs(runs):
    res = report.results(runs)
    for table in (report.table_by_exit(res), report.table_of_primary(report.primary_tests(res)),
                  report.table_of_tests(report.paired_tests(res, "mate (paper)"))):
        ids = {i for found in table.runs.values() for i in found}
        assert ids == {r.id for r in arms.finished_runs(runs)}
        text = table._repr_markdown_()
        assert f"<summary>{len(ids)} runs behind these numbers</summary>" in text
    instead = dict(cub200="digits", resnet18="tiny")
    fig = pub.paper_figure("mate", 5, runs, instead=instead)
    assert {len(ids) for ids in fig.layout.meta["runs"].values()} == {4}


def test_best_test_and_steered_runs_are_marked(tmp_path):
    arms.example_run(tmp_path, "eed", 0, [70, 71], select="best-test")
    arms.example_run(tmp_path, "mate", 0, [70, 71]).event(1.5, "alpha", 3., 1.)
    table = report.table_by_exit(report.results(tmp_path))
    assert all(v.endswith("†") for v in table.cells.values.flat)
    assert "epoch chosen on the test set" in table.notes[-1] and "alpha moved at epoch 1.5" in table.notes[-1]
    assert set(table.numbers.runs) == {r.id for r in arms.finished_runs(tmp_path)}
    res = report.results(tmp_path)
    for tests in (report.table_of_primary(report.primary_tests(res)),
                  report.table_of_tests(report.paired_tests(res))):
        assert "†" in tests.cells.values[0, 0] and "epoch chosen on the test set" in tests.notes[-1]


def test_wilsons_interval_is_scipys():
    low, high = stats.binomtest(7500, 10_000).proportion_ci(method="wilson")
    assert report.accuracy_interval(75, 10_000) == pytest.approx((100*low, 100*high))


# ---------------------------------------------------------------- the papers
def test_a_paper_table_with_stand_ins(runs):
    table = pub.paper_table("mate", 2, runs, instead=dict(cifar100="digits", vgg16="tiny"))
    row = table.numbers.query("model_id == 'vgg16' and method == 'mate' and exit == '1'").iloc[0]
    mean = scores(runs, "mate", 1).mean()
    assert row.ours == pytest.approx(mean)
    assert row.value == 70.79
    assert row.difference == pytest.approx(mean - 70.79)
    assert row.n == 4
    assert table.cells.loc[("1", "ours"), "dks"] == "–"
    assert table.cells.loc[("1", "ours"), "mate"].startswith(f"{row.ours:.2f} ±")
    assert "digits in place of cifar100" in table.title and "best test accuracy" in " ".join(table.notes)
    assert "VGG16 on cifar100" in table.title         # the networks that have no run are left out
    assert set(table.cells.index.get_level_values("source")) == {"paper", "ours"}
    assert pub.paper_table("mate", 2, runs).numbers.ours.isna().all()      # digits are not CIFAR-100


def test_the_best_of_all_values_is_not_the_best_of_some(tmp_path):
    "MATE Table 5's column of the best α needs every α that is tried."
    own = dict(dataset="cifar100", model="vgg16", epochs=300, select="best-test", preset="paper")
    def best():
        rows = paper_rows("mate", "5", tmp_path)
        return rows[rows.method == "mate(alpha=best per exit)"].set_index("exit").ours
    for alpha in ALPHAS:
        assert best().isna().all()
        args = {} if alpha == OWN["alpha"] else dict(method_args=dict(alpha=alpha))
        arms.example_run(tmp_path, "mate", 0, [70 + alpha/10, 75, 78, 80 - alpha/10], **own, **args)
    assert best().to_dict() == {"1": 80, "2": 75, "3": 78, "4": pytest.approx(79.99)}


def test_stand_ins_of_two_recipes_do_not_mix(runs):
    "The recipe that most arms have runs of, and the same for all cells; not the newest of each."
    other = arms.example_run(runs/"x", "mate", 0, [10, 20, 30, 40], epochs=9, preset="paper")
    other.path.rename(runs/"other")
    arms.example_run(runs, "dks", 0, [10, 20, 30, 40], epochs=9)
    rows = paper_rows("mate", 2, runs, instead=dict(cifar100="digits", vgg16="tiny"))
    ours = rows.query("model_id == 'vgg16' and exit == '1'").set_index("method").ours
    found = arms.finished_runs(runs)
    mate = [r for r in found if (r.parameters["method"], r.parameters["epochs"]) == ("mate", 5)]
    assert ours["mate"] == pytest.approx(np.mean([r.result["test"]["top1"][0] for r in mate]))
    assert math.isnan(ours["dks"])


EED = dict(dataset="cifar100", model="resnet18", exits="conv", epochs=200, milestones=[0.375, 0.65, 0.9],
           select="best-test")


def test_hyperparameters_decide_which_line_a_run_counts_for(tmp_path):
    arms.example_run(tmp_path, "eed", 0, [70, 75, 78, 79], **EED, method_args=dict(distance="mse"))
    arms.example_run(tmp_path, "eed", 0, [60, 65, 68, 69], **EED,
                     method_args=dict(distance="mse", teacher_exits=[1, 4]))
    arms.example_run(tmp_path, "eed", 0, [50, 55, 58, 59], **EED, preset="paper")      # no line of the tables
    arms.example_run(tmp_path, "eed", 0, [20, 25, 28, 29], **EED | dict(epochs=30),
                     method_args=dict(distance="mse", beta=0.0))
    iv = pub.paper_table("eed", "IV", tmp_path).numbers.dropna(subset="ours").set_index("method").ours
    assert dict(iv) == {"eed(teacher=Exit1 + Main)": 69, "eed(teacher=Exit1 + Exit2 + Exit3 + Main)": 79}
    one = pub.paper_table("eed", "I", tmp_path).numbers.dropna(subset="ours")
    assert set(one.method) == {"eed(MSE, beta=0)"}
    assert one.set_index("exit").ours.to_dict() == {"main": 79, "1": 70, "2": 75, "3": 78}
    assert set(pub.beside_papers(tmp_path).table) == {"I", "IV"}


def test_exits_of_another_kind_are_another_paper(tmp_path):
    "EED's baseline and MATE's were one: ResNet-18 on CIFAR-100."
    mate = dict(dataset="cifar100", model="resnet18", exits="sepconv", epochs=300, select="best-test")
    arms.example_run(tmp_path, "branchynet", 0, [1, 2, 3, 4], **EED)
    arms.example_run(tmp_path/"x", "branchynet", 0, [5, 6, 7, 8], **mate).path.rename(tmp_path/"other")
    def ours(paper, table):
        rows = paper_rows(paper, table, tmp_path)
        return rows.query("model_id == 'resnet18' and method == 'branchynet'").ours.tolist()
    assert sorted(ours("eed", "I")) == [1, 2, 3, 4] and ours("mate", "2") == [5, 6, 7, 8]


def test_a_parquet_copy_counts_for_its_data_set(tmp_path):
    arms.example_run(tmp_path, "mate", 0, [70, 75, 78, 79], dataset="parquet:/somewhere/cifar100",
                     model="vgg16", preset="paper", epochs=300, select="best-test")
    assert pub.beside_papers(tmp_path).groupby("table").ours.first()["2"] == 70


@pytest.mark.parametrize("name", list_tables())
def test_every_published_table_can_be_shown(name):
    paper, table = name.split(" ", 1)
    t = pub.paper_table(paper, table, [])
    text = report.table_markdown(t)
    assert text.count("\n|") == len(t.cells) + 2
    assert "nan" not in text.lower()
    assert r"\bottomrule" in report.table_latex(t)
    rows, cost = t.numbers, t.numbers.metric.isin(COSTS)
    assert rows[~cost].ours.isna().all() and rows[cost].ours.notna().all()
    if cost.all():
        assert ((rows.ours/rows.value - 1).abs() < .06).all()
    alone = pub.paper_table(paper, table, [], show=("paper",))
    assert "source" not in alone.cells.index.names and len(alone.numbers) == len(rows)


# ---------------------------------------------------------------- figures
def test_figure_lines_are_means_over_seeds(runs):
    fig = pub.paper_figure("mate", 5, runs, instead=dict(cub200="digits", resnet18="tiny"))
    lines = {t.name: t for t in fig.data}
    assert set(lines) == {"branchynet", "byot", "mate"}
    assert lines["mate"].y[0] == pytest.approx(scores(runs, "mate", 1).mean())
    assert lines["mate"].error_y.array[3] == pytest.approx(scores(runs, "mate", 4).std(ddof=1))
    assert len({t.line.dash for t in fig.data}) == 3      # told apart without colours
    assert "3 of 15 arms" in fig.layout.title.text


SMALL = dict(dataset="digits", images_per_class=14, model="msdnet",
             model_args=dict(num_exits=4, channels=8, growth=4), exits="msdnet",
             method="dbt", preset="paper", recipe="default", epochs=1, batch_size=64, precision="fp32",
             channels_last="false")


def test_budget_figures_from_outputs(monkeypatch):
    "DBT's budget mode and ensembles, HDKD's curve and EED's dissimilarities from a real record."
    monkeypatch.setattr(pub, "says_nothing", lambda fig: "")     # a network that learned so little is flat
    run = experiment.prepare(SMALL, set(SMALL)).complete(bar=False)
    val, test = (run.outputs(s) for s in ("val", "test"))
    def top5(o):
        return (o.logits.topk(5).indices == o.labels[:, None]).any(-1).double().mean(-1)*100
    best = [int(top5(val)[:m].argmax()) for m in range(1, 5)]
    instead = {"cifar100(150)": "digits(14)", "msdnet_dbt_cifar": "msdnet"}
    got = pub.paper_figure("dbt", 3, [run], instead=instead).data[0]
    assert got.name == "distillation, semi-supervised"
    assert list(got.y) == pytest.approx([float(top5(test)[b]) for b in best])
    assert cost_of(run) == (run.model().cost(), run.model().cost(earlier_heads=True))
    assert len(pub.paper_figure("dbt", 5, [run], instead=instead).data)
    rdms = before_and_after(run, 40)
    d, rows = rdms["probabilities"], np.array(rdms["probabilities"].index.get_level_values("image"))
    assert list(rdms) == ["features", "probabilities"]
    assert len(rows) == 40
    assert test.labels[rows].bincount().tolist() == [4]*10
    p = test.logits[-1][rows].softmax(-1)
    # stored as float16
    assert d.values[3, 7] == pytest.approx(1 - stats.pearsonr(p[3], p[7])[0], abs=2e-3)


def test_students_of_several_teachers_are_one_arm(tmp_path):
    "Every seed has a teacher of its own; the table names its network. A cohort's student is its last member."
    dih = dict(dataset="cifar100", exits="none", epochs=200, batch_size=64, nesterov=True,
               milestones=[0.3, 0.6, 0.9])
    for seed in (0, 1):
        teacher = arms.example_run(tmp_path, "baseline", seed, [70.], model="resnet20", **dih)
        arms.example_run(tmp_path, "kd", seed, [60. + seed], model="resnet8",
                         method_args=dict(teacher=teacher.id), **dih)
        arms.example_run(tmp_path, "dml", seed, [72., 58. + seed], model="resnet20+resnet8", **dih)
    r = report.results(tmp_path)
    kd = r[(r.method == "kd (teacher=resnet20)") & (r.metric == "top1")]
    assert set(r.method) == {"baseline", "kd (teacher=resnet20)", "dml"} and len(kd) == 2
    assert not [line for line in arms.uneven(tmp_path) if "teacher" in line]
    rows = paper_rows("dih", "3", arms.finished_runs(tmp_path))
    ours = rows[rows.model_id == "resnet20>resnet8"].set_index("method_id").ours
    # the best of the seeds, as the paper has it
    assert ours["kd"] == 61
    assert ours["dml"] == 59
    assert math.isnan(ours["takd"])
    assert rows[(rows.model_id == "resnet110>resnet8") & rows.method_id.isin(["kd", "dml"])].ours.isna().all()
