"""How often each class is active, and what follows from it: weights for the loss, probabilities for sampling.

In: ``/labels`` of a file (num_clips, num_classes), read in blocks, and rows. NumPy only.
"""

import warnings

import numpy as np

from egoaudio.hdf5.reader import EgoAudioFile

# Rows of /labels that are in memory at once.
BLOCK_ROWS = 65536


def expand_single(labels: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return ``(rows, classes)``, one pair for each active class of each row: int64 (m,), int32 (m,)."""
    pairs = [np.nonzero(labels[rows[start : start + BLOCK_ROWS]]) for start in range(0, len(rows), BLOCK_ROWS)]
    at = [rows[start * BLOCK_ROWS + item] for start, (item, _) in enumerate(pairs)]
    return np.concatenate([np.empty(0, np.int64), *at]), np.concatenate(
        [np.empty(0, np.int32), *(label for _, label in pairs)], dtype=np.int32
    )


def class_counts(labels: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return in how many of the rows each class is active, int64 (C,)."""
    counts = np.zeros(labels.shape[1], dtype=np.int64)
    for start in range(0, len(rows), BLOCK_ROWS):
        counts += labels[rows[start : start + BLOCK_ROWS]].sum(axis=0, dtype=np.int64)
    return counts


def class_weights(file: EgoAudioFile, rows: np.ndarray, label_mode: str) -> np.ndarray:
    """Return the paper's weight of each class in the loss, ``total / (num_classes * count)``, float32 (C,).

    ``total`` is the number of training samples: rows, or pairs of row and class in single-label mode. A class without
    samples has weight 0, and a warning names it.
    """
    counts = class_counts(file.labels, rows)
    if (counts == 0).any():
        missing = [name.decode() for name in file.class_table["class_id"][counts == 0].tolist()]
        shown = ", ".join(missing[:20]) + (f" and {len(missing) - 20} more" if len(missing) > 20 else "")
        warnings.warn(f"{len(missing)} classes have no training clip and get weight 0: {shown}", stacklevel=2)
    total = counts.sum() if label_mode == "single" else len(rows)
    return np.where(counts > 0, total / (len(counts) * np.maximum(counts, 1)), 0).astype(np.float32)


def balanced_probabilities(labels: np.ndarray, rows: np.ndarray, classes: np.ndarray | None = None) -> np.ndarray:
    """Return the probability of each item when a class is drawn uniformly and then one of its items, float64 (n,).

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
        weights[without] = 1.0 / max(int(np.count_nonzero(without)), 1)
    return weights / weights.sum()
