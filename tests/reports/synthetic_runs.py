"""Runs made up for the tests of the reports: no files, no attacks, answers that can be worked out by hand."""

from dataclasses import replace

import numpy as np
import pandas as pd
from sklearn.datasets import load_digits

from bench.ledger.entries import AttackEntry, CellEntry, DatasetEntry, DefenseEntry, GapEntry, StudyEntry
from bench.ledger.manifest import Manifest
from bench.ledger.schema import DISTANCES, sample_hash
from reports.evidence.masking import GRADIENTS
from reports.runs.run import Run

INF, NAN = np.inf, np.nan
PROVENANCE = {
    "command": "assay run synthetic",
    "versions": {"python": "3.11.2", "assay": "0.1.0", "torch": "2.15.0"},
    "machine": "Linux x86_64",
    "device": "cpu",
    "seed": 0,
    "git": "0123456789ab",
}


class RunMaker:
    """Collects cells, then makes the run."""

    def __init__(self, defenses, samples, dataset="synthetic", shape=(1, 2, 2), thresholds=None):
        self.defenses = defenses
        self.samples = samples
        self.dataset = {"name": dataset, "classes": 10, "shape": list(shape)}
        self.thresholds = thresholds or {"L2": 1.5, "Linf": 0.3, "L0": 12}
        self.attacks, self.cells, self.not_applicable, self.frames = {}, [], [], []
        self.studies, self.measured = [], {}
        self.families = {}
        self.schema = 3

    def attack(self, name, norms, kind="minimal", access="gradient", citation="", **parameters):
        self.attacks[name] = {
            "name": name,
            "norms": norms,
            "kind": kind,
            "access": access,
            "parameters": parameters,
            "budget": 1000,
            "citation": citation,
        }

    def cell(
        self,
        defense,
        attack,
        norm,
        distances=None,
        reasons=None,
        budget=1000,
        reference_budget=1,
        predictions=None,
        **columns,
    ):
        """One distance per sample: 0 a clean error, infinity unbroken, NaN (with a reason) failed or a violation; no
        distances: the cell has not run. ``columns`` of the records may be given."""
        entry = self.attacks[attack]
        epsilon = self.thresholds[norm] if entry["kind"] == "bounded" else None
        cell = {
            "id": f"{defense}-{attack}-{norm}",
            "defense": defense,
            "attack": attack,
            "norm": norm,
            "epsilon": epsilon,
            "files": (f"{defense}-{attack}-{norm}.parquet",),
            "parameters": entry["parameters"],
            "budget": budget,
            "reference_budget": reference_budget,
            "alpha": 0.001 if self.is_randomized(defense) and self.schema > 2 else None,
            "estimation_draws": 20 if self.is_randomized(defense) else 0,
        }
        self.cells.append(cell)
        if distances is not None:
            records = self._records(cell, np.array(distances, float), reasons or {}, predictions)
            self.frames.append(records.assign(**columns))

    def randomize(self, *defenses):
        """Makes the answers of defenses random."""
        for defense in defenses:
            self.families.setdefault(defense, {})["randomized"] = True

    def is_randomized(self, defense):
        return self.families.get(defense, {}).get("randomized", False)

    def member(self, defense, family, *parts):
        """Makes a defense a member of a family that has these of its parts."""
        self.families.setdefault(defense, {}).update(family=family, parts=list(parts))

    def na(self, defense, attack, norm, reason):
        self.not_applicable.append({"defense": defense, "attack": attack, "norm": norm, "reason": reason})

    def bound(self, defense, norm, values, certificate=False, note="", reason=""):
        """Lower bounds, one per sample; NaN with a reason for those that failed; None: the study has not run."""
        common = self._study("lower_bound", defense, norm, self.samples)
        if values is not None:
            columns = {
                **common,
                "status": np.where(np.isnan(values), "failed", "bound"),
                "reason": reason,
                "lower_bound": values,
                "certificate": certificate,
                "note": note,
            }
            self.measured.setdefault("lower_bound", []).append(pd.DataFrame(columns))

    def refutation(self, defense, norm, errors, draws=400):
        """Wrong answers of each sample's adversarial within its certificate; -1 for samples that were not tested."""
        tested = np.flatnonzero(np.array(errors) >= 0)
        columns = {
            **self._study("refutation", defense, norm, len(errors)),
            "status": "tested",
            "reason": "",
            "lower_bound": 1.0,
            "distance": 0.5,
            "errors": errors,
            "draws": draws,
        }
        self.measured.setdefault("refutation", []).append(pd.DataFrame(columns).iloc[tested])

    def distal(self, defense, confidences, steps=0, alpha=1.0, log_eta=2.0, reason=""):
        """One noise image per confidence, to one class after the other; None: the study failed."""
        reached = np.array([NAN] if confidences is None else confidences)
        columns = {
            **self._study("distal", defense, None, len(reached)),
            "status": np.select([np.isnan(reached), reached >= 0.9], ["failed", "reached"], "not_reached"),
            "reason": reason,
            "target": np.arange(len(reached)) % 10,
            "confidence": reached,
            "steps": steps,
            "alpha": alpha,
            "log_eta": log_eta,
        }
        self.measured.setdefault("distal", []).append(pd.DataFrame(columns))

    def detection(self, defense, norm, clean, adversarial, fooled, evaded):
        """Suspicions of each sample, and whether (y or n) it is misclassified and gets past; sample 0 is a clean
        error."""
        columns = {
            **self._study("detection", defense, norm, len(clean)),
            "status": ["clean_error", *["attacked"] * (len(clean) - 1)],
            "reason": "",
            "epsilon": self.thresholds[norm],
            "clean_suspicion": np.array(clean, float),
            "adversarial_suspicion": np.array(adversarial, float),
            "fooled": [letter == "y" for letter in fooled],
            "evaded": [letter == "y" for letter in evaded],
        }
        self.measured.setdefault("detection", []).append(pd.DataFrame(columns))

    def reconstruction(self, defense, norm, predictions):
        """Predictions for one image of label 0 in growing balls."""
        count = len(predictions)
        columns = {
            **self._study("reconstruction", defense, norm, count),
            "status": "reconstructed",
            "reason": "",
            "image": 0,
            "label": 0,
            "epsilon": self.thresholds[norm] * np.arange(count) / max(count - 1, 1),
            "prediction": predictions,
            "error": 0.01,
        }
        self.measured.setdefault("reconstruction", []).append(pd.DataFrame(columns))

    def _study(self, kind, defense, norm, count):
        """Enters a study; returns the columns that all kinds have in common."""
        study = "-".join([defense, kind, *([norm] if norm else [])])
        self.studies.append({"id": study, "kind": kind, "defense": defense, "norm": norm, "file": f"{study}.parquet"})
        return {
            "cell": study,
            "dataset": self.dataset["name"],
            "sample": np.arange(count),
            "defense": defense,
            "norm": norm or "",
            "seconds": 0.5,
        }

    def _records(self, cell, distances, reasons, predictions):
        count = self.samples
        assert len(distances) == count
        labels = np.arange(count) % 10
        broken = np.isfinite(distances)
        drawn = self.is_randomized(cell["defense"]) & ~np.isnan(distances) & (self.schema > 2)
        likely = drawn & (distances <= self.thresholds[cell["norm"]])
        status = np.select(
            [distances == 0, broken, np.isnan(distances)], ["clean_error", "found", "failed"], "not_found"
        )
        frame = pd.DataFrame(
            {
                "cell": cell["id"],
                "dataset": self.dataset["name"],
                "sample": np.arange(count),
                "sample_hash": [f"{i:016x}" for i in range(count)],
                "label": labels,
                "defense": cell["defense"],
                "attack": cell["attack"],
                "norm": cell["norm"],
                "epsilon": np.nan if cell["epsilon"] is None else cell["epsilon"],
                "clean_prediction": np.where(distances == 0, (labels + 1) % 10, labels),
                "adversarial_prediction": np.where(broken, (labels + 1) % 10, -1)
                if predictions is None
                else predictions,
                "status": status.astype(object),
                "broken": broken,
                "reason": [reasons.get(i, "") for i in range(count)],
                **{key: np.where(broken & (distances > 0), 1.0, distances) for key in DISTANCES},
                "draws_choosing": 20 * drawn,
                "draws_deciding": 14 * drawn,
                "draws_estimating": 20 * drawn,
                "success_rate": np.where(broken, 1.0, NAN),
                "success_low": np.where(broken & drawn, 0.8389, NAN),
                "success_high": np.where(broken & drawn, 1.0, NAN),
                "likely_rate": np.where(drawn, np.where(likely, 0.95, 0.05), NAN),
                "likely_errors": 20 * likely,
                "likely_draws": 20 * drawn,
                "non_finite": 0,
                "claimed": broken & (distances > 0),
                "found_after": np.where(distances == 0, 0.0, np.where(broken, 10.0, INF)),
                "useless_gradients": 0.0 if self.attacks[cell["attack"]]["access"] in GRADIENTS else NAN,
                "remarks": "",
                "forwards": np.where(distances == 0, 0.0, 100.0),
                "backwards": np.where(distances == 0, 0.0, 40.0),
                "inner_steps": 0.0,
                "seconds": 0.5,
            }
        )
        frame[cell["norm"].lower()] = distances
        violated = frame["reason"].isin(["unperturbed", "out_of_ball", "out_of_range", "non_finite"])
        frame.loc[violated, "status"] = "violation"
        return frame

    def make(self, clean=None, adversarials=None):
        shape = (self.samples, *self.dataset["shape"])
        images = np.zeros(shape, np.float32) if clean is None else clean
        manifest = Manifest(
            schema_version=self.schema,
            matrix="synthetic",
            resubmissions=10 if self.schema > 2 else 0,
            dataset=DatasetEntry(**self.dataset),
            samples=tuple(range(self.samples)),
            images="images.npz",
            seed=0,
            thresholds=self.thresholds,
            defenses=tuple(
                DefenseEntry(
                    name=name, citation=f"{name} et al., 2019", **{"randomized": False, **self.families.get(name, {})}
                )
                for name in self.defenses
            ),
            attacks=tuple(AttackEntry(**entry) for entry in self.attacks.values()),
            cells=tuple(CellEntry(**entry) for entry in self.cells),
            studies=tuple(StudyEntry(**entry) for entry in self.studies),
            not_applicable=tuple(GapEntry(**entry) for entry in self.not_applicable),
            provenance=PROVENANCE,
        )
        records = pd.concat(self.frames, ignore_index=True)
        studies = {kind: pd.concat(frames, ignore_index=True) for kind, frames in self.measured.items()}
        pictures = np.zeros((20, *self.dataset["shape"]), np.float32)
        return Run(records, manifest, images, adversarials or (lambda cell: images), studies, lambda s: pictures)


