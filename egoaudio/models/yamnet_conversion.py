"""Convert published files to YAMNet's weights in torch's layout, with batch norm folded in.

In: a TensorFlow bundle, whose keys number Keras's layers, or an ONNX graph, whose nodes are in the order of
computation. Out: ``PublishedWeights``. Every tensor's shape is checked before its numbers are read: another network is
refused with the first tensor that does not fit. Source of order and names:
https://github.com/tensorflow/models/tree/master/research/audioset/yamnet (yamnet.py, params.py).
"""

import functools
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from egoaudio.models.onnx_graph import Graph, Node
from egoaudio.models.published_files import DamagedFile
from egoaudio.models.tensorflow_bundle import Bundle
from egoaudio.models.yamnet import EMBEDDING_SIZE, NUM_PUBLISHED_CLASSES, SameConvolution, YAMNet

EPSILON = 1e-4  # of Keras's batch norm, added to the variance
ONNX_EPSILON = 1e-5  # of ONNX's batch norm, where a node has no other
CONVOLUTIONS = ("Conv", "QLinearConv", "ConvInteger")
TRANSPARENT = ("QuantizeLinear", "DequantizeLinear", "Identity", "Transpose")
MAX_TRANSPARENT = 8  # nodes between a weight and its use
LINEAR_SHAPE = (NUM_PUBLISHED_CLASSES, EMBEDDING_SIZE)
_KEY = re.compile(r"(.*?)layer_with_weights-(\d{1,6})/([^/]+)/\.ATTRIBUTES/VARIABLE_VALUE")


@dataclass(frozen=True)
class PublishedWeights:
    """YAMNet's weights, float32, batch norm folded in.

    ``convolutions``: 27 pairs of weights (out, in, height, width) and offsets (out,), in the order of computation.
    ``classifier``: weights (521, 1024) and offsets (521,). ``class_names``: 521, or None without a class map.
    """

    convolutions: tuple[tuple[np.ndarray, np.ndarray], ...]
    classifier: tuple[np.ndarray, np.ndarray]
    class_names: tuple[str, ...] | None

    def __post_init__(self) -> None:
        """Check that these are YAMNet's shapes and that all numbers are finite."""
        expected = [*(shape for _, shape in convolution_shapes()), LINEAR_SHAPE]
        for (weight, offset), shape in zip((*self.convolutions, self.classifier), expected, strict=True):
            if weight.shape != shape or offset.shape != shape[:1]:
                raise ValueError(f"weights of shapes {weight.shape} and {offset.shape}; YAMNet has {shape} there")
            if not (np.isfinite(weight).all() and np.isfinite(offset).all()):
                raise DamagedFile(f"weights of shape {shape} hold numbers that are not finite: the file is damaged")


@functools.cache
def convolution_shapes() -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Return (name, shape of the weights as torch has them) of the 27 convolutions, in the order of computation."""
    with torch.device("meta"):
        modules = YAMNet(1).named_modules()
    return tuple((name, tuple(one.weight.shape)) for name, one in modules if isinstance(one, SameConvolution))


def _foreign(name: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> DamagedFile:
    """Return the error for a tensor that does not fit."""
    return DamagedFile(f"holds another network: {name} has shape {shape}; YAMNet has {expected} there")


def _fold(
    weight: np.ndarray,
    offset: np.ndarray | float,
    gamma: np.ndarray | float,
    beta: np.ndarray,
    mean: np.ndarray,
    variance: np.ndarray,
    epsilon: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Return weights and offsets, float32, of a convolution followed by batch norm; float64 in."""
    if (variance + epsilon <= 0).any():
        raise DamagedFile(f"holds a variance of {variance.min():g}: the file is damaged")
    with np.errstate(over="ignore", invalid="ignore"):  # values that are not finite are reported at the end
        scale = np.broadcast_to(gamma / np.sqrt(variance + epsilon), variance.shape)
        folded = (offset - mean) * scale + beta
        return (weight * scale[:, None, None, None]).astype(np.float32), folded.astype(np.float32)


# ------------------------------------------------------------------------------------------------ TensorFlow


