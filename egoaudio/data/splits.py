"""Which clips are trained on, held out and tested, and the numbers that follow from the choice.

In: an open egoaudio file (its tables and ``/statistics``, never its arrays) and a ``DataConfig``. Out: rows of the file
as int64 arrays, one mean and one deviation for the features, weights for classes and for draws.

A row takes part when its clip and its video have ``status`` 1 and its clip is ``labelled``. What is held out for
validation comes from the file's ``train`` videos, in whole units (videos, subjects or clips); the test split is the file's.
A subject may appear in ``train`` and ``test``: that is how Charades-Ego was divided, and nothing is moved here.

All randomness comes from ``generator(seed, purpose, ...)``: the same seed gives the same rows whatever else was drawn.
NumPy only, so that evaluation and plots can ask without torch. Ten million rows take about a second.
"""

import warnings
from dataclasses import dataclass

import numpy as np

from egoaudio.errors import TrainingError

# Purposes of random streams: a stream is named by its purpose and whatever numbers follow (epoch, batch).
SPLIT, ORDER, AUGMENTATION = range(3)

# The student paper's normalisation, (x + 4.2677393) / (2 * 4.5689974): the constants of the published AST.
PAPER_NORMALIZATION = (-4.2677393, 2 * 4.5689974)

# Rows of /labels that are in memory at once.
BLOCK_ROWS = 65536


def generator(seed, *purpose):
    """Return a random generator that depends on the seed and the purpose (integers) alone."""
    # A spawn key, not a list of entropy: SeedSequence pads with zeros, so [1] and [1, 0] would be one stream.
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=purpose)))


