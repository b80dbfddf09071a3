"""Phases and teachers: one training loop for chains of networks, exact resumes at every boundary, and runs
as teachers."""
import math
import multiprocessing
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from every_method import but, needs_teacher, overrides

from multiexit_nb import experiment, speed, training
from multiexit_nb.checkpoints import load_checkpoint
from multiexit_nb.core import InputError, MultiExitOutput, seed_everything
from multiexit_nb.data import load_dataset
from multiexit_nb.methods import (
    create_method,
    hyperparameters,
    list_methods,
    list_presets,
    preset_recipe,
)
from multiexit_nb.models import create_model
from multiexit_nb.runs import Run
from multiexit_nb.trainer import Recipe, train

PLAIN = dict(precision="fp32", channels_last=False)
ARGS = {"dih": dict(heads_epochs=2), "fitnets": dict(hint_epochs=2), "imta": dict(stage2_epochs=2),
        "takd": dict(assistants=["tiny"], assistant_epochs=2), "mate": dict(alpha="auto")}
NAMES = list_methods()
TAUGHT = list(filter(needs_teacher, NAMES))
PHASED = [n for n in NAMES if overrides(n, "phases")]


@pytest.fixture(scope="module")
def data():
    return load_dataset("digits", images_per_class=12)


def make(name, data, seed=0, teacher_exits="none", **kw):
    "Network, method and teacher: one exit, or four where the method has no teacher from outside."
    seed_everything(7)
    teacher = create_model("tiny", 10, data.image_size, teacher_exits) if name in TAUGHT else None
    seed_everything(seed)
    net = create_model("tiny", 10, data.image_size, "none" if name in TAUGHT else "sepconv",
                       width=4 if name in TAUGHT else 2)
    method = create_method(name, num_exits=net.num_exits, num_classes=10, feature_dims=net.feature_dims,
                           num_train=len(data.train),
                           **ARGS.get(name, {}) | kw)
    return net, method.set_teacher(teacher) if teacher else method, teacher


def run(net, method, data, recipe=None, **kw):
    return train(net, method, data, recipe or Recipe(epochs=2, batch_size=16, **PLAIN), device="cpu",
                 bar=False, **kw)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())


@pytest.mark.parametrize("name", but({"fitnets"}, TAUGHT))
def test_resume_is_bit_identical_at_every_epoch(name, data, tmp_path):
    net, method, teacher = make(name, data)
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    straight = run(net, method, data)
    records = list(straight)
    for stop in range(1, len(records)):
        first = run(*make(name, data)[:2], data, checkpoint=tmp_path/f"{stop}.pt")
        for _ in range(stop):
            next(first)
        other, m, _ = make(name, data, seed=5)   # other weights: all comes from the checkpoint
        t = run(other, m, data, checkpoint=tmp_path/f"{stop}.pt", resume=True)
        list(t)
        assert same(net.state_dict(), other.state_dict()) and same(method.state_dict(), m.state_dict())
        assert [r["train"] for r in t.records] == [r["train"] for r in records]
        assert t.best["epoch"] == straight.best["epoch"]
    assert same(before, teacher.state_dict()) and not teacher.training
    assert all(p.grad is None for p in teacher.parameters())


def _until_killed(name, path, step):   # in a process of its own
    "Train, or go on, and die in the middle of a step of this process."
    torch.set_num_threads(1)
    steps, look = [], training.Watch.step
    def watch(self, *args):
        look(self, *args)
        steps.append(1)
        if len(steps) == step:
            os.kill(os.getpid(), signal.SIGKILL)
    training.Watch.step = watch
    data = load_dataset("digits", images_per_class=12)
    list(run(*make(name, data, seed=10)[:2], data, checkpoint=path, resume="auto"))


