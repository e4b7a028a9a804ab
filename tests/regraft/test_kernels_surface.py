"""`regraft.kernels`: loaded on first use, with an error that says what to install."""

import importlib.util
import subprocess
import sys

import pytest

from regraft import kernels
from regraft.ir.errors import UsageError


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="torch and triton cannot be imported") as caught:
        _ = kernels.rms_norm
    assert caught.value.hint == 'pip install "regraft[triton]"'


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute `conv`"):
        _ = kernels.conv


def test_the_names_are_listed_without_loading_torch() -> None:
    program = "import sys, regraft.kernels as k; print(*dir(k)); assert 'torch' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == sorted(kernels.__all__)
