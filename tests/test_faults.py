"The table of faults: it is made from the shipped lines, and of what the tests write."
import json
import os
import subprocess
import sys

import nbformat
import pytest
from faults import tell
from project import ROOT

SHIPPED = ROOT/"data"/"results"/"faults.jsonl"


def papermill(tmp_path, *arguments):
    command = [sys.executable, "-m", "papermill", ROOT/"nbs"/"faults.ipynb", tmp_path/"out.ipynb", *arguments]
    env = {**os.environ, "MULTIEXIT_ROOT": str(ROOT)}
    return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=env)


def shown(tmp_path) -> str:
    book = nbformat.read(tmp_path/"out.ipynb", as_version=4)
    outputs = [o for c in book.cells if c.cell_type == "code" for o in c.outputs]
    return "\n".join(o.data.get("text/markdown", o.data.get("text/html", "")) for o in outputs if "data" in o)


def test_the_shipped_lines_are_whole():
    lines = [json.loads(line) for line in SHIPPED.read_text(encoding="utf-8").splitlines()]
    assert lines
    for line in lines:
        assert line.keys() == {"fault", "times", "outcomes", "lost"}
        assert line["times"] == sum(line["outcomes"].values()) > 0 <= line["lost"]


def test_the_table_sums_what_the_tests_wrote(tmp_path, monkeypatch):
    file = tmp_path/"faults.jsonl"
    monkeypatch.setenv("MULTIEXIT_FAULTS", str(file))
    tell("a plug is pulled", {"goes on": 2})
    tell("a plug is pulled", {"goes on": 3, "one line": 1}, lost=1)
    done = papermill(tmp_path, "-p", "results", file)
    assert done.returncode == 0, done.stderr
    assert "5 × goes on; 1 × one line" in shown(tmp_path)
    assert "**6** faults of 1 kinds; lost: **1**." in shown(tmp_path)


@pytest.mark.slow
def test_the_shipped_table_and_a_wrong_file(tmp_path):
    assert papermill(tmp_path).returncode == 0 and "kill -9" in shown(tmp_path)
    wrong = papermill(tmp_path, "-p", "results", "nowhere.jsonl")
    assert wrong.returncode and "there is no such file" in wrong.stderr