@pytest.mark.parametrize("name", but({"dih"}, PHASED))
def test_kill_9_in_every_phase(name, data, tmp_path):
    """Killed in the second epoch of the first phase and, gone on, in the second of the second: the weights
    of an undisturbed training."""
    net, method, _ = make(name, data, seed=10)
    t = run(net, method, data)
    records, n, phases = list(t), t.steps_per_epoch, [p.name for p in method.phases(net)]
    assert [r["phase"] for r in records] == [phases[0]]*2 + [phases[1]]*2 and n > 3
    context = multiprocessing.get_context("forkserver")     # torch is imported once for both
    context.set_forkserver_preload(["multiexit_nb.experiment", "multiexit_nb.methods.dih"])
    # the second process starts with what the first has saved
    for step, done in ((n + 3, 1), (n + n + 3, 3)):
        p = context.Process(target=_until_killed, args=(name, tmp_path/"c.pt", step))
        p.start()
        p.join(120)
        assert p.exitcode == -signal.SIGKILL and load_checkpoint(tmp_path/"c.pt")["epoch"] == done
    other, m, _ = make(name, data, seed=5)
    again = run(other, m, data, checkpoint=tmp_path/"c.pt", resume=True)
    list(again)
    assert same(net.state_dict(), other.state_dict()) and same(method.state_dict(), m.state_dict())
    assert [r["val"] for r in again.records] == [r["val"] for r in records]


@pytest.mark.parametrize("name,names",
                         [("dih", ["heads", "student"]), ("fitnets", ["hint", "student"]),
                          ("takd", ["1: tiny", "student"])])
def test_each_phase_has_its_epochs_its_schedule_and_its_parameters(name, names, data):
    net, method, _ = make(name, data)
    t, seen = run(net, method, data), []
    def state():
        return {k: v.clone() for k, v in net.state_dict().items()}
    before = state()
    for record in t:
        after = state()
        seen.append({k for k in after if not torch.equal(after[k], before[k])})
        before = after
        assert (t.best["epoch"] > 2) == (record["epoch"] > 2)   # only the last phase can be selected
    assert [r["phase"] for r in t.records] == [names[0]]*2 + [names[1]]*2
    assert [r["epoch"] for r in t.records] == [1, 2, 3, 4]
    assert [r["lr"] for r in t.records] == pytest.approx([.1, .001]*2)   # as at the end of each epoch
    own = {"dih": set(), "takd": set()}.get(name)
    if own is not None:
        assert seen[0] == own
    else:
        # nothing past the guided stage
        assert seen[0] and not any(k.startswith(("heads", "backbone.stages.3")) for k in seen[0])
    assert any(k.startswith("heads") for k in seen[2])


def test_a_teacher_with_exits_needs_no_heads(data):
    net, method, teacher = make("dih", data, teacher_exits="sepconv")
    assert [p.name for p in method.ready(net).phases(net)] == ["student"]
    assert method.extra(torch.zeros(2, 3, 32, 32))["teacher"].num_exits == teacher.num_exits


def test_a_missing_teacher_is_one_line(data):
    net = create_model("tiny", 10, 32, "none")
    with pytest.raises(InputError, match="kd needs a teacher"):
        run(net, create_method("kd", num_exits=1, num_classes=10), data)


def test_runs_teach_by_name(data, tmp_path, monkeypatch):
    monkeypatch.setenv("MULTIEXIT_RUNS", str(tmp_path))
    base = dict(dataset="digits", images_per_class=12, model="tiny", exits="none", epochs=1, batch_size=16,
                **PLAIN)
    def go(method, finish=True, **kw):
        e = experiment.prepare({**base, "method": method, **kw}, set(base))
        t = e.start(e.load(), bar=False)
        list(e.epochs(t))
        if finish:
            e.run.save(t)
        return e.run
    teacher, open_run = go("baseline", run_id="big"), go("baseline", finish=False, run_id="open")
    for given in ("big", str(teacher.path)):
        run = go("dih", method_args={"teacher": given, "heads_epochs": 1},
                 run_id="student" if given == "big" else "two")
        assert Run.load(run.id).about["teacher"] == "big" and len(run.history)
    for wrong, line in ((dict(method_args={"teacher": "bik"}), "Did you mean 'big'"),
                        (dict(method_args={"teacher": open_run.id}), "not finished"),
                        ({}, "needs a teacher"), (dict(method_args={"teacher": "big"}, image_size=16),
                                                  "image_size=32, not 16"),
                        (dict(method_args={"teacher": "big"}, dataset="cifar10"),
                         "learned digits, not cifar10")):
        with pytest.raises(InputError, match=line):
            experiment.prepare({**base, "method": "kd", **wrong}, set(base))


