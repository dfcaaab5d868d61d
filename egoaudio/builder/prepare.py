"""What a build does before the first sample is decoded: check the output, lay out the file, write the known rows.

In: a ``Plan``. Out: ``OUTPUT.partial`` with every row planned; it gets its name once that is on disk.
"""

import datetime
import itertools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from egoaudio.audio import clips
from egoaudio.audio.labels import label_clips, label_videos
from egoaudio.builder.beyond import Beyond
from egoaudio.builder.feature_stream import feature_extractor
from egoaudio.builder.plan import Gathered, Inputs, Plan, paths, probe_recordings
from egoaudio.builder.pool import Workers
from egoaudio.builder.recordings import Recordings
from egoaudio.config.build import BuildConfig
from egoaudio.config.options import differences, from_flat, to_json
from egoaudio.errors import BuildError, Status
from egoaudio.hdf5 import create, schema
from egoaudio.hdf5.reader import EgoAudioFile
from egoaudio.hdf5.writer import Extents, RowWriter, offsets
from egoaudio.inputs.fingerprint import fingerprint
from egoaudio.inputs.videos import TEXTS
from egoaudio.system import files
from egoaudio.system.progress import Progress

_READERS = 8  # threads, as a network file system makes each wait
_SUBMITTED = 1024  # at once: a million futures would be a gigabyte
_CLIPS = 1 << 15  # whose rows are written at once: 5 MB of labels


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
    read = [*paths(inputs.annotations), *paths(inputs.test_annotations), inputs.classes]
    try:
        for path in (output, partial_path):
            files.check_output(path, itertools.chain(read, gathered.paths()))
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
    before = dict(zip(file.video_table["video_id"].tolist(), file.video_table["file"].tolist(), strict=True))
    now = dict(zip(gathered.annotations.videos.table["video_id"].tolist(), stored_names(gathered), strict=True))
    for word, ids in (("new", now.keys() - before.keys()), ("no longer there", before.keys() - now.keys())):
        if ids:
            lines.append(f"videos {word}: {len(ids):,}, such as {min(ids).decode()}")
    moved = [video_id for video_id in now.keys() & before.keys() if now[video_id] != before[video_id]]
    if moved:
        lines.append(
            f"files found now and not before, or the other way round: {len(moved):,}, such as {min(moved).decode()}"
        )
    return "\n".join("  " + line for line in lines or ["the annotations, or the size of a media file, have changed"])


def changed_videos(file: EgoAudioFile, gathered: Gathered, which: np.ndarray | None = None) -> str:
    """Return, in a line, which videos' files are not those that their rows were made from; empty if none is.

    ``which``, bool (num_videos,), chooses the videos; all if not given.
    """
    known = file.fingerprints.any(axis=1) & (gathered.sizes >= 0)
    if which is not None:
        known &= which
    numbers, other = np.flatnonzero(known).tolist(), []
    with ThreadPoolExecutor(_READERS) as threads:
        for start in range(0, len(numbers), _SUBMITTED):
            some = numbers[start : start + _SUBMITTED]
            found = threads.map(fingerprint, [str(gathered.path(number)) for number in some])
            other += [
                number for number, now in zip(some, found, strict=True) if now != file.fingerprints[number].tobytes()
            ]
    if not other:
        return ""
    gathered.folder.require(str(gathered.path(other[0])))
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
    known: Recordings | None = None,
) -> None:
    """Probe the recordings, except those that are ``known``, and make the file with all its rows planned."""
    todo = gathered.num_videos - (0 if known is None else int(known.table["known"].sum()))
    with Progress(todo, "probe") as progress:
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
        num_instances=len(videos.instances),
        instance_attributes=Beyond.of_plan(plan).attributes(),
        video_dtype=schema.video_dtype(file=gathered.file_names, **{name: videos.table[name] for name in TEXTS}),
        class_dtype=schema.class_dtype(class_id=gathered.class_ids, name=gathered.class_names),
        arrays=tuple(
            schema.ArrayLayout(name, shapes[name], config.features.dtype_of(name), extractor.attributes(name))
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
        for start, stop in _portions(plan):
            _write_planned_videos(writer, extents, plan, slice(start, stop), config)
        writer.sync()


def _portions(plan: Plan) -> Iterator[tuple[int, int]]:
    """Yield ranges of videos whose rows are written at once, of about ``_CLIPS`` clips."""
    start, num_videos = 0, plan.gathered.num_videos
    while start < num_videos:
        stop = np.searchsorted(plan.first_clips, plan.first_clips[start] + _CLIPS, side="right") - 1
        stop = min(max(int(stop), start + 1), start + _CLIPS)
        yield start, stop
        start = stop


def _write_planned_videos(writer: RowWriter, extents: Extents, plan: Plan, some: slice, config: BuildConfig) -> None:
    """Write the rows of consecutive videos in /videos, /video_labels, /clips, /labels and /instances."""
    gathered, recordings, first_clip = plan.gathered, plan.recordings.table[some], int(plan.first_clips[some.start])
    videos, num_classes = gathered.annotations.videos[some], len(gathered.class_ids)
    counts = np.diff(plan.first_clips[some.start : some.stop + 1])
    rows = np.zeros(len(videos), extents["videos"].dtype)
    for name in (*TEXTS, "egocentric"):
        rows[name] = videos.table[name]
    rows["file"] = stored_names(gathered, some)
    for name in ("duration_seconds", "sample_rate", "channels"):
        rows[name] = recordings[name]
    rows["first_clip"], rows["num_clips"] = plan.first_clips[some], counts
    rows["status"] = np.where(recordings["status"] == Status.OK, Status.PLANNED, recordings["status"])
    error_bytes = rows.dtype["error"].itemsize
    for place in np.flatnonzero(rows["status"] != Status.PLANNED).tolist():
        rows["error"][place] = schema.encode(plan.recordings[some.start + place].error, error_bytes)
    writer.write("videos", some.start, rows)
    writer.write("fingerprints", some.start, plan.recordings.fingerprints[some])
    bounds = videos.bounds - videos.bounds[0]
    writer.write("video_labels", some.start, label_videos(videos.instances, bounds, num_classes))
    instances = np.zeros(len(videos.instances), schema.INSTANCE_DTYPE)
    instances["video"] = some.start + videos.numbers()
    for name in ("class_index", "start_seconds", "stop_seconds"):
        instances[name] = videos.instances[name]
    writer.write("instances", int(videos.bounds[0] - gathered.annotations.videos.bounds[0]), instances)
    placed = clips.place_clips(plan.recording_samples[some], config.clips, config.sample_rate)
    rows = np.zeros(placed.num_clips, schema.CLIP_DTYPE)
    rows["video"] = some.start + np.repeat(np.arange(len(videos)), counts)
    rows["start_seconds"] = placed.starts / config.sample_rate
    rows["stop_seconds"] = (placed.starts + placed.num_samples) / config.sample_rate
    rows["num_samples"] = placed.num_samples
    labels, rows["labelled"] = label_clips(placed, videos.instances, bounds, num_classes, config.clips)
    writer.write("clips", first_clip, rows)
    writer.write("labels", first_clip, labels)


def stored_names(gathered: Gathered, some: slice = slice(None)) -> list[bytes]:
    """Return the names of files as the file stores them, UTF-8 with ``?`` for each byte that is not."""
    return [schema.encode(raw.decode("utf-8", "surrogateescape")) for raw in gathered.file_names[some].tolist()]
