"""Operands as callers have them: strided vectors, empty rows, NaN; and those that are refused."""

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `torch`")
pytest.importorskip("triton", reason="needs the extra `triton`")

from regraft import kernels
from tests.backends.triton.harness import check, interpreted

F = torch.nn.functional


def drawn(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def apart(x):
    """Returns x [N] with NaN between its elements."""
    return torch.stack((x, torch.full_like(x, torch.nan)), 1)[:, 0]


VECTORS = {
    "layer_norm": (
        lambda x, w, b: kernels.layer_norm(x, w, b),
        lambda x, w, b: F.layer_norm(x, (9,), w, b, 1e-5),
        (drawn(3, 9), drawn(9), drawn(8, 9)[0]),
    ),
    "rms_norm": (
        kernels.rms_norm,
        lambda x, w: F.rms_norm(x, (9,), w, 1e-6),
        (drawn(3, 9), drawn(9)),
    ),
    "linear": (
        lambda x, b: kernels.linear(x, drawn(5, 9).to(x.dtype), b, "silu"),
        lambda x, b: F.silu(F.linear(x, drawn(5, 9).to(x.dtype), b)),
        (drawn(3, 9), drawn(5)),
    ),
}


@pytest.mark.parametrize("name", VECTORS)
@pytest.mark.parametrize("layout", ["apart", "one element"])
def test_vectors_of_any_stride(name, layout):
    kernel, reference, (x, *vectors) = VECTORS[name]
    strided = [apart(v) if layout == "apart" else v[:1].expand(len(v)) for v in vectors]
    check(kernel, reference, (x, *strided))


EMPTY = {
    "layer_norm": lambda x: kernels.layer_norm(x, x[0], x[1]),
    "add_rms_norm": lambda x: kernels.add_rms_norm(x, x, x[0])[0],
    "softmax": kernels.softmax,
    "softmax of two passes": lambda x: kernels.softmax(x, True),
    "swiglu": lambda x: kernels.swiglu(x, x),
}


@pytest.mark.parametrize("name", EMPTY)
def test_rows_without_elements(name):
    x = torch.ones(3, 0, requires_grad=True)
    with interpreted():
        y = EMPTY[name](x)
        y.sum().backward()
    assert y.shape == x.grad.shape == (3, 0)


def test_a_product_over_nothing_is_its_bias():
    with interpreted():
        y = kernels.linear(torch.ones(3, 0), torch.ones(2, 0), torch.tensor([1.0, -2.0]), "relu")
    assert torch.equal(y, torch.tensor([[1.0, 0.0]] * 3))


NAN = torch.tensor([[torch.nan, 0.0, 1.0], [1.0, 2.0, 3.0]])
WEIGHTS = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, -3.0]])
KEEP_NAN = {
    "softmax of two passes": lambda x: kernels.softmax(x, True),
    "relu in a product": lambda x: kernels.linear(x, WEIGHTS, None, "relu"),
    "relu of a feature": lambda x: kernels.linear_attention(
        x[None, None], x[None, None], x[None, None], feature_map="relu"
    )[0][0, 0],
    **{
        f"{activation} of an expert, {bounds}": lambda x, a=activation, b=bounds: (
            kernels.grouped_hidden(
                x, torch.tensor([2]), WEIGHTS[None], WEIGHTS[None], activation=a, limit=2.0,
                bounds=b,
            )
        )
        for activation, bounds in (("relu", "clip"), ("relu2", "clip_after"))
    },
}  # fmt: skip


@pytest.mark.parametrize("name", KEEP_NAN)
def test_nan_is_not_dropped(name):
    with interpreted():
        y = KEEP_NAN[name](NAN)
    assert y[0].isnan().all()


