"""What of a recording is heard and seen where a page shows a clip, and where its sound comes from.

In: an open egoaudio file, and a folder of its videos if there is one. Out: ``Excerpt``, a stretch of time around a
clip, and its samples, float32 mono: from ``/waveform``, joined where clips lie side by side, else decoded from the
videos, as they were before denoising. A video that is not the one that was built from is not used.
"""

import os
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from egoaudio.errors import MediaError, Status, StoreError
from egoaudio.hdf5.reader import EgoAudioFile
from egoaudio.inputs.decoder import Decoder
from egoaudio.inputs.find_media import find_files
from egoaudio.inputs.fingerprint import fingerprint

_SHORTEST_SECONDS = 1.0  # that are heard of a clip; a tenth of a second is but a click


@dataclass(frozen=True)
class Excerpt:
    """A clip with as much around it as can be made out; ``[start, stop)`` in seconds of its recording."""

    row: int
    """Of ``/clips``."""
    video: int
    """Row of ``/videos``."""
    start_seconds: float
    """Of the sound."""
    stop_seconds: float
    picture_start_seconds: float
    """Of the feature, which is the clip's and, where the build gave features more context, of that."""
    picture_stop_seconds: float

    @classmethod
    def of_clip(cls, file: EgoAudioFile, row: int) -> "Excerpt":
        """Return what is shown of a clip.

        Raises
        ------
        StoreError
            The clip's times are none: the file is damaged.
        """
        clip = file.clip_table[row]
        if not 0 <= clip["start_seconds"] < clip["stop_seconds"] < np.inf:
            raise StoreError(
                f"{file.path}: clip {row} is from {clip['start_seconds']} to {clip['stop_seconds']} s; the file is "
                "damaged or not ours"
            )
        duration = float(file.video_table["duration_seconds"][clip["video"]])
        start = float(clip["start_seconds"])
        context = float(file.config.get("context_seconds") or file.clip_seconds)
        first = start - (context - file.clip_seconds) / 2
        spare = max(0.0, _SHORTEST_SECONDS - context) / 2
        stop = min(first + context + spare, max(duration, float(clip["stop_seconds"])))
        return cls(row, int(clip["video"]), max(0.0, first - spare), stop, first, first + context)


class Sounds(Protocol):
    """Where sound comes from."""

    sample_rate: int
    note: str
    """What a listener should know of it."""
    files: tuple[Path, ...]
    """That are read besides the egoaudio file."""

    def read(self, excerpts: Iterable[Excerpt]) -> Iterator[tuple[Excerpt, np.ndarray]]:
        """Yield excerpts with their samples, float32 (num_samples,), in any order; those without sound are left out."""


def open_sounds(file: EgoAudioFile, videos: str | os.PathLike[str] | None) -> Sounds | None:
    """Return where the sound of a file's clips comes from; None where it has none, and no videos are given.

    Raises
    ------
    MediaError
        ``videos`` is no folder, or holds two files of one video.
    """
    if videos is not None:
        return MediaSounds(file, videos)
    return StoredSounds(file) if "waveform" in file.features else None


class StoredSounds:
    """The sound in ``/waveform`` of a file, as the model was given it."""

    note = "the sound is the file's own, as features were made of it"
    files: tuple[Path, ...] = ()

    def __init__(self, file: EgoAudioFile) -> None:
        self._file = file
        self.sample_rate = file.sample_rate

    def read(self, excerpts: Iterable[Excerpt]) -> Iterator[tuple[Excerpt, np.ndarray]]:
        """Yield excerpts with their samples; what no clip holds is silence."""
        clips, usable = self._file.clip_table, self._file.usable
        for excerpt in excerpts:
            first, last = (
                round(seconds * self.sample_rate) for seconds in (excerpt.start_seconds, excerpt.stop_seconds)
            )
            samples = np.zeros(max(0, last - first), np.float32)
            for row in self._rows(excerpt, clips):
                if usable[row]:
                    begin = round(float(clips["start_seconds"][row]) * self.sample_rate) - first
                    sound = self._file.values("waveform", row)[: clips["num_samples"][row]]
                    target = samples[max(0, begin) : max(0, begin + len(sound))]
                    target[:] = sound[max(0, -begin) : max(0, -begin) + len(target)]
            yield excerpt, samples

    def _rows(self, excerpt: Excerpt, clips: np.ndarray) -> np.ndarray:
        """Return the rows of the excerpt's video that overlap it, in order."""
        video = self._file.video_table[excerpt.video]
        rows = np.arange(int(video["first_clip"]), int(video["first_clip"]) + int(video["num_clips"]))
        rows = rows[(rows >= 0) & (rows < len(clips))]
        there = clips[rows]
        return rows[
            (there["video"] == excerpt.video)
            & (there["start_seconds"] < excerpt.stop_seconds)
            & (there["stop_seconds"] > excerpt.start_seconds)
        ]


