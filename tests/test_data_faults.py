"What people's own data may be: every mistake is one line, and nothing is dropped without a word."
import io
import json
import os
import shutil

import layouts
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from layouts import picture, png
from PIL import Image
from tiny import make_run

from multiexit_nb.core import InputError
from multiexit_nb.data import Decoded, dataset_info, decode_image, load_dataset
from multiexit_nb.experiment import run_experiment


def refused(name, match, root="nowhere", **kw):
    "Both ways of opening answer with one line that matches."
    with pytest.raises(InputError, match=match) as e:
        load_dataset(name, root, workers=0, **kw)
    assert "\n" not in str(e.value) and len(str(e.value)) < 700


def write(folder, rows, labels, name="train-0", metadata=None):
    "One parquet file of images and labels."
    table = pa.table({"image": rows, "label": labels})
    if metadata is not None:
        table = table.replace_schema_metadata({"huggingface": metadata})
    pq.write_table(table, folder/f"{name}.parquet")
    return f"parquet:{folder}"


IMAGES = [png(i) for i in range(12)]


# ---------------------------------------------------------------- labels in parquet files
def test_hidden_test_labels_are_no_class(tmp_path):
    write(tmp_path, IMAGES, [0, 1]*6)
    name = write(tmp_path, IMAGES[:4], [-1]*4, "test-0")
    refused(name, r"test: row 0 has label -1: expected one of the 2 classes.*hidden labels\?", tmp_path)


def test_hidden_training_labels_shift_no_name(tmp_path):
    name = write(tmp_path, IMAGES, [0, -1, 1]*4)
    refused(name, "train: row 1 has label -1: expected one of the 3 classes", tmp_path)


@pytest.mark.parametrize("labels, match", [
    ([0, None]*6, "row 1 has no label"),
    ([0.5, 1.5]*6, "labels are of type double"),
    ([[0], [1]]*6, "labels are of type list"),
    ([1, 2]*6, "row 1 has label 2: expected one of the 2 classes, from 0"),
    ([0]*12, "number of classes=1: expected at least 2"),
    ([0]*11 + [1], "class '1' has one image: without official test images, two are needed"),
])
def test_labels_of_no_use(tmp_path, labels, match):
    refused(write(tmp_path, IMAGES, labels), match, tmp_path)


def test_a_test_label_that_training_does_not_have(tmp_path):
    write(tmp_path, IMAGES, ["ant", "bee"]*6)
    refused(write(tmp_path, IMAGES[:2], ["ant", "cat"], "test-0"), "test: row 1 has label 'cat'", tmp_path)


def test_true_and_false_are_labels(tmp_path):
    data = load_dataset(write(tmp_path, IMAGES, [True, False]*6), tmp_path, workers=0)
    assert data.class_names == ["False", "True"] and data.train.labels.dtype == torch.int64
    assert data.train.labels.bincount().tolist() == [4, 4]


# ---------------------------------------------------------------- images, metadata, columns of parquet files
@pytest.mark.parametrize("rows, match", [
    ([IMAGES[0], None]*6, "row 1 has no image"),
    ([{"bytes": IMAGES[0]}, {"bytes": None}]*6, "row 1 has no image in the file"),
    ([{"path": "a.png"}]*12, "expected encoded bytes"),
    (["a.png"]*12, "images are of type string: expected encoded bytes"),
    ([b""]*12, "cannot decode 0 bytes"),
    ([IMAGES[0][:50]]*12, "cannot decode 50 bytes"),
])
def test_images_of_no_use(tmp_path, rows, match):
    refused(write(tmp_path, rows, [0, 1]*6), match, tmp_path)


def test_an_empty_table(tmp_path):
    table = pa.table({"image": pa.array([], pa.binary()), "label": pa.array([], pa.int64())})
    pq.write_table(table, tmp_path/"train-0.parquet")
    refused(f"parquet:{tmp_path}", "train: no images", tmp_path)


