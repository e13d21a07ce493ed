import json
import shutil
from pathlib import Path

import pytest
from made_up_manifest import manifest

from bench.contracts.errors import UserError
from bench.contracts.work import SCHEMA_VERSION
from bench.ledger.loading import load_adversarials, load_clean, load_ledger, load_studies
from bench.ledger.manifest_file import is_finished, load_manifest, manifest_there, write_manifest
from bench.ledger.schema import COLUMNS, READABLE
from bench.ledger.seals import sealed

STORED = sorted((Path(__file__).parents[2] / "stored_runs").iterdir())
"""One small run of every schema version that Assay has written, as its own version left it."""


def version_of(stored):
    return int(stored.name.removeprefix("schema_"))


@pytest.fixture
def run(tmp_path):
    (tmp_path / "ledger").mkdir()
    write_manifest(tmp_path, manifest())
    return tmp_path


def test_there_is_a_stored_run_of_every_schema_version():
    assert [version_of(stored) for stored in STORED] == list(range(1, SCHEMA_VERSION + 1))


@pytest.mark.parametrize("stored", STORED, ids=lambda stored: stored.name)
def test_a_stored_run_is_read_or_refused_in_one_line(stored):
    if version_of(stored) not in READABLE:
        with pytest.raises(UserError, match=r"schema version 1, this assay reads 2, 3, 4; delete") as caught:
            load_ledger(stored)
        assert "\n" not in str(caught.value)
        return
    known = load_manifest(stored)
    assert known.schema_version == version_of(stored)
    frame = load_ledger(stored)
    assert list(frame.columns) == list(COLUMNS)
    assert len(frame) == len(known.cells) * len(known.samples)
    assert len(load_studies(stored, "lower_bound")) == 3 * sum(study.kind == "lower_bound" for study in known.studies)
    for cell in known.cells:
        assert load_adversarials(stored, cell.id).shape == load_clean(stored).shape == (3, 1, 8, 8)


def test_what_schema_2_has_no_column_for_is_zero_or_unknown():
    """The draws of a randomized defense are those that decided."""
    frame = load_ledger(STORED[1])
    draws = frame.set_index("defense")["draws_deciding"]
    assert (draws["nearest_neighbour"] == 0).all()
    assert (draws["v_abs"] >= 10).all()
    assert (frame["draws_choosing"] == 0).all()
    assert frame["success_low"].isna().all()


def test_a_stored_manifest_of_this_version_is_written_again_as_it_is(tmp_path):
    shutil.copytree(STORED[-1], tmp_path / "run")
    path = tmp_path / "run" / "ledger" / "manifest.json"
    before = json.loads(path.read_text())
    path.unlink()
    write_manifest(tmp_path / "run", load_manifest(STORED[-1]), finished=True)
    assert json.loads(path.read_text()) == before


def test_what_is_written_is_read(run):
    assert load_manifest(run) == manifest()


def test_a_manifest_is_written_again_only_if_it_says_something_else(run):
    path = run / "ledger" / "manifest.json"
    before = path.stat().st_mtime_ns
    write_manifest(run, manifest(provenance={"command": "again"}))
    assert path.stat().st_mtime_ns == before
    write_manifest(run, manifest(thresholds={"L2": 1.0}))
    assert load_manifest(run).thresholds == {"L2": 1.0}


def test_a_run_is_finished_when_every_work_has_a_file(run):
    for work in manifest().works:
        assert not is_finished(run, manifest())
        for file in work.files:
            (run / "ledger" / file).touch()
    assert is_finished(run, manifest())


def test_a_missing_or_corrupt_manifest_is_named(tmp_path):
    with pytest.raises(UserError, match="no ledger there"):
        load_manifest(tmp_path)
    assert manifest_there(tmp_path) is None
    (tmp_path / "ledger").mkdir()
    for text, message in (
        ("{", "corrupt"),
        ("[]", r"corrupt \(not an object\)"),
        (json.dumps({"schema": 0}), "schema version 0"),
    ):
        (tmp_path / "ledger" / "manifest.json").write_text(text)
        with pytest.raises(UserError, match=message):
            load_manifest(tmp_path)


@pytest.mark.parametrize("change", ["altered", "added", "removed", "unsealed"])
def test_an_altered_manifest_differs_from_its_seal(run, change):
    path = run / "ledger" / "manifest.json"
    content = json.loads(path.read_text())
    if change == "altered":
        content["thresholds"]["L2"] = 50
    elif change == "added":
        content["thresholdz"] = 50
    else:
        del content["thresholds" if change == "removed" else "seal"]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"manifest\.json: its key '(threshold.|seal)' was altered"):
        load_manifest(run)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("cells", 0, "epsilon"), "large", r"cells\.0\.epsilon: Input should be a valid number"),
        (("cells", 0, "norm"), "L7", r"cells\.0\.norm"),
        (("cells", 0, "color"), "red", r"cells\.0\.color: Extra inputs are not permitted"),
        (("samples",), 3, "samples"),
        (("defenses",), [{}], r"defenses\.0\.name: Field required"),
        (("images",), "../images.npz", r"its file '\.\./images\.npz' lies in another folder"),
    ],
)
def test_a_sealed_manifest_of_invalid_content_is_refused_in_one_line(run, place, value, message):
    path = run / "ledger" / "manifest.json"
    content = json.loads(path.read_text())
    *way, last = place
    target = content
    for step in way:
        target = target[step]
    target[last] = value
    path.write_text(json.dumps(sealed(content)))
    with pytest.raises(UserError, match=f"manifest .*: {message}") as caught:
        load_manifest(run)
    assert "\n" not in str(caught.value)
