"""Models with a meaning although something is odd about them: none may be refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.robustness.build import F32, I64, graph, info, linear, model, node, weight

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class OddModel:
    """A model that runs.

    Attributes:
        name: What is odd.
        build: Makes it.
        warns: Regular expression that one of our warnings matches; "" when none is due.
        inputs: Sample; default: `x: f32[3, 4]`.
        tidy: The same computation without the oddity, where ONNX Runtime itself is stricter.
    """

    name: str
    build: Callable[[], onnx.ModelProto]
    warns: str = ""
    inputs: Mapping[str, Array] = field(
        default_factory=lambda: {"x": np.random.default_rng(7).normal(size=(3, 4)).astype("f4")}
    )
    tidy: Callable[[], onnx.ModelProto] | None = None


def _edited(edit: Callable[[onnx.ModelProto], object]) -> Callable[[], onnx.ModelProto]:
    def make() -> onnx.ModelProto:
        made = linear()
        edit(made)
        return made

    return make


def _sized(*shape: int) -> dict[str, Array]:
    return {"x": np.random.default_rng(7).normal(size=shape).astype("f4")}


# --- annotations -----------------------------------------------------------------------------

_HIDDEN = [node("Relu", "x", "h"), node("Neg", "h", "y")]


def _declared(**fields: Any) -> Callable[[], onnx.ModelProto]:
    return lambda: model(graph(_HIDDEN, **fields))


ANNOTATIONS: tuple[OddModel, ...] = (
    OddModel("output declared of another size", _declared(outputs=[info("y", ["B", 5])]), "`y`"),
    OddModel("output declared of another rank", _declared(outputs=[info("y", ["B", 5, 7])]), "`y`"),
    OddModel("output declared without a shape", _declared(outputs=[info("y", None)])),
    OddModel("output without a type", _declared(outputs=[onnx.ValueInfoProto(name="y")])),
    OddModel(
        "inner value declared of another size",
        _declared(value_info=[info("h", [3, 9])]),
        "`h`",
    ),
    OddModel("inner value declared of another rank", _declared(value_info=[info("h", [9])]), "`h`"),
    OddModel("annotation of a value that is not there", _declared(value_info=[info("gone")])),
    OddModel(
        "annotation twice, differently",
        _declared(value_info=[info("h"), info("h", ["B", 9])]),
        "`h`",
    ),
    OddModel("inner value without annotation", _declared()),
    OddModel("input without a shape", _declared(inputs=[info("x", None)])),
    OddModel("input of size -1", _declared(inputs=[info("x", [-1, 4])])),
    OddModel("input with unnamed sizes", _declared(inputs=[info("x", [None, None])])),
    OddModel("output symbol that no input has", _declared(outputs=[info("y", ["other", 4])])),
    OddModel(
        "one symbol for both sizes",
        _declared(inputs=[info("x", ["N", "N"])], outputs=[info("y", ["N", "N"])]),
        inputs=_sized(4, 4),
    ),
)

# --- names -----------------------------------------------------------------------------------


def _with_symbol(symbol: str) -> Callable[[], onnx.ModelProto]:
    """Flattens and restores `x`, so that the symbol is computed with."""

    def make() -> onnx.ModelProto:
        nodes = [
            node("Shape", "x", "s"),
            node("Flatten", "x", "f", axis=0),
            node("Reshape", "f s", "y"),
        ]
        shape = [symbol, 4]
        return model(graph(nodes, inputs=[info("x", shape)], outputs=[info("y", shape)]))

    return make


def _duplicate_symbols() -> onnx.ModelProto:
    inputs = [info("x", ["a b", 4]), info("z", ["a_b", 4])]
    return model(graph([node("Concat", "x z", "y", axis=0)], inputs=inputs))


def _renamed(**names: str) -> Callable[[], onnx.ModelProto]:
    def make() -> onnx.ModelProto:
        nodes = [
            node("MatMul", "x w", "h"),
            node("Relu", "h", "y"),
        ]
        made = model(graph(nodes, initializers=[weight()]))
        for item in made.graph.node:
            item.input[:] = [names.get(n, n) for n in item.input]
            item.output[:] = [names.get(n, n) for n in item.output]
        for item in (*made.graph.input, *made.graph.output, *made.graph.initializer):
            item.name = names.get(item.name, item.name)
        return made

    return make


NAMES: tuple[OddModel, ...] = (
    OddModel(
        "nodes of one name",
        _edited(lambda m: [setattr(item, "name", "same") for item in m.graph.node]),
        tidy=linear,
    ),
    OddModel("graph without a name", _edited(lambda m: setattr(m.graph, "name", ""))),
    *(
        OddModel(f"symbol {symbol!r}", _with_symbol(symbol))
        for symbol in (
            "batch size",
            "2*x",
            "N - 1",
            "?",
            "unk__0",
            "1",
            "Бат",
            "a.b/c:d",
            "min(a, b)",
            "x",
            "0",
        )
    ),
    OddModel(
        "symbols that become one identifier",
        _duplicate_symbols,
        inputs={**_sized(3, 4), "z": np.ones((2, 4), np.float32)},
    ),
    OddModel("values with slashes and colons", _renamed(h="/a/b:0", w="m::w[0]", y="y:1")),
    OddModel("values with quotes and spaces", _renamed(h='a "b"', w="it's w", y="y")),
    OddModel("values with line breaks and backslashes", _renamed(h="a\nb", w="c\\d\t")),
    OddModel("values in other alphabets", _renamed(h="層", w="вес", y="出力")),
    OddModel("values named like text-form tokens", _renamed(h="%0", w="@w", y="->")),
    OddModel("a value named like the next free name", _renamed(h="const", w="const_1")),
)

# --- structure -------------------------------------------------------------------------------


def _unsorted() -> onnx.ModelProto:
    nodes = [node("Neg", "b", "y"), node("Relu", "a", "b"), node("Exp", "x", "a")]
    return model(graph(nodes))


def _around_a_body(nodes: list[onnx.NodeProto], then: list[onnx.NodeProto]) -> onnx.ModelProto:
    """`y = sum(x) > 0 ? -relu(exp(x)) : exp(x)`, the nodes in the given orders."""
    branch = node(
        "If",
        "c",
        "y",
        then_branch=graph(then, inputs=[], outputs=[info("t")]),
        else_branch=graph([node("Exp", "x", "e")], inputs=[], outputs=[info("e")]),
    )
    zero = helper.make_tensor("z", F32, [], [0.0])
    placed = [branch if item is _BRANCH else item for item in nodes]
    return model(graph(placed, initializers=[zero]))


_BRANCH = onnx.NodeProto()
_AROUND = [
    node("Exp", "x", "late"),
    node("ReduceSum", "x", "s", keepdims=0),
    node("Greater", "s z", "c"),
    _BRANCH,
]
_THEN = [node("Relu", "late", "a"), node("Neg", "a", "t")]


def _ir_3() -> onnx.ModelProto:
    made = graph(
        [node("MatMul", "x w", "y")],
        inputs=[info("x"), info("w", [4, 4])],
        initializers=[weight()],
    )
    return model(made, opset=8, ir_version=3)


def _default_input() -> onnx.ModelProto:
    made = graph(
        [node("MatMul", "x w", "y")],
        inputs=[info("x"), info("w", [4, 4])],
        initializers=[weight()],
    )
    return model(made)


def _sparse() -> onnx.ModelProto:
    values = helper.make_tensor("w", F32, [3], [1.0, 2.0, -3.0])
    indices = helper.make_tensor("i", I64, [3], [0, 6, 15])
    tensor = helper.make_sparse_tensor(values, indices, [4, 4])
    return model(graph([node("MatMul", "x w", "y")], sparse=[tensor]))


def _sparse_pairs() -> onnx.ModelProto:
    values = helper.make_tensor("w", F32, [2], [1.0, 2.0])
    indices = helper.make_tensor("i", I64, [2, 2], [0, 3, 2, 1])
    tensor = helper.make_sparse_tensor(values, indices, [4, 4])
    return model(graph([node("MatMul", "x w", "y")], sparse=[tensor]))


def _outputs(*names: str, **fields: Any) -> Callable[[], onnx.ModelProto]:
    def make() -> onnx.ModelProto:
        shapes = {"w": [4, 4]}
        outputs = [info(name, shapes.get(name, ["B", 4])) for name in names]
        nodes = [node("MatMul", "x w", "y"), node("Relu", "y", "z")]
        return model(graph(nodes, outputs=outputs, initializers=[weight()], **fields))

    return make


def _identity_outputs() -> onnx.ModelProto:
    nodes = [node("Relu", "x", "y"), node("Identity", "y", "z"), node("Identity", "x", "v")]
    return model(graph(nodes, outputs=[info("y"), info("z"), info("v")]))


def _empty_outputs() -> onnx.ModelProto:
    """The whole sequence of a GRU is not wanted, nor the mask of a dropout."""
    shapes = {"w": (1, 6, 4), "r": (1, 6, 2)}
    nodes = [
        node("Unsqueeze", "x axis", "seq"),
        node("GRU", "seq w r", "_ last", hidden_size=2),
        node("Dropout", "last", "y _"),
    ]
    made = graph(
        nodes,
        outputs=[info("y", [1, 1, 2])],
        initializers=[
            helper.make_tensor("axis", I64, [1], [1]),
            *(weight(name, shape) for name, shape in shapes.items()),
        ],
    )
    return model(made, opset=13)


def _zero_size() -> onnx.ModelProto:
    nodes = [node("Concat", "x e", "c", axis=0), node("Relu", "c", "y")]
    empty = helper.make_tensor("e", F32, [0, 4], [])
    return model(graph(nodes, initializers=[empty]))


def _two_functions(**fields: Any) -> onnx.ModelProto:
    """`f.Outer(x; k)` calls `f.Inner`, which adds a constant given by a referenced attribute."""
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]
    constant = helper.make_node("Constant", [], ["c"])
    reference = constant.attribute.add(name="value_float", ref_attr_name="k")
    reference.type = onnx.AttributeProto.FLOAT
    call = helper.make_node("Inner", ["a"], ["t"], domain="f")
    passed = call.attribute.add(name="k", ref_attr_name="k")
    passed.type = onnx.AttributeProto.FLOAT
    inner = helper.make_function(
        "f", "Inner", ["a"], ["b"], [constant, node("Add", "a c", "b")], imports, attributes=["k"]
    )
    outer = helper.make_function(
        "f",
        "Outer",
        ["a"],
        ["b"],
        [call, node("Relu", "t", "b")],
        imports,
        attribute_protos=[helper.make_attribute("k", 0.5)],
    )
    nodes = [
        node("Outer", "x", "h", domain="f", **fields),
        node("Outer", "h", "y", domain="f", k=-2.0),
    ]
    return model(graph(nodes), domains=[("f", 1)], functions=[outer, inner], ir_version=9)


def _overloads() -> onnx.ModelProto:
    imports = [helper.make_opsetid("", 17)]
    functions = []
    for overload, op in (("", "Neg"), ("soft", "Softplus")):
        made = helper.make_function("f", "Act", ["a"], ["b"], [node(op, "a", "b")], imports)
        made.overload = overload
        functions.append(made)
    calls = [node("Act", "x", "h", domain="f"), node("Act", "h", "y", domain="f")]
    calls[1].overload = "soft"
    return model(graph(calls), domains=[("f", 1)], functions=functions, ir_version=10)


def _function_with_body() -> onnx.ModelProto:
    imports = [helper.make_opsetid("", 17)]
    then = graph([node("Neg", "a", "t")], inputs=[], outputs=[info("t")])
    otherwise = graph([node("Relu", "a", "e")], inputs=[], outputs=[info("e")])
    branch = node("If", "c", "b", then_branch=then, else_branch=otherwise)
    function = helper.make_function("f", "Choose", ["c", "a"], ["b"], [branch], imports)
    nodes = [
        node("ReduceSum", "x", "s", keepdims=0),
        node("Cast", "s", "q", to=TensorProto.BOOL),
        node("Choose", "q x", "y", domain="f"),
    ]
    return model(graph(nodes), domains=[("f", 1)], functions=[function])


def _function_in_body() -> onnx.ModelProto:
    imports = [helper.make_opsetid("", 17)]
    function = helper.make_function("f", "Act", ["a"], ["b"], [node("Neg", "a", "b")], imports)
    then = graph([node("Act", "x", "t", domain="f")], inputs=[], outputs=[info("t")])
    otherwise = graph([node("Relu", "x", "e")], inputs=[], outputs=[info("e")])
    nodes = [
        node("ReduceSum", "x", "s", keepdims=0),
        node("Cast", "s", "c", to=TensorProto.BOOL),
        node("If", "c", "y", then_branch=then, else_branch=otherwise),
    ]
    return model(graph(nodes), domains=[("f", 1)], functions=[function])


def _shared_names_in_function() -> onnx.ModelProto:
    """The function's inner names are names of the graph too, and it is called twice."""
    imports = [helper.make_opsetid("", 17)]
    body = [node("Exp", "x", "h"), node("Neg", "h", "y")]
    function = helper.make_function("f", "Act", ["x"], ["y"], body, imports)
    nodes = [
        node("Act", "x", "h", domain="f"),
        node("Act", "h", "g", domain="f"),
        node("Add", "h g", "y"),
    ]
    return model(graph(nodes), domains=[("f", 1)], functions=[function])


