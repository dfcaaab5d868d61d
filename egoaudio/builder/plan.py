"""What a build will make: which videos, which files, how many clips of each, before a sample is decoded.

``gather`` reads the annotations and finds the files; it is quick, and its ``sha256`` tells whether a file on disk is a
build of the same inputs. ``probe_recordings`` then has worker processes measure how much sound each file holds, and
``Plan`` places every clip: row numbers are fixed from here on, so workers can write anywhere in any order.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from egoaudio.audio import clips
from egoaudio.builder import pool
from egoaudio.config.build import BuildConfig, SoundConfig
from egoaudio.config.options import to_json
from egoaudio.errors import BuildError, Status
from egoaudio.inputs.annotations import NO_ACTION, Annotations, Video, read_annotations
from egoaudio.inputs.find_media import find_files
from egoaudio.inputs.fingerprint import UNKNOWN, fingerprint
from egoaudio.inputs.probe import Recording, probe
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


@dataclass(frozen=True)
class Gathered:
    """The annotations, and the file of each video."""

    annotations: Annotations
    class_ids: tuple[str, ...]
    """Ids of all classes, ``no_action`` the last one if the configuration has it."""
    class_names: tuple[str, ...]
    files: tuple[Path | None, ...]
    """For each video its path, or None where there is no file."""
    file_names: tuple[str, ...]
    """The same relative to the folder of videos, as text; empty where there is none."""
    sizes: tuple[int, ...]
    """For each video its file's size in bytes; -1 where there is none."""
    sha256: str
    """Of the configuration, the annotations, and each video's file name and size."""
    folder: MediaFolder
    """The folder of videos."""
    shard_of: Mapping[str, str] = field(default_factory=dict)
    """Of a shard: which it is, as the root's attributes ``shard`` and ``whole_plan_sha256``; else empty."""


@dataclass(frozen=True)
class Plan:
    """A build, laid out: every video's sound and the clips it yields."""

    gathered: Gathered
    recordings: tuple[Recording, ...]
    """A ``Recording`` for each video; status MISSING where it has no file."""
    recording_samples: tuple[int, ...]
    """For each video, its samples at the file's sample rate; 0 where there is no sound."""
    first_clips: tuple[int, ...]
    """For each video, its first row in /clips."""
    num_clips: int
    fingerprints: tuple[bytes, ...]
    """Of each video's file."""


def gather(inputs: Inputs, config: BuildConfig) -> Gathered:
    """Read the annotations and find each video's file.

    Raises
    ------
    AnnotationError, MediaError
        As ``annotations.read_annotations`` and ``find_media.find_files``.
    BuildError
        When none of the videos has a file.
    """
    annotations = read_annotations(paths(inputs.annotations), paths(inputs.test_annotations), inputs.classes)
    ids = [video.video_id for video in annotations.videos]
    found = find_files(ids, inputs.videos, follow_links=inputs.follow_links)
    if not found:
        raise BuildError(
            f"{inputs.videos}: none of the {len(ids):,} annotated videos is there; looked for {ids[0]}.mp4 and the "
            "like at any depth. Is `videos` the folder that holds the media files?"
        )
    folder = MediaFolder.of(inputs.videos)
    root = Path(inputs.videos)
    files = tuple(found.get(video_id) for video_id in ids)
    infos = [None if path is None else path.stat() for path in files]
    annotations = _count_twins(annotations, files, infos)
    file_names = tuple(str(path.relative_to(root)) if path else "" for path in files)
    sizes = tuple(-1 if info is None else info.st_size for info in infos)
    extra = () if config.clips.no_action == "none" else (NO_ACTION,)
    sha256 = _digest(annotations, annotations.class_ids + extra, file_names, sizes, config)
    return Gathered(
        annotations,
        annotations.class_ids + extra,
        annotations.class_names + extra,
        files,
        file_names,
        sizes,
        sha256,
        folder,
    )


def take_part(gathered: Gathered, videos: slice, config: BuildConfig, shard: str) -> Gathered:
    """Return what was gathered of some of the videos alone: the inputs of the shard of this name, such as ``3/16``."""
    annotations = replace(gathered.annotations, videos=gathered.annotations.videos[videos])
    file_names, sizes = gathered.file_names[videos], gathered.sizes[videos]
    return replace(
        gathered,
        annotations=annotations,
        files=gathered.files[videos],
        file_names=file_names,
        sizes=sizes,
        sha256=_digest(annotations, gathered.class_ids, file_names, sizes, config),
        shard_of={"shard": shard, "whole_plan_sha256": gathered.sha256},
    )


