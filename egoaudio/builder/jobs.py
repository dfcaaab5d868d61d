"""The jobs of planned videos, each made when a worker is free for it: a million would take half a gigabyte."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from egoaudio.builder.extract import Job
from egoaudio.builder.plan import Gathered
from egoaudio.config.build import BuildConfig
from egoaudio.hdf5.reader import EgoAudioFile


@dataclass(frozen=True, eq=False)
class Jobs(Sequence[Job]):
    """The jobs of some videos of a file that was laid out."""

    file: EgoAudioFile
    gathered: Gathered
    config: BuildConfig
    videos: np.ndarray
    """int64: rows of /videos, in the order of the jobs."""

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, place: Any) -> Any:
        video = int(self.videos[place])
        row = self.file.video_table[video]
        samples = round(float(row["duration_seconds"]) * self.config.sample_rate)
        fingerprint = self.file.fingerprints[video].tobytes()
        return Job(video, str(self.gathered.path(video)), int(row["first_clip"]), samples, fingerprint)
