"""Products of rows sorted by expert in the interpreter, with gradients."""

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `torch`")
pytest.importorskip("triton", reason="needs the extra `triton`")

from regraft import kernels
from regraft.backends.torch.library import experts as library
from regraft.backends.triton.kernels.expert_activations import EXPERT_ACTIVATIONS
from tests.backends.triton.harness import LAYOUTS, SIZES, check, interpreted, laid_out
from tests.backends.triton.test_attention import normal

ACTIVATIONS = {name: getattr(library, f"expert_{name}") for name in EXPERT_ACTIVATIONS}


def one_by_one(counts):
    def run(x, weight, bias=None, share=None):
        parts = x.split([*counts, len(x) - sum(counts)])
        rows = [part @ matrix.T for part, matrix in zip(parts[:-1], weight, strict=True)]
        if bias is not None:
            rows = [part + one for part, one in zip(rows, bias, strict=True)]
        y = torch.cat([*rows, x.new_zeros(len(parts[-1]), weight.shape[1])])
        return y if share is None else y * share[:, None]

    return run


def compare(counts, x, weight, *rest):
    given = torch.tensor(counts)
    check(
        lambda x, w, *rest: kernels.grouped_linear(x, w, given, *rest),
        one_by_one(counts),
        [x, weight, *rest],
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(
    "counts", [[5], [3, 0, 70, 1], [0, 0, 9], [1] * 20], ids=["one", "uneven", "last", "many"]
)
def test_grouped_products_agree_with_the_oracle(counts, dtype):
    x = normal(sum(counts), 33, dtype=dtype)
    compare(counts, x, normal(len(counts), 19, 33, dtype=dtype, seed=1))


@pytest.mark.parametrize("size", SIZES[:-1])
def test_odd_widths_with_bias_share_and_rows_of_nobody(size):
    x, weight = normal(9, size), normal(3, size, size, seed=1)
    compare([2, 0, 4], x, weight, normal(3, size, seed=2), normal(9, seed=3))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_grouped_products_read_any_strides(layout):
    x, weight = (laid_out(normal(*s, seed=i), layout) for i, s in enumerate([(9, 8), (2, 5, 8)]))
    compare([4, 5], x, weight)


def test_no_rows_give_none_and_gradients_of_zeros():
    x, weight = torch.ones(0, 4), torch.ones(3, 2, 4, requires_grad=True)
    with interpreted():
        y = kernels.grouped_linear(x, weight, torch.zeros(3, dtype=torch.int64))
        y.sum().backward()
    assert y.shape == (0, 2)
    assert torch.equal(weight.grad, torch.zeros(3, 2, 4))


def test_sizes_that_differ_are_refused():
    with pytest.raises(ValueError, match="expected \\[R, K\\]"):
        kernels.grouped_linear(torch.ones(2, 4), torch.ones(3, 2, 5), torch.tensor([1, 1, 0]))
    with pytest.raises(ValueError, match="not one of relu"):
        kernels.grouped_hidden(
            torch.ones(2, 4), torch.tensor([2]), torch.ones(1, 3, 4), activation="tanh"
        )


def hidden_one_by_one(counts, rows, activation, limit, offset):
    def run(x, up, gate=None, up_bias=None, gate_bias=None):
        part = x if rows is None else x[rows]
        hidden = one_by_one(counts)(part, up, up_bias)
        if gate is None:
            y = ACTIVATIONS[activation](hidden)
        else:
            gates = one_by_one(counts)(part, gate, gate_bias)
            if limit:
                gates, hidden = gates.clamp(max=limit), hidden.clamp(-limit, limit)
            y = ACTIVATIONS[activation](gates) * (hidden + offset)
        owned = torch.arange(len(y)) < sum(counts)
        return torch.where(owned[:, None], y, 0)

    return run


@pytest.mark.parametrize("is_gated", [False, True], ids=["plain", "gated"])
@pytest.mark.parametrize("activation", EXPERT_ACTIVATIONS)
def test_hidden_channels_agree_with_the_oracle(activation, is_gated):
    counts, rows = [3, 0, 5, 1], torch.tensor([0, 1, 2, 0, 1, 2, 3, 0, 3, 3])
    limit, offset = (1.5, 1.0) if is_gated else (0.0, 0.0)
    gates = [normal(4, 17, 19, seed=2), normal(4, 17, seed=3), normal(4, 17, seed=4)]
    inputs = [normal(4, 19), normal(4, 17, 19, seed=1), *(gates if is_gated else [])]
    check(
        lambda x, up, gate=None, up_bias=None, gate_bias=None: kernels.grouped_hidden(
            x, torch.tensor(counts), up, gate, activation=activation, rows=rows, up_bias=up_bias,
            gate_bias=gate_bias, limit=limit, up_offset=offset,
        ),
        hidden_one_by_one(counts, rows, activation, limit, offset),
        inputs,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("bounds", "activation", "top"),
    [("clip", "gelu", 0.8), ("clip_after", "silu", 0.0), ("clip_after", "gelu_tanh", 0.7),
     ("soft", "silu", 0.0), ("soft", "quick_gelu", 2.5)],
)  # fmt: skip
def test_bounds_of_gates_agree_with_the_oracle(bounds, activation, top, dtype):
    counts, limit = [3, 0, 5], 1.5
    name = {"silu": "sigmoid", "quick_gelu": "quick_sigmoid"}[activation] if bounds == "soft" else (
        activation
    )  # fmt: skip
    act = getattr(library, f"expert_{name}")

    def usual(x, up, gate):
        hidden, gates = (one_by_one(counts)(x, w) for w in (up, gate))
        y = library.gate_hidden(hidden, gates, act, limit, 0.5, bounds, top)
        return torch.where((torch.arange(len(y)) < 8)[:, None], y, 0)

    check(
        lambda x, up, gate: kernels.grouped_hidden(
            x, torch.tensor(counts), up, gate, activation=activation, limit=limit, up_offset=0.5,
            bounds=bounds, gate_limit=top,
        ),
        usual,
        [normal(9, 19, dtype=dtype), *(normal(3, 17, 19, dtype=dtype, seed=i) for i in (1, 2))],
    )  # fmt: skip


def test_unknown_bounds_are_refused():
    x, w = torch.ones(2, 4), torch.ones(1, 3, 4)
    with pytest.raises(ValueError, match="soft ones of silu or quick_gelu"):
        kernels.grouped_hidden(
            x, torch.tensor([2]), w, w, activation="gelu", limit=1.0, bounds="soft"
        )


@pytest.mark.parametrize("size", SIZES[:-1])
def test_hidden_channels_of_odd_widths_in_half_precision(size):
    counts = [1, 4]
    check(
        lambda x, up, gate: kernels.grouped_hidden(x, torch.tensor(counts), up, gate),
        hidden_one_by_one(counts, None, "silu", 0.0, 0.0),
        [
            normal(5, size, dtype=torch.float16),
            *(normal(2, 65, size, dtype=torch.float16, seed=1 + idx) for idx in range(2)),
        ],
    )


def mixture(tokens, num, top_k, seed=0, **settings):
    """Returns the routing, and the kernels' experts with those of PyTorch, of six tensors."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.stack(
        [torch.randperm(num, generator=generator)[:top_k] for _ in range(tokens)]
    ).reshape(tokens, top_k)

    def run(x, weights, up, down, gate, down_bias):
        return kernels.experts(
            x, chosen, weights, up, down, "silu", gate, down_bias=down_bias, **settings
        )

    def usual(x, weights, up, down, gate, down_bias):
        return library.apply_experts(
            x, chosen, weights, up, down, library.expert_silu, gate, down_bias=down_bias, **settings
        )

    return run, usual


def operands_of(tokens, num, top_k, width=24, dtype=torch.float32):
    shapes = [(tokens, 16), (tokens, top_k), (num, width, 16), (num, 11, width), (num, width, 16)]
    shapes.append((num, 11))
    made = [normal(*shape, dtype=dtype, seed=idx) for idx, shape in enumerate(shapes)]
    made[1] = made[1].abs() + 0.1
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(("tokens", "num", "top_k"), [(1, 4, 2), (7, 4, 2), (5, 9, 1), (3, 3, 3)])
def test_a_mixture_agrees_with_the_oracle(tokens, num, top_k, dtype):
    run, usual = mixture(tokens, num, top_k)
    check(run, usual, operands_of(tokens, num, top_k, dtype=dtype))


def test_results_of_experts_may_be_normed():
    run, usual = mixture(6, 4, 2, norm_epsilon=0.01)
    check(run, usual, operands_of(6, 4, 2))


def test_weights_may_multiply_what_experts_read():
    run, usual = mixture(6, 4, 2, weigh_input=True)
    check(run, usual, operands_of(6, 4, 2))


def test_tokens_without_room_get_nothing_of_an_expert():
    taken = torch.tensor([[True, True], [True, False], [False, False], [True, True]])
    run, usual = mixture(4, 5, 2, taken=taken)
    operands = operands_of(4, 5, 2)
    operands[1] = operands[1] * taken
    check(run, usual, operands)


def test_a_token_gives_the_same_bits_in_any_company():
    run, _ = mixture(9, 4, 2)
    x, weights, *rest = operands_of(9, 4, 2)
    alone, _ = mixture(9, 4, 2)
    with interpreted():
        together = run(x, weights, *rest)
        shuffled = torch.cat([x[:1], x[1:].flip(0)])
        assert torch.equal(alone(shuffled, weights, *rest)[0], together[0])
