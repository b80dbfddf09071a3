"""Every method on two real networks, a tiny CNN and a tiny MSDNet; gradient equilibrium and links, which
change the network instead; and α of MATE, adapted as HDKD adapts γ."""
import copy
import math

import pytest
import torch
from every_method import one_of_each_kind
from torch import nn

from multiexit_nb.attach import attach_exits
from multiexit_nb.backbones import Backbone
from multiexit_nb.core import InputError
from multiexit_nb.exits import GlobalPool, Head, MultiExitNet, plain_gradient, scale_gradient
from multiexit_nb.export import segments
from multiexit_nb.finished import FinishedNet
from multiexit_nb.inference import early_exit
from multiexit_nb.methods import Method, Step, create_method, list_methods
from multiexit_nb.models import create_model, model_options
from multiexit_nb.msdnet import MSDNet
from multiexit_nb.outputs import Outputs
from multiexit_nb.policies import Policy, simulate

K, B, SIZE = 4, 6, 16
NAMES = list_methods()
# exits that are meant to get no gradient
SILENT = {"baseline": {0, 1}}


def cnn(**kw):
    return create_model("tiny", K, SIZE, at=[1, 3], width=2, **kw)


def msdnet(**kw):
    return create_model("msdnet", K, SIZE, num_exits=3, channels=4, growth=2, **kw)


NETS = dict(cnn=cnn, msdnet=msdnet)


@pytest.fixture(params=NETS)
def build(request):
    torch.manual_seed(0)
    return NETS[request.param]


def images(seed=0, dtype=torch.float32, n=B):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, SIZE, SIZE, generator=g, dtype=torch.float64).to(dtype), torch.randint(K, (n,),
        generator=g)


def made(name, net, **kw):
    """The method, in its last phase; with an untrained network of the same kind as the teacher, where it
    has one."""
    method = create_method(name, num_exits=net.num_exits, num_classes=K, feature_dims=net.feature_dims, **kw)
    if method.needs_teacher():
        torch.manual_seed(3)
        method.set_teacher(NETS["msdnet" if isinstance(net.backbone, MSDNet) else "cnn"]())
    return method.ready(net)


