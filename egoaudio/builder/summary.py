"""What a build made, or would make, in words for a terminal.

``Tally`` collects the outcomes of a run and makes the ``BuildReport``; ``describe_plan`` makes the ``BuildPlan`` of
``preview``. Both are values whose ``str()`` is what the command prints. All numbers come from the file or the plan.
"""

import os
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from egoaudio.builder.beyond import Beyond
from egoaudio.builder.extract import Outcome
from egoaudio.builder.feature_stream import STAGES
from egoaudio.builder.plan import Plan
from egoaudio.builder.sound import describe_sound
from egoaudio.config.build import BuildConfig
from egoaudio.errors import Status
from egoaudio.hdf5 import reader
from egoaudio.hdf5.reader import EgoAudioFile
from egoaudio.system.terminal import describe_bytes, describe_duration

_MOST_NAMES = 3  # of the videos that failed for one reason
FAILED = (Status.UNREADABLE, Status.MISSING, Status.CRASHED)
"""Statuses of videos that should have given data and gave none; a video without sound is not one of them."""


@dataclass(frozen=True)
class BuildReport:
    """What a build made; ``str()`` is what the command prints at its end."""

    path: str
    """The finished file."""
    already_complete: bool
    """Whether there was nothing to do."""
    failures: tuple[tuple[str, str], ...]
    """``(video_id, reason)`` of every video of the file that should have data and has none."""
    irregularities: Mapping[str, int]
    """Irregularities of the annotations that were tolerated, and their counts."""
    facts: tuple[str, ...]
    """Lines about the file: videos, clips, labels, arrays, size."""
    num_workers: int
    seconds: float
    """Wall time of this run, from the start of the workers to the end."""
    stage_seconds: Mapping[str, float]
    """Worker time of this run by stage, ``feature_stream.STAGES``."""
    num_clips: int
    """Clips made in this run; if it resumed a build, the others were made before."""
    sound_seconds: float
    """Sound decoded in this run."""

    def __str__(self) -> str:
        state = "was complete already" if self.already_complete else "is complete"
        lines = [f"{self.path} {state}", *("  " + line for line in self.facts)]
        if self.irregularities:
            lines.append("  csv      " + _counted(self.irregularities))
        busy = sum(self.stage_seconds.values())
        if busy:
            shares = ", ".join(f"{stage} {seconds / busy:.0%}" for stage, seconds in self.stage_seconds.items())
            lines.append(
                f"  time     {describe_duration(self.seconds)} with {self.num_workers} worker"
                f"{'s' if self.num_workers > 1 else ''}: {self.num_clips / self.seconds:,.0f} clips/s, "
                f"{self.sound_seconds / self.seconds:,.0f}x real time"
            )
            lines.append(f"  spent    {shares}")
        if self.failures:
            lines.append(f"{len(self.failures):,} video{'s' if len(self.failures) > 1 else ''} failed:")
            lines += by_reason(self.failures)
            lines.append(
                "  (egoaudio-inspect --failed lists all; once the cause is fixed, `retry_failed=True` tries them again)"
            )
        return "\n".join(lines)


class Tally:
    """Count the outcomes of a run; ``report`` makes the ``BuildReport``."""

    def __init__(self, num_workers: int = 1) -> None:
        self.num_workers = num_workers
        self.num_clips, self.sound_seconds = 0, 0.0
        self.stage_seconds = dict.fromkeys(STAGES, 0.0)
        self._started = time.monotonic()

    def add(self, outcome: Outcome) -> None:
        """Count what became of one video."""
        self.num_clips += outcome.num_clips
        self.sound_seconds += outcome.sound_seconds
        for stage, seconds in outcome.stage_seconds.items():
            self.stage_seconds[stage] += seconds

    def report(
        self, path: str | os.PathLike[str], irregularities: Mapping[str, int], already_complete: bool = False
    ) -> BuildReport:
        """Return the report of the finished file at ``path``."""
        seconds = time.monotonic() - self._started
        with reader.open(path) as file:
            videos = file.video_table
            failed = videos[np.isin(videos["status"], FAILED)]
            failures = tuple((row["video_id"].decode(), row["error"].decode(errors="replace")) for row in failed)
            facts = tuple(_describe_file(file))
        return BuildReport(
            os.fspath(path),
            already_complete,
            failures,
            dict(irregularities),
            facts,
            self.num_workers,
            seconds,
            dict(self.stage_seconds),
            self.num_clips,
            self.sound_seconds,
        )


