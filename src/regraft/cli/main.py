"""The `regraft` command: lazy verbs, and errors as one message and an exit code."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Sequence

import click

from regraft import __version__

VERBS: dict[str, str] = {
    "convert": "Capture a model, run passes, check the result, write it.",
    "inspect": "Parameters, bytes, FLOPs, peak activation, operators.",
    "compare": "Compare the outputs of two models.",
    "opt": "Run passes on a text module: text in, text out.",
    "passes": "List passes, or document one.",
    "doctor": "Versions, CPU flags, providers, what is missing.",
}
"""Verb -> one line; the command is `regraft.cli.<verb>_cmd:command`."""


class LazyGroup(click.Group):
    """A group that imports a verb's module when the verb is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Returns the verbs in order of the table."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Imports and returns a verb's command."""
        if cmd_name not in VERBS:
            return None
        module = importlib.import_module(f"regraft.cli.{cmd_name}_cmd")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Adds `did you mean` to the error for an unknown verb."""
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            import difflib  # noqa: PLC0415

            close = difflib.get_close_matches(args[0], VERBS, n=1)
            hint = f"did you mean `{close[0]}`?" if close else f"verbs: {', '.join(VERBS)}"
            raise click.UsageError(f"unknown verb `{args[0]}`\nhint: {hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists the verbs without importing them."""
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Example: regraft convert model.onnx -o out",
)
@click.version_option(__version__, "--version", message="regraft %(version)s")
def cli() -> None:
    """A compiler for model surgery: a trained model in, a checked, faster model out."""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line and exits with a code of INTERFACE: 0, 1, 2, 3 or 4."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        code = cli.main(args, prog_name="regraft", standalone_mode=False)
    except click.exceptions.Exit as error:
        code = error.exit_code
    except click.Abort:
        code = _fail("interrupted; nothing was written", None, 130, args)
    except KeyboardInterrupt:
        code = _fail("interrupted; nothing was written", None, 130, args)
    except click.ClickException as error:
        message, _, hint = error.format_message().partition("\nhint: ")
        code = _fail(message, hint or None, 2, args)
    except BrokenPipeError:
        # the reader of our output went away; Python would complain again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except MemoryError:
        code = _fail("out of memory", "give --max-memory, or --no-check", 1, args)
    except Exception as error:
        from regraft.ir.errors import RegraftError  # noqa: PLC0415

        if not isinstance(error, RegraftError):
            raise
        notes = getattr(error, "__notes__", [])
        code = _fail("\n".join([error.message, *notes]), error.hint, error.exit_code, args)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, hint: str | None, code: int, args: Sequence[str]) -> int:
    if "--json" in args:
        entry = {"message": message, "hint": hint, "exit_code": code}
        print(json.dumps({"error": entry}, indent=2))
    print(f"error: {message}", file=sys.stderr)
    if hint:
        print(f"hint: {hint}", file=sys.stderr)
    return code
