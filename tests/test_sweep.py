"""Sweeps: grids, workers that die, sweeps that are killed, full disks, clusters. The quick tests train nothing: a stand-in for train.ipynb counts epochs in the same files."""
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
import yaml
from lab_page import until

from multiexit_nb import experiment, sweep, workers
from multiexit_nb.core import InputError
from multiexit_nb.grid import Cell, RunsFolder, cells, read_grid
from multiexit_nb.runs import Run, check_id
from multiexit_nb.sweep import Sweep, checked

ROOT = Path(__file__).resolve().parent.parent
STAND_IN = """
import json, os, pathlib, time
class InputError(Exception): pass
top = pathlib.Path(os.environ["MULTIEXIT_RUNS"]); run = top/(resume or run_id); run.mkdir(exist_ok=True)
with open(top/"log", "a") as f: f.write(f"{'resume' if resume else 'start'} {run.name} {os.environ.get('OMP_NUM_THREADS')}\\n")
if not resume: (run/"params.json").write_text(json.dumps(dict(parameters=dict(epochs=epochs, lr=lr, method=method))))
p = json.loads((run/"params.json").read_text())["parameters"]
if p["method"] == "dks" and not (top/"mended").exists(): raise InputError("dks is out of luck")
history = run/"history.csv"
rows = history.read_text().splitlines()[1:] if history.exists() else []
for epoch in range(len(rows)//2 + 1, p["epochs"] + 1):
    time.sleep(p["lr"])
    rows += [f"{epoch},train,,seconds,{p['lr']}", f"{epoch},val,1,top1,{10*epoch}"]
    tmp = run/"tmp"; tmp.write_text("\\n".join(["epoch,split,exit,metric,value", *rows])); os.replace(tmp, history)
(run/"result.json").write_text(json.dumps(dict(epochs=epoch)))
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    "A project whose train.ipynb takes the same parameters and only counts."
    real = nbformat.read(ROOT/"nbs"/"train.ipynb", as_version=4)
    nb = nbformat.v4.new_notebook(cells=[next(c for c in real.cells if "parameters" in c.metadata.get("tags", [])), nbformat.v4.new_code_cell(STAND_IN)],
                                  metadata=real.metadata)
    (tmp_path/"project"/"nbs").mkdir(parents=True)
    nbformat.write(nb, tmp_path/"project"/"nbs"/"train.ipynb")
    monkeypatch.setenv("MULTIEXIT_ROOT", str(tmp_path/"project"))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    (tmp_path/"runs").mkdir()
    return tmp_path/"runs"


def grid(methods=("branchynet", "mate"), seeds=(0, 1), **base):
    return dict(base=dict(epochs=2, lr=0.01, precision="fp32", channels_last="false") | base, runs=[dict(method=m) for m in methods], grid=dict(seed=list(seeds)))


def log(folder): return [line.split() for line in (folder/"log").read_text().splitlines()]


def program(*args, **kw):
    return subprocess.Popen([sys.executable, "-m", "multiexit_nb.sweep", *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            cwd=ROOT, **kw)


# ---- grids ----

def test_cells_of_a_grid():
    g = read_grid(dict(base=dict(dataset="parquet:/x/cifar 100", epochs=2), runs=[dict(method="mate"), dict(method="byot", epochs=3)], grid=dict(seed=[0, 1], lr=[1, 2])))
    found = cells(g)
    assert [tuple(c.parameters[k] for k in ("seed", "lr", "method", "epochs")) for c in found] == [
        (s, lr, m, e) for s in (0, 1) for lr in (1, 2) for m, e in (("mate", 2), ("byot", 3))]
    assert len({c.id for c in found}) == 8 and all(re.fullmatch(r"cifar_100-tiny-(mate|byot)-s[01]-[0-9a-f]{10}", c.id) for c in found)
    assert cells(read_grid(dict(g, runs=g["runs"]*2))) == found, "a cell that occurs twice is one"
    again = cells(read_grid(dict(base=dict(epochs=3, lr=2, dataset="parquet:/x/cifar 100"), runs=[dict(method="byot")], grid=dict(seed=[1]))))
    assert again[0].id == found[-1].id, "the same parameters are the same run, from any grid"
    assert [c.parameters for c in cells(read_grid({}))] == [{}]


def test_teachers_come_first_and_share_the_seed():
    lines = [dict(method="kd", method_args=dict(teacher="big", alpha=0.5)), dict(name="big", method="baseline"), dict(method="kd", method_args=dict(teacher="elsewhere"))]
    found = cells(read_grid(dict(runs=lines, grid=dict(seed=[3, 4]))))
    by = {(c.parameters["method"], c.parameters["seed"], bool(c.after)): c for c in found}
    for seed in (3, 4):
        teacher, student, other = by["baseline", seed, False], by["kd", seed, True], by["kd", seed, False]
        assert student.after == (teacher.id,) and student.parameters["method_args"] == dict(teacher=teacher.id, alpha=0.5)
        assert found.index(teacher) < found.index(student) and other.parameters["method_args"]["teacher"] == "elsewhere"
    with pytest.raises(InputError, match="wait for each other"): cells(read_grid(dict(runs=[
        dict(name="a", method="kd", method_args=dict(teacher="b")), dict(name="b", method="kd", method_args=dict(teacher="a"))])))


@pytest.mark.parametrize("wrong, says", [
    ("no/such.yaml", "no grid at no/such.yaml"), (dict(runs=3), "runs=3: expected a list of maps"), (dict(gird={}), "entry='gird'"), (dict(grid=dict(seed=3)), "seed=3: expected a list"),
    (dict(runs=[dict(methd="mate")]), "unknown parameter 'methd'. Did you mean 'method'"), (dict(base=dict(lr="big")), "lr='big': expected number"),
    (dict(base=dict(run_id="x")), "a sweep names its runs itself"), (dict(runs=[dict(method="mat")]), "digits-tiny-mat-s0: unknown method 'mat'"),
    (dict(base=dict(method_args=dict(alhpa=1))), "Did you mean 'alpha'"), (dict(runs=[dict(method="kd", exits="none")]), "kd needs a teacher"),
    (dict(base=dict(exits="none"), runs=[dict(method="kd", method_args=dict(teacher="bog")), dict(name="big", method="baseline")]), "unknown run 'bog'")])
def test_wrong_grids_are_one_line_before_anything_starts(wrong, says, tmp_path, capsys):
    with pytest.raises(InputError, match=re.escape(says)) as e: checked(read_grid(wrong))
    assert "\n" not in str(e.value) and not (tmp_path/"runs").exists()
    if isinstance(wrong, dict):
        (tmp_path/"g.yaml").write_text(yaml.safe_dump(wrong))
        assert sweep.main([str(tmp_path/"g.yaml")]) == 1
        err = capsys.readouterr().err
        assert err.startswith("InputError: ") and err.count("\n") == 1


NO_GRID = ["base: [1]", "base: words", "runs: words", "runs: [a]", "runs: {a: 1}", "grid: [1]", "grid: words", "grid: {seed: 3}", "1: 2",
           "base: {1: 2}", "runs: [{method_args: 3}]", "base: {method_args: [1]}", "- 1", "3", "", "base: {lr: 1e400}", "\x00"]


@pytest.mark.parametrize("text", NO_GRID)
def test_maps_that_are_none_are_one_line(text, tmp_path):
    (tmp_path/"g.yaml").write_text(text)
    with pytest.raises(InputError) as e:
        checked(read_grid(tmp_path/"g.yaml"))
    assert "\n" not in str(e.value)


def test_every_cell_of_every_grid_has_an_id_that_a_run_can_have():
    files = [*(ROOT/"data").glob("sweeps/*/*.yaml")]
    ids = [c.id for f in files for c in cells(read_grid(f))]
    assert any("+" in i for i in ids) and all(check_id(i) == i for i in ids)


def test_a_cohort_is_trained_in_a_sweep(tmp_path):
    "Its name has a plus, and so has its run's."
    p = dict(dataset="digits", images_per_class=14, epochs=1, batch_size=64, precision="fp32", channels_last="false", exits="none")
    s = Sweep(dict(base=p, runs=[dict(method="dml", model="resnet8+resnet8")]), tmp_path/"runs").run(1)
    assert s.counts() == {"finished": 1} and "resnet8+resnet8" in s.cells[0].id


def test_a_damaged_run_is_a_failed_cell_with_its_line(stand_in):
    s = Sweep(grid(("mate",), (0,)), stand_in).run(1, every=0.05)
    (stand_in/s.cells[0].id/"manifest.json").write_text('{"result.json": ["x"]}')
    (stand_in/s.cells[0].id/"result.json").unlink()
    again = Sweep(grid(("mate",), (0,)), stand_in)
    assert again.counts() == {"failed": 1} and "result.json is damaged: it is missing" in again.error(again.cells[0])


def test_a_cluster_started_here_is_not_open_to_all():
    pytest.importorskip("dask_jobqueue")
    with pytest.warns(UserWarning, match="open: who reaches its port can run code"):
        open_to_all = workers.secured(dict(queue="gpu", security=False))
    assert open_to_all["scheduler_options"]["dashboard_address"] == "127.0.0.1:0" and "security" not in open_to_all
    safe = workers.secured(dict(security=True, scheduler_options=dict(host="10.0.0.1")), "shared")
    assert safe["security"] is True and safe["shared_temp_directory"] == "shared" and safe["scheduler_options"]["host"] == "10.0.0.1"


def test_not_yaml(tmp_path, capsys):
    (tmp_path/"g.yaml").write_text("{}")
    assert sweep.main([str(tmp_path/"g.yaml"), "-p", "epochs", "["]) == 1 and capsys.readouterr().err.startswith("InputError: epochs: '[' is not YAML")
    for text, says in (("a: [", "is not YAML"), ("just words", "expected a map")):
        (tmp_path/"g.yaml").write_text(text)
        with pytest.raises(InputError, match=says): read_grid(tmp_path/"g.yaml")


# ---- work ----

def test_one_failure_does_not_stop_the_rest_and_a_rerun_does_what_is_left(stand_in, capsys, tmp_path):
    (tmp_path/"g.yaml").write_text(yaml.safe_dump(grid(("mate", "dks"), (0, 1))))
    assert sweep.main([str(tmp_path/"g.yaml"), "--workers", "2"]) == 1
    out = capsys.readouterr().out
    assert "4 runs in runs: 2 finished, 2 failed" in out and out.count("InputError: dks is out of luck") == 4     # when it happened, and in the end
    s = Sweep(tmp_path/"g.yaml")
    t = s.table()
    assert t.columns.tolist() == ["method", "seed", "state", "epoch", "left", "top1", "error"]
    assert dict(zip(zip(t.method, t.seed, strict=True), zip(t.state, t.epoch, t.top1, strict=True), strict=True)) == {
        ("mate", 0): ("finished", "2/2", 20.0), ("mate", 1): ("finished", "2/2", 20.0), ("dks", 0): ("failed", "", ""), ("dks", 1): ("failed", "", "")}
    assert {row[2] for row in log(stand_in)} == {str(max(1, os.cpu_count()//2))}
    assert sweep.main([str(tmp_path/"g.yaml")]) == 1 and len(log(stand_in)) == 4, "what is finished is skipped, and so is what failed"
    (stand_in/"mended").touch()
    capsys.readouterr()
    assert sweep.main([str(tmp_path/"g.yaml"), "--list"]) == 0 and "2 finished, 2 failed" in capsys.readouterr().out
    assert sweep.main([str(tmp_path/"g.yaml"), "--retry"]) == 0 and len(log(stand_in)) == 6
    assert "4 runs in runs: 4 finished" in capsys.readouterr().out and not list((stand_in/".sweep").glob("*.failed"))


def test_a_killed_worker_and_a_killed_kernel_are_survived(stand_in):
    import psutil
    p = program(_file(stand_in, grid(("mate",), (0,), epochs=20, lr=0.15)), "--workers", 1)
    only = cells(read_grid(grid(("mate",), (0,), epochs=20, lr=0.15)))[0]
    history = stand_in/only.id/"history.csv"
    for least in (1, 6):
        until(lambda n=least: history.exists() and history.read_text().count("top1") >= n)
        papermill = next(c for c in psutil.Process(p.pid).children() if only.id in " ".join(c.cmdline()))
        (papermill if least == 1 else papermill.children()[0]).kill()
    out, err = p.communicate(timeout=90)
    assert p.returncode == 0, out + err
    assert [row[0] for row in log(stand_in)] == ["start", "resume", "resume"] and history.read_text().count("top1") == 20


def test_dies_again_and_again(stand_in, monkeypatch):
    monkeypatch.setattr(sweep, "_papermill", lambda *a: (-9, ""))
    s = Sweep(grid(("mate",), (0,)), stand_in).run(1, every=0.01)
    assert s.counts() == {"failed": 1} and "died 3 times" in s.error(s.cells[0])
    assert Sweep(grid(("mate",), (0,)), stand_in).counts() == {"waiting": 1}, "another sweep tries again"


@pytest.mark.slow
def test_a_killed_sweep_leaves_nobody_behind_and_goes_on(stand_in):
    import psutil
    g = grid(("mate", "byot"), (0,), epochs=12, lr=0.25)
    p = program(_file(stand_in, g), "--workers", 2)
    until(lambda: len(list(stand_in.glob("*/history.csv"))) == 2)
    family = psutil.Process(p.pid).children(recursive=True)
    p.send_signal(signal.SIGKILL)
    p.wait()
    _, alive = psutil.wait_procs(family, timeout=20)
    assert len(family) >= 4 and not alive
    assert Sweep(g, stand_in).counts() == {"interrupted": 2}
    q = program(_file(stand_in, g), "--workers", 2)
    out, err = q.communicate(timeout=90)
    assert q.returncode == 0 and "2 finished" in out, err
    assert sorted(row[0] for row in log(stand_in)) == ["resume", "resume", "start", "start"]


@pytest.mark.slow
def test_two_sweeps_over_one_folder_share_the_work(stand_in):
    g = grid(("mate", "byot"), (0, 1), epochs=3, lr=0.3)
    both = [program(_file(stand_in, g), "--workers", 1) for _ in range(2)]
    for p in both:
        out, err = p.communicate(timeout=120)
        assert p.returncode == 0 and "4 finished" in out, err
    assert sorted(row[1] for row in log(stand_in)) == sorted(c.id for c in cells(read_grid(g))), "every cell once"


def test_a_glance_of_another_sweep_does_not_end_this_one(tmp_path, monkeypatch):
    "Who looks at a cell holds its lock for a moment: it seems to be worked on, and is waiting the next time."
    def work(cell, folder, env, more):
        (Path(folder)/cell.id).mkdir()
        (Path(folder)/cell.id/"result.json").write_text("{}")
        return "finished"
    monkeypatch.setattr(sweep, "work", work)
    s = Sweep(grid(("mate",), (0,)), tmp_path)
    real, glances = s.state, iter(["running"])
    s.state = lambda c: next(glances, None) or real(c)
    assert s.run(1, every=0.01).counts() == {"finished": 1}


@pytest.mark.slow
def test_interrupted_by_hand(stand_in):
    heard = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)     # it is ignored by what a shell starts in the background, such as these tests
    p = program(_file(stand_in, grid(("mate",), (0,), epochs=50, lr=0.3)), "--workers", 1, preexec_fn=heard)
    until(lambda: list(stand_in.glob("*/history.csv")))
    p.send_signal(signal.SIGINT)
    _, err = p.communicate(timeout=30)
    assert p.returncode == 130 and err == "interrupted: the same command goes on from the checkpoints\n"


def _file(folder: Path, g: dict) -> Path:
    file = folder.parent/"grid.yaml"
    file.write_text(yaml.safe_dump(g))
    return file


def test_students_of_a_failed_teacher_are_blocked(stand_in):
    g = grid((), (0,)) | dict(runs=[dict(name="t", method="dks"), dict(method="kd", exits="none", method_args=dict(teacher="t")), dict(method="mate")])
    s = Sweep(g, stand_in).run(2, every=0.05)
    assert [s.state(c) for c in s.cells] == ["failed", "blocked", "finished"] or s.counts() == {"finished": 1, "blocked": 1, "failed": 1}


def test_what_auto_comes_to_holds_for_all_of_a_kind(stand_in):
    s = Sweep(dict(base=dict(model="tiny"), grid=dict(seed=[0, 1])), stand_in)
    a, b = s.cells
    assert s.decided(a) == {}
    s.running[a.id] = None
    assert s.decided(b) is None, "it is being measured"
    (stand_in/a.id).mkdir()
    (stand_in/a.id/"params.json").write_text(json.dumps(dict(parameters={}, decided=dict(precision="fp32", channels_last=True, why="measured", threads=2))))
    assert sweep.taken_over(s.decided(b)) == (dict(precision="fp32", channels_last="true"), dict(MULTIEXIT_THREADS="2"))
    assert sweep.taken_over(dict(precision="fp32", channels_last=True, threads=0))[1] == {} == sweep.taken_over({})[0]
    assert Sweep(grid(), stand_in).decided(Sweep(grid(), stand_in).cells[0]) == {}


def test_a_lock_ends_with_its_process(tmp_path):
    folder, cell = RunsFolder(tmp_path), Cell({}, "x")
    code = f"import sys,time; from multiexit_nb.grid import Cell, RunsFolder; from pathlib import Path; lock = RunsFolder(Path({str(tmp_path)!r})).lock(Cell({{}}, 'x')); lock.acquire(); print('held', flush=True); time.sleep(60)"
    p = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert p.stdout.readline() == "held\n" and folder.state(cell) == "running" and sweep.work(cell, str(tmp_path)) == "taken"
    p.kill(); p.wait()
    assert folder.state(cell) == "waiting"


def test_seats_threads_and_gpus(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with workers.local_pool(3, []) as (_, seats):
        assert [s["CUDA_VISIBLE_DEVICES"] for s in seats] == ["2", "5", "2"] and {s["OMP_NUM_THREADS"] for s in seats} == {str(max(1, os.cpu_count()//3))}
    assert workers.seat_env(seats[0], "cpu") == {"OMP_NUM_THREADS": seats[0]["OMP_NUM_THREADS"]} and "CUDA_VISIBLE_DEVICES" in workers.seat_env(seats[0])
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    many = ["auto"]*9
    assert workers.num_workers(many) == 3 and workers.num_workers(many[:2]) == 2
    assert workers.num_workers(["cpu"]*99) <= os.cpu_count()
    with pytest.raises(InputError, match="workers=-1"), workers.local_pool(-1, []): pass


# ---- clusters ----

def test_the_job_that_a_cluster_would_get(tmp_path):
    pytest.importorskip("dask_jobqueue")
    (tmp_path/"slurm.yaml").write_text("kind: slurm\njobs: 4\ncores: 8\nmemory: 32GB\nqueue: gpu\nwalltime: '12:00:00'\njob_extra_directives: ['--gres=gpu:1']")
    with workers.cluster_of(workers.read_cluster(str(tmp_path/"slurm.yaml"))) as cluster: script = cluster.job_script()
    for line in ("#SBATCH -p gpu", "#SBATCH --cpus-per-task=8", "#SBATCH --mem=30G", "#SBATCH -t 12:00:00", "#SBATCH --gres=gpu:1", "distributed.cli.dask_worker"):
        assert line in script
    with pytest.raises(InputError, match="unknown kind of cluster 'slrum'. Did you mean 'slurm'"): workers.cluster_of(dict(kind="slrum"))
    with pytest.raises(InputError, match="pbs cluster"): workers.cluster_of(dict(kind="pbs", coars=3))
    for where, says in (("nowhere.yaml", "expected the address of a Dask scheduler"), (str(tmp_path/"bad.yaml"), "a map with kind")):
        (tmp_path/"bad.yaml").write_text("jobs: 3")
        with pytest.raises(InputError, match=says), workers.cluster_pool(where): pass


@pytest.mark.slow
def test_a_dask_cluster_of_which_a_worker_is_killed(stand_in, monkeypatch):
    pytest.importorskip("distributed")
    import psutil
    monkeypatch.chdir(ROOT)
    dask = lambda *a: subprocess.Popen([sys.executable, "-m", "distributed.cli." + a[0], *a[1:]], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    place = stand_in.parent/"scheduler.json"
    started = [dask("dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(place))]
    try:
        until(place.exists)
        address = json.loads(place.read_text())["address"]
        started += [dask("dask_worker", address, "--nthreads", "1", "--no-dashboard", "--no-nanny", "--local-directory", str(stand_in.parent)) for _ in range(2)]
        g = grid(("mate", "byot"), (0, 1), epochs=10, lr=0.4)
        p = program(_file(stand_in, g), "--cluster", address)
        until(lambda: len(list(stand_in.glob("*/history.csv"))) == 2)
        family = psutil.Process(started[1].pid).children(recursive=True)
        started[1].kill()
        assert family and not psutil.wait_procs(family, timeout=20)[1], "what the worker had started ends with it"
        out, err = p.communicate(timeout=240)
        assert p.returncode == 0 and "4 runs in runs: 4 finished" in out, out + err
        done = [row[:2] for row in log(stand_in)]
        assert sum(k == "start" for k, _ in done) == 4 and sum(k == "resume" for k, _ in done) >= 1
    finally:
        for s in started: s.kill()
    monkeypatch.setattr(sys, "argv", ["x"])
    with pytest.raises(InputError, match="no Dask scheduler at tcp://127.0.0.1:9"), workers.cluster_pool("tcp://127.0.0.1:9"): pass


# ---- the real notebook ----

REAL = dict(base=dict(dataset="digits", images_per_class=20, epochs=2, batch_size=64, precision="fp32", channels_last="false"),
            runs=[dict(name="big", method="baseline", exits="none"), dict(method="kd", exits="none", method_args=dict(teacher="big")), dict(method="mate")])


def test_a_sweep_trains(tmp_path):
    "Two runs of train.ipynb at a time, a teacher before its student, and the notebook kept in each run."
    s = Sweep(REAL, tmp_path/"runs").run(2)
    assert s.counts() == {"finished": 3}
    big, kd = (Run.load(c.id) for c in s.cells[:2])
    assert kd.about["teacher"] == big.id and big.about["epochs"] == 2 and kd.parameters["run_id"] == kd.id
    assert all((Run.load(c.id).path/"notebook.ipynb").stat().st_size > 10_000 for c in s.cells)
    assert sorted(p.suffix for p in (tmp_path/"runs"/".sweep").iterdir()) == [".lock"]*3


@pytest.mark.slow
def test_killed_and_gone_on_gives_the_same_weights(tmp_path):
    g = dict(base=REAL["base"] | dict(epochs=6), runs=[dict(method="mate")])
    straight = experiment.run_experiment(g["base"] | dict(method="mate"), set(g["base"]), bar=False)
    p = program(_file(tmp_path/"runs", g), "--workers", 1)
    cell = cells(read_grid(g))[0]
    until(lambda: (tmp_path/"runs"/cell.id/"history.csv").exists())
    p.kill(); p.wait()
    time.sleep(3)
    assert Sweep(g).run(1).counts() == {"finished": 1}
    a, b = straight.weights(), Run.load(cell.id).weights()
    assert all((a[k] == b[k]).all() for k in a)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_full_disk_loses_nothing(tmp_path):
    disk = tmp_path/"disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", disk], capture_output=True).returncode: pytest.skip("this machine mounts nothing")
    try:
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
    finally: subprocess.run(["umount", disk], check=True)


@pytest.mark.slow
def test_the_notebook(tmp_path):
    book = lambda *a: subprocess.run([sys.executable, "-m", "papermill", ROOT/"nbs"/"sweep.ipynb", tmp_path/"out.ipynb", *a], capture_output=True, text=True, cwd=ROOT)
    r = book("-y", "{base: {images_per_class: 20, epochs: 1}}", "-p", "workers", "2")
    assert r.returncode == 0, r.stderr
    text = (tmp_path/"out.ipynb").read_text()
    assert "2 runs in runs: 2 finished" in text and "All 2 runs are finished" in text
    r = book("-p", "worker", "2")
    assert r.returncode and "unknown parameter 'worker'. Did you mean 'workers'" in r.stderr
