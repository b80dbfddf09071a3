"""Damaged, swapped and deleted files of a run: each reading gives what was written, or one line."""
import contextlib
import json
import os
import pty
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from faults import tell
from lab_page import until

from multiexit_nb import experiment, files
from multiexit_nb.checkpoints import load_checkpoint
from multiexit_nb.core import InputError, atomic_write
from multiexit_nb.runs import Run, damaged_runs, list_runs, whole_runs

PARAMETERS = dict(dataset="digits", images_per_class=14, model="tiny", exits="sepconv", method="mate",
                  epochs=3, batch_size=64, precision="fp32", channels_last="false", device="cpu")
ROOT = Path(__file__).resolve().parent.parent
FILES = ("params.json", "history.csv", "result.json", "events.csv", "checkpoint.pt", "weights.safetensors",
         "outputs.safetensors", "manifest.json")


def trained(folder: Path, id: str, **changes) -> Path:
    "A finished run in a folder."
    with pytest.MonkeyPatch.context() as m:
        m.setenv("MULTIEXIT_RUNS", str(folder))
        p = {**PARAMETERS, "run_id": id, **changes}
        run = experiment.run_experiment(p, set(p), bar=False)
        run.event(3.0, "stop", 4, 3 - run.parameters["seed"])
        run.release()
        return run.path


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    "A run, and another of the same form."
    folder = tmp_path_factory.mktemp("whole")
    return trained(folder, "mine"), trained(folder, "other", seed=1)


# ---- what can happen to a file ----

