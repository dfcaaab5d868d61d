"""Sound in, the same sound without its steady noise out: spectral gating equal to ``noisereduce.reduce_noise``.

In: float32 samples, mono, a row a clip (``gate``) or the blocks of a recording (``gate_blocks``). Out: as many
float32 samples. A short-time spectrum (1,024 samples, hop 256, Hann) is multiplied by a mask between 0 and 1: in
mode *nonstationary* it is how far a bin rises above its own mean over about two seconds, in mode *stationary*
whether it is above its mean plus 1.5 deviations. The mask is smoothed over 50 ms and 500 Hz. All as noisereduce 3.0.3
does it with its defaults (https://github.com/timsainb/noisereduce): every call is padded by 30,000 zeros on both
sides, and a recording goes in chunks of 600,000 samples that see 30,000 of their neighbours. Silence stays silence.

Conventions: a *frame* is 1,024 samples, a *block* up to 72 frames, a *row* one clip or one chunk. Arrays are
(rows, frames, bins). Frames that see nothing but padding are never computed: their effect is summed in closed form.
"""

import functools
from dataclasses import dataclass

import numpy as np
import scipy.fft
from numpy.lib.stride_tricks import as_strided

from egoaudio.errors import ConfigurationError, EgoAudioError

N_FFT = 1024
HOP = 256
OVERLAP = N_FFT // HOP  # frames that a sample is in
NUM_BINS = N_FFT // 2 + 1
CHUNK = 600_000  # samples that noisereduce gates at once
PADDING = 30_000  # samples it adds on both sides of them
BLOCK_FRAMES = 72  # at most; the 66 frames of 1 s at 16 kHz are one block

TIME_CONSTANT_SECONDS = 2.0
MASK_SMOOTH_HZ = 500
MASK_SMOOTH_MS = 50
SLOPE = 10.0  # of the sigmoid
THRESHOLD = 2.0  # the sigmoid's middle: so many times the mean above the mean
STATIONARY_DEVIATIONS = 1.5
TOP_DB = 80.0
EPS = float(np.finfo(np.float64).eps)  # noisereduce adds it to amplitudes before the logarithm
OVERLAP_GAIN = 1.5  # sum of the squared Hann windows over a sample
TINY = np.float32(1e-30)  # keeps 0/0 away from a bin that is silent throughout
SAFE_PEAKS = (1e-9, 1e9)  # rows beyond are scaled, so that no float32 product under- or overflows


