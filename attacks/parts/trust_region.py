"""The step of Brendel & Bethge (2019, equation 1): along a linearized boundary, within a trust region.

The step leads from z to the image v that is nearest to the clean image x in the threat model's norm, among the images
with b^T (v - z) = c, ||v - z||_2 <= r and 0 <= v <= 1. By duality, v is a proximal point. For some numbers k and t,

    v = argmin ||v - (z + k b)||_2^2 / 2 + t ||v - x||,  0 <= v <= 1.

For L2, half of the squared norm takes the place of the norm. For Linf, v is the point nearest to z + k b in a ball
around x, and t is the amount by which the radius is smaller than at t = 0. Each pixel of v has a closed form. k is the
number at which v lies on the boundary. t is the largest number at which v lies in the trust region. At t = 0, v is the
shortest step to the boundary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.contracts.norms import NormName, of_norm

PULL_TRIES, BOUNDARY_TRIES = 8, 20
"""Largest numbers of values of t, and of k for each t, that a step tries."""
PRECISION = 0.01
"""Precision of c, as a share of c. Its square is that of k."""
FILLED, AIM = 0.8, 0.9
"""Shares of the trust region's radius: the step length at which the search for t ends, and the length it aims at."""
STRONGEST = 100.0
"""Largest t. Values change by at most 1, so that a larger t hardly changes the step."""
FACTOR = 10.0
"""Largest change of t from one try to the next, until t is known from both sides."""
ROUNDING = 1e-6
"""Error of b^T v in float32, ten times over."""
HUGE, TINY = 1e9, 1e-12


@dataclass(frozen=True, eq=False)
class Boundary:
    """Linearized boundaries near iterates.

    Attributes:
        x: clean images (N, C, P) with P pixels.
        z: iterates (N, C, P).
        normal: unit vectors b (N, C, P).
        gap: distances c (N, 1, 1) from the iterates to the boundaries, negative against the normal.
        radius: radii r (N, 1, 1) of the trust regions.
    """

    x: Tensor
    z: Tensor
    normal: Tensor
    gap: Tensor
    radius: Tensor

    def of(self, rows: Tensor) -> Boundary:
        """Returns the boundaries of some rows (M,)."""
        return Boundary(self.x[rows], self.z[rows], self.normal[rows], self.gap[rows], self.radius[rows])

    def missing(self, v: Tensor) -> Tensor:
        """Returns c - b^T (v - z) (N, 1, 1)."""
        return self.gap - total(self.normal * (v - self.z))


Pull = Callable[[Boundary, Tensor, Tensor], tuple[Tensor, Tensor]]
"""Maps k and t (N, 1, 1) to v (N, C, P), and to the derivative (N, 1, 1) of b^T v in k."""


