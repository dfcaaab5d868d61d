"""Shards: a build divided among machines, each of which makes an egoaudio file with a contiguous range of the videos.

In: what was gathered, and K/N. Out: what was gathered of the K-th range; and, for the build that takes them over, the
finished shards beside its output, each checked against its inputs.

Conventions: ``OUTPUT.shard-KKKKK-of-NNNNN`` is the K-th of N, counted from 0. The ranges depend only on the annotations
and the sizes of the media files, so all machines divide alike without communication. Two hosts never write one file:
over NFS that loses rows.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

import numpy as np

from egoaudio._version import __version__
from egoaudio.builder.plan import Gathered, place, take_part
from egoaudio.builder.prepare import changed_videos, changes, require_same
from egoaudio.builder.recordings import Recordings
from egoaudio.builder.summary import FAILED
from egoaudio.builder.synced import plan_again, repeat_torn, sync
from egoaudio.builder.transfer import Move, take_over
from egoaudio.config.build import BuildConfig
from egoaudio.errors import BuildError, ConfigurationError, Status, StoreError
from egoaudio.hdf5 import integrity
from egoaudio.hdf5.reader import EgoAudioFile
from egoaudio.hdf5.writer import Extents, RowWriter, offsets
from egoaudio.system.progress import Progress

_MOST_SHARDS = 99_999  # five digits in the name


@dataclass(frozen=True)
class Shard:
    """One of the shares of a build; ``str()`` is ``K/N``."""

    number: int
    """From 0."""
    count: int
    """Of all shards."""

    def __post_init__(self) -> None:
        """Check that there is such a share."""
        if not 0 <= self.number < self.count <= _MOST_SHARDS:
            last = f"{self.count - 1}/{self.count}"
            words = f"shards are counted from 0, so the last one is {last}" if self.number >= self.count > 0 else ""
            raise ConfigurationError(
                f"`shard={str(self)!r}`: {words or f'expected K/N, 0 <= K < N <= {_MOST_SHARDS}, such as 0/16'}"
            )

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Return the shard that ``K/N`` names.

        Raises
        ------
        ConfigurationError
        """
        found = re.fullmatch(r"\s*(\d{1,9})\s*/\s*(\d{1,9})\s*", text, re.ASCII)
        if found is None:
            raise ConfigurationError(f"`shard={text!r}`: expected K/N, such as 0/16 for the first of 16")
        return cls(int(found[1]), int(found[2]))

    def path(self, output: Path) -> Path:
        """Return where this shard of ``output`` is."""
        return output.with_name(f"{output.name}.shard-{self.number:05d}-of-{self.count:05d}")


@dataclass(frozen=True)
class FoundShard:
    """A finished shard beside the output, of the same inputs and options."""

    path: Path
    videos: slice
    """Its rows in the whole file's /videos."""
    recordings: Recordings
    """What a probe would return for each of its videos."""
    egoaudio_version: str
    """The version that made it."""


@dataclass(frozen=True)
class FoundShards:
    """All finished shards beside an output."""

    shards: tuple[FoundShard, ...] = ()
    missing: Mapping[Shard, slice] = field(default_factory=dict)
    """The others, and their rows in the whole file's /videos."""
    notes: tuple[str, ...] = ()
    """What cannot be read, and other remarks, in lines."""

    def known(self, num_videos: int) -> Recordings:
        """Return what is known of the shards' videos among all."""
        recordings = Recordings.unknown(num_videos)
        for shard in self.shards:
            recordings.put(shard.videos.start, shard.recordings)
        return recordings

    def remove(self, whole: EgoAudioFile) -> list[str]:
        """Remove the shards, except those that hold videos which the whole lacks; return why, a line about each."""
        return [why for shard in self.shards if (why := _remove(shard, whole))]


def divide(sizes: Sequence[int] | np.ndarray, count: int) -> list[slice]:
    """Divide videos into contiguous ranges of about equal media size, none of them empty.

    Parameters
    ----------
    sizes : sequence of int
        Bytes of each video's file; negative where there is none.
    count : int
        At most as many as there are videos.
    """
    before = [
        0,
        *accumulate(max(0, size) + 1 for size in np.asarray(sizes).tolist()),
    ]  # a video without a file has rows, too
    bounds, at = [0], 0
    for number in range(1, count):
        last = len(sizes) - (count - number)  # the shards that follow need a video each
        # Up to the bound that is nearest to number / count of the whole, in integers: the same on every machine.
        while at < last and count * (before[at] + before[at + 1]) < 2 * number * before[-1]:
            at += 1
        at = min(max(at, bounds[-1] + 1), last)
        bounds.append(at)
    return [slice(*pair) for pair in zip(bounds, [*bounds[1:], len(sizes)], strict=True)]