@pytest.mark.parametrize("metadata", [
    "{", "[1, 2]", "null", '"text"', "["*100_000, '{"info": []}',
    json.dumps({"info": {"features": {"label": {"names": "ab"}}}}),
    json.dumps({"info": {"features": {"label": {"names": ["a", "a"]}}}}),
    json.dumps({"info": {"features": {"label": {"names": [1, 2]}}}}),
])
def test_junk_in_the_metadata(tmp_path, metadata):
    refused(write(tmp_path, IMAGES, [0, 1]*6, metadata=metadata), "metadata", tmp_path)


def test_shards_with_other_columns(tmp_path):
    write(tmp_path, IMAGES, [0, 1]*6)
    pq.write_table(pa.table({"image": IMAGES, "kind": [0, 1]*6}), tmp_path/"train-1.parquet")
    refused(f"parquet:{tmp_path}", "train-1.parquet has no column label, which train-0.parquet has", tmp_path)


def test_a_shard_that_is_missing(tmp_path):
    name = layouts.parquet(tmp_path)
    (tmp_path/"toy"/"data"/"train-00000-of-00002.parquet").unlink()
    refused(name, "data is not complete: train-00000-of-00002 is missing", tmp_path)


def test_shards_with_more_columns_are_read(tmp_path):
    write(tmp_path, IMAGES, [0, 1]*6)
    table = pa.table({"id": range(12), "label": pa.array([0, 1]*6, pa.int8()), "image": IMAGES})
    pq.write_table(table, tmp_path/"train-1.parquet")
    data = load_dataset(f"parquet:{tmp_path}", tmp_path)
    assert len(data.train) + len(data.val) + len(data.test) == 24


# ---------------------------------------------------------------- folders
def test_a_class_without_images(tmp_path):
    name = layouts.imagefolder(tmp_path)
    (tmp_path/"set"/"train"/"z").mkdir()
    refused(name, "z: remove it, or put the class's images there", tmp_path)


def test_a_class_that_only_testing_has(tmp_path):
    name = layouts.imagefolder(tmp_path)
    layouts.save(tmp_path/"set"/"test"/"z"/"0.png", 1)
    refused(name, "test has folders that are no class in training: z", tmp_path)


def test_a_broken_first_image(tmp_path):
    name = layouts.imagefolder(tmp_path)
    (tmp_path/"set"/"train"/"x"/"0.png").write_bytes(b"no image")
    refused(name, "cannot decode .*0.png: UnidentifiedImageError: cannot identify image file$", tmp_path)
    with pytest.raises(InputError, match="cannot decode"):
        dataset_info(name)


def test_a_class_folder_that_leads_back(tmp_path):
    name = layouts.imagefolder(tmp_path, ())
    (tmp_path/"set"/"all").symlink_to(tmp_path, target_is_directory=True)
    refused(name, "all is a link to a folder above itself", tmp_path)


def test_a_class_folder_may_lie_elsewhere(tmp_path):
    name = layouts.imagefolder(tmp_path, ())
    shutil.move(tmp_path/"set"/"x", tmp_path/"elsewhere")
    (tmp_path/"set"/"x").symlink_to(tmp_path/"elsewhere", target_is_directory=True)
    assert load_dataset(name, tmp_path, workers=0).train.labels.bincount().tolist() == [8 - 1, 8 - 1]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read(tmp_path):
    name = layouts.imagefolder(tmp_path, ())
    (tmp_path/"set"/"x").chmod(0)
    try:
        refused(name, "cannot read .*x", tmp_path)
    finally:
        (tmp_path/"set"/"x").chmod(0o755)


@pytest.mark.parametrize("kind", ["imagefolder", "parquet"])
@pytest.mark.parametrize("path", ["~nobody-of-that-name/x", "x"*300, "a\0b", "/proc/self", "/proc", "/sys"])
def test_paths_that_are_none(kind, path):
    refused(f"{kind}:{path}", "behind the colon")
    with pytest.raises(InputError, match="behind the colon"):
        dataset_info(f"{kind}:{path}")


