"""Mel filter banks: the edges of the bands, and the product of power spectra with them.

In: power (clips, frames, bins); out: energies (clips, frames, bands). Bands are triangles between neighbouring edges,
in Hz for Slaney's bank (librosa's default, "htk=False") and in mel for Kaldi's. Frequencies are float64; products are
float32. Sources: Slaney's Auditory Toolbox as in librosa.filters.mel, and https://kaldi-asr.org/doc/feat.html.
"""

import numpy as np
from numpy.typing import ArrayLike

BAND_GROUPS = 8  # of neighbouring bands, multiplied together: one group is 40 % slower, 16 are 5 % slower


class FilterBank:
    """Triangular bands, multiplied a group of neighbours at a time with only the bins that they cover.

    Parameters
    ----------
    positions : float64 (num_bins,)
        The bins' frequencies, on the scale of ``edges``; bins of the power beyond these are left out.
    edges : float64 (num_bands + 2,)
        Band i rises from edges[i] to edges[i + 1] and falls to edges[i + 2].
    gains : float64 (num_bands,), optional
        Factor of each band.
    """

    def __init__(self, positions: np.ndarray, edges: np.ndarray, gains: np.ndarray | None = None) -> None:
        widths = np.diff(edges)[:, None]
        distances = edges[:, None] - positions[None]
        weights = np.maximum(0, np.minimum(-distances[:-2] / widths[:-1], distances[2:] / widths[1:]))
        if gains is not None:
            weights *= gains[:, None]
        self.num_bands = len(weights)
        self._groups: list[tuple[slice, slice, np.ndarray]] = []  # bands, bins, weights
        for bands in np.array_split(np.arange(self.num_bands), min(BAND_GROUPS, self.num_bands)):
            bins = np.flatnonzero(weights[bands].any(axis=0))
            if len(bins):
                covered = slice(bins[0], bins[-1] + 1)
                group = np.ascontiguousarray(weights[bands, covered].T, dtype=np.float32)
                self._groups.append((slice(bands[0], bands[-1] + 1), covered, group))

    def __call__(self, power: np.ndarray) -> np.ndarray:
        """Return the energies (clips, frames, bands) of ``power`` (clips, frames, bins)."""
        flat = power.reshape(-1, power.shape[2])
        energies = np.zeros((len(flat), self.num_bands), np.float32)  # zero where a band covers no bin
        for bands, bins, weights in self._groups:
            np.matmul(flat[:, bins], weights, out=energies[:, bands])
        return energies.reshape(*power.shape[:2], self.num_bands)

    def matrix(self, num_bins: int) -> np.ndarray:
        """Return all weights as one matrix, float32 (num_bins, num_bands); bins that no band covers are zero."""
        matrix = np.zeros((num_bins, self.num_bands), np.float32)
        for bands, bins, weights in self._groups:
            matrix[bins, bands] = weights
        return matrix


def kaldi_mel(hz: ArrayLike) -> np.ndarray:
    """Return Kaldi's mel scale."""
    return 1127 * np.log1p(np.asarray(hz) / 700)


def kaldi_hz(mel: ArrayLike) -> np.ndarray:
    """Return the inverse of Kaldi's mel scale."""
    return 700 * np.expm1(np.asarray(mel) / 1127)


def slaney_mel(hz: ArrayLike) -> np.ndarray:
    """Return Slaney's mel scale: linear up to 1 kHz, where it is 15, then 27 steps to every factor of 6.4."""
    hz = np.asarray(hz, dtype=np.float64)
    return np.where(hz < 1000, hz * 3 / 200, 15 + np.log(np.maximum(hz, 1000) / 1000) * 27 / np.log(6.4))


def slaney_hz(mel: ArrayLike) -> np.ndarray:
    """Return the inverse of Slaney's mel scale."""
    mel = np.asarray(mel, dtype=np.float64)
    return np.where(mel < 15, mel * 200 / 3, 1000 * np.exp((np.maximum(mel, 15) - 15) * np.log(6.4) / 27))
