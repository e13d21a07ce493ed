"""The manifest: the contents of a run, and the hash of each of its files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.contracts.errors import UserError
from bench.contracts.work import SCHEMA_VERSION
from bench.ledger.atomic import write_atomically
from bench.ledger.schema import READABLE, ledger_dir
from bench.ledger.seals import SEAL, altered_key, sealed


def write_manifest(run: Path, manifest: Mapping[str, Any], *, finished: bool = False) -> None:
    """Writes the run's manifest (see `bench.ledger`).

    An existing file stays as it is if its seal holds and it differs only in its provenance.

    A finished run's manifest holds the hash of every file.
    """
    path = ledger_dir(run) / "manifest.json"
    content = {**manifest, "schema": SCHEMA_VERSION}
    content.pop("files", None)
    if finished:
        content["files"] = file_hashes(run, content)
    new = sealed(content)
    if path.exists():
        old = _parsed(path)
        aside = dict.fromkeys(("provenance", SEAL))
        if altered_key(old) is None and {**old, **aside} == {**new, **aside}:
            return
    write_atomically(path, lambda temporary: temporary.write_text(json.dumps(new, indent=1)))


def file_hashes(run: Path | str, manifest: Mapping[str, Any]) -> dict[str, str]:
    """Returns the SHA-256 of each existing file of a run's ledger, by file name."""
    names = [manifest["images"]] if "images" in manifest else []
    for work in works(manifest):
        names += [work["file"], str(Path(work["file"]).with_suffix(".npz"))]
    paths = [ledger_dir(run) / name for name in dict.fromkeys(names)]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths if path.exists()}


def is_finished(run: Path | str, manifest: Mapping[str, Any]) -> bool:
    """Returns whether every cell and study of a manifest has a result."""
    return all((ledger_dir(run) / work["file"]).exists() for work in works(manifest))


def works(manifest: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Returns the entries of a manifest's cells and studies."""
    return [*manifest["cells"], *manifest.get("studies", [])]


def load_manifest(run: Path | str) -> dict[str, Any]:
    """Loads the manifest of a run. Its ``schema`` is the version in which it was written.

    Raises:
        UserError: when the manifest is missing, is corrupt, was altered, names a file in another folder, or has a
            schema version that is not readable.
    """
    path = ledger_dir(run) / "manifest.json"
    try:
        manifest = _parsed(path)
    except FileNotFoundError:
        raise UserError(f"run {run}: no ledger there ({path} is missing); make one with: assay run") from None
    if manifest.get("schema") not in READABLE:
        raise UserError(
            f"manifest {path}: schema version {manifest.get('schema')}, this assay reads "
            f"{' and '.join(map(str, READABLE))}; delete the run's folder or choose another with --out"
        )
    key = altered_key(manifest) if manifest["schema"] == SCHEMA_VERSION else None
    if key is not None:
        raise UserError(
            f"manifest {path}: its key {key!r} was altered: it differs from its seal; "
            "delete the manifest and repeat the assay run that made it"
        )
    names = [manifest.get("images", ""), *(work["file"] for work in works(manifest)), *manifest.get("files", {})]
    for name in names:
        if Path(name).name != name:
            raise UserError(f"manifest {path}: its file {name!r} lies in another folder; repeat the assay run")
    return manifest


def _parsed(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"manifest {path}: corrupt ({error}); delete it and repeat the assay run") from None
    if not isinstance(manifest, dict):
        raise UserError(f"manifest {path}: corrupt (not an object); delete it and repeat the assay run")
    return manifest
