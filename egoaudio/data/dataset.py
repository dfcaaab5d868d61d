"""The mapped file as a dataset for any PyTorch loader.

``ClipDataset`` maps the feature array once per process and gathers a whole batch of rows at once; it can be pickled, so
workers may be forked or spawned.

Conventions: an *item* is a row of the file, or with ``label_mode="single"`` a pair of a row and one of its classes.
Features are float32 (b, T, F), already normalised as ``(x - mean) / std``; with context, T frames of each of 2 * K + 1
clips, and the labels are those of the middle clip. With a front end they are waveforms float32 (b, num_samples), of
which ``data.loader`` computes the features on its device. Labels are float32 (b, C): multi-hot, or one-hot of the
pair's class (``cross_entropy`` takes such rows, and mixup may blend them). ``ClipDataset.fetch`` normalises the rows
while they are in the processor's cache.
"""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from egoaudio.data.balance import expand_single
from egoaudio.data.rows import RowSource
from egoaudio.errors import TrainingError
from egoaudio.hdf5 import integrity
from egoaudio.hdf5.reader import EgoAudioFile
from egoaudio.system.files import StrPaths, as_paths


class ClipDataset(torch.utils.data.Dataset):
    """Clips of one egoaudio file, or of several as one, as features and labels.

    Parameters
    ----------
    path : path, or sequence of path
        The file, or several as one.
    feature : str
        The name of the array.
    rows : array of int, optional
        Rows of the file, such as ``split_rows(...).train``; all trainable ones if not given. Rows without data are
        refused.
    label_mode : {"multi", "single"}
        One item per row, or one for each active class of each row (rows without one are left out). Nothing is copied.
    normalization : (float, float)
        ``(mean, std)`` from ``data.normalization`` or the checkpoint.
    context_clips : int
        K: each clip comes joined in time with K neighbours on each side, whatever split they belong to
        (``data.context``).
    front_end : torch.nn.Module, optional
        Computes the features of waveforms (``models.frontend.FrontEnd``), with the same context: ``waveform`` is read
        in place of ``feature``, and ``normalization`` is what the loader does to the result.

    Attributes
    ----------
    rows : int64 array (n,)
        Row of each item.
    classes : int32 array (n,) or None
        Class of each item with ``label_mode="single"``.
    num_classes : int
    feature_shape : tuple
        ((2 * K + 1) * T, F) of a clip's features, where a row of the file is (T, F).
    item_shape : tuple
        Of what ``fetch`` returns of a clip: ``feature_shape``, or (num_samples,) with a front end.

    Raises
    ------
    TrainingError
        When the file lacks the array, there is no item, a row holds no data, or neighbours do not follow each other in
        time.

    """

    def __init__(
        self,
        path: StrPaths,
        feature: str,
        rows: np.ndarray | None = None,
        label_mode: str = "multi",
        normalization: tuple[float, float] = (0.0, 1.0),
        context_clips: int = 0,
        front_end: torch.nn.Module | None = None,
    ) -> None:
        self._paths = tuple(os.path.abspath(one) for one in as_paths(path))
        self.feature = feature
        self.front_end = front_end
        self.stored = feature if front_end is None else "waveform"
        self.label_mode = label_mode
        self.normalization = normalization
        self.context_clips = context_clips
        if label_mode not in ("multi", "single"):
            raise ValueError(f"label_mode {label_mode!r}: expected 'multi' or 'single'")
        source = RowSource(self._paths, self.stored, context_clips=context_clips)
        self.path = source.path
        self._identity = source.identity
        self._source: RowSource | None = source
        self._process: int | None = os.getpid()
        rows = np.flatnonzero(source.file.trainable) if rows is None else np.asarray(rows, dtype=np.int64)
        without_data = rows[~source.file.usable[rows]]
        if len(without_data):
            raise TrainingError(
                f"{self.path}: {len(without_data)} of the rows to read hold no data (status is not 1), the first is "
                f"row {without_data[0]}: give rows that are usable"
            )
        integrity.require_binary(source.file, "labels", rows)
        self.rows: np.ndarray = rows
        self.classes: np.ndarray | None = None
        if label_mode == "single":
            self.rows, self.classes = expand_single(source.file.labels, rows)
        if len(self.rows) == 0:
            active = " with an active class, which `label_mode='single'` needs" if label_mode == "single" else ""
            raise TrainingError(f"{self.path}: there is no usable clip{active}: see egoaudio-inspect")
        self.num_classes = source.file.num_classes
        self.item_shape = source.joined_shape
        self.feature_shape: Any = self.item_shape if front_end is None else front_end.feature_shape

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.rows)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the memory map, of which the other process makes its own, and what is not needed to read."""
        return {**self.__dict__, "_source": None, "_process": None, "front_end": None}

    @property
    def source(self) -> RowSource:
        """The ``RowSource`` of this process; after a fork the child opens the file anew."""
        if self._source is None or self._process != os.getpid():
            self._source = RowSource(self._paths, self.stored, self._identity, self.context_clips)
            self._process = os.getpid()
        return self._source

    @property
    def file(self) -> EgoAudioFile:
        """The open ``EgoAudioFile`` of this process."""
        return self.source.file

    def announce(self, items: np.ndarray) -> None:
        """Ask the kernel to start reading these items from disk."""
        self.source.announce(self.rows[items])

    @property
    def dtype(self) -> np.dtype:
        """In which rows are stored."""
        return np.dtype(self.source.dtype)

    @property
    def unit(self) -> float:
        """What stored values are multiplied by."""
        return float(self.source.unit)

    def fetch(
        self, items: np.ndarray, out: np.ndarray | None = None, normalize: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return ``(features, labels)`` of the items, NumPy float32 (b, T, F) and (b, C); waveforms with a front end.

        Parameters
        ----------
        items : array of int, (b,)
            Numbers from 0 to ``len(self) - 1``, in any order.
        out : array, (b, T, F), optional
            Receives the features; a new float32 array if not given, which takes twice as long. One of ``dtype``
            receives what is stored, to be multiplied by ``unit``.
        normalize : bool
            False returns the features as they are in the file.

        """
        items = np.asarray(items, dtype=np.int64)
        rows = self.rows[items]
        features = np.empty((len(items), *self.item_shape), dtype=np.float32) if out is None else out
        normalize = normalize and self.stored == self.feature
        self.source.take(rows, features, *(self.normalization if normalize else (0.0, 1.0)))
        if self.classes is None:
            return features, self.file.labels[rows].astype(np.float32)
        labels = np.zeros((len(items), self.num_classes), dtype=np.float32)
        labels[np.arange(len(items)), self.classes[items]] = 1
        return features, labels

    def __getitem__(self, items: int | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return one item, (T, F) and (C,), or a batch in one gather if ``items`` is an array (``batch_size=None``)."""
        numbers = np.asarray(items)
        self.announce(np.atleast_1d(numbers))
        features, labels = self.fetch(np.atleast_1d(numbers))
        return (features[0], labels[0]) if numbers.ndim == 0 else (features, labels)

    def __getitems__(self, items: Sequence[int]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return a list of single items, read in one gather: what a DataLoader with ``batch_size`` asks for."""
        return list(zip(*self[np.asarray(items)], strict=True))
