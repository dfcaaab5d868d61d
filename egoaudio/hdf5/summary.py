"""Describe what an egoaudio file holds: what ``egoaudio-inspect`` shows.

In: an ``EgoAudioFile``, also an unfinished one. Out: text of at most 100 columns for a terminal, a list of problems, or
one clip as a sound or a picture. Hours are those of the recordings with data; a class's clips are those that can be
trained on.
"""

import itertools
import os
import textwrap
import wave
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from egoaudio.errors import Status, StoreError
from egoaudio.hdf5.integrity import verify
from egoaudio.hdf5.reader import EgoAudioFile
from egoaudio.system import files
from egoaudio.system.files import StrPath
from egoaudio.system.terminal import describe_bytes, one_line

__all__ = ["count_splits", "export_clip", "failed", "summary", "verify"]

_COLUMNS = 100
_NUM_CLASSES = 8  # of the most and least frequent
_WHY_SILENT = "paused, muted, or not decodable"


def summary(file: EgoAudioFile) -> str:
    """Return a page: what the file is, how it was made, how much it holds, what failed, and its classes."""
    videos, status = file.video_table, file.video_table["status"]
    hours = videos["duration_seconds"][status == Status.OK].sum() / 3600
    state = "complete" if file.complete else "NOT COMPLETE: run the same egoaudio-build again to finish it"
    sections = [
        f"{os.path.basename(file.path)}: {describe_bytes(file.num_bytes)}, {state}",
        _facts(
            {
                "made": f"{file.created_utc} by egoaudio {file.egoaudio_version}",
                "clips": f"{file.clip_seconds:g} s every {file.hop_seconds:g} s, {file.sample_rate:,} Hz",
                "options": "  ".join(
                    f"{name}={_option(value)}" for name, value in sorted(file.config.items()) if value is not None
                ),
                "plan": file.plan_sha256,
            }
        ),
        _facts(
            {
                "videos": f"{file.num_videos:,}: " + _by_status(status, "none"),
                "sound": f"{hours:,.2f} hours" + _lost(file),
                "clips": f"{file.num_clips:,}: " + _by_status(file.clip_table["status"], "none"),
                "to train on": f"{np.count_nonzero(file.trainable):,} clips (with sound, and labelled)",
            }
        ),
        _splits(file),
        _arrays(file),
        _classes(file),
    ]
    return "\n\n".join(section for section in sections if section)


def failed(file: EgoAudioFile) -> str:
    """Return a line for each video without data (status, id, file, reason), and for each that lost sound."""
    lines = []
    for row in file.video_table:
        if row["status"] == Status.OK and row["lost_samples"] > 0:
            seconds = row["lost_samples"] / file.sample_rate
            lost = f"{seconds:.2f} s of {row['duration_seconds']:.2f} s are silent: {_WHY_SILENT}"
            lines.append(("sound lost", _text(row["video_id"]), _text(row["file"]), lost))
        elif row["status"] not in (Status.OK, Status.PLANNED):
            lines.append(
                (
                    Status.describe(row["status"]),
                    _text(row["video_id"]),
                    _text(row["file"]),
                    _text(row["error"]),
                )
            )
    if not lines:
        return "no video failed"
    return "\n".join(_table(sorted(lines), "<<<<", gap="   "))


def export_clip(file: EgoAudioFile, number: int, path: StrPath) -> None:
    """Write one clip to a file: its waveform as 16-bit WAV, or all its features as PNG.

    Raises
    ------
    StoreError
        There is no such clip, it has no data, the file has no waveform, or the name ends in neither .wav nor .png.
    """
    if not 0 <= number < file.num_clips:
        raise StoreError(f"{file.path} has no clip {number}: give 0 to {file.num_clips - 1}")
    if not file.usable[number]:
        clip = file.clip_table[number]
        video = file.video_table[clip["video"]]
        reason = Status.describe(clip["status"] if clip["status"] != Status.OK else video["status"])
        raise StoreError(
            f"clip {number} of {file.path} has no data: {reason} (video {_text(video['video_id'])}). "
            "See egoaudio-inspect --failed"
        )
    suffix = Path(path).suffix.lower()
    try:
        files.check_output(path, file.paths)
        if suffix == ".wav":
            _write_wav(file, number, path)
        elif suffix == ".png":
            from egoaudio import figures  # matplotlib: 0.5 s

            figures.plot_clip(file, number, path)
        else:
            raise StoreError(f"{path}: expected a name that ends in .wav (the waveform) or .png (the features)")
    except StoreError:
        raise
    except OSError as error:
        raise StoreError(f"{path}: cannot be written: {error.strerror or error}") from error


