"""One video, in a worker: its sound becomes rows of the file.

``extract`` reads in data order: decode, denoise, cut, features, write. Every stage is a stream, so a worker has only a
few seconds of sound in memory, and returns a few numbers to the parent, never samples. The video's row in ``/videos``
is written last, and with it the video is done: a worker killed before that leaves a video that is still planned. No
library that is slow to import or large in memory is used (no torch).

A clip of 1 s takes 1.2 ms, half of it for decoding (``benchmarks/README.md``).
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from egoaudio.audio import clips
from egoaudio.builder.feature_stream import Clock, enough_sound, feature_blocks, open_decoder, why_silent
from egoaudio.config.build import BuildConfig
from egoaudio.errors import MediaError, Status
from egoaudio.hdf5.integrity import checksum, statistics
from egoaudio.hdf5.safe_access import Extent
from egoaudio.hdf5.schema import ADDED_VIDEO_COLUMNS, encode
from egoaudio.hdf5.writer import RowWriter
from egoaudio.inputs.decoder import Decoder
from egoaudio.inputs.fingerprint import UNKNOWN, fingerprint


@dataclass(frozen=True)
class Job:
    """One planned video."""

    video: int
    """Row in /videos."""
    path: str
    """The media file."""
    first_clip: int
    """Its first row in /clips."""
    recording_samples: int
    """Samples at the file's sample rate that the probe found."""
    fingerprint: bytes = UNKNOWN
    """Of the file that was probed: no other one is decoded in its place."""


@dataclass
class Outcome:
    """What became of a job."""

    status: Status
    error: str = ""
    num_clips: int = 0
    """Clips with data."""
    sound_seconds: float = 0.0
    """Sound that was decoded."""
    lost_samples: int = 0
    """Samples that could not be decoded, at the file's sample rate."""
    stage_seconds: dict[str, float] = field(default_factory=dict)
    """Time spent in each of ``feature_stream.STAGES``."""
    written: bool = True
    """Whether the video's rows say so; if its file disappeared, the parent first checks whether the folder did, too."""


def extract(path: str, extents: Mapping[str, Extent], config: BuildConfig, job: Job) -> Outcome:
    """Fill the rows of one video.

    Parameters
    ----------
    path : str
        The file that ``create.lay_out`` made.
    extents : dict
        Where its arrays are, from ``writer.offsets``.
    config : BuildConfig
    job : Job

    Returns
    -------
    Outcome
        With ``Status.UNREADABLE`` if nothing could be decoded: the rows then hold zeros and /videos the reason. With
        ``written=False`` if the file can no longer be opened: nothing is written.

    Raises
    ------
    StoreError
        When the file cannot be written.
    """
    plan = clips.plan_clips(job.recording_samples, config.clips, config.sample_rate)
    clock = Clock()
    with RowWriter(path, extents) as writer:
        found = fingerprint(job.path)
        if found == UNKNOWN:
            return _gone(job)
        if job.fingerprint not in (UNKNOWN, found):
            return _mark_unreadable(writer, job, plan, "its file was changed since the build began", clock)
        decoder = open_decoder(job.path, config)
        try:
            arrived = _write_features(writer, decoder, job, plan, config, clock)
        except MediaError as error:
            if fingerprint(job.path) == UNKNOWN:
                return _gone(job)
            return _mark_unreadable(writer, job, plan, str(error), clock)
        reason = why_silent(decoder) if config.sound.skip_silent else ""
        if reason:
            mark_failed(writer, job, plan.num_clips, Status.NO_AUDIO, reason, decoder)
            return Outcome(Status.NO_AUDIO, reason, stage_seconds=clock.seconds)
        enough = enough_sound(arrived, plan)
        with clock("write"):
            _finish(writer, job, arrived, np.where(enough, Status.OK, Status.NO_SOUND), Status.OK, decoder=decoder)
    return Outcome(
        Status.OK, "", int(enough.sum()), decoder.num_samples / config.sample_rate, decoder.lost_samples, clock.seconds
    )


def _gone(job: Job) -> Outcome:
    """Return the outcome of a video whose file can no longer be opened."""
    if os.path.exists(job.path):
        return Outcome(
            Status.UNREADABLE, "its file could be read when the build began, and can no longer", written=False
        )
    return Outcome(Status.MISSING, "its file was there when the build began, and is gone", written=False)


