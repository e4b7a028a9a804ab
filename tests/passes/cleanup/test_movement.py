"""Chains of reshapes, transposes, casts, slices, concats and broadcasts, and sinking."""

import pytest

from regraft.passes.cleanup import Canonicalize
from regraft.passes.protocol import Context
from tests.passes.cleanup.rewriting import canonical, outputs, parse

X = "%x : f32[B, S, 4]"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("%y = identity(%x)", "x"),
        ("%a = reshape(%x) {shape = [B*S, 4]}\n%y = reshape(%a) {shape = [B, S, 4]}", "x"),
        ("%a = reshape(%x) {shape = [B*S, 4]}\n%y = reshape(%a) {shape = [B, 4*S]}",
         "reshape(x, shape=[B,4*S])"),
        ("%y = reshape(%x) {shape = [B, -1]}", "reshape(x, shape=[B,4*S])"),
        ("%y = unsqueeze(%x) {axes = [1]}", "reshape(x, shape=[B,1,S,4])"),
        ("%a = unsqueeze(%x) {axes = [1]}\n%y = squeeze(%a) {axes = [1]}", "x"),
        (("%a = reshape(%x) {shape = [B, 1, S, 4]}\n"
         "%y = reduce_mean(%a) {axes = [1], keepdims = false}"), "x"),
        ("%y = reduce_mean(%x) {axes = [0]}", "reduce_mean(x, axes=[0])"),
        ("%s = shape(%x)\n%y = reshape(%x, %s)", "x"),
        # the shape of another value keeps the reshape
        ("%s = literal i64[2] [-1, 4]\n%y = reshape(%x, %s)", "reshape(x, shape=[B*S,4])"),
        ("%s = literal i64[3] [0, -1, 2]\n%y = reshape(%x, %s)", "reshape(x, shape=[B,2*S,2])"),
    ],
)  # fmt: skip
def test_reshape(body: str, expected: str) -> None:
    assert canonical(f"{body}\nreturn %y", X) == expected


def test_squeeze_of_a_size_that_is_only_assumed_to_be_one_stays() -> None:
    module = parse("graph(%x : f32[B, 4]) {\n%y = squeeze(%x) {axes = [0]}\nreturn %y\n}")
    Canonicalize().run(module, Context())
    assert outputs(module) == "squeeze(x, axes=[0])"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("%y = transpose(%x) {perm = [0, 1, 2]}", "x"),
        ("%y = transpose(%x)", "transpose(x, perm=[2,1,0])"),
        ("%a = transpose(%x) {perm = [1, 2, 0]}\n%y = transpose(%a) {perm = [2, 0, 1]}", "x"),
        ("%a = transpose(%x) {perm = [1, 2, 0]}\n%y = transpose(%a) {perm = [1, 2, 0]}",
         "transpose(x, perm=[2,0,1])"),
        ("%a = unsqueeze(%x) {axes = [0]}\n%y = transpose(%a) {perm = [1, 0, 2, 3]}",
         "reshape(x, shape=[B,1,S,4])"),
        # sinking: to where it cancels
        (("%a = transpose(%x) {perm = [1, 0, 2]}\n%b = relu(%a)\n"
         "%y = transpose(%b) {perm = [1, 0, 2]}"), "relu(x)"),
        (("%a = transpose(%x) {perm = [2, 0, 1]}\n%k = literal f32[4, 1, 1] splat 3\n"
         "%b = mul(%a, %k)\n%y = transpose(%b) {perm = [1, 2, 0]}"),
         "mul(x, [[[3.0,3.0,3.0,3.0]]])"),
        (("%a = transpose(%x) {perm = [1, 0, 2]}\n%b = neg(%x)\n"
         "%c = transpose(%b) {perm = [1, 0, 2]}\n%y = add(%a, %c)"),
         "transpose(add(x, neg(x)), perm=[1,0,2])"),
        # a constant that would have to be transposed itself stays where it is
        (("%a = transpose(%x) {perm = [0, 2, 1]}\n%b = transpose(%a) {perm = [0, 2, 1]}\n"
         "%y = relu(%b)"), "relu(x)"),
        (("%a = transpose(%x) {perm = [1, 0, 2]}\n%b = softmax(%a) {axis = 0}\n"
         "%y = transpose(%b) {perm = [1, 0, 2]}"), "softmax(x, axis=1)"),
        ("%a = transpose(%x) {perm = [1, 0, 2]}\n%y = softmax(%a) {axis = 0}",
         "softmax(transpose(x, perm=[1,0,2]), axis=0)"),
        (("%a = transpose(%x) {perm = [0, 2, 1]}\n"
          "%y = reduce_mean(%a) {axes = [1], keepdims = false}"),
         "reduce_mean(x, axes=[2], keepdims=False)"),
        ("%a = transpose(%x) {perm = [0, 2, 1]}\n%y = reduce_mean(%a) {axes = [1, 2]}",
         "reduce_mean(x, axes=[1,2])"),
        ("%a = transpose(%x) {perm = [1, 0, 2]}\n%y = reduce_mean(%a) {axes = [2]}",
         "reduce_mean(transpose(x, perm=[1,0,2]), axes=[2])"),
    ],
)  # fmt: skip
def test_transpose(body: str, expected: str) -> None:
    assert canonical(f"{body}\nreturn %y", X) == expected


