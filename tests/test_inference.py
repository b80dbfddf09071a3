"""Thresholds against independent loops and properties, the real early exit against the simulated one."""
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from torchmetrics.functional.classification import multiclass_calibration_error

from multiexit_nb.analysis.leaving import (
    classes_by_exit,
    overthinking,
    plot_budgeted,
    plot_classes,
    reliability,
)
from multiexit_nb.attach import attach_exits
from multiexit_nb.backbones import Backbone, register_backbone
from multiexit_nb.core import InputError, seed_everything
from multiexit_nb.data import halves, load_dataset
from multiexit_nb.evaluate import outputs_of
from multiexit_nb.exits import GlobalPool, Head, MultiExitNet
from multiexit_nb.inference import (
    best_exit,
    budget_table,
    budgeted_batch,
    calibration_table,
    combine_networks,
    early_exit,
    exit_table,
    measure_early_exit,
)
from multiexit_nb.models import create_model, list_models
from multiexit_nb.msdnet import MSDNet
from multiexit_nb.outputs import Outputs, list_criteria
from multiexit_nb.policies import (
    P_VALUES,
    Confidences,
    Policy,
    calibrate,
    confidences,
    exit_fractions,
    fit_temperatures,
    leaving_counts,
    leaving_exits,
    nearest_thresholds,
    p_for_cost,
    simulate,
    solve,
)
from multiexit_nb.predict import folded

