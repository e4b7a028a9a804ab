"""Delta rules and factors per channel in the interpreter: states, gradients, extreme factors."""

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `torch`")
pytest.importorskip("triton", reason="needs the extra `triton`")

from triton.runtime import interpreter
from triton.runtime.interpreter import TensorHandle

from regraft import kernels
from regraft.backends.triton.kernels import delta_read_back, delta_reference, delta_scan
from regraft.backends.triton.kernels.channel_pair_gradient import launch_channel_pair_gradient
from regraft.backends.triton.kernels.channel_pairs import launch_channel_pairs, unit_inverse_kernel
from tests.backends.triton.harness import check, interpreted, laid_out
from tests.backends.triton.test_attention import normal


def by_token(q, k, v, decay=None, beta=None, state=None, scale=1.0):
    """The recurrence itself: the oracle in f64, and what PyTorch makes of it in f32 and f16."""
    S = q.new_zeros((*q.shape[:2], q.shape[3], v.shape[3])) if state is None else state
    rows = []
    for t in range(q.shape[2]):
        if decay is not None:
            g = decay[:, :, t]
            S = S * (g if decay.ndim == 4 else g.unsqueeze(-1)).exp().unsqueeze(-1)
        new = v[:, :, t]
        if beta is not None:
            new = beta[:, :, t, None] * (new - (k[:, :, t, :, None] * S).sum(2))
        S = S + k[:, :, t, :, None] * new[:, :, None]
        rows.append((q[:, :, t, :, None] * S).sum(2) * scale)
    return torch.stack(rows, 2), S


def operands(T=37, D=8, E=12, H=1, dtype=torch.float32, layout="contiguous"):
    q, k, v = (normal(1, H, T, n, seed=i) for i, n in enumerate((D, D, E)))
    return [laid_out(x.to(dtype), layout) for x in (q, k / k.norm(dim=-1, keepdim=True), v)]


def factors(kind, T=37, D=8, H=1):
    shape = {"none": None, "token": (1, H, T), "channel": (1, H, T, D)}[kind]
    return None if shape is None else -normal(*shape, seed=5).abs() * 0.2


def rates(T=37, H=1):
    """Rates in (0, 2): above 1 a state changes its sign."""
    return 2 * torch.sigmoid(normal(1, H, T, seed=6))


def compare(tensors, decay=None, beta=None, state=None):
    """Checks rows, the last state (of f32), and gradients by all that is given."""
    is_wide = tensors[0].dtype == torch.float32

    def run(function):
        def call(q, k, v, g, b, s):
            out, last = function(q, k, v, g, b, state=s, scale=0.5)
            return (out, last) if is_wide else out.to(q.dtype)

        return call

    check(run(kernels.gated_delta_attention), run(by_token), [*tensors, decay, beta, state])


@pytest.mark.parametrize(
    ("kind", "has_beta", "dtype"),
    [("none", True, torch.float16), ("token", False, torch.float32),
     ("channel", False, torch.float32), ("channel", True, torch.float16)],
    ids=str,
)  # fmt: skip
def test_chunks_agree_with_the_recurrence(kind, has_beta, dtype):
    decay = factors(kind)
    beta = rates().to(dtype) if has_beta else None
    compare(operands(dtype=dtype), None if decay is None else decay.to(dtype), beta)


@pytest.mark.parametrize(("T", "D", "E"), [(1, 5, 7), (17, 33, 20)])
@pytest.mark.parametrize("kind", ["token", "channel"])
def test_any_size_and_a_state_before_it(kind, T, D, E):
    compare(operands(T, D, E), factors(kind, T, D), rates(T), normal(1, 1, D, E, seed=8))


@pytest.mark.parametrize(("layout", "kind"), [("padded rows", "channel"), ("transposed", "token")])
def test_strides_are_any(layout, kind):
    compare(operands(18, layout=layout), factors(kind, 18), rates(18))


def test_heads_above_128_are_multiplied_in_parts():
    compare(operands(17, D=144, E=5), factors("token", 17), rates(17))


@pytest.mark.parametrize("kind", ["token", "channel"])
def test_factors_of_zero_one_and_almost_neither(kind):
    decay = factors(kind, 34)
    decay[:, :, 3], decay[:, :, 7], decay[:, :, 9] = -torch.inf, 0.0, -1e-30
    decay[:, :, 11:15], decay[:, :, 21] = -90.0, -torch.inf
    compare(operands(34), decay, rates(34))


def test_keys_that_are_alike_lose_no_digits():
    q, k, v = operands(34)
    # powers of the matrix of products of keys grow like binomials; its inverse does not
    compare([q, k[:, :, :1].repeat(1, 1, 34, 1), v], None, torch.ones(1, 1, 34))


