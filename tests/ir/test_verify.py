"""The verifier: every code has a graph that breaks its rule, and a sound module has no problem."""

from collections.abc import Callable

import numpy as np
import pytest

from regraft.ir.dims import Dim, Symbol
from regraft.ir.errors import VerifyError
from regraft.ir.graph import Graph, Node
from regraft.ir.module import Module, State, StateKind
from regraft.ir.ops import OPS
from regraft.ir.text import parse_module, print_module
from regraft.ir.types import DType, TensorType
from regraft.ir.verify import check, verify
from regraft.ir.weights import ArrayWeight

TEXT = """
symbol N
weight @w : f32[4, 3] = splat 0.5

graph(%x : f32[B, 4], %flag : bool[]) {
  %w = weight @w
  %m = matmul(%x, %w) : f32[B, 3]
  %r = relu(%m) : f32[B, 3]
  %c = clip(%r) {max = 1.0} : f32[B, 3]
  %i = if(%flag, %c) {num_captures = 1} body(%a : f32[B, 3]) {
    return %a as %then
  }
  body(%b : f32[B, 3]) {
    %n = neg(%b) : f32[B, 3]
    return %n as %else
  } : f32[B, 3]
  return %i as %out, %r as %hidden
}
"""


@pytest.fixture
def module() -> Module:
    return parse_module(TEXT)


def node_of(module: Module, op: str) -> Node:
    return next(node for node in module.graph.walk() if node.op.name == op)


def codes(module: Module, level: str = "structure") -> set[str]:
    before = print_module(module)
    found = {problem.code for problem in verify(module, level)}  # type: ignore[arg-type]
    assert print_module(module) == before
    return found


def test_sound_module_has_no_problem(module: Module) -> None:
    assert verify(module, "full") == []
    check(module, "full")


def _swap(m: Module) -> None:
    m.graph.move_before(node_of(m, "relu"), node_of(m, "matmul"))


def _use_of_outer_value(m: Module) -> None:
    neg = node_of(m, "neg")
    neg.set_operand(0, node_of(m, "matmul").output)


def _use_of_erased(m: Module) -> None:
    relu = node_of(m, "relu")
    fresh = m.graph.create(OPS["neg"], (m.graph.inputs[0],), before=relu)
    m.graph.erase(fresh)
    relu._inputs[0] = fresh.output


def _one_sided_use(m: Module) -> None:
    node_of(m, "relu")._inputs[0] = node_of(m, "weight").output


def _stale_use(m: Module) -> None:
    node_of(m, "relu").output._uses[node_of(m, "matmul"), 0] = None


def _stale_output_use(m: Module) -> None:
    del m.graph.outputs[0]._uses[m.graph, 0]


def _too_many_operands(m: Module) -> None:
    relu = node_of(m, "relu")
    relu.set_operands([*relu.inputs, m.graph.inputs[0]])


def _too_few_operands(m: Module) -> None:
    node_of(m, "matmul").set_operands([m.graph.inputs[0]])


def _lost_producer(m: Module) -> None:
    node_of(m, "relu").output.index = 3


def _missing_operand(m: Module) -> None:
    node_of(m, "matmul").set_operand(1, None)


def _both_given(m: Module) -> None:
    node = node_of(m, "clip")
    node.set_operand(2, m.graph.create(OPS["literal"], (), {"value": np.float32(1)}).output)
    m.graph.move_before(node.inputs[2].producer, node)  # type: ignore[union-attr, arg-type]


def _neither_given(m: Module) -> None:
    node = m.graph.create(OPS["cumsum"], (node_of(m, "relu").output,), {"axis": 0})
    node.attrs["axis"] = None


def _unknown_attr(m: Module) -> None:
    node_of(m, "relu").attrs["alpha"] = 1.0


def _lost_attr(m: Module) -> None:
    del node_of(m, "clip").attrs["max"]


def _wrong_kind(m: Module) -> None:
    node_of(m, "clip").attrs["max"] = np.float32(1)


def _lost_body(m: Module) -> None:
    node = node_of(m, "if")
    node.bodies = node.bodies[:1]


def _uncaptured(m: Module) -> None:
    node_of(m, "if").attrs["num_captures"] = 2


def _captured_otherwise(m: Module) -> None:
    node_of(m, "if").bodies[0].inputs[0].type = TensorType(DType.I64, (2,))


def _orphan_body(m: Module) -> None:
    node_of(m, "if").bodies[0].parent = None


def _foreign_output(m: Module) -> None:
    m.graph.set_operand(0, node_of(m, "neg").output)


def _equal_output_names(m: Module) -> None:
    m.graph.output_names[1] = "out"


def _lost_weight(m: Module) -> None:
    m.weights.remove("w")


def _other_weight(m: Module) -> None:
    m.weights.set("w", ArrayWeight(np.zeros((4, 5), np.float32)))


def _unknown_symbol(m: Module) -> None:
    node_of(m, "relu").output.type = TensorType(DType.F32, (Dim.of("Q"), 3))


def _other_facts(m: Module) -> None:
    dim = Dim.of(Symbol("N", lo=0))
    node_of(m, "relu").output.type = TensorType(DType.F32, (dim, 3))


