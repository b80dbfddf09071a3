"The embedded data set: the same images everywhere and always, and what was promised of it."
import hashlib

import pytest
import torch

from multiexit_nb.core import InputError
from multiexit_nb.data import dataset_info, load_dataset
from multiexit_nb.datasets import has_unlabelled


@pytest.fixture(scope="module")
def pairs():
    return load_dataset("digit_pairs")


def digest(images) -> str:
    return hashlib.sha256(images.numpy()).hexdigest()[:16]


def test_its_images_are_always_the_same(pairs):
    assert digest(pairs.train.source.images) == "0365213dcb64de3f"
    assert digest(pairs.test.source.images) == "c0c9089d5aef5935"
    again = load_dataset("digit_pairs", split_seed=1)
    assert torch.equal(again.train.source.images, pairs.train.source.images)
    assert not torch.equal(again.train.rows, pairs.train.rows)


def test_its_splits(pairs):
    assert (pairs.num_classes, pairs.image_size) == dataset_info("digit_pairs") == (100, 32)
    assert pairs.train.labels.bincount().tolist() == [20]*100
    assert pairs.val.labels.bincount().tolist() == [2]*100
    assert pairs.test.labels.bincount().tolist() == [40]*100
    assert len(pairs.unlabelled) == 12_800 and (pairs.unlabelled.labels == -1).all()


def test_classes_are_the_numbers_that_the_digits_make():
    from sklearn.datasets import load_digits

    from multiexit_nb.datasets.digit_pairs import _pairs
    d = load_digits()
    digits = torch.from_numpy(d.target)
    marks = digits.to(torch.int16)*10 + 80        # in place of a digit, its number as a grey level
    source, y = _pairs(marks.view(-1, 1, 1).expand(-1, 22, 22), digits.long(), 40, 0)
    grey = source.images[:, 0, 5:27].float().view(100, 40, 22, 32).mean((1, 2)).sub(80).div(10).round().long()
    assert torch.equal(grey[:, 0], torch.arange(100)//10) and torch.equal(grey[:, 31], torch.arange(100) % 10)
    assert torch.equal(y, torch.arange(100).repeat_interleave(40))


def test_labels_can_be_fewer_or_all(pairs):
    few = load_dataset("digit_pairs", images_per_class=12)
    assert (len(few.train), len(few.val), len(few.unlabelled)) == (1000, 200, 13_800)
    everything = load_dataset("digit_pairs", images_per_class=150)
    assert (len(everything.train), len(everything.unlabelled)) == (14_800, 0)
    with pytest.raises(InputError, match="expected 2 … 150"):
        load_dataset("digit_pairs", images_per_class=151)
    assert has_unlabelled("digit_pairs") and has_unlabelled("digits", 20) and not has_unlabelled("digits")
    assert load_dataset("digit_pairs", image_size=16).image_size == 16


def test_its_usual_settings_are_the_study_s_and_give_way():
    "What a newcomer trains by default is an arm of the study whose results stand beside it."
    from multiexit_nb import studies
    from multiexit_nb.experiment import prepare
    arm = next(c for c in studies.read_study("digit_pairs_methods").cells if c.name == "mate").parameters
    usual = prepare(dict(method="mate"), {"method"}).parameters
    left_to_the_machine = {"precision", "channels_last", "seed", "split_seed"}
    assert {n: usual[n] for n in arm if n not in left_to_the_machine} == {
        n: v for n, v in arm.items() if n not in left_to_the_machine}
    given = dict(model_args={}, batch_size=128)
    p = prepare(given, set(given)).parameters
    assert (p["model_args"], p["batch_size"], p["schedule"]) == ({}, 128, "cosine")
    other = prepare(dict(model="resnet8", recipe="eed"), {"model", "recipe"}).parameters
    assert (other["model_args"], other["batch_size"], other["schedule"]) == ({}, 128, "milestones")
    p = prepare(dict(recipe="eed"), {"recipe"}).parameters
    assert (p["model_args"], p["batch_size"], p["schedule"]) == ({"width": 8}, 128, "milestones")
    digits = prepare(dict(dataset="digits"), {"dataset"}).parameters
    assert (digits["model_args"], digits["batch_size"], digits["schedule"]) == ({}, 128, "milestones")


def test_a_semi_supervised_method_finds_its_images(monkeypatch):
    from multiexit_nb import experiment
    found, make = [], experiment.objective

    def watched(*args):
        found.append(make(*args))
        return found[-1]

    monkeypatch.setattr(experiment, "objective", watched)
    given = dict(dataset="digit_pairs", method="dbt")
    experiment.prepare(given, set(given))      # the checks are of the method that will be trained
    assert "unlabelled" in found[0].needs
    experiment.prepare(dict(dataset="digits", method="dbt"))
    assert "unlabelled" not in found[1].needs
