"""A stranger's run: its strings are shown letter by letter, nothing is executed or written outside."""
import html.parser
import json
import os
import pickle
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multiexit_nb import files, text
from multiexit_nb.checkpoints import load_checkpoint
from multiexit_nb.core import InputError, project_root
from multiexit_nb.experiment import prepare
from multiexit_nb.plugins import load_plugins
from multiexit_nb.runs import Run, damaged_runs, list_runs
from multiexit_nb.trackers import Tracker

HOSTILE = ["<img src=x onerror=alert(1)>", "<script>alert(1)</script>", "[x](javascript:alert(1))",
           "![x](http://x.org/y.png)", "$\\href{javascript:alert(1)}{x}$", "\\(x\\)", "\\\\(x\\\\)", "`<b>`",
           "a\n\n<script>", "| a | b |", "# heading", "1. list", "- list", "> quoted", "&lt;b&gt;", "<!--",
           "{{7*7}}", "https://x.org www.x.org a@x.org", "\u202eexe.gnp",
           "\x1b[31m", "%(x)s", "~~x~~ **x** _x_ __x__",
           "</code><script>", '" onmouseover="alert(1)']


class Tags(html.parser.HTMLParser):
    "The tags and the text of a page."
    def __init__(self, page: str):
        super().__init__()
        self.tags, self.text = set(), ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)

    def handle_data(self, data):
        self.text += data


def rendered(markdown: str) -> Tags:
    from nbconvert.filters.markdown_mistune import markdown2html_mistune
    return Tags(markdown2html_mistune(markdown))


@pytest.mark.parametrize("given_text", HOSTILE)
def test_markdown_shows_a_text_letter_by_letter(given_text):
    shown = text.markdown(given_text)
    pages = [(rendered(shown), {"p"}), (rendered(f"**{shown}**"), {"p", "strong"}),
             (rendered(text.code(given_text)), {"p", "code"}), (Tags(text.html(given_text)), set())]
    for page, allowed in pages:
        assert page.tags <= allowed and page.text.strip() == text.one_line(given_text)


