"""The class of all verbs: `--check[=MODE]`, and errors with suggestions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

CHECK_MODES = ("match", "module", "each", "off")


class Verb(click.Command):
    """A verb. Its `--check` may stand alone: it then means the verb's default."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Spells `--check` and `--no-check` as `--check=MODE`, which click can read."""
        option = next((p for p in self.params if isinstance(p, CheckOption)), None)
        if option is not None:
            words = {"--check": f"--check={option.when_bare}"}
            words |= {"--no-check": "--check=off", "--no_check": "--check=off"}
            end = args.index("--") if "--" in args else len(args)
            spelled: list[str] = []
            for word in args[:end]:
                if spelled and spelled[-1] == words["--check"] and word in CHECK_MODES:
                    spelled[-1] = f"--check={word}"
                else:
                    spelled.append(words.get(word, word))
            args = spelled + args[end:]
        return super().parse_args(ctx, args)


class CheckOption(click.Option):
    """`--check`, `--check=each`, `--no-check`."""

    def __init__(self, when_bare: str) -> None:
        super().__init__(
            ["--check"],
            type=click.Choice(CHECK_MODES),
            default=when_bare,
            help=f"What is compared; alone it means {when_bare}, which is the default.",
        )
        self.when_bare = when_bare

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Shows the three ways to write it."""
        return "--check[=match|module|each] / --no-check", self.help or ""


def check_option(when_bare: str) -> Callable[[F], F]:
    """Adds `--check[=MODE]/--no-check` to a verb."""

    def decorate(function: F) -> F:
        params = function.__dict__.setdefault("__click_params__", [])
        params.append(CheckOption(when_bare))
        return function

    return decorate
