"""Attention whose memory does not grow with the text: linear, hybrid, and softmax-free forms."""

from regraft.passes.linearization.canonicalize_recurrence import CanonicalizeRecurrence
from regraft.passes.linearization.carry_states import CarryStates
from regraft.passes.linearization.linearize_attention import LinearizeAttention
from regraft.passes.protocol import Pass

PASSES: tuple[type[Pass], ...] = (LinearizeAttention, CarryStates, CanonicalizeRecurrence)