def _optional_function_input() -> onnx.ModelProto:
    imports = [helper.make_opsetid("", 17)]
    body = [node("Clip", "a lo hi", "b")]
    function = helper.make_function("f", "Cut", ["a", "lo", "hi"], ["b"], body, imports)
    low = helper.make_tensor("low", F32, [], [-0.25])
    nodes = [node("Cut", "x low", "y", domain="f")]
    return model(graph(nodes, initializers=[low]), domains=[("f", 1)], functions=[function])


def _branches(then: onnx.GraphProto, otherwise: onnx.GraphProto, **fields: Any) -> onnx.ModelProto:
    nodes = [
        node("ReduceSum", "x", "s", keepdims=0),
        node("Cast", "s", "c", to=TensorProto.BOOL),
        node("If", "c", "y", then_branch=then, else_branch=otherwise),
    ]
    return model(graph(nodes, **fields))


def _same_names_in_branches() -> onnx.ModelProto:
    return _branches(
        graph([node("Relu", "x", "t")], inputs=[], outputs=[info("t")]),
        graph([node("Neg", "x", "t")], inputs=[], outputs=[info("t")]),
    )


def _branch_result_named_like_node_result() -> onnx.ModelProto:
    return _branches(
        graph([node("Relu", "x", "h"), node("Neg", "h", "y")], inputs=[], outputs=[info("y")]),
        graph([node("Neg", "x", "e")], inputs=[], outputs=[info("e")]),
    )


