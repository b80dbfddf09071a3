"""The larger data sets, on small files in their official layouts."""
from dataclasses import replace

import layouts
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from multiexit_nb.core import InputError
from multiexit_nb.data import Encoded, decode_image, list_datasets, load_dataset, window


@pytest.fixture
def cub(tmp_path):
    layouts.cub200(tmp_path)
    return tmp_path


def test_cub200(cub):
    data = load_dataset("cub200", cub, image_size=24, workers=0)
    assert (len(data.train), len(data.val), len(data.test)) == (400, 200, 200)     # 1 of 3 for validation
    assert data.num_classes == 200 and data.class_names[7] == "Bird 7"
    assert data.test.labels.tolist() == list(range(200))
    assert isinstance(data.train.source, Encoded) and data.train.source.side == 27
    (cub/"CUB_200_2011"/"classes.txt").unlink()
    where = "CUB_200_2011 is not complete: put its official files into .* so that .*classes.txt exists"
    with pytest.raises(InputError, match=where):
        load_dataset("cub200", cub)


def test_stanford_dogs(tmp_path):
    layouts.dogs(tmp_path)
    data = load_dataset("dogs", tmp_path, image_size=16, workers=0)
    assert (len(data.train), len(data.val), len(data.test)) == (120, 120, 120)
    assert data.class_names[5] == "Breed 5"


def test_aircraft(tmp_path):
    layouts.aircraft(tmp_path)
    data = load_dataset("aircraft", tmp_path, image_size=16, workers=0, download=False)
    assert (len(data.train), len(data.val), len(data.test)) == (200, 100, 100)
    assert data.class_names[-1] == "A99"


def test_imagenet_and_its_subsets(tmp_path):
    layouts.imagenet(tmp_path)
    def load(**kw):
        return load_dataset("imagenet", tmp_path, image_size=16, workers=0, **kw)

    data = load(val_per_class=2)
    assert (len(data.train), len(data.val), len(data.test), len(data.unlabelled)) == (50, 10, 10, 0)
    few = load(images_per_class=10)
    assert few.val.labels.bincount().tolist() == [1]*5      # a tenth of ImageNet(X)
    assert few.train.labels.bincount().tolist() == [9]*5
    assert len(few.unlabelled) == 10 and (few.unlabelled.labels == -1).all()
    with pytest.raises(InputError, match="imagenet is not complete"):
        load_dataset("imagenet", tmp_path/"elsewhere")


def test_imagenet_x_uses_700_of_a_class(tmp_path, monkeypatch):
    from multiexit_nb import data as module
    y = torch.arange(3).repeat_interleave(1300)
    raw = module.Raw((None, y), (None, torch.arange(3)), class_names=["a", "b", "c"],
                     val_per_class=50, pool_per_class=700)
    train, val, unlabelled, _ = module.divide(raw, 300, None, 0)
    assert (len(train), len(val[2]), len(unlabelled)) == (3*270, 3*30, 3*400)
    train, val, unlabelled, _ = module.divide(raw, None, None, 0)
    assert (len(train), len(val[2]), len(unlabelled)) == (3*1250, 3*50, 0)


def test_tinyimagenet(tmp_path):
    layouts.tinyimagenet(tmp_path)
    data = load_dataset("tinyimagenet", tmp_path, image_size=8, workers=0)
    assert (len(data.train), len(data.val), len(data.test)) == (400, 10_000, 200)
    assert data.class_names[3] == "thing 3" and data.test.labels.tolist() == list(range(199, -1, -1))
    colour = [199, 199*7 % 256, 199*13 % 256]
    assert data.test.source.images[0, :, 0, 0].tolist() == pytest.approx(colour, abs=6)     # JPEG


def test_streamed_windows_are_drawn_by_the_epoch(cub):
    rng = np.random.default_rng(0)
    for f in list((cub/"CUB_200_2011"/"images").rglob("*.jpg"))[:80]:
        Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(f, "png")
    data = load_dataset("cub200", cub, image_size=24, workers=0)

    def first(workers, epoch, **kw):
        return next(replace(data.train, workers=workers).batches(32, epoch=epoch, seed=3, **kw))[0]

    a = first(0, 1)
    assert a.shape == (32, 3, 24, 24) and torch.equal(a, first(2, 1)) and not torch.equal(a, first(0, 2))
    assert not torch.equal(a, first(0, 1, augment=False))
    s = data.test
    x, _ = next(s.batches(1))
    assert torch.equal(x, s.normalise(decode_image(s.source.items[int(s.rows[0])], 24, side=27)[None]))


def test_test_images_are_the_centre_of_256(tmp_path):
    layouts.colour(tmp_path/"a.png", 9, (512, 384))
    with Image.open(tmp_path/"a.png") as im:
        want = np.array(im.convert("RGB").resize((341, 256), Image.BILINEAR).crop((58, 16, 282, 240)))
    assert torch.equal(decode_image(tmp_path/"a.png", 224, side=256), torch.from_numpy(want).permute(2, 0, 1))


sides, shares = st.integers(20, 700), st.floats(0, 1, exclude_max=True)


@given(sides, sides, st.lists(shares, min_size=4, max_size=4))
def test_windows_lie_in_the_image(w, h, draws):
    left, top, right, bottom = window(w, h, draws, (0.08, 1.))
    assert 0 <= left < right <= w + 1e-6 and 0 <= top < bottom <= h + 1e-6
    share = (right - left)*(bottom - top)/(w*h)
    assert share <= 1 + 1e-6 and (share >= 0.08 - 1e-6 or right - left == w or bottom - top == h)


def test_they_are_listed():
    assert set(list_datasets()) >= {"cub200", "dogs", "aircraft", "imagenet", "tinyimagenet"}
