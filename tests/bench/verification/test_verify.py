"""`assay verify` finds whatever is altered in a run, also where all hashes are made anew, and nothing elsewhere."""

import csv
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from scipy.stats import binom
from typer.testing import CliRunner

import bench
from bench.cli.app import app
from bench.contracts.norms import NORMS
from bench.ledger.entries import CellEntry
from bench.ledger.files import read_cell, write_cell, write_study
from bench.ledger.intervals import wilson_interval
from bench.ledger.loading import load_clean, load_ledger
from bench.ledger.manifest_file import load_manifest, write_manifest
from bench.ledger.reader import write_clean
from bench.ledger.schema import DISTANCES
from bench.ledger.seals import column_hashes, sealed
from bench.verification.laboratory import Laboratory
from bench.verification.verify import verify
from reports import load_run, not_following, write_run_report
from reports.following import differences

PLUGIN = Path(__file__).parents[1] / "verified_plugins.py"
SCHEMA_2 = Path(__file__).parents[2] / "stored_runs" / "schema_2"
MATRIX = """
dataset = "digits"
samples = 8
defenses = ["explained", { name = "noisy", attacks = ["bim"] }]
studies = ["lower_bound", "distal", "detection", "reconstruction"]
attacks = [
    { name = "gaussian_noise", parameters = { repetitions = 1, num_scales = 8 } },
    { name = "bim", parameters = { steps = 10 } },
    { name = "pgd", variant = "bounded", bounded = true, parameters = { steps = 10 } },
]
thresholds = { L2 = 0.6 }
"""


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A finished run of a deterministic and a randomized defense, with every kind of study, and its tables."""
    folder = tmp_path_factory.mktemp("original")
    (folder / "small.toml").write_text(MATRIX)
    bench.run(folder / "small.toml", plugins=[PLUGIN], out=folder / "run", device="cpu", runner="serial")
    write_run_report(load_run(folder / "run"), folder / "run" / "report", formats=["csv"])
    return folder / "run"


@pytest.fixture(scope="module")
def laboratory():
    return Laboratory(None, torch.device("cpu"), [PLUGIN])


@pytest.fixture
def run(original, tmp_path):
    """A copy."""
    shutil.copytree(original, tmp_path / "run")
    return tmp_path / "run"


def cells(run, defense=None):
    return [cell for cell in load_manifest(run).cells if defense in (None, cell.defense)]


def studies(run, kind):
    return [study for study in load_manifest(run).studies if study.kind == kind]


# Our own writer: alters one field, and makes every hash anew.


def forge(run, entry, change):
    """Writes a file anew after ``change(records, images)``, and the manifest's hashes with it."""
    path = run / "ledger" / entry.files[0]
    records, facts = read_cell(path)
    arrays = {}
    if path.with_suffix(".npz").exists():
        with np.load(path.with_suffix(".npz")) as file:
            arrays = {key: file[key].copy() for key in file.files}
    change(records, arrays)
    kept = {key: value for key, value in facts.items() if key not in ("schema", "seal", "columns_sha256")}
    if isinstance(entry, CellEntry):
        write_cell(path, records, arrays["adversarial"], kept, arrays.get("likeliest"))
    else:
        write_study(path, records, pq.read_schema(path).remove_metadata(), kept, arrays.get("study"))
    write_manifest(run, load_manifest(run), finished=True)


def faults(run, laboratory, entry=None, row=None):
    """What does not hold of a run; only in one file and row, where these are given."""
    found = verify(run, laboratory).faults
    stem = "" if entry is None else Path(entry.files[0]).stem
    return [line for line in found if stem in line and (row is None or f" row {row} " in line)]


def place(run, condition, entries=None):
    """A cell and a row whose record fulfills a condition."""
    for entry in cells(run) if entries is None else entries:
        records, _ = read_cell(run / "ledger" / entry.files[0])
        rows = np.flatnonzero(condition(records))
        if len(rows):
            return entry, int(rows[0])
    raise AssertionError("no such record")


