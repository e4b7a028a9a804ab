"""Outputs that are whole or absent: written beside the destination and renamed at the end."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from regraft.ir.errors import RegraftError, UsageError
from regraft.ir.module import Module
from regraft.ir.text import write_module

_SHOWN = 64
"""Characters of a name that its temporary folder shows: whole, the two would be too long."""


def check_destination(out: Path, *, force: bool) -> None:
    """Checks a destination before any work begins.

    Raises:
        UsageError: When it exists without `force`, or its folder does not exist or is a file.
    """
    try:
        exists = out.exists()
    except OSError as error:  # a name that is too long, a folder that may not be entered
        raise UsageError(
            f"`{out}` cannot be written: {error.strerror}", hint="give another name"
        ) from error
    if exists and not force:
        raise UsageError(f"`{out}` exists", hint="give --force to replace it, or another name")
    if out.suffix and out.is_dir():
        raise UsageError(
            f"`{out}` is a folder, and its name is that of a file",
            hint="name a file that does not exist, or a folder without a suffix",
        )
    if out.parent.is_file():
        raise UsageError(f"`{out.parent}` is a file, not a folder", hint="give another name")
    if not out.parent.is_dir():
        raise UsageError(f"folder `{out.parent}` does not exist", hint="create it first")


@contextmanager
def staged(out: Path, *, force: bool) -> Iterator[Path]:
    """Gives a temporary folder beside `out`; its content becomes `out` when the block succeeds.

    A destination with a suffix is a file (and files beside it, such as external data), one without
    is a folder. On any error or interruption nothing is left behind.

    Raises:
        RegraftError: When the disk is full or the folder cannot be written.
    """
    check_destination(out, force=force)
    try:
        temp = Path(tempfile.mkdtemp(prefix=f".{out.name[:_SHOWN]}.", dir=out.parent))
    except OSError as error:
        raise _explain(error, out) from error
    try:
        yield temp
        with _uninterrupted():
            _publish(temp, out)
    except OSError as error:
        raise _explain(error, out) from error
    finally:
        shutil.rmtree(temp, ignore_errors=True)


def _publish(temp: Path, out: Path) -> None:
    if not out.suffix:
        _swap_folder(temp, out)
        return
    for file in sorted(temp.iterdir(), key=lambda f: f.name == out.name):
        # the model itself comes last: it never refers to data that is not there
        os.replace(file, out.parent / file.name)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Holds Ctrl-C back during a few renames: an old model never stands beside new data."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _swap_folder(temp: Path, out: Path) -> None:
    temp.chmod(0o755)  # mkdtemp makes it private
    if not out.exists():
        os.rename(temp, out)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{out.name[:_SHOWN]}.old.", dir=out.parent))
    os.rename(out, old / out.name)
    try:
        os.rename(temp, out)
    except OSError:
        os.rename(old / out.name, out)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _explain(error: OSError, out: Path) -> RegraftError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RegraftError(f"`{out}` was not written: the disk is full", hint="free some space")
    return RegraftError(f"`{out}` was not written: {error.strerror or error}")


def save_text(module: Module, out: Path, *, force: bool) -> None:
    """Writes a module in the text form, large weights into a file beside it.

    Raises:
        UsageError: When `out` exists without `force`.
        RegraftError: When the disk is full or the folder cannot be written.
    """
    with staged(out, force=force) as temp:
        write_module(module, temp / out.name)
