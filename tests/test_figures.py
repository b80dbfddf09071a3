"Numbers on colours: every one that is drawn into a heat map can be read."
import numpy as np
import pytest
from plotly.colors import hex_to_rgb, unlabel_rgb

from multiexit_nb import figures
from multiexit_nb.analysis import agreement, curves, rdm, weights
from multiexit_nb.papers.eed import plot_right_wrong

RNG = np.random.default_rng(0)


def contrast(one, other) -> float:
    "Of two colours, as WCAG 2 has it, written down once more."
    def light(rgb):
        c = np.asarray(rgb)/255
        return np.where(c <= .04045, c/12.92, ((c + .055)/1.055)**2.4) @ [.2126, .7152, .0722] + .05
    pair = sorted((light(one), light(other)))
    return pair[1]/pair[0]


def rgb(colour: str) -> tuple:
    names = dict(white=(255,)*3, black=(0,)*3, grey=(128,)*3)
    return names.get(colour) or (hex_to_rgb(colour) if colour[0] == "#" else unlabel_rgb(colour))


def drawn(heat, value) -> list:
    "The colour of a cell."
    at, colours = zip(*heat.colorscale, strict=True)
    share = (value - heat.zmin)/(heat.zmax - heat.zmin)
    return [np.interp(share, at, c) for c in zip(*map(rgb, colours), strict=True)]


def confusion(n, classes=10):
    said = RNG.integers(0, classes, n)
    return agreement.confusion(said, np.where(RNG.random(n) < .6, said, RNG.integers(0, classes, n)), classes)


def logged(M):
    "A history of teacher weights that go through all values."
    import pandas as pd
    rows = [dict(epoch=1, split="val", exit=i, metric=f"weights/{j}", value=((i - 1)*M + j)/M**2)
            for i in range(1, M + 1) for j in range(1, M + 1)]
    return pd.DataFrame(rows)


def taught(M):
    return weights.weights_at(weights.teacher_weights(logged(M)), 1)


def similar(M):
    import pandas as pd
    names = [f"exit {m}" for m in range(M)]
    return pd.DataFrame(RNG.random((M, M)), index=names, columns=names)


CELLS = agreement.agreement(RNG.integers(0, 2, 90), RNG.integers(0, 2, 90), RNG.integers(0, 2, 90))
MAPS = {
    "confusion": lambda: agreement.plot_confusion(confusion(4000)),
    "confusion, shares": lambda: agreement.plot_confusion(confusion(40)/7, colour="rgb(244,162,89)"),
    "confusion, another exit": lambda: agreement.plot_confusion(confusion(900), colour="rgb(224,96,126)",
                                                                mistakes_only=True, most=9),
    "agreement": lambda: agreement.plot_agreement(CELLS, "a", "b", figures.exit_colours(4)[1:3]),
    "similarity": lambda: rdm.plot_similarity(similar(16)),
    "weights": lambda: weights.plot_matrices({n: taught(4) for n in "ab"}, .8),
    "logged": lambda: curves.plot_matrix(logged(11), "weights"),
    "right and wrong": lambda: plot_right_wrong({"exit 1": [5, 9, 14, 28], "exit 2": [3]*4}),
}


@pytest.mark.parametrize("name", MAPS)
def test_every_number_in_a_heat_map_can_be_read(name):
    fig = MAPS[name]()
    maps = [t for t in fig.data if t.type == "heatmap"]
    texts = [t for t in fig.data if t.type == "scatter"]
    assert len(maps) == len(texts) and not any(t.texttemplate for t in maps)
    found = {}
    for heat, text in zip(maps, texts, strict=True):
        z = np.array(heat.z, float)
        x, y = (list(range(n)) if v is None else list(v)
                for v, n in ((heat.x, z.shape[1]), (heat.y, z.shape[0])))
        places = {(y.index(b), x.index(a)): c for a, b, c in zip(text.x, text.y, text.textfont.color,
                                                                 strict=True)}
        assert places.keys() == set(zip(*map(np.ndarray.tolist, np.isfinite(z).nonzero()), strict=True))
        assert (text.xaxis, text.yaxis) == (heat.xaxis, heat.yaxis)
        found |= {(heat.xaxis, at): contrast(rgb(c), drawn(heat, z[at])) for at, c in places.items()}
    assert found and min(found.values()) >= 4.5


def test_black_or_white_can_be_read_on_any_colour():
    steps = range(0, 256, 15)
    worst = min(contrast(rgb(figures.ink((r, g, b))), (r, g, b))
                for r in steps for g in steps for b in steps)
    assert worst >= 4.5
    assert figures.luminance((255,)*3) == pytest.approx(1) and figures.luminance((0,)*3) == 0


def test_too_many_cells_have_no_numbers_but_the_trace_is_there():
    "A lab draws the next figure into the traces of the last one."
    few, many = (agreement.plot_confusion(confusion(400, classes)) for classes in (12, 13))
    assert [t.type for t in few.data] == [t.type for t in many.data] == ["heatmap", "scatter"]
    assert len(few.data[1].text) > 90 and not many.data[1].text
