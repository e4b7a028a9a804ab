"""The ONNX backend: profiles `onnx`, `ort-cpu`, `ort-cuda`."""

from regraft.backends.onnx.save import to_proto

__all__ = ["to_proto"]
