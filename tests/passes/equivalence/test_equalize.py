"""The pass `equalize`, on convolutions of every kind and where it has to refuse."""

import numpy as np
import pytest

from regraft.ir.derive import derive
from regraft.ir.weights import ArrayWeight
from regraft.passes.equivalence import Equalize
from regraft.passes.protocol import Context
from tests.passes.equivalence.modules import CNN, TIED, images, module, relative_error


def ranges(array, axis):
    return np.abs(array).max(tuple(i for i in range(array.ndim) if i != axis))


def skewed():
    """The CNN with outputs of the first layer that differ by a factor of a thousand."""
    net = module(CNN)
    factor = np.logspace(-1.5, 1.5, 8).astype(np.float32)
    net.weights.set("a", ArrayWeight(net.weights["a"].numpy() * factor[:, None, None, None]))
    return net


def test_equalize_keeps_results_bit_for_bit_with_powers_of_two():
    net, before = skewed(), skewed()
    result = Equalize().run(net, Context())
    assert result.changed
    assert relative_error(before, net, images()) == 0


def test_equalize_makes_ranges_of_writer_and_readers_equal():
    net, before = skewed(), skewed()
    Equalize(powers_of_two=False).run(net, Context())
    # f32 weights that were multiplied once
    assert relative_error(before, net, images()) < 1e-6
    made, read = ranges(net.weights["a"].numpy(), 0), ranges(net.weights["dw"].numpy(), 0)
    np.testing.assert_allclose(made, read, rtol=5e-3)
    first, second = (before.weights[name].numpy() for name in ("a", "dw"))
    assert (ranges(first, 0) / ranges(second, 0)).max() > 3


def test_equalize_scales_a_residual_stream_as_one_row():
    net = module(CNN)
    result = Equalize().run(net, Context())
    # a -> dw, dw -> c, and the stream that c and d write and d and the head read
    assert result.stats["rows"] == 3


def test_equalize_gives_a_clip_bounds_per_channel_or_leaves_it():
    net = skewed()
    Equalize().run(net, Context())
    assert not [node for node in net.graph if node.op.name == "clip"]
    net = skewed()
    result = Equalize(bounds=False).run(net, Context())
    assert [node for node in net.graph if node.op.name == "clip"]
    assert any("clip" in skip.reason for skip in result.skipped)


def test_equalize_refuses_tied_weights():
    net = module(TIED)
    result = Equalize().run(net, Context())
    assert not result.changed
    assert any("tied" in skip.reason for skip in result.skipped)


def test_equalize_records_how_weights_were_made():
    net = skewed()
    Equalize().run(net, Context())
    assert "Mul" in type(derive("dw", net.weights["dw"])).__name__


@pytest.mark.parametrize("op", ["gelu", "sigmoid", "softmax"])
def test_equalize_refuses_what_does_not_commute(op):
    text = TIED.replace("relu", op).replace("%y = matmul(%r, %w)", "%y = matmul(%r, %v)")
    text = text.replace("%w = weight @w\n", "%w = weight @w\n  %v = weight @v\n")
    text = text.replace("graph(", "weight @v : f32[6, 6] role=param = random(2)\ngraph(")
    net = module(text)
    result = Equalize().run(net, Context())
    assert not result.changed
    assert [skip for skip in result.skipped if op in skip.reason]
