"""Dissimilarity matrices against scipy and rsatoolbox; what is wrong is one line."""
import statistics
import time
import warnings

import numpy as np
import pytest
import torch
from rsatoolbox.data import Dataset
from rsatoolbox.data.noise import prec_from_residuals
from rsatoolbox.rdm import calc_rdm
from scipy import stats
from scipy.spatial.distance import pdist, squareform

from multiexit_nb import experiment
from multiexit_nb.analysis import rdm
from multiexit_nb.core import InputError, MultiExitOutput

RNG = np.random.default_rng(0)
Y = np.repeat([4, 0, 2], 10)
X = RNG.normal(size=(3, 12))[Y//2] + .5*RNG.normal(size=(30, 12))


def test_a_balanced_draw_is_even_seeded_and_in_the_order_of_classes():
    y = torch.from_numpy(np.random.default_rng(1).integers(0, 7, 400))
    a, b, again = (rdm.balanced(y, 5, seed=s) for s in (0, 1, 0))
    assert a.tolist() == again.tolist() != b.tolist()
    assert y[a].tolist() == [k for k in range(7) for _ in range(5)] and len(set(a.tolist())) == 35
    assert y[rdm.balanced(y, 2, [5, 1])].tolist() == [1, 1, 5, 5]


@pytest.mark.parametrize(("distance", "metric", "factor"),
                         [("correlation", "correlation", 1), ("cosine", "cosine", 1),
                          ("euclidean", "sqeuclidean", 1/12)])
def test_distances_are_those_of_scipy(distance, metric, factor):
    assert np.allclose(rdm.dissimilarities(X, distance), squareform(pdist(X, metric))*factor, atol=1e-10)


@pytest.mark.parametrize("distance", ["correlation", "euclidean", "poisson"])
def test_distances_are_those_of_rsatoolbox(distance):
    x = np.abs(X)
    assert np.allclose(rdm.dissimilarities(x, distance), calc_rdm(Dataset(x), distance).get_matrices()[0],
                       atol=1e-10)


def test_poisson_and_mahalanobis_are_their_formulas():
    x = np.abs(X)
    smooth = (x + .1)/1.1
    assert (rdm.dissimilarities(x, "poisson")[3, 17]
            == pytest.approx(((smooth[3] - smooth[17])*(np.log(smooth[3]) - np.log(smooth[17]))).mean()))
    d, p = rdm.dissimilarities(X, "mahalanobis", Y), rdm.within_precision(X, Y)
    assert d[3, 17] == pytest.approx((X[3] - X[17]) @ p @ (X[3] - X[17])/12)
    rest = X - np.stack([X[Y == k].mean(0) for k in Y])
    assert np.allclose(p, prec_from_residuals(rest, dof=27), rtol=1e-8)      # rsatoolbox's
    many = np.concatenate([RNG.normal(size=(2000, 3))*[1, 5, .1] + 9*k for k in range(2)])
    assert (np.linalg.inv(rdm.within_precision(many, np.repeat([0, 1], 2000))).diagonal()
            == pytest.approx([1, 25, .01], rel=.1))


@pytest.mark.parametrize("distance", rdm.DISTANCES)
@pytest.mark.parametrize("by", ["images", "classes"])
def test_units_that_never_move_and_silent_images_are_no_trouble(distance, by):
    x = np.abs(X)
    x[:, 3], x[5] = 0, 0
    d = rdm.rdm(x, Y, distance, by)
    assert np.isfinite(d.values).all() and (d.values.diagonal() == 0).all() and np.allclose(d, d.T)


def test_a_matrix_knows_its_images_and_classes():
    d = rdm.rdm(X, Y, images=np.arange(100, 130), names=["a", "b", "c", "d", "e"])
    assert d.index.names == ["class", "image"] and d.index[0] == ("e", 100) and d.columns[29] == ("c", 129)
    c = rdm.rdm(X, Y, "euclidean", "classes", names=["a", "b", "c", "d", "e"])
    means = [X[Y == k].mean(0) for k in (0, 2, 4)]
    assert list(c.index) == ["a", "c", "e"]
    assert c.values[0, 2] == pytest.approx(((means[0] - means[2])**2).mean())


def test_blocks_are_means_over_pairs():
    d = rdm.rdm(X, Y)
    pairs = [(d.values[i, j], Y[i] == Y[j]) for i in range(30) for j in range(i)]
    b = rdm.blocks(d)
    assert b["within"] == pytest.approx(np.mean([v for v, same in pairs if same]))
    assert b["between"] == pytest.approx(np.mean([v for v, same in pairs if not same]))
    assert b["contrast"] == b["between"] - b["within"] > 0


def test_clustering_brings_together_what_is_alike():
    mixed = RNG.permutation(30)
    d = rdm.rdm(X[mixed], Y[mixed])
    p = rdm.order_of(d, "by similarity")
    assert sorted(p.tolist()) == list(range(30))
    assert len([1 for a, b in zip(Y[mixed][p], Y[mixed][p][1:]) if a != b]) == 2
    assert rdm.order_of(d).tolist() == list(range(30))


MEASURED = {"corr": stats.pearsonr, "spearman": stats.spearmanr, "kendall": stats.kendalltau,
            "cosine": lambda a, b: (a @ b/np.linalg.norm(a)/np.linalg.norm(b),)}


@pytest.mark.parametrize("measure", rdm.MEASURES)
def test_similarities_are_those_of_scipy(measure):
    ds = {k: rdm.rdm(X + s*RNG.normal(size=X.shape), Y) for k, s in (("a", 0), ("b", .5), ("c", 3))}
    t = rdm.similarity(ds, measure)
    assert list(t.index) == list(t.columns) == ["a", "b", "c"] and np.allclose(t, t.T)
    assert np.allclose(np.diag(t), 1)
    assert t.loc["a", "b"] > t.loc["a", "c"]
    if measure in MEASURED:
        u, v = (squareform(d.values, checks=False) for d in (ds["a"], ds["b"]))
        assert t.loc["a", "b"] == pytest.approx(MEASURED[measure](u, v)[0])


@pytest.mark.parametrize("measure", ["corr", "kendall"])
def test_comparing_can_be_stopped(measure):
    def tell(done, total):
        if done > 0:
            raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        rdm.similarity({k: rdm.rdm(X, Y) for k in "abc"}, measure, tell)


def test_a_picture_of_many_images_is_small():
    x, y = RNG.normal(size=(601, 20)), np.arange(601)//61
    d = rdm.rdm(x, y, names=[f"class {k}" for k in range(10)])
    z, k = rdm.pooled(d.values)
    assert k == 3 and z.shape == (201, 201) and z[7, 100] == pytest.approx(d.values[21:24, 300:303].mean())
    assert z[200, 200] == d.values[600, 600]
    fig = rdm.plot_rdm({"before": d, "after": d}, rows=1)
    assert len(fig.to_json()) < 150_000
    shown = np.asarray(fig.data[0].z)*0.01
    assert fig.data[0].hovertemplate.startswith("%{z} × 0.01") and np.abs(shown - z).max() <= .0051
    assert fig.layout.xaxis.ticktext[0] == "class 0"
    assert fig.layout.xaxis.domain[1] - fig.layout.xaxis.domain[0] == pytest.approx(330/(2*330 + 76))


def test_patterns_may_be_a_tensor():
    "Which is not asked in a way that numpy warns of; and patterns stay as they are."
    x = np.abs(X)
    for distance in rdm.DISTANCES:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            d = rdm.dissimilarities(torch.tensor(x), distance, Y)
        assert np.array_equal(d, rdm.dissimilarities(x, distance, Y)) and np.array_equal(x, np.abs(X))


def test_500_images_are_quick():
    rdm.dissimilarities(X)      # rsatoolbox is imported
    x, y = np.abs(RNG.normal(size=(500, 512))), np.repeat(range(10), 50)
    took = {}
    for distance in rdm.DISTANCES:
        for _ in range(3):
            start = time.perf_counter()
            rdm.rdm(x, y, distance)
            took.setdefault(distance, []).append(time.perf_counter() - start)
    took = {k: statistics.median(v) for k, v in took.items()}
    assert took["correlation"] < 1 and max(took.values()) < 4, took      # 0.1 and 0.3 on a busy core


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with pytest.MonkeyPatch.context() as m:
        m.setenv("MULTIEXIT_RUNS", str(tmp_path_factory.mktemp("runs")))
        m.setenv("MULTIEXIT_DEVICE", "cpu")
        p = dict(dataset="digits", images_per_class=14, model="tiny", exits="sepconv", method="mate",
                 epochs=1, batch_size=64, precision="fp32", channels_last="false")
        e = experiment.prepare(p, set(p))
        data = e.load()
        t = e.start(data, bar=False)
        for _ in e.epochs(t):
            pass
        e.run.finish(t)
        yield e.run, data


def test_a_network_is_asked_about_the_chosen_images_only(run, monkeypatch):
    run, data = run
    monkeypatch.setenv("MULTIEXIT_RUNS", str(run.path.parent))
    rows, heard = [5, 200, 17], []
    asked = []
    monkeypatch.setattr(type(data.test), "take",
                        lambda self, keep, take=type(data.test).take: asked.append(keep.tolist())
                        or take(self, keep))
    out = rdm.representations(run, rows, data.test, batch_size=2, tell=lambda *a: heard.append(a))
    assert asked == [rows] and heard == [(0, 3), (2, 3)]
    assert torch.allclose(out.logits, run.outputs("test").logits[:, rows], atol=2e-2)
    assert [f.shape[0] for f in out.features] == [3]*4
    again = rdm.representations(run, rows)            # loads the images itself
    assert torch.allclose(again.features[2], out.features[2], atol=1e-5)
    assert np.allclose(rdm.patterns(out, 4, "probabilities").sum(1), 1)
    assert rdm.patterns(out, 1, "features").shape == (3, out.features[0][0].numel())
    with pytest.raises(InputError, match="images 0"):
        rdm.representations(run, [len(data.test)], data.test)


@pytest.mark.parametrize(("call", "says"), [
    (lambda: rdm.balanced(Y, 11), "per_class=11: class 0 has 10 images"),
    (lambda: rdm.balanced(Y, 0), "per_class=0"), (lambda: rdm.balanced(Y, 1, []), "at least one class"),
    (lambda: rdm.balanced(Y, 1, [1]), "class 1 has 0 images"),
    (lambda: rdm.dissimilarities(X, "cosin"), "Did you mean 'cosine'"),
    (lambda: rdm.dissimilarities(X[0]), "patterns="),
    (lambda: rdm.dissimilarities(X, "poisson"), "values ≥ 0"),
    (lambda: rdm.dissimilarities(X*np.nan), "not finite"),
    (lambda: rdm.dissimilarities(X, "mahalanobis"), "needs labels"),
    (lambda: rdm.dissimilarities(X, "mahalanobis", range(30)), "at least two of a class"),
    (lambda: rdm.dissimilarities(X[[0, 0, 1, 1]], "mahalanobis", [0, 0, 1, 1]), "all the same"),
    (lambda: rdm.rdm(X, Y[:5]), "one per pattern"),
    (lambda: rdm.rdm(X, Y, by="image"), "'images' or 'classes'"),
    (lambda: rdm.rdm(X, Y*0, by="classes"), "at least two"),
    (lambda: rdm.order_of(rdm.rdm(X, Y), "clusters"), "unknown order"),
    (lambda: rdm.similarity({}), "at least one"),
    (lambda: rdm.similarity(dict(a=rdm.rdm(X[:2], Y[:2]))), "at least three"),
    (lambda: rdm.patterns(MultiExitOutput(torch.ones(2, 3, 4)), 1), "has no features"),
    (lambda: rdm.patterns(MultiExitOutput(torch.ones(2, 3, 4)), 3, "logits"), "1 … 2"),
    (lambda: rdm.patterns(MultiExitOutput(torch.ones(2, 3, 4)), 1, "logit"), "Did you mean 'logits'")])
def test_wrong_input_is_one_line(call, says):
    with pytest.raises(InputError, match=says) as e:
        call()
    assert "\n" not in str(e.value)


def test_panels_are_square_wherever_they_stand():
    "Each is as high as it is wide in the place that it gets: the axes of a panel have one scale."
    d = rdm.rdm(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 2)
    fig = rdm.plot_rdm({"before": d, "after": d, "before, beside": d, "after, beside": d}, rows=2)
    anchors = [(t.xaxis, fig.layout[t.yaxis.replace("y", "yaxis")].scaleanchor) for t in fig.data]
    assert [x for x, _ in anchors] == [y for _, y in anchors] == ["x", "x2", "x3", "x4"]
