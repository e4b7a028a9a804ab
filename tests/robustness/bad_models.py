"""Files that are no usable ONNX model, each made in a folder, and what the error has to say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from tests.robustness.build import F32, I64, graph, info, linear, model, node, weight

Build = Callable[[Path], Path]


@dataclass(frozen=True)
class BadModel:
    """A file that has to be refused.

    Attributes:
        name: What is wrong with it.
        build: Writes the file, and what belongs to it, into an empty folder; returns its path.
        says: Regular expression that the error message matches.
    """

    name: str
    build: Build
    says: str


def _bytes(make: Callable[[bytes], bytes], name: str = "model.onnx") -> Build:
    def build(folder: Path) -> Path:
        path = folder / name
        path.write_bytes(make(linear().SerializeToString()))
        return path

    return build


def _proto(make: Callable[[], onnx.ModelProto]) -> Build:
    def build(folder: Path) -> Path:
        path = folder / "model.onnx"
        path.write_bytes(make().SerializeToString())
        return path

    return build


def _edited(edit: Callable[[onnx.ModelProto], object]) -> Build:
    def make() -> onnx.ModelProto:
        made = linear()
        edit(made)
        return made

    return _proto(make)


def _nodes(*nodes: onnx.NodeProto, initializers: Sequence[onnx.TensorProto] = ()) -> Build:
    return _proto(lambda: model(graph(nodes, initializers=initializers)))


def _tensor(**fields: object) -> Build:
    """`y = x + w`, where the tensor `w` has exactly these fields."""
    tensor = TensorProto(name="w", **fields)
    return _nodes(node("Add", "x w", "y"), initializers=[tensor])


# --- external data ---------------------------------------------------------------------------


def external(location: str, *, offset: int | str = 0, length: int | str = 64) -> onnx.ModelProto:
    """Returns `y = x @ w` with `w: f32[4, 4]` in a file of the given name."""
    tensor = TensorProto(name="w", data_type=F32, dims=[4, 4], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
    return model(graph([node("MatMul", "x w", "y")], initializers=[tensor]))


def _external(location: str, size: int | None = None, **entries: int | str) -> Build:
    def build(folder: Path) -> Path:
        if size is not None:
            (folder / location).write_bytes(bytes(size))
        return _proto(lambda: external(location, **entries))(folder)

    return build


def _escaping(location: Callable[[Path], str]) -> Build:
    """The file exists, with the right size, beside the model's folder."""

    def build(folder: Path) -> Path:
        (folder / "secret.bin").write_bytes(bytes(64))
        inner = folder / "inner"
        inner.mkdir()
        return _proto(lambda: external(location(folder)))(inner)

    return build


def _linked_out(folder: Path) -> Path:
    (folder / "secret.bin").write_bytes(bytes(64))
    inner = folder / "inner"
    inner.mkdir()
    (inner / "w.bin").symlink_to(folder / "secret.bin")
    return _proto(lambda: external("w.bin"))(inner)


def _folder_linked_out(folder: Path) -> Path:
    (folder / "data").mkdir()
    (folder / "data" / "w.bin").write_bytes(bytes(64))
    inner = folder / "inner"
    inner.mkdir()
    (inner / "data").symlink_to(folder / "data")
    return _proto(lambda: external("data/w.bin"))(inner)


def _link_loop(folder: Path) -> Path:
    (folder / "w.bin").symlink_to(folder / "w.bin")
    return _proto(lambda: external("w.bin"))(folder)


def _data_is_folder(folder: Path) -> Path:
    (folder / "w.bin").mkdir()
    return _proto(lambda: external("w.bin"))(folder)


def _data_is_device(folder: Path) -> Path:
    (folder / "w.bin").symlink_to("/dev/zero")
    return _proto(lambda: external("w.bin"))(folder)


def _data_is_pipe(folder: Path) -> Path:
    import os

    os.mkfifo(folder / "w.bin")
    return _proto(lambda: external("w.bin"))(folder)


