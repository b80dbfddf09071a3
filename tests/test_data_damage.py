"""Damaged data files: every kind of file, damaged in eight ways, is read right or answered in one line.

What has no checksum anywhere is not noticed by who reads it for the first time: an image that is gone from a
folder that nobody counts, a split that is gone whole, a bit in a list (of Aircraft, TinyImageNet) that makes
another name or ends it early. A run that was made before notices, as it knows what was there; an official set
is counted. Other pixels in a JPEG are noticed by nobody. They are counted, and nothing else may differ."""
import functools
import os
import random
import shutil
from collections import Counter

import layouts
import pytest
import torch
from faults import tell

from multiexit_nb.core import InputError
from multiexit_nb.data import load_dataset

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.* officially")]
IMAGES = {".png", ".jpg", ".JPEG"}
LAYOUTS = dict(parquet=layouts.parquet, imagefolder=layouts.imagefolder, imagenet=layouts.imagenet,
               **{f.__name__: functools.partial(f, classes=12)
                  for f in (layouts.cub200, layouts.dogs, layouts.aircraft)},
               tinyimagenet=functools.partial(layouts.tinyimagenet, per_class=3, classes=12))


# ---------------------------------------------------------------- ways to damage a file
def truncate(f, rng, other):
    f.write_bytes(f.read_bytes()[:rng.randrange(f.stat().st_size)])


def flip(f, rng, other):
    content = bytearray(f.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    f.write_bytes(content)


def empty(f, rng, other):
    f.write_bytes(b"")


def junk(f, rng, other):
    f.write_bytes(rng.randbytes(f.stat().st_size))


def double(f, rng, other):
    f.write_bytes(f.read_bytes()*2)


def swap(f, rng, other):
    f.write_bytes(other)


def delete(f, rng, other):
    f.unlink()


def unreadable(f, rng, other):
    f.unlink()
    f.mkdir()


WAYS = (truncate, flip, empty, junk, double, swap, delete, unreadable)


# ---------------------------------------------------------------- what is read
def reading(name, top, kept) -> dict:
    "What a run would know of it, and the labels and images of each split."
    root = kept if ":" in name else top
    data = load_dataset(name, root, image_size=8, val_per_class=1, workers=0, download=False)
    found = dict(contents=data.contents)
    for s in ("train", "val", "test"):
        split = getattr(data, s)
        images, = split.source.batches([split.rows], torch.device("cpu"))
        pairs = zip(split.labels.tolist(), images, strict=True)
        found[s] = sorted((y, x.numpy().tobytes()) for y, x in pairs)
    return found


def outcome(name, top, kept, right, damaged) -> str:
    "How a damaged data set was read; an assertion if it is another answer, or not one line."
    try:
        found = reading(name, top, kept)
    except InputError as e:
        assert "\n" not in str(e) and len(str(e)) < 700, str(e)
        return "one line"
    if found["contents"] != right["contents"]:
        return "one line, from a run made before"
    if found == right:
        return "right"
    assert damaged.suffix in (".jpg", ".JPEG"), "another answer"
    return "other pixels"


def chosen(top, rng) -> list:
    "Every list and table, and three images."
    files = sorted(f for f in top.rglob("*") if f.is_file())
    images = [f for f in files if f.suffix in IMAGES]
    return [f for f in files if f not in images] + rng.sample(images, min(3, len(images)))


@pytest.mark.parametrize("kind", LAYOUTS)
def test_damaged_files_of_a_data_set(tmp_path, kind):
    rng, counts = random.Random(kind), Counter()
    whole, top = tmp_path/"whole", tmp_path/"set"
    name = LAYOUTS[kind](top)
    right = reading(name, top, tmp_path/"kept")
    top.rename(whole)
    for f in chosen(whole, rng):
        for way in WAYS*2:
            shutil.copytree(whole, top, copy_function=link_or_copy(f))
            others = [o for o in sorted(top.rglob("*")) if o.is_file() and o.suffix != f.suffix]
            other = rng.choice(others).read_bytes() if others else b"another program's file"
            damaged = top/f.relative_to(whole)
            way(damaged, rng, other)
            counts[outcome(name, top, tmp_path/"kept", right, damaged)] += 1
            shutil.rmtree(top)
    tell(f"a file of a data set: {kind}", counts, lost=counts["other pixels"])
    print(f"\n{kind}: {sum(counts.values())} damaged files:", dict(counts))
    assert counts["one line"] > 0


def link_or_copy(damaged):
    "Only the file to be damaged is copied; the others are links to the whole ones."
    def put(a, b):
        if str(a) == str(damaged):
            shutil.copy(a, b)
        else:
            os.link(a, b)
    return put


def test_damaged_kept_images_are_never_used(tmp_path):
    rng = random.Random(0)
    name = layouts.parquet(tmp_path)
    right = reading(name, tmp_path, tmp_path)
    files = sorted((tmp_path/"decoded").iterdir())
    for f in files:
        for way in WAYS*3:
            other = rng.choice([o for o in files if o != f])
            way(f, rng, other.read_bytes())
            if f.is_dir():
                with pytest.warns(UserWarning, match="not kept"):
                    assert reading(name, tmp_path, tmp_path) == right
                f.rmdir()
            assert reading(name, tmp_path, tmp_path) == right
