"""Bundles: a run in one zip file that anyone can read, and can verify without running code from it.

::

    README.md          description of the other members
    bundle.json        versions, and the hashes of the weights
    matrix.json        the matrix that was run
    ledger/            records (Parquet), images (npz), manifest (JSON)
    report/*.csv       the tables, where the run has a report
    plugins/<n>/       sources of the run's n-th plugin file and of the modules beside it that it imports
    weights/           checkpoints, if they were requested
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePath, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

from bench.contracts.errors import UserError
from bench.contracts.source import PACKAGES, ROOT, Sources
from bench.ledger.atomic import write_atomically
from bench.ledger.entries import PluginEntry
from bench.ledger.manifest import Manifest
from bench.ledger.manifest_file import file_hashes, is_finished, load_manifest
from bench.ledger.schema import ledger_dir

MAX_BYTES = 16 * 2**30
"""Maximum size of all members of a bundle together, unpacked, in bytes."""
MAX_MEMBERS = 100_000
_FOLDERS = ("ledger", "report", "plugins", "weights")
_FILES = ("README.md", "bundle.json", "matrix.json")
_EPOCH = (1980, 1, 1, 0, 0, 0)

README = """# A run of Assay, {matrix}

A robustness benchmark of image classifiers. Check this file with `assay verify FILE.zip`. That judges every adversarial
again, and runs no code out of the file.

- `matrix.json`: what was run.
- `ledger/manifest.json`: defenses, attacks, thresholds, the file of each cell and study, the hash of each file.
- `ledger/*.parquet`: one row per sample; read them with pandas. Distances are 0 for an image that is misclassified as
  it is, infinity where no adversarial was found, and NaN where nothing is known.
- `ledger/*.npz`: arrays of images (N, C, H, W), float32 in [0, 1]: `images` and `labels` are the clean ones,
  `adversarial` (zeros where none was found) and `likeliest` those of a cell, `study` those of a study.
- `report/*.csv`: tables made from the ledger.
- `plugins/`: sources of code that is not Assay's.
- `weights/`: checkpoints (safetensors), if they were packed. `bundle.json` has the hashes of all weights.
"""


def write_bundle(run: Path, out: Path, checkpoints: Mapping[str, Iterable[Path]] | None = None) -> Path:
    """Packs a finished run into the file ``out`` and returns this path. An existing file is replaced.

    ``checkpoints`` maps folders in the bundle's ``weights`` to the files of weights that go there.

    Raises:
        UserError: when the run is not finished, or a plugin is missing or has changed since the run.
    """
    manifest = load_manifest(run)
    if not is_finished(run, manifest):
        raise UserError(f"run {run}: not finished, a bundle would lack results; repeat the assay run that made it")
    members: dict[str, bytes | Path] = {
        "README.md": README.format(matrix=manifest.matrix).encode(),
        "bundle.json": _json(_about(manifest)),
        "matrix.json": _json(manifest.definition),
        "ledger/manifest.json": ledger_dir(run) / "manifest.json",
    }
    members |= {f"ledger/{name}": ledger_dir(run) / name for name in sorted(file_hashes(run, manifest))}
    report = [*sorted((run / "report").glob("*.csv")), run / "report" / "options.json"]
    members |= {f"report/{path.name}": path for path in report if path.exists()}
    for number, plugin in enumerate(manifest.plugins):
        members |= {f"plugins/{number}/{name}": content for name, content in unchanged_sources(plugin).items()}
    for folder, paths in (checkpoints or {}).items():
        members |= {f"weights/{folder}/{path.name}": path for path in paths}

    def write(temporary: Path) -> None:
        with zipfile.ZipFile(temporary, "w") as archive:
            for name, content in members.items():
                info = zipfile.ZipInfo(name, _EPOCH)
                info.external_attr = 0o644 << 16
                stored = name.endswith((".npz", ".parquet"))  # these are compressed already
                info.compress_type = zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED
                archive.writestr(info, content if isinstance(content, bytes) else content.read_bytes())

    write_atomically(out, write)
    return out


def _about(manifest: Manifest) -> dict[str, Any]:
    return {
        "format": 1,
        "run": manifest.matrix,
        "schema": manifest.schema_version,
        "versions": manifest.provenance.get("versions", {}),
        "weights": {defense.name: defense.weights for defense in manifest.defenses},
    }


def _json(content: Any) -> bytes:
    return json.dumps(content, indent=1).encode()


def plugin_sources(path: Path) -> dict[str, bytes]:
    """Returns the sources of a plugin's file and of the modules beside it that it imports, by relative path."""
    place = path.resolve()
    sources = Sources(place)
    sources.closure(place.name)
    ours = [ROOT / package for package in PACKAGES]
    own = {
        file.relative_to(place.parent).as_posix(): content
        for file, content in sources.contents.items()
        if file.is_relative_to(place.parent) and not any(file.is_relative_to(folder) for folder in ours)
    }
    return {place.name: place.read_bytes(), **own}


