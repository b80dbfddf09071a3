"""The repository keeps its promises.

Notebooks are the only source, clean, small, on their floors; the wheel is whole; the README is true.
"""

import ast
import configparser
import json
import re
import shutil
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from project import (
    BIN,
    ROOT,
    batch_notebooks,
    code_cells,
    is_reference,
    load,
    notebooks,
    project_files,
    run,
    source,
    tree,
    worked_examples,
)

PYPROJECT = tomllib.loads((ROOT/"pyproject.toml").read_text())
VERSION = re.search(r'__version__ = "(.+?)"', (ROOT/"multiexit_nb"/"__init__.py").read_text())[1]
# notebooks run by papermill; with labs/ they keep no outputs
BATCH = batch_notebooks()


# ---------------------------------------------------------------- the notebooks are the only source
def test_exported_modules_are_the_notebooks(copy):
    modules = [f for f in project_files() if f.startswith("multiexit_nb/")]
    for f in modules:  # what no notebook writes again is then missing
        if f != "multiexit_nb/__init__.py":
            (copy/f).unlink()
    run(BIN/"nbdev-export", cwd=copy)
    after = tree(copy, [p.relative_to(copy).as_posix() for p in (copy/"multiexit_nb").rglob("*.py")])
    before = tree(ROOT, modules)
    assert sorted(before) == sorted(after), "modules without a notebook, or not exported"
    assert not [f for f in before if before[f] != after[f]], "run nbdev-export"
    assert tree(copy, ["pyproject.toml"]) == tree(ROOT, ["pyproject.toml"])


def test_a_change_in_a_notebook_shows_in_its_module(copy):
    nb = load("nbs/00_core.ipynb")
    next(c for c in code_cells(nb) if source(c).startswith("#| export"))["source"] += ["\nanswer = 42"]
    (copy/"nbs/00_core.ipynb").write_text(json.dumps(nb))
    run(BIN/"nbdev-export", cwd=copy)
    assert "answer = 42" in (copy/"multiexit_nb/core.py").read_text()


def test_notebooks_are_clean(copy):
    run(BIN/"nbdev-clean", cwd=copy)
    before, after = tree(ROOT, notebooks()), tree(copy, notebooks())
    assert before and not [f for f in before if before[f] != after[f]], "run nbdev-clean"


def test_cleaning_keeps_tags_and_drops_the_rest(copy):
    cell = dict(
        cell_type="code",
        execution_count=7,
        id="p",
        metadata=dict(tags=["parameters"], scrolled=True),
        outputs=[],
        source=["x = 1"],
    )
    nb = dict(
        cells=[cell],
        metadata=dict(kernelspec=dict(name="python3", language="python", display_name="mine"), toc=1),
        nbformat=4,
        nbformat_minor=5,
    )
    (copy/"nbs/zz.ipynb").write_text(json.dumps(nb))
    run(BIN/"nbdev-clean", cwd=copy)
    nb = load("nbs/zz.ipynb", copy)
    assert (
        nb["cells"][0]["metadata"] == {"tags": ["parameters"]} and nb["cells"][0]["execution_count"] is None
    )
    assert set(nb["metadata"]) == {"kernelspec"}


@pytest.mark.parametrize("f", notebooks())
def test_notebook_form(f):
    nb = load(f)
    code = code_cells(nb)
    outputs = [o for c in code for o in c["outputs"]]
    assert not [o for o in outputs if o["output_type"] == "error"], "an error is stored in the outputs"
    limit = 500_000 if f.startswith("nbs/papers/") else 100_000
    if Path(f).stem in BATCH or f.startswith("nbs/labs/"):
        limit = 50_000 if Path(f).stem == "benchmark" else 0      # its last cell shows the shipped rows
    size = sum(len(json.dumps(o)) for o in outputs)
    assert size <= limit, f"{size/1000:.0f} KB of outputs, {limit/1000:.0f} KB are allowed"
    too_long = [c["id"] for c in code if "#| export" in source(c) and len(source(c).splitlines()) > 41]
    assert not too_long, "exported cells of more than 40 lines"
    if is_reference(f) and not f.endswith("index.ipynb"):
        assert re.match(r"# .+\n\n> .+", source(nb["cells"][0])), (
            "a reference notebook opens with a title and a > line"
        )
    assert len({c["id"] for c in nb["cells"]}) == len(nb["cells"])


