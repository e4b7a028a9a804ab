"""Weights that were computed and are large: on disk, for as long as somebody holds them."""

import gc

import ml_dtypes
import numpy as np

from regraft.ir.spill import IN_MEMORY_BYTES, stored
from regraft.ir.weights import ArrayWeight, MappedWeight


def test_small_arrays_stay_in_memory(tmp_path):
    weight = stored(np.arange(8.0, dtype=np.float32), tmp_path, ("w",))
    assert isinstance(weight, ArrayWeight)
    assert weight.made_from == ("w",)
    assert list(tmp_path.iterdir()) == []


def test_large_arrays_are_in_a_file_that_goes_with_the_weight(tmp_path):
    array = np.random.default_rng(0).integers(-8, 8, (2 * IN_MEMORY_BYTES, 2)).astype(np.int8)
    weight = stored(array.astype(ml_dtypes.int4), tmp_path, ("w",))
    assert isinstance(weight, MappedWeight)
    assert weight.made_from == ("w",)
    (file,) = tmp_path.iterdir()
    assert file.stat().st_size == 2 * IN_MEMORY_BYTES  # packed: two codes in a byte
    assert (weight.numpy().astype(np.int8) == array).all()
    other = weight
    del weight
    gc.collect()
    assert file.exists()
    del other
    gc.collect()
    assert not file.exists()
