"""Reads `tokenizer.json`: all that is needed to make token ids of text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from regraft.ir.errors import InputError, UnsupportedError

TOKENIZER = "tokenizer.json"


def read_tokenizer(file: Path) -> Any:
    """Returns the tokenizer of a file, an object of the package `tokenizers`.

    Raises:
        InputError: When the file is none.
        UnsupportedError: When the package is missing.
    """
    try:
        from tokenizers import Tokenizer  # an extra
    except ImportError as error:
        message = "texts need the package `tokenizers`"
        raise UnsupportedError(message, hint="`pip install 'regraft[hf]'`") from error
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the package raises `Exception` itself
        raise InputError(
            f"`{file}` is no tokenizer: {error}", hint="download or copy it again"
        ) from error