def found(records):
    return records["status"].eq("found")


# An untouched run.


def test_an_untouched_run_holds(run, laboratory):
    result = verify(run, laboratory)
    assert (result.faults, result.missing, result.unjudged, result.boundary) == ([], [], [], 0)
    assert result.judged > 20


def test_the_command_says_so(run):
    result = CliRunner().invoke(app, ["verify", str(run), "--plugin", str(PLUGIN), "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert "images judged again; no faults." in result.output


def test_an_unfinished_run_says_what_is_not_there_yet(run, laboratory):
    left = cells(run)[0]
    (run / "ledger" / left.files[0]).unlink()
    planned = load_manifest(run)
    write_manifest(run, planned)
    result = verify(run, laboratory)
    assert result.faults == []
    assert [Path(line).name for line in result.missing] == [left.files[0]]


def test_a_run_whose_end_was_interrupted_says_that_its_hashes_are_not_there_yet(run, laboratory):
    write_manifest(run, load_manifest(run))
    result = verify(run, laboratory)
    assert result.faults == []
    assert "manifest.json: the hashes of the files" in result.missing[0]


def test_a_run_of_schema_2_is_judged_again_and_carries_no_seal():
    result = verify(SCHEMA_2, Laboratory(None, torch.device("cpu")))
    assert result.faults == []
    assert result.judged == 12
    assert any("schema version 2, which carries no seal" in line for line in result.remarks)


def test_a_run_older_than_a_norm_holds_and_its_other_distances_are_measured_again(run, laboratory):
    """As if no file had been written since the last norm came."""
    last = DISTANCES[-1]
    for path in (run / "ledger" / file for entry in cells(run) for file in entry.files):
        records, facts = read_cell(path)
        schema = pq.read_schema(path).remove_metadata()
        schema = schema.remove(schema.get_field_index(last))
        table = pa.Table.from_pandas(records[schema.names], schema=schema, preserve_index=False)
        facts = sealed({**facts, "columns_sha256": column_hashes(table)})
        pq.write_table(table.replace_schema_metadata({"assay": json.dumps(facts)}), path)
    write_manifest(run, load_manifest(run), finished=True)
    assert load_ledger(run)[last].isna().all()
    found = verify(run, laboratory)
    assert (found.faults, found.unjudged) == ([], [])
    assert found.judged > 20


# Each field that somebody may want to be another one.


@pytest.mark.parametrize("defense", ["explained", "noisy"])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("l0", lambda old: old - 1),
        ("l2", lambda old: old * (1 - 1e-9)),
        ("linf", lambda old: old * (1 - 1e-9)),
        ("broken", lambda old: False),
        ("status", lambda old: "not_found"),
        ("status", lambda old: "clean_error"),
        ("adversarial_prediction", lambda old: (old + 5) % 10),
        ("clean_prediction", lambda old: (old + 5) % 10),
        ("label", lambda old: (old + 1) % 10),
    ],
)
def test_an_altered_field_is_named_with_file_and_row(run, laboratory, defense, field, value):
    entry, row = place(run, found, cells(run, defense))
    forge(run, entry, lambda records, images: records.__setitem__(field, changed(records[field], row, value)))
    lines = faults(run, laboratory, entry, row)
    assert lines
    if field not in ("broken", "status", "clean_prediction"):  # which of the two is altered, nobody can tell
        assert any(f" {field} is " in line for line in lines), lines


def changed(column, row, value):
    column = column.copy()
    column[row] = value(column[row])
    return column


@pytest.mark.parametrize("defense", ["explained", "noisy"])
def test_an_altered_image_is_at_another_distance(run, laboratory, defense):
    entry, row = place(run, found, cells(run, defense))

    def change(records, images):
        pixel = images["adversarial"][row, 0, 4, 4]
        images["adversarial"][row, 0, 4, 4] = np.nextafter(pixel, np.float32(0.5))

    forge(run, entry, change)
    assert any("the stored image is at" in line for line in faults(run, laboratory, entry, row))


