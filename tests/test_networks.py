"""The networks against the costs and parameter counts their papers print, and the promises of
MultiExitNet."""
import copy
import csv
import json
import math
from functools import cache
from itertools import groupby
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from multiexit_nb.attach import attach_exits
from multiexit_nb.backbones import Backbone, ShapesOnly, register_backbone, stage_shapes
from multiexit_nb.core import InputError
from multiexit_nb.cost import CONVENTIONS, count
from multiexit_nb.exits import ExitPath, Head, count_parts, list_exits, register_exit
from multiexit_nb.methods import create_method
from multiexit_nb.models import create_model, list_models
from multiexit_nb.msdnet import Column, ScaleLayer

torch.set_num_threads(1)
ROWS = list(csv.DictReader((Path(__file__).parent/"published_costs.csv").open(encoding="utf8")))
KEY = ("model", "options", "num_classes", "image_size", "exits")
TABLES = {k: list(g) for k, g in groupby(ROWS, lambda r: tuple(r[c] for c in KEY))}
SMALL = ("tiny", "resnet8", "vgg11")


def size(module):
    return sum(p.numel() for p in module.parameters())


@cache
def on_meta(model, options="{}", num_classes="10", image_size="32", exits="sepconv", **kw):
    with torch.device("meta"):
        return create_model(model, int(num_classes), int(image_size), exits, **json.loads(options), **kw)


@cache
def summary(*key):
    return on_meta(*key).summary()


# ---- costs and parameters

@pytest.mark.parametrize("key", TABLES, ids="-".join)
def test_costs_and_parameters_of_every_row(key):
    net, rows, s = on_meta(*key), TABLES[key], summary(*key)
    for name in CONVENTIONS:
        assert [f"{c/1e6:.3f}" for c in s[name]] == [r[name + "_m"] for r in rows]
    for name in ("path_params", "head_params"):
        assert s[name].tolist() == [int(r[name]) for r in rows]
    assert s.sees.tolist() == [r["sees"] for r in rows]
    assert size(net) == int(rows[0]["total_params"])
    assert size(net.backbone) + size(net.heads[-1]) == int(rows[0]["backbone_params"])


@pytest.mark.parametrize("key",
                         [k for k, r in TABLES.items() if r[0]["published"] and r[0]["exits"] == "sepconv"],
                         ids="-".join)
def test_mate_table_1_to_its_printed_digits(key):
    assert [f"{c/1e6:.2f}" for c in summary(*key).msdnet] == [r["published"] for r in TABLES[key]]


@pytest.mark.parametrize("key",
                         [k for k, r in TABLES.items() if r[0]["published"] and r[0]["exits"] == "conv"],
                         ids="-".join)
def test_eed_table_3_after_its_rounding(key):
    assert [f"{2*round(c/1e9, 2):.2f}" for c in summary(*key).fvcore] == [r["published"] for r in TABLES[key]]


DIH = [("resnet8", 83_892, 0.08, 12.507, 12.679), ("resnet14", 181_108, 0.18, 26.663, 26.950),
       ("resnet20", 278_324, 0.28, 40.819, 41.220), ("resnet110", 1_736_564, 1.74, 253.156, 255.277),
       ("vgg11", 9_277_284, 9.27, 152.816, 153.119), ("resnet18", 11_220_132, 11.22, 555.469, 556.698),
       ("resnet34", 21_328_292, 21.32, 1159.449, 1161.497)]


@pytest.mark.parametrize("name,params,printed,macs,fvcore", DIH)
def test_dih_table_1(name, params, printed, macs, fvcore):
    net = on_meta(name, num_classes="100", exits="linear")
    own = size(net.backbone) + size(net.heads[-1])
    assert own == params
    # the table rounds some rows and truncates others
    assert printed in (round(own/1e6, 2), math.floor(own/1e4)/100)
    assert (round(net.cost()[-1]/1e6, 3), round(net.cost("fvcore")[-1]/1e6, 3)) == (macs, fvcore)
    flat = [math.prod(net.shapes[s - 1]) for s in net.at[:-1]]
    assert [size(h) for h in net.heads[:-1]] == [(n + 1)*100 for n in flat]   # DIH, footnote 4
    assert sum(map(size, net.heads[:-1])) == (2_867_500 if params < 2e6 else 3_072_400 if name == "vgg11"
                                              else 12_288_400)


