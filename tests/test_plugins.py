"A method, a network and a data set in files of one's own: by every program, recorded, and never run unasked."
import hashlib
import importlib
import json

import pytest
from lab_page import until
from project import ROOT, worked_examples

from multiexit_nb import plugins
from multiexit_nb.core import InputError
from multiexit_nb.data import list_datasets
from multiexit_nb.experiment import prepare, run_experiment
from multiexit_nb.methods import list_methods, register
from multiexit_nb.models import list_models
from multiexit_nb.runs import Run
from multiexit_nb.sweep import main as sweep
from multiexit_nb.trainer import main
from multiexit_nb.widgets import run_text

OWN = """
from torch import nn
from multiexit_nb.backbones import Backbone, register_backbone
from multiexit_nb.datasets import find_dataset, register_dataset


@register_dataset("own_digits", num_classes=10, image_size=32)
def own_digits(root, path, image_size, download):
    return find_dataset("digits")[0](root, path, image_size, download)


@register_backbone("own_net", min_size=8)
def own_net(image_size):
    return register_backbone["tiny"](image_size)
"""
P = dict(dataset="digits", method="next_exit", epochs=1, images_per_class=14, batch_size=32, precision="fp32",
         channels_last="false")


@pytest.fixture
def mine(tmp_path, monkeypatch):
    "my_method.py and own.py in the folder where one stands; what they register is forgotten afterwards."
    from multiexit_nb import backbones, datasets
    there = list_methods(), list_datasets(), list_models()
    assert "next_exit" not in there[0]
    blocks = [b.replace("#| export\n", "") for b in worked_examples()["A method"][1:3]]
    (tmp_path/"my_method.py").write_text("\n".join(blocks))
    (tmp_path/"own.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MULTIEXIT_ROOT", str(ROOT))
    monkeypatch.setattr(plugins, "_ran", {})
    for registry in (register, backbones.register_backbone, datasets.register_dataset):
        monkeypatch.setattr(registry, "_items", dict(registry._items))
    return tmp_path


def test_the_program_trains_an_own_method_on_an_own_network_and_data_set(mine, capsys):
    given = P | dict(plugins="my_method.py, own.py", model="own_net", dataset="own_digits", run_id="own")
    words = [str(w) for name, value in given.items() for w in ("-p", name, value)]
    assert main(words) == 0
    assert "next_exit" in list_methods() and "own_net" in list_models() and "own_digits" in list_datasets()
    about = json.loads((mine/"runs/own/params.json").read_text())
    recorded = {file.rpartition("/")[2]: digest for file, digest in about["plugins"].items()}
    assert recorded == {name: hashlib.sha256((mine/name).read_bytes()).hexdigest()
                        for name in ("my_method.py", "own.py")}
    assert Run.load("own").model().num_exits == 4 and Run.load("own").data().num_classes == 10


def test_settings_name_them_for_reports_and_labs(mine, monkeypatch):
    from multiexit_nb.train_lab import TrainSetup
    assert "next_exit" not in TrainSetup().method.options
    monkeypatch.setenv("MULTIEXIT_PLUGINS", "my_method.py")
    assert "next_exit" in TrainSetup().method.options
    assert prepare(P, set(P)).parameters["plugins"] == ""


@pytest.mark.parametrize("text, said", [
    (None, "no Python file gone.py"), ("def f(:", "gone.py, line 1: SyntaxError"),
    ("1/0", "gone.py, line 1: ZeroDivisionError"),
    ("\n\nimport no_such_thing", "line 3: ModuleNotFoundError"),
    ("from multiexit_nb.methods import *\nfrom multiexit_nb.methods import register\n"
     "@register('mate')\nclass MATE(Method): pass", "method 'mate' is already"),
])
def test_what_is_wrong_is_one_line_before_anything_is_looked_up(mine, capsys, text, said):
    if text:
        (mine/"gone.py").write_text(text)
    assert main(["-p", "plugins", "gone.py", "-p", "method", "no_such"]) == 1
    line = capsys.readouterr().err
    assert said in line and line.count("\n") == 1
    assert register["mate"].__module__ == "multiexit_nb.methods.mate"


