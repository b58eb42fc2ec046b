"""The command line: one module a subcommand, options made from the specs."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import click

from trtq.errors import TrtqError
from trtq.version import __version__

COMMANDS = {
    "quantize": "Calibrate a model, write Q/DQ ONNX, encodings and a record.",
    "evaluate": "Accuracy of an ONNX file, agreement with another.",
    "build": "Build a TensorRT engine from an ONNX file.",
    "bench": "Latency, throughput, load time, memory and energy, and the machine.",
    "compare": "Files that take turns: faster, slower or no difference.",
    "gate": "A record against its baseline, for a CI runner.",
    "history": "Every record made here, to filter and to plot.",
    "analyze": "How much each layer suffers at each width.",
    "allocate": "Choose a width for every layer within budgets.",
    "advise": "Which way of quantizing fits a model, and what to type.",
    "search": "Find widths that meet every budget, and prove it.",
    "finetune": "Train a quantized model further, its codes in place.",
    "cost": "Count MACs, bytes, BitOps and energy; predict latency.",
    "run": "Run the chain of a recipe, skipping what is up to date.",
    "blocks": "The convolutional and the transformer parts of a model.",
    "methods": "The quantization methods: where each runs, its arguments.",
    "audit": "What an engine computes in, against what was asked for.",
    "lint": "What TensorRT would refuse in an ONNX file, or compute in float.",
    "export": "One set of encodings as ONNX for several targets.",
    "export-calib": "The ranges of a Q/DQ file as a TensorRT calibration cache.",
    "import-calib": "A Q/DQ file from a calibration cache and its float ONNX.",
    "import-checkpoint": "Ranges of pytorch-quantization, ModelOpt or AIMET taken over.",
    "device": "Boards over SSH: add, probe, shell, logs, clean.",
    "deploy": "Build, measure and keep a model on a board.",
    "fleet": "Several boards side by side, one table.",
    "targets": "The devices and TensorRT versions that --target knows.",
    "report": "One HTML page about a run, or about several side by side.",
    "inspect": "Explain any artefact.",
    "doctor": "Versions, devices, sensors, what is missing and how to get it.",
    "demo": "A real model to INT8 engines, with a page to read; no GPU needed.",
}


class LazyGroup(click.Group):
    """Imports a subcommand's module when that subcommand is asked for: help stays fast."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the chain."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the subcommand, None when there is none of that name."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"trtq.cli.{cmd_name.replace('-', '_')}_cmd").command
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Suggest the nearest subcommand for an unknown one."""
        from trtq.errors import UsageError, suggest

        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            raise UsageError(f"Unknown command {args[0]!r}", mend=suggest(args[0], COMMANDS))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the subcommands from the table, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, "--version", message="trtq %(version)s")
def cli() -> None:
    """Take a PyTorch vision model to a quantized TensorRT engine and prove what it gained.

    Exit codes: 0 good, 1 failed, 2 wrong usage, 3 finished but not valid.
    """


def main() -> None:
    """Entry point of the ``trtq`` command: errors a user can mend are printed in one line, without a traceback."""
    try:
        code = cli.main(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except TrtqError as exc:
        click.echo(f"trtq: {exc}", err=True)
        sys.exit(exc.exit_code)
    except click.ClickException as exc:
        exc.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        click.echo("trtq: interrupted; finished stages are kept", err=True)
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(1)
