"""Unified maxima of packages: where samples put them, what falls back, what is left alone."""

import inspect
import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra `torch`")
pytest.importorskip("triton", reason="needs the extra `triton`")

from torch import nn
from torch.nn import functional as F

import regraft
from regraft.backends.triton import unified_maximum
from regraft.backends.triton.unified_maximum import placed, span_maxima, steps_of
from regraft.ir.types import DType
from tests.backends.triton.harness import interpreted
from tests.backends.triton.test_package import imported

# numpy's, of lanes that are masked; checks of conversions run in threads
pytestmark = pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")

ATTRS = {"scale": 0.5, "softcap": 0.0, "window": (-1, 0)}


class Rows:
    """Stands for a value of queries."""

    def __init__(self, dtype):
        self.dtype = dtype


def maxima_of(q, k, attrs=ATTRS, **rest):
    offset = rest.pop("offset", None)
    arrays = {"q": q, "k": k, **rest}
    return np.concatenate(list(span_maxima(attrs, arrays, offset)))


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@pytest.mark.parametrize("offset", [None, 3])
@pytest.mark.parametrize("T", [1, 63, 64, 65, 200])
def test_maxima_are_those_of_spans_of_all_heads_of_a_group(T, offset):
    q, k = normal(2, 6, 70, 5), normal(2, 3, T, 5, seed=1)
    scores = 0.5 * q @ k.repeat(2, axis=1).swapaxes(-1, -2)
    if offset is not None:
        scores = np.where(np.arange(T) <= np.arange(70)[:, None] + offset, scores, -np.inf)
    found = maxima_of(q, k, offset=offset)
    expected = [
        scores[b, 2 * g : 2 * g + 2, s, start : start + 64].max(-1)
        for b in range(2) for g in range(3) for s in range(70) for start in range(0, T, 64)
    ]  # fmt: skip
    assert found.shape == (len(expected), 2)
    by_row = np.lexsort(found.T), np.lexsort(np.array(expected).T)
    # sums of five products of about 1, in an order of their own: near zero nothing is relative
    np.testing.assert_allclose(
        found[by_row[0]], np.array(expected)[by_row[1]], rtol=1e-5, atol=1e-6
    )


def test_lengths_and_a_soft_cap_are_seen():
    q, k = normal(2, 2, 1, 4) * 30, normal(2, 2, 65, 4, seed=1)
    attrs = ATTRS | {"softcap": 3.0}
    found = maxima_of(q, k, attrs, kv_lengths=np.array([65, 10]))
    assert np.isneginf(found).sum() == 2  # the last key of the second sequence, for both heads
    assert found.max() <= 3.0


def test_masks_hide_keys_and_add_to_scores():
    q, k = normal(2, 2, 1, 4), normal(2, 2, 65, 4, seed=1)
    plain = maxima_of(q, k)
    hidden = np.ones((2, 1, 1, 65), bool)
    hidden[1, :, :, -1] = False
    found = maxima_of(q, k, mask=hidden)
    assert np.isneginf(found).sum() == 2
    np.testing.assert_array_equal(found[np.isfinite(found)], plain[np.isfinite(found)])
    np.testing.assert_allclose(maxima_of(q, k, mask=np.full((1, 65), 2.0)), plain + 2, rtol=1e-6)


def test_spans_that_the_least_float_hides_count_as_computed_twice():
    found = observed([*np.linspace(0, 10, 9), np.finfo(np.float32).min], DType.F32)
    assert found.outside == pytest.approx(0.1)
    assert "computed twice" in found.reason


def observed(maxima, dtype):
    seen = unified_maximum._Seen()
    seen.add(np.asarray(maxima, np.float32)[:, None])
    return placed("attention", seen, Rows(dtype))


def test_a_maximum_stands_in_the_middle_of_the_room():
    found = observed([30.0, 50.0], DType.F32)
    assert not found.reason
    assert (found.phi, found.least, found.most) == (40.0, -60.0, 60.0)
    assert found.observed == (30.0, 50.0)
    half = observed([30.0, 40.0], DType.F16)
    # as far from what f16 holds above as below
    assert 30.0 - (half.phi + half.least) == pytest.approx(half.phi + half.most - 40.0)


