"""The command line: one module per subcommand, options made from the specs."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from trtq.errors import TrtqError, explain_system, reason
from trtq.machine import yield_cores_
from trtq.terminal import ClosedOutputError, drop_output_, flush_output, prepare_streams_, say
from trtq.verbs import SECTIONS, VERBS
from trtq.version import __version__

INTERRUPTED, CLOSED_OUTPUT = 130, 141  # as a shell reports the signals SIGINT and SIGPIPE
FAILED = {"gate": 3}  # exit code of a failure where 1 has a meaning of its own


class LazyGroup(click.Group):
    """Imports a subcommand's module when that subcommand is used, so that help remains fast."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the table."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the subcommand, or None when there is none of that name."""
        if cmd_name not in VERBS:
            return None
        command: click.Command = importlib.import_module(
            f"trtq.cli.{cmd_name.replace('-', '_')}_cmd"
        ).command
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Suggest the nearest subcommand for an unknown one."""
        from trtq.errors import UsageError, suggest

        if args and args[0] not in VERBS and not args[0].startswith("-"):
            raise UsageError(f"Unknown command {args[0]!r}", hint=suggest(args[0], VERBS))
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete the name of a subcommand, without importing any."""
        verbs = (v for v in VERBS.values() if v.name.startswith(incomplete))
        names = [CompletionItem(v.name, help=v.summary) for v in verbs]
        return [*names, *click.Command.shell_complete(self, ctx, incomplete)]

    def invoke(self, ctx: click.Context) -> Any:
        """Run the subcommand; click would end silently at a broken pipe to any process."""
        try:
            return super().invoke(ctx)
        except OSError as exc:
            raise explain_system(exc) or exc from exc

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the subcommands by section, without importing them."""
        width = max(map(len, VERBS))
        for title, verbs in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(v.name.ljust(width), v.summary) for v in verbs])


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)
@click.version_option(__version__, "--version", message="trtq %(version)s")
def cli() -> None:
    """Quantize PyTorch and ONNX models for TensorRT, build engines, and measure them.

    Exit codes: 0 good, 1 failed, 2 wrong usage, 3 finished but not valid.
    An error ends with its code: trtq explain CODE shows its cause and what to do.
    TRTQ_DEBUG=1 prints the traceback of an error.
    """


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP: the command ends as after Ctrl-C.

    Its processes and temporary folders end with it.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.exit_code = 128 + number


def main() -> None:
    """Entry point of the ``trtq`` command: errors are printed in one line, without a traceback."""
    prepare_streams_()
    yield_cores_()
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _stop)
    code = run_command(sys.argv[1:])
    try:
        flush_output()
    except ClosedOutputError:
        code = CLOSED_OUTPUT
    except OSError as exc:
        say(f"trtq: Cannot write to standard output: {reason(exc)}.", err=True)
        code = code or 1
    if code == CLOSED_OUTPUT:
        drop_output_()
    sys.exit(code)


def _stop(number: int, _frame: object) -> None:
    raise Terminated(number)


def run_command(words: list[str]) -> int:
    """Run one command line, print any error and return the exit code.

    With ``TRTQ_DEBUG=1`` the traceback is printed, too.

    Args:
        words: without the name of the program.

    Returns:
        As ``trtq --help`` lists them; 130 after Ctrl-C, 128 and the number of another signal, 141
        where the reader of standard output has exited.
    """
    try:
        code = cli.main(words, standalone_mode=False)
        return code if isinstance(code, int) else 0
    except ClosedOutputError:
        return CLOSED_OUTPUT
    except (click.Abort, KeyboardInterrupt) as exc:
        cause = exc if isinstance(exc, Terminated) else exc.__cause__ or exc.__context__
        say("trtq: interrupted; finished stages are kept", err=True)
        return cause.exit_code if isinstance(cause, Terminated) else INTERRUPTED
    except click.ClickException as exc:
        _show_usage(exc)
        return 2
    except Exception as exc:
        return _show_error(exc, words)


def _show_error(exc: Exception, words: list[str]) -> int:
    """Print an error and return the exit code."""
    error = exc if isinstance(exc, TrtqError) else explain_system(exc)
    if os.environ.get("TRTQ_DEBUG", "0") not in ("", "0"):
        say("".join(traceback.format_exception(exc)), err=True, lines=True)
    say(f"trtq: {error.coded if error else _bug(exc)}", err=True)
    if error is not None and error.exit_code != 1:
        return error.exit_code
    return FAILED.get(next((w for w in words if not w.startswith("-")), ""), 1)


def _show_usage(exc: click.ClickException) -> None:
    context = getattr(exc, "ctx", None)
    if context is not None:
        say(context.get_usage(), err=True, lines=True)
        say(f"Try '{context.command_path} --help' for help.", err=True)
    say(f"Error: {exc.format_message()}", err=True)


def _bug(exc: Exception) -> str:
    """Return what to report about an exception that no part of trtq expected."""
    package = Path(__file__).parents[1]
    frames = traceback.extract_tb(exc.__traceback__)
    own = next((f for f in reversed(frames) if Path(f.filename).is_relative_to(package)), None)
    place = "an unknown place"
    if own is not None:
        place = f"{Path(own.filename).relative_to(package.parent)}:{own.lineno} in {own.name}"
    text = f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__
    return (
        f"This is a bug in trtq {__version__}: {place}: {text[:500]}. "
        "Hint: run the command again with TRTQ_DEBUG=1 and report the traceback."
    )
