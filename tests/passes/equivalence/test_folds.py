"""Folds of whole networks: equal results, the structure they are for, and refusals with reasons."""

import numpy as np
import pytest

from regraft.backends.onnx.activations import OrtActivations
from regraft.ir.errors import UsageError
from regraft.ir.graph import Value
from regraft.ir.text import parse_module
from regraft.ir.weights import ArrayWeight
from regraft.passes.calibration.statistics import Statistics
from regraft.passes.equivalence import (
    Awq,
    Equalize,
    FoldExponentBias,
    PermuteOutliers,
    ReparamNorms,
    Rotate,
    Smooth,
    SplitWeights,
)
from regraft.passes.equivalence.learned_clips import learned_ends
from regraft.passes.equivalence.reparam_norms import channel_ranges, common_range
from regraft.passes.equivalence.rotate import rotation
from regraft.passes.equivalence.split_weights import clusters
from regraft.passes.pipeline import format_pass
from regraft.passes.protocol import Context
from regraft.passes.quantization import Quantize
from regraft.passes.quantization.encoding import grid_of, round_to
from regraft.passes.quantization.formats import UINT2
from tests.passes.equivalence.modules import (
    CNN,
    DECODER,
    ENCODER,
    POST_NORM,
    images,
    module,
    relative_error,
    texts,
)

FOLDS = (
    Equalize(), Smooth(), Smooth(powers_of_two=False), ReparamNorms(bits=4),
    ReparamNorms(bits=4, clip="search", common="median"), Rotate(), PermuteOutliers(),
    SplitWeights(), FoldExponentBias(), Awq(group=8),
)  # fmt: skip
NETS = {
    "cnn": (CNN, images), "encoder": (ENCODER, texts), "post-norm": (POST_NORM, texts),
    "decoder": (DECODER, texts),
}  # fmt: skip


def context(samples):
    return Context(samples=samples, activations=OrtActivations())


def values_of(net, names, samples):
    """Returns what some values hold on all samples, by name."""
    by_name = {v.name: v for node in net.graph for v in node.outputs if v.name}
    wanted: list[Value] = [by_name[name] for name in names]
    rows = {name: [] for name in names}
    for item in OrtActivations().activations(net, wanted, samples):
        for name, value in zip(names, wanted, strict=True):
            rows[name].append(item[value].reshape(-1, item[value].shape[-1]))
    return {name: np.concatenate(parts) for name, parts in rows.items()}


@pytest.mark.parametrize("fold", FOLDS, ids=format_pass)
@pytest.mark.parametrize("kind", NETS)
def test_folds_keep_results(kind, fold):
    text, inputs = NETS[kind]
    net, before = module(text), module(text)
    fold.run(net, context(inputs()))
    # one rounding of every weight to f32, over a handful of layers
    assert relative_error(before, net, inputs()) < 1e-5


def test_smooth_evens_out_what_readers_see():
    net = module(ENCODER)
    result = Smooth(strength=1.0, powers_of_two=False).run(net, context(texts()))
    assert result.stats["folded"] == 4  # two norms, the attention's output, the rectifier's
    rows = values_of(net, ["n2.scaled"], texts())["n2.scaled"]
    top = np.abs(rows).max(0)
    np.testing.assert_allclose(top, top[0], rtol=1e-4)


def test_smooth_refuses_the_residual_of_norms_after_layers():
    result = Smooth().run(module(POST_NORM), context(texts()))
    refused = {skip.node: skip.reason for skip in result.skipped}
    assert "layer_norm normalizes by statistics" in refused["n2"]
    assert "gelu does not commute" in refused["a"]
    assert result.stats["folded"] == 1  # values of attention


def test_smooth_scales_a_gated_product_through_its_linear_side():
    net = module(DECODER)
    Smooth(strength=1.0).run(net, context(texts()))
    names = [value.name for node in net.graph for value in node.outputs if value.name]
    assert "a.scaled" in names
    assert "u.scaled" in names
    assert "w.scaled" not in names  # swish would not pass it on


def test_smooth_rejects_a_strength_out_of_range():
    with pytest.raises(UsageError, match="not in 0 to 1"):
        Smooth(strength=1.5).run(module(ENCODER), context(texts()))


