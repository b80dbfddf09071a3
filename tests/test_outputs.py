"""Outputs: the compact form answers as all logits do, old files load, what is not a number is refused."""
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multiexit_nb.core import InputError
from multiexit_nb.inference import best_exit, budget_table, budgeted_batch, calibration_table, exit_table
from multiexit_nb.outputs import (
    ANSWERS,
    Belief,
    Collector,
    Outputs,
    best_classes,
    compact,
    from_tensors,
    list_criteria,
    rest_nodes,
    to_tensors,
)
from multiexit_nb.policies import calibrate, confidences, fit_temperatures, simulate

M, N, K = 4, 400, 120
COST = [10, 25, 45, 100]


def some_outputs(split, seed=0, n=N, classes=K, spread=2.):
    "Logits of many classes that get better and surer with depth."
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(classes, (n,), generator=g)
    signal = torch.nn.functional.one_hot(y, classes)*torch.linspace(2, 8, M).view(M, 1, 1)
    return Outputs(spread*torch.randn(M, n, classes, generator=g) + signal, y, split)


def packed(outputs, batch=64):
    "The same, collected in the compact form."
    c = Collector(outputs.split, len(outputs), most=0)
    for z, y in zip(outputs.logits.split(batch, 1), outputs.labels.split(batch), strict=True):
        c.add(z, y)
    return c.outputs()


VAL, TEST = some_outputs("val"), some_outputs("test", 1)
SMALL_VAL, SMALL_TEST = packed(VAL), packed(TEST)


@pytest.mark.parametrize("mode", ANSWERS)
@pytest.mark.parametrize("k", [1, 5])
def test_compact_answers_are_the_full_ones(mode, k):
    assert torch.equal(SMALL_TEST.top(k, mode), TEST.top(k, mode))
    assert torch.equal(SMALL_TEST.hits(k, mode), TEST.hits(k, mode))
    assert torch.equal(SMALL_TEST.answers, TEST.logits.argmax(-1))
    assert torch.equal(SMALL_TEST.right, TEST.right)


@pytest.mark.parametrize("criterion", list_criteria())
@pytest.mark.parametrize("temperature", [None, (.7, 1.2, 1.6, 2.5)])
def test_compact_confidences_are_the_full_ones(criterion, temperature):
    small, full = (o.confidence(criterion, temperature) for o in (SMALL_TEST, TEST))
    if temperature is None:
        assert torch.equal(small, full)
    torch.testing.assert_close(small, full, rtol=0, atol=2e-6)


@pytest.mark.parametrize("criterion", list_criteria())
def test_compact_budgets_and_thresholds_are_the_full_ones(criterion):
    full = budgeted_batch(VAL, TEST, COST, criterion=criterion)
    small = budgeted_batch(SMALL_VAL, SMALL_TEST, COST, criterion=criterion)
    assert full.equals(small)
    a, b = (calibrate(confidences(v, criterion), [.25]*4) for v in (VAL, SMALL_VAL))
    assert a == b
    assert all(map(torch.equal, simulate(TEST, a), simulate(SMALL_TEST, b)))


def test_compact_tables_are_the_full_ones():
    for mode in ANSWERS:
        assert exit_table(TEST, COST, mode).equals(exit_table(SMALL_TEST, COST, mode))
    assert budget_table(VAL, TEST, COST, 5).equals(budget_table(SMALL_VAL, SMALL_TEST, COST, 5))
    assert best_exit(VAL, COST, 50) == best_exit(SMALL_VAL, COST, 50)
    t = fit_temperatures(VAL)
    assert fit_temperatures(SMALL_VAL) == pytest.approx(t, abs=1e-5)
    full, small = calibration_table(TEST, t), calibration_table(SMALL_TEST, t)
    assert (full - small).abs().to_numpy().max() < 1e-3


def test_probabilities_of_the_best_classes_are_exact_and_sum_to_one():
    p, q = (o.probabilities(torch.tensor([3, 8])) for o in (TEST, SMALL_TEST))
    assert p.shape == q.shape == (M, 2, K)
    best = best_classes(p, 10)
    torch.testing.assert_close(q.gather(-1, best), p.gather(-1, best))
    torch.testing.assert_close(q.sum(-1), torch.ones(M, 2))
    assert SMALL_TEST.probabilities(3).shape == (M, K)


@pytest.mark.parametrize("classes", [2, 3, 10, 16, 17, 40])
def test_few_classes(classes):
    full = some_outputs("test", classes=classes, n=50)
    small = packed(full, 7)
    torch.testing.assert_close(small.confidence("entropy"), full.confidence("entropy"), rtol=0, atol=2e-6)
    k = min(5, classes)
    for mode in ANSWERS:
        assert torch.equal(small.top(k, mode), full.top(k, mode))
    if classes <= 16:
        torch.testing.assert_close(small.probabilities(0), full.probabilities(0))


