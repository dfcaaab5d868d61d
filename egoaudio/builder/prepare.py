"""What a build does before the first sample is decoded: check the output, lay out the file, write the known rows.

In: a ``Plan``. Out: ``OUTPUT.partial`` with every row planned; it gets its name once that is on disk.
"""

import datetime
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from egoaudio.audio import clips
from egoaudio.builder.beyond import Beyond
from egoaudio.builder.feature_stream import feature_extractor
from egoaudio.builder.plan import Gathered, Inputs, Plan, paths, probe_recordings
from egoaudio.builder.pool import Workers
from egoaudio.config.build import BuildConfig
from egoaudio.config.options import differences, from_flat, to_json
from egoaudio.errors import BuildError, Status
from egoaudio.hdf5 import create, schema
from egoaudio.hdf5.reader import EgoAudioFile
from egoaudio.hdf5.writer import Extents, RowWriter, offsets
from egoaudio.inputs.fingerprint import fingerprint
from egoaudio.inputs.probe import Recording
from egoaudio.system import files
from egoaudio.system.progress import Progress

_READERS = 8  # threads, as a network file system makes each wait


def check_folder(output: Path) -> None:
    """Raise BuildError, before any work, if the output cannot be written."""
    if output.is_dir():
        raise BuildError(f"`output={str(output)!r}` is a folder: name a file, such as {output / 'ego.h5'}")
    folder = Path(os.path.realpath(output)).parent
    if not folder.is_dir():
        raise BuildError(f"`output={str(output)!r}`: the folder {folder} does not exist; make it first")
    if not os.access(folder, os.W_OK):
        raise BuildError(f"`output={str(output)!r}`: the folder {folder} cannot be written to")
    try:
        files.check_output(output)
        files.check_output(f"{output}.partial")
    except OSError as error:
        raise BuildError(f"`output={str(output)!r}`: {error.strerror}") from error


def check_outputs(output: Path, partial_path: Path, inputs: Inputs, gathered: Gathered) -> None:
    """Refuse to replace an input, or to follow a symbolic link with the name of the unfinished file."""
    read = [*paths(inputs.annotations), *paths(inputs.test_annotations), inputs.classes, *gathered.files]
    try:
        files.check_output(output, read)
        files.check_output(partial_path, read)
    except OSError as error:
        raise BuildError(f"`output={str(output)!r}`: {error.strerror}") from error
    if partial_path.is_symlink():
        raise BuildError(f"{partial_path} is a symbolic link, which no build made: remove it, or give another `output`")


def require_same(partial_path: Path, gathered: Gathered, config: BuildConfig) -> None:
    """Refuse to resume the unfinished build of something else."""
    with EgoAudioFile(partial_path) as file:
        found = changes(file, gathered, config) or changed_videos(file, gathered)
    if found:
        raise BuildError(
            f"{partial_path} is an unfinished build of something else:\n{found}\n"
            "Give the same options to finish it, or `force=True` to start over"
        )


def changes(file: EgoAudioFile, gathered: Gathered, config: BuildConfig) -> str:
    """Return, line by line, what differs between a file's plan and this one; empty if nothing does."""
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


def changed_videos(file: EgoAudioFile, gathered: Gathered, which: np.ndarray | None = None) -> str:
    """Return, in a line, which videos' files are not those that their rows were made from; empty if none is.

    ``which``, bool (num_videos,), chooses the videos; all if not given.
    """
    known: np.ndarray = np.asarray(file.fingerprints.any(axis=1))
    if which is not None:
        known = known & which
    planned = [(number, path) for number, path in enumerate(gathered.files) if path is not None and known[number]]
    with ThreadPoolExecutor(_READERS) as threads:
        found = list(threads.map(fingerprint, [path for _, path in planned]))
    other = [
        number for (number, _), now in zip(planned, found, strict=True) if now != file.fingerprints[number].tobytes()
    ]
    if not other:
        return ""
    gathered.folder.require(dict(planned)[other[0]])
    example = gathered.annotations.videos[other[0]].video_id
    return (
        f"  videos that were replaced by others of the same size: {len(other):,}, such as {example} "
        "(put them back, or start over)"
    )


def lay_out(
    partial_path: Path,
    gathered: Gathered,
    config: BuildConfig,
    workers: Workers,
    known: Mapping[int, tuple[Recording, bytes]] | None = None,
) -> None:
    """Probe the recordings, except those that are ``known``, and make the file with all its rows planned."""
    with Progress(len(gathered.files) - len(known or {}), "probe") as progress:
        plan = probe_recordings(gathered, config, workers, progress, known)
    lay_out_plan(partial_path, plan, config)


