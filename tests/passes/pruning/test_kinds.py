"""What kinds of widths there are to prune: recurrent units, experts, Mamba, heads."""

from typing import Any

import numpy as np
import pytest

from regraft.ir.evaluate import evaluate
from regraft.ir.module import Module
from regraft.ir.verify import check
from regraft.passes.analysis.coupling import Coupling
from regraft.passes.protocol import Context
from regraft.passes.pruning import Prune
from regraft.passes.pruning.plan import make_plan
from regraft.passes.pruning.slicing import slice_module
from tests.passes.analysis.spelled import spelled
from tests.passes.pruning.checking import TOLERANCE, prune_and_compare

RECURRENT = """
%t = transpose(%x) {perm = [1, 0, 2]}
%h, %last = OP(%t, %w, %r, %b) {hidden_size = 160, direction = "DIR", activations = [ACTS],
alphas = [ZEROS], betas = [ZEROS]}
%m = transpose(%h) {perm = [2, 0, 1, 3]}
%f = reshape(%m) {shape = [B, S, DIRS]}
%y = matmul(%f, %down)
""".replace("\nalphas", " alphas")


def recurrent(kind: str, direction: str) -> Module:
    gates, acts = {"lstm": (4, '"Sigmoid", "Tanh", "Tanh"'), "gru": (3, '"Sigmoid", "Tanh"'),
                   "rnn": (1, '"Tanh"')}[kind]  # fmt: skip
    both = 2 if direction == "bidirectional" else 1
    acts = ", ".join([acts] * both)
    zeros = ", ".join(["0.0"] * (acts.count(",") + 1))
    text = RECURRENT
    if kind == "lstm":
        text = text.replace("%last", "%last, %cell")
    for old, new in (("OP", kind), ("DIRS", str(160 * both)), ("DIR", direction), ("ACTS", acts),
                     ("ZEROS", zeros)):  # fmt: skip
        text = text.replace(old, new)
    return spelled(
        text,
        weights={
            "w": f"f32[{both}, {gates * 160}, 16]", "r": f"f32[{both}, {gates * 160}, 160]",
            "b": f"f32[{both}, {2 * gates * 160}]", "down": f"f32[{160 * both}, 5]",
        },
    )  # fmt: skip


def _x() -> dict[str, Any]:
    return {"x": np.random.default_rng(0).standard_normal((2, 3, 16)).astype(np.float32)}


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn"])
def test_hidden_units_go_in_all_gates_and_both_weights(kind: str, direction: str) -> None:
    module = recurrent(kind, direction)
    outcome = prune_and_compare(module, _x(), 1)
    assert outcome.pruned == 1
    assert outcome.error <= TOLERANCE
    assert outcome.change > 1e-6
    gates = {"lstm": 4, "gru": 3, "rnn": 1}[kind]
    result = Prune("params:0.5").run(module, Context())
    (group,) = result.decisions["plan"]["groups"]
    left = group["new_size"]
    assert left < 160
    assert module.weights["w"].shape[1:] == (gates * left, 16)
    assert module.weights["r"].shape[1:] == (gates * left, left)
    assert module.weights["b"].shape[1] == 2 * gates * left
    (node,) = [node for node in module.graph if node.op.name == kind]
    assert node.attrs["hidden_size"] == left
    check(module)
    assert evaluate(module, _x())["y"].shape == (2, 3, 5)


def test_the_inner_width_of_experts_goes_in_all_of_them() -> None:
    module = spelled(
        """
        %f = reshape(%x) {shape = [-1, 16]}
        %logits = matmul(%f, %router)
        %e = moe(%f, %logits, %gate, %down, %up) {top_k = 2, renormalize = true}
        %y = matmul(%e, %last)
        """.replace("[-1, 16]", "[B*S, 16]"),
        weights={"router": "f32[16, 4]", "gate": "f32[4, 120, 16]", "down": "f32[4, 16, 120]",
                 "up": "f32[4, 120, 16]", "last": "f32[16, 3]"},
    )  # fmt: skip
    outcome = prune_and_compare(module, _x(), 1)
    assert outcome.error <= TOLERANCE
    result = Prune("params:0.5", keep=("last", "router")).run(module, Context())
    (group,) = result.decisions["plan"]["groups"]
    assert group["size"] == 120
    assert module.weights["gate"].shape == module.weights["up"].shape == (4, group["new_size"], 16)
    assert module.weights["down"].shape == (4, 16, group["new_size"])