def hardly_moved(clean, row):
    """A forgery that puts an image next to the clean one, with distances that fit it."""

    def change(records, images):
        image = clean[row].copy()
        image[0, 0, 0] += 0.01 if image[0, 0, 0] < 0.5 else -0.01
        images["adversarial"][row] = image
        moved = np.abs(image.astype(float) - clean[row]).max()
        for norm in NORMS.values():
            records.loc[row, norm.column] = 1.0 if norm.unit == "pixels" else moved

    return change


def test_an_image_that_is_not_adversarial_is_judged_so(run, laboratory):
    entry, row = place(run, found, cells(run, "explained"))
    forge(run, entry, hardly_moved(load_clean(run), row))
    lines = faults(run, laboratory, entry, row)
    assert any(" adversarial_prediction is " in line and "the defense says" in line for line in lines)


def test_an_image_that_draws_refute_is_judged_so(run, laboratory):
    entry, row = place(run, found, cells(run, "noisy"))
    forge(run, entry, hardly_moved(load_clean(run), row))
    lines = faults(run, laboratory, entry, row)
    assert any(" broken is True" in line for line in lines), lines


def test_a_success_rate_that_fresh_draws_refute_is_named(run, laboratory):
    entry, row = place(run, found, cells(run, "noisy"))

    def change(records, images):
        rate = records.loc[row, "success_rate"]
        records.loc[row, "success_rate"] = 0.05 if rate > 0.5 else 1.0
        low, high = wilson_interval(records["success_rate"], 20)
        records["success_low"], records["success_high"] = low, high

    forge(run, entry, change)
    assert any(" success_rate is " in line for line in faults(run, laboratory, entry, row))


@pytest.mark.parametrize("field", ["likely_errors", "likely_draws", "success_low"])
def test_what_is_estimated_of_a_randomized_defense_is_drawn_again(run, laboratory, field):
    entry, row = place(
        run, lambda records: found(records) & records["likely_errors"].between(1, 19), cells(run, "noisy")
    )
    forge(run, entry, lambda records, images: records.__setitem__(field, changed(records[field], row, step(field))))
    assert faults(run, laboratory, entry, row)


def step(field):
    return (lambda old: old - 0.01) if field == "success_low" else (lambda old: old + 1)


def test_a_sample_that_is_not_broken_cannot_become_broken(run, laboratory):
    entry, row = place(run, lambda records: ~records["broken"], cells(run))
    forge(
        run,
        entry,
        lambda records, images: records.__setitem__("status", changed(records["status"], row, lambda _: "found")),
    )
    assert any(" broken is False" in line for line in faults(run, laboratory, entry, row))


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        ("reconstruction", "prediction", lambda old: (old + 1) % 10),
        ("reconstruction", "label", lambda old: (old + 1) % 10),
        ("reconstruction", "error", lambda old: old * 1.01),
        ("lower_bound", "lower_bound", lambda old: old + 0.01),
        ("distal", "confidence", lambda old: old * 0.98),
        ("distal", "status", lambda old: "reached" if old == "not_reached" else "not_reached"),
        ("detection", "status", lambda old: "clean_error" if old == "attacked" else "attacked"),
    ],
)
def test_an_altered_field_of_a_study_is_named(run, laboratory, kind, field, value):
    (entry,) = studies(run, kind)
    forge(run, entry, lambda records, images: records.__setitem__(field, changed(records[field], 1, value)))
    assert any(f" {field} is " in line for line in faults(run, laboratory, entry, 1))


def test_an_altered_image_of_a_study_is_named(run, laboratory):
    (entry,) = studies(run, "reconstruction")
    forge(run, entry, lambda records, images: images["study"].__setitem__((3, 0, 4, 4), 0.123))
    assert any(" image is another image" in line for line in faults(run, laboratory, entry, 1))