def test_earlier_heads_are_added():
    net = on_meta("resnet18", num_classes="100")
    alone, heads = net.cost("msdnet"), [h["msdnet"] for h in count_parts(net)[1]]
    assert net.cost("msdnet", earlier_heads=True) == [c + sum(heads[:m]) for m, c in enumerate(alone)]


@pytest.mark.parametrize("name,exits", [("resnet8", "sepconv"), ("vgg19", "conv"), ("resnet14", "linear")])
def test_fvcore_convention_is_fvcore(name, exits):
    fvcore = pytest.importorskip("fvcore.nn")
    net = create_model(name, 100, exits=exits).eval()

    class Upto(nn.Module):
        def __init__(self, m):
            super().__init__()
            self.net, self.m = net, m
        def forward(self, x):
            return net.exit(x, self.m)

    for m, cost in enumerate(net.cost("fvcore"), 1):
        analysis = fvcore.FlopCountAnalysis(Upto(m), torch.randn(1, 3, 32, 32))
        assert analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).total() == cost


def test_counting_leaves_no_trace():
    net = create_model("tiny", 10).train()
    net.heads[0].eval()
    modes, state = [m.training for m in net.modules()], copy.deepcopy(net.state_dict())
    rng = torch.get_rng_state()
    net.cost("msdnet"), net.summary()
    assert [m.training for m in net.modules()] == modes and torch.equal(torch.get_rng_state(), rng)
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert not any(m._forward_hooks for m in net.modules())


def test_a_layer_without_a_rule_is_an_error_not_a_zero():
    net = create_model("tiny", 10)
    net.heads[0].body.insert(0, nn.PReLU())
    with pytest.raises(InputError, match="no rule for the cost of PReLU"):
        net.cost()


# ---- what a network promises

@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("exits", ["sepconv", "conv", "linear", "none"])
def test_forward_exit_and_gradients(name, exits):
    torch.manual_seed(0)
    net = create_model(name, 7, exits=exits)
    out = net(torch.randn(4, 3, 32, 32))
    M = net.num_exits
    assert out.logits.shape == (M, 4, 7)
    assert tuple(f.shape for f in out.features) == tuple((4, d) for d in net.feature_dims)
    out.logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    net.eval()
    x = torch.randn(1, 3, 32, 32)   # a single image, whose maps may be 1×1
    with torch.no_grad():
        logits = net(x).logits
        for m in range(1, M + 1):
            torch.testing.assert_close(net.exit(x, m), logits[m - 1])


def test_the_feature_is_what_the_classifier_sees():
    net = create_model("vgg11", 10).eval()
    with torch.no_grad():
        out = net(torch.randn(2, 3, 32, 32))
        for z, f, h in zip(out.logits, out.features, net.heads):
            torch.testing.assert_close(h.classifier(f), z)


@pytest.mark.parametrize("exits", ["sepconv", "linear"])
def test_exit_runs_nothing_deeper_and_no_other_head(exits):
    net = create_model("tiny", 10, exits=exits).eval()
    ran = []
    for kind, parts in dict(stage=net.backbone.stages, head=net.heads).items():
        for i, part in enumerate(parts, 1):
            part.register_forward_hook(lambda *_, who=(kind, i): ran.append(who))
    for m in range(1, net.num_exits + 1):
        ran.clear()
        net.exit(torch.randn(1, 3, 32, 32), m)
        assert ran == [("stage", s) for s in range(1, net.at[m - 1] + 1)] + [("head", m)]


