"""What a build will make: which videos, which files, how many clips of each, before a sample is decoded.

``gather`` reads the annotations and finds the files; it is quick, and its ``sha256`` tells whether a file on disk is a
build of the same inputs. ``probe_recordings`` then has worker processes measure how much sound each file holds, and
``Plan`` places every clip: row numbers are fixed from here on, so workers can write anywhere in any order.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from egoaudio.audio import clips
from egoaudio.builder import pool
from egoaudio.builder.recordings import Recordings
from egoaudio.config.build import BuildConfig, SoundConfig
from egoaudio.config.options import to_json
from egoaudio.errors import BuildError, ConfigurationError, Status
from egoaudio.inputs.annotations import NO_ACTION, Annotations, read_annotations
from egoaudio.inputs.find_media import find_files
from egoaudio.inputs.fingerprint import fingerprint
from egoaudio.inputs.probe import Recording, probe
from egoaudio.inputs.videos import Videos
from egoaudio.system.files import StrPath
from egoaudio.system.progress import Progress


@dataclass(frozen=True)
class Inputs:
    """What a build reads; paths as the user gave them, one path or several where there may be several."""

    annotations: StrPath | Sequence[StrPath]
    """CSV files; their videos are train videos unless a column says otherwise."""
    videos: StrPath
    """Folder that holds the media files, at any depth."""
    test_annotations: StrPath | Sequence[StrPath] = ()
    """CSV files of test videos."""
    classes: StrPath | None = None
    """Class list."""
    follow_links: bool = False
    """Whether symbolic links may lead out of ``videos``."""

    def __post_init__(self) -> None:
        """Treat a single path as a list of one."""
        for name in ("annotations", "test_annotations"):
            object.__setattr__(self, name, paths(getattr(self, name)))


def paths(value: StrPath | Sequence[StrPath]) -> tuple[StrPath, ...]:
    """Return one path or several as a tuple."""
    return (value,) if isinstance(value, (str, os.PathLike)) else tuple(value)


@dataclass(frozen=True)
class MediaFolder:
    """The folder of videos when the build began; a disk may be unmounted meanwhile, or a network fail for a moment."""

    path: str
    identity: tuple[int, int]
    """Device and inode."""

    @classmethod
    def of(cls, path: StrPath) -> "MediaFolder":
        """Return the folder as it is now."""
        info = os.stat(path)
        return cls(os.fspath(path), (info.st_dev, info.st_ino))

    def require(self, file: StrPath) -> None:
        """Raise if the folder is gone, or the part of it that held ``file``: that is no failure of the video.

        Raises
        ------
        BuildError
        """
        try:
            gone = MediaFolder.of(self.path) != self or not os.path.isdir(os.path.dirname(file))
        except OSError:
            gone = True
        if gone:
            raise BuildError(
                f"`videos={self.path!r}`: the folder, or the part of it that held {os.path.basename(file)}, is gone or "
                "was replaced: mount it again and run the same command; what was done is kept"
            )


@dataclass(frozen=True, eq=False)
class Gathered:
    """The annotations, and the file of each video."""

    annotations: Annotations
    class_ids: tuple[str, ...]
    """Ids of all classes, ``no_action`` the last one if the configuration has it."""
    class_names: tuple[str, ...]
    file_names: np.ndarray
    """For each video its path relative to the folder of videos, as from ``name_bytes``; empty where there is none."""
    sizes: np.ndarray
    """For each video its file's size in bytes, int64; -1 where there is none."""
    sha256: str
    """Of the configuration, the annotations, and each video's file name and size."""
    folder: MediaFolder
    """The folder of videos."""
    shard_of: Mapping[str, str] = field(default_factory=dict)
    """Of a shard: which it is, as the root's attributes ``shard`` and ``whole_plan_sha256``; else empty."""

    @property
    def num_videos(self) -> int:
        """Number of videos."""
        return len(self.sizes)

    def file_name(self, number: int) -> str:
        """Return the path of a video's file relative to the folder of videos; empty where there is none."""
        return bytes(self.file_names[number]).decode("utf-8", "surrogateescape")

    def path(self, number: int) -> str | None:
        """Return the path of a video's file, or None where there is none."""
        return os.path.join(self.folder.path, self.file_name(number)) if self.sizes[number] >= 0 else None

    def paths(self) -> Iterator[str]:
        """Yield the path of every file."""
        return (str(self.path(number)) for number in np.flatnonzero(self.sizes >= 0).tolist())


