"""Guards against scripts that start a run on import: worker processes import the script that started them."""

from __future__ import annotations

import multiprocessing

from bench.contracts.errors import UserError

UNGUARDED = 87
"""Exit code of a process that would have started a run while it was still importing such a script."""


def refuse_unguarded() -> None:
    """Ends the process if it is still importing the script that started it. Such a process must not start a run."""
    # multiprocessing itself checks this flag before a process starts another one.
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise SystemExit(UNGUARDED)


def unguarded() -> UserError:
    """Returns the error that tells the user about such a script."""
    return UserError(
        "worker processes import the script that starts them, and this one starts a run when it is imported; "
        'put what it does under: if __name__ == "__main__":'
    )
