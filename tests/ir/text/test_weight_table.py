"""The weight table of the text form."""

from pathlib import Path

import numpy as np
import pytest

from regraft.ir.compare import differences
from regraft.ir.derive import DerivedWeight, derive
from regraft.ir.errors import ParseError, UsageError
from regraft.ir.generated import RandomWeight, SplatWeight
from regraft.ir.graph import Graph
from regraft.ir.module import Module
from regraft.ir.rebind import rebind
from regraft.ir.spill import SpillFile
from regraft.ir.steps import (
    Add,
    Cast,
    Concat,
    Gather,
    Literal,
    MatMul,
    Mul,
    Permute,
    Quantize,
    Reshape,
    Slice,
    Source,
    Transpose,
)
from regraft.ir.text import parse_module, print_module, read_module, write_module
from regraft.ir.types import DType
from regraft.ir.weights import ArrayWeight, Role

ARRAY = np.arange(12, dtype=np.float32).reshape(3, 4)


def module_of(**weights: object) -> Module:
    module = Module(Graph())
    for name, weight in weights.items():
        module.weights.add(name, weight, Role.PARAM)  # type: ignore[arg-type]
    return module


def test_weights_of_every_kind_round_trip() -> None:
    module = module_of(
        splat=SplatWeight(np.asarray(0.5, np.float16), (8, 8)),
        random=RandomWeight(7, DType.BF16, (4, 4), 0.02),
        array=ArrayWeight(ARRAY),
        scalar=ArrayWeight(np.asarray(3, np.int64)),
        nan=SplatWeight(np.array(0x7FC00001, np.uint32).view(np.float32), (2,)),
    )
    module.weights.aliases["tied"] = "array"
    text = print_module(module)
    back = parse_module(text)
    assert print_module(back) == text
    assert differences(module, back) == []
    assert isinstance(back.weights["splat"], SplatWeight)
    assert "weight @splat : f16[8, 8] role=param = splat 0.5" in text


def test_derived_weight_prints_every_step_and_reads_back() -> None:
    x = derive("w", ArrayWeight(ARRAY))
    tree = Slice(x, 1, 0, 4, 2)
    tree = Concat((tree, Gather(x, 1, (3, 1))), 1)
    tree = Transpose(Permute(tree, 0, (2, 0, 1)), (1, 0))
    tree = Reshape(tree, (2, 6))
    tree = Add(
        Mul(tree, Literal.of(np.float32([2.0, 3.0]).reshape(2, 1))), Literal.of(np.float32(1))
    )
    tree = MatMul(tree, Literal.of(np.eye(6, dtype=np.float32)))
    tree = Quantize(Cast(tree, DType.F16), Literal.of(np.float16(0.5)), None, DType.I8)
    module = module_of(w=DerivedWeight(tree))
    text = print_module(module)
    back = parse_module(text)
    assert print_module(back) == text
    assert differences(module, back) == []
    assert text.count("source @w") == 1


def test_two_generations_of_one_name_stay_apart() -> None:
    one, two = ArrayWeight(ARRAY), ArrayWeight(ARRAY + 1)
    tree = Add(derive("w", one), derive("w", two))
    text = print_module(module_of(w=DerivedWeight(tree)))
    assert "source @w.1" in text
    assert print_module(parse_module(text)) == text
    np.testing.assert_array_equal(parse_module(text).weights["w"].numpy(), 2 * ARRAY + 1)


def test_mapped_weight_prints_its_file_relative_to_the_base(tmp_path: Path) -> None:
    with SpillFile(tmp_path) as spill:
        module = module_of(w=spill.append(ARRAY))
        text = print_module(module, base=tmp_path)
        assert f'file("{spill.path.name}", 0)' in text
        back = parse_module(text, base=tmp_path)
        np.testing.assert_array_equal(back.weights["w"].numpy(), ARRAY)


def test_recorded_hash_is_checked(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(ARRAY.tobytes())
    line = f'weight @w : f32[3, 4] = file("w.bin", 0, "{"0" * 64}")\ngraph() {{ return }}'
    with pytest.raises(ParseError, match="do not have the recorded hash"):
        parse_module(line, base=tmp_path)


def test_large_arrays_print_by_name_and_are_found_in_the_store() -> None:
    big = ArrayWeight(np.zeros((64, 64), np.float32))
    module = module_of(big=big, cut=DerivedWeight(Slice(derive("old", big), 0, 0, 1)))
    text = print_module(module)
    assert "weight @big : f32[64, 64] role=param\n" in text
    back = parse_module(text, weights=module.weights)
    assert back.weights["big"] is big
    assert differences(module, back) == []


def test_inline_prints_all_elements_and_names_prints_none() -> None:
    module = module_of(big=ArrayWeight(np.arange(2000, dtype=np.float32)))
    inline = print_module(module, weights="inline")
    assert differences(module, parse_module(inline)) == []
    assert "= " not in print_module(module, weights="names").partition("weight")[2].split("\n")[0]


def test_what_tensors_were_made_from_survives_the_text_and_the_file(tmp_path: Path) -> None:
    module = parse_module("graph(%x : f32[2]) {\nreturn %x\n}\n")
    large = np.ones(5000, np.float32)
    tree = Slice(Source("w", ArrayWeight(large)), 0, 0, 4)
    module.weights.add("w", ArrayWeight(large))
    module.weights.add("small", ArrayWeight(np.ones(2, np.float32), made_from=("w", "b 1")))
    module.weights.add("large", ArrayWeight(large, made_from=("w",)))
    module.weights.add("first", DerivedWeight(tree))
    again = parse_module(print_module(module, weights="inline"))
    assert again.weights["small"].made_from == ("w", "b 1")
    write_module(module, tmp_path / "m.rg")
    stored = read_module(tmp_path / "m.rg").weights
    made_from = {name: stored[name].made_from for name in stored}
    assert made_from == {"w": (), "small": ("w", "b 1"), "large": ("w",), "first": ("w",)}
    with pytest.raises(UsageError, match="`first` was computed from `w` for good"):
        rebind(stored, {"w": ArrayWeight(large)})
