"""Configs of smaller models, from kept positions alone; needs neither torch nor transformers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from regraft.backends.huggingface.config import ConfigChange
from regraft.backends.huggingface.families import FAMILIES
from regraft.backends.huggingface.family import Axis, parse_axes
from regraft.backends.huggingface.recover import Recovered, recover
from regraft.ir.derive import DerivedWeight
from regraft.ir.graph import Graph
from regraft.ir.module import Module
from regraft.ir.steps import Add, Gather, Literal, MatMul, Reshape, Slice, Source, Transpose
from regraft.ir.types import DType
from regraft.ir.weights import ArrayWeight, Role

GPT2 = {"model_type": "gpt2", "n_embd": 32, "n_head": 4, "n_layer": 2, "n_inner": None}
LLAMA = {"model_type": "llama", "num_attention_heads": 4, "num_key_value_heads": 2,
         "hidden_size": 32, "layer_types": ["a", "b"]}  # fmt: skip


def kept(full: tuple[int, ...], *positions: list[int] | None, placed: bool = True) -> Recovered:
    weight = ArrayWeight(np.zeros(full, np.float32))
    rows = tuple(
        np.arange(size) if each is None else np.array(each)
        for size, each in zip(full, positions, strict=True)
    )
    return Recovered(weight, rows, DType.F32, full, placed)


def change(config: dict[str, Any], **tensors: Recovered) -> tuple[dict[str, Any], list[str]]:
    found = ConfigChange(config, FAMILIES[config["model_type"]])
    named = {name.replace("__", "."): item for name, item in tensors.items()}
    return found.run(named, {}, {}), found.problems


def heads(*which: int, parts: int = 1, count: int = 4, size: int = 8) -> list[int]:
    return [
        (part * count + head) * size + i
        for part in range(parts) for head in which for i in range(size)
    ]  # fmt: skip


def test_notation_gives_axes() -> None:
    assert parse_axes("n_embd (3 n_head .) _") == (
        Axis(("n_embd",)), Axis((3, "n_head", ".")), Axis(()),
    )  # fmt: skip


def test_fused_matrices_keep_the_same_heads_in_every_part() -> None:
    narrow = list(range(16))
    config, problems = change(
        GPT2,
        h__0__attn__c_attn__weight=kept((32, 96), narrow, heads(1, 2, parts=3)),
        h__0__mlp__c_fc__weight=kept((32, 128), narrow, list(range(100))),
    )
    assert problems == []
    assert (config["n_embd"], config["n_head"], config["n_inner"]) == (16, 2, 100)


def test_other_heads_in_a_part_are_a_problem() -> None:
    rows = heads(1, 2, parts=3)
    rows[:8] = heads(0)
    _, problems = change(GPT2, h__0__attn__c_attn__bias=kept((96,), sorted(rows)))
    assert "48 positions that are not whole heads of 8 of `n_head`" in problems[0]


def test_width_without_heads_is_a_problem_where_heads_follow_from_it() -> None:
    _, problems = change(
        GPT2, h__0__attn__c_attn__weight=kept((32, 96), list(range(24)), None),
    )  # fmt: skip
    (problem,) = problems
    assert problem.startswith("`n_embd` would be 24 with 4 heads of 8: in this family it is")


def test_width_alone_keeps_the_size_of_heads_where_the_config_has_it() -> None:
    config, problems = change(
        LLAMA,
        layers__0__self_attn__q_proj__weight=kept((32, 32), None, list(range(24))),
        layers__0__self_attn__k_proj__weight=kept((16, 32), None, list(range(24))),
    )
    assert problems == []
    assert (config["hidden_size"], config["head_dim"]) == (24, 8)


def test_heads_stay_with_their_keys() -> None:
    good = change(
        LLAMA,
        layers__0__self_attn__q_proj__weight=kept((32, 32), heads(0, 3), None),
        layers__0__self_attn__k_proj__weight=kept((16, 32), None, None),
    )
    assert good[1] == []
    assert good[0]["num_attention_heads"] == 2
    _, problems = change(
        LLAMA,
        layers__0__self_attn__q_proj__weight=kept((32, 32), heads(0, 1), None),
        layers__0__self_attn__k_proj__weight=kept((16, 32), None, None),
    )
    assert "groups would be mixed" in problems[0]


def test_sizes_alone_give_heads_after_training() -> None:
    config, problems = change(
        LLAMA,
        layers__0__self_attn__q_proj__weight=kept((32, 32), list(range(16)), None, placed=False),
        layers__0__self_attn__k_proj__weight=kept((16, 32), list(range(8)), None, placed=False),
    )
    assert problems == []
    assert (config["num_attention_heads"], config["num_key_value_heads"]) == (2, 1)


def test_axes_outside_the_table_are_a_problem() -> None:
    _, problems = change(GPT2, h__0__extra__weight=kept((8,), [0]))
    assert "the table of this family does not say" in problems[0]


def test_layers_take_their_entries_of_lists_along() -> None:
    found = ConfigChange(LLAMA, FAMILIES["llama"])
    config = found.run({}, {"layers": [1]}, {"layers": 2})
    assert (config["num_hidden_layers"], config["layer_types"]) == (1, ["b"])


def recovered(*trees: Any) -> Any:
    module = Module(Graph())
    for i, tree in enumerate(trees):
        module.weights.add(f"stored{i}", DerivedWeight(tree), Role.PARAM)
    return recover(module, {"w": (4, 6)})


W = Source("w", ArrayWeight(np.arange(24, dtype=np.float32).reshape(4, 6)))


@pytest.mark.parametrize(
    "trees",
    [
        (Slice(Transpose(W, (1, 0)), 0, 2, 6),),
        (Transpose(Slice(W, 1, 2, 6), (1, 0)),),
        (Gather(W, 1, (5, 2, 4, 3)),),  # in the checkpoint's order again
        (Slice(W, 1, 2, 4), Slice(W, 1, 4, 6)),
        (Slice(Reshape(W, (4, 3, 2)), 1, 1, 3),),
    ],
)
def test_kept_positions_are_those_that_any_weight_holds(trees: tuple[Any, ...]) -> None:
    item = recovered(*trees).tensors["w"]
    assert [rows.tolist() for rows in item.kept] == [[0, 1, 2, 3], [2, 3, 4, 5]]
    assert item.doubt == ""
    np.testing.assert_array_equal(item.result("w").numpy(), W.weight.numpy()[:, 2:])


def test_changed_values_are_in_doubt_and_their_positions_known() -> None:
    ones = Literal.of(np.ones(6, np.float32))
    item = recovered(Slice(Add(W, ones), 0, 1, 3)).tensors["w"]
    assert "add changes values" in item.doubt
    assert [len(rows) for rows in item.kept] == [2, 6]
    mixed = recovered(MatMul(W, Transpose(W, (1, 0)))).tensors["w"]
    assert "mixes positions" in mixed.doubt
    assert mixed.shape == (4, 6)


def test_holes_and_conflicts_are_reasons() -> None:
    corner = recovered(Slice(Slice(W, 0, 0, 2), 1, 0, 3), Slice(Slice(W, 0, 2, 4), 1, 3, 6))
    assert "no rows and columns" in corner.lost["w"]
    other = Source("w", ArrayWeight(np.zeros((4, 6), np.float32)))
    assert "different values now" in recovered(W, Transpose(other, (1, 0))).lost["w"]


def test_parameters_of_no_checkpoint_are_added() -> None:
    extra = Source("adapter", ArrayWeight(np.zeros(3, np.float32)))
    assert recovered(W, extra).added == ["stored1"]