def truncate(file: Path, other: Path):
    file.write_bytes(file.read_bytes()[:file.stat().st_size//2])


def empty(file: Path, other: Path):
    file.write_bytes(b"")


def swap(file: Path, other: Path):
    file.write_bytes(other.read_bytes())


def delete(file: Path, other: Path):
    file.unlink()


def unreadable(file: Path, other: Path):     # for root as well
    file.unlink()
    file.mkdir()


def flip(at: float):
    def flipped(file: Path, other: Path):
        content = bytearray(file.read_bytes())
        content[int(at*(len(content) - 1))] ^= 4
        file.write_bytes(content)
    return flipped


def number(file: Path, other: Path):
    "Another digit: the form stays, the value does not."
    content = bytearray(file.read_bytes())
    digits = [i for i, c in enumerate(content) if chr(c).isdigit()]
    i = digits[len(digits)//2]
    content[i] = ord("8") if content[i] != ord("8") else ord("7")
    file.write_bytes(content)


FAULTS = dict(truncate=truncate, empty=empty, swap=swap, delete=delete, unreadable=unreadable, number=number,
              **{f"flip at {at}": flip(at) for at in (0, 0.1, 0.3, 0.5, 0.7, 0.9, 1)})


# ---- what can be asked of a run ----

def comparable(x):
    "A value that can be compared: tensors as lists."
    if isinstance(x, dict):
        return {k: comparable(v) for k, v in x.items()}
    return x.tolist() if isinstance(x, torch.Tensor) else x


def listed(path: Path):
    rows = list_runs(path.parent)
    row = rows[rows.run == path.name].iloc[0].dropna().to_dict()
    if row["state"] == "damaged":
        raise InputError(row["note"])
    return row


def resumable(path: Path):
    run = Run.load(path)
    run.check_resume()
    return comparable(load_checkpoint(run.checkpoint)["net"])


QUESTIONS = dict(
    load=lambda path: Run.load(path).about,
    result=lambda path: Run.load(path).result,
    history=lambda path: Run.load(path).history.to_csv(),
    events=lambda path: Run.load(path).events.to_csv(),
    weights=lambda path: comparable(Run.load(path).weights()),
    outputs=lambda path: Run.load(path).outputs("test").logits.tolist(),
    model=lambda path: comparable(Run.load(path).model().state_dict()),
    list=listed,
    resume=resumable)


def asked(question, path: Path) -> tuple[str, object]:
    try:
        return "answer", question(path)
    except InputError as e:
        return "line", str(e)


def damage_and_ask(name: str, fault: str, whole, folder: Path) -> Counter:
    "What every question to a run with this fault in this file answers: as written, or one line."
    mine, other = whole
    copy = folder/fault/mine.name
    shutil.copytree(mine, copy)
    FAULTS[fault](copy/name, other/name)
    counts = Counter()
    for q, ask in QUESTIONS.items():
        kind, answer = asked(ask, copy)
        assert kind == "line" or answer == asked(ask, mine)[1], f"{fault} of {name}: {q} gives another answer"
        assert kind == "answer" or "\n" not in answer and len(answer) < 500
        counts["as written" if kind == "answer" else "one line"] += 1
    assert counts["one line"] or name == "manifest.json", f"{fault} of {name}: nothing tells"
    return counts


def test_every_question_to_a_whole_run_is_answered(whole):
    assert {asked(ask, whole[0])[0] for ask in QUESTIONS.values()} == {"answer"}


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_gives_what_was_written_or_one_line(name, whole, tmp_path):
    for fault in ("truncate", "swap", "flip at 0.5"):
        damage_and_ask(name, fault, whole, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_every_file_and_fault(fault, whole, tmp_path):
    counts = Counter()
    for name in FILES:
        counts += damage_and_ask(name, fault, whole, tmp_path/name)
    tell(f"a file of a run: {fault.partition(' ')[0]}", counts)


def test_a_run_without_a_manifest_loads_as_before(whole, tmp_path):
    "As those of the version before; its files are checked for their form alone."
    mine = whole[0]
    old = tmp_path/"old"/mine.name
    shutil.copytree(mine, old)
    (old/"manifest.json").unlink()
    about = json.loads((old/"params.json").read_text())
    del about["record"]
    (old/"params.json").write_text(json.dumps(about))
    for q, ask in QUESTIONS.items():
        kind, answer = asked(ask, old)
        assert kind == "answer" and (q == "load" or answer == asked(ask, mine)[1])
    about["record"] = 2
    (old/"params.json").write_text(json.dumps(about))
    with pytest.raises(InputError, match="manifest.json is damaged: it is missing"):
        Run.load(old)


NO_RUN = ["{}", "[]", "null", '{"parameters": null}', '{"parameters": []}', '{"parameters": {}, "record": 7}',
          '{"parameters": {"epochs": 1' + "0"*5000 + "}}", '{"parameters": {"seed": true}}',
          '{"parameters": {"method_args": []}}', "["*100_000, "\x00", "\xff\xfe"]


@pytest.mark.parametrize("text", NO_RUN, ids=[str(i) for i in range(len(NO_RUN))])
def test_json_that_is_no_run_is_one_line_and_hides_no_other(text, whole, tmp_path):
    shutil.copytree(whole[0], tmp_path/"runs"/"mine")
    (tmp_path/"runs"/"bad").mkdir()
    (tmp_path/"runs"/"bad"/"params.json").write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match="params.json") as e:
        Run.load("bad")
    assert "\n" not in str(e.value) and len(str(e.value)) < 500
    assert list_runs().set_index("run").state.to_dict() == {"mine": "finished", "bad": "damaged"}
    assert [r.id for r in whole_runs()] == ["mine"] and list(damaged_runs()) == ["bad"]
    p = {**PARAMETERS, "resume": "bad"}
    with pytest.raises(InputError, match="params.json"):
        experiment.prepare(p, {"resume"})


def test_a_result_that_is_none_is_one_line(whole, tmp_path):
    old = tmp_path/"runs"/"old"
    for text in ("null", "{}", '{"test": {}}', "1e999"):
        shutil.copytree(whole[0], old)
        (old/"manifest.json").write_text("{}")
        (old/"result.json").write_text(text)
        with pytest.raises(InputError, match="result.json is damaged"):
            Run.load("old").result  # noqa: B018
        assert list_runs().state.tolist() == ["damaged"]
        shutil.rmtree(old)


def test_names_that_cannot_be(tmp_path):
    for name in ("x"*300, "a\0b", "", None, 3, "../..", ".", "~nobody/x"):
        with pytest.raises(InputError) as e:
            Run.load(name)
        assert "\n" not in str(e.value)
    for name in ("x"*300, "a/b", ".hidden", "..", "a b", "\u202eb", 3, None):
        with pytest.raises(InputError, match="run_id"):
            Run.create({}, name)
    assert Run.create({}, "a+b").id == "a+b"


# ---- killed between two steps ----

def test_an_id_whose_making_was_killed_can_be_used(tmp_path):
    (tmp_path/"runs"/"mine").mkdir(parents=True)
    (tmp_path/"runs"/"mine"/".params.json.17.tmp").write_text("{")
    assert len(list_runs()) == 0
    assert Run.create({}, "mine").parameters == {}
    with pytest.raises(InputError, match="'mine' exists"):
        Run.create({}, "mine")
    assert not list((tmp_path/"runs").glob(".new-*"))


@pytest.mark.parametrize("moment", ["before the manifest", "before the file", "after the file"])
def test_a_file_whose_writing_was_killed_is_the_old_or_the_new_one(moment, tmp_path, monkeypatch):
    run = Run.create({}, "mine")
    run.write("a.csv", lambda tmp: tmp.write_text("one"))
    calls, replace = [], os.replace
    fatal = {"before the manifest": 1, "before the file": 2, "after the file": 0}[moment]

    def killed(a, b):
        calls.append(Path(b).name)
        if len(calls) == fatal:
            raise KeyboardInterrupt
        replace(a, b)
    with monkeypatch.context() as m:
        m.setattr(os, "replace", killed)
        try:
            run.write("a.csv", lambda tmp: tmp.write_text("two"))
        except KeyboardInterrupt:
            pass
    with files.opened(run.path/"a.csv") as f:
        assert f.read() == (b"two" if moment == "after the file" else b"one")
    assert not list(run.path.glob(".*.tmp"))


def test_the_first_file_of_a_name_may_be_killed_as_well(monkeypatch):
    run = Run.create({}, "mine")
    replace = os.replace

    def killed(a, b):
        if Path(b).name == "result.json":
            raise KeyboardInterrupt
        replace(a, b)
    with monkeypatch.context() as m:
        m.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            run.write("result.json", lambda tmp: tmp.write_text("{}"))
    assert not Run.load("mine").finished


def test_temporary_names_cannot_be_guessed_nor_followed(tmp_path):
    "A link under the name that version 0.1 would have taken, and the lock as a link."
    victim = tmp_path/"victim"
    victim.write_text("precious")
    run = Run.create({}, "mine")
    (run.path/f".history.csv.{os.getpid()}.tmp").symlink_to(victim)
    (run.path/"history.csv").symlink_to(victim)
    run.write("history.csv", lambda tmp: tmp.write_text("epoch"))
    assert victim.read_text() == "precious" and not (run.path/"history.csv").is_symlink()
    run.release()
    (run.path/".lock").unlink()
    (run.path/".lock").symlink_to(victim)
    with pytest.raises(InputError, match=".lock is damaged"):
        Run.load("mine").event(1, "lr", 0.1, 0.2)
    assert victim.read_text() == "precious"


def test_what_was_left_half_written_is_swept_away_and_the_mode_is_as_usual():
    run = Run.create({}, "mine")
    run.release()
    (run.path/".history.csv.17.tmp").write_text("left")
    run.write("a.csv", lambda tmp: tmp.write_text("one"))
    assert not list(run.path.glob(".*.tmp"))
    umask = os.umask(0)
    os.umask(umask)
    assert (run.path/"a.csv").stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_write_that_fails_leaves_nothing(tmp_path):
    def fails(tmp):
        tmp.write_text("half")
        raise OSError(28, "No space left on device")
    with pytest.raises(InputError, match="cannot write .*a.txt: No space left"):
        atomic_write(tmp_path/"a.txt", fails)
    assert list(tmp_path.iterdir()) == []


# ---- two at one run ----

def python(code: str, **env) -> subprocess.Popen:
    command = [sys.executable, "-c", textwrap.dedent(code)]
    piped = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, **env}, **piped)


@contextlib.contextmanager
def held_elsewhere():
    "Another program holds the run mine meanwhile, and is then killed."
    p = python("""
        from multiexit_nb.runs import Run
        run = Run.load("mine")
        run.hold()
        print("held", flush=True)
        input()
        """)
    try:
        assert p.stdout.readline() == "held\n"
        yield
    finally:
        p.kill()
        p.wait()


def test_a_run_that_another_program_writes_is_not_gone_on_with():
    run = Run.create({"dataset": "digits"}, "mine")
    run.write("history.csv", lambda tmp: tmp.write_text("epoch,split,exit,metric,value\n"))
    run.release()
    again = Run.load("mine")
    with held_elsewhere():
        for attempt in (again.hold, again.check_resume, lambda: again.event(1, "lr", 0.1, 0.2)):
            with pytest.raises(InputError, match="run mine is being written by another program") as e:
                attempt()
            assert "\n" not in str(e.value)
    again.hold()
    again.event(1, "lr", 0.1, 0.2)
    assert len(again.events) == 1


def test_a_lock_does_not_outlive_its_program_in_a_forked_worker():
    "DataLoader workers are forked, and may live on for a while when their parent is killed."
    Run.create({"dataset": "digits"}, "mine").release()
    p = python("""
        import os, time
        from multiexit_nb.runs import Run
        run = Run.load("mine")
        run.hold()
        child = os.fork()
        if not child:
            time.sleep(60)
            os._exit(0)
        print(child, flush=True)
        input()
        """)
    child = int(p.stdout.readline())
    p.kill()
    p.wait()
    try:
        Run.load("mine").hold()
    finally:
        os.kill(child, 9)


def test_the_newest_claim_in_a_process_goes_first():
    "Cells of a notebook that are run again; a lab beside another."
    run = Run.create({}, "mine")
    again = Run.load("mine")
    again.hold()
    again.event(1, "lr", 0.1, 0.2)
    with pytest.raises(InputError, match="run mine was opened once more"):
        run.event(1, "lr", 0.1, 0.3)


def test_a_finished_run_is_not_written_again(whole, tmp_path):
    "Its checkpoint gone, its history stays; with its checkpoint, it is shown again."
    mine = tmp_path/"runs"/"mine"
    shutil.copytree(whole[0], mine)
    before = {f.name: f.read_bytes() for f in mine.iterdir()}
    run = experiment.run_experiment({**PARAMETERS, "resume": "mine"}, {"resume"}, bar=False)
    assert run.finished and {f.name: f.read_bytes() for f in mine.iterdir()} == before
    (mine/"checkpoint.pt").unlink()
    with pytest.raises(InputError, match="checkpoint"):
        experiment.run_experiment({**PARAMETERS, "resume": "mine"}, {"resume"}, bar=False)
    del before["checkpoint.pt"]
    assert {f.name: f.read_bytes() for f in mine.iterdir()} == before


def test_who_opens_a_finished_run_replaces_nothing_of_its_report(whole, tmp_path):
    import pandas as pd
    shutil.copytree(whole[0], tmp_path/"runs"/"mine")
    run = Run.load("mine")
    run.keep("budgeted", pd.DataFrame(dict(a=[1])))
    Run.load("mine").keep("budgeted", pd.DataFrame(dict(a=[2])))
    assert pd.read_csv(run.path/"budgeted.csv").a.tolist() == [1]


def test_a_run_steered_by_hand_says_so(whole, tmp_path):
    mine = tmp_path/"runs"/"mine"
    shutil.copytree(whole[0], mine)
    (mine/"result.json").unlink()
    known = json.loads((mine/"manifest.json").read_text())
    del known["result.json"]
    (mine/"manifest.json").write_text(json.dumps(known))
    run = Run.load("mine")
    run.check_resume()
    run.event(2.5, "lr", 0.1, 0.02)
    with pytest.raises(InputError, match="run mine was steered by hand.*lr moved at epoch 2.5"):
        run.check_resume()
    run.check_resume(steering=True)
    assert list_runs().note.tolist() == ["stopped at epoch 3 of 4, lr moved at epoch 2.5"]


def test_a_steered_run_is_not_gone_on_with_by_the_command_line(whole, tmp_path):
    run = unfinished(whole, tmp_path)
    run.event(2.5, "lr", 0.1, 0.02)
    with pytest.raises(InputError, match="steered by hand"):
        experiment.run_experiment({**PARAMETERS, "resume": "mine"}, {"resume"}, bar=False)
    experiment.prepare({**PARAMETERS, "resume": "mine"}, {"resume"})


def test_the_second_of_two_resumes_says_so_before_any_data(whole, tmp_path, monkeypatch):
    unfinished(whole, tmp_path)
    monkeypatch.setattr("multiexit_nb.runs.load_dataset", lambda *a, **k: pytest.fail("data were loaded"))
    with held_elsewhere(), pytest.raises(InputError, match="run mine is being written by another program"):
        experiment.run_experiment({**PARAMETERS, "resume": "mine"}, {"resume"}, bar=False)


def unfinished(whole, tmp_path) -> Run:
    "A copy of the run without its result."
    mine = tmp_path/"runs"/"mine"
    shutil.copytree(whole[0], mine)
    for name in ("result.json", "events.csv"):
        (mine/name).unlink()
    known = json.loads((mine/"manifest.json").read_text())
    kept = {k: v for k, v in known.items() if k not in ("result.json", "events.csv")}
    (mine/"manifest.json").write_text(json.dumps(kept))
    return Run.load("mine")


# ---- killed and interrupted ----

TRAININGS = dict(plain=dict(method="mate"), phases=dict(method="imta"),
                 hdkd=dict(method="hdkd", images_per_class=40),
                 unlabelled=dict(method="dbt", images_per_class=20))
TORCHRUN = ["torch.distributed.run", "--nproc_per_node", "1", "--rdzv_backend", "c10d",
            "--rdzv_endpoint", "127.0.0.1:0", "-m"]


def heard():
    "Let a program hear Ctrl-C also where a shell started these tests in the background."
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def program(folder: Path, *arguments, by=(), **kw) -> subprocess.Popen:
    "The command line; a new run has PARAMETERS before the arguments."
    given = [x for k, v in PARAMETERS.items() for x in ("-p", k, str(v))] if "resume" not in arguments else []
    command = [sys.executable, "-m", *by, "multiexit_nb.trainer", *given, *map(str, arguments)]
    piped = dict(stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) | kw
    env = {**os.environ, "MULTIEXIT_RUNS": str(folder)}
    return subprocess.Popen(command, cwd=ROOT, env=env, preexec_fn=heard, **piped)


GOES_ON = "interrupted: `-p resume ID` goes on after the last finished epoch"


def test_ctrl_c_ends_in_one_line_and_130_and_goes_on(tmp_path):
    p = program(tmp_path, "-p", "run_id", "mine", "-p", "epochs", 2000)
    until(lambda: (tmp_path/"mine"/"history.csv").exists())
    p.send_signal(signal.SIGINT)
    _, err = p.communicate(timeout=60)
    assert p.returncode == 130 and "Traceback" not in err
    assert err.endswith(f"\n{GOES_ON}\n") and err.count(GOES_ON) == 1, "on a line of its own"
    Run.load(tmp_path/"mine").check_resume()
    tell("Ctrl-C: multiexit-train", {"one line and exit code 130": 1})


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_does_not_stand_behind_the_bar(tmp_path):
    mine, its = pty.openpty()
    p = program(tmp_path, "-p", "run_id", "mine", "-p", "epochs", 2000, stdin=its, stdout=its, stderr=its,
                start_new_session=True)
    os.close(its)
    until(lambda: (tmp_path/"mine"/"history.csv").exists())
    p.send_signal(signal.SIGINT)
    shown = b""
    with contextlib.suppress(OSError):       # the terminal ends with its program
        while more := os.read(mine, 65536):
            shown += more
    os.close(mine)
    assert p.wait(timeout=60) == 130 and shown.decode().endswith(f"\n{GOES_ON}\r\n")
    tell("Ctrl-C: multiexit-train in a terminal", {"one line and exit code 130": 1})


@pytest.mark.slow
def test_ctrl_c_at_a_process_of_torchrun(tmp_path):
    import psutil
    p = program(tmp_path, "-p", "run_id", "mine", "-p", "epochs", 2000, by=TORCHRUN)
    until(lambda: (tmp_path/"mine"/"history.csv").exists())
    child, = psutil.Process(p.pid).children()
    child.send_signal(signal.SIGINT)
    _, err = p.communicate(timeout=60)
    assert err.count(f"\n{GOES_ON}\n") == 1 and "KeyboardInterrupt" not in err
    assert "exitcode  : 130" in err
    tell("Ctrl-C: a process of torchrun", {"one line and exit code 130": 1})


STUDY = """
about: A try.
sweep:
  base: {dataset: digits, images_per_class: 20, model: tiny, epochs: 900, batch_size: 64, precision: fp32}
  runs: [{name: mate, method: mate}, {name: exit-wise, method: branchynet}]
  grid: {seed: [0]}
splits: seed
questions:
  - {claim: MATE-1, arm: mate, against: exit-wise, exit: 1, expect: higher, interest: 200}
"""


@pytest.mark.slow
def test_ctrl_c_at_a_study_and_its_workers(tmp_path):
    "A terminal sends it to all of them."
    import psutil
    (tmp_path/"small.yaml").write_text(STUDY)
    code = "import sys; from multiexit_nb.studies import main; sys.exit(main())"
    piped = dict(stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    p = subprocess.Popen([sys.executable, "-c", code, tmp_path/"small.yaml"], cwd=ROOT, **piped,
                         preexec_fn=heard, start_new_session=True)
    until(lambda: len(list((tmp_path/"runs").glob("study-*/*/history.csv"))) == 2)
    family = psutil.Process(p.pid).children(recursive=True)
    os.killpg(p.pid, signal.SIGINT)
    _, err = p.communicate(timeout=60)
    _, alive = psutil.wait_procs(family, timeout=20)
    assert p.returncode == 130 and "Traceback" not in err and not alive
    assert err.endswith("\ninterrupted: the same command goes on from the checkpoints\n")
    tell("Ctrl-C: multiexit-study", {"one line and exit code 130": 1})


@pytest.mark.slow
@pytest.mark.parametrize("kind", TRAININGS)
def test_killed_at_any_point_and_gone_on_gives_the_same_weights(kind, tmp_path):
    "KILLS times kill -9 at random points of the real program: three of each kind, 25 for the table."
    rng, given = random.Random(kind), [x for k, v in TRAININGS[kind].items() for x in ("-p", k, v)]
    given += ["-p", "run_id", "mine", "-p", "epochs", 6]
    straight = program(tmp_path/"straight", *given)
    assert straight.wait(timeout=300) == 0, straight.stderr.read()
    right = Run.load(tmp_path/"straight"/"mine").weights()
    kills, rounds = 0, 0
    while kills < int(os.environ.get("KILLS", "3")):
        folder, rounds = tmp_path/f"round {rounds}", rounds + 1
        checkpoint = folder/"mine"/"checkpoint.pt"

        def written(f=checkpoint):
            return f.stat().st_mtime_ns if f.exists() else 0
        p = program(folder, *given)
        for _ in range(3):
            before = written()
            until(lambda p=p, was=before, now=written: p.poll() is not None or now() != was)
            time.sleep(rng.uniform(0, 0.5))        # somewhere in the next epochs, or after the last
            p.kill()
            kills += p.wait() == -signal.SIGKILL
            p = program(folder, "-p", "resume", "mine")
        _, err = p.communicate(timeout=300)
        again = Run.load(folder/"mine")
        assert p.returncode == 0 and again.finished, err
        assert not list(again.path.glob(".*.tmp"))
        assert all(torch.equal(v, right[k]) for k, v in again.weights().items())
    tell(f"kill -9 of a training ({kind})", {"goes on, bit for bit": kills})