def state(m):
    return {k: v.clone() for k, v in m.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def one_step(net, method, opt, i, lr=.05):
    "A training step, as the trainer takes it; its loss."
    (x, y), (xv, yv) = images(2*i), images(2*i + 1)
    out = net.train()(x)
    loss = sum(method(out, y, **method.extra(x)).values())
    opt.zero_grad()
    loss.backward()
    grads = {k: p.grad for k, p in net.named_parameters() if p.grad is not None}
    if "val" in method.needs:
        method.before_step(Step(net, x, y, lr, i, xv, yv, grads))
    opt.step()
    with torch.no_grad():
        method.after_step(out.detach())
    return loss.item()


def main_phase(net, method):
    "The one that trains the network by `loss`."
    return next(p for p in method.phases(net) if p.learner is net)


def optimizer(net, method):
    return torch.optim.SGD(main_phase(net, method).parameters(), .05, .9)


# ---------------------------------------------------------------- every method, on both networks
@pytest.mark.parametrize("name", NAMES)
def test_terms_are_finite_and_the_right_exits_get_gradient(name, build):
    net = build()
    method, (x, y) = made(name, net), images()
    before, of_method = state(net), state(method)
    out, extra = net.eval()(x), method.extra(x)
    terms = method.loss(out, y, **extra)
    assert same(before, net.state_dict()) and same(of_method, method.state_dict())
    assert all(v.shape == () and v.dtype == torch.float32 and v.isfinite() for v in terms.values())
    torch.testing.assert_close(sum(method(out, y, **extra).values()), sum(terms.values()))
    sum(terms.values()).backward()
    reached = [any(bool(p.grad is not None and p.grad.any()) for p in h.parameters()) for h in net.heads]
    assert reached == [m not in SILENT.get(name, set()) for m in range(net.num_exits)]
    assert all(any(p.grad.any() for p in s.parameters()) for s in net.backbone.stages)
    assert all(p.grad.isfinite().all() for p in net.parameters() if p.grad is not None)
    assert method.teacher_net is None or all(p.grad is None for p in method.teacher_net.parameters())


FAST = one_of_each_kind()


def on(fast_nets):
    "Every method on both networks; fast is one of each kind, on these."
    return [pytest.param(net, n, marks=() if n in FAST and net in fast_nets else pytest.mark.slow)
            for net in NETS for n in NAMES]


@pytest.mark.parametrize("build,name", on(NETS), indirect=["build"])
def test_state_round_trips_and_training_goes_on_bit_for_bit(name, build):
    net = build()
    method = made(name, net)
    opt = optimizer(net, method)
    first = [one_step(net, method, opt, i) for i in range(2)]
    torch.manual_seed(1)
    net2 = build()
    method2 = made(name, net2)
    net2.load_state_dict(state(net))
    method2.load_state_dict(state(method))
    opt2 = optimizer(net2, method2)
    opt2.load_state_dict(copy.deepcopy(opt.state_dict()))
    assert method2.record() == method.record()
    assert one_step(net, method, opt, 2) == one_step(net2, method2, opt2, 2)
    assert same(state(net), state(net2)) and same(state(method), state(method2))
    assert all(map(torch.isfinite, map(torch.tensor, first)))


@pytest.mark.parametrize("build,name", on({"cnn"}), indirect=["build"])
def test_gradient_equilibrium_goes_with_every_method(name, build):
    net = build(gradient_equilibrium=True)
    method = made(name, net)
    assert math.isfinite(one_step(net, method, optimizer(net, method), 0))
    assert all(p.isfinite().all() for p in net.parameters())


# ---------------------------------------------------------------- gradient equilibrium
def received(net, x, y):
    "What arrives at each stage's (coarsest) output."
    outs, hooks = [], []
    def keep(m, args, out):
        outs.append(o := net.backbone.exit_input(out))
        o.retain_grad()
    for s in net.backbone.stages:
        hooks.append(s.register_forward_hook(keep))
    ce = sum(nn.functional.cross_entropy(z, y) for z in net(x).logits)
    net.zero_grad()
    ce.backward()
    for h in hooks:
        h.remove()
    return [o.grad for o in outs]


def expected(net, x, y):
    "The same, block by block: [g_exit + (M−i) g_deeper]/(M−i+1), each gradient taken by itself."
    stages, M = list(net.backbone.stages), net.num_exits
    inputs, outs = [], []
    for s in stages:
        inputs.append([t.detach().requires_grad_() for t in x] if isinstance(x, list)
                      else x.detach().requires_grad_())
        outs.append(x := s(inputs[-1]))
    want, from_below = [None]*len(stages), None
    for s in reversed(range(len(stages))):
        grads = from_below if isinstance(from_below, list) else [from_below]
        g = grads[-1]
        leaf = net.backbone.exit_input(outs[s]).detach().requires_grad_()
        for m in [m for m in reversed(range(M)) if net.at[m] == s + 1]:
            g_exit, = torch.autograd.grad(nn.functional.cross_entropy(net.heads[m](leaf)[0], y), leaf)
            left = M - (m + 1)
            g = g_exit if not left else (g_exit + left*g)/(left + 1)
        want[s] = g
        give = outs[s] if isinstance(outs[s], list) else [outs[s]]
        back = [*(grads[:-1] if from_below is not None else [torch.zeros_like(o) for o in give[:-1]]), g]
        back = back[-len(give):]
        need = inputs[s] if isinstance(inputs[s], list) else [inputs[s]]
        into = torch.autograd.grad(give, need, back, allow_unused=True)
        into = [torch.zeros_like(n) if i is None else i for i, n in zip(into, need)]
        from_below = into if isinstance(inputs[s], list) else into[0]
    return want


@pytest.mark.parametrize("which", ["cnn", "msdnet", "linear"])
def test_which_gradient_each_block_receives(which):
    torch.manual_seed(0)
    kw = dict(gradient_equilibrium=True)
    net = (create_model("tiny", K, SIZE, "linear", width=2, **kw) if which == "linear"
           else NETS[which](**kw)).double().train()
    x, y = images(dtype=torch.float64)
    got, want = received(net, x, y), expected(net, x, y)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-14)
    net.gradient_equilibrium = False
    plain = received(net, x, y)
    assert not any(torch.allclose(a, b, rtol=1e-3) for a, b in zip(got[:-1], plain[:-1]))
    if which != "linear":
        torch.testing.assert_close(got[-1], plain[-1])


