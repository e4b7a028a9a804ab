"""States shrink at both ends, with what they hold at first."""

import numpy as np

from regraft.ir.evaluate import evaluate
from regraft.ir.module import Module, State, StateKind
from regraft.ir.verify import check
from regraft.ir.weights import ArrayWeight, Role
from regraft.passes.analysis.coupling import Coupling
from regraft.passes.protocol import Context
from regraft.passes.pruning import Prune
from regraft.passes.pruning.slicing import slice_module
from tests.passes.analysis.spelled import spelled


def _module() -> Module:
    module = spelled(
        """
        %k = matmul(%x, %w)
        %c = add(%past, %k)
        %z = matmul(%c, %v)
        %y = relu(%z)
        """,
        inputs="%x : f32[2, 3, 16], %past : f32[2, 3, 8]",
        weights={"w": "f32[16, 8]", "v": "f32[8, 4]"},
    )
    cache = next(n.outputs[0] for n in module.graph if n.op.name == "add")
    module.graph.add_output("present", cache)
    module.states = (State("past", "past", "present", StateKind.BUFFER),)
    first = np.random.default_rng(0).standard_normal((2, 3, 8)).astype(np.float32)
    module.weights.add("past", ArrayWeight(first), Role.BUFFER)
    return module


def test_a_state_its_next_content_and_its_first_shrink_together() -> None:
    module = _module()
    dense = module.clone()
    coupling = Coupling(module)
    (group,) = coupling.groups
    kept = np.array([0, 3, 4, 7])
    slice_module(coupling, {group: kept})
    check(module)
    past = module.weights["past"].numpy()
    assert past.shape == (2, 3, 4)
    assert np.array_equal(past, dense.weights["past"].numpy()[..., kept])
    x = np.random.default_rng(1).standard_normal((2, 3, 16)).astype(np.float32)
    actual = evaluate(module, {"x": x, "past": past}, oracle=True)
    whole = dense.weights["past"].numpy()
    mask = np.isin(np.arange(8), kept)
    plain = evaluate(
        dense,
        {"x": x, "past": whole},
        oracle=True,
        observe=lambda value, a: np.where(mask, a, 0) if value.name == "c" else None,
    )
    assert np.allclose(actual["y"], plain["y"], rtol=0, atol=1e-12 * np.abs(plain["y"]).max())
    assert np.allclose(actual["present"], plain["present"][..., kept], rtol=0, atol=1e-12)


def test_the_pass_keeps_what_a_buffer_holds_at_first() -> None:
    module = _module()
    Prune("params:0.5").run(module, Context())
    assert module.weights["past"].shape[-1] == module.weights["w"].shape[-1] < 8