def trust_region_step(at: Boundary, norm: NormName, guess: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the next iterates (N, C, P) and their t (N, 1, 1).

    ``guess`` (N, 1, 1) is the first t to try. Where the boundary is beyond the trust region or the pixel box, the step
    is the longest one towards the boundary.
    """
    v, k, reached = shortest_step(at)
    t = guess.clone()
    rows = reached.flatten().nonzero()[:, 0]
    if len(rows):
        v[rows], t[rows] = pulled_step(at.of(rows), norm, v[rows], k[rows], guess[rows])
    return v, t


def shortest_step(at: Boundary) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the points v (N, C, P) at t = 0, and their k (N, 1, 1).

    Also returns whether they lie on the boundary and in the trust region (N, 1, 1). Otherwise k is the number at which
    they leave the trust region.
    """
    # b^T v is concave in k towards the boundary: from k = c, Newton's method comes nearer to the root at each try.
    k, tolerance = at.gap, PRECISION * at.gap.abs()
    for _ in range(BOUNDARY_TRIES):
        v, slope = along_normal(at, k)
        missing = at.missing(v)
        done = (missing.abs() <= tolerance) | (slope <= TINY)
        if done.all():
            break
        k = torch.where(done, k, k + missing / slope.clamp_min(TINY))
    inside = length(v - at.z) <= at.radius
    if not inside.all():
        k = torch.where(inside, k, longest(at).copysign(at.gap))
        v, _ = along_normal(at, k)
    return v, k, inside & (missing.abs() <= tolerance)


def longest(at: Boundary) -> Tensor:
    """Returns the absolute k (N, 1, 1) at which ||v - z||_2 = r, or a larger one where the pixel box is too small."""
    k = at.radius
    for _ in range(BOUNDARY_TRIES):
        v, slope = along_normal(at, k.copysign(at.gap))
        # Clipped values keep their length, the others grow with k.
        rest = at.radius.square() - total((v - at.z).square()) + k.square() * slope
        k = (rest / slope.clamp_min(TINY)).clamp_min(0).sqrt().maximum(k)
    return k


def along_normal(at: Boundary, k: Tensor) -> tuple[Tensor, Tensor]:
    """Returns z + k b, clipped to [0, 1]; see `Pull`."""
    w = at.z + k * at.normal
    v = w.clamp(0, 1)
    return v, total(at.normal.square() * (v == w))


def pulled_step(at: Boundary, norm: NormName, shortest: Tensor, k: Tensor, guess: Tensor) -> tuple[Tensor, Tensor]:
    """Returns v (N, C, P) for the largest t that was tried with v in the trust region, and this t (N, 1, 1).

    The length of the step along the boundary grows with t, about in proportion, or as the square root for L0. Tries
    therefore change t by the factor that is missing.
    """
    best, t_best = shortest.clone(), guess.clone()
    along = total((shortest - at.z).square())
    widest = (shortest - at.x).abs().flatten(1).amax(1)[:, None, None]
    strongest = torch.full_like(k, STRONGEST) if norm != "Linf" else widest.minimum(2 * at.radius)
    low, high = torch.zeros_like(k), torch.full_like(k, torch.inf)
    t = guess.minimum(strongest)
    rows = torch.arange(len(k), device=k.device)
    for _ in range(PULL_TRIES):
        part, now = at.of(rows), t[rows]
        v, k[rows], on_it = on_boundary(part, pull_of(norm, widest[rows]), k[rows], now)
        size = length(v - part.z)
        fits = on_it & (size <= part.radius)
        best[rows], t_best[rows] = torch.where(fits, v, best[rows]), torch.where(fits, now, t_best[rows])
        low[rows], high[rows] = torch.where(fits, now, low[rows]), torch.where(fits, high[rows], now)
        wanted = ((AIM * part.radius).square() - along[rows]).clamp_min(TINY)
        share = wanted / (size.square() - along[rows]).clamp_min(TINY)
        factor = (share if norm == "L0" else share.sqrt()).clamp(1 / FACTOR, FACTOR)
        scaled = (now * factor).minimum(strongest[rows])
        middle = torch.where(low[rows] > 0, (low[rows] * high[rows]).sqrt(), high[rows] / FACTOR)
        t[rows] = torch.where(on_it & (low[rows] < scaled) & (scaled < high[rows]), scaled, middle)
        finished = fits & ((size >= FILLED * part.radius) | (now >= strongest[rows]))
        rows = rows[~finished.flatten()]
        if not len(rows):
            break
    return best, t_best


def on_boundary(at: Boundary, pull: Pull, k: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns v (N, C, P) on the boundary for given t (N, 1, 1), its k (N, 1, 1), and whether there is such a point.

    ``k`` is the first one to try. b^T v grows with k, for L0 by jumps, so that Newton's method is kept in an interval.
    At last, v at both ends of the interval is blended. The blend lies on the boundary.
    """
    low, high = torch.full_like(k, -torch.inf), torch.full_like(k, torch.inf)
    # A tolerance that exceeds the overshoot of c would keep the iterates on the clean side.
    tolerance = PRECISION * at.gap.abs() + ROUNDING
    unreachable = torch.zeros_like(k, dtype=torch.bool)
    for tries in range(BOUNDARY_TRIES):
        v, slope = pull(at, k, t)
        missing = at.missing(v)
        side = missing.sign()
        if tries == 0:
            unreachable = side * at.missing(pull(at, side * HUGE, t)[0]) > tolerance
        hit = missing.abs() <= tolerance
        low, high = torch.where(hit | (side > 0), k, low), torch.where(hit | (side < 0), k, high)
        done = unreachable | (high - low <= PRECISION**2 * k.abs())
        if done.all():
            break
        newton = k + missing / slope
        bracketed = torch.isfinite(high - low)
        accepted = (low < newton) & (newton < high)
        if tries % 3 == 2:
            accepted &= ~bracketed
        other = torch.where(bracketed, (low + high) / 2, k + side * (4 * k.abs() + at.radius))
        k = torch.where(done, k, torch.where(accepted, newton, other))
    first, last = (pull(at, torch.where(torch.isfinite(end), end, k), t)[0] for end in (low, high))
    below, above = at.missing(first), at.missing(last)
    share = (below / (below - above)).nan_to_num(0, 0, 0).clamp(0, 1)
    v = torch.lerp(first, last, share.expand_as(first))
    return v, k, at.missing(v).abs() <= tolerance


def pull_of(norm: NormName, widest: Tensor) -> Pull:
    """Returns the closed form of v for a norm. ``widest`` (N, 1, 1) is the radius of the ball of Linf at t = 0.

    k is divided by 1 + t for L2, L1 and L0, so that it depends little on t.
    """

    def l2(at: Boundary, k: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        w = torch.lerp(at.z, at.x, (t / (1 + t)).expand_as(at.z)) + k * at.normal
        v = w.clamp(0, 1)
        return v, total(at.normal.square() * (v == w))

    def l1(at: Boundary, k: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        w = at.z + k * (1 + t) * at.normal
        shrunk = at.x.maximum(w - t).minimum(w + t)
        v = shrunk.clamp(0, 1)
        return v, (1 + t) * total(at.normal.square() * ((v == shrunk) & (v != at.x)))

    def l0(at: Boundary, k: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        w = at.z + k * (1 + t) * at.normal
        v = w.clamp(0, 1)
        # The difference of the squares of x - w and v - w, which large numbers w leave exact in this form.
        gain = ((at.x - v) * (at.x + v - 2 * w)).sum(1, keepdim=True)
        changed = gain > 2 * t
        # The derivative knows nothing of the jumps: without it, the search halves intervals.
        return torch.where(changed, v, at.x), torch.zeros_like(k)

    def linf(at: Boundary, k: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        w = at.z + k * at.normal
        v = w.maximum(at.x - (widest - t)).minimum(at.x + (widest - t)).clamp(0, 1)
        return v, total(at.normal.square() * (v == w))

    return of_norm(norm, L0=l0, L1=l1, L2=l2, Linf=linf)


def total(values: Tensor) -> Tensor:
    """Returns the sums (N, 1, 1) over each image (N, C, P)."""
    return values.flatten(1).sum(1)[:, None, None]


def length(values: Tensor) -> Tensor:
    """Returns the Euclidean lengths (N, 1, 1) of images (N, C, P)."""
    lengths: Tensor = torch.linalg.vector_norm(values.flatten(1), dim=1)
    return lengths[:, None, None]