def plugin_entry(path: Path) -> PluginEntry:
    """Returns a plugin's entry in a manifest: its file, and the SHA-256 hashes of its sources."""
    hashes = {name: _sha256(content) for name, content in plugin_sources(path).items()}
    return PluginEntry(file=str(path), sha256=hashes)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def unchanged_sources(plugin: PluginEntry) -> dict[str, bytes]:
    """Returns the sources of a plugin. Raises `UserError` unless they are the sources that were run."""
    path = Path(plugin.file)
    try:
        sources = plugin_sources(path)
    except OSError:
        raise UserError(f"plugin {path}: not there any more; a bundle needs its source") from None
    if {name: _sha256(content) for name, content in sources.items()} != plugin.sha256:
        raise UserError(f"plugin {path}: changed since the run; repeat the assay run, then bundle it")
    return sources


@contextmanager
def opened(path: Path, trust: bool) -> Iterator[tuple[Path, list[Path]]]:
    """Yields the folder of a run or of an unpacked bundle, and the plugin files in it that may be run.

    A bundle stays unpacked for the duration of the context. Its plugin files are yielded only with ``trust``.

    Raises:
        UserError: when the file is not a bundle, or a bundle may not hold one of its members.
    """
    if not path.is_file():
        yield path, []
        return
    with TemporaryDirectory(prefix="assay-bundle-") as name:
        folder = Path(name)
        _unpack(path, folder)
        manifest = load_manifest(folder)
        plugins = list(_trusted(folder, manifest)) if trust else []
        before = os.environ.get("ASSAY_CACHE")
        if (folder / "weights").is_dir():
            os.environ["ASSAY_CACHE"] = str(folder / "weights")
        try:
            yield folder, plugins
        finally:
            os.environ.pop("ASSAY_CACHE", None)
            if before is not None:
                os.environ["ASSAY_CACHE"] = before


def _trusted(folder: Path, manifest: Manifest) -> Iterator[Path]:
    """Yields the plugin files of an unpacked bundle. Their folder must hold exactly the sources that were run."""
    for number, plugin in enumerate(manifest.plugins):
        place = folder / "plugins" / str(number)
        files = {path.relative_to(place).as_posix(): path for path in place.rglob("*") if path.is_file()}
        name = PurePath(plugin.file).name
        if {key: _sha256(path.read_bytes()) for key, path in files.items()} != plugin.sha256 or name not in files:
            raise UserError(f"bundle: plugin {name} is not the one that was run; its manifest has another hash")
        yield files[name]


def _unpack(path: Path, folder: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
            _check_members(path, infos)
            if shutil.disk_usage(folder).free < sum(info.file_size for info in infos):
                raise UserError(f"bundle {path}: the disk has no room for what it holds")
            for info in infos:
                if not info.is_dir():
                    _extract(archive, info, folder / info.filename)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, zipfile.LargeZipFile) as error:
        raise UserError(f"bundle {path}: not a readable zip file ({error})") from None
    for packed in folder.glob("ledger/*.npz"):
        _check_arrays(path, packed)


def _extract(archive: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(info) as source, target.open("xb") as file:
        shutil.copyfileobj(source, file, 2**20)  # zipfile stops at the size that was checked


def _check_members(path: Path, infos: list[zipfile.ZipInfo]) -> None:
    """Checks, before anything is written, that members are few and small, stay in the folder and are plain files."""
    if len(infos) > MAX_MEMBERS:
        raise UserError(f"bundle {path}: {len(infos)} members; at most {MAX_MEMBERS} are unpacked")
    total = sum(info.file_size for info in infos)
    if total > MAX_BYTES:
        raise UserError(f"bundle {path}: {total} bytes unpacked; at most {MAX_BYTES} are")
    seen: set[str] = set()
    for info in infos:
        fault = _fault(info)
        if fault is None and info.filename.casefold() in seen:
            fault = "stands twice"
        if fault is not None:
            raise UserError(f"bundle {path}: member {info.orig_filename!r} {fault}; nothing was unpacked")
        seen.add(info.filename.casefold())


def _fault(info: zipfile.ZipInfo) -> str | None:
    """Returns why a member is not unpacked, or None."""
    name = info.orig_filename
    parts = PurePosixPath(name).parts
    kind = stat.S_IFMT(info.external_attr >> 16)
    if name != info.filename or "\\" in name or ":" in name or any(ord(letter) < 32 for letter in name):
        return "has a name with forbidden characters"
    if name.startswith("/") or not parts or any(part in (".", "..") for part in name.split("/")):
        return "points out of the folder"
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or a special file"
    if info.flag_bits & 0x1:
        return "is encrypted"
    if not ((parts[0] in _FOLDERS and (len(parts) > 1 or info.is_dir())) or parts in {(file,) for file in _FILES}):
        return f"is not what a bundle holds ({', '.join((*_FILES, *(f'{folder}/' for folder in _FOLDERS)))})"
    return None


def _check_arrays(path: Path, packed: Path) -> None:
    """Checks that the unpacked arrays of an npz file are at most as large as a whole bundle may be."""
    try:
        with zipfile.ZipFile(packed) as archive:
            size = sum(info.file_size for info in archive.infolist())
    except zipfile.BadZipFile:
        return  # the reader of the file reports it
    if size > MAX_BYTES:
        raise UserError(f"bundle {path}: {packed.name} holds {size} bytes unpacked; at most {MAX_BYTES} are")