torch.set_num_threads(1)
ASKED = [.50, .20, .15, .10, .05]
DEVICES = ["cpu", pytest.param("cuda",
                               marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


def shares(exits, M):
    return (exits.bincount(minlength=M + 1)[1:].double()/len(exits)).tolist()


def said(logits):
    "Outputs whose labels do not matter."
    return Outputs(logits, torch.zeros(logits.shape[1], dtype=torch.long, device=logits.device), "test")


def some_outputs(split="val", M=4, N=60, K=6, seed=0):
    "Logits that get better and surer with depth."
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(K, (N,), generator=g)
    signal = torch.nn.functional.one_hot(y, K)*torch.linspace(1, 3, M).view(M, 1, 1)
    return Outputs(torch.randn(M, N, K, generator=g) + signal, y, split)


VAL, TEST = some_outputs(), some_outputs("test", N=80, seed=1)
COST = [10, 25, 45, 100]


# ---- the solver

def by_hand(values, counts):
    "Who leaves where: at each exit, n times the surest of those still in, the earlier sample of equals."
    left, exits = list(range(len(values[0]))), {}
    for m, n in enumerate(counts, 1):
        for _ in range(n):
            best = left[0]
            for i in left:
                if values[m - 1][i] > values[m - 1][best]:
                    best = i
            exits[best] = m
            left.remove(best)
    return [exits[i] for i in range(len(values[0]))]


def matrices(levels):   # of confidences: few levels make ties
    return st.integers(1, 5).flatmap(lambda M: st.integers(1, 30).flatmap(
        lambda N: st.lists(st.lists(st.integers(0, levels), min_size=N, max_size=N), min_size=M, max_size=M)))


@settings(max_examples=60, deadline=None)
@given(st.one_of(matrices(2), matrices(10**6)), st.floats(.05, 1.95), st.sampled_from(["cumulative", "code"]))
def test_solver_is_the_loop_with_and_without_ties(values, p, rounding):
    counts = leaving_counts(exit_fractions(p, len(values)), len(values[0]), rounding)
    v = torch.tensor(values, dtype=torch.float32)
    thresholds, ties = solve(v, counts)
    assert leaving_exits(v, thresholds, ties).tolist() == by_hand(values, counts)
    assert thresholds[-1] == -math.inf
    assert all(t == math.inf for t, n in zip(thresholds[:-1], counts[:-1]) if n == 0)


@settings(max_examples=60, deadline=None)
@given(matrices(3), st.lists(st.floats(0, 1), min_size=5, max_size=5).filter(lambda q: sum(q) > .01))
def test_shares_are_those_asked_within_one_image(values, q):
    v, q = torch.tensor(values, dtype=torch.float32), torch.tensor(q[:len(values)],
        dtype=torch.float64) + 1e-3
    q, N = q/q.sum(), v.shape[1]
    exits = leaving_exits(v, *solve(v, leaving_counts(q, N)))
    assert all(abs(a - b) < 1/N + 1e-8 for a, b in zip(shares(exits, len(v)), q.tolist()))
    assert len(exits) == N


@settings(max_examples=60, deadline=None)
@given(matrices(3), st.lists(st.floats(1, 50), min_size=5, max_size=5), st.floats(.05, 1.95),
       st.floats(.05, 1.95))
def test_cost_on_the_calibration_set_grows_with_p(values, steps, p1, p2):
    v, cost = torch.tensor(values, dtype=torch.float32), torch.tensor(steps[:len(values)]).double().cumsum(0)
    low, high = (cost[leaving_exits(v, *solve(v, leaving_counts(exit_fractions(p, len(v)), v.shape[1])))
                      - 1].mean() for p in sorted((p1, p2)))
    assert low <= high + 1e-9


def test_without_ties_plain_thresholds_give_what_was_asked():
    values = torch.rand(5, 200, generator=torch.Generator().manual_seed(0))
    thresholds, ties = solve(values, leaving_counts(ASKED, 200))
    assert shares(leaving_exits(values, thresholds), 5) == shares(leaving_exits(values, thresholds, ties),
        5) == pytest.approx(ASKED)


def test_ties_let_out_too_many_unless_the_order_breaks_them():
    "The example of the design: a saturated network, asked .50/.20/.15/.10/.05."
    values = torch.full((5, 100), .1)
    values[0, :69] = 1.            # 69 images are sure at once
    values[1, 69:94] = .9          # 25 of the others at exit 2
    values[2:4, 50:69] = .8        # later exits are sure only of those that plain thresholds have let go
    thresholds, ties = solve(values, leaving_counts(ASKED, 100))
    assert shares(leaving_exits(values, thresholds, ties), 5) == pytest.approx(ASKED)
    assert shares(leaving_exits(values, thresholds), 5)[:2] == pytest.approx([.69, .25])
    assert thresholds[:2] == pytest.approx((1., .9)) and ties[0] == (50, 69)


def test_order_breaks_ties_on_other_images_in_the_same_proportion():
    thresholds, ties = solve(torch.ones(2, 10), [4, 6])
    exits = leaving_exits(torch.ones(2, 25), thresholds, ties)
    assert exits.tolist() == [1]*10 + [2]*15


@pytest.mark.parametrize("n, M, p", [(10, 3, 1.), (97, 5, .4), (1000, 11, 1.3), (1, 4, .5), (0, 4, .5)])
def test_counts(n, M, p):
    q = [p**k for k in range(1, M + 1)]
    q = [v/sum(q) for v in q]
    Q = [sum(q[:k + 1]) for k in range(M)]
    exact, code = leaving_counts(q, n), leaving_counts(q, n, "code")
    down = [math.floor(n*v + 1e-9) for v in Q[:-1]]
    assert exact == [b - a for a, b in zip([0, *down], [*down, n])]
    assert code[:-1] == [math.floor(n*v + 1e-9) for v in q[:-1]] and sum(code) == n
    assert 0 <= code[-1] - exact[-1] <= M - 1


def test_fractions_are_powers_of_p_and_39_of_them():
    assert [round(p, 2) for p in P_VALUES] == [round(.05*i, 2) for i in range(1, 40)]
    q = exit_fractions(.5, 4)
    assert q.tolist() == pytest.approx([.5/.9375, .25/.9375, .125/.9375, .0625/.9375])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 10**9), min_size=2, max_size=11), st.floats(.001, .999))
def test_p_for_a_wanted_cost(steps, where):
    cost = torch.tensor(steps, dtype=torch.float64).cumsum(0)
    wanted = (cost[0] + where*(cost[-1] - cost[0])).item()
    assert ((exit_fractions(p_for_cost(wanted, cost), len(cost)) @ cost).item()
            == pytest.approx(wanted, rel=1e-9))


def test_wanted_cost_is_met_on_the_calibration_set():
    val = some_outputs(N=500)
    for share in (.3, .5, .7):
        policy = calibrate(confidences(val), exit_fractions(p_for_cost(100*share, COST), 4))
        _, exits = simulate(val, policy)
        assert torch.tensor(COST)[exits - 1].float().mean().item() == pytest.approx(100*share, abs=90/500)
    for wrong in (5, 10, 100, 300):
        with pytest.raises(InputError, match="between 10 and 100"):
            p_for_cost(wrong, COST)