def test_reparam_norms_gives_all_channels_one_range():
    net = module(ENCODER)
    before = values_of(net, ["n1", "n2"], texts())
    result = ReparamNorms(bits=4, clip="none").run(net, context(texts()))
    assert result.stats["norms"] == 2
    after = values_of(net, ["n2.scaled"], texts())["n2.scaled"]
    spans = np.ptp(before["n2"], 0)
    assert spans.max() / spans.min() > 1.5
    np.testing.assert_allclose(np.ptp(after, 0), np.ptp(after, 0)[0], rtol=1e-4)
    np.testing.assert_allclose(after.min(0), after.min(), rtol=1e-3, atol=1e-5)


def test_one_range_after_the_fold_has_a_fifth_of_the_error_of_one_range_before() -> None:
    """The check of RepQ-ViT: rounding to 4 bits where channels are of sizes 1 to 100."""
    rng = np.random.default_rng(7)
    scale = np.geomspace(1, 100, 48)
    rows = rng.normal(size=(4000, 48)) * scale + scale * rng.normal(size=48)
    matrix = rng.normal(size=(48, 24)) / scale[:, None]
    stats = Statistics.empty(48, with_moments=False)
    stats.update(rows.astype(np.float32))
    steps, zeros = channel_ranges(stats, 4, "percentile")
    kept, zero = common_range(steps, zeros, "mean")

    def rounded(values, step, middle):
        return (np.clip(np.rint(values / step + middle), 0, 15) - middle) * step

    low, high = rows.min(), rows.max()
    before = rounded(rows, (high - low) / 15, -low * 15 / (high - low))
    ratio, shift = steps / kept, steps * (zeros - zero)
    after = rounded((rows + shift) / ratio, kept, zero) * ratio - shift
    lost = [np.square((each - rows) @ matrix).mean() for each in (before, after)]
    assert lost[1] < 0.2 * lost[0]


def test_reparam_norms_leaves_norms_after_layers_alone_and_says_why():
    net = module(POST_NORM)
    result = ReparamNorms().run(net, context(texts()))
    assert not result.changed
    assert any("normalizes" in skip.reason for skip in result.skipped)


def test_rotate_spreads_an_outlier_of_the_stream():
    def with_outlier():
        net = module(DECODER)
        for name in ("table", "o"):
            array = net.weights[name].numpy().copy()
            array[:, 3] *= 40
            net.weights.set(name, ArrayWeight(array))
        return net

    net, before = with_outlier(), with_outlier()
    result = Rotate(rows="stream").run(net, Context())
    assert result.stats["rows"] == 1
    assert relative_error(before, net, texts()) < 1e-5
    old, new = (values_of(each, ["s1"], texts())["s1"] for each in (before, net))

    def kurtosis(rows):
        square = np.square(rows)
        return float(np.square(square).mean() / square.mean() ** 2)

    assert kurtosis(new) < 0.5 * kurtosis(old)


def test_rotate_refuses_a_stream_with_norms_on_it():
    net = module(POST_NORM)
    result = Rotate(rows="stream").run(net, Context())
    assert not result.changed
    assert [skip for skip in result.skipped if "output of the graph" in skip.reason]


def test_rotation_of_centred_channels_keeps_the_mean():
    matrix = rotation(np.random.default_rng(0), 12, keeps_mean=True)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(12), atol=1e-12)
    np.testing.assert_allclose(np.ones(12) @ matrix, np.ones(12), atol=1e-12)


def test_permute_outliers_sorts_channels_by_range():
    net = module(ENCODER)
    PermuteOutliers().run(net, context(texts()))
    rows = values_of(net, ["a"], texts())["a"]
    top = np.abs(rows).max(0)
    assert (np.diff(top) >= 0).all()


def test_folds_say_when_samples_were_generated():
    net = module(ENCODER)
    Smooth().run(net, Context(probes=texts(), activations=OrtActivations()))
    assert any("synthetic" in warning for warning in net.warnings)


def _per_tensor(piece):
    flat = piece.reshape(-1, 1)
    return round_to(flat, grid_of(flat, UINT2, flat.size)).decode().reshape(piece.shape)


def test_split_weights_gives_a_fifth_of_the_error_of_two_bits_with_outliers():
    rng = np.random.default_rng(3)
    matrix = rng.normal(size=(64, 64)).astype(np.float32)
    outliers = rng.random(matrix.shape) < 0.01
    matrix[outliers] = rng.normal(0, 100, int(outliers.sum()))
    labels = clusters(matrix, 3)
    parts = [np.where(labels == label, matrix, 0) for label in range(3)]
    np.testing.assert_array_equal(sum(parts), matrix)

    def error(pieces):
        total = np.zeros_like(matrix)
        for piece in pieces:
            total += _per_tensor(piece)
        return float(np.square(total - matrix).mean())

    assert error(parts) < 0.2 * error([matrix])