def replaced(run, **fields):
    """The run with other fields in its manifest."""
    return replace(run, manifest=run.manifest.model_copy(update=fields))


def lawful(run):
    """The run's records with what a ledger on disk must agree on: distances in all norms, and the images' hashes."""
    channels, *sides = run.manifest.dataset.shape
    assert channels == 1
    pixels = np.prod(sides)
    frames = []
    for norm, own in run.records.groupby("norm", sort=False):
        distance = own[norm.lower()]
        moved = own["broken"] & (distance > 0)
        others = {
            "L0": {"l2": np.sqrt(distance), "linf": 1.0},
            "L1": {"l0": 1, "l2": distance, "linf": distance},
            "L2": {"l0": pixels, "linf": distance / np.sqrt(pixels)},
            "Linf": {"l0": 1, "l2": distance},
        }
        frames.append(own.assign(**{key: np.where(moved, value, own[key]) for key, value in others[norm].items()}))
    records = pd.concat(frames).sort_index()
    hashes = np.array([sample_hash(image) for image in run.clean])
    return records.assign(sample_hash=hashes[records["sample"]], success_rate=np.where(records["broken"], 1.0, NAN))


def every_status():
    """Five images, three defenses, and a cell of each kind that a table must tell apart.

    L2: `cnn` has numbers everywhere, `binary_cnn` an attack that does not apply and one that failed on two images,
    `nearest_neighbour` a violation and a cell that has not run. Linf: a bounded attack beside a minimal one; one cell
    failed as a whole. L0: nothing found for most images.
    """
    maker = RunMaker(["cnn", "binary_cnn", "nearest_neighbour"], 5, shape=(1, 5, 5))
    maker.attack("pgd", ["L2", "Linf"], citation="Madry et al., 2018", steps=40, step_ratio=0.1)
    maker.attack("pgd:bounded", ["Linf"], kind="bounded", citation="Madry et al., 2018", steps=40, restarts=5)
    maker.attack("pointwise", ["L2", "L0"], access="decision", citation="Schott et al., 2019", repetitions=10)
    maker.cell("cnn", "pgd", "L2", [0, 0.5, 1.0, 1.5, 2.0])
    maker.na("binary_cnn", "pgd", "L2", "gives score access only")
    maker.cell("nearest_neighbour", "pgd", "L2", [1.0, 1.75, 2.0, NAN, 3.0], reasons={3: "unperturbed"})
    maker.cell("cnn", "pointwise", "L2", [0, 0.75, 0.875, INF, INF])
    failure = dict.fromkeys((3, 4), "exception: RuntimeError: 50% of C:\\x_y|z")
    maker.cell("binary_cnn", "pointwise", "L2", [0, 1.0, 2.0, NAN, NAN], reasons=failure)
    maker.cell("nearest_neighbour", "pointwise", "L2")
    maker.cell("cnn", "pgd", "Linf", [0, 0.05, 0.1, 0.15, INF])
    maker.na("binary_cnn", "pgd", "Linf", "gives score access only")
    maker.cell(
        "nearest_neighbour", "pgd", "Linf", [NAN] * 5, reasons=dict.fromkeys(range(5), "timeout: more than 60 s")
    )
    maker.cell("cnn", "pgd:bounded", "Linf", [0, 0.3, 0.3, 0.3, 0.25])
    maker.na("binary_cnn", "pgd:bounded", "Linf", "gives score access only")
    maker.cell("nearest_neighbour", "pgd:bounded", "Linf", [INF, 0.3, 0.3, INF, INF])
    maker.cell("cnn", "pointwise", "L0", [0, 3, 8, 12, 13])
    maker.cell("binary_cnn", "pointwise", "L0", [0, 20, INF, INF, INF], budget=50)
    maker.cell("nearest_neighbour", "pointwise", "L0", [INF] * 5)
    return maker.make()