EXTERNAL: tuple[BadModel, ...] = (
    BadModel("external data missing", _external("w.bin"), r"`w\.bin` is missing"),
    BadModel("external data in ../", _escaping(lambda _: "../secret.bin"), "outside the model"),
    BadModel(
        "external data in a/../../", _escaping(lambda _: "a/../../secret.bin"), "outside the model"
    ),
    BadModel(
        "external data at an absolute path",
        _escaping(lambda folder: str(folder / "secret.bin")),
        "outside the model",
    ),
    BadModel("external data on a drive", _external("C:\\w.bin"), "outside the model"),
    BadModel("external data relative to a drive", _external("C:w.bin"), "outside the model"),
    BadModel("external data on a share", _external("\\\\host\\a\\w.bin"), "outside the model"),
    BadModel("external data in ..\\", _external("..\\w.bin"), "outside the model"),
    BadModel("external data with a NUL in its name", _external("w\0.bin"), "missing"),
    BadModel("external data with a very long name", _external("w" * 5000), "missing"),
    BadModel("external data without a location", _external(""), "without a location"),
    BadModel("external data linked out of the folder", _linked_out, "link out of"),
    BadModel("external data in a folder linked out", _folder_linked_out, "link out of"),
    BadModel("external data is a link to itself", _link_loop, "missing"),
    BadModel("external data is a folder", _data_is_folder, "no regular file"),
    BadModel("external data is a device", _data_is_device, "link out of|no regular file"),
    BadModel("external data is a pipe", _data_is_pipe, "no regular file"),
    BadModel("external length too small", _external("w.bin", 64, length=60), "60 bytes"),
    BadModel("external length too large", _external("w.bin", 128, length=128), "128 bytes"),
    BadModel("external file too short", _external("w.bin", 63), "the file has 63"),
    BadModel("external offset past the end", _external("w.bin", 64, offset=4), "the file has 64"),
    BadModel("external offset negative", _external("w.bin", 64, offset=-4), "offset|the file has"),
    BadModel("external offset huge", _external("w.bin", 64, offset=1 << 80), "the file has 64"),
    BadModel("external offset no number", _external("w.bin", 64, offset="4k"), "no number"),
    BadModel("external length no number", _external("w.bin", 64, length="many"), "no number"),
)

# --- bytes and sizes that lie ----------------------------------------------------------------

_HUGE = 1 << 40

