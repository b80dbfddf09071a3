"""MATE's teacher weights and learning gaps: against numpy, scipy and counting by hand."""
import re

import numpy as np
import pandas as pd
import pytest
from scipy.signal import savgol_coeffs, savgol_filter

from multiexit_nb.analysis import curves
from multiexit_nb.analysis import weights as A
from multiexit_nb.core import InputError
from multiexit_nb.history import tidy

RNG = np.random.default_rng(0)
W = RNG.dirichlet(np.ones(3), (7, 3))                 # epoch × teacher × exit
GAPS = RNG.normal(2, 1, (7, 3))


def history(w=W, gaps=GAPS, split="val"):
    rows = []
    for e in range(len(gaps)):
        said = dict(top1=[50., 60., 70.], gap=[*map(float, gaps[e][:2]), None])
        if w is not None:
            said["weights"] = w[e].tolist()
        rows += tidy(dict(epoch=2*e + 1, train=dict(loss=dict(ce=1.), top1=[1., 2., 3.]), **{split: said}))
    return pd.DataFrame(rows).astype({"exit": "Int64"})


@pytest.mark.parametrize("split", ["val", "test"])
def test_weights_are_teacher_by_exit_at_any_epoch(split):
    w = A.teacher_weights(history(split=split))
    assert w.shape == (21, 3)
    assert w.index.names == ["epoch", "teacher"]
    assert np.allclose(w.to_numpy().reshape(7, 3, 3), W)
    for asked, given in ((5, 5), (6, 5), (1000, 13), (0, 1)):      # the nearest; of two, the earlier
        assert np.allclose(A.weights_at(w, asked), W[(given - 1)//2])
    assert np.allclose(curves.matrix_at(history(), "weights"), W[-1])
    assert np.allclose(curves.matrix_at(history(), "weights", 3), W[1])
    with pytest.raises(InputError, match="only MATE does"):
        A.teacher_weights(history(None))
    assert len(curves.matrices(history(), "gamma")) == 0


def test_summary_of_a_matrix():
    m = pd.DataFrame([[1., 0, 0], [1/3, 1/3, 1/3], [.5, 0, .5]], index=[1, 2, 3], columns=[1, 2, 3])
    s = A.weight_summary(m)
    assert s.own.tolist() == pytest.approx([1, 1/3, .5])
    assert s.draws_on.tolist() == pytest.approx([1, 3, 2])
    assert s.most_from.tolist() == [1, 1, 1]


def test_figure_7_has_a_panel_per_epoch_on_one_scale():
    # 4 is 3 or 5: there already, or the earlier
    fig = A.plot_weights(A.teacher_weights(history()), (1, 3, 4, 99))
    maps = [t for t in fig.data if t.type == "heatmap"]
    assert len(maps) == 3 and len(fig.data) == 6      # and their numbers
    assert [a.text for a in fig.layout.annotations] == ["epoch 1", "epoch 3", "epoch 13"]
    assert np.allclose(fig.data[0].z, W[0])
    assert {t.zmax for t in maps} == {W.max()}
    assert {t.zmin for t in maps} == {0}
    lines = A.plot_teacher(A.teacher_weights(history()), 2).data
    assert [t.name for t in lines] == ["from exit 1", "from exit 2", "from exit 3"]
    assert np.allclose(lines[2].y, W[:, 1, 2], atol=1e-6)


@pytest.mark.parametrize(("window", "degree"), [(5, 2), (7, 3), (7, 1), (5, 0)])
def test_smoothing_is_savitzky_and_golays(window, degree):
    x = RNG.normal(size=30).cumsum()
    got, half = A.smooth(x, window, degree), window//2
    assert np.allclose(got, savgol_filter(x, window, degree))
    assert np.allclose(got[half:-half], np.convolve(x, savgol_coeffs(window, degree), "valid"))
    # least squares, by hand
    fit = np.polynomial.Polynomial.fit(np.arange(window), x[10 - half:11 + half], degree)
    assert got[10] == pytest.approx(fit(half))


def test_a_window_that_does_not_fit_is_answered():
    assert A.smooth([3, 1, 2], 1).tolist() == [3, 1, 2]
    assert [A.widest_window(n) for n in (0, 1, 2, 5, 6)] == [1, 1, 1, 5, 5]
    for window, degree, text in ((5, 3, "4 epochs only, the widest window is 3"), (4, 2, "odd"),
                                 (0, 2, "odd"), (-3, 2, "odd"),
                                 (3, 3, "less than the window"), (3.5, 1, "odd")):
        with pytest.raises(InputError, match=re.escape(text)):
            A.smooth(range(4), window, degree)


def test_gaps_smoothed_in_a_window_that_fits():
    gaps = A.gaps_by_epoch(history())
    assert list(gaps.columns) == [1, 2]
    assert np.allclose(gaps, GAPS[:, :2])
    assert list(gaps.index) == list(range(1, 14, 2))
    for window, used in ((5, 5), (7, 7), (11, 7), (301, 7)):
        assert np.allclose(A.smooth_gaps(gaps, window)[1], savgol_filter(GAPS[:, 0], used, 3))
    assert A.smooth_gaps(gaps, 1).equals(gaps) and A.smooth_gaps(gaps.head(3), 11).equals(gaps.head(3))
    hole = gaps.copy()
    hole.loc[5, 1] = np.nan
    got = A.smooth_gaps(hole, 5)
    assert np.isnan(got.loc[5, 1])
    assert np.allclose(got[1].dropna(), savgol_filter(np.delete(GAPS[:, 0], 2), 5, 3))
    fig = A.plot_gaps({"a": gaps, "b": gaps.tail(3)}, 5, raw=True)
    assert [t.name for t in fig.data if t.showlegend] == ["a", "b"]
    assert np.allclose(fig.data[1].y, savgol_filter(GAPS[:, 0], 5, 3), atol=1e-5)
    assert np.allclose(fig.data[0].y, GAPS[:, 0], atol=1e-5)
    assert len(A.gaps_by_epoch(history()[history().metric == "top1"])) == 0 and not len(A.plot_gaps({}).data)


def test_table_4_and_means_over_seeds():
    gaps = A.gaps_by_epoch(history())
    t = A.gap_summary({"a": gaps, "b": gaps.head(1)})
    assert t["mean"].tolist()[:2] == pytest.approx(GAPS[:, :2].mean(0))
    assert t["std"].tolist()[:2] == pytest.approx(GAPS[:, :2].std(0, ddof=1))
    assert t.epochs.tolist() == [7, 7, 1, 1]
    assert t["std"].isna().tolist() == [False, False, True, True]
    assert t.exit.tolist() == [1, 2, 1, 2]
    shorter = history(W[:4], GAPS[:4] + 2)
    m = A.mean_gaps([history(), shorter, history()[:0]])
    assert list(m.index) == [1, 3, 5, 7] and np.allclose(m, GAPS[:4, :2] + 1)
    assert len(A.mean_gaps([])) == 0 and len(A.gap_summary({})) == 0
