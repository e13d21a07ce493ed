"""What an attack spends on an image."""

from dataclasses import replace

import pytest
from reading import cell, table_of, values
from synthetic_runs import INF, RunMaker, every_status

from reports.evidence.claims import WarmClaims, warm_claims


@pytest.fixture(scope="module")
def run():
    return every_status()


def test_costs_are_means_over_the_images_that_were_attacked(run):
    table = table_of(run, "cost")
    assert values(cell(table, "pgd, L2", "cnn")) == {
        "forwards": 100,
        "backwards": 40,
        "inner_steps": 0,
    }  # one of five is a clean error and cost nothing
    assert cell(table, "pgd, L∞", "nearest_neighbour").text == "—"  # all of its images failed
    assert cell(table, "pgd, L2", "binary_cnn").text == "n/a"


def test_of_warm_answers_the_caption_says_how_many_claims_the_judge_refuted():
    maker = RunMaker(["abs", "cnn"], 4, thresholds={"L2": 1.0})
    maker.attack("ddn", ["L2"])
    for defense in ("abs", "cnn"):
        maker.cell(defense, "ddn", "L2", [1.0, INF, INF, INF], claimed=[True, True, True, False])
    made = maker.make()
    warm = tuple(
        cell.model_copy(update={"identity": {"inference": "warm" if cell.defense == "abs" else "exact"}})
        for cell in made.manifest.cells
    )
    records = made.records.copy()
    undecided = (records["defense"] == "abs") & (records["sample"] == records["sample"].iloc[2])
    records.loc[undecided, "status"] = "undecided"
    run = replace(made, manifest=made.manifest.model_copy(update={"cells": warm}), records=records)
    assert warm_claims(run) == [WarmClaims("abs", claims=2, refuted=1)]
    assert "the exact judge refuted: abs 1 of 2 (50.0%)." in table_of(run, "cost").caption
    assert "refuted" not in table_of(made, "cost").caption
