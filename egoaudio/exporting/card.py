"""The model card of an exported model: README.md in Hugging Face's form.

In: a checkpoint's contents, its ``SoundInput``, ``facts`` and scores. Out: Markdown with YAML before it
(https://huggingface.co/docs/hub/model-cards): what the model was trained on, its scores, its limits, and how it is
used, in ten lines that need NumPy and onnxruntime only. Folders of this machine are left out: cards are published.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from egoaudio.config.options import to_flat
from egoaudio.config.train import TrainConfig
from egoaudio.exporting.facts import MEANINGS, published_config
from egoaudio.exporting.graph import INPUT, OUTPUT
from egoaudio.exporting.scores import CardScore, CardScores
from egoaudio.models.sound import SoundInput
from egoaudio.system.terminal import one_line

MARK = "<!-- egoaudio-export wrote this card -->"
"""In every card: a README.md without it is somebody's own, and is not replaced."""
_METRICS = {"top1": "accuracy", "map": "mean_average_precision"}  # as the hub calls them
_USE = """\
import json, wave, numpy as np, onnxruntime
session = onnxruntime.InferenceSession({graph})
facts = session.get_modelmeta().custom_metadata_map
names, thresholds = (json.loads(facts[key]) for key in ("class_names", "thresholds"))
with wave.open("sound.wav") as file:  # zeros follow a sound of less than {num_samples} samples{denoised}
    assert file.getparams()[:3] == (1, 2, {sample_rate}), "expected mono, 2 bytes a sample, {sample_rate} Hz"
    sound = np.frombuffer(file.readframes({num_samples}), "<i2") / np.float32(32768)  # from -1 to 1
(probabilities,) = session.run(None, {{"sound": np.pad(sound, (0, {num_samples} - len(sound)))[np.newaxis]}})
for name, probability, threshold in zip(names, probabilities[0], thresholds):
    print(f"{{name}} {{probability:.3f}}", "heard" if threshold is not None and probability >= threshold else "")
"""


def make_card(
    contents: Mapping[str, Any],
    sound: SoundInput,
    facts: Mapping[str, str],
    scores: CardScores,
    trained_on: Sequence[str],
    graph_name: str,
    weights_name: str,
) -> str:
    """Return the text of the card.

    Parameters
    ----------
    contents : mapping
        Of the checkpoint.
    sound : SoundInput
    facts : mapping
        From ``exporting.facts``.
    scores : CardScores
    trained_on : sequence of str
        Names of egoaudio files.
    graph_name, weights_name : str
        Names of the two files beside the card.
    """
    name = os.path.splitext(graph_name)[0]
    config = published_config(contents)
    parts = [
        _front_matter(name, config, scores),
        f"# {_text(name)}\n\n{MARK}\n\n{_about(contents, sound, facts)}",
        "## Use\n\nWith `pip install numpy onnxruntime`:\n\n```python\n" + _use(sound, graph_name) + "```\n\n"
        f"{_input(sound, facts)}",
        f"## Trained on\n\n{_trained_on(contents, config, sound, facts, trained_on)}",
        f"## Scores\n\n{_scores(scores)}",
        "## Limits\n\n" + "\n".join(f"- {line}" for line in _limits(sound, facts, scores)),
        f"## Files\n\n{_files(graph_name, weights_name)}",
    ]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def is_of(text: str, graph_name: str) -> bool:
    """Return whether a card is of the graph of this name."""
    return _graph_line(graph_name) in text


def _text(text: str) -> str:
    """Return a text of somebody else's in one line, nothing in it being Markdown or HTML."""
    return re.sub(r"([\\`*_{}\[\]<>()#+|~&!$])", r"\\\1", one_line(text))


def _code(text: str) -> str:
    """Return a name as code."""
    return f"`{one_line(text).replace('`', '?')}`"


def _yaml(text: str) -> str:
    """Return a text as YAML has it: JSON's strings are YAML's."""
    return json.dumps(one_line(text), ensure_ascii=False)


def _front_matter(name: str, config: TrainConfig, scores: CardScores) -> str:
    """Return the YAML that the hub reads."""
    lines = ["---", "library_name: onnx", "pipeline_tag: audio-classification", "tags:"]
    lines += [f"- {tag}" for tag in ("egoaudio", "onnx", "audio-classification", "sound-event-detection")]
    base = config.model.pretrained
    if base is not None and "/" in base:
        lines.append(f"base_model: {_yaml(base)}")  # a name on the hub
    shown = [score for score in scores.rows if score.name in _METRICS]
    if shown:
        lines += ["model-index:", f"- name: {_yaml(name)}", "  results:", "  - task:"]
        lines += ["      type: audio-classification", "    dataset:", "      type: audio"]
        lines += [f"      name: {_yaml(f'{scores.split} split')}", f"      split: {scores.split}", "    metrics:"]
        for score in shown:
            lines += [f"    - type: {_METRICS[score.name]}", f"      name: {_yaml(score.title)}"]
            lines += [f"      value: {score.value:.4f}"]
    return "\n".join([*lines, "---"])


def _about(contents: Mapping[str, Any], sound: SoundInput, facts: Mapping[str, str]) -> str:
    """Return what the model does."""
    names = ", ".join(_text(name) for name in contents["class_names"])
    kind = "one of" if facts["label_mode"] == "single" else "which of"
    return (
        f"Hears in {facts['clip_seconds']} s of sound {kind} {len(contents['class_names'])} classes are active: "
        f"{facts['model']} on {sound.feature}, trained with egoaudio.\n\n"
        f"Classes: {names}."
    )


def _use(sound: SoundInput, graph_name: str) -> str:
    """Return the example."""
    return _USE.format(
        graph=json.dumps(graph_name),  # Python writes strings as JSON does
        sample_rate=sound.sample_rate,
        num_samples=sound.num_samples,
        denoised="; denoised as below" if sound.denoising else "",
    )


