"""Errors that are the user's to mend: one clear line, exit status 2, no traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user did wrong; the message is one line that says what, where and what would be right."""


class DefenseFault(UserError):
    """A defense that cannot be built or does not keep its contract; the other defenses of a run go on."""


def unknown(what: str, value: str, allowed: Iterable[str], where: str = "") -> UserError:
    """The error for a name that is not one of ``allowed``, with the nearest of them as a suggestion.

    >>> str(unknown("norm", "L3", ["L0", "L2"]))
    "unknown norm 'L3'; did you mean 'L2'? Allowed: L0, L2"
    """
    names = sorted(allowed)
    near = difflib.get_close_matches(value, names, n=1, cutoff=0.5)
    suggestion = f"; did you mean {near[0]!r}?" if near else "."
    prefix = f"{where}: " if where else ""
    return UserError(f"{prefix}unknown {what} {value!r}{suggestion} Allowed: {', '.join(names) or 'none'}")
