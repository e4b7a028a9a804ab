"""Which axes are found to go together, and what is pinned, and why."""

import pytest

from regraft.ir.module import Module, State, StateKind
from regraft.passes.analysis.coupling import Coupling, Group
from regraft.passes.analysis.coupling.graph import coupling_graph
from tests.passes.analysis.spelled import spelled


def _slots(coupling: Coupling) -> list[set[tuple[str, int]]]:
    return [set(group.weights) for group in coupling.groups]


def _only(coupling: Coupling) -> Group:
    assert len(coupling.groups) == 1
    return coupling.groups[0]


def _pins(coupling: Coupling, name: str) -> dict[int, str]:
    return {
        axis: str(item.why) for item in coupling.pinned for own, axis in item.weights if own == name
    }


def test_neurons_between_two_products_are_one_group() -> None:
    module = spelled(
        """
        %h = matmul(%x, %up)
        %b = add(%h, %bias)
        %a = gelu(%b)
        %y = matmul(%a, %down)
        """,
        weights={"up": "f32[16, 24]", "bias": "f32[24]", "down": "f32[24, 16]"},
    )
    coupling = Coupling(module)
    assert _slots(coupling) == [{("up", 1), ("bias", 0), ("down", 0)}]
    assert "`x`, input" in _pins(coupling, "up")[0]
    assert "it is an output" in _pins(coupling, "down")[1]


def test_a_residual_stream_is_one_group_that_a_norm_counts() -> None:
    module = spelled(
        """
        %e = matmul(%x, %w1)
        %n = layer_norm(%e, %g, %g2)
        %h = matmul(%n, %w2)
        %s = add(%e, %h)
        %y = matmul(%s, %w3)
        """,
        weights={"w1": "f32[16, 8]", "g": "f32[8]", "g2": "f32[8]", "w2": "f32[8, 8]",
                 "w3": "f32[8, 4]"},
    )  # fmt: skip
    group = _only(Coupling(module))
    expected = {("w1", 1), ("g", 0), ("g2", 0), ("w2", 0), ("w2", 1), ("w3", 0)}
    assert set(group.weights) == expected
    assert group.counted


def test_a_mean_over_channels_counts_what_is_kept() -> None:
    module = spelled(
        """
        %h = matmul(%x, %w)
        %m = reduce_mean(%h) {axes = [2]}
        %c = sub(%h, %m)
        %y = matmul(%c, %v)
        """,
        weights={"w": "f32[16, 8]", "v": "f32[8, 4]"},
    )
    group = _only(Coupling(module))
    assert set(group.weights) == {("w", 1), ("v", 0)}
    assert group.counted


def test_softmax_pins_its_axis_with_operator_axis_and_reason() -> None:
    module = spelled(
        """
        %h = matmul(%x, %w)
        %p = softmax(%h)
        %y = matmul(%p, %v)
        """,
        weights={"w": "f32[16, 8]", "v": "f32[8, 4]"},
    )
    coupling = Coupling(module)
    assert coupling.groups == ()
    assert _pins(coupling, "v")[0] == (
        "softmax `p`, x axis 2: `a2`: every position depends on the others"
    )


def test_query_heads_of_a_key_head_choose_their_own() -> None:
    module = spelled(
        """
        %q0 = matmul(%x, %wq)
        %k0 = matmul(%x, %wk)
        %v0 = matmul(%x, %wv)
        %q1 = reshape(%q0) {shape = [B, S, 6, 4]}
        %k1 = reshape(%k0) {shape = [B, S, 2, 4]}
        %v1 = reshape(%v0) {shape = [B, S, 2, 5]}
        %q = transpose(%q1) {perm = [0, 2, 1, 3]}
        %k = transpose(%k1) {perm = [0, 2, 1, 3]}
        %v = transpose(%v1) {perm = [0, 2, 1, 3]}
        %a = attention(%q, %k, %v) {scale = 0.5, kv_groups = 3}
        %t = transpose(%a) {perm = [0, 2, 1, 3]}
        %m = reshape(%t) {shape = [B, S, 30]}
        %y = matmul(%m, %wo)
        """,
        weights={"wq": "f32[16, 24]", "wk": "f32[16, 8]", "wv": "f32[16, 10]",
                 "wo": "f32[30, 16]"},
    )  # fmt: skip
    coupling = Coupling(module)
    found = {(g.size, g.num_blocks): {name for name, _ in g.weights} for g in coupling.groups}
    assert found == {
        (2, 1): {"wq", "wk", "wv", "wo"},  # key heads, with their query heads
        (3, 2): {"wq", "wo"},  # query heads, as many for every key head
        (4, 1): {"wq", "wk"},  # channels of queries and keys
        (5, 1): {"wv", "wo"},  # channels of values
    }


