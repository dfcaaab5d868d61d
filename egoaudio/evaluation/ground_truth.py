"""The ground truth of an evaluation: labels, videos and annotated actions of some clips of a file. NumPy only.

In: an open egoaudio file, the clips (rows of ``/clips``) and the videos (rows of ``/videos``) to evaluate. Out: a
``GroundTruth``, in which videos are numbered from 0, so that later stages do not need the file. All clips have sound;
videos may have no clips, as the official protocol counts their actions as missed.
"""

from dataclasses import dataclass

import numpy as np

from egoaudio.data.balance import class_counts
from egoaudio.errors import EvaluationError, StoreError
from egoaudio.hdf5 import integrity
from egoaudio.hdf5.reader import EgoAudioFile
from egoaudio.inputs.annotations import NO_ACTION


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """What scores are compared with, for given clips (rows of the file) and videos; made by ``read_ground_truth``."""

    rows: np.ndarray
    """int64 (n,): the row of each clip in the file."""
    labels: np.ndarray
    """uint8 (n, C), multi-hot."""
    labelled: np.ndarray
    """bool (n,): whether the annotation says anything about the clip."""
    clip_video: np.ndarray
    """int64 (n,): the clip's video, an index from 0 into the videos below."""
    start_seconds: np.ndarray
    """float64 (n,); a clip is ``[start, stop)``."""
    stop_seconds: np.ndarray
    class_ids: tuple[str, ...]
    class_names: tuple[str, ...]
    num_actions: int
    """Classes of the annotation: C, or C - 1 where the last one is ``no_action``."""
    video_ids: tuple[str, ...]
    video_labels: np.ndarray
    """uint8 (V, num_actions): all actions of each video, whatever their times."""
    video_seconds: np.ndarray
    """float64 (V,): length of the sound; without sound, the last annotated time; 0 if unknown."""
    instances: np.ndarray | None
    """Structured: ``video`` (0 to V - 1), ``class_index``, ``start_seconds``, ``stop_seconds``; None if the file has no
    times."""


def read_ground_truth(file: EgoAudioFile, rows: np.ndarray, videos: np.ndarray | None = None) -> GroundTruth:
    """Return the ``GroundTruth`` of some clips and videos of an open file.

    Parameters
    ----------
    file : EgoAudioFile
    rows : array of int (n,)
        Clips that have sound.
    videos : array of int, optional
        Rows of ``/videos``, ascending, to evaluate whether they have clips or not; those of the clips if not given.

    Raises
    ------
    EvaluationError
        When a clip belongs to none of the videos.
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
        raise EvaluationError(
            f"{file.path}: clips of {stray} are to be evaluated, but that video is not among the {len(videos)} videos "
            "to evaluate: give its row of /videos, too"
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
    return GroundTruth(
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


def _instances(file: EgoAudioFile, place: np.ndarray) -> np.ndarray:
    """Return the annotated actions of the videos to evaluate; ``place`` is each video's index among those, or -1."""
    instances = file.instances
    inside = (
        (instances["video"] >= 0)
        & (instances["video"] < len(place))
        & (instances["class_index"] >= 0)
        & (instances["class_index"] < file.num_classes)
    )
    if not inside.all():
        raise StoreError(
            f"{file.path}: row {np.flatnonzero(~inside)[0]} of /instances names a video or class that does not exist: "
            "the file is damaged, build or copy it again"
        )
    actions = file.class_table["class_id"][instances["class_index"]] != NO_ACTION.encode()
    instances = instances[actions & (place[instances["video"]] >= 0)]  # a copy
    instances["video"] = place[instances["video"]]
    return instances


def class_frequencies(labels: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the prior: the share of the rows in which each class is active, float64 (C,)."""
    return class_counts(labels, rows) / max(len(rows), 1)