# ---- only validation images calibrate

@pytest.mark.parametrize("split", ["test", "train"])
def test_only_validation_images_calibrate(split):
    wrong, q = replace(VAL, split=split), [.25]*4
    for f in (lambda: calibrate(confidences(wrong), q), lambda: calibrate(confidences(wrong, "patience"), q),
              lambda: fit_temperatures(wrong),
              lambda: budgeted_batch(wrong, TEST, COST), lambda: best_exit(wrong, COST, 50),
              lambda: budget_table(wrong, TEST, COST)):
        with pytest.raises(InputError, match="only validation images may calibrate"):
            f()


def test_bare_tensors_do_not_calibrate():
    for f in (lambda: calibrate(VAL.logits.amax(-1), [.25]*4), lambda: fit_temperatures(VAL.logits),
              lambda: budgeted_batch(VAL.logits, TEST, COST)):
        with pytest.raises(InputError, match="know their split"):
            f()


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["max", "margin", "entropy", "patience"]), st.floats(.05, 1.95))
def test_thresholds_do_not_depend_on_test_images(seed, criterion, p):
    other = some_outputs("test", N=30, seed=seed)
    a, b = (budgeted_batch(VAL, t, COST, criterion=criterion, ps=[p]) for t in (TEST, other))
    assert a.filter(like="val_").equals(b.filter(like="val_"))


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits", images_per_class=40)


def test_outputs_are_those_of_the_images_as_they_are(digits):
    net = create_model("tiny", 10).eval()
    for split in ("train", "val", "test"):
        out, part = outputs_of(net, digits, split, batch_size=50), getattr(digits, split)
        x = part.normalise(part.source.images[part.rows])
        with torch.no_grad():
            torch.testing.assert_close(out.logits, net(x).logits, rtol=1e-4, atol=1e-4)
        assert out.split == split and torch.equal(out.labels, part.labels) and len(out) == len(part)


def test_outputs_need_images_of_a_known_split(digits):
    net = create_model("tiny", 10)
    with pytest.raises(InputError, match="'train', 'val' or 'test'"):
        outputs_of(net, digits, "valid")
    with pytest.raises(InputError, match="val_per_class > 0"):
        outputs_of(net, load_dataset("digits", val_per_class=0))
    other = replace(digits, val=halves(digits.val)[1])   # the half that a method has not learned from
    assert len(outputs_of(net, other)) == len(digits.val)//2


# ---- modes

def test_exit_table_and_budget_mode():
    t = exit_table(TEST, COST)
    p = TEST.logits.softmax(-1)
    for m in range(4):
        assert t.top1[m + 1] == pytest.approx(
            100*(TEST.logits[m].argmax(-1) == TEST.labels).double().mean().item())
        assert t.anytime_top1[m + 1] == pytest.approx(
            100*(p[:m + 1].mean(0).argmax(-1) == TEST.labels).double().mean().item())
    right = (VAL.logits.argmax(-1) == VAL.labels).sum(1).tolist()
    for budget in (10, 24, 25, 60, 1000):
        allowed = [m for m in range(4) if COST[m] <= budget]
        best = max(right[m] for m in allowed)
        assert best_exit(VAL, COST, budget) == next(m for m in allowed if right[m] == best) + 1
    with pytest.raises(InputError, match="at least 10 "):
        best_exit(VAL, COST, 9)
    assert budget_table(VAL, TEST, COST).chosen.is_monotonic_increasing


@pytest.mark.parametrize("criterion", list_criteria())
@pytest.mark.parametrize("rounding", ["cumulative", "code"])
def test_budgeted_curve_is_the_loop(criterion, rounding):
    ps = [.1, .7, 1., 1.6]
    curve = budgeted_batch(VAL, TEST, COST, criterion=criterion, rounding=rounding, ties="threshold", ps=ps)
    v, t = (o.confidence(criterion).tolist() for o in (VAL, TEST))
    for row, p in zip(curve.itertuples(), ps):
        counts = leaving_counts(exit_fractions(p, 4), len(VAL), rounding)
        exits = by_hand(v, counts)
        limits = [min((v[m][i] for i in range(len(VAL)) if exits[i] == m + 1), default=math.inf)
                  for m in range(3)]
        left = [next((m for m in range(3) if t[m][i] >= limits[m]), 3) for i in range(len(TEST))]
        right = [TEST.logits[m, i].argmax() == TEST.labels[i] for i, m in enumerate(left)]
        assert row.cost == pytest.approx(sum(COST[m] for m in left)/len(left))
        assert row.top1 == pytest.approx(100*sum(map(int, right))/len(right))
        assert ([row.exit_1, row.exit_2, row.exit_3, row.exit_4]
                == pytest.approx([left.count(m)/len(left) for m in range(4)]))


