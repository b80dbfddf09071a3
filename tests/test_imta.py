"IMTA: what moves in which stage, what the second one learns from, and that its state is all there is to it."
import copy

import pytest
import torch
from torch import nn

from multiexit_nb.core import InputError
from multiexit_nb.methods import create_method
from multiexit_nb.methods.imta import Stage2, WithTeacher
from multiexit_nb.models import create_model

K, B, SIZE = 4, 8, 16


def cnn(**kw):
    return create_model("tiny", K, SIZE, at=[1, 3], width=2, **kw)


def msdnet(**kw):
    return create_model("msdnet", K, SIZE, num_exits=3, channels=4, growth=2, **kw)


@pytest.fixture(params=[cnn, msdnet], ids=["cnn", "msdnet"])
def build(request):
    return request.param


def make(build, seed=0, **kw):
    torch.manual_seed(seed)
    net = build()
    method = create_method("imta", num_exits=net.num_exits, num_classes=K, feature_dims=net.feature_dims,
                           **kw)
    return net, method.ready(net)


def images(seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(B, 3, SIZE, SIZE, generator=g), torch.randint(K, (B,), generator=g)


def state(m):
    return {k: v.clone() for k, v in m.state_dict().items()}


def differ(a, b):
    return {k.split(".")[0] for k in a if not torch.equal(a[k], b[k])}


def stage(net, method, phase, steps=3, seed=0):
    "A stage as the trainer runs it, a few steps long; its losses."
    opt, losses = torch.optim.SGD(phase.parameters(), .05, .9, weight_decay=1e-2), []
    phase.learner.train()
    method.train()
    with phase.resting():
        for i in range(steps):
            x, y = images(seed + i)
            loss = sum(phase.loss(phase.learner(x), y).values())
            opt.zero_grad()
            loss.backward()
            opt.step()
            losses.append(loss.item())
    return losses


def test_what_moves_in_which_stage(build):
    net, method = make(build)
    one, two = method.phases(net)
    assert (one.name, two.name) == ("exits", "links") and net.gradient_equilibrium
    s0, m0 = state(net), state(method)
    stage(net, method, one)
    s1 = state(net)
    # not even the links' statistics
    assert differ(s0, s1) == {"backbone", "heads"} and not differ(m0, state(method))
    two.begin()
    assert differ(s1, state(net)) == {"links"} and all(link.on == 1 for link in net.links)
    assert all(torch.equal(a, b) for a, b in zip(method.teacher.state_dict().values(),
                                                 net.heads[-1].state_dict().values()))
    s1, m1 = state(net), state(method)
    stage(net, method, two)
    assert differ(s1, state(net)) == {"heads", "links"} and not differ(m1, state(method))
    assert all(link.classify.weight.any() for link in net.links)
    assert ({id(p) for p in two.parameters()}
            == {id(p) for m in (net.heads, net.links) for p in m.parameters()})
    assert ({id(p) for p in one.parameters()}
            == {id(p) for m in (net.heads, net.backbone) for p in m.parameters()})


def test_stage_one_is_exitwise_training_with_even_gradients(build):
    net, method = make(build)
    torch.manual_seed(0)
    plain = build(gradient_equilibrium=True)
    exitwise = create_method("branchynet", num_exits=3, num_classes=K, feature_dims=plain.feature_dims)
    x, y = images()
    stage(net, method, method.phases(net)[0], steps=0)
    one = method.phases(net)[0]
    with one.resting():
        one.loss(net(x), y)["ce"].backward()
    sum(exitwise.loss(plain.train()(x), y).values()).backward()
    for (k, a), (_, b) in zip(net.backbone.named_parameters(), plain.backbone.named_parameters()):
        assert torch.equal(a.grad, b.grad), k
    assert not make(build, equilibrium=False)[0].gradient_equilibrium


def test_stage_two_learns_from_the_last_exit_of_stage_one(build):
    net, method = make(build, gamma=.3, temperature=2.)
    one, two = method.phases(net)
    stage(net, method, one)
    two.begin()
    x, y = images(9)
    with torch.no_grad():
        want = net.eval()(x)
    stage(net, method, two, steps=4)
    out = Stage2(net, method.teacher).eval()(x)
    torch.testing.assert_close(out.teacher, want.logits[-1])              # still, though exit M has moved on
    assert not torch.allclose(out.logits[-1], out.teacher, atol=1e-4)
    torch.testing.assert_close(out.logits, net.eval()(x).logits)
    ce = nn.functional.cross_entropy
    p = (out.teacher/2).softmax(-1)
    kd = [4*(p*(p.log() - (z/2).log_softmax(-1))).sum(-1).mean() for z in out.logits[:-1]]
    total = ce(out.logits[-1], y) + sum(.7*ce(z, y) + .3*d for z, d in zip(out.logits[:-1], kd))
    torch.testing.assert_close(sum(two.loss(out, y).values()), total)
    assert [len(t) for t in method.teacher_logits(out)] == [1, 1, 0]
    assert [len(t) for t in method.teacher_logits(net(x))] == [0, 0, 0]


def test_the_teacher_travels_with_the_output():
    net, method = make(cnn)
    x, _ = images()
    out = Stage2(net, method.teacher)(x)
    for o in (out.float(), out.detach(), out[:3]):
        assert isinstance(o, WithTeacher) and o.teacher.shape[0] == o.logits.shape[1]
    assert out.teacher.grad_fn is None and out.logits.grad_fn is not None


def test_a_rebuilt_network_predicts_the_same_at_any_time(build):
    net, method = make(build)
    one, two = method.phases(net)
    x, y = images(5)
    for phase in (one, two):
        stage(net, method, phase)
        again, other = make(build, seed=3)
        again.load_state_dict(state(net))
        other.load_state_dict(state(method))
        assert torch.equal(again.eval()(x).logits, net.eval()(x).logits)
        if phase is two:
            assert torch.equal(Stage2(again, other.teacher).eval()(x).teacher,
                               Stage2(net, method.teacher).eval()(x).teacher)
        two.begin()
    a, b = copy.deepcopy((net, method)), (net, method)
    assert stage(*a, a[1].phases(a[0])[1], seed=20) == stage(*b, two, seed=20)


def test_what_cannot_be_is_said_in_one_line():
    net, method = make(cnn)
    x, y = images()
    with pytest.raises(InputError, match="learner"):
        method.links_loss(net(x), y)
    with pytest.raises(InputError, match="MultiExitNet"):
        create_method("imta", num_exits=2, num_classes=K).prepare(nn.Linear(2, 2))


def test_the_trainer_runs_both_stages_and_resumes_bit_for_bit(tmp_path):
    from multiexit_nb.data import load_dataset
    from multiexit_nb.trainer import Recipe, train
    data = load_dataset("digits", images_per_class=12)
    plan = Recipe(epochs=2, batch_size=32, precision="fp32", channels_last=False)
    def new(seed=0):
        torch.manual_seed(seed)
        net = create_model("tiny", data.num_classes, data.image_size, width=1)
        return net, create_method("imta", num_exits=net.num_exits, num_classes=data.num_classes,
                                  feature_dims=net.feature_dims, stage2_epochs=1)
    one = new()
    whole = train(*one, data, plan, device="cpu", bar=False)
    records, before = [next(whole), next(whole)], None
    before = state(one[0].backbone)
    records += list(whole)
    assert [r["phase"] for r in records] == ["exits", "exits", "links"]
    assert set(records[-1]["train"]["loss"]) == {"ce", "kd"}
    assert not differ(before, state(one[0].backbone)) and one[0].links[0].classify.weight.any()
    ended = [state(m) for m in one]
    assert whole.load_best() == 3
    for stop in (1, 2):
        first = train(*new(), data, plan, device="cpu", bar=False, checkpoint=tmp_path/f"{stop}.pt")
        for _ in range(stop):
            next(first)
        two = new(7)
        list(train(*two, data, plan, device="cpu", bar=False, checkpoint=tmp_path/f"{stop}.pt", resume=True))
        for a, b in zip(ended, two):
            assert a.keys() == b.state_dict().keys() and not differ(a, state(b))