def _write_wav(file: EgoAudioFile, number: int, path: StrPath) -> None:
    if "waveform" not in file.features:
        raise StoreError(
            f"{file.path} holds no waveform, only {', '.join(file.features)}: build it with `features=('waveform',)`, "
            "or give a name ending in .png"
        )
    samples = file.values("waveform", number)
    with files.replacing(path) as target, wave.open(target, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(file.sample_rate)
        sound.writeframes(np.round(np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())


# --------------------------------------------------------------------------------------------------------- sections


def count_splits(file: EgoAudioFile) -> list[tuple[str, int, int, int, int]]:
    """Return for each split its name and its numbers of videos, subjects, clips with data, and clips to train on."""
    videos = file.video_table
    per_video = np.zeros((2, file.num_videos), np.int64)
    for row, chosen in enumerate((file.usable, file.trainable)):
        per_video[row] = np.bincount(file.clip_table["video"][chosen], minlength=file.num_videos)
    counts = []
    for split in sorted(set(videos["split"].tolist()), key=lambda name: (name != b"train", name)):
        inside = videos["split"] == split
        subjects = len(set(videos["subject"][inside].tolist()) - {b""})
        clips, trainable = per_video[:, inside].sum(axis=1).tolist()
        counts.append((_text(split) or "(none)", int(np.count_nonzero(inside)), subjects, clips, trainable))
    return counts


def _splits(file: EgoAudioFile) -> str:
    """Return a line for each split: videos, clips with data, clips to train on, subjects."""
    lines: list[tuple[str, ...]] = [("split", "videos", "subjects", "clips", "to train on")]
    lines += [(name, *(f"{count:,}" for count in counts)) for name, *counts in count_splits(file)]
    return "\n".join(_table(lines, "<>>>>"))


def _arrays(file: EgoAudioFile) -> str:
    """Return a line for each feature array: shape, type, size, unit, axes."""
    lines: list[tuple[str, ...]] = [("array", "shape", "type", "size", "units", "axes")]
    for name in file.features:
        array, attributes = file[name], file.attributes(name)
        shape = " x ".join(f"{length:,}" for length in array.shape)
        size = describe_bytes(array.dtype.itemsize * np.prod(array.shape, dtype=float))
        units, axes = str(attributes.get("units", "")), str(attributes.get("axes", "")).replace(",", ", ")
        lines.append(
            (name, shape, str(array.dtype), size, units, axes if file.is_mapped(name) else axes + " (repacked: slow)")
        )
    return "\n".join(_table(lines, "<<<><<"))


def _classes(file: EgoAudioFile) -> str:
    """Return how many labels there are, and the most and least frequent classes side by side."""
    counts = file.class_table["num_clips"] if file.complete else file.count_classes()
    clips = max(1, np.count_nonzero(file.trainable))
    head = (
        f"{file.num_classes:,} classes, {np.count_nonzero(counts):,} of them in clips; "
        f"{counts.sum():,} labels, {counts.sum() / clips:.2f} a clip"
    )
    order = np.argsort(-counts, kind="stable")
    most = order[: min(_NUM_CLASSES, -(-len(order) // 2))]
    least = order[::-1][: min(_NUM_CLASSES, len(order) // 2)]  # never a class on both sides
    width = (_COLUMNS - 4) // 2
    lines = [f"{'most frequent':<{width}}    {'least frequent':<{width}}".rstrip()]
    for pair in itertools.zip_longest(most, least):
        lines.append("    ".join(_class_line(file, k, counts[k], width) for k in pair if k is not None).rstrip())
    return "\n".join([head, "", *lines])


def _class_line(file: EgoAudioFile, k: int, count: int, width: int) -> str:
    """Return id, name and count of a class in exactly ``width`` columns."""
    row = file.class_table[k]
    identity, name, number = _text(row["class_id"]), _text(row["name"]), f"{count:,}"
    text = identity if name in ("", identity) else f"{identity} {name}"
    columns = width - len(number) - 1
    return f"{text if len(text) <= columns else text[: columns - 1] + '…':<{columns}} {number}"


def _by_status(status: np.ndarray, nothing: str) -> str:
    """Return how often each status occurs, in words."""
    values, counts = np.unique(status, return_counts=True)
    pairs = sorted(zip(values.tolist(), counts.tolist(), strict=True), key=lambda pair: pair[0] != Status.OK)
    words = [f"{count:,} {Status.describe(value)}" for value, count in pairs]
    return ", ".join(words) or nothing


def _lost(file: EgoAudioFile) -> str:
    """Return how much sound was lost, if any."""
    lost = file.video_table["lost_samples"]
    if not lost.any():
        return ""
    seconds, videos = lost.sum() / file.sample_rate, np.count_nonzero(lost)
    return f", of which {seconds:,.1f} s in {videos} videos are silent: {_WHY_SILENT}"


# ------------------------------------------------------------------------------------------------------------- text


def _facts(facts: Mapping[str, str]) -> str:
    """Return ``{name: text}`` as lines with the texts in a column, wrapped."""
    lines: list[str] = []
    for name, text in facts.items():
        lines += textwrap.wrap(one_line(text), _COLUMNS, initial_indent=f"{name:<13}", subsequent_indent=" " * 13)
    return "\n".join(lines)


def _table(rows: Sequence[Sequence[str]], alignment: str, gap: str = "  ") -> list[str]:
    """Return rows of texts as lines of equal columns."""
    texts = [[one_line(text) for text in row] for row in rows]
    widths = [max(len(row[k]) for row in texts) for k in range(len(alignment))]
    return [
        gap.join(f"{text:{side}{width}}" for text, side, width in zip(row, alignment, widths, strict=True)).rstrip()
        for row in texts
    ]


def _option(value: Any) -> str:
    """Return an option's value as it would be typed."""
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _text(raw: bytes) -> str:
    """Return a string of the file as printable text."""
    return one_line(raw.decode("utf-8", errors="replace"))
