"""Networks as files: the same answers at the same exits, from ONNX, from torch.export, from safetensors,
and nothing half-written."""
import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from multiexit_nb import experiment, export
from multiexit_nb.core import InputError
from multiexit_nb.export import (
    confidence,
    exit_rule,
    export_net,
    latency,
    load_exported,
    need,
    on_arrays,
    run_chain,
    runner_source,
    segments,
    softmax,
)
from multiexit_nb.finished import FinishedNet, hub_class
from multiexit_nb.inference import early_exit
from multiexit_nb.models import create_model
from multiexit_nb.outputs import Outputs
from multiexit_nb.policies import Policy
from multiexit_nb.runs import Run

NETS = {"tiny": dict(at=(1, 3)), "resnet8": dict(at=(1,)), "msdnet": dict(num_exits=2, channels=4, growth=2)}
CRITERIA = ("max", "entropy", "margin", "patience")


@torch.no_grad()
def make(name, seed=0, **kw):
    """A network whose BN has seen images, whose answers differ from image to image, and whose exits are
    not all equally unsure."""
    torch.manual_seed(seed)
    net = create_model(name, 10, **(NETS.get(name, {}) | kw))
    for _ in range(3):
        net(torch.randn(16, 3, 32, 32)*2 + .5)
    for h, z in zip(net.heads, net.eval()(pictures(64, seed=2)).logits):
        last = h.classifier[-1]
        last.bias -= z.mean(0)
        last.weight *= 2/z.std(0).mean()
        last.bias *= 2/z.std(0).mean()
    return net


def pictures(n=48, seed=1):
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(seed))*2 + .5


def middle(values, share=.5):
    "A threshold with that share of the values below it, halfway between two of them: rounding cannot decide."
    v = values.sort().values
    i = int(len(v)*share)
    return float((v[i - 1] + v[i])/2)


@torch.no_grad()
def reference(net, x, thresholds, criterion="max", temperature=None):
    "Early exit in the plainest way: one image after the other."
    z, answers, exits = net(x).logits, [], []
    t = temperature or [1.]*len(z)
    for i in range(len(x)):
        same = 0
        for m in range(len(z)):
            p = (z[m, i].double()/t[m]).softmax(-1)
            best = p.sort(descending=True).values
            same = same + 1 if m and z[m, i].argmax() == z[m - 1, i].argmax() else 0
            sure = dict(max=best[0], margin=best[0] - best[1], entropy=1 + (p*p.log()).sum()/np.log(10),
                        patience=same)[criterion]
            if m == len(z) - 1 or sure >= thresholds[m]:
                answers.append(z[m, i])
                exits.append(m + 1)
                break
    return torch.stack(answers).numpy(), np.array(exits)


def said(logits):
    "Outputs whose labels do not matter."
    return Outputs(logits, torch.zeros(logits.shape[1], dtype=torch.long), "test")


def medians(net, x, criterion="max", temperature=None):
    with torch.no_grad():
        values = said(net(x).logits).confidence(criterion, temperature)
    return [middle(v) for v in values[:-1]]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    "name -> (network, thresholds, folder), exported once."
    made, top = {}, tmp_path_factory.mktemp("exported")
    def get(name):
        if name not in made:
            net = make(name)
            thresholds = medians(net, pictures())
            export_net(net, top/name, parts=("segments",), thresholds=thresholds, mean=[.5, .4, .3],
                       std=[.2, .2, .1])
            made[name] = net, thresholds, top/name
        return made[name]
    return get


# ---------------------------------------------------------------- the chain, in PyTorch
@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("name", ["tiny", "msdnet"])
def test_the_loop_is_the_plain_one_and_inference_s(name, criterion):
    net, x = make(name, **({"num_exits": 3} if name == "msdnet" else {})), pictures()
    temperature = [2., .5, 1.5]
    thresholds = [1.]*2 if criterion == "patience" else medians(net, x, criterion, temperature)
    rule = exit_rule(3, 10, thresholds=thresholds, criterion=criterion, temperature=temperature)
    logits, exits = run_chain(x.numpy(), [on_arrays(s) for s in segments(net)], rule | dict(image_size=32))
    want, at = reference(net, x, thresholds, criterion, temperature)
    assert exits.tolist() == at.tolist() and len(set(exits)) > 1
    assert np.allclose(logits, want, atol=1e-4)
    answers, left = early_exit(net, x, thresholds, criterion, temperature)
    assert exits.tolist() == left.tolist() and logits.argmax(-1).tolist() == answers.tolist()


