"""Attention of one query per sequence in the interpreter, with and without a unified maximum."""

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `torch`")
pytest.importorskip("triton", reason="needs the extra `triton`")

from regraft import kernels
from regraft.backends.triton.kernels import decoding, stepping
from tests.backends.triton.harness import assert_close, check, interpreted
from tests.backends.triton.test_attention import normal, written_out


def operands(B=2, H=4, G=2, T=150, D=16, E=12, dtype=torch.float32):
    shapes = ((B, H, D), (B, G, T, D), (B, G, T, E))
    return [normal(*shape, dtype=dtype, seed=i) for i, shape in enumerate(shapes)]


def compare(tensors, *, unified=None, lengths=None, sinks=None, window=-1, mask=None, **settings):
    """Checks the kernel against f64; the query stands at the last key."""
    q, k, v = tensors
    T = k.shape[2]
    with interpreted():
        found = kernels.attention_decode(
            *tensors, mask, unified=unified, lengths=lengths, sinks=sinks, window=window, **settings
        )
    offset = T - 1 if lengths is None else lengths - 1

    def whole(dtype):
        wide = [x.to(dtype) for x in (q[:, :, None], k, v)]
        out = written_out(
            *wide, mask, sinks=None if sinks is None else sinks.to(dtype), lengths=lengths,
            offset=offset, window=(window, -1), **settings,
        )  # fmt: skip
        return out[:, :, 0]

    assert_close(found, whole(torch.float64), whole(q.dtype), "decode")


CASES = {
    "plain": {},
    "lengths": {"lengths": torch.tensor([150, 33])},
    "an empty sequence": {"lengths": torch.tensor([0, 1])},
    "window, lengths": {"window": 40, "lengths": torch.tensor([150, 90])},
    "softcap": {"softcap": 2.0},
    "sinks": {"sinks": normal(4, seed=7)},
    "padding": {"mask": torch.arange(150) >= torch.tensor([0, 87])[:, None, None, None]},
    "hidden rows": {"mask": torch.zeros(2, 1, 1, 150, dtype=torch.bool)},
    "scores added by head": {"mask": normal(4, 1, 150, seed=8), "softcap": 2.0},
    "the least float": {
        "mask": torch.where(torch.arange(150) < 70, torch.finfo(torch.float32).min, 0.0)
    },
}
UNIFIED = {"own maximum": None, "unified": (0.0, -8.0, 10.0)}


@pytest.mark.parametrize("unified", UNIFIED)
@pytest.mark.parametrize("name", CASES)
def test_decoding_agrees_with_the_oracle(name, unified):
    compare(operands(), unified=UNIFIED[unified], **CASES[name])


@pytest.mark.parametrize("unified", UNIFIED)
@pytest.mark.parametrize(("H", "G", "T", "D"), [(1, 1, 1, 1), (3, 1, 65, 33), (20, 1, 63, 16)])
def test_decoding_takes_any_size(H, G, T, D, unified):
    for dtype in (torch.float32, torch.float16):
        compare(operands(1, H, G, T, D, D, dtype), unified=UNIFIED[unified])


@pytest.mark.parametrize("unified", [(50.0, -8.0, 8.0), (-40.0, -8.0, 8.0), (0.0, -1e-3, 1e-3)])
def test_a_range_that_scores_leave_falls_back_to_the_exact_maximum(unified):
    q, k, v = operands(B=1)
    with interpreted():
        found = kernels.attention_decode(q, k, v, unified=unified)
        exact = kernels.attention_decode(q, k, v)
    assert torch.equal(found, exact)
    with interpreted():
        calibrated = kernels.attention_decode(q, k, v, unified=(0.0, -8.0, 8.0))
    assert not torch.equal(calibrated, exact)  # another order of roundings


@pytest.mark.parametrize("scale", [30.0, 1e-3])
@pytest.mark.parametrize("unified", UNIFIED)
def test_decoding_takes_extreme_inputs(scale, unified):
    # one score decides a row: PyTorch's largest error is that of many rows
    q, k, v = operands(B=12, T=65)
    compare([q * scale, k, v], unified=UNIFIED[unified])


def test_the_number_of_spans_changes_rounding_alone(monkeypatch):
    q, k, v = operands(B=1)
    with interpreted():
        several = kernels.attention_decode(q, k, v)
        monkeypatch.setattr(decoding, "num_processors", lambda device: 0)
        one = kernels.attention_decode(q, k, v)
    torch.testing.assert_close(several, one, rtol=0, atol=150 * 2**-23)


def test_a_range_that_half_precision_does_not_hold_is_refused():
    with pytest.raises(ValueError, match="unified maximum"):
        kernels.attention_decode(*operands(dtype=torch.float16), unified=(0.0, -8.0, 20.0))


STEPS = {
    "causal": {"window": (-1, 0), "offset": 149},
    "within a cache": {"window": (-1, 0), "offset": 40},
    "positions": {"window": (-1, 0), "offset": torch.tensor([40, 149])},
    "sliding": {"window": (30, 0), "offset": torch.tensor([40, 149])},
    "lengths": {"lengths": torch.tensor([17, 150]), "sinks": normal(4, seed=9)},
    "lengths and a window": {
        "lengths": torch.tensor([17, 99]), "window": (30, 0), "offset": torch.tensor([20, 90]),
    },
    "a mask": {"mask": torch.arange(150) % 3 > 0, "window": (-1, 0), "offset": 149},
    "a mask and a window": {
        "mask": torch.arange(150) >= torch.tensor([0, 95])[:, None, None, None],
        "window": (60, 0), "offset": torch.tensor([120, 149]), "lengths": torch.tensor([101, 150]),
    },
}  # fmt: skip


@pytest.mark.parametrize("name", STEPS)
def test_a_step_is_attention_with_its_gradients(name):
    q, *rest = operands()
    check(
        lambda q, k, v: kernels.attention_with_cache(q, k, v, **STEPS[name]),
        lambda q, k, v: written_out(q, k, v, **STEPS[name]),
        [q[:, :, None], *rest],
    )


def test_scores_that_a_step_adds_have_gradients():
    q, *rest = operands(T=70)
    check(
        lambda q, k, v, mask: kernels.attention_with_cache(q, k, v, mask),
        written_out,
        [q[:, :, None], *rest, normal(2, 1, 1, 70, seed=5)],
    )


def test_steps_share_keys_out_and_prefills_do_not(monkeypatch):
    seen = []
    decode = stepping.attention_decode
    monkeypatch.setattr(
        stepping, "attention_decode", lambda *a, **k: seen.append(a[0].shape) or decode(*a, **k)
    )
    q, k, v = operands()
    with interpreted():
        kernels.attention_with_cache(q[:, :, None], k, v, window=(-1, 0), offset=149)
        kernels.attention_with_cache(q[:, :, None].repeat(1, 1, 2, 1), k, v, offset=148)
    assert seen == [(2, 4, 16)]
