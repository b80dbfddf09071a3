"Small finished runs: each set of parameters is trained once in a session, and copied to whoever asks for it."
import atexit
import functools
import json
import shutil
import tempfile
from pathlib import Path

import pytest

TINY = dict(dataset="digits", images_per_class=14, model="tiny", exits="sepconv", method="mate", epochs=2,
            batch_size=64, precision="fp32", channels_last="false")


@functools.cache
def _trained() -> Path:
    "The folder of what was trained in this session."
    folder = tempfile.mkdtemp(prefix="tiny-runs-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


@functools.cache
def _train(given: str) -> Path:
    "Train a run of parameters in JSON; its folder."
    from multiexit_nb.experiment import run_experiment
    p = json.loads(given)
    with pytest.MonkeyPatch.context() as m:
        m.setenv("MULTIEXIT_RUNS", str(_trained()))
        m.setenv("MULTIEXIT_DEVICE", "cpu")
        run = run_experiment(p, set(p), bar=False)
    return run.path


def make_run(folder, **p):
    "A finished run of TINY with changes, in a folder of runs; `teacher` names another that was made so."
    from multiexit_nb.runs import Run
    trained = _train(json.dumps(TINY | p, sort_keys=True))
    where = Path(folder)/trained.name
    if not where.exists():
        shutil.copytree(trained, where)
    return Run(where)
