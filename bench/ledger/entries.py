"""The entries of a manifest: typed parts of which unknown keys are refused."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, WithJsonSchema

from bench.contracts.norms import NORMS, NormName, check_norm
from bench.contracts.work import ALPHA, Cell, Judging, Shard, Study, Work


def _known(norm: NormName) -> NormName:
    check_norm(norm, NORMS)
    return norm


KnownNorm = Annotated[NormName, AfterValidator(_known), WithJsonSchema({"enum": [*NORMS]})]
"""The name of a registered norm."""


class Entry(BaseModel):
    """A part of the manifest. Keys that it does not know are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class DatasetEntry(Entry):
    """The dataset of a run."""

    name: str
    classes: int
    shape: tuple[int, int, int]
    """Channels, height and width of an image."""


class DefenseEntry(Entry):
    """A defense of a run."""

    name: str
    """Its name or label, unique in the run."""
    citation: str = ""
    randomized: bool
    unrolled: bool = False
    """Whether it offers gradients through its optimization at inference."""
    optimizes: bool = False
    """Whether it optimizes at inference. False in runs from before it was recorded, unless ``unrolled`` is True."""
    parameters: dict[str, Any] = {}
    family: str = ""
    """The ablation family that it belongs to; empty for none."""
    parts: tuple[str, ...] = ()
    """The family's components that it includes."""
    weights: str | None = None
    """Fingerprint of its tensors; empty if it could not be built; None in the first runs of schema version 2."""
    plugin: str = ""
    """Registered name of a defense whose parameters the matrix sets; empty for others."""
    set: dict[str, Any] = {}
    """The parameters that the matrix sets."""
    samples: int | None = None
    """Number of samples, the first of the run's; None if all."""

    @property
    def measured(self) -> dict[str, Any]:
        """The fields that the defense's numbers depend on."""
        described = {"citation", "unrolled", "optimizes", "family", "parts", "samples"}
        return self.model_dump(exclude=described)


class AttackEntry(Entry):
    """An attack of a run, in all its norms."""

    name: str
    """Its name, with its variant after a colon."""
    norms: tuple[KnownNorm, ...]
    kind: Literal["minimal", "bounded"]
    access: str
    """An `bench.contracts.cards.Access`, or ``imported``."""
    parameters: dict[str, Any] = {}
    budget: int
    """Maximum number of forward plus backward passes per sample."""
    citation: str = ""


class JudgingEntry(Entry):
    """How the candidates of an import were judged (`bench.contracts.work.Judging`)."""

    alpha: float | tuple[float, ...]
    estimation_draws: int
    threshold: float
    seed: int | None


class CellEntry(Entry):
    """A cell of a run: the fields with which its file must agree."""

    id: str
    """Hash of everything that can change the result: 16 hexadecimal digits."""
    defense: str
    attack: str
    """The attack's name, with its variant after a colon."""
    norm: KnownNorm
    epsilon: float | None
    """Radius in the norm's unit; None for a minimal attack."""
    files: tuple[str, ...]
    """Names of its Parquet files in the ledger's folder, one per chunk, in the order of the run's samples."""
    chunk: int | None = None
    """Number of samples in each file but the last; None if one file holds all."""
    parameters: dict[str, Any]
    budget: int
    """Maximum number of forward plus backward passes per sample."""
    inner_budget: int | None = None
    """Maximum number of steps per sample of the defense's optimization; None for no limit."""
    reference_budget: int = 1
    """The budget in passes below which the cell's number is doubted."""
    identity: dict[str, Any] | None = None
    """What the id is made of; None for an imported cell, and before schema version 3."""
    alpha: float | None = None
    """Maximum probability of a mistaken verdict per sample; None for a deterministic defense."""
    estimation_draws: int | None = None
    """Number of draws that estimate success rates; None for a deterministic defense."""
    start: tuple[str, ...] = ()
    """The attacks from whose adversarial examples it starts."""
    imported: dict[str, str] | None = None
    """State of an imported cell besides its candidates; None for others."""
    judging: JudgingEntry | None = None
    """How an imported cell on a randomized defense was judged; None for others."""
    samples: tuple[int, ...] | None = None
    """The samples for which an import has candidates; None for other cells."""

    @classmethod
    def of(cls, cell: Cell, shards: Sequence[Shard]) -> CellEntry:
        """Returns the entry of a planned cell."""
        return cls(
            **_common(cell),
            files=tuple(shard.file for shard in shards),
            chunk=cell.chunk,
            attack=cell.attack,
            parameters=cell.parameters,
            budget=cell.budget,
            inner_budget=cell.inner_budget,
            reference_budget=cell.reference_budget,
            identity=cell.identity,
            start=tuple(start.attack for start in cell.starts),
            **_terms(cell.judging),
        )

    @classmethod
    def of_import(cls, cell: Cell, samples: Iterable[int]) -> CellEntry:
        """Returns the entry of an imported cell with candidates for ``samples``."""
        return cls(
            **_common(cell),
            files=(cell.file(),),
            attack=cell.attack,
            parameters=cell.parameters,
            budget=cell.budget,
            **{**_terms(cell.judging), "alpha": ALPHA if cell.judging else None},
            imported={key: value for key, value in cell.state.items() if key != "attack"},
            judging=None if cell.judging is None else JudgingEntry(**asdict(cell.judging)),
            samples=tuple(samples),
        )

    @property
    def place(self) -> tuple[str, str, str, float | None]:
        """The position of its number in the tables; only one cell of a run has it."""
        return self.defense, self.attack, self.norm, self.epsilon

    @property
    def title(self) -> str:
        """The title for people."""
        return f"{self.defense} · {self.attack} · {self.norm}"


