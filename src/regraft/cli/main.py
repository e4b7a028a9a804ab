"""The `regraft` command: lazy verbs, and errors as one message and an exit code."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Iterable, Sequence

import click

from regraft import __version__
from regraft.cli.printable import printable

VERBS: dict[str, str] = {
    "convert": "Capture a model, run passes, check the result, write it.",
    "inspect": "Parameters, bytes, FLOPs, peak activation, operators.",
    "compare": "Compare the outputs of two models.",
    "bench": "Latency of models, interleaved, relative to the first.",
    "audit": "What a linearized model really does, branch by branch; what experts do.",
    "tune": "Measure the cost table of this machine.",
    "lint": "Known traps of a model for a target, with the fix.",
    "bisect": "Find the first pass and match that change outputs; minimal reproducer.",
    "rerun": "Make an output again from its records; compare byte for byte.",
    "checkpoint": "What a pruned output kept of a checkpoint; cut others, put tensors back.",
    "opt": "Run passes on a text module: text in, text out.",
    "passes": "List passes, or document one.",
    "doctor": "Versions, CPU flags, providers, what is missing.",
}
"""Verb -> one line; the command is `regraft.cli.<verb>_cmd:command`."""

PLANNED = ("search",)
"""Verbs of the interface that are not built yet."""

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""


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
        """Adds a suggestion to the error for an unknown verb."""
        verb = args[0]
        if verb in PLANNED:
            raise click.UsageError(
                f"the verb `{verb}` is not built yet\nhint: it is planned; see docs/interface.md"
            )
        if verb not in VERBS and not verb.startswith("-"):
            raise click.UsageError(f"unknown verb `{verb}`\nhint: {_suggest(verb, VERBS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists the verbs without importing them."""
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))


@click.group(
    cls=LazyGroup,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
        "token_normalize_func": lambda token: token.replace("_", "-"),
    },
    subcommand_metavar="VERB …",
    epilog="Example: regraft convert model.onnx -o out",
)
@click.version_option(__version__, "--version", message="regraft %(version)s")
def cli() -> None:
    """A compiler for model surgery: a trained model in, a checked, faster model out."""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line and exits with the code that `docs/interface.md` lists."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        code = cli.main(args, prog_name="regraft", standalone_mode=False)
    except click.exceptions.Exit as error:
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        code = _fail("interrupted; nothing was written", None, INTERRUPTED, args)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        code = 2
    except click.ClickException as error:
        code = _fail(*_words_of(error), 2, args)
    except BrokenPipeError:
        # the reader of our output went away; Python would complain again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except MemoryError:
        code = _fail("out of memory", "give --max-memory, or --no-check", 1, args)
    except Exception as error:
        code = _fail_with(error, args)
    sys.exit(code if isinstance(code, int) else 0)


def _fail_with(error: Exception, args: Sequence[str]) -> int:
    from regraft.ir.errors import RegraftError

    if isinstance(error, RegraftError):
        notes = getattr(error, "__notes__", [])
        return _fail("\n".join([error.message, *notes]), error.hint, error.exit_code, args)
    import traceback

    traceback.print_exc()
    whose = "regraft or of the plugin" if "--plugin" in args else "regraft"
    notes = getattr(error, "__notes__", [])
    return _fail(
        "\n".join([f"internal error: {type(error).__name__}: {error}", *notes]),
        f"this is a bug of {whose}: please report it with the lines above",
        1,
        args,
    )


def _words_of(error: click.ClickException) -> tuple[str, str | None]:
    """Returns the message and hint of a usage error, in the words of all other errors."""
    verb = (
        error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "regraft"
    )
    hint = f"`{verb} --help` shows the options"
    match error:
        case click.NoSuchOption():
            known = [
                name
                for param in (error.ctx.command.params if error.ctx else ())
                for name in (*param.opts, *param.secondary_opts)
                if name.startswith("--")
            ]
            return f"unknown option `{error.option_name}`", _suggest(error.option_name, known, hint)
        case click.MissingParameter():
            name = error.param.human_readable_name if error.param else ""
            return f"`{verb}` needs {name}", hint
        case click.BadParameter() if error.param is not None and error.param.name != "verb":
            option = max(error.param.opts, key=len)
            return f"`{option}`: {error.message.rstrip('.')}", hint
        case _:
            message, _, own = error.format_message().rstrip(".").partition("\nhint: ")
            return message, own or hint


def _suggest(name: str, known: Iterable[str], otherwise: str | None = None) -> str:
    import difflib

    names = list(known)
    close = difflib.get_close_matches(name.replace("_", "-"), names, n=1)
    if close:
        return f"did you mean `{close[0]}`?"
    return otherwise or f"verbs: {', '.join(names)}"


def _fail(message: str, hint: str | None, code: int, args: Sequence[str]) -> int:
    if "--json" in args:
        entry = {"message": message, "hint": hint, "exit_code": code}
        print(json.dumps({"error": entry}, indent=2))
    print(f"error: {printable(message)}", file=sys.stderr)
    if hint:
        print(f"hint: {printable(hint)}", file=sys.stderr)
    return code
