"""Options of the test suite."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the options that rewrite expectations."""
    parser.addoption(
        "--update", action="store_true", help="rewrite the expected text of tests/cases/**/*.rg"
    )
    parser.addoption(
        "--update-snapshots", action="store_true", help="record the output of command lines anew"
    )
