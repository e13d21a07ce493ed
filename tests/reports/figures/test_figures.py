import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from reading import facts, interval, table_of, values
from synthetic_runs import INF, NAN, RunMaker, every_defense, every_status

from reports.figures.cost import cost_figure
from reports.figures.curves import curve_figure
from reports.figures.distances import distance_figure
from reports.figures.gallery import quantile_gallery
from reports.figures.registry import plots_of_norm
from reports.figures.significance import significance_figure
from reports.figures.style import COLORS, LINE_STYLES, to_svg, write_figure
from reports.figures.sweep import sweep_figure
from reports.measures.measure import measure
from reports.statistics.distances import accuracy_interval


def plots(measured, norm):
    return [plot for _, own in plots_of_norm(measured, measured.norms[norm]) for plot in own]


def curves(figure):
    return {line.get_label(): line for line in figure.axes[0].get_lines() if not line.get_label().startswith("_")}


def test_a_curve_falls_from_the_clean_accuracy_to_the_accuracy_at_the_threshold():
    line = curves(curve_figure(facts(every_status(), "L2")))["cnn"]
    epsilons, accuracies = line.get_data()
    assert accuracies[0] == pytest.approx(0.8)
    assert accuracies[epsilons <= 1.5][-1] == pytest.approx(0.2)


def test_the_axis_is_finite_and_shows_the_threshold():
    for norm, threshold in (("L2", 1.5), ("Linf", 0.3), ("L0", 12)):
        left, right = curve_figure(facts(every_status(), norm)).axes[0].get_xlim()
        assert left == 0
        assert threshold < right < np.inf


def test_a_curve_is_over_the_images_with_a_distance_and_the_legend_says_how_many():
    epsilons, accuracies = curves(curve_figure(facts(every_status(), "L2")))["binary_cnn (3 of 5 images)"].get_data()
    assert accuracies[epsilons <= 1.5][-1] == pytest.approx(1 / 3)  # 0, 1 and 2


def test_a_defense_without_any_known_distance_has_no_curve_and_the_legend_says_so():
    line = curves(curve_figure(facts(failing(), "L2")))["abs (unknown)"]
    assert len(line.get_xdata()) == 0


def failing():
    maker = RunMaker(["cnn", "abs"], 2)
    maker.attack("pgd", ["L2"])
    maker.cell("cnn", "pgd", "L2", [1.0, 2.0])
    maker.cell("abs", "pgd", "L2", [NAN, NAN], reasons={0: "timeout", 1: "timeout"})
    return maker.make()


def test_a_defense_that_no_attack_applies_to_has_no_curve():
    assert "binary_cnn (no results)" in curves(curve_figure(facts(every_status(), "Linf")))


def test_a_curve_ends_with_the_ball_where_only_bounded_attacks_ran():
    maker = RunMaker(["cnn"], 2)
    maker.attack("pgd", ["L2"], kind="bounded")
    maker.cell("cnn", "pgd", "L2", [1.4, INF])
    assert curves(curve_figure(facts(maker.make(), "L2")))["cnn"].get_xdata()[-1] == 1.5


def test_a_defense_that_bounded_attacks_alone_met_is_left_out_where_there_are_others():
    maker = RunMaker(["cnn", "eabs", "mute"], 2)
    maker.attack("pgd", ["L2"])
    maker.attack("pgd:bounded", ["L2"], kind="bounded")
    maker.cell("cnn", "pgd", "L2", [1.0, 2.0])
    maker.cell("eabs", "pgd:bounded", "L2", [1.4, INF])
    maker.na("mute", "pgd", "L2", "gives score access only")
    run = maker.make()
    assert list(curves(curve_figure(facts(run, "L2")))) == ["cnn", "mute (no results)"]
    assert [label.get_text() for label in distance_figure(facts(run, "L2")).axes[0].get_yticklabels()] == [
        "cnn",
        "mute",
    ]
    assert quantile_gallery(run, facts(run, "L2")).defenses == ["cnn", "mute"]


def test_l0_is_in_pixels():
    assert curve_figure(facts(every_status(), "L0")).axes[0].get_xlabel() == "L0 distance ε (pixels)"


def test_curves_differ_in_color_and_in_line_style():
    lines = curves(curve_figure(facts(every_defense(), "L2"))).values()
    assert len({line.get_color() for line in lines}) == 7
    assert len({line.get_linestyle() for line in lines}) >= 4
    assert len({(i % len(COLORS), i % len(LINE_STYLES)) for i in range(35)}) == 35


def test_files_are_equal_byte_for_byte(tmp_path):
    for folder in ("first", "second"):
        write_figure(curve_figure(facts(every_status(), "L2")), tmp_path / folder / "curves")
    names = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert names == ["curves.pdf", "curves.png"]
    for name in names:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    assert to_svg(curve_figure(facts(every_status(), "L2"))) == to_svg(curve_figure(facts(every_status(), "L2")))
    ElementTree.fromstring(to_svg(curve_figure(facts(every_status(), "L2"))))