@given(st.text(max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_text_is_text(anything):
    page = rendered("x " + text.markdown(anything))
    assert page.tags <= {"p"}
    assert " ".join(page.text.split()) == " ".join(f"x {text.one_line(anything)}".split())
    alone = rendered(text.markdown(anything))
    assert alone.tags <= {"p"}
    assert Tags(text.html(anything)).tags == set() and '"' not in text.html(anything)


def hostile_run(folder: Path, **more) -> Run:
    "A run whose every string is a script."
    bad = HOSTILE[0]
    p = dict(dataset=bad, model=bad, exits=bad, method=bad, preset=bad, epochs=1, seed=0,
             model_args={bad: bad}, method_args={bad: [bad]})
    about = dict(parameters=p | more, started=bad, commit=bad, decided=dict(why=bad), num_classes=10,
                 image_size=32)
    (folder/"bad").mkdir(parents=True)
    (folder/"bad"/"params.json").write_text(json.dumps(about))
    return Run(folder/"bad")


def test_a_hostile_run_is_listed_and_makes_nothing(tmp_path):
    run = hostile_run(tmp_path/"runs")
    assert list_runs().dataset.tolist() == [HOSTILE[0]] and "<img" not in list_runs()._repr_html_()
    with pytest.raises(InputError):
        run.model()
    with pytest.raises(InputError):
        run.data()


def test_a_result_that_names_a_script_is_damaged(tmp_path):
    run = hostile_run(tmp_path/"runs")
    test = dict(top1=[1.0])
    result = dict(select=HOSTILE[0], selected_epoch=1, last_epoch=1, test=test, test_last=test, seconds=1.0)
    (run.path/"result.json").write_text(json.dumps(result))
    with pytest.raises(InputError, match="result.json is damaged: select="):
        run.note()
    (run.path/"result.json").write_text(json.dumps(result | dict(select="last", selected_epoch=HOSTILE[0])))
    with pytest.raises(InputError, match="selected_epoch is a str"):
        run.note()
    assert list(damaged_runs()) == ["bad"]


def test_changes_by_hand_that_are_no_numbers_are_damage_and_hide_no_other_run(finished_run):
    import shutil
    other = finished_run.path.parent/"other"
    shutil.copytree(finished_run.path, other)
    for row in (f"1.0,stop,{HOSTILE[0]},2", "1.0,stop,2,1e999", "1e999,lr,0.1,0.2", "1.0,,0.1,0.2"):
        (other/"events.csv").write_text(f"epoch,name,old,value\n{row}\n")
        assert list_runs().set_index("run").state[finished_run.id] == "finished"
        assert list(damaged_runs()) == ["other"]


def test_no_pickle_is_opened(tmp_path):
    class Bomb:
        def __reduce__(self):
            return Path.write_text, (tmp_path/"exploded", "x")
    run = hostile_run(tmp_path/"runs")
    torch.save(dict(identity=Bomb()), run.checkpoint)
    for name in ("weights.safetensors", "outputs.safetensors"):
        (run.path/name).write_bytes(pickle.dumps(Bomb()))
    for opens in (lambda: load_checkpoint(run.checkpoint), run.weights, run.outputs, run.check_resume):
        try:
            opens()
        except InputError as e:
            assert "\n" not in str(e)
    assert not (tmp_path/"exploded").exists()


def test_links_lead_nowhere(tmp_path):
    "Files of a run that are links: read if they are files, never written through; a pipe is not waited for."
    import os
    outside = tmp_path/"outside"
    outside.mkdir()
    (outside/"victim").write_text("precious")
    run = hostile_run(tmp_path/"runs", tracker="tensorboard")
    for name in ("history.csv", "events.csv", "budgeted.csv"):
        (run.path/name).symlink_to(outside/"victim")
        run.write(name, lambda tmp: tmp.write_text("x"))
        assert not (run.path/name).is_symlink() and (outside/"victim").read_text() == "precious"
        (run.path/name).unlink()
    (run.path/"tensorboard").symlink_to(outside)
    with pytest.warns(UserWarning, match="tensorboard is a link"):
        Tracker(run.path, run.parameters).log([dict(epoch=1)])
    assert [f.name for f in outside.iterdir()] == ["victim"]
    os.mkfifo(run.path/"history.csv")
    with pytest.raises(InputError, match="it is not a file"):
        run.history  # noqa: B018


@pytest.mark.parametrize("numbers", ['{"epochs": 1e999}', '{"seed": 1' + "0"*400 + "}", '{"epochs": "1"}'])
def test_numbers_beyond_all_bounds(numbers, tmp_path):
    folder = tmp_path/"runs"/"bad"
    folder.mkdir(parents=True)
    (folder/"params.json").write_text('{"parameters": ' + numbers + "}")
    try:
        assert list_runs().run.tolist() == ["bad"]
        Run.load("bad").check_resume()
    except InputError as e:
        assert "\n" not in str(e)


def test_every_promise_of_the_security_page_has_its_tests():
    "Its table: a promise, and tests that are there."
    from project import ROOT, load, source
    page = next(source(c) for c in load("nbs/security.ipynb")["cells"] if c["id"] == "promises")
    promises = [line.split("|")[1:3] for line in page.splitlines()[2:]]
    assert len(promises) > 5
    for promise, tests in promises:
        named = re.findall(r"`(\w+\.py)::(\w+)`", tests)
        assert named, promise
        for file, test in named:
            there = (ROOT/"tests"/file).read_text()
            assert f"\ndef {test}(" in there, f"{promise.strip()}: no {test} in {file}"


def test_a_runs_folder_gives_no_settings(tmp_path, monkeypatch):
    "As they name plugins, which would be run by whoever works there."
    monkeypatch.delenv("MULTIEXIT_ROOT", raising=False)
    run = hostile_run(tmp_path/"runs")
    (run.path/"settings.ini").write_text("[multiexit_nb]\nplugins = stranger.py\n")
    (run.path/"stranger.py").write_text(f"from pathlib import Path\nPath({str(tmp_path/'ran')!r}).touch()\n")
    monkeypatch.chdir(run.path)
    assert project_root() != run.path
    load_plugins()
    with pytest.raises(InputError):
        prepare({"resume": "."}, {"resume"})
    assert not (tmp_path/"ran").exists()


@pytest.mark.parametrize("name", ["params.json", "result.json", "history.csv", "events.csv", "manifest.json"])
def test_a_file_without_bounds_is_not_read(name, finished_run, monkeypatch):
    "A hole of a terabyte takes no room on a disk, and hours to read: nobody begins to."
    (finished_run.path/name).touch()
    os.truncate(finished_run.path/name, 2**40)
    digest = files.digest
    monkeypatch.setattr(files, "digest", lambda f: pytest.fail() if Path(f.name).name == name else digest(f))
    with pytest.raises(InputError, match=f"{name} is damaged: it (has more than 50 MB|is no manifest)") as e:
        run = Run.load(finished_run.id)
        (run.result, run.history, run.events)  # noqa: B018
    assert "\n" not in str(e.value)
