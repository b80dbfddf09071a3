"""The README's picture is what a lab looks like: taken here, and kept with MULTIEXIT_PICTURES=1 set.

MULTIEXIT_PICTURES=1 pytest -m slow tests/test_picture.py
"""
import io
import os
from pathlib import Path

import numpy as np
import pytest
from lab_page import CHROMIUM, PLOT, notebook
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT/"nbs"/"images"/"exits_lab.png"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")]
DRAWN = f"[...{PLOT}].filter(p => p.data && p.data.length && p.getBoundingClientRect().width > 0).length > 1"


def test_the_readme_shows_the_lab_as_it_is(lab_server, tmp_path):
    "As it opens where there are no runs yet: on a shipped example."
    place = lab_server(tmp_path/"none", ROOT/"nbs"/"labs"/"exits.ipynb")
    with notebook(place, "exits-light.ipynb", width=1280, height=800) as (page, errors, elsewhere):
        page.wait_for_function(DRAWN, timeout=120_000)
        page.wait_for_timeout(1500)
        taken = page.locator(".mx-lab").first.screenshot()
        assert not errors and not elsewhere
    new = Image.open(io.BytesIO(taken)).convert("RGB")
    if os.environ.get("MULTIEXIT_PICTURES"):
        PICTURE.parent.mkdir(exist_ok=True)
        new.quantize(96, method=Image.Quantize.MEDIANCUT).save(PICTURE, optimize=True)
    kept = Image.open(PICTURE).convert("RGB")
    assert PICTURE.stat().st_size < 150_000
    near = abs(kept.width - new.width) <= 60 and abs(kept.height - new.height) <= 60
    assert near, "the lab has another size by now"
    assert look(kept) == pytest.approx(look(new), abs=40), "the lab looks otherwise by now"


def look(picture: Image.Image) -> list[int]:
    "Sixty-four greys: where there is ink, and how much."
    return np.asarray(picture.convert("L").resize((8, 8), Image.Resampling.BOX)).ravel().tolist()