def _describe_file(file: EgoAudioFile) -> list[str]:
    """Return lines about a finished file."""
    videos, clips, usable = file.video_table, file.clip_table, file.usable
    statuses = Counter(Status(status) for status in videos["status"].tolist())
    hours = float(clips["num_samples"][usable].sum()) / file.sample_rate / 3600
    without = f"; {(~usable).sum():,} without data" if not usable.all() else ""
    labels = int(file.class_table["num_clips"].sum())
    seen = int((file.class_table["num_clips"] > 0).sum())
    facts = {
        "videos": f"{len(videos):,}: {_by_status(statuses)}",
        "twice": describe_twins(file),
        "clips": f"{usable.sum():,} of {file.clip_seconds:g} s, {hours:.2f} h{without}",
        "labels": f"{labels:,} in {seen} of {file.num_classes} classes",
        "beyond": str(Beyond.of_file(file)),
        "arrays": ", ".join(f"{name} {'x'.join(map(str, file[name].shape))}" for name in file.features),
        "size": describe_bytes(file.num_bytes),
    }
    lines = [f"{name:<9}{words}" for name, words in facts.items() if words]
    place = next(number for number, line in enumerate(lines) if line.startswith("labels"))
    return (
        lines[:place] + describe_sound(videos, file.sample_rate, "; `skip_silent=True` leaves them out") + lines[place:]
    )


@dataclass(frozen=True)
class BuildPlan:
    """What a build would make; ``str()`` is what ``egoaudio-build --dry-run`` prints."""

    path: str
    """The file that would be made."""
    num_videos: int
    num_clips: int
    num_classes: int
    clip_seconds: float
    sound_seconds: float
    """Sound of all recordings."""
    num_bytes: int
    """Size of the file."""
    free_bytes: int
    """Free space on its disk."""
    statuses: Mapping[Status, int]
    """Number of recordings of each status."""
    failures: tuple[tuple[str, str], ...]
    """``(video_id, reason)`` of every video that would have no data."""
    irregularities: Mapping[str, int]
    """Irregularities of the annotations that were tolerated, and their counts."""
    notes: tuple[str, ...]
    """Lines about what to check."""
    num_workers: int
    estimated_seconds: float | None
    """Wall time, judging by one video; None if none could be made."""

    def __str__(self) -> str:
        return self.describe()

    def describe(self, list_all: bool = False) -> str:
        """Return the text, with every video that would have no data or with a few for each reason."""
        enough = "" if self.free_bytes > self.num_bytes else ": NOT ENOUGH"
        lines = [
            f"{self.path} would hold",
            f"  videos   {self.num_videos:,}: {_by_status(self.statuses)}",
            f"  clips    {self.num_clips:,} of {self.clip_seconds:g} s from {self.sound_seconds / 3600:.2f} h of sound",
            f"  classes  {self.num_classes}",
            f"  size     {describe_bytes(self.num_bytes)}; {describe_bytes(self.free_bytes)} are free there{enough}",
        ]
        if self.irregularities:
            lines.append("  csv      " + _counted(self.irregularities))
        lines += ["  " + note for note in self.notes]
        if self.estimated_seconds is not None:
            time_needed = describe_duration(self.estimated_seconds)
            lines.append(f"  time     about {time_needed} with {self.num_workers} workers, judging by one video")
        if self.failures:
            lines.append(f"{len(self.failures):,} videos would have no data:")
            lines += (
                [f"  {video_id}: {reason}" for video_id, reason in self.failures]
                if list_all
                else by_reason(self.failures)
            )
        return "\n".join(lines)


