"""Writes how a product with chains is differentiated: kernels of the chains' gradients.

The product is left to the vendor's library. The chain before it gets a kernel of its own as well,
since the gradient of the matrix needs the rows that the forward kernel never stores.
"""

from __future__ import annotations

from dataclasses import dataclass

from regraft.backends.triton.chain_gradients import gradients_of
from regraft.backends.triton.chain_kernel import PLACE
from regraft.backends.triton.chain_places import shape_of
from regraft.backends.triton.chain_source import BY_REFERENCE, kernel_text
from regraft.backends.triton.chain_steps import Lowering
from regraft.backends.triton.gradient_source import GradientWriter
from regraft.backends.triton.product_kernel import PRODUCT, ProductKernelWriter, chain_of

BEFORE, AFTER = f"{PLACE}_prologue", f"{PLACE}_epilogue"
"""Names of what stands before a product and after it."""
_NONE = "None"
_SHARED = ("ChainGradient", "product_gradients", "keep_operands_and_shapes")


@dataclass(frozen=True, slots=True)
class ProductGradient:
    """How a product with chains is differentiated.

    Args:
        texts: Statements.
        needs: Functions of the kernels that they use.
        variables: What they name as the model does.
        gradient: As `KernelText` has it.
    """

    texts: tuple[str, ...]
    needs: tuple[str, ...]
    variables: tuple[str, ...]
    gradient: str


@dataclass(frozen=True, slots=True)
class _Part:
    """The gradient of one chain; `chain` is the expression that says how it is differentiated."""

    text: str
    needs: tuple[str, ...]
    variables: tuple[str, ...]
    gradient: str
    chain: str


def gradient_text(kernel: ProductKernelWriter) -> ProductGradient:
    """Returns what follows the operator of a product."""
    before, after, is_read = _before(kernel), *_after(kernel)
    parts = [part for part in (before, after) if part is not None]
    core = kernel.region.core
    call = f"""def _differentiate_{PLACE}(
    ctx: Any, *gradients: Tensor
) -> tuple[Tensor | None, ...]:
    return product_gradients(
        ctx,
        gradients,
        {_NONE if before is None else BEFORE},
        {_NONE if before is None else before.chain},
        {_NONE if after is None else after.chain},
        {max(1, len(kernel.inputs))},
        has_bias={core.bias is not None},
        is_read={is_read},
    )


{PLACE}.register_autograd(
    _differentiate_{PLACE}, setup_context=keep_operands_and_shapes
)"""
    found = dict.fromkeys(part.gradient for part in parts)
    by_reference = [each for each in found if each.startswith("reference")]
    return ProductGradient(
        (*(part.text for part in parts), call),
        tuple(dict.fromkeys((*_SHARED, *(need for part in parts for need in part.needs)))),
        tuple(name for part in parts for name in part.variables),
        (*by_reference, *(["kernel"] if "kernel" in found else []), *found)[0],
    )


def _before(kernel: ProductKernelWriter) -> _Part | None:
    """Returns the kernels that make the rows of a product, and their gradient."""
    if kernel.before is None:
        return None
    made = kernel_text(chain_of(kernel.region, is_before=True), is_part=True)
    text = made.text.replace(PLACE, BEFORE)
    return _Part(text, made.needs, made.variables, made.gradient, f"_CHAIN_OF_{BEFORE}")


def _after(kernel: ProductKernelWriter) -> tuple[_Part | None, bool]:
    """Returns the gradient of what follows a product, and whether it depends on the product."""
    if not kernel.region.after:
        return None, False
    operands = tuple(op.value for op in kernel.after.operands)
    chain = chain_of(kernel.region, is_before=False, others=operands)
    lowering = Lowering(chain, called={kernel.region.core.result: PRODUCT})
    lowered = lowering.lowered()
    found = gradients_of(chain, lowering, lowered)
    if isinstance(found, str):
        text = f"_CHAIN_OF_{PLACE} = {BY_REFERENCE}"
        needs: tuple[str, ...] = ()
        variables, gradient = lowered.variables, f"reference ({found})"
        is_read = True
    else:
        shape = shape_of(lowered.operands, chain.space)
        written = GradientWriter(chain, lowered.operands, found, shape)
        parts = (written.text(), f"_CHAIN_OF_{PLACE} = {written.differentiated()}")
        text = "\n\n\n".join(filter(None, parts))
        needs = (*written.needs, *lowered.needs)
        variables = (*lowered.variables, *written.variables)
        gradient = "kernel" if written.outs else "handed through"
        is_read = any(op.name == PRODUCT for op in written.read)
    part = _Part(text.replace(PLACE, AFTER), needs, variables, gradient, f"_CHAIN_OF_{AFTER}")
    return part, is_read
