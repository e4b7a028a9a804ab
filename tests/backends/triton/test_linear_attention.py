"""Linear attention in chunks in the interpreter: decays, states, gradients."""

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `torch`")
pytest.importorskip("triton", reason="needs the extra `triton`")

from regraft import kernels
from tests.backends.triton.harness import check, interpreted, laid_out
from tests.backends.triton.test_attention import normal


def over_pairs(q, k, v, decay=None, state=None, scale=1.0):
    """The sum over all pairs: the oracle in f64, and what PyTorch makes of it in f32 and f16."""
    T = q.shape[2]
    a = q.new_zeros(q.shape[:3]) if decay is None else decay.cumsum(-1)
    is_before = torch.ones(T, T, dtype=torch.bool).tril()
    share = torch.exp((a[..., :, None] - a[..., None, :]).masked_fill(~is_before, -torch.inf))
    out = (q @ k.transpose(-1, -2) * share) @ v
    last = (k * torch.exp(a[..., -1:] - a)[..., None]).transpose(-1, -2) @ v
    if state is not None:
        out = out + (q * torch.exp(a)[..., None]) @ state
        last = last + state * torch.exp(a[..., -1:])[..., None]
    return out * scale, last


def operands(B=1, H=2, T=70, D=8, E=12, dtype=torch.float32, layout="contiguous"):
    shapes = ((B, H, T, D), (B, H, T, D), (B, H, T, E))
    return [laid_out(normal(*s, dtype=dtype, seed=i), layout) for i, s in enumerate(shapes)]


def decays(B, H, T):
    return -normal(B, H, T, seed=5).abs() * 0.2


def compare(tensors, decay=None, state=None, scale=1.0):
    """Checks rows, the last state (of f32), and gradients by all that is given."""
    is_wide = tensors[0].dtype == torch.float32

    def run(function):
        def call(q, k, v, g, s):
            out, last = function(q, k, v, g, state=s, scale=scale)
            return (out, last) if is_wide else out

        return call

    check(run(kernels.linear_attention), run(over_pairs), [*tensors, decay, state])


@pytest.mark.parametrize("has_decay", [False, True], ids=["plain", "decay"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_linear_attention_agrees_with_the_sum_over_pairs(dtype, has_decay):
    tensors = operands(H=1, dtype=dtype)
    compare(tensors, decays(1, 1, 70).to(dtype) if has_decay else None, scale=0.5)


@pytest.mark.parametrize(("T", "D", "E"), [(1, 16, 8), (65, 33, 16), (33, 16, 40)])
def test_linear_attention_takes_any_size(T, D, E):
    compare(operands(H=1, T=T, D=D, E=E), decays(1, 1, T), normal(1, 1, D, E, seed=8))


def test_one_number_has_its_gradients():
    q, k, v = (x.requires_grad_() for x in operands(1, 1, 1, 1, 1))
    with interpreted():
        out, _ = kernels.linear_attention(q, k, v)
        found = torch.autograd.grad(out.sum(), (q, k, v))
    assert [x.item() for x in found] == [(k * v).item(), (q * v).item(), (q * k).item()]


@pytest.mark.parametrize("layout", ["padded rows", "transposed"])
def test_linear_attention_reads_any_strides(layout):
    compare(operands(H=1, T=20, layout=layout))


def test_strong_decays_do_not_overflow():
    compare(operands(H=1, T=40), torch.full((1, 1, 40), -20.0))


def test_a_factor_of_zero_forgets_all_before():
    q, k, v = operands(H=1, T=40)
    g = decays(1, 1, 40)
    g[:, :, 25] = -torch.inf
    with interpreted():
        whole, last = kernels.linear_attention(q, k, v, g)
        rest, end = kernels.linear_attention(*(x[:, :, 25:] for x in (q, k, v, g)))
    # the same 15 terms, in sums with zeros
    torch.testing.assert_close(whole[:, :, 25:], rest, rtol=0, atol=15 * 2**-22)
    torch.testing.assert_close(last, end, rtol=0, atol=15 * 2**-22)


def test_a_sequence_may_be_cut_in_two():
    q, k, v = operands(H=1)
    g = decays(1, 1, 70)
    with interpreted():
        whole, last = kernels.linear_attention(q, k, v, g)
        one, state = kernels.linear_attention(*(x[:, :, :33] for x in (q, k, v, g)))
        two, end = kernels.linear_attention(*(x[:, :, 33:] for x in (q, k, v, g)), state=state)
    # sums of 70 terms in another order
    bound = {"rtol": 0, "atol": 70 * 2**-22}
    torch.testing.assert_close(torch.cat((one, two), 2), whole, **bound)
    torch.testing.assert_close(end, last, **bound)


def test_steps_of_decoding_are_the_sum_over_pairs():
    q, k, v = operands(T=4)
    g = decays(1, 2, 4)
    state, rows = None, []
    with interpreted():
        for t in range(4):
            token = (x[:, :, t : t + 1] for x in (q, k, v, g))
            row, state = kernels.linear_attention(*token, state=state)
            rows.append(row)
    expected, last = (x.float() for x in over_pairs(*(x.double() for x in (q, k, v, g))))
    # products of 8 and sums of 4 terms
    torch.testing.assert_close(torch.cat(rows, 2), expected, rtol=0, atol=4 * 8 * 2**-22)
    torch.testing.assert_close(state, last, rtol=0, atol=4 * 2**-22)


def test_heads_that_share_keys_share_a_state():
    q, (k, v) = operands(H=4, T=20)[0], [x[:, :2] for x in operands(H=4, T=20)[1:]]
    with interpreted():
        found, state = kernels.linear_attention(q, k, v, normalize=True, epsilon=9.0)
        apart = [kernels.linear_attention(q[:, i::2], k, v, normalize=True, epsilon=9.0)[0]
                 for i in range(2)]  # fmt: skip
    assert state.shape == (1, 2, 8, 13)
    assert torch.equal(found, torch.stack(apart, 2).flatten(1, 2))


def test_sizes_that_differ_are_refused():
    q, k, v = operands()
    with pytest.raises(ValueError, match="where G divides H"):
        kernels.linear_attention(q, k[:, :, :3], v)


def test_heads_above_128_are_multiplied_in_parts():
    compare(operands(H=1, T=20, D=144, E=20), decays(1, 1, 20))