def texts(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def test_the_band_is_wilsons_interval_at_each_epsilon():
    figure = curve_figure(facts(every_status(), "L2"))
    band = figure.axes[0].collections[0].get_paths()[0].vertices
    low, high = accuracy_interval([0.0] + [INF] * 4, 0.5)
    at_the_start = band[band[:, 0] == 0, 1]
    assert {round(value, 6) for value in at_the_start} >= {round(low, 6), round(high, 6)}


def test_every_image_stands_at_its_distance_or_is_counted():
    maker = RunMaker(["cnn", "abs"], 10)
    maker.attack("pgd", ["L2"])
    maker.cell("cnn", "pgd", "L2", [0.0, 0.5, 1.0, 1.0, 1.5, 1.5, 2.0] + [INF] * 3)
    maker.na("abs", "pgd", "L2", "gives score access only")
    figure = distance_figure(facts(maker.make(), "L2"))
    points = figure.axes[0].collections[0].get_offsets()
    assert sorted(points[:, 0]) == [0.0, 0.5, 1.0, 1.0, 1.5, 1.5, 2.0]
    assert np.abs(points[:, 1]).max() < 0.5
    assert texts(figure) == ["3 beyond", "0 unknown"]
    assert list(figure.axes[0].lines[0].get_xdata()) == [1.5, 1.5]


def test_the_heat_map_says_each_pairs_adjusted_p():
    figure = significance_figure(facts(every_status(), "L0"))
    assert len(texts(figure)) == 3
    assert all(0 <= float(text) <= 1 for text in texts(figure))


def test_costs_join_the_attacks_that_no_cheaper_one_beats():
    maker = RunMaker(["cnn"], 2)
    for name, passes, distance in (("cheap", 10, 2.0), ("waste", 100, 3.0), ("dear", 1000, 1.0)):
        maker.attack(name, ["L2"])
        maker.cell("cnn", name, "L2", [distance] * 2, forwards=float(passes), backwards=0.0)
    axes = cost_figure(measure(maker.make()), facts(maker.make(), "L2")).axes[0]
    assert axes.collections[0].get_offsets().tolist() == [[10, 2], [100, 3], [1000, 1]]
    assert axes.lines[0].get_xdata().tolist() == [10, 1000]


def swept(values):
    maker = RunMaker(["cnn"], 4)
    for steps in values:
        maker.attack(f"pgd:steps_{steps}", ["L2"], kind="bounded", steps=steps, restarts=1)
        maker.cell("cnn", f"pgd:steps_{steps}", "L2", [1.0] * (steps // 10) + [INF] * (4 - steps // 10))
    maker.attack("pgd:other", ["L2"], kind="bounded", steps=7, restarts=3)
    maker.cell("cnn", "pgd:other", "L2", [INF] * 4)
    return maker.make()


def test_attacks_that_differ_in_one_parameter_are_a_sweep():
    measured = measure(swept([30, 10, 20]))
    (sweep,) = measured.norms["L2"].sweeps
    assert sweep.parameter == "steps"
    assert [value for value, _ in sweep.steps] == [10, 20, 30]
    line = sweep_figure(measured, measured.norms["L2"], sweep).axes[0].lines[0]
    assert line.get_ydata().tolist() == [0.75, 0.5, 0.25]
    assert facts(swept([10, 20]), "L2").sweeps == []
    assert "sweep_L2_pgd_steps" in [plot.name for plot in plots(measured, "L2")]


def test_the_table_of_a_sweep_has_a_row_for_each_value():
    table = table_of(swept([30, 10, 20]), "sweep", "L2")
    assert (table.name, table.frame.index.name) == ("sweep_L2_pgd_steps", "steps")
    assert [values(table.row(value)["cnn"])["accuracy"] for value in ("10", "20", "30")] == [0.75, 0.5, 0.25]
    assert interval(table.row("20")["cnn"], "accuracy") == accuracy_interval([1.0, 1.0, INF, INF], 1.5)


def test_a_sweep_is_of_the_defenses_that_it_was_made_on():
    maker = RunMaker(["cnn", "abs"], 1)
    for steps in (1, 2, 3):
        maker.attack(f"pgd:steps_{steps}", ["L2"], kind="bounded", steps=steps)
        maker.cell("cnn", f"pgd:steps_{steps}", "L2", [INF])
    maker.cell("abs", "pgd:steps_2", "L2", [INF])
    measured = measure(maker.make())
    (sweep,) = measured.norms["L2"].sweeps
    assert list(table_of(maker.make(), "sweep", "L2").frame) == ["cnn"]
    assert len(sweep_figure(measured, measured.norms["L2"], sweep).axes[0].containers) == 1


def test_attacks_that_no_defense_has_met_in_a_row_are_no_sweep():
    maker = RunMaker(["cnn", "abs"], 1)
    for steps, defense in ((1, "cnn"), (2, "cnn"), (3, "abs"), (4, "abs")):
        maker.attack(f"pgd:steps_{steps}", ["L2"], kind="bounded", steps=steps)
        maker.cell(defense, f"pgd:steps_{steps}", "L2", [INF])
    assert facts(maker.make(), "L2").sweeps == []


def test_every_plot_says_what_it_shows():
    measured = measure(every_status())
    for norm in ("L2", "Linf", "L0"):
        shown = plots(measured, norm)
        assert len({plot.name for plot in shown}) == len(shown) == 4
        assert all(plot.caption and plot.alternative for plot in shown)
