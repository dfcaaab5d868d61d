"""One recording and the scores of its clips: what a prediction makes, keeps while it is unfinished, and writes.

``Scored`` is the value; ``to_bytes`` and ``from_bytes`` are its form in the journal. A recording that failed has no
clips, and the reason.
"""

import json
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from egoaudio.audio import clips as placing
from egoaudio.builder.feature_stream import enough_sound
from egoaudio.config.build import BuildConfig
from egoaudio.errors import Status
from egoaudio.hdf5.schema import ADDED_VIDEO_COLUMNS, CLIP_DTYPE, VIDEO_COLUMNS
from egoaudio.inputs.fingerprint import UNKNOWN
from egoaudio.prediction.worker import Heard

TEXTS = ("video_id", "file", "split", "subject", "scene")
_PLACED = ("first_clip", "num_clips")  # columns of /videos that follow from where the recording stands in the file
COLUMNS = tuple(name for name in (*VIDEO_COLUMNS, *ADDED_VIDEO_COLUMNS) if name not in _PLACED)
FAILED = (Status.UNREADABLE, Status.MISSING, Status.CRASHED)
NO_SCORES = "the network's scores of it are not numbers: has the training diverged?"
_HEAD = struct.Struct("<IqI")  # bytes of the description, clips, classes


@dataclass(frozen=True, eq=False)
class Scored:
    """A recording and its scores."""

    key: str
    """By which it is known again: its file, or its id where there is none."""
    video: dict[str, Any]
    """``COLUMNS`` of /videos: text, numbers, and ``status``."""
    fingerprint: bytes
    clips: np.ndarray
    """Rows of /clips (n,), ``video`` not set."""
    scores: np.ndarray
    """float32 (n, C); NaN for a clip without sound."""

    @property
    def status(self) -> Status:
        """What became of the recording."""
        return Status(self.video["status"])

    @property
    def failed(self) -> bool:
        """Whether it should have given scores and gave none."""
        return self.status in FAILED


def describe(name: str, file: str, status: Status, error: str = "", **columns: Any) -> dict[str, Any]:
    """Return what /videos says of a recording; what is not given is empty or 0."""
    empty = {column: "" if VIDEO_COLUMNS.get(column) == "S" else 0 for column in COLUMNS}
    return empty | {"video_id": name, "file": file, "status": int(status), "error": error} | columns


def failure(
    key: str, name: str, file: str, status: Status, error: str, num_classes: int, fingerprint: bytes = UNKNOWN
) -> Scored:
    """Return a recording that gave no scores."""
    video = describe(name, file, status, error)
    return Scored(key, video, fingerprint, np.zeros(0, CLIP_DTYPE), np.empty((0, num_classes), np.float32))


def from_heard(name: str, file: str, heard: Heard, scores: np.ndarray, config: BuildConfig) -> Scored:
    """Return the recording that a worker has heard and the network has scored."""
    if heard.status != Status.OK:
        return failure(file, name, file, heard.status, heard.error, scores.shape[1], heard.fingerprint)
    samples = round(heard.duration_seconds * config.sample_rate)
    plan = placing.plan_clips(samples, config.clips, config.sample_rate)
    rows = np.zeros(plan.num_clips, CLIP_DTYPE)
    rows["start_seconds"], rows["stop_seconds"] = plan.start_seconds, plan.stop_seconds
    enough = enough_sound(heard.arrived, plan)
    if np.isnan(scores[enough]).any():
        return failure(file, name, file, Status.UNREADABLE, NO_SCORES, scores.shape[1], heard.fingerprint)
    rows["num_samples"] = heard.arrived
    rows["status"] = np.where(enough, Status.OK, Status.NO_SOUND)
    source = {column: getattr(heard, column) for column in ("sample_rate", "channels", "duration_seconds")}
    facts = {column: value.item() if isinstance(value, np.generic) else value for column, value in heard.facts.items()}
    return Scored(file, describe(name, file, Status.OK, **source, **facts), heard.fingerprint, rows, scores)


def to_bytes(scored: Scored) -> bytes:
    """Return a recording as bytes that ``from_bytes`` reads."""
    text = json.dumps([scored.key, scored.video, scored.fingerprint.hex()]).encode()
    head = _HEAD.pack(len(text), *scored.scores.shape)
    return b"".join((head, text, scored.clips.tobytes(), np.ascontiguousarray(scored.scores).tobytes()))


def from_bytes(raw: bytes) -> Scored:
    """Return the recording that ``to_bytes`` wrote."""
    length, num_clips, num_classes = _HEAD.unpack_from(raw)
    first = _HEAD.size + length
    key, video, fingerprint = json.loads(raw[_HEAD.size : first])
    clips = np.frombuffer(raw, CLIP_DTYPE, num_clips, first)
    scores = np.frombuffer(raw, "<f4", num_clips * num_classes, first + clips.nbytes).reshape(num_clips, num_classes)
    return Scored(key, video, bytes.fromhex(fingerprint), clips, scores)