def test_inverses_of_tf32_lose_less_than_their_rounding(monkeypatch):
    original = interpreter.InterpreterBuilder.create_dot

    def of_tf32(self, a, b, *rest):
        cut = [TensorHandle((x.data.view("int32") & -8192).view("float32"), x.dtype)
               for x in (a, b)]  # fmt: skip
        return original(self, *cut, *rest)

    # keys that are almost alike, at a rate near 2: what couples blocks is large
    k = (normal(1, 1, 16, seed=0) + 0.05 * normal(4, 64, 16, seed=1)).double()
    k = k / k.norm(dim=-1, keepdim=True)
    lower = (1.9 * k @ k.mT).tril(-1)
    exact = torch.linalg.inv(torch.eye(64, dtype=torch.float64) + lower)
    found = torch.empty(exact.shape)
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", of_tf32)
    unit_inverse_kernel[(4,)](lower.float(), found, PRECISION="tf32", BLOCK_M=64, LEVELS=6)
    assert (found - exact).norm() <= (exact.half() - exact).norm()
    # the same products without the last step
    unit_inverse_kernel[(4,)](lower.float(), found, PRECISION="ieee", BLOCK_M=64, LEVELS=6)
    assert (found - exact).norm() > 10 * (exact.half() - exact).norm()


def test_a_rate_of_zero_writes_nothing():
    q, k, v = operands(20)
    state = normal(1, 1, 8, 12, seed=8)
    with interpreted():
        out, last = kernels.gated_delta_attention(q, k, v, None, torch.zeros(1, 1, 20), state=state)
    assert torch.equal(last, state)
    # sums of 8 products
    torch.testing.assert_close(out, q @ state, rtol=0, atol=8 * 8 * 2**-22)


@pytest.mark.parametrize("kind", ["token", "channel"])
def test_steps_of_decoding_and_cuts_are_the_recurrence(kind):
    q, k, v = operands(21, H=2)
    g, b = factors(kind, 21, H=2), rates(21, 2)
    expected, last = by_token(*(x.double() for x in (q, k, v, g, b)))
    state, rows = None, []
    with interpreted():
        for start, end in ((0, 18), (18, 19), (19, 20), (20, 21)):
            span = (x[:, :, start:end] for x in (q, k, v, g, b))
            row, state = kernels.gated_delta_attention(*span, state=state)
            rows.append(row)
    # products of 8 and sums of 21 terms
    torch.testing.assert_close(torch.cat(rows, 2), expected.float(), rtol=0, atol=168 * 2**-22)
    torch.testing.assert_close(state, last.float(), rtol=0, atol=21 * 2**-22)


def test_no_tokens_leave_the_state():
    q, k, v = (x[:, :, :0].requires_grad_() for x in operands())
    state = normal(1, 1, 8, 12).requires_grad_()
    with interpreted():
        out, last = kernels.gated_delta_attention(q, k, v, None, torch.zeros(1, 1, 0), state=state)
        (found,) = torch.autograd.grad(last.sum(), (state,))
    assert out.shape == (1, 1, 0, 12)
    assert torch.equal(last, state)
    assert torch.equal(found, torch.ones_like(state))


def test_heads_that_share_keys_share_a_state():
    q, (_, k, v) = operands(18, H=4)[0], operands(18, H=2)
    g, b = factors("channel", 18, H=2), rates(18, 2)
    with interpreted():
        found, state = kernels.gated_delta_attention(q, k, v, g, b, normalize=True, epsilon=9.0)
        apart = [
            kernels.gated_delta_attention(q[:, i::2], k, v, g, b, normalize=True, epsilon=9.0)[0]
            for i in range(2)
        ]
    assert state.shape == (1, 2, 8, 13)
    assert torch.equal(found, torch.stack(apart, 2).flatten(1, 2))


def test_states_in_two_parts_are_those_in_one(monkeypatch):
    # of bf16, whose products the interpreter does not know
    monkeypatch.setattr(delta_scan, "is_parted", lambda _: True)
    for module in (delta_scan, delta_read_back):
        monkeypatch.setattr(module, "products_dtype", lambda x: x.dtype)
    compare(operands(37, dtype=torch.float16), factors("token").half(), rates().half())


def test_blocks_of_a_chunk_and_their_gradients():
    q, k, _ = operands(70, H=2)
    g = factors("channel", 70, H=2)
    g[:, :, 30:34] = -60.0
    b = rates(70, 2)
    c = delta_reference.split(*(x.double() for x in (q, k, k, g, b)), 64)
    pairs, inverse = delta_reference.chunk_pairs(c)
    made = normal(1, 2, 2, 64, 64)
    exact = delta_reference.pair_sums_gradient(made.double().tril(), c.q, c.k, c.decay)
    with interpreted():
        found = launch_channel_pairs(q, k, g, b, 64, 4, "ieee")
        wide = (x.float() for x in (made.tril(), c.q, c.k, c.decay))
        gradients = launch_channel_pair_gradient(*wide, "ieee")
    # sums of 64 products, each of which is of 8
    for got, want in zip((*found, *gradients), (pairs, inverse, *exact), strict=True):
        torch.testing.assert_close(got, want.float(), rtol=0, atol=512 * 2**-23)


def test_sizes_that_differ_are_refused():
    q, k, v = operands()
    with pytest.raises(ValueError, match="where G divides H"):
        kernels.gated_delta_attention(q, k[:, :, :3], v)
