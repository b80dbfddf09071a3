"""The larger data sets, on small files in their official layouts."""
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.io import savemat

from multiexit_nb.core import InputError
from multiexit_nb.data import Encoded, decode_image, list_datasets, load_dataset, window


def picture(path, value, size=(40, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value % 256, value*7 % 256, value*13 % 256)).save(path)


@pytest.fixture
def cub(tmp_path):
    top, n = tmp_path/"CUB_200_2011", 0
    lines = {k: [] for k in ("images", "image_class_labels", "train_test_split", "classes")}
    for c in range(200):
        name = f"{c + 1:03d}.Bird_{c}"
        lines["classes"].append(f"{c + 1} {name}")
        for i in range(4):
            n += 1
            picture(top/"images"/name/f"Bird_{i}.jpg", n)
            lines["images"].append(f"{n} {name}/Bird_{i}.jpg")
            lines["image_class_labels"].append(f"{n} {c + 1}")
            lines["train_test_split"].append(f"{n} {int(i != 3)}")
    for k, v in lines.items(): (top/f"{k}.txt").write_text("\n".join(v) + "\n")
    return tmp_path


def test_cub200(cub):
    data = load_dataset("cub200", cub, image_size=24, workers=0)
    assert (len(data.train), len(data.val), len(data.test)) == (400, 200, 200)     # one of three for validation
    assert data.num_classes == 200 and data.class_names[7] == "Bird 7" and data.test.labels.tolist() == list(range(200))
    assert isinstance(data.train.source, Encoded) and data.train.source.side == 27
    (cub/"CUB_200_2011"/"classes.txt").unlink()
    with pytest.raises(InputError, match="CUB_200_2011 is not complete: put its official files into .* so that .*classes.txt exists"): load_dataset("cub200", cub)


def test_stanford_dogs(tmp_path):
    top = tmp_path/"StanfordDogs"
    lists = {"train": ([], []), "test": ([], [])}
    for c in range(120):
        for i in range(3):
            f = f"n{c:05d}-Breed_{c}/x_{i}.jpg"
            picture(top/"Images"/f, c + i)
            files, labels = lists["test" if i == 2 else "train"]
            files.append(f); labels.append(c + 1)
    for s, (files, labels) in lists.items():
        savemat(top/f"{s}_list.mat", {"file_list": np.array([[f] for f in files], dtype=object), "labels": np.array(labels)[:, None]})
    data = load_dataset("dogs", tmp_path, image_size=16, workers=0)
    assert (len(data.train), len(data.val), len(data.test)) == (120, 120, 120) and data.class_names[5] == "Breed 5"


def test_aircraft(tmp_path):
    top = tmp_path/"fgvc-aircraft-2013b"/"data"
    names, splits, n = [f"A{i}" for i in range(100)], {"trainval": [], "test": []}, 0
    for c, name in enumerate(names):
        for i in range(4):
            n += 1
            picture(top/"images"/f"{n:07d}.jpg", c)
            splits["test" if i == 3 else "trainval"].append(f"{n:07d} {name}")
    (top/"variants.txt").write_text("\n".join(names))
    for s, lines in splits.items(): (top/f"images_variant_{s}.txt").write_text("\n".join(lines) + "\n")
    data = load_dataset("aircraft", tmp_path, image_size=16, workers=0, download=False)
    assert (len(data.train), len(data.val), len(data.test)) == (200, 100, 100) and data.class_names[-1] == "A99"


def test_imagenet_and_its_subsets(tmp_path):
    for s, n in (("train", 12), ("val", 2)):
        for c in range(5):
            for i in range(n): picture(tmp_path/"imagenet"/s/f"n{c:08d}"/f"{i}.JPEG", 20*c + i)
    load = lambda **kw: load_dataset("imagenet", tmp_path, image_size=16, workers=0, **kw)
    data = load(val_per_class=2)
    assert (len(data.train), len(data.val), len(data.test), len(data.unlabelled)) == (50, 10, 10, 0)
    few = load(images_per_class=10)
    assert few.val.labels.bincount().tolist() == [1]*5 and few.train.labels.bincount().tolist() == [9]*5     # a tenth of ImageNet(X)
    assert len(few.unlabelled) == 10 and (few.unlabelled.labels == -1).all()
    with pytest.raises(InputError, match="imagenet is not complete"): load_dataset("imagenet", tmp_path/"elsewhere")


