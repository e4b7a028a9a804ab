"""Options of the test suite, and random numbers that each test draws anew.

A test and a fixture begin with a state of their own, by their names: what they draw is the same
in every run, whichever tests ran before in the same process.
"""

import random
import sys
import zlib

import numpy as np
import pytest
from hypothesis import settings

# `make test` says the same twice; `make full` draws new examples, --hypothesis-profile=default
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the options that rewrite expectations."""
    parser.addoption(
        "--update", action="store_true", help="rewrite the expected text of tests/cases/**/*.rg"
    )
    parser.addoption(
        "--update-snapshots", action="store_true", help="record the output of command lines anew"
    )


def _seed(name: str) -> None:
    seed = zlib.crc32(name.encode())
    random.seed(seed)
    np.random.seed(seed)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(seed)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[object]) -> None:
    """Seeds what a fixture draws."""
    _seed(fixturedef.argname)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    """Seeds what a test draws."""
    _seed(item.name)
