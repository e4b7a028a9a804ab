"""The worklist: fixpoint, limit, bodies, types, dead nodes, and what a rule must not do."""

import pytest

from regraft.ir.builder import Builder
from regraft.ir.errors import RegraftError
from regraft.ir.graph import Graph, Node
from regraft.ir.module import Module
from regraft.ir.ops import OPS
from regraft.ir.rewrite import LocalRule, Reject, Rewriter, RuleSet, local_rule, rewrite
from regraft.ir.types import DType, TensorType
from regraft.ir.verify import verify
from tests.passes.cleanup.rewriting import outputs, parse

relu, neg, exp, cast = OPS["relu"], OPS["neg"], OPS["exp"], OPS["cast"]


@local_rule(relu)
def relu_of_relu(node: Node, rw: Rewriter) -> bool:
    x = node.inputs[0]
    if x is None or x.producer is None or x.producer.op is not relu:
        return False
    rw.replace(node, x)
    return True


@local_rule(neg)
def neg_to_exp(node: Node, rw: Rewriter) -> bool:
    rw.replace(node, rw.builder(node).op(exp, node.inputs[0]))
    return True


@local_rule(exp)
def exp_to_neg(node: Node, rw: Rewriter) -> bool:
    rw.replace(node, rw.builder(node).op(neg, node.inputs[0]))
    return True


def _chain(num: int) -> Module:
    lines = ["%v0 = relu(%x)", *(f"%v{i} = relu(%v{i - 1})" for i in range(1, num))]
    body = "\n".join(lines)
    return parse(f"graph(%x : f32[B]) {{\n{body}\nreturn %v{num - 1}\n}}")


def test_rewrites_to_a_fixpoint_and_counts() -> None:
    module = _chain(50)
    stats = rewrite(module, RuleSet(relu_of_relu))
    assert stats.counts == {"relu-of-relu": 49}
    assert outputs(module) == "relu(x)"
    assert not rewrite(module, RuleSet(relu_of_relu)).changed


def test_limit_names_the_rules_that_still_apply() -> None:
    module = parse("graph(%x : f32[B]) {\n%y = neg(%x)\nreturn %y\n}")
    with pytest.raises(RegraftError, match=r"within 100 steps.*`neg-to-exp`.*`exp-to-neg`"):
        rewrite(module, RuleSet(neg_to_exp, exp_to_neg), max_steps=100)


def test_first_rule_that_applies_wins() -> None:
    module = parse("graph(%x : f32[B]) {\n%a = relu(%x)\n%y = relu(%a)\nreturn %y\n}")
    first = LocalRule("first", (relu,), lambda node, rw: False)
    stats = rewrite(module, RuleSet(first) + RuleSet(relu_of_relu))
    assert stats.counts == {"relu-of-relu": 1}


def test_dead_nodes_go_with_what_only_they_used() -> None:
    module = parse("graph(%x : f32[B]) {\n%a = exp(%x)\n%b = neg(%a)\nreturn %x\n}")
    stats = rewrite(module, RuleSet())
    assert (len(module.graph), stats.num_dropped, stats.changed) == (0, 2, True)


def test_walks_into_bodies_and_not_into_erased_ones() -> None:
    module = parse("graph(%x : f32[3], %c : bool[]) {\n%d = relu(%x)\nreturn %d\n}")
    graph = module.graph
    for keep in (True, False):
        bodies = []
        for _ in range(2):
            body = Graph(graph.scope)
            inner = Builder(body).op(
                relu, Builder(body).op(relu, body.add_input(None, graph.inputs[0].type))
            )
            body.add_output("o", inner)
            bodies.append(body)
        node = graph.create(
            OPS["if"], (graph.inputs[1], graph.inputs[0]), {"num_captures": 1},
            num_outputs=1, bodies=tuple(bodies),
        )  # fmt: skip
        if keep:
            graph.add_output("y", node.output)
    stats = rewrite(module, RuleSet(relu_of_relu))
    assert stats.counts == {"relu-of-relu": 2}
    assert verify(module, "full") == []


@pytest.mark.parametrize(
    ("attrs", "message"),
    [({"to": DType.F64}, "type f32[B] by f64[B]")],
)
def test_replacement_of_another_type_is_an_error_of_the_rule(
    attrs: dict[str, DType], message: str
) -> None:
    widen = LocalRule(
        "widen",
        (relu,),
        lambda node, rw: (
            rw.replace(node, rw.builder(node).op(cast, node.inputs[0], **attrs)) or True
        ),
    )
    module = parse("graph(%x : f32[B]) {\n%y = relu(%x)\nreturn %y\n}")
    with pytest.raises(RegraftError) as caught:
        rewrite(module, RuleSet(widen))
    assert "rule `widen` at relu `y`" in str(caught.value)
    assert message in str(caught.value)


