"""Cost tables measured on this machine: where they are, and which targets have one."""

from __future__ import annotations

from regraft.backends.machine_tables import user_table
from regraft.backends.onnx.legalize import MEASURED, CostTable, read_table

__all__ = ["user_table", "user_tables"]


def user_tables() -> dict[str, CostTable]:
    """Returns the tables that `tune` wrote on this machine, by target.

    Raises:
        InputError: When a file is no table of this version.
    """
    paths = {target: user_table(target) for target in MEASURED}
    return {target: read_table(path) for target, path in paths.items() if path.is_file()}
