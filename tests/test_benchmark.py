"The notebook benchmark: every part measures, and what is no part is one line."
import json
import os
import subprocess
import sys

import pandas as pd
import pytest
from project import ROOT


def papermill(top, **given):
    (top/"settings.ini").write_text("[multiexit_nb]\n")
    (top/"data"/"results").mkdir(parents=True)
    said = [word for name, value in given.items() for word in ("-p", name, str(value))]
    command = [sys.executable, "-m", "papermill", ROOT/"nbs"/"benchmark.ipynb", top/"out.ipynb", *said]
    env = {**os.environ, "MULTIEXIT_ROOT": str(top), "MULTIEXIT_DEVICE": "cpu"}
    return subprocess.run(command, cwd=top, env=env, capture_output=True, text=True)


@pytest.mark.slow
def test_every_part_measures(tmp_path):
    done = papermill(tmp_path, small=True, repeats=1, keep=True)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = pd.read_csv(tmp_path/"data"/"results"/"benchmark.csv")
    assert set(rows.part) == {"training", "where", "curves", "exits", "exported", "gamma", "growth",
                              "analyses", "start"}
    assert (rows.low <= rows["median"]).all() and (rows["median"] <= rows.high).all()
    assert rows["median"][rows.unit.isin(["s", "×", "GB"])].gt(0).all()
    shares = rows[rows.part == "where"].groupby("case")["median"].sum()
    assert shares.between(99.9, 100.1).all()
    start = rows[rows.part == "start"].set_index("quantity")["median"]
    assert start["the interpreter"] < start["and PyTorch"]


def test_what_is_no_part_is_one_line(tmp_path):
    done = papermill(tmp_path, parts="trainig")
    assert done.returncode and "unknown part 'trainig'. Did you mean 'training'?" in done.stderr


def test_the_page_shows_the_shipped_rows():
    "As stored in the notebook: each case of each part, with its median."
    cells = json.loads((ROOT/"nbs"/"benchmark.ipynb").read_text(encoding="utf-8"))["cells"]
    said = json.dumps(cells[-1]["outputs"], ensure_ascii=False)
    for r in pd.read_csv(ROOT/"data"/"results"/"benchmark.csv").itertuples():
        assert r.case in said and f"{r.median:.2f}" in said, r