def test_split_weights_of_a_chain_of_products():
    text = """
module "chain"
symbol B
weight @a : f32[16, 24] = random(1)
weight @b : f32[24, 8] = random(2)
graph(%x : f32[B, 16]) {
  %a = weight @a
  %b = weight @b
  %h = matmul(%x, %a)
  %y = matmul(%h, %b)
  return %y
}
"""
    net, before = parse_module(text), parse_module(text)
    assert SplitWeights().run(net, Context()).stats["layers"] == 2
    feeds = [{"x": np.random.default_rng(0).normal(size=(5, 16)).astype(np.float32)}]
    assert relative_error(before, net, feeds) < 1e-5


def test_exponent_biases_fold_bit_for_bit():
    net, before = module(DECODER), module(DECODER)
    result = FoldExponentBias().run(net, context(texts()))
    assert result.stats["folded"] >= 3
    assert relative_error(before, net, texts()) == 0


def test_searched_clips_lose_less_on_outliers():
    rng = np.random.default_rng(5)
    stats = Statistics.empty(12, with_moments=False)
    stats.update(rng.standard_t(2, (2000, 12)).astype(np.float32))
    rows = stats.sample().astype(np.float64)

    def error(clip):
        scale, zero = channel_ranges(stats, 4, clip)
        codes = np.clip(np.rint(rows / scale + zero), 0, 15)
        return float(np.square((codes - zero) * scale - rows).mean())

    assert error("search") < 0.5 * error("none")
    assert error("percentile") <= error("none")


def test_learned_clips_lose_less_than_searched_ones_in_every_channel():
    """The check of RepQuant: both ends of every channel learned, then one range by the fold."""
    rng = np.random.default_rng(5)
    skewed = np.exp(rng.normal(0, 0.7, (3000, 24))) * rng.choice([-1, 1], 24)
    rows = skewed * np.geomspace(0.1, 10, 24)
    stats = Statistics.empty(24, with_moments=False)
    stats.update(rows.astype(np.float32))
    rows = stats.sample().astype(np.float64)

    def errors(clip, bits):
        scale, zero = channel_ranges(stats, bits, clip)
        codes = np.clip(np.rint(rows / scale + zero), 0, 2**bits - 1)
        return np.square((codes - zero) * scale - rows).mean(0)

    # full ranges cost most where codes are fewest
    for bits, part_of_full in ((3, 0.35), (4, 0.6)):
        learned, searched, full = (errors(clip, bits) for clip in ("learned", "search", "none"))
        assert (learned <= searched * (1 + 1e-6)).all()
        assert (learned / searched).mean() < 0.97
        assert (learned / full).mean() < part_of_full


def test_learned_clips_stop_where_a_finer_search_finds_nothing_better():
    rng = np.random.default_rng(9)
    rows = rng.standard_t(3, (800, 1))
    low, high = learned_ends(rows, rows.min(0), rows.max(0), 4)

    def loss(first, last):
        step = (last - first) / 15
        return np.square(np.clip(np.rint((rows - first) / step), 0, 15) * step + first - rows).sum()

    reached = [
        loss(a, b)
        for a in np.linspace(rows.min(), 0, 80)
        for b in np.linspace(0.01, rows.max(), 80)
    ]
    assert loss(low, high) < 1.02 * min(reached)


def test_reparam_norms_with_learned_clips_is_exact():
    net, before = module(ENCODER), module(ENCODER)
    result = ReparamNorms(bits=4, clip="learned").run(net, context(texts()))
    assert result.stats["norms"] == 2
    assert relative_error(before, net, texts()) < 1e-5


def test_channels_in_float_are_the_last_ones_after_permuting():
    net = module(ENCODER)
    PermuteOutliers().run(net, context(texts()))
    before = module(ENCODER)
    options = Quantize(activations="token", tail=2, embeddings="none")
    for each in (net, before):
        options.run(each, context(texts()))

    def tails(each):
        return [
            node.op.name
            for node in each.graph
            if node.op.name in ("slice", "gather") and node.output.shape[-1] == 2
        ]

    # rows that the coupling cannot order, heads of attention, keep their gather
    assert "slice" in tails(net)
    assert "slice" not in tails(before)
