"""Captures PyTorch modules, exported programs and `fx` graphs into the IR.

Importing this package imports torch; `regraft.capture` does so on first use.
"""
