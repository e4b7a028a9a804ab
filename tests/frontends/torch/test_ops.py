"""Every importer of an overload against PyTorch on example calls."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="importers of PyTorch calls are compared with PyTorch")
pytest.importorskip("transformers.integrations.moe", reason="one overload is of transformers")

from tests.frontends.torch import (  # they make tensors
    array_calls,
    complex_calls,
    group_calls,
    layer_calls,
    movement_calls,
    pointwise_calls,
)
from tests.frontends.torch.calls import (
    TABLE,
    Call,
    argument_names,
    check_call,
    exists,
)

CALLS = (
    *pointwise_calls.CALLS,
    *movement_calls.CALLS,
    *array_calls.CALLS,
    *layer_calls.CALLS,
    *complex_calls.CALLS,
    *group_calls.CALLS,
)


@pytest.mark.parametrize("item", CALLS, ids=str)
def test_call_equals_pytorch(item: Call) -> None:
    check_call(item)


def test_in_place_calls_name_their_arguments_as_the_functional_ones_do() -> None:
    # the importer of the functional call reads the arguments of an in-place one by name
    different = []
    for functional in TABLE.targets():
        namespace, name, kind = functional.split(".")
        in_place = f"{namespace}.{name}_.{kind}"
        if not exists(functional) or not exists(in_place):
            continue
        if argument_names(in_place) != argument_names(functional):
            different.append(functional)
    # dropout out of training takes both spellings
    assert sorted(different) == [
        f"aten.{name}.default"
        for name in ("alpha_dropout", "dropout", "feature_alpha_dropout", "feature_dropout")
    ]


def test_every_overload_has_an_example() -> None:
    have = {item.target for item in CALLS}
    missing = [
        target
        for target in TABLE.targets()
        # our own are calls of a capture, with an example in `test_recurrent.py`
        if target not in have and exists(target) and not target.startswith("regraft.")
    ]
    assert not missing, f"overloads without an example: {missing}"
