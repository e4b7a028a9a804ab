"""Files that one thread writes while another reads along."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from regraft.ir.errors import InputError
from regraft.ir.growth import Growth
from regraft.ir.types import DType
from regraft.ir.weights import MappedWeight


def test_a_weight_is_read_when_its_bytes_have_arrived(tmp_path: Path) -> None:
    path = tmp_path / "data"
    expected = np.arange(64, dtype=np.float32)
    with path.open("wb", buffering=0) as file, Growth() as growth, ThreadPoolExecutor(1) as pool:
        file.truncate(expected.nbytes)
        weight = MappedWeight(path, 0, DType.F32, expected.shape, growth)
        read = pool.submit(lambda: np.array(weight.numpy()))
        file.write(expected.tobytes()[:128])
        growth.advance(128)
        assert not read.done()
        file.write(expected.tobytes()[128:])
        growth.advance(expected.nbytes)
        np.testing.assert_array_equal(read.result(timeout=10), expected)


def test_who_waits_for_bytes_that_never_come_gets_an_error() -> None:
    with ThreadPoolExecutor(1) as pool:
        with Growth() as growth:
            growth.advance(100)
            waiting = pool.submit(growth.wait, 200)
        with pytest.raises(InputError, match="200 bytes; 100 were written"):
            waiting.result(timeout=10)
    growth.wait(100)
    assert isinstance(waiting.exception(), InputError)