def test_layers_may_keep_other_numbers_of_heads() -> None:
    attention = """
        %qI = matmul(%inI, %wqI)
        %kI = matmul(%inI, %wkI)
        %vI = matmul(%inI, %wvI)
        %qhI = reshape(%qI) {shape = [B, S, 6, 4]}
        %khI = reshape(%kI) {shape = [B, S, 3, 4]}
        %vhI = reshape(%vI) {shape = [B, S, 3, 4]}
        %qtI = transpose(%qhI) {perm = [0, 2, 1, 3]}
        %ktI = transpose(%khI) {perm = [0, 2, 1, 3]}
        %vtI = transpose(%vhI) {perm = [0, 2, 1, 3]}
        %aI = attention(%qtI, %ktI, %vtI) {scale = 0.5, kv_groups = 2}
        %btI = transpose(%aI) {perm = [0, 2, 1, 3]}
        %bI = reshape(%btI) {shape = [B, S, 24]}
        %outI = matmul(%bI, %woI)
    """
    text = attention.replace("%in", "%x").replace("I", "0").replace("%x0", "%x")
    text += attention.replace("%inI", "%out0").replace("I", "1") + "\n%y = relu(%out1)"
    weights = {}
    for i in "01":
        weights |= {f"wq{i}": "f32[16, 24]", f"wk{i}": "f32[16, 12]", f"wv{i}": "f32[16, 12]",
                    f"wo{i}": "f32[24, 16]"}  # fmt: skip
    module = spelled(text, weights=weights)
    assert prune_and_compare(module, _x(), 0).error <= TOLERANCE
    coupling = Coupling(module)
    choice = {}
    for group in coupling.groups:
        names = {name for name, _ in group.weights}
        if group.size == 3:  # key heads, with their queries
            choice[group] = np.arange(1 if "wq0" in names else 2)
        elif group.size == 2 and "wq0" in names:  # one query head of every key head of its own
            choice[group] = np.array([[1], [0], [1]])
    assert len(choice) == 3
    plan = make_plan(coupling, choice)
    slice_module(coupling, choice)
    check(module)
    assert module.weights["wq0"].shape == (16, 4)
    assert module.weights["wq1"].shape == (16, 16)
    groups = [node.attrs["kv_groups"] for node in module.graph if node.op.name == "attention"]
    assert groups == [1, 2]
    assert len(plan.groups) == 3
    assert np.isfinite(evaluate(module, _x())["y"]).all()


def test_the_inner_width_and_the_state_of_mamba() -> None:
    torch = pytest.importorskip("torch", reason="captures PyTorch models")
    from benchmarks.fixtures import vision_ops  # before transformers

    transformers = pytest.importorskip("transformers", reason="needs the library's classes")
    vision_ops.declare()
    import regraft

    config = transformers.MambaConfig(
        hidden_size=32, state_size=4, num_hidden_layers=1, vocab_size=50, expand=2, conv_kernel=3,
        time_step_rank=4, use_cache=False,
    )  # fmt: skip
    torch.manual_seed(0)
    ids = torch.randint(0, 50, (2, 5))
    module = regraft.capture(transformers.MambaForCausalLM(config).eval(), (ids,))
    regraft.apply(module, "canonicalize,fuse", check="off")
    feeds = {str(module.graph.inputs[0].name): ids.numpy()}
    outcome = prune_and_compare(module, feeds, 0)
    assert outcome.error <= TOLERANCE
    assert outcome.change > 1e-6
    sizes = {group.size for group in Coupling(module).groups}
    assert {32, 64, 4} <= sizes  # residual width, inner width, state and rank of the step
    result = Prune("flops:0.5").run(module, Context())
    assert result.stats["achieved"] == pytest.approx(0.5, rel=0.01)
    inner = next(group for group in result.decisions["plan"]["groups"] if group["size"] == 64)
    taps = next(name for name in module.weights if "conv1d.weight" in name)
    assert module.weights[taps].shape[0] == inner["new_size"] < 64
