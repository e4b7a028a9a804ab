"""Several nodes as one call of a kernel.

* A product with a stored matrix, a bias and an activation: `kernels.linear(x, w, b, "gelu")`.
  A product alone stays `F.linear`: nothing would be saved, and the vendor's library runs it.
  Products that gain from other chains around them come first: see `product_regions`.
* A residual sum and the norm of it: `y, total = kernels.add_layer_norm(x, residual, w, b)`.
* An activation and a product with another value: `kernels.swiglu(gate, up)`.
* Queries and keys turned by the same angles: `q, k = kernels.rope(q, k, cos, sin)`.
* Logits, their softmax and the labels' share: `kernels.linear_cross_entropy(x, w, labels)`, or
  `kernels.cross_entropy(logits, labels)` where something else reads the logits.
* Newton's steps to the inverse of small matrices: `kernels.newton_inverse(a, start, steps=20)`.

Of what these leave, chains become generated kernels: see `regions`.
"""

from __future__ import annotations

from collections.abc import Sequence

from regraft.backends.torch import peepholes
from regraft.backends.torch.emitter import Absorbed, EmitContext
from regraft.backends.torch.graph_emitter import GraphEmitter
from regraft.backends.torch.ops.params import call_text
from regraft.backends.triton.kernel_calls import KernelCalls, fits
from regraft.backends.triton.kernel_emits import is_row_norm, is_whole_rotation, tables_of
from regraft.backends.triton.kernels import (
    gated,
    linear,
    logit_losses,
    newton,
    norms,
    rope,
    vocabulary_loss,
)
from regraft.backends.triton.loss_fusion import LOSSES, head_of, labels_of, logits_of, softmax_in
from regraft.backends.triton.newton_fusion import Inverse, inverses
from regraft.ir.graph import Node, Value
from regraft.ir.ops.activation import gelu, relu, swish
from regraft.ir.ops.arithmetic import add, mul, sub
from regraft.ir.ops.linalg import matmul
from regraft.ir.ops.loss import nll_loss
from regraft.ir.ops.norm import layer_norm, rms_norm
from regraft.ir.ops.rotary import rotary_embedding
from regraft.ir.types import DType

Group = dict[Node, Absorbed]


