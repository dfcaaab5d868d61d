"""Sound in, the same sound without steady noise out: spectral gating equal to ``noisereduce.reduce_noise``.

In: float32 samples, mono, a row a clip (``gate``) or the blocks of a recording (``gate_blocks``). Out: as many
float32 samples. A short-time spectrum (1,024 samples, hop 256, Hann) is multiplied by a mask between 0 and 1: in
mode *nonstationary* by how far a bin rises above its own mean over about two seconds, in mode *stationary* by
whether it is above its mean plus 1.5 standard deviations. The mask is smoothed over 50 ms and 500 Hz. All of this is as
in noisereduce 3.0.3 with its defaults (https://github.com/timsainb/noisereduce): every call is padded by 30,000 zeros
on both sides, and a recording is gated in chunks of 600,000 samples with 30,000 of their neighbours on each side.
Silence stays silence. The engine is in ``denoise_engine``, the two modes in ``denoise_masks``.

A ``Workspace`` holds the buffers. Pass the same one to many calls: fresh memory takes half as long as the gating.
"""

from collections.abc import Iterable, Iterator

import numpy as np

from egoaudio.audio.denoise_engine import N_FFT, Gater, Workspace, lay_out, smoothing_widths
from egoaudio.audio.denoise_masks import NonstationaryGater, StationaryGater
from egoaudio.config.build import DenoiseConfig
from egoaudio.errors import EgoAudioError

CHUNK = 600_000  # samples that noisereduce gates at once
PADDING = 30_000  # samples that it adds on both sides of them
FRAMES_AT_ONCE = 72  # of several rows, if they are shorter
PIECE = 65_536  # samples in a block of the result

GATERS: dict[str, type[Gater]] = {"nonstationary": NonstationaryGater, "stationary": StationaryGater}


def gate(
    samples: np.ndarray, sample_rate: int, config: DenoiseConfig, workspace: Workspace | None = None
) -> np.ndarray:
    """Gate each row by itself.

    Parameters
    ----------
    samples : float32 (..., num_samples)
        Rows of sound: clips, or whole recordings.
    sample_rate : int
        Samples a second.
    config : DenoiseConfig
        Mode and engine; the scope is up to the caller. Mode ``none`` returns the samples as they are.
    workspace : Workspace, optional
        Buffers to use, by one call at a time.

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
    clips = samples.reshape(-1, samples.shape[-1])
    gated = np.empty_like(clips)
    if config.engine == "noisereduce" or clips.shape[1] > CHUNK:
        for clip, target in zip(clips, gated, strict=True):
            np.concatenate(list(gate_blocks([clip], sample_rate, config, workspace)), out=target)
        return gated.reshape(samples.shape)
    layout = lay_out(clips.shape[1], PADDING, clips.shape[1] + 2 * PADDING)
    at_once = max(1, min(len(clips), FRAMES_AT_ONCE // layout.num_frames))
    workspace = workspace or Workspace()
    gater = GATERS[config.mode](layout, sample_rate, at_once, workspace)
    buffer = workspace.array("rows", (at_once, layout.room))
    for first in range(0, len(clips), at_once):
        few = clips[first : first + at_once]
        rows = buffer[: len(few)]
        rows[:, : layout.lead] = 0
        rows[:, layout.inside] = few
        rows[:, layout.inside.stop :] = 0
        gater.gate(rows, few)
        gated[first : first + at_once] = rows[:, layout.inside]
    return gated.reshape(samples.shape)


def gate_blocks(
    blocks: Iterable[np.ndarray], sample_rate: int, config: DenoiseConfig, workspace: Workspace | None = None
) -> Iterator[np.ndarray]:
    """Gate a whole recording as a stream, a chunk at a time.

    Parameters
    ----------
    blocks : iterable of float32 (m,)
        The recording, cut anywhere.
    sample_rate : int
        Samples a second.
    config : DenoiseConfig
        Mode and engine. The engine ``noisereduce`` needs the whole recording in memory, ``egoaudio`` a chunk.
    workspace : Workspace, optional
        Buffers to use, by one call at a time.

    Yields
    ------
    float32 (k,)
        As many samples in all as in ``blocks``.

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
    recording = _Recording(sample_rate, config.mode, workspace or Workspace())
    for block in blocks:
        block = np.asarray(block, dtype=np.float32)
        while len(block):
            block = block[recording.take(block) :]
            if recording.is_full:
                yield from recording.gate_chunk()
    while recording.num_samples > recording.start:
        yield from recording.gate_chunk()


