"""Parameter sets nobody would think of, by all three roads: each trains a step, or is answered in one line
before data is loaded."""
import math
import os
from collections import Counter

import pytest
import yaml
from faults import tell as tell_all
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from papermill.cli import _resolve_type
from papermill.translators import PythonTranslator

from multiexit_nb import experiment, sweep, trainer
from multiexit_nb.core import OneLine
from multiexit_nb.experiment import PARAMETERS, prepare, read_parameters
from multiexit_nb.methods import list_methods

KINDS = dict(int="int", float="float", bool="bool", dict="dict")
CELL = "\n".join(f"{n}: {KINDS.get(getattr(p.kind, '__name__', ''), 'str')} = {p.default!r}"
                 for n, p in PARAMETERS.items() if n != "milestones") + "\nmilestones: list = [0.5, 0.75]"
BASE = dict(dataset="digits", images_per_class=14, batch_size=64, precision="fp32", channels_last="false")
COUNTS = Counter()
SETS = int(os.environ.get("FUZZ", "200"))      # by each road


# ---- what somebody might give ----

numbers = st.one_of(st.integers(-3, 300), st.sampled_from([10**30, 10**400, 2**63, 2**64, -1, 0, 1]),
                    st.floats(0, 2), st.sampled_from(
                        [math.nan, math.inf, -math.inf, 1e308, 1e-320, -0.0, 1e-3]))
words = st.sampled_from(["", "no", "1e-3", "2026-11-21", "1:30", "007", "nan", ".inf", "true", "None", "null",
                         "[", "{a: 1}", "[0.5]", "tiny",
                         "~", "a b", "x"*300, "../x", "ü", "'", '"', "\\", "#", "None ", "imagefolder:",
                         "imagefolder:~nobody", "é́"])
plain = st.one_of(numbers, words, st.booleans(), st.none(), st.text(max_size=8))
wild = st.one_of(plain, st.lists(plain, max_size=3),
                 st.dictionaries(words | st.integers(0, 3), plain, max_size=2))
USUAL = dict(
    dataset=st.just("digits"), images_per_class=st.sampled_from([2, 14, 20]),
    image_size=st.sampled_from([0, 8, 16, 32, 33]),
    model=st.sampled_from(["tiny", "tiny+tiny", "resnet8"]),
    exits=st.sampled_from(["sepconv", "conv", "linear", "none"]),
    model_args=st.sampled_from([{}, {"at": [1, 2]}, {"at": [9]}, {"width": 4}, {"links": True},
                                {"num_classes": 3}]),
    method=st.sampled_from(list_methods()), preset=st.sampled_from(["default", "paper", "papers"]),
    method_args=st.dictionaries(st.sampled_from(
        ["alpha", "temperature", "teacher", "weights", "preset", "mu"]), wild, max_size=2),
    recipe=st.sampled_from(["", "eed", "dih", "dbt-cifar", "none"]), epochs=st.integers(1, 3),
    batch_size=st.sampled_from([1, 16, 64, 10**6]),
    lr=st.floats(1e-4, 1), momentum=st.floats(0, 0.99), nesterov=st.booleans(),
    weight_decay=st.floats(0, 0.1), decay=st.floats(0, 1),
    schedule=st.sampled_from(["milestones", "cosine", "constant"]),
    milestones=st.lists(st.floats(0.1, 9), max_size=3),
    warmup=st.floats(0, 3), label_smoothing=st.floats(0, 0.9), clip_norm=st.floats(0, 9),
    unlabelled_ratio=st.sampled_from([0, 1, 0.5]),
    select=st.sampled_from(["best-val", "last", "best-test"]), seed=st.integers(0, 2**32 - 1),
    split_seed=st.integers(0, 2**63 - 1),
    device=st.sampled_from(["auto", "cpu", "gpu", "cuda:9", "meta"]),
    tracker=st.sampled_from(["", "tensorbord"]), run_id=words)
# slow to try, or able to reach out of here, where they are wild
NEVER = {"compile", "resume", "tracker", "dataset", "model"}

@st.composite
def parameter_sets(draw):
    "A few parameters, most of them as they might be, one of them perhaps anything at all."
    names = draw(st.lists(st.sampled_from(sorted(USUAL)), max_size=4, unique=True))
    p = {n: draw(USUAL[n]) for n in names}
    if draw(st.integers(0, 2)) == 0:
        p[draw(st.sampled_from(sorted(set(PARAMETERS) - NEVER)))] = draw(wild)
    if draw(st.integers(0, 9)) == 0:
        p[draw(st.sampled_from(["learning-rate", "batch size", "class", "", "lr.x", "epoch", "# lr",
                                "lr = 3 #", "lr; seed", "_"]))] = draw(plain)
    return p


# ---- what comes of it ----

