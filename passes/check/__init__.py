"""Checking rewrites: samples, comparison of outputs, and the module check."""
