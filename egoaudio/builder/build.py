"""A build: plan, lay out, have the workers fill, finish.

``build`` lays out all of ``OUTPUT.partial`` before the first sample is decoded (``plan`` decides, ``prepare`` writes),
passes each video to a worker (``pool`` calls ``extract`` in processes that may die), and renames the file when all rows
are on disk. Stopped at any instant, the same call resumes: what is done is in the file itself.

Power may fail, too: rows reach the disk some time after they are written. Every ``_SYNC_SECONDS`` the parent syncs the
file and then marks the videos done so far in ``/synced``; on resuming, a video without that mark is checked against its
checksums and made again if its rows are damaged.
"""

import os
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np

from egoaudio._version import __version__
from egoaudio.builder import pool
from egoaudio.builder.clusters import arguments_of, build_shards
from egoaudio.builder.extract import Job, Outcome, extract, mark_failed, rehearse
from egoaudio.builder.finish import count_classes, publish
from egoaudio.builder.jobs import Jobs
from egoaudio.builder.plan import Gathered, Inputs, Plan, gather, probe_recordings
from egoaudio.builder.prepare import changed_videos, changes, check_folder, check_outputs, lay_out, layout, require_same
from egoaudio.builder.retry import retry
from egoaudio.builder.shards import FoundShards, Shard, find_shards, part_of, take_in, unfinished
from egoaudio.builder.summary import BuildPlan, BuildReport, Tally, describe_plan
from egoaudio.builder.synced import repeat_torn, sync
from egoaudio.config.build import BuildConfig
from egoaudio.errors import BuildError, ConfigurationError, Status
from egoaudio.hdf5 import reader
from egoaudio.hdf5.reader import EgoAudioFile
from egoaudio.hdf5.writer import RowWriter, offsets
from egoaudio.system import allocator, files, lock
from egoaudio.system.progress import Progress

_SYNC_SECONDS = 30.0


def build(
    inputs: Inputs,
    output: str | os.PathLike[str],
    config: BuildConfig | None = None,
    *,
    num_workers: int = 1,
    timeout_seconds: float = 600.0,
    force: bool = False,
    retry_failed: bool = False,
    shard: str | None = None,
    remove_shards: bool = False,
    cluster: str | None = None,
    shards: int | None = None,
) -> BuildReport:
    """Build an egoaudio file, or finish one.

    Parameters
    ----------
    inputs : Inputs
        Annotations and media files.
    output : str or os.PathLike
        The file to make; ``OUTPUT.partial`` until it is complete.
    config : BuildConfig or None
        Every option; the defaults if not given.
    num_workers : int
        Processes that decode; never more than there are videos.
    timeout_seconds : float
        A video without progress for this long is marked as failed.
    force : bool
        Start over and replace what is there.
    retry_failed : bool
        Try the videos again that failed in a complete or unfinished file, and keep the others.
    shard : str or None
        ``K/N``: build only the K-th (from 0) of N shares; a build without it takes over the shards beside ``output``,
        and with ``remove_shards`` removes each once all that it holds is on disk there.
    cluster, shards : str and int, or None
        Address of a Dask scheduler whose workers build so many shards, in folders that all machines share.

    Returns
    -------
    BuildReport
        What was built, and which videos failed and why: a video that fails does not stop a build.

    Raises
    ------
    EgoAudioError
        For wrong input, an output that exists or is in use, changed inputs, or a full disk.

    Examples
    --------
    >>> import egoaudio
    >>> inputs = egoaudio.Inputs("train.csv", "videos", test_annotations="test.csv", classes="classes.txt")
    >>> config = egoaudio.BuildConfig(clips=egoaudio.ClipConfig(clip_seconds=1.0, hop_seconds=1.0))
    >>> report = egoaudio.build(inputs, "ego.h5", config, num_workers=2)
    >>> [reason for video_id, reason in report.failures]
    ['not a media file, or cut off before its index (Invalid data found when processing input)']
    """
    config = BuildConfig() if config is None else config
    _check_cluster(cluster, shards, shard, force or retry_failed)
    output, partial_path, share = _place(Path(output), shard, remove_shards)
    with lock.held(output):
        files.remove_leftovers(partial_path)
        gathered = _gather(inputs, config, share)
        check_outputs(output, partial_path, inputs, gathered)
        if output.exists() and not (force or retry_failed):
            return _existing(output, gathered, config, remove_shards)
        if cluster is not None and shards is not None:
            todo = unfinished(output, partial_path, gathered, config, shards)
            build_shards(cluster, todo, arguments_of(inputs, output, config, num_workers, timeout_seconds))
        found = FoundShards() if share else find_shards(output, gathered, config)
        with pool.start_workers(_limit_workers(num_workers, gathered), timeout_seconds) as workers:
            begun = retry_failed and not force and _retry(output, partial_path, gathered, config, workers)
            if not begun and output.exists() and not force:
                return _existing(output, gathered, config)
            _lay_out(partial_path, gathered, config, workers, found, force)
            take_in(found, partial_path, only_done=retry_failed and not force, remove=remove_shards)
            tally = _fill(partial_path, gathered, config, workers)
        publish(partial_path, output)
        return tally.report(output, gathered.annotations.irregularities)


