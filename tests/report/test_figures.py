"""The picture: the curves' numbers, and how a stand-in data set is announced."""

import numpy as np
import pytest
from helpers.report_rows import row, run
from matplotlib import image
from matplotlib.colors import to_hex

from dimat_jax.report import figures


def test_a_curve_has_the_numbers_of_its_stages():
    found = figures.curve(run(seeds=(0,), rounds=2, agents=3), "wa")
    np.testing.assert_allclose(found.rounds, [0, 0.5, 1, 1.5, 2])
    np.testing.assert_allclose(found.megabytes, [0, 2, 2, 4, 4])
    np.testing.assert_allclose(found.mean, [41, 18, 44, 32.5, 46])
    np.testing.assert_allclose(found.std, 100 * np.std([0, 0.01, 0.02], ddof=1))
    alone = figures.curve(run(seeds=(0,), agents=1), "wa")
    np.testing.assert_array_equal(alone.std, 0)  # no spread, and no NaN


def test_every_method_is_drawn_over_rounds_and_over_bytes():
    figure = figures.accuracy_figure(run(), "CIFAR-10", "convnet, ring of 4")
    left, right = figure.axes
    for axes, field in ((left, "rounds"), (right, "megabytes")):
        for line, method in zip(axes.lines, ("dimat", "wa"), strict=True):
            expected = figures.curve(run(), method)
            assert line.get_label() == method
            np.testing.assert_allclose(line.get_xdata(), getattr(expected, field))
            np.testing.assert_allclose(line.get_ydata(), expected.mean)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["dimat", "wa"]
    assert len({line.get_color() for line in left.lines}) == 2


@pytest.mark.parametrize("made_up", [False, True])
def test_the_title_names_the_data_and_is_loud_if_they_are_made_up(made_up):
    title = figures.accuracy_figure(run(), "synthetic stand-ins", made_up=made_up)._suptitle
    assert title.get_text() == "synthetic stand-ins"
    assert (to_hex(title.get_color()).upper() == figures.MADE_UP) == made_up


def test_dollars_in_names_are_no_formula(tmp_path):
    labels = {"dimat": r"a $\frac$", "wa": "1 $ or 2 $"}
    figure = figures.accuracy_figure(run(), "cost $x_$", labels=labels)
    figure.savefig(tmp_path / "figure.png")
    assert figure.legends[0].get_texts()[0].get_text() == labels["dimat"]


def ends(sent):
    """A row for each method, at the end of a run in which it has sent so many megabytes."""
    start = run(seeds=(0,), rounds=0)
    return start + [row(m, 0, 1, 3, "train", [0.5], 1e6 * mb) for m, mb in sent.items()]


def test_many_methods_can_be_told_apart():
    looks = figures.looks([f"m{i}" for i in range(28)]).values()
    for fields in (("color", "style"), ("color", "marker"), ("style", "marker")):
        assert len({tuple(getattr(look, field) for field in fields) for look in looks}) == 28
    left, right = figures.accuracy_figure(ends({f"m{i}": 1 for i in range(28)}), "d").axes
    for axes in (left, right):
        drawn = {(x.get_color(), x.get_linestyle(), x.get_marker()) for x in axes.lines}
        assert drawn == {look[1:] for look in looks}


def test_agents_alone_are_a_grey_line_that_takes_nobodys_look():
    looks = figures.looks(["a", "local_only", "b"], {"local_only": "Alone"})
    assert looks["local_only"] == ("Alone", figures.GREY, "-", "")
    assert (looks["a"], looks["b"]) == tuple(figures.looks(["a", "b"]).values())
    figure = figures.accuracy_figure(ends({"local_only": 0, "wa": 5}), "d")
    left, right = (axes.lines[0] for axes in figure.axes)
    assert left.get_color() == right.get_color() == figures.GREY
    np.testing.assert_allclose(left.get_ydata(), [41.5, 50])
    # It sends nothing: over bytes it is the height that it reaches.
    np.testing.assert_allclose(right.get_ydata(), [50, 50])
    assert right.get_xdata() == [0, 1] and right.get_transform() != left.get_transform()


def test_the_legend_covers_no_curve():
    for methods in (2, 9):
        figure = figures.accuracy_figure(ends({f"m{i}": 1 for i in range(methods)}), "d")
        figure.draw_without_rendering()
        (legend,) = figure.legends
        for axes in figure.axes:
            assert not legend.get_window_extent().overlaps(axes.get_window_extent())
        assert legend.get_window_extent().x0 >= 0
        assert legend.get_window_extent().x1 <= figure.bbox.x1


def test_methods_that_send_little_have_room_beside_those_that_send_much():
    few = figures.accuracy_figure(ends({"wa": 6, "dimat": 7}), "d").axes[1]
    assert few.get_xscale() == "linear"
    many = figures.accuracy_figure(ends({"local_only": 0, "wa": 6, "dsgd": 600}), "d").axes[1]
    assert many.get_xscale() == "symlog"
    zero, little, much = many.transData.transform([(0, 0), (6, 0), (600, 0)])[:, 0]
    left, right = many.bbox.x0, many.bbox.x1
    assert left <= zero and much <= right
    assert little - zero > 0.3 * (right - left)


def test_the_picture_is_saved(tmp_path):
    figures.accuracy_figure(run(), "CIFAR-10").savefig(tmp_path / "accuracy.png")
    pixels = image.imread(tmp_path / "accuracy.png")
    assert pixels.shape[:2] == (540, 1200)
    assert pixels.std() > 0.05