def convert_bundle(bundle: Bundle, class_names: tuple[str, ...] | None) -> PublishedWeights:
    """Return the weights of a checkpoint of Keras, which numbers layers with weights in the order of computation.

    Raises
    ------
    DamagedFile
        If it holds another network, or its data are damaged.
    """
    prefixes = [match[1] for match in map(_KEY.fullmatch, bundle.tensors) if match]
    if not prefixes:
        some = ", ".join(list(bundle.tensors)[:2]) or "none"
        raise DamagedFile(f"holds another network: its tensors ({some}, ...) are not those of Keras's layers")
    layers = _KerasLayers(bundle, max(sorted(set(prefixes)), key=prefixes.count))  # of several networks, the largest
    convolutions = []
    for place, (name, (channels, inputs, *size)) in enumerate(convolution_shapes()):
        layer, norm = 2 * place, 2 * place + 1
        if name.endswith("depthwise"):
            weight = layers.read(layer, "depthwise_kernel", (*size, channels, 1)).transpose(2, 3, 0, 1)
        else:
            weight = layers.read(layer, "kernel", (*size, inputs, channels)).transpose(3, 2, 0, 1)
        beta, mean, variance = (
            layers.read(norm, one, (channels,)) for one in ("beta", "moving_mean", "moving_variance")
        )
        gamma = layers.read(norm, "gamma", (channels,)) if layers.has(norm, "gamma") else 1.0  # Google's has none
        convolutions.append(_fold(weight, 0.0, gamma, beta, mean, variance, EPSILON))
    linear = 2 * len(convolutions)
    kernel = layers.read(linear, "kernel", LINEAR_SHAPE[::-1]).astype(np.float32)
    bias = layers.read(linear, "bias", LINEAR_SHAPE[:1]).astype(np.float32)
    return PublishedWeights(tuple(convolutions), (kernel.T, bias), class_names)


