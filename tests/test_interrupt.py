"Interrupted at the worst moment: while a program is still being imported, and in JupyterLab's own ways."
import os
import signal
import subprocess
import sys
import tomllib

import pytest
from faults import tell
from lab_page import until
from project import ROOT

SCRIPTS = tomllib.loads((ROOT/"pyproject.toml").read_text())["project"]["scripts"]
SLOW = """
import pathlib, time
pathlib.Path({mark!r}).touch()
time.sleep(600)
"""


def heard():
    "Let a program hear Ctrl-C also where a shell started these tests in the background."
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.parametrize("script", SCRIPTS)
def test_ctrl_c_while_a_program_is_imported_is_one_line_and_130(script, tmp_path):
    "PyTorch takes seconds: here one that takes ten minutes."
    (tmp_path/"torch").mkdir()
    (tmp_path/"torch"/"__init__.py").write_text(SLOW.format(mark=str(tmp_path/"begun")))
    module, _, name = SCRIPTS[script].partition(":")
    code = f"import sys; from {module} import {name}; sys.exit({name}())"     # as an installed one does
    env = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    p = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=env, text=True, preexec_fn=heard,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    until((tmp_path/"begun").exists)
    p.send_signal(signal.SIGINT)
    assert p.communicate(timeout=60) == ("", "interrupted: nothing had begun\n") and p.returncode == 130
    tell("Ctrl-C: a program that is still being imported", {"one line and exit code 130": 1})
