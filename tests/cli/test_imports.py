"""What is loaded when: `import regraft` numpy at most, `regraft --help` click only."""

from __future__ import annotations

import subprocess
import sys

import pytest

_PROBE = """
import sys
before = set(sys.modules)
try:
    {code}
except SystemExit:
    pass
found = {{name.partition(".")[0] for name in set(sys.modules) - before}}
third = sorted(n for n in found if n not in sys.stdlib_module_names and not n.startswith("_"))
print("loaded:", *third)
"""


def loaded(code: str) -> set[str]:
    """Returns the packages outside the standard library that running `code` imports."""
    done = subprocess.run(
        [sys.executable, "-c", _PROBE.format(code=code)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    line = next(x for x in done.stdout.splitlines() if x.startswith("loaded:"))
    return set(line.split()[1:])


def test_import_regraft_loads_numpy_at_most() -> None:
    assert loaded("import regraft") <= {"regraft", "numpy"}


@pytest.mark.parametrize("args", [["--help"], ["--version"], ["search"], []])
def test_help_loads_click_only(args: list[str]) -> None:
    assert loaded(f"from regraft.cli import main; main({args})") <= {"regraft", "click"}


@pytest.mark.parametrize(
    "verb", ["convert", "inspect", "compare", "opt", "passes", "doctor", "lint", "bisect", "rerun"]
)
def test_help_of_a_verb_loads_no_runtime(verb: str) -> None:
    found = loaded(f"from regraft.cli import main; main(['{verb}', '--help'])")
    assert found.isdisjoint({"numpy", "onnx", "onnxruntime", "scipy", "networkx", "torch"})


def test_text_in_text_out_needs_no_onnx(tmp_path: object) -> None:
    found = loaded("import regraft.ir.text, regraft.passes.manager, regraft.passes.cleanup")
    assert found.isdisjoint({"onnx", "onnxruntime", "torch"})
