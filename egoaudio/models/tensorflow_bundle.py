"""TensorFlow's checkpoints (bundles), read without TensorFlow: tensors by key.

In: ``PREFIX.index``, a table in LevelDB's format (blocks of keys with shared beginnings) from keys to positions, and
``PREFIX.data-00000-of-00001``, the tensors one after another. Out: float32 arrays with verified checksums.
Sources: TensorFlow's ``tensor_bundle.proto`` and ``lib/io/table_format.txt``;
https://github.com/google/leveldb/blob/main/doc/table_format.md.
"""

import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from egoaudio.models.crc32c import masked_crc32c
from egoaudio.models.published_files import DamagedFile, Fields, Files, Messages, number, part, parts, read_varint

MAX_INDEX_BYTES = 2**24  # YAMNet's has 8 KB
MAX_KEY_BYTES = 4096  # keys share their beginnings with the previous key: a small table could expand to terabytes
TABLE_MAGIC = 0xDB4775248B80FB57
FOOTER_BYTES = 48
TRAILER_BYTES = 5  # after a block: compression and checksum
FLOAT = 1  # DT_FLOAT


@dataclass(frozen=True)
class Tensor:
    """A tensor that can be read; ``read()`` returns it, float32, or raises ``DamagedFile``."""

    shape: tuple[int, ...]
    is_float: bool
    read: Callable[[], np.ndarray]


class Bundle:
    """The checkpoint ``PREFIX.index`` and ``PREFIX.data-*`` of a folder or zip.

    Parameters
    ----------
    files : Files
        The folder or zip.
    prefix : str
        Name of the index without ``.index``.

    Attributes
    ----------
    tensors : dict of str to Tensor
        By key, such as ``_yamnet/layer_with_weights-0/kernel/.ATTRIBUTES/VARIABLE_VALUE``.

    Raises
    ------
    DamagedFile
        If the index is not valid.
    """

    def __init__(self, files: Files, prefix: str) -> None:
        self._files, self._prefix = files, prefix
        self._shards: dict[int, memoryview] = {}
        index = memoryview(files.read(f"{prefix}.index"))
        if len(index) > MAX_INDEX_BYTES:
            raise DamagedFile(f"{prefix}.index has {len(index):,} bytes; expected at most {MAX_INDEX_BYTES:,}")
        messages = Messages()
        entries = {key.decode("utf-8", "replace"): messages.read(value) for key, value in _table(index)}
        header = entries.pop("", {})
        self._num_shards = number(header, 1)
        if self._num_shards < 1 or number(header, 2) != 0:
            raise DamagedFile(
                f"{prefix}.index: {self._num_shards} parts, byte order {number(header, 2)}; "
                "expected at least one, little-endian (0)"
            )
        self.tensors = {}
        for key, entry in entries.items():
            dimensions = (messages.read(dimension) for dimension in parts(messages.read(part(entry, 2)), 2))
            shape = tuple(number(dimension, 1) for dimension in dimensions)
            self.tensors[key] = Tensor(shape, number(entry, 1) == FLOAT, self._reader(key, entry, shape))

    def _reader(self, key: str, entry: Fields, shape: tuple[int, ...]) -> Callable[[], np.ndarray]:
        """Return the function that reads the tensor ``key``."""

        def read() -> np.ndarray:
            offset, size, shard = number(entry, 4), number(entry, 5), number(entry, 3)
            if shard not in self._shards:
                self._shards[shard] = memoryview(
                    self._files.read(f"{self._prefix}.data-{shard:05d}-of-{self._num_shards:05d}")
                )
            values = self._shards[shard][offset : offset + size]
            if len(values) != size:
                raise DamagedFile(
                    f"{self._prefix}: {key} is {size:,} bytes from byte {offset:,} on, but {len(values):,} are there: "
                    "the data are truncated"
                )
            if size != 4 * math.prod(shape):
                raise DamagedFile(f"{self._prefix}: {key} of shape {shape} has {size:,} bytes")
            if masked_crc32c(values) != number(entry, 6):
                raise DamagedFile(f"{self._prefix}: {key} has a wrong checksum: the data are damaged")
            return np.frombuffer(values, "<f4").reshape(shape)

        return read


def _table(table: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """Yield (key, value) of a whole table."""
    if len(table) < FOOTER_BYTES or struct.unpack("<Q", table[-8:])[0] != TABLE_MAGIC:
        raise DamagedFile("is not the index of a TensorFlow checkpoint, or is truncated: its last bytes are wrong")
    footer = table[-FOOTER_BYTES:]
    _, _, place = _handle(footer, 0)  # of the index of metadata, which is empty
    before = 0
    for _, handle in _block(table, *_handle(footer, place)[:2]):
        offset, size, _ = _handle(handle, 0)
        if offset < before:  # a small file could name the same block again and again
            raise DamagedFile("the blocks of the index overlap")
        before = offset + size
        yield from _block(table, offset, size)


def _handle(data: memoryview, place: int) -> tuple[int, int, int]:
    """Return (offset, size) of the block whose handle is at ``place``, and the handle's end."""
    offset, place = read_varint(data, place)
    size, place = read_varint(data, place)
    return offset, size, place


def _block(table: memoryview, offset: int, size: int) -> Iterator[tuple[bytes, memoryview]]:
    """Yield (key, value) of one block."""
    if offset + size + TRAILER_BYTES > len(table):
        raise DamagedFile(f"a block of {size:,} bytes at byte {offset:,} of an index of {len(table):,}")
    block, compression = table[offset : offset + size], table[offset + size]
    stored = int.from_bytes(table[offset + size + 1 : offset + size + TRAILER_BYTES], "little")
    if masked_crc32c(table[offset : offset + size + 1]) != stored:
        raise DamagedFile(f"the index has a wrong checksum at byte {offset:,}: it is damaged")
    if compression:
        raise DamagedFile(f"the index is compressed ({compression}), unlike TensorFlow's checkpoints")
    end = size - 4 - 4 * int.from_bytes(block[-4:], "little")  # before the restarts, which serve to search
    if size < 4 or end < 0:
        raise DamagedFile(f"the block at byte {offset:,} of the index has no end")
    key, place = b"", 0
    while place < end:
        shared, place = read_varint(block, place)
        unshared, place = read_varint(block, place)
        length, place = read_varint(block, place)
        if shared > len(key) or shared + unshared > MAX_KEY_BYTES or place + unshared + length > end:
            raise DamagedFile(f"an entry of the index does not fit in its block, at byte {offset + place:,}")
        key = key[:shared] + bytes(block[place : place + unshared])
        yield key, block[place + unshared : place + unshared + length]
        place += unshared + length
