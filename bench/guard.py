"""Scripts that start a run whenever they are imported, as worker processes import the script that started them."""

from __future__ import annotations

import multiprocessing

from bench.errors import UserError

UNGUARDED = 87
"""Exit code of a process that was to start a run while it was still importing such a script."""


def refuse_unguarded() -> None:
    """Ends a process that is to start a run while it is still importing the script that started it."""
    # What multiprocessing itself looks at before a process starts another one.
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise SystemExit(UNGUARDED)


def unguarded() -> UserError:
    """The error for the script itself."""
    return UserError(
        "worker processes import the script that starts them, and this one starts a run when it is imported; "
        'put what it does under: if __name__ == "__main__":'
    )