def test_forward_cost_evaluation_and_default_are_untouched(build):
    even = build(gradient_equilibrium=True)
    plain = build()
    plain.load_state_dict(even.state_dict())
    x, y = images()
    assert not plain.gradient_equilibrium and even.cost() == plain.cost()
    for mode in (True, False):
        a, b = even.train(mode)(x), plain.train(mode)(x)
        assert torch.equal(a.logits, b.logits) and all(map(torch.equal, a.features, b.features))
        ga, gb = (torch.autograd.grad(sum(nn.functional.cross_entropy(z, y) for z in o.logits),
                                      next(n.parameters()))[0]
                  for o, n in ((a, even), (b, plain)))
        assert torch.equal(ga, gb) != mode        # only training's backward pass differs
    assert same(even.state_dict(), plain.state_dict())


def test_heads_that_work_in_place_do_no_harm():
    torch.manual_seed(0)
    stages = [nn.Conv2d(3 if not i else 4, 4, 3, 2, 1) for i in range(3)]
    heads = [Head(nn.Sequential(nn.ReLU(inplace=True), GlobalPool()), nn.Linear(4, K)) for _ in range(3)]
    net = MultiExitNet(Backbone(stages), heads, (1, 2, 3), SIZE)
    x, y = images()
    want = net(x).logits
    net.gradient_equilibrium = True
    out = net(x).logits
    sum(nn.functional.cross_entropy(z, y) for z in out).backward()
    assert torch.equal(out, want) and all(p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.slow
def test_it_compiles_as_one_graph():
    torch.manual_seed(0)
    net = cnn(gradient_equilibrium=True).train()
    x, y = images()
    def grads(f):
        net.zero_grad()
        sum(nn.functional.cross_entropy(z, y) for z in f(x).logits).backward()
        return [p.grad.clone() for p in net.parameters()]
    for a, b in zip(grads(torch.compile(net, fullgraph=True, backend="aot_eager")), grads(net)):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_options_and_any_network():
    assert {"gradient_equilibrium", "links"} <= set(model_options("tiny")) & set(model_options("msdnet"))
    for k in ("gradient_equilibrium", "links"):
        with pytest.raises(InputError, match=f"{k}=1: expected true or false"):
            cnn(**{k: 1})
    own = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1), GlobalPool(), nn.Linear(4, K))
    assert attach_exits(own, [0], image_size=SIZE, gradient_equilibrium=True).gradient_equilibrium
    y = scale_gradient([torch.ones(1), torch.ones(1, requires_grad=True)], 3.)
    assert not y[0].requires_grad and torch.autograd.grad(y[1].sum(), [y[1]])[0] == 1


# ---------------------------------------------------------------- γ and α, exactly
def through_the_step(s, objectives, weights, expected, a, equilibrium):
    """∂L_val/∂weights with the gradient step in the graph; the step follows rescaled gradients, validation
    its own."""
    net, theta = copy.deepcopy(s.net), {k: p.detach().requires_grad_() for k, p in s.net.named_parameters()}
    net.gradient_equilibrium = equilibrium
    def run(t, x):
        return torch.func.functional_call(net, t, (x,))
    g = weights.clone().requires_grad_()
    grads = torch.autograd.grad((g*objectives(run(theta, s.x), s.targets)).sum(), list(theta.values()),
                                create_graph=True, allow_unused=True)
    after = {k: p if d is None else p - s.lr*d for (k, p), d in zip(theta.items(), grads)}
    net.gradient_equilibrium = False
    ce = torch.stack([nn.functional.cross_entropy(z, s.val_targets) for z in run(after, s.val_x).logits])
    E = torch.where(expected > 0, expected, ce.detach())
    return torch.autograd.grad((a*ce + (1 - a)*nn.functional.softplus(ce/E - 1)).sum(), g)[0]