# ---------------------------------------------------------------- numbers
@pytest.mark.parametrize("given, match", [
    (dict(image_size=10**5), "image_size=100000: expected 4 … 4096 pixels"),
    (dict(image_size=10**400), "expected 4 … 4096 pixels"),
    (dict(image_size=0), "expected 4 … 4096 pixels"),
    (dict(image_size=32.), "expected 4 … 4096 pixels"),
    (dict(image_size=512), "at most 256 pixels"),
    (dict(split_seed=2**64), "expected a whole number below 2⁶⁴"),
    (dict(split_seed="1"), "expected a whole number below 2⁶⁴"),
    (dict(images_per_class=10**30), "expected 2 … "),
    (dict(images_per_class=2.5), "expected 2 … "),
    (dict(val_per_class=True), "expected 0 … "),
    (dict(val_per_class=10**400), "expected 0 … "),
])
def test_numbers_out_of_range(given, match):
    refused("digits", match, **given)


@pytest.mark.parametrize("size", [10**5, 10**30, -1])
def test_a_size_is_checked_before_data_are_loaded(size):
    with pytest.raises(InputError, match="expected 4 … 4096 pixels"):
        dataset_info("cifar100", image_size=size)


def test_cifar_comes_in_the_size_that_was_asked_for(monkeypatch):
    import torchvision

    class Tiny:
        classes = ["a", "b"]
        filename, tgz_md5 = "f", "m"

        def __init__(self, root, train=True, download=False):
            self.data = np.random.default_rng(0).integers(0, 256, (200, 32, 32, 3), dtype=np.uint8)
            self.targets = [0, 1]*100

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", Tiny)
    data = load_dataset("cifar10", image_size=48)
    assert data.image_size == 48 == next(data.test.batches(2))[0].shape[-1]
    first = load_dataset("cifar10").test.source.images[0]
    assert torch.equal(first.permute(1, 2, 0), torch.tensor(Tiny(0).data[0]))


# ---------------------------------------------------------------- decoding
def test_no_file_starts_another_program(tmp_path, monkeypatch):
    from PIL import EpsImagePlugin
    f = io.BytesIO()
    picture(0).save(f, "eps")
    (tmp_path/"a.png").write_bytes(f.getvalue())
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *a, **kw: pytest.fail("Ghostscript"))
    for item in (tmp_path/"a.png", f.getvalue()):
        with pytest.raises(InputError, match="cannot decode .*UnidentifiedImageError"):
            decode_image(item, 8)


def test_a_flipped_bit_in_a_png_is_noticed():
    whole = bytearray(png(3))
    whole[len(whole)//2] ^= 4
    with pytest.raises(InputError, match="cannot decode"):
        decode_image(bytes(whole), 16)


def test_sixteen_bit_greys_are_scaled(tmp_path):
    levels = np.arange(256, dtype=np.uint16).reshape(16, 16)*257
    Image.fromarray(levels).save(tmp_path/"a.png")
    want = torch.arange(256, dtype=torch.uint8).view(16, 16)
    assert torch.equal(decode_image(tmp_path/"a.png", 16)[0], want)


# ---------------------------------------------------------------- what was decoded and kept
@pytest.fixture
def kept(tmp_path):
    "A data set whose decoded images are kept: its name, the images, the files."
    name = layouts.parquet(tmp_path)
    images = load_dataset(name, tmp_path).train.source.images
    return name, images, sorted((tmp_path/"decoded").iterdir(), key=lambda f: -f.stat().st_size)


def test_a_flipped_bit_in_what_is_kept_is_noticed(kept, tmp_path):
    name, images, files = kept
    content = bytearray(files[0].read_bytes())
    for at in (len(content)//2, len(content) - 1):
        damaged = bytearray(content)
        damaged[at] ^= 1
        files[0].write_bytes(damaged)
        assert torch.equal(load_dataset(name, tmp_path).train.source.images, images)
        assert files[0].read_bytes() == bytes(content)      # written anew


def test_images_of_other_files_are_not_taken(kept, tmp_path):
    name, images, files = kept
    from safetensors.torch import save_file
    save_file({"images": torch.zeros_like(images)}, files[0])       # as before: without a checksum
    assert torch.equal(load_dataset(name, tmp_path).train.source.images, images)
    swapped = files[0].read_bytes()
    files[1].write_bytes(swapped)
    assert len(load_dataset(name, tmp_path).test.source) == 12


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="a folder in which nothing can be made")
def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path):
    name = layouts.parquet(tmp_path)
    with pytest.warns(UserWarning, match="decoded images are not kept"):
        data = load_dataset(name, "/proc/self/nowhere")
    assert isinstance(data.train.source, Decoded)