SIZES: tuple[BadModel, ...] = (
    BadModel(
        "raw data too short",
        _tensor(data_type=F32, dims=[4], raw_data=bytes(15)),
        "15 bytes are stored",
    ),
    BadModel(
        "raw data too long",
        _tensor(data_type=F32, dims=[4], raw_data=bytes(17)),
        "17 bytes are stored",
    ),
    BadModel(
        "raw data absent for a shape", _tensor(data_type=F32, dims=[4]), "0 entries are stored"
    ),
    BadModel(
        "typed data too short",
        _tensor(data_type=F32, dims=[4], float_data=[1.0, 2.0]),
        "2 entries are stored",
    ),
    BadModel(
        "typed data too long",
        _tensor(data_type=F32, dims=[1], float_data=[1.0, 2.0]),
        "2 entries are stored",
    ),
    BadModel(
        "typed data in the field of another type",
        _tensor(data_type=F32, dims=[2], int32_data=[1, 2]),
        "0 entries are stored",
    ),
    BadModel(
        "packed 4-bit data too short",
        _tensor(data_type=TensorProto.INT4, dims=[5], int32_data=[1, 2]),
        "2 entries are stored",
    ),
    BadModel(
        "huge declared size, no data",
        _tensor(data_type=F32, dims=[_HUGE], raw_data=bytes(4)),
        "4 bytes are stored",
    ),
    BadModel(
        "declared sizes whose product overflows",
        _tensor(data_type=F32, dims=[1 << 32, 1 << 32], raw_data=b""),
        "impossible size",
    ),
    BadModel(
        "negative size", _tensor(data_type=F32, dims=[-4], raw_data=bytes(16)), "negative size"
    ),
    BadModel(
        "two negative sizes",
        _tensor(data_type=F32, dims=[-2, -2], raw_data=bytes(16)),
        "negative size",
    ),
    BadModel(
        "unknown element type", _tensor(data_type=99, dims=[4], raw_data=bytes(16)), "element type"
    ),
    BadModel("undefined element type", _tensor(dims=[4], raw_data=bytes(16)), "element type"),
    BadModel(
        "huge sparse tensor",
        _proto(
            lambda: model(
                graph(
                    [node("Identity", "x", "y")],
                    sparse=[
                        helper.make_sparse_tensor(
                            helper.make_tensor("s", F32, [1], [1.0]),
                            helper.make_tensor("i", I64, [1], [0]),
                            [_HUGE],
                        )
                    ],
                )
            )
        ),
        "not allowed",
    ),
    BadModel(
        "sparse index out of range",
        _proto(
            lambda: model(
                graph(
                    [node("Add", "x s", "y")],
                    sparse=[
                        helper.make_sparse_tensor(
                            helper.make_tensor("s", F32, [1], [1.0]),
                            helper.make_tensor("i", I64, [1], [9]),
                            [4],
                        )
                    ],
                )
            )
        ),
        "out of range",
    ),
    BadModel(
        "sparse counts differ",
        _proto(
            lambda: model(
                graph(
                    [node("Add", "x s", "y")],
                    sparse=[
                        helper.make_sparse_tensor(
                            helper.make_tensor("s", F32, [2], [1.0, 2.0]),
                            helper.make_tensor("i", I64, [1], [0]),
                            [4],
                        )
                    ],
                )
            )
        ),
        "sparse",
    ),
    BadModel(
        "Constant whose value lies outside",
        _nodes(
            node(
                "Constant",
                "",
                "c",
                value=TensorProto(
                    data_type=F32,
                    dims=[_HUGE],
                    data_location=TensorProto.EXTERNAL,
                    external_data=[onnx.StringStringEntryProto(key="location", value="/dev/zero")],
                ),
            ),
            node("Add", "x c", "y"),
        ),
        "external data",
    ),
)

# --- structure -------------------------------------------------------------------------------


def _call(domain: str, name: str, inputs: str, outputs: str) -> onnx.NodeProto:
    return node(name, inputs, outputs, domain=domain)


def _recursive() -> onnx.ModelProto:
    body = [_call("f", "A", "a", "b")]
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]
    function = helper.make_function("f", "A", ["a"], ["b"], body, imports)
    made = graph([_call("f", "A", "x", "y")])
    return model(made, domains=[("f", 1)], functions=[function])


def _exploding() -> onnx.ModelProto:
    """Function i calls function i + 1 twice: 2^40 nodes from 40 functions, no recursion."""
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]
    functions = [
        helper.make_function(
            "f", f"A{i}", ["a"], ["c"],
            [_call("f", f"A{i + 1}", "a", "b"), _call("f", f"A{i + 1}", "b", "c")], imports,
        )
        for i in range(40)
    ]  # fmt: skip
    leaf = helper.make_function("f", "A40", ["a"], ["b"], [node("Neg", "a", "b")], imports)
    made = graph([_call("f", "A0", "x", "y")])
    return model(made, domains=[("f", 1)], functions=[*functions, leaf])


def _mutual() -> onnx.ModelProto:
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]
    functions = [
        helper.make_function("f", "A", ["a"], ["b"], [_call("f", "B", "a", "b")], imports),
        helper.make_function("f", "B", ["a"], ["b"], [_call("f", "A", "a", "b")], imports),
    ]
    made = graph([_call("f", "A", "x", "y")])
    return model(made, domains=[("f", 1)], functions=functions)