def every_defense(samples=40, dataset="digits"):
    """The seven built-in defenses on scikit-learn's real digits, with made-up distances of lifelike spread; the
    adversarials are the digits with as much noise."""
    digits = (load_digits().images[:samples, None] / 16).astype(np.float32)
    defenses = ["cnn", "binary_cnn", "nearest_neighbour", "adv_linf", "adv_l2", "abs:schott2019", "binary_abs"]
    maker = RunMaker(defenses, samples, dataset=dataset, shape=(1, 8, 8))
    maker.attack("gaussian_noise", ["L2"], access="decision", citation="Rauber et al. 2017, Foolbox", steps=100)
    maker.attack("deepfool", ["L2", "Linf"], citation="Moosavi-Dezfooli, Fawzi & Frossard 2016", steps=50)
    maker.attack("bim", ["L2", "Linf"], citation="Kurakin, Goodfellow & Bengio 2017", steps=10, step_ratio=0.05)
    maker.attack("bim_ge", ["L2", "Linf"], access="score", citation="Kurakin et al. 2017", method="nes", pairs=32)
    maker.attack("pgd:bounded", ["L2", "Linf"], kind="bounded", citation="Madry et al. 2018", steps=40, restarts=5)
    maker.attack("latent_descent", ["L2"], access="latent", citation="Schott et al. 2019", steps=150, step=0.01)
    maker.attack("pointwise_10x", ["L2", "L0"], access="decision", citation="Schott et al. 2019", repetitions=10)
    maker.attack("salt_and_pepper", ["L0"], access="decision", citation="Rauber et al. 2017, Foolbox", repetitions=10)
    random = np.random.default_rng(0)
    scale = {"L2": 1.0, "Linf": 0.15, "L0": 8}
    for attack, entry in maker.attacks.items():
        for norm in entry["norms"]:
            for position, defense in enumerate(defenses):
                if entry["access"] == "latent" and "abs" not in defense:
                    maker.na(defense, attack, norm, "has no reconstructions")
                    continue
                difficulty = scale[norm] * (0.5 + 0.3 * position)
                distances = difficulty * random.gamma(4, 0.25, samples) * (3 if "noise" in attack else 1)
                if entry["kind"] == "bounded":
                    distances = np.where(distances < maker.thresholds[norm], maker.thresholds[norm] * 0.99, INF)
                distances[random.random(samples) < 0.1] = INF
                distances = np.ceil(distances) if norm == "L0" else distances
                distances[position] = 0
                maker.cell(defense, attack, norm, distances)
    noise = random.normal(0, 0.15, digits.shape)
    return maker.make(digits, lambda cell: np.clip(digits + noise, 0, 1).astype(np.float32))


