"""Pruned widths and heads: the folder of the smaller model, and why others have none."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="folders are loaded with PyTorch")
pytest.importorskip("transformers", reason="needs the extra `hf`")

import regraft  # noqa: E402
from benchmarks.fixtures import hf_families  # noqa: E402
from regraft.huggingface_sources import save_folder  # noqa: E402
from regraft.ir.builder import Builder  # noqa: E402
from regraft.ir.module import Module  # noqa: E402
from regraft.ir.ops.arithmetic import add  # noqa: E402
from regraft.passes.analysis.coupling import Coupling  # noqa: E402
from regraft.passes.check.runners import EvalRunner  # noqa: E402
from regraft.passes.pruning.slicing import slice_module  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # deprecations between these packages

WIDTH, KV_HEADS, INNER = 32, 2, 48


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    hf_families.save("llama", folder)
    return folder


def pruned(folder: Path, sizes: Mapping[str, list[int]]) -> Module:
    """Returns the model with kept positions by a weight that a group stands in."""
    module = regraft.load(folder)
    regraft.apply(module, "canonicalize,fuse", check="off")
    coupling = Coupling(module)
    choice = {
        group: np.array(kept)
        for weight, kept in sizes.items()
        for group in coupling.groups
        if group.weights[0][0].startswith(weight)
        and group.size == {"model.e": WIDTH}.get(weight, INNER if "mlp" in weight else KV_HEADS)
        and (group.num_blocks == 1 and ("k_proj" in str(group.weights) or "self" not in weight))
    }
    assert len(choice) == len(sizes)
    slice_module(coupling, choice)
    return module


def wide(first: int, count: int) -> list[int]:
    return [(first + 2 * i) % INNER for i in range(count)]


def test_a_pruned_llama_is_a_smaller_llama(llama: Path, tmp_path: Path) -> None:
    module = pruned(
        llama,
        {
            "model.e": [i for i in range(WIDTH) if i % 4],
            "model.layers.0.mlp": sorted(wide(0, 20)),
            "model.layers.1.mlp": sorted(wide(1, 20)),
            "model.layers.0.self_attn": [1],
            "model.layers.1.self_attn": [0],
        },
    )
    save_folder(module, tmp_path)
    import transformers

    net, info = transformers.LlamaForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    config = net.config
    assert (config.hidden_size, config.intermediate_size) == (24, 20)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (2, 1, 8)
    old = transformers.LlamaForCausalLM.from_pretrained(llama).state_dict()
    name = "model.layers.0.self_attn.k_proj.weight"
    kept = old[name][8:, [i for i in range(WIDTH) if i % 4]]
    assert torch.equal(net.state_dict()[name], kept)
    ids = torch.arange(3, 13).reshape(2, 5)
    ours = EvalRunner(module)({"input_ids": ids.numpy(), "attention_mask": np.ones((2, 5), int)})
    with torch.no_grad():
        theirs = net(ids).logits.numpy()
    # f32 sums of 24 terms in four layers' worth of products
    np.testing.assert_allclose(ours["logits"], theirs, rtol=1e-4, atol=1e-5 * np.abs(theirs).max())


def test_layers_of_different_width_are_refused_by_name(llama: Path, tmp_path: Path) -> None:
    module = pruned(
        llama,
        {"model.layers.0.mlp": list(range(20)), "model.layers.1.mlp": list(range(24))},
    )
    with pytest.raises(regraft.RegraftError) as caught:
        save_folder(module, tmp_path)
    text = str(caught.value)
    assert "`intermediate_size` would be 20 in `model.layers.0.mlp.gate_proj.weight`, 24 in" in text
    assert not list(tmp_path.iterdir())


def test_parts_of_heads_are_refused_by_name(llama: Path, tmp_path: Path) -> None:
    module = regraft.load(llama)
    regraft.apply(module, "canonicalize,fuse", check="off")
    coupling = Coupling(module)
    name = "model.layers.0.self_attn.v"
    values = next(g for g in coupling.groups if g.weights[0][0].startswith(name))
    slice_module(coupling, {values: np.arange(6)})
    with pytest.raises(regraft.RegraftError, match="not whole heads of 8 of `num_key_value_heads`"):
        save_folder(module, tmp_path)


def test_a_dropped_layer_renumbers_the_rest(llama: Path, tmp_path: Path) -> None:
    module = regraft.load(llama)
    graph = module.graph
    # the residual stream before and after layer 0: its two sums
    before = next(n.output for n in graph if n.op.name in ("embedding", "gather"))
    sums = [n for n in graph if n.op.name == "add" and n.output.shape == before.shape]
    sums[1].output.replace_all_uses_with(before)
    regraft.apply(module, "canonicalize", check="off")
    save_folder(module, tmp_path)
    import transformers

    net, info = transformers.LlamaForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert net.config.num_hidden_layers == 1
    old = transformers.LlamaForCausalLM.from_pretrained(llama).state_dict()
    name = "model.layers.{}.mlp.up_proj.weight"
    assert torch.equal(net.state_dict()[name.format(0)], old[name.format(1)])


def test_other_operators_than_the_family_has_are_noticed(llama: Path, tmp_path: Path) -> None:
    module = regraft.load(llama)
    ((name, logits),) = zip(module.graph.output_names, module.graph.outputs, strict=True)
    module.graph.set_outputs([(name, Builder(module.graph).op(add, logits, logits))])
    with pytest.raises(regraft.RegraftError, match="computes something else"):
        save_folder(module, tmp_path)


def test_unknown_origin_is_refused(tmp_path: Path) -> None:
    module = regraft.capture(torch.nn.Linear(3, 2), (torch.ones(2, 3),))
    with pytest.raises(regraft.RegraftError, match="does not come from a Hugging Face folder"):
        save_folder(module, tmp_path)
