"""The story of a build: plan, lay out, let the workers fill, finish.

``build`` makes ``OUTPUT.partial`` complete before the first sample is decoded (``plan`` decides, ``store`` lays out), hands each
video to a worker (``workers`` calls ``extraction`` in processes that may die), and renames the file when all rows are on
disk. Stopped at any instant, the same call goes on: what is done is in the file itself. Nothing here touches samples.

Power may fail, too: rows reach the disk some time after they are written. Every ``_SYNC_SECONDS`` the parent has all of
them written out and then marks the videos done so far in ``/synced``; on resuming, a video without that mark is
checked against its checksums and made again if torn.
"""

import contextlib
import datetime
import os
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np

from egoaudio.audio import clips
from egoaudio.builder import pool
from egoaudio.builder.extract import Job, Outcome, extract, fail, feature_extractor, rehearse
from egoaudio.builder.plan import gather, probe_recordings
from egoaudio.builder.summary import Report, describe_plan
from egoaudio.config.build import BuildConfig
from egoaudio.config.options import differences, from_flat, to_json
from egoaudio.errors import BuildError, Status, StoreError
from egoaudio.hdf5 import writer as store
from egoaudio.system import lock
from egoaudio.system.progress import Progress

_SYNC_SECONDS = 30.0


def build(inputs, config, output, *, num_workers=1, patience_seconds=600.0, force=False, process=extract):
    """Build an egoaudio file, or finish one.

    Parameters
    ----------
    inputs : Inputs
        Annotations and media files.
    config : BuildConfig
    output : path
        The file to make.
    num_workers : int
        Processes that decode.
    patience_seconds : float
        A video that gets nowhere for so long is given up.
    force : bool
        Start anew and replace what is there.
    process : callable
        ``process(path, extents, config, job) -> Outcome``, run in the workers.

    Returns
    -------
    Report

    Raises
    ------
    EgoAudioError
        For wrong input, an output that exists or is in use, changed inputs, or a full disk.
    """
    output = Path(output)
    partial_path = output.with_name(output.name + ".partial")
    _check_folder(output)
    with lock.held(output):
        gathered = gather(inputs, config)
        if output.exists() and not force:
            return _existing(output, gathered, config)
        with pool.kept():
            if force or not partial_path.exists():
                _lay_out(partial_path, gathered, config, num_workers, patience_seconds)
            else:
                _require_same(partial_path, gathered, config)
            report = _fill(partial_path, gathered, config, num_workers, patience_seconds, process)
        _finish(partial_path, output)
        report.describe_file(output)
        return report


def preview(inputs, config, output, *, num_workers=1, patience_seconds=600.0):
    """Return in words what a build would make, how large and how long, without making it."""
    gathered = gather(inputs, config)
    with Progress(len(gathered.files), "probe") as progress:
        plan = probe_recordings(gathered, config, num_workers, patience_seconds, progress)
    rehearsal = _rehearse(plan, config, patience_seconds)
    return describe_plan(plan, config, _layout(plan, config).num_bytes, Path(output), num_workers, rehearsal)


