"""Linear attention whose kernels map queries and keys and divide rows: gradients, steps."""

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `torch`")
pytest.importorskip("triton", reason="needs the extra `triton`")

from regraft import kernels
from regraft.backends.torch.library import recurrence
from regraft.backends.triton.kernels.linear_attention import by_rows
from tests.backends.triton.harness import check, interpreted
from tests.backends.triton.test_attention import normal
from tests.backends.triton.test_linear_attention import decays, operands, over_pairs

MAPS = ("none", "relu", "elu", "exp", "softmax", "hedgehog")
EPSILON = 0.1


def mapped(name, normalize, scale=1.0):
    """The oracle: features in PyTorch, the sum over pairs, a further value of ones."""

    def attention(q, k, v, decay=None, state=None):
        q, k = (recurrence.feature(x, name) for x in (q, k))
        if normalize:
            v = torch.cat((v, torch.ones_like(v[..., :1])), -1)
        out, last = over_pairs(q, k, v, decay, state, scale)
        if normalize:
            out = out[..., :-1] / (out[..., -1:] + EPSILON)
        return out, last

    return attention


def compare(name, normalize, tensors, decay=None, state=None, scale=1.0):
    """Checks rows, the last state (of f32), and gradients by all that is given."""
    is_wide = tensors[0].dtype == torch.float32

    def kernel(q, k, v, g, s):
        found = kernels.linear_attention(
            q, k, v, g, state=s, scale=scale, feature_map=name, normalize=normalize,
            epsilon=EPSILON,
        )  # fmt: skip
        return found if is_wide else found[0]

    def reference(q, k, v, g, s):
        found = mapped(name, normalize, scale)(q, k, v, g, s)
        return found if is_wide else found[0]

    check(kernel, reference, [*tensors, decay, state])


def state_of(name, D, E, H=1):
    return normal(1, H, D * (1 + (name == "hedgehog")), E, seed=8).abs()


def some(T=40, D=8, E=12, H=1, dtype=torch.float32, layout="contiguous"):
    """Operands whose products do not cancel: sums of rows are far from zero."""
    q, k, v = operands(H=H, T=T, D=D, E=E, dtype=dtype, layout=layout)
    return [q, k, v]


@pytest.mark.parametrize("name", [name for name in MAPS if name != "none"])
def test_features_are_made_in_the_kernel(name):
    compare(name, True, some(T=33), decays(1, 1, 33), state_of(name, 8, 13), scale=0.5)


@pytest.mark.parametrize("name", ["elu", "hedgehog"])
def test_features_without_a_quotient(name):
    compare(name, False, some(T=33), decays(1, 1, 33), state_of(name, 8, 12))


@pytest.mark.parametrize("name", ["elu", "softmax", "hedgehog"])
def test_features_of_f16_are_divided_by_sums_of_f32(name):
    compare(name, True, some(dtype=torch.float16))


@pytest.mark.parametrize(("T", "D", "E"), [(1, 16, 8), (63, 3, 5), (65, 33, 16), (127, 16, 40)])
@pytest.mark.parametrize("name", ["elu", "hedgehog"])
def test_mapped_attention_takes_any_size(name, T, D, E):
    compare(name, True, some(T=T, D=D, E=E), decays(1, 1, T), state_of(name, D, E + 1))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["elu", "hedgehog"])
def test_mapped_attention_over_many_chunks(name):
    compare(name, True, some(T=1000, D=4, E=3))


@pytest.mark.parametrize("layout", ["padded rows", "transposed"])
def test_mapped_attention_reads_any_strides(layout):
    compare("hedgehog", True, some(T=20, layout=layout))


def test_large_channels_do_not_overflow():
    q, k, v = some(T=20)
    compare("softmax", True, [q * 30, k * 30, v])
    compare("hedgehog", True, [q * 1e4, k * 1e4, v])


@pytest.mark.parametrize("name", MAPS)
def test_steps_are_the_sum_over_pairs(name):
    q, k, v = (x.abs() if name == "none" else x for x in some(T=4, H=2))
    g, state, rows = decays(1, 2, 4), None, []
    with interpreted():
        for t in range(4):
            token = (x[:, :, t : t + 1] for x in (q, k, v, g))
            row, state = kernels.linear_attention(
                *token, state=state, feature_map=name, normalize=True, epsilon=EPSILON
            )
            rows.append(row)
    whole = mapped(name, True)(*(x.double() for x in (q, k, v, g)))
    expected, last = (x.float() for x in whole)
    largest = max(expected.abs().max().item(), 1.0)
    # products of 16 and sums of 4 terms, divided by sums as large as they are
    torch.testing.assert_close(torch.cat(rows, 2), expected, rtol=0, atol=64 * 2**-23 * largest)
    torch.testing.assert_close(state, last, rtol=0, atol=8 * 2**-23 * last.abs().max().item())


@pytest.mark.parametrize("T", [1, 20])
def test_rows_of_states_with_sums_begin_at_multiples_of_16(T):
    q, k, v = some(T=2 * T, E=20)
    found = []
    with interpreted():
        state = None
        for x in (slice(T), slice(T, None)):
            token = (q[:, :, x], k[:, :, x], v[:, :, x])
            row, state = kernels.linear_attention(
                *token, state=state, feature_map="elu", normalize=True
            )
            found.append(row)
        half = kernels.linear_attention(
            q[:, :, :T], k[:, :, :T], v[:, :, :T], feature_map="elu", normalize=True
        )[1]
        assert by_rows(half) is half
        copied = kernels.linear_attention(
            q[:, :, T:], k[:, :, T:], v[:, :, T:], state=half.contiguous(), feature_map="elu",
            normalize=True,
        )  # fmt: skip
    assert state.shape[3] == 21
    assert state.stride(2) == 32
    assert torch.equal(copied[0], found[1])
    assert torch.equal(copied[1], state)


def test_sums_too_large_for_f16_divide_its_rows():
    q = torch.full((1, 1, 40, 64), 8.0, dtype=torch.float16)  # exp: 2981, products beyond 65504
    v = normal(1, 1, 40, 8, dtype=torch.float16)
    with interpreted():
        found, _ = kernels.linear_attention(q, q, v, feature_map="exp", normalize=True)
    mean = v.double().cumsum(2) / torch.arange(1, 41).view(1, 1, 40, 1)
    # means of 40 of f16, in products of 11 bits
    torch.testing.assert_close(found.double(), mean, rtol=0, atol=3 * 2**-11)


def test_an_unknown_map_is_refused():
    q, k, v = some()
    with pytest.raises(ValueError, match="`taylor` is not one of"):
        kernels.linear_attention(q, k, v, feature_map="taylor")
