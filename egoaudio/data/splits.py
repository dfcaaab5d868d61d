"""Which clips are used for training, validation and test.

In: an open egoaudio file (its tables, never its arrays) and a ``DataConfig``. Out: rows of the file as int64 arrays.

A row is used if its clip and its video have ``status`` 1 and its clip is ``labelled``. The validation split is taken
from the file's ``train`` videos in whole units (videos, subjects or clips); the test split is the file's own. A subject
may appear in both ``train`` and ``test``: Charades-Ego was divided that way, and nothing is moved here.

The same seed gives the same rows (``data.seeds``). NumPy only, so that evaluation and plots need no torch. Ten million
rows take about a second.
"""

import warnings
from dataclasses import dataclass

import numpy as np

from egoaudio.config.train import DataConfig
from egoaudio.data.seeds import SPLIT, generator
from egoaudio.errors import TrainingError
from egoaudio.hdf5.reader import EgoAudioFile
from egoaudio.inputs.annotations import NO_ACTION


@dataclass(frozen=True, eq=False)
class Split:
    """The rows of each split, int64 and ascending; ``validation`` and ``test`` may be empty."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray

    def rows(self, name: str) -> np.ndarray:
        """Return the rows of the split called ``name``, one of ``config.train.SPLITS``.

        Raises
        ------
        TrainingError
            When that split has no clips.

        """
        rows: np.ndarray = getattr(self, name)
        if len(rows) == 0:
            fixes = {
                "train": "build with annotations for training (`annotations`)",
                "validation": "hold clips out (`validation_fraction=0.2`)",
                "test": "build with `test_annotations`, or give another split",
            }
            raise TrainingError(f"the split {name!r} has no usable clips: {fixes[name]}")
        return rows


def split_rows(file: EgoAudioFile, config: DataConfig, seed: int) -> Split:
    """Return the ``Split`` of an open file.

    Parameters
    ----------
    file : EgoAudioFile
        Its ``clip_table``, ``video_table`` and ``trainable`` are used.
    config : DataConfig
        ``validation_fraction`` is the share of units (rounded; at least one, never all) held out of the train videos,
        ``split_unit`` what a unit is.
    seed : int
        Decides, together with the units' names but not their order in the file, which units are held out.

    Raises
    ------
    TrainingError
        When there is nothing to train on, or there are too few units to hold one out.

    """
    splits = file.video_table["split"]
    rows = np.flatnonzero(file.trainable)
    video = file.clip_table["video"][rows]
    train = rows[(splits == b"train")[video]]
    test = rows[(splits == b"test")[video]]
    if len(train) == 0 and len(rows) == 0 and file.usable.any():
        raise TrainingError(
            f"{file.path} has no clip to train on: of {file.num_clips} clips {np.count_nonzero(file.usable)} have "
            "sound and 0 of those have labels: the annotations say nothing about them. Build with `no_action='all'`, "
            "or with the annotations of these videos"
        )
    if len(train) == 0:
        names = ", ".join(sorted({name.decode() or "(none)" for name in splits.tolist()})) or "none"
        raise TrainingError(
            f"{file.path} has no clip to train on: of {file.num_clips} clips {np.count_nonzero(file.usable)} have "
            f"sound and {len(rows)} of those have labels, but none is in the split 'train' (the file's splits: "
            f"{names}): see egoaudio-inspect --failed, or build with annotations for training (`annotations`)"
        )
    others = sorted({name.decode() for name in splits.tolist()} - {"train", "test"})
    if others:
        warnings.warn(
            f"{file.path}: videos of the splits {', '.join(others)} are ignored; only 'train' and 'test' are used",
            stacklevel=2,
        )
    held_out = _hold_out(_units(file, config.split_unit, train), config, generator(seed, SPLIT))
    return Split(train[~held_out], train[held_out], test)


def require_learnable(file: EgoAudioFile, split: Split) -> None:
    """Refuse a split from which nothing can be learnt, or in which no epoch could be told from another.

    Raises
    ------
    TrainingError
        When the file has no class but ``no_action``, or no class is active in the train or in the validation split.

    """
    class_ids = file.class_table["class_id"].tolist()
    if class_ids == [NO_ACTION.encode()]:
        raise TrainingError(
            f"{file.path}: its only class is {NO_ACTION}, so there is nothing to learn: build with annotations that "
            "have actions"
        )
    if not file.labels[split.train].any():
        raise TrainingError(
            f"{file.path}: no class is active in any of the {len(split.train):,} clips to train on: do the annotations "
            "belong to these videos, and are their times in seconds? See egoaudio-inspect"
        )
    if len(split.validation) and not file.labels[split.validation].any():
        raise TrainingError(
            f"{file.path}: no class is active in any of the {len(split.validation):,} clips of the validation split, "
            "so no epoch could be told from another: give another `validation_fraction`, or 0 (then the epoch with the "
            "lowest training loss is the best)"
        )


def _units(file: EgoAudioFile, split_unit: str, rows: np.ndarray) -> np.ndarray:
    """Return the number of each row's unit, int64 (n,); units are numbered in the order of their names."""
    if split_unit == "clip":
        warnings.warn(
            "`split_unit='clip'` is the paper's: neighbouring clips of a video fall on both sides, so validation "
            "scores are too high",
            stacklevel=3,
        )
        return np.arange(len(rows))
    videos = file.video_table
    names = videos["video_id"] if split_unit == "video" else videos["subject"]
    present, unit_of_video = np.unique(file.clip_table["video"][rows], return_inverse=True)
    if split_unit == "subject" and (names[present] == b"").any():
        raise TrainingError(
            f"`split_unit='subject'`: {np.count_nonzero(names[present] == b'')} of the {len(present)} train videos of "
            f"{file.path} name no subject: give `split_unit='video'`"
        )
    _, unit_of_name = np.unique(names[present], return_inverse=True)
    return unit_of_name[unit_of_video]


def _hold_out(units: np.ndarray, config: DataConfig, rng: np.random.Generator) -> np.ndarray:
    """Return a mask, bool (n,), of the rows whose unit is held out for validation."""
    num_units = int(units.max()) + 1
    if config.validation_fraction == 0:
        return np.zeros(len(units), dtype=bool)
    if num_units < 2:
        raise TrainingError(
            f"`validation_fraction={config.validation_fraction:g}` with `split_unit={config.split_unit!r}`: the train "
            f"videos are a single {config.split_unit}, which cannot be both trained on and held out: choose a smaller "
            "unit, or `validation_fraction=0`"
        )
    count = min(max(round(config.validation_fraction * num_units), 1), num_units - 1)
    chosen = np.zeros(num_units, dtype=bool)
    chosen[rng.permutation(num_units)[:count]] = True
    return chosen[units]
