"""Runs against each other: against numpy and counting by hand."""
import numpy as np
import pandas as pd
import pytest
import torch

from multiexit_nb.analysis import compare as C
from multiexit_nb.analysis import curves
from multiexit_nb.core import InputError
from multiexit_nb.history import tidy
from multiexit_nb.published_tables import published_for

RNG = np.random.default_rng(0)


def history(top, split="val", **method):            # (E, M)
    rows = [r for e, t in enumerate(top, 1)
            for r in tidy(dict(epoch=e, train=dict(top1=[9.]*len(t)),
                               method={k: v[e - 1] for k, v in method.items()},
                               **{split: dict(top1=list(map(float, t)))}))]
    return pd.DataFrame(rows).astype({"exit": "Int64"})


A3, B2 = RNG.normal(70, 3, (2, 12, 3)), RNG.normal(60, 3, (8, 2))
# one seed is at epoch 10 still; two exits; on test
GROUPS = {"a": [history(A3[0]), history(A3[1][:10])], "b": [history(B2, "test")]}


def test_by_epoch_is_the_mean_at_the_epochs_all_seeds_have():
    t = C.by_epoch(GROUPS)
    a = t[(t.name == "a") & (t.exit == 2)]
    assert a.epoch.tolist() == list(range(1, 11))
    assert np.allclose(a["mean"], A3[:, :10, 1].mean(0))
    assert np.allclose(a["std"], A3[:, :10, 1].std(0, ddof=1))
    assert set(a.n) == {2}
    b = t[t.name == "b"]
    assert sorted(set(b.exit)) == [1, 2]
    assert b["std"].isna().all()
    assert np.allclose(b[b["last"].astype(bool)]["mean"], B2[:, 1])
    x, v = C.epochs_of(GROUPS["a"], "top1")
    assert x == list(range(1, 11)) and np.allclose(v, A3[:, :10, 2])
    assert C.epochs_of(GROUPS["b"], "top1", 3) == ([], []) == C.epochs_of([], "top1")
    assert set(C.by_epoch(GROUPS, split="train")["mean"]) == {9.}
    assert list(C.by_epoch({}).columns) == list(t.columns)
    assert len(C.by_epoch(GROUPS, "gap")) == 0


def test_figures_by_epoch():
    t = C.by_epoch(GROUPS)
    fig = C.plot_runs(t)
    lines = [x for x in fig.data if x.hoverinfo != "skip"]
    assert len(lines) == 5
    assert [x.name for x in lines if x.showlegend] == ["a", "b"]
    assert [a.text for a in fig.layout.annotations] == ["exit 1", "exit 2", "exit 3"]
    bands = [x for x in fig.data if x.hoverinfo == "skip"]
    assert len(bands) == 3
    assert np.allclose(np.asarray(bands[0].y)[:10] - lines[0].y, A3[:, :10, 0].std(0, ddof=1), atol=1e-4)
    last = C.plot_runs(t, [-1], band=False).data
    assert len(last) == 2 and np.allclose(last[1].y, B2[:, 1], atol=1e-4)
    by_name = C.plot_exits(t).data
    assert [x.name for x in by_name] == ["exit 1", "exit 2", "exit 3", "exit 1", "exit 2"]
    assert by_name[0].line.color == by_name[3].line.color
    assert [curves.grid(n) for n in (1, 4, 5, 8, 12)] == [(1, 1), (1, 4), (2, 3), (2, 4), (3, 4)]


def test_stability_by_hand():
    h = history([[0, 50], [70, 60], [74, 61], [70, 62]])
    t = C.stability({"x": [h]}, 3).set_index("exit")
    assert t.wobble.tolist() == pytest.approx([4/3**.5, 1])
    assert t.step.tolist() == [4, 1]
    assert t["mean"].tolist() == pytest.approx([71 + 1/3, 61])
    assert t.seeds_std.isna().all()
    g = C.stability(GROUPS, 4).set_index(["name", "exit"])
    v = A3[:, 6:10, 0]
    assert g.loc[("a", 1), "wobble"] == pytest.approx(v.std(1, ddof=1).mean())
    assert g.loc[("a", 1), "seeds_std"] == pytest.approx(v.mean(1).std(ddof=1))
    assert g.loc[("a", 1), "step"] == pytest.approx(np.abs(np.diff(v)).mean())
    assert g.loc[("b", 2), "epochs"] == 4
    assert C.stability(GROUPS, 100).epochs.tolist() == [10]*3 + [8]*2
    assert len(C.stability({"x": [h.head(4)]})) == 0
    with pytest.raises(InputError, match="at least 2 epochs"):
        C.stability(GROUPS, 1)
    with pytest.raises(InputError, match="wobble"):
        C.plot_stability(t, "wobbel")
    assert [len(C.plot_stability(C.stability(GROUPS, 4), k).data) for k in C.STABILITY] == [2, 2, 2]


