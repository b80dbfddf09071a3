"A run answers pictures as its own test set was answered, whatever form they come in."
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from multiexit_nb.core import InputError
from multiexit_nb.policies import as_policy, simulate
from multiexit_nb.predict import Answer, as_pixels
from multiexit_nb.runs import Run


def between(values: torch.Tensor) -> float:
    "A threshold near the median, in the widest gap that is there: rounding decides nothing."
    middle = values.sort().values[len(values)*2//5:len(values)*3//5]
    i = int(middle.diff().argmax())
    return float(middle[i:i + 2].mean())


@pytest.fixture
def asked(tiny_run):
    "A run that has learned something, a policy of three thresholds, and the pixels of eight test images."
    run = tiny_run(epochs=10)
    test = run.data().test
    policy = as_policy([*map(between, run.outputs().confidence("max")[:2]), 2.], 4)
    return run, policy, test.source.images[test.rows[:8]]


def test_answers_are_those_of_the_test_outputs(asked):
    run, policy, _ = asked
    images, outputs = run.data().test, run.outputs()
    answers = run.predict(images.source.images[images.rows], policy)
    labels, exits = simulate(outputs, policy)
    assert [a.exit for a in answers] == exits.tolist() and len(set(exits.tolist())) > 1
    assert [a.label for a in answers] == [str(k) for k in labels.tolist()]
    p = outputs.probabilities(0)[answers[0].exit - 1]
    assert list(answers[0].probabilities.values()) == pytest.approx(p.tolist(), abs=1e-3)
    costs = run.model().cost(earlier_heads=True)
    assert all(a.cost == costs[a.exit - 1] and a.share == a.cost/costs[-1] for a in answers)


def test_every_form_of_a_picture_is_answered_alike(asked, tmp_path):
    run, policy, pixels = asked
    ask = run.predictor(policy)
    array = pixels[0].permute(1, 2, 0).numpy()
    Image.fromarray(array).save(tmp_path/"digit.png")
    forms = [tmp_path/"digit.png", str(tmp_path/"digit.png"), (tmp_path/"digit.png").read_bytes(),
             Image.fromarray(array), array, array.astype(np.int64), array/255, pixels[0], pixels[0]/255]
    first, *others = map(ask, forms)
    assert isinstance(first, Answer) and all(other == first for other in others)
    batch = ask(pixels)
    assert ask(list(pixels)) == batch == ask(pixels.permute(0, 2, 3, 1).numpy()) and len(batch) == 8
    assert batch[0].label == first.label and ask([]) == []
    assert f"by exit {first.exit}" in repr(first)


def test_a_picture_of_another_size_goes_the_way_of_the_data_set(asked):
    run, policy, _ = asked
    wide = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    assert tuple(as_pixels(wide, 32, side=40).shape) == (3, 32, 32)
    assert run.predict(wide, policy) == run.predict(as_pixels(wide, 32), policy)


@pytest.mark.parametrize("wrong, said", [
    ("no_such_picture.png", "cannot decode"), (np.zeros((5, 5, 2)), "image of shape"), (3.5, "image='float'"),
    (np.full((5, 5), 2.), "pixels="), (torch.full((3, 4, 4), -1), "pixels="), (np.zeros((0, 4)), "shape"),
    (np.full((4, 4), np.nan), "pixels="),
])
def test_what_is_no_picture_is_one_line(wrong, said):
    with pytest.raises(InputError, match=said):
        as_pixels(wrong, 32)


def test_without_a_policy_nothing_is_lost_on_the_validation_images(finished_run):
    val = finished_run.outputs("val")
    answers, _ = simulate(val, finished_run.predictor().policy)
    assert (answers == val.labels).sum() >= val.right[-1].sum()


def test_the_data_set_need_not_be_there(tiny_run, tmp_path, monkeypatch):
    folder = tmp_path/"mine"
    for name in ("ant", "bee"):
        (folder/name).mkdir(parents=True)
        for i in range(12):
            noise = np.random.default_rng(i).integers(0, 256, (20, 20, 3), np.uint8)
            Image.fromarray(noise).save(folder/name/f"{i}.png")
    run = tiny_run(dataset=f"imagefolder:{folder}", images_per_class=0, image_size=16, epochs=1, batch_size=8)
    shutil.rmtree(folder)
    assert run.predict(np.zeros((16, 16), np.uint8)).label in ("ant", "bee")


def test_a_run_made_before_takes_names_from_its_data(finished_run):
    before = finished_run.predict(np.zeros((32, 32), np.uint8))
    about = {k: v for k, v in finished_run.about.items() if k != "images"}
    assert about != finished_run.about
    finished_run.write("params.json", lambda tmp: tmp.write_text(json.dumps(about)))
    assert Run.load(finished_run.path).predict(np.zeros((32, 32), np.uint8)) == before


@pytest.mark.parametrize("wrong", [
    dict(classes=["0"]*9), dict(mean="x"), dict(std=[1, 2]), dict(more=1), dict(side="a"),
])
def test_a_damaged_record_of_the_images_is_one_line(finished_run, wrong):
    about = finished_run.about | dict(images=finished_run.about["images"] | wrong)
    finished_run.write("params.json", lambda tmp: tmp.write_text(json.dumps(about)))
    with pytest.raises(InputError, match="expected 10 classes, mean, std and side"):
        Run.load(finished_run.path).predict(np.zeros((32, 32), np.uint8))


def test_a_cohort_has_no_exits_to_leave_at(tiny_run):
    run = tiny_run(model="tiny+tiny", method="dml", epochs=1)
    with pytest.raises(InputError, match="cohort"):
        run.predict(np.zeros((32, 32), np.uint8))
