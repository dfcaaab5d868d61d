"""One recording as features, in a worker: decode, denoise, cut, features, each a stream of the one before.

In: a media file, the plan of its clips, a ``BuildConfig``. Out: blocks of consecutive clips' features and how many
samples of each arrived. A build writes them, a prediction has a network score them; the numbers are the same. Only a
few seconds of the recording are in memory. No library that is slow to import or large in memory is used (no torch).
"""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache

import numpy as np

from egoaudio.audio import clips, denoise
from egoaudio.audio.clips import ClipPlan
from egoaudio.audio.denoise_engine import Workspace
from egoaudio.audio.features import FeatureExtractor
from egoaudio.builder.pool import heartbeat
from egoaudio.config.build import BuildConfig
from egoaudio.inputs.decoder import Decoder

STAGES = ("decode", "denoise", "features", "write")


class Clock:
    """Charge time to one of ``STAGES`` at a time, also where a stage pulls from the one before it."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self._stack: list[str] = []
        self._since = time.perf_counter()

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Charge the block to ``stage``, and nothing to the stage around it."""
        self._switch(stage)
        try:
            yield
        finally:
            self._switch(None)

    def each(self, stage: str, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield from ``blocks``, and charge their time to ``stage``."""
        iterator = iter(blocks)
        while True:
            with self(stage):
                block = next(iterator, None)
            if block is None:
                return
            yield block

    def _switch(self, entered: str | None) -> None:
        now = time.perf_counter()
        if self._stack:
            self.seconds[self._stack[-1]] += now - self._since
        self._since = now
        if entered is not None:
            self._stack.append(entered)
        else:
            self._stack.pop()


def open_decoder(path: str, config: BuildConfig) -> Decoder:
    """Return the decoder of a media file for a configuration."""
    return Decoder(path, config.sample_rate, config.sound.audio_track, config.sound.compensate_delay)


@lru_cache(maxsize=2)
def feature_extractor(config: BuildConfig) -> FeatureExtractor:
    """Return the extractor of a build configuration, made once a process."""
    _, context_samples = clips.count_samples(config.clips, config.sample_rate)
    return FeatureExtractor(config.features, config.sample_rate, context_samples)


@lru_cache(maxsize=1)
def _workspace() -> Workspace:
    """Return the buffers for denoising, made once a process."""
    return Workspace()


def feature_blocks(
    decoder: Decoder, plan: ClipPlan, config: BuildConfig, clock: Clock
) -> Iterator[tuple[int, dict[str, np.ndarray], np.ndarray]]:
    """Compute the features of a recording's clips, some at a time.

    Parameters
    ----------
    decoder : Decoder
        Read to its end, with a heartbeat for each block.
    plan : ClipPlan
    config : BuildConfig
    clock : Clock
        Is charged with the time of each stage.

    Yields
    ------
    first_clip : int
        The block's first clip.
    features : dict of name to array (num_clips, ...)
        Rows of clips without ``enough_sound`` are zeros.
    arrived : ndarray of int32, shape (num_clips,)
        Real samples of each clip that arrived.

    Raises
    ------
    MediaError
        Nothing can be decoded.
    """
    extractor = feature_extractor(config)
    gated = config.denoise.mode != "none"
    blocks = clock.each("decode", _with_heartbeat(decoder))
    if gated and config.denoise.scope == "recording":
        blocks = clock.each("denoise", denoise.gate_blocks(blocks, config.sample_rate, config.denoise, _workspace()))
    with clock("features"):
        for first, windows, arrived in clips.cut(blocks, plan):
            if gated and config.denoise.scope == "clip":
                with clock("denoise"):
                    windows = denoise.gate(windows, config.sample_rate, config.denoise, _workspace())
            features = extractor(windows)
            if "waveform" in features:
                features["waveform"] = clips.take_clips(features["waveform"], plan)
            enough = enough_sound(arrived, plan)
            if not enough.all():
                for rows in features.values():
                    rows[~enough] = 0
            yield first, features, arrived


def enough_sound(arrived: np.ndarray, plan: ClipPlan) -> np.ndarray:
    """Return which clips have at least half a clip of sound, as the plan requires of the last one."""
    return 2 * arrived >= plan.clip_samples


def why_silent(decoder: Decoder) -> str:
    """Return why a decoded recording is silent; empty if it is not."""
    if decoder.cancels_out:
        return "it is silent: its channels cancel out"
    return "it is silent: muted, or digital silence" if decoder.is_silent else ""


def _with_heartbeat(blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Yield the blocks of a decoder, with a heartbeat for each."""
    for block in blocks:
        heartbeat()
        yield block