def same(given, recorded) -> bool:
    "Whether a value is recorded as it was given: text may have been read, nothing else may change."
    if isinstance(given, list | tuple) and isinstance(recorded, list | tuple):
        return len(given) == len(recorded) and all(map(same, given, recorded))
    if isinstance(given, dict) and isinstance(recorded, dict):
        return ({str(k): v for k, v in given.items()}.keys() == recorded.keys()
                and all(same(v, recorded[str(k)]) for k, v in given.items()))
    if given is None and recorded == "" or type(given) is type(recorded) and given == recorded:
        return True
    if isinstance(given, str) and not isinstance(recorded, str):
        return same(yaml.safe_load(given) if not isinstance(recorded, float) else float(given), recorded)
    return (given == recorded or not isinstance(given, bool) and isinstance(given, int)
            and str(given) == recorded)

def outcome(read, given, loaded: list) -> str:
    "What happens to a parameter set on its road: `read` answers parameters and which of them were given."
    try:
        p, explicit = read()
        e = prepare(p, explicit)
        assert explicit == set(given), f"dropped: {set(given) ^ explicit}"
        for n, v in given.items():
            assert same(v, e.parameters[n]), f"{n}={v!r} was recorded as {e.parameters[n]!r}"
        training = e.start(e.load(), bar=False)
        next(training)
        return "trained"
    except SyntaxError:
        return "no Python: the kernel says so"
    except OneLine as e:
        assert "\n" not in str(e) and len(str(e)) < 3000
        return "one line" if not loaded else f"one line, with data ({type(e).__name__}: {str(e)[:40]})"


@pytest.fixture
def loaded(monkeypatch, tmp_path):
    "Grows when data are loaded; the data of one experiment serve all that ask for the same."
    seen, real = [], experiment.data_of
    monkeypatch.setattr(experiment, "data_of", lambda p: (seen.append(1), real(p))[1])
    return seen

def tell(road: str, what: str):
    COUNTS[road, what] += 1
    event(what)

@pytest.fixture
def counts(request):
    "What came of a test's sets: told to the table of faults, and never all refused."
    COUNTS.clear()
    yield
    road = request.node.name.removeprefix("test_").replace("_", " ")
    told = {what: n for (_, what), n in COUNTS.items()}
    print(*(f"\n{road:13} {n:5}  {what}" for what, n in sorted(told.items())))
    tell_all(f"a random set of parameters ({road})", told)
    assert sum(told.values()) >= 0.85*SETS and told["trained"] >= 0.075*SETS

quietly = settings(max_examples=SETS, deadline=None, database=None, derandomize=True, print_blob=False,
                   suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


def papermill_cell(p: dict) -> tuple[dict, set]:
    "As papermill: the cell it would write, run by a kernel, read by the notebook."
    source = PythonTranslator.codify(p)
    # a kernel stops at a SyntaxError and a NameError
    exec(compile(CELL + "\n" + source, "cell", "exec"), {})
    return read_parameters([CELL, source], PARAMETERS)


@pytest.mark.slow
@quietly
@given(p=parameter_sets(), texts=st.booleans())
def test_papermill(p, texts, loaded, counts):
    p = BASE | p
    if texts:       # -p name value, as a shell hands it over
        p = {n: _resolve_type(str(v)) for n, v in p.items()}
    loaded.clear()
    try:
        what = outcome(lambda: papermill_cell(p), p, loaded)
    except (NameError, AttributeError, TypeError, ValueError) as e:
        if e.__traceback__.tb_next.tb_next.tb_next is None or "cell" not in str(
                e.__traceback__.tb_next.tb_next.tb_next.tb_frame):
            raise
        what = "no Python: the kernel says so"
    late = what.startswith("one line, with data")     # how large the smallest class is, only the data know
    assert not late or "Diverged" in what or "images_per_class" in what, what
    tell("papermill", what)


@pytest.mark.slow
@quietly
@given(p=parameter_sets(), texts=st.booleans())
def test_command_line(p, texts, loaded, counts):
    p = {str(n): v for n, v in (BASE | p).items()}
    if texts:
        p = {n: str(v) for n, v in p.items() if not str(v).startswith("-")}
        argv = [a for n, v in p.items() for a in ("-p", n, v) if not n.startswith("-")]
    else:
        argv = ["-y", yaml.safe_dump(p, allow_unicode=True)]
    loaded.clear()
    tell("command line", outcome(lambda: trainer.arguments(argv), p, loaded))


@pytest.mark.slow
@quietly
@given(p=parameter_sets())
def test_sweep(p, loaded, counts, tmp_path):
    p = {n: v for n, v in (BASE | p).items() if n not in ("run_id", "resume")}
    grid = tmp_path/"g.yaml"
    grid.write_text(yaml.safe_dump(dict(base=p), allow_unicode=True), encoding="utf-8")

    def read():
        cell, = sweep.checked(sweep.read_grid(grid))
        return papermill_cell(yaml.safe_load(yaml.safe_dump(cell.parameters)))
    loaded.clear()
    tell("sweep", outcome(read, p, loaded))