def _input(sound: SoundInput, facts: Mapping[str, str]) -> str:
    """Return what goes in and what comes out."""
    text = (
        f"In: {_code(INPUT)}, float32 (clips, {sound.num_samples}), mono, from -1 to 1, at {sound.sample_rate} Hz and "
        f"no other rate. Out: {_code(OUTPUT)}, float32 (clips, classes). "
    )
    if facts["clip_seconds"] != facts["context_seconds"]:
        text += (
            f"The input is {facts['context_seconds']} s: the {facts['clip_seconds']} s that the probabilities are for, "
            "in the middle, with the sound before and after it; zeros where the recording has none. "
        )
    text += "The graph's metadata say:\n\n| name | meaning |\n|---|---|\n"
    return text + "\n".join(f"| `{name}` | {meaning} |" for name, meaning in MEANINGS.items())


def _trained_on(
    contents: Mapping[str, Any],
    config: TrainConfig,
    sound: SoundInput,
    facts: Mapping[str, str],
    file_names: Sequence[str],
) -> str:
    """Return how the model was trained: the sound, and the options that are not the defaults."""
    defaults = to_flat(TrainConfig())
    options = {name: _option(value) for name, value in to_flat(config).items() if value != defaults[name]}
    counted = {0: "", 1: ", with the clip before and after it"}
    neighbours = counted.get(sound.context_clips, f", with {sound.context_clips} clips before and after it")
    names = ", ".join(map(_code, file_names)) or "an egoaudio file"
    lines = [
        f"- the training split of {names} (`plan_sha256` {facts['plan_sha256'][:12]}), {facts['epoch']} times",
        f"- clips of {facts['clip_seconds']} s every {facts['hop_seconds']} s{neighbours}, at {sound.sample_rate} Hz",
        f"- denoised before: {sound.denoising}" if sound.denoising else "- sound as it is, not denoised",
        f"- starting from {_option(config.model.pretrained)}"
        if config.model.pretrained
        else "- starting from random weights",
        f"- options: {', '.join(f'{name} {value}' for name, value in options.items())}" if options else "",
        f"- with egoaudio {_text(contents['egoaudio_version'])}",
    ]
    return "\n".join(line for line in lines if line)


def _option(value: Any) -> str:
    """Return the value of an option."""
    values = value if isinstance(value, (tuple, list)) else (value,)
    return _text(" ".join(str(one) for one in values))


def _scores(scores: CardScores) -> str:
    """Return the table of scores."""
    if not scores.rows:
        return "None: the model was trained without a validation split, and has not been evaluated."
    lines = [
        f"The {scores.split} split: {scores.about}.",
        "",
        "| per cent | score | 95 % interval | prior |",
        "|---|---|---|---|",
    ]
    lines += [_score(score) for score in scores.rows]
    return "\n".join([*lines, "", "Prior: always guessing each class by its frequency in the training split."])


def _score(score: CardScore) -> str:
    """Return a line of the table."""
    value, low, high, prior = (
        "-" if number is None else f"{100 * number:.1f}" for number in (score.value, score.low, score.high, score.prior)
    )
    return f"| {score.title} | {value} | {'-' if score.low is None else f'{low} to {high}'} | {prior} |"


def _limits(sound: SoundInput, facts: Mapping[str, str], scores: CardScores) -> list[str]:
    """Return what the model cannot do."""
    limits = []
    if sound.denoising:
        way = "noisereduce.reduce_noise(y=sound, sr={}, stationary={})".format(
            sound.sample_rate, sound.build.denoise.mode == "stationary"
        )
        limits.append(
            f"**The sound has to be denoised before, as in training ({sound.denoising}): the graph does not do it.** "
            f"`{way}` (noisereduce 3), {_denoised_piece(sound)}, is the same; without it the scores above do not hold."
        )
    if facts["smooth_clips"] != "0":
        limits.append(
            f"Thresholds and scores are of probabilities averaged over neighbouring clips ({facts['smooth_clips']} on "
            "each side, `smooth_clips`), which egoaudio-predict does and the graph does not."
        )
    if facts["calibration"] == "none":
        limits.append("The probabilities are the network's scores: they are not calibrated.")
    else:
        limits.append(
            f"The probabilities are calibrated ({facts['calibration']}) on the run's validation split, and are too "
            "sure on sounds unlike those."
        )
    if not scores.is_test:
        limits.append("It has not been evaluated on recordings that took no part in training.")
    limits += [
        "It knows recordings like those that it was trained on: other rooms, devices and people may sound different.",
        "Classes with few examples are heard badly; compare each score with its prior.",
        "The licence is that of whoever trained it, and of the data.",
    ]
    return limits


def _denoised_piece(sound: SoundInput) -> str:
    """Return what is denoised at once."""
    together = sound.denoised_samples
    if together is None:
        return "the whole recording"
    row, whole = (f"{samples / sound.sample_rate:g} s" for samples in (sound.row_samples, together))
    if together == sound.row_samples:
        return f"each {row} by itself"
    return f"of each {row} the {whole} around it, zeros beyond the recording, by themselves, then cut to the {row}"


def _files(graph_name: str, weights_name: str) -> str:
    """Return what the files are."""
    return (
        f"{_graph_line(graph_name)}, from sound to probabilities, with the metadata above\n"
        f"- {_code(weights_name)}: the network's weights alone, under PyTorch's names, with the same metadata and, as "
        f"{_code('config')}, the run's options"
    )


def _graph_line(graph_name: str) -> str:
    """Return the beginning of the line that says which file is the graph."""
    return f"- {_code(graph_name)}: the graph"