@pytest.mark.parametrize("name", ["resnet18", "vgg11", "wrn_14_4", "densenet121", "msdnet_dbt_cifar_code"])
def test_segments_are_the_network(name):
    net, state, got = create_model(name, 10).eval(), [torch.randn(2, 3, 32, 32)], []
    with torch.inference_mode():
        want = net(state[0].clone()).logits
        for s in segments(net):
            z, *state = s(*state)
            got.append(z)
    assert torch.allclose(torch.stack(got), want, atol=1e-4) and len(got) == net.num_exits and not state


def test_a_single_map_in_a_list_stays_a_list():
    net = make("msdnet", num_exits=3, scale_widths=(1,), bottlenecks=(1,))       # one scale: lists of one map
    x = pictures(4)
    rule = exit_rule(3, 10) | dict(image_size=32)
    logits, exits = run_chain(x.numpy(), [on_arrays(s) for s in segments(net)], rule)
    with torch.no_grad():
        assert np.allclose(logits, net(x).logits[-1].numpy(), atol=1e-4) and set(exits) == {3}


def test_batches_shrink_and_stop():
    seen, x = [], np.zeros((6, 3, 4, 4), np.float32)
    x[:, 0, 0, 0] = range(6)
    def segment(leaves):          # images with a value in `leaves` are sure
        def run(state):
            seen.append(state[:, 0, 0, 0].astype(int).tolist())
            return [np.stack([np.where(np.isin(seen[-1], leaves), 9., 0.), np.zeros(len(state))],
                             -1).astype(np.float32), state]
        return run
    rule = exit_rule(3, 2, thresholds=.9) | dict(image_size=4)
    logits, exits = run_chain(x, [segment([1, 4]), segment([0, 2, 3, 5]), segment([])], rule)
    assert seen == [[0, 1, 2, 3, 4, 5], [0, 2, 3, 5]] and exits.tolist() == [2, 1, 2, 2, 1, 2]
    assert logits[:, 0].tolist() == [9]*6


def test_nobody_is_lost_to_nan():
    z = np.full((2, 2), np.nan, np.float32)
    logits, exits = run_chain(np.zeros((2, 3, 4, 4), np.float32), [lambda s: [z, s], lambda s: [z]],
                              exit_rule(2, 2, thresholds=[0.]) | dict(image_size=4))
    assert exits.tolist() == [2, 2] and np.isnan(logits).all()


def test_confidences_are_those_of_inference():
    z = torch.randn(3, 20, 7, generator=torch.Generator().manual_seed(0))*3
    z[:, 0] = torch.tensor([200., 0, 0, 0, 0, 0, 0])                   # probabilities that underflow
    for c in ("max", "entropy", "margin"):
        got = np.stack([confidence(softmax(v.numpy()), None, c) for v in z])
        assert np.allclose(got, said(z).confidence(c).numpy(), atol=1e-5)


# ---------------------------------------------------------------- files
@pytest.mark.parametrize("name", ["tiny", pytest.param("resnet8", marks=pytest.mark.slow), "msdnet"])
def test_onnx_and_programs_are_the_network(name, exported):
    net, thresholds, folder = exported(name)
    x = pictures()
    want, at = reference(net, x, thresholds)
    assert len(set(at)) == net.num_exits
    for format in ("onnx", "pt2"):
        predict = load_exported(folder, threads=1, format=format)
        for size in (len(x), 1, 7):
            logits, exits = (np.concatenate(a)
                             for a in zip(*(predict(x[i:i + size].numpy()) for i in range(0, len(x), size))))
            assert exits.tolist() == at.tolist() and logits.argmax(-1).tolist() == want.argmax(-1).tolist()
            assert np.allclose(logits, want, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind",
                         ["sepconv", pytest.param("linear", marks=pytest.mark.slow),
                          pytest.param("conv", marks=pytest.mark.slow)])