def _branch_of_outer_values(*, copied: bool) -> onnx.ModelProto:
    """Both branches return values of the outer graph, with or without a node of their own."""
    copies = [[node("Identity", name, name + "2")] if copied else [] for name in ("x", "w")]
    names = ["x2", "w2"] if copied else ["x", "w"]
    bodies = [
        graph(nodes, inputs=[], outputs=[info(name, [3, 4])])
        for nodes, name in zip(copies, names, strict=True)
    ]
    return _branches(*bodies, initializers=[weight("w", (3, 4))])


def _branch_is_constant() -> onnx.ModelProto:
    then = graph([], inputs=[], outputs=[info("k", [3, 4])], initializers=[weight("k", (3, 4))])
    otherwise = graph([node("Neg", "x", "e")], inputs=[], outputs=[info("e")])
    return _branches(then, otherwise)


def _loop(acc: str = "acc", nodes: Any = None) -> onnx.ModelProto:
    body = graph(
        nodes or [node("Add", "acc x", "acc2"), node("Identity", "cc", "c2")],
        inputs=[info("it", [], I64), info("cc", [], TensorProto.BOOL), info("acc")],
        outputs=[info("c2", [], TensorProto.BOOL), info("acc2")],
    )
    count = helper.make_tensor("n", I64, [], [3])
    return model(
        graph(
            [node("Neg", "x", acc), node("Loop", f"n _ {acc}", "y", body=body)],
            initializers=[count],
        )
    )