def _gather(inputs: Inputs, config: BuildConfig, share: Shard | None) -> Gathered:
    """Return what was gathered of the whole or of a share, with the memory given back that only gathering took."""
    gathered = gather(inputs, config)
    gathered = gathered if share is None else part_of(gathered, share, config)
    allocator.trim()
    return gathered


def _lay_out(
    partial_path: Path, gathered: Gathered, config: BuildConfig, workers: pool.Workers, found: FoundShards, force: bool
) -> None:
    """Make the unfinished file, or check that it is there and of the same inputs and options."""
    if force or not partial_path.exists():
        lay_out(partial_path, gathered, config, workers, found.known(gathered.num_videos))
    else:
        require_same(partial_path, gathered, config)


def _check_cluster(cluster: str | None, shards: int | None, shard: str | None, again: bool) -> None:
    """Refuse what does not go together with ``cluster``."""
    if (cluster is None) != (shards is None):
        raise ConfigurationError("`cluster` and `shards` belong together: give the scheduler's address and a number")
    if cluster is not None and (shard is not None or again):
        raise ConfigurationError(
            "`cluster` goes neither with `shard`, which builds one shard here, nor with `force` and `retry_failed`: "
            "remove OUTPUT and its shards to start over, and try failed videos again without `cluster`"
        )
    if shards is not None:
        Shard(0, shards)


def _place(output: Path, shard: str | None, remove_shards: bool) -> tuple[Path, Path, Shard | None]:
    """Return the file to make, after checking that it can be written, its unfinished one, and which share it is."""
    check_folder(output)
    output = Path(os.path.realpath(output))  # of a link, the target is written
    if shard is None:
        return output, output.with_name(output.name + ".partial"), None
    if remove_shards:
        raise ConfigurationError(f"`remove_shards` and `shard={shard!r}`: a shard takes over no shards; leave one out")
    share = Shard.parse(shard)
    check_folder(share.path(output))
    output = share.path(output)
    return output, output.with_name(output.name + ".partial"), share


def preview(
    inputs: Inputs,
    output: str | os.PathLike[str],
    config: BuildConfig | None = None,
    *,
    num_workers: int = 1,
    timeout_seconds: float = 600.0,
    shard: str | None = None,
) -> BuildPlan:
    """Return what a build would make, how large and how long, without making it; the parameters are those of ``build``.

    Examples
    --------
    >>> import egoaudio
    >>> inputs = egoaudio.Inputs("train.csv", "videos", classes="classes.txt")
    >>> plan = egoaudio.preview(inputs, "other.h5")
    >>> plan.num_clips > 0
    True
    """
    config = BuildConfig() if config is None else config
    share = None if shard is None else Shard.parse(shard)
    gathered, output = _gather(inputs, config, share), Path(output)
    output = output if share is None else share.path(output)
    num_workers = _limit_workers(num_workers, gathered)
    with pool.start_workers(num_workers, timeout_seconds) as workers:
        with Progress(gathered.num_videos, "probe") as progress:
            plan = probe_recordings(gathered, config, workers, progress)
        rehearsal = _rehearse(plan, config, workers)
    return describe_plan(plan, config, layout(plan, config).num_bytes, output, num_workers, rehearsal)


