"A new method, network, data set, paper or lab is one thing in one place: CONTRIBUTING's examples, in a copy."

import json
import re
import sys

import pytest
from project import BIN, ROOT, load, notebooks, project_files, run, tree, worked_examples

NEW = {
    "nbs/methods/next_exit.ipynb": "A method",
    "nbs/datasets/npz.ipynb": "A data set",
    "nbs/papers/byot.ipynb": "A paper",
    "nbs/69_certainty_lab.ipynb": "A lab",
}
LISTED = """if True:
    from multiexit_nb import experiment
    from multiexit_nb.data import list_datasets
    from multiexit_nb.methods import describe_method, list_methods
    from multiexit_nb.models import list_models
    from multiexit_nb.analysis.paper import figure_names, papers
    from multiexit_nb.certainty_lab import CertaintyLab
    from multiexit_nb.widgets import Lab
    names = list(describe_method("next_exit").index)
    there = ["next_exit" in list_methods(), "shufflenet_v2_x1_0" in list_models(), "npz:" in list_datasets(),
             "byot" in papers(), "byot exits" in figure_names(), issubclass(CertaintyLab, Lab)]
    print(*there, names)"""


def cell(kind: str, id: str, text: str) -> dict:
    code = dict(execution_count=None, outputs=[]) if kind == "code" else {}
    return dict(cell_type=kind, id=id, metadata={}, source=text.splitlines(keepends=True)) | code


def module_of(path: str) -> str:
    "The module that a notebook exports: methods.next_exit, backbones."
    return re.sub(r"\d\d_", "", path.removeprefix("nbs/").removesuffix(".ipynb")).replace("/", ".")


def notebook(name: str, blocks: list[str]) -> dict:
    "A reference notebook of code blocks; one that registers something is exported with its imports."
    if "default_exp" not in blocks[0]:
        blocks = [f"#| default_exp {name}", f"#| export\n{blocks[0]}", *blocks[1:]]
    cells = [cell("markdown", "c00", f"# {name}\n\n> A worked example.")]
    cells += [cell("code", f"n{i:02d}", block.rstrip("\n")) for i, block in enumerate(blocks)]
    metadata = dict(kernelspec=dict(name="python3", language="python", display_name="python3"))
    return dict(cells=cells, metadata=metadata, nbformat=4, nbformat_minor=5)


@pytest.fixture
def extended(copy):
    "A copy of the project with new things in it, and its modules exported."
    examples = worked_examples()
    for path, head in NEW.items():
        (copy/path).write_text(json.dumps(notebook(module_of(path), examples[head])))
    backbones = load("nbs/20_backbones.ipynb")
    backbones["cells"].append(cell("code", "shufflenet", f"#| export\n{examples['A backbone'][0]}"))
    (copy/"nbs/20_backbones.ipynb").write_text(json.dumps(backbones))
    run(BIN/"nbdev-export", cwd=copy)
    return copy


def test_one_new_thing_is_one_thing_in_one_place(extended):
    before, after = tree(ROOT, project_files()), tree(extended, project_files(extended))
    changed = {f for f in after if before.get(f) != after[f]}
    sources = {*NEW, "nbs/20_backbones.ipynb"}
    modules = {f"multiexit_nb/{module_of(f).replace('.', '/')}.py" for f in sources}
    assert changed == sources | modules | {"multiexit_nb/_modidx.py"}
    assert not before.keys() - after.keys()
    said = run(sys.executable, "-c", LISTED, cwd=extended, PYTHONPATH=str(extended))
    assert said.strip() == "True True True True True True ['alpha', 'temperature']"


@pytest.mark.slow
def test_new_things_meet_what_all_others_meet(extended):
    "Contract tests, floors and form find them by themselves; a training by the program uses them."
    assert set(NEW) < set(notebooks(extended))
    where = dict(cwd=extended, PYTHONPATH=str(extended))
    chosen = "next_exit or npz or shufflenet_v2_x1_0 or byot or certainty or imports_go_down or form"
    tests = [f"tests/test_{name}.py" for name in ("methods", "networks", "notebooks", "papers", "repo")]
    said = run(
        sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", "-k", chosen, *tests, **where
    )
    assert " passed" in said
    asked = dict(dataset="digits", method="next_exit", model="shufflenet_v2_x1_0", epochs=1,
                 images_per_class=14, batch_size=32)
    run(
        sys.executable,
        "-m",
        "multiexit_nb.trainer",
        *(word for p in asked.items() for word in ("-p", *p)),
        MULTIEXIT_RUNS=str(extended/"runs"),
        MULTIEXIT_ROOT=str(extended),
        MULTIEXIT_DEVICE="cpu",
        **where,
    )
