"""Names of the registered norms, for checks and messages.

No number depends on this module, so identities leave it out: a new norm does not change the identity of a plugin that
only has a card.
"""

from __future__ import annotations

from bench.contracts.norms.names import NormName


def norm_names() -> tuple[NormName, ...]:
    """Returns the names of all norms, in their order."""
    from bench.contracts.norms import NORMS

    return tuple(NORMS)