STRUCTURE: tuple[BadModel, ...] = (
    BadModel(
        "value defined by two nodes",
        _nodes(node("Relu", "x", "y"), node("Neg", "x", "y")),
        "`y` is defined twice",
    ),
    BadModel(
        "constant of a negative size",
        _nodes(
            node("ConstantOfShape", "n", "c"),
            node("Add", "x c", "y"),
            initializers=[helper.make_tensor("n", I64, [2], [-3, 4])],
        ),
        "size is negative",
    ),
    BadModel(
        "constant of no value",
        _nodes(
            node("ConstantOfShape", "n", "c", value=weight(shape=[1, 0])),
            node("Add", "x c", "y"),
            initializers=[helper.make_tensor("n", I64, [2], [3, 4])],
        ),
        "`value` has 0 elements",
    ),
    BadModel(
        "value defined twice by one node",
        _nodes(node("Split", "x", "y y", axis=1)),
        "`y` is defined twice",
    ),
    BadModel(
        "node result named like an input",
        _nodes(node("Relu", "x", "h"), node("Neg", "h", "x"), node("Abs", "h", "y")),
        "cycle|`x` is defined twice",
    ),
    BadModel(
        "node result named like an initializer",
        _nodes(node("Relu", "x", "w"), node("Neg", "w", "y"), initializers=[weight()]),
        "`w` is defined twice",
    ),
    BadModel(
        "input declared twice",
        _edited(lambda made: made.graph.input.append(info("x"))),
        "`x` is declared twice",
    ),
    BadModel(
        "output without a name",
        _edited(lambda made: made.graph.output.append(info(""))),
        "output|defined nowhere",
    ),
    BadModel(
        "cycle of two nodes",
        _nodes(node("Add", "x b", "a"), node("Neg", "a", "b"), node("Relu", "b", "y")),
        "cycle",
    ),
    BadModel(
        "node that reads its own result", _nodes(node("Add", "x y", "y")), "reads its own result"
    ),
    BadModel(
        "body that reads the result of its node",
        _nodes(
            node("ReduceSum", "x", "s", keepdims=0),
            node("Cast", "s", "c", to=TensorProto.BOOL),
            node(
                "If",
                "c",
                "y",
                then_branch=graph([node("Relu", "y", "t")], inputs=[], outputs=[info("t")]),
                else_branch=graph([node("Neg", "x", "e")], inputs=[], outputs=[info("e")]),
            ),
        ),
        "reads its own result",
    ),
    BadModel(
        "operand defined nowhere", _nodes(node("Add", "x nowhere", "y")), "`nowhere`, which is def"
    ),
    BadModel(
        "output defined nowhere", _nodes(node("Relu", "x", "z")), "output `y` is defined nowhere"
    ),
    BadModel("function that calls itself", _proto(_recursive), "calls itself"),
    BadModel("functions that call each other", _proto(_mutual), "calls itself"),
    BadModel("functions that expand without end", _proto(_exploding), "expand"),
    BadModel("no graph", _edited(lambda made: made.ClearField("graph")), "no graph"),
    BadModel("no opset", _edited(lambda made: made.ClearField("opset_import")), "no opset"),
    BadModel(
        "opset 0",
        _edited(lambda made: setattr(made.opset_import[0], "version", 0)),
        "opset 0",
    ),
    BadModel(
        "negative opset",
        _edited(lambda made: setattr(made.opset_import[0], "version", -3)),
        "opset -3",
    ),
    BadModel(
        "opset of the future",
        _edited(lambda made: setattr(made.opset_import[0], "version", 999)),
        "opset 999",
    ),
    BadModel("operator unknown", _nodes(node("Rellu", "x", "y")), "unknown operator `Rellu`"),
    BadModel("operator without a name", _nodes(node("", "x", "y")), "unknown operator ``"),
    BadModel(
        "attribute unknown",
        _nodes(node("Softmax", "x", "y", axes=1)),
        "unknown attribute `axes`",
    ),
    BadModel(
        "result of a body with a name taken outside",
        _nodes(
            node("Exp", "x", "h"),
            node("ReduceSum", "x", "s", keepdims=0),
            node("Cast", "s", "c", to=TensorProto.BOOL),
            node(
                "If",
                "c",
                "y",
                then_branch=graph(
                    [node("Relu", "h", "a"), node("Neg", "a", "h")], inputs=[], outputs=[info("h")]
                ),
                else_branch=graph([node("Neg", "x", "e")], inputs=[], outputs=[info("e")]),
            ),
        ),
        "cycle",
    ),
    BadModel("operand missing", _nodes(node("Add", "x", "y")), "Add"),
    BadModel("operands too many", _nodes(node("Relu", "x x x", "y")), "Relu"),
    BadModel("results too many", _nodes(node("Relu", "x", "y z")), "results"),
    BadModel("attribute missing", _nodes(node("Cast", "x", "y")), "`to`"),
    BadModel("attribute of another type", _nodes(node("Concat", "x x", "y", axis="one")), "axis"),
    BadModel("attribute out of range", _nodes(node("Concat", "x x", "y", axis=7)), "axis"),
    BadModel(
        "shapes that do not fit",
        _nodes(node("MatMul", "x w", "y"), initializers=[weight(shape=(5, 4))]),
        "MatMul",
    ),
    BadModel(
        "element types that do not fit",
        _nodes(
            node("Add", "x w", "y"),
            initializers=[helper.make_tensor("w", I64, [4], [1, 2, 3, 4])],
        ),
        "Add",
    ),
    BadModel(
        "If without its branch",
        _nodes(
            node("ReduceSum", "x", "s", keepdims=0),
            node("Cast", "s", "c", to=TensorProto.BOOL),
            node(
                "If",
                "c",
                "y",
                then_branch=graph([node("Relu", "x", "t")], inputs=[], outputs=[info("t")]),
            ),
        ),
        "else_branch",
    ),
)

