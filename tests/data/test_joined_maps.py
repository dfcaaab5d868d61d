"""Maps as one tensor: wherever they lie in memory, and none where that cannot be."""

import ctypes

import numpy as np
import pytest
import torch

from egoaudio.data.joined_maps import JoinedMaps


def test_maps_too_far_apart_to_be_one_are_gathered_one_by_one():
    """Two at ends of the address space: as one array, with a row at every fourth byte, they would have 2**64 bytes."""
    library, width = ctypes.CDLL(None), (1 << 18) + 3
    library.mmap.restype = ctypes.c_void_p
    maps = []
    for hint in (1 << 44, 6 << 44):
        address = library.mmap(ctypes.c_void_p(hint), ctypes.c_size_t(4 * width), 3, 0x22, -1, ctypes.c_long(0))
        maps.append(np.frombuffer((ctypes.c_float * width).from_address(address), np.float32).reshape(1, 1, width))
    if maps[1].ctypes.data - maps[0].ctypes.data < 1 << 46:
        pytest.skip("the kernel places maps elsewhere")
    assert JoinedMaps.of(maps) is None and JoinedMaps.of(maps[:1]) is not None


def test_files_without_rows_are_part_of_one_tensor():
    maps = [np.empty((0, 2, 3), np.float32), np.arange(12, dtype=np.float32).reshape(2, 2, 3)]
    out = torch.empty(3, 2, 3)
    JoinedMaps.of(maps).take(np.array([1, 1, 1]), np.array([1, 0, 1]), out)
    np.testing.assert_array_equal(out, maps[1][[1, 0, 1]])
    assert JoinedMaps.of(maps[:1]) is None
