"""The maps of one or several files as one tensor, so that one call gathers rows of all, on several cores.

In: memory maps of one row shape and type, wherever they lie in memory. Out: a tensor, of which only the rows of the
maps are ever read. Rows that were copied file by file took a fifth longer (``benchmarks/README.md``).
"""

import math
import sys
import warnings

import numpy as np
import torch
from numpy.lib.stride_tricks import as_strided


class JoinedMaps:
    """The maps of one or several files as one tensor, so that one call gathers rows of all.

    Its rows overlap and fill all memory from the lowest map to the highest: one begins at every step of a size that
    leads from map to map and from row to row. Only those are read whose numbers ``take`` computes, the rows of files.
    """

    def __init__(self, maps: list[np.ndarray], distances: dict[int, int], step: int, num_rows: int) -> None:
        self._maps = maps  # which keeps them mapped
        base = maps[min(distances, key=distances.__getitem__)]
        self._steps = base[0].nbytes // step
        self._firsts = np.array([distances.get(number, 0) // step for number in range(len(maps))], dtype=np.int64)
        rows = as_strided(base, (num_rows, *base.shape[1:]), (step, *base.strides[1:]), writeable=False)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            self._tensor = torch.from_numpy(rows)

    @classmethod
    def of(cls, maps: list[np.ndarray]) -> "JoinedMaps | None":
        """Return the maps as one, or None if there is no step of whole values from map to map, too many, or no row."""
        addresses = {number: array.ctypes.data for number, array in enumerate(maps) if len(array)}
        if not addresses:
            return None
        lowest = min(addresses.values())
        distances = {number: address - lowest for number, address in addresses.items()}
        item_bytes, row_bytes = maps[0].itemsize, maps[0].itemsize * math.prod(maps[0].shape[1:])
        last = max(distance + (len(maps[number]) - 1) * row_bytes for number, distance in distances.items())
        step = math.gcd(row_bytes, *distances.values())
        num_rows = last // step + 1
        too_many = num_rows * row_bytes > sys.maxsize  # which NumPy refuses, although they overlap
        return None if step % item_bytes or too_many else cls(maps, distances, step, num_rows)

    def take(self, part: np.ndarray, row: np.ndarray, out: torch.Tensor) -> None:
        """Copy the row (b,) of the part (b,) into ``out`` (b, T, F), converted if need be."""
        numbers = torch.from_numpy(self._firsts[part] + row * self._steps)
        if out.dtype == self._tensor.dtype:
            torch.index_select(self._tensor, 0, numbers, out=out)
        else:
            out.copy_(torch.index_select(self._tensor, 0, numbers))