def test_curve_breaks_ties_by_order_where_thresholds_cannot():
    # all probabilities are 1: nothing but ties
    one_hot = torch.nn.functional.one_hot(VAL.logits.argmax(-1), 6)*1000.
    val = replace(VAL, logits=one_hot)
    order, plain = (budgeted_batch(val, replace(val, split="test"), COST, ties=t)
                    for t in ("order", "threshold"))
    assert (plain.exit_1 == 1).all() and order.cost.equals(order.val_cost)
    assert order.val_cost.is_monotonic_increasing and order.val_cost.nunique() > 20
    # p = 1
    assert order.iloc[19][["exit_1", "exit_2", "exit_3", "exit_4"]].tolist() == pytest.approx([.25]*4)


def test_combined_networks_take_the_best_validation_accuracy_within_each_budget():
    curves = {f"net{s}": budgeted_batch(some_outputs(seed=s), TEST, [c*(1 + s) for c in COST])
              for s in range(3)}
    both = combine_networks(curves)
    rows = [(n, r) for n, c in curves.items() for r in c.itertuples()]
    for r in both.itertuples():
        allowed = [q.val_top1 for _, q in rows if q.val_cost <= r.budget]
        assert r.val_top1 == max(allowed) and r.val_cost <= r.budget
        assert any(n == r.network and q.p == r.p and q.top1 == r.top1 for n, q in rows)
    assert both.val_top1.is_monotonic_increasing and both.budget.is_unique


# ---- criteria and temperature

def criterion_by_hand(name, z):   # z: M lists of K logits, of one image
    out, answers = [], []
    for row in z:
        e = [math.exp(v - max(row)) for v in row]
        p = sorted((v/sum(e) for v in e), reverse=True)
        answers.append(row.index(max(row)))
        before = 0
        while before < len(answers) - 1 and answers[-2 - before] == answers[-1]:
            before += 1
        out.append(dict(max=p[0], entropy=1 + sum(v*math.log(v) for v in p if v > 0)/math.log(len(p)),
                        margin=p[0] - p[1], patience=before)[name])
    return out


@pytest.mark.parametrize("name", list_criteria())
def test_criteria_are_the_loops(name):
    values = TEST.confidence(name)
    expected = [criterion_by_hand(name, TEST.logits[:, i].tolist()) for i in range(len(TEST))]
    torch.testing.assert_close(values, torch.tensor(expected, dtype=torch.float32).T.contiguous(), rtol=0,
                               atol=1e-5)
    assert values.std() > 0


def test_patience_counts_only_the_unbroken_run():
    z = torch.eye(3)[torch.tensor([[0], [0], [1], [1], [1], [0]])]
    assert said(z).confidence("patience")[:, 0].tolist() == [0, 1, 0, 1, 2, 0]


def test_confidences_refuse_nan():
    with pytest.raises(InputError, match="NaN at exit 1"):
        replace(VAL, logits=VAL.logits*math.nan)


def test_temperatures_minimise_the_validation_nll():
    ts, y = fit_temperatures(VAL), VAL.labels
    for z, t in zip(VAL.logits, ts):
        def nll(v, z=z.double()):
            return torch.nn.functional.cross_entropy(z/math.exp(v), y).item()
        best = minimize_scalar(nll, bounds=(-3, 3), method="bounded", options=dict(xatol=1e-9))
        assert t == pytest.approx(math.exp(best.x), rel=1e-4)
    hot = fit_temperatures(replace(VAL, logits=VAL.logits*7))
    assert hot == pytest.approx([7*t for t in ts], rel=1e-4)


