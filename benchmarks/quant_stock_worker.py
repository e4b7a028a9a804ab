"""ONNX Runtime's own quantizer of weights to 4 bits: `… FILE FOLDER`, run by the peers' Python."""

import sys
from pathlib import Path

import onnx
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer


def quantize(path: Path, out: Path) -> None:
    """Quantizes an ONNX file to 4 bits in groups of 32 without data, and saves it."""
    out.mkdir(parents=True, exist_ok=True)
    tool = MatMulNBitsQuantizer(onnx.load(path), block_size=32, is_symmetric=False)
    tool.process()
    tool.model.save_model_to_file(str(out / "model.onnx"), use_external_data_format=True)


if __name__ == "__main__":
    quantize(Path(sys.argv[1]), Path(sys.argv[2]))
