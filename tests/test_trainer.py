"""The trainer: schedules, auto settings, checkpoints, resuming, and what stops a run."""
import math
import os
import random
import resource
import signal
import subprocess
import sys
import time
import types

import pytest
import torch

from multiexit_nb import speed, training
from multiexit_nb.checkpoints import load_checkpoint, save_checkpoint
from multiexit_nb.core import InputError, MultiExitOutput, seed_everything
from multiexit_nb.data import load_dataset
from multiexit_nb.evaluate import evaluate
from multiexit_nb.methods import create_method, list_methods
from multiexit_nb.models import create_model
from multiexit_nb.recipe import Recipe, learning_rate
from multiexit_nb.training import Diverged, train

PLAIN = dict(precision="fp32", channels_last=False)


@pytest.fixture(scope="module")
def data():
    return load_dataset("digits", images_per_class=30)


def make(data, method="mate", seed=0, model="tiny", exits="sepconv", **hyper):
    seed_everything(seed)
    net = create_model(model, data.num_classes, data.image_size, exits)
    if method == "fitnets":
        hyper = dict(hint_epochs=1) | hyper
    if method == "imta":
        hyper = dict(stage2_epochs=2) | hyper
    m = create_method(method, num_exits=net.num_exits, num_classes=data.num_classes,
                      feature_dims=net.feature_dims,
                      num_train=len(data.train), num_unlabelled=len(data.unlabelled), **hyper)
    if m.needs_teacher():
        seed_everything(77)
        m.set_teacher(create_model("tiny", data.num_classes, data.image_size))
        seed_everything(seed)
    return net, m


def run(net, method, data, recipe, **kw):
    t = train(net, method, data, recipe, device="cpu", bar=False, **kw)
    return t, list(t)


def same(a, b):
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


# ---- resuming ----

@pytest.mark.parametrize("name", list_methods())
def test_resume_is_bit_identical(name, data, tmp_path):
    recipe = Recipe(epochs=3, batch_size=32, label_smoothing=0.1, **PLAIN)
    a = make(data, name)
    ta, ra = run(*a, data, recipe)
    first = train(*make(data, name), data, recipe, device="cpu", bar=False, checkpoint=tmp_path/"c.pt")
    next(first)
    b = make(data, name, seed=5)
    tb, rb = run(*b, data, recipe, checkpoint=tmp_path/"c.pt", resume=True)
    assert [r["epoch"] for r in tb.records] == list(range(1, tb.total + 1))
    assert [r["epoch"] for r in rb] == list(range(2, tb.total + 1))
    assert same(a[0], b[0]) and same(a[1], b[1])
    assert [r["val"] for r in ra] == [r["val"] for r in tb.records]
    assert ta.best["epoch"] == tb.best["epoch"]


@pytest.mark.parametrize("name", list_methods())
def test_an_epoch_that_was_broken_off_is_begun_anew(name, data, tmp_path):
    "As a cell that is interrupted in a notebook and run again: in the first epoch, and in a later one."
    recipe = Recipe(epochs=2, batch_size=32, **PLAIN)
    a = make(data, name)
    ta, _ = run(*a, data, recipe)
    b = make(data, name)
    t = train(*b, data, recipe, device="cpu", bar=False, checkpoint=tmp_path/"c.pt")
    for epoch in (0, 1):
        assert t.epoch == epoch
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(b[1], "after_step", interrupted_after(3, b[1].after_step))
            next(t)
        next(t)
    list(t)
    assert same(a[0], b[0]) and same(a[1], b[1])
    assert [(r["train"], r["val"], r["method"]) for r in ta.records] == [
        (r["train"], r["val"], r["method"]) for r in t.records]


def interrupted_after(steps: int, real):
    "What is called after a step, until somebody presses Ctrl-C."
    left = iter(range(steps))

    def after_step(out):
        real(out)
        if next(left, None) is None:
            raise KeyboardInterrupt
    return after_step


