"""What scores are held against: the labels, videos and annotated actions of some clips of a file. Numpy only.

In: an open egoaudio file, the clips (rows of ``/clips``) and the videos (rows of ``/videos``) to evaluate. Out: a ``Truth``,
in which videos are numbered from 0, so that nothing behind it needs the file. Clips are only those with sound; videos
may be without any, for the official protocol counts their actions as missed.
"""

from dataclasses import dataclass

import numpy as np

from egoaudio.data.balance import class_counts
from egoaudio.errors import StoreError, TrainingError
from egoaudio.hdf5 import integrity
from egoaudio.inputs.annotations import NO_ACTION


@dataclass(frozen=True, eq=False)
class Truth:
    """What scores are held against, for given clips (rows of the file) and videos; made by ``read_truth``."""

    rows: np.ndarray
    """int64 (n,): rows of the file, one a clip."""
    labels: np.ndarray
    """uint8 (n, C), multi-hot."""
    labelled: np.ndarray
    """bool (n,): whether the annotation says anything about the clip."""
    clip_video: np.ndarray
    """int64 (n,): which of the videos below, from 0."""
    start_seconds: np.ndarray
    """float64 (n,); a clip is ``[start, stop)``."""
    stop_seconds: np.ndarray
    class_ids: tuple
    class_names: tuple
    num_actions: int
    """Classes of the annotation: C, or C - 1 where the last one is ``no_action``."""
    video_ids: tuple
    video_labels: np.ndarray
    """uint8 (V, num_actions): all actions of each video, times ignored."""
    video_seconds: np.ndarray
    """float64 (V,): lengths of the sound; without sound, the last annotated time; 0 where nothing tells."""
    instances: np.ndarray | None
    """Structured (``video`` from 0 to V - 1, ``class_index``, ``start_seconds``, ``stop_seconds``); None if the file has no times."""


def read_truth(file, rows, videos=None):
    """Return the ``Truth`` of some clips and videos of an open file.

    Parameters
    ----------
    file : EgoAudioFile
    rows : array of int (n,)
        Clips that have sound.
    videos : array of int, optional
        Rows of ``/videos``, ascending, to judge whether they have clips or not; those of the clips if not given.

    Raises
    ------
    TrainingError
        When a clip is of none of the videos.
    StoreError
        When a label is neither 0 nor 1.
    """
    rows = np.asarray(rows, dtype=np.int64)
    clips = file.clip_table[rows]
    videos = np.unique(clips["video"]) if videos is None else np.asarray(videos)
    place = np.full(file.num_videos, -1)
    place[videos] = np.arange(len(videos))
    if (place[clips["video"]] < 0).any():
        stray = file.video_table["video_id"][clips["video"][place[clips["video"]] < 0][0]].decode()
        raise TrainingError(
            f"{file.path}: clips of {stray} are to be evaluated, but that video is not among the {len(videos)} videos to evaluate"
        )
    integrity.require_binary(file, "labels", rows)
    integrity.require_binary(file, "video_labels", videos)
    class_ids, names = (
        [text.decode() for text in file.class_table[column].tolist()] for column in ("class_id", "name")
    )
    num_actions = len(class_ids) - (class_ids[-1] == NO_ACTION)
    table = file.video_table[videos]
    seconds = table["duration_seconds"].astype(np.float64)
    instances = _instances(file, place) if len(file.instances) else None
    if instances is not None:
        last = np.zeros(len(videos))
        np.maximum.at(last, instances["video"], np.maximum(instances["start_seconds"], instances["stop_seconds"]))
        seconds = np.where(seconds > 0, seconds, last)
    return Truth(
        rows,
        file.labels[rows],
        clips["labelled"] == 1,
        place[clips["video"]],
        clips["start_seconds"],
        clips["stop_seconds"],
        tuple(class_ids),
        tuple(names),
        num_actions,
        tuple(text.decode() for text in table["video_id"].tolist()),
        file.video_labels[videos][:, :num_actions],
        seconds,
        instances,
    )


def _instances(file, place):
    """Return the annotated actions of the videos to judge; ``place`` says where each video of the file stands among those, or -1."""
    instances = file.instances
    inside = (
        (instances["video"] >= 0)
        & (instances["video"] < len(place))
        & (instances["class_index"] >= 0)
        & (instances["class_index"] < file.num_classes)
    )
    if not inside.all():
        raise StoreError(
            f"{file.path}: row {np.flatnonzero(~inside)[0]} of /instances names a video or class that is not there: the file is damaged"
        )
    actions = file.class_table["class_id"][instances["class_index"]] != NO_ACTION.encode()
    instances = instances[actions & (place[instances["video"]] >= 0)]  # a copy
    instances["video"] = place[instances["video"]]
    return instances


def class_frequencies(labels, rows):
    """Return the prior: the share of the rows in which each class is on, float64 (C,)."""
    return class_counts(labels, rows) / max(len(rows), 1)