def test_transpose_with_two_users_does_not_sink() -> None:
    body = "%a = transpose(%x) {perm = [1, 0, 2]}\n%b = relu(%a)\n%y = add(%a, %b)\nreturn %y, %b"
    t = "transpose(x, perm=[1,0,2])"
    assert canonical(body, X) == f"add({t}, relu({t})); relu({t})"


def test_concat_of_transposes_transposes_once() -> None:
    body = (
        "%a = transpose(%x) {perm = [1, 0, 2]}\n%b = transpose(%z) {perm = [1, 0, 2]}\n"
        "%y = concat(%a, %b) {axis = 2}\nreturn %y"
    )
    expected = "transpose(concat(x, z, axis=2), perm=[1,0,2])"
    assert canonical(body, f"{X}, %z : f32[B, S, 4]") == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("%a = reshape(%x) {shape = [B*S, 4]}\n%b = relu(%a)\n%y = reshape(%b) {shape = [B, S, 4]}",
         "relu(x)"),
        (("%a = reshape(%x) {shape = [B*S, 4]}\n%k = literal f32[] 2\n%b = mul(%a, %k)\n"
         "%y = reshape(%b) {shape = [B, S, 4]}"), "mul(x, 2.0)"),
        # a vector along the last axis is no number
        (("%a = reshape(%x) {shape = [B*S, 4]}\n%k = literal f32[4] [1, 2, 3, 4]\n"
          "%b = mul(%a, %k)\n"
         "%y = reshape(%b) {shape = [B, S, 4]}"),
         "reshape(mul(reshape(x, shape=[B*S,4]), [1.0,2.0,3.0,4.0]), shape=[B,S,4])"),
        ("%a = reshape(%x) {shape = [B*S, 4]}\n%y = relu(%a)", "relu(reshape(x, shape=[B*S,4]))"),
    ],
)  # fmt: skip
def test_reshape_sinks_where_it_cancels(body: str, expected: str) -> None:
    assert canonical(f"{body}\nreturn %y", X) == expected