def _limit_workers(num_workers: int, gathered: Gathered) -> int:
    """Return how many processes to start: no more than there are videos."""
    return max(1, min(num_workers, int((gathered.sizes >= 0).sum())))


def _rehearse(plan: Plan, config: BuildConfig, workers: pool.Workers) -> Outcome | None:
    """Return the outcome of making the video of median length without writing it; None if there is none or it died."""
    samples = plan.recording_samples
    sounding = np.flatnonzero(samples)
    if not len(sounding):
        return None
    number = int(sounding[np.argsort(samples[sounding], kind="stable")[len(sounding) // 2]])
    job = Job(number, str(plan.gathered.path(number)), 0, int(samples[number]))
    ((_, outcome),) = workers.map_unordered(partial(rehearse, config), [job], num_workers=1)
    return None if isinstance(outcome, pool.Death) else outcome


def _retry(output: Path, partial_path: Path, gathered: Gathered, config: BuildConfig, workers: pool.Workers) -> bool:
    """Return whether there is an unfinished file with the failed videos planned again, made now or before."""
    if output.exists() and partial_path.exists():
        with EgoAudioFile(partial_path) as file:
            if file.plan_sha256 == gathered.sha256:
                return True
    source = output if output.exists() else partial_path
    return source.exists() and retry(source, partial_path, gathered, config, workers)


def _existing(output: Path, gathered: Gathered, config: BuildConfig, remove_shards: bool = False) -> BuildReport:
    """Return the report of a complete file of the same plan, and remove its shards if asked; refuse any other file."""
    with reader.open(output) as file:
        found = changes(file, gathered, config) or changed_videos(file, gathered)
        if found:
            raise BuildError(
                f"{output} exists and is another build:\n{found}\nGive another `output`, `retry_failed=True` if only "
                "files of failed videos have changed, or `force=True` to replace it"
            )
        for kept in find_shards(output, gathered, config).remove(file) if remove_shards else ():
            warnings.warn(kept, stacklevel=3)
    return Tally().report(output, gathered.annotations.irregularities, already_complete=True)


def _fill(partial_path: Path, gathered: Gathered, config: BuildConfig, workers: pool.Workers) -> Tally:
    """Have the workers fill the rows of every video that is not done yet."""
    extents = offsets(partial_path)
    with RowWriter(partial_path, extents) as writer, EgoAudioFile(partial_path) as file:
        repeat_torn(file, writer)
        table = file.video_table
        tally = Tally(workers.num_workers)
        planned = np.flatnonzero(table["status"] == Status.PLANNED)
        order = np.argsort(-table["duration_seconds"][planned], kind="stable")  # longest first: no straggler at the end
        jobs = Jobs(file, gathered, config, planned[order])
        todo = int(table["num_clips"][planned].sum())
        call = partial(extract, str(partial_path), extents, config)
        last_sync = time.monotonic()
        with Progress(todo, "build") as progress:
            if file.egoaudio_version != __version__:
                progress.write(
                    f"warning: {partial_path} was begun by egoaudio {file.egoaudio_version}, and this is "
                    f"{__version__}: the file will hold rows of both; `force=True` makes all of them again"
                )
            for job, outcome in workers.map_unordered(call, jobs):
                if isinstance(outcome, pool.Death):
                    outcome = Outcome(Status.CRASHED, outcome.reason, written=False)
                if not outcome.written:
                    gathered.folder.require(job.path)  # if this raises, it stays planned
                    mark_failed(writer, job, int(table["num_clips"][job.video]), outcome.status, outcome.error)
                tally.add(outcome)
                progress.advance(
                    int(table["num_clips"][job.video]), outcome.sound_seconds, failures=outcome.status != Status.OK
                )
                if time.monotonic() - last_sync >= _SYNC_SECONDS:
                    sync(file, writer)
                    last_sync = time.monotonic()
        count_classes(file, writer)
        return tally
