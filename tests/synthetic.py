"""Make egoaudio files for tests, without media: laid out and filled through the store, in milliseconds."""

import itertools
import json
import os

import numpy as np

from egoaudio.config.build import BuildConfig
from egoaudio.config.options import to_json
from egoaudio.errors import Status
from egoaudio.hdf5 import create, integrity, reader, schema
from egoaudio.hdf5.writer import RowWriter, offsets

AXES = {
    "spectrogram": "clip,frame_seconds,frequency_hz",
    "mfcc": "clip,frame_seconds,coefficient",
    "logmel": "clip,logmel_frame_seconds,mel_hz",
    "yamnet": "clip,yamnet_frame_seconds,yamnet_hz",
    "waveform": "clip,sample",
}


def make_layout(num_clips, num_videos, num_classes=5, features=None, dtype="float32", **changes):
    features = {"spectrogram": (32, 1025)} if features is None else features
    axes = {}
    if "spectrogram" in features:
        axes["frequency_hz"] = np.linspace(0, 8000, features["spectrogram"][1])
    num_frames = {features[name][0] for name in ("spectrogram", "mfcc") if name in features}
    if len(num_frames) == 1:
        axes["frame_seconds"] = np.arange(num_frames.pop()) * 0.032
    arrays = tuple(
        schema.ArrayLayout(
            name,
            tuple(shape),
            dtype,
            {"units": "dB", "axes": AXES[name], "n_fft": 2048, "hop_length": 512, "window": "hann", "f_min_hz": 0.0},
        )
        for name, shape in features.items()
    )
    fields = {
        "num_clips": num_clips,
        "num_videos": num_videos,
        "num_classes": num_classes,
        "num_instances": num_videos,
        "video_dtype": schema.video_dtype(
            video_id=["V0000EGO"], file=["V0000EGO.mp4"], split=["train", "test"], subject=["S00"], scene=["Küche"]
        ),
        "class_dtype": schema.class_dtype(class_id=["c000", "no_action"], name=["Holding some clothes"]),
        "arrays": arrays,
        "sample_rate": 16000,
        "clip_seconds": 1.0,
        "hop_seconds": 1.0,
        "config": to_json(BuildConfig()),
        "plan_sha256": "0" * 64,
        "created_utc": "2024-01-01T00:00:00Z",
        "axes": axes,
    }
    return schema.Layout(**{**fields, **changes})


def make_file(
    path,
    num_videos=8,
    clips_per_video=10,
    features=None,
    num_classes=5,
    seed=0,
    *,
    dtype="float32",
    class_dependent=True,
    failed=(),
    silent_clips=(),
    unlabelled=0.1,
    test_fraction=0.25,
    complete=True,
    planned=(),
    **changes,
):
    """Write a complete egoaudio file of random features and return its path.

    Parameters
    ----------
    path : path-like
    num_videos, clips_per_video, num_classes, seed : int
        The last class is ``no_action``.
    features : dict of str to tuple
        Row shapes; ``{"spectrogram": (32, 1025)}`` if not given.
    class_dependent : bool
        Add 3 to a class's own band of the last axis where it is on, so that there is something to learn; else noise
        alone.
    failed : sequence of int
        Videos with status 3 (and no data).
    silent_clips : sequence of int
        Clips (of videos that are well) with status 6.
    unlabelled : float
        Share of clips with ``labelled = 0``.
    test_fraction : float
        Share of videos, the last ones, in the split "test"; the others are "train". Every fourth neighbour has the same
        subject.
    complete : bool
        Whether the file is marked complete.
    planned : sequence of int
        Videos of status 0, as in a build that was interrupted.
    changes
        Fields of ``schema.Layout`` to replace.
    """
    generator = np.random.default_rng(seed)
    num_clips = num_videos * clips_per_video
    layout = make_layout(num_clips, num_videos, num_classes, features, dtype, **changes)
    path = str(path)
    create.lay_out(path, layout)
    videos = np.zeros(num_videos, layout.video_dtype)
    clips = np.zeros(num_clips, schema.CLIP_DTYPE)
    labels = np.zeros((num_clips, num_classes), "u1")
    with RowWriter(path, offsets(path)) as writer:
        for v in range(num_videos):
            status = Status.UNREADABLE if v in failed else Status.PLANNED if v in planned else Status.OK
            rows = slice(v * clips_per_video, (v + 1) * clips_per_video)
            split = "test" if v >= num_videos - int(test_fraction * num_videos) else "train"
            videos[v] = (
                f"V{v:04d}EGO",
                f"V{v:04d}EGO.mp4",
                split,
                f"S{v // 4:02d}",
                schema.encode("Küche"),
                1,
                clips_per_video * layout.hop_seconds,
                44100,
                2,
                rows.start,
                clips_per_video,
                status,
                0,
                "moov atom not found" if status == Status.UNREADABLE else "",
                0,
                0,
                0,
                -3.0,
                -20.0,
                0,
            )
            clips["video"][rows] = v
            clips["start_seconds"][rows] = np.arange(clips_per_video) * layout.hop_seconds
            clips["stop_seconds"][rows] = clips["start_seconds"][rows] + layout.clip_seconds
            clips["num_samples"][rows] = round(layout.clip_seconds * layout.sample_rate)
            clips["labelled"][rows] = generator.random(clips_per_video) >= unlabelled
            clips["status"][rows] = [
                Status.NO_SOUND if status == Status.OK and k in silent_clips else status
                for k in range(rows.start, rows.stop)
            ]
            on = generator.random((clips_per_video, num_classes)) < 1.5 / num_classes
            on[:, -1] = ~on[:, :-1].any(axis=1)
            labels[rows] = on
            usable = clips["status"][rows] == Status.OK
            for array in layout.arrays:
                values = generator.standard_normal((clips_per_video, *array.row_shape), np.float32)
                if class_dependent:
                    band = np.arange(array.row_shape[-1]) * num_classes // array.row_shape[-1]
                    values += 3 * on[:, band].reshape(clips_per_video, *([1] * (len(array.row_shape) - 1)), len(band))
                values = values.astype(array.dtype)
                values[~usable] = 0
                if status == Status.OK:
                    writer.write(array.name, rows.start, values)
                    writer.write(f"checksums/{array.name}", v, np.array([integrity.checksum(values)], "u4"))
                    writer.write(f"statistics/{array.name}", v, integrity.statistics(values[usable])[np.newaxis])
        classes = np.zeros(num_classes, layout.class_dtype)
        classes["class_id"] = [f"c{k:03d}" for k in range(num_classes - 1)] + ["no_action"]
        classes["name"] = [f"Action {k}" for k in range(num_classes - 1)] + ["No action"]
        classes["num_clips"] = labels[(clips["status"] == Status.OK) & (clips["labelled"] == 1)].sum(axis=0)
        writer.write("clips", 0, clips)
        writer.write("labels", 0, labels)
        writer.write("videos", 0, videos)
        writer.write("video_labels", 0, labels.reshape(num_videos, clips_per_video, num_classes).max(axis=1, initial=0))
        instances = np.zeros(
            num_videos, schema.INSTANCE_DTYPE
        )  # one a video: its first clip's first class, in its first half
        instances["video"], instances["class_index"] = (
            np.arange(num_videos),
            labels[::clips_per_video].argmax(axis=1) if num_clips else 0,
        )
        instances["stop_seconds"] = videos["duration_seconds"] / 2
        writer.write("instances", 0, instances)
        writer.write("synced", 0, (videos["status"] != Status.PLANNED).astype("u1"))
        writer.write("classes", 0, classes)
    if complete:
        create.mark_complete(path)
    return path


