"""The files beside a model that say how text, images and sound become its inputs."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

POOLING = "1_Pooling"
"""Where sentence-transformers says how states of tokens become one vector."""

_COPIED = re.compile(
    r"(tokenizer|vocab|merges|special_tokens|added_tokens|preprocessor_config|processor_config|"
    r"generation_config|chat_template|spiece|sentencepiece|normalizer|video_preprocessor).*"
    r"\.(json|txt|model|jinja|tiktoken|spm)$|.*\.(model|tiktoken)$"
)


def copy_companions(source: Path, folder: Path, *, code: bool = False) -> list[Path]:
    """Copies a folder's files of tokenizer and processor into another; returns them.

    Args:
        source: A folder of `transformers`.
        folder: Where the model is written.
        code: Whether its Python files are copied too: those of a model that brings its own.

    Raises:
        OSError: When the disk is full or the folder cannot be written.
    """
    made = [
        Path(shutil.copyfile(file, folder / file.name))
        for file in sorted(source.iterdir())
        if file.is_file() and (_COPIED.match(file.name) or (code and file.suffix == ".py"))
    ]
    pooling = source / POOLING / "config.json"
    if pooling.is_file():
        (folder / POOLING).mkdir(exist_ok=True)
        made.append(Path(shutil.copyfile(pooling, folder / POOLING / pooling.name)))
    return made
