"""python .ci/examples.py [FOLDER] [--epochs N]

Make the example runs in data/examples (or FOLDER): the arms exit-wise, mate and dbt of the study
digit_pairs_methods with its first seed, taken from the study's runs, or trained as it trains them. What is
shipped is small: weights as float16, outputs in their compact form with the five best classes, no checkpoint;
the test scores are those of the weights that are shipped.
"""
import argparse
import dataclasses
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save

from multiexit_nb import files, outputs, studies
from multiexit_nb.core import project_root
from multiexit_nb.evaluate import evaluate
from multiexit_nb.predict import about_images
from multiexit_nb.runs import Run

STUDY, ARMS = "digit_pairs_methods", ("exit-wise", "mate", "dbt")
SPLITS = ("val", "test")


def rounded(weights: dict) -> dict:
    "Weights as float16; statistics and what has one dimension stay as they are."
    def small(t):
        return t.half() if t.is_floating_point() and t.ndim > 1 else t
    return {name: small(t).contiguous() for name, t in weights.items()}


def slim(said: outputs.Outputs) -> dict:
    "The compact form of outputs, relative to each image's best logit, in float16."
    c = outputs.compact(said.logits, said.labels, best=5, nodes=3)
    top = c.values[..., :1]
    shifted = dict(values=c.values - top, label=c.label - top[..., 0])
    rest = torch.stack([c.rest[..., 0] - top, c.rest[..., 1]], -1)
    tensors = outputs.tensors_of(dataclasses.replace(c, **shifted, rest=rest, sure=None))
    small = {torch.float32: torch.float16, torch.int16: torch.int8}
    return {name: t.to(small.get(t.dtype, t.dtype)) for name, t in tensors.items()} | {"labels": said.labels}


def write_tensors(path: Path, parts: dict):
    "One file of the tensors of several parts, as a run has them."
    tensors = {f"{part}.{name}": t for part, found in parts.items() for name, t in found.items()}
    files.write_file(path, lambda tmp: tmp.write_bytes(save(tensors)))


def pack(run: Run, to: Path):
    "The run once more, small."
    to.mkdir(parents=True)
    files.keep_manifest(to)
    parameters = run.about["parameters"] | dict(run_id=to.name)
    source = f"study {STUDY}; weights rounded to float16, outputs compact, no checkpoint"
    data = run.data()
    about = run.about | dict(parameters=parameters, images=about_images(data), source=source)
    files.write_json(to/"params.json", about)
    files.write_file(to/"history.csv", lambda tmp: shutil.copy(run.path/"history.csv", tmp))
    parts = {part: rounded(run.weights(part)) for part in ("net", "method")}
    write_tensors(to/"weights.safetensors", parts)
    net = run.model()
    net.load_state_dict(parts["net"])
    scored = {split: evaluate(net, getattr(data, split), keep=split) for split in SPLITS}
    write_tensors(to/"outputs.safetensors", {split: slim(scored[split].outputs) for split in SPLITS})
    test = run.result["test"] | scored["test"].scores
    files.write_json(to/"result.json", run.result | dict(test=test, test_images=len(data.test)))


def example_runs(epochs: int, scratch: Path):
    "The runs to be shipped."
    study = studies.read_study(STUDY)
    folder, changes = (scratch, dict(epochs=epochs)) if epochs else (studies.folder_of(study), {})
    for cell in study.cells:
        if cell.name in ARMS and cell.parameters["seed"] == study.seeds[0]:
            cell = dataclasses.replace(cell, parameters=cell.parameters | changes)
            yield Run(folder/studies.bring(cell, folder))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folder", nargs="?", type=Path, default=project_root()/"data"/"examples")
    p.add_argument("--epochs", type=int, default=0, help="fewer than the study's, to try it")
    given = p.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        for run in example_runs(given.epochs, Path(scratch)):
            to = given.folder/f"example-{run.parameters['method']}"
            shutil.rmtree(to, ignore_errors=True)
            pack(run, to)


if __name__ == "__main__":
    main()