@pytest.mark.parametrize("equilibrium", [False, True])
def test_hypergradient_of_gamma_is_exact_also_under_equilibrium(build, equilibrium):
    net = build(gradient_equilibrium=equilibrium).double()
    method = made("hdkd", net, start="random").double()
    (x, y), (xv, yv) = images(0, torch.float64), images(1, torch.float64)
    s = Step(net, x, y, .3, 0, xv, yv)
    want = through_the_step(s, method.objectives, method.gamma, method.expected, .5, equilibrium)
    torch.testing.assert_close(method.gamma_gradient(s)[0]*s.lr, want, rtol=1e-6, atol=1e-12)
    assert net.gradient_equilibrium is equilibrium
    if equilibrium:
        with plain_gradient(net):
            other = method.gamma_gradient(s)[0]*s.lr
        assert not torch.allclose(other, want, rtol=1e-3)


@pytest.mark.parametrize("kw", [{}, dict(diverse_teachers=False), dict(weight_network="gate")], ids=str)
def test_alpha_moves_along_the_exact_hypergradient(kw):
    torch.manual_seed(0)
    net = cnn().double()
    method = made("mate", net, alpha="auto", alpha_lr=.01, **kw).double()
    (x, y), (xv, yv) = images(0, torch.float64), images(1, torch.float64)
    s, before = Step(net, x, y, .3, 0, xv, yv), (state(net), state(method.weight_network))
    weights = torch.cat([torch.ones(1, dtype=torch.float64), method.alpha])
    torch.testing.assert_close(method.objectives(net(x), y) @ weights, sum(method.loss(net(x), y).values()))
    before[0].update(state(net))
    want = through_the_step(s, method.objectives, weights, method.expected, .5, False)[1:]
    from multiexit_nb.hypergradient import weight_gradient
    torch.testing.assert_close(weight_gradient(s, method.objectives, weights, method.expected,
                                               .5)[0][1:]*s.lr, want, rtol=1e-6, atol=1e-12)
    method.before_step(s)
    # Adam's first step is its rate
    torch.testing.assert_close(method.alpha, 3 - .01*want.sign(), rtol=1e-3, atol=0)
    assert same(before[0], net.state_dict()) and same(before[1], method.weight_network.state_dict())
    assert (method.expected > 0).all()


def test_alpha_is_saved_only_where_it_is_learned():
    net = cnn()
    plain, auto = made("mate", net), made("mate", net, alpha="auto")
    assert all(k.startswith("weight_network.") for k in plain.state_dict()) and "val" not in plain.needs
    assert plain.record() == {}
    assert {"alpha", "expected", "adam.m", "adam.v", "adam.t"} <= set(auto.state_dict())
    assert "val" in auto.needs and not auto.reuse
    auto.load_state_dict(plain.state_dict(), strict=False)
    x, y = images()
    out = net.eval()(x)
    assert all(torch.equal(a, b) for a, b in zip(plain.loss(out, y).values(), auto.loss(out, y).values()))
    for i in range(3):
        auto.before_step(Step(net, x, y, .1, i, x, y))
    assert all(v >= 0 and v != 3 for v in auto.record()["alpha"])
    thin = made("mate", net, alpha="auto", meta_every=2)
    thin.before_step(Step(net, x, y, .1, 1, x, y))
    assert thin.record() == {"alpha": [3., 3., 3.]}
    with pytest.raises(InputError, match="'auto'"):
        made("mate", net, alpha="learned")


def test_training_with_learned_alpha_resumes_bit_for_bit(tmp_path):
    from multiexit_nb.data import load_dataset
    from multiexit_nb.trainer import Recipe, train
    data = load_dataset("digits", images_per_class=20)
    plan = Recipe(epochs=2, batch_size=64, precision="fp32", channels_last=False)
    def new(seed=0):
        torch.manual_seed(seed)
        net = create_model("tiny", data.num_classes, data.image_size, width=1)
        return net, create_method("mate", num_exits=net.num_exits, num_classes=data.num_classes,
                                  feature_dims=net.feature_dims, alpha="auto")
    one, two = new(), new(1)
    list(train(*one, data, plan, device="cpu", bar=False))
    first = new()
    next(train(*first, data, plan, device="cpu", bar=False, checkpoint=tmp_path/"c.pt"))
    records = train(*two, data, plan, device="cpu", bar=False, checkpoint=tmp_path/"c.pt", resume=True)
    list(records)
    assert same(state(one[0]), state(two[0])) and same(state(one[1]), state(two[1]))
    assert records.records[-1]["method"]["alpha"] == one[1].alpha.tolist() != [3.]*4