def describe_plan(
    plan: Plan, config: BuildConfig, num_bytes: int, output: Path, num_workers: int, rehearsal: Outcome | None
) -> BuildPlan:
    """Return what a build of ``plan`` would make.

    Parameters
    ----------
    plan : Plan
    config : BuildConfig
    num_bytes : int
        Size of the file.
    output : path
    num_workers : int
    rehearsal : Outcome or None
        One video made without being written, for the estimate of the time.
    """
    sound_seconds = int(plan.recording_samples.sum()) / config.sample_rate
    estimate = None
    if rehearsal is not None and rehearsal.sound_seconds:
        per_second = sum(rehearsal.stage_seconds.values()) / rehearsal.sound_seconds
        estimate = per_second * sound_seconds / num_workers
    failures = tuple(
        (plan.gathered.annotations.videos[number].video_id, recording.error or Status.describe(recording.status))
        for number in np.flatnonzero(plan.recordings.table["status"] != Status.OK).tolist()
        for recording in [plan.recordings[number]]
    )
    return BuildPlan(
        path=str(output),
        num_videos=len(plan.recordings),
        num_clips=plan.num_clips,
        num_classes=len(plan.gathered.class_ids),
        clip_seconds=config.clips.clip_seconds,
        sound_seconds=sound_seconds,
        num_bytes=num_bytes,
        free_bytes=shutil.disk_usage(output.absolute().parent).free,
        statuses=Counter(Status(status) for status in plan.recordings.table["status"].tolist()),
        failures=failures,
        irregularities=dict(plan.gathered.annotations.irregularities),
        notes=tuple(f"beyond   {words}" for words in [str(Beyond.of_plan(plan))] if words),
        num_workers=num_workers,
        estimated_seconds=estimate,
    )


def describe_twins(file: EgoAudioFile) -> str:
    """Return how many videos have the same recording as another one, by the fingerprints of their files."""
    videos = file.video_table
    known = np.flatnonzero((videos["status"] == Status.OK) & file.fingerprints.any(axis=1)).tolist()
    first: dict[bytes, int] = {}
    twins = [(first.setdefault(file.fingerprints[number].tobytes(), number), number) for number in known]
    twins = [(one, other) for one, other in twins if one != other]
    if not twins:
        return ""
    apart = [pair for pair in twins if videos["split"][pair[0]] != videos["split"][pair[1]]]
    one, other = (videos["video_id"][number].decode(errors="replace") for number in (apart or twins)[0])
    return (
        f"{len(twins):,} video{'s' * (len(twins) > 1)} with the same recording as another, {len(apart):,} of them in "
        f"another split, such as {one} and {other}"
    )


def by_reason(failures: Sequence[tuple[str, str]]) -> list[str]:
    """Return a line for each reason, with its count and a few names."""
    groups: dict[str, list[str]] = {}
    for video_id, reason in failures:
        groups.setdefault(reason, []).append(video_id)
    lines = []
    for reason, ids in groups.items():
        more = f" and {len(ids) - _MOST_NAMES:,} more" if len(ids) > _MOST_NAMES else ""
        lines.append(f"  {', '.join(ids[:_MOST_NAMES])}{more}: {reason}")
    return lines


def _counted(counts: Mapping[str, int]) -> str:
    """Return counts in words: ``3 unreadable, 1 missing``."""
    return ", ".join(f"{count:,} {what}" for what, count in counts.items())


def _by_status(statuses: Mapping[Status, int]) -> str:
    """Return the counts of statuses in words, in the order of their numbers."""
    return _counted({Status.describe(status): count for status, count in sorted(statuses.items())})
