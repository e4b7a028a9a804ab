"""The pages under docs/: generated ones are current, code on the others runs."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import onnx
import pytest

from docs.generate import FOLDER, PAGES, README, with_latency
from regraft.ir.text import parse_module, print_module
from tests.cli.workplace import model

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^):]+)\)")
ROOT = FOLDER.parent
PROSE = [*sorted(FOLDER.glob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]


def blocks(page: Path, language: str) -> list[str]:
    """Returns the fenced blocks of a language."""
    return [text for lang, text in _BLOCK.findall(page.read_text("utf-8")) if lang == language]


@pytest.mark.parametrize("name", PAGES)
def test_generated_page_is_current(name: str) -> None:
    current = (FOLDER / name).read_text("utf-8")
    assert current == PAGES[name](), "run `python -m docs.generate`"


def test_latency_of_the_readme_is_that_of_the_results() -> None:
    current = README.read_text("utf-8")
    assert current == with_latency(current), "run `python -m docs.generate`"


def test_a_readme_without_marks_for_its_latency_is_an_error() -> None:
    with pytest.raises(ValueError, match="marks 0 places"):
        with_latency("# regraft")


@pytest.mark.parametrize("page", [p for p in PROSE if blocks(p, "python")], ids=lambda p: p.name)
def test_python_blocks_run_in_order(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if any("import torch" in code for code in blocks(page, "python")):
        pytest.importorskip("torch", reason="the page is about PyTorch")
    if page.name == "triton.md":
        pytest.importorskip("triton", reason="the page is about Triton")
    onnx.save(model(), tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {"__name__": "docs"}
    for number, code in enumerate(blocks(page, "python")):
        exec(compile(code, f"{page.name}[{number}]", "exec", dont_inherit=True), scope)


@pytest.mark.parametrize("page", [p for p in PROSE if blocks(p, "rg")], ids=lambda p: p.name)
def test_text_modules_print_as_they_stand(page: Path) -> None:
    for text in blocks(page, "rg"):
        assert print_module(parse_module(text)) == text


@pytest.mark.parametrize("page", PROSE, ids=lambda p: p.name)
def test_links_lead_to_files(page: Path) -> None:
    for link in _LINK.findall(page.read_text("utf-8")):
        target = link.partition("#")[0]
        assert (page.parent / target).exists(), target


def test_own_rule_and_pass_are_as_short_as_said() -> None:
    code = "\n".join(blocks(FOLDER / "custom_passes.md", "python"))
    rule = re.search(r"^class DivideByPowerOfTwo.*?(?=\n\n)", code, re.MULTILINE | re.DOTALL)
    item = re.search(r"^@dataclass.*?PassResult\(bool.*?$", code, re.MULTILINE | re.DOTALL)
    assert rule is not None
    assert item is not None
    assert len([line for line in rule.group().splitlines() if line.strip()]) <= 10
    assert len([line for line in item.group().splitlines() if line.strip()]) <= 15


@pytest.mark.parametrize("number", range(3), ids=["operator", "pass", "backend"])
def test_diffs_of_contributing_apply(number: int, tmp_path: Path) -> None:
    diff = blocks(ROOT / "CONTRIBUTING.md", "diff")[number]
    touched = re.findall(r"^--- a/(.+)$", diff, re.MULTILINE)
    assert touched
    for name in touched:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    # one line of context on each side must still be there
    done = subprocess.run(
        ["git", "apply", "--check", "-C1", "-"],
        cwd=tmp_path, input=diff, text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
