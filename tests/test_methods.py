"""What every method must keep to, over all methods and presets there are, and what each of them promises.

A new method is covered by the contract as soon as it is registered. Its objective is checked against a plain
implementation if there is one for it in `REFERENCE`."""
import copy
import inspect
import json
import math
import socket
from dataclasses import replace
from typing import Annotated

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from multiexit_nb import hypergradient, methods
from multiexit_nb.core import InputError, MultiExitOutput
from multiexit_nb.exits import Head
from multiexit_nb.methods import (
    CHANGES,
    Method,
    Step,
    Task,
    _discover,
    all_as_meant,
    as_meant,
    create_method,
    describe_method,
    list_methods,
    method_recipes,
    preset_recipe,
    register,
)
from multiexit_nb.methods.hdkd import Adam, onto_simplex
from multiexit_nb.methods.mate import mix_teachers
from multiexit_nb.parameters import Param
from multiexit_nb.runs import Run
from multiexit_nb.toy import ToyNet, pulls, toy_run

M, B, K, D = 3, 6, 5, 16
PAIRS = [(n, p) for n in list_methods() for p in _discover()[n].presets]
SILENT = {"baseline": {1, 2}}   # exits that are meant to get no gradient; elsewhere every exit gets some


def make(name, preset="default", dtype=torch.float64, dims=(D,) * M, seed=0, own_exits=2, **kw):
    torch.manual_seed(seed)
    kw = dict(num_exits=M, num_classes=K) | kw
    return taught(create_method(name, feature_dims=dims, preset=preset, **kw).to(dtype), dtype, own_exits)


class Teacher(ToyNet):
    "Three blocks, and an exit on each of the last."
    def __init__(self, exits, num_classes):
        super().__init__()
        self.heads = torch.nn.ModuleList(Head(torch.nn.Identity(), torch.nn.Linear(12, num_classes))
                                         for _ in range(exits))
        self.at = tuple(range(4 - exits, 4))


