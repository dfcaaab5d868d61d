"""Merge egoaudio files of one configuration and class list into one: shards that were brought together, or any others.

In: paths. Out: one file with the videos of all, complete or not at all; shards of one build give the file of that
build, byte for byte except ``created_utc``. The files are only read. Stopped at any instant, the same call resumes.

A build without ``shard`` does the same with the shards beside its output, and can decode what is missing or damaged.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from egoaudio.builder.finish import count_classes, publish
from egoaudio.builder.plan import Gathered, MediaFolder, Plan, place
from egoaudio.builder.prepare import check_folder, lay_out_plan
from egoaudio.builder.recordings import Recordings
from egoaudio.builder.shards import Shard
from egoaudio.builder.summary import BuildReport, Tally
from egoaudio.builder.synced import repeat_torn
from egoaudio.builder.transfer import Move, take_over
from egoaudio.config.build import BuildConfig
from egoaudio.config.options import from_json
from egoaudio.errors import BuildError, ConfigurationError, Status
from egoaudio.hdf5 import joined
from egoaudio.hdf5.reader import EgoAudioFile
from egoaudio.hdf5.writer import RowWriter, offsets
from egoaudio.inputs.annotations import NO_ACTION, Annotations
from egoaudio.inputs.videos import INSTANCE_COLUMNS, TEXTS, Videos, text_table
from egoaudio.system import files, lock
from egoaudio.system.files import StrPath, StrPaths
from egoaudio.system.progress import Progress

DUPLICATES = ("refuse", "first")


@dataclass(frozen=True, eq=False)
class _Part:
    """A file, and which of its videos are taken."""

    file: EgoAudioFile
    videos: np.ndarray
    """int64: rows of its /videos."""
    first: int
    """Row of the merged /videos that the first of them gets."""


def merge(paths: StrPaths, output: StrPath, *, force: bool = False, duplicates: str = "refuse") -> BuildReport:
    """Merge egoaudio files into one.

    Parameters
    ----------
    paths : path, or sequence of path
        Complete files of one configuration and class list. Shards of one build are put in its order, and none may be
        missing; other files keep the given order.
    output : path
        The file to make; ``OUTPUT.partial`` until it is complete.
    force : bool
        Start over and replace what is there.
    duplicates : {"refuse", "first"}
        What to do about a video that is in two files: raise an error, or take the first one.

    Returns
    -------
    BuildReport

    Raises
    ------
    BuildError
        A file is incomplete or damaged, shards are missing, or ``output`` holds something else.
    StoreError
        A file cannot be used, they do not belong together, or the merged one cannot be written.

    Examples
    --------
    >>> import egoaudio
    >>> report = egoaudio.merge(["ego.h5"], "merged.h5")  # or the shards of a build
    >>> report.path.endswith("merged.h5")
    True
    """
    if duplicates not in DUPLICATES:
        raise ConfigurationError(f"`duplicates={duplicates!r}`: expected one of {', '.join(DUPLICATES)}")
    check_folder(Path(output))
    output = Path(os.path.realpath(output))
    partial_path = output.with_name(output.name + ".partial")
    given = files.as_paths(paths)
    if not given:
        raise BuildError("nothing to merge: give egoaudio files")
    with lock.held(output), contextlib.ExitStack() as opened:
        try:
            for path in (output, partial_path):
                files.check_output(path, given)
        except OSError as error:
            raise BuildError(f"`output={os.fspath(output)!r}`: {error.strerror}") from error
        files.remove_leftovers(partial_path)
        whole, plan_sha256 = _in_order([opened.enter_context(EgoAudioFile(path)) for path in given])
        parts = _choose(whole, duplicates)
        if output.exists() and not force:
            return _existing(output, plan_sha256)
        config = from_json(BuildConfig, json.dumps(whole[0].config))
        if force or not partial_path.exists():
            lay_out_plan(partial_path, _plan(parts, config, plan_sha256, output), config)
        else:
            _require_same(partial_path, plan_sha256)
        _fill(partial_path, parts)
        publish(partial_path, output)
        return Tally().report(output, {})


def _in_order(opened: list[EgoAudioFile]) -> tuple[list[EgoAudioFile], str]:
    """Return the files in the order of the merged one, and its ``plan_sha256``, after checking that they fit together.

    Raises
    ------
    BuildError, StoreError
    """
    for file in opened:
        if not file.complete:
            raise BuildError(f"{file.path} is incomplete: finish it with the command that built it")
    joined.require_agreement(opened)
    wholes = {file.whole_plan_sha256 for file in opened}
    if len(wholes) > 1 or None in wholes:
        plans = [file.plan_sha256 for file in opened]
        return opened, plans[0] if len(plans) == 1 else hashlib.sha256(" ".join(plans).encode()).hexdigest()
    shards = [Shard.parse(file.shard or "") for file in opened]
    counts = sorted({shard.count for shard in shards})
    if len(counts) > 1:
        raise BuildError(f"these are shards of several divisions, {' and '.join(f'N = {n}' for n in counts)}: give one")
    twice = next((file for k, file in enumerate(opened) if shards[k] in shards[:k]), None)
    if twice is not None:
        raise BuildError(f"{twice.path} is shard {twice.shard} once more: give each shard once")
    missing = sorted(set(range(counts[0])) - {shard.number for shard in shards})
    if missing:
        shown = ", ".join(map(str, missing[:8])) + ", ..." * (len(missing) > 8)
        raise BuildError(
            f"of {counts[0]:,} shards {len(missing):,} are missing: {shown}. Give them, too; egoaudio-build without "
            "`shard` takes over those beside its output, and builds the rest"
        )
    order = np.argsort([shard.number for shard in shards]).tolist()
    return [opened[number] for number in order], str(opened[0].whole_plan_sha256)


def _choose(whole: Sequence[EgoAudioFile], duplicates: str) -> list[_Part]:
    """Return the files with the videos to take from each."""
    if duplicates == "refuse":
        joined.require_no_video_twice(whole)
    seen: set[bytes] = set()
    parts, first = [], 0
    for file in whole:
        ids = file.video_table["video_id"].tolist()
        videos = np.array([number for number, video_id in enumerate(ids) if video_id not in seen], np.int64)
        seen.update(ids)
        parts.append(_Part(file, videos, first))
        first += len(videos)
    return parts


def _plan(parts: Sequence[_Part], config: BuildConfig, plan_sha256: str, output: Path) -> Plan:
    """Return what a build of all these videos would have planned."""
    counts = np.concatenate([part.file.video_table["num_clips"][part.videos] for part in parts])
    recordings = Recordings.unknown(len(counts))
    for part in parts:
        recordings.put(part.first, Recordings.of_file(part.file).take(part.videos))
    table = parts[0].file.class_table
    class_ids, class_names = (
        tuple(raw.decode(errors="replace") for raw in table[column].tolist()) for column in ("class_id", "name")
    )
    named = sum(class_id != NO_ACTION for class_id in class_ids)
    videos = _videos(parts)
    names = np.concatenate([part.file.video_table["file"][part.videos] for part in parts])
    gathered = Gathered(
        Annotations(videos, class_ids[:named], class_names[:named], {}), class_ids, class_names, names,
        np.full(len(counts), -1), plan_sha256, MediaFolder.of(output.parent),
    )  # fmt: skip
    plan = place(gathered, recordings, config)
    other = np.flatnonzero(np.diff(plan.first_clips) != counts)
    if len(other):
        raise BuildError(
            f"video {videos[int(other[0])].video_id} has other clips than its file's configuration makes: the file is "
            "damaged, or another program wrote it: check it with egoaudio-inspect --verify"
        )
    return plan


def _videos(parts: Sequence[_Part]) -> Videos:
    """Return the annotations of all videos."""
    tables = [part.file.video_table[part.videos] for part in parts]
    columns = {name: np.concatenate([table[name] for table in tables]) for name in TEXTS}
    egocentric = np.concatenate([table["egocentric"] for table in tables])
    instances, counts = [], []
    for part in parts:
        table = part.file.instances
        if (np.diff(table["video"]) < 0).any() or not (
            (0 <= table["video"]) & (table["video"] < part.file.num_videos)
        ).all():
            raise BuildError(
                f"{part.file.path}: the instances in /instances are not in the order of the videos: it is damaged"
            )
        bounds = np.searchsorted(table["video"], np.arange(part.file.num_videos + 1))
        counts.append(np.diff(bounds)[part.videos])
        instances.append(table[np.isin(table["video"], part.videos)][[name for name, _ in INSTANCE_COLUMNS]])
    bounds = np.concatenate([[0], np.cumsum(np.concatenate(counts))])
    return Videos(text_table(columns, egocentric), np.concatenate(instances), bounds)


def _existing(output: Path, plan_sha256: str) -> BuildReport:
    """Return the report of a file that was merged from these already; refuse any other."""
    with EgoAudioFile(output) as file:
        if file.plan_sha256 != plan_sha256:
            raise BuildError(
                f"{output} exists and holds something else: give another `output`, or `force=True` to replace it"
            )
    return Tally().report(output, {}, already_complete=True)


def _require_same(partial_path: Path, plan_sha256: str) -> None:
    """Refuse to resume the unfinished file of something else."""
    with EgoAudioFile(partial_path) as file:
        if file.plan_sha256 != plan_sha256:
            raise BuildError(
                f"{partial_path} is unfinished, and of something else: give the files that it began with, or "
                "`force=True` to start over"
            )


def _fill(partial_path: Path, parts: Sequence[_Part]) -> None:
    """Take over every video that is not done yet.

    Raises
    ------
    BuildError
        One is damaged; what was taken over is kept.
    """
    extents = offsets(partial_path)
    total = sum(len(part.videos) for part in parts)
    with (
        Progress(total, "merge", unit="videos") as progress,
        RowWriter(partial_path, extents) as writer,
        EgoAudioFile(partial_path) as file,
    ):
        repeat_torn(file, writer)
        for part in parts:
            writer.write("video_labels", part.first, part.file.video_labels[part.videos])
        planned = file.video_table["status"] == Status.PLANNED
        progress.advance(total - int(planned.sum()))
        moves = (
            Move(part.file, number, part.first + k)
            for part in parts
            for k, number in enumerate(part.videos.tolist())
            if planned[part.first + k]
        )
        for move, problem in take_over(moves, str(partial_path), extents, with_labels=True):
            if problem:
                video_id = move.file.video_table["video_id"][move.source].decode(errors="replace")
                raise BuildError(
                    f"{move.file.path}: {video_id} cannot be taken over: {problem}. Build that file again, or have "
                    "egoaudio-build take over its shards: it decodes such videos again"
                )
            progress.advance(1)
        count_classes(file, writer)