# --- files -----------------------------------------------------------------------------------


def _is_folder(folder: Path) -> Path:
    (folder / "model.onnx").mkdir()
    return folder / "model.onnx"


def _absent(folder: Path) -> Path:
    return folder / "model.onnx"


def _no_access(folder: Path) -> Path:
    path = folder / "model.onnx"
    path.symlink_to(path)
    return path


FILES: tuple[BadModel, ...] = (
    BadModel("file missing", _absent, "does not exist"),
    BadModel("link to itself", _no_access, "cannot be read|does not exist"),
    BadModel("folder named like a file", _is_folder, "folder"),
    BadModel("empty file", _bytes(lambda data: b""), "is empty"),
    BadModel("text file", _bytes(lambda data: b"import onnx\nprint(1)\n" * 20), "not an ONNX"),
    BadModel("image file", _bytes(lambda data: b"\x89PNG\r\n\x1a\n" + bytes(999)), "not an ONNX"),
    BadModel("zeros", _bytes(lambda data: bytes(4096)), "not an ONNX"),
    BadModel("zip archive", _bytes(lambda data: b"PK\x03\x04" + bytes(200)), "not an ONNX"),
    BadModel(
        "bare tensor", _bytes(lambda data: weight().SerializeToString()), "not an ONNX|no graph"
    ),
    BadModel("truncated by a byte", _bytes(lambda data: data[:-1]), "truncated|no opset"),
    BadModel("truncated by half", _bytes(lambda data: data[: len(data) // 2]), "truncated"),
    BadModel(
        "length field that lies",
        _bytes(lambda data: data.replace(b":", b"\x3a\xff", 1)),
        "not an ONNX|no graph|truncated|`",
    ),
)

BAD_MODELS: tuple[BadModel, ...] = (*FILES, *EXTERNAL, *SIZES, *STRUCTURE)
