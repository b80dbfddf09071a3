"""Confusion and agreement against scikit-learn and counting by hand; every cell leads back to its images."""
import time

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import confusion_matrix

from multiexit_nb.analysis import agreement as A
from multiexit_nb.core import InputError
from multiexit_nb.figures import exit_colours, luminance

RNG = np.random.default_rng(0)
Y = RNG.integers(0, 7, 500)
SAID = np.stack([np.where(RNG.random(500) < share, Y, RNG.integers(0, 7, 500)) for share in (.4, .6, .9)])


def test_confusion_is_that_of_scikit_learn():
    c = A.confusion(SAID[0], Y, 8)
    assert np.array_equal(c, confusion_matrix(Y, SAID[0], labels=range(8))) and c.index.name == "class"
    assert c.columns.name == "answer"
    assert np.allclose(A.confusion(SAID[0], Y, normalise=True),
                       confusion_matrix(Y, SAID[0], normalize="true"))
    assert A.confusion(SAID[0], Y, 8, normalise=True).values[7].sum() == 0      # a class without images


@pytest.mark.parametrize("how", A.GROUPINGS)
@pytest.mark.parametrize("most", [2, 3, 6, 7, 50])
def test_no_image_gets_lost_in_groups(how, most):
    c = A.confusion(SAID[0], Y, 7)
    parts = A.groups(c, most, how)
    assert len(parts) == min(most, 7) and sorted(sum(parts.values(), [])) == list(range(7))
    t = A.grouped(c, parts)
    rows = [[A.images_of(SAID[0], Y, p, q) for q in parts.values()] for p in parts.values()]
    assert [[len(r) for r in line] for line in rows] == t.values.tolist()
    assert sorted(np.concatenate(sum(rows, [])).tolist()) == list(range(500))
    assert np.allclose(A.grouped(c, parts, normalise=True).sum(axis=1), 1)


def test_the_most_mistaken_stand_alone():
    said = Y.copy()
    said[np.flatnonzero(Y == 5)[:20]], said[np.flatnonzero(Y == 2)[:9]] = 3, 6
    c = A.confusion(said, Y, 7)
    assert A.mistakes(c) == [(5, 3, 20), (2, 6, 9)]
    assert A.groups(c, 3) == {"3": [3], "5": [5], "5 others": [0, 1, 2, 4, 6]}
    assert A.mistakes(A.confusion(Y, Y)) == []


def test_agreement_is_counted_by_hand():
    cells = A.agreement(SAID[0], SAID[2], Y)
    by_hand = {c: [] for c in A.CELLS}
    for i in range(500):
        by_hand[{(1, 1): A.CELLS[0], (1, 0): A.CELLS[1], (0, 1): A.CELLS[2],
                 (0, 0): A.CELLS[3]}[int(SAID[0, i] == Y[i]), int(SAID[2, i] == Y[i])]].append(i)
    assert {k: v.tolist() for k, v in cells.items()} == by_hand
    t = A.agreement_table(SAID, Y)
    assert list(t.index) == [(1, 2), (1, 3), (2, 3)] and (t[list(A.CELLS)].sum(axis=1) == 500).all()
    assert t.loc[(1, 3), "differ (%)"] == pytest.approx(100*((SAID[0] == Y) != (SAID[2] == Y)).mean())
    assert list(A.agreement_table(SAID, Y, against=2).index) == [(1, 2), (2, 3)]


def test_the_square_says_what_was_clicked():
    colours = exit_colours(3)
    cells = A.agreement(SAID[0], SAID[2], Y)
    fig = A.plot_agreement(cells, "exit 1", "exit 3", [colours[0], colours[2]])
    for row in range(2):
        for col in range(2):
            cell = A.cell_at(row, col)
            assert f"<b>{len(cells[cell]):,}</b>" in fig.data[0].text[row][col]
            assert (fig.data[0].customdata[row][col]
                    == cell.replace("the first", "exit 1").replace("the second", "exit 3"))
    scale = dict((round(t*4), c) for t, c in fig.data[0].colorscale[::2])      # the colour of each number
    number = {A.cell_at(r, c): fig.data[0].z[r][c] for r in range(2) for c in range(2)}
    assert scale[number["only the first right"]] == colours[0]
    assert scale[number["only the second right"]] == colours[2]


def test_the_picture_has_the_exits_colour_and_hides_the_diagonal():
    c = A.confusion(SAID[0], Y)
    fig = A.plot_confusion(c, colour="rgb(1,2,3)", mistakes_only=True)
    assert fig.data[0].colorscale[-1][1] == "rgb(1, 2, 3)"
    assert np.isnan(np.diag(np.array(fig.data[0].z, float))).all()
    assert fig.data[0].zmax == max(n for _, _, n in A.mistakes(c))
    perfect = A.plot_confusion(A.confusion(Y, Y), mistakes_only=True)
    assert np.isnan(np.array(perfect.data[0].z, float)).all() and perfect.data[0].zmax == 1
    assert "10%" in A.plot_confusion(A.confusion([0]*9 + [1], [0]*10, normalise=True)).data[1].text


def test_a_thousand_classes_are_quick_and_small():
    y = RNG.integers(0, 1000, 10_000)
    said = np.where(RNG.random(10_000) < .6, y, (y + RNG.integers(1, 5, 10_000)) % 1000)
    start = time.perf_counter()
    c = A.confusion(said, y, 1000)
    figs = [A.plot_confusion(A.grouped(c, A.groups(c, 40, how))) for how in A.GROUPINGS]
    took = time.perf_counter() - start
    assert all(len(f.to_json()) < 60_000 for f in figs) and took < 2, took      # 0.15 on a quiet core


@pytest.mark.parametrize(("call", "says"), [
    (lambda: A.confusion([0, 1], [0]), "one per image"), (lambda: A.confusion([], []), "one per image"),
    (lambda: A.confusion([.5], [0]), "whole numbers"),
    (lambda: A.confusion([-1], [0]), "whole numbers"),
    (lambda: A.confusion([3], [0], 3), "more than the largest class"),
    (lambda: A.agreement([0], [0, 1], [0]), "one per image"),
    (lambda: A.groups(A.confusion([0], [0]), 1), "≥ 2"),
    (lambda: A.groups(A.confusion([0], [0]), how="bin"), "Did you mean 'bins'"),
    (lambda: A.agreement_table(SAID, Y, against=4), "1 … 3")])
def test_wrong_input_is_one_line(call, says):
    with pytest.raises(InputError, match=says) as e:
        call()
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("ground", [(255, 255, 255), (17, 17, 17)], ids=["light", "dark"])
def test_more_images_stand_out_more_on_a_light_and_on_a_dark_page(ground):
    table = pd.DataFrame(np.arange(400).reshape(20, 20))
    heat = A.plot_confusion(table).data[0]
    seen = []
    for _, colour in heat.colorscale:
        *parts, a = map(float, colour[5:-1].split(","))
        light = luminance([a*c + (1 - a)*g for c, g in zip(parts, ground, strict=True)])
        seen.append(abs(light - luminance(ground)))
    assert seen == sorted(seen) and seen[0] < .2*seen[-1]