X, W, B = drawn(3, 8), drawn(8), drawn(8)
Q, K, V = drawn(2, 4, 5, 8), drawn(2, 2, 6, 8), drawn(2, 2, 6, 3)
COS, SIN = drawn(5, 4), drawn(5, 4)
META = torch.ones(8, device="meta")
REFUSED = {
    "short weight": (lambda: kernels.rms_norm(X, W[:7]), "`weight` is float32[7] on cpu; expected"),
    "no floats": (lambda: kernels.softmax(X.long()), "`x` is int64[3, 8] on cpu; expected f32"),
    "another device": (lambda: kernels.layer_norm(X, W, META), "`bias` is float32[8] on meta"),
    "another residual": (lambda: kernels.add_rms_norm(X, X[:1], W), "`residual` is float32[1, 8]"),
    "another dtype": (lambda: kernels.swiglu(X, X.half()), "hint: convert it with"),
    "no such gelu": (lambda: kernels.geglu(X, X, "tan"), "`tan` is not one of none, tanh"),
    "another width": (lambda: kernels.linear(X, X[:, :7]), "`weight` is float32[3, 7] on cpu"),
    "no such precision": (lambda: kernels.linear(X, X, None, "relu", "tf16"), "ieee, tf32, tf32x3"),
    "long bias": (lambda: kernels.linear(X, X, W), "`bias` is float32[8] on cpu; expected [3]"),
    "other tables": (lambda: kernels.rope(Q, Q, COS, SIN[:4]), "`sin` is float32[4, 4] on cpu"),
    "other keys": (lambda: kernels.rope(Q, K, COS, SIN), "`k` is float32[2, 2, 6, 8] on cpu"),
    "odd heads": (lambda: kernels.attention(Q[:, :3], K, V), "where G divides H"),
    "other batch": (lambda: kernels.attention(Q[:1], K, V), "q [1, 4, 5, 8]"),
    "half keys": (lambda: kernels.attention(Q, K.half(), V), "`k` is float16[2, 2, 6, 8] on cpu"),
    "mask of whole numbers": (
        lambda: kernels.attention(Q, K, V, torch.ones(6, dtype=torch.long)), "hint: `mask != 0`",
    ),
    "mask of other keys": (
        lambda: kernels.attention(Q, K, V, torch.ones(5)), "broadcasts to [2, 4, 5, 6]",
    ),
    "window": (lambda: kernels.attention(Q, K, V, window=(-2, 0)), "window (-2, 0)"),
    "cap": (lambda: kernels.entmax_attention(Q, K, V, window=(0, -3)), "window (0, -3)"),
    "lengths of rows": (
        lambda: kernels.attention_decode(Q[:, :, 0], K, V, lengths=torch.tensor([3])),
        "`lengths` is int64[1] on cpu; expected [2]",
    ),
    "lengths as floats": (
        lambda: kernels.attention(Q, K, V, lengths=torch.ones(2)), "expected int64 or int32",
    ),
    "sinks": (lambda: kernels.attention(Q, K, V, sinks=W), "`sinks` is float32[8] on cpu"),
    "labels": (
        lambda: kernels.linear_cross_entropy(X, X, torch.tensor([1, 2])), "`labels` is int64[2]",
    ),
    "state of other features": (
        lambda: kernels.linear_attention(Q[:, :2], K[:, :, :5], V[:, :, :5], state=K),
        "`state` is float32[2, 2, 6, 8] on cpu; expected [2, 2, 8, 3]",
    ),
    "factors of other tokens": (
        lambda: kernels.linear_attention(Q[:, :2], K[:, :, :5], V[:, :, :5], V[..., 0]),
        "`decay` is float32[2, 2, 6] on cpu; expected what broadcasts to [2, 2, 5]",
    ),
    "bias of experts": (
        lambda: kernels.grouped_linear(X, X[None], torch.tensor([3]), X), "expected [1, 3]",
    ),
    "counts as floats": (
        lambda: kernels.grouped_hidden(X, W[:1], X[None]), "`counts` is float32[1] on cpu",
    ),
    "codes as floats": (
        lambda: kernels.low_bit_linear(X, X[:, :4], W[None, :4]), "expected uint8 or int8",
    ),
    "labels as floats": (lambda: kernels.linear_cross_entropy(X, X, X[:, 0]), "int64 or int32"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused(name):
    call, said = REFUSED[name]
    with pytest.raises((TypeError, ValueError)) as error:
        call()
    assert said in str(error.value)


def test_words_that_there_are_not_have_no_finite_loss():
    labels = torch.tensor([8, -5, 1])
    with interpreted():
        loss = kernels.linear_cross_entropy(X, drawn(8, 8), labels, reduction="none")
    assert loss.isnan().tolist() == [True, True, False]


def test_a_table_of_one_row_serves_a_batch():
    with interpreted():
        found = kernels.rotary(Q, COS[None].cos(), COS[None].sin())
        expected = kernels.rotary(Q, COS.cos(), COS.sin())
    assert torch.equal(found, expected)


def test_products_take_the_dtype_of_autocast():
    leaf = X.clone().requires_grad_()
    with interpreted(), torch.autocast("cpu", torch.float16):
        y = kernels.linear(leaf, X.half(), None, "gelu")
        heads = kernels.attention(Q, K.half(), V)
        y.sum().backward()
    assert y.dtype == heads.dtype == torch.float16
    assert leaf.grad.dtype == torch.float32


def test_products_of_tensors_without_memory_have_a_shape():
    x = torch.empty(3, 9, device="meta")
    heads = torch.empty(1, 2, 3, 8, device="meta")
    assert kernels.linear(x, torch.empty(5, 9, device="meta")).shape == (3, 5)
    assert kernels.attention(heads, heads, heads).shape == heads.shape


KERNELS_WITH_LENGTHS = {
    "attention": lambda q, k, v, n: kernels.attention(q, k, v, lengths=n),
    "attention, clipped": lambda q, k, v, n: kernels.attention(
        q, k, v, lengths=n, softcap=2.0, clip=(-0.1, 1.0)
    ),
    "attention_decode": lambda q, k, v, n: kernels.attention_decode(q[:, :, 0], k, v, lengths=n),
    "entmax_attention": lambda q, k, v, n: kernels.entmax_attention(q, k, v, lengths=n),
}


@pytest.mark.parametrize("name", KERNELS_WITH_LENGTHS)
def test_what_lies_behind_lengths_is_not_read(name):
    lengths = torch.tensor([2, 0])
    given, poisoned = ([x.clone() for x in (Q, K, V)] for _ in range(2))
    for row, length in enumerate(lengths):
        for x in poisoned[1:]:
            x[row, :, length:] = torch.nan
    found = []
    for operands in (given, poisoned):
        leaves = [x.requires_grad_() for x in operands]
        with interpreted():
            y = KERNELS_WITH_LENGTHS[name](*leaves, lengths)
            found.append([y, *torch.autograd.grad(y.square().sum(), leaves)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("name", KERNELS_WITH_LENGTHS)
def test_no_key_at_all_gives_zeros(name):
    with interpreted():
        y = KERNELS_WITH_LENGTHS[name](Q, K[:, :, :0], V[:, :, :0], None)
    assert not y.any()


def test_second_derivatives_are_refused():
    leaf = X.clone().requires_grad_()
    with interpreted():
        y = kernels.softmax(leaf).square().sum()
        (first,) = torch.autograd.grad(y, leaf, create_graph=True)
        with pytest.raises(NotImplementedError, match="softmax_backward: the operator has no grad"):
            first.sum().backward()


def test_second_derivatives_of_plain_products_are_exact():
    leaves = [X.clone().requires_grad_(), W[None].clone().requires_grad_()]
    with interpreted():
        y = kernels.linear(*leaves, None, "relu").square().sum()
        first = torch.autograd.grad(y, leaves, create_graph=True)
        found = torch.autograd.grad(sum(g.square().sum() for g in first), leaves)
    y = F.linear(*leaves).relu().square().sum()
    first = torch.autograd.grad(y, leaves, create_graph=True)
    expected = torch.autograd.grad(sum(g.square().sum() for g in first), leaves)
    # f32: sums of 8 products, and of 24
    for got, exact in zip(found, expected, strict=True):
        torch.testing.assert_close(got, exact, rtol=1e-4, atol=1e-4)