@pytest.mark.parametrize("name,exits", [("tiny", "sepconv"), ("resnet8", "linear"), ("vgg11", "conv")])
def test_copy_layout_and_compile(name, exits):
    torch.manual_seed(0)
    net, x = create_model(name, 10, exits=exits).eval(), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        want = net(x)
        twin = copy.deepcopy(net)
        assert twin.cost() == net.cost()
        assert all(p is not q for p, q in zip(net.parameters(), twin.parameters()))
        torch.testing.assert_close(twin(x).logits, want.logits, rtol=0, atol=0)
        last = twin.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
        torch.testing.assert_close(last.logits, want.logits, rtol=1e-3, atol=1e-4)
        compiled = torch.compile(net, backend="aot_eager", fullgraph=True)(x)
    torch.testing.assert_close(compiled.logits, want.logits, rtol=1e-3, atol=1e-4)
    for f, g in zip(compiled.features, want.features):
        torch.testing.assert_close(f, g, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_compiled_training_step():
    torch.manual_seed(0)
    net, x = create_model("tiny", 10), torch.randn(8, 3, 32, 32)
    twin = copy.deepcopy(net)
    net(x).logits.square().mean().backward()
    torch.compile(twin)(x).logits.square().mean().backward()
    for p, q in zip(net.parameters(), twin.parameters()):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-2, atol=1e-4)


def test_mixed_precision():
    net = create_model("tiny", 10)
    with torch.autocast("cpu", torch.bfloat16):
        out = net(torch.randn(4, 3, 32, 32))
    out.logits.float().square().mean().backward()
    assert out.logits.dtype is torch.bfloat16 and all(p.grad is not None for p in net.parameters())


def test_same_seed_same_weights():
    nets = []
    for _ in range(2):
        torch.manual_seed(3)
        nets.append(create_model("tiny", 10).state_dict())
    assert all(torch.equal(v, nets[1][k]) for k, v in nets[0].items())


def test_initialisation():
    torch.manual_seed(0)
    net = create_model("vgg16", 10)
    conv = net.backbone.stages[3][0]
    assert conv.weight.std().item() == pytest.approx((2/(512*9))**0.5, rel=0.02)
    assert conv.bias.abs().max() == 0
    depthwise, pointwise = net.heads[0].body[0][:2]
    # uniform in ±1/3, PyTorch's own
    assert depthwise.weight.std().item() == pytest.approx(1/3/3**0.5, rel=0.1)
    assert pointwise.weight.std().item() == pytest.approx((2/128)**0.5, rel=0.05)


# ---- designs

def test_default_and_given_attach_points():
    assert create_model("tiny", 10).at == (1, 2, 3, 4)
    assert create_model("tiny", 10, at=[2]).at == (2, 4)
    assert create_model("resnet20", 10, exits="linear").at == (1, 2, 3, 3)
    assert create_model("tiny", 10, exits="none").at == (4,)
    assert {e: on_meta("vgg16", exits=e).at for e in ("sepconv", "conv", "linear")} == {
        "sepconv": (2, 3, 4, 5), "conv": (1, 2, 3, 5), "linear": (1, 2, 3, 4, 5)}


def test_equal_feature_widths_where_methods_compare_features():
    for exits in ("sepconv", "conv"):
        for name in ("resnet18", "vgg19", "resnet8", "tiny"):
            assert len(set(on_meta(name, exits=exits).feature_dims)) == 1


def test_options():
    assert size(create_model("tiny", 10, width=8)) > 2*size(create_model("tiny", 10, width=4))
    def drops(**kw):
        return [m.p for m in on_meta("vgg16", **kw).modules() if isinstance(m, nn.Dropout)]
    assert drops() == [0.5]*8 and drops(dropout=0.1) == [0.1]*8 and drops(exits="conv") == []
    net = create_model("tiny", 10, exits="linear", head_activation="relu").eval()
    logits = net(torch.randn(4, 3, 32, 32)).logits
    # DIH's heads, not the network's own classifier
    assert (logits[:-1] >= 0).all() and (logits[-1] < 0).any()


def test_stems():
    assert on_meta("resnet18", image_size="64").shapes[0] == (64, 64, 64)
    assert on_meta("resnet18", image_size="65").shapes[0] == (64, 17, 17)


class Allocated(TorchDispatchMode):
    "Remembers the largest tensor made on the CPU."
    largest = 0
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.device.type == "cpu":
            self.largest = max(self.largest, out.numel())
        return out


