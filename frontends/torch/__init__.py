"""Captures PyTorch modules, exported programs and `fx` graphs into the IR.

Importing `regraft.frontends.torch.capture` imports torch; `regraft.capture` does so on first use.
"""