def test_calibration_table_agrees_with_torchmetrics():
    def ece(z):
        return 100*multiclass_calibration_error(z.softmax(-1), TEST.labels, num_classes=z.shape[-1],
                                                n_bins=15).item()

    ts = fit_temperatures(VAL)
    table = calibration_table(TEST, ts)
    assert table.ece.tolist() == pytest.approx([ece(z) for z in TEST.logits], abs=1e-3)
    assert table.ece_calibrated.tolist() == pytest.approx([ece(z/t) for z, t in zip(TEST.logits, ts)],
                                                          abs=1e-3)
    assert table.temperature.tolist() == list(ts) and "temperature" not in calibration_table(TEST)


@settings(max_examples=60, deadline=None)
@given(matrices(2), st.floats(.05, 1.95))
def test_nearest_thresholds_miss_by_no_more_than_half_of_those_at_a_threshold(values, p):
    v = torch.tensor(values, dtype=torch.float32)
    M, N = v.shape
    counts = leaving_counts(exit_fractions(p, M), N)
    exits = leaving_exits(v, nearest_thresholds(v, counts))
    for m in range(1, M):
        there = v[m - 1][exits >= m]
        most_alike = max((int((there == c).sum()) for c in there.unique()), default=0)
        left = int((exits < m).sum())
        gone, wanted = int((exits <= m).sum()), max(left, sum(counts[:m]))
        assert abs(gone - wanted) <= most_alike/2


def test_nearest_thresholds_are_the_solver_without_ties_and_sensible_for_patience():
    v, counts = torch.rand(5, 200, generator=torch.Generator().manual_seed(0)), leaving_counts(ASKED, 200)
    assert nearest_thresholds(v, counts) == solve(v, counts)[0]
    c = confidences(some_outputs(N=400), "patience")
    assert calibrate(c, [.25]*4).thresholds[0] == math.inf
    assert calibrate(c, [.25]*4, ties="leave").thresholds[0] == 0


def test_a_policy_keeps_its_temperatures():
    ts = fit_temperatures(VAL)
    policy = calibrate(confidences(VAL, temperature=ts), [.25]*4)
    assert policy.temperature == ts and shares(simulate(VAL, policy)[1], 4) == [.25]*4
    scaled = torch.stack([z/t for z, t in zip(TEST.logits, ts)])
    for a, b in zip(simulate(TEST, policy), simulate(said(scaled), policy.thresholds)):
        assert torch.equal(a, b)


# ---- the real early exit

def middle(values):
    "A threshold far from every confidence, with images on either side where there are any."
    v = values.sort().values
    i = len(v)//4 + int(v.diff()[len(v)//4:len(v) - len(v)//4].argmax())
    return float((v[i] + v[i + 1])/2)


def same_as_simulated(net, x, policy, logits=None):
    if logits is None:
        with torch.no_grad():
            logits = net.eval()(x).logits.float()
    predictions, exits = early_exit(net, x, policy)
    expected, where = simulate(said(logits), policy)
    sure = said(logits).confidence(policy.criterion, policy.temperature).cpu()
    near = ((sure - torch.tensor(policy.thresholds)[:, None]).abs()
            < (1e-5 if policy.criterion != "patience" else 0)).any(0)
    assert predictions.device == exits.device == x.device and predictions.shape == exits.shape == (len(x),)
    assert torch.equal(exits.cpu()[~near], where.cpu()[~near])
    assert torch.equal(predictions.cpu()[~near], expected.cpu()[~near])
    return exits.tolist(), int(near.sum())


HEAVY = {"resnet101", "resnet152", "wide_resnet50_2", "densenet121", "wrn_28_10", "resnext29_4x64d",
         "pyramidnet110_270", "resnet110", "vgg16", "vgg19",
         "resnext50_32x4d", "resnet50"}


def heavy(name):
    return name in HEAVY or name.startswith(("msdnet_hdkd_imagenet", "msdnet_dbt"))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name",
                         [pytest.param(n, marks=pytest.mark.slow) if heavy(n) else n for n in list_models()])
def test_real_is_simulated_on_every_backbone(name, device):
    seed_everything(0)
    net = create_model(name, 10, register_backbone[name].info["min_size"]).to(device).eval()
    x = (torch.randn(8, 3, net.image_size, net.image_size, device=device)*torch.linspace(.3, 3, 8,
        device=device).view(8, 1, 1, 1))
    with torch.no_grad():
        logits = net(x).logits.float()
    # an untrained network can be sure of everything
    scale = tuple((logits - logits.mean(-1, keepdim=True)).std((1, 2)).tolist())
    values = said(logits).confidence(temperature=scale).cpu()
    policy = Policy((*map(middle, values[:-1]), -math.inf), temperature=scale)
    exits, near = same_as_simulated(net, x, policy, logits)
    assert len(
        set(exits)) > 1 and near <= 2, "the thresholds of this test let nobody leave, or everybody at once"