def test_imagenet_x_uses_700_of_a_class(tmp_path, monkeypatch):
    from multiexit_nb import data as module
    y = torch.arange(3).repeat_interleave(1300)
    raw = module.Raw((None, y), (None, torch.arange(3)), class_names=["a", "b", "c"], val_per_class=50, pool_per_class=700)
    train, val, unlabelled, _ = module.divide(raw, 300, None, 0)
    assert (len(train), len(val[2]), len(unlabelled)) == (3*270, 3*30, 3*400)
    train, val, unlabelled, _ = module.divide(raw, None, None, 0)
    assert (len(train), len(val[2]), len(unlabelled)) == (3*1250, 3*50, 0)


def test_tinyimagenet(tmp_path):
    top = tmp_path/"tiny-imagenet-200"
    wnids = [f"n{c:08d}" for c in range(200)]
    rows = []
    for c, w in enumerate(wnids):
        for i in range(52): picture(top/"train"/w/"images"/f"{w}_{i}.JPEG", c, (8, 8))
        picture(top/"val"/"images"/f"val_{c}.JPEG", c, (8, 8))
        rows.append(f"val_{c}.JPEG\t{w}\t0\t0\t7\t7")
    (top/"wnids.txt").write_text("\n".join(reversed(wnids)))
    (top/"words.txt").write_text("\n".join(f"{w}\tthing {c}, other" for c, w in enumerate(wnids)))
    (top/"val"/"val_annotations.txt").write_text("\n".join(reversed(rows)) + "\n")
    data = load_dataset("tinyimagenet", tmp_path, image_size=8, workers=0)
    assert (len(data.train), len(data.val), len(data.test)) == (400, 10_000, 200)
    assert data.class_names[3] == "thing 3" and data.test.labels.tolist() == list(range(199, -1, -1))
    assert data.test.source.images[0, :, 0, 0].tolist() == pytest.approx([199, 199*7 % 256, 199*13 % 256], abs=6)     # JPEG


def test_streamed_windows_are_drawn_by_the_epoch(cub):
    rng = np.random.default_rng(0)
    for f in list((cub/"CUB_200_2011"/"images").rglob("*.jpg"))[:80]:
        Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(f, "png")
    data = load_dataset("cub200", cub, image_size=24, workers=0)
    first = lambda workers, epoch, **kw: next(type(data.train)(**{**vars(data.train), "workers": workers}).batches(32, epoch=epoch, seed=3, **kw))[0]
    a = first(0, 1)
    assert a.shape == (32, 3, 24, 24) and torch.equal(a, first(2, 1)) and not torch.equal(a, first(0, 2))
    assert not torch.equal(a, first(0, 1, augment=False))
    s = data.test
    x, _ = next(s.batches(1))
    assert torch.equal(x, s.normalise(decode_image(s.source.items[int(s.rows[0])], 24, side=27)[None]))


def test_test_images_are_the_centre_of_256(tmp_path):
    picture(tmp_path/"a.png", 9, (512, 384))
    with Image.open(tmp_path/"a.png") as im: want = np.array(im.convert("RGB").resize((341, 256), Image.BILINEAR).crop((58, 16, 282, 240)))
    assert torch.equal(decode_image(tmp_path/"a.png", 224, side=256), torch.from_numpy(want).permute(2, 0, 1))


@given(st.integers(20, 700), st.integers(20, 700), st.lists(st.floats(0, 1, exclude_max=True), min_size=4, max_size=4))
def test_windows_lie_in_the_image(w, h, draws):
    left, top, right, bottom = window(w, h, draws, (0.08, 1.))
    assert 0 <= left < right <= w + 1e-6 and 0 <= top < bottom <= h + 1e-6
    share = (right - left)*(bottom - top)/(w*h)
    assert share <= 1 + 1e-6 and (share >= 0.08 - 1e-6 or right - left == w or bottom - top == h)


def test_they_are_listed():
    assert set(list_datasets()) >= {"cub200", "dogs", "aircraft", "imagenet", "tinyimagenet"}