WRONG = [(dict(name="resnet19"), "unknown model 'resnet19'. Did you mean"),
         (dict(exits="sepcov"), "Did you mean 'sepconv'"),
         (dict(num_classes=1), "whole number ≥ 2"), (dict(num_classes=2.5), "whole number ≥ 2"),
         (dict(num_classes=True), "≥ 2"),
         (dict(image_size=31), "at least 32 pixels for vgg16"), (dict(image_size="32"), "at least 32 pixels"),
         (dict(droput=0.1), "Did you mean 'dropout'"), (dict(dropout=1.0), "a rate from 0 to below 1"),
         (dict(at=[0]), "stages from 1 to 4"), (dict(at=[5]), "stages from 1 to 4"),
         (dict(at=[3, 2]), "increasing stages"),
         (dict(at=[2, 2]), "increasing stages"), (dict(at=[1.5]), "increasing stages"),
         (dict(at="23"), "increasing stages"),
         (dict(exits="none", at=[1]), "adds none"), (dict(name="tiny", width=0), "whole number of channels"),
         (dict(name="tiny", dropout=0.1), "single layer"),
         (dict(exits="linear", head_activation="rellu"), "Did you mean 'relu'")]


@pytest.mark.parametrize("wrong,message", WRONG)
def test_wrong_input_is_one_line_before_anything_is_allocated(wrong, message):
    with Allocated() as seen, pytest.raises(InputError) as e:
        create_model(**(dict(name="vgg16", num_classes=10) | wrong))
    assert message in str(e.value) and "\n" not in str(e.value)
    assert seen.largest <= 1
    with Allocated() as seen:
        create_model("tiny", 10)
    assert seen.largest > 1000     # the check can fail


def test_a_new_backbone_and_a_new_kind_of_exit_are_one_function_each():
    @register_backbone("two_convs", min_size=4)
    def two_convs(image_size):
        return Backbone([nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 6, 3, 2, 1)])

    @register_exit("max")
    def _max(spec):
        return Head(nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten()),
                    nn.Linear(spec.shape[0], spec.num_classes))

    try:
        assert "two_convs" in list_models() and "max" in list_exits()
        for exits in list_exits():
            net = create_model("two_convs", 5, image_size=8, exits=exits)
            assert net(torch.randn(2, 3, 8, 8)).logits.shape == (net.num_exits, 2, 5)
    finally:
        del register_backbone._items["two_convs"], register_exit._items["max"]


def step(net, method, x, y):
    "Forward and backward once; the losses."
    losses = method.loss(net(x), y)
    sum(losses.values()).backward()
    return {k: v.item() for k, v in losses.items()}


LARGE = ["50", "101", "152", "resnet34", "resnext", "wrn", "vgg16", "vgg19", "densenet", "pyramid",
         "imagenet"]


@pytest.mark.parametrize("name",
                         [pytest.param(n, marks=pytest.mark.slow) if any(s in n for s in LARGE) else n
                          for n in list_models()])
def test_a_training_step(name):
    torch.manual_seed(0)
    net = create_model(name, 5, max(16, register_backbone[name].info["min_size"]))
    x, y = torch.randn(3, 3, net.image_size, net.image_size), torch.tensor([0, 4, 2])
    given = dict(num_exits=net.num_exits, num_classes=5, feature_dims=net.feature_dims, num_train=3)
    plain = step(net, create_method("branchynet", **given), x, y)
    assert all(map(math.isfinite, plain.values()))
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    if len(set(net.feature_dims)) == 1:
        assert all(map(math.isfinite, step(net, create_method("mate", **given), x, y).values()))
    else:
        with pytest.raises(InputError, match="width"):
            create_method("mate", **given)


# ---- MSDNet

