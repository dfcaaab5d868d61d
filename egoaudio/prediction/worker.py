"""One recording, in a worker: its sound becomes feature rows that go to the process that scores.

The features are those of a build (``builder.feature_stream``), of the clips that a build would place: as many as the
recording's packets bear out. What returns at the end is a few numbers a clip. No library that is slow to import or
large in memory comes in here (no torch).
"""

import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from egoaudio.audio import clips
from egoaudio.builder.feature_stream import Clock, enough_sound, feature_blocks, open_decoder, why_silent
from egoaudio.config.build import BuildConfig
from egoaudio.errors import MediaError, Status
from egoaudio.hdf5.schema import ADDED_VIDEO_COLUMNS
from egoaudio.inputs.fingerprint import UNKNOWN, fingerprint
from egoaudio.inputs.probe import probe
from egoaudio.prediction.channel import Address, Sender


@dataclass(frozen=True, eq=False)
class Heard:
    """What became of a recording."""

    status: Status
    error: str = ""
    """Why the status is not OK."""
    attempt: bytes = b""
    """By which the receiver knows the rows that were sent."""
    fingerprint: bytes = UNKNOWN
    sample_rate: int = 0
    """Of the source, in Hz."""
    channels: int = 0
    """Of the source."""
    duration_seconds: float = 0.0
    arrived: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    """int32 (n,): real samples of each clip."""
    facts: dict = field(default_factory=dict)
    """What the decoder says of the sound, by the columns of /videos."""
    sound_seconds: float = 0.0
    """Sound that was decoded."""
    stage_seconds: dict = field(default_factory=dict)
    """Time spent in each of ``feature_stream.STAGES``."""


def send_features(address: Address, config: BuildConfig, job: tuple[int, str]) -> Heard:
    """Send the feature rows of one recording, and return what became of it.

    Parameters
    ----------
    address : Address
        Of the receiver.
    config : BuildConfig
        With the one feature that is scored.
    job : (int, str)
        The recording's number, and its file.

    Raises
    ------
    Disconnected
        When nobody receives any more.
    """
    number, path = job
    print_of_file = fingerprint(path)
    if print_of_file == UNKNOWN and not os.path.lexists(path):
        return Heard(Status.MISSING, "its file is gone")
    recording = probe(path, config.sound.audio_track, config.sound.compensate_delay)
    source: dict[str, Any] = {
        "fingerprint": print_of_file,
        "sample_rate": recording.sample_rate,
        "channels": recording.channels,
        "duration_seconds": recording.duration_seconds,
    }
    if recording.status != Status.OK:
        return Heard(recording.status, recording.error, **source)
    samples = round(recording.duration_seconds * config.sample_rate)
    plan = clips.plan_clips(samples, config.clips, config.sample_rate)
    decoder, clock = open_decoder(path, config), Clock()
    arrived = np.zeros(plan.num_clips, np.int32)
    (feature,) = config.features.features
    with Sender(address, number, plan.num_clips) as sender:
        try:
            for first, features, real in feature_blocks(decoder, plan, config, clock):
                arrived[first : first + len(real)] = real
                with clock("write"):
                    sender.send(first, enough_sound(real, plan), features[feature])
        except MediaError as error:
            reason = str(error).removeprefix(f"{path}: ")
            return Heard(Status.UNREADABLE, reason, **source, stage_seconds=clock.seconds)
        silence = why_silent(decoder) if config.sound.skip_silent else ""
        if silence:
            return Heard(Status.NO_AUDIO, silence, **source, stage_seconds=clock.seconds)
        sender.end()
    facts = {name: getattr(decoder, name) for name in ("lost_samples", *ADDED_VIDEO_COLUMNS)}
    return Heard(
        Status.OK,
        attempt=sender.attempt,
        **source,
        arrived=arrived,
        facts=facts,
        sound_seconds=decoder.num_samples / config.sample_rate,
        stage_seconds=clock.seconds,
    )
