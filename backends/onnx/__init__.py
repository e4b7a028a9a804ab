"""The ONNX backend: profiles `onnx`, `ort-cpu`, `ort-cuda`."""

from regraft.backends.onnx.save import PROFILES, save_onnx, to_proto

__all__ = ["PROFILES", "save_onnx", "to_proto"]