@pytest.fixture(scope="module", params=["tiny", "msdnet_mate_cifar", "resnet8"])
def net(request):
    seed_everything(1)
    return create_model(request.param, 10, 16).eval()


def policy_for(net, x, criterion):
    with torch.no_grad():
        logits = net(x).logits
    scale = tuple(logits.std((1, 2)).tolist())
    values = said(logits).confidence(criterion, scale)
    t = [1.]*(net.num_exits - 1) if criterion == "patience" else [middle(v) for v in values[:-1]]
    return Policy((*t, -math.inf), criterion, scale)


@pytest.mark.parametrize("criterion", list_criteria())
def test_real_is_simulated_for_every_criterion_and_batch_size(net, criterion):
    x = torch.randn(13, 3, 16, 16)*torch.linspace(.2, 4, 13).view(13, 1, 1, 1)
    policy = policy_for(net, x, criterion)
    together, _ = same_as_simulated(net, x, policy)
    for b in (1, 5):
        assert [e for c in x.split(b) for e in early_exit(net, c, policy)[1].tolist()] == together
    assert [t.tolist() for t in early_exit(net, x[:0], policy)] == [[], []]
    assert len(set(together)) > 1 or criterion == "patience"   # untrained exits rarely agree


def batches_seen(net, x, policy):
    "How many images each stage and each head gets."
    seen, hooks = {}, []
    stages = net.backbone.stages
    # the coarsest scale
    ends = [s[-1].scales[-1] for s in stages] if isinstance(net.backbone, MSDNet) else stages
    for kind, modules in (("stage", ends), ("head", net.heads)):
        for i, m in enumerate(modules, 1):
            def note(_, args, out, key=(kind, i)):
                seen[key] = len(args[0][-1] if isinstance(args[0], list) else args[0])
            hooks.append(m.register_forward_hook(note))
    exits = early_exit(net, x, policy)[1]
    for h in hooks:
        h.remove()
    return seen, exits


def test_the_batch_really_shrinks(net):
    x = torch.randn(13, 3, 16, 16)*torch.linspace(.2, 4, 13).view(13, 1, 1, 1)
    seen, exits = batches_seen(net, x, policy_for(net, x, "max"))
    for m, stage in enumerate(net.at, 1):
        there = int((exits >= m).sum())
        assert seen.get(("head", m), 0) == seen.get(("stage", stage), 0) == there
    assert seen["head", 2] < 13


def test_what_nobody_needs_is_not_computed(net):
    x, M = torch.randn(3, 3, 16, 16), net.num_exits
    seen, exits = batches_seen(net, x, 0.)               # all leave at once
    assert set(exits.tolist()) == {1} and [k for k in seen if k[0] == "head"] == [("head", 1)]
    assert ("stage", net.at[0] + 1) not in seen
    # nobody can leave: the heads on the way are not asked
    seen, exits = batches_seen(net, x, math.inf)
    assert set(exits.tolist()) == {M} and [k for k in seen if k[0] == "head"] == [("head", M)]
    seen, _ = batches_seen(net, x, Policy((math.inf,)*(M - 1) + (-math.inf,), "patience"))
    assert len([k for k in seen if k[0] == "head"]) == M   # patience needs every answer


def test_channels_last_is_kept(net):
    layouts = []
    def note(_, args, out):
        layouts.extend(v.is_contiguous(memory_format=torch.channels_last)
                       for v in (args[0] if isinstance(args[0], list) else args))
    x = torch.randn(9, 3, 16, 16)*torch.linspace(.2, 4, 9).view(9, 1, 1, 1)
    policy, hooks = policy_for(net, x, "max"), [s.register_forward_hook(note) for s in net.backbone.stages]
    net.to(memory_format=torch.channels_last)
    same_as_simulated(net, x.to(memory_format=torch.channels_last), policy)
    for h in hooks:
        h.remove()
    net.to(memory_format=torch.contiguous_format)
    assert layouts and all(layouts)


