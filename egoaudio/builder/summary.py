"""What a build made, or would make, in words for a terminal.

``Report`` gathers the outcomes of a run and the facts of the finished file; ``describe_plan`` is the page of
``--dry-run``. Everything is counted from the file or the plan, nothing is assumed.
"""

import shutil
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from egoaudio.builder.extract import STAGES
from egoaudio.errors import Status
from egoaudio.hdf5 import reader

FAILED = (Status.UNREADABLE, Status.MISSING, Status.CRASHED)
"""Statuses of videos that should have given data and gave none; a video without sound is none of them."""
_MEANING = {
    Status.OK: "with sound", Status.NO_AUDIO: "without an audio stream", Status.UNREADABLE: "unreadable",
    Status.MISSING: "without a file", Status.CRASHED: "crashed or out of time", Status.PLANNED: "planned",
}


@dataclass
class Report:
    """A run of the builder."""

    num_workers: int = 1
    irregularities: dict = field(default_factory=dict)
    """What the annotations had that was tolerated, and how often."""
    already_complete: bool = False
    """Whether there was nothing to do."""
    started: float = field(default_factory=time.monotonic)
    stage_seconds: dict = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    """Worker time by stage, of this run."""
    run_clips: int = 0
    """Clips made in this run."""
    run_sound_seconds: float = 0.0
    failures: list = field(default_factory=list)
    """``(video_id, reason)`` of every video of the file that should have data and has none."""
    facts: list = field(default_factory=list)
    """Lines about the file."""

    def add(self, outcome):
        """Count what became of one video."""
        self.run_clips += outcome.num_clips
        self.run_sound_seconds += outcome.sound_seconds
        for stage, seconds in outcome.stage_seconds.items():
            self.stage_seconds[stage] += seconds

    def describe_file(self, path):
        """Take the facts of a finished file."""
        self.elapsed = time.monotonic() - self.started
        with reader.open(path) as file:
            videos, clips, usable = file.video_table, file.clip_table, file.usable
            for row in videos[np.isin(videos["status"], FAILED)]:
                self.failures.append((row["video_id"].decode(), row["error"].decode(errors="replace")))
            statuses = Counter(Status(status) for status in videos["status"].tolist())
            hours = float(clips["num_samples"][usable].sum()) / file.sample_rate / 3600
            labels = int(file.class_table["num_clips"].sum())
            seen = int((file.class_table["num_clips"] > 0).sum())
            lost = videos["lost_samples"]
            self.facts = [
                f"videos   {len(videos):,}: " + ", ".join(f"{count:,} {_MEANING[status]}" for status, count in sorted(statuses.items())),
                f"clips    {usable.sum():,} of {file.clip_seconds:g} s, {hours:.2f} h" + (f"; {(~usable).sum():,} without data" if not usable.all() else ""),
                f"labels   {labels:,} in {seen} of {file.num_classes} classes",
                "arrays   " + ", ".join(f"{name} {'x'.join(map(str, file[name].shape))}" for name in file.features),
                f"size     {_bytes(file.num_bytes)}",
            ]
            if lost.any():
                worst = videos["video_id"][int(lost.argmax())].decode()
                seconds = lost.sum() / file.sample_rate
                self.facts.insert(2, f"lost     {seconds:.2f} s could not be decoded, in {(lost > 0).sum():,} videos; most in {worst}")
        self.path = path

    def text(self):
        """Return the page that ends a build."""
        lines = [f"{self.path} {'was complete already' if self.already_complete else 'is complete'}", *("  " + line for line in self.facts)]
        if self.irregularities:
            lines.append("  csv      " + ", ".join(f"{count:,} {what}" for what, count in self.irregularities.items()))
        busy = sum(self.stage_seconds.values())
        if busy:
            shares = ", ".join(f"{stage} {seconds / busy:.0%}" for stage, seconds in self.stage_seconds.items())
            lines.append(
                f"  time     {_duration(self.elapsed)} with {self.num_workers} worker{'s' if self.num_workers > 1 else ''}: "
                f"{self.run_clips / self.elapsed:,.0f} clips/s, {self.run_sound_seconds / self.elapsed:,.0f}x real time"
            )
            lines.append(f"  spent    {shares}")
        if self.failures:
            lines.append(f"{len(self.failures):,} video{'s' if len(self.failures) > 1 else ''} failed:")
            lines += [f"  {video_id}: {reason}" for video_id, reason in self.failures]
        return "\n".join(lines)


def describe_plan(plan, config, num_bytes, output, num_workers, rehearsal):
    """Return the page of a dry run.

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
    statuses = Counter(recording.status for recording in plan.recordings)
    sound = sum(plan.recording_samples) / config.sample_rate
    free = shutil.disk_usage(Path(output).absolute().parent).free
    lines = [
        f"{output} would hold",
        f"  videos   {len(plan.recordings):,}: " + ", ".join(f"{count:,} {_MEANING[status]}" for status, count in sorted(statuses.items())),
        f"  clips    {plan.num_clips:,} of {config.clips.clip_seconds:g} s from {sound / 3600:.2f} h of sound",
        f"  classes  {len(plan.gathered.class_ids)}",
        f"  size     {_bytes(num_bytes)}; {_bytes(free)} are free there" + ("" if free > num_bytes else ": NOT ENOUGH"),
    ]
    irregularities = plan.gathered.annotations.irregularities
    if irregularities:
        lines.append("  csv      " + ", ".join(f"{count:,} {what}" for what, count in irregularities.items()))
    if rehearsal is not None and rehearsal.sound_seconds:
        per_second = sum(rehearsal.stage_seconds.values()) / rehearsal.sound_seconds
        lines.append(f"  time     about {_duration(per_second * sound / num_workers)} with {num_workers} workers, judging by one video")
    videos = plan.gathered.annotations.videos
    bad = [(video.video_id, recording) for video, recording in zip(videos, plan.recordings, strict=True) if recording.status != Status.OK]
    if bad:
        lines.append(f"{len(bad):,} videos would have no data:")
        lines += [f"  {video_id}: {recording.error or _MEANING[recording.status]}" for video_id, recording in bad]
    return "\n".join(lines)


def _bytes(count):
    """Return a size in words."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.2f} TB"


def _duration(seconds):
    """Return a time in words."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"
