"""The pass `extract-experts`: experts are masked blocks, one router speaks before the first."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import regraft
from benchmarks.fixtures import store
from regraft.backends.onnx.activations import OrtActivations
from regraft.ir.constants import constant_of
from regraft.ir.errors import UsageError
from regraft.ir.evaluate import evaluate
from regraft.ir.graph import Node
from regraft.ir.module import Module
from regraft.ir.ops.moe import moe
from regraft.ir.verify import verify
from regraft.ir.weights import ArrayWeight
from regraft.passes.analysis.blocks import Recognizer
from regraft.passes.analysis.ffn import FfnBlock
from regraft.passes.experts.dense import dense_of
from regraft.passes.experts.extract_experts import ExtractExperts
from regraft.passes.protocol import Context, PassResult

Array = np.ndarray[Any, Any]

NAME = "llama.dyn18"


def _model() -> Module:
    module = regraft.load(store.load(NAME))
    regraft.apply(module, "canonicalize,fuse", check="off")
    return module


def _samples(domains: int) -> list[dict[str, Array]]:
    """Tokens of each domain are of its own part of the vocabulary."""
    shape = store.samples(NAME)
    found = []
    for domain in range(domains):
        for seed in range(2):
            rng = np.random.default_rng([domain, seed])
            ids = rng.integers(16 * domain, 16 * domain + 8, shape["input_ids"].shape)
            found.append({**shape, "input_ids": ids.astype(np.int64)})
    return found


def _extracted(**options: Any) -> tuple[Module, PassResult]:
    module = _model()
    samples = _samples(options.get("domains", 3))
    result = ExtractExperts(**({"domains": 3} | options)).run(
        module, Context(samples=samples, activations=OrtActivations())
    )
    verify(module)
    return module, result


def _experts(module: Module) -> list[Node]:
    return [node for node in module.graph if node.op is moe]


def test_one_router_speaks_for_all_layers_before_the_first() -> None:
    module, result = _extracted()
    nodes = _experts(module)
    assert len(nodes) == result.stats["blocks"] == 2
    assert len({node.inputs[1] for node in nodes}) == 1
    scores = nodes[0].inputs[1]
    assert scores is not None
    assert scores.producer is not None
    # nothing of a layer is computed before the scores are
    mixing = {"attention", "matmul", "moe", "rms_norm"}
    before = [node for node in module.graph if node.order < scores.producer.order]
    assert sum(node.op.name in mixing for node in before) == 1  # the router's own product
    assert result.stats["router-accuracy"] == 1


def test_an_expert_with_the_shared_channels_is_the_masked_block() -> None:
    dense, (module, result) = _model(), _extracted()
    kept = result.decisions["blocks"]
    for domain, sample in enumerate(_samples(3)[::2]):
        masked = dense.clone()
        blocks = Recognizer().graph(masked.graph).ffn
        for node, block, figures in zip(_experts(module), blocks, kept, strict=True):
            count = _mask(block, masked, module, node, domain)
            assert count == figures["shared"] + figures["widths"][domain]
            assert 2 * count == block.hidden
        want = evaluate(masked, sample, oracle=True)
        got = evaluate(module, sample, oracle=True)
        for name, array in want.items():
            assert np.abs(got[name] - array).max() <= 1e-12 * np.abs(array).max()


def _mask(block: FfnBlock, masked: Module, module: Module, node: Node, domain: int) -> int:
    """Zeroes the columns of `down` that an expert does not have; returns how many it has."""
    up = constant_of(node.inputs[2], 1 << 40)  # type: ignore[arg-type]
    prefix = str(node.inputs[3].name).removesuffix(".experts.down")  # type: ignore[union-attr]
    shared = module.weights[f"{prefix}.shared.up"].numpy().T
    assert up is not None
    rows = {row.tobytes() for row in np.concatenate([shared, up[domain]])}
    kept = np.array([row.tobytes() in rows for row in dense_of(block).up])
    layer = block.down
    assert layer.weight.producer is not None
    name = layer.weight.producer.attrs["name"]
    array = masked.weights[name].numpy()
    masked.weights.set(
        name, ArrayWeight(array * (kept[:, None] if layer.weight_in == -2 else kept))
    )
    return int(kept.sum())


def test_all_channels_kept_is_the_model() -> None:
    module, result = _extracted(keep_ratio=1.0)
    sample = store.samples(NAME)
    got, want = evaluate(module, sample, oracle=True), evaluate(_model(), sample, oracle=True)
    for name, array in want.items():
        assert np.abs(got[name] - array).max() <= 1e-12 * np.abs(array).max()
    assert result.stats["active-fraction"] == pytest.approx(1)


def test_samples_have_to_be_those_of_domains() -> None:
    with pytest.raises(UsageError, match="samples of 3 domains"):
        ExtractExperts(domains=3).run(
            _model(), Context(samples=_samples(2), activations=OrtActivations())
        )
    with pytest.raises(UsageError, match="`domains`"):
        _extracted(domains=1)