def _rehearse(plan, config, patience_seconds):
    """Return the outcome of making the video of median length without writing it; None where there is none, or it died."""
    sounding = sorted((samples, number) for number, samples in enumerate(plan.recording_samples) if samples)
    if not sounding:
        return None
    samples, number = sounding[len(sounding) // 2]
    job = Job(number, str(plan.gathered.files[number]), 0, samples)
    ((_, outcome),) = pool.each(partial(rehearse, config), [job], workers=1, patience_seconds=patience_seconds)
    return None if isinstance(outcome, pool.Death) else outcome


# --------------------------------------------------------------------------------------------------- what is there


def _check_folder(output):
    """Say before any work that the output cannot be written."""
    folder = output.absolute().parent
    if not folder.is_dir():
        raise BuildError(f"--output {output}: the folder {folder} does not exist; make it first")
    if not os.access(folder, os.W_OK):
        raise BuildError(f"--output {output}: the folder {folder} cannot be written to")
    if output.is_dir():
        raise BuildError(f"--output {output} is a folder: name a file, such as {output / 'ego.h5'}")


def _existing(output, gathered, config):
    """Return the report of a complete file of the same plan; refuse any other."""
    with store.open(output) as file:
        changes = _changes(file, gathered, config)
        if changes:
            raise BuildError(f"{output} exists and is another build:\n{changes}\nGive another --output, or --force to replace it")
        report = Report(already_complete=True, irregularities=gathered.annotations.irregularities)
    report.describe_file(output)
    return report


def _require_same(partial_path, gathered, config):
    """Refuse to go on with the unfinished build of something else."""
    with _opened(partial_path) as file:
        changes = _changes(file, gathered, config)
    if changes:
        raise BuildError(f"{partial_path} is an unfinished build of something else:\n{changes}\nGive the same command to finish it, or --force to start anew")


def _changes(file, gathered, config):
    """Return in lines what differs between a file's plan and this one; empty where nothing does."""
    if file.plan_sha256 == gathered.sha256:
        return ""
    lines = differences(from_flat(BuildConfig, file.config), config)
    before = {row["video_id"].decode(): row["file"].decode() for row in file.video_table}
    now = {video.video_id: name for video, name in zip(gathered.annotations.videos, gathered.file_names, strict=True)}
    for word, ids in (("new", now.keys() - before.keys()), ("no longer there", before.keys() - now.keys())):
        if ids:
            lines.append(f"videos {word}: {len(ids):,}, such as {min(ids)}")
    moved = [video_id for video_id in now.keys() & before.keys() if now[video_id] != before[video_id]]
    if moved:
        lines.append(f"files found now and not before, or the other way round: {len(moved):,}, such as {min(moved)}")
    return "\n".join("  " + line for line in lines or ["the annotations, or the size of a media file, have changed"])


@contextlib.contextmanager
def _opened(partial_path):
    """Open an unfinished file without the warning that it is one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        with store.open(partial_path) as file:
            yield file


# ------------------------------------------------------------------------------------------------------- the plan


def _lay_out(partial_path, gathered, config, num_workers, patience_seconds):
    """Probe the recordings and make the file with all its rows planned; it gets its name when that is on disk."""
    with Progress(len(gathered.files), "probe") as progress:
        plan = probe_recordings(gathered, config, num_workers, patience_seconds, progress)
    draft = partial_path.with_name(partial_path.name + ".layout")
    try:
        store.lay_out(draft, _layout(plan, config))
        store.reserve(draft)
        _write_plan(draft, plan, config)
        os.replace(draft, partial_path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def _layout(plan, config):
    """Return the structure of the file that a plan asks for."""
    videos, gathered = plan.gathered.annotations.videos, plan.gathered
    extractor = feature_extractor(config)
    clip_samples, _ = clips.count_samples(config.clips, config.sample_rate)
    shapes = {name: (clip_samples,) if name == "waveform" else extractor.shapes[name] for name in config.features.features}
    hop_seconds = config.clips.clip_seconds if config.clips.hop_seconds is None else config.clips.hop_seconds
    return store.Layout(
        num_clips=plan.num_clips,
        num_videos=len(videos),
        num_classes=len(gathered.class_ids),
        num_instances=sum(len(video.instances) for video in videos),
        video_dtype=store.video_dtype(
            video_id=[video.video_id for video in videos],
            file=gathered.file_names,
            split=[video.split for video in videos],
            subject=[video.subject for video in videos],
            scene=[video.scene for video in videos],
        ),
        class_dtype=store.class_dtype(class_id=gathered.class_ids, name=gathered.class_names),
        arrays=tuple(store.ArrayLayout(name, shapes[name], config.features.dtype, extractor.attributes(name)) for name in config.features.features),
        sample_rate=config.sample_rate,
        clip_seconds=config.clips.clip_seconds,
        hop_seconds=hop_seconds,
        config=to_json(config),
        plan_sha256=gathered.sha256,
        created_utc=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        axes=extractor.axes,
    )


def _write_plan(path, plan, config):
    """Write the rows that are known before anything is decoded: classes, videos, clips, labels, instances."""
    gathered = plan.gathered
    extents = store.offsets(path)
    with store.RowWriter(path, extents) as writer:
        classes = np.zeros(len(gathered.class_ids), extents["classes"].dtype)
        classes["class_id"] = [store.encode(text) for text in gathered.class_ids]
        classes["name"] = [store.encode(text) for text in gathered.class_names]
        writer.write("classes", 0, classes)
        first_instance = 0
        for number, video in enumerate(gathered.annotations.videos):
            _write_planned_video(writer, extents, plan, number, config)
            rows = np.array(
                [(number, instance.class_index, instance.start_seconds, instance.stop_seconds) for instance in video.instances], store.INSTANCE_DTYPE
            )
            writer.write("instances", first_instance, rows)
            first_instance += len(rows)
        writer.sync()


def _write_planned_video(writer, extents, plan, number, config):
    """Write one video's rows in /videos, /video_labels, /clips and /labels."""
    video, recording = plan.gathered.annotations.videos[number], plan.recordings[number]
    num_classes, first_clip = len(plan.gathered.class_ids), plan.first_clips[number]
    placed = clips.plan_clips(plan.recording_samples[number], config.clips, config.sample_rate)
    row = np.zeros(1, extents["videos"].dtype)
    for name in ("video_id", "split", "subject", "scene"):
        row[name] = store.encode(getattr(video, name))
    row["file"] = store.encode(plan.gathered.file_names[number])
    row["egocentric"], row["duration_seconds"] = video.egocentric, recording.duration_seconds
    row["sample_rate"], row["channels"] = recording.sample_rate, recording.channels
    row["first_clip"], row["num_clips"] = first_clip, placed.num_clips
    row["status"] = Status.PLANNED if recording.status == Status.OK else recording.status
    row["error"] = store.encode(recording.error, row.dtype["error"].itemsize)
    writer.write("videos", number, row)
    writer.write("video_labels", number, clips.label_video(video.instances, num_classes)[None])
    rows = np.zeros(placed.num_clips, store.CLIP_DTYPE)
    rows["video"], rows["start_seconds"], rows["stop_seconds"] = number, placed.start_seconds, placed.stop_seconds
    rows["num_samples"] = placed.num_samples
    labels, rows["labelled"] = clips.label_clips(placed, video.instances, num_classes, config.clips)
    writer.write("clips", first_clip, rows)
    writer.write("labels", first_clip, labels)


# ------------------------------------------------------------------------------------------------------- the work


def _fill(partial_path, gathered, config, num_workers, patience_seconds, process):
    """Have the workers fill the rows of every video that is not done yet."""
    extents = store.offsets(partial_path)
    with store.RowWriter(partial_path, extents) as writer, _opened(partial_path) as file:
        _repeat_torn(file, writer)
        table = file.video_table
        report = Report(num_workers, gathered.annotations.irregularities)
        jobs = [_job(row, number, gathered, config) for number, row in enumerate(table) if row["status"] == Status.PLANNED]
        jobs.sort(key=lambda job: -job.recording_samples)  # longest first: no straggler at the end
        todo = sum(int(table["num_clips"][job.video]) for job in jobs)
        call = partial(process, str(partial_path), extents, config)
        last_sync = time.monotonic()
        with Progress(todo, "build") as progress:
            for job, outcome in pool.each(call, jobs, workers=num_workers, patience_seconds=patience_seconds):
                if isinstance(outcome, pool.Death):
                    outcome = Outcome(Status.CRASHED, outcome.reason)
                    fail(writer, job, int(table["num_clips"][job.video]), Status.CRASHED, outcome.error)
                report.add(outcome)
                progress.advance(int(table["num_clips"][job.video]), outcome.sound_seconds, failures=outcome.status != Status.OK)
                if time.monotonic() - last_sync >= _SYNC_SECONDS:
                    _sync(file, writer)
                    last_sync = time.monotonic()
        classes = file.class_table.copy()
        classes["num_clips"] = file.count_classes()
        writer.write("classes", 0, classes)
        _sync(file, writer)
        return report


def _job(row, number, gathered, config):
    """Return the job of a planned video, from its row in the file."""
    samples = round(float(row["duration_seconds"]) * config.sample_rate)
    return Job(number, str(gathered.files[number]), int(row["first_clip"]), samples)


def _repeat_torn(file, writer):
    """Plan again the videos whose rows were lost between a sync and a power failure."""
    # Failed ones, too: the zeros that replaced what their workers wrote may be what was lost.
    for number in np.flatnonzero((file.video_table["status"] != Status.PLANNED) & (file.synced == 0)):
        if store.verify_video(file, int(number)):
            row = file.video_table[number : number + 1].copy()
            row["status"] = Status.PLANNED
            writer.write("videos", int(number), row)


def _sync(file, writer):
    """Have every row so far on disk, then mark the videos that were done before that as safe."""
    done = (file.video_table["status"] != Status.PLANNED).astype(np.uint8)
    writer.sync()
    writer.write("synced", 0, done)


def _finish(partial_path, output):
    """Mark the file complete and give it its name."""
    store.mark_complete(partial_path)
    try:
        os.replace(partial_path, output)
    except OSError as error:
        raise StoreError(f"{partial_path} is complete, but cannot be renamed to {output}: {error.strerror}") from error
    store.sync_folder(output)