class _Recording:
    """The samples of a recording in memory: a chunk, gated in place, and its neighbours.

    They follow ``HEAD`` unused samples, in which the first frame begins.
    """

    HEAD = N_FFT

    def __init__(self, sample_rate: int, mode: str, workspace: Workspace) -> None:
        self.sample_rate = sample_rate
        self.mode = mode
        self.workspace = workspace
        self.buffer = workspace.array("samples", (self.HEAD + CHUNK + 2 * PADDING + 2 * N_FFT,))
        self.num_samples = 0
        self.start = 0  # of the chunk among the samples; PADDING once there is one before it
        self.thresholds: np.ndarray | None = None  # of the stationary mode, learnt from the first chunk

    def take(self, block: np.ndarray) -> int:
        """Copy what fits of ``block`` (m,) and return how much that is.

        One sample more than the chunk and its neighbours fits, which shows that the chunk is not the last one.
        """
        count = min(len(block), self.start + CHUNK + PADDING + 1 - self.num_samples)
        self.buffer[self.HEAD + self.num_samples :][:count] = block[:count]
        self.num_samples += count
        return count

    @property
    def is_full(self) -> bool:
        """Whether the chunk, its neighbours and one sample more have been taken."""
        return self.num_samples == self.start + CHUNK + PADDING + 1

    def gate_chunk(self) -> Iterator[np.ndarray]:
        """Yield the next chunk, gated, in pieces; keep what the following chunk needs."""
        stop = min(self.start + CHUNK, self.num_samples)
        seen = min(stop + PADDING, self.num_samples)
        is_all = self.start == 0 and self.num_samples <= CHUNK  # noisereduce pads shorter recordings at their own end
        layout = lay_out(
            seen, 0 if self.start else PADDING, (seen if is_all else CHUNK) + 2 * PADDING, self.start, stop
        )
        gater = GATERS[self.mode](layout, self.sample_rate, 1, self.workspace)
        samples = self.buffer[self.HEAD :]
        following = samples[max(0, stop - PADDING) : self.num_samples].copy()
        row = self.buffer[self.HEAD - layout.lead :][: layout.room]
        row[: layout.lead] = 0
        row[layout.lead + seen :] = 0
        gater.thresholds = self.thresholds
        gater.gate(row[None], samples[None, :stop] if self.thresholds is None else None)
        self.thresholds = gater.thresholds
        for first in range(self.start, stop, PIECE):
            yield samples[first : min(first + PIECE, stop)].copy()
        samples[: len(following)] = following
        self.num_samples, self.start = len(following), PADDING


def _call_noisereduce(samples: np.ndarray, sample_rate: int, config: DenoiseConfig) -> np.ndarray:
    """Return what the noisereduce library makes of ``samples`` (n,), with silence for the NaN it makes of silence."""
    from noisereduce import reduce_noise  # loads torch

    if not samples.any():
        return np.zeros_like(samples)
    try:
        with np.errstate(divide="ignore", invalid="ignore"):
            gated = reduce_noise(samples, sample_rate, stationary=config.mode == "stationary")
    except ValueError as error:
        raise EgoAudioError(
            f"noisereduce cannot denoise {len(samples)} samples at {sample_rate} Hz: {error}"
        ) from error
    return np.nan_to_num(gated, nan=0.0)