def divide(path, folder, bounds):
    """Divide a file into complete files of contiguous ranges of its videos, as shards are, and return their paths.

    Parameters
    ----------
    path : path-like
    folder : pathlib.Path
    bounds : sequence of int
        Where one file ends and the next begins: rows of /videos, from 0 to their number.
    """
    paths = []
    with reader.EgoAudioFile(path) as file:
        for number, (start, stop) in enumerate(itertools.pairwise(bounds)):
            paths.append(str(folder / f"{os.path.basename(path)}.shard-{number:05d}-of-{len(bounds) - 1:05d}"))
            _take_range(file, paths[-1], slice(start, stop), f"{number:064x}")
    return paths


def _take_range(file, path, chosen, plan_sha256):
    """Write a file of some of the videos of another."""
    videos = file.video_table[chosen].copy()
    first = int(videos["first_clip"][0])
    rows = slice(first, first + int(videos["num_clips"].sum()))
    instances = file.instances[np.isin(file.instances["video"], np.arange(file.num_videos)[chosen])].copy()
    layout = make_layout(
        rows.stop - rows.start, len(videos), file.num_classes, {name: file[name].shape[1:] for name in file.features},
        file[file.features[0]].dtype.name, num_instances=len(instances), plan_sha256=plan_sha256,
        config=json.dumps(file.config, sort_keys=True, separators=(",", ":")),
        video_dtype=file.video_table.dtype, class_dtype=file.class_table.dtype, axes=dict(file.axes),
        arrays=tuple(
            schema.ArrayLayout(name, file[name].shape[1:], file[name].dtype.name, file.attributes(name))
            for name in file.features
        ),
    )  # fmt: skip
    create.lay_out(path, layout)
    clips, classes, labels = file.clip_table[rows].copy(), file.class_table.copy(), file.labels[rows]
    videos["first_clip"] -= first
    clips["video"] -= chosen.start
    instances["video"] -= chosen.start
    counted = (clips["status"] == Status.OK) & (clips["labelled"] == 1)
    classes["num_clips"] = labels[counted].sum(axis=0)
    with RowWriter(path, offsets(path)) as writer:
        tables = {"clips": clips, "videos": videos, "instances": instances, "classes": classes, "labels": labels}
        tables |= {
            "video_labels": file.video_labels[chosen],
            "synced": file.synced[chosen],
            "fingerprints": file.fingerprints[chosen],
        }
        for name in file.features:
            tables[name] = np.asarray(file[name][rows])
            tables[f"checksums/{name}"] = file.checksums(name)[chosen]
            tables[f"statistics/{name}"] = file.statistics(name)[chosen]
        for name, values in tables.items():
            writer.write(name, 0, values)
    create.mark_complete(path)