class StudyEntry(Entry):
    """A study of a run: the fields with which its file must agree."""

    id: str
    """Hash of everything that can change the result: 16 hexadecimal digits."""
    kind: str
    defense: str
    norm: KnownNorm | None
    """None if the norm makes no difference."""
    epsilon: float | None = None
    """Radius in the norm's unit; None if it makes no difference."""
    file: str
    """Name of its Parquet file in the ledger's folder."""
    identity: dict[str, Any] | None = None
    """What the id is made of; None before schema version 3."""

    @classmethod
    def of(cls, study: Study) -> StudyEntry:
        """Returns the entry of a study."""
        return cls(**_common(study), file=study.file(), kind=study.kind, identity=study.identity)

    @property
    def files(self) -> tuple[str, ...]:
        """The names of its files: one."""
        return (self.file,)

    @property
    def place(self) -> tuple[str, str, str | None]:
        """What it measures; only one study of a run has it."""
        return self.defense, self.kind, self.norm

    @property
    def title(self) -> str:
        """The title for people."""
        return " · ".join(filter(None, (self.defense, self.kind, self.norm)))


WorkEntry = CellEntry | StudyEntry


def entry_of(work: Work, shards: Sequence[Shard]) -> WorkEntry:
    """Returns the entry of a planned cell or of a study."""
    if isinstance(work, Cell):
        return CellEntry.of(work, shards)
    assert isinstance(work, Study)
    return StudyEntry.of(work)


class GapEntry(Entry):
    """An attack that cannot be run against a defense, and why."""

    defense: str
    attack: str
    norm: KnownNorm
    reason: str


class PluginEntry(Entry):
    """A plugin's file, and the SHA-256 hashes of its sources by relative path."""

    file: str
    sha256: dict[str, str]


class Turn(Entry):
    """An import to a randomized defense: the key of its draws and its shares of alpha (`bench.execution.importing`)."""

    defense: str
    attack: str
    state: dict[str, str]
    samples: tuple[int, ...]
    """The samples for which the file has candidates."""
    seed: int
    alpha: tuple[float, ...]
    """One share for each sample of the run."""


def attacks_of_imports(cells: Iterable[CellEntry]) -> list[AttackEntry]:
    """Returns the entries of the attacks of imported cells."""
    norms: dict[str, dict[NormName, None]] = {}
    for cell in cells:
        norms.setdefault(cell.attack, {})[cell.norm] = None
    return [
        AttackEntry(name=label, norms=tuple(own), kind="minimal", access="imported", budget=1)
        for label, own in norms.items()
    ]


def _common(work: Work) -> dict[str, Any]:
    return {key: getattr(work, key) for key in ("id", "defense", "norm", "epsilon")}


def _terms(judging: Judging | None) -> dict[str, Any]:
    if judging is None:
        return {"alpha": None, "estimation_draws": None}
    return {"alpha": judging.alpha, "estimation_draws": judging.estimation_draws}
