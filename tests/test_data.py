"""Data: layouts on disk, splits, statistics, batches; made by the tests, never downloaded."""
import pickle

import layouts
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from layouts import picture, png

from multiexit_nb.core import InputError
from multiexit_nb.data import Decoded, dataset_info, load_dataset, random_crop_flip, stratified


@pytest.fixture
def parquet_folder(tmp_path):
    layouts.parquet(tmp_path)
    return tmp_path/"toy"


def test_parquet(parquet_folder, tmp_path):
    name = f"parquet:{parquet_folder}"
    assert dataset_info(name) == (3, 16)
    data = load_dataset(name, tmp_path)
    assert data.class_names == ["ant", "bee", "cat"]
    assert (len(data.train), len(data.val), len(data.test)) == (27, 3, 12)
    x, _ = next(data.test.batches(1))
    want = torch.from_numpy(np.array(picture(100))).permute(2, 0, 1)[None]
    assert torch.allclose(x, data.test.normalise(want))
    # the decoded form is kept, and taken from there the second time
    cached = list((tmp_path/"decoded").iterdir())
    assert len(cached) == 2
    again = load_dataset(name, tmp_path)
    assert torch.equal(again.train.source.images, data.train.source.images)
    cached[0].write_bytes(cached[0].read_bytes()[:100])   # damaged: decoded anew
    assert torch.equal(load_dataset(name, tmp_path).train.source.images, data.train.source.images)


def test_streaming_equals_memory(parquet_folder, tmp_path):
    a = load_dataset(f"parquet:{parquet_folder}", tmp_path)
    b = load_dataset(f"parquet:{parquet_folder}", tmp_path, in_memory=False, workers=2)
    assert isinstance(a.train.source, Decoded) and not isinstance(b.train.source, Decoded)
    assert torch.equal(a.train.mean, b.train.mean) and torch.equal(a.train.std, b.train.std)
    for (x, y), (u, v) in zip(a.train.batches(8, epoch=1), b.train.batches(8, epoch=1), strict=True):
        assert torch.equal(x, u) and torch.equal(y, v)


def test_truncated_parquet(parquet_folder, tmp_path):
    f = parquet_folder/"data"/"train-00001-of-00002.parquet"
    f.write_bytes(f.read_bytes()[:-40])
    with pytest.raises(InputError, match="cannot read .*train-00001"):
        load_dataset(f"parquet:{parquet_folder}", tmp_path)
    with pytest.raises(InputError, match="cannot read .*train-00001"):
        dataset_info(f"parquet:{parquet_folder}")


def test_truncated_image_names_the_row(tmp_path):
    rows = [{"bytes": png(i), "path": None} for i in range(6)]
    rows[4]["bytes"] = rows[4]["bytes"][:60]
    pq.write_table(pa.table({"image": rows, "label": [0, 1]*3}), tmp_path/"train-0.parquet")
    with pytest.raises(InputError, match="cannot decode image 4 of"):
        load_dataset(f"parquet:{tmp_path}", tmp_path/"cache")


def test_parquet_without_the_columns(tmp_path):
    pq.write_table(pa.table({"picture": [png(0)], "label": [0]}), tmp_path/"train-0.parquet")
    with pytest.raises(InputError, match="no image column .*it has picture, label"):
        dataset_info(f"parquet:{tmp_path}")


def test_parquet_validation_is_test_where_there_is_none(tmp_path):
    for split, n in (("train", 20), ("validation", 4)):
        rows = [{"bytes": png(i), "path": None} for i in range(n)]
        table = pa.table({"image": rows, "label": [i % 2 for i in range(n)]})
        pq.write_table(table, tmp_path/f"{split}-0.parquet")
    data = load_dataset(f"parquet:{tmp_path}", tmp_path/"cache")
    assert (len(data.train), len(data.val), len(data.test)) == (18, 2, 4)


@pytest.mark.parametrize("layout", ["flat", "train-test"])
def test_imagefolder(tmp_path, layout):
    name = layouts.imagefolder(tmp_path, ("train", "test") if layout == "train-test" else ())
    data = load_dataset(name, tmp_path)
    assert data.image_size == 20 and data.class_names == ["x", "y"]
    assert len(data.test) == (20 if layout == "train-test" else 4)
    x, _ = next(data.test.batches(1))
    first = np.array(picture(int(data.test.rows[0]) % 10, (20, 24)))
    centre = torch.from_numpy(first).permute(2, 0, 1)[:, 2:22]
    assert torch.allclose(x[0], data.test.normalise(centre[None])[0])