# What the ledger names must be what is here.


def test_other_weights_are_named_and_nothing_is_judged_with_them(run):
    other = run.parent / "other.py"
    other.write_text(PLUGIN.read_text().replace("Explained(dataset)", "_shifted(Explained(dataset))") + SHIFTED)
    result = verify(run, Laboratory(None, torch.device("cpu"), [other]))
    assert any("weights of explained are" in line for line in result.faults)
    assert any("explained: its weights are not those of the run" in line for line in result.unjudged)


SHIFTED = """

def _shifted(net):
    net.means += 0.1
    return net
"""


def test_a_defense_that_is_not_known_here_is_not_judged(run):
    result = verify(run, Laboratory(None, torch.device("cpu")))
    assert result.faults == []
    assert result.judged == 0
    assert any("unknown defense 'explained'" in line and "--plugin" in line for line in result.unjudged)


def test_clean_images_are_those_of_the_dataset(run, laboratory):
    planned = load_manifest(run)
    images = load_clean(run).copy()
    with np.load(run / "ledger" / planned.images) as file:
        labels = file["labels"]
    images[2, 0, 3, 3] = 0.4321
    name = write_clean(run, images, labels)
    write_manifest(run, planned.model_copy(update={"images": name}), finished=True)
    lines = faults(run, laboratory)
    assert any("row 2 (sample 2) images differ from the test set of digits" in line for line in lines)


@pytest.mark.parametrize("key", ["thresholds", "seed", "defenses", "samples", "cells"])
def test_a_manifest_made_anew_disagrees_with_the_files(run, laboratory, key):
    planned = load_manifest(run)
    altered = {
        "thresholds": {"L2": 50.0},
        "seed": 1,
        "defenses": tuple(each.model_copy(update={"weights": "0" * 16}) for each in planned.defenses),
        "samples": planned.samples[::-1],
        "cells": (planned.cells[0].model_copy(update={"epsilon": 0.5}), *planned.cells[1:]),
    }
    write_manifest(run, planned.model_copy(update={key: altered[key]}), finished=True)
    assert faults(run, laboratory)


def test_a_manifest_of_another_shape_is_a_fault_and_no_traceback(run, laboratory):
    path = run / "ledger" / "manifest.json"
    content = json.loads(path.read_text())
    del content["dataset"]
    path.write_text(json.dumps(sealed(content)))
    assert any("manifest.json: dataset: Field required" in line for line in faults(run, laboratory))


def test_a_fault_is_exit_status_1(run):
    entry, row = place(run, found)
    forge(
        run, entry, lambda records, images: records.__setitem__("l2", changed(records["l2"], row, lambda old: old / 2))
    )
    result = CliRunner().invoke(app, ["verify", str(run), "--plugin", str(PLUGIN), "--device", "cpu"])
    assert result.exit_code == 1
    assert "does not hold: " in result.output


# At random: criterion 4.


@dataclass(frozen=True)
class Sizes:
    copies: int
    alterations: int
    forgeries: int


SIZES = [
    pytest.param(Sizes(2, 60, 24), id="some"),
    pytest.param(Sizes(100, 1000, 300), id="all", marks=pytest.mark.slow),
]


def leaves(value, path=()):
    """Every place in a mapping that holds a single value."""
    if isinstance(value, (dict, list)) and value:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from leaves(item, (*path, key))
    else:
        yield path


def replaced(content, path, value):
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value


def another(value, random):
    """Another value of the same kind."""
    if isinstance(value, (bool, np.bool_)):
        return not value
    if isinstance(value, (int, np.integer)):
        return int(value) + int(random.integers(1, 9))
    if isinstance(value, (float, np.floating)):
        return float(random.random()) + 10 if not np.isfinite(value) else float(value) * 1.01 + 1e-3
    return f"{value}x" if isinstance(value, str) else "x"


