"""Every axis rule keeps what it promises, and the checker finds rules that lie."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import numpy as np
import pytest

from regraft.ir.axes import AxisRule, Role, Star
from regraft.ir.axis_binding import bind_node, rule_of
from regraft.ir.graph import Node
from regraft.ir.ops import OPS
from regraft.ir.ops.shapes import infer_same
from regraft.ir.opspec import Attr, AttrKind, Operand, OpSpec, Trait
from regraft.ir.types import TensorType
from regraft.soundness import FLOATS, Sample, attack, floats, make_node
from tests.ir.samples import SAMPLES, samples_of

RULED = [spec for spec in OPS.values() if spec.axes is not None]


@pytest.mark.parametrize("spec", RULED, ids=lambda spec: spec.name)
def test_axis_rule_is_sound(spec: OpSpec) -> None:
    reports = [attack(spec, sample) for sample in samples_of(spec)]
    assert reports, f"{spec.name} has an axis rule but no sample in tests/ir/samples.py"
    assert [problem for report in reports for problem in report.broken] == []
    untested = set().union(*(r.claimed for r in reports)) - set().union(
        *(r.tested for r in reports)
    )
    assert not untested, f"no sample gives these labels two positions: {untested}"
    assert any(report.informative for report in reports), "every sample gives constant results"


def test_every_sample_belongs_to_an_operator_with_a_rule() -> None:
    assert [name for name in SAMPLES if name not in {spec.name for spec in RULED}] == []


def falsified(rule: AxisRule, label: str, role: Role) -> AxisRule:
    def axis(item: Any) -> Any:
        if isinstance(item, Star):
            return dataclasses.replace(item, role=role) if item.name == label else item
        return tuple(dataclasses.replace(f, role=role) if f.name == label else f for f in item)

    def terms(of: Any) -> Any:
        return tuple(None if term is None else tuple(axis(a) for a in term) for term in of)

    return AxisRule(terms(rule.operands), terms(rule.results))


# Labels that could be called so without being reported, each with the reason.
SURVIVES = {
    ("global_lp_pool", "s", Role.SUM): "a zero adds nothing to the norm; nobody prunes space",
    ("scatter_elements", "i", Role.SUM): "adding a zero changes nothing, in this variant alone",
    ("qlinear_matmul", "b", Role.SUM): "the sample has no batch axes",
}


@pytest.mark.parametrize("spec", RULED, ids=lambda spec: spec.name)
def test_samples_tell_fixed_and_pass_labels_apart(spec: OpSpec) -> None:
    survivors = []
    for role in (Role.PASS, Role.SUM):
        reported: dict[str, bool] = {}
        for sample in samples_of(spec):
            rng = np.random.default_rng(0)
            operands = [None if d is None else d(rng, "mixed", FLOATS[0]) for d in sample.operands]
            node = make_node(spec, operands, sample.attrs, sample.num_outputs)
            rule = rule_of(node)
            assert rule is not None
            bound = bind_node(node, rule, with_results=True)
            for label, true_role in rule.roles().items():
                sizes = [size for name, size in bound.sizes.items() if name.startswith(label)]
                if true_role in (role, Role.SUM) or all(size == 1 for size in sizes):
                    continue
                report = attack(spec, sample, partial(falsified, label=label, role=role))
                name = label.rstrip("0123456789")
                reported[name] = reported.get(name, False) or bool(report.broken)
        survivors += [(spec.name, name, role) for name, found in reported.items() if not found]
    assert [item for item in survivors if item not in SURVIVES] == []


# -- rules that lie -----------------------------------------------------------------------------


def _shape_from_eval(node: Node) -> list[TensorType]:
    """Infers by running `eval` on ones: the mutants need no shape functions of their own."""
    arrays = [None if v is None else np.ones(v.shape or (), np.float32) for v in node.inputs]
    context = type("Context", (), {"attrs": node.attrs, "node": node})()
    assert node.op.eval is not None
    results = node.op.eval(context, *arrays)
    dtype = node.inputs[0].dtype if node.inputs[0] else None
    return [
        TensorType(dtype, np.shape(result))
        for result in (results if isinstance(results, tuple) else (results,))
    ]


def liar(name: str, axes: str, fn: Any, *, operands: int = 1, **more: Any) -> OpSpec:
    return OpSpec(
        name=name,
        source="a rule that lies",
        operands=tuple(Operand(f"x{i}") for i in range(operands)),
        axes=axes,
        infer=_shape_from_eval,
        eval=fn,
        **more,
    )


def softmax(x: Any) -> Any:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def swap_ends(x: Any) -> Any:
    return x[..., [-1, *range(1, x.shape[-1] - 1), 0]]


def windows(x: Any) -> Any:
    return x[..., :-1] + 2 * x[..., 1:]


def grouped(c: Any, x: Any, axis: int) -> Any:
    """Centres the groups (axis 2) or their equal positions (axis 1)."""
    parts = x.reshape(len(x), c.attrs["groups"], -1)
    return (parts - parts.mean(axis, keepdims=True)).reshape(x.shape)


X = Sample((floats(3, 4),))
GROUPS = Sample((floats(2, 12),), {"groups": 3})
GROUPED: Any = {"counts": {"groups": "o"}, "attrs": (Attr("groups", AttrKind.INT),)}
LIARS: list[tuple[OpSpec, Sample]] = [
    (liar("flip", "*b c -> *b c", lambda c, x: x[..., ::-1]), X),
    (liar("roll", "*b c -> *b c", lambda c, x: np.roll(x, 1, -1)), X),
    (liar("rotate", "*b c -> *b c", lambda c, x: np.roll(x, x.shape[-1] // 2, -1)), X),
    (liar("sort", "*b c -> *b c", lambda c, x: np.sort(x, -1)), X),
    (liar("swap_ends", "*b c -> *b c", lambda c, x: swap_ends(x)), X),
    (liar("transpose", "a b -> a b", lambda c, x: x.T.copy()), Sample((floats(4, 4),))),
    (liar("cumsum", "*b c -> *b c", lambda c, x: np.cumsum(x, -1)), X),
    (liar("cumsum_sum", "*b ~c -> *b d!", lambda c, x: np.cumsum(x, -1)), X),
    (liar("cumprod", "*b c -> *b c", lambda c, x: np.cumprod(x, -1)), X),
    (liar("cummax", "*b c -> *b c", lambda c, x: np.maximum.accumulate(x, -1)), X),
    (liar("diff", "*b c -> *b d!", lambda c, x: np.diff(x)), X),
    (liar("softmax", "*b c -> *b c", lambda c, x: softmax(x)), X),
    (liar("normalize", "*b c -> *b c", lambda c, x: x - x.mean(-1, keepdims=True)), X),
    (liar("scale_by_max", "*b c -> *b c", lambda c, x: x / np.abs(x).max()), X),
    (liar("max_as_sum", "*b ~c -> *b", lambda c, x: x.max(-1)), X),
    (liar("min_as_sum", "*b ~c -> *b", lambda c, x: x.min(-1)), X),
    (liar("mean_as_sum", "*b ~c -> *b", lambda c, x: x.mean(-1)), X),
    (liar("prod_as_sum", "*b ~c -> *b", lambda c, x: x.prod(-1)), X),
    (liar("logsumexp_as_sum", "*b ~c -> *b", lambda c, x: np.log(np.exp(x).sum(-1))), X),
    (liar("count_as_sum", "*b ~c -> *b", lambda c, x: np.full(x.shape[:-1], x.shape[-1])), X),
    (liar("sum_of_exp", "*b ~c -> *b", lambda c, x: np.exp(x).sum(-1)), X),
    (liar("sum_as_pass", "*b c -> *b", lambda c, x: x.sum(-1)), X),
    (liar("max_as_pass", "*b c -> *b", lambda c, x: x.max(-1)), X),
    (liar("first_as_pass", "*b c -> *b", lambda c, x: x[..., 0]), X),
    (liar("last_as_sum", "*b ~c -> *b", lambda c, x: x[..., -1]), X),
    (liar("middle_as_sum", "*b ~c -> *b", lambda c, x: x[..., x.shape[-1] // 2]), X),
    (liar("conv_spatial", "b s -> b t!", lambda c, x: windows(x)), Sample((floats(3, 6),))),
    (liar("conv_spatial_sum", "b ~s -> b t!", lambda c, x: windows(x)), Sample((floats(3, 6),))),
    (liar("even_only", "b s -> b s", lambda c, x: x * (np.arange(x.shape[-1]) % 2)), X),
    (liar("matmul_k_pass", "m k, k n -> m n", lambda c, a, b: a @ b, operands=2),
     Sample((floats(3, 4), floats(4, 5)))),
    (liar("matmul_n_sum", "m ~k, ~k ~n -> m p!", lambda c, a, b: a @ b, operands=2),
     Sample((floats(3, 4), floats(4, 5)))),
    (liar("untied_bias", "*b c, . -> *b c", lambda c, x, y: x + y[: x.shape[-1]], operands=2),
     Sample((floats(3, 4), floats(4)))),
    (liar("reduced_outer", "b (o g!) -> b (o g!)", lambda c, x: grouped(c, x, 1), **GROUPED),
     GROUPS),
    (liar("reduced_inner", "b (g! o) -> b (g! o)", lambda c, x: grouped(c, x, 2),
          counts={"groups": "g!"}, attrs=GROUPED["attrs"]), GROUPS),
    (liar("free_but_tied", "b (g! o*) -> b (g! o*)", lambda c, x: grouped(c, x, 1),
          counts={"groups": "g!"}, attrs=GROUPED["attrs"]), GROUPS),
    (liar("unknown_size", "b (o g!) -> b (o g!)", lambda c, x: x), Sample((floats(2, 12),))),
    (liar("shared_gain", "b (g! o*), o -> b (g! o*)",
          lambda c, x, w: x * np.tile(w, 3), operands=2), Sample((floats(2, 12), floats(4)))),
    (liar("pinned_result", "*b c -> *b c, .", lambda c, x: (x, x.sum(-1)),
          results=("out", "total")), X),
]  # fmt: skip


@pytest.mark.parametrize(("spec", "sample"), LIARS, ids=[spec.name for spec, _ in LIARS])
def test_a_lying_rule_is_reported(spec: OpSpec, sample: Sample) -> None:
    assert attack(spec, sample).broken


def test_groups_that_no_count_states_are_reported() -> None:
    honest = OPS["conv"]
    fields = {
        name: getattr(honest, name)
        for name in ("source", "operands", "results", "attrs", "axes", "infer", "eval")
    }
    spec = OpSpec(name="conv_without_counts", **fields)
    assert all(attack(honest, sample).broken == [] for sample in samples_of(honest))
    assert any(attack(spec, sample).broken for sample in samples_of(honest))


def test_elementwise_with_a_hidden_reduction_is_reported() -> None:
    spec = OpSpec(
        name="centre",
        source="a rule that lies",
        operands=(Operand("x"),),
        traits=Trait.PURE | Trait.ELEMENTWISE,
        axes="*b -> *b",
        infer=infer_same,
        eval=lambda c, x: x - x.mean(),
    )
    assert attack(spec, X).broken


def test_checker_tests_every_label_and_both_float_types() -> None:
    seen: set[tuple[str, tuple[int, ...]]] = set()

    def record(c: Any, x: Any) -> Any:
        seen.add((str(x.dtype), x.shape))
        return x

    spec = liar("record", "a (g o*) -> a (g o*)", record)
    report = attack(
        OpSpec(
            name="record",
            source="records what it is asked",
            operands=(Operand("x"),),
            attrs=(Attr("groups", AttrKind.INT),),
            counts={"groups": "g"},
            axes=spec.axes,
            infer=infer_same,
            eval=record,
        ),
        Sample((floats(3, 12),), {"groups": 3}),
    )
    assert report.broken == []
    assert report.tested == {"a", "g", "o"}
    for dtype in ("float32", "float64"):
        assert {(dtype, (2, 12)), (dtype, (3, 8)), (dtype, (3, 9)), (dtype, (3, 6))} <= seen


def test_make_node_infers_from_the_arrays() -> None:
    node = make_node(OPS["relu"], [np.ones((2, 3), np.float32)], {})
    assert str(node.output.type) == "f32[2, 3]"
