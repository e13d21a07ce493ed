"""The manifest's file: ``manifest.json`` in the ledger's folder, sealed, with the hash of every file of the run."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bench.contracts.errors import UserError
from bench.contracts.work import SCHEMA_VERSION
from bench.ledger.atomic import write_atomically
from bench.ledger.manifest import Manifest
from bench.ledger.schema import CHUNKED, READABLE, SEALED, ledger_dir
from bench.ledger.seals import SEAL, altered_key, sealed


def write_manifest(run: Path, manifest: Manifest, *, finished: bool = False) -> None:
    """Writes the run's manifest in the current schema version (see `bench.ledger`).

    An existing file stays as it is if its seal holds and it differs only in its provenance.

    A finished run's manifest holds the hash of every file.
    """
    path = ledger_dir(run) / "manifest.json"
    content = manifest.model_dump(mode="json", by_alias=True, exclude={"files"}, exclude_unset=True)
    content["schema"] = SCHEMA_VERSION
    if finished:
        content["files"] = file_hashes(run, manifest)
    new = sealed(content)
    if path.exists():
        old = _parsed(path)
        aside = dict.fromkeys(("provenance", SEAL))
        if altered_key(old) is None and {**old, **aside} == {**new, **aside}:
            return
    write_atomically(path, lambda temporary: temporary.write_text(json.dumps(new, indent=1)))


def load_manifest(run: Path | str) -> Manifest:
    """Loads the manifest of a run.

    Raises:
        UserError: when the manifest is missing, is corrupt, was altered, names a file in another folder, or has a
            schema version that is not readable.
    """
    path = ledger_dir(run) / "manifest.json"
    try:
        content = _parsed(path)
    except FileNotFoundError:
        raise UserError(f"run {run}: no ledger there ({path} is missing); make one with: assay run") from None
    if content.get("schema") not in READABLE:
        raise UserError(
            f"manifest {path}: schema version {content.get('schema')}, this assay reads "
            f"{', '.join(map(str, READABLE))}; delete the run's folder or choose another with --out"
        )
    key = altered_key(content) if content["schema"] >= SEALED else None
    if key is not None:
        raise UserError(
            f"manifest {path}: its key {key!r} was altered: it differs from its seal; "
            "delete the manifest and repeat the assay run that made it"
        )
    content.pop(SEAL, None)
    if content["schema"] < CHUNKED:
        for key in ("cells", "imported"):
            content[key] = [_in_one_file(cell) for cell in content.get(key, ())]
    try:
        manifest = Manifest.model_validate_json(json.dumps(content), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(f"manifest {path}: {place}: {first['msg']}; it is not what a run has") from None
    for name in (manifest.images, *_files(manifest), *(manifest.files or ())):
        if Path(name).name != name:
            raise UserError(f"manifest {path}: its file {name!r} lies in another folder; repeat the assay run")
    return manifest


def manifest_there(run: Path | str) -> Manifest | None:
    """Returns the manifest of a run, or None if there is none of the current schema version."""
    if not (ledger_dir(run) / "manifest.json").exists():
        return None
    known = load_manifest(run)
    return known if known.schema_version == SCHEMA_VERSION else None


def file_hashes(run: Path | str, manifest: Manifest) -> dict[str, str]:
    """Returns the SHA-256 of each existing file of a run's ledger, by file name."""
    names = [manifest.images]
    for file in _files(manifest):
        names += [file, str(Path(file).with_suffix(".npz"))]
    paths = [ledger_dir(run) / name for name in dict.fromkeys(names)]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths if path.exists()}


def is_finished(run: Path | str, manifest: Manifest) -> bool:
    """Returns whether every cell and study of a manifest has a result."""
    return all((ledger_dir(run) / file).exists() for file in _files(manifest))


def _files(manifest: Manifest) -> list[str]:
    return [file for work in manifest.works for file in work.files]


def _in_one_file(cell: Any) -> Any:
    """Converts a cell's entry of an older schema version."""
    if not isinstance(cell, dict) or "file" not in cell:
        return cell
    return {key: value for key, value in cell.items() if key != "file"} | {"files": [cell["file"]]}


def _parsed(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"manifest {path}: corrupt ({error}); delete it and repeat the assay run") from None
    if not isinstance(content, dict):
        raise UserError(f"manifest {path}: corrupt (not an object); delete it and repeat the assay run")
    return content
