"""How loud clips are, in dB below full scale: of a sample of a file's clips, each class represented.

In: an open egoaudio file with ``/waveform`` or ``/spectrogram``. Out: rows and levels. The level of a spectrogram
follows from Parseval's theorem: the mean square is twice the sum of the power over bins and frames, by n_fft and the
window's own energy.
"""

from dataclasses import dataclass

import numpy as np
import scipy.signal

from egoaudio.hdf5.reader import EgoAudioFile

NEARLY_SILENT_DB = -60.0
"""A clip below this holds next to nothing: the last steps of 16 bits."""
_PER_CLASS, _OVER_ALL = 32, 1024  # clips that are read
_LOWEST = 1e-20
_AT_ONCE = 64


@dataclass(frozen=True, eq=False)
class Levels:
    """The levels of some clips."""

    rows: np.ndarray
    """int64 (n,): of ``/clips``, ascending."""
    rms_db: np.ndarray
    """float32 (n,): root of the mean square, 0 being full scale."""
    feature: str
    """What they were measured on."""

    def of_class(self, labels: np.ndarray) -> list[np.ndarray]:
        """Return the levels of the clips of each class.

        Parameters
        ----------
        labels : array (num_clips_of_the_file, num_classes)
        """
        on = np.asarray(labels[self.rows]) == 1
        return [self.rms_db[on[:, column]] for column in range(on.shape[1])]


def measure(file: EgoAudioFile, rows_of_class: list[np.ndarray]) -> Levels | None:
    """Return the levels of a sample of clips; None where the file has no array that tells.

    Parameters
    ----------
    file : EgoAudioFile
    rows_of_class : list of array
        The usable clips of each class.
    """
    feature = next((name for name in ("waveform", "spectrogram") if name in file.features), None)
    usable = np.flatnonzero(file.usable)
    if feature is None or not len(usable):
        return None
    chosen = [_evenly(usable, _OVER_ALL), *(_evenly(rows, _PER_CLASS) for rows in rows_of_class)]
    rows = np.unique(np.concatenate(chosen))
    scale = _scale(file) if feature == "spectrogram" else 1.0
    squares = [
        _mean_square(file.values(feature, rows[start : start + _AT_ONCE]), feature, scale)
        for start in range(0, len(rows), _AT_ONCE)
    ]
    levels = 10 * np.log10(np.maximum(np.concatenate(squares), _LOWEST))
    return Levels(rows, levels.astype(np.float32), feature)


def _evenly(rows: np.ndarray, num_rows: int) -> np.ndarray:
    """Return so many of some rows, evenly spread."""
    if len(rows) <= num_rows:
        return np.asarray(rows, np.int64)
    return np.asarray(rows)[np.linspace(0, len(rows) - 1, num_rows).astype(np.int64)]


def _mean_square(values: np.ndarray, feature: str, scale: float) -> np.ndarray:
    """Return the mean square of each clip, float64 (n,)."""
    if feature == "waveform":
        return np.mean(values.astype(np.float64) ** 2, axis=1)
    power = 10 ** (values.astype(np.float64) / 10)
    return scale * power.sum(axis=2).mean(axis=1)


def _scale(file: EgoAudioFile) -> float:
    """Return what turns a sum of the power over the bins into a mean square."""
    attributes = file.attributes("spectrogram")
    n_fft = int(attributes.get("n_fft", 2 * (file["spectrogram"].shape[2] - 1)))
    window = scipy.signal.get_window(str(attributes.get("window", "hann")), n_fft)
    return 2 / (n_fft * np.sum(window**2))
