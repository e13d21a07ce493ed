import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from synthetic_runs import every_defense, every_status

from reports.figures import COLORS, LINE_STYLES, curve_figure, write_figure


def curves(figure):
    return {line.get_label(): line for line in figure.axes[0].get_lines() if not line.get_label().startswith("_")}


def test_a_curve_falls_from_the_clean_accuracy_to_the_accuracy_at_the_threshold():
    line = curves(curve_figure(every_status(), "L2"))["cnn"]
    epsilons, accuracies = line.get_data()
    assert accuracies[0] == pytest.approx(0.8)
    assert accuracies[epsilons <= 1.5][-1] == pytest.approx(0.2)


def test_the_axis_is_finite_and_shows_the_threshold():
    for norm, threshold in (("L2", 1.5), ("Linf", 0.3), ("L0", 12)):
        left, right = curve_figure(every_status(), norm).axes[0].get_xlim()
        assert left == 0
        assert threshold < right < np.inf


def test_a_defense_with_unknown_distances_has_no_curve_and_the_legend_says_so():
    line = curves(curve_figure(every_status(), "L2"))["binary_cnn (unknown)"]
    assert len(line.get_xdata()) == 0


def test_a_defense_that_no_attack_applies_to_has_no_curve():
    assert "binary_cnn (no results)" in curves(curve_figure(every_status(), "Linf"))


def test_l0_is_in_pixels():
    assert curve_figure(every_status(), "L0").axes[0].get_xlabel() == "L0 distance ε (pixels)"


def test_curves_differ_in_colour_and_in_line_style():
    lines = curves(curve_figure(every_defense(), "L2")).values()
    assert len({line.get_color() for line in lines}) == 7
    assert len({line.get_linestyle() for line in lines}) >= 4
    assert len({(i % len(COLORS), i % len(LINE_STYLES)) for i in range(35)}) == 35


def test_files_are_equal_byte_for_byte(tmp_path):
    for folder in ("first", "second"):
        write_figure(curve_figure(every_status(), "L2"), tmp_path / folder / "curves")
    names = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert names == ["curves.pdf", "curves.png", "curves.svg"]
    for name in names:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    ElementTree.parse(tmp_path / "first" / "curves.svg")
