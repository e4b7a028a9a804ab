"""The command line: `regraft VERB …`. Importing it loads click only; verbs load what they need."""

from regraft.cli.main import main

__all__ = ["main"]
