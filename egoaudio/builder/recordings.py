"""What is known of many recordings before they are decoded: what ``probe`` said of each, in columns.

A million objects would take ten times as much.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from egoaudio.errors import Status
from egoaudio.hdf5.reader import EgoAudioFile
from egoaudio.hdf5.schema import FINGERPRINT_BYTES
from egoaudio.inputs.fingerprint import UNKNOWN
from egoaudio.inputs.probe import Recording

MISSING = Recording(Status.MISSING, "no media file of this name in the folder of videos")
_COLUMNS = [("status", "u1"), ("sample_rate", "<i4"), ("channels", "<i2"), ("duration_seconds", "<f8"), ("known", "?")]


@dataclass(frozen=True, eq=False)
class Recordings:
    """For each video its recording, ``MISSING`` until it is set, and its file's fingerprint."""

    table: np.ndarray
    """Structured (num_videos,): the fields of ``Recording``, and whether it was set."""
    fingerprints: np.ndarray
    """uint8 (num_videos, 32)."""
    errors: dict[int, str] = field(default_factory=dict)
    """Why a recording has no data, by the video's number; of the others, nothing or that of ``MISSING``."""

    @classmethod
    def unknown(cls, num_videos: int) -> "Recordings":
        """Return recordings of which nothing is known."""
        table = np.zeros(num_videos, _COLUMNS)
        table["status"] = Status.MISSING
        return cls(table, np.zeros((num_videos, FINGERPRINT_BYTES), np.uint8))

    @classmethod
    def of(cls, recordings: Sequence[Recording]) -> "Recordings":
        """Return recordings whose files' fingerprints are not known."""
        made = cls.unknown(len(recordings))
        for number, recording in enumerate(recordings):
            made.set(number, recording)
        return made

    @classmethod
    def of_file(cls, file: EgoAudioFile) -> "Recordings":
        """Return what a probe said of each video of a file when it was planned."""
        made, videos = cls.unknown(file.num_videos), file.video_table
        for name in ("status", "sample_rate", "channels", "duration_seconds"):
            made.table[name] = videos[name]
        # A video that failed later was planned as one with sound, and has rows.
        planned = (videos["duration_seconds"] > 0) | (videos["status"] == Status.PLANNED)
        made.table["status"][planned] = Status.OK
        made.table["known"] = True
        made.fingerprints[:] = file.fingerprints
        for number in np.flatnonzero(~planned & (videos["status"] != Status.OK)).tolist():
            made._explain(number, videos["error"][number].decode(errors="replace"))
        return made

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, number: int) -> Recording:
        """Return a video's recording."""
        status, sample_rate, channels, seconds, _ = self.table[number].tolist()
        error = self.errors.get(number, _usual_error(status))
        return Recording(Status(status), error, sample_rate, channels, seconds)

    def set(self, number: int, recording: Recording, fingerprint: bytes = UNKNOWN) -> None:
        """Set a video's recording, and its file's fingerprint."""
        self.table[number] = (
            recording.status, recording.sample_rate, recording.channels, recording.duration_seconds, True
        )  # fmt: skip
        self.fingerprints[number] = np.frombuffer(fingerprint, np.uint8)
        self._explain(number, recording.error)

    def _explain(self, number: int, error: str) -> None:
        """Note why a recording has no data, unless it is the usual reason."""
        if error != _usual_error(self.table["status"][number]):
            self.errors[number] = error

    def take(self, numbers: np.ndarray) -> "Recordings":
        """Return some of the recordings."""
        errors = {k: self.errors[n] for k, n in enumerate(numbers.tolist()) if n in self.errors} if self.errors else {}
        return Recordings(self.table[numbers], self.fingerprints[numbers], errors)

    def put(self, first: int, others: "Recordings", which: np.ndarray | None = None) -> None:
        """Set those of consecutive videos, or of some of them, from others."""
        rows = slice(first, first + len(others))
        which = np.ones(len(others), bool) if which is None else which
        self.table[rows][which] = others.table[which]
        self.fingerprints[rows][which] = others.fingerprints[which]
        self.errors.update((first + number, error) for number, error in others.errors.items() if which[number])


def _usual_error(status: int) -> str:
    return MISSING.error if status == Status.MISSING else ""
