"""The example of docs/linearization.md generates what the module without states does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import regraft
from docs.generate import FOLDER
from regraft.ir.evaluate import evaluate
from regraft.passes.linearization.methods import METHODS
from tests.docs.test_docs import blocks
from tests.passes.linearization.language_model import VOCABULARY, language_model

PAGE = (FOLDER / "linearization.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("method", METHODS)
def test_the_page_has_the_method(method: str) -> None:
    assert f"| `{method}` |" in PAGE


@pytest.mark.parametrize("options", ["window=4", "method=elu"])
def test_the_example_generates_what_the_whole_text_gives(options: str) -> None:
    scope: dict[str, Any] = {}
    code = "\n".join(blocks(FOLDER / "linearization.md", "py"))
    exec(compile(code, "linearization.md", "exec", dont_inherit=True), scope)
    module = language_model()
    regraft.apply(module, f"linearize-attention{{{options}}}", check="off")
    prompt = np.random.default_rng(1).integers(0, VOCABULARY, (1, 9))
    made = scope["generate"](module, prompt, 8)
    tokens = prompt
    for _ in range(8):
        logits = evaluate(module, {"input_ids": tokens})["logits"]
        tokens = np.concatenate([tokens, [[int(logits[0, -1].argmax())]]], axis=1)
    assert made == tokens[0, 9:].tolist()
