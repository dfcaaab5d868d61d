"""The mapped file as a dataset for any PyTorch loader.

``ClipDataset`` maps the feature array once per process and gathers a whole batch of rows at once; it can be pickled, so
workers may fork or be spawned.

Conventions: an *item* is a row of the file, or with ``label_mode="single"`` a pair of a row and one of its classes. Features
are float32 (b, T, F), ``(x - mean) / std`` already; with context T frames of each of 2 * K + 1 clips, of which the labels are
those of the middle one. Labels are float32 (b, C): multi-hot, or one-hot of the pair's class
(``cross_entropy`` takes such rows, and mixup may blend them). Normalisation happens in ``ClipDataset.fetch``, while
the rows are in the processor's cache.
"""

import os

import numpy as np
import torch

from egoaudio.data.balance import expand_single
from egoaudio.data.rows import RowSource
from egoaudio.errors import TrainingError
from egoaudio.hdf5 import integrity


class ClipDataset(torch.utils.data.Dataset):
    """Clips of one egoaudio file as features and labels.

    Parameters
    ----------
    path : str or os.PathLike
        The file.
    feature : str
        The name of the array.
    rows : array of int, optional
        Rows of the file, such as ``split_rows(...).train``; all trainable ones if not given. Rows without data are refused.
    label_mode : {"multi", "single"}
        One item a row, or one for each active class of each row (a row without one is left out). Nothing is copied.
    normalization : (float, float)
        ``(mean, std)`` of ``egoaudio.data.normalization``, or of the checkpoint.
    context_clips : int
        K: each clip comes joined in time with so many neighbours on each side, whatever split they are listed in (``data.context``).

    Attributes
    ----------
    rows : int64 array (n,)
        Row of each item.
    classes : int32 array (n,) or None
        Class of each item with ``label_mode="single"``.
    num_classes : int
    feature_shape : tuple
        ((2 * K + 1) * T, F), where a row of the file is (T, F).

    Raises
    ------
    TrainingError
        When the file lacks the array, there is no item, a row holds no data, or neighbours do not follow each other in time.

    """

    def __init__(self, path, feature, rows=None, label_mode="multi", normalization=(0.0, 1.0), context_clips=0):
        self.path = os.path.abspath(os.fspath(path))
        self.feature = feature
        self.label_mode = label_mode
        self.normalization = tuple(normalization)
        self.context_clips = context_clips
        if label_mode not in ("multi", "single"):
            raise ValueError(f"label_mode {label_mode!r}: expected 'multi' or 'single'")
        source = RowSource(self.path, feature, context_clips=context_clips)
        self._identity = source.identity
        self._source, self._process = source, os.getpid()
        rows = np.flatnonzero(source.file.trainable) if rows is None else np.asarray(rows, dtype=np.int64)
        without_data = rows[~source.file.usable[rows]]
        if len(without_data):
            raise TrainingError(
                f"{self.path}: {len(without_data)} of the rows to read hold no data (status is not 1), the first is row {without_data[0]}"
            )
        integrity.require_binary(source.file, "labels", rows)
        self.rows, self.classes = rows, None
        if label_mode == "single":
            self.rows, self.classes = expand_single(source.file.labels, rows)
        if len(self.rows) == 0:
            active = " with an active class, as --label-mode single needs" if label_mode == "single" else ""
            raise TrainingError(f"{self.path}: there is no usable clip{active}: see egoaudio-inspect")
        self.num_classes = source.file.num_classes
        self.feature_shape = source.joined_shape

    def __len__(self):
        """Return the number of items."""
        return len(self.rows)

    def __getstate__(self):
        """Leave the map behind: the other process makes its own."""
        return {**self.__dict__, "_source": None, "_process": None}

    @property
    def source(self):
        """The ``RowSource`` of this process; after a fork the child opens the file anew."""
        if self._source is None or self._process != os.getpid():
            self._source, self._process = (
                RowSource(self.path, self.feature, self._identity, self.context_clips),
                os.getpid(),
            )
        return self._source

    @property
    def file(self):
        """The open ``EgoAudioFile`` of this process."""
        return self.source.file

    def announce(self, items):
        """Let the kernel start to read these items from disk."""
        self.source.announce(self.rows[items])

    def fetch(self, items, out=None):
        """Return ``(features, labels)`` of the items, NumPy float32 (b, T, F) and (b, C).

        Parameters
        ----------
        items : array of int, (b,)
            Numbers from 0 to ``len(self) - 1``, in any order.
        out : float32 array, (b, T, F), optional
            Where the features go; a new array if not given, which takes twice the time.

        """
        items = np.asarray(items, dtype=np.int64)
        rows = self.rows[items]
        features = np.empty((len(items), *self.feature_shape), dtype=np.float32) if out is None else out
        self.source.take(rows, features, *self.normalization)
        if self.classes is None:
            return features, self.file.labels[rows].astype(np.float32)
        labels = np.zeros((len(items), self.num_classes), dtype=np.float32)
        labels[np.arange(len(items)), self.classes[items]] = 1
        return features, labels

    def __getitem__(self, items):
        """Return one item, (T, F) and (C,), or a batch in one gather when ``items`` is an array (``batch_size=None``)."""
        items = np.asarray(items)
        self.announce(np.atleast_1d(items))
        features, labels = self.fetch(np.atleast_1d(items))
        return (features[0], labels[0]) if items.ndim == 0 else (features, labels)

    def __getitems__(self, items):
        """Return a list of single items, read in one gather: what a DataLoader with ``batch_size`` asks for."""
        return list(zip(*self[np.asarray(items)], strict=True))
