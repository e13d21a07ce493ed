"""Errors that the user can fix: one clear line, exit status 2, no traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake of the user. Its message is one line that says what is wrong, where, and what would be right."""


class DefenseFault(UserError):
    """A defense that cannot be built or breaks its contract. The run continues with the other defenses."""


LISTED = 20
"""Maximum number of allowed names in a message."""


def unknown(what: str, value: str, allowed: Iterable[str], where: str = "") -> UserError:
    """Returns the error for a name outside ``allowed``. The nearest allowed name is the suggestion.

    The message lists the first `LISTED` allowed names in alphabetical order.

    >>> str(unknown("norm", "L3", ["L0", "L2"]))
    "unknown norm 'L3'; did you mean 'L2'? Allowed: L0, L2"
    """
    names = sorted(allowed)
    near = difflib.get_close_matches(value, names, n=1, cutoff=0.5)
    suggestion = f"; did you mean {near[0]!r}?" if near else "."
    prefix = f"{where}: " if where else ""
    listed = ", ".join(names[:LISTED]) or "none"
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return UserError(f"{prefix}unknown {what} {value!r}{suggestion} Allowed: {listed}{more}")