HDKD = "msdnet_hdkd_cifar"
MSDNETS = [   # name, options, layers, parameters (M), cost with all earlier heads (M)
    (HDKD, {}, 36, 5.31, [6.86, 14.35, 27.29, 48.45, 81.57, 112.64, 152.92, 192.69]),
    (HDKD, dict(num_exits=4), 10, 1.42, [6.86, 14.35, 26.13, 38.04]),
    (HDKD, dict(num_exits=6), 21, 2.85, [6.86, 14.35, 27.29, 46.56, 67.43, 89.09]),
    ("msdnet_mate_cifar", {}, 15, 2.08, [6.86, 14.35, 27.54, 41.71, 58.48]),
    ("msdnet_hdkd_imagenet", {}, 20, 23.96, [339.9, 685.5, 1008.2, 1254.5, 1360.5]),
    ("msdnet_hdkd_imagenet_33", {}, 30, 56.53, [514.7, 1171.2, 1844.5, 2501.4, 2742.1]),
    ("msdnet_hdkd_imagenet_38", {}, 35, 62.31, [615.7, 1436.4, 2283.2, 2967.4, 3253.8]),
    ("msdnet_dbt_cifar", {}, 24, 5.60,
     [15.14, 25.51, 37.79, 52.06, 62.18, 74.07, 87.73, 100.04, 110.12, 121.68, 134.71]),
    ("msdnet_dbt_cifar_code", {}, 24, 5.07,
     [15.57, 31.23, 51.95, 65.99, 83.28, 103.80, 132.95, 150.23, 170.76, 194.53, 211.57]),
    ("msdnet_dbt_imagenet", {}, 38, 80.22, [973.4, 1887.4, 2819.9, 3579.8, 3891.4])]
ALONE = {HDKD: [6.86, 12.12, 21.95, 38.67, 65.58, 91.69, 124.37, 157.85],
         "msdnet_hdkd_imagenet": [339.9, 658.5, 954.3, 1177.9, 1267.05],
         "msdnet_mate_cifar": [6.86, 12.12, 22.20, 33.85, 46.33]}


def as_listed(cost, listed):
    return [float(f"{c/1e6:.{len(str(v).partition('.')[2])}f}") for c, v in zip(cost, listed, strict=True)]


@pytest.mark.parametrize("name,options,layers,params,costs", MSDNETS)
def test_msdnet_costs_and_parameters(name, options, layers, params, costs):
    imagenet = "imagenet" in name
    net = on_meta(name, num_classes="1000" if imagenet else "100", image_size="224" if imagenet else "32",
                  **options)
    assert as_listed(net.cost("msdnet", earlier_heads=True), costs) == costs
    if name in ALONE and not options:
        assert as_listed(net.cost("msdnet"), ALONE[name]) == ALONE[name]
    assert round(size(net)/1e6, 2) == params
    assert sum(len(s) for s in net.backbone.stages) - 1 == layers   # the stem is the other part of stage 1
    assert (len(set(net.feature_dims)) == 1) == (not imagenet)


@pytest.mark.parametrize("prune", ["max", "min"])
@pytest.mark.parametrize("step_mode", ["even", "lin_grow"])
def test_msdnet_exits_skip_what_they_do_not_need(prune, step_mode):
    torch.manual_seed(0)
    net = create_model("msdnet", 10, prune=prune, step_mode=step_mode, num_exits=4, base=2, step=2).eval()
    x, ran = torch.randn(2, 3, 32, 32), []
    cells = [m for m in net.backbone.modules() if isinstance(m, (ScaleLayer, nn.Linear))]
    for c in cells:
        c.register_forward_hook(lambda m, *_: ran.append(m))
    with torch.no_grad():
        want = net(x).logits
        assert len(ran) == len(cells)
        layers = [c for s in net.backbone.stages for c in s if isinstance(c, Column)]
        for m in range(1, 5):
            ran.clear()
            torch.testing.assert_close(net.exit(x, m), want[m - 1], rtol=1e-4, atol=1e-5)
            mine = layers[:sum(len(s) for s in net.backbone.stages[:m]) - 1]
            # the k-th layer before the exit needs k scales; no more than it has
            assert len(ran) == sum(min(len(layer.scales), k + 1) for k, layer in enumerate(reversed(mine)))
            path, image = ExitPath(net, m), torch.empty(1, 3, 32, 32, device="meta")
            assert count(path, image)[1]["macs"] <= net.cost()[m - 1]
    assert count(ExitPath(net, 1), image)[1]["macs"] < net.cost()[0]


def test_msdnet_has_its_own_exits():
    assert on_meta("msdnet").cost() == on_meta("msdnet", exits="msdnet").cost()
    assert on_meta("msdnet", exits="none").num_exits == 1
    assert size(on_meta("msdnet", exits="none").heads[0]) == size(on_meta("msdnet").heads[-1])
    with pytest.raises(InputError, match="'msdnet' or 'none' for msdnet"):
        on_meta("msdnet", exits="linear")
    assert on_meta("tiny", exits="msdnet").feature_dims == (128,)*4