class KernelFusions:
    """Finds and emits the forms above; those of PyTorch apply to what is left.

    Args:
        calls: Notes which kernels are called.
    """

    def __init__(self, calls: KernelCalls) -> None:
        self.calls = calls
        self._partners: dict[Node, Node] = {}  # the node that is emitted -> what it took in first
        self._inverses: dict[Node, Inverse] = {}

    def find(self, nodes: Sequence[Node]) -> Group:
        """Returns the nodes that others take in; cost O(nodes)."""
        inside = set(nodes)
        usual = peepholes.find(nodes)
        found: Group = dict(usual)
        for node in nodes:
            if node.op in LOSSES:
                self._note(node, self._head_of(node, inside, found), found)
        self._note_inverses(nodes, found)
        lost = {node for node, taken in found.items() if usual.get(node) != taken}
        generated, activated = self.calls.generated, self._activated(nodes, inside)
        found |= generated.find_products(nodes, self._left(found), lost, activated)
        turned: dict[tuple[object, ...], Node] = {}
        for node in nodes:
            if node in found or generated.is_called(node):
                continue
            if node.op is mul:
                self._note(node, self._gate_of(node, inside), found)
            elif node.op is layer_norm or node.op is rms_norm:
                self._note(node, _residual_of(node, inside), found)
            elif node.op is rotary_embedding:
                self._note(node, _other_rotation(node, inside, turned), found)
        for node in nodes:
            if node in found or node in self._partners or generated.is_called(node):
                continue
            product = _product_of(node, inside)
            if product is not None and product not in self._partners and product not in found:
                if generated.is_called(product):
                    continue
                self._partners[node] = product
                _take(found, product, node)
        places = {node: taken.by for node, taken in found.items()}
        return {**found, **generated.find(nodes, self._left(found), places)}

    def _note(self, node: Node, taken: Node | None, found: Group) -> None:
        """Lets a node take in another one that is free."""
        if taken is not None and taken not in found and not self.calls.generated.is_called(taken):
            self._partners[node] = taken
            found[taken] = Absorbed(node)

    def _note_inverses(self, nodes: Sequence[Node], found: Group) -> None:
        """Lets the last node of each of Newton's iterations take in all of it."""
        for node, inverse in inverses(nodes):
            if found.keys().isdisjoint((node, *inverse.taken)):
                self._inverses[node] = inverse
                self._partners[node] = inverse.taken[-1]
                found |= dict.fromkeys(inverse.taken, Absorbed(node))

    def _left(self, found: Group) -> set[Node]:
        """Returns the nodes that forms written by hand compute, so far."""
        return {*found, *self._partners, *(taken.by for taken in found.values())}

    def _activated(self, nodes: Sequence[Node], inside: set[Node]) -> dict[Node, Node]:
        """Returns the activations that `linear` takes, by product; gates are taken otherwise."""
        gates = {self._gate_of(node, inside) for node in nodes if node.op is mul}
        found = {}
        for node in nodes:
            taken = None if node in gates else _product_of(node, inside)
            if taken is not None:
                found[_split(taken)[0]] = node
        return found

    @staticmethod
    def _head_of(node: Node, inside: set[Node], found: Group) -> Node | None:
        """Returns the product or softmax that a loss takes in, and takes in all between them."""
        taken = head_of(node, inside)
        if taken is None:
            taken = softmax_in(node, inside)
        if taken is None or not found.keys().isdisjoint(taken):
            return None
        *between, product = taken
        for each in between:
            found[each] = Absorbed(node)
        moved = product.inputs[1].producer if product.op is matmul and product.inputs[1] else None
        if moved is not None and moved in found:
            found[moved] = Absorbed(node)
        return product

    @staticmethod
    def _gate_of(node: Node, inside: set[Node]) -> Node | None:
        """Returns the activation that a product reads alone, its operands of one shape."""
        left, right = node.inputs
        if left is None or right is None or left.shape != right.shape or not fits(left, right):
            return None
        for gate in (left, right):
            made = gate.producer
            is_gate = made in inside and _activation(made) in gated.GATED_ACTIVATIONS
            if is_gate and gate.num_uses == 1 and gate.shape is not None:
                return made
        return None

    def emit(self, e: EmitContext, graph: GraphEmitter) -> str | None:
        """Returns the call of a kernel for a node that took others in; else PyTorch's form."""
        node, taken = e.node, self._partners.get(e.node)
        generated = self.calls.generated.emit(e, graph)
        if generated is not None:
            return generated
        if taken is None or graph.absorbed.get(taken) != Absorbed(node):
            return peepholes.emit(e, graph)
        if node.op is sub:
            return self._inverse(e)
        if node.op is mul:
            return self._gated(e, taken)
        if node.op is rotary_embedding:
            return self._rope(e, taken)
        if node.op in LOSSES:
            return self._loss(e, taken)
        if node.op is layer_norm or node.op is rms_norm:
            return self._added_norm(e, taken)
        return self._linear(e, taken)

    def _linear(self, e: EmitContext, taken: Node) -> str:
        product, bias = _split(taken)
        operands = peepholes.linear_operands(e.graph, product, bias)
        if bias is None:
            operands += ", None"
        return f'{self.calls.name(linear.linear)}({operands}, "{_activation(e.node)}")'

    def _loss(self, e: EmitContext, product: Node) -> str:
        labels, is_whole = labels_of(e.node), e.node.op is nll_loss
        if labels is None:
            raise AssertionError("a loss without labels")
        target = e.name(labels) if labels.dtype is DType.I64 else f"{e.name(labels)}.long()"
        ignored = e.attr("ignore_index") if is_whole else None
        reduction = e.attr("reduction") if is_whole else "none"
        if product.op is matmul:
            call = self.calls.name(vocabulary_loss.linear_cross_entropy)
            operands = self._rows(e, product)
        else:
            logits = logits_of(product)
            if logits is None:
                raise AssertionError("a softmax without an operand")
            call, operands = self.calls.name(logit_losses.cross_entropy), e.name(logits)
        return call_text(
            call,
            operands,
            target,
            ignore_index=None if ignored in (None, -100) else str(ignored),
            reduction=None if reduction == "mean" else f'"{reduction}"',
        )

    def _rows(self, e: EmitContext, product: Node) -> str:
        """Returns the operands of a head whose loss has a label per row."""
        x, w = product.inputs[0], product.inputs[1]
        if x is None or x.shape is None or w is None:
            raise AssertionError("a head without operands")
        rows = e.graph.expression(x)
        if len(x.shape) != 2:
            rows = f"torch.flatten({rows}, 0, -2)"
        return f"{rows}, {e.graph.transposed(w)}"

    def _inverse(self, e: EmitContext) -> str:
        found = self._inverses[e.node]
        call = self.calls.name(newton.newton_inverse)
        return f"{call}({e.name(found.matrix)}, {e.name(found.start)}, steps={found.steps})"

    def _gated(self, e: EmitContext, gate: Node) -> str:
        up = next(v for v in e.node.inputs if v is not None and v is not gate.output)
        source = gate.inputs[0]
        if source is None:
            raise AssertionError("an activation without an operand")
        operands = f"{e.name(source)}, {e.name(up)}"
        match _activation(gate):
            case "silu":
                return f"{self.calls.name(gated.swiglu)}({operands})"
            case "gelu":
                return f"{self.calls.name(gated.geglu)}({operands})"
            case _:
                return f'{self.calls.name(gated.geglu)}({operands}, "tanh")'

    def _added_norm(self, e: EmitContext, total: Node) -> str:
        added = [e.name(value) for value in total.inputs if value is not None]
        is_layer = e.node.op is layer_norm
        call = self.calls.name(norms.add_layer_norm if is_layer else norms.add_rms_norm)
        gains = [e.name(value) for value in e.node.inputs[1:] if value is not None]
        text = f"{call}({', '.join([*added, *gains])}, eps={e.attr('epsilon')!r})"
        if total.output.num_uses == 1:
            return f"{text}[0]"
        y, kept = e.graph.unpacked(text, ("normal", "total"))
        e.graph.bind(total.output, kept)
        return y

    def _rope(self, e: EmitContext, first: Node) -> str:
        before = first.inputs[0]
        if before is None:
            raise AssertionError("a rotary embedding without an operand")
        settings = ", interleaved=True" if e.attr("interleaved") else ""
        operands = ", ".join([e.name(before), e.input(0), *tables_of(e)])
        text = f"{self.calls.name(rope.rope)}({operands}{settings})"
        one, two = e.graph.unpacked(text, ("turned", "turned"))
        e.graph.bind(first.output, one)
        return two