def part_of(gathered: Gathered, shard: Shard, config: BuildConfig) -> Gathered:
    """Return what was gathered of a shard's videos.

    Raises
    ------
    BuildError
        There are more shards than videos.
    """
    _require_enough(gathered, shard.count, f"`shard={str(shard)!r}`")
    return take_part(gathered, divide(gathered.sizes, shard.count)[shard.number], config, str(shard))


def _require_enough(gathered: Gathered, count: int, what: str) -> None:
    if count > gathered.num_videos:
        raise BuildError(
            f"{what}: there are only {gathered.num_videos:,} videos, so at most {gathered.num_videos:,} shards"
        )


def unfinished(
    output: Path, partial_path: Path, gathered: Gathered, config: BuildConfig, count: int
) -> dict[Shard, int]:
    """Return which of ``count`` shards are still to be built, and how many videos each has.

    Those are left out that are finished beside ``output``, or have been taken over into its unfinished file.

    Raises
    ------
    BuildError
        As from ``find_shards``, or the finished ones are of another division.
    """
    _require_enough(gathered, count, f"`shards={count}`")
    shards = [Shard(number, count) for number in range(count)]
    other = {shard.path for shard in find_shards(output, gathered, config).shards} - {
        shard.path(output) for shard in shards
    }
    if other:
        raise BuildError(
            f"`shards={count}`, and {min(other)} is of another division: give `shards` as in its name, or remove it"
        )
    planned = np.ones(gathered.num_videos, bool)
    if partial_path.exists():
        require_same(partial_path, gathered, config)
        with EgoAudioFile(partial_path) as file:
            planned = file.video_table["status"] == Status.PLANNED
    return {
        shard: videos.stop - videos.start
        for shard, videos in zip(shards, divide(gathered.sizes, count), strict=True)
        if not shard.path(output).exists() and planned[videos].any()
    }


def find_shards(output: Path, gathered: Gathered, config: BuildConfig) -> FoundShards:
    """Find the finished shards of ``output`` beside it.

    Raises
    ------
    BuildError
        One holds something else, or there are shards of two divisions.
    """
    pattern = re.compile(re.escape(output.name) + r"\.shard-(\d{5})-of-(\d{5})")
    names = [found for path in output.parent.iterdir() if (found := pattern.fullmatch(path.name))]
    counts = sorted({int(found[2]) for found in names})
    if not counts:
        return FoundShards()
    if len(counts) > 1:
        raise BuildError(
            f"{output.parent} has shards of {output.name} of several divisions, "
            f"{' and '.join(f'N = {count}' for count in counts)}: remove those of an earlier one, and run the same "
            "command again"
        )
    count = counts[0]
    if count > gathered.num_videos:
        raise BuildError(
            f"{names[0][0]} is one of {count:,} shards, and there are only {gathered.num_videos:,} videos: it was "
            "built from other annotations; remove it"
        )
    ranges = divide(gathered.sizes, count)
    notes: list[str] = []
    shards: list[FoundShard] = []
    numbers = sorted(int(found[1]) for found in names)
    for number in numbers:
        shard = Shard(number, count)
        try:
            shards.append(_check(shard.path(output), gathered, config, shard))
        except StoreError as error:
            notes.append(f"{error}: its {_videos(ranges[number])} are decoded again")
    notes += [
        f"{shard.path} was made by egoaudio {shard.egoaudio_version}, and this is {__version__}: the file will hold "
        "rows of both"
        for shard in shards
        if shard.egoaudio_version != __version__
    ]
    missing = {Shard(number, count): ranges[number] for number in sorted(set(range(count)) - set(numbers))}
    return FoundShards(tuple(shards), missing, tuple(notes))