def test_replacement_of_another_known_shape_is_an_error() -> None:
    def cut(node: Node, rw: Rewriter) -> bool:
        part = rw.builder(node).op(OPS["slice"], node.inputs[0], starts=(0,), ends=(1,), axes=(0,))
        rw.replace(node, part)
        return True

    module = parse("graph(%x : f32[3]) {\n%y = relu(%x)\nreturn %y\n}")
    with pytest.raises(RegraftError, match=r"f32\[3\] by f32\[1\]"):
        rewrite(module, RuleSet(LocalRule("cut", (relu,), cut)))


def test_users_learn_the_better_type_of_a_replacement() -> None:
    module = parse(
        "graph(%x : f32[B, 4], %s : i64[2]) {\n%a = reshape(%x, %s)\n%b = relu(%a)\n%y = exp(%b)\n"
        "return %y\n}"
    )

    def known(node: Node, rw: Rewriter) -> bool:
        if node.inputs[1] is None:
            return False
        rw.replace(node, rw.builder(node).op(node.op, node.inputs[0], shape=(2, -1)))
        return True

    rewrite(module, RuleSet(LocalRule("known", (OPS["reshape"],), known)))
    assert str(module.graph.outputs[0].type) == "f32[2, 2*B]"
    assert verify(module, "full") == []


def test_replacement_that_knows_less_keeps_what_was_known() -> None:
    module = parse(
        "graph(%x : f32[B, 4], %s : i64[2]) {\n%a = relu(%x)\n%y = exp(%a)\nreturn %y\n}"
    )

    def vague(node: Node, rw: Rewriter) -> bool:
        rw.replace(node, rw.builder(node).op(OPS["expand"], node.inputs[0], module.graph.inputs[1]))
        return True

    rewrite(module, RuleSet(LocalRule("vague", (relu,), vague)))
    assert str(module.graph.outputs[0].type) == "f32[B, 4]"


def test_in_place_update_reaches_users() -> None:
    module = parse(
        "graph(%x : f32[B, 4]) {\n%a = reduce_sum(%x) {axes = [0]}\n%y = exp(%a)\nreturn %y\n}"
    )

    def whole(node: Node, rw: Rewriter) -> bool:
        if node.attrs["axes"] == (0, 1):
            return False
        rw.update(node, attrs={"axes": (0, 1)})
        return True

    rewrite(module, RuleSet(LocalRule("whole", (OPS["reduce_sum"],), whole)))
    assert str(module.graph.outputs[0].type) == "f32[1, 1]"


def test_in_place_update_drops_what_only_an_old_operand_needed() -> None:
    module = parse("graph(%x : f32[B]) {\n%a = exp(%x)\n%y = add(%x, %a)\nreturn %y\n}")

    def twice(node: Node, rw: Rewriter) -> bool:
        if node.inputs[1] is node.inputs[0]:
            return False
        rw.update(node, {1: node.inputs[0]})
        return True

    stats = rewrite(module, RuleSet(LocalRule("twice", (OPS["add"],), twice)))
    assert stats.num_dropped == 1
    assert [node.op.name for node in module.graph] == ["add"]


def test_in_place_update_names_its_changes() -> None:
    module = parse("graph(%x : f32[B]) {\n%y = relu(%x)\nreturn %y\n}")

    def nothing(node: Node, rw: Rewriter) -> bool:
        rw.update(node)
        return True

    with pytest.raises(AssertionError, match="names what it changes"):
        rewrite(module, RuleSet(LocalRule("nothing", (relu,), nothing)))


def test_rejected_local_rule_is_explained_with_names() -> None:
    never = LocalRule(
        "never", (relu,), lambda node, rw: Reject("I do not want to", node.outputs[0])
    )
    module = parse("graph(%x : f32[B]) {\n%y = relu(%x)\nreturn %y\n}")
    stats = rewrite(module, RuleSet(never), explain="never")
    assert [str(miss) for miss in stats.near_misses] == [
        "never at relu `y`: 1 of 1 parts match, then I do not want to (`y`)"
    ]


def test_start_limits_where_the_work_begins() -> None:
    module = parse("graph(%x : f32[B]) {\n%a = neg(%x)\n%b = neg(%x)\nreturn %a, %b\n}")
    first = module.graph.first
    assert first is not None
    rewrite(module, RuleSet(neg_to_exp), start=[first])
    assert outputs(module) == "exp(x); neg(x)"


def test_graph_is_accepted_too() -> None:
    graph = Graph()
    x = graph.add_input("x", TensorType(DType.F32, (2,)))
    graph.add_output("y", Builder(graph).op(neg, x))
    assert rewrite(graph, RuleSet(neg_to_exp)).counts == {"neg-to-exp": 1}