def _digest(
    annotations: Annotations,
    class_ids: Sequence[str],
    file_names: Sequence[str],
    sizes: Sequence[int],
    config: BuildConfig,
) -> str:
    """Return the SHA-256 that tells whether two builds are of the same inputs and options."""
    digest = hashlib.sha256(to_json(config).encode())
    digest.update(json.dumps([class_ids, annotations.class_names]).encode())
    for video, name, size in zip(annotations.videos, file_names, sizes, strict=True):
        instances = [
            (instance.class_index, instance.start_seconds, instance.stop_seconds) for instance in video.instances
        ]
        facts = [video.video_id, video.split, video.subject, video.scene, video.egocentric, instances, name, size]
        digest.update(json.dumps(facts).encode())
    return digest.hexdigest()


def _count_twins(
    annotations: Annotations, files: Sequence[Path | None], infos: Sequence[os.stat_result | None]
) -> Annotations:
    """Return the annotations with the count of videos whose file is another video's, too.

    Raises
    ------
    BuildError
        When such videos are in different splits: a model would be tested on what it was trained on.
    """
    first: dict[tuple[int, int], Video] = {}
    twins = 0
    for video, path, info in zip(annotations.videos, files, infos, strict=True):
        if info is None:
            continue
        other = first.setdefault((info.st_dev, info.st_ino), video)
        if other is not video:
            twins += 1
            if other.split != video.split:
                raise BuildError(
                    f"videos {other.video_id!r} ({other.split}) and {video.video_id!r} ({video.split}) are one "
                    f"recording, {path}: a model would be tested on what it was trained on. Remove one of them, or "
                    "give both one split"
                )
    return (
        replace(annotations, irregularities={**annotations.irregularities, "videos with another's file": twins})
        if twins
        else annotations
    )


def probe_recordings(
    gathered: Gathered,
    config: BuildConfig,
    workers: pool.Workers,
    progress: Progress,
    known: Mapping[int, tuple[Recording, bytes]] | None = None,
) -> Plan:
    """Have worker processes measure how much sound each file holds, except those that are ``known``; place the clips.

    Returns
    -------
    Plan
    """
    missing = Recording(Status.MISSING, "no media file of this name in the folder of videos", 0, 0, 0.0)
    recordings, fingerprints = [missing] * len(gathered.files), [UNKNOWN] * len(gathered.files)
    for video, found in (known or {}).items():
        recordings[video], fingerprints[video] = found
    present = [
        (video, str(path))
        for video, path in enumerate(gathered.files)
        if path is not None and video not in (known or {})
    ]
    for (video, path), result in workers.map_unordered(partial(_probe, config.sound), present):
        if isinstance(result, pool.Death):
            result = Recording(Status.CRASHED, result.reason, 0, 0, 0.0), fingerprint(path)
        recordings[video], fingerprints[video] = result
        if result[0].status == Status.UNREADABLE:
            gathered.folder.require(path)
        progress.advance(1, failures=recordings[video].status not in (Status.OK, Status.NO_AUDIO))
    return place(gathered, recordings, config, fingerprints)


def place(
    gathered: Gathered,
    recordings: Sequence[Recording],
    config: BuildConfig,
    fingerprints: Sequence[bytes] | None = None,
) -> Plan:
    """Place the clips of every recording in the file."""
    samples, firsts, total = [], [], 0
    for recording in recordings:
        samples.append(round(recording.duration_seconds * config.sample_rate) if recording.status == Status.OK else 0)
        firsts.append(total)
        total += clips.plan_clips(samples[-1], config.clips, config.sample_rate).num_clips
    return Plan(
        gathered,
        tuple(recordings),
        tuple(samples),
        tuple(firsts),
        total,
        tuple(fingerprints or [UNKNOWN] * len(recordings)),
    )


def _probe(sound: SoundConfig, item: tuple[int, str]) -> tuple[Recording, bytes]:
    """Probe one file and take its fingerprint; runs in a worker."""
    return probe(item[1], sound.audio_track, sound.compensate_delay), fingerprint(item[1])
