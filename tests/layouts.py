"Data sets as people have them on disk, a few small images each: made by the tests, never downloaded."
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from scipy.io import savemat


def picture(seed: int, size=(16, 16)) -> Image.Image:
    "Noise."
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def png(seed: int, size=(16, 16)) -> bytes:
    f = io.BytesIO()
    picture(seed, size).save(f, "png")
    return f.getvalue()


def save(path: Path, seed: int, size=(16, 16)):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(seed, size).save(path)


def parquet(top: Path) -> str:
    "Three classes in Hugging Face's layout: 10 training and 4 test images each, in two training shards."
    features = {"fine_label": {"names": ["ant", "bee", "cat"], "_type": "ClassLabel"}}
    meta = {"huggingface": json.dumps({"info": {"features": features}})}
    folder = top/"toy"/"data"
    folder.mkdir(parents=True)
    for name, n, first in (("train-00000-of-00002", 15, 0), ("train-00001-of-00002", 15, 15),
                           ("test-00000-of-00001", 12, 100)):
        rows = [{"bytes": png(first + i), "path": None} for i in range(n)]
        table = pa.table({"img": rows, "fine_label": [i % 3 for i in range(n)]})
        table = table.replace_schema_metadata(meta)
        pq.write_table(table, folder/f"{name}.parquet", write_page_checksum=True)
    return f"parquet:{top/'toy'}"


def imagefolder(top: Path, splits=("train", "test"), size=(20, 24)) -> str:
    "Two classes of ten images each in every split; no splits: directly."
    for s in splits or ["."]:
        for c in ("x", "y"):
            for i in range(10):
                save(top/"set"/s/c/f"{i}.png", i + 50*(c == "y"), size)
    return f"imagefolder:{top/'set'}"


def cub200(top: Path, classes: int = 200) -> str:
    "Classes of four images, three of them for training."
    folder, n = top/"CUB_200_2011", 0
    lines = {k: [] for k in ("images", "image_class_labels", "train_test_split", "classes")}
    for c in range(classes):
        name = f"{c + 1:03d}.Bird_{c}"
        lines["classes"].append(f"{c + 1} {name}")
        for i in range(4):
            n += 1
            save(folder/"images"/name/f"Bird_{i}.jpg", n, (40, 30))
            lines["images"].append(f"{n} {name}/Bird_{i}.jpg")
            lines["image_class_labels"].append(f"{n} {c + 1}")
            lines["train_test_split"].append(f"{n} {int(i != 3)}")
    for k, v in lines.items():
        (folder/f"{k}.txt").write_text("\n".join(v) + "\n")
    return "cub200"


def dogs(top: Path, classes: int = 120) -> str:
    "Classes of three images, two of them for training."
    folder, lists = top/"StanfordDogs", {"train": ([], []), "test": ([], [])}
    for c in range(classes):
        for i in range(3):
            f = f"n{c:05d}-Breed_{c}/x_{i}.jpg"
            save(folder/"Images"/f, c + i, (40, 30))
            files, labels = lists["test" if i == 2 else "train"]
            files.append(f)
            labels.append(c + 1)
    for s, (files, labels) in lists.items():
        column = np.array([[f] for f in files], dtype=object)
        savemat(folder/f"{s}_list.mat", {"file_list": column, "labels": np.array(labels)[:, None]})
    return "dogs"


def aircraft(top: Path, classes: int = 100) -> str:
    "Classes of four images, three of them for training."
    folder, splits, n = top/"fgvc-aircraft-2013b"/"data", {"trainval": [], "test": []}, 0
    names = [f"A{i}" for i in range(classes)]
    for c, name in enumerate(names):
        for i in range(4):
            n += 1
            save(folder/"images"/f"{n:07d}.jpg", c, (40, 30))
            splits["test" if i == 3 else "trainval"].append(f"{n:07d} {name}")
    (folder/"variants.txt").write_text("\n".join(names))
    for s, lines in splits.items():
        (folder/f"images_variant_{s}.txt").write_text("\n".join(lines) + "\n")
    return "aircraft"


def imagenet(top: Path) -> str:
    "Five classes of 12 training and two validation images."
    for s, n in (("train", 12), ("val", 2)):
        for c in range(5):
            for i in range(n):
                save(top/"imagenet"/s/f"n{c:08d}"/f"{i}.JPEG", 20*c + i, (40, 30))
    return "imagenet"


def tinyimagenet(top: Path, per_class: int = 52, classes: int = 200) -> str:
    "Classes of so many training images and one for validation; the lists are backwards."
    folder, rows = top/"tiny-imagenet-200", []
    wnids = [f"n{c:08d}" for c in range(classes)]
    for c, w in enumerate(wnids):
        for i in range(per_class):
            colour(folder/"train"/w/"images"/f"{w}_{i}.JPEG", c)
        colour(folder/"val"/"images"/f"val_{c}.JPEG", c)
        rows.append(f"val_{c}.JPEG\t{w}\t0\t0\t7\t7")
    (folder/"wnids.txt").write_text("\n".join(reversed(wnids)))
    (folder/"words.txt").write_text("\n".join(f"{w}\tthing {c}, other" for c, w in enumerate(wnids)))
    (folder/"val"/"val_annotations.txt").write_text("\n".join(reversed(rows)) + "\n")
    return "tinyimagenet"


def colour(path: Path, value: int, size=(8, 8)):
    "An image of one colour."
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value % 256, value*7 % 256, value*13 % 256)).save(path)