def test_each_exit_by_itself(kind, tmp_path):
    net, x = make("tiny", exits=kind, at=(2,)), pictures(5)
    files = export_net(net, tmp_path/"e", parts=["exits"])["files"]
    for m in range(1, net.num_exits + 1):
        with torch.no_grad():
            want = net.exit(x, m).numpy()
        onnx = export.onnx_function(tmp_path/"e"/files["onnx"]["exits"][m - 1], 1)(x.numpy())[0]
        pt2 = torch.export.load(tmp_path/"e"/files["pt2"]["exits"][m - 1]).module()(x).detach().numpy()
        assert np.allclose(onnx, want, atol=1e-4) and np.allclose(pt2, want, atol=1e-4)
    assert files == {f: dict(exits=[f"exit_1.{f}", f"exit_2.{f}"]) for f in ("onnx", "pt2")}


def test_what_nobody_needs_is_not_exported(exported):
    import onnx
    _, _, folder = exported("msdnet")
    first, last = (onnx.load(folder/f"segment_{m}.onnx").graph for m in (1, 2))
    assert [i.name for i in first.input] == ["images"]
    assert [o.name for o in first.output][:2] == ["logits", "next_1"] and len(first.output) > 2
    assert [o.name for o in last.output] == ["logits"]
    dims = [i.type.tensor_type.shape.dim[0] for i in (*first.input, *first.output, *last.input)]
    assert all(d.dim_param and not d.dim_value for d in dims), "the batch size is free"


def test_the_manifest_tells_all(exported):
    net, thresholds, folder = exported("tiny")
    text = (folder/"manifest.json").read_text()
    def no(constant):
        raise AssertionError(f"{constant} is not JSON")
    m = json.loads(text, parse_constant=no)
    assert m["thresholds"] == thresholds and m["criterion"] == "max" and m["temperature"] == [1]*3
    assert m["classes"] == [str(i) for i in range(10)]
    assert m["mean"] == [.5, .4, .3] and m["std"] == [.2, .2, .1] and m["image_size"] == 32
    assert m["num_exits"] == 3 and m["model"] == "tiny"
    assert (m["versions"]["torch"] == torch.__version__.split("+")[0]
            or m["versions"]["torch"] == torch.__version__)
    named = {f for parts in m["files"].values() for fs in parts.values() for f in fs}
    assert {f.name for f in folder.iterdir()} == named | {"manifest.json", "run.py"}


def test_the_runner_stands_alone(exported, tmp_path):
    net, thresholds, folder = exported("tiny")
    images = np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3), np.uint8)
    np.save(tmp_path/"images.npy", images)
    code = ("import sys, runpy\nfor m in ('torch', 'multiexit_nb', 'onnx'): sys.modules[m] = None\n"
            "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')")
    r = subprocess.run([sys.executable, "-c", code, folder/"run.py", "images.npy"], cwd=tmp_path,
                       capture_output=True, text=True)
    assert r.returncode == 0, r.stderr
    x = ((torch.from_numpy(images).permute(0, 3, 1, 2)/255
          - torch.tensor([.5, .4, .3]).view(3, 1, 1))/torch.tensor([.2, .2, .1]).view(3, 1, 1))
    logits, exits = reference(net, x, thresholds)
    rows = [line.split(",") for line in r.stdout.splitlines()[1:]]
    assert [int(r[1]) for r in rows] == exits.tolist()
    assert [int(r[2]) for r in rows] == logits.argmax(-1).tolist()
    assert np.allclose([float(r[3]) for r in rows], softmax(logits).max(-1), atol=1e-3)
    compile(runner_source(), "run.py", "exec")
    assert (folder/"run.py").read_text() == runner_source()


def test_latency_is_a_table(exported):
    net, _, folder = exported("tiny")
    t = latency(net, folder, pictures(8), batch_sizes=(1, 8), repeats=1)
    assert list(t.index) == [(e, mode, b)
                             for e, mode in (("PyTorch", "last exit only"), ("PyTorch", "early exit"),
                                             ("onnxruntime", "early exit")) for b in (1, 8)]
    assert (t["images/s"] > 0).all() and t.loc[("PyTorch", "last exit only", 1), "average exit"] == 3
    assert t.loc[("PyTorch", "early exit", 8), "average exit"] == t.loc[("onnxruntime", "early exit", 1),
        "average exit"] < 3


# ---------------------------------------------------------------- nothing half-written, and one line
def test_a_failed_export_leaves_nothing(tmp_path, monkeypatch):
    def broken(file, inputs, outputs):
        raise InputError("does not compute")
    monkeypatch.setattr(export, "check_same", broken)
    with pytest.raises(InputError, match="does not compute"):
        export_net(make("tiny"), tmp_path/"a", formats=["onnx"], parts=["segments"])
    assert not list(tmp_path.iterdir())


