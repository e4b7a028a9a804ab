"""Emits modules as PyTorch source and runs them: a trainable `nn.Module` from an IR module.

Importing this package imports torch; `regraft.to_torch` does so on first use.
"""