def _mark_unreadable(writer: RowWriter, job: Job, plan: clips.ClipPlan, reason: str, clock: Clock) -> Outcome:
    """Write that a video cannot be read; return its outcome."""
    mark_failed(writer, job, plan.num_clips, Status.UNREADABLE, reason)
    return Outcome(Status.UNREADABLE, reason, stage_seconds=clock.seconds)


def mark_failed(
    writer: RowWriter, job: Job, num_clips: int, status: Status, reason: str, decoder: Decoder | None = None
) -> None:
    """Write that a video has no data: its rows become zeros, its clips and the video itself get ``status``."""
    for name in _feature_arrays(writer):
        writer.erase(name, job.first_clip, num_clips)
        writer.erase(f"checksums/{name}", job.video, 1)
        writer.erase(f"statistics/{name}", job.video, 1)
    _finish(writer, job, np.zeros(num_clips, np.int32), np.full(num_clips, status), status, reason, decoder)


def rehearse(config: BuildConfig, job: Job) -> Outcome:
    """Do all of a job except the writing, to see how long it takes; return its Outcome."""
    plan = clips.plan_clips(job.recording_samples, config.clips, config.sample_rate)
    clock = Clock()
    decoder = open_decoder(job.path, config)
    try:
        _write_features(_Nowhere(), decoder, job, plan, config, clock)
    except MediaError as error:
        return Outcome(Status.UNREADABLE, str(error))
    return Outcome(
        Status.OK, "", plan.num_clips, decoder.num_samples / config.sample_rate, decoder.lost_samples, clock.seconds
    )


class _Sink(Protocol):
    """What takes rows: a RowWriter."""

    def write(self, name: str, first_row: int, rows: np.ndarray) -> None:
        """Take rows of an array."""


class _Nowhere:
    """A sink that discards the rows."""

    def write(self, name: str, first_row: int, rows: np.ndarray) -> None:
        """Discard the rows."""


def _write_features(
    writer: _Sink, decoder: Decoder, job: Job, plan: clips.ClipPlan, config: BuildConfig, clock: Clock
) -> np.ndarray:
    """Write the feature rows, checksums and statistics of a video; return the samples of each clip that arrived."""
    arrived = np.zeros(plan.num_clips, np.int32)
    sums = {name: (0, np.zeros(3)) for name in config.features.features}
    for first, features, real in feature_blocks(decoder, plan, config, clock):
        arrived[first : first + len(real)] = real
        enough = enough_sound(real, plan)
        with clock("write"):
            for name, rows in features.items():
                usable = rows if enough.all() else rows[enough]  # a copy would take 1 % of a build
                sums[name] = (checksum(rows, sums[name][0]), statistics(usable, sums[name][1]))
                writer.write(name, job.first_clip + first, rows)
    for name, (crc, moments) in sums.items():
        writer.write(f"checksums/{name}", job.video, np.array([crc], np.uint32))
        writer.write(f"statistics/{name}", job.video, moments[None])
    return arrived


def _finish(
    writer: RowWriter,
    job: Job,
    num_samples: np.ndarray,
    clip_status: np.ndarray,
    video_status: Status,
    reason: str = "",
    decoder: Decoder | None = None,
) -> None:
    """Write what became of the clips, then of the video, with the facts that a finished decoder has about its sound."""
    rows = writer.read("clips", job.first_clip, len(num_samples))
    rows["num_samples"], rows["status"] = num_samples, clip_status
    writer.write("clips", job.first_clip, rows)
    row = writer.read("videos", job.video, 1)
    row["status"] = video_status
    for name in ("lost_samples", *ADDED_VIDEO_COLUMNS):
        if name in (row.dtype.names or ()):  # a build may have begun before the column existed
            row[name] = 0 if decoder is None else getattr(decoder, name)
    row["error"] = encode(reason, row.dtype["error"].itemsize)
    writer.write("videos", job.video, row)


def _feature_arrays(writer: RowWriter) -> list[str]:
    """Return the names of the file's feature arrays."""
    return [name.split("/")[1] for name in writer.extents if name.startswith("checksums/")]
