"""A selective state space model of `transformers` becomes the operator, its steps gone."""

from __future__ import annotations

import numpy as np
import pytest

import regraft
from benchmarks.fixtures import vision_ops
from regraft.ir.evaluate import evaluate
from regraft.ir.ops.linear_attention import linear_attention

torch = pytest.importorskip("torch", reason="models are captured from PyTorch")
transformers = pytest.importorskip("transformers", reason="the model is one of its")

vision_ops.declare()  # where torchvision is installed without them, no model can be imported

LAYERS, T = 2, 5


def test_mamba_is_one_operator_per_layer() -> None:
    config = transformers.MambaConfig(
        vocab_size=20, hidden_size=8, state_size=4, num_hidden_layers=LAYERS, intermediate_size=16,
        use_cache=False, use_mambapy=False,
    )  # fmt: skip
    net = transformers.MambaModel(config).eval()
    ids = torch.arange(2 * T).reshape(2, T)
    module = regraft.capture(net, (), {"input_ids": ids})
    regraft.apply(module, "canonicalize,fuse", check="off")
    _, record, _ = regraft.apply(module, "canonicalize,canonicalize-recurrence,canonicalize")
    assert (record.stats["recurrences"], record.stats["steps"]) == (LAYERS, LAYERS * T)
    assert [node.op for node in module.graph].count(linear_attention) == LAYERS
    with torch.no_grad():
        wanted = net(ids).last_hidden_state.numpy()
    found = evaluate(module, {"input_ids": ids.numpy()})["last_hidden_state"]
    np.testing.assert_allclose(found, wanted, atol=1e-5)
