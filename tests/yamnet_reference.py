"""YAMNet a second time, as TensorFlow computes it, with random weights, and files of such weights; for tests alone."""

import struct

import numpy as np
import torch
from torch.nn import functional

from egoaudio.models.crc32c import masked_crc32c

STRIDES = (2, 1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)
CHANNELS = (32, 64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
PREFIX = "_yamnet/"


def random_tensors(seed=0, num_classes=521, gamma=False):
    """Return ``{(layer, name): array}`` in Keras's layout, of sizes that keep the signal alive through 27 layers."""
    rng = np.random.default_rng(seed)
    tensors, layer, before = {}, 0, 1

    def normal(shape, fan_in):
        return (rng.standard_normal(shape) * np.sqrt(2 / fan_in) * 0.05).astype(np.float32)

    def add(name, kernel, channels):
        nonlocal layer
        tensors[layer, name] = kernel
        norm = {
            "beta": 0.2 * rng.standard_normal(channels),
            "moving_mean": 0.01 * rng.standard_normal(channels),
            "moving_variance": rng.uniform(0.5, 2, channels) * 0.05**2,
        }
        if gamma:
            norm["gamma"] = rng.uniform(0.7, 1.3, channels)
        for part, values in norm.items():
            tensors[layer + 1, part] = values.astype(np.float32)
        layer += 2

    for number, channels in enumerate(CHANNELS):
        if number == 0:
            add("kernel", normal((3, 3, 1, channels), 9), channels)
        else:
            add("depthwise_kernel", normal((3, 3, before, 1), 9), before)
            add("kernel", normal((1, 1, before, channels), before), channels)
        before = channels
    tensors[layer, "kernel"] = (rng.standard_normal((1024, num_classes)) * 0.05).astype(np.float32)
    tensors[layer, "bias"] = rng.standard_normal(num_classes).astype(np.float32)
    return tensors


def reference_logits(tensors, logmel):
    """Return logits float64 (batch, num_classes) of ``logmel`` (batch, 96, 64).

    TensorFlow's padding, batch norm behind each convolution.
    """
    tensors = {key: torch.from_numpy(np.array(value)).double() for key, value in tensors.items()}
    x, layer = torch.as_tensor(logmel).double()[:, None], 0
    for number, stride in enumerate(STRIDES):
        for name in ("kernel",) if number == 0 else ("depthwise_kernel", "kernel"):
            kernel = tensors[layer, name]
            groups = kernel.shape[2] if name == "depthwise_kernel" else 1
            weight = kernel.permute(2, 3, 0, 1) if groups > 1 else kernel.permute(3, 2, 0, 1)
            step = stride if kernel.shape[0] == 3 else 1
            missing = [max((-(-size // step) - 1) * step + kernel.shape[0] - size, 0) for size in x.shape[2:]]
            x = functional.pad(
                x, (missing[1] // 2, missing[1] - missing[1] // 2, missing[0] // 2, missing[0] - missing[0] // 2)
            )
            x = functional.conv2d(x, weight, stride=step, groups=groups)
            norm = {
                part: tensors.get((layer + 1, part)) for part in ("moving_mean", "moving_variance", "gamma", "beta")
            }
            x = functional.relu(functional.batch_norm(x, *norm.values(), training=False, eps=1e-4))
            layer += 2
    return x.mean(dim=(2, 3)) @ tensors[layer, "kernel"] + tensors[layer, "bias"]


def varint(number):
    """Return ``number`` as a protocol buffer and LevelDB write it."""
    coded = b""
    while number > 127:
        coded += bytes([number & 127 | 128])
        number >>= 7
    return coded + bytes([number])


def pb_field(key, value):
    """Return a field: a number, or bytes."""
    return (
        varint(key << 3) + varint(value)
        if isinstance(value, int)
        else varint(key << 3 | 2) + varint(len(value)) + value
    )


def table_block(entries):
    """Return a block of a table, each key with what it shares with the one before, and its trailer."""
    block, before = b"", b""
    for key, value in entries:
        shared = 0
        while shared < min(len(key), len(before)) and key[shared] == before[shared]:
            shared += 1
        block += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        before = key
    return block + struct.pack("<II", 0, 1)


def make_table(entries, compression=0, entries_a_block=40, times=1):
    """Return a LevelDB table of ``entries``, sorted (key, value) in bytes, each block named ``times`` times."""
    table, handles = b"", []
    entries = list(entries)

    def append(block):
        nonlocal table
        handle = varint(len(table)) + varint(len(block))
        table += block + bytes([compression]) + struct.pack("<I", masked_crc32c(block + bytes([compression])))
        return handle

    for first in range(0, len(entries), entries_a_block):
        group = entries[first : first + entries_a_block]
        handles.append((group[-1][0] + b"z", append(table_block(group))))
    footer = append(table_block([])) + append(table_block(handles * times))
    return table + footer.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)


def make_bundle(folder, tensors, prefix=PREFIX, compression=0, header=None, edit=None):
    """Write ``tensors`` (see ``random_tensors``) as a SavedModel's variables in ``folder`` and return it.

    ``edit(key, entry)`` may change an entry of the index.
    """
    (folder / "variables").mkdir(parents=True, exist_ok=True)
    data, entries = b"", [(b"", header if header is not None else pb_field(1, 1) + pb_field(3, pb_field(1, 1)))]
    keys = {
        f"{prefix}layer_with_weights-{layer}/{name}/.ATTRIBUTES/VARIABLE_VALUE".encode(): array
        for (layer, name), array in tensors.items()
    }
    for key in sorted(keys):
        values = np.ascontiguousarray(keys[key], "<f4")
        shape = b"".join(pb_field(2, pb_field(1, size)) for size in values.shape)
        fields = {1: 1, 2: shape, 4: len(data), 5: values.nbytes}
        crc = masked_crc32c(values.tobytes())
        if edit:
            edit(key.decode(), fields)
        entries.append(
            (
                key,
                b"".join(pb_field(number, value) for number, value in fields.items())
                + b"\x35"
                + struct.pack("<I", crc),
            )
        )
        data += values.tobytes()
    (folder / "variables" / "variables.index").write_bytes(make_table(entries, compression))
    (folder / "variables" / "variables.data-00000-of-00001").write_bytes(data)
    return folder
