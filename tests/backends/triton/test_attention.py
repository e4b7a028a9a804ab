"""Attention in the interpreter: masks, windows, lengths, sinks, caps, clips, and gradients."""

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `torch`")
pytest.importorskip("triton", reason="needs the extra `triton`")

from regraft import kernels
from tests.backends.triton.harness import LAYOUTS, check, interpreted, laid_out


def normal(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def written_out(q, k, v, mask=None, sinks=None, *, scale=None, offset=0, window=(-1, -1),
                lengths=None, softcap=0.0, clip=(0.0, 1.0)):  # fmt: skip
    """Attention as its definition says, score by score."""
    B, H, S, D = q.shape
    T = k.shape[2]
    k, v = (x.repeat_interleave(H // x.shape[1], 1) for x in (k, v))
    scores = torch.einsum("bhsd,bhtd->bhst", q, k) * (D**-0.5 if scale is None else scale)
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    place = torch.as_tensor(offset).reshape(-1, 1, 1, 1) + torch.arange(S)[:, None]
    distance = torch.arange(T) - place
    hidden = torch.zeros(B, H, S, T, dtype=torch.bool)
    if window[0] >= 0:
        hidden |= distance < -window[0]
    if window[1] >= 0:
        hidden |= distance > window[1]
    if lengths is not None:
        hidden |= torch.arange(T) >= lengths.reshape(-1, 1, 1, 1)
    if mask is not None and mask.dtype == torch.bool:
        hidden |= ~mask
    elif mask is not None:
        scores = scores + mask
    scores = scores.masked_fill(hidden, torch.finfo(scores.dtype).min)
    if sinks is not None:
        scores = torch.cat((scores, sinks.reshape(1, H, 1, 1).expand(B, H, S, 1)), -1)
    weights = scores.softmax(-1)[..., :T]
    low, high = clip
    if clip != (0.0, 1.0):
        weights = ((high - low) * weights + low).clamp(0, 1)
    return torch.einsum("bhst,bhte->bhse", weights.masked_fill(hidden, 0), v)


def compare(tensors, mask=None, sinks=None, **settings):
    """Checks the kernel with gradients by q, k, v, a float mask and sinks."""
    is_bool = mask is not None and mask.dtype == torch.bool

    def run(function):
        def call(q, k, v, m, s):
            return function(q, k, v, mask if is_bool else m, sinks=s, **settings)

        return call

    inputs = [*tensors, None if is_bool else mask, sinks]
    check(run(kernels.attention), run(written_out), inputs)


def operands(B=2, H=4, G=2, S=19, T=37, D=8, E=12, dtype=torch.float32, layout="contiguous"):
    shapes = ((B, H, S, D), (B, G, T, D), (B, G, T, E))
    return [laid_out(normal(*shape, dtype=dtype, seed=i), layout) for i, shape in enumerate(shapes)]


def least_rows():
    """Returns a float mask that hides all keys of some rows and some keys of others."""
    mask = normal(2, 1, 19, 37, seed=5)
    mask[0, :, 3:7] = mask[1, :, :, 20:] = torch.finfo(mask.dtype).min
    return mask


CASES = {
    "plain": {},
    "causal": {"window": (-1, 0), "offset": 18},
    "causal from the first key": {"window": (-1, 0)},
    "window": {"window": (5, 2), "offset": 3},
    "scale": {"scale": 0.7},
    "negative scale": {"scale": -0.7, "window": (-1, 0), "sinks": normal(4, seed=7)},
    "scale of zero": {"scale": 0.0, "window": (-1, 0)},
    "lengths": {"lengths": torch.tensor([37, 9])},
    "offsets": {"window": (-1, 0), "offset": torch.tensor([18, 2])},
    "softcap": {"softcap": 0.5},
    "clipped": {"clip": (-0.03, 1.03)},
    "clipped, causal, capped": {"clip": (-0.1, 1.0), "window": (-1, 0), "softcap": 3.0},
    "sinks": {"sinks": normal(4, seed=7)},
    "sinks, window, lengths": {
        "sinks": normal(4, seed=7), "window": (6, 0), "offset": 18,
        "lengths": torch.tensor([37, 30]),
    },
    "bool mask": {"mask": torch.arange(37) % 3 != 1},
    "bias per head": {"mask": normal(1, 4, 19, 37, seed=5)},
    "bias, causal, capped": {
        "mask": normal(2, 1, 1, 37, seed=5), "window": (-1, 0), "softcap": 2.0,
    },
    "bias of keys": {"mask": normal(19, 37, seed=5)},
    "rows of the least float": {"mask": least_rows()},
    "rows of the least float, causal, clipped": {
        "mask": least_rows(), "window": (-1, 0), "offset": 18, "clip": (-0.1, 1.0),
    },
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_attention_agrees_with_the_oracle(name):
    compare(operands(), **CASES[name])


@pytest.mark.parametrize("name", ["plain", "causal", "clipped", "softcap", "sinks"])
def test_attention_of_halves_agrees_with_the_oracle(name):
    settings = dict(CASES[name])
    if "sinks" in settings:
        settings["sinks"] = settings["sinks"].half()
    compare(operands(dtype=torch.float16), **settings)


@pytest.mark.parametrize(
    ("S", "T", "D"), [(1, 1, 1), (1, 127, 64), (63, 65, 16), (65, 63, 33), (3, 1000, 16), (0, 5, 8)]
)
def test_attention_takes_any_size(S, T, D):
    compare(operands(B=1, H=1, G=1, S=S, T=T, D=D, E=D), window=(-1, 0), offset=max(T - S, 0))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_attention_reads_any_strides(layout):
    compare(operands(B=1, layout=layout), window=(3, 3))


@pytest.mark.parametrize("scale", [30.0, 1e-3])
def test_attention_takes_extreme_inputs(scale):
    q, k, v = operands(B=1)
    compare([q * scale, k, v], window=(-1, 0))


def test_rows_without_a_key_give_zeros_and_no_gradient():
    q, k, v = (x.requires_grad_() for x in operands())
    lengths, offset = torch.tensor([0, 37]), torch.tensor([0, -5])
    with interpreted():
        out = kernels.attention(q, k, v, window=(-1, 0), offset=offset, lengths=lengths)
        out.sum().backward()
    assert not out[0].any()
    assert not out[1, :, :5].any()
    assert out[1, :, 5:].abs().min() > 0
    assert not q.grad[0].any()
    assert torch.isfinite(k.grad).all()


def test_a_key_more_that_is_hidden_changes_nothing_bit_for_bit():
    q, k, v = operands(T=40)
    with interpreted():
        short = kernels.attention(q, k, v, lengths=torch.tensor([33, 33]))
        alone = kernels.attention(q[1:], k[1:, :, :33], v[1:, :, :33])
    assert torch.equal(short[1:], alone)


def test_keys_may_be_permuted():
    q, k, v = operands()
    order = torch.randperm(37, generator=torch.Generator().manual_seed(0))
    with interpreted():
        one, two = kernels.attention(q, k, v), kernels.attention(q, k[:, :, order], v[:, :, order])
    # sums of 37 terms in another order
    torch.testing.assert_close(one, two, rtol=0, atol=37 * 2**-23)


def test_wrong_shapes_and_clips_are_refused():
    q, k, v = operands()
    with pytest.raises(ValueError, match="G divides H"):
        kernels.attention(q[:, :3], k, v)
    with pytest.raises(ValueError, match="at most 0"):
        kernels.attention(q, k, v, clip=(0.1, 1.0))