def _unused() -> onnx.ModelProto:
    nodes = [node("Exp", "x", "dead"), node("MatMul", "x w", "y"), node("Add", "u dead", "dead2")]
    unused = helper.make_tensor("s", TensorProto.STRING, [1], [b"text"])
    return model(graph(nodes, initializers=[weight(), weight("u", (4,)), weight("v"), unused]))


def _opaque() -> onnx.ModelProto:
    nodes = [
        node("BiasGelu", "x b", "h", domain="com.microsoft"),
        node("Inverse", "m", "i", domain="com.microsoft"),
        node("MatMul", "h i", "y"),
    ]
    matrix = helper.make_tensor("m", F32, [4, 4], (np.eye(4) * 2 + 1).ravel())
    made = graph(nodes, initializers=[weight("b", (4,)), matrix])
    return model(made, domains=[("com.microsoft", 1)])


def _runtime_operator() -> onnx.ModelProto:
    nodes = [node("SimplifiedLayerNormalization", "x w", "y", axis=-1, epsilon=1e-5)]
    return model(graph(nodes, initializers=[weight("w", (4,))]))


def _strings() -> onnx.ModelProto:
    nodes = [node("Gather", "table i", "y", axis=0)]
    table = helper.make_tensor("table", TensorProto.STRING, [3], [b"a", "層".encode(), b""])
    made = graph(
        nodes,
        inputs=[info("i", ["N"], I64)],
        outputs=[info("y", ["N"], TensorProto.STRING)],
        initializers=[table],
    )
    return model(made)


