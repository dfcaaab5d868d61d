"""What a prediction came to; ``str()`` is the page that ends the command."""

import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from egoaudio.builder.sound import describe_sound
from egoaudio.builder.summary import by_reason
from egoaudio.errors import Status
from egoaudio.hdf5.scores_file import ScoresFile
from egoaudio.prediction.recording import FAILED
from egoaudio.prediction.result import Labelling, Prediction
from egoaudio.prediction.store import read_scored
from egoaudio.system.terminal import describe_duration

_MOST_CLASSES = 3  # that are named as heard for longest


@dataclass(frozen=True, eq=False)
class PredictionReport:
    """A finished prediction; iterating gives the ``Prediction`` of each recording, in their order."""

    folder: Path
    labelling: Labelling
    num_recordings: int
    num_known: int
    """Recordings whose scores were there already."""
    num_without_sound: int
    """Recordings without an audio stream."""
    num_clips: int
    """With scores."""
    num_segments: int
    class_seconds: tuple[float, ...]
    """How long each class is heard, in all recordings."""
    formats: tuple[str, ...]
    """Of label files that were written."""
    failures: tuple[tuple[str, str], ...]
    """``(file, reason)`` of every recording that should have scores and has none."""
    sound_lines: tuple[str, ...]
    """About silence, losses and clocks."""
    notes: tuple[str, ...]
    """Sentences that say what is missing and why."""
    hours: float
    """Sound of all recordings."""
    seconds: float
    """Wall time of hearing, in this run."""
    num_workers: int

    @property
    def scores(self) -> Path:
        """Path of the file of scores."""
        return self.folder / "scores.h5"

    @property
    def segments(self) -> Path:
        """Path of the table of segments."""
        return self.folder / "segments.csv"

    def __iter__(self) -> Iterator[Prediction]:
        with ScoresFile(self.scores) as file:
            for video in range(file.num_videos):
                yield Prediction(read_scored(file, video, ""), self.labelling)

    def __str__(self) -> str:
        sounding = self.num_recordings - self.num_without_sound - len(self.failures)
        counts = {"with sound": sounding, "without": self.num_without_sound, "failed": len(self.failures)}
        words = ", ".join(f"{count:,} {what}" for what, count in counts.items() if count)
        num_classes, length = len(self.labelling.class_ids), describe_duration(3600 * self.hours)
        lines = [
            f"{self.folder} is complete",
            f"  recordings  {self.num_recordings:,}: {words}",
            f"  scores      {self.num_clips:,} clips, {length}, {num_classes} classes: {self.scores}",
            f"  segments    {self.num_segments:,}: {self.segments}",
            *self._describe_heard(),
            *("  " + line for line in self.sound_lines),
        ]
        if self.num_known:
            lines.append(f"  known       {self.num_known:,} recordings had their scores already")
        if self.num_known < self.num_recordings:
            workers = f"{self.num_workers} worker{'s' * (self.num_workers > 1)}"
            speed = f": {3600 * self.hours / self.seconds:,.0f}x real time" * (not self.num_known and self.seconds > 0)
            lines.append(f"  time        {describe_duration(self.seconds)} with {workers}{speed}")
        if self.failures:
            lines.append(f"{len(self.failures):,} recording{'s' * (len(self.failures) > 1)} failed:")
            lines += by_reason(self.failures)
            lines.append("  (once the cause is fixed, `retry_failed=True` tries them again)")
        lines += [f"note: {note}" for note in self.notes]
        if self.num_clips:
            lines.append(f"next: {self.next_command}")
        return "\n".join(lines)

    @property
    def next_command(self) -> str:
        """The command that makes a page to look at and to listen to."""
        return shlex.join(["egoaudio-report", str(self.folder), "--output", f"{self.folder}.html"])

    def _describe_heard(self) -> list[str]:
        """Return lines about what is heard for longest, and the files of it."""
        if not self.num_segments:
            advice = (
                "no class reaches its threshold: a lower `threshold` finds more, `top=3` shows the likeliest classes"
            )
            return [f"              {advice}"] * (self.num_clips > 0)
        order = np.argsort(-np.array(self.class_seconds), kind="stable")
        heard = [number for number in order.tolist() if self.class_seconds[number] > 0]
        names = self.labelling.class_names
        words = [f"{names[number]} {describe_duration(self.class_seconds[number])}" for number in heard[:_MOST_CLASSES]]
        more = f", {len(heard) - _MOST_CLASSES:,} more" if len(heard) > _MOST_CLASSES else ""
        lines = [f"  heard       {', '.join(words)}{more}"]
        if self.formats:
            folders = ", ".join(str(self.folder / name) for name in self.formats)
            lines.append(f"  labels      a file a recording in {folders}")
        return lines


def make_report(
    folder: Path,
    labelling: Labelling,
    *,
    num_known: int,
    num_segments: int,
    class_seconds: np.ndarray,
    formats: tuple[str, ...],
    seconds: float,
    num_workers: int,
    notes: tuple[str, ...],
) -> PredictionReport:
    """Return the report of what stands in a folder, and of the run that has just finished it."""
    with ScoresFile(folder / "scores.h5") as file:
        videos = file.video_table
        failed = videos[np.isin(videos["status"], FAILED)]
        failures = [
            ((row["file"] or row["video_id"]).decode(errors="replace"), row["error"].decode(errors="replace"))
            for row in failed
        ]
        return PredictionReport(
            folder,
            labelling,
            num_recordings=file.num_videos,
            num_known=num_known,
            num_without_sound=int((videos["status"] == Status.NO_AUDIO).sum()),
            num_clips=int(file.usable.sum()),
            num_segments=num_segments,
            class_seconds=tuple(class_seconds.tolist()),
            formats=formats,
            failures=tuple(failures),
            sound_lines=tuple(describe_sound(videos, file.sample_rate)),
            notes=notes,
            hours=float(videos["duration_seconds"][videos["status"] == Status.OK].sum()) / 3600,
            seconds=seconds,
            num_workers=num_workers,
        )


def describe_top(prediction: Prediction, count: int) -> str:
    """Return a line of the likeliest classes of a recording."""
    if prediction.status != Status.OK:
        return f"{prediction.file or prediction.name}: {prediction.error}"
    best = ", ".join(f"{name} {value:.2f} at {start:g} s" for name, value, start in prediction.top(count))
    return f"{os.fspath(prediction.file or prediction.name)}: {best or 'too short to be heard'}"
