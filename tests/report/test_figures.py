"""The picture: the curves' numbers, and how a stand-in data set is announced."""

import numpy as np
import pytest
from helpers.report_rows import run
from matplotlib import image
from matplotlib.colors import to_hex

from dimat_jax.report import figures


def test_a_curve_has_the_numbers_of_its_stages():
    found = figures.curve(run(seeds=(0,), rounds=2, agents=3), "wa")
    np.testing.assert_allclose(found.rounds, [0, 0.5, 1, 1.5, 2])
    np.testing.assert_allclose(found.megabytes, [0, 2, 2, 4, 4])
    np.testing.assert_allclose(found.mean, [41, 18, 44, 32.5, 46])
    np.testing.assert_allclose(found.std, 100 * np.std([0, 0.01, 0.02]))


def test_every_method_is_drawn_over_rounds_and_over_bytes():
    figure = figures.accuracy_figure(run(), "CIFAR-10", "convnet, ring of 4")
    left, right = figure.axes
    for axes, field in ((left, "rounds"), (right, "megabytes")):
        for line, method in zip(axes.lines, ("dimat", "wa"), strict=True):
            expected = figures.curve(run(), method)
            assert line.get_label() == method
            np.testing.assert_allclose(line.get_xdata(), getattr(expected, field))
            np.testing.assert_allclose(line.get_ydata(), expected.mean)
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["dimat", "wa"]
    assert len({line.get_color() for line in left.lines}) == 2


@pytest.mark.parametrize("made_up", [False, True])
def test_the_title_names_the_data_and_is_loud_if_they_are_made_up(made_up):
    title = figures.accuracy_figure(run(), "synthetic stand-ins", made_up=made_up)._suptitle
    assert title.get_text() == "synthetic stand-ins"
    assert (to_hex(title.get_color()).upper() == figures.MADE_UP) == made_up


def test_many_methods_can_be_told_apart():
    rows = [dict(line, method=f"m{i}") for i in range(12) for line in run(rounds=1)[4:6]]
    lines = figures.accuracy_figure(rows, "CIFAR-10").axes[0].lines
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 12


def test_the_picture_is_saved(tmp_path):
    figures.accuracy_figure(run(), "CIFAR-10").savefig(tmp_path / "accuracy.png")
    pixels = image.imread(tmp_path / "accuracy.png")
    assert pixels.shape[:2] == (504, 1200)
    assert pixels.std() > 0.05