def lay_out_plan(
    partial_path: Path, plan: Plan, config: BuildConfig, before_it_appears: Callable[[str], None] | None = None
) -> None:
    """Make the file with all its rows planned.

    It gets its name once it is on disk and ``before_it_appears(path)`` has returned.
    """
    with create.drafting(partial_path, layout(plan, config)) as draft:
        files.reserve(draft)
        write_plan(draft, plan, config)
        if before_it_appears is not None:
            before_it_appears(draft)


def layout(plan: Plan, config: BuildConfig) -> schema.Layout:
    """Return the structure of the file of a plan."""
    videos, gathered = plan.gathered.annotations.videos, plan.gathered
    extractor = feature_extractor(config)
    clip_samples, _ = clips.count_samples(config.clips, config.sample_rate)
    shapes = {
        name: (clip_samples,) if name == "waveform" else extractor.shapes[name] for name in config.features.features
    }
    return schema.Layout(
        num_clips=plan.num_clips,
        num_videos=len(videos),
        num_classes=len(gathered.class_ids),
        num_instances=sum(len(video.instances) for video in videos),
        instance_attributes=Beyond.of_plan(plan).attributes(),
        video_dtype=schema.video_dtype(
            video_id=[video.video_id for video in videos],
            file=gathered.file_names,
            split=[video.split for video in videos],
            subject=[video.subject for video in videos],
            scene=[video.scene for video in videos],
        ),
        class_dtype=schema.class_dtype(class_id=gathered.class_ids, name=gathered.class_names),
        arrays=tuple(
            schema.ArrayLayout(name, shapes[name], config.features.dtype, extractor.attributes(name))
            for name in config.features.features
        ),
        sample_rate=config.sample_rate,
        clip_seconds=config.clips.clip_seconds,
        hop_seconds=config.clips.step_seconds,
        config=to_json(config),
        plan_sha256=gathered.sha256,
        shard_of=gathered.shard_of,
        created_utc=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        axes=extractor.axes,
    )


def write_plan(path: str, plan: Plan, config: BuildConfig) -> None:
    """Write the rows that are known before anything is decoded: classes, videos, clips, labels, instances."""
    gathered = plan.gathered
    extents = offsets(path)
    with RowWriter(path, extents) as writer:
        classes = np.zeros(len(gathered.class_ids), extents["classes"].dtype)
        classes["class_id"] = [schema.encode(text) for text in gathered.class_ids]
        classes["name"] = [schema.encode(text) for text in gathered.class_names]
        writer.write("classes", 0, classes)
        first_instance = 0
        for number, video in enumerate(gathered.annotations.videos):
            _write_planned_video(writer, extents, plan, number, config)
            rows = np.array(
                [
                    (number, instance.class_index, instance.start_seconds, instance.stop_seconds)
                    for instance in video.instances
                ],
                schema.INSTANCE_DTYPE,
            )
            writer.write("instances", first_instance, rows)
            first_instance += len(rows)
        writer.sync()


def _write_planned_video(writer: RowWriter, extents: Extents, plan: Plan, number: int, config: BuildConfig) -> None:
    """Write one video's rows in /videos, /video_labels, /clips and /labels."""
    video, recording = plan.gathered.annotations.videos[number], plan.recordings[number]
    num_classes, first_clip = len(plan.gathered.class_ids), plan.first_clips[number]
    placed = clips.plan_clips(plan.recording_samples[number], config.clips, config.sample_rate)
    row = np.zeros(1, extents["videos"].dtype)
    for name in ("video_id", "split", "subject", "scene"):
        row[name] = schema.encode(getattr(video, name))
    row["file"] = schema.encode(plan.gathered.file_names[number])
    row["egocentric"], row["duration_seconds"] = video.egocentric, recording.duration_seconds
    row["sample_rate"], row["channels"] = recording.sample_rate, recording.channels
    row["first_clip"], row["num_clips"] = first_clip, placed.num_clips
    row["status"] = Status.PLANNED if recording.status == Status.OK else recording.status
    row["error"] = schema.encode(recording.error, row.dtype["error"].itemsize)
    writer.write("videos", number, row)
    writer.write("fingerprints", number, np.frombuffer(plan.fingerprints[number], "u1")[None])
    writer.write("video_labels", number, clips.label_video(video.instances, num_classes)[None])
    rows = np.zeros(placed.num_clips, schema.CLIP_DTYPE)
    rows["video"], rows["start_seconds"], rows["stop_seconds"] = number, placed.start_seconds, placed.stop_seconds
    rows["num_samples"] = placed.num_samples
    labels, rows["labelled"] = clips.label_clips(placed, video.instances, num_classes, config.clips)
    writer.write("clips", first_clip, rows)
    writer.write("labels", first_clip, labels)