# ---------------------------------------------------------------- official lists
def test_a_label_that_is_not_its_folders(tmp_path):
    layouts.cub200(tmp_path, 5)
    f = tmp_path/"CUB_200_2011"/"image_class_labels.txt"
    f.write_text(f.read_text().replace("\n9 3\n", "\n9 4\n"))
    refused("cub200", "labels.txt is damaged: a label is not the class of the image's folder", tmp_path)


@pytest.mark.parametrize("f", ["images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt"])
def test_a_list_that_ends_early(tmp_path, f):
    layouts.cub200(tmp_path, 5)
    f = tmp_path/"CUB_200_2011"/f
    f.write_bytes(f.read_bytes()[:-40])
    refused("cub200", "CUB_200_2011.* is damaged", tmp_path)


def test_an_official_list_without_images(tmp_path):
    layouts.aircraft(tmp_path, 5)
    (tmp_path/"fgvc-aircraft-2013b"/"data"/"images_variant_test.txt").write_text("")
    refused("aircraft", "aircraft has no images for testing", tmp_path, download=False)


def test_a_list_that_names_a_file_which_is_not_there(tmp_path):
    layouts.tinyimagenet(tmp_path, 3, 12)
    (tmp_path/"tiny-imagenet-200"/"val"/"images"/"val_7.JPEG").unlink()
    refused("tinyimagenet", "cannot read .*val_7.JPEG: No such file", tmp_path, val_per_class=1)


def test_official_sets_are_counted(tmp_path):
    layouts.imagenet(tmp_path)
    with pytest.warns(UserWarning, match="imagenet has 60 and 10 images .*, officially 1,281,167 and 50,000"):
        load_dataset("imagenet", tmp_path, val_per_class=1, workers=0)


# ---------------------------------------------------------------- changed since a run was made
def gone(file):
    return lambda top: (top/file).unlink()


CHANGES = {
    "an image for training": (gone("train/x/3.png"), "training images: 27 then, 26 now"),
    "an image for testing": (gone("test/y/9.png"), "test images: 30 then, 29 now"),
    "a class": (lambda top: [shutil.rmtree(top/s/"y") for s in ("train", "test")], "classes: 3 then, 2 now"),
    "all images for testing": (lambda top: shutil.rmtree(top/"test"), "training images: 27 then, 21 now"),
    "the name of an image": (lambda top: (top/"test"/"x"/"0.png").rename(top/"test"/"x"/"a.png"),
                             "test images: as many, but not the same ones"),
    "the name of a class": (lambda top: [(top/s/"x").rename(top/s/"X") for s in ("train", "test")],
                            "classes: as many, but not the same ones"),
}


@pytest.fixture(scope="module")
def run_of_a_folder(tmp_path_factory):
    "A finished run on images in three class folders; the folder."
    top = tmp_path_factory.mktemp("folder")
    name = layouts.imagefolder(top)
    for s in ("train", "test"):
        shutil.copytree(top/"set"/s/"x", top/"set"/s/"z")
    p = dict(dataset=name, images_per_class=0, batch_size=8, image_size=16)
    return make_run(top/"runs", **p), top/"set"


@pytest.mark.parametrize("change", CHANGES)
def test_a_data_set_that_has_changed_since_a_run(change, run_of_a_folder, tmp_path):
    "Neither looked at nor trained on: what was learned and tested were other images."
    run, folder = run_of_a_folder
    assert len(run.data().test) == run.result["test_images"]
    shutil.copytree(folder, tmp_path/"whole")
    how, says = CHANGES[change]
    try:
        how(folder)
        for asks in (run.data, lambda: run_experiment({"resume": str(run.path)}, {"resume"}, bar=False)):
            with pytest.raises(InputError) as e:
                asks()
            assert "\n" not in str(e.value)
            assert f"has changed since run {run.id} was made" in str(e.value) and says in str(e.value)
    finally:
        shutil.rmtree(folder)
        shutil.move(tmp_path/"whole", folder)