def _special(*values: float) -> Callable[[], onnx.ModelProto]:
    def make() -> onnx.ModelProto:
        array = np.array([*values, 0.5, -0.5, 1.0, 2.0][:4], np.float32)
        return model(
            graph([node("Max", "x w", "y")], initializers=[numpy_helper.from_array(array, "w")])
        )

    return make


def _typed_data() -> onnx.ModelProto:
    """Constants in the typed fields of every width, one of them wrapping."""
    tensors = [
        helper.make_tensor("f16", TensorProto.FLOAT16, [1], [0.5]),
        TensorProto(name="u8", data_type=TensorProto.UINT8, dims=[1], int32_data=[7]),
        TensorProto(name="i8", data_type=TensorProto.INT8, dims=[1], int32_data=[-7]),
        TensorProto(name="u32", data_type=TensorProto.UINT32, dims=[1], uint64_data=[9]),
        TensorProto(name="b", data_type=TensorProto.BOOL, dims=[1], int32_data=[1]),
        TensorProto(name="f64", data_type=TensorProto.DOUBLE, dims=[1], double_data=[1.5]),
    ]
    nodes, last = [], "x"
    for i, tensor in enumerate(tensors):
        nodes += [
            node("Cast", tensor.name, f"c{i}", to=F32),
            node("Add", f"{last} c{i}", f"a{i}"),
        ]
        last = f"a{i}"
    nodes.append(node("Identity", last, "y"))
    return model(graph(nodes, initializers=tensors))


