"""The two modes of finding the noise: masks over a spectrum, equal to those of noisereduce 3.0.3.

*Nonstationary*: a bin's amplitude against its own mean over time, which is a one-pole filter forward and back with a
time constant of two seconds; a sigmoid makes the ratio a mask. *Stationary*: open where a bin's level in dB is above
its mean plus 1.5 deviations over the noise. Both are a ``denoise_engine.Gater`` with its own ``fill_masks``; arrays are
(rows, frames, bins). Source: ``noisereduce.spectralgate`` (https://github.com/timsainb/noisereduce).
"""

import functools

import numpy as np
import scipy.fft

from egoaudio.audio.denoise_engine import HOP, N_FFT, NUM_BINS, Gater, Workspace, hann, overlapping

TIME_CONSTANT_SECONDS = 2.0
SLOPE = 10.0  # of the sigmoid
THRESHOLD = 2.0  # the sigmoid's middle is this many times the mean above the mean
TINY = np.float32(1e-30)  # prevents 0/0 in a bin that is silent throughout

STATIONARY_DEVIATIONS = 1.5
TOP_DB = 80.0
EPS = float(np.finfo(np.float64).eps)  # noisereduce adds it to amplitudes before the logarithm
BLOCK_FRAMES = 72  # of the noise, transformed at once
LEVELS_AT_ONCE = 100_000  # of the noise, in float64: those of a whole chunk would take 10 MB


class NonstationaryGater(Gater):
    """Mask by how far a bin rises above its own mean over time.

    The mask is 1 / (1 + exp(-slope * (x / mean - 1 - threshold))). It is computed as 1 / (unit + exp(-slope * x /
    mean)), to be multiplied by the unit, exp(-slope * (1 + threshold)): two passes fewer, and exact where it is small.
    """

    mask_unit = float(np.exp(-SLOPE * (1 + THRESHOLD)))

    def fill_masks(self, rows: np.ndarray, scale: np.ndarray) -> list[np.ndarray]:
        """Put every block's mask, smoothed over bins, into ``smooth(number, count)``; return the blocks' spectra."""
        size = self.sub_frames
        window = hann(N_FFT).astype(np.float32)
        spectra: list[np.ndarray] = []
        blocks: list[tuple[np.ndarray, np.ndarray]] = []
        for number, count in enumerate(self.sub_blocks):
            block = self.store[number, : len(rows), : count * (size + 2)]
            parts = block.reshape(len(rows), count, size + 2, NUM_BINS)  # a sub-block, the means before and after it
            parts[:, :, size:] = 0
            spectrum = scipy.fft.rfft(self.take_frames(rows, number, window))
            whole, rest = divmod(spectrum.shape[1], size)
            np.abs(spectrum[:, : whole * size].reshape(len(rows), whole, size, NUM_BINS), out=parts[:, :whole, :size])
            if rest:
                np.abs(spectrum[:, whole * size :], out=parts[:, -1, :rest])
            spectra.append(spectrum)
            if number:
                np.matmul(
                    _onward(size, self.sub_blocks[number - 1], self.sample_rate)[-1],
                    blocks[-1][0],
                    out=parts[:, 0, size],
                )
            elif not self.layout.silent_before:
                parts[:, 0, size] = parts[:, 0, 0]  # noisereduce starts with the first frame as the mean
            if rest:
                self._extend(block, parts, rest)
            blocks.append((block, parts))
        silent_after: int | None = max(0, self.layout.silent_after - (size - rest if rest else 0))
        for number in reversed(range(len(blocks))):
            block, parts = blocks[number]
            count = parts.shape[1]
            carries, both = _smoother(size, count, self.sample_rate, silent_after)
            between = np.matmul(carries, block).reshape(len(rows), count, 2, NUM_BINS)
            np.add(between, TINY, out=parts[:, :, size:])
            mean = np.matmul(
                both, parts, out=self.values[: len(rows), : count * size].reshape(parts.shape[:2] + (size, NUM_BINS))
            )
            if number:
                np.multiply(mean[:, 0, 0], np.float32(-SLOPE), out=blocks[number - 1][1][:, -1, size + 1])
                silent_after = None
            np.divide(parts[:, :, :size], mean, out=mean)
            np.exp(mean, out=mean)
            mean += np.float32(self.mask_unit)
            mask = mean.reshape(len(rows), count * size, NUM_BINS)
            np.divide(np.float32(1), mask, out=self.mask_of(len(rows), count * size))
            self.smooth_over_bins(self.smooth(number, len(rows))[:, self.frame_width : self.frame_width + count * size])
        return spectra

    def _extend(self, block: np.ndarray, parts: np.ndarray, rest: int) -> None:
        """Fill the last sub-block after its ``rest`` frames: with silence, and after the padding with the mean there.

        Where nothing follows, noisereduce's backward pass starts with the last mean, as if that level continued.
        """
        size = self.sub_frames
        parts[:, -1, rest:size] = 0
        if self.layout.silent_after < size - rest:
            end = rest + self.layout.silent_after
            level = np.matmul(_onward(size, parts.shape[1], self.sample_rate)[end - size - 1], block)
            parts[:, -1, end:size] = level[:, None]