def take_in(found: FoundShards, partial_path: Path, only_done: bool, remove: bool) -> None:
    """Take over from the shards every video that is still planned in the unfinished whole, or failed there alone.

    Parameters
    ----------
    found : FoundShards
    partial_path : Path
        The whole, laid out.
    only_done : bool
        Leave out videos that failed: they will be tried again.
    remove : bool
        Remove each shard once all that it holds is on disk.
    """
    if not (found.shards or found.notes or found.missing):
        return
    extents = offsets(partial_path)
    num_videos = sum(shard.videos.stop - shard.videos.start for shard in found.shards)
    with (
        Progress(num_videos, "take in", unit="videos") as progress,
        RowWriter(partial_path, extents) as writer,
        EgoAudioFile(partial_path) as file,
    ):
        repeat_torn(file, writer)
        for note in (*found.notes, *_describe_missing(found, file)):
            progress.write(f"warning: {note}")
        for shard in found.shards:
            _take_in(shard, file, extents, progress, only_done)
            if remove:
                sync(file, writer)  # on a disk it takes as long as the copy, so only where it must be
                if why := _remove(shard, file):
                    progress.write(f"warning: {why}")


def _remove(shard: FoundShard, whole: EgoAudioFile) -> str:
    """Remove a shard unless it holds videos that the whole lacks; return why not, or nothing."""
    statuses = whole.video_table["status"][shard.videos]
    with EgoAudioFile(shard.path) as source:
        lacking = (source.video_table["status"] == Status.OK) & (statuses != Status.OK)
    if not lacking.any():
        shard.path.unlink()
        return ""
    planned = int((statuses[lacking] == Status.PLANNED).sum())
    remedy = "`retry_failed=True` takes them from it" if planned < lacking.sum() else "they are decoded again"
    return f"{shard.path} is kept: {int(lacking.sum()):,} of its videos are not in {whole.path}; {remedy}"


def _describe_missing(found: FoundShards, file: EgoAudioFile) -> list[str]:
    """Return a line about the missing shards whose videos are still to be decoded."""
    planned = file.video_table["status"] == Status.PLANNED
    counts = {shard: int(planned[videos].sum()) for shard, videos in found.missing.items()}
    missing = [str(shard) for shard, count in counts.items() if count]
    if not missing:
        return []
    shown = ", ".join(missing[:8]) + (f" and {len(missing) - 8:,} more" if len(missing) > 8 else "")
    return [f"missing, or not finished: shard {shown}; {sum(counts.values()):,} videos are decoded here"]


def _take_in(shard: FoundShard, file: EgoAudioFile, extents: Extents, progress: Progress, only_done: bool) -> None:
    """Take over from one shard what is planned, and what failed here and not there."""
    first = shard.videos.start
    with EgoAudioFile(shard.path) as source, RowWriter(file.path, extents) as writer:
        here, there = file.video_table[shard.videos], source.video_table
        planned = here["status"] == Status.PLANNED
        if only_done:
            planned &= ~np.isin(there["status"], FAILED)
        better = np.isin(here["status"], FAILED) & ~np.isin(there["status"], FAILED)
        better &= here["num_clips"] == there["num_clips"]  # a file that could not be probed has no rows here
        for number in np.flatnonzero(better).tolist():
            plan_again(file, writer, first + number)
        moves = [Move(source, number, first + number) for number in np.flatnonzero(planned | better).tolist()]
        progress.advance(source.num_videos - len(moves))
        for move, problem in take_over(moves, file.path, extents):
            if problem:
                video_id = source.video_table["video_id"][move.source].decode(errors="replace")
                progress.write(f"warning: {shard.path}: {video_id} is decoded again: {problem}")
            progress.advance(1)


def _check(path: Path, gathered: Gathered, config: BuildConfig, shard: Shard) -> FoundShard:
    """Return a finished shard, after checking that it is a build of the same inputs and options."""
    part = part_of(gathered, shard, config)
    with EgoAudioFile(path) as file:
        found = changes(file, part, config) or changed_videos(file, part)
        if found:
            raise BuildError(
                f"{path} is a shard of another build:\n{found}\n"
                "Remove it, or build it again with the options and inputs of this command"
            )
        videos = divide(gathered.sizes, shard.count)[shard.number]
        made = FoundShard(path, videos, Recordings.of_file(file), file.egoaudio_version)
        counts = np.diff(place(part, made.recordings, config).first_clips)
        problems = integrity.verify_tables(file)
        if not file.complete or problems or (file.video_table["num_clips"] != counts).any():
            raise StoreError(f"{path} is damaged: {'; '.join(problems) or 'its /videos is not that of its plan'}")
        return made


def _videos(videos: slice) -> str:
    count = videos.stop - videos.start
    return f"{count:,} video{'s' * (count > 1)}"
