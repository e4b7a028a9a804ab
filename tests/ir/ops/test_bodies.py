from regraft.frontends.onnx import load_onnx
from regraft.ir.dims import Dim, Symbol
from regraft.ir.graph import Scope
from regraft.ir.ops.bodies import accepts, join, outside, widen
from regraft.ir.types import DType, OptionalType, SequenceType, TensorType
from tests.frontends.onnx.ops.test_control import GROWING, IF, model

SCOPE = Scope()
N = Dim.of(SCOPE.symbol("N"))
OWN = SCOPE.fresh()
NONE: frozenset[Symbol] = frozenset()


def f32(*shape):
    return TensorType(DType.F32, shape)


def test_join_keeps_what_both_types_say():
    fresh = SCOPE.fresh()
    assert join(f32(N, 3), f32(N, 3), None) == f32(N, 3)
    assert join(f32(N, 3), f32(N, 4), lambda axis: fresh) == f32(N, fresh)
    assert join(f32(N), f32(N, 3), lambda axis: fresh) == TensorType(DType.F32, None)
    assert join(f32(N), TensorType(DType.I64, (N,)), None) == TensorType(None, (N,))


def test_elements_of_a_sequence_share_no_symbol_for_sizes_that_differ():
    fresh = SCOPE.fresh()
    joined = join(SequenceType(f32(2)), SequenceType(f32(N)), lambda axis: fresh)
    assert joined == SequenceType(TensorType(DType.F32, None))


def test_an_optional_accepts_its_element():
    optional = OptionalType(f32(N))
    assert join(optional, f32(N), None) == optional
    assert accepts(optional, f32(N), NONE)
    assert not accepts(f32(N), optional, NONE)


def test_an_own_symbol_accepts_any_size_but_an_outer_one_does_not():
    symbol = OWN.as_symbol()
    assert accepts(f32(OWN), f32(7), NONE)
    assert not accepts(f32(OWN), f32(7), frozenset({symbol}))
    assert not accepts(f32(N), f32(7), NONE)
    assert not accepts(f32(OWN), f32(7, 7), NONE)
    assert accepts(TensorType(DType.F32, None), f32(7, 7), NONE)


def test_sizes_that_only_the_body_knows_do_not_escape():
    fresh = SCOPE.fresh()
    assert outside(f32(OWN * 2, N), NONE, lambda axis: fresh) == f32(fresh, N)
    assert outside(f32(OWN, N), frozenset({OWN.as_symbol()}), None) == f32(OWN, N)
    assert outside(SequenceType(f32(OWN)), NONE, None) == SequenceType(TensorType(DType.F32, None))


def test_widening_ends_at_unknown_rank():
    types = [f32(1, 4)]
    steps = 0
    while (wider := widen(types, [f32(*types[0].shape, 1)], NONE, SCOPE.fresh)) != types:
        types, steps = wider, steps + 1
        if types[0].shape is None:
            break
    assert types == [TensorType(DType.F32, None)]
    assert steps == 1


def test_if_is_inferred_anew_when_a_captured_type_changes():
    module = load_onnx(model(IF))
    graph = module.graph
    node = next(node for node in graph if node.op.name == "if")
    graph.inputs[1].type = f32(5, 4)
    node.infer()
    assert node.output.type == f32(5, 4)
    assert all(body.inputs[0].type == f32(5, 4) for body in node.bodies)


def test_loop_is_inferred_anew_when_an_initial_type_changes():
    module = load_onnx(model(GROWING))
    node = next(node for node in module.graph if node.op.name == "loop")
    before = [value.type for value in node.outputs]
    node.infer()
    assert [value.type for value in node.outputs] == before, "inference is repeatable"
    module.graph.inputs[1].type = f32(1, 8)
    node.infer()
    assert [value.type.shape[1] for value in node.outputs] == [8, 8]
