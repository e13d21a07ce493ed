"""The distance to the nearest adversarial inside the pixel box, exactly, for piecewise-linear classifiers.

An image is adversarial where it lies in one of several polyhedra {v : G v >= h}; the nearest point of each is found by
non-negative least squares (L2), linear (L1, Linf) or mixed-integer linear programming (L0).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, linprog, milp, nnls
from torch import Tensor

Array = NDArray[np.float64]
Polyhedron = tuple[Array, Array]
"""G (m, D) and h (m,)."""


def optimum(adversarial: list[list[Polyhedron]], x: Tensor, norm: str) -> Tensor:
    """Distance (n,) of each image of ``x`` (n, 1, H, W) to the nearest point of its polyhedra that is in [0, 1]."""
    search = {"L0": fewest_changes, "L1": least_sum, "L2": least_length, "Linf": least_maximum}[norm]
    images = x.double().flatten(1).numpy()
    nearest = [min(search(v, g, h - g @ v) for g, h in regions) for v, regions in zip(images, adversarial, strict=True)]
    return torch.tensor(nearest, dtype=torch.float64)


def least_length(v: Array, g: Array, h: Array) -> float:
    """min ||u|| subject to G u >= h and 0 <= v + u <= 1 (Lawson & Hanson 1974, chapter 23: least distance)."""
    eye, last = np.eye(len(v)), np.eye(len(v) + 1)[-1]
    dual = np.vstack([np.vstack([g, eye, -eye]).T, np.concatenate([h, -v, v - 1])])
    residual = dual @ nnls(dual, last)[0] - last
    if np.linalg.norm(residual) < 1e-9:
        return np.inf
    return float(np.linalg.norm(residual[:-1] / residual[-1]))


def least_sum(v: Array, g: Array, h: Array) -> float:
    """min sum |u| subject to G u >= h and 0 <= v + u <= 1, with u as the difference of two parts of at least 0."""
    bounds = [(0, room) for room in (*(1 - v), *v)]
    result = linprog(np.ones(2 * len(v)), np.hstack([-g, g]), -h, bounds=bounds)
    return float(result.fun) if result.success else np.inf


def least_maximum(v: Array, g: Array, h: Array) -> float:
    """min t subject to |u| <= t, G u >= h and 0 <= v + u <= 1."""
    eye, one = np.eye(len(v)), np.ones((len(v), 1))
    result = linprog(
        np.eye(len(v) + 1)[-1],
        np.vstack([np.hstack([-g, np.zeros((len(g), 1))]), np.hstack([eye, -one]), np.hstack([-eye, -one])]),
        np.concatenate([-h, np.zeros(2 * len(v))]),
        bounds=[*zip(-v, 1 - v, strict=True), (0, None)],
    )
    return float(result.fun) if result.success else np.inf


def fewest_changes(v: Array, g: Array, h: Array) -> float:
    """min sum z, z binary, subject to G u >= h and -v z <= u <= (1 - v) z."""
    n = len(v)
    eye, half = np.eye(n), np.concatenate([np.zeros(n), np.ones(n)])
    result = milp(
        half,
        integrality=half,
        bounds=Bounds(np.concatenate([-v, np.zeros(n)]), np.concatenate([1 - v, np.ones(n)])),
        constraints=[
            LinearConstraint(np.hstack([g, np.zeros_like(g)]), h, np.inf),
            LinearConstraint(np.hstack([eye, -np.diag(1 - v)]), -np.inf, 0),
            LinearConstraint(np.hstack([eye, np.diag(v)]), 0, np.inf),
        ],
    )
    return float(round(result.fun)) if result.success else np.inf


def relu_net_optimum(w: Array, b: Array, v: Array, c: Array, label: int, x: Array) -> float:
    """min |x' - x|_inf over images in [0, 1] that the net ``v relu(w x' + b) + c`` does not give ``label``.

    One mixed-integer program for each other class (Tjeng, Xiao & Tedrake 2019): a binary number says for each hidden
    unit whether it is active, and its output is bounded by what it can be for any image.
    """
    hidden, n = w.shape
    high, low = np.maximum(w, 0).sum(1) + b, np.minimum(w, 0).sum(1) + b
    # Variables: the image, the hidden outputs, the binary numbers, the distance.
    image, unit = np.eye(n), np.eye(hidden)
    nothing, none = np.zeros((hidden, 1)), np.zeros((n, hidden))
    one = np.ones((n, 1))
    constraints = [
        LinearConstraint(np.hstack([image, none, none, -one]), -np.inf, x),
        LinearConstraint(np.hstack([image, none, none, one]), x, np.inf),
        LinearConstraint(np.hstack([-w, unit, 0 * unit, nothing]), b, np.inf),
        LinearConstraint(np.hstack([-w, unit, np.diag(-low), nothing]), -np.inf, b - low),
        LinearConstraint(np.hstack([0 * w, unit, np.diag(-high), nothing]), -np.inf, 0),
    ]
    upper = np.concatenate([np.ones(n), np.maximum(high, 0), np.ones(hidden), [1]])
    distances = []
    for other in set(range(len(v))) - {label}:
        lead = np.concatenate([np.zeros(n), v[other] - v[label], np.zeros(hidden + 1)])
        result = milp(
            np.eye(n + 2 * hidden + 1)[-1],
            integrality=np.concatenate([np.zeros(n + hidden), np.ones(hidden), [0]]),
            bounds=Bounds(np.zeros_like(upper), upper),
            constraints=[*constraints, LinearConstraint(lead[None], c[label] - c[other], np.inf)],
        )
        distances.append(float(result.fun) if result.success else np.inf)
    return min(distances)