def test_dropout_draws_survive_resume(data, tmp_path):
    "vgg's classifier has dropout, which draws from the global generator."
    recipe = Recipe(epochs=2, batch_size=128, **PLAIN)
    few = load_dataset("digits", images_per_class=14)
    a = make(few, "branchynet", model="vgg11")
    run(*a, few, recipe)
    next(train(*make(few, "branchynet", model="vgg11"), few, recipe, device="cpu", bar=False,
               checkpoint=tmp_path/"c.pt"))
    b = make(few, "branchynet", seed=5, model="vgg11")
    run(*b, few, recipe, checkpoint=tmp_path/"c.pt", resume=True)
    assert same(a[0], b[0])


SCRIPT = """
import sys, torch
from multiexit_nb.core import seed_everything
from multiexit_nb.data import load_dataset
from multiexit_nb.methods import create_method
from multiexit_nb.models import create_model
from multiexit_nb.trainer import Recipe, train
data = load_dataset("digits", images_per_class=50)
seed_everything(0)
net = create_model("tiny", 10)
m = create_method("mate", num_exits=4, num_classes=10, feature_dims=net.feature_dims)
t = train(net, m, data, Recipe(epochs=12, precision="fp32", channels_last=LAYOUT), device="cpu", bar=False,
          checkpoint=sys.argv[1], resume="auto")
print("started", flush=True)
for r in t: print(r["epoch"], flush=True)
torch.save([net.state_dict(), m.state_dict()], sys.argv[2])
"""


def killed_at_random_moments(tmp_path, kills, seed):
    """Kill -9 at random moments of a training, resume each time; (weights, number of kills that hit a
    running training)."""
    rng, hits, script = random.Random(seed), 0, SCRIPT.replace("LAYOUT", "'auto'")
    for _ in range(kills):
        p = subprocess.Popen([sys.executable, "-c", script, tmp_path/"c.pt", tmp_path/"b.pt"],
                             stdout=subprocess.PIPE, text=True)
        assert p.stdout.readline() == "started\n"
        for _ in range(rng.randint(0, 2)):
            p.stdout.readline()     # an epoch is through
        time.sleep(rng.uniform(0.0, 0.3))
        os.kill(p.pid, signal.SIGKILL)
        hits += p.wait() == -signal.SIGKILL
        load_checkpoint(tmp_path/"c.pt")   # never half-written
    subprocess.run([sys.executable, "-c", script, tmp_path/"c.pt", tmp_path/"b.pt"], check=True)
    return torch.load(tmp_path/"b.pt", weights_only=True), hits


def uninterrupted(tmp_path, like):
    "The same training without a kill, in the memory layout that `auto` came to in the other."
    script = SCRIPT.replace("LAYOUT", str(load_checkpoint(like)["decided"]["channels_last"]))
    subprocess.run([sys.executable, "-c", script, tmp_path/"d.pt", tmp_path/"a.pt"], check=True)
    return torch.load(tmp_path/"a.pt", weights_only=True)


def test_kill_9_and_resume(tmp_path):
    "Many more of the whole program: test_damage.py."
    kills = 2
    b, hits = killed_at_random_moments(tmp_path, kills, seed=kills)
    a = uninterrupted(tmp_path, tmp_path/"c.pt")
    assert hits >= kills//2, "the kills came too late to test anything"
    for x, y in zip(a, b, strict=True):
        assert all(torch.equal(x[k], y[k]) for k in x)


def test_checkpoints_of_others_are_refused(data, tmp_path):
    c, recipe = tmp_path/"c.pt", Recipe(epochs=2, batch_size=64, **PLAIN)
    next(train(*make(data), data, recipe, device="cpu", bar=False, checkpoint=c))
    def go(*a, r=recipe, d=data, **kw):
        return train(*a, d, r, device="cpu", bar=False, checkpoint=c,
                                                      **{"resume": True, **kw})
    with pytest.raises(InputError, match="exists: resume from it"):
        go(*make(data), resume=False)
    with pytest.raises(InputError, match="method 'mate', not 'dbt'"):
        go(*make(data, "dbt"))
    with pytest.raises(InputError, match="network 'tiny', not 'resnet8'"):
        go(*make(data, model="resnet8"))
    with pytest.raises(InputError, match="alpha=3.0 \\(now 1.0\\)"):
        go(*make(data, alpha=1.))
    with pytest.raises(InputError, match="lr=0.1 \\(now 0.2\\)"):
        go(*make(data), r=Recipe(epochs=2, batch_size=64, lr=0.2, **PLAIN))
    with pytest.raises(InputError, match="images"):
        go(*make(data), d=load_dataset("digits"))
    with pytest.raises(InputError, match="nothing to resume"):
        train(*make(data), data, recipe, checkpoint=tmp_path/"none.pt", resume=True)
    c.write_bytes(c.read_bytes()[:1000])
    with pytest.raises(InputError, match="damaged or not a checkpoint"):
        go(*make(data))