def another_text(text):
    """Another number, or another text."""
    try:
        return f"{float(text) * 1.01 + 1e-3:.9g}" if np.isfinite(float(text)) else "1.5"
    except ValueError:
        return f"{text}x"


def alter(run, random):
    """Alters one field of one file, at random, and no hash; returns what was altered."""
    paths = sorted([*(run / "ledger").iterdir(), *(run / "report").glob("*.csv")])
    path = paths[random.integers(len(paths))]
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            rows = list(csv.reader(file))
        row, column = int(random.integers(len(rows))), int(random.integers(len(rows[0])))
        rows[row][column] = another_text(rows[row][column])
        with path.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)
        return path.name, (row, column)
    if path.suffix == ".json":
        content = json.loads(path.read_text())
        places = [place for place in leaves(content) if place]
        chosen = places[random.integers(len(places))]
        inner = content
        for key in chosen:
            inner = inner[key]
        replaced(content, chosen, another(inner, random))
        path.write_text(json.dumps(content))
        return path.name, chosen
    if path.suffix == ".npz":
        with np.load(path) as file:
            arrays = {key: file[key].copy() for key in file.files}
        name = sorted(arrays)[random.integers(len(arrays))]
        data = arrays[name].view(np.uint8).reshape(-1)
        byte = int(random.integers(len(data)))
        data[byte] ^= 1 << random.integers(8)
        np.savez_compressed(path, **arrays)
        return path.name, (name, byte)
    table = pq.read_table(path)
    if random.random() < 0.3:
        facts = json.loads(table.schema.metadata[b"assay"])
        places = [place for place in leaves(facts) if place]
        chosen = places[random.integers(len(places))]
        inner = facts
        for key in chosen:
            inner = inner[key]
        replaced(facts, chosen, another(inner, random))
        pq.write_table(table.replace_schema_metadata({"assay": json.dumps(facts)}), path)
        return path.name, chosen
    column, row = table.column_names[random.integers(table.num_columns)], int(random.integers(table.num_rows))
    values = table[column].to_pylist()
    values[row] = another(np.nan if values[row] is None else values[row], random)
    index = table.column_names.index(column)
    pq.write_table(
        table.set_column(index, table.schema.field(column), pa.array(values, table.schema.field(column).type)), path
    )
    return path.name, (column, row)


@pytest.mark.parametrize("sizes", SIZES)
def test_every_altered_field_of_every_file_is_detected(original, tmp_path, sizes):
    random = np.random.default_rng(20)
    for number in range(sizes.alterations):
        shutil.copytree(original, tmp_path / "run")
        what = alter(tmp_path / "run", random)
        # The ledger is untouched where the report is altered, so that its tables are those of the original.
        found = verify(tmp_path / "run", None, lambda run: differences(run / "report", original / "report"))
        assert found.faults, (number, what)
        shutil.rmtree(tmp_path / "run")


@pytest.mark.parametrize("sizes", SIZES)
def test_untouched_copies_are_not_reported(original, tmp_path, laboratory, sizes):
    for number in range(sizes.copies):
        shutil.copytree(original, tmp_path / f"copy{number}")
        follows = not_following if number < 3 else lambda run: ()
        assert verify(tmp_path / f"copy{number}", laboratory, follows).faults == []
        shutil.rmtree(tmp_path / f"copy{number}")