@pytest.mark.parametrize("kind", ["equal", "two values", "masked", "huge"])
def test_odd_logits(kind):
    z = torch.zeros(2, 6, 40)
    if kind == "two values":
        z[..., ::3] = 1.
    if kind == "masked":
        z = torch.randn(2, 6, 40).index_fill(-1, torch.arange(20, 40), -math.inf)
    if kind == "huge":
        z = 1e5*torch.randn(2, 6, 40)
    full = Outputs(z, torch.arange(6), "test")
    small = packed(full)
    assert torch.equal(small.answers, z.argmax(-1)) and torch.equal(small.top(5), full.top(5))
    for criterion in list_criteria():
        torch.testing.assert_close(small.confidence(criterion), full.confidence(criterion), rtol=0, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.floats(.1, 5), st.integers(2, 8))
def test_nodes_have_the_moments_of_the_rest(seed, spread, nodes):
    z = spread*torch.randn(3, 50, generator=torch.Generator().manual_seed(seed)).double()
    x, count = rest_nodes(z, torch.ones_like(z, dtype=torch.bool), nodes).unbind(-1)
    p, q = z.softmax(-1), (x + count - z.logsumexp(-1, keepdim=True)).exp()
    for d in range(2*nodes):
        size = (p*z.abs()**d).sum(-1)
        assert (((q*x**d).sum(-1) - (p*z**d).sum(-1)).abs() <= 1e-7*size).all()


def test_a_criterion_of_ones_own_serves_both_forms(monkeypatch):
    from multiexit_nb.outputs import register_criterion

    def gini(belief: Belief, state=None):
        return belief.total(torch.square), None

    monkeypatch.setattr(gini, "info", {}, raising=False)
    monkeypatch.setitem(register_criterion._items, "gini", gini)
    torch.testing.assert_close(SMALL_TEST.confidence("gini"), TEST.confidence("gini"), rtol=0, atol=1e-4)
    assert torch.equal(packed(TEST).confidence("gini"), TEST.confidence("gini"))


def test_equal_logits_rank_the_lower_class_first():
    z = torch.tensor([[1., 2, 2, 2, 0]])
    assert best_classes(z, 3).tolist() == [[1, 2, 3]]
    assert best_classes(torch.zeros(2, 50), 3).tolist() == [[0, 1, 2]]*2
    assert best_classes(z, 5).tolist() == [[1, 2, 3, 0, 4]]


def test_files():
    for o in (TEST, SMALL_TEST):
        again = from_tensors(to_tensors(o), "test", K)
        assert torch.equal(again.labels, o.labels) and again.num_classes == K and len(again) == N
        assert torch.equal(again.answers, o.answers) and torch.equal(again.right, o.right)
        torch.testing.assert_close(again.confidence(), o.confidence(), rtol=0, atol=1e-3)
    # best logits and classes, rest, label, ensembles, criteria
    each = 10*(4 + 2) + 6*2*4 + 4 + 2*5*2 + 3*4
    assert sum(t.nbytes for t in to_tensors(SMALL_TEST).values()) == N*(M*each + 8)


def test_a_file_of_version_01_with_ten_best():
    values, classes = TEST.logits.topk(10)
    old = from_tensors(dict(values=values.half(), classes=classes.int(), labels=TEST.labels), "test", K)
    assert torch.equal(old.answers, TEST.answers) and torch.equal(old.hits(5), TEST.hits(5))
    for asked in (old.confidence, old.cross_entropy, lambda: old.top(5, "logits"),
                  lambda: old.probabilities(0)):
        with pytest.raises(InputError, match="10 best logits alone, as version 0.1 stored them"):
            asked()
    with pytest.raises(InputError, match="no outputs of test: found labels"):
        from_tensors(dict(labels=TEST.labels), "test", K)


def test_answers_survive_float16():
    "Two large logits that float16 cannot tell apart."
    z = torch.zeros(1, 2, 5)
    z[0, 0, [1, 3]], z[0, 1, [1, 3]] = torch.tensor([30.001, 30.002]), torch.tensor([30.002, 30.001])
    assert z.half().argmax(-1).tolist() == [[1, 1]]
    again = from_tensors(to_tensors(Outputs(z, torch.tensor([3, 1]), "test")), "test", 5)
    assert again.answers.tolist() == [[3, 1]] and again.right.all()
    torch.testing.assert_close(again.logits, z, rtol=0, atol=.01)


def test_logits_too_large_for_float16_are_stored_in_full():
    big = Outputs(TEST.logits*1e4, TEST.labels, "test")
    assert torch.equal(from_tensors(to_tensors(big), "test", K).logits, big.logits)


def test_nan_is_an_error():
    z = TEST.logits.clone()
    z[2, 5, 7] = math.nan
    with pytest.raises(InputError, match="1 × NaN at exit 3"):
        Outputs(z, TEST.labels, "test")
    with pytest.raises(InputError, match="NaN"):
        Outputs(compact(z, TEST.labels), TEST.labels, "test")