@pytest.fixture(scope="module")
def big(tmp_path_factory):
    "A finished run with one exit."
    with pytest.MonkeyPatch.context() as m:
        m.setenv("MULTIEXIT_RUNS", str(tmp_path_factory.mktemp("teachers")))
        yield experiment.run_experiment(BASE | dict(method="baseline"), set(BASE), bar=False)


BASE = dict(dataset="digits", images_per_class=20, model="tiny", exits="none", epochs=1, batch_size=32,
            **PLAIN)
RUNS = dict(imta=dict(stage2_epochs=1), dih=dict(heads_epochs=1), fitnets=dict(hint_epochs=1),
            takd=dict(assistants=["tiny"], assistant_epochs=1), hdkd=dict(meta_every=3),
            mate=dict(alpha="auto", meta_every=3))


def parameters(name, big, **kw):
    args = RUNS.get(name, {}) | ({"teacher": str(big.path)} if name in TAUGHT else {})
    return BASE | dict(method=name, method_args=args, exits="none" if name in TAUGHT else "sepconv") | kw


@pytest.mark.parametrize("name", but(PHASED, NAMES))
def test_a_finished_run_rebuilds_the_network_that_was_tested(name, big):
    p = parameters(name, big)
    run = Run.load(experiment.run_experiment(p, set(p), bar=False).id)
    kept, data = run.outputs(), experiment.prepare(p, set(p)).load()
    x, y = next(data.test.batches(len(data.test)))
    with torch.no_grad():
        z = run.model()(x).logits
    torch.testing.assert_close(z, kept.logits.float(), atol=.02, rtol=2e-3)     # float16
    assert torch.equal(kept.labels, y)
    assert run.result["test"]["top1"] == pytest.approx((100*(z.argmax(-1) == y).double().mean(1)).tolist(),
                                                       abs=.6)
    if name == "imta":
        assert all(link.on == 1 for link in run.model().links)


PRESETS = [(n, p) for n in NAMES for p in list_presets(n) if p != "default"]
ONE_EACH = {preset_recipe(*pair): pair for pair in reversed(PRESETS)}.values()     # of each recipe
PRESETS = [pytest.param(*pair, marks=() if pair in ONE_EACH else pytest.mark.slow) for pair in PRESETS]


@pytest.mark.parametrize("name,preset", PRESETS)
def test_every_preset_starts_with_its_schedule(name, preset, big, data):
    "By name, as a batch run starts it; one epoch of each phase, in small batches."
    p = parameters(name, big, preset=preset, images_per_class=20)
    p["method_args"] = {k: v for k, v in p["method_args"].items() if k != "alpha"}
    e = experiment.prepare(p, {"epochs", "batch_size", "precision", "channels_last"})
    recipe = preset_recipe(name, preset) or "default"
    want = Recipe.preset(recipe, **PLAIN, epochs=1, batch_size=32)
    assert e.recipe == want
    assert (Recipe.preset(recipe) == Recipe()) == (recipe == "default")
    t = e.start(e.load(), bar=False)
    assert all(math.isfinite(v) for v in next(t)["train"]["loss"].values()) and t.method.preset == preset
    assert t.optimizer.param_groups[0]["weight_decay"] == want.weight_decay
    assert t.optimizer.param_groups[0]["nesterov"] == want.nesterov


