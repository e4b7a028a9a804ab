"""Options of the test suite."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the option that rewrites expectations."""
    parser.addoption(
        "--update", action="store_true", help="rewrite the expected text of tests/cases/**/*.rg"
    )
