"What the README promises in its commands: all are understood, and its three recipes do what they say."
import os
import re
import shlex
import subprocess

import numpy as np
import pytest
from PIL import Image
from project import BIN, ROOT, worked_examples

from multiexit_nb import export_run, studies, sweep, trainer

README = (ROOT/"README.md").read_text()
READERS = {"multiexit-train": trainer.arguments, "multiexit-sweep": sweep.arguments,
           "multiexit-export": export_run.arguments}


def commands(text: str) -> list[str]:
    "The lines of its shell blocks."
    blocks = re.findall(r"(?ms)^```sh\n(.*?)^```", text)
    return [line.strip() for block in blocks for line in block.splitlines() if line.strip()]


def test_every_command_of_ours_is_understood():
    text = README + "".join(p.read_text() for p in (ROOT/"nbs"/"tasks").glob("*.ipynb")).replace('\\n",', "")
    own = [c for c in commands(README) if c.split()[0] in READERS]
    assert len(own) >= 4
    for command in own:
        program, *words = shlex.split(command)
        READERS[program](words)
    programs = set(re.findall(r"\bmultiexit-(\w+)\b", text))
    declared = re.findall(r"^multiexit-(\w+) =", (ROOT/"pyproject.toml").read_text(), re.MULTILINE)
    assert programs <= set(declared) and callable(studies.main)


def test_its_links_and_pictures_are_there():
    targets = re.findall(r"\]\(([^)\s]+)\)", README)
    local = [t.partition("#")[0] for t in targets if not t.startswith(("http", "#"))]
    assert "nbs/images/exits_lab.png" in local
    assert not [t for t in local if not (ROOT/t).exists()]


@pytest.mark.slow
def test_the_three_recipes(tmp_path):
    "Word for word, in a folder with twelve small pictures of each of two classes."
    recipes = README.split("## Three recipes")[1].split("\n## ")[0]
    for name, low in (("cat", 0), ("dog", 120)):
        (tmp_path/"pictures"/name).mkdir(parents=True)
        for i in range(12):
            noise = np.random.default_rng(i).integers(low, low + 130, (16, 16, 3), np.uint8)
            Image.fromarray(noise).save(tmp_path/"pictures"/name/f"{i}.png")
    Image.fromarray(noise).save(tmp_path/"cat.png")
    method = [b.replace("#| export\n", "") for b in worked_examples()["A method"][1:3]]
    (tmp_path/"my_method.py").write_text("\n".join(method))
    env = os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    said = {}
    for command in commands(recipes):
        done = subprocess.run(command, shell=True, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stderr[-2000:]}"
        said[command] = done.stdout
    train, ask, own, export, elsewhere = said.values()
    assert re.search(r"(cat|dog) \(\d+\.\d %\), by exit \d for", ask)
    assert re.search(r"cat.png,\d,(cat|dog),[01]\.\d+", elsewhere)
    for end in (train, own):
        assert end.startswith("On the test set, exits 1 … ") and "Everything is in" in end
    assert "are answered as by the network" in export
    assert len(list((tmp_path/"runs").glob("*next_exit*/result.json"))) == 1