def _equal_input_names(m: Module) -> None:
    m.graph.inputs[1].name = "x"


def _unnamed_input(m: Module) -> None:
    m.graph.inputs[1].name = None


def _lost_position(m: Module) -> None:
    m.graph.inputs.reverse()


def _broken_order(m: Module) -> None:
    node_of(m, "clip").order = 0


def _broken_link(m: Module) -> None:
    node_of(m, "clip").prev = None


def _wrong_count(m: Module) -> None:
    m.graph.num_nodes += 1


def _unknown_state(m: Module) -> None:
    m.states = (State("s", "past", "out", StateKind.RECURRENT),)


@pytest.mark.parametrize(
    ("code", "break_it"),
    [
        ("V001", _swap),
        ("V001", _use_of_outer_value),
        ("V001", _use_of_erased),
        ("V002", _one_sided_use),
        ("V002", _stale_use),
        ("V002", _stale_output_use),
        ("V003", _too_many_operands),
        ("V003", _too_few_operands),
        ("V003", _lost_producer),
        ("V004", _missing_operand),
        ("V005", _both_given),
        ("V005", _neither_given),
        ("V006", _unknown_attr),
        ("V006", _lost_attr),
        ("V006", _wrong_kind),
        ("V007", _lost_body),
        ("V007", _uncaptured),
        ("V007", _captured_otherwise),
        ("V007", _orphan_body),
        ("V008", _foreign_output),
        ("V008", _equal_output_names),
        ("V009", _lost_weight),
        ("V009", _other_weight),
        ("V010", _unknown_symbol),
        ("V010", _other_facts),
        ("V011", _equal_input_names),
        ("V011", _unnamed_input),
        ("V011", _lost_position),
        ("V012", _broken_order),
        ("V012", _broken_link),
        ("V012", _wrong_count),
        ("V015", _unknown_state),
    ],
)
def test_broken_rule_is_reported(
    module: Module, code: str, break_it: Callable[[Module], None]
) -> None:
    break_it(module)
    assert code in {problem.code for problem in verify(module)}


@pytest.mark.parametrize(
    ("shape", "agrees"),
    [(("B", 5), False), (("N", 3), False), ((3,), False), (("u", 3), True), (None, True)],
    ids=str,
)
def test_recorded_type_is_compared_with_inference(
    module: Module, shape: tuple[int | str, ...] | None, agrees: bool
) -> None:
    module.graph.scope.symbol("u", lo=0, defined=True)
    symbols = {name: Dim.of(symbol) for name, symbol in module.symbols.items()}
    sizes = None if shape is None else tuple(symbols[s] if isinstance(s, str) else s for s in shape)
    relu = node_of(module, "relu")
    relu.output.type = TensorType(DType.F32, sizes)
    assert [p.code for p in verify(module, "full", [relu])] == ([] if agrees else ["V013"])
    assert relu.output.shape == sizes


def test_sizes_that_an_assumption_makes_equal_agree(module: Module) -> None:
    relu = node_of(module, "relu")
    symbols = {name: Dim.of(symbol) for name, symbol in module.symbols.items()}
    relu.output.type = TensorType(DType.F32, (symbols["N"], 3))
    module.graph.scope.assume_equal(symbols["B"], symbols["N"], "a test")
    assert verify(module, "full", [relu]) == []


def test_recorded_content_is_compared_with_inference() -> None:
    graph = Graph()
    node = graph.create(OPS["literal"], (), {"value": np.array([1, 2])})
    graph.add_output("y", node.output)
    node.output.content = (1, 3)
    assert codes(Module(graph), "full") == {"V013"}


def test_operands_that_inference_refuses_are_reported(module: Module) -> None:
    module.graph.inputs[0].type = TensorType(DType.F32, (2, 5))
    assert codes(module) == set()
    problems = verify(module, "full")
    assert [p.code for p in problems if p.code == "V014"] == ["V014"]
    assert "matmul" in problems[0].where


def test_verify_makes_no_symbols_and_no_assumptions(module: Module) -> None:
    node_of(module, "relu").output.type = TensorType()
    symbols, assumptions = dict(module.symbols), module.assumptions
    verify(module, "full")
    assert (module.symbols, module.assumptions) == (symbols, assumptions)


def test_only_the_given_nodes_are_checked(module: Module) -> None:
    _unknown_attr(module)
    assert verify(module, nodes=[node_of(module, "matmul")]) == []
    assert [p.code for p in verify(module, nodes=[node_of(module, "relu")])] == ["V006"]
    erased = module.graph.create(OPS["neg"], (module.graph.inputs[0],))
    module.graph.erase(erased)
    assert verify(module, nodes=[erased]) == []


def test_check_lists_all_problems_at_once(module: Module) -> None:
    _unknown_attr(module)
    _equal_output_names(module)
    with pytest.raises(VerifyError) as caught:
        check(module)
    text = str(caught.value)
    assert text.startswith("the IR has 2 problems")
    assert "V008: two outputs are named `out`" in text
    assert "V006: unknown attribute `alpha`\n  at %r = relu(%m) : f32[B, 3]" in text
