"""The ONNX frontend."""

from regraft.frontends.onnx.load import load_onnx

__all__ = ["load_onnx"]