def gate(samples, sample_rate, config):
    """Gate each row by itself.

    Parameters
    ----------
    samples : float32 (..., num_samples)
        Rows of sound: clips, or whole recordings.
    sample_rate : int
        Samples a second.
    config : DenoiseConfig
        Mode and engine; the scope is the caller's affair. Mode ``none`` gives the samples back as they are.

    Returns
    -------
    float32 (..., num_samples)

    Raises
    ------
    ConfigurationError
        For a sample rate that cannot be gated, or an engine that is not installed.
    EgoAudioError
        For samples that are NaN or infinite.
    """
    samples = np.asarray(samples, dtype=np.float32)
    if config.mode == "none" or samples.size == 0:
        return samples
    smoothing_widths(sample_rate)
    rows = samples.reshape(-1, samples.shape[-1])
    gated = np.empty_like(rows)
    if config.engine == "noisereduce" or rows.shape[1] > CHUNK:
        for row, target in zip(rows, gated, strict=True):
            np.concatenate(list(gate_blocks([row], sample_rate, config)), out=target)
        return gated.reshape(samples.shape)
    layout = lay_out(rows.shape[1], PADDING, rows.shape[1] + 2 * PADDING)
    at_once = max(1, min(len(rows), BLOCK_FRAMES // layout.num_frames))
    gater = GATERS[config.mode](layout, sample_rate, at_once)
    for first in range(0, len(rows), at_once):
        gater.gate(rows[first : first + at_once], gated[first : first + at_once])
    return gated.reshape(samples.shape)


def gate_blocks(blocks, sample_rate, config):
    """Gate a whole recording as it comes, a chunk at a time.

    Parameters
    ----------
    blocks : iterable of float32 (m,)
        The recording, cut anywhere.
    sample_rate : int
        Samples a second.
    config : DenoiseConfig
        Mode and engine. The engine ``noisereduce`` needs the whole recording in memory; ours holds a chunk.

    Yields
    ------
    float32 (k,)
        As many samples in all as came in.

    Raises
    ------
    ConfigurationError, EgoAudioError
        As ``gate``.
    """
    if config.mode == "none":
        yield from blocks
        return
    smoothing_widths(sample_rate)
    if config.engine == "noisereduce":
        yield _call_noisereduce(np.concatenate([np.zeros(0, np.float32), *blocks]), sample_rate, config)
        return
    gater = None
    for samples, start, stop, is_whole in _chunks(blocks):
        layout = lay_out(len(samples), 0 if start else PADDING, (len(samples) if is_whole else CHUNK) + 2 * PADDING, start, stop)
        if gater is None or gater.layout != layout:
            previous, gater = gater, GATERS[config.mode](layout, sample_rate, 1)
            if config.mode == "stationary":
                gater.thresholds = noise_thresholds(samples[:CHUNK])[None] if previous is None else previous.thresholds
        gated = np.empty((1, stop - start), np.float32)
        gater.gate(samples[None], gated)
        yield gated[0]


def _chunks(blocks):
    """Yield ``(samples, start, stop, is_whole)``: a chunk, samples[start:stop], with the neighbours it sees, and whether it is all there is."""
    pending, num_pending, start = [], 0, 0
    for block in blocks:
        pending.append(np.asarray(block, dtype=np.float32))
        num_pending += len(block)
        if num_pending <= start + CHUNK + PADDING:
            continue
        samples = np.concatenate(pending) if len(pending) > 1 else pending[0]
        while len(samples) > start + CHUNK + PADDING:
            yield samples[: start + CHUNK + PADDING], start, start + CHUNK, False
            samples, start = samples[start + CHUNK - PADDING :], PADDING
        pending, num_pending = [samples.copy()], len(samples)
    samples = np.concatenate(pending) if pending else np.zeros(0, np.float32)
    pending.clear()
    is_whole = len(samples) <= CHUNK and start == 0
    while len(samples) > start:
        stop = min(start + CHUNK, len(samples))
        yield samples[: stop + PADDING], start, stop, is_whole
        samples, start = samples[max(0, stop - PADDING) :], PADDING


# ------------------------------------------------------------------------------------------------- geometry


@dataclass(frozen=True)
class Layout:
    """The frames of a padded chunk that see a sample, and where they lie."""

    num_samples: int
    num_frames: int
    """Frames that see at least one sample; the others are silent."""
    silent_before: int
    """Frames of the padding before them."""
    silent_after: int
    """Frames of the padding after them."""
    lead: int
    """Samples from the start of the first frame to the first sample."""
    start: int
    stop: int
    """The samples [start, stop) are wanted back; the others are neighbours."""

    @property
    def blocks(self):
        """Half-open ranges of frames, as even as can be but for the last."""
        count = -(-self.num_frames // BLOCK_FRAMES)
        size = -(-self.num_frames // count)
        return [(first, min(first + size, self.num_frames)) for first in range(0, self.num_frames, size)]


def lay_out(num_samples, offset, padded, start=0, stop=None):
    """Return the Layout of samples that begin at ``offset`` in a padded chunk of ``padded`` samples.

    scipy.signal.stft, which noisereduce calls, adds half a frame of zeros on both sides again: its frame t holds the
    padded chunk's samples [256 t - 512, 256 t + 512), t up to padded // 256.
    """
    half = N_FFT // 2
    last_frame = padded // HOP
    first = max(0, (offset - half) // HOP + 1)
    last = min(last_frame, -(-(offset + num_samples + half) // HOP) - 1)
    return Layout(
        num_samples=num_samples, num_frames=last - first + 1, silent_before=first, silent_after=last_frame - last,
        lead=offset - (HOP * first - half), start=start, stop=num_samples if stop is None else stop,
    )


def smoothing_widths(sample_rate):
    """Return over how many bins and frames on either side the mask is smoothed; ConfigurationError if there are none."""
    num_bins = int(MASK_SMOOTH_HZ / (sample_rate / (N_FFT / 2)))
    num_frames = int(MASK_SMOOTH_MS / ((HOP / sample_rate) * 1000))
    if num_bins < 1 or num_frames < 1:
        raise ConfigurationError(
            f"--sample-rate {sample_rate} cannot be denoised: spectral gating works from 5120 to 256000 Hz; choose one of these or --denoise none"
        )
    return num_bins, num_frames


def _hann(size):
    """Return the periodic Hann window, float64 (size,)."""
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)


@functools.lru_cache(maxsize=64)
def _smoother(num_frames, sample_rate, silent_after):
    """Return noisereduce's forward-backward mean over time, for one block, as matrices.

    The mean is y[t] = b x[t] + a y[t-1], and back z[t] = b y[t] + a z[t+1]. Within a block z is linear in the
    frames x, in the y before the block and in the z after it. Behind the last block lie ``silent_after`` frames
    without sound, over which y decays and then turns round: z after it is a multiple of its last y.

    Parameters
    ----------
    silent_after : int or None
        None for a block that others follow.

    Returns
    -------
    forward : float32 (num_frames + 2,)
        Times the block gives the last y of the block.
    both : float32 (num_frames, num_frames + 2)
        Times the block gives z / -SLOPE, the sigmoid's slope at no cost. The block's last two rows are the y before
        and the z after it.
    """
    t = TIME_CONSTANT_SECONDS * sample_rate / HOP
    b = (np.sqrt(1 + 4 * t**2) - 1) / (2 * t**2)
    a = 1 - b
    lag = np.subtract.outer(np.arange(num_frames), np.arange(num_frames))
    onward = np.hstack([np.where(lag >= 0, b * a ** np.maximum(lag, 0), 0), a ** np.arange(1, num_frames + 1)[:, None], np.zeros((num_frames, 1))])
    both = onward.T[:num_frames, :num_frames] @ onward
    both[:, -1] = a ** np.arange(num_frames, 0, -1)
    forward = onward[-1]
    if silent_after is not None:
        turned = b * a * (1 - a ** (2 * silent_after)) / (1 - a**2) + a ** (2 * silent_after)
        both += np.outer(both[:, -1], turned * forward)
    return forward.astype(np.float32), (both / -SLOPE).astype(np.float32)


# --------------------------------------------------------------------------------------------------- gating


class _Gater:
    """Buffers and steps for rows of one layout: spectrum, mask (by mode), smoothing, back to samples.

    One object serves many groups of rows; nothing of their size is allocated again but the transforms' results.
    """

    mask_unit = 1.0
    """What the numbers in ``self.mask`` are to be multiplied by."""

    def __init__(self, layout, sample_rate, num_rows):
        self.layout = layout
        self.blocks = layout.blocks
        self.sample_rate = sample_rate
        self.bin_width, self.frame_width = smoothing_widths(sample_rate)
        block = self.blocks[0][1]
        self.samples = np.zeros((num_rows, layout.num_frames + OVERLAP - 1, HOP), np.float32)
        self.wide = NUM_BINS + self.bin_width  # a frame of the mask and the zeros before it, which also follow the frame before
        self.tall = layout.num_frames + 2 * self.frame_width
        self.mask = np.zeros(num_rows * block * self.wide + 2 * self.bin_width, np.float32)
        self.smooth = np.zeros((num_rows, self.tall, NUM_BINS), np.float32)
        scratch = num_rows * (block + 3 * self.frame_width + 1) * self.wide + 3 * self.wide
        self.scratch = np.zeros((3, scratch), np.float32)
        self.gain = np.empty((num_rows, block, NUM_BINS), np.float32)
        norm = OVERLAP_GAIN * ((self.bin_width + 1) * (self.frame_width + 1)) ** 2
        self.synthesis = (_hann(N_FFT) * (self.mask_unit / norm)).astype(np.float32)

    def gate(self, rows, out):
        """Gate ``rows`` (r, num_samples) into ``out`` (r, stop - start)."""
        peaks = np.maximum(rows.max(axis=1), -rows.min(axis=1))
        if not np.isfinite(peaks).all():
            raise EgoAudioError("cannot denoise sound that holds NaN or infinity: replace these samples before")
        sounding = peaks > 0
        if not sounding.all():  # noisereduce gives NaN for silence
            out[~sounding] = 0
            if sounding.any():
                gated = np.empty((np.count_nonzero(sounding), out.shape[1]), np.float32)
                self.gate(rows[sounding], gated)
                out[sounding] = gated
            return
        scale = np.ones((len(rows), 1), np.float32)
        if peaks.min() < SAFE_PEAKS[0] or peaks.max() > SAFE_PEAKS[1]:
            scale = np.ldexp(scale, -np.frexp(peaks)[1][:, None])
        layout = self.layout
        samples = self.samples[: len(rows)]
        flat = samples.reshape(len(rows), -1)
        flat[:, : layout.lead] = 0
        flat[:, layout.lead + layout.num_samples :] = 0
        np.multiply(rows, scale, out=flat[:, layout.lead : layout.lead + layout.num_samples])
        spectra = self.masked(rows, flat, scale)
        samples.fill(0)
        for first, last in self.blocks:
            spectrum = spectra.pop(0)
            if HOP * first < layout.lead + layout.stop and HOP * (last + OVERLAP - 1) > layout.lead + layout.start:
                self.resynthesise(spectrum, first, last, samples)
        np.divide(flat[:, layout.lead + layout.start : layout.lead + layout.stop], scale, out=out)

    def masked(self, rows, flat, scale):
        """Fill ``self.smooth`` with the mask, smoothed over frequency; return the list of the blocks' spectra."""
        raise NotImplementedError

    def mask_view(self, count, num_frames):
        """Return the part of ``self.mask`` that holds ``num_frames`` frames of ``count`` rows, (count, num_frames, NUM_BINS)."""
        return self.mask[: count * num_frames * self.wide].reshape(count, num_frames, self.wide)[:, :, self.bin_width :]

    def smooth_over_bins(self, out):
        """Smooth ``self.mask`` over frequency into ``out`` (rows, frames, NUM_BINS)."""
        count, num_frames, _ = out.shape
        size = count * num_frames * self.wide
        left, right = _triangle(self.mask, self.scratch, self.bin_width + 1, 1, size)
        np.add(*(side[:size].reshape(count, num_frames, self.wide)[:, :, :NUM_BINS] for side in (left, right)), out=out)

    def resynthesise(self, spectrum, first, last, samples):
        """Smooth the mask over time, apply it, and add the frames [first, last) to ``samples`` (rows, hops, HOP)."""
        count, num_frames, _ = spectrum.shape
        source = self.smooth[:count, first : last + 2 * self.frame_width]
        tall = source.shape[1]
        gain = self.gain[:count, :num_frames]
        size = count * tall * NUM_BINS
        left, right = _triangle(source.reshape(-1), self.scratch, self.frame_width + 1, NUM_BINS, size - 2 * self.frame_width * NUM_BINS)
        np.add(*(side[:size].reshape(count, tall, NUM_BINS)[:, :num_frames] for side in (left, right)), out=gain)
        np.multiply(spectrum, gain, out=spectrum)
        frames = scipy.fft.irfft(spectrum, n=N_FFT, overwrite_x=True)
        frames *= self.synthesis
        hops = frames.reshape(count, num_frames, OVERLAP, HOP)
        for hop in range(OVERLAP):
            samples[:, first + hop : last + hop] += hops[:, :, hop]


class _NonstationaryGater(_Gater):
    """Mask by how far a bin rises above its own mean over time."""

    mask_unit = float(np.exp(-SLOPE * (1 + THRESHOLD)))

    def __init__(self, layout, sample_rate, num_rows):
        super().__init__(layout, sample_rate, num_rows)
        block = self.blocks[0][1]
        self.frames = np.empty((num_rows, block, N_FFT), np.float32)
        self.window = _hann(N_FFT).astype(np.float32)
        self.amplitudes = np.empty((len(self.blocks), num_rows, block + 2, NUM_BINS), np.float32)
        self.mean = np.empty((num_rows, block, NUM_BINS), np.float32)

    def masked(self, rows, flat, scale):
        """Fill ``self.smooth`` with the mask, smoothed over frequency; return the list of the blocks' spectra.

        The mask is 1 / (1 + exp(-slope * (x / mean - 1 - threshold))); computed as 1 / (unit + exp(-slope * x / mean)),
        to be multiplied by the unit exp(-slope * (1 + threshold)): two passes fewer, and exact where it is small.
        """
        count = len(flat)
        spectra = []
        amplitudes = []
        for number, (first, last) in enumerate(self.blocks):
            windowed = np.multiply(_frames(flat, first, last, N_FFT, HOP), self.window, out=self.frames[:count, : last - first])
            spectra.append(scipy.fft.rfft(windowed))
            block = self.amplitudes[number, :count, : last - first + 2]
            amplitudes.append(block)
            np.abs(spectra[-1], out=block[:, :-2])
            block[:, -2:] = TINY
            if number:
                forward, _ = _smoother(amplitudes[-2].shape[1] - 2, self.sample_rate, None)
                block[:, -2] += np.matmul(forward, amplitudes[-2])
            elif not self.layout.silent_before:
                block[:, -2] = block[:, 0]  # noisereduce begins with the first frame as the mean
        silent_after = self.layout.silent_after
        for (first, last), block in zip(reversed(self.blocks), reversed(amplitudes), strict=True):
            _, both = _smoother(last - first, self.sample_rate, silent_after)
            if silent_after is None:
                block[:, -1] += after
            silent_after = None
            mean = np.matmul(both, block, out=self.mean[:count, : last - first])
            after = mean[:, 0] * np.float32(-SLOPE)
            np.divide(block[:, :-2], mean, out=mean)
            np.exp(mean, out=mean)
            mean += np.float32(self.mask_unit)
            np.reciprocal(mean, out=self.mask_view(count, last - first))
            self.smooth_over_bins(self.smooth[:count, self.frame_width + first : self.frame_width + last])
        return spectra


class _StationaryGater(_Gater):
    """Mask by whether a bin is above its own mean plus 1.5 deviations, in dB, over the noise: the sound itself.

    The comparison is all or nothing, so it is made in float64, as noisereduce makes it; only the thresholds come
    from a float32 transform, as there.
    """

    thresholds = None
    """Of a recording, float64 (1, NUM_BINS), kept from its first chunk; if None, every row has its own."""

    def __init__(self, layout, sample_rate, num_rows):
        super().__init__(layout, sample_rate, num_rows)
        self.frames = np.empty((num_rows, self.blocks[0][1], N_FFT))
        self.open = np.zeros((num_rows, layout.num_frames, NUM_BINS), bool)

    def masked(self, rows, flat, scale):
        """Fill ``self.smooth`` with the mask, smoothed over frequency; return the list of the blocks' spectra."""
        count = len(flat)
        thresholds = self.thresholds
        if thresholds is None:
            thresholds = np.stack([noise_thresholds(row) for row in rows])
        thresholds = np.broadcast_to(thresholds * (scale * np.float64(N_FFT / 2)), (count, NUM_BINS))
        eps = scale * np.float64(EPS * N_FFT / 2)
        window = _hann(N_FFT)
        spectra = []
        peaks = np.zeros((count, NUM_BINS))
        for first, last in self.blocks:
            windowed = np.multiply(_frames(flat, first, last, N_FFT, HOP), window, out=self.frames[:count, : last - first])
            spectrum = scipy.fft.rfft(windowed)
            spectra.append(spectrum.astype(np.complex64))
            amplitudes = np.abs(spectrum)
            amplitudes += eps[:, None]
            np.greater(amplitudes, thresholds[:, None], out=self.open[:count, first:last])
            np.maximum(peaks, amplitudes.max(axis=1), out=peaks)
        always = peaks * 10 ** (-TOP_DB / 20) > thresholds  # noisereduce lifts every frame to 80 dB below the loudest
        self.open[:count] |= always[:, None]
        for first, last in self.blocks:
            self.mask_view(count, last - first)[:] = self.open[:count, first:last]
            self.smooth_over_bins(self.smooth[:count, self.frame_width + first : self.frame_width + last])
        self.mask_view(count, 1)[:] = always[:, None]
        silent = np.empty((count, 1, NUM_BINS), np.float32)
        self.smooth_over_bins(silent)
        self.smooth[:count, : self.frame_width] = silent if self.layout.silent_before else 0
        self.smooth[:count, self.tall - self.frame_width :] = silent if self.layout.silent_after else 0
        return spectra


GATERS = {"nonstationary": _NonstationaryGater, "stationary": _StationaryGater}


def noise_thresholds(samples):
    """Return the amplitudes (NUM_BINS,) float64 that noisereduce's stationary mode lets pass, learnt from ``samples`` (n,).

    Under 1,024 samples the frames are as long as the sound, overlapping by 768, as in scipy.signal.stft; where that
    cannot be (768 samples and fewer, which noisereduce refuses) the sound is taken as followed by zeros.
    """
    if len(samples) <= N_FFT - HOP:
        samples = np.concatenate([samples, np.zeros(N_FFT - len(samples), np.float32)])
    size = min(N_FFT, len(samples))
    hop = size - (N_FFT - HOP)
    window = _hann(size).astype(np.complex64)
    scale = np.abs(np.sqrt(1.0 / window.sum() ** 2))
    padded = np.concatenate([np.zeros(size // 2, np.float32), samples, np.zeros(size // 2, np.float32)])
    num_frames = (len(padded) - size) // hop + 1
    amplitudes = np.empty((num_frames, NUM_BINS), np.float32)
    for first in range(0, num_frames, BLOCK_FRAMES):
        last = min(first + BLOCK_FRAMES, num_frames)
        spectrum = scipy.fft.rfft(_frames(padded[None], first, last, size, hop)[0] * window.real, n=N_FFT)
        np.abs(spectrum * scale, out=amplitudes[first:last])
    floor = (amplitudes.max(axis=0) + EPS) * 10 ** (-TOP_DB / 20)
    thresholds = np.empty(NUM_BINS)
    for bins in (slice(first, first + 64) for first in range(0, NUM_BINS, 64)):  # in parts: float64 of a whole chunk is 10 MB
        levels = amplitudes[:, bins].astype(np.float64)
        levels += EPS
        np.log(np.maximum(levels, floor[bins], out=levels), out=levels)
        thresholds[bins] = np.exp(levels.mean(axis=0) + STATIONARY_DEVIATIONS * levels.std(axis=0))
    return thresholds


def _frames(flat, first, last, size, hop):
    """Return the overlapping frames [first, last) of ``flat`` (rows, n) as a view (rows, last - first, size)."""
    row, item = flat.strides
    return as_strided(flat[:, hop * first :], (len(flat), last - first, size), (row, hop * item, item), writeable=False)


@functools.lru_cache(maxsize=64)
def _additions(width):
    """Return the shifted additions that smooth with a triangle of ``2 * width - 1`` weights 1, 2 ... width ... 2, 1.

    The triangle is two boxes of ``width`` ones; a box of 17 is one of 16 and a shifted source, and that one four
    doublings: 10 passes over the array instead of 33. An addition is (target, left, right, shift, extra): target[i]
    = left[i] + right[i + shift], needed for ``extra`` more elements than the result. Register 0 is the source.
    """
    additions = []
    source = 0
    for boxes_after in (1, 0):
        power, size, total, covered = source, 1, None, 0
        while True:
            if width & size:
                if total is None:
                    total, covered = power, size
                else:
                    target = min({1, 2, 3} - {power, total})
                    additions.append((target, total, power, covered, width - covered - size + boxes_after * (width - 1)))
                    total, covered = target, covered + size
            if 2 * size > width:
                break
            target = min({1, 2, 3} - {power, total})
            additions.append((target, power, power, size, width - 2 * size + boxes_after * (width - 1)))
            power, size = target, 2 * size
        source = total
    return tuple(additions)


def _triangle(source, scratch, width, step, size):
    """Smooth ``source`` (at least size + 2 * (width - 1) * step,) but for the last addition; return its two sides."""
    registers = [source, *scratch]
    *additions, (_, left, right, shift, _) = _additions(width)
    for target, first, second, lag, extra in additions:
        length = size + extra * step
        np.add(registers[first][:length], registers[second][lag * step : lag * step + length], out=registers[target][:length])
    return registers[left], registers[right][shift * step :]


def _call_noisereduce(samples, sample_rate, config):
    """Return what the noisereduce library makes of ``samples`` (n,), with silence for the NaN it makes of silence."""
    try:
        from noisereduce import reduce_noise
    except ImportError as error:
        raise ConfigurationError("--denoise-engine noisereduce: the library is not installed; pip install noisereduce, or leave the option out") from error
    if not samples.any():
        return np.zeros_like(samples)
    try:
        with np.errstate(divide="ignore", invalid="ignore"):
            gated = reduce_noise(samples, sample_rate, stationary=config.mode == "stationary")
    except ValueError as error:
        raise EgoAudioError(f"noisereduce cannot denoise {len(samples)} samples at {sample_rate} Hz: {error}") from error
    return np.nan_to_num(gated, nan=0.0)
