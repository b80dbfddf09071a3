"""Phases and teachers: one training loop for chains of networks, exact resumes at every boundary, and runs as teachers."""
import pytest
import torch

from multiexit_nb import batch
from multiexit_nb.core import InputError, seed_everything
from multiexit_nb.data import load_dataset
from multiexit_nb.methods import create_method
from multiexit_nb.models import create_model
from multiexit_nb.runs import Run
from multiexit_nb.trainer import Recipe, train

PLAIN = dict(precision="fp32", channels_last=False)
CASES = {"kd": {}, "dih": dict(heads_epochs=2), "fitnets": dict(hint_epochs=2), "takd": dict(assistants=["tiny"], assistant_epochs=2), "dih_online": {}}


@pytest.fixture(scope="module")
def data(): return load_dataset("digits", images_per_class=12)


def make(name, data, seed=0, teacher_exits="none", **kw):
    seed_everything(7)
    teacher = create_model("tiny", 10, data.image_size, teacher_exits)
    seed_everything(seed)
    net = create_model("tiny", 10, data.image_size, "none")
    method = create_method(name, num_exits=1, num_classes=10, feature_dims=net.feature_dims, num_train=len(data.train), **CASES[name], **kw)
    return net, method.set_teacher(teacher), teacher


def run(net, method, data, recipe=None, **kw):
    return train(net, method, data, recipe or Recipe(epochs=2, batch_size=16, **PLAIN), device="cpu", bar=False, **kw)


def same(a, b): return a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())


@pytest.mark.parametrize("name", CASES)
def test_resume_is_bit_identical_at_every_epoch(name, data, tmp_path):
    net, method, teacher = make(name, data)
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    straight = run(net, method, data)
    records = list(straight)
    for stop in range(1, len(records)):
        first = run(*make(name, data)[:2], data, checkpoint=tmp_path/f"{stop}.pt")
        for _ in range(stop): next(first)
        other, m, _ = make(name, data, seed=5)   # other weights: all comes from the checkpoint
        t = run(other, m, data, checkpoint=tmp_path/f"{stop}.pt", resume=True)
        list(t)
        assert same(net.state_dict(), other.state_dict()) and same(method.state_dict(), m.state_dict())
        assert [r["train"] for r in t.records] == [r["train"] for r in records] and t.best["epoch"] == straight.best["epoch"]
    assert same(before, teacher.state_dict()) and not teacher.training and all(p.grad is None for p in teacher.parameters())


@pytest.mark.parametrize("name,names", [("dih", ["heads", "student"]), ("fitnets", ["hint", "student"]), ("takd", ["1: tiny", "student"])])
def test_each_phase_has_its_epochs_its_schedule_and_its_parameters(name, names, data):
    net, method, _ = make(name, data)
    t, seen = run(net, method, data), []
    state = lambda: {k: v.clone() for k, v in net.state_dict().items()}
    before = state()
    for record in t:
        after = state()
        seen.append({k for k in after if not torch.equal(after[k], before[k])})
        before = after
        assert (t.best["epoch"] > 2) == (record["epoch"] > 2)   # only the last phase can be selected
    assert [r["phase"] for r in t.records] == [names[0]]*2 + [names[1]]*2 and [r["epoch"] for r in t.records] == [1, 2, 3, 4]
    assert [r["lr"] for r in t.records] == pytest.approx([.1, .001]*2)   # as at the end of each epoch
    own = {"dih": set(), "takd": set()}.get(name)
    if own is not None: assert seen[0] == own
    else: assert seen[0] and not any(k.startswith(("heads", "backbone.stages.3")) for k in seen[0])   # nothing past the guided stage
    assert any(k.startswith("heads") for k in seen[2])


def test_a_teacher_with_exits_needs_no_heads(data):
    net, method, teacher = make("dih", data, teacher_exits="sepconv")
    assert [p.name for p in method.ready(net).phases()] == ["student"]
    assert method.extra(torch.zeros(2, 3, 32, 32))["teacher"].num_exits == teacher.num_exits


def test_a_missing_teacher_is_one_line(data):
    net = create_model("tiny", 10, 32, "none")
    with pytest.raises(InputError, match="kd needs a teacher"):
        run(net, create_method("kd", num_exits=1, num_classes=10), data)


def test_runs_teach_by_name(data, tmp_path, monkeypatch):
    monkeypatch.setenv("MULTIEXIT_RUNS", str(tmp_path))
    base = dict(dataset="digits", images_per_class=12, model="tiny", exits="none", epochs=1, batch_size=16, **PLAIN)
    def go(method, finish=True, **kw):
        e = batch.prepare({**base, "method": method, **kw}, set(base))
        loaded = batch.load(e)
        t = train(*batch.start(e, loaded), loaded, e.recipe, device="cpu", bar=False, checkpoint=e.run.checkpoint)
        list(t)
        if finish: e.run.save(t)
        return e.run
    teacher, open_run = go("baseline", run_id="big"), go("baseline", finish=False, run_id="open")
    for given in ("big", str(teacher.path)):
        run = go("dih", method_args={"teacher": given, "heads_epochs": 1}, run_id="student" if given == "big" else "two")
        assert Run.load(run.id).about["teacher"] == "big" and len(run.history) and run.model()(torch.zeros(1, 3, 32, 32)).num_exits == 1
    for wrong, line in ((dict(method_args={"teacher": "bik"}), "Did you mean 'big'"), (dict(method_args={"teacher": open_run.id}), "not finished"),
                        ({}, "needs a teacher"), (dict(method_args={"teacher": "big"}, image_size=16), "image_size=32, not 16")):
        with pytest.raises(InputError, match=line): batch.prepare({**base, "method": "kd", **wrong}, set(base))


def test_a_cohort_is_its_members():
    torch.manual_seed(0)
    net, x = create_model("resnet8+tiny", 10).eval(), torch.randn(2, 3, 32, 32)
    out = net(x)
    for m, member in enumerate(net.members):
        torch.testing.assert_close(out.logits[m], member(x).logits[-1])
        torch.testing.assert_close(net.exit(x, m + 1), out.logits[m])
    assert net.cost() == [n.cost()[-1] for n in net.members] and len(net.summary()) == 2
    with pytest.raises(InputError, match="Did you mean 'tiny'"): create_model("resnet8+tini", 10)
