"""A prompt learned on a frozen, rounded language model."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from regraft.ir.errors import UsageError
from regraft.ir.evaluate import evaluate
from regraft.ir.module import Module
from regraft.ir.text import parse_module
from regraft.ir.verify import verify
from regraft.ir.weights import ArrayWeight
from regraft.passes.recovery.data import Examples
from regraft.passes.recovery.objective import CrossEntropy, Term
from regraft.passes.recovery.soft_prompt import Prompted, SoftPrompt, add_soft_prompt
from regraft.passes.recovery.task import Schedule, Task
from tests.backends.torch.models import torch  # noqa: F401  # skips without it

from regraft.backends.torch.training import TorchTrainer  # isort: skip  # needs torch

VOCABULARY = 24
# every position sees its token and the mean of all: what comes next depends on the text's kind
LM = f"""
module "lm"
symbol B
symbol S
weight @"table" : f32[{VOCABULARY}, 16] role=param = random(1)
weight @"own" : f32[16, 32] role=param = random(2)
weight @"all" : f32[16, 32] role=param = random(3)
weight @"head" : f32[32, {VOCABULARY}] role=param = random(4)

graph(%ids : i64[B, S]) {{
  %table = weight @"table"
  %x = gather(%table, %ids) {{axis = 0}}
  %own = weight @"own"
  %all = weight @"all"
  %head = weight @"head"
  %mean = reduce_mean(%x) {{axes = [1], keepdims = true}}
  %a = matmul(%x, %own)
  %b = matmul(%mean, %all)
  %sum = add(%a, %b)
  %h = tanh(%sum)
  %logits = matmul(%h, %head)
  return %logits
}}
"""
TERM = Term(CrossEntropy(), "logits", label="label")


def _texts(count: int, seed: int) -> list[dict[str, np.ndarray]]:
    """Returns walks over the vocabulary, most of them with the same step."""
    rng = np.random.default_rng(seed)
    items = []
    for _ in range(count):
        step = rng.choice([1, 5], p=[0.9, 0.1])
        walk = (rng.integers(VOCABULARY) + step * np.arange(9)) % VOCABULARY
        items.append({"ids": walk[:-1], "label": walk[1:]})
    return items


def _rounded_lm() -> Module:
    module = parse_module(LM)
    task = Task((TERM,), Schedule(150, learning_rate=2e-2))
    TorchTrainer().distill(module, [], task, Examples(_texts(128, 0), 16))
    for name in module.weights:
        array = module.weights[name].numpy()
        scale = np.abs(array).max() / 1.5  # two bits
        rounded = (np.clip(np.floor(array / scale) + 0.5, -1.5, 1.5) * scale).astype(np.float32)
        module.weights.set(name, ArrayWeight(rounded))
    return module


def _loss(module: Module, batch: Mapping[str, np.ndarray]) -> float:
    logits = evaluate(module, {"ids": batch["ids"]})["logits"].astype(np.float64)
    counts = batch["label"] >= 0
    logits, label = logits[counts], batch["label"][counts]
    top = logits.max(-1, keepdims=True)
    log_p = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
    return float(-log_p[np.arange(len(label)), label].mean())


def test_prompt_lowers_the_loss_of_a_rounded_model() -> None:
    module = _rounded_lm()
    weights = {name: module.weights[name].numpy().tobytes() for name in module.weights}
    data = Examples(_texts(128, 1), 16)
    held_out = data.collate(_texts(64, 2))
    before = _loss(module, held_out)
    prompt = add_soft_prompt(module, 4, input="ids")
    verify(module)
    prompted = Prompted(data, prompt, {"label": -100})
    task = Task((TERM,), Schedule(200, learning_rate=5e-2), trained=(prompt.weight,))
    report = TorchTrainer().distill(module, [], task, prompted)
    assert report.changed == (prompt.weight,)
    after = _loss(module, prompted.add_to(held_out))
    assert after < 0.9 * before
    # the model itself is as it was, and texts without the prompt give what they gave
    assert {name: module.weights[name].numpy().tobytes() for name in weights} == weights
    assert _loss(module, held_out) == before


def test_prompt_before_a_text() -> None:
    data = Examples(_texts(4, 3), 2, seed=None)
    prompted = Prompted(data, SoftPrompt("p", "ids", (24, 25)), {"label": -100})
    batch, plain = next(prompted.batches(1)), next(data.batches(1))
    assert batch["ids"][:, :2].tolist() == [[24, 25]] * 2
    assert (batch["label"][:, :2] == -100).all()
    for name in ("ids", "label"):
        np.testing.assert_array_equal(batch[name][:, 2:], plain[name])
        assert batch[name].dtype == plain[name].dtype


def test_inputs_that_read_no_table_are_refused() -> None:
    module = parse_module(LM)
    with pytest.raises(UsageError, match="no table of vectors is read at the ids of input `x`"):
        add_soft_prompt(module, 2, input="x")
    with pytest.raises(UsageError, match="a soft prompt of 0 tokens"):
        add_soft_prompt(module, 0, input="ids")
    assert str(module) == str(parse_module(LM))