def _take(found: Group, product: Node, node: Node) -> None:
    """Lets an activation take in a sum and the product that the sum took in."""
    found[product] = Absorbed(node)
    inner, _ = _split(product)
    if inner is not product:
        found[inner] = Absorbed(node)
    moved = None if inner.inputs[1] is None else inner.inputs[1].producer
    if moved is not None and moved in found:
        found[moved] = Absorbed(node)


def _split(taken: Node) -> tuple[Node, Value | None]:
    """Returns the matrix product of `x @ w` or `x @ w + b`, and b."""
    if taken.op is matmul:
        return taken, None
    product = peepholes.biased_product(taken)
    if product is None:
        raise AssertionError("a sum that is no linear layer")
    return product, next(v for v in taken.inputs if v is not None and v is not product.output)


def _product_of(node: Node, inside: set[Node]) -> Node | None:
    """Returns the linear layer, with or without bias, that an activation reads alone."""
    made = None if _activation(node) is None or node.inputs[0] is None else node.inputs[0].producer
    if made is None or made not in inside or made.output.num_uses != 1:
        return None
    product = peepholes.biased_product(made) if made.op is add else made
    if product is None or product not in inside or product.op is not matmul:
        return None
    is_linear = peepholes.is_stored_matrix(product.inputs[1]) and fits(*product.inputs)
    bias = [] if made is product else [v for v in made.inputs if v is not product.output]
    return made if is_linear and fits(product.output, *bias) else None


def _activation(node: Node | None) -> str | None:
    """Returns what kernels call an activation, None for other operators."""
    if node is None:
        return None
    if node.op is relu:
        return "relu"
    if node.op is swish:
        return "silu" if node.attrs["alpha"] == 1 else None
    if node.op is gelu:
        return "gelu_tanh" if node.attrs["tanh"] else "gelu"
    return None


def _residual_of(node: Node, inside: set[Node]) -> Node | None:
    """Returns the sum that a norm reads, which everything else reads after the norm."""
    total = node.inputs[0]
    made = None if total is None else total.producer
    if total is None or made is None or made.op is not add or made not in inside:
        return None
    if not is_row_norm(node):
        return None
    left, right = made.inputs
    if left is None or right is None or left.shape is None or left.shape != right.shape:
        return None
    if not fits(left, right) or peepholes.biased_product(made) is not None:
        return None
    others = [user for user, _ in total.uses if isinstance(user, Node) and user is not node]
    # a part that reads the sum is called where its first node stands, which may be before the norm
    is_first = all(user in inside and node.is_before(user) for user in others)
    return made if is_first else None


def _other_rotation(
    node: Node, inside: set[Node], turned: dict[tuple[object, ...], Node]
) -> Node | None:
    """Returns an earlier rotation by the same angles that nothing read yet, once."""
    if not is_whole_rotation(node):
        return None
    x = node.inputs[0]
    shape = None if x is None or x.shape is None else (x.shape[0], *x.shape[2:])
    key = (*node.inputs[1:], node.attrs["interleaved"], shape)
    first = turned.pop(key, None)
    if first is None:
        turned[key] = node
        return None
    users = [user for user, _ in first.output.uses if isinstance(user, Node)]
    is_unread = all(user in inside and node.is_before(user) for user in users)
    return first if is_unread else None
