"""regraft: a compiler for model surgery."""

__version__ = "0.1.0"