STRUCTURE: tuple[OddModel, ...] = (
    OddModel("unsorted nodes", _unsorted, "not sorted"),
    OddModel(
        "unsorted nodes in a body and around it",
        lambda: _around_a_body(_AROUND[::-1], _THEN[::-1]),
        "not sorted",
        tidy=lambda: _around_a_body(_AROUND, _THEN),
    ),
    OddModel("initializers as inputs, IR version 3", _ir_3),
    OddModel("input with a default value", _default_input, "default value"),
    OddModel("sparse initializer, linear indices", _sparse),
    OddModel("sparse initializer, one index per axis", _sparse_pairs),
    OddModel("output is an input", _outputs("y", "x")),
    OddModel("output is an initializer", _outputs("y", "w")),
    OddModel("only output is an input", _outputs("x")),
    OddModel("only output is an initializer", _outputs("w")),
    OddModel("output that another node reads", _outputs("z", "y")),
    OddModel("one value as two outputs", _outputs("y", "y")),
    OddModel("an input as two outputs", _outputs("x", "x", "z")),
    OddModel("outputs that copy outputs and inputs", _identity_outputs),
    OddModel("absent results in the middle", _empty_outputs),
    OddModel("constant of size 0", _zero_size),
    OddModel(
        "norm with an attribute that it does not have",
        lambda: model(
            graph(
                [node("LayerNormalization", "x s", "y", epsilom=1.0)],
                initializers=[weight("s", shape=[4])],
            )
        ),
    ),
    OddModel(
        "constant that reads what is defined nowhere",
        lambda: model(
            graph([node("Constant", "gone", "c", value=weight("c")), node("MatMul", "x c", "y")])
        ),
        tidy=lambda: model(
            graph([node("Constant", "", "c", value=weight("c")), node("MatMul", "x c", "y")])
        ),
    ),
    OddModel("batch of size 0", linear, inputs=_sized(0, 4)),
    OddModel("functions within functions, attributes by reference", _two_functions),
    OddModel("function attribute given at the call", lambda: _two_functions(k=3.0)),
    OddModel("functions of one name, two overloads", _overloads),
    OddModel("function that holds a body", _function_with_body),
    OddModel("function called in a body", _function_in_body),
    OddModel("function whose inner names are taken", _shared_names_in_function),
    OddModel("function with an absent operand", _optional_function_input),
    OddModel(
        "opset imports of domains that nothing uses",
        _edited(lambda m: m.opset_import.extend([helper.make_opsetid("ai.onnx.ml", 3)])),
    ),
    OddModel(
        "ai.onnx spelled out",
        _edited(
            lambda m: (
                setattr(m.opset_import[0], "domain", "ai.onnx"),
                setattr(m.graph.node[0], "domain", "ai.onnx"),
            )
        ),
    ),
    OddModel(
        "domain imported twice, the last counts",
        _edited(lambda m: m.opset_import.insert(0, helper.make_opsetid("", 7))),
    ),
    OddModel(
        "initializers of one name, the last counts",
        _edited(lambda m: m.graph.initializer.append(weight(seed=3))),
        "the last of several",
    ),
    OddModel(
        "initializer without a name",
        _edited(lambda m: m.graph.initializer.append(weight(""))),
        "without a name",
    ),
    OddModel(
        "private attribute",
        _edited(lambda m: m.graph.node[0].attribute.append(helper.make_attribute("__note", 1))),
    ),
    OddModel("both branches use one name", _same_names_in_branches),
    OddModel("branch result named like the node's", _branch_result_named_like_node_result),
    OddModel(
        "branches that return outer values",
        lambda: _branch_of_outer_values(copied=False),
        tidy=lambda: _branch_of_outer_values(copied=True),
    ),
    OddModel("branch that returns a constant", _branch_is_constant),
    OddModel("loop input with a name taken outside", _loop),
    OddModel("loop whose body names are free outside", lambda: _loop("start")),
    OddModel("nodes and initializers that nothing uses", _unused),
    OddModel("operators of other domains", _opaque),
    OddModel("operator of the runtime in the standard domain", _runtime_operator),
    OddModel(
        "strings in other alphabets",
        _strings,
        inputs={"i": np.array([2, 0, 1, 2], np.int64)},
    ),
    OddModel("infinite weights", _special(np.inf, -np.inf)),
    OddModel("NaN weights", _special(np.nan), "`w` contains NaN"),
    OddModel("constants in typed fields", _typed_data),
)

ODD_MODELS: tuple[OddModel, ...] = (*ANNOTATIONS, *NAMES, *STRUCTURE)
