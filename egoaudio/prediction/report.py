"""What a prediction came to; ``str()`` is the page that ends the command."""

import os
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
        num_classes = len(self.labelling.class_ids)
        lines = [
            f"{self.folder} is complete",
            f"  recordings  {self.num_recordings:,}: {words}",
            f"  scores      {self.num_clips:,} clips, {self.hours:.2f} h, {num_classes} classes: {self.scores}",
            f"  segments    {self.num_segments:,}: {self.segments}",
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
        return "\n".join(lines + [f"note: {note}" for note in self.notes])


def make_report(
    folder: Path,
    labelling: Labelling,
    *,
    num_known: int,
    num_segments: int,
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