def name_bytes(name: str) -> bytes:
    """Return the name of a file as bytes; one that is not UTF-8 keeps its own."""
    return name.encode("utf-8", "surrogateescape")


@dataclass(frozen=True, eq=False)
class Plan:
    """A build, laid out: every video's sound and the clips it yields."""

    gathered: Gathered
    recordings: Recordings
    """Status MISSING where a video has no file."""
    recording_samples: np.ndarray
    """For each video, its samples at the file's sample rate, int64; 0 where there is no sound."""
    first_clips: np.ndarray
    """int64 (num_videos + 1,): for each video its first row in /clips; and the number of all clips."""

    @property
    def num_clips(self) -> int:
        """Number of all clips."""
        return int(self.first_clips[-1])


def gather(inputs: Inputs, config: BuildConfig) -> Gathered:
    """Read the annotations and find each video's file.

    Raises
    ------
    AnnotationError, MediaError
        As ``annotations.read_annotations`` and ``find_media.find_files``.
    BuildError
        When none of the videos has a file.
    ConfigurationError
        For an option without effect.
    """
    if config.features.waveform_dtype is not None and "waveform" not in config.features.features:
        raise ConfigurationError(
            f"`waveform_dtype={config.features.waveform_dtype!r}` has no effect without waveform among the `features`: "
            "give both, or neither"
        )
    annotations = read_annotations(paths(inputs.annotations), paths(inputs.test_annotations), inputs.classes)
    ids = annotations.videos.texts("video_id")
    found = find_files(ids, inputs.videos, follow_links=inputs.follow_links)
    if not found:
        raise BuildError(
            f"{inputs.videos}: none of the {len(ids):,} annotated videos is there; looked for {ids[0]}.mp4 and the "
            "like at any depth. Is `videos` the folder that holds the media files?"
        )
    folder = MediaFolder.of(inputs.videos)
    root = Path(inputs.videos)
    sizes, files = np.full(len(ids), -1, np.int64), np.zeros((len(ids), 2), np.uint64)
    names = []
    for number, video_id in enumerate(ids):
        path = found.pop(video_id, None)
        if path is not None:
            info = path.stat()
            sizes[number], files[number] = info.st_size, (info.st_dev, info.st_ino)
        names.append(b"" if path is None else name_bytes(str(path.relative_to(root))))
    extra = () if config.clips.no_action == "none" else (NO_ACTION,)
    gathered = Gathered(
        annotations,
        annotations.class_ids + extra,
        annotations.class_names + extra,
        np.array(names),
        sizes,
        "",
        folder,
    )
    gathered = _count_twins(gathered, files)
    return replace(gathered, sha256=_digest(gathered, config))


def take_part(gathered: Gathered, videos: slice, config: BuildConfig, shard: str) -> Gathered:
    """Return what was gathered of some of the videos alone: the inputs of the shard of this name, such as ``3/16``."""
    some = gathered.annotations.videos[videos]
    some = Videos(some.table.copy(), some.instances.copy(), some.bounds.copy())  # so that the others can be freed
    part = replace(
        gathered,
        annotations=replace(gathered.annotations, videos=some),
        file_names=gathered.file_names[videos].copy(),
        sizes=gathered.sizes[videos].copy(),
        shard_of={"shard": shard, "whole_plan_sha256": gathered.sha256},
    )
    return replace(part, sha256=_digest(part, config))