@functools.lru_cache(maxsize=16)
def _onward(size: int, count: int, sample_rate: int) -> np.ndarray:
    """Return the matrix that gives the forward mean before every frame of a block and after the last.

    The mean is y[t] = b x[t] + a y[t-1], with b and a = 1 - b as noisereduce derives them from its time constant. The
    block is ``count`` sub-blocks of ``size`` frames x, each followed by two rows that carry means; of these only the
    first sub-block's first one, the y before the block, is used.

    Returns
    -------
    float32 (count * size + 1, count * (size + 2))
    """
    a, b = _decay(sample_rate)
    num_frames = count * size
    lag = np.arange(num_frames + 1)[:, None] - 1 - np.arange(num_frames)
    matrix = np.zeros((num_frames + 1, count, size + 2))
    matrix[:, :, :size] = np.where(lag >= 0, b * a ** np.maximum(lag, 0), 0).reshape(num_frames + 1, count, size)
    matrix[:, 0, size] = a ** np.arange(num_frames + 1)
    return matrix.reshape(num_frames + 1, -1).astype(np.float32)


@functools.lru_cache(maxsize=64)
def _smoother(size: int, count: int, sample_rate: int, silent_after: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the matrices of the mean over time, forward and back: z[t] = b y[t] + a z[t+1], y as in ``_onward``.

    Parameters
    ----------
    size, count : int
        Frames of a sub-block, sub-blocks of the block.
    silent_after : int or None
        Silent frames after the last block, over which y decays forward and then backward: z after the block is a
        multiple of its last y. None for a block that is followed by others: its last row holds that z.

    Returns
    -------
    carries : float32 (2 * count, count * (size + 2))
        Multiplied by the block: the y before each sub-block and the z after it.
    both : float32 (size, size + 2)
        Multiplied by a sub-block with those two: z / -SLOPE, which saves the multiplication by the sigmoid's slope.
    """
    a, b = _decay(sample_rate)
    num_frames = count * size
    onward = _onward(size, count, sample_rate).astype(np.float64)
    last = np.zeros(count * (size + 2))
    if silent_after is None:
        last[-1] = 1
    else:
        last += onward[-1] * (b * a * (1 - a ** (2 * silent_after)) / (1 - a**2) + a ** (2 * silent_after))
    behind = [last]  # z after the last frame, then before that, ...
    for frame in reversed(range(num_frames)):
        behind.append(b * onward[frame + 1] + a * behind[-1])
    behind = behind[::-1]
    carries = np.stack([row for first in range(0, num_frames, size) for row in (onward[first], behind[first + size])])
    both = np.zeros((size, size + 2))
    ahead = np.eye(size + 2)[-1]
    single = _onward(size, 1, sample_rate).astype(np.float64)
    for frame in reversed(range(size)):
        both[frame] = ahead = b * single[frame + 1] + a * ahead
    return carries.astype(np.float32), (both / -SLOPE).astype(np.float32)


def _decay(sample_rate: int) -> tuple[float, float]:
    """Return a and b of noisereduce's one-pole filter."""
    frames = TIME_CONSTANT_SECONDS * sample_rate / HOP
    b = (np.sqrt(1 + 4 * frames**2) - 1) / (2 * frames**2)
    return 1 - b, b


class StationaryGater(Gater):
    """Mask by whether a bin is above its own mean plus 1.5 deviations, in dB, over the noise: the sound itself.

    The mask is 0 or 1, so it is computed in float64, as in noisereduce; only the thresholds come from a float32
    transform, as there.
    """

    frame_type = np.float64

    def learn(self, noise: np.ndarray) -> None:
        """Set the thresholds from ``noise`` (count, n)."""
        self.thresholds = np.stack([noise_thresholds(sound, self.workspace) for sound in noise])

    def fill_masks(self, rows: np.ndarray, scale: np.ndarray) -> list[np.ndarray]:
        """Put every block's mask, smoothed over bins, into ``smooth(number, count)``; return the blocks' spectra."""
        count = len(rows)
        unit = scale * np.float64(N_FFT / 2)  # of the spectrum, which noisereduce divides by the window's sum
        assert self.thresholds is not None, "learn first"
        thresholds = np.broadcast_to(self.thresholds * unit, (count, NUM_BINS))
        above = self.workspace.array("above", (count, self.layout.num_frames, NUM_BINS), bool)
        peaks = np.zeros((count, NUM_BINS))
        spectra = []
        for number, first in enumerate(self.starts):
            spectrum = scipy.fft.rfft(self.take_frames(rows, number, hann(N_FFT)))
            amplitudes = np.abs(spectrum, out=self.workspace.array("amplitudes", spectrum.shape, np.float64))
            amplitudes += (EPS * unit)[:, None]
            np.greater(amplitudes, thresholds[:, None], out=above[:, first : first + spectrum.shape[1]])
            np.maximum(peaks, amplitudes.max(axis=1), out=peaks)
            spectra.append(spectrum.astype(np.complex64))
        # noisereduce raises every frame to 80 dB below the loudest.
        self._always = peaks * 10 ** (-TOP_DB / 20) > thresholds
        for number, spectrum in enumerate(spectra):
            num_frames = spectrum.shape[1]
            is_open = above[:, self.starts[number] :][:, :num_frames]
            np.logical_or(is_open, self._always[:, None], out=self.mask_of(count, num_frames))
            smooth = self.smooth(number, count)[:, self.frame_width :]
            self.smooth_over_bins(smooth[:, :num_frames])
            smooth[:, num_frames:] = self.mask_outside(count) if self.layout.silent_after else 0
        return spectra

    def mask_outside(self, count: int) -> np.ndarray:
        """Return the mask of silent frames, (count, 1, NUM_BINS): open where the loudest frame opens all."""
        outside = np.zeros((count, 1, NUM_BINS), np.float32)
        if self._always.any():
            self.mask_of(count, 1)[:] = self._always[:, None]
            self.smooth_over_bins(outside)
        return outside


def noise_thresholds(samples: np.ndarray, workspace: Workspace) -> np.ndarray:
    """Return the amplitudes (NUM_BINS,) float64 above which noisereduce's stationary mode passes ``samples`` (n,).

    Under 1,024 samples the frames are as long as the sound, overlapping by 768, as in scipy.signal.stft; where that is
    impossible (768 samples and fewer, which noisereduce refuses) zeros follow the sound.
    """
    if len(samples) <= N_FFT - HOP:
        samples = np.concatenate([samples, np.zeros(N_FFT - len(samples), np.float32)])
    size = min(N_FFT, len(samples))
    hop = size - (N_FFT - HOP)
    window = hann(size).astype(np.complex64)
    scale = np.abs(np.sqrt(1.0 / window.sum() ** 2))
    padded = np.concatenate([np.zeros(size // 2, np.float32), samples, np.zeros(size // 2, np.float32)])
    num_frames = (len(padded) - size) // hop + 1
    amplitudes = workspace.array("noise", (num_frames, NUM_BINS))
    for first in range(0, num_frames, BLOCK_FRAMES):
        last = min(first + BLOCK_FRAMES, num_frames)
        frames = overlapping(padded[None, hop * first :], last - first, size, hop)[0]
        spectrum = scipy.fft.rfft(
            np.multiply(frames, window.real, out=workspace.array("noise_frames", frames.shape)), n=N_FFT
        )
        spectrum *= scale
        np.abs(spectrum, out=amplitudes[first:last])
    floor = (amplitudes.max(axis=0) + EPS) * 10 ** (-TOP_DB / 20)
    thresholds = np.empty(NUM_BINS)
    step = max(32, LEVELS_AT_ONCE // num_frames)
    for bins in (slice(first, first + step) for first in range(0, NUM_BINS, step)):
        levels = workspace.array("levels", amplitudes[:, bins].shape, np.float64)
        np.add(amplitudes[:, bins], EPS, out=levels)
        np.log(np.maximum(levels, floor[bins], out=levels), out=levels)
        means = levels.mean(axis=0)
        levels -= means
        levels *= levels
        thresholds[bins] = np.exp(means + STATIONARY_DEVIATIONS * np.sqrt(levels.mean(axis=0)))
    return thresholds