def test_ruff_finds_nothing():
    run(sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format", "concise", ".", cwd=ROOT)


# ---------------------------------------------------------------- the floors
def floor(f: str) -> int | None:
    "The number it stands on: its own, or a folder's (`datasets/` 19, …); None above all (train, labs)."
    m = re.match(r"nbs/(\d\d)_", f)
    if m:
        return int(m[1])
    stands = dict(datasets=19, methods=39, papers=79)
    return stands.get(f.split("/")[1] if f.count("/") > 1 else "")


def imported_modules(code: str) -> set[str]:
    "Dotted names under multiexit_nb that a piece of code imports."
    names = set()
    for node in ast.walk(ast.parse(re.sub(r"(?m)^\s*[%!].*$", "pass", code))):
        if isinstance(node, ast.Import):
            names |= {a.name for a in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{a.name}" for a in node.names}
    return {n for n in names if n.split(".")[0] == "multiexit_nb"}


def against_the_floors(nbs: dict[str, dict]) -> list[str]:
    "Sentences about notebooks that import from their own height or above."
    exports = {
        f: re.search(r"(?m)^#\| default_exp (\S+)", "\n".join(map(source, code_cells(nb))))
        for f, nb in nbs.items()
    }
    module = {"multiexit_nb." + m[1].removesuffix(".__init__"): f for f, m in exports.items() if m}
    wrong = []
    for f, nb in nbs.items():
        if floor(f) is None:
            continue
        for name in {n for c in code_cells(nb) for n in imported_modules(source(c))}:
            other = module.get(name)
            if other and other != f and (floor(other) is None or floor(other) >= floor(f)):
                wrong.append(f"{f} imports {name} of {other}")
            if other or name == "multiexit_nb.__version__" or any(m.startswith(f"{name}.") for m in module):
                continue  # a package of modules
            if module.get(name.rpartition(".")[0]) is None:
                wrong.append(f"{f} imports {name}: no notebook exports it")
    return wrong


def test_imports_go_down():
    assert not against_the_floors({f: load(f) for f in notebooks()})


def numbers_twice(files: list[str]) -> list[str]:
    "Sentences about numbers under which more than one notebook stands."
    standing = {}
    for f in sorted(files):
        if m := re.match(r"nbs/(\d\d)_", f):
            standing.setdefault(m[1], []).append(f)
    return [f"{n}: {' and '.join(found)}" for n, found in standing.items() if len(found) > 1]


def test_floors_have_one_notebook_a_number():
    assert not numbers_twice(notebooks())
    twice = ["nbs/10_data.ipynb", "nbs/10_images.ipynb", "nbs/11_losses.ipynb", "nbs/labs/10_x.ipynb"]
    assert numbers_twice(twice) == ["10: nbs/10_data.ipynb and nbs/10_images.ipynb"]


def test_imports_going_up_are_noticed():
    def nb(*cells):
        return dict(cells=[dict(cell_type="code", source=[c]) for c in cells])

    nbs = {
        "nbs/00_core.ipynb": nb("#| default_exp core"),
        "nbs/30_method.ipynb": nb("#| default_exp methods.__init__"),
        "nbs/methods/a.ipynb": nb(
            "#| default_exp methods.a", "from multiexit_nb.methods import Method\nimport multiexit_nb.core"
        ),
        "nbs/methods/b.ipynb": nb("#| default_exp methods.b", "%time\nfrom multiexit_nb.methods.a import A"),
        "nbs/10_data.ipynb": nb("#| default_exp data", "def f():\n    from multiexit_nb import methods"),
        "nbs/20_x.ipynb": nb(
            "#| default_exp x", "from multiexit_nb.gone import y\nfrom multiexit_nb.core import z"
        ),
        "nbs/train.ipynb": nb("import multiexit_nb.x"),
    }
    assert {" ".join(s.split()[:3]).rstrip(":") for s in against_the_floors(nbs)} == {
        "nbs/methods/b.ipynb imports multiexit_nb.methods.a",
        "nbs/10_data.ipynb imports multiexit_nb.methods",
        "nbs/20_x.ipynb imports multiexit_nb.gone",
        "nbs/20_x.ipynb imports multiexit_nb.gone.y",
    }


# ---------------------------------------------------------------- layout, settings, paths
def test_top_level_is_as_agreed():
    top = {f.split("/")[0] for f in project_files()}
    files = "settings.ini pyproject.toml README.md LICENSE CHANGELOG.md CONTRIBUTING.md CITATION.cff"
    agreed = {"nbs", "multiexit_nb", "data", "tests", *files.split()}
    assert agreed <= top, "missing"
    assert {t for t in top if not t.startswith(".")} == agreed, "more than agreed"


def test_settings_are_documented_and_read(tmp_path, monkeypatch):
    from multiexit_nb.core import settings

    lines = (ROOT/"settings.ini").read_text().splitlines()
    ini = configparser.ConfigParser()
    ini.read(ROOT/"settings.ini")
    assert ini.sections() == [PYPROJECT["project"]["name"]], "packaging and nbdev belong into pyproject.toml"
    entries = dict(ini["multiexit_nb"])
    for name in entries:
        at = next(i for i, line in enumerate(lines) if re.match(rf"{name}\s*=", line))
        assert re.match(r"#|\w+\s*=", lines[at - 1]), f"{name}: a comment belongs above it"
    for name in list(entries):
        monkeypatch.delenv(f"MULTIEXIT_{name.upper()}", raising=False)
    monkeypatch.setenv("MULTIEXIT_ROOT", str(tmp_path))
    other = dict(
        datasets="d", runs="r", examples="e", device="cpu", workers="1", threads="2", plugins="mine.py"
    )
    assert set(entries) == set(other) == set(settings())
    (tmp_path/"settings.ini").write_text(
        "[multiexit_nb]\n" + "".join(f"{k} = {v}\n" for k, v in other.items())
    )
    folders = dict(datasets=tmp_path/"d", runs=tmp_path/"r", examples=tmp_path/"e")
    assert settings() == dict(**folders, device="cpu", workers=1, threads=2, plugins="mine.py")
    code = "\n".join(source(c) for f in notebooks() for c in code_cells(load(f)))
    assert not [n for n in entries if not re.search(rf"settings\(\)\[.{n}.\]", code)], (
        "an entry that no notebook uses"
    )


NO_SETTINGS = {
    "half a line": (b"runs\n", "cannot be read"),
    "an entry twice": (b"runs = a\nruns = b\n", "already exists"),
    "a section twice": (b"[multiexit_nb]\n", "already exists"),
    "Latin-1": (b"runs = \xe4\n", "not UTF-8"),
    "an unknown entry": (b"runz = a\n", "Did you mean 'runs'"),
    "no number": (b"workers = -1\n", "workers='-1'"),
    "a zero byte": (b"runs = a\0b\n", "expected a folder"),
    "nobody": (b"runs = ~nobody-there/x\n", "no such folder"),
    "an empty folder": (b"runs =\n", "expected a folder")}


@pytest.mark.parametrize("wrong", NO_SETTINGS)
def test_settings_that_cannot_be_are_one_line(wrong, tmp_path, monkeypatch):
    from multiexit_nb.core import InputError, settings

    text, says = NO_SETTINGS[wrong]
    for name in ("ROOT", "RUNS", "WORKERS"):
        monkeypatch.delenv(f"MULTIEXIT_{name}", raising=False)
    (tmp_path/"settings.ini").write_bytes(b"[multiexit_nb]\n" + text)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=says) as e:
        settings()
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("text, runs", [
    (b"\xef\xbb\xbf[multiexit_nb]\nruns = 100%\n", "100%"), (b"[metadata]\nname = x\n", "data/runs")])
def test_settings_of_other_editors_and_programs(text, runs, tmp_path, monkeypatch):
    "A byte order mark and a per cent sign are read; another program's file in a folder below is passed by."
    from multiexit_nb.core import settings

    for name in ("ROOT", "RUNS"):
        monkeypatch.delenv(f"MULTIEXIT_{name}", raising=False)
    (tmp_path/"settings.ini").write_text("[multiexit_nb]\n")
    (tmp_path/"below").mkdir()
    (tmp_path/"below"/"settings.ini").write_bytes(text)
    monkeypatch.chdir(tmp_path/"below")
    found = settings()["runs"]
    assert found == (tmp_path/"below" if b"multiexit_nb" in text else tmp_path)/runs


def test_an_empty_variable_counts_as_none(monkeypatch):
    from multiexit_nb.core import settings

    monkeypatch.delenv("MULTIEXIT_RUNS")
    usual = settings()["runs"]
    monkeypatch.setenv("MULTIEXIT_RUNS", " ")
    assert settings()["runs"] == usual


def test_defaults_are_those_of_settings_ini(tmp_path, monkeypatch):
    "An installed wheel has no settings.ini: it must behave as the checkout's does."
    from multiexit_nb.core import settings

    for name in settings():
        monkeypatch.delenv(f"MULTIEXIT_{name.upper()}", raising=False)

    def relative():
        return {k: v.relative_to(root) if isinstance(v, Path) else v for k, v in settings().items()}

    root = ROOT
    monkeypatch.setenv("MULTIEXIT_ROOT", str(root))
    ours = relative()
    root = tmp_path
    monkeypatch.setenv("MULTIEXIT_ROOT", str(root))
    assert relative() == ours


MACHINE_PATH = re.compile(r"(?<![\w.>~-])/(?:tmp|work|root|farm|home|Users)/|\.\./shared|[A-Z]:\\Users")


def test_no_machine_paths():
    assert MACHINE_PATH.search("see " + "/".join(["", "home", "me"])) and not MACHINE_PATH.search(
        "https://x.org/" + "home/a"
    )
    found = []
    for f in project_files():
        try:
            text = (ROOT/f).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{f}: {line.strip()[:120]}" for line in text.splitlines() if MACHINE_PATH.search(line)]
    assert not found


# ---------------------------------------------------------------- the package
def test_importing_the_package_is_light():
    heavy = "torchvision torch._dynamo torchmetrics accelerate sklearn scipy pandas pyarrow plotly".split()
    heavy += "PIL ipywidgets IPython papermill".split()
    code = f"import sys, multiexit_nb.trainer; print([m for m in {heavy} if m in sys.modules])"
    assert run(sys.executable, "-c", code, cwd=ROOT).strip() == "[]"
    code = "import sys, multiexit_nb; print('torch' in sys.modules)"
    assert run(sys.executable, "-c", code, cwd=ROOT).strip() == "False"


def test_the_wheel_is_whole(copy, tmp_path):
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    run(*pip, "-w", tmp_path/"dist", copy, cwd=tmp_path)
    (wheel,) = (tmp_path/"dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as z:
        z.extractall(tmp_path/"site")
        names = {n for n in z.namelist() if ".dist-info/" not in n}
        meta = {n.rpartition("/")[2]: z.read(n).decode() for n in z.namelist() if ".dist-info/" in n}
    modules = {f for f in project_files() if f.startswith("multiexit_nb/") and f.endswith(".py")}
    shipped = {
        f.replace("data/", "multiexit_nb/", 1)
        for f in project_files()
        if re.match(r"data/(published/.*\.csv|examples/.*)$", f)
    }
    assert shipped and names == modules | shipped
    assert f"Version: {VERSION}\n" in meta["METADATA"] and "Apache License" in meta["LICENSE"]
    check = (
        "import sys; sys.path.insert(0, sys.argv[1]); import multiexit_nb\n"
        "assert multiexit_nb.__file__.startswith(sys.argv[1])\n"
        "from multiexit_nb.runs import list_runs, published; from multiexit_nb.methods import list_methods\n"
        "print(len(published('mate', '2')), len(list_methods()), len(list_runs()))"
    )
    env = dict(MULTIEXIT_EXAMPLES="", MULTIEXIT_RUNS="")
    said = run(sys.executable, "-c", check, tmp_path/"site", cwd=tmp_path, **env)
    rows, methods, examples = map(int, said.split())
    assert examples == len(list((ROOT/"data"/"examples").iterdir())) > 0
    from multiexit_nb.methods import list_methods
    from multiexit_nb.runs import published

    assert rows == len(published("mate", "2")) > 0 and methods == len(list_methods()) > 0


def test_entry_point_and_requirements():
    assert (ROOT/"multiexit_nb/_modidx.py").exists()
    assert PYPROJECT["project"]["entry-points"]["nbdev"]["multiexit_nb"] == "multiexit_nb._modidx:d"
    needed = {re.match(r"[\w.-]+", d)[0].lower() for d in PYPROJECT["project"]["dependencies"]}
    dist = {"PIL": "pillow", "sklearn": "scikit-learn", "yaml": "pyyaml"}
    found = {}
    for f in project_files():
        if not (f.startswith("multiexit_nb/") and f.endswith(".py")):
            continue
        for node in ast.walk(ast.parse((ROOT/f).read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            found |= {
                n.split(".")[0]: f
                for n in names
                if n.split(".")[0] not in sys.stdlib_module_names | {"multiexit_nb"}
            }
    missing = {m: f for m, f in found.items() if dist.get(m, m).lower() not in needed}
    optional = {"dask_jobqueue", "distributed", "fvcore", "huggingface_hub", "onnxruntime"}
    # of the dev extra: imported where they are used, with a line that says how to install them
    assert found and not {m: f for m, f in missing.items() if m not in optional}, "imported but not declared"


# ---------------------------------------------------------------- the words around it
def test_readme_is_the_index_notebook(tmp_path):
    run(BIN/"jupyter", "nbconvert", "--config", ".ci/readme.py", "--output-dir", tmp_path, cwd=ROOT)
    assert [p.name for p in tmp_path.iterdir()] == ["README.md"], "pictures do not travel with the README"
    assert (tmp_path/"README.md").read_text() == (ROOT/"README.md").read_text(), "run .ci/land"


def test_readme_has_the_two_commands():
    lines = (ROOT/"README.md").read_text().splitlines()
    for command in (
        "pip install -e . && papermill nbs/train.ipynb out.ipynb -p method mate",
        "pip install -e '.[dev]' && pytest",
    ):
        assert [line.strip() for line in lines].count(command) == 1, command
    ci = (ROOT/".ci/run").read_text()
    assert "README.md" in ci and "pip install -e '.[dev]' && pytest" not in ci, (
        ".ci/run reads its command from the README"
    )


def test_readme_tables_are_up_to_date(copy):
    from multiexit_nb.methods import list_methods

    run(sys.executable, ".ci/tables.py", cwd=copy)
    run(BIN/"nbdev-clean", cwd=copy)
    assert tree(copy, ["nbs/index.ipynb"]) == tree(ROOT, ["nbs/index.ipynb"]), "run .ci/land"
    text = (ROOT/"README.md").read_text()
    assert not [n for n in list_methods() if f"`{n}`" not in text]


def test_presets_name_recipes():
    from multiexit_nb.methods import list_methods, preset_recipe, register
    from multiexit_nb.trainer import Recipe, list_recipes

    named = {preset_recipe(m, p): f"{m}/{p}" for m in list_methods() for p in register[m].presets}
    assert set(named) - {None} and not {
        r: where for r, where in named.items() if r and r not in list_recipes()
    }
    for r in set(named) - {None}:
        Recipe.preset(r)


def test_links_lead_somewhere():
    wrong = []
    for f in [f for f in project_files() if f.endswith(".md")] + ["nbs/index.ipynb"]:
        text = (
            "\n".join(source(c) for c in load(f)["cells"] if c["cell_type"] == "markdown")
            if f.endswith(".ipynb")
            else (ROOT/f).read_text()
        )
        for link in re.findall(r"\]\((?!https?:|mailto:|#)([^)#\s]+)", text):
            if not (ROOT/f).parent.joinpath(link).exists():
                wrong.append(f"{f}: {link}")
    assert not wrong


def test_changelog_has_the_version():
    heads = re.findall(r"(?m)^## +(\S+)", (ROOT/"CHANGELOG.md").read_text())
    assert VERSION in heads and heads.index(VERSION) <= 1  # on top, or right under "Unreleased"


def test_published_tables_are_as_described():
    import pandas as pd

    text = (ROOT/"data/README.md").read_text()
    for f in sorted((ROOT/"data/published").glob("*.csv")):
        t = pd.read_csv(f, dtype=str)
        assert set(t.paper) == {f.stem} and f"`{f.name}`" in text
        assert not [c for c in t.columns if f"`{c}`" not in text], (
            "a column that data/README.md does not explain"
        )
        pd.to_numeric(t.value), pd.to_numeric(t["std"])  # raises on anything but numbers
        assert t.metric.notna().all() and t.model_id.notna().all()


@pytest.mark.parametrize("kind", ["A method", "A backbone", "A data set", "A paper", "A lab"])
def test_worked_examples_run(kind, tmp_path):
    code = "\n".join(worked_examples()[kind])
    assert "test_eq(" in code, "the example checks itself"
    (tmp_path/"example.py").write_text(code)
    run(
        sys.executable,
        "example.py",
        cwd=tmp_path,
        MULTIEXIT_DATASETS=str(tmp_path),
        MULTIEXIT_RUNS=str(tmp_path/"runs"),
        OMP_NUM_THREADS="1",
    )


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_installing_the_hooks_changes_no_file(copy, tmp_path):
    run("git", "init", "-q", ".", cwd=copy)
    before = tree(copy, [".gitattributes", ".gitconfig"])
    run(BIN/"nbdev-install-hooks", cwd=copy, HOME=str(tmp_path))
    assert tree(copy, [".gitattributes", ".gitconfig"]) == before and len(before) == 2
    assert "nbdev-merge" in run(
        "git", "config", "--get", "merge.jupyternotebook.driver", cwd=copy, HOME=str(tmp_path)
    )