def test_a_wrong_file_is_noticed(exported):
    net, _, folder = exported("tiny")
    x, last = pictures(3), segments(net)[-1]
    with torch.no_grad():
        state = net.backbone.upto(x, 3)
        right, = last(state)
    export.check_same(folder/"segment_3.onnx", (state,), (right,))
    with pytest.raises(InputError, match="segment_3.onnx does not compute what the network does: off by 0.1"):
        export.check_same(folder/"segment_3.onnx", (state,), (right + .1,))


def test_only_own_folders_are_replaced(tmp_path):
    (tmp_path/"mine").mkdir()
    (tmp_path/"mine/thesis.tex").write_text("x")
    net = FinishedNet("tiny", 10)
    with pytest.raises(InputError, match="does not exist yet"):
        net.save(tmp_path/"mine")
    with pytest.raises(InputError, match="deletes nothing else"):
        net.save(tmp_path/"mine", replace=True)
    assert [f.name for f in tmp_path.rglob("*")] == ["mine", "thesis.tex"]
    net.save(tmp_path/"net")
    other = FinishedNet("tiny", 5)
    other.save(tmp_path/"net", replace=True)
    assert FinishedNet.load(tmp_path/"net").config["num_classes"] == 5
    assert sorted(f.name for f in tmp_path.iterdir()) == ["mine", "net"]


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime", "huggingface_hub"])
def test_missing_packages_are_one_line(package, monkeypatch, tmp_path):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n == package else find(n, *a))
    with pytest.raises(InputError, match=rf"^{package} not installed: pip install 'multiexit_nb\[export\]'$"):
        if package == "huggingface_hub":
            hub_class.__wrapped__()
        else:
            export_net(make("tiny"), tmp_path/"a")
    if package == "onnxruntime":
        with pytest.raises(InputError, match="onnxruntime not installed"):
            load_exported(tmp_path)
    need("numpy")


def test_wrong_input_is_one_line(tmp_path, exported):
    net = make("tiny")
    for kw, say in ((dict(formats=["tflite"]), "unknown format 'tflite'"),
                    (dict(parts=["segment"]), "Did you mean 'segments'"),
                    (dict(formats="onnx"), "a list of onnx and pt2"),
                    (dict(thresholds=[.5]), "2 numbers, or 3"),
                    (dict(criterion="maximum"), "unknown criterion"),
                    (dict(temperature=[1, 1]), "3 numbers > 0"), (dict(classes=["a"]), "10 names"),
                    (dict(std=[1, 1, 0]), "3 numbers > 0"),
                    (dict(thresholds=Policy((.5, .5, -np.inf)), criterion="max"), "has its own"),
                    (dict(thresholds=[.5, float("nan")]), "2 numbers")):
        with pytest.raises(InputError, match=say):
            export_net(net, tmp_path/"a", **kw)
    with pytest.raises(InputError, match="no exported network in"):
        load_exported(tmp_path)
    with pytest.raises(InputError, match="unknown format"):
        load_exported(tmp_path, format="onx")
    _, _, folder = exported("tiny")
    with pytest.raises(ValueError, match=r"expected \(B, 3, 32, 32\)"):
        load_exported(folder)(np.zeros((1, 3, 8, 8), np.float32))
    (tmp_path/"manifest.json").write_text("{")
    with pytest.raises(InputError, match="cannot load"):
        load_exported(tmp_path)
    (tmp_path/"manifest.json").write_text(json.dumps(dict(files=dict(pt2=dict(exits=[])))))
    for format in ("onnx", "pt2"):
        with pytest.raises(InputError, match="segments"):
            load_exported(tmp_path, format=format)


def test_a_policy_is_a_rule():
    rule = exit_rule(3, 10, thresholds=Policy((.5, np.inf, -np.inf), "margin", (1., 2., 3.)))
    assert (rule["thresholds"], rule["criterion"], rule["temperature"]) == ([.5, "inf"], "margin", [1, 2, 3])
    assert exit_rule(3, 10, **rule) == rule == json.loads(json.dumps(rule))


