"""Rows of a recording as they come -> what the network sees of each clip: normalised, and joined with its neighbours.

In: blocks of consecutive rows (n, T, F). Out: windows (m, (2 * K + 1) * T, F) of the clips that can be scored, the same
bits as ``data.rows.RowSource`` reads of a built file. Held are the rows that a later window still needs, nothing more.
"""

from dataclasses import dataclass

import numpy as np

from egoaudio.audio.features import INT16_SCALE
from egoaudio.config.build import BuildConfig
from egoaudio.data.context import hops_in, joined_shape, silent_row
from egoaudio.errors import ConfigurationError


@dataclass(frozen=True, eq=False)
class WindowPlan:
    """What every recording's windows have in common."""

    row_shape: tuple[int, ...]
    """(T, F), of a clip."""
    dtype: np.dtype
    """Of the rows as a build would store them."""
    mean: float
    std: float
    context_clips: int
    """K: each row is joined with so many neighbours on each side."""
    rows_apart: int
    """How many rows further the sound of a row is continued."""
    silence: np.ndarray | None
    """float32 (T, F), not normalised: what stands where there is no row; None without neighbours."""
    unit: float = 1.0
    """What a stored number is worth: 1, but for int16."""

    @property
    def window_shape(self) -> tuple[int, ...]:
        """((2 * K + 1) * T, F)."""
        return joined_shape(self.row_shape, self.context_clips)


def plan_windows(
    config: BuildConfig,
    feature: str,
    row_shape: tuple[int, ...],
    normalization: tuple[float, float],
    context_clips: int,
) -> WindowPlan:
    """Return the plan of the windows that a network sees of rows made by ``config``.

    Raises
    ------
    ConfigurationError
        Where the neighbours of a clip do not begin where the clip ends.
    """
    dtype = np.dtype(config.features.dtype_of(feature))
    unit = INT16_SCALE if dtype == np.int16 else 1.0
    if not context_clips:
        return WindowPlan(tuple(row_shape), dtype, *normalization, 0, 1, None, unit)
    wide = None if feature == "waveform" else config.clips.context_seconds
    length = config.clips.clip_seconds if wide is None else wide
    apart = hops_in(length, config.clips.step_seconds)
    if apart is None:
        raise ConfigurationError(
            f"`hop_seconds={config.clips.step_seconds:g}`: the network also sees the {context_clips} clips before "
            f"and after, which follow {length:g} s apart: give {length:g}, or a whole fraction of it, "
            f"such as {length / 2:g}"
        )
    silence = silent_row(config, feature, row_shape, dtype, "the checkpoint")
    return WindowPlan(tuple(row_shape), dtype, *normalization, context_clips, apart, silence, unit)


class Windows:
    """The windows of one recording.

    Parameters
    ----------
    plan : WindowPlan
    num_clips : int
        Of the recording.
    """

    def __init__(self, plan: WindowPlan, num_clips: int) -> None:
        self._plan, self._num_clips = plan, num_clips
        self._mean, self._scale = np.float32(plan.mean), np.float32(1.0 / plan.std)
        self._plain = (plan.mean, plan.std) == (0.0, 1.0)
        self._reach = plan.context_clips * plan.rows_apart
        self._offsets = plan.rows_apart * np.arange(-plan.context_clips, plan.context_clips + 1)
        self._silence = None if plan.silence is None else self._normalised(plan.silence)
        self._first = 0  # clip of the first row that is held
        self._next = 0  # clip of the next window
        self._rows = np.empty((0, *plan.row_shape), np.float32)
        self._usable = np.empty(0, bool)

    def add(self, usable: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Take the next rows (n, T, F) and which of them hold sound (n,).

        Returns
        -------
        clips : ndarray of int, shape (m,)
            Clips that can be scored now.
        windows : ndarray of float32, shape (m, (2 * K + 1) * T, F)
        """
        rows = self._normalised(rows)
        if not self._reach:
            first, self._next = self._next, self._next + len(rows)
            return first + np.flatnonzero(usable), rows if usable.all() else rows[usable]
        self._rows = np.concatenate((self._rows, rows))
        self._usable = np.concatenate((self._usable, usable))
        arrived = self._first + len(self._rows)
        ready = self._num_clips if arrived >= self._num_clips else max(self._next, arrived - self._reach)
        result = self._windows(np.arange(self._next, ready))
        self._next = ready
        keep = max(self._first, ready - self._reach)
        self._rows, self._usable = self._rows[keep - self._first :], self._usable[keep - self._first :]
        self._first = keep
        return result

    def _windows(self, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        wanted = wanted[self._usable[wanted - self._first]]
        around = wanted[:, None] + self._offsets - self._first  # (m, 2 * K + 1)
        inside = (around >= 0) & (around < len(self._rows))
        around = np.where(inside, around, 0)
        windows = self._rows[around]
        windows[~(inside & self._usable[around])] = self._silence
        return wanted, windows.reshape(len(wanted), *self._plan.window_shape)

    def _normalised(self, rows: np.ndarray) -> np.ndarray:
        """Return float32 ``(rows - mean) / std``, computed as ``RowSource`` does."""
        rows = rows.astype(np.float32)
        if self._plan.unit != 1:
            rows *= np.float32(self._plan.unit)
        if not self._plain:
            rows -= self._mean
            rows *= self._scale
        return rows