def test_a_run_never_runs_a_file_by_itself_and_notices_a_changed_one(mine, monkeypatch):
    run = run_experiment(P | dict(plugins="my_method.py", run_id="own"), {*P, "plugins", "run_id"}, bar=False)
    run.release()
    with monkeypatch.context() as m:      # another program
        m.setattr(plugins, "_ran", {})
        m.setattr(register, "_items", {n: x for n, x in register._items.items() if n != "next_exit"})
        for look in (Run.load("own").model, lambda: prepare(dict(resume="own"), {"resume"})):
            with pytest.raises(InputError, match="was made with my_method.py: name the file"):
                look()
        assert "next_exit" not in list_methods()
        e = prepare(dict(resume="own", plugins="my_method.py"), {"resume", "plugins"})
        assert e.parameters["method"] == "next_exit"
    with open("my_method.py", "a") as f:
        f.write("\n# another thought\n")
    plugins.load_plugins("my_method.py")
    with pytest.raises(InputError, match="has changed since run own"):
        prepare(dict(resume="own"), {"resume"})
    with pytest.warns(UserWarning, match="has changed since run own"):
        assert Run.load("own").model().num_exits == 4


@pytest.mark.parametrize("lab", ["exits_lab.ExitsLab", "rdm_lab.RdmLab", "confusion_lab.ConfusionLab",
                                 "weights_lab.WeightsLab", "curves_lab.CurvesLab"])
def test_a_lab_asks_for_the_file_of_a_run_and_opens_it_then(mine, monkeypatch, lab):
    "Only a person names a file; before that nothing of the run is shown. One that has changed is doubted."
    p = P | dict(plugins="my_method.py", run_id="own")
    run_experiment(p, set(p), bar=False).release()
    monkeypatch.setattr(plugins, "_ran", {})
    monkeypatch.setattr(register, "_items", {n: x for n, x in register._items.items() if n != "next_exit"})
    module, name = lab.split(".")
    opened = getattr(importlib.import_module(f"multiexit_nb.{module}"), name)()
    assert "next_exit" not in list_methods()
    assert "with my_method.py" in run_text(Run.load("own"))
    histories = module in ("weights_lab", "curves_lab")      # they need no network
    assert histories or "was made with my_method.py" in opened.line.value
    opened.plugins.value = "my_method.py"
    assert "next_exit" in list_methods() and "my_method.py: what it registers" in opened.line.value
    assert not opened.doubt.value
    opened.plugins.value = "gone.py"
    assert "no Python file gone.py" in opened.line.value
    with open("my_method.py", "a") as f:
        f.write("\n# another thought\n")
    opened.plugins.value = "my_method.py"
    said = "my_method.py has changed since run own was made with it"
    assert histories or said in opened.doubt.value and opened.doubt.layout.display == ""


def test_the_train_lab_trains_a_method_of_a_file_that_is_named_there(mine):
    from multiexit_nb.train_lab import TrainLab
    lab = TrainLab()
    lab.setup.dataset.value = "digits"
    lab.setup.epochs.value, lab.setup.images_per_class.value = 1, 14
    lab.plugins.value = "my_method.py"
    assert lab.setup.method.value == "mate" and not lab.line.value.startswith("<b>⚠")
    lab.setup.method.value = "next_exit"
    lab.start.click()
    until(lambda: lab.sessions and lab.session.over)
    assert lab.session.run.finished and lab.session.run.parameters["plugins"] == "my_method.py"


@pytest.mark.slow
def test_a_sweep_hands_them_to_every_run(mine):
    grid = dict(base=P | dict(plugins="my_method.py", images_per_class=0), grid=dict(seed=[0, 1]))
    (mine/"grid.yaml").write_text(json.dumps(grid))
    assert sweep(["grid.yaml", "--workers", "1"]) == 0
    assert len(list((mine/"runs").glob("*next_exit*/result.json"))) == 2
