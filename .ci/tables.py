"""python .ci/tables.py

Bring the tables of nbs/index.ipynb up to date: its cells tagged hide-… are run, which train nothing, and what
they show is stored.
"""
import ast
import json
from pathlib import Path

INDEX = Path(__file__).resolve().parent.parent/"nbs"/"index.ipynb"


def value_of(source: str, names: dict):
    "Run a cell; the value of its last line, None if that is no expression."
    *lines, last = ast.parse(source).body
    shown = isinstance(last, ast.Expr)
    exec(compile(ast.Module(lines if shown else [*lines, last], []), "index.ipynb", "exec"), names)
    return eval(compile(ast.Expression(last.value), "index.ipynb", "eval"), names) if shown else None


def main():
    nb, names = json.loads(INDEX.read_text(encoding="utf-8")), {"__name__": "index"}
    for cell in nb["cells"]:
        if not {"hide-cell", "hide-input"} & set(cell["metadata"].get("tags", [])):
            continue
        value = value_of("".join(cell["source"]), names)
        if value is not None:
            cell["outputs"][0]["data"]["text/markdown"] = value.data.splitlines(keepends=True)
    INDEX.write_text(json.dumps(nb, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
