"""The pass `vq-head` on a small head, and its ties."""

import numpy as np
import pytest

from regraft.backends.onnx.activations import OrtActivations
from regraft.ir.errors import UsageError
from regraft.ir.evaluate import evaluate
from regraft.ir.text import parse_module
from regraft.passes.protocol import Context
from regraft.passes.quantization.vq_head import VqHead

TEXT = """
module "net"
symbol B
weight @head : f32[8, 40] = random(1)
graph(%x : f32[B, 8]) {
  %head = weight @head
  %y = matmul(%x, %head)
  return %y
}
"""


def samples(count=6):
    rng = np.random.default_rng(0)
    return [{"x": (rng.normal(size=(4, 8)) + 1).astype(np.float32)} for _ in range(count)]


def context():
    return Context(samples=samples(), activations=OrtActivations())


def logits(module):
    return np.concatenate([next(iter(evaluate(module, each).values())) for each in samples()])


def test_as_many_codes_as_tokens_are_exact():
    net, before = parse_module(TEXT), parse_module(TEXT)
    VqHead(codes=40, ties="refuse").run(net, context())
    np.testing.assert_array_equal(logits(net), logits(before))


def test_fewer_codes_take_less_room_and_are_near():
    net, before = parse_module(TEXT), parse_module(TEXT)
    result = VqHead(codes=20).run(net, context())
    (layer,) = result.layers
    assert layer.num_bytes < layer.float_bytes
    assert result.stats["tied-tokens"] == 20
    want = logits(before)
    error = np.linalg.norm(logits(net) - want) / np.linalg.norm(want)
    # the bias of ties has no mean error; k-means of random vectors keeps about half the norm
    assert error < 0.5
    assert error == pytest.approx(layer.error, rel=1e-3)
    assert net.weights["head.codebook"].shape == (8, 20)


def test_tokens_of_one_code_do_not_tie():
    net = parse_module(TEXT)
    VqHead(codes=5).run(net, context())
    for row in logits(net):
        assert len(np.unique(row)) == 40


def test_ties_bring_the_mean_logit_of_every_token_back():
    net, before = parse_module(TEXT), parse_module(TEXT)
    VqHead(codes=5).run(net, context())
    np.testing.assert_allclose(logits(net).mean(0), logits(before).mean(0), atol=1e-5)


def test_ties_are_refused_where_asked():
    with pytest.raises(UsageError, match="tokens would have the scores of others"):
        VqHead(codes=5, ties="refuse").run(parse_module(TEXT), context())


def test_a_graph_without_a_head_is_refused():
    text = TEXT.replace("return %y", "%z = relu(%y)\n  return %z")
    with pytest.raises(UsageError, match="no linear layer"):
        VqHead().run(parse_module(text), context())
