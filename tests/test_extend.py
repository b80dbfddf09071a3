"A new method, network or data set is one new thing in one place: CONTRIBUTING's examples, in a copy of the project."
import json
import sys

import pytest
from project import BIN, ROOT, load, notebooks, project_files, run, tree, worked_examples

NEW = {"nbs/methods/next_exit.ipynb": "A method", "nbs/datasets/npz.ipynb": "A data set"}
LISTED = """if True:
    from multiexit_nb import experiment
    from multiexit_nb.data import list_datasets
    from multiexit_nb.methods import describe_method, list_methods
    from multiexit_nb.models import list_models
    names = list(describe_method("next_exit").index)
    there = "next_exit" in list_methods(), "shufflenet_v2_x1_0" in list_models(), "npz:" in list_datasets()
    print(*there, names)"""


def cell(kind: str, id: str, text: str) -> dict:
    code = dict(execution_count=None, outputs=[]) if kind == "code" else {}
    return dict(cell_type=kind, id=id, metadata={}, source=text.splitlines(keepends=True)) | code


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
    "A copy of the project with three new things in it, and its modules exported."
    examples = worked_examples()
    for path, head in NEW.items():
        folder, stem = path.split("/")[1:]
        nb = notebook(f"{folder}.{stem.removesuffix('.ipynb')}", examples[head])
        (copy/path).write_text(json.dumps(nb))
    backbones = load("nbs/20_backbones.ipynb")
    backbones["cells"].append(cell("code", "shufflenet", f"#| export\n{examples['A backbone'][0]}"))
    (copy/"nbs/20_backbones.ipynb").write_text(json.dumps(backbones))
    run(BIN/"nbdev-export", cwd=copy)
    return copy


def test_one_new_thing_is_one_thing_in_one_place(extended):
    before, after = tree(ROOT, project_files()), tree(extended, project_files(extended))
    changed = {f for f in after if before.get(f) != after[f]}
    sources = {*NEW, "nbs/20_backbones.ipynb"}
    modules = {f.replace("nbs/", "multiexit_nb/").replace("20_", "").replace(".ipynb", ".py") for f in sources}
    assert changed == sources | modules | {"multiexit_nb/_modidx.py"}
    assert not before.keys() - after.keys()
    said = run(sys.executable, "-c", LISTED, cwd=extended, PYTHONPATH=str(extended))
    assert said.strip() == "True True True ['alpha', 'temperature']"


@pytest.mark.slow
def test_new_things_meet_what_all_others_meet(extended):
    "Contract tests, floors and form find them by themselves; a training by the program uses them."
    assert set(NEW) < set(notebooks(extended))
    where = dict(cwd=extended, PYTHONPATH=str(extended))
    chosen = "next_exit or npz or shufflenet_v2_x1_0 or imports_go_down or form"
    said = run(sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", "-k", chosen, "tests/test_methods.py",
               "tests/test_networks.py", "tests/test_repo.py", **where)
    assert "next_exit" in said or " passed" in said
    run(sys.executable, "-m", "multiexit_nb.trainer", "-p", "method", "next_exit", "-p", "model", "shufflenet_v2_x1_0",
        "-p", "epochs", "1", "-p", "images_per_class", "14", "-p", "batch_size", "32",
        MULTIEXIT_RUNS=str(extended/"runs"), MULTIEXIT_ROOT=str(extended), MULTIEXIT_DEVICE="cpu", **where)