# ---------------------------------------------------------------- compiled, and in low precision
@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_compiled_training_is_the_plain_one(name, data, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    data, results = load_dataset("digits", images_per_class=20), []
    for compile in (False, True):
        net, method, _ = make(name, data)
        t = run(net, method, data, Recipe(epochs=1, batch_size=64, lr=.01, compile=compile, **PLAIN))
        results.append([r["train"]["loss"] for r in t])
        assert (t.learner._compiled_call_impl is not None) == compile and len(t.records) == t.total
    for a, b in zip(*results, strict=True):
        assert a == pytest.approx(b, rel=1e-2, abs=1e-4)


@pytest.mark.parametrize("name", but({"dih", "imta"}, NAMES))
def test_bfloat16_training_has_float32_losses_and_weights(name):
    data = load_dataset("digits", images_per_class=20)
    net, method, teacher = make(name, data)
    seen, loss = set(), method.loss
    def watched(out, y, **extra):
        seen.update({out.logits.dtype, *(getattr(v, "logits", out.logits).dtype for v in extra.values()),
                     torch.is_autocast_enabled("cpu")})
        return loss(out, y, **extra)
    method.loss = watched
    low = set()
    if teacher:
        teacher.backbone.stages[0].register_forward_hook(lambda m, i, o: low.add(o.dtype))
    records = list(run(net, method, data,
                       Recipe(epochs=1, batch_size=64, precision="bf16", channels_last=False)))
    assert seen == {torch.float32, False}
    assert all(math.isfinite(v) for r in records for v in r["train"]["loss"].values())
    assert ({v.dtype for v in (net.state_dict() | method.state_dict()).values() if v.is_floating_point()}
            == {torch.float32})
    if teacher and name != "dih_online":
        assert torch.bfloat16 in low     # whose teacher is part of the loss


@pytest.mark.parametrize("name", but({"hdkd", "mate"}, [n for n in NAMES if overrides(n, "before_step")]))
def test_loss_weights_are_learned_in_the_precision_of_the_training(name):
    "The pass that moves γ, or α, is in bfloat16 as the step beside it, whose gradients it takes over."
    data = load_dataset("digits", images_per_class=20)
    net, method, _ = make(name, data)
    dtypes, where, move = {"step": set(), "pass": set()}, ["step"], method.before_step
    net.backbone.stages[1].register_forward_hook(lambda m, i, o: dtypes[where[0]].add(o.dtype))
    def before_step(step):
        assert step.precision == "bf16" and step.grads
        where[0] = "pass"
        move(step)
        where[0] = "step"
    method.before_step = before_step
    list(run(net, method, data, Recipe(epochs=1, batch_size=64, precision="bf16", channels_last=False)))
    assert dtypes["pass"] == {torch.bfloat16} and torch.bfloat16 in dtypes["step"]


# ---------------------------------------------------------------- several processes
def _shares(out):   # in each of two processes, or in one
    "Train by every method with a teacher or phases; what each process ends with."
    rank = (training.join(torch.device("cpu"))
            and (torch.distributed.get_rank() if torch.distributed.is_initialized() else 0))
    data, found = load_dataset("digits", images_per_class=20), {}
    for name in sorted({*TAUGHT, *PHASED}):
        net, method, _ = make(name, data)
        records = list(run(net, method, data, Recipe(epochs=1, batch_size=64, lr=.01, **PLAIN)))
        found[name] = dict(net=net.state_dict(), method=method.state_dict(),
                           loss=[r["train"]["loss"] for r in records])
    torch.save(found, f"{out}.{rank}")


@pytest.mark.slow
def test_two_processes_teach_as_one(tmp_path):
    script = (f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); "
              "import test_teachers; test_teachers._shares(sys.argv[1])")
    env = os.environ
    (tmp_path/"script.py").write_text(script)
    two = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--rdzv_backend", "c10d",
           "--rdzv_endpoint", "127.0.0.1:0"]
    for n in (1, 2):
        done = subprocess.run([sys.executable, *(two if n == 2 else []), tmp_path/"script.py",
                               tmp_path/f"of{n}"], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
    one, first, second = (torch.load(tmp_path/f, weights_only=True) for f in ("of1.0", "of2.0", "of2.1"))
    for name in one:
        for part in ("net", "method"):
            assert same(first[name][part], second[name][part]), (name, part)
            for k, v in one[name][part].items():
                torch.testing.assert_close(first[name][part][k], v, atol=2e-4, rtol=1e-3, msg=f"{name} {k}")
        for a, b in zip(one[name]["loss"], first[name]["loss"], strict=True):
            assert a == pytest.approx(b, abs=1e-3), name


# ---------------------------------------------------------------- the hint, as the equation reads
def test_the_hint_is_the_mean_square_over_all_elements(data):
    net, method, teacher = make("fitnets", data, hint=2, guided=2)
    hint = method.ready(net).phases(net)[0]
    x = next(data.train.batches(5))[0]
    net.eval()
    out = hint.learner(x)
    u, v = (n.backbone.stages[1](n.backbone.stages[0](x)) for n in (teacher, net))
    r = method.regressor
    assert r.weight.shape[2:] == (1, 1)
    fitted = torch.einsum("oc,bchw->bohw", r.weight[:, :, 0, 0], v) + r.bias[:, None, None]
    torch.testing.assert_close(hint.loss(out, torch.zeros(5).long(), **hint.extra(x))["hint"],
                               ((u - fitted)**2).sum()/u.numel())
    torch.testing.assert_close(out.logits, net(x).logits)
    assert method.hyper["hint_epochs"] == 2
    assert create_method("fitnets", num_exits=1, num_classes=10).hyper["hint_epochs"] == 40


def test_each_assistant_learns_from_the_one_before(data):
    net, method, teacher = make("takd", data, assistants=["tiny", "tiny"])
    x = next(data.train.batches(5))[0]
    chain = [teacher, *method.ready(net).chain]
    for phase, speaker in zip(method.phases(net), chain, strict=True):
        method.train()
        torch.testing.assert_close(phase.extra(x)["teacher"].logits, speaker.eval()(x).logits)


def test_a_cohort_is_its_members():
    torch.manual_seed(0)
    net, x = create_model("resnet8+tiny", 10).eval(), torch.randn(2, 3, 32, 32)
    out = net(x)
    for m, member in enumerate(net.members):
        torch.testing.assert_close(out.logits[m], member(x).logits[-1])
        torch.testing.assert_close(net.exit(x, m + 1), out.logits[m])
    assert net.cost() == [n.cost()[-1] for n in net.members] and len(net.summary()) == 2
    with pytest.raises(InputError, match="Did you mean 'tiny'"):
        create_model("resnet8+tini", 10)


def test_what_cannot_teach_is_said_at_once():
    net = create_model("tiny", 10, exits="none")
    with pytest.raises(InputError, match="unknown assistant 'tinny'. Did you mean 'tiny'"):
        create_method("takd", num_exits=1, num_classes=10, assistants=["tiny", "tinny"])
    with pytest.raises(InputError, match="kd: a network cannot be its own teacher"):
        create_method("kd", num_exits=1, num_classes=10).set_teacher(net).ready(net)


# ---------------------------------------------------------------- heads on a teacher
@pytest.mark.parametrize("name,k", [("resnet8", 3), ("resnet20", 3), ("vgg11", 4), ("resnet18", 4)])
def test_heads_are_where_and_what_the_paper_says(name, k):
    """DIH Table 1 and its footnote 4: k heads of (N_i + 1)·C parameters; VGG11 has none after the last of
    its five pools."""
    with torch.device("meta"):
        teacher, student = create_model(name, 100, exits="none"), create_model("tiny", 100, exits="none")
        for method in ("dih", "dih_online"):
            m = create_method(method, num_exits=1, num_classes=100).set_teacher(teacher).ready(student)
            sizes = [sum(p.numel() for p in h.parameters()) for h in m.heads.heads]
            assert sizes == [(math.prod(s) + 1)*100 for s in teacher.shapes[:k]]
            assert len(teacher.shapes) == (5 if name == "vgg11" else k)


@pytest.mark.parametrize("method", [n for n in NAMES if "head_activation" in hyperparameters(n)])
def test_head_activation_is_around_the_linear_map(method, data):
    x = next(data.train.batches(4))[0]
    heads = {a: make(method, data, head_activation=a)[1].ready(create_model("tiny", 10, 32, "none")).heads
             for a in ("none", "relu", "tanh", "sigmoid")}
    for a, h in heads.items():
        h.load_state_dict(heads["none"].state_dict())
        plain = heads["none"].both(x)[0]
        torch.testing.assert_close(h.both(x)[0], plain if a == "none" else getattr(torch, a)(plain))
    with pytest.raises(InputError, match="'relu'"):
        make(method, data, head_activation="gelu")


def test_linked_exits_teach_what_they_say(data):
    "A finished imta run as the teacher: its exits see each other."
    net, method, teacher = make("dih_online", data, teacher_exits="sepconv")
    for link in teacher.add_links().links:
        torch.nn.init.normal_(link.classify.weight)
    x = next(data.train.batches(4))[0]
    torch.testing.assert_close(method.ready(net).heads.both(x)[1], teacher.eval()(x).logits)


def test_what_has_no_stages_is_refused_in_one_line(data):
    pair, one = create_model("tiny+tiny", 10), create_model("tiny", 10, exits="none")
    def create(name):
        return create_method(name, num_exits=1, num_classes=10)
    for name in ("dih", "dih_online", "fitnets"):
        with pytest.raises(InputError,
                           match="the teacher must be one network with stages, which tiny.tiny is not"):
            create(name).set_teacher(pair).ready(one)
    with pytest.raises(InputError, match="the student must be one network with stages"):
        create("fitnets").set_teacher(one).ready(pair)
    for name in ("kd", "takd"):
        create(name).set_teacher(pair).ready(one)     # who looks at answers alone takes any network


def test_a_mean_of_teachers_is_one_teacher():
    "The code's sum of k+1 losses has one loss where the mean is the only teacher (§4.4)."
    g = torch.Generator().manual_seed(0)
    out, teacher = (MultiExitOutput(torch.randn(n, 4, 3, generator=g)) for n in (1, 5))
    def loss(**kw):
        return sum(create_method("dih", num_exits=1, num_classes=3, **kw).loss(out,
            torch.tensor([0, 1, 2, 0]), teacher=teacher).values())
    torch.testing.assert_close(loss(teacher_mode="mean", reduction="sum"), loss(teacher_mode="mean"))
    torch.testing.assert_close(loss(reduction="sum"), 5*loss())


# ---------------------------------------------------------------- precision and layout, for all phases
@pytest.mark.parametrize("epochs,best", [((9, 1), ("fp32", False)), ((1, 9), ("bf16", True))])
def test_auto_weighs_the_phases_by_their_length(epochs, best, data, monkeypatch):
    "Heads like plain float32, the student bfloat16: what counts is the time of the whole training."
    net, method, _ = make("dih", data, heads_epochs=epochs[0])
    before = {k: v.clone() for k, v in method.ready(net).state_dict().items()}
    rng = torch.get_rng_state()
    timed = set()
    def timer(objective, x, y, choice, clock):
        phase, m = objective.phase, objective.method
        timed.add((phase.name, type(phase.learner).__name__))
        assert phase.learner is not net and phase.learner is not method.heads and m is not method     # copies
        fast = ((choice.precision, choice.channels_last)
                == dict(heads=("fp32", False), student=("bf16", True))[phase.name])
        return lambda: .5 if fast else 1.
    monkeypatch.setattr(speed, "_timer", timer)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    d = speed.decide(Recipe(epochs=epochs[1]), net, method, torch.device("cpu"),
                     lambda: next(data.train.batches(8)))
    assert timed == {("heads", "Heads"), ("student", "MultiExitNet")}
    assert (d.precision, d.channels_last) == best
    assert same(before, method.state_dict()) and torch.equal(rng, torch.get_rng_state())


def test_auto_times_a_stage_that_freezes_without_freezing():
    "imta's second stage freezes the backbone of the network it is given."
    digits = load_dataset("digits", images_per_class=12)
    net = create_model("tiny", 10, digits.image_size, width=1)
    method = create_method("imta", num_exits=4, num_classes=10, feature_dims=net.feature_dims).ready(net)
    free = [p.requires_grad for p in net.parameters()]
    speed.decide(Recipe(epochs=1), net, method, torch.device("cpu"), lambda: next(digits.train.batches(8)),
                 rounds=1)
    assert free == [p.requires_grad for p in net.parameters()] and all(free)
