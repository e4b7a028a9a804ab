"""Folders with experts: loaded strictly, they generate the same tokens as what they were."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch", reason="folders are loaded with PyTorch")
pytest.importorskip("transformers", reason="needs the extra `hf`")

from benchmarks.fixtures import vision_ops

vision_ops.declare()  # where torchvision is installed without them, no model can be imported

import regraft  # noqa: E402
from benchmarks.moe_folders import CASES, compared, make  # noqa: E402
from regraft.huggingface_sources import save_folder  # noqa: E402
from regraft.ir.errors import UnsupportedError  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # deprecations between these packages


@pytest.mark.parametrize("kind", CASES)
def test_folder_with_experts_loads_strictly_and_generates_the_same(
    kind: str, tmp_path: Path
) -> None:
    case = CASES[kind]
    found = compared(case, tmp_path)
    assert found.name == f"{case.result}ForCausalLM"
    assert found.problems == ()
    # f32 through two layers, sums of at most 96 products
    assert found.error <= 1e-6
    assert found.same_tokens


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("scoring=sigmoid", "its scores are `sigmoid`"),
        ("every=2", "every layer of a `mixtral` has"),
        ("router=zero,renormalize=false", "divides the weights of the chosen experts"),
    ],
)
def test_experts_that_the_family_has_not_are_refused_with_the_reason(
    options: str, reason: str, tmp_path: Path
) -> None:
    make(tmp_path / "source", CASES["llama"])
    module = regraft.load(tmp_path / "source")
    passes = f"canonicalize,fuse,upcycle-ffn{{experts=4,{options}}}"
    regraft.apply(module, passes, check="off")
    (tmp_path / "out").mkdir()
    with pytest.raises(UnsupportedError, match=reason):
        save_folder(module, tmp_path / "out")