@pytest.mark.parametrize(
    ("dtype", "chain", "expected"),
    [
        ("f32", ("f32",), "x"),
        ("f16", ("f32", "f16"), "x"),
        ("f32", ("f16", "f32"), "cast(cast(x, to=f16), to=f32)"),
        ("i32", ("i64", "i32"), "x"),
        ("i64", ("i32", "i64"), "cast(cast(x, to=i32), to=i64)"),
        ("i8", ("i32", "f32"), "cast(x, to=f32)"),
        ("i32", ("f32", "i32"), "cast(cast(x, to=f32), to=i32)"),  # 2**24 + 1 is no f32
        ("bool", ("i64", "f32"), "cast(x, to=f32)"),
        ("bool", ("f32", "bool"), "x"),
        ("f16", ("f32", "i32"), "cast(x, to=i32)"),
        ("u8", ("f32", "i8"), "cast(cast(x, to=f32), to=i8)"),  # 200.0 has no i8
    ],
)
def test_cast_chain(dtype: str, chain: tuple[str, ...], expected: str) -> None:
    lines, last = [], "x"
    for idx, to in enumerate(chain):
        lines.append(f"%c{idx} = cast(%{last}) {{to = {to}}}")
        last = f"c{idx}"
    body = "\n".join([*lines, f"return %{last}"])
    if dtype == "u8":  # random bytes include such values, and casting them is undefined
        module = parse(f"graph(%x : u8[3]) {{\n{body}\n}}")
        Canonicalize().run(module, Context())
        assert outputs(module) == expected
        return
    assert canonical(body, f"%x : {dtype}[3]") == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("%y = slice(%x) {starts = [0], ends = [9223372036854775807], axes = [1]}", "x"),
        ("%y = slice(%x) {starts = [0], ends = [4], axes = [2]}", "x"),
        ("%y = slice(%x) {starts = [3], ends = [-9223372036854775807], axes = [2], steps = [-1]}",
         "slice(x, axes=[2], ends=[-9223372036854775807], starts=[3], steps=[-1])"),
        (("%a = slice(%x) {starts = [1], ends = [4], axes = [2]}\n"
         "%y = slice(%a) {starts = [1], ends = [2], axes = [2]}"),
         "slice(x, axes=[2], ends=[3], starts=[2])"),
        (("%a = slice(%x) {starts = [1], ends = [4], axes = [2]}\n"
         "%y = slice(%a) {starts = [1], ends = [9223372036854775807], axes = [1]}"),
         "slice(x, axes=[1,2], ends=[2147483647,4], starts=[1,1])"),
        # of an unknown size, an end counted from the front may lie beyond
        (("%a = slice(%x) {starts = [1], ends = [3], axes = [1]}\n"
         "%y = slice(%a) {starts = [1], ends = [2], axes = [1]}"),
         "slice(slice(x, axes=[1], ends=[3], starts=[1]), axes=[1], ends=[2], starts=[1])"),
        ("%y = concat(%x) {axis = 1}", "x"),
        ("%a = concat(%x, %x) {axis = 1}\n%y = concat(%a, %x) {axis = -2}",
         "concat(x, x, x, axis=-2)"),
        ("%a = concat(%x, %x) {axis = 1}\n%y = concat(%a, %a) {axis = 2}",
         "concat(concat(x, x, axis=1), concat(x, x, axis=1), axis=2)"),
        ("%a, %b = split(%x) {axis = 2, sizes = [1, 3]}\n%y = concat(%a, %b) {axis = 2}", "x"),
        ("%a, %b = split(%x) {axis = 2, sizes = [1, 3]}\n%y = concat(%b, %a) {axis = 2}",
         "concat(split(x, axis=2, sizes=[1,3])#1, split(x, axis=2, sizes=[1,3]), axis=2)"),
        ("%e = slice(%x) {starts = [4], ends = [4], axes = [2]}\n%y = concat(%e, %x) {axis = 2}",
         "x"),
        ("%y = slice(%x) {starts = [1], ends = [2], axes = [2], steps = [1]}",
         "slice(x, axes=[2], ends=[2], starts=[1])"),
        # every channel twice; in another order it stays
        (("%z = slice(%x) {starts = [0], ends = [2], axes = [2]}\n"
          "%a = slice(%z) {starts = [0], ends = [1], axes = [2]}\n"
          "%b = slice(%x) {starts = [1], ends = [2], axes = [2]}\n"
          "%c = slice(%x) {starts = [2], ends = [3], axes = [2]}\n"
          "%d = slice(%x) {starts = [3], ends = [4], axes = [2]}\n"
          "%y = concat(%a, %a, %b, %b, %c, %c, %d, %d) {axis = 2}"),
         "reshape(expand(reshape(x, shape=[B,S,4,1]), shape=[B,S,4,2]), shape=[B,S,8])"),
    ],
)  # fmt: skip
def test_parts(body: str, expected: str) -> None:
    assert canonical(f"{body}\nreturn %y", X) == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("%y = expand(%x) {shape = [B, S, 4]}", "x"),
        ("%y = expand(%x) {shape = [3, B, S, 4]}", "expand(x, shape=[3,B,S,4])"),
        ("%k = literal f32[1] [2]\n%e = expand(%k) {shape = [B, S, 4]}\n%y = mul(%x, %e)",
         "mul(x, [2.0])"),
        ("%k = literal f32[1] [2]\n%e = expand(%k) {shape = [3, B, S, 4]}\n%y = mul(%x, %e)",
         "mul(x, expand([2.0], shape=[3,B,S,4]))"),
        ("%y = tile(%x) {repeats = [1, 1, 1]}", "x"),
        ("%y = tile(%x) {repeats = [1, 2, 1]}", "tile(x, repeats=[1,2,1])"),
        ("%y = pad(%x) {pads = [0, 0, 0, 0, 0, 0]}", "x"),
        ("%y = pad(%x) {pads = [0, 0, 0, 0, 1, 0]}", "pad(x, pads=[0,0,0,0,1,0])"),
    ],
)  # fmt: skip
def test_repeats(body: str, expected: str) -> None:
    assert canonical(f"{body}\nreturn %y", X) == expected