def studied():
    """A certificate, an estimate that is refuted once, a certificate that is wrong; distal adversarials of two."""
    maker = RunMaker(["cnn", "nearest_neighbour", "abs"], 4)
    maker.attack("pgd", ["L2"])
    for defense in maker.defenses:
        maker.cell(defense, "pgd", "L2", [0.0, 1.0, 2.0, INF])
    maker.bound("cnn", "L2", [0.0, 1.1, 1.0, 1.0], certificate=True, note="1000 draws, wrong with probability 0.001")
    maker.bound("nearest_neighbour", "L2", [0.0, 0.5, 0.75, 3.0], certificate=True)
    maker.bound("abs", "L2", [0.0, 0.9, 2.5, 3.0], note="5 starts for each class")
    maker.member("abs", "ABS*", "generation", "optimization")
    maker.member("nearest_neighbour", "ABS*", "generation")
    maker.distal("cnn", [0.95] * 9 + [0.5], steps=20)
    maker.distal("abs", [0.91] * 10, steps=35, alpha=440.0, log_eta=-10.2)
    maker.detection("cnn", "Linf", clean=[1, -1, -3, 2], adversarial=[3, 3, -2, 4], fooled="yyyn", evaded="nnyy")
    return maker.make()


def random_answers():
    """A randomized defense beside a deterministic one, with an undecided image and one without finite logits."""
    maker = RunMaker(["eabs", "cnn"], 5)
    maker.randomize("eabs")
    maker.attack("eot_pgd:bounded", ["Linf"], kind="bounded", draws=5)
    maker.attack("boundary", ["Linf"], access="decision")
    found = ["clean_error", "found", "undecided", "not_found", "failed"]
    errors = {"likely_errors": [20, 17, 9, 1, 0], "likely_rate": [0.95, 0.8, 0.5, 0.1, NAN]}
    broken = {"reasons": {4: "non_finite"}}
    maker.cell("eabs", "eot_pgd:bounded", "Linf", [0, 0.3, INF, INF, NAN], status=list(found), **errors, **broken)
    found[1:4] = ["found", "found", "not_found"]
    maker.cell("eabs", "boundary", "Linf", [0, 0.5, 0.9, INF, NAN], status=found, **broken)
    for attack in maker.attacks:
        maker.cell("cnn", attack, "Linf", [0, 0.2, 0.25, 0.3, INF])
    return maker.make()
