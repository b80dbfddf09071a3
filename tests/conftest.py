"""Every test has run and data folders of its own."""
import pytest


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("MULTIEXIT_RUNS", str(tmp_path/"runs"))
    monkeypatch.setenv("MULTIEXIT_DATASETS", str(tmp_path/"datasets"))
    monkeypatch.setenv("MULTIEXIT_DEVICE", "cpu")