@dataclass(frozen=True, eq=False)
class Split:
    """The rows of each split, int64 and ascending; ``validation`` and ``test`` may be empty."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray

    def rows(self, name):
        """Return the rows of the split called ``name``.

        Raises
        ------
        TrainingError
            When that split has no clips.

        """
        rows = {"train": self.train, "validation": self.validation, "test": self.test}[name]
        if len(rows) == 0:
            fixes = {
                "train": "build with annotations for training (--annotations)",
                "validation": "hold clips out (--validation-fraction 0.2)",
                "test": "build with --test-annotations, or use another split",
            }
            raise TrainingError(f"the split {name!r} has no usable clips: {fixes[name]}")
        return rows


def split_rows(file, config, seed):
    """Return the ``Split`` of an open file.

    Parameters
    ----------
    file : EgoAudioFile
        Its ``clip_table``, ``video_table`` and ``trainable`` are used.
    config : DataConfig
        ``validation_fraction`` is the share of units (rounded, at least one, never all) that is held out of the train
        videos, ``split_unit`` what a unit is.
    seed : int
        Decides which units, together with their names; not their order in the file.

    Raises
    ------
    TrainingError
        When there is nothing to train on, or too few units to hold one out.

    """
    splits = file.video_table["split"]
    rows = np.flatnonzero(file.trainable)
    video = file.clip_table["video"][rows]
    train = rows[(splits == b"train")[video]]
    test = rows[(splits == b"test")[video]]
    if len(train) == 0:
        names = ", ".join(sorted({name.decode() or "(none)" for name in splits.tolist()})) or "none"
        raise TrainingError(
            f"{file.path} has no clip to train on: of {file.num_clips} clips {np.count_nonzero(file.usable)} have sound and {len(rows)} of "
            f"those have labels, but none is in the split 'train' (the file's splits: {names}): see egoaudio-inspect --failed, or build "
            "with annotations for training (--annotations)"
        )
    others = sorted({name.decode() for name in splits.tolist()} - {"train", "test"})
    if others:
        warnings.warn(f"{file.path}: videos of the splits {', '.join(others)} are left out; only 'train' and 'test' are used", stacklevel=2)
    held_out = _hold_out(_units(file, config.split_unit, train), config, generator(seed, SPLIT))
    return Split(train[~held_out], train[held_out], test)


def _units(file, split_unit, rows):
    """Return for each row the number of its unit, int64 (n,); units are numbered in the order of their names."""
    if split_unit == "clip":
        warnings.warn(
            "--split-unit clip is the paper's: neighbouring clips of a video fall on both sides, so validation scores are too high",
            stacklevel=3,
        )
        return np.arange(len(rows))
    videos = file.video_table
    names = videos["video_id"] if split_unit == "video" else videos["subject"]
    present, unit_of_video = np.unique(file.clip_table["video"][rows], return_inverse=True)
    if split_unit == "subject" and (names[present] == b"").any():
        raise TrainingError(
            f"--split-unit subject: {np.count_nonzero(names[present] == b'')} of the {len(present)} train videos of {file.path} "
            "name no subject: use --split-unit video"
        )
    _, unit_of_name = np.unique(names[present], return_inverse=True)
    return unit_of_name[unit_of_video]


def _hold_out(units, config, rng):
    """Return a mask (n,) of the rows whose unit is held out for validation."""
    num_units = int(units.max()) + 1
    if config.validation_fraction == 0:
        return np.zeros(len(units), dtype=bool)
    if num_units < 2:
        raise TrainingError(
            f"--validation-fraction {config.validation_fraction:g} --split-unit {config.split_unit}: the train videos are one "
            f"{config.split_unit} only, which cannot be both trained on and held out: choose a smaller unit, or --validation-fraction 0"
        )
    count = min(max(round(config.validation_fraction * num_units), 1), num_units - 1)
    chosen = np.zeros(num_units, dtype=bool)
    chosen[rng.permutation(num_units)[:count]] = True
    return chosen[units]


def normalization(file, feature, train_rows, how):
    """Return ``(mean, std)`` such that ``(x - mean) / std`` is what the model is given.

    Parameters
    ----------
    file : EgoAudioFile
        Its ``/statistics`` of the feature are used: count, sum and sum of squares of each video.
    feature : str
        Name of the array.
    train_rows : array of int, (n,)
        ``"dataset"`` takes all clips of the videos these rows are in. With ``--split-unit clip`` those videos hold the
        validation clips too: two numbers over hours of sound, which tell a model nothing about a clip.
    how : {"dataset", "paper", "none"}
        One mean and deviation over all values, the paper's fixed numbers, or (0, 1).

    Raises
    ------
    TrainingError
        When the statistics are missing or the feature is constant.

    """
    if how == "none":
        return 0.0, 1.0
    if how == "paper":
        return PAPER_NORMALIZATION
    count, total, squares = file.statistics(feature)[np.unique(file.clip_table["video"][train_rows])].sum(axis=0)
    variance = squares / count - (total / count) ** 2 if count > 0 else 0.0
    # The comparison is relative: a constant feature leaves a rounding error, not zero.
    if not np.isfinite(variance) or variance <= 1e-12 * squares / max(count, 1):
        raise TrainingError(
            f"{file.path}: {feature} cannot be normalised with mean and deviation (count {count:g}, variance {variance:g} over the "
            "training videos): check the sound with egoaudio-inspect --verify, or use --normalize none"
        )
    return float(total / count), float(np.sqrt(variance))


def expand_single(labels, rows):
    """Return ``(rows, classes)``, one pair for each active class of each row: int64 (m,), int32 (m,)."""
    pairs = [np.nonzero(labels[rows[start : start + BLOCK_ROWS]]) for start in range(0, len(rows), BLOCK_ROWS)]
    at = [rows[start * BLOCK_ROWS + item] for start, (item, _) in enumerate(pairs)]
    return np.concatenate([np.empty(0, np.int64), *at]), np.concatenate([np.empty(0, np.int32), *(label for _, label in pairs)], dtype=np.int32)


def class_counts(labels, rows):
    """Return in how many of the rows each class is active, int64 (C,)."""
    counts = np.zeros(labels.shape[1], dtype=np.int64)
    for start in range(0, len(rows), BLOCK_ROWS):
        counts += labels[rows[start : start + BLOCK_ROWS]].sum(axis=0, dtype=np.int64)
    return counts


def class_weights(file, rows, label_mode):
    """Return the paper's weight of each class in the loss, ``total / (num_classes * count)``, float32 (C,).

    ``total`` is the number of samples trained on: rows, or pairs of row and class in single-label mode. A class without
    samples has weight 0, and a warning names it.
    """
    counts = class_counts(file.labels, rows)
    if (counts == 0).any():
        missing = [name.decode() for name in file.class_table["class_id"][counts == 0].tolist()]
        shown = ", ".join(missing[:20]) + (f" and {len(missing) - 20} more" if len(missing) > 20 else "")
        warnings.warn(f"{len(missing)} classes have no training clip and get weight 0: {shown}", stacklevel=2)
    total = counts.sum() if label_mode == "single" else len(rows)
    return np.where(counts > 0, total / (len(counts) * np.maximum(counts, 1)), 0).astype(np.float32)


def balanced_probabilities(labels, rows, classes=None):
    """Return the probability of each item when a class is drawn evenly and then one of its items, float64 (n,).

    Items are rows, or pairs of row and class when ``classes`` is given. Rows without any class count as one more class,
    so that they are drawn too.
    """
    if classes is not None:
        counts = np.bincount(classes)
        weights = 1.0 / counts[classes]
    else:
        counts = class_counts(labels, rows)
        share = np.where(counts > 0, 1.0 / np.maximum(counts, 1), 0)
        blocks = (labels[rows[start : start + BLOCK_ROWS]] for start in range(0, len(rows), BLOCK_ROWS))
        weights = np.concatenate([block @ share for block in blocks])
        without = weights == 0
        weights[without] = 1.0 / max(np.count_nonzero(without), 1)
    return weights / weights.sum()