def forgeries(random):
    """Kinds of forgery: which records have it, and the field and its new value."""

    def distance(name):
        return (
            found,
            name,
            lambda records, row: records.loc[row, name] * (1 + random.choice([-1, 1]) * random.uniform(1e-9, 0.3)),
        )

    def refuted(records, row):
        """A rate that 400 draws at the recorded one refute at 1e-6."""
        rate = records.loc[row, "success_rate"]
        others = [
            k / 20
            for k in range(21)
            if binom.cdf(round(400 * rate), 400, k / 20) < 1e-6 or binom.sf(round(400 * rate) - 1, 400, k / 20) < 1e-6
        ]
        return random.choice(others)

    def class_but(name):
        return lambda records, row: random.choice([c for c in range(10) if c != records.loc[row, name]])

    return [
        (
            lambda records: records["broken"],
            "status",
            lambda records, row: random.choice(["not_found", "undecided", "failed", "violation"]),
        ),
        (lambda records: ~records["broken"], "status", lambda records, row: random.choice(["found", "clean_error"])),
        (lambda records: records["broken"] | True, "broken", lambda records, row: not records.loc[row, "broken"]),
        *map(distance, DISTANCES),
        (found, "adversarial_prediction", class_but("adversarial_prediction")),
        (found, "clean_prediction", class_but("clean_prediction")),
        (found, "label", class_but("label")),
        (found, "image", None),
        (lambda records: found(records) & records["defense"].eq("noisy"), "success_rate", refuted),
    ]


@pytest.mark.parametrize("sizes", SIZES)
def test_forgeries_with_new_hashes_are_named_with_row_and_field(original, tmp_path, laboratory, sizes):
    random, clean = np.random.default_rng(21), load_clean(original)
    for number in range(sizes.forgeries):
        shutil.copytree(original, tmp_path / "run")
        kinds = forgeries(random)
        if number % (len(kinds) + 1) == len(kinds):
            forge_number(original, tmp_path / "run", random)
            shutil.rmtree(tmp_path / "run")
            continue
        condition, field, value = kinds[number % (len(kinds) + 1)]
        entries = cells(tmp_path / "run")
        random.shuffle(entries)
        entry, row = chosen(tmp_path / "run", condition, entries, random)

        def change(records, images, field=field, value=value, row=row):
            if field == "image":
                images["adversarial"][row] = flipped(images["adversarial"][row], clean[row], random)
            else:
                records[field] = changed(records[field], row, lambda _: value(records, row))
            if field == "success_rate":
                records["success_low"], records["success_high"] = wilson_interval(records[field], 20)

        forge(tmp_path / "run", entry, change)
        lines = faults(tmp_path / "run", laboratory, entry, row)
        assert lines, (number, field, entry.files[0], row)
        if field in (*DISTANCES, "adversarial_prediction", "label", "success_rate"):
            assert any(f" {field} is " in line for line in lines), (number, field, lines)
        shutil.rmtree(tmp_path / "run")


def flipped(image, clean, random):
    """An image with another bit, which moves it. Where no distance changes, the record is as true as before."""
    while True:
        other = image.copy()
        data = other.view(np.uint8).reshape(-1)
        data[random.integers(len(data))] ^= 1 << random.integers(8)
        with np.errstate(all="ignore"):
            before, after = (np.abs(each.astype(np.float64) - clean) for each in (image, other))
            lengths = [float(np.sqrt(np.square(each).sum())) for each in (before, after)]
        if not np.isclose(*lengths, rtol=1e-12, atol=0) or before.max() != after.max():
            return other


def forge_number(original, run, random):
    """A number of a table: no hash covers it."""
    paths = sorted((run / "report").glob("*.csv"))
    path = paths[random.integers(len(paths))]
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    places = [(r, c) for r in range(1, len(rows)) for c, text in enumerate(rows[r]) if is_number(text)]
    if not places:
        return
    row, column = places[random.integers(len(places))]
    rows[row][column] = another_text(rows[row][column])
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
    (line,) = differences(run / "report", original / "report")
    assert f"{path}: row {row} " in line
    assert repr(rows[0][column]) in line


def is_number(text):
    try:
        float(text)
    except ValueError:
        return False
    return True


def chosen(run, condition, entries, random):
    for entry in entries:
        records, _ = read_cell(run / "ledger" / entry.files[0])
        rows = np.flatnonzero(condition(records))
        if len(rows):
            return entry, int(random.choice(rows))
    raise AssertionError("no such record")
