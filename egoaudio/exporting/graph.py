"""A ``Classifier`` of sound -> an ONNX graph, checked.

In: the classifier, on the CPU. Out: the bytes of the file: input ``sound`` float32 (batch, num_samples), output
``probabilities`` float32 (batch, num_classes), any batch; ``facts`` as metadata. The exporter is torch's newer one
(``dynamo=True``), as the older one has no Fourier transform and fixes the batch of the transformers.
"""

import contextlib
import importlib.util
import logging
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from egoaudio.audio.features import LOGMEL_FRAME_MS
from egoaudio.errors import ExportError
from egoaudio.models.classifier import Classifier
from egoaudio.models.sound import SoundInput

INPUT, OUTPUT = "sound", "probabilities"
# Of a probability, between the graph and the model. It is not asked of pure tones: where a clip has nothing but them, a
# feature's levels 120 dB below are rounding in float32, other in every implementation, the file's own included.
TOLERANCE = 1e-4
# Of a clip's, which a runtime holds whole; what needs more is not tried. ast-paper's 17,172 tokens take onnxruntime
# 15.8 GB and 45 s of a core; the difference was 1.8e-7.
LARGEST_ATTENTION_BYTES = 1 << 30
LARGEST_MATRIX_BYTES = 1 << 25  # that makes spectra, in the graph; 16.8 MB for 2,048 samples
_LOUDNESS = 0.1  # rms of the noise that the graph is checked with
_TONES = (0.0275, 0.0625)  # of the sample rate; at 16 kHz 440 Hz and 1 kHz, which is one bin of most transforms
_NEEDED = ("onnx", "onnxscript")


def require_exporter() -> None:
    """Raise ExportError unless the packages that make a graph are installed."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(f"a graph is made with packages that are not installed: pip install {' '.join(missing)}")


def choose_transform(sound: SoundInput) -> str:
    """Return how the graph of a feature computes spectra: by a matrix, unless that is large.

    In onnxruntime, of tones, noise and a low-passed recording, the matrix was as exact as the DFT or more so, and took
    0.4 to 3 times as long; less exact of a tone that is one bin (probabilities of ``cnn`` 0.11 off; by DFT 0.015).
    """
    frame_length = n_fft = sound.build.features.n_fft
    if sound.feature in ("logmel", "yamnet"):
        frame_length = int(sound.sample_rate * LOGMEL_FRAME_MS * 0.001)
        n_fft = 1 << (frame_length - 1).bit_length()
    return "matrix" if 4 * frame_length * (n_fft + 2) <= LARGEST_MATRIX_BYTES else "fft"


def make_graph(classifier: Classifier, facts: Mapping[str, str], opset: int) -> bytes:
    """Return the ONNX file of a classifier of sound.

    Raises
    ------
    ExportError
        If torch cannot express the model in this opset, for any batch, or in one file.
    """
    sound = torch.zeros((2, *classifier.input_shape))
    batch = torch.export.Dim("batch")
    try:
        with _quiet(), torch.no_grad():
            program: Any = torch.onnx.export(
                classifier,
                (sound,),
                dynamo=True,
                verbose=False,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: batch},),
                opset_version=opset,
            )
    except Exception as error:  # of many kinds, of three packages
        first = str(error).strip().partition("\n")[0]
        raise ExportError(
            f"torch {torch.__version__} cannot make a graph of this model with `opset={opset}`: {first}: try another "
            "`opset`, or another version of torch"
        ) from error
    made = program.model.opset_imports[""]
    if made != opset:
        raise ExportError(
            f"`opset={opset}`: the graph needs operators of {made}, and cannot be converted: give `opset={made}`"
        )
    if isinstance(program.model.graph.inputs[0].shape[0], int):
        raise ExportError(f"torch {torch.__version__} made a graph for batches of 2 only: use another version of torch")
    program.model.metadata_props.update(facts)
    program.model.producer_name, program.model.producer_version = "egoaudio", facts["egoaudio_version"]
    proto = program.model_proto
    _forget_the_source(proto)
    try:
        data: bytes = proto.SerializeToString()
    except ValueError as error:
        raise ExportError(f"the graph is larger than 2 GB, the most that an ONNX file holds: {error}") from error
    return data


def _forget_the_source(proto: Any) -> None:
    """Remove what the exporter notes of every node and value, such as lines of source in folders of this machine."""
    graph = proto.graph
    for noted in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del noted.metadata_props[:]
    for function in proto.functions:
        for noted in (function, *function.node, *function.value_info):
            del noted.metadata_props[:]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what the exporter says of operators of other packages, and of itself."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def attention_bytes(classifier: Classifier) -> int:
    """Return what a runtime takes for one clip's attention weights in one layer, 0 without attention."""
    sizes: Any = getattr(getattr(classifier.network, "network", None), "config", None)
    if sizes is None:
        return 0
    from egoaudio.models.transformer import NUM_SPECIAL_TOKENS, patch_grid

    rows, columns = patch_grid(sizes)
    return 4 * int(sizes.num_attention_heads) * (rows * columns + NUM_SPECIAL_TOKENS) ** 2


def largest_differences(data: bytes, classifier: Classifier) -> tuple[float, float] | None:
    """Return the largest differences between a graph's probabilities and its model's, of noise and of pure tones.

    Returns
    -------
    (float, float) or None
        None where onnxruntime is not installed.

    Raises
    ------
    ExportError
        If the graph does not run, or differs by more than ``TOLERANCE`` of noise, in two batches.
    """
    try:
        import onnxruntime
    except ImportError:
        return None
    noise = _LOUDNESS * np.random.default_rng(0).standard_normal((4, *classifier.input_shape), np.float32)
    tones = np.sin(2 * np.pi * np.outer(_TONES, np.arange(*classifier.input_shape)))
    found = []
    try:
        session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        for sound in (*np.split(noise, [1]), (0.9 * tones).astype(np.float32)):
            found.append(_difference(session, classifier, sound))
    except Exception as error:  # onnxruntime's errors have no class of their own in common
        raise ExportError(f"onnxruntime {onnxruntime.__version__} cannot run the graph: {error}") from error
    largest = float(np.max(found[:2]))  # NaN if one is
    if not largest <= TOLERANCE:
        raise ExportError(
            f"the graph's probabilities differ from the model's by {largest:.2g}, more than {TOLERANCE:g}, in "
            f"onnxruntime {onnxruntime.__version__}: try another `opset` or `transform`"
        )
    return largest, found[2]


def _difference(session: Any, classifier: Classifier, sound: np.ndarray) -> float:
    """Return the largest difference between the probabilities of one batch."""
    (found,) = session.run([OUTPUT], {INPUT: sound})
    with torch.inference_mode():
        expected = classifier(torch.from_numpy(sound)).numpy()
    return float(np.abs(found - expected).max())
