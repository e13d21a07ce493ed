"""The command `assay`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import typer

from bench.cli.plugins import calibrate, check, list_names, new, train
from bench.cli.records import bundle, import_adversarials, verify
from bench.cli.runs import compare, plan, report, run, status
from bench.contracts.errors import UserError
from bench.contracts.guard import UNGUARDED
from bench.ledger.provenance import check_packages

app = typer.Typer(
    help="A robustness benchmark for image classifiers: attacks propose, the engine judges.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
COMMANDS: dict[str, Callable[..., None]] = {
    "run": run,
    "plan": plan,
    "status": status,
    "report": report,
    "compare": compare,
    "verify": verify,
    "bundle": bundle,
    "import-adversarials": import_adversarials,
    "list": list_names,
    "train": train,
    "calibrate": calibrate,
    "check": check,
    "new": new,
}
for name, command in COMMANDS.items():
    app.command(name)(command)

# Some versions of Typer include their own copy of click, others use the real one. This is UsageError in both.
_USAGE_ERRORS: Any = typer.BadParameter.__bases__


def main() -> None:
    """Runs the command. A user's error is reported in one line on standard error, with exit status 2."""
    try:
        check_packages()
        exit_code = app(sys.argv[1:] or ["--help"], standalone_mode=False)
    except UserError as error:
        _refuse(str(error))
    except SystemExit as error:
        # Typer returns its own exit codes. UNGUARDED is a signal to the parent process.
        if error.code == UNGUARDED:
            raise
        _refuse(f"a plugin ended the program: SystemExit: {error.code}")
    except _USAGE_ERRORS as error:
        _refuse(error.format_message())
    except OSError as error:
        _refuse(f"{error.strerror or error}: {error.filename or ''}".rstrip(": "))
    except (typer.Abort, KeyboardInterrupt):
        typer.echo("assay: interrupted; the same command goes on from here", err=True)
        sys.exit(130)
    else:
        sys.exit(exit_code if isinstance(exit_code, int) else 0)


def _refuse(message: str) -> None:
    typer.echo(f"assay: {' '.join(message.split())}", err=True)
    sys.exit(2)