def test_missing_data_say_where_to_put_it(tmp_path, monkeypatch):
    import torchvision
    def offline(*a, **kw):
        raise OSError("no network")
    monkeypatch.setattr(torchvision.datasets.cifar, "download_and_extract_archive", offline)
    where = r"could not be downloaded .*Put cifar-100-python.tar.gz \(md5 .*\) into .*"
    with pytest.raises(InputError, match=where):
        load_dataset("cifar100", tmp_path)
    with pytest.raises(InputError, match="existing folder"):
        load_dataset("imagefolder:/no/such/folder")
    with pytest.raises(InputError, match="existing file or folder"):
        load_dataset("parquet:/no/such/file")


def test_cifar_layout(tmp_path, monkeypatch):
    "torchvision's own reader, on a tiny archive of CIFAR-100's form (its checksums cannot hold)."
    import torchvision
    folder = tmp_path/"cifar-100-python"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, n in (("train", 600), ("test", 100)):
        pixels = rng.integers(0, 256, (n, 3072), dtype=np.uint8)
        entry = {"data": pixels, "fine_labels": [i % 10 for i in range(n)]}
        (folder/name).write_bytes(pickle.dumps(entry))
    (folder/"meta").write_bytes(pickle.dumps({"fine_label_names": [f"c{i}" for i in range(10)]}))
    monkeypatch.setattr(torchvision.datasets.CIFAR100, "_check_integrity", lambda self: True)
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *a: True)
    data = load_dataset("cifar100", tmp_path, download=False)
    assert (len(data.train), len(data.val), len(data.test)) == (100, 500, 100)   # 50 of a class for val
    x, _ = next(data.test.batches(1))
    want = torch.from_numpy(pickle.loads((folder/"test").read_bytes())["data"][0].reshape(3, 32, 32))[None]
    assert torch.allclose(x, data.test.normalise(want))


def test_splits_are_disjoint_and_have_seeds_of_their_own():
    a, b = load_dataset("digits"), load_dataset("digits", split_seed=1)
    assert not torch.equal(a.val.rows, b.val.rows) and torch.equal(a.test.rows, b.test.rows)
    few = load_dataset("digits", images_per_class=30)
    parts = [set(s.rows.tolist()) for s in (few.train, few.val, few.test, few.unlabelled)]
    assert sum(map(len, parts)) == len(set().union(*parts)) == 1797
    assert few.train.labels.bincount().tolist() == [27]*10 and few.val.labels.bincount().tolist() == [3]*10
    assert (few.unlabelled.labels == -1).all()
    with pytest.raises(InputError, match="images_per_class=5000"):
        load_dataset("digits", images_per_class=5000)
    with pytest.raises(InputError, match="val_per_class=400"):
        load_dataset("digits", val_per_class=400)


def test_validation_is_never_augmented_and_comes_in_order():
    data = load_dataset("digits")
    x = torch.cat([x for x, _ in data.val.batches(50)])
    assert torch.equal(x, data.val.normalise(data.val.source.images[data.val.rows]))


@given(st.integers(1, 5), st.integers(0, 4), st.booleans(), st.integers(0, 2**31))
def test_crop_is_one_of_the_windows(batch, pad, flip, seed):
    g = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 256, (batch, 3, 6, 6), dtype=torch.uint8, generator=g)
    y = random_crop_flip(x, pad, flip, torch.Generator().manual_seed(seed))
    padded = torch.nn.functional.pad(x, (pad,)*4)
    for i in range(batch):
        windows = padded[i].unfold(1, 6, 1).unfold(2, 6, 1).permute(1, 2, 0, 3, 4).reshape(-1, 3, 6, 6)
        found = (windows == y[i]).all((1, 2, 3)).any()
        assert found or (flip and (windows.flip(-1) == y[i]).all((1, 2, 3)).any())


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(1, 8), st.integers(0, 9))
def test_stratified_takes_what_it_says(labels, n, seed):
    y = torch.tensor(labels)
    chosen = y[stratified(y, n, seed)]
    for c in set(labels):
        assert (chosen == c).sum() == min(n, labels.count(c))
