"""Blocks of single fixtures: what each spelling is recognized as, lifted to, and written as."""

from collections import Counter

import pytest

import regraft
from benchmarks.canonical_text import canonical_lines
from benchmarks.fixtures import store
from benchmarks.fuse_blocks import examine
from benchmarks.fuse_raise import changed_by, unstable
from benchmarks.simplify_once import FUSING

HARD = (
    "gpt_oss.dyn18",  # sinks, windows, quick gelu in experts
    "gpt_neox.ts17",  # a part of the channels turns
    "segformer.dyn18",  # keys are a reduced copy of what queries are
    "timm_eva02.ts17",  # the class token is joined unturned: no past
    "timm_cait.ts17",  # talking heads
    "timm_coat.ts17",  # factorized
    "timm_efficientvit.dyn18",  # linear
    "timm_xcit.dyn18",  # channels
    "latent_queries.hand",
    "mask_guarded_rows.hand",
    "mask_causal_product.hand",
    "mask_weights_masked.hand",
    "experts_dense.hand",
    "experts_gathered.hand",
    "image_norm_layer_channels.hand",
    "no_standardized.hand",
)


@pytest.mark.parametrize("name", HARD)
def test_blocks_are_what_the_fixture_states(name: str) -> None:
    found = examine(name)
    assert found.recognized == found.stated
    assert not found.false
    assert found.lifted == found.liftable, found.why_not
    assert not found.unread
    assert not found.unequal
    assert found.samples >= 2


@pytest.mark.parametrize("target", ["onnx", "ort-cpu"])
@pytest.mark.parametrize(
    "name", ["bert.ts17", "llama.dyn18", "gpt_neox.ts17", "gpt2.dyn18", "mask_given.hand"]
)
def test_a_written_file_is_raised_to_the_same_module(name: str, target: str) -> None:
    module = regraft.load(store.load(name))
    regraft.apply(module, FUSING, check="off")
    assert unstable(module) == ""
    assert changed_by(module, target) == ""


def test_no_node_is_added_for_a_mask_that_layers_share() -> None:
    found = examine("llama.ts17")
    assert found.nodes["onnx"] < found.nodes["source"] / 3


def test_canonical_text_sees_a_change_and_no_name() -> None:
    one = regraft.load(store.load("ffn_gelu.hand"))
    other = regraft.load(store.load("ffn_gelu.hand"))
    for node in other.graph:
        node.output.name = f"other_{node.output.name}"
    assert canonical_lines(one) == canonical_lines(other)
    regraft.apply(other, "canonicalize,fuse", check="off")
    lines = Counter(line.partition("= ")[2].partition("(")[0] for line in canonical_lines(other))
    assert lines["gelu"] == 1
    assert canonical_lines(one) != canonical_lines(other)