def test_msdnet_copies_and_compiles():
    torch.manual_seed(0)
    net, x = create_model("msdnet", 10, num_exits=2).eval(), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        want = net(x).logits
        torch.testing.assert_close(copy.deepcopy(net)(x).logits, want, rtol=0, atol=0)
        torch.testing.assert_close(torch.compile(net, backend="aot_eager", fullgraph=True)(x).logits, want,
                                   rtol=1e-3, atol=1e-4)


# ---- exits on a user's own network

class Plain(nn.Module):
    "A user's network: a function between its modules, and a shortcut inside a stage."
    def __init__(self):
        super().__init__()
        self.stem, self.low = nn.Conv2d(3, 8, 3, 2, 1), nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1),
            nn.BatchNorm2d(8))
        self.mid, self.top = nn.Conv2d(8, 16, 3, 2, 1), nn.Conv2d(16, 32, 3, 2, 1)
        self.out = nn.Linear(32, 7)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = x + self.low(x)
        x = torch.relu(self.mid(x))
        return self.out(torch.relu(self.top(x)).mean((2, 3)))


@pytest.mark.parametrize("exits", ["sepconv", "conv", "linear"])
def test_exits_on_a_network_of_ones_own(exits):
    torch.manual_seed(0)
    module = Plain().train()
    net = attach_exits(module, ["stem", "mid"], exits)
    assert module.training and all(m.training for m in module.modules())
    assert net.shapes == ((8, 16, 16), (16, 8, 8), (32, 4, 4)) and net.at == (1, 2, 3)
    assert net.feature_dims[-1] == 32
    assert {id(p) for p in module.parameters()} <= {id(p) for p in net.parameters()}
    x = torch.randn(4, 3, 32, 32)
    net(x).logits.sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    net.eval()
    with torch.no_grad():
        out = net(x)
        torch.testing.assert_close(out.logits[-1], module(x))
        twin = copy.deepcopy(net)
        for m in (1, 2, 3):
            torch.testing.assert_close(twin.exit(x, m), out.logits[m - 1])
    assert net.cost()[-1] == 32*7 + 256*27*8 + 256*72*8 + 64*72*16 + 16*144*32


def test_exits_on_a_network_with_a_new_classifier():
    net = attach_exits(Plain(), ["stem"], num_classes=3)
    out = net(torch.randn(2, 3, 32, 32))
    assert out.logits.shape == (2, 2, 3) and net.feature_dims == (32, 32)


@pytest.mark.parametrize("name,at",
                         [("resnet18", ["layer1", "layer2", "layer3"]),
                          ("densenet121", ["features.denseblock1", "features.denseblock3"]),
                                     ("vgg11_bn", ["features.7", "features.14"]),
                          ("mobilenet_v3_small", ["features.3", "features.8"])])
def test_exits_on_networks_of_torchvision(name, at):
    torch.manual_seed(0)
    module = getattr(torchvision.models, name)(weights=None).eval()
    net, x = attach_exits(module, at, image_size=64).eval(), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        out = net(x)
        torch.testing.assert_close(out.logits[-1], module(x))
        for m in range(1, net.num_exits + 1):
            torch.testing.assert_close(net.exit(x, m), out.logits[m - 1])


def test_attached_exits_cost_what_the_registered_network_costs():
    with torch.device("meta"):
        module = torchvision.models.resnet50(num_classes=1000)
    for exits in ("sepconv", "conv"):
        net = attach_exits(module, ["layer1", "layer2", "layer3"], exits, image_size=224)
        ours = on_meta("resnet50", "{}", 1000, 224, exits)
        assert net.cost() == ours.cost() and size(net) == size(ours)
        assert net.cost("fvcore")[:3] == ours.cost("fvcore")[:3]


class Branching(Plain):
    def forward(self, x):
        return super().forward(x) if x.sum() > 0 else super().forward(-x)


