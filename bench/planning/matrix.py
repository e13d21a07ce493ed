"""Matrix files: the validated TOML files that ``assay run`` executes. Unknown keys are refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from graphlib import CycleError, TopologicalSorter
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from bench.contracts.cards import AttackCard, Kind
from bench.contracts.errors import unknown
from bench.contracts.norms import NormName
from bench.contracts.work import Inference
from bench.ledger.entries import KnownNorm
from bench.plugins.registry import GROUPS, Group, Variants
from bench.studies.catalog import STUDIES


def _known_study(kind: str) -> str:
    if kind not in STUDIES.names():
        raise ValueError(str(unknown("study", kind, STUDIES.names())))
    return kind


def _with_studies(schema: dict[str, Any]) -> None:
    schema["enum"] = STUDIES.names()


StudyKind = Annotated[str, AfterValidator(_known_study), Field(json_schema_extra=_with_studies)]
"""The name of a kind of study (`bench.studies.catalog`)."""
Threshold = Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Entry(_Strict):
    """A plugin of a matrix.

    Attributes:
        name: registered name of the plugin.
        variant: distinguishes entries of the same plugin. It is shown after a colon.
        parameters: parameters of the plugin, as its function declares them.
    """

    name: str
    variant: str = Field("", pattern=r"^[a-z0-9_]*$")
    parameters: dict[str, Any] = {}

    @property
    def label(self) -> str:
        """Returns the name in ledgers and tables."""
        return f"{self.name}:{self.variant}" if self.variant else self.name


class DefenseEntry(Entry):
    """One defense of a matrix.

    Attributes:
        attacks: the only attacks that run on it, by name or label (default: all).
        studies: the only studies of the matrix that run on it (default: all).
        samples: number of samples, if fewer than the matrix's: the first N of them.
    """

    samples: int | None = Field(None, ge=1)
    attacks: tuple[str, ...] | None = None
    studies: tuple[StudyKind, ...] | None = None

    def admits(self, attack: AttackEntry) -> bool:
        """Returns True if the attack may run on this defense."""
        return self.attacks is None or bool({attack.name, attack.label} & {*self.attacks})


class AttackEntry(Entry):
    """One attack of a matrix.

    Attributes:
        norms: norms of the threat models (default: all norms that the attack and the matrix share).
        bounded: attack within the ball of the norm's threshold instead of minimizing the distance.
        budget: forward plus backward passes per sample (default: the card's).
        inner_budget: steps per sample of a defense's optimization, after which the attack ends as at its budget
            (default: no limit).
        defenses: labels of the only defenses that this entry attacks (default: all that no other entry with the same
            label names).
        start: labels of other attacks. A minimal attack that can starts from the nearest adversarial example that they
            found, in the same norm.
    """

    norms: tuple[KnownNorm, ...] | None = None
    bounded: bool = False
    budget: int | None = Field(None, ge=1)
    inner_budget: int | None = Field(None, ge=1)
    defenses: tuple[str, ...] | None = None
    start: tuple[str, ...] = ()

    @property
    def kind(self) -> Kind:
        """Returns "bounded" if the attack stays within a ball, "minimal" if it minimizes the distance."""
        return "bounded" if self.bounded else "minimal"

    def covers(self, defense: str) -> bool:
        """Returns True if this entry attacks the defense with this label."""
        return self.defenses is None or defense in self.defenses

    def effective(self, card: AttackCard, norms: Sequence[str]) -> dict[str, Any]:
        """Returns the parameters that have an effect in at least one of these norms: as set here, or the defaults."""
        parameters = {**card.parameters, **self.parameters}
        return {name: parameters[name] for name in parameters if any(card.matters(name, self.kind, n) for n in norms)}


class Matrix(_Strict):
    """A benchmark: one dataset, some defenses, some attacks.

    Attributes:
        name: name of the run's folder (default: the file's stem).
        samples: number N of samples: the first N images of the test set.
        thresholds: epsilon of robust accuracy and of bounded attacks, per norm. The keys are the attacked norms. At
            epsilon 0, robust accuracy is clean accuracy.
        seed: seed of training and attacks.
        chunk: number of samples attacked together (default: the defense's batch size).
        cell_timeout: seconds after which a cell fails.
        substitute: the defense on which attacks with `transfer` access compute their perturbations.
        studies: kinds of studies (`bench.studies.study`) on each defense to which they apply.
        estimation_draws: number of further draws that estimate how often a randomized defense misclassifies an image.
        resubmissions: maximum number of submissions of an image to a randomized defense until one is misclassified.
        inference: "warm" if defenses that optimize at inference may answer an attack's queries from those before,
            "exact" if they may not. Verdicts are exact.
    """

    name: str = ""
    dataset: str
    samples: int = Field(ge=1)
    thresholds: dict[KnownNorm, Threshold] = Field(min_length=1)
    defenses: tuple[DefenseEntry, ...] = Field(min_length=1)
    attacks: tuple[AttackEntry, ...] = Field(min_length=1)
    seed: int = Field(0, ge=0)
    chunk: int | None = Field(None, ge=1)
    cell_timeout: float | None = Field(None, gt=0)
    substitute: str = "cnn"
    studies: tuple[StudyKind, ...] = ("lower_bound",)
    estimation_draws: int = Field(20, ge=1)
    resubmissions: int = Field(10, ge=1)
    inference: Inference = "warm"

    @property
    def labels(self) -> list[str]:
        """Returns the names of the defenses in ledgers and tables."""
        return [entry.label for entry in self.defenses]

    @property
    def variants(self) -> Variants:
        """Returns the defenses with a variant or parameters from the matrix, for the registry."""
        return {
            entry.label: (entry.name, entry.parameters) for entry in self.defenses if entry.variant or entry.parameters
        }

    @field_validator("attacks", "defenses", mode="before")
    @classmethod
    def _names_are_entries(cls, value: object) -> object:
        return [_entry(entry) for entry in value] if isinstance(value, (list, tuple)) else value

    @field_validator("studies")
    @classmethod
    def _no_study_twice(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < len(value):
            raise ValueError("a study stands twice")
        return value

    @model_validator(mode="after")
    def _enough_draws(self) -> Matrix:
        if self.resubmissions > self.estimation_draws:
            raise ValueError(
                f"resubmissions is {self.resubmissions}; at most estimation_draws, {self.estimation_draws}, are allowed"
            )
        return self

    @model_validator(mode="after")
    def _no_place_twice(self) -> Matrix:
        for label, count in Counter(self.labels).items():
            if count > 1:
                raise ValueError(f"defense {label!r} stands twice; give one a variant")
        seen: dict[tuple[str, str], set[NormName | None]] = {}
        for entry in self.attacks:
            for defense in self.attacked_by(entry):
                before = seen.setdefault((entry.label, defense), set())
                # An entry without norms has them all.
                for norm in entry.norms or (None,):
                    if norm in before or None in before or (norm is None and before):
                        raise ValueError(f"attack {entry.label!r} stands twice for {defense!r}; give one a variant")
                    before.add(norm)
        return self

    @model_validator(mode="after")
    def _starts_are_attacks(self) -> Matrix:
        labels = [entry.label for entry in self.attacks]
        for entry in self.attacks:
            for label in entry.start:
                if label not in labels:
                    raise ValueError(str(unknown(f"start of {entry.label!r}", label, labels)))
        self.in_order_of_starts()
        return self

    def in_order_of_starts(self) -> list[AttackEntry]:
        """Returns the attacks so that each comes after those that it starts from.

        Raises:
            ValueError: when attacks start from each other.
        """
        before: dict[str, set[str]] = {}
        for entry in self.attacks:
            before.setdefault(entry.label, set()).update(entry.start)
        try:
            order = [*TopologicalSorter(before).static_order()]
        except CycleError as error:
            raise ValueError(f"start: {' -> '.join(error.args[1])}: attacks start from each other") from None
        return sorted(self.attacks, key=lambda entry: order.index(entry.label))

    def attacked_by(self, entry: AttackEntry) -> list[str]:
        """Returns the labels of the defenses that an attack's entry runs on, in order.

        An entry that names a defense takes the place of the entry with the same label that names none.
        """
        alike = (other for other in self.attacks if other.label == entry.label and other.defenses)
        taken = {label for other in alike for label in other.defenses or ()} if entry.defenses is None else set()
        covered = [each for each in self.defenses if entry.covers(each.label) and each.label not in taken]
        return [each.label for each in covered if each.admits(entry)]

    def samples_of(self, label: str) -> int:
        """Returns the number of samples on which the defense with this label is attacked."""
        own = next(each.samples for each in self.defenses if each.label == label)
        return self.samples if own is None else min(own, self.samples)

    def studied(self, kind: StudyKind) -> list[str]:
        """Returns the labels of the defenses on which a kind of study runs, in order."""
        return [each.label for each in self.defenses if each.studies is None or kind in each.studies]

    def norms_of(self, entry: AttackEntry, card: AttackCard) -> list[NormName]:
        """Returns the norms that an entry attacks, in the order of the thresholds."""
        wanted = set(card.norms) if entry.norms is None else set(entry.norms)
        return [norm for norm in self.thresholds if norm in wanted]


def _entry(entry: Any) -> Any:
    return {"name": entry} if isinstance(entry, str) else dict(entry) if isinstance(entry, dict) else entry


def with_entries(data: dict[str, Any]) -> dict[str, Any]:
    """Returns a matrix whose lists of plugins hold entries. Anything else is left for the validation to refuse."""
    plugins = {group: data[group] for group in GROUPS if isinstance(data.get(group), list)}
    return {**data, **{group: [_entry(entry) for entry in entries] for group, entries in plugins.items()}}


def entries_of(data: dict[str, Any], group: Group) -> list[dict[str, Any]]:
    """Returns the entries of a group by reference, without items that are not dictionaries."""
    entries = data.get(group)
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def label_of(entry: dict[str, Any]) -> str:
    """Returns the label of an entry: its name, and its variant after a colon."""
    return ":".join(filter(None, (str(entry.get("name", "")), str(entry.get("variant", "")))))