def test_few_spans_outside_are_left_to_the_fallback():
    found = observed([*np.linspace(0, 10, 99), 300.0], DType.F32)
    assert found.outside == pytest.approx(0.01)
    assert found.phi == pytest.approx(5.0)
    assert not found.reason


def test_scores_that_spread_too_far_have_no_maximum():
    found = observed(np.linspace(-40, 40, 100), DType.F16)
    assert "computed twice" in found.reason
    assert found.row()["maximum"] is None


def test_a_span_counts_once_for_the_heads_of_a_group():
    seen = unified_maximum._Seen()
    seen.add(np.array([[0.0, 200.0], [0.0, 1.0]], np.float32))
    assert placed("attention", seen, Rows(DType.F32)).outside == 0.5


def test_maxima_stream():
    parts, whole = unified_maximum._Seen(), unified_maximum._Seen()
    maxima = normal(500, 2) * 10
    whole.add(maxima)
    for start in range(0, 500, 50):
        parts.add(maxima[start : start + 50])
    assert parts == whole


class Step(nn.Module):
    """A token's attention to a cache of 69 keys and its own."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(16, 48)

    def forward(self, x, keys, values):
        q, k, v = self.qkv(x).reshape(1, 1, 3, 2, 8).permute(2, 0, 3, 1, 4)
        keys, values = torch.cat([keys, k], 2), torch.cat([values, v], 2)
        y = F.scaled_dot_product_attention(q, keys, values)
        return y.transpose(1, 2).reshape(1, 1, 16), keys, values


def step():
    torch.manual_seed(0)
    inputs = (torch.randn(1, 1, 16), torch.randn(1, 2, 69, 8), torch.randn(1, 2, 69, 8))
    return Step().eval(), inputs


def written(folder, calibrate):
    """Converts the step; returns the text of its model, and what is said of its maximum."""
    net, inputs = step()
    with interpreted():
        result = regraft.convert(
            net, folder, args=inputs, target="triton", check="off", calibrate=calibrate
        )
        assert imported(folder, "selftest").main(["--device", "cpu"]) == 0
    rows = json.loads((folder / "partition.json").read_text())["unified_maxima"]
    assert result.report["kernels"]["unified_maxima"] == rows
    return (folder / "model.py").read_text(), rows


def test_a_package_uses_a_calibrated_maximum_and_falls_back_exactly(tmp_path):
    _, (x, keys, values) = step()
    samples = [
        {"x": x.numpy(), "keys": keys.numpy() * scale, "values": values.numpy()}
        for scale in (0.5, 1, 2)
    ]
    text, rows = written(tmp_path / "calibrated", samples)
    assert "unified=(" in text
    lines, first = inspect.getsourcelines(Step.forward)
    called = next(i for i, line in enumerate(lines) if "scaled_dot_product_attention" in line)
    assert rows[0]["attention"] == f"{Path(__file__).name}:{first + called}"
    assert rows[0]["outside"] == 0
    assert rows[0]["spans"] == 3 * 2 * 2  # samples, spans, heads
    assert rows[0]["range"] == [-60.0, 60.0]
    assert rows[0]["maximum"] == pytest.approx(sum(rows[0]["observed"]) / 2, abs=0.25)
    plain, none = written(tmp_path / "plain", ())
    assert "unified=" not in plain
    assert none == []
    nets = [imported(tmp_path / name, "model").load() for name in ("calibrated", "plain")]
    with interpreted():
        inside = [net(x, keys, values)[0] for net in nets]
        # scores of thousands leave any range: their spans are computed again
        outside = [net(x, keys * 1e4, values)[0] for net in nets]
    torch.testing.assert_close(*inside, rtol=0, atol=70 * 2**-23)
    assert not torch.equal(*inside)  # another order of roundings
    assert torch.equal(*outside)


def test_samples_of_another_interface_are_said_to_be_missing():
    net, inputs = step()
    module = regraft.capture(net, inputs)
    regraft.apply(module, "canonicalize,fuse")
    assert len(steps_of(module)) == 1
    (found,) = unified_maximum.unified_maxima(module, [{"x": inputs[0].numpy()}], None)
    assert "no `keys`" in found.reason