def test_exits_on_a_module_of_ones_own():
    body = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, 2), torch.nn.ReLU(), torch.nn.Conv2d(8, 16, 3, 2),
                               torch.nn.ReLU(),
                               torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(16, 10))
    net = attach_exits(body, ["0", "1"], image_size=16, exits="linear").eval()
    x = torch.randn(20, 3, 16, 16)*2
    assert len(set(same_as_simulated(net, x, policy_for(net, x, "margin"))[0])) > 1


def test_mode_gradients_and_input_stay_as_they_were():
    net = create_model("tiny", 10).train()
    net.heads[0].eval()
    modes, x = [m.training for m in net.modules()], torch.randn(4, 3, 32, 32)
    state, before = {k: v.clone() for k, v in net.state_dict().items()}, x.clone()
    predictions, exits = early_exit(net, x, .2)
    assert [m.training for m in net.modules()] == modes and torch.equal(x, before)
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    predictions += 1
    exits += 1     # ordinary tensors, not those of inference mode


def test_a_trained_network_on_all_test_images(digits):
    from multiexit_nb.methods import create_method
    from multiexit_nb.trainer import Recipe, train
    seed_everything(0)
    net = create_model("tiny", 10)
    method = create_method("branchynet", num_exits=4, num_classes=10, feature_dims=net.feature_dims)
    for _ in train(net, method, digits,
                   Recipe(epochs=5, batch_size=32, precision="fp32", channels_last=False), device="cpu",
                   bar=False):
        pass
    val, (x, _) = outputs_of(net, digits), next(digits.test.batches(len(digits.test)))
    ts = fit_temperatures(val)
    for criterion in list_criteria():
        policy = calibrate(confidences(val, criterion, ts), [.25]*4)
        exits, near = same_as_simulated(net, x, policy, outputs_of(net, digits, "test").logits)
        assert len(set(exits)) > 1 + (criterion != "patience") and near <= 3


def test_policies_are_checked():
    net, x = create_model("tiny", 10), torch.randn(2, 3, 32, 32)
    for wrong, message in (([.5], "4 numbers"), ([.5]*5, "4 numbers"), ([math.nan]*4, "4 numbers"),
                           (Policy((.5, -math.inf)), "4 numbers")):
        with pytest.raises(InputError, match=message):
            early_exit(net, x, wrong)
    with pytest.raises(InputError, match="unknown criterion 'confidence'"):
        early_exit(net, x, .5, "confidence")
    with pytest.raises(InputError, match="numbers > 0"):
        early_exit(net, x, .5, temperature=[1, 1, 0, 1])
    with pytest.raises(InputError, match="has its own"):
        early_exit(net, x, Policy((.5,)*4), "max")


def test_measuring_counts_the_cost_of_the_images_measured():
    seed_everything(0)
    net = create_model("tiny", 10).eval()
    x = torch.randn(20, 3, 32, 32)*torch.linspace(.2, 4, 20).view(20, 1, 1, 1)
    policy = policy_for(net, x, "max")
    m = measure_early_exit(net, x, dict(a=policy, b=[math.inf]*3), (1, 8), repeats=1)
    assert m[["policy", "batch"]].values.tolist() == [["a", 1], ["b", 1], ["a", 8], ["b", 8]]
    cost, every = torch.tensor(net.cost(earlier_heads=True)).double(), early_exit(net, x, policy)[1] - 1
    assert m.cost.tolist() == pytest.approx(
        [cost[every].mean().item(), cost[-1].item(), cost[every[:16]].mean().item(), cost[-1].item()])
    assert m.share.tolist() == pytest.approx((m.cost/net.cost()[-1]).tolist())
    assert m.promised.tolist() == pytest.approx((1/m.share).tolist())
    assert ((m.kept*m.promised*m.full_images_per_second/m.early_images_per_second).tolist()
            == pytest.approx([1]*4))
    with pytest.raises(InputError, match="1 to the 20 images"):
        measure_early_exit(net, x, dict(a=policy), (32,))


# ---- analyses

