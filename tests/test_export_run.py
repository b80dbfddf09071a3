"`multiexit-export`: a finished run as a folder that answers as the run does, by every form it promises."
import csv
import json
import subprocess
import sys

import pytest
from PIL import Image
from tiny import make_run

from multiexit_nb import export_run
from multiexit_nb.core import InputError
from multiexit_nb.export import need
from multiexit_nb.export_run import arguments, check_answers, main
from multiexit_nb.policies import as_policy


@pytest.fixture
def learned(tiny_run):
    "A run that has learned something."
    return tiny_run(epochs=10)


def test_the_folder_answers_a_picture_as_the_run_does(learned, tmp_path, capsys):
    need("onnx", "onnxruntime")
    out = tmp_path/"out"
    assert main([learned.id, str(out), "--share", "0.7"]) == 0
    said = capsys.readouterr().out
    assert "run.py" in said and "of 355 test images are answered as by the network" in said
    test, names = learned.data().test, learned.data().class_names
    for i, row in enumerate(test.rows[:3]):
        picture = test.source.images[row].permute(1, 2, 0).numpy()
        Image.fromarray(picture).save(tmp_path/f"{i}.png")
    program = [sys.executable, "-I", str(out/"run.py")]
    files = [str(tmp_path/f"{i}.png") for i in range(3)]
    answered = subprocess.run([*program, *files], capture_output=True, text=True, check=True).stdout
    answers = learned.predict(files, _policy(out))
    for row, wanted in zip(csv.DictReader(answered.splitlines()), answers, strict=True):
        assert (row["class"], int(row["exit"])) == (wanted.label, wanted.exit) and row["class"] in names
        assert float(row["probability"]) == pytest.approx(wanted.probability, abs=1e-3)
    assert "usage" in subprocess.run([*program, "--help"], capture_output=True, text=True, check=True).stdout


def _policy(folder):
    "The rule in an exported folder."
    manifest = json.loads((folder/"manifest.json").read_text())
    return as_policy(map(float, manifest["thresholds"]), 4, temperature=manifest["temperature"])


def test_files_that_answer_otherwise_are_noticed(learned, tmp_path):
    export_run.export_run(learned, tmp_path/"out", formats=("pt2",), share=0.7)
    manifest = json.loads((tmp_path/"out/manifest.json").read_text())
    costs = learned.model().cost(earlier_heads=True)
    policy = _policy(tmp_path/"out")
    check = check_answers(learned, tmp_path/"out", "pt2", policy, costs)
    assert check.same >= 0.98*check.images and 0.4 < check.share < 1
    manifest["thresholds"] = [0, 0, 0]     # everybody leaves at the first exit
    (tmp_path/"out/manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="answer otherwise than run"):
        check_answers(learned, tmp_path/"out", "pt2", policy, costs)


def test_a_run_in_bfloat16_is_asked_in_float32(tmp_path):
    "Its recorded outputs are of another precision than the files; its network is not."
    run = make_run(tmp_path, precision="bf16", epochs=3)
    check, = export_run.export_run(run, tmp_path/"out", formats=("pt2",)).values()
    assert check.same == check.images


@pytest.mark.parametrize("given, said", [
    (["no_such_run"], "unknown run"), (["RUN", "--formats", "tflite"], "unknown format"),
    (["RUN", "--share", "7"], "share=7"), (["RUN", "--plugins", "gone.py"], "no Python file gone.py"),
])
def test_what_is_wrong_is_one_line_and_writes_nothing(finished_run, tmp_path, capsys, given, said):
    run, *more = given
    assert main([run.replace("RUN", finished_run.id), str(tmp_path/"out"), *more]) == 1
    line = capsys.readouterr().err
    assert said in line and line.count("\n") == 1 and not (tmp_path/"out").exists()


def test_what_it_takes_is_said_by_help(capsys):
    with pytest.raises(SystemExit):
        arguments(["--help"])
    said = capsys.readouterr().out
    assert all(option in said for option in ("--formats", "--parts", "--share", "--replace", "--plugins"))
