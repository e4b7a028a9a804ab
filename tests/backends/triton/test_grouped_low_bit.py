"""Experts whose matrices are codes in the interpreter, with gradients, against their numbers."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra `torch`")
pytest.importorskip("triton", reason="needs the extra `triton`")

from regraft import kernels
from regraft.backends.torch.library import experts as library
from regraft.passes.quantization.formats import FORMATS
from tests.backends.triton.harness import SIZES, check, interpreted
from tests.backends.triton.test_attention import normal
from tests.backends.triton.test_grouped import hidden_one_by_one, one_by_one, operands_of
from tests.backends.triton.test_low_bit import stored, weights_of

CODINGS = ("zero points", "one zero point", "signed bytes", "two bits", "nf4", "mxfp4", "fp8_e4m3")


def coded(experts, size, outputs, coding="zero points", group=16, seed=0):
    """Returns matrices in codes, and f64 of what they stand for as `grouped_linear` has it."""
    is_signed, table = coding == "signed bytes", None
    bits = {"signed bytes": 8, "two bits": 2}.get(coding, 4)
    if coding in FORMATS:
        bits = FORMATS[coding].bits
        table = torch.tensor(np.nan_to_num(np.asarray(FORMATS[coding].table, np.float32)))
    has_zeros = coding in ("zero points", "two bits")
    made, zero = [], 8 if coding == "one zero point" else 0
    for expert in range(experts):
        codes, scale, zeros, whole = stored(
            size, outputs, bits, group, is_signed, seed=seed + expert
        )
        scale = scale / (1 if table is None else table.abs().max())
        if table is None:
            w = weights_of(whole, scale, zeros if has_zeros else None, group, zero)
        else:
            w = table.double()[whole] * scale.double().repeat_interleave(group, 0)[:size]
        made.append((codes, scale, zeros, w.T))
    codes, scale, zeros, w = (torch.stack(parts) for parts in zip(*made, strict=True))
    points = zeros if has_zeros else None
    whole = 0 if group >= size else group
    return kernels.CodedMatrices(codes, scale, points, table, bits, whole, zero), w


def compare(counts, x, coding, group=16, outputs=19, rest=()):
    matrices, w = coded(len(counts), x.shape[1], outputs, coding, group)
    given = torch.tensor(counts)
    check(
        lambda x, *rest: kernels.grouped_low_bit_linear(x, matrices, given, *rest),
        lambda x, *rest: one_by_one(counts)(x, w.to(x.dtype), *rest),
        [x, *rest],
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("coding", CODINGS)
def test_grouped_products_with_codes_agree_with_the_oracle(coding, dtype):
    rest = normal(3, 19, dtype=dtype, seed=2), normal(21, dtype=dtype, seed=3)
    compare([2, 0, 18], normal(21, 48, dtype=dtype) / 8, coding, rest=rest)


@pytest.mark.parametrize("size", SIZES[:-1])
def test_odd_widths_in_groups_and_in_one(size):
    x = normal(9, size, dtype=torch.float16) / 8
    compare([2, 0, 4], x, "zero points", 32, outputs=65)
    compare([2, 0, 4], x, "signed bytes", size, outputs=size)


@pytest.mark.parametrize("coding", ["one zero point", "nf4"])
@pytest.mark.parametrize("is_gated", [False, True], ids=["plain", "gated"])
def test_hidden_channels_of_codes_agree_with_the_oracle(is_gated, coding):
    counts, rows = [3, 0, 5, 1], torch.tensor([0, 1, 2, 0, 1, 2, 3, 0, 3, 3])
    limit, offset = (1.5, 1.0) if is_gated else (0.0, 0.0)
    up, up_whole = coded(4, 40, 17, coding)
    gate, gate_whole = coded(4, 40, 17, coding, seed=9) if is_gated else (None, None)
    biases = [normal(4, 17, seed=3), *([normal(4, 17, seed=4)] if is_gated else [])]
    usual = hidden_one_by_one(counts, rows, "silu", limit, offset)

    def run(x, up_bias, gate_bias=None):
        return kernels.grouped_low_bit_hidden(
            x, torch.tensor(counts), up, gate, rows=rows, up_bias=up_bias, gate_bias=gate_bias,
            limit=limit, up_offset=offset,
        )  # fmt: skip

    def plain(x, up_bias, gate_bias=None):
        gates = None if gate_whole is None else gate_whole.to(x.dtype)
        return usual(x, up_whole.to(x.dtype), gates, up_bias, gate_bias)

    check(run, plain, [normal(4, 40) / 8, *biases])


@pytest.mark.parametrize(("tokens", "num", "top_k"), [(1, 4, 2), (7, 4, 2)])
def test_a_mixture_of_codes_agrees_with_the_oracle(tokens, num, top_k):
    x, weights, *_, down_bias = operands_of(tokens, num, top_k)
    chosen = torch.stack([torch.randperm(num)[:top_k] for _ in range(tokens)])
    (up, ups), (gate, gates) = (coded(num, 16, 24, "mxfp4", 32, seed=seed) for seed in (0, 9))
    down, downs = coded(num, 24, 11, "mxfp4", 32)

    def run(x, weights, bias):
        return kernels.low_bit_experts(
            x, chosen, weights, up, down, "silu", gate, down_bias=bias, limit=7.0, up_offset=1.0
        )

    def usual(x, weights, bias):
        ups_, downs_, gates_ = (w.to(x.dtype) for w in (ups, downs, gates))
        return library.apply_experts(
            x, chosen, weights, ups_, downs_, library.expert_silu, gates_, down_bias=bias,
            limit=7.0, up_offset=1.0,
        )  # fmt: skip

    check(run, usual, [x, weights, down_bias])


def test_no_rows_give_none_and_gradients_of_none():
    matrices, _ = coded(3, 32, 8)
    x = torch.ones(0, 32, requires_grad=True)
    with interpreted():
        y = kernels.grouped_low_bit_linear(x, matrices, torch.zeros(3, dtype=torch.int64))
        y.sum().backward()
    assert y.shape == (0, 8)
    assert x.grad.shape == (0, 32)


def test_matrices_that_do_not_go_together_are_refused():
    matrices, _ = coded(3, 32, 8)
    counts = torch.tensor([1, 1, 0])
    with pytest.raises(ValueError, match=r"expected \[16, N\]"):
        kernels.grouped_low_bit_linear(
            torch.ones(2, 31), matrices._replace(codes=matrices.codes[:, 1:]), counts
        )
    with pytest.raises(ValueError, match=r"expected \[E, K / per byte, N\]"):
        kernels.grouped_low_bit_linear(torch.ones(2, 32), matrices, counts[:2])
    with pytest.raises(ValueError, match="coded in the same way"):
        kernels.grouped_low_bit_hidden(
            torch.ones(2, 32), counts, matrices, matrices._replace(zeros=None)
        )
    with pytest.raises(ValueError, match=r"a table \[8\]"):
        kernels.grouped_low_bit_linear(
            torch.ones(2, 32), matrices._replace(table=torch.ones(8)), counts
        )