# ---------------------------------------------------------------- links
def linked(build, scale=1.):
    torch.manual_seed(0)
    net = build(links=True)
    for link in net.links:
        nn.init.normal_(link.classify.weight, std=scale)
    for _ in range(3):
        net.train()(images(7)[0])     # batch statistics
    return net.eval()


def test_new_links_change_nothing_until_they_learn(build):
    net = build().train()
    x, _ = images()
    before = net.eval()(x).logits
    net.add_links()
    assert torch.equal(net(x).logits, before) and len(net.links) == net.num_exits - 1
    assert "links.0.on" in net.state_dict()
    for link in net.links:
        nn.init.normal_(link.classify.weight)
    assert not torch.equal(net(x).logits[1:], before[1:]) and torch.equal(net(x).logits[0], before[0])
    links = list(net.links)
    assert torch.equal(net.add_links(on=False)(x).logits, before) and list(net.links) == links
    assert create_model("tiny", K, SIZE, "none").add_links().num_exits == 1


def test_an_exit_sees_the_one_before(build):
    net, (x, _) = linked(build), images()
    want = []
    for m, z in enumerate(copy.deepcopy(net).add_links(on=False)(x).logits):
        if m:
            see = net.links[m - 1].see
            z = z + see[1](see[0](want[-1])).relu() @ net.links[m - 1].classify.weight.T
        want.append(z)
    torch.testing.assert_close(net(x).logits, torch.stack(want))
    for m in range(net.num_exits):
        torch.testing.assert_close(net.exit(x, m + 1), want[m])
    plain = build()
    assert ([a - b for a, b in zip(net.cost(), plain.cost(earlier_heads=True))]
            == [m*2*K*K for m in range(net.num_exits)])
    assert net.summary().macs.tolist() == net.cost()


@pytest.mark.parametrize("criterion", ["max", "patience"])
def test_real_early_exit_is_the_simulated_one(build, criterion):
    net, (x, _) = linked(build, 5.), images(n=40)
    logits = net(x).logits.detach()
    said = Outputs(logits, torch.zeros(len(x), dtype=torch.long), "test")
    conf = logits.softmax(-1).amax(-1).sort(-1).values
    middle = ((conf[:, 19] + conf[:, 20])/2).tolist()
    for thresholds in ([middle[0], middle[1]], [float("inf"), middle[1]],
                       [middle[0], float("inf")]) if criterion == "max" else ([1, 1],):
        policy = Policy((*thresholds, -float("inf")), criterion)
        for a, b in zip(early_exit(net, x, policy), simulate(said, policy), strict=True):
            assert torch.equal(a, b)


def test_a_chain_of_segments_hands_the_logits_on(build, tmp_path):
    net, (x, _) = linked(build), images()
    stack, logits = [x], []
    with torch.inference_mode():
        for s in segments(net):
            z, *stack = s(*stack)
            logits.append(z)
        torch.testing.assert_close(torch.stack(logits), net(x).logits)
    assert [s.link is not None for s in segments(net)] == [False, True, True]


def test_a_linked_network_is_kept_and_loaded(tmp_path):
    net = linked(cnn)
    finished = FinishedNet("tiny", K, SIZE, options=dict(at=[1, 3], width=2, links=True))
    finished.net.load_state_dict(net.state_dict())
    finished.eval().save(tmp_path/"kept")
    x, _ = images()
    assert torch.equal(FinishedNet.load(tmp_path/"kept")(x).logits, net(x).logits)


def test_a_method_of_ones_own_trains_linked_exits(build):
    class Sum(Method):
        def loss(self, out, targets):
            return {"ce": self.ce(out.logits, targets).sum()}
    from multiexit_nb.methods import Task
    net = build(links=True)
    method = Sum(Task(net.num_exits, K))
    opt = torch.optim.SGD(net.parameters(), .1)
    for i in range(2):
        one_step(net, method, opt, i)
    assert all(link.classify.weight.any() for link in net.links)
