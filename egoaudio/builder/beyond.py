"""Annotations beyond the end of the sound: their clips do not exist, so they would be missing without notice.

In: the instances and how long each recording is. Out: counts, and a line for people. Likely causes are times in
milliseconds, annotations of another cut, and recordings that were cut off.
"""

from dataclasses import dataclass

import numpy as np

from egoaudio.builder.plan import Plan
from egoaudio.errors import Status
from egoaudio.hdf5.reader import EgoAudioFile

LATE_SECONDS = 1.0
"""An instance that ends this much later than the sound ends beyond it; annotators' clocks and codecs differ by less."""


@dataclass(frozen=True)
class Beyond:
    """How many instances lie beyond the sound, in videos with sound."""

    num_instances: int
    """Of all videos with sound."""
    starting: int
    """Start at the end of the sound or later: the file has no clip of them."""
    ending: int
    """Start within it, and end more than ``LATE_SECONDS`` after it: the file has clips of a part of them."""
    num_videos: int
    """Videos with an instance of either kind."""
    example: str
    """Id of one of them, with the most."""

    @classmethod
    def of_file(cls, file: EgoAudioFile) -> "Beyond":
        """Count the instances of a finished or unfinished file."""
        videos, table = file.video_table, file.instances
        inside = (table["video"] >= 0) & (table["video"] < file.num_videos)
        return cls._count(table[inside], videos["duration_seconds"], videos["status"] == Status.OK, videos["video_id"])

    @classmethod
    def of_plan(cls, plan: Plan) -> "Beyond":
        """Count the instances of a plan."""
        videos, recordings = plan.gathered.annotations.videos, plan.recordings.table
        table = np.zeros(len(videos.instances), [("video", "i8"), ("start_seconds", "f8"), ("stop_seconds", "f8")])
        table["video"] = videos.numbers()
        for name in ("start_seconds", "stop_seconds"):
            table[name] = videos.instances[name]
        return cls._count(
            table, recordings["duration_seconds"], recordings["status"] == Status.OK, videos.table["video_id"]
        )

    @classmethod
    def _count(cls, table: np.ndarray, durations: np.ndarray, sounding: np.ndarray, ids: np.ndarray) -> "Beyond":
        table = table[sounding[table["video"]]]
        end = durations[table["video"]]
        starting = table["start_seconds"] >= end
        ending = ~starting & (table["stop_seconds"] > end + LATE_SECONDS)
        counts = np.bincount(table["video"][starting | ending], minlength=len(ids))
        example = bytes(ids[counts.argmax()]).decode(errors="replace") if counts.any() else ""
        return cls(len(table), int(starting.sum()), int(ending.sum()), int(np.count_nonzero(counts)), example)

    def attributes(self) -> dict[str, int]:
        """Return the attributes of ``/instances``; none if no instance lies beyond the sound."""
        return {"starting_beyond_sound": self.starting, "ending_beyond_sound": self.ending} if self.num_videos else {}

    def __str__(self) -> str:
        if not self.num_videos:
            return ""
        kinds = (
            [f"{self.starting:,} of {self.num_instances:,} instances start after the sound's end"]
            if self.starting
            else []
        )
        if self.ending:
            which = f"{self.ending:,}" if self.starting else f"{self.ending:,} of {self.num_instances:,} instances"
            kinds.append(f"{which} end more than {LATE_SECONDS:g} s after it")
        where = f"in {self.num_videos:,} video{'s' * (self.num_videos > 1)}, such as {self.example}"
        hint = ""
        if self.starting:
            most = 2 * self.starting >= self.num_instances
            hint = (
                "; are the times in milliseconds?"
                if most
                else "; are these the recordings that were annotated, and whole?"
            )
        return f"{', '.join(kinds)}, {where}{hint}"