class MediaSounds:
    """The sound of the videos that a file was built from, not denoised."""

    note = "the sound is that of the videos, before denoising"

    def __init__(self, file: EgoAudioFile, folder: str | os.PathLike[str]) -> None:
        self.sample_rate = file.sample_rate
        config = file.config
        self._settings = config.get("audio_track"), bool(config.get("compensate_delay", False))
        ids = [raw.decode("utf-8", errors="replace") for raw in file.video_table["video_id"].tolist()]
        found = find_files(ids, folder)
        self._paths = {
            number: found[video_id]
            for number, video_id in enumerate(ids)
            if video_id in found and file.video_table["status"][number] == Status.OK
        }
        if not self._paths:
            raise MediaError(
                f"`videos={os.fspath(folder)!r}`: none of the {file.num_videos:,} videos of {file.path} is in it"
            )
        self.files = tuple(self._paths.values())
        self._fingerprints = file.fingerprints

    def read(self, excerpts: Iterable[Excerpt]) -> Iterator[tuple[Excerpt, np.ndarray]]:
        """Yield excerpts with their samples, video by video, each decoded once and no further than needed."""
        groups: dict[int, list[Excerpt]] = {}
        for excerpt in excerpts:
            groups.setdefault(excerpt.video, []).append(excerpt)
        for video, group in groups.items():
            path = self._paths.get(video)
            if path is None or not self._is_the_same(video, path):
                continue
            try:
                yield from self._decode(path, sorted(group, key=lambda excerpt: excerpt.stop_seconds))
            except MediaError as error:
                warnings.warn(f"no sound from {error}", stacklevel=2)

    def _is_the_same(self, video: int, path: Path) -> bool:
        """Return whether a file is the one that the rows were made of."""
        known = self._fingerprints[video]
        same = not known.any() or fingerprint(path) == known.tobytes()
        if not same:
            warnings.warn(f"{path} is another file than was built from: its sound is left out", stacklevel=3)
        return same

    def _decode(self, path: Path, excerpts: list[Excerpt]) -> Iterator[tuple[Excerpt, np.ndarray]]:
        """Yield the excerpts of one file, in the order of their ends."""
        waiting, kept, first = list(excerpts), np.zeros(0, np.float32), 0  # ``first``: place of ``kept`` in the sound
        for block in Decoder(path, self.sample_rate, *self._settings):
            kept = np.concatenate([kept, block])
            while waiting and first + len(kept) >= round(waiting[0].stop_seconds * self.sample_rate):
                yield self._cut(waiting.pop(0), kept, first)
            if not waiting:
                return
            drop = max(0, min(round(min(one.start_seconds for one in waiting) * self.sample_rate) - first, len(kept)))
            kept, first = kept[drop:], first + drop
        for excerpt in waiting:
            yield self._cut(excerpt, kept, first)

    def _cut(self, excerpt: Excerpt, samples: np.ndarray, first: int) -> tuple[Excerpt, np.ndarray]:
        start, stop = (
            round(seconds * self.sample_rate) - first for seconds in (excerpt.start_seconds, excerpt.stop_seconds)
        )
        return excerpt, samples[max(0, start) : max(0, stop)]
