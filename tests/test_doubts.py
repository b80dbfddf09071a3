"Trainings that cannot learn, or have not, are said in a sentence: by the program before and after."
import numpy as np
import pytest
from PIL import Image

from multiexit_nb.doubts import FEWEST_STEPS
from multiexit_nb.trainer import main


def program(**given) -> list[str]:
    return [str(word) for name, value in given.items() for word in ("-p", name, value)]


def test_the_program_says_that_there_are_too_few_steps_and_that_it_guesses(tmp_path, capsys):
    for name in ("ant", "bee"):
        (tmp_path/"noise"/name).mkdir(parents=True)
        for i in range(12):
            noise = np.random.default_rng(i).integers(0, 256, (16, 16, 3), np.uint8)
            Image.fromarray(noise).save(tmp_path/"noise"/name/f"{i}.png")
    assert main(program(dataset=f"imagefolder:{tmp_path/'noise'}", epochs=1, method="branchynet")) == 0
    said = capsys.readouterr().err
    assert 0 <= said.find("Only 1 steps in all") < said.find("No exit is surely better than a guess"), said


def test_an_ordinary_training_raises_no_doubt(finished_run):
    from multiexit_nb.experiment import prepare
    e = prepare(dict(method="branchynet"), {"method"})
    assert e.doubt(e.load()) == ""


@pytest.mark.parametrize("epochs, doubted", [(1, True), (FEWEST_STEPS, False)])
def test_a_batch_of_all_images_is_one_step_an_epoch(epochs, doubted):
    from multiexit_nb.doubts import steps_doubt
    assert bool(steps_doubt(87, 128, epochs)) is doubted