def _digest(gathered: Gathered, config: BuildConfig) -> str:
    """Return the SHA-256 that tells whether two builds are of the same inputs and options."""
    digest = hashlib.sha256(to_json(config).encode())
    digest.update(json.dumps([gathered.class_ids, gathered.annotations.class_names]).encode())
    for number, video in enumerate(gathered.annotations.videos):
        instances = [
            (instance.class_index, instance.start_seconds, instance.stop_seconds) for instance in video.instances
        ]
        name, size = gathered.file_name(number), int(gathered.sizes[number])
        facts = [video.video_id, video.split, video.subject, video.scene, video.egocentric, instances, name, size]
        digest.update(json.dumps(facts).encode())
    return digest.hexdigest()


def _count_twins(gathered: Gathered, files: np.ndarray) -> Gathered:
    """Return what was gathered, with the count of videos whose file is another video's, too.

    Parameters
    ----------
    gathered : Gathered
    files : ndarray of uint64, shape (num_videos, 2)
        Device and inode of each file.

    Raises
    ------
    BuildError
        When such videos are in different splits: a model would be tested on what it was trained on.
    """
    present, videos = np.flatnonzero(gathered.sizes >= 0), gathered.annotations.videos
    _, first, which = np.unique(files[present], axis=0, return_index=True, return_inverse=True)
    firsts = present[first[which.reshape(-1)]]
    twin = firsts != present
    if not twin.any():
        return gathered
    apart = np.flatnonzero(videos.table["split"][firsts] != videos.table["split"][present])
    if len(apart):
        numbers = int(firsts[apart[0]]), int(present[apart[0]])
        one, other = (videos[number] for number in numbers)
        raise BuildError(
            f"videos {one.video_id!r} ({one.split}) and {other.video_id!r} ({other.split}) are one recording, "
            f"{gathered.path(numbers[1])}: a model would be tested on what it was trained on. Remove one of them, or "
            "give both one split"
        )
    counts = {**gathered.annotations.irregularities, "videos with another's file": int(twin.sum())}
    return replace(gathered, annotations=replace(gathered.annotations, irregularities=counts))


def probe_recordings(
    gathered: Gathered,
    config: BuildConfig,
    workers: pool.Workers,
    progress: Progress,
    known: Recordings | None = None,
) -> Plan:
    """Have worker processes measure how much sound each file holds, except those that are ``known``; place the clips.

    Returns
    -------
    Plan
    """
    recordings = Recordings.unknown(gathered.num_videos) if known is None else known
    present = _Present(gathered, np.flatnonzero((gathered.sizes >= 0) & ~recordings.table["known"]))
    for (video, path), result in workers.map_unordered(partial(_probe, config.sound), present):
        if isinstance(result, pool.Death):
            result = Recording(Status.CRASHED, result.reason), fingerprint(path)
        recordings.set(video, *result)
        status = result[0].status
        if status == Status.UNREADABLE:
            gathered.folder.require(path)
        progress.advance(1, failures=status not in (Status.OK, Status.NO_AUDIO))
    return place(gathered, recordings, config)


@dataclass(frozen=True)
class _Present(Sequence[tuple[int, str]]):
    """Videos and their paths, each made when it is needed."""

    gathered: Gathered
    numbers: np.ndarray

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, place: Any) -> Any:
        number = int(self.numbers[place])
        return number, str(self.gathered.path(number))


def place(gathered: Gathered, recordings: Recordings, config: BuildConfig) -> Plan:
    """Place the clips of every recording in the file."""
    table = recordings.table
    samples = np.rint(table["duration_seconds"] * config.sample_rate).astype(np.int64)
    samples[table["status"] != Status.OK] = 0
    return Plan(gathered, recordings, samples, clips.place_clips(samples, config.clips, config.sample_rate).first)


def _probe(sound: SoundConfig, item: tuple[int, str]) -> tuple[Recording, bytes]:
    """Probe one file and take its fingerprint; runs in a worker."""
    return probe(item[1], sound.audio_track, sound.compensate_delay), fingerprint(item[1])