# ---------------------------------------------------------------- finished networks
def test_saved_and_loaded(tmp_path):
    net = FinishedNet("msdnet", 10, options=NETS["msdnet"],
                      rule=dict(thresholds=[np.inf], classes="abcdefghij", mean=[.1]*3))
    net.net.load_state_dict(make("msdnet").state_dict())
    net.eval().save(tmp_path/"a")
    again, x = FinishedNet.load(tmp_path/"a"), pictures(4)
    assert not again.training and again.rule == net.rule and again.net.at == net.net.at
    assert sorted(f.name for f in (tmp_path/"a").iterdir()) == ["config.json", "model.safetensors"]
    with torch.no_grad():
        assert torch.equal(net(x).logits, again(x).logits)
    assert FinishedNet.load(tmp_path/"a", rule=dict(thresholds=.5)).rule["thresholds"] == [.5]


def test_the_hub_s_local_form(tmp_path, capsys):
    net = FinishedNet("tiny", 10, options=dict(at=(1, 3)),
                      rule=dict(thresholds=torch.tensor([.7, .8]), criterion="margin")).eval()
    hub, x = net.to_hub(), pictures(4)
    assert hub.net is net.net
    hub.save_pretrained(tmp_path/"hub")
    again = hub_class().from_pretrained(tmp_path/"hub")
    assert type(again) is hub_class() and again.rule == net.rule and capsys.readouterr().out == ""
    with torch.no_grad():
        assert torch.equal(net(x).logits, again(x).logits)
    plain = FinishedNet.load(tmp_path/"hub")                                 # one layout for both
    net.save(tmp_path/"plain")
    with torch.no_grad():
        assert torch.equal(plain(x).logits, hub_class().from_pretrained(tmp_path/"plain")(x).logits)
    assert hub_class().from_pretrained(tmp_path/"plain", rule=dict(thresholds=.9)).rule["thresholds"] == [.9,
        .9]
    hub_class()("tiny", 10, rule=dict(thresholds=torch.tensor([.1, .2, .3]))).save_pretrained(
        tmp_path/"direct")
    assert FinishedNet.load(tmp_path/"direct").rule["thresholds"] == pytest.approx([.1, .2, .3])


def test_damaged_networks_are_one_line(tmp_path):
    FinishedNet("tiny", 10).save(tmp_path/"a")
    weights = (tmp_path/"a/model.safetensors").read_bytes()
    (tmp_path/"a/model.safetensors").write_bytes(weights[:-100])
    for load in (FinishedNet.load, lambda f: hub_class().from_pretrained(f)):
        with pytest.raises(InputError, match="is damaged"):
            load(tmp_path/"a")
    (tmp_path/"a/model.safetensors").write_bytes(weights)
    config = json.loads((tmp_path/"a/config.json").read_text())
    (tmp_path/"a/config.json").write_text(json.dumps(config | dict(num_classes=7, rule={})))
    with pytest.raises(InputError, match="is damaged: RuntimeError"):
        FinishedNet.load(tmp_path/"a")    # weights that do not fit
    (tmp_path/"a/config.json").unlink()
    with pytest.raises(InputError, match="config.json is not there"):
        FinishedNet.load(tmp_path/"a")
    with pytest.raises(InputError,
                       match="unknown argument of exit_rule: 'threshold'. Did you mean 'thresholds'"):
        FinishedNet("tiny", 10, rule=dict(threshold=.5))


def test_from_a_run_to_files(tmp_path):
    parameters = dict(dataset="digits", images_per_class=14, model="tiny", exits="sepconv",
                      model_args=dict(at=[2]), method="mate", epochs=1,
                      batch_size=64, precision="fp32", channels_last="false")
    e = experiment.prepare(parameters, set(parameters))
    data = e.load()
    t = e.start(data, bar=False)
    for _ in e.epochs(t):
        pass
    e.run.finish(t)
    done = FinishedNet.of_run(Run.load(e.run.id), data, thresholds=.9)
    assert not done.training and done.rule["classes"] == list(map(str, data.class_names))
    assert done.rule["mean"] == data.train.mean.tolist()
    x, _ = next(data.test.batches(8))
    with torch.no_grad():
        assert torch.equal(done(x).logits, e.run.model()(x).logits)
    manifest = done.export(tmp_path/"e", formats=["pt2"], parts=["exits"])
    assert manifest["thresholds"] == [.9] and manifest["std"] == done.rule["std"]
    assert not (tmp_path/"e/run.py").exists()
    assert torch.allclose(torch.export.load(tmp_path/"e/exit_1.pt2").module()(x), done.net.exit(x, 1),
                          atol=1e-5)
