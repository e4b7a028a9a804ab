"""The ONNX backend: profiles `onnx`, `ort-cpu`, `ort-cuda`."""

from regraft.backends.onnx.save import PROFILES, Watch, save_onnx, to_proto

__all__ = ["PROFILES", "Watch", "save_onnx", "to_proto"]