class Twice(Plain):
    def forward(self, x):
        return self.out((self.top(self.mid(self.low(self.low(self.stem(x)))))).mean((2, 3)))


WRONG_CUTS = [(Plain, ["stm"], {}, "Did you mean 'stem'"),
              (Plain, ["mid", "stem"], {}, "in the order they run"), (Twice, ["low"], {}, "each run once"),
              (Plain, ["low"], {}, "all information passes through"), (Plain, ["out"], {}, "one feature map"),
              (Plain, ["top"], {}, "where its last exit is"),
              (Branching, ["stem"], {}, "cannot follow the forward pass of Branching"),
              (Plain, ["stem"], dict(exits="cnv"), "Did you mean 'conv'"),
              (Plain, ["stem"], dict(num_classes=1), "whole number ≥ 2"),
              (Plain, ["stem"], dict(image_size=0), "whole number of pixels"),
              (Plain, ["stem"], dict(dropout=0.5), "single layer")]


@pytest.mark.parametrize("make,at,kw,message", WRONG_CUTS)
def test_wrong_cuts_are_one_line(make, at, kw, message):
    with pytest.raises(InputError) as e:
        attach_exits(make(), at, **kw)
    assert message in str(e.value) and "\n" not in str(e.value)


def test_the_free_msdnet_asks_for_scales_where_images_are_large():
    "It would have ImageNet's stem with the scales and widths of CIFAR."
    with pytest.raises(InputError, match="stem='auto': expected .*msdnet_hdkd_imagenet"):
        create_model("msdnet", 10, 224)
    assert on_meta("msdnet", "{}", 10, 224, stem="imagenet").image_size == 224


@pytest.mark.parametrize("name", ["swin_t", "swin_v2_t"])
def test_maps_with_their_channels_last_are_refused(name):
    "Heads on (B, H, W, C) would be built over the height."
    with torch.device("meta"):
        module = getattr(torchvision.models, name)()
    with pytest.raises(InputError,
                       match=r"features\.1=\(16, 16, 96\): expected a module that returns one feature map"):
        attach_exits(module, ["features.1"], image_size=64)


def test_an_image_the_network_cannot_take():
    module = nn.Sequential(nn.Conv2d(3, 4, 5), nn.MaxPool2d(4), nn.Conv2d(4, 4, 3), nn.Flatten(),
                           nn.Linear(4, 2))
    with pytest.raises(InputError, match="image_size=8: Sequential cannot take it"):
        attach_exits(module, [1], image_size=8)


def test_every_network_takes_its_smallest_image():
    for name in list_models():
        smallest = register_backbone[name].info["min_size"]
        with ShapesOnly(), torch.device("meta"):
            net = register_backbone[name](smallest)
        assert all(min(size) >= 1 for _, *size in stage_shapes(net, smallest))


@pytest.mark.parametrize("name", ["msdnet", "msdnet_dbt_cifar", "msdnet_dbt_cifar_code", "msdnet_hdkd_cifar"])
def test_fine_scales_of_msdnet_wait_until_they_are_needed(name, monkeypatch):
    "From exit to exit: what the whole pass gives, and no cell is computed twice or for nothing."
    net, x = create_model(name, 10).eval().backbone, torch.randn(2, 3, 32, 32)
    computed, forward = [], ScaleLayer.forward
    monkeypatch.setattr(ScaleLayer, "forward", lambda self, *x: computed.append(self) or forward(self, *x))

    def cells(state, stage, done=0):
        computed.clear()
        state = net.upto(state, stage, done=done)
        return state, list(computed)

    with torch.no_grad():
        maps, state, at_once, so_far = net(x), x, [], []
        for stage in range(1, len(net.stages) + 1):
            state, new = cells(state, stage, stage - 1)
            so_far += new
            torch.testing.assert_close(state[-1], maps[stage - 1][-1])
            alone, needed = cells(x, stage)
            torch.testing.assert_close(alone[-1], maps[stage - 1][-1])
            assert len(set(so_far)) == len(so_far) and set(so_far) == set(needed)
            at_once.append(len(needed))
    there = sum(isinstance(c, ScaleLayer) for c in net.modules())
    assert len(state) == 1 and at_once == sorted(at_once) and at_once[-1] <= there