def test_a_weight_that_is_read_twice_is_one_slot() -> None:
    module = spelled(
        """
        %a = matmul(%x, %w)
        %b = relu(%a)
        %t = transpose(%w) {perm = [1, 0]}
        %y = matmul(%b, %t)
        """,
        weights={"w": "f32[16, 8]"},
    )
    assert _slots(Coupling(module)) == [{("w", 1)}]


def test_tied_names_are_one_slot() -> None:
    module = spelled(
        """
        %a = matmul(%x, %w)
        %b = relu(%a)
        %y = matmul(%b, %v)
        """,
        weights={"w": "f32[16, 16]", "v": "f32[16, 16]"},
    )
    store = module.weights
    store.remove("v")
    store.aliases["v"] = "w"
    coupling = Coupling(module)
    # the axis of `w` that is contracted with the input is that of the other reader's hidden width
    assert coupling.groups == ()
    assert _pins(coupling, "w")[0].startswith("graph `x`, input")


def test_gated_halves_of_one_weight_are_tied() -> None:
    module = spelled(
        """
        %h = matmul(%x, %w)
        %g, %u = split(%h) {axis = -1}
        %s = swish(%g)
        %m = mul(%s, %u)
        %y = matmul(%m, %d)
        """,
        weights={"w": "f32[16, 24]", "d": "f32[12, 16]"},
    )
    group = _only(Coupling(module))
    assert group.size == 12
    assert set(group.weights) == {("w", 1), ("d", 0)}


def test_groups_of_a_convolution_keep_equal_counts() -> None:
    module = spelled(
        """
        %h = conv(%x, %w1) {strides = [1, 1], dilations = [1, 1], pads = [0, 0, 0, 0]}
        %g = conv(%h, %w2) {strides = [1, 1], dilations = [1, 1], pads = [0, 0, 0, 0], groups = 4}
        %y = conv(%g, %w3) {strides = [1, 1], dilations = [1, 1], pads = [0, 0, 0, 0]}
        """,
        shape="B, 3, 8, 8",
        weights={"w1": "f32[8, 3, 1, 1]", "w2": "f32[12, 2, 1, 1]", "w3": "f32[5, 12, 1, 1]"},
    )
    coupling = Coupling(module)
    found = {(g.size, g.num_blocks): set(g.weights) for g in coupling.groups}
    assert found == {
        (4, 1): {("w1", 0), ("w2", 0), ("w3", 1)},  # whole groups
        (2, 1): {("w1", 0), ("w2", 1)},  # inputs of a group share the weight's axis
        (3, 4): {("w2", 0), ("w3", 1)},  # outputs of a group choose
    }


@pytest.mark.parametrize("layers", [3])
def test_repeated_layers_are_known_as_isomorphic(layers: int) -> None:
    lines: list[str] = []
    weights: dict[str, str] = {}
    last = "x"
    for i in range(layers):
        lines += [
            f"%h{i} = matmul(%{last}, %up{i})",
            f"%a{i} = relu(%h{i})",
            f"%d{i} = matmul(%a{i}, %down{i})",
            f"%s{i} = add(%{last}, %d{i})",
        ]
        weights |= {f"up{i}": "f32[16, 24]", f"down{i}": "f32[24, 16]"}
        last = f"s{i}"
    lines.append(f"%y = relu(%{last})")
    coupling = Coupling(spelled("\n".join(lines), weights=weights))
    assert [len(groups) for groups in coupling.isomorphic.values()] == [layers]
    graph = coupling_graph(coupling)
    assert graph.nodes["g0"]["size"] == 24
    assert {graph.nodes[n]["op"] for n in graph.neighbors("g0")} == {"relu", "matmul"}


def _with_cache() -> Module:
    module = spelled(
        """
        %k = matmul(%x, %w)
        %c = concat(%past, %k) {axis = 1}
        %z = matmul(%c, %v)
        %y = relu(%z)
        """,
        inputs="%x : f32[B, S, 16], %past : f32[B, T, 8]",
        weights={"w": "f32[16, 8]", "v": "f32[8, 4]"},
    )
    cache = next(n.outputs[0] for n in module.graph if n.op.name == "concat")
    module.graph.add_output("present", cache)
    return module


def test_both_ends_of_a_state_are_one_slot() -> None:
    module = _with_cache()
    assert Coupling(module).groups == ()
    module.states = (State("cache", "past", "present", StateKind.KV_CACHE),)
    group = _only(Coupling(module))
    assert set(group.weights) == {("w", 1), ("v", 0)}
    assert {value.name for value, _ in group.values} >= {"past", "k", "c"}


def test_an_unknown_shape_pins_what_it_meets() -> None:
    module = spelled(
        """
        %h = matmul(%x, %w)
        %r = reshape(%h, %s)
        %m = mul(%r, %h)
        %y = matmul(%m, %v)
        """,
        inputs="%x : f32[B, S, 16], %s : i64[T]",
        weights={"w": "f32[16, 8]", "v": "f32[8, 4]"},
    )
    coupling = Coupling(module)
    assert coupling.groups == ()
    assert _pins(coupling, "w")[1].startswith("reshape `r`")