class _KerasLayers:
    """The tensors of one network in a bundle, by layer and name."""

    def __init__(self, bundle: Bundle, prefix: str) -> None:
        self._tensors = bundle.tensors
        self._prefix = prefix

    def _key(self, layer: int, name: str) -> str:
        """Return the key of a tensor."""
        return f"{self._prefix}layer_with_weights-{layer}/{name}/.ATTRIBUTES/VARIABLE_VALUE"

    def has(self, layer: int, name: str) -> bool:
        """Return whether there is such a tensor."""
        return self._key(layer, name) in self._tensors

    def read(self, layer: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """Return a tensor, float64 of ``shape``."""
        key = self._key(layer, name)
        if key not in self._tensors:
            raise DamagedFile(f"holds another network: there is no {key}; YAMNet has it, of shape {shape}")
        tensor = self._tensors[key]
        if tensor.shape != shape:
            raise _foreign(key, tensor.shape, shape)
        if not tensor.is_float:
            raise DamagedFile(f"holds another network: {key} is not float32")
        with np.errstate(invalid="ignore"):  # values that are not finite are reported at the end
            return tensor.read().astype(np.float64)


# ------------------------------------------------------------------------------------------------ ONNX


def convert_onnx(graph: Graph, class_names: tuple[str, ...] | None) -> PublishedWeights:
    """Return the weights of a graph: its convolutions, in order, and the linear layer after the last of them.

    Batch norm may be folded in already, or follow each convolution as such or as a sum. Weights may be transposed, or
    rounded to integers and back; then the numbers before the rounding are used.

    Raises
    ------
    DamagedFile
        If it holds another network, or holds its weights only as integers.
    """
    weights = _OnnxWeights(graph)
    places = [place for place, node in enumerate(graph.nodes) if node.kind in CONVOLUTIONS]
    expected = [shape for _, shape in convolution_shapes()]
    convolutions = tuple(
        weights.convolution(graph.nodes[place], shape) for place, shape in zip(places, expected, strict=False)
    )
    if len(places) != len(expected):
        raise DamagedFile(f"holds another network: {len(places)} convolutions; YAMNet has {len(expected)}")
    return PublishedWeights(convolutions, weights.linear(graph.nodes[places[-1] :]), class_names)


class _OnnxWeights:
    """Finds the weights of a graph's nodes."""

    def __init__(self, graph: Graph) -> None:
        self._arrays = graph.arrays
        self._producers = {output: node for node in graph.nodes for output in node.outputs}
        self._users: dict[str, list[Node]] = {}
        for node in graph.nodes:
            for name in set(node.inputs):
                self._users.setdefault(name, []).append(node)

    def convolution(self, node: Node, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Return weights of ``shape`` and offsets, float32, of a convolution and the batch norm or sum that follows."""
        weight = self._input(node, 1, shape)
        offset = self._input(node, 2, shape[:1]) if len(node.inputs) > 2 else np.zeros(shape[0])
        users = self._users.get(node.outputs[0], [])
        user = users[0] if len(users) == 1 else None
        if user and user.kind == "BatchNormalization":
            gamma, beta, mean, variance = (
                self._input(user, place, shape[:1]).astype(np.float64) for place in (1, 2, 3, 4)
            )
            epsilon = user.attributes.get("epsilon", ONNX_EPSILON)
            if not isinstance(epsilon, float):
                raise DamagedFile(f"the epsilon of {user.outputs[0]} is not a number")
            return _fold(weight, offset, gamma, beta, mean, variance, epsilon)
        if user and user.kind == "Add":
            offset = offset + self._added(node.outputs[0], user, len(offset))
        return weight, offset.astype(np.float32)

    def linear(self, nodes: list[Node]) -> tuple[np.ndarray, np.ndarray]:
        """Return weights (521, 1024) and offsets (521,) of the first matrix product in ``nodes``."""
        node = next((node for node in nodes if node.kind in ("Gemm", "MatMul")), None)
        if node is None:
            raise DamagedFile("holds another network: no linear layer after the last convolution")
        if node.attributes.get("transB") in (None, 0):
            weight = self._input(node, 1, LINEAR_SHAPE[::-1]).T
        else:
            weight = self._input(node, 1, LINEAR_SHAPE)
        if len(node.inputs) > 2:
            return weight, self._input(node, 2, LINEAR_SHAPE[:1])
        sums = [user for user in self._users.get(node.outputs[0], []) if user.kind == "Add"]
        offset = self._added(node.outputs[0], sums[0], len(weight)) if sums else np.zeros(len(weight), np.float32)
        return weight, offset

    def _added(self, name: str, user: Node, size: int) -> np.ndarray:
        """Return the ``size`` numbers that the sum ``user`` adds to ``name``."""
        others = [place for place, other in enumerate(user.inputs) if other != name]
        added = self._constant(user, others[0] if others else 0)
        if added.size != size:
            raise _foreign(f"what {user.outputs[0]} adds", added.shape, (size,))
        return added.reshape(-1)

    def _input(self, node: Node, place: int, shape: tuple[int, ...]) -> np.ndarray:
        """Return an input of ``node`` that is a constant of ``shape``."""
        array = self._constant(node, place)
        if array.shape != shape:
            raise _foreign(node.inputs[place], array.shape, shape)
        return array

    def _constant(self, node: Node, place: int) -> np.ndarray:
        """Return a constant input of ``node``, through nodes that change its numbers at most by rounding."""
        if place >= len(node.inputs):
            raise DamagedFile(f"holds another network: {node.kind} to {node.outputs[0]} has {len(node.inputs)} inputs")
        name = node.inputs[place]
        permutations: list[Any] = []
        for _ in range(MAX_TRANSPARENT):
            if name in self._arrays:
                return _transposed(name, self._arrays[name], permutations)
            producer = self._producers.get(name)
            if producer is None or producer.kind not in TRANSPARENT or not producer.inputs:
                break
            if producer.kind == "Transpose":
                permutations.append(producer.attributes.get("perm"))
            name = producer.inputs[0]
        raise DamagedFile(f"{node.inputs[place]} is computed, not stored: its numbers cannot be read")


def _transposed(name: str, array: np.ndarray | None, permutations: list[Any]) -> np.ndarray:
    """Return the array called ``name`` after transpositions, the last one first."""
    if array is None:
        raise DamagedFile(f"{name} holds no floats: the weights are quantised; give a file of float weights")
    for permutation in reversed(permutations):
        if not isinstance(permutation, tuple) or sorted(permutation) != list(range(array.ndim)):
            raise DamagedFile(f"{name} of shape {array.shape} is transposed by {permutation}")
        array = array.transpose(permutation)
    return array
