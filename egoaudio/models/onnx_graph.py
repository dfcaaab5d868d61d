"""ONNX models, read without the onnx package: a graph's nodes and its arrays.

In: the file's bytes, and a function that reads other files of its folder, which may hold large weights. Out: ``Graph``.
Source: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto (for the numbers of the fields).
"""

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from egoaudio.models.published_files import DamagedFile, Fields, Messages, number, part, parts, text

FLOAT_TYPES = {1: "<f4", 10: "<f2", 11: "<f8"}
EXTERNAL = 1  # data_location
MAX_DIMENSIONS = 8


@dataclass(frozen=True)
class Node:
    """An operation with at least one output; its attributes are numbers, tuples of integers, arrays or None."""

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Graph:
    """The nodes in the order of computation, and the constant arrays by name: float32, or None if not of floats."""

    nodes: list[Node]
    arrays: dict[str, np.ndarray | None]


def read_onnx(data: bytes, read_beside: Callable[[str], bytes]) -> Graph:
    """Return the graph of an ONNX model.

    Parameters
    ----------
    data : bytes
        The file.
    read_beside : callable
        Returns the contents of a file in the same folder by its name.

    Raises
    ------
    DamagedFile
        If it is not an ONNX model, or truncated.
    """
    return _Reader(read_beside).graph(memoryview(data))


class _Reader:
    """Reads one model."""

    def __init__(self, read_beside: Callable[[str], bytes]) -> None:
        self._read_beside = read_beside
        self._beside: dict[str, memoryview] = {}
        self._messages = Messages()

    def graph(self, data: memoryview) -> Graph:
        """Return the graph of a ModelProto."""
        graph = self._messages.read(part(self._messages.read(data), 7))
        nodes = [self._node(self._messages.read(node)) for node in parts(graph, 1)]
        if not nodes:
            raise DamagedFile("is not an ONNX model: there is no graph in it")
        tensors = [self._messages.read(tensor) for tensor in parts(graph, 5)]
        arrays = {text(part(tensor, 8)): self._array(tensor) for tensor in tensors}
        arrays.update(
            {
                node.outputs[0]: node.attributes.get("value")
                for node in nodes
                if node.kind == "Constant" and node.outputs
            }
        )
        return Graph(nodes, arrays)

    def _node(self, fields: Fields) -> Node:
        """Return the node of a NodeProto."""
        attributes: dict[str, Any] = {}
        for data in parts(fields, 5):
            attribute = self._messages.read(data)
            name = text(part(attribute, 1))
            if 5 in attribute:
                attributes[name] = self._array(self._messages.read(part(attribute, 5)))
            elif 8 in attribute:
                attributes[name] = self._messages.numbers(attribute, 8)
            elif 2 in attribute:
                attributes[name] = struct.unpack("<f", struct.pack("<I", number(attribute, 2) & 0xFFFFFFFF))[0]
            else:
                attributes[name] = number(attribute, 3)
        inputs, outputs = (tuple(text(name) for name in parts(fields, key)) for key in (1, 2))
        if not outputs:
            raise DamagedFile(f"a node {text(part(fields, 4))[:40]!r} without outputs")
        return Node(text(part(fields, 4)), inputs, outputs, attributes)

    def _array(self, fields: Fields) -> np.ndarray | None:
        """Return the array of a TensorProto, float32; None if its numbers are not floats."""
        if number(fields, 2) not in FLOAT_TYPES:
            return None
        dtype = np.dtype(FLOAT_TYPES[number(fields, 2)])
        shape, name = self._messages.numbers(fields, 1), text(part(fields, 8))
        if number(fields, 14) == EXTERNAL:
            values = self._outside(fields, name)
        elif 9 in fields:
            values = part(fields, 9)
        elif dtype == np.float32 and not any(isinstance(value, int) for value in fields.get(4, [])):
            values = memoryview(b"".join(fields.get(4, [])))  # float_data, packed
        else:
            raise DamagedFile(f"{name}: its numbers are stored one by one; expected raw data")
        if len(shape) > MAX_DIMENSIONS or len(values) != math.prod(shape) * dtype.itemsize:
            raise DamagedFile(
                f"{name} of shape {shape[:MAX_DIMENSIONS]} and type {dtype.name} has {len(values):,} bytes"
            )
        with np.errstate(over="ignore", invalid="ignore"):  # the caller checks that they are finite
            return np.frombuffer(values, dtype).reshape(shape).astype(np.float32, copy=False)

    def _outside(self, fields: Fields, name: str) -> memoryview:
        """Return the bytes of a TensorProto whose data are in another file."""
        pairs = [self._messages.read(pair) for pair in parts(fields, 13)]
        place = {text(part(pair, 1)): text(part(pair, 2)) for pair in pairs}
        location, offset, length = place.get("location", ""), place.get("offset", "0"), place.get("length", "")
        if location in ("", ".", "..") or location != PurePosixPath(location).name:
            raise DamagedFile(f"{name}: its data are in {location[:100]!r}; expected a file in the same folder")
        if not all(one.isascii() and one.isdecimal() and len(one) < 20 for one in (offset, length or "0")):
            raise DamagedFile(
                f"{name}: its data are at offset {offset[:20]!r}, length {length[:20]!r}; expected numbers"
            )
        if location not in self._beside:
            self._beside[location] = memoryview(self._read_beside(location))
        values = self._beside[location][int(offset) :]
        return values[: int(length)] if length else values
