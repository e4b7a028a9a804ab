"""What operators ask of their operands, said before a kernel reads memory by their shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

PRECISIONS = ("ieee", "tf32", "tf32x3")
"""How `tl.dot` multiplies f32."""
_WHOLE_DTYPES = (torch.int64, torch.int32)


def described(x: Tensor) -> str:
    """Returns dtype, shape and device of x for an error."""
    return f"{str(x.dtype).removeprefix('torch.')}{list(x.shape)} on {x.device}"


def check_operands(
    what: str,
    mixed: Sequence[str] = (),
    /,
    **operands: tuple[Tensor | None, Sequence[Any] | None],
) -> None:
    """Raises where an operator's floats do not go together.

    Args:
        what: The operator.
        mixed: Names of operands whose dtype need not be that of the first.
        operands: By name, the tensor and its shape; None: any shape.

    Raises:
        TypeError: One is no float, or has another dtype than the first.
        ValueError: One has another shape or another device.
    """
    first: Tensor | None = None
    for name, (x, shape) in operands.items():
        if x is None:
            continue
        first = x if first is None else first
        if not x.is_floating_point():
            raise TypeError(f"{what}: `{name}` is {described(x)}; expected f32, f16 or bf16")
        if x.dtype != first.dtype and name not in mixed:
            raise TypeError(
                f"{what}: `{name}` is {described(x)}; expected {first.dtype}, as the "
                f"first operand, {described(first)}\n"
                f"hint: convert it with `.to({first.dtype})`"
            )
        if x.device != first.device:
            raise ValueError(
                f"{what}: `{name}` is {described(x)}; expected {first.device}, as the first "
                f"operand, {described(first)}"
            )
        if shape is not None and tuple(x.shape) != tuple(shape):
            raise ValueError(f"{what}: `{name}` is {described(x)}; expected {list(shape)}")


def check_counts(
    what: str, name: str, x: Tensor | None, shape: Sequence[Any], like: Tensor
) -> None:
    """Raises where whole numbers that an operator reads have another shape, dtype or device."""
    if x is None:
        return
    if x.dtype not in _WHOLE_DTYPES:
        raise TypeError(f"{what}: `{name}` is {described(x)}; expected int64 or int32")
    if tuple(x.shape) != tuple(shape) or x.device != like.device:
        raise ValueError(
            f"{what}: `{name}` is {described(x)}; expected {list(shape)} on {like.device}"
        )


def check_broadcast(
    what: str, name: str, x: Tensor | None, shape: Sequence[Any], like: Tensor
) -> None:
    """Raises ValueError where x does not broadcast to a shape, or is on another device."""
    if x is None:
        return
    sizes = zip(reversed(x.shape), reversed(shape), strict=False)
    is_broadcast = x.ndim <= len(shape) and all(size in (1, whole) for size, whole in sizes)
    if not is_broadcast or x.device != like.device:
        raise ValueError(
            f"{what}: `{name}` is {described(x)}; expected what broadcasts to {list(shape)} on "
            f"{like.device}"
        )


def check_choice(what: str, name: str, given: str, choices: Sequence[str]) -> None:
    """Raises ValueError where a setting is none of its choices."""
    if given not in choices:
        raise ValueError(f"{what}: {name} `{given}` is not one of {', '.join(choices)}")


def in_autocast(*tensors: Tensor | None) -> tuple[Any, ...]:
    """Returns what a product multiplies: within `torch.autocast` floats of its dtype."""
    device = next(x.device.type for x in tensors if x is not None)
    # tensors without memory have no autocast: asking for it raises
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(
        x.to(dtype) if x is not None and x.dtype in (torch.float32, torch.float16, torch.bfloat16)
        else x
        for x in tensors
    )  # fmt: skip


def check_attention(
    what: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    lengths: Tensor | None,
    sinks: Tensor | None,
    window: tuple[int, int],
    softcap: float,
    precision: str,
) -> None:
    """Raises where operands or settings of attention, whose queries are [B, H, S, D], are wrong."""
    is_ranked = q.ndim == k.ndim == v.ndim == 4 and k.shape[1] > 0
    if not is_ranked or (
        q.shape[1] % k.shape[1]
        or k.shape[:3] != v.shape[:3]
        or (q.shape[0], q.shape[3]) != (k.shape[0], k.shape[3])
    ):
        raise ValueError(
            f"{what}: q {list(q.shape)}, k {list(k.shape)}, v {list(v.shape)}; expected "
            "[B, H, S, D], [B, G, T, D], [B, G, T, E] where G divides H"
        )
    check_operands(
        what, ("sinks",), q=(q, None), k=(k, None), v=(v, None), sinks=(sinks, q.shape[1:2])
    )
    check_counts(what, "lengths", lengths, q.shape[:1], q)
    check_broadcast(what, "mask", mask, (*q.shape[:3], k.shape[2]), q)
    if mask is not None and mask.dtype != torch.bool and not mask.is_floating_point():
        raise TypeError(
            f"{what}: `mask` is {described(mask)}; expected bool (False hides) or floats (added)\n"
            "hint: `mask != 0` makes the first of 0 and 1"
        )
    if min(window) < -1 or softcap < 0:
        raise ValueError(
            f"{what}: window {window}, softcap {softcap}; expected at least -1 (all keys) on both "
            "sides, and a cap above 0, or 0 for none"
        )
    check_choice(what, "precision", precision, PRECISIONS)
