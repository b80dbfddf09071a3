"""Every test has run and data folders of its own, and small networks have one thread: two that wait for each other are slower."""
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")     # read when torch starts, here and in the kernels the tests start

import pytest


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("MULTIEXIT_RUNS", str(tmp_path/"runs"))
    monkeypatch.setenv("MULTIEXIT_DATASETS", str(tmp_path/"datasets"))
    monkeypatch.setenv("MULTIEXIT_DEVICE", "cpu")
