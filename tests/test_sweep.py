"""Sweeps: grids, workers that die, sweeps that are killed, full disks, clusters.

The quick tests train nothing: a stand-in for train.ipynb counts epochs in the same files.
"""
import contextlib
import html
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
import yaml
from faults import tell
from lab_page import until

from multiexit_nb import experiment, sweep, workers
from multiexit_nb.core import InputError
from multiexit_nb.experiment import PARAMETERS, settled
from multiexit_nb.grid import Cell, RunsFolder, cells, read_grid
from multiexit_nb.runs import Run, check_id
from multiexit_nb.sweep import Sweep, checked

ROOT = Path(__file__).resolve().parent.parent
STAND_IN = """
import json, os, pathlib, time
class InputError(Exception): pass
top = pathlib.Path(os.environ["MULTIEXIT_RUNS"])
run = top/(resume or run_id)
run.mkdir(exist_ok=True)
with open(top/"log", "a") as f:
    f.write(f"{'resume' if resume else 'start'} {run.name} {os.environ.get('OMP_NUM_THREADS')}\\n")
if not resume:
    own = dict(epochs=epochs, lr=lr, method=method)
    decided = dict(precision="fp32", channels_last=False, why="given", threads=0)
    (run/"params.json").write_text(json.dumps(dict(parameters=own, decided=decided)))
p = json.loads((run/"params.json").read_text())["parameters"]
if p["method"] == "dks" and not (top/"mended").exists(): raise InputError("dks is out of luck")
history = run/"history.csv"
rows = history.read_text().splitlines()[1:] if history.exists() else []
for epoch in range(len(rows)//2 + 1, p["epochs"] + 1):
    time.sleep(p["lr"])
    rows += [f"{epoch},train,,seconds,{p['lr']}", f"{epoch},val,1,top1,{10*epoch}"]
    tmp = run/"tmp"
    tmp.write_text("\\n".join(["epoch,split,exit,metric,value", *rows]))
    os.replace(tmp, history)
(run/"result.json").write_text(json.dumps(dict(epochs=epoch)))
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    "A project whose train.ipynb takes the same parameters and only counts."
    real = nbformat.read(ROOT/"nbs"/"train.ipynb", as_version=4)
    parameters = next(c for c in real.cells if "parameters" in c.metadata.get("tags", []))
    both = [parameters, nbformat.v4.new_code_cell(STAND_IN)]
    nb = nbformat.v4.new_notebook(cells=both, metadata=real.metadata)
    (tmp_path/"project"/"nbs").mkdir(parents=True)
    nbformat.write(nb, tmp_path/"project"/"nbs"/"train.ipynb")
    monkeypatch.setenv("MULTIEXIT_ROOT", str(tmp_path/"project"))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    (tmp_path/"runs").mkdir()
    return tmp_path/"runs"


def grid(methods=("branchynet", "mate"), seeds=(0, 1), **base):
    plain = dict(epochs=2, lr=0.01, precision="fp32", channels_last="false")
    return dict(base=plain | base, runs=[dict(method=m) for m in methods], grid=dict(seed=list(seeds)))


def log(folder):
    return [line.split() for line in (folder/"log").read_text().splitlines()]


def written(folder: Path, g: dict) -> Path:
    file = folder.parent/"grid.yaml"
    file.write_text(yaml.safe_dump(g))
    return file


def program(*args, **kw):
    command = [sys.executable, "-m", "multiexit_nb.sweep", *map(str, args)]
    piped = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen(command, cwd=ROOT, **piped, **kw)


def ids(counted) -> list[str]:
    return sorted(row[1] for row in counted)


# ---- grids ----

def test_cells_of_a_grid():
    lines = [dict(method="mate"), dict(method="byot", epochs=3)]
    base = dict(dataset="parquet:/x/cifar 100", epochs=2)
    g = read_grid(dict(base=base, runs=lines, grid=dict(seed=[0, 1], lr=[1, 2])))
    found = cells(g)
    expected = [(s, lr, m, e) for s in (0, 1) for lr in (1, 2) for m, e in (("mate", 2), ("byot", 3))]
    assert [tuple(c.parameters[k] for k in ("seed", "lr", "method", "epochs")) for c in found] == expected
    assert len({c.id for c in found}) == 8
    assert all(re.fullmatch(r"cifar_100-tiny-(mate|byot)-s[01]-[0-9a-f]{10}", c.id) for c in found)
    assert cells(read_grid(dict(g, runs=g["runs"]*2))) == found, "a cell that occurs twice is one"
    other = dict(base=dict(epochs=3, lr=2, dataset="parquet:/x/cifar 100"), runs=[dict(method="byot")])
    again = cells(read_grid(other | dict(grid=dict(seed=[1]))))
    assert again[0].id == found[-1].id, "the same parameters are the same run, from any grid"
    assert [c.parameters for c in cells(read_grid({}))] == [{}]


def test_teachers_come_first_and_share_the_seed():
    lines = [dict(method="kd", method_args=dict(teacher="big", alpha=0.5)),
             dict(name="big", method="baseline"),
             dict(method="kd", method_args=dict(teacher="elsewhere"))]
    found = cells(read_grid(dict(runs=lines, grid=dict(seed=[3, 4]))))
    by = {(c.parameters["method"], c.parameters["seed"], bool(c.after)): c for c in found}
    for seed in (3, 4):
        teacher, student = by["baseline", seed, False], by["kd", seed, True]
        assert student.after == (teacher.id,) and found.index(teacher) < found.index(student)
        assert student.parameters["method_args"] == dict(teacher=teacher.id, alpha=0.5)
        assert by["kd", seed, False].parameters["method_args"]["teacher"] == "elsewhere"
    circle = [dict(name=a, method="kd", method_args=dict(teacher=b)) for a, b in ("ab", "ba")]
    with pytest.raises(InputError, match="wait for each other"):
        cells(read_grid(dict(runs=circle)))


BOG = dict(base=dict(exits="none"), runs=[dict(method="kd", method_args=dict(teacher="bog")),
                                          dict(name="big", method="baseline")])
WRONG = [("no/such.yaml", "no grid at no/such.yaml"), (dict(runs=3), "runs=3: expected a list of maps"),
         (dict(gird={}), "entry='gird'"), (dict(grid=dict(seed=3)), "seed=3: expected a list"),
         (dict(runs=[dict(methd="mate")]), "unknown parameter 'methd'. Did you mean 'method'"),
         (dict(base=dict(lr="big")), "lr='big': expected number"),
         (dict(base=dict(run_id="x")), "a sweep names its runs itself"),
         (dict(runs=[dict(dataset="digits", method="mat")]), "digits-tiny-mat-s0: unknown method 'mat'"),
         (dict(base=dict(method_args=dict(alhpa=1))), "Did you mean 'alpha'"),
         (dict(runs=[dict(method="kd", exits="none")]), "kd needs a teacher"), (BOG, "unknown run 'bog'")]


@pytest.mark.parametrize("wrong, says", WRONG)
def test_wrong_grids_are_one_line_before_anything_starts(wrong, says, tmp_path, capsys):
    with pytest.raises(InputError, match=re.escape(says)) as e:
        checked(read_grid(wrong))
    assert "\n" not in str(e.value) and not (tmp_path/"runs").exists()
    if isinstance(wrong, dict):
        (tmp_path/"g.yaml").write_text(yaml.safe_dump(wrong))
        assert sweep.main([str(tmp_path/"g.yaml")]) == 1
        err = capsys.readouterr().err
        assert err.startswith("InputError: ") and err.count("\n") == 1


NO_GRID = ["base: [1]", "base: words", "runs: words", "runs: [a]", "runs: {a: 1}", "grid: [1]",
           "grid: words", "grid: {seed: 3}", "1: 2", "base: {1: 2}", "runs: [{method_args: 3}]",
           "base: {method_args: [1]}", "base: {batch_size: {a: 0, 1e-3: 1}}", "- 1", "3", "",
           "base: {lr: 1e400}", "\x00"]


@pytest.mark.parametrize("text", NO_GRID)
def test_maps_that_are_none_are_one_line(text, tmp_path):
    (tmp_path/"g.yaml").write_text(text)
    with pytest.raises(InputError) as e:
        checked(read_grid(tmp_path/"g.yaml"))
    assert "\n" not in str(e.value)


def test_every_cell_of_every_grid_has_an_id_that_a_run_can_have():
    files = [*(ROOT/"data").glob("sweeps/*/*.yaml")]
    names = [c.id for f in files for c in cells(read_grid(f))]
    assert any("+" in i for i in names) and all(check_id(i) == i for i in names)


def test_a_damaged_run_is_a_failed_cell_with_its_line(stand_in):
    s = Sweep(grid(("mate",), (0,)), stand_in).run(1, every=0.05)
    (stand_in/s.cells[0].id/"manifest.json").write_text('{"result.json": ["x"]}')
    (stand_in/s.cells[0].id/"result.json").unlink()
    again = Sweep(grid(("mate",), (0,)), stand_in)
    assert again.counts() == {"failed": 1}
    assert "result.json is damaged: it is missing" in again.error(again.cells[0])


@pytest.mark.parametrize("only, left", [
    (["method=mate"], [("mate", 0), ("mate", 1)]), (["seed=1"], [("mate", 1), ("dks", 1)]),
    (["method=dks", "seed=0"], [("dks", 0)]), (["seed=0", "seed=1", "method=dks"], [("dks", 0), ("dks", 1)]),
])
def test_a_part_of_a_grid(stand_in, capsys, only, left):
    file = str(written(stand_in, grid(("mate", "dks"), (0, 1))))
    assert sweep.main([file, "--list", *(word for o in only for word in ("--only", o))]) == 0
    assert f"{len(left)} runs in runs: {len(left)} waiting" in capsys.readouterr().out
    found = Sweep(file, only=sweep.part_of(only)).cells
    assert sorted((c.parameters["method"], c.parameters["seed"]) for c in found) == sorted(left)


def test_a_part_of_a_grid_takes_its_teachers_along(tmp_path):
    lines = [dict(name="big", method="baseline"), dict(method="kd", method_args=dict(teacher="big"))]
    g = dict(base=dict(dataset="digits", model="tiny", exits="none", epochs=2), runs=lines)
    assert [c.name for c in Sweep(g, tmp_path, only=dict(method=["kd"])).cells] == ["big", ""]
    assert [c.name for c in Sweep(g, tmp_path, only=dict(name=["big"])).cells] == ["big"]


def test_a_part_of_a_grid_knows_what_is_usual(tmp_path):
    "What a grid leaves out is what the run will have: its data set's settings, or its recipe's."
    lines = [dict(name="usual"), dict(name="recipe", recipe="dbt-cifar"), dict(name="given", batch_size=32),
             dict(name="digits", dataset="digits")]
    usual = {line["name"]: settled({k: v for k, v in line.items() if k != "name"})["batch_size"]
             for line in lines}
    assert usual["usual"] != PARAMETERS["batch_size"].default
    for size in set(usual.values()):
        found = Sweep(dict(runs=lines), tmp_path, only=dict(batch_size=[size])).cells
        assert {c.name for c in found} == {name for name, n in usual.items() if n == size}


@pytest.mark.parametrize("only, says", [
    ("mate", "--only='mate': expected NAME=VALUE"), ("methd=mate", "Did you mean 'method'"),
    ("method=byot", "only method='byot': no run of this grid is that"), ("seed=x", "seed='x'"),
])
def test_a_part_that_is_none_is_one_line(stand_in, capsys, only, says):
    assert sweep.main([str(written(stand_in, grid(("mate",), (0,)))), "--only", only]) == 1
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1


def test_the_time_left_is_by_what_was_done_since_it_began(monkeypatch, tmp_path):
    s = Sweep(grid(("mate", "dks"), (0, 1)), tmp_path)
    work, now = {c.id: (0, 10, None) for c in s.cells}, iter([0., 100., 100.])
    monkeypatch.setattr(Sweep, "epochs_of", lambda self, cell: work[cell.id])
    monkeypatch.setattr(sweep, "time", SimpleNamespace(monotonic=lambda: next(now)))
    assert s.seconds_left() is None                       # nothing is known
    first, second = s.cells[:2]
    work[first.id] = 2, 10, 5.
    assert s.seconds_left() is None                       # 10 s of training were done before
    work[first.id], work[second.id] = (6, 10, 5.), (3, 10, 5.)
    # since then 35 s of training in 100 s by the clock; 31 epochs of 5 s are left
    assert s.seconds_left() == pytest.approx(31*5*100/35)
    s.running[first.id] = None
    note = s.note
    assert note.endswith("left") and "; about " in note


def test_not_yaml(tmp_path, capsys):
    (tmp_path/"g.yaml").write_text("{}")
    assert sweep.main([str(tmp_path/"g.yaml"), "-p", "epochs", "["]) == 1
    assert capsys.readouterr().err.startswith("InputError: epochs: '[' is not YAML")
    for text, says in (("a: [", "is not YAML"), ("just words", "expected a map")):
        (tmp_path/"g.yaml").write_text(text)
        with pytest.raises(InputError, match=says):
            read_grid(tmp_path/"g.yaml")


# ---- work ----

def test_one_failure_does_not_stop_the_rest_and_a_rerun_does_what_is_left(stand_in, capsys, tmp_path):
    file = str(written(stand_in, grid(("mate", "dks"), (0,))))
    assert sweep.main([file, "--workers", "2"]) == 1
    out = capsys.readouterr().out
    assert "2 runs in runs: 1 finished, 1 failed" in out
    assert out.count("InputError: dks is out of luck") == 2     # when it happened, and in the end
    t = Sweep(file).table()
    assert t.columns.tolist() == ["method", "state", "epoch", "left", "top1", "error"]
    rows = [["mate", "finished", "2/2", "", 20.0], ["dks", "failed", "", "", ""]]
    assert t.iloc[:, :5].values.tolist() == rows
    assert {row[2] for row in log(stand_in)} == {str(max(1, os.cpu_count()//2))}
    assert sweep.main([file]) == 1
    assert len(log(stand_in)) == 2, "what is finished is skipped, and so is what failed"
    (stand_in/"mended").touch()
    capsys.readouterr()
    assert sweep.main([file, "--list"]) == 0 and "1 finished, 1 failed" in capsys.readouterr().out
    assert sweep.main([file, "--retry"]) == 0 and len(log(stand_in)) == 3
    assert "2 runs in runs: 2 finished" in capsys.readouterr().out
    assert not list((stand_in/".sweep").glob("*.failed"))


@pytest.mark.slow
def test_a_killed_worker_and_a_killed_kernel_are_survived(stand_in):
    import psutil
    g = grid(("mate",), (0,), epochs=20, lr=0.15)
    p = program(written(stand_in, g), "--workers", 1)
    only = cells(read_grid(g))[0]
    history = stand_in/only.id/"history.csv"
    for least in (1, 6):
        until(lambda n=least: history.exists() and history.read_text().count("top1") >= n)
        papermill = next(c for c in psutil.Process(p.pid).children() if only.id in " ".join(c.cmdline()))
        (papermill if least == 1 else papermill.children()[0]).kill()
    out, err = p.communicate(timeout=90)
    assert p.returncode == 0, out + err
    assert [row[0] for row in log(stand_in)] == ["start", "resume", "resume"]
    assert history.read_text().count("top1") == 20
    tell("sweep: a worker or a kernel is killed", {"the cell is given out again and goes on": 2})


def test_dies_again_and_again(stand_in, monkeypatch):
    monkeypatch.setattr(sweep, "_papermill", lambda *a: (-9, ""))
    s = Sweep(grid(("mate",), (0,)), stand_in).run(1, every=0.01)
    assert s.counts() == {"failed": 1} and "died 3 times" in s.error(s.cells[0])
    assert Sweep(grid(("mate",), (0,)), stand_in).counts() == {"waiting": 1}, "another sweep tries again"


@pytest.mark.slow
def test_a_killed_sweep_leaves_nobody_behind_and_goes_on(stand_in):
    import psutil
    g = grid(("mate", "byot"), (0,), epochs=60, lr=0.25)
    p = program(written(stand_in, g), "--workers", 2)
    until(lambda: len(list(stand_in.glob("*/history.csv"))) == 2)
    assert not list(stand_in.glob("*/result.json"))
    family = psutil.Process(p.pid).children(recursive=True)
    p.send_signal(signal.SIGKILL)
    p.wait()
    _, alive = psutil.wait_procs(family, timeout=20)
    assert len(family) >= 4 and not alive
    assert Sweep(g, stand_in).counts() == {"interrupted": 2}
    q = program(written(stand_in, g), "--workers", 2)
    out, err = q.communicate(timeout=90)
    assert q.returncode == 0 and "2 finished" in out, err
    assert sorted(row[0] for row in log(stand_in)) == ["resume", "resume", "start", "start"]
    tell("sweep: killed with its workers at work", {"nobody is left behind; the same command goes on": 1})


@pytest.mark.slow
def test_two_sweeps_over_one_folder_share_the_work(stand_in):
    g = grid(("mate", "byot"), (0, 1), epochs=3, lr=0.3)
    both = [program(written(stand_in, g), "--workers", 1) for _ in range(2)]
    for p in both:
        out, err = p.communicate(timeout=120)
        assert p.returncode == 0 and "4 finished" in out, err
    assert ids(log(stand_in)) == sorted(c.id for c in cells(read_grid(g))), "every cell once"
    tell("sweep: two of one grid over one folder", {"every cell is run once": 1})


def test_a_glance_of_another_sweep_does_not_end_this_one(tmp_path, monkeypatch):
    "Who looks at a cell holds its lock for a moment: it seems to be worked on, and waits the next time."
    def work(cell, folder, env, more):
        (Path(folder)/cell.id).mkdir()
        (Path(folder)/cell.id/"result.json").write_text("{}")
        return "finished"
    monkeypatch.setattr(sweep, "work", work)
    s = Sweep(grid(("mate",), (0,)), tmp_path)
    real, glances = s.state, iter(["running"])
    s.state = lambda c: next(glances, None) or real(c)
    assert s.run(1, every=0.01).counts() == {"finished": 1}


def test_interrupted_by_hand(stand_in):
    def heard():        # it is ignored by what a shell starts in the background, such as these tests
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    g = grid(("mate",), (0,), epochs=50, lr=0.3)
    p = program(written(stand_in, g), "--workers", 1, preexec_fn=heard)
    until(lambda: list(stand_in.glob("*/history.csv")))
    p.send_signal(signal.SIGINT)
    _, err = p.communicate(timeout=30)
    assert p.returncode == 130 and err == "interrupted: the same command goes on from the checkpoints\n"
    tell("Ctrl-C: multiexit-sweep", {"one line and exit code 130": 1})


def test_students_of_a_failed_teacher_are_blocked(stand_in):
    lines = [dict(name="t", method="dks"), dict(method="kd", exits="none", method_args=dict(teacher="t"))]
    s = Sweep(grid((), (0,)) | dict(runs=lines), stand_in).run(2, every=0.05)
    assert [s.state(c) for c in s.cells] == ["failed", "blocked"]
    assert s.counts() == {"blocked": 1, "failed": 1}


# ---- what `auto` came to ----

DECIDED = dict(precision="bf16", channels_last=True, why="measured", threads=2)


def test_what_auto_comes_to_holds_for_all_arms_of_a_comparison(stand_in):
    lines = [dict(method="mate"), dict(method="baseline", exits="none"), dict(method="mate", model="resnet8")]
    s = Sweep(dict(base=dict(model="tiny"), runs=lines), stand_in)
    a, b, other = s.cells
    assert s.decided(a) == {}
    s.running[a.id] = None
    assert s.decided(b) is None, "it is being measured"
    assert s.decided(other) == {}, "of another network"
    (stand_in/a.id).mkdir()
    (stand_in/a.id/"params.json").write_text(json.dumps(dict(parameters={}, decided=DECIDED)))
    held = dict(precision="bf16", channels_last="true"), dict(MULTIEXIT_THREADS="2")
    assert sweep.taken_over(s.decided(b)) == held
    assert sweep.taken_over(DECIDED | dict(threads=0))[1] == {} == sweep.taken_over({})[0]


def test_threads_are_measured_once_as_well(stand_in):
    "They are what is left to decide where a grid names precision and layout."
    s = Sweep(grid(), stand_in)
    s.running[s.cells[0].id] = None
    assert all(s.decided(c) is None for c in s.cells[1:])


def test_every_arm_is_started_with_what_the_first_came_to(tmp_path, monkeypatch):
    given = {}

    def work(cell, folder, env, more):
        given[cell.parameters["method"]] = more, env.get("MULTIEXIT_THREADS")
        (Path(folder)/cell.id).mkdir()
        (Path(folder)/cell.id/"params.json").write_text(json.dumps(dict(parameters={}, decided=DECIDED)))
        (Path(folder)/cell.id/"result.json").write_text("{}")
        return "finished"
    monkeypatch.setattr(sweep, "work", work)
    lines = [dict(method=m) for m in ("branchynet", "mate", "byot")]
    assert Sweep(dict(runs=lines), tmp_path).run(3, every=0.01).counts() == {"finished": 3}
    held = dict(precision="bf16", channels_last="true"), "2"
    assert given == dict(branchynet=({}, None), mate=held, byot=held)


# ---- locks and seats ----

HOLD = """
import sys, time
from pathlib import Path
from multiexit_nb.experiment import PARAMETERS, settled
from multiexit_nb.grid import Cell, RunsFolder
lock = RunsFolder(Path(sys.argv[1])).lock(Cell({}, "x"))
lock.acquire()
print("held", flush=True)
time.sleep(60)
"""


def test_a_lock_ends_with_its_process(tmp_path):
    folder, cell = RunsFolder(tmp_path), Cell({}, "x")
    p = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert p.stdout.readline() == "held\n" and folder.state(cell) == "running"
    assert sweep.work(cell, str(tmp_path)) == "taken"
    p.kill()
    p.wait()
    assert folder.state(cell) == "waiting"


def test_seats_threads_and_gpus(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with workers.local_pool(3, []) as (_, seats):
        assert [s["CUDA_VISIBLE_DEVICES"] for s in seats] == ["2", "5", "2"]
        assert {s["OMP_NUM_THREADS"] for s in seats} == {str(max(1, os.cpu_count()//3))}
    assert workers.seat_env(seats[0], "cpu") == {"OMP_NUM_THREADS": seats[0]["OMP_NUM_THREADS"]}
    assert "CUDA_VISIBLE_DEVICES" in workers.seat_env(seats[0])
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    many = ["auto"]*9
    assert workers.num_workers(many) == 3 and workers.num_workers(many[:2]) == 2
    assert workers.num_workers(["cpu"]*99) <= os.cpu_count()
    with pytest.raises(InputError, match="workers=-1"), workers.local_pool(-1, []):
        pass


# ---- clusters ----

SLURM = """
kind: slurm
jobs: 4
cores: 8
memory: 32GB
queue: gpu
walltime: '12:00:00'
job_extra_directives: ['--gres=gpu:1']
"""


def test_the_job_that_a_cluster_would_get(tmp_path):
    pytest.importorskip("dask_jobqueue")
    (tmp_path/"slurm.yaml").write_text(SLURM)
    with workers.cluster_of(workers.read_cluster(str(tmp_path/"slurm.yaml"))) as cluster:
        script = cluster.job_script()
    for line in ("#SBATCH -p gpu", "#SBATCH --cpus-per-task=8", "#SBATCH --mem=30G", "#SBATCH -t 12:00:00",
                 "#SBATCH --gres=gpu:1", "distributed.cli.dask_worker"):
        assert line in script
    with pytest.raises(InputError, match="unknown kind of cluster 'slrum'. Did you mean 'slurm'"):
        workers.cluster_of(dict(kind="slrum"))
    with pytest.raises(InputError, match="pbs cluster"):
        workers.cluster_of(dict(kind="pbs", coars=3))
    (tmp_path/"bad.yaml").write_text("jobs: 3")
    for where, says in (("nowhere.yaml", "expected the address of a Dask scheduler"),
                        (str(tmp_path/"bad.yaml"), "a map with kind")):
        with pytest.raises(InputError, match=says), workers.cluster_pool(where):
            pass


def test_a_cluster_started_here_is_not_open_to_all():
    pytest.importorskip("dask_jobqueue")
    with pytest.warns(UserWarning, match="open: who reaches its port can run code"):
        open_to_all = workers.secured(dict(queue="gpu", security=False))
    assert open_to_all["scheduler_options"]["dashboard_address"] == "127.0.0.1:0"
    assert "security" not in open_to_all
    safe = workers.secured(dict(security=True, scheduler_options=dict(host="10.0.0.1")), "shared")
    assert safe["security"] is True and safe["shared_temp_directory"] == "shared"
    assert safe["scheduler_options"]["host"] == "10.0.0.1"


@pytest.mark.slow
def test_a_cluster_started_here_speaks_tls(tmp_path):
    "On this machine, by dask-jobqueue's own stand-in for a queue; who has no certificate is turned away."
    pytest.importorskip("cryptography")
    from dask_jobqueue.local import LocalCluster
    from distributed import Client
    given = dict(cores=1, memory="1GB", local_directory=str(tmp_path))
    given["scheduler_options"] = dict(host="127.0.0.1")
    with LocalCluster(**workers.secured(given, tmp_path)) as cluster:
        cluster.scale(jobs=1)
        assert cluster.scheduler_address.startswith("tls://127.0.0.1:")
        with Client(cluster, timeout=60) as client:
            assert client.submit(int, "3").result(timeout=60) == 3
        for door in ("tls", "tcp"):
            address = cluster.scheduler_address.replace("tls", door)
            with pytest.raises(InputError, match="no Dask scheduler at"), workers.cluster_pool(address):
                pass
    tell("Dask cluster: who has no certificate", {"turned away": 2})


@contextlib.contextmanager
def dask(folder: Path, jobs: int):
    "A scheduler and workers on this machine: its address, and the processes."
    def start(what, *arguments):
        command = [sys.executable, "-m", f"distributed.cli.{what}", *map(str, arguments), "--no-dashboard"]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                start_new_session=True)
    place = folder/"scheduler.json"
    started = [start("dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--scheduler-file", place)]
    try:
        until(place.exists)
        address = json.loads(place.read_text())["address"]
        own = ("--nthreads", 1, "--no-nanny", "--local-directory", folder)
        started += [start("dask_worker", address, *own) for _ in range(jobs)]
        yield address, started[1:]
    finally:
        for process in started:
            process.kill()


@pytest.mark.slow
def test_a_dask_cluster_of_which_a_worker_is_killed(stand_in, monkeypatch):
    pytest.importorskip("distributed")
    import psutil
    monkeypatch.chdir(ROOT)
    with dask(stand_in.parent, 2) as (address, jobs):
        g = grid(("mate", "byot"), (0, 1), epochs=25, lr=0.4)
        p = program(written(stand_in, g), "--cluster", address)
        until(lambda: len(list(stand_in.glob("*/history.csv"))) == 2)
        family = psutil.Process(jobs[0].pid).children(recursive=True)
        jobs[0].kill()
        _, alive = psutil.wait_procs(family, timeout=20)
        assert family and not alive, "what the worker had started ends with it"
        out, err = p.communicate(timeout=240)
    assert p.returncode == 0 and "4 runs in runs: 4 finished" in out, out + err
    done = [row[0] for row in log(stand_in)]
    assert done.count("start") == 4 and done.count("resume") >= 1
    tell("sweep: a worker of a Dask cluster is killed", {"the other goes on with its cell": 1})


@pytest.mark.slow
def test_no_scheduler_there(monkeypatch):
    pytest.importorskip("distributed")
    nowhere = "tcp://127.0.0.1:9"
    with pytest.raises(InputError, match=f"no Dask scheduler at {nowhere}"), workers.cluster_pool(nowhere):
        pass


# ---- the real notebook ----

REAL = dict(base=dict(dataset="digits", images_per_class=20, epochs=1, batch_size=64, precision="fp32",
                      channels_last="false"),
            runs=[dict(name="big", method="dml", model="resnet8+resnet8", exits="none"),
                  dict(method="kd", exits="none", method_args=dict(teacher="big"))])


def test_a_sweep_trains(tmp_path):
    "A teacher, which is a cohort, before its student; the notebook is kept in each run."
    s = Sweep(REAL, tmp_path/"runs").run(2)
    assert s.counts() == {"finished": 2}, [s.error(c) for c in s.cells]
    big, kd = (Run.load(c.id) for c in s.cells)
    assert "resnet8+resnet8" in big.id and kd.about["teacher"] == big.id and kd.parameters["run_id"] == kd.id
    assert big.about["epochs"] == 1
    assert all((Run.load(c.id).path/"notebook.ipynb").stat().st_size > 10_000 for c in s.cells)
    assert sorted(p.suffix for p in (tmp_path/"runs"/".sweep").iterdir()) == [".lock"]*2


@pytest.mark.slow
def test_killed_and_gone_on_gives_the_same_weights(tmp_path):
    g = dict(base=REAL["base"] | dict(epochs=6), runs=[dict(method="mate")])
    straight = experiment.run_experiment(g["base"] | dict(method="mate"), set(g["base"]), bar=False)
    p = program(written(tmp_path/"runs", g), "--workers", 1)
    cell = cells(read_grid(g))[0]
    until(lambda: (tmp_path/"runs"/cell.id/"history.csv").exists())
    p.kill()
    p.wait()
    time.sleep(3)
    assert Sweep(g).run(1).counts() == {"finished": 1}
    a, b = straight.weights(), Run.load(cell.id).weights()
    assert all((a[k] == b[k]).all() for k in a)
    tell("sweep: killed while a run trains", {"goes on, bit for bit": 1})


@contextlib.contextmanager
def small_disk(folder: Path, size: str):
    "A disk of its own in memory."
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this machine mounts nothing")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_full_disk_loses_nothing(tmp_path):
    with small_disk(tmp_path/"disk", "6m") as disk:
        s = Sweep(REAL | dict(runs=[dict(method="mate")]), disk).run(1)
        assert s.counts() == {"finished": 1}
        before = {f.name: f.read_bytes() for f in (disk/s.cells[0].id).iterdir()}
        (disk/"fill").write_bytes(b"x"*(os.statvfs(disk).f_bavail*4096 - 20_000))
        g = REAL | dict(runs=[dict(method="mate"), dict(method="byot")])
        t = Sweep(g, disk).run(1)
        assert t.counts() == {"finished": 1, "failed": 1} and "No space left" in t.error(t.cells[1])
        assert {f.name: f.read_bytes() for f in (disk/s.cells[0].id).iterdir()} == before
        (disk/"fill").unlink()
        assert Sweep(g, disk, retry=True).run(1).counts() == {"finished": 2}
        assert len(Run(disk/t.cells[1].id).outputs()) == len(Run(disk/s.cells[0].id).outputs())
    tell("full disk, in a sweep", {"one line; what was there stays; --retry goes on": 1})


@pytest.mark.slow
def test_the_notebook(tmp_path):
    def book(*arguments):
        notebooks = ROOT/"nbs"/"sweep.ipynb", tmp_path/"out.ipynb"
        command = [sys.executable, "-m", "papermill", *notebooks, *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    r = book("-y", "{base: {images_per_class: 20, epochs: 1}}", "-p", "workers", "2")
    assert r.returncode == 0, r.stderr
    text = html.unescape((tmp_path/"out.ipynb").read_text())
    assert "2 runs in runs: 2 finished" in text and "All 2 runs are finished" in text
    r = book("-p", "worker", "2")
    assert r.returncode and "unknown parameter 'worker'. Did you mean 'workers'" in r.stderr
