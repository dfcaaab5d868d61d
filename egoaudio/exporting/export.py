"""Export a trained model: an ONNX graph, its weights, and a model card, for use where there is no egoaudio.

In: a checkpoint. Out: three files in one folder, each written whole or not at all, the graph last, and an
``ExportReport`` that says what they are.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from egoaudio.config.export import ExportConfig
from egoaudio.config.options import to_json
from egoaudio.errors import ExportError
from egoaudio.exporting import card, graph
from egoaudio.exporting.facts import facts as facts_of
from egoaudio.exporting.facts import published_config
from egoaudio.exporting.scores import read_scores, trained_on
from egoaudio.models import checkpoints, seal
from egoaudio.models.classifier import Classifier
from egoaudio.models.sound import sound_input
from egoaudio.system import files
from egoaudio.system.terminal import describe_bytes

StrPath = str | os.PathLike[str]
SUFFIX, WEIGHTS_SUFFIX, CARD_NAME = ".onnx", ".safetensors", "README.md"


@dataclass(frozen=True)
class ExportReport:
    """What was written; ``str()`` is what the command prints."""

    graph: Path
    weights: Path
    card: Path
    num_bytes: int
    """Of the graph."""
    num_classes: int
    num_samples: int
    """Of the input, a clip and its neighbours."""
    sample_rate: int
    denoising: str
    """How the input has to be denoised before, in words; empty if not at all."""
    difference: float | None
    """The largest between the graph's probabilities of noise in onnxruntime and the model's; None if it was not run."""
    notes: tuple[str, ...] = ()
    """What is missing and why, in sentences."""

    def __str__(self) -> str:
        length = (
            f"{self.num_samples / self.sample_rate:g} s of sound, {self.num_samples} samples at {self.sample_rate} Hz"
        )
        difference = "" if self.difference is None else f"{self.difference:.1g}"
        checked = f"; of noise onnxruntime differs from the model by {difference}" if difference else ""
        lines = [
            f"{self.graph}: {describe_bytes(self.num_bytes)}, from {length}, to the probabilities of "
            f"{self.num_classes} classes{checked}",
            f"{self.weights}: the weights",
            f"{self.card}: the model card",
        ]
        if self.denoising:
            lines.append(
                f"note: the sound has to be denoised before, as in training ({self.denoising}): the graph does not"
            )
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def export(
    checkpoint: StrPath,
    output: StrPath,
    config: ExportConfig | None = None,
    *,
    evaluation: StrPath | None = None,
    like: StrPath | None = None,
    force: bool = False,
) -> ExportReport:
    """Write a trained model as an ONNX graph from sound to calibrated probabilities, with its weights and a card.

    Parameters
    ----------
    checkpoint : path
        ``best.pt`` or ``last.pt`` of a run.
    output : path
        The graph to make, ``.onnx``. Beside it come the weights, under the same name with ``.safetensors``, and the
        card, ``README.md``.
    config : ExportConfig, optional
    evaluation : path, optional
        The ``evaluation.json`` whose scores the card shows; if not given, the one beside the checkpoint.
    like : path, optional
        The egoaudio file that a checkpoint of an earlier version was trained on.
    force : bool
        Replace a ``README.md`` that is not a card, or that of another graph.

    Returns
    -------
    ExportReport

    Raises
    ------
    ExportError
        An output has a wrong name, is an input, or cannot be written; packages are missing; torch cannot make the
        graph; the graph's probabilities are not the model's; the evaluation is of another checkpoint.
    CheckpointError
        The checkpoint cannot be used, or does not say how its features were made.
    ConfigurationError
        The model was trained on denoised sound and ``config.denoised_input`` is not set, or set in vain.

    Examples
    --------
    >>> import egoaudio
    >>> config = egoaudio.ExportConfig(denoised_input=True)  # as the file was built with denoising, the default
    >>> made = egoaudio.export("runs/example/best.pt", "exported/model.onnx", config)
    >>> sorted(path.name for path in (made.graph, made.weights, made.card))
    ['README.md', 'model.onnx', 'model.safetensors']
    """
    config = ExportConfig() if config is None else config
    outputs = _outputs(output)
    for path in outputs:
        _check_output(path, (checkpoint, evaluation, like))
    _check_card(outputs[2], outputs[0].name, force)
    graph.require_exporter()
    network, contents = checkpoints.load_model(checkpoint)
    sound = sound_input(checkpoint, contents, like)
    sound.require_plain(checkpoint, config.denoised_input)
    digest = seal.digest(checkpoint)
    scores = read_scores(checkpoint, contents, digest, evaluation)
    facts = facts_of(contents, sound, digest)
    classifier = Classifier.of_sound(network, contents, sound, config.transform or graph.choose_transform(sound))
    data = graph.make_graph(classifier, facts, config.opset)
    difference, notes = _checked(data, classifier)
    names = trained_on(checkpoint, contents)
    text = card.make_card(contents, sound, facts, scores, names, outputs[0].name, outputs[1].name)
    _write(outputs[1], _weights(contents, facts))
    _write(outputs[2], text.encode())
    _write(outputs[0], data)
    return ExportReport(
        *outputs,
        num_bytes=len(data),
        num_classes=len(contents["class_ids"]),
        num_samples=sound.num_samples,
        sample_rate=sound.sample_rate,
        denoising=sound.denoising,
        difference=difference,
        notes=(*notes, *scores.notes),
    )


def _outputs(output: StrPath) -> tuple[Path, Path, Path]:
    """Return the paths of graph, weights and card."""
    path = Path(os.fspath(output))
    if path.suffix != SUFFIX:
        wanted = path / f"model{SUFFIX}" if path.is_dir() else path.with_suffix(SUFFIX)
        raise ExportError(f"{path}: the graph's name has to end in {SUFFIX}: give {wanted}")
    return path, path.with_suffix(WEIGHTS_SUFFIX), path.with_name(CARD_NAME)


def _check_output(path: Path, inputs: tuple[StrPath | None, ...]) -> None:
    """Refuse an output that cannot be written, or is read, before anything is computed."""
    try:
        files.check_output(path, inputs)
        files.require_writable_folder(path)
    except OSError as error:
        raise ExportError(f"{path}: cannot be written: {error.strerror}") from error


def _check_card(path: Path, graph_name: str, force: bool) -> None:
    """Refuse to replace a README.md that is not the card of this graph."""
    if force or not path.exists():
        return
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise ExportError(f"{path}: cannot be read: {error.strerror}") from error
    fix = "give a name in another folder, or `force=True`"
    if card.MARK not in text:
        raise ExportError(f"{path}: is not a model card of egoaudio's, and the card would replace it: {fix}")
    if not card.is_of(text, graph_name):
        raise ExportError(f"{path}: is the card of another graph, and that of {graph_name} would replace it: {fix}")


def _checked(data: bytes, classifier: Classifier) -> tuple[float | None, list[str]]:
    """Return the difference between graph and model, and why there is none."""
    num_bytes = graph.attention_bytes(classifier)
    if num_bytes > graph.LARGEST_ATTENTION_BYTES:
        return None, [f"not tried: one clip's attention alone takes {describe_bytes(num_bytes)} of memory in a graph"]
    differences = graph.largest_differences(data, classifier)
    if differences is None:
        return None, ["not tried, as onnxruntime is not installed: pip install onnxruntime"]
    of_noise, of_tones = differences
    if of_tones <= graph.TOLERANCE:
        return of_noise, []
    return of_noise, [
        f"of pure tones onnxruntime differs from the model by {of_tones:.1g}: far below a tone, levels are the "
        "rounding of float32"
    ]


def _weights(contents: dict[str, Any], facts: dict[str, str]) -> bytes:
    """Return the weights as a safetensors file."""
    from safetensors.torch import save

    tensors = {name: tensor.detach().clone().contiguous() for name, tensor in contents["weights"].items()}
    config = to_json(published_config(contents))
    return save(tensors, {"format": "pt", **facts, "config": config, "network": contents["network"]})


def _write(path: Path, data: bytes) -> None:
    """Write a file, whole or not at all."""
    try:
        files.write_file(path, data)
    except OSError as error:
        raise ExportError(
            f"{path}: could not be written ({error.strerror}): free some space, or give a name in another folder"
        ) from error