def test_analyses_count_every_image_once():
    policy = calibrate(confidences(VAL), [.4, .3, .2, .1])
    predictions, exits = simulate(TEST, policy)
    t = classes_by_exit(TEST, predictions, exits)
    assert t.images.sum() == len(TEST)
    assert ((t.images*t.top1).sum()/len(TEST)
            == pytest.approx(100*(predictions == TEST.labels).double().mean().item()))
    assert (t.mean_exit*t.images).sum()/len(TEST) == pytest.approx(exits.double().mean().item())
    assert t.mean_exit.is_monotonic_increasing
    o, last = overthinking(TEST), (TEST.logits[-1].argmax(-1) == TEST.labels).double().mean().item()*100
    assert (o.right - o.spoiled + o.gained).tolist() == pytest.approx([last]*4)
    assert o.right_somewhere.is_monotonic_increasing
    r = reliability(TEST)
    assert r.groupby("exit").images.sum().tolist() == [len(TEST)]*4
    assert ((r.low - 1e-6 <= r.confidence) & (r.confidence <= r.high + 1e-6)).all()
    assert ((r.images*r.accuracy).groupby(r.exit).sum().tolist()
            == pytest.approx((exit_table(TEST).top1*len(TEST)/100).tolist(), abs=1e-3))


def test_figures_show_the_tables():
    curve = budgeted_batch(VAL, TEST, COST)
    fig = plot_budgeted(curve, exit_table(TEST, COST))
    assert list(fig.data[0].y) == curve.top1.tolist()
    assert [list(t.y) for t in fig.data[2:]] == [(100*curve[f"exit_{m}"]).tolist() for m in range(1, 5)]
    fig = plot_classes(classes_by_exit(TEST, *simulate(TEST, calibrate(confidences(VAL), [.25]*4))), most=4)
    assert len(fig.data) == 4 and sum(sum(t.x) for t in fig.data) == pytest.approx(400)


def test_confidences_of_ones_own():
    policy = calibrate(Confidences(torch.tensor([[.9, .1, .5], [.2, .3, .4]]), "val", "margin"), [1/3, 2/3])
    assert policy.thresholds[0] == pytest.approx(.9) and policy.criterion == "margin"


# ---- a network that only answers ----

def unlike_new(net):
    "Normalisations as after a training."
    for norm in (m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        for t, low, high in ((norm.running_mean, -.3, .3), (norm.running_var, .5, 2.),
                             (norm.weight.data, .5, 1.5), (norm.bias.data, -.3, .3)):
            t.uniform_(low, high)
    return net.eval()


@pytest.mark.parametrize("model,left", [("resnet8", 0), ("msdnet", 0), ("densenet121", 62)])
def test_a_folded_network_answers_alike(model, left):
    "At every exit, to 10⁻⁵ of the largest logit; what normalises a sum or several maps stays."
    torch.manual_seed(0)
    net, x = unlike_new(create_model(model, 10, 32)), torch.randn(2, 3, 32, 32)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    quick = folded(net)
    assert sum(isinstance(m, torch.nn.BatchNorm2d) for m in quick.modules()) == left
    with torch.inference_mode():
        z = net(x).logits
        torch.testing.assert_close(quick(x).logits, z, rtol=0, atol=1e-5*float(z.abs().max()))
        for m in (1, net.num_exits):
            torch.testing.assert_close(quick.exit(x, m), z[m - 1], rtol=0, atol=1e-5*float(z.abs().max()))
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items()) and not quick.training
    assert [a.tolist() for a in early_exit(quick, x, 0.)] == [z[0].argmax(-1).tolist(), [1, 1]]


class Shared(torch.nn.Module):
    "Whose first convolution is read twice, and whose second is called twice."
    def __init__(self):
        super().__init__()
        self.one, self.two = torch.nn.Conv2d(3, 3, 1), torch.nn.Conv2d(3, 3, 1)
        self.norm, self.again = torch.nn.BatchNorm2d(3), torch.nn.BatchNorm2d(3)

    def forward(self, x):
        x = self.one(x)
        x = x + self.norm(x)
        return self.again(self.two(self.two(x)))


def test_what_others_read_too_is_not_folded():
    torch.manual_seed(0)
    net = MultiExitNet(Backbone([Shared()]), [Head(GlobalPool(), torch.nn.Linear(3, 2))], [1], 8)
    x, quick = torch.randn(2, 3, 8, 8), folded(unlike_new(net))
    assert sum(isinstance(m, torch.nn.BatchNorm2d) for m in quick.modules()) == 2
    torch.testing.assert_close(quick(x).logits, net(x).logits)
