"""The command line: parses, calls the API, prints. One module per sub-command."""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Any

import typer

from billhook.cli import bench, classes, demo, evaluate, export, inspect, predict, prune, report, simulate, train
from billhook.cli.common import version_callback
from billhook.errors import BillhookError, Interrupted, RunError, UsageError

app = typer.Typer(
    name="billhook",
    help="Cut a trained CNN down to the classes and the budget you need, and prove the result.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.callback(invoke_without_command=True)(version_callback)
app.command("demo")(demo.demo)
app.command("train")(train.train)
app.command("inspect")(inspect.inspect)
app.command("prune")(prune.prune)
app.command("evaluate")(evaluate.evaluate)
app.command("predict")(predict.predict)
app.command("export")(export.export)
app.command("bench")(bench.bench)
app.command("classes")(classes.classes)
app.command("simulate")(simulate.simulate)
app.command("report")(report.report)


def run(arguments: Sequence[str]) -> int:
    """Run one command.

    Returns:
        The exit code: 0 done, 1 failed, 2 wrong usage or input, 3 budget infeasible or missed, 128 + signal.
    """
    with contextlib.ExitStack() as stack:
        if int(os.environ.get("RANK", "0")) > 0:
            # Of several processes the first speaks for all; --debug lets the others write to standard error.
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
            if "--debug" not in arguments:
                stack.enter_context(contextlib.redirect_stderr(nowhere))
        return _run(arguments)


@functools.cache
def _parser() -> Any:
    return typer.main.get_command(app)


def _run(arguments: Sequence[str]) -> int:
    warnings.showwarning = _show_warning
    as_json, debug = "--json" in arguments, "--debug" in arguments
    try:
        result = _parser().main(args=list(arguments), prog_name="billhook", standalone_mode=False)
        return int(result) if isinstance(result, int) else 0
    except BillhookError as error:
        return _fail(error, as_json, debug)
    except typer.Exit as stop:
        return int(stop.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return _fail(Interrupted("interrupted", "what was saved before is kept for --resume"), as_json, debug)
    except OSError as error:
        full = error.errno == errno.ENOSPC
        hint = "free space, then --resume" if full else ""
        return _fail(RunError(f"{error.strerror or error}: {error.filename or ''}", hint), as_json, debug)
    except Exception as error:
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # the parser's own complaint
            message = error.format_message().rstrip(".")
            return _fail(
                UsageError(message, "" if "--help" in message else f"see {_command_of(error)} --help"), as_json, debug
            )
        hint = "this is a defect in billhook; --debug shows the traceback"
        return _fail(RunError(f"{type(error).__name__}: {error}", hint), as_json, debug)


def _command_of(complaint: Exception) -> str:
    """The command that the parser was reading, such as ``billhook prune``."""
    return getattr(getattr(complaint, "ctx", None), "command_path", "billhook")


def _fail(error: BillhookError, as_json: bool, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    if as_json:
        print(json.dumps(error.as_dict()))
    else:
        print(f"error: {error.message}" + (f" ({error.hint})" if error.hint else ""), file=sys.stderr)
    return error.exit_code


def _show_warning(message: Warning | str, category: type[Warning], *where: object, **more: object) -> None:
    """Warnings for users are one line on standard error, without the place in the code."""
    del where, more
    if issubclass(category, UserWarning):
        print(f"warning: {message}", file=sys.stderr)
