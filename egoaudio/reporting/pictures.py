"""Spectrograms as small PNG images for a page.

In: rows of a feature array, or a waveform. Out: bytes of a PNG with a palette, time to the right and low frequencies at
the bottom, at most ``_MOST_COLUMNS`` x ``_NUM_ROWS`` pixels. All pictures of a file share one scale of colours, so that
a quiet clip looks quiet. Written by hand: a PNG of a palette is thirty lines, and the same values always give the same
bytes.

Source: the PNG specification (ISO/IEC 15948), chunks IHDR, PLTE, IDAT, IEND.
"""

import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.signal

from egoaudio import figures
from egoaudio.hdf5.reader import EgoAudioFile

_PREFERRED = ("logmel", "spectrogram", "yamnet", "waveform", "mfcc")  # what is looked at, where the file has it
_NUM_ROWS = 64  # pixels from the lowest to the highest frequency
_MOST_COLUMNS = 128  # of a clip
_LEVELS = 24  # colours; more look the same at this size, and take more bytes
_SCALE_CLIPS = 256  # that the scale of colours is taken from
_DARKEST, _BRIGHTEST = 5.0, 99.8  # percentiles
_LOWEST_POWER = 1e-10
_WINDOW_SECONDS = 0.032


@dataclass(frozen=True)
class Painter:
    """Makes the pictures of one file's clips, all on one scale."""

    feature: str
    """The array that is looked at."""
    low: float
    """Value of the darkest colour, in the array's unit."""
    high: float
    bands: np.ndarray
    """int64 (num_rows + 1,): which bins of the array make each row of pixels, lowest first."""
    palette: bytes
    sample_rate: int

    @classmethod
    def of_file(cls, file: EgoAudioFile) -> "Painter | None":
        """Return the painter of an open file; None where it has no features or no clip with data."""
        feature = next((name for name in _PREFERRED if name in file.features), None)
        usable = np.flatnonzero(file.usable)
        if feature is None or not len(usable):
            return None
        chosen = usable[np.linspace(0, len(usable) - 1, min(len(usable), _SCALE_CLIPS)).astype(np.int64)]
        images = [_image_values(file.values(feature, row), feature, file.sample_rate) for row in chosen]
        frequencies = file.axes.get("frequency_hz") if feature == "spectrogram" else None
        bands = _bands(images[0].shape[1], frequencies)
        low, high = np.percentile(np.stack([_pool(image, bands) for image in images]), (_DARKEST, _BRIGHTEST))
        return cls(feature, float(low), float(max(high, low + 1e-6)), bands, figures.palette(_LEVELS), file.sample_rate)

    def paint(self, values: np.ndarray) -> bytes:
        """Return a row of the array, or of another sound's waveform (num_samples,), as a PNG."""
        image = _pool(_image_values(values, self.feature, self.sample_rate), self.bands)
        return _encode(image, self.low, self.high, self.palette)


def _encode(image: np.ndarray, low: float, high: float, palette: bytes) -> bytes:
    """Return an image (num_columns, num_rows) as a PNG, ``low`` in the darkest colour and ``high`` in the brightest."""
    share = (image - low) / (high - low)
    levels = np.clip(np.nan_to_num(share) * _LEVELS, 0, _LEVELS - 1).astype(np.uint8)
    return encode_png(levels.T[::-1], palette)


def _image_values(values: np.ndarray, feature: str, sample_rate: int) -> np.ndarray:
    """Return one clip's values with time first, float32 (num_frames, num_bins)."""
    values = np.nan_to_num(np.asarray(values, np.float32))
    if feature == "waveform":
        return power_db(values, sample_rate)
    return values[:, 1:] if feature == "mfcc" and values.shape[1] > 1 else values  # mfcc 0 is the level


def power_db(samples: np.ndarray, sample_rate: int) -> np.ndarray:
    """Return the log-power spectrogram of some sound, float32 (num_frames, num_bins), in dB."""
    return in_db(power(samples, sample_rate))


def in_db(values: np.ndarray) -> np.ndarray:
    """Return power in dB, float32, not below -100."""
    return (10 * np.log10(np.maximum(values, _LOWEST_POWER))).astype(np.float32)


def power(samples: np.ndarray, sample_rate: int) -> np.ndarray:
    """Return the power spectrogram of some sound, float32 (num_frames, num_bins)."""
    window = max(16, round(_WINDOW_SECONDS * sample_rate))
    padded = np.pad(samples, (0, max(0, window - len(samples))))
    return scipy.signal.spectrogram(padded, sample_rate, nperseg=window, noverlap=window // 2, mode="psd")[2].T


def paint_all(spectrograms: Mapping[int, np.ndarray], sample_rate: int) -> dict[int, bytes]:
    """Return power spectrograms of recordings (num_columns, num_bins) as PNGs, all on one scale."""
    if not spectrograms:
        return {}
    num_bins = next(iter(spectrograms.values())).shape[1]
    bands = _bands(num_bins, np.linspace(0, sample_rate / 2, num_bins))
    images = {number: _pool(in_db(values), bands, len(values)) for number, values in spectrograms.items()}
    low, high = np.percentile(np.concatenate(list(images.values())), (_DARKEST, _BRIGHTEST))
    palette = figures.palette(_LEVELS)
    return {
        number: _encode(image, float(low), float(max(high, low + 1e-6)), palette) for number, image in images.items()
    }


def _bands(num_bins: int, frequencies: np.ndarray | None) -> np.ndarray:
    """Return where each row of pixels begins among the bins: evenly, or on the mel scale where the bins are in Hz."""
    num_rows = min(_NUM_ROWS, num_bins)
    if frequencies is None or len(frequencies) != num_bins:
        return np.linspace(0, num_bins, num_rows + 1).round().astype(np.int64)
    mel = np.linspace(0, _mel(frequencies[-1]), num_rows + 1)
    edges = np.searchsorted(_mel(np.asarray(frequencies)), mel)
    edges[-1] = num_bins
    return np.maximum.accumulate(
        np.minimum(np.maximum(edges, np.arange(num_rows + 1)), num_bins - num_rows + np.arange(num_rows + 1))
    )


def _mel(hz: Any) -> Any:
    return 2595 * np.log10(1 + hz / 700)


def _pool(image: np.ndarray, bands: np.ndarray, most_columns: int = _MOST_COLUMNS) -> np.ndarray:
    """Return an image (num_frames, num_bins) with fewer rows and columns: means over bins, maxima over frames."""
    rows = np.add.reduceat(image, bands[:-1], axis=1) / np.diff(bands)
    if len(rows) <= most_columns:
        return rows
    edges = np.linspace(0, len(rows), most_columns + 1).astype(np.int64)
    return np.maximum.reduceat(rows, edges[:-1], axis=0)


def encode_png(levels: np.ndarray, palette: bytes) -> bytes:
    """Return an image as a PNG.

    Parameters
    ----------
    levels : uint8 array (height, width)
        Numbers of colours, the top row first.
    palette : bytes
        Red, green and blue of each colour.
    """
    height, width = levels.shape
    lines = np.zeros((height, width + 1), np.uint8)  # each begins with its filter: none
    lines[:, 1:] = levels
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)  # 8 bits a pixel, which are numbers of the palette
    chunks = (b"IHDR", header), (b"PLTE", palette), (b"IDAT", zlib.compress(lines.tobytes(), 9)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*chunk) for chunk in chunks)


def _chunk(name: bytes, contents: bytes) -> bytes:
    """Return a chunk of a PNG with its length and checksum."""
    return struct.pack(">I", len(contents)) + name + contents + struct.pack(">I", zlib.crc32(name + contents))