class Evil:
    def __reduce__(self):
        return (os.system, ("touch " + os.environ["EVIL"],))


def test_a_strangers_checkpoint_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("EVIL", str(tmp_path/"was-here"))
    torch.save(dict(identity={}, x=Evil()), tmp_path/"c.pt")
    with pytest.raises(InputError, match="damaged or not a checkpoint"):
        load_checkpoint(tmp_path/"c.pt")
    assert not (tmp_path/"was-here").exists()


def test_a_full_disk_keeps_the_old_checkpoint(tmp_path):
    save_checkpoint(tmp_path/"c.pt", dict(identity={}, x=torch.zeros(10)))
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limit[1]))
    try:
        with pytest.raises(InputError, match="cannot write .*c.pt"):
            save_checkpoint(tmp_path/"c.pt", dict(identity={}, x=torch.zeros(100_000)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert load_checkpoint(tmp_path/"c.pt")["x"].shape == (10,)
    assert [f.name for f in tmp_path.iterdir()] == ["c.pt"]


# ---- what stops a run ----

def test_a_loss_that_is_not_finite_names_term_and_step(data, tmp_path):
    net, method = make(data, "dks")
    real, calls = method.loss, []
    def loss(out, y):
        calls.append(1)
        terms = real(out, y)
        return {**terms, "kd": terms["kd"]*(math.nan if len(calls) == 6 else 1.)}
    method.loss = loss
    t = train(net, method, data, Recipe(epochs=3, batch_size=64, **PLAIN), device="cpu", bar=False,
              checkpoint=tmp_path/"c.pt")
    assert t.steps_per_epoch == 4
    with pytest.raises(Diverged, match=r"'kd' is not finite at step 2 of epoch 2\..*checkpoint of epoch 1 is "
                                       r"kept: .*c.pt"):
        list(t)
    assert load_checkpoint(tmp_path/"c.pt")["epoch"] == 1


def test_the_step_is_found_though_it_is_looked_for_rarely():
    w = training.Watch(1, torch.device("cpu"))
    w.every = 50
    out = MultiExitOutput(torch.zeros(2, 3, 4))
    for i in range(50):
        value = torch.tensor(math.inf if i == 31 else 1.)
        if i == 49:
            with pytest.raises(Diverged, match="'b' is not finite at step 32"):
                w.step(dict(a=torch.tensor(1.), b=value), out, torch.zeros(3))
        else:
            w.step(dict(a=torch.tensor(1.), b=value), out, torch.zeros(3))


@pytest.mark.parametrize("wrong, says", [
    (dict(lr=-0.1), "lr=-0.1"), (dict(epochs=0), "epochs=0"), (dict(epochs=1.5), "epochs=1.5"),
    (dict(batch_size=0), "batch_size=0"),
    (dict(schedule="cosin"), "Did you mean 'cosine'"),
    (dict(precision="fp8"), "precision='fp8': expected 'auto'"), (dict(momentum=1.), "momentum=1.0"),
    (dict(label_smoothing=1.), "label_smoothing"), (dict(milestones=[0]), "milestones"),
    (dict(lr=math.nan), "lr=nan"),
    (dict(channels_last="yes"), "channels_last"), (dict(select="best"), "Did you mean"),
    (dict(nesterov=1), "nesterov=1"), (dict(seed=-1), "seed=-1")])
def test_impossible_recipes(wrong, says):
    with pytest.raises(InputError, match=says):
        Recipe(**wrong)
    with pytest.raises(InputError, match="unknown entry of the recipe: 'epoch'. Did you mean 'epochs'"):
        Recipe.preset("mate", epoch=3)


def test_training_that_cannot_be_is_refused(data):
    with pytest.raises(InputError, match="needs validation images"):
        train(*make(data), load_dataset("digits", val_per_class=0))
    all_labelled = load_dataset("digits")
    net, _ = make(data)
    semi = create_method("dbt", num_exits=4, num_classes=10, feature_dims=net.feature_dims,
                         num_train=len(data.train), num_unlabelled=100)
    if "unlabelled" in semi.needs:
        with pytest.raises(InputError, match="unlabelled images"):
            train(net, semi, all_labelled)


# ---- auto ----

def test_auto_takes_only_what_is_clearly_faster(data, monkeypatch):
    net, method = make(data)
    times = {("fp32", False): 1.0, ("fp32", True): 0.97, ("bf16", False): 1.2, ("bf16", True): 1.1}
    monkeypatch.setattr(speed, "_timer", lambda objective, x, y, choice, clock:
                        lambda: times[choice.precision, choice.channels_last])
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    def go(**kw):
        return speed.decide(Recipe(**kw), net, method, torch.device("cpu"),
                                       lambda: next(data.train.batches(8)))
    assert (go().precision, go().channels_last) == ("fp32", False)   # 3 % is noise
    times["bf16", True] = 0.5
    assert (go().precision, go().channels_last) == ("bf16", True) and "2.00×" in go().why
    assert (go(precision="fp32").precision, go(precision="fp32").channels_last) == ("fp32", False)
    assert go(precision="fp16", channels_last=True) == speed.SpeedChoice("fp16", True, "given", threads=1)


def test_auto_counts_what_a_method_does_before_a_step(data, monkeypatch):
    "bfloat16 is faster for the step, and slower where the weights are learned at each."
    monkeypatch.setattr(speed, "_timer", lambda objective, x, y, choice, clock:
                        lambda: seconds[choice.precision][0])
    monkeypatch.setattr(speed, "_turn_timer", lambda objective, step, choice, clock:
                        lambda: seconds[choice.precision][1]/objective.method.meta_every)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    seconds = dict(fp32=(1., 2.), bf16=(.6, 3.))
    def decided(method, **hyper):
        recipe = Recipe(epochs=1, batch_size=8, channels_last=False)
        return train(*make(data, method, **hyper), data, recipe, device="cpu", bar=False).decided.precision
    assert decided("naive_dkd") == "bf16"
    assert [decided("hdkd", meta_every=n) for n in (1, 10)] == ["fp32", "bf16"]


def test_what_is_timed_before_a_step_is_the_methods_turn(data, monkeypatch):
    "A copy's, on validation images; a gradient is taken over in the precision of its own passes alone."
    net, method = make(data, "hdkd", meta_every=4)
    seen = []
    monkeypatch.setattr(type(method), "before_step", lambda self, step: seen.append((self, step)))
    clock = iter(range(0, 1000, 12))
    monkeypatch.setattr(speed, "time", types.SimpleNamespace(perf_counter=lambda: next(clock)))
    val = next(data.val.batches(8))
    x, y = next(data.train.batches(8))
    taken = speed.StepTimes(Recipe(lr=.5), net, method, lambda: (x, y), lambda: (iter([val]), None), rounds=1)
    choices = [speed.SpeedChoice("fp32", False), speed.SpeedChoice("bf16", False),
               speed.SpeedChoice("bf16", False, turns="fp32")]
    assert taken(choices) == [30*(12 + 3)]*3
    assert len(seen) == 6 and all(m is not method and step.net is not net for m, step in seen)
    assert all(step.val_x is val[0] and step.lr == .5 and step.number == 0 for _, step in seen)
    told = [(step.precision, step.grads is not None) for _, step in seen]
    assert told == [("fp32", True), ("bf16", True), ("fp32", False)]*2


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_turn_has_the_precision_of_the_steps_but_in_earlier_runs(data, tmp_path, monkeypatch, precision):
    "A checkpoint made when turns were always in float32 goes on so."
    seen, file = [], tmp_path/"c.pt"
    recipe = Recipe(epochs=2, precision=precision, channels_last=False)
    net, method = make(data, "hdkd")
    before = type(method).before_step
    def looked(self, step):
        seen.append((step.precision, step.grads is not None))
        before(self, step)
    monkeypatch.setattr(type(method), "before_step", looked)
    next(train(net, method, data, recipe, device="cpu", bar=False, checkpoint=file))
    assert set(seen) == {(precision, True)}
    saved = load_checkpoint(file)
    del saved["decided"]["turns"]
    save_checkpoint(file, saved)
    seen.clear()
    list(train(*make(data, "hdkd"), data, recipe, device="cpu", bar=False, checkpoint=file, resume=True))
    assert set(seen) == {("fp32", precision == "fp32")}


def test_auto_is_taken_over_on_resume(data, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "decide", lambda *a: speed.SpeedChoice("fp32", True, "first"))
    next(train(*make(data), data, Recipe(epochs=2), device="cpu", bar=False, checkpoint=tmp_path/"c.pt"))
    monkeypatch.setattr(training, "decide", lambda *a: pytest.fail("decided again"))
    t = train(*make(data), data, Recipe(epochs=2), device="cpu", bar=False, checkpoint=tmp_path/"c.pt",
              resume=True)
    assert t.decided == speed.SpeedChoice("fp32", True, "first")


@pytest.mark.parametrize("gain, threads", [(1.1, 1), (1.5, 4)])
def test_auto_takes_the_threads_that_pay(gain, threads, data, tmp_path, monkeypatch):
    """Up to what PyTorch was given; the training and its evaluation run by them, and what comes after does
    not."""
    seen = []
    def timer(objective, x, y, choice, clock):
        return lambda: gain**-math.log2(choice.threads)
    def watched(*a, **kw):
        seen.append(torch.get_num_threads())
        return evaluated(*a, **kw)
    evaluated = training.evaluate
    monkeypatch.setattr(speed, "_timer", timer)
    monkeypatch.setattr(training, "evaluate", watched)
    with speed.use_threads(4):
        t = train(*make(data), data, Recipe(epochs=1, precision="fp32", channels_last=False), device="cpu",
                  bar=False, checkpoint=tmp_path/"c.pt")
        assert t.decided.threads == threads == t.state()["decided"]["threads"]
        assert f"threads {gain:.2f}×" in t.decided.why
        t.method.after_step = lambda out: seen.append(torch.get_num_threads())
        list(t)
        assert set(seen) == {threads} and torch.get_num_threads() == 4


def test_the_number_of_threads_can_be_given(data, monkeypatch):
    monkeypatch.setenv("MULTIEXIT_THREADS", "3")
    def decided():
        return speed.decide(Recipe(precision="fp32", channels_last=False), *make(data), torch.device("cpu"),
                            lambda: pytest.fail("measured"))
    assert decided() == speed.SpeedChoice("fp32", False, "given", 3)
    monkeypatch.setenv("MULTIEXIT_THREADS", "0")
    with pytest.raises(InputError, match="threads='0': expected auto or a whole number"):
        decided()


def test_threads_that_would_spin_are_not_taken(monkeypatch):
    with speed.use_threads(4):
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
        assert speed.most_threads() == 4
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
        assert speed.most_threads() == 1
        monkeypatch.delenv("LOCAL_WORLD_SIZE")
        monkeypatch.delenv("OMP_WAIT_POLICY")
        assert speed.most_threads() == 1


# ---- options that must do something ----

def test_bf16_trains_in_float32_weights_and_losses(data):
    net, method = make(data)
    seen = []
    real = method.loss
    def loss(out, y):
        seen.append((out.logits.dtype, torch.is_autocast_enabled("cpu")))
        return real(out, y)
    method.loss = loss
    low = []
    net.backbone.stages[0].register_forward_hook(lambda m, i, o: low.append(o.dtype))
    t, records = run(net, method, data, Recipe(epochs=1, batch_size=64, precision="bf16", channels_last=True))
    assert set(seen) == {(torch.float32, False)} and torch.bfloat16 in low
    assert {p.dtype for p in net.parameters()} == {torch.float32} and t.accelerator.mixed_precision == "bf16"
    assert next(p for p in net.parameters() if p.dim() == 4).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.slow
def test_compile_changes_the_speed_and_not_the_training(data):
    recipe = dict(epochs=1, batch_size=64, lr=0.01, **PLAIN)
    a, b = make(data), make(data)
    ra, rb = run(*a, data, Recipe(**recipe))[1], run(*b, data, Recipe(compile=True, **recipe))[1]
    assert b[0]._compiled_call_impl is not None and set(a[0].state_dict()) == set(b[0].state_dict())
    assert ra[0]["train"]["loss"]["ce"] == pytest.approx(rb[0]["train"]["loss"]["ce"], rel=1e-3)


def step_length(data, **kw):
    net, method = make(data, "branchynet")
    before = torch.cat([p.detach().flatten().clone() for p in net.parameters()])
    run(net, method, data, Recipe(epochs=1, batch_size=300, weight_decay=0, momentum=0, lr=1., **PLAIN, **kw))
    return float((torch.cat([p.detach().flatten() for p in net.parameters()]) - before).norm())


def test_clip_norm_limits_the_step(data):
    assert step_length(data, clip_norm=0.01) == pytest.approx(0.01, rel=1e-3)
    assert step_length(data) > 0.1


def test_label_smoothing_reaches_the_method(data):
    def ce(s):
        recipe = Recipe(epochs=1, batch_size=64, label_smoothing=s, lr=1e-9, **PLAIN)
        return run(*make(data, "branchynet"), data, recipe)[1][0]["train"]["loss"]["ce"]
    assert abs(ce(0.) - ce(0.9)) > 1e-4


def test_schedules():
    def at(r, epoch):
        return learning_rate(r, epoch*10, 10)
    assert [round(at(Recipe.preset("mate"), e), 6) for e in (0, 149, 150, 225)] == [0.1, 0.1, 0.01, 0.001]
    assert [round(at(Recipe.preset("eed"), e), 6) for e in (74, 75, 130, 180)] == [0.1, 0.01, 0.001, 0.0001]
    assert [round(at(Recipe.preset("dih"), e), 6) for e in (59, 60, 120, 180)] == [0.1, 0.01, 0.001, 0.0001]
    assert [round(at(Recipe.preset("dbt-imagenet"), e), 6) for e in (29, 30, 60)] == [0.5, 0.05, 0.005]
    assert at(Recipe(epochs=10, milestones=(3, 5)), 4) == pytest.approx(0.01)
    assert at(Recipe(epochs=10, schedule="constant"), 9) == 0.1
    warm = Recipe(epochs=10, warmup=2, schedule="cosine")
    assert learning_rate(warm, 0, 10) == pytest.approx(0.005)
    assert learning_rate(warm, 19, 10) == pytest.approx(0.1)
    assert learning_rate(warm, 20, 10) == pytest.approx(0.1)
    assert learning_rate(warm, 100, 10) == pytest.approx(0, abs=1e-12)


def test_selection(data):
    t, records = run(*make(data), data, Recipe(epochs=4, batch_size=64, **PLAIN))
    means = [sum(r["val"]["top1"]) for r in records]
    assert t.best["epoch"] == 1 + means.index(max(means))
    assert all("test" not in r for r in records)   # the test set is not looked at
    assert t.load_best() == t.best["epoch"]
    assert same(t.net, type("S", (), dict(state_dict=lambda s: t.best["net"]))())
    assert run(*make(data), data, Recipe(epochs=2, batch_size=64, select="last", **PLAIN))[0].best[
        "epoch"] == 2
    t, records = run(*make(data), load_dataset("digits", val_per_class=0),
                     Recipe(epochs=3, batch_size=256, select="best-test", **PLAIN))
    last = [r["test"]["top1"][-1] for r in records]
    assert t.best["epoch"] == 1 + last.index(max(last)) and all("val" not in r for r in records)


@pytest.mark.parametrize("name, model, epoch", [("branchynet", "tiny", 1), ("dml", "tiny", 1),
                                                ("baseline", "tiny", 2), ("dml", "tiny+tiny", 2)])
def test_exits_that_learn_nothing_and_a_teacher_select_no_epoch(name, model, epoch, data):
    "Early exits are better after epoch 1, the last one after epoch 2."
    t = train(*make(data, name, model=model), data, Recipe(epochs=2, **PLAIN), device="cpu", bar=False)
    early = t.net.num_exits - 1
    records = [dict(epoch=1, val=dict(top1=[50.]*early + [60.])),
               dict(epoch=2, val=dict(top1=[0.]*early + [61.]))]
    for record in records:
        t.keep_best(record)
    assert t.best["epoch"] == epoch
    t.best = dict(epoch=0, score=-math.inf, net=None, method=None)    # as in a checkpoint of before
    for record in records:
        t.keep_best(record)
    assert t.best["epoch"] == 1


def test_unlabelled_images_come_with_every_batch(data):
    recipe = Recipe(batch_size=64, unlabelled_ratio=0.5)
    batches = list(training.training_batches(data, recipe, 1, "cpu", unlabelled=True))
    assert all((len(y), int((y < 0).sum())) == (96, 32) for _, y in batches) and len(batches) == 4
    t, records = run(*make(data, "dbt"), data, Recipe(epochs=1, batch_size=64, **PLAIN))
    assert "unlabelled" in t.method.needs
    assert all(math.isfinite(v) for v in records[0]["train"]["loss"].values())


def test_images_that_teach_loss_weights_are_not_scored(data):
    recipe = Recipe(epochs=1, batch_size=64, **PLAIN)
    t, records = run(*make(data, "hdkd"), data, recipe)
    meta, val = set(t.meta.rows.tolist()), set(t.data.val.rows.tolist())
    assert not meta & val and meta | val == set(data.val.rows.tolist())
    assert abs(len(meta) - len(val)) <= data.num_classes
    assert t.meta.labels.bincount().min() >= 1 and val != set() and t.data.test is data.test
    gamma = torch.tensor(records[0]["method"]["gamma"])
    assert not torch.equal(gamma, make(data, "hdkd")[1].gamma)          # it has moved
    both = train(*make(data, "hdkd", reuse=True), data, recipe, device="cpu", bar=False)
    assert both.meta is data.val and both.data.val is data.val
    with pytest.raises(InputError, match="at least 2 of each class"):
        train(*make(data, "hdkd"), load_dataset("digits", val_per_class=1), recipe)


def test_loss_weights_are_learned_under_bf16_too(data):
    t, records = run(*make(data, "hdkd", meta_every=2), data,
                     Recipe(epochs=1, batch_size=64, precision="bf16", channels_last=False))
    assert t.method.gamma.dtype == torch.float32
    assert math.isfinite(sum(map(sum, records[0]["method"]["gamma"])))


def test_evaluate_equals_counting(data):
    net, method = make(data)
    done = evaluate(net, data.test, method, batch_size=17, keep="test")
    s, z, y = done.scores, done.outputs.logits, done.outputs.labels
    assert torch.equal(y, data.test.labels) and not torch.allclose(z[0], z[1])
    assert s["top1"] == pytest.approx([100*float((z[m].argmax(-1) == y).float().mean()) for m in range(4)])
    assert s["anytime"][2] == pytest.approx(
        100*float((z[:3].softmax(-1).mean(0).argmax(-1) == y).float().mean()))
    assert s["anytime_logits"][2] == pytest.approx(100*float((z[:3].mean(0).argmax(-1) == y).float().mean()))
    assert s["top5"] == pytest.approx(
        [100*float((z[m].topk(5).indices == y[:, None]).any(1).float().mean()) for m in range(4)])
    teacher = method.teacher_logits(MultiExitOutput(z, evaluate_features(net, data)))
    assert s["teacher_top1"] == pytest.approx(
        [100*float((t[0].argmax(-1) == y).float().mean()) for t in teacher], abs=0.6)
    assert s["gap"] == pytest.approx([a - b for a, b in zip(s["teacher_top1"], s["top1"], strict=True)])


def evaluate_features(net, data):
    net.eval()
    with torch.no_grad():
        outs = [net(x).features for x, _ in data.test.batches(64)]
    return tuple(torch.cat(f) for f in zip(*outs, strict=True))
