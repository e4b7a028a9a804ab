"""New values for checkpoint tensors: derived weights follow by name, sizes are checked."""

import numpy as np
import pytest

from regraft.ir.derive import DerivedWeight
from regraft.ir.errors import UsageError
from regraft.ir.rebind import rebind
from regraft.ir.steps import Cast, Concat, Mul, Slice, Source
from regraft.ir.types import DType
from regraft.ir.weights import ArrayWeight, Role, WeightStore

W = np.arange(12, dtype=np.float32).reshape(4, 3)
GAIN = np.float32([2, 3, 5, 7])


def _store() -> WeightStore:
    """`w` itself and a slice of it, and a product whose sources the store does not hold."""
    store = WeightStore()
    w = ArrayWeight(W)
    store.add("w", w, Role.PARAM)
    store.aliases["tied"] = "w"
    store.add("w.slice", DerivedWeight(Slice(Source("w", w), 0, 1, 3)), Role.PARAM)
    gain = Source("gain", ArrayWeight(GAIN))
    store.add("gain.concat", DerivedWeight(Concat((gain, gain), 0)), Role.PARAM)
    return store


def test_derived_weights_follow_their_source() -> None:
    store = _store()
    assert rebind(store, {"w": ArrayWeight(W + 100)}) == ["w", "w.slice"]
    np.testing.assert_array_equal(store["w"].numpy(), W + 100)
    np.testing.assert_array_equal(store["w.slice"].numpy(), W[1:3] + 100)
    np.testing.assert_array_equal(store["gain.concat"].numpy(), [*GAIN, *GAIN])


def test_source_that_the_store_does_not_hold_is_replaced() -> None:
    store = _store()
    assert rebind(store, {"gain": ArrayWeight(-GAIN)}) == ["gain.concat"]
    np.testing.assert_array_equal(store["gain.concat"].numpy(), [*-GAIN, *-GAIN])


def test_alias_stands_for_its_weight() -> None:
    store = _store()
    assert rebind(store, {"tied": ArrayWeight(-W)}) == ["w", "w.slice"]


def test_weight_that_was_cast_follows_the_checkpoint() -> None:
    store = WeightStore()
    half = Cast(Mul(Source("w", ArrayWeight(W)), Source("s", ArrayWeight(W))), DType.F16)
    store.add("w", DerivedWeight(half), Role.PARAM)
    assert rebind(store, {"w": ArrayWeight(W + 1)}) == ["w"]
    np.testing.assert_array_equal(store["w"].numpy(), ((W + 1) * W).astype(np.float16))


def test_a_copy_of_the_store_keeps_its_values() -> None:
    store = _store()
    copy = store.copy()
    rebind(store, {"w": ArrayWeight(W + 1)})
    np.testing.assert_array_equal(copy["w.slice"].numpy(), W[1:3])


def test_all_problems_are_named_and_nothing_changes() -> None:
    store = _store()
    with pytest.raises(UsageError) as caught:
        rebind(
            store,
            {
                "w": ArrayWeight(W[:2]),
                "gain": ArrayWeight(GAIN.astype(np.float64)),
                "other": ArrayWeight(W),
            },
        )
    assert str(caught.value).startswith(
        "`w` is f32[2, 3], expected f32[4, 3]; `gain` is f64[4], expected f32[4]; "
        "`other` is no tensor that the weights follow from"
    )
    np.testing.assert_array_equal(store["w"].numpy(), W)


def test_values_folded_for_good_are_refused() -> None:
    store = _store()
    store.add("w.exp", ArrayWeight(np.exp(W), made_from=("w",)), Role.PARAM)
    with pytest.raises(UsageError, match=r"`w\.exp` was computed from `w` for good"):
        rebind(store, {"w": ArrayWeight(W)})


def test_name_that_means_two_tensors_is_refused() -> None:
    store = _store()
    store.set("w", ArrayWeight(W * 2))  # a pass gave the name another meaning
    with pytest.raises(UsageError, match="`w` names 2 tensors"):
        rebind(store, {"w": ArrayWeight(W)})
