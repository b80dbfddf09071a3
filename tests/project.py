"The project as files: what a commit of everything would hold, its notebooks, and a copy to change."

import fnmatch
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent


def ignored(path: str, folder: bool) -> bool:
    "Does .gitignore leave out `path` (relative, posix)? Its patterns: /anchored, folder/, name, *.glob."
    lines = [line.strip() for line in (ROOT/".gitignore").read_text().splitlines()]
    for p in [line for line in lines if line and not line.startswith("#")] + [".git"]:
        target = path if p.startswith("/") else path.rsplit("/", 1)[-1]
        if (folder or not p.endswith("/")) and fnmatch.fnmatch(target, p.strip("/")):
            return True
    return False


def batch_notebooks() -> set[str]:
    "The names of the notebooks that papermill runs: a cell of theirs is tagged `parameters`."
    def given(cell):
        return "parameters" in cell["metadata"].get("tags", [])
    notebooks = (ROOT/"nbs").glob("*.ipynb")
    return {p.stem for p in notebooks if any(map(given, json.loads(p.read_text())["cells"]))}


def project_files(root: Path = ROOT) -> list[str]:
    "What a commit of everything would hold, without asking git: relative posix paths."
    found = []
    for folder, subs, names in os.walk(root):
        at = Path(folder).relative_to(root)
        kept = (s for s in subs if not ignored((at/s).as_posix(), True))
        subs[:] = sorted(s for s in kept if not (Path(folder)/s/"pyvenv.cfg").exists())
        found += [(at/n).as_posix() for n in sorted(names) if not ignored((at/n).as_posix(), False)]
    return found


def notebooks(root: Path = ROOT) -> list[str]:
    return [f for f in project_files(root) if f.startswith("nbs/") and f.endswith(".ipynb")]


def is_reference(f: str) -> bool:
    return bool(re.match(r"nbs/(\d\d_|methods/|index)", f))


def load(f: str, root: Path = ROOT) -> dict:
    return json.loads((root/f).read_text(encoding="utf-8"))


def source(cell: dict) -> str:
    return "".join(cell["source"])


def code_cells(nb: dict) -> list[dict]:
    return [c for c in nb["cells"] if c["cell_type"] == "code"]


def tree(root: Path, files) -> dict[str, bytes]:
    return {f: (root/f).read_bytes() for f in files if (root/f).is_file()}


def run(*command, cwd, **env):
    "Run a command without the caller's Python path and nbdev's test mode; its output, if it succeeds."
    clean = {k: v for k, v in os.environ.items() if k not in ("IN_TEST", "PYTHONPATH", "MULTIEXIT_ROOT")}
    p = subprocess.run(
        [str(c) for c in command],
        cwd=cwd,
        env=clean | env,
        text=True,
        capture_output=True,
        stdin=subprocess.DEVNULL,
    )
    assert p.returncode == 0, f"{command}: exit {p.returncode}\n{p.stdout}\n{p.stderr}"
    return p.stdout


def copy_to(folder: Path) -> Path:
    "Copy the project there."
    for f in project_files():
        (folder/f).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT/f, folder/f)
    return folder


def worked_examples() -> dict[str, list[str]]:
    "The Python blocks of CONTRIBUTING.md by the heading they stand under."
    parts = re.split(r"(?m)^## (.+)$", (ROOT/"CONTRIBUTING.md").read_text())
    pairs = zip(parts[1::2], parts[2::2], strict=True)
    return {head: re.findall(r"(?ms)^```python\n(.*?)^```", body) for head, body in pairs}