def taught(method, dtype, own_exits=2):
    "A method with a teacher from outside gets a tiny one, and what it says of some images with every loss."
    if not method.needs_teacher():
        return method.ready(ToyNet(num_exits=method.task.num_exits))
    n, loss = method.task.num_exits, method.loss
    torch.manual_seed(99)   # the same one every time
    method.set_teacher(Teacher(own_exits, method.task.num_classes).to(dtype)).ready(
        net := ToyNet(num_exits=n))
    method.to(dtype)
    extra = method.phases(net)[-1].extra
    x = torch.randn(300, 64, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(dtype)
    method.loss, method.__dict__["seen"] = lambda out, y: loss(out, y, **extra(x[:len(y)])), x
    return method


def outputs(dtype=torch.float64, seed=0, m=M, b=B, k=K, d=D):
    g = torch.Generator().manual_seed(seed)
    z = (2 * torch.randn(m, b, k, generator=g, dtype=torch.float64)).to(dtype).requires_grad_()
    F = tuple(torch.randn(b, d, generator=g, dtype=torch.float64).to(dtype).requires_grad_()
              for _ in range(m))
    return MultiExitOutput(z, F), torch.randint(k, (b,), generator=g)


def inner(method):
    "What the network's optimizer trains of the method, beside the network."
    own = {id(p) for p in method.parameters()}
    return [p for p in method.phases(method.student.net)[-1].parameters() if id(p) in own]


def steps(method, n=3, seed=5):
    "A few optimizer steps on the method's own parameters, with its hooks."
    params = inner(method)
    opt = torch.optim.SGD(params, 0.1) if params else None
    for i in range(n):
        out, y = outputs(seed=seed + i)
        total = sum(method(out, y).values())
        if opt:
            opt.zero_grad()
            total.backward()
            opt.step()
        with torch.no_grad():
            method.after_step(out.detach())


def state(method):
    return {k: v.clone() for k, v in method.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# ---------------------------------------------------------------- the contract
@pytest.mark.parametrize("name,preset", PAIRS)
class TestContract:
    def test_terms_are_named_finite_float32_scalars(self, name, preset):
        method, (out, y) = make(name, preset, torch.float32), outputs(torch.float32)
        for o in (out, MultiExitOutput(out.logits * 1000, out.features)):
            terms = method.loss(o, y)
            assert terms and all(isinstance(k, str) for k in terms)
            for v in terms.values():
                assert v.shape == () and v.dtype == torch.float32 and v.isfinite()
            assert all(g.isfinite().all() for g in torch.autograd.grad(sum(terms.values()), o.logits))

    def test_calling_is_the_loss(self, name, preset):
        method, (out, y) = make(name, preset), outputs()
        assert ({k: v.item() for k, v in method(out, y).items()}
                == {k: v.item() for k, v in method.loss(out, y).items()})

    def test_the_right_exits_get_gradient(self, name, preset):
        method, (out, y) = make(name, preset), outputs()
        g = torch.autograd.grad(sum(method.loss(out, y).values()), out.logits)[0]
        assert {m for m in range(1, M + 1) if not g[m - 1].any()} == SILENT.get(name, set())

    def test_learned_parameters_get_gradient(self, name, preset):
        method, (out, y) = make(name, preset), outputs()
        if params := inner(method):
            assert all(p.requires_grad for p in params)
            assert all(g.any() for g in torch.autograd.grad(sum(method.loss(out, y).values()), params))

    def test_loss_changes_nothing(self, name, preset):
        method, (out, y) = make(name, preset), outputs()
        for mode in (True, False):
            method.train(mode)
            before, rng = state(method), torch.get_rng_state()
            sum(method.loss(out, y).values()).backward()
            method.observe(out), method.teacher_logits(out), method.record()
            assert same(before, state(method)) and torch.equal(rng, torch.get_rng_state())

    def test_state_round_trips(self, name, preset, tmp_path):
        trained, fresh, (out, y) = make(name, preset), make(name, preset, seed=1), outputs(seed=9)
        steps(trained)
        torch.save(trained.state_dict(), tmp_path/"state.pt")
        fresh.load_state_dict(torch.load(tmp_path/"state.pt", weights_only=True))
        for m in (trained, fresh):
            steps(m, 2, seed=20)   # and goes on the same
        assert same(state(trained), state(fresh)) and trained.record() == fresh.record()
        for a, b in zip(trained.loss(out, y).values(), fresh.loss(out, y).values()):
            assert torch.equal(a, b)

    def test_what_it_reads_it_says(self, name, preset):
        method, (out, y) = make(name, preset), outputs()
        g = torch.autograd.grad(sum(method.loss(out, y).values()), out.features, allow_unused=True)
        if any(x is not None for x in g):
            assert "features" in method.needs
        if "features" not in method.needs:
            assert method.loss(MultiExitOutput(out.logits), y)

    def test_unequal_widths_are_named(self, name, preset):
        if "features" not in make(name, preset).needs:
            assert make(name, preset, dims=(8, 16, 32)) and make(name, preset, dims=())
        else:
            with pytest.raises(InputError, match=f"{name} .*8, 16, 32"):
                make(name, preset, dims=(8, 16, 32))
            with pytest.raises(InputError, match="gives none"):
                make(name, preset, dims=())

    @pytest.mark.parametrize("label", [-1, -100])
    def test_unlabelled_samples_count_only_where_said(self, name, preset, label):
        method, (out, y) = make(name, preset), outputs()
        part = torch.cat([y[:4], torch.full((2,), label)])
        got, want = (sum(method.loss(*a).values()) for a in ((out, part), (out[:4], y[:4])))
        torch.testing.assert_close(got, want)
        g = torch.autograd.grad(got, out.logits)[0]
        assert g[:, :4].any() and not g[:, 4:].any()
        terms = method.loss(out, torch.full((B,), label))
        assert all(v == 0 for v in terms.values())

    def test_teachers_have_the_right_shape(self, name, preset):
        method, (out, _y) = make(name, preset), outputs()
        teachers = method.teacher_logits(out)
        assert len(teachers) == M and all(t.shape[1:] == (B, K) and t.ndim == 3 for t in teachers)

    def test_presets_and_hyperparameters_are_what_was_made(self, name, preset):
        method, cls = make(name, preset), _discover()[name]
        for k, v in cls.presets[preset].items():
            if k == "recipe":
                assert preset_recipe(name, preset) == v
            elif v is not None:
                assert method.hyper[k] == v
        assert method.preset == preset and method.name == name
        if preset != "default":
            assert method.hyper != make(name).hyper or preset_recipe(name, preset)

    def test_one_exit_will_do(self, name, preset):
        method, (out, y) = make(name, preset, num_exits=1, dims=(D,)), outputs(m=1)
        assert all(v.isfinite() for v in method.loss(out, y).values())
        with torch.no_grad():
            method.after_step(out.detach())
        assert len(method.teacher_logits(out)) == 1

    def test_float32_under_autocast(self, name, preset):
        method, (out, y) = make(name, preset, torch.float32), outputs(torch.bfloat16)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = method.loss(out, y)
        want = method.loss(MultiExitOutput(out.logits.float(), tuple(f.float() for f in out.features)), y)
        for k in got:
            assert got[k].dtype == torch.float32
            torch.testing.assert_close(got[k], want[k], rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------- the objectives, as the equations read
def ce(z, y):
    return sum(-(p[t]).log() for p, t in zip(z.softmax(-1), y)) / len(y)


def kdt(t, s, T, t_squared=True):
    p, q = (t.detach() / T).softmax(-1), (s / T).softmax(-1)
    return (T**2 if t_squared else 1) * sum(p[b, k] * (p[b, k] / q[b, k]).log() for b in range(len(p))
                                            for k in range(p.shape[1])) / len(p)


def l2(t, s):
    return sum((x - y)**2 for x, y in zip(t.detach().flatten(), s.flatten())) / s.numel()


def ref_baseline(z, F, y, h, m):
    return ce(z[-1], y)


def ref_branchynet(z, F, y, h, m):
    w = h["weights"] if isinstance(h["weights"], list) else [h["weights"]] * len(z)
    return sum(w[i] * ce(z[i], y) for i in range(len(z))) / (len(z) if h["reduction"] == "mean" else 1)


def ref_byot(z, F, y, h, m):
    total = ce(z[-1], y)
    for i in range(len(z) - 1):
        soft = (kdt(z[-1], z[i], h["temperature"], h["t_squared"]) if h["distance"] == "kl"
                else l2(z[-1], z[i]))
        total = total + h["ce_weight"] * ce(z[i], y) + h["alpha"] * soft
        mask = ((F[i] > 0) | (F[-1] > 0)) if h["feature"] == "masked" else 1
        if h["beta"]:
            total = total + h["beta"] * l2(F[-1] * mask, F[i] * mask)
    return total


def ref_dbt(z, F, y, h, m):
    n, total = len(z), 0
    for i in range(n):
        ts = {"last": [n - 1] if i < n - 1 else [], "all-later": list(range(i + 1, n))}[h["teachers"]] \
            if isinstance(h["teachers"], str) else [t - 1 for t in h["teachers"].get(i + 1, [])]
        d = [kdt(z[t], z[i], h["temperature"]) if h["distance"] == "kl" else l2(z[t], z[i]) for t in ts]
        total = total + ce(z[i], y) + (h["alpha"] * sum(d) / len(d) if d else 0)
    return total * h["factor"] / (n if h["reduction"] == "mean" else 1)


def ref_dks(z, F, y, h, m):
    n = len(z)
    return sum(ce(x, y) for x in z) + h["alpha"] * sum(kdt(z[j], z[i], h["temperature"], h["t_squared"])
                                                         for i in range(n) for j in range(n) if i != j)


def ref_eed(z, F, y, h, m):
    who, total = [e - 1 for e in h["teacher_exits"]], 0
    Gz, Gf = sum(z[i] for i in who) / len(who), sum(F[i] for i in who) / len(who)
    for i in range(len(z)):
        d = l2(Gz, z[i]) if h["distance"] == "mse" else kdt(Gz, z[i], h["temperature"], h["t_squared"])
        total = total + ce(z[i], y) + h["alpha"] * d + (h["beta"] * l2(Gf, F[i]) if h["beta"] else 0)
    return total


def ref_mate(z, F, y, h, m):
    n, b = z.shape[:2]
    alpha = (m.alpha if h["alpha"] == "auto" else h["alpha"] if isinstance(h["alpha"], list)
             else [h["alpha"]] * n)
    net, z_hat = m.weight_network, torch.zeros_like(z)
    for s in range(b):
        if h["weight_network"] == "attention":
            q, k = ([lin.weight @ F[i][s] for i in range(n)] for lin in (net.query, net.key))
            w = [torch.stack([q[j] @ k[i] for i in range(n)]).softmax(0) for j in range(n)]
        else:
            raw = net.linear(torch.stack([torch.cat([f[c] for f in F]) for c in range(b)]))
            x = (raw[s] - raw.mean(0)) / (raw.var(0, unbiased=False) + net.norm.eps).sqrt()
            w = [x[j * n:(j + 1) * n].relu().softmax(0) for j in range(n)]
        for j in range(n):
            z_hat[j, s] = sum(w[j][i] * z[i, s] for i in range(n)).detach()
    T, every = (h["temperature"], h["t_squared"]), range(n) if h["diverse_teachers"] else []
    primary = [alpha[i] + (not h["diverse_teachers"]) for i in range(n)]
    return sum(ce(z[i], y) + sum(kdt(z_hat[j], z[i], *T) for j in every)
               + primary[i] * kdt(z_hat[i], z[i], *T) for i in range(n))


def ref_dense(z, F, y, h, m):
    n, g = len(z), m.gamma
    return (sum(g[i, i] * ce(z[i], y) for i in range(n))
            + sum(g[i, j] * kdt(z[i], z[j], h["temperature"]) for i in range(n) for j in range(i)))


def ref_naive_dkd(z, F, y, h, m):
    n = len(z)
    return (sum(ce(x, y) for x in z)
            + h["lam"] * sum(kdt(z[i], z[j], h["temperature"]) for i in range(n) for j in range(i)))


def ref_hmsdnet(z, F, y, h, m):
    return sum(m.gamma[i, i] * ce(z[i], y) for i in range(len(z)))


def said(m, y):
    "What the stages of a teacher of perceptrons put out, and what its own exits say, block by block."
    x, maps = m.seen[:len(y)], []
    for b in m.teacher_net.backbone.stages:
        lin, bn = b[0], b[1]
        x = (x @ lin.weight.T + lin.bias - bn.running_mean) / (bn.running_var
            + bn.eps).sqrt() * bn.weight + bn.bias
        maps.append(x := x * (x > 0))
    return maps, [maps[s - 1] @ h.classifier.weight.T + h.classifier.bias
                  for h, s in zip(m.teacher_net.heads, m.teacher_net.at)]


def with_heads(m, y, activation):
    "The logits of the heads on a teacher's stages, then its own."
    maps, own = said(m, y)
    g = dict(none=lambda x: x, relu=lambda x: x * (x > 0), tanh=torch.tanh,
             sigmoid=lambda x: 1 / (1 + (-x).exp()))[activation]
    w = dict(m.heads.named_parameters())
    return [g(a @ w[f"heads.{i}.classifier.0.weight"].T + w[f"heads.{i}.classifier.0.bias"])
            for i, a in enumerate(maps)], own


def ref_kd(z, F, y, h, m):
    a, t = h["alpha"], said(m, y)[1][-1]
    return sum(a * kdt(t, s, h["temperature"]) + (1 - a) * ce(s, y) for s in z)


ref_fitnets = ref_takd = ref_kd   # in their last phase


def ref_dih(z, F, y, h, m):
    a, T = h["alpha"], h["temperature"]
    cohort = said(m, y)[1] if m.heads is None else sum(with_heads(m, y, h["head_activation"]), [])
    n = len(cohort)
    if h["teacher_mode"] == "cohort":
        soft = [sum(kdt(t, s, T) for t in cohort) / n for s in z]
    else:
        soft = [kdt(T * (sum((t / T).softmax(-1) for t in cohort) / n).log(), s, T) for s in z]
    times = n if h["reduction"] == "sum" and h["teacher_mode"] == "cohort" else 1
    return times * sum(a * d + (1 - a) * ce(s, y) for d, s in zip(soft, z))


def ref_dih_online(z, F, y, h, m):
    a, T, (heads, own) = h["alpha"], h["temperature"], with_heads(m, y, h["head_activation"])
    student = sum(a * sum(kdt(t, s, T) for t in [*heads, *own]) / len([*heads, *own]) + (1 - a) * ce(s, y)
                  for s in z)
    return student + sum(ce(t, y) + h["beta"] * sum(kdt(s, t, T) for s in z) / len(z) for t in heads)


def ref_dml(z, F, y, h, m):
    n = len(z)
    return sum(ce(z[i], y) + sum(kdt(z[j], z[i], h["temperature"]) for j in range(n) if j != i) / (n - 1)
               for i in range(n))


def ref_imta(z, F, y, h, m):
    return sum(ce(x, y) for x in z)   # stage 1; stage 2: tests/test_imta.py


ref_hdkd = ref_hdbt = ref_dense
REFERENCE = {k[4:]: v for k, v in list(globals().items()) if k.startswith("ref_")}
VARIANTS = [("branchynet", dict(weights=[1, 2, 3])),
            ("branchynet", dict(weights=[1, 0, 3], reduction="mean")),
            ("byot", dict(distance="mse", alpha=.5)), ("byot", dict(preset="eed", distance="mse")),
            ("byot", dict(beta=2, temperature=1)),
            ("dbt", dict(teachers="all-later", temperature=2)),
            ("dbt", dict(teachers={1: [2, 3], 3: [1]}, distance="mse", alpha=.3)),
            ("dbt", dict(preset="eed", distance="mse")), ("dks", dict(alpha=.1)),
            ("eed", dict(distance="mse", beta=1)), ("eed", dict(teacher_exits=[1, 3], beta=.5)),
            ("eed", dict(teacher_exits=[2], t_squared=False)),
            ("mate", dict(alpha=[1, 0, 7], temperature=4)), ("mate", dict(t_squared=True)),
            ("mate", dict(t_squared=True, diverse_teachers=False)),
            ("byot", dict(preset="mate", t_squared=False)), ("dks", dict(t_squared=False)),
            ("mate", dict(diverse_teachers=False)), ("mate", dict(weight_network="gate")),
            ("mate", dict(weight_network="gate", diverse_teachers=False, alpha=0)), ("mate", dict(alpha=0)),
            ("naive_dkd", dict(lam=.3)), ("hdkd", dict(start="dbt-like")), ("hdkd", dict(start="random")),
            ("hmsdnet", dict(start="random")),
            ("hdbt", dict(fixed_gamma=[[1, 0, 0], [0, 2, 0], [.5, 3, 1]])), ("hdkd", dict(temperature=1.5)),
            ("mate", dict(alpha="auto")), ("mate", dict(alpha="auto", diverse_teachers=False)),
            ("kd", dict(alpha=.4, temperature=2)), ("kd", dict(own_exits=1, alpha=1)), ("kd", dict(alpha=0)),
            ("takd", dict(alpha=.9)),
            ("fitnets", dict(temperature=1)), ("dml", dict(temperature=2)), ("dih", dict(own_exits=1)),
            ("dih", dict(own_exits=1, preset="code")),
            ("dih", dict(own_exits=1, teacher_mode="mean", alpha=.7)),
            ("dih", dict(own_exits=1, head_activation="relu", temperature=2)),
            ("dih", dict(teacher_mode="mean", reduction="sum")),
            ("dih_online", dict(own_exits=1, alpha=.3, beta=2)),
            ("dih_online", dict(head_activation="tanh", temperature=1)), ("dih_online", dict(beta=0))]
CASES = [(n, dict(preset=p)) for n, p in PAIRS if n in REFERENCE] + VARIANTS


@pytest.mark.parametrize("name,kw", CASES, ids=str)
def test_objective_is_the_equation(name, kw):
    "In its value, and in its gradient: every teacher is a constant."
    method, (out, y) = make(name, **kw), outputs()
    # mate's learn from both sides: below
    inputs = [out.logits, *out.features, *(inner(method) if name != "mate" else [])]
    got = sum(method.loss(out, y).values())
    want = REFERENCE[name](out.logits, out.features, y, method.hyper, method)
    assert got.item() == pytest.approx(want.item(), abs=1e-6, rel=1e-9)
    torch.testing.assert_close(*(torch.autograd.grad(t, inputs, allow_unused=True, materialize_grads=True)
                                 for t in (got, want)), rtol=1e-6, atol=1e-9)


def test_references_are_of_methods_that_there_are():
    assert set(REFERENCE) - {"dense"} <= set(list_methods())


DOCUMENTED = {   # methods.md: what each preset makes of the hyperparameters
    ("branchynet", "dbt"): dict(reduction="mean"),
    ("byot", "default"): dict(alpha=.3, ce_weight=.7, temperature=3, beta=0, distance="kl"),
    ("byot", "mate"): dict(alpha=1, ce_weight=1, temperature=3, beta=0),
    ("byot", "eed"): dict(alpha=.1, ce_weight=1, temperature=3, beta=1, feature="mse"),
    ("byot", "feature"): dict(alpha=.3, feature="masked"),
    ("dbt", "default"): dict(teachers="last", temperature=1, anneal=True, mu=.5, tau_star=1.05,
                             reduction="sum", alpha=1, factor=1),
    ("dbt", "paper"): dict(reduction="mean", mu=.5), ("dbt", "imagenet"): dict(reduction="mean", mu=.1),
    ("dbt", "code"): dict(reduction="mean", factor=5),
              ("dbt", "eed"): dict(alpha=.1, temperature=3, anneal=False, reduction="sum"),
    ("dks", "default"): dict(temperature=3), ("dks", "code"): dict(temperature=1),
    ("eed", "default"): dict(alpha=.1, beta=0, temperature=3, t_squared=True, teacher_exits=[1, 2, 3],
                             distance="kl"),
    ("eed", "paper"): dict(alpha=1, beta=1, temperature=3, t_squared=False),
              ("eed", "mate"): dict(alpha=1, temperature=3, t_squared=True),
    ("naive_dkd", "default"): dict(lam=1, temperature=3),
    ("hdkd", "default"): dict(start="ds-like", a=.5, ema=.9, gamma_lr=1e-3, constraint="clamp", meta_every=1,
                              reuse=False, temperature=3),
    ("hdkd", "paper"): dict(reuse=True, start="ds-like", gamma_optimizer="sgd", constraint="none",
                            meta_every=10, gamma_steps=10), ("hdbt", "default"): dict(start="dbt-like"),
    ("mate", "paper"): dict(alpha=3, temperature=3, t_squared=False),
    ("mate", "default"): dict(alpha=3, temperature=3, t_squared=False, diverse_teachers=True,
                              weight_network="attention"),
    ("imta", "default"): dict(gamma=.1, temperature=1, equilibrium=True),
              ("dml", "default"): dict(temperature=1),
    ("dih", "default"): dict(alpha=.1, temperature=5, teacher_mode="cohort", reduction="mean",
                             head_activation="none"),
    ("dih", "code"): dict(alpha=.1, temperature=5, teacher_mode="cohort", reduction="sum"),
              ("fitnets", "default"): dict(hint_epochs=40, alpha=.1, temperature=5),
    **{(n, "default"): dict(alpha=.1, temperature=5) for n in ("kd", "takd", "dih_online")},
}
RECIPES = {"kd": "dih", "dih": "dih", "dih_online": "dih", "fitnets": "dih", "takd": "dih", "dml": "dih",
           "imta": "msdnet",
           "hdkd": "hdkd-cifar", "hdbt": "hdkd-cifar", "hmsdnet": "hdkd-cifar", "naive_dkd": "hdkd-cifar"}


@pytest.mark.parametrize("name,preset", DOCUMENTED, ids=str)
def test_presets_are_as_documented(name, preset):
    hyper = make(name, preset).hyper
    assert {k: hyper[k] for k in DOCUMENTED[name, preset]} == DOCUMENTED[name, preset]


@pytest.mark.parametrize("name", RECIPES)
def test_the_papers_preset_means_its_schedule(name):
    assert preset_recipe(name, "paper") == RECIPES[name] and preset_recipe(name) is None
    if name in LEARNED:
        assert preset_recipe(name, "imagenet") == "hdkd-imagenet" and make(name, "imagenet").reuse


def test_what_a_run_meant_before_a_change_it_means_after_it():
    "A record without a note is of a time when MATE had T², and `paper` was another thing in eed and hdkd."
    for preset in ("default", "paper"):
        assert as_meant("mate", preset, {"alpha": 1.}) == {"alpha": 1., "t_squared": True}
        assert as_meant("mate", preset, {"alpha": 1.}, CHANGES) == {"alpha": 1.}
    assert as_meant("eed", "paper", {}) == {"beta": 0.}
    assert as_meant("eed", "default", {}) == {} == as_meant("nobody", "default", {})
    before = make("hdkd", "paper", **as_meant("hdkd", "paper", dict(reuse=False))).hyper
    assert before == make("hdkd").hyper
    assert all_as_meant("mate", {"alpha": 1.}) == make("mate").hyper | {"alpha": 1., "t_squared": True}
    assert all_as_meant("mate", {"alpha": 1.}, CHANGES) == {"alpha": 1.}


def test_a_run_recorded_before_the_changes_is_read_as_it_was(tmp_path):
    "Its params.json knows no number of changes."
    parameters = dict(dataset="digits", model="msdnet", model_args={"step": 2}, method="mate", preset="paper",
                      method_args={"alpha": 1.})
    (tmp_path/"params.json").write_text(
        json.dumps(dict(parameters=parameters, num_classes=10, image_size=96)))
    now = Run.load(tmp_path).parameters
    assert now["method_args"] == {"alpha": 1., "t_squared": True}
    assert now["model_args"] == {"step": 2, "stem": "imagenet"}
    assert ({k: v for k, v in now.items() if not k.endswith("_args")}
            == {k: v for k, v in parameters.items() if not k.endswith("_args")})


def test_mate_takes_a_network_in_float64():
    (out, y), method = outputs(), make("mate", dtype=torch.float32)
    got, want = method.loss(out, y), make("mate").loss(out, y)
    for k in want:
        torch.testing.assert_close(got[k].double(), want[k].double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name,preset", PAIRS)
def test_what_a_distillation_weighs_is_a_number(name, preset):
    "Exits without a teacher get nothing from it."
    method, pull = make(name, preset), pulls(name, preset)
    assert len(pull) == 3 and all(math.isfinite(p) and p >= 0 for p in pull)
    if not method.needs_teacher() and name != "imta":     # whose second phase has one
        assert [p > 0 for p in pull] == [len(t) > 0 for t in method.teacher_logits(outputs()[0])]


def test_every_preset_names_a_recipe_that_some_method_owns():
    named = {preset_recipe(name, preset) for name, preset in PAIRS} - {None}
    assert named <= set(method_recipes())


def test_mse_has_weight_one_where_kl_has_a_tenth():
    for name, preset in (("eed", "default"), ("byot", "eed"), ("dbt", "eed")):
        assert make(name, preset).hyper["alpha"] == .1
        assert make(name, preset, distance="mse").hyper["alpha"] == 1


# ---------------------------------------------------------------- wrong input
@pytest.mark.parametrize("kw,says", [
    (dict(name="mat"), "unknown method 'mat'. Did you mean 'mate'"), (dict(alfa=1), "Did you mean 'alpha'?"),
    (dict(preset="papr"), "Did you mean 'paper'?"), (dict(alpha=-1), "alpha=-1: expected .* ≥ 0"),
    (dict(alpha="three"), "alpha='three'"),
    (dict(alpha=[1, 2]), r"one per exit \(3\)"), (dict(alpha=[1, 2, -3]), "≥ 0"),
    (dict(alpha=True), "alpha=True"),
    (dict(alpha=float("nan")), "alpha=nan"), (dict(temperature=0), "temperature=0: expected number ≥ 0.1"),
    (dict(temperature=[3]), "temperature"),
    (dict(weight_network="gates"), "'attention' | 'gate'"), (dict(diverse_teachers=1), "true or false"),
    (dict(name="eed", teacher_exits=[4]), "1 … 3"), (dict(name="eed", teacher_exits=[0]), "≥ 1"),
    (dict(name="eed", teacher_exits=[]), "1 … 3"),
    (dict(name="eed", teacher_exits=[1.5]), "whole number"),
    (dict(name="eed", distance="l1"), "'kl' | 'mse'"),
    (dict(name="dbt", teachers="first"), "'last' | 'all-later'"),
    (dict(name="dbt", teachers={1: [9]}), "exits 1 … 3"),
    (dict(name="dbt", teachers={0: [1]}), "exits 1 … 3"),
    (dict(name="dbt", teachers={2: [2]}), "none teaching itself"),
    (dict(name="dbt", mu=1.5), "0 … 1"), (dict(name="dbt", tau_star=.9), "≥ 1"),
    (dict(name="dbt", num_unlabelled=5), "num_train"),
    (dict(name="byot", alpha=2), "at most 1"),
    (dict(name="baseline", alpha=2), "unknown hyperparameter of baseline 'alpha'"),
    (dict(name="branchynet", weights=[1]), "one per exit"), (dict(num_exits=0), "num_exits=0"),
    (dict(num_classes=1), "num_classes=1"),
    (dict(name="hdkd", fixed_gamma=[[1, 0, 0]]), "3 rows of 3"),
    (dict(name="hdkd", fixed_gamma=[[1, 0, 0], [0, -1, 0], [0, 0, 1]]), "≥ 0"),
    (dict(name="hdbt", fixed_gamma=[[1, 0, 0], [1, 1, 0], [1, 1, 1]]), "no objective"),
    (dict(name="hdkd", meta_every=0), "≥ 1"),
    (dict(name="hdkd", constraint="clip"), "'clamp' | 'none' | 'simplex'"), (dict(name="hdkd", a=2), "0 … 1"),
    (dict(num_train=-3), "num_train=-3"), (dict(num_exits=4), "one width per exit")], ids=str)
def test_wrong_input_is_answered_in_one_line(kw, says):
    with pytest.raises(InputError, match=says) as e:
        make(**dict(name="mate") | kw)
    assert "\n" not in str(e.value)


def test_numbers_are_taken_as_people_write_them():
    assert make("mate", alpha=3).hyper["alpha"] == 3.0
    assert make("mate", alpha=(1, 2, 3)).hyper["alpha"] == [1., 2., 3.]
    assert make("dbt", teachers={1: (2, 3)}).teacher_logits(outputs()[0])[0].shape[0] == 2


@pytest.mark.parametrize("name", list_methods())
def test_help_names_every_hyperparameter(name):
    table, cls = describe_method(name), _discover()[name]
    names = [p.name for p in inspect.signature(cls.__init__).parameters.values() if p.kind is p.KEYWORD_ONLY]
    assert list(table.index) == names and cls.__doc__ and cls.__doc__ != Method.__doc__
    if names:
        assert all(table["meaning"]) and all(table["type"])


def test_a_method_in_a_cell_is_a_method_everywhere():
    class Halved(Method):
        "share · Σ CE_i."
        def __init__(self, task, *, share: Annotated[float, Param("share", low=0)] = .5):
            super().__init__(task)
            self.share = share

        def loss(self, out, targets):
            return {"ce": self.share * self.ce(out.logits, targets).sum()}

    register("halved")(Halved)
    try:
        (out, y), method = outputs(), make("halved")
        assert "halved" in list_methods()
        assert (method.loss(out, y)["ce"].item()
                == pytest.approx(make("branchynet").loss(out, y)["ce"].item() / 2))
        with pytest.raises(InputError, match="Did you mean 'share'"):
            make("halved", shore=1)
    finally:
        register._items.pop("halved")


def test_a_new_network_with_a_dead_ones_id_is_prepared_as_well(monkeypatch):
    "Addresses are used again: what a method is ready for cannot be known by `id`."
    monkeypatch.setattr(methods, "id", lambda thing: 7, raising=False)
    method, nets = make("imta"), [ToyNet() for _ in range(3)]
    assert [len(method.ready(net).student.net.links) for net in nets] == [2, 2, 2]
    teacher = method.teacher
    assert method.ready(nets[-1]).teacher is teacher       # once for each


@pytest.mark.parametrize("name", list_methods())
def test_another_number_of_exits_is_refused(name):
    method, (out, y) = make(name), outputs()
    with pytest.raises(InputError, match=f"num_exits=2: expected the 3 exits that {name} was made for"):
        method(MultiExitOutput(out.logits[:2], out.features[:2]), y)
    with pytest.raises(InputError, match="num_exits=2"):
        method.ready(ToyNet(num_exits=2))


def test_task_is_frozen():
    with pytest.raises(AttributeError):
        Task(3, 5).num_exits = 4


def test_label_smoothing_reaches_every_method():
    for name in list_methods():
        method, (out, y) = make(name), outputs()
        plain = method.loss(out, y)["ce"].item()
        method.label_smoothing = .1
        assert method.loss(out, y)["ce"].item() != pytest.approx(plain)


# ---------------------------------------------------------------- efficiency
class Largest(TorchDispatchMode):
    "Notes the largest tensor any operation makes."
    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(t, torch.Tensor):
                self.numel = max(self.numel, t.numel())
        return out


@pytest.mark.parametrize("name", list_methods())
def test_no_tensor_of_all_pairs_times_classes(name):
    m, b, k = 11, 16, 300
    method, (out, y) = make(name, num_exits=m, num_classes=k, dims=(D,) * m,
                            dtype=torch.float32), outputs(torch.float32, m=m, b=b, k=k)
    with Largest() as seen:
        sum(method.loss(out, y).values()).backward()
    assert seen.numel <= 2 * m * b * k


def test_operations_do_not_grow_with_exits():
    class Count(TorchDispatchMode):
        n = 0
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.n += 1
            return func(*args, **(kwargs or {}))
    for name in list_methods():
        counts = []
        for m in (3, 9):
            method, (out, y) = make(name, num_exits=m, dims=(D,) * m), outputs(m=m)
            with Count() as c:
                method.loss(out, y)
            counts.append(c.n)
        assert counts[0] == counts[1], name


# ---------------------------------------------------------------- dbt
def test_temperature_rises_after_the_batch_and_never_falls():
    (out, y), method, z = outputs(), make("dbt"), torch.zeros(M, B, K)
    sure, unsure = z.clone(), MultiExitOutput(z)
    sure[..., 0] = 18
    sure, tau = MultiExitOutput(sure), lambda: method.record()["temperature"]
    before = method.loss(out, y)["kd"].item()
    assert method.loss(sure, y) and tau() == 1
    method.after_step(sure)
    assert tau() == pytest.approx(1.05) and method.loss(out, y)["kd"].item() != pytest.approx(before)
    method.after_step(unsure)
    assert tau() == pytest.approx(1.05)
    for _ in range(200):
        method.after_step(sure)
    def confidence(t):
        return math.exp(18 / t) / (math.exp(18 / t) + K - 1)
    assert confidence(tau()) <= .5 < confidence(tau() / 1.05)   # it stops at the first step below μ


def test_a_fixed_temperature_stays():
    method = make("dbt", anneal=False, temperature=2)
    steps(method)
    assert method.record() == {"temperature": 2.} and make("dbt", "eed").record() == {"temperature": 3.}


def test_only_teachers_confidence_counts():
    z = torch.zeros(M, B, K)
    z[0, :, 0] = 99
    method = make("dbt")
    method.after_step(MultiExitOutput(z))
    assert method.record()["temperature"] == 1
    mixed = {c: make("dbt", teachers={1: [2, 3]}, confidence=c, mu=.8)
             for c in ("mean-of-max", "max-of-mean")}
    z2 = torch.zeros(M, B, K)
    z2[1, :, 1], z2[2, :, 2] = 99, 99   # both sure, of different classes
    for m in mixed.values():
        m.after_step(MultiExitOutput(z2))
    assert [m.record()["temperature"] for m in mixed.values()] == pytest.approx([1.05, 1])


def _worker(rank, world, port, queue):
    import torch.distributed as dist
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    z = torch.zeros(M, B, K)
    if rank == 0:
        z[..., 0] = 99   # confidence 1 here and 1/5 there: 0.6 on average
    temperatures = []
    for mu in (.5, .7):
        method = create_method("dbt", num_exits=M, num_classes=K, mu=mu)
        method.after_step(MultiExitOutput(z))
        temperatures.append(method.record()["temperature"])
    queue.put((rank, temperatures))
    dist.destroy_process_group()


@pytest.mark.slow
def test_confidence_is_averaged_over_processes():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    ctx = torch.multiprocessing.get_context("spawn")
    queue = ctx.Queue()
    procs = [ctx.Process(target=_worker, args=(r, 2, port, queue)) for r in range(2)]
    for p in procs:
        p.start()
    got = dict(queue.get(timeout=120) for _ in procs)
    for p in procs:
        p.join(60)
    assert got[0] == got[1] == pytest.approx([1.05, 1.])


def test_semi_supervised_is_equation_6():
    "Over batches of any one mix, the mean of the batch objectives is the objective on all data."
    n, u = 6, 18
    out, y = outputs(b=n + u)
    out = out.detach()
    y[n:] = -1
    method = make("dbt", num_train=n, num_unlabelled=u, temperature=2, anneal=False)
    whole = (sum(ce(z[:n], y[:n]) for z in out.logits)
             + sum(kdt(out.logits[-1], z, 2.) for z in out.logits[:-1]))
    # 1:3 is the mix of the data, the others are not
    for labelled, unlabelled in ((6, 18), (2, 6), (2, 2), (1, 9), (3, 3)):
        batches = max(n // labelled, u // unlabelled)
        total = 0
        for i in range(batches):
            rows = ([(i * labelled + r) % n for r in range(labelled)]
                    + [n + (i * unlabelled + r) % u for r in range(unlabelled)])
            total = total + sum(method.loss(out[torch.tensor(rows)], y[rows]).values()) / batches
        assert total.item() == pytest.approx(float(whole), rel=1e-9), (labelled, unlabelled)


@pytest.mark.parametrize("label", [-1, -100])
def test_a_batch_without_labels_distils(label):
    method, (out, _) = make("dbt", num_train=10, num_unlabelled=30), outputs()
    terms = method.loss(out, torch.full((B,), label))
    assert terms["ce"] == 0
    assert terms["kd"].item() == pytest.approx(.75
                                               * float(sum(kdt(out.logits[-1], z, 1.)
                                                           for z in out.logits[:-1]).detach()))
    g = torch.autograd.grad(sum(terms.values()), out.logits)[0]
    assert g.isfinite().all() and g[:-1].any() and not g[-1].any()


def test_unlabelled_is_needed_only_with_unlabelled_data():
    assert "unlabelled" in make("dbt", num_train=5, num_unlabelled=5).needs
    assert "unlabelled" not in make("dbt", num_train=5).needs
    assert Method.needs == frozenset()
    assert "unlabelled" not in make("eed", num_train=5, num_unlabelled=5).needs


# ---------------------------------------------------------------- mate
def distil(m, z_hat, z):
    "MATE's distillation from given teachers."
    alpha = m.hyper["alpha"] if isinstance(m.hyper["alpha"], list) else [m.hyper["alpha"]] * M
    every = m.hyper["diverse_teachers"]
    return sum((every or i == j) * kdt(z_hat[j], z[i], 3., m.hyper["t_squared"])
               + (i == j) * alpha[i] * kdt(z_hat[j], z[i], 3., m.hyper["t_squared"]) for i in range(M)
               for j in range(M))


@pytest.mark.parametrize("kw",
                         [{}, dict(weight_network="gate"), dict(diverse_teachers=False),
                          dict(alpha=[0, 1, 9])], ids=str)
def test_mate_routes_its_gradient(kw):
    method, (out, y) = make("mate", **kw), outputs()
    theta = list(method.parameters())
    g_z, *g_F = torch.autograd.grad(sum(method.loss(out, y).values()), [out.logits, *out.features],
                                    allow_unused=True, retain_graph=True)
    assert all(g is None for g in g_F)
    # the network's share: teachers are constants
    w = method.weights(out).detach()
    g_again = torch.autograd.grad(sum(method.ce(out.logits, y))
                                  + distil(method, mix_teachers(w, out.logits).detach(), out.logits),
                                  out.logits)[0]
    torch.testing.assert_close(g_again, g_z)
    # the weight network's share: exits are constants
    g_theta = torch.autograd.grad(sum(method.loss(out, y).values()), theta)
    fixed = torch.autograd.grad(sum(method.loss(out.detach(), y).values()), theta)
    for a, b in zip(g_theta, fixed):
        torch.testing.assert_close(a, b)
    assert all(g.any() for g in g_theta)


@pytest.mark.parametrize("net", ["attention", "gate"])
def test_mate_weights_are_shares_and_its_teachers_mixtures(net):
    method, (out, _y) = make("mate", weight_network=net), outputs()
    steps(method)
    for mode in (True, False):
        w = method.train(mode).weights(out)
        torch.testing.assert_close(w.sum(-1), torch.ones(B, M, dtype=w.dtype))
        torch.testing.assert_close(method.observe(out)["weights"], w.mean(0))
        for j, t in enumerate(method.teacher_logits(out)):
            torch.testing.assert_close(t[0], sum(w[:, j, i, None] * out.logits[i] for i in range(M)).detach())


def test_gate_learns_its_statistics_after_the_step_and_uses_them_in_evaluation():
    method, (out, _y) = make("mate", weight_network="gate"), outputs()
    before = state(method)
    steps(method)
    after = state(method)
    assert not torch.equal(before["weight_network.norm.running_mean"],
                           after["weight_network.norm.running_mean"])
    assert after["weight_network.norm.num_batches_tracked"] == 3
    method.eval()
    # one sample at a time gives the same
    torch.testing.assert_close(method.weights(out[:1]), method.weights(out)[:1])
    method.after_step(out.detach())
    assert not method.training and not method.weight_network.norm.training


def test_mate_hidden_width_is_an_eighth():
    assert {tuple(p.shape) for p in make("mate").parameters()} == {(D // 8, D)}
    assert all(p.shape == (1, 4) for p in make("mate", dims=(4,) * M).parameters())


# ---------------------------------------------------------------- eed
def test_the_ensemble_is_constant():
    method, (out, y) = make("eed", teacher_exits=[3], alpha=1, distance="mse", beta=1), outputs()
    terms = method.loss(out, y)
    assert not torch.autograd.grad(terms["kd"], out.logits)[0][2].any()
    g = torch.autograd.grad(terms["feature"], out.features)
    assert g[0].any() and not g[2].any()


# ---------------------------------------------------------------- hdkd
LEARNED = ("hdkd", "hdbt", "hmsdnet")


class TinyCNN(torch.nn.Module):
    "Convolutions and batch normalisation, an exit after each of three blocks."
    def __init__(self, width=4):
        super().__init__()
        nn = torch.nn
        self.blocks = nn.ModuleList(nn.Sequential(nn.Conv2d(width if m else 3, width, 3, 2, 1, bias=False),
                                                  nn.BatchNorm2d(width), nn.ReLU())
                                    for m in range(M))
        self.heads = nn.ModuleList(nn.Linear(width, K) for _ in range(M))

    def forward(self, x):
        z = []
        for block, head in zip(self.blocks, self.heads):
            z.append(head((x := block(x)).mean((2, 3))))
        return MultiExitOutput(torch.stack(z))


def meta_step(dtype=torch.float64, lr=.3, number=0, seed=0, **kw):
    torch.manual_seed(seed)
    net, b = TinyCNN().to(dtype), 7
    x, val_x = torch.randn(2, b, 3, 8, 8, dtype=dtype)
    return Step(net, x, torch.arange(b) % K, lr, number, val_x, (torch.arange(b) + 2) % K, **kw)


def through_the_step(method, s):
    "∂L_val/∂γ with the gradient step in the graph, by PyTorch's reverse mode twice."
    net, theta = copy.deepcopy(s.net), {k: p.detach().requires_grad_() for k, p in s.net.named_parameters()}
    gamma = method.gamma.clone().requires_grad_()
    def run(t, x):
        return torch.func.functional_call(net, t, (x,))
    train = (gamma * method.objectives(run(theta, s.x), s.targets)).sum()
    grads = torch.autograd.grad(train, list(theta.values()), create_graph=True)
    after = {k: p - s.lr * g for (k, p), g in zip(theta.items(), grads)}
    ces = torch.stack([torch.nn.functional.cross_entropy(z, s.val_targets)
                       for z in run(after, s.val_x).logits])
    E = torch.where(method.expected > 0, method.expected, ces.detach())
    val = method.a * ces.sum() + (1 - method.a) * torch.log1p(torch.exp(ces / E - 1)).sum()
    return torch.autograd.grad(val, gamma)[0]


@pytest.mark.parametrize("name", LEARNED)
@pytest.mark.parametrize("a", [0., .5, 1.])
def test_hypergradient_is_differentiating_through_the_step(name, a):
    method, s = make(name, a=a, start="random"), meta_step()
    for _ in range(2):   # the second time with expectations of its own
        got, want = method.gamma_gradient(s)[0], through_the_step(method, s) / s.lr
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-12)
        assert got.tril().any() and not got.triu(1).any()
        method.expected.copy_(torch.tensor([1., 2., .5]))


def test_hypergradient_on_a_real_network():
    from multiexit_nb.models import create_model
    torch.manual_seed(0)
    net = create_model("resnet8", num_classes=K, image_size=32).double()
    method = make("hdkd", num_exits=net.num_exits, dims=net.feature_dims, start="random")
    x, val_x = torch.randn(2, 4, 3, 32, 32, dtype=torch.float64)
    s = Step(net, x, torch.arange(4), .1, 0, val_x, torch.arange(4))
    torch.testing.assert_close(method.gamma_gradient(s)[0], through_the_step(method, s) / s.lr, rtol=1e-6,
                               atol=1e-12)


def test_hypergradient_in_bfloat16_is_that_of_float32_but_for_rounding():
    "The losses, and the expectations that they move, stay in float32."
    method = make("hdkd", dtype=torch.float32, start="random")
    found = {}
    for precision in ("fp32", "bf16"):
        turns = [method.gamma_gradient(meta_step(torch.float32, seed=i, precision=precision))
                 for i in range(8)]
        found[precision] = torch.stack([g for g, _ in turns])
        assert {ce.dtype for _, ce in turns} == {torch.float32}
    off = (found["fp32"] - found["bf16"]).norm()/found["fp32"].norm()
    assert 0 < off < 0.3


def test_known_gradients_save_a_pass_and_change_nothing():
    method, s = make("hdkd"), meta_step()
    terms = method.loss(s.net(s.x), s.targets)   # as the training step computes them
    grads = dict(zip(dict(s.net.named_parameters()),
                     torch.autograd.grad(sum(terms.values()), list(s.net.parameters()))))
    torch.testing.assert_close(method.gamma_gradient(meta_step(grads=grads))[0], method.gamma_gradient(s)[0])
    calls, forward = [], TinyCNN.forward
    class Counting(TinyCNN):
        def forward(self, x):
            calls.append(1)
            return forward(self, x)
    for known, n in ((None, 3), (grads, 2)):
        calls.clear()
        s.net.__class__ = Counting
        method.gamma_gradient(Step(s.net, s.x, s.targets, s.lr, 0, s.val_x, s.val_targets, known))
        assert len(calls) == n


@pytest.mark.parametrize("name", LEARNED)
def test_gamma_moves_and_leaves_no_trace(name):
    method, s = make(name), meta_step()
    before = {k: v.clone() for k, v in s.net.state_dict().items()}
    gamma = method.gamma.clone()
    rng = torch.get_rng_state()
    with torch.no_grad():
        method.before_step(s)
    assert same(before, s.net.state_dict()) and torch.equal(rng, torch.get_rng_state()) and s.net.training
    assert all(p.grad is None and p.requires_grad for p in s.net.parameters())
    learned = method.learned(M).bool()
    assert (method.gamma != gamma)[learned].all() and torch.equal(method.gamma[~learned], gamma[~learned])
    # Adam's first step is its rate
    assert (method.gamma - gamma).abs().max() <= 1.01e-3 and not method.gamma.requires_grad


def test_a_compiled_network_is_passed_by():
    method, s = make("hdkd"), meta_step()
    want = method.gamma_gradient(s)[0]
    def compiled(*a, **kw):
        raise AssertionError("forward mode through a compiled network")
    s.net._compiled_call_impl = compiled
    torch.testing.assert_close(method.gamma_gradient(s)[0], want)


def test_gamma_pass_is_float32_under_autocast():
    method, s = make("hdkd", dtype=torch.float32), meta_step(torch.float32)
    want = method.gamma_gradient(s)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = method.gamma_gradient(s)[0]
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, want)


def test_expectations_start_at_the_first_value_and_follow():
    method, seen = make("hdkd", ema=.9), []
    for i in range(3):
        s = meta_step(seed=i)
        seen.append(method.gamma_gradient(s)[1])
        method.before_step(s)
    E = seen[0]
    for c in seen[1:]:
        E = .9 * E + .1 * c
    torch.testing.assert_close(method.expected, E)


@pytest.mark.parametrize("constraint", ["clamp", "none", "simplex"])
def test_constraints(constraint):
    method = make("hdkd", constraint=constraint, gamma_lr=.4)
    total = method.gamma.sum()
    for i in range(12):
        # all to fall
        g = (torch.rand(M, M, generator=torch.Generator().manual_seed(i), dtype=torch.float64)
             + .5 * torch.eye(M))
        method.gamma_gradient = lambda s, g=g: (g, torch.ones(M, dtype=torch.float64))
        method.before_step(meta_step())
    assert (method.gamma.min() < 0) == (constraint == "none") and not method.gamma.triu(1).any()
    assert torch.isclose(method.gamma.sum(), total) == (constraint == "simplex")
    if constraint == "clamp":
        assert not method.gamma.any()


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=8), st.floats(.1, 9))
def test_projection_is_the_nearest(x, total):
    x, total = torch.tensor(x, dtype=torch.float64), torch.tensor(total, dtype=torch.float64)
    p = onto_simplex(x, total)
    assert p.min() >= 0 and torch.isclose(p.sum(), total)
    w = torch.distributions.Dirichlet(torch.ones(len(x), dtype=torch.float64)).sample((200,)) * total
    assert (((w - x)**2).sum(1) >= ((p - x)**2).sum() - 1e-9).all()


def test_algorithm_1_as_printed():
    "T steps of γ by plain descent, each on images of its own, then T of the network."
    method, drawn = make("hdkd", "paper"), []
    want, first = method.gamma.clone(), meta_step()
    def draw():
        s = meta_step(seed=len(drawn) + 1)
        drawn.append(s)
        return s.x, s.targets, s.val_x, s.val_targets
    by_hand = make("hdkd", "paper")
    for i in range(10):
        s = first if i == 0 else replace(meta_step(seed=i), net=first.net)
        gradient, ce = by_hand.gamma_gradient(s)
        want = want - .1 * s.lr * gradient
        by_hand.gamma.copy_(want)
        by_hand.expected.copy_(ce if i == 0 else .9 * by_hand.expected + .1 * ce)
    method.before_step(replace(first, draw=draw))
    torch.testing.assert_close(method.gamma, want)
    assert len(drawn) == 9
    for number in range(1, 10):
        method.before_step(replace(first, number=number, draw=draw))
    assert torch.equal(method.gamma, want) and len(drawn) == 9


def test_meta_every_and_fixed_gamma():
    method, moved = make("hdkd", meta_every=3), []
    for i in range(7):
        before = method.gamma.clone()
        method.before_step(meta_step(seed=i, number=i))
        moved.append(not torch.equal(before, method.gamma))
    assert moved == [True, False, False, True, False, False, True] and "val" in method.needs
    rows = [[1, 0, 0], [.25, 1, 0], [0, .5, 2]]
    fixed = make("hdkd", fixed_gamma=rows)
    fixed.before_step(meta_step())
    assert fixed.record() == {"gamma": rows} and "val" not in fixed.needs
    torch.testing.assert_close(make("hdkd", fixed_gamma=method.record()["gamma"]).gamma, method.gamma,
                               rtol=1e-6, atol=1e-6)


def test_gamma_resumes_bit_for_bit():
    one = make("hdkd", start="random", dtype=torch.float32)
    two = make("hdkd", start="random", dtype=torch.float32, seed=1)
    for i in range(4):
        one.before_step(meta_step(torch.float32, seed=i))
    two.load_state_dict({k: v.clone() for k, v in one.state_dict().items()})
    for i in range(4, 8):
        [m.before_step(meta_step(torch.float32, seed=i)) for m in (one, two)]
    assert same(state(one), state(two)) and one.record() == two.record()


def test_adam_is_pytorchs():
    ours, theirs = torch.ones(3, 3), torch.ones(3, 3, requires_grad=True)
    mine, opt = Adam(ours, lr=.05), torch.optim.Adam([theirs], lr=.05)
    for i in range(50):
        g = torch.randn(3, 3, generator=torch.Generator().manual_seed(i))
        ours, theirs.grad = mine(ours, g), g
        opt.step()
    torch.testing.assert_close(ours, theirs.detach())


HDKD_OPTIONS = [dict(start="random"), dict(start="dbt-like"), dict(a=.9), dict(ema=.2), dict(gamma_lr=.02),
                dict(constraint="simplex"),
                dict(meta_every=2), dict(temperature=1),
                dict(fixed_gamma=[[1, 0, 0], [.5, 1, 0], [.5, 1, 1]])]


@pytest.mark.parametrize("option", HDKD_OPTIONS, ids=str)
def test_every_option_of_hdkd_leads_to_another_gamma(option):
    def trained(**kw):
        method = make("hdkd", **kw)
        for i in range(4):
            method.before_step(meta_step(seed=i, number=i, lr=1.))
        return method
    usual, other = trained(), trained(**option)
    assert not torch.allclose(usual.gamma, other.gamma, rtol=1e-6, atol=0)
    assert other.hyper | option == other.hyper
    if "fixed_gamma" in option:
        assert other.gamma.tolist() == option["fixed_gamma"] and not other.expected.any()
    else:
        assert (other.gamma != make("hdkd", **option).gamma).tril().any()


@pytest.mark.parametrize("rate", [1e-3, .05])
def test_gamma_moves_at_its_own_rate(rate):
    method = make("hdkd", gamma_lr=rate)
    before = method.gamma.clone()
    method.before_step(meta_step())
    torch.testing.assert_close((method.gamma - before).abs(),
                               rate * torch.ones(M, M, dtype=torch.float64).tril(), rtol=1e-3, atol=1e-12)


@pytest.mark.parametrize("ema", [0., .5, 1.])
def test_expectations_follow_at_their_momentum(ema):
    method = make("hdkd", ema=ema)
    first, second = (method.gamma_gradient(meta_step(seed=i))[1] for i in range(2))
    method.before_step(meta_step(seed=0))
    torch.testing.assert_close(method.expected, first)
    method.gamma_gradient = lambda s: (torch.zeros(M, M, dtype=torch.float64), second)
    method.before_step(meta_step(seed=1))
    torch.testing.assert_close(method.expected, ema * first + (1 - ema) * second)


@pytest.mark.parametrize("name,kw", [("hdkd", {}), ("mate", dict(alpha="auto"))])
def test_learned_weights_go_on_where_the_learning_rate_falls(name, kw, monkeypatch):
    """ξ is a factor of the hypergradient, and Adam remembers its size for a thousand steps: without care γ
    stands still after a milestone."""
    method, where, way = make(name, **kw), "gamma" if name == "hdkd" else "alpha", {}
    def same_images_again(objectives, val_loss, theta, weights, lr, *a):
        return -lr * torch.ones_like(weights), torch.ones(M, dtype=torch.float64)
    monkeypatch.setattr(hypergradient, "hypergradient", same_images_again)
    for lr in (.1, .01):
        before = getattr(method, where).clone()
        for i in range(20):
            method.before_step(meta_step(lr=lr, number=i))
        way[lr] = (getattr(method, where) - before).max().item()
    assert way[.01] == pytest.approx(way[.1], rel=.01) and way[.1] == pytest.approx(.02, rel=.01)


def test_random_starts_are_uniform_and_follow_the_seed():
    gammas = torch.stack([make("hdkd", start="random", seed=s).gamma[torch.ones(M, M).tril().bool()]
                          for s in range(60)])
    assert 0 <= gammas.min() < .05 and .95 < gammas.max() < 1 and abs(gammas.mean() - .5) < .06
    assert torch.equal(make("hdkd", start="random", seed=7).gamma, make("hdkd", start="random", seed=7).gamma)


def test_teachers_of_dense_methods():
    out, _ = outputs()
    n = {name: [len(t) for t in make(name).teacher_logits(out)] for name in (*LEARNED, "naive_dkd")}
    assert n == dict(hdkd=[2, 1, 0], naive_dkd=[2, 1, 0], hdbt=[1, 1, 0], hmsdnet=[0, 0, 0])
    assert torch.equal(make("hdbt").teacher_logits(out)[0][0], out.logits[-1])


# ---------------------------------------------------------------- all together
# which trains no perceptron: tests/test_imta.py
@pytest.mark.parametrize("name", [n for n in list_methods() if n != "imta"])
def test_it_learns_digits(name):
    last = [r["accuracy"] for r in toy_run(name, epochs=10,
                                           **(dict(meta_every=10) if name in LEARNED else {}))
            if r["epoch"] == 10]
    assert last[-1] > 75 and (name in SILENT or min(last) > 75)


def test_the_toy_repeats_itself():
    assert toy_run("mate", epochs=2) == toy_run("mate", epochs=2)