def test_temperature_and_confidence():
    z = torch.randn(50, 7, generator=torch.Generator().manual_seed(0))*4
    for t, got in zip((1, 2.5), C.confidences(z, 2.5), strict=True):
        p = np.exp(z.double().numpy()/t)
        assert got == pytest.approx((p.max(1)/p.sum(1)).mean(), abs=1e-5)
    s = C.temperatures(history(B2, temperature=list(1.05**np.arange(8))))
    assert list(s.index) == list(range(1, 9))
    assert s.iloc[-1] == pytest.approx(1.05**7)
    assert len(C.temperatures(history(B2))) == 0
    fig = C.plot_temperature(s, (.9, .5), .45)
    assert [list(t.y) for t in fig.data[1:]] == [[.9], [.5], [.45, .45]]
    assert len(C.plot_temperature(s).data) == 1
    both = C.plot_temperatures({"a": s, "b": s}, {"a": (.9, .5)})
    assert [t.type for t in both.data] == ["scatter", "bar", "scatter"] and list(both.data[1].y) == [.9, .5]


def test_gammas_of_a_student():
    g = RNG.random((8, 2, 2))
    g[:, 0, 1] = 0                                   # nobody learns from a shallower exit
    h = history(B2, gamma=g.tolist())
    t = C.gammas(h, 1)
    assert list(t.columns) == [1, 2] and np.allclose(t[1], g[:, 0, 0]) and np.allclose(t[2], g[:, 1, 0])
    assert list(C.gammas(h, 2).columns) == [2]
    assert len(C.gammas(h, 3)) == 0
    assert len(C.gammas(history(B2), 1)) == 0
    fig = C.plot_gammas({"x": t, "y": t}, 1, 2)
    assert [x.name for x in fig.data] == ["labels (cross-entropy)", "exit 2"]*2
    assert [x.showlegend for x in fig.data] == [True, True, False, False]


def test_sweep_is_mean_and_deviation_per_value():
    runs = [("m", a, [70 + a + s, 80 - s]) for a in (10, 1, 3) for s in (0, 2)] + [("n", 3, [1., 2.])]
    t = C.sweep_table(runs)
    m = t[(t.name == "m") & (t.exit == 1)]
    assert m.x.tolist() == [1, 3, 10] and m["mean"].tolist() == [72, 74, 81]
    assert m["std"].tolist() == pytest.approx([2**.5]*3)
    assert set(m.n) == {2}
    assert t[t.name == "n"].n.tolist() == [1, 1]
    fig = C.plot_sweep(t, "α", dash=3.)
    assert fig.layout.xaxis.type == "log"
    assert {s.y0 for s in fig.layout.shapes} == {74, 79, 1, 2}
    assert list(fig.data[0].y) == [72, 74, 81]
    assert C.plot_sweep(t.assign(x=t.x - 1), "α").layout.xaxis.type is None


def test_beside_the_papers():
    p = published_for("cifar100", "vgg16", "mate", 4)
    t = C.beside("ours", [71, 76, 77, 78], p)
    first = t[t.line == t.line.iloc[0]]
    assert first.published.tolist()[0] == 70.79
    assert first.difference.tolist() == pytest.approx(first.ours - first.published)
    assert set(t.exit) == {1, 2, 3, 4}
    assert C.beside("short", [71, 76], p).exit.max() == 2
    assert not len(C.beside("none", [1.], published_for("digits", "tiny", "mate", 1)))
    fig = C.plot_beside(t)
    assert fig.data[0].name == "ours"
    assert list(fig.data[0].y) == [71, 76, 77, 78]
    assert len({x.line.color for x in fig.data}) == 1
    with pytest.raises(InputError, match="no published number"):
        C.plot_beside(t[:0])
