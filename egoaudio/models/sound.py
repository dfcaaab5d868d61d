"""The sound that a checkpoint takes: how its features are made, from how many samples, and denoised or not.

In: a checkpoint's contents. Out: a ``SoundInput``. A checkpoint of an earlier version does not say how its features
were made: ``like``, the file it was trained on, does.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from egoaudio.audio import clips
from egoaudio.builder.feature_stream import feature_extractor
from egoaudio.config.build import BuildConfig
from egoaudio.config.options import from_json
from egoaudio.config.train import TrainConfig
from egoaudio.errors import CheckpointError, ConfigurationError
from egoaudio.hdf5 import reader
from egoaudio.models import checkpoints

StrPath = str | os.PathLike[str]


@dataclass(frozen=True)
class SoundInput:
    """What a network hears of a recording: a clip, with the sound around it."""

    build: BuildConfig
    """How one row of its one feature is made."""
    row_samples: int
    """Samples of which a row is made: of a clip, or of its ``context_seconds``."""
    context_clips: int
    """K: so many neighbouring rows on each side follow each other in the input."""

    @property
    def feature(self) -> str:
        """What the network is given."""
        return self.build.features.features[0]

    @property
    def sample_rate(self) -> int:
        """Hz."""
        return self.build.sample_rate

    @property
    def num_rows(self) -> int:
        """Rows in the input, the clip's own in the middle."""
        return 2 * self.context_clips + 1

    @property
    def num_samples(self) -> int:
        """Samples in the input, the clip in the middle of them."""
        return self.num_rows * self.row_samples

    @property
    def denoised_samples(self) -> int | None:
        """Samples denoised together, a row in their middle, which may be all of them; None: the whole recording."""
        if self.build.denoise.scope == "recording":
            return None
        return clips.count_samples(self.build.clips, self.sample_rate)[1]

    @property
    def denoising(self) -> str:
        """How the sound was denoised before features were taken, in words; empty if it was not."""
        if self.build.denoise.mode == "none":
            return ""
        together = self.denoised_samples
        if together is None:
            scope = "over the whole recording"
        elif together == self.row_samples:
            scope = "each clip by itself"
        else:
            scope = f"each clip with the sound around it, {together / self.sample_rate:g} s by themselves"
        return f"{self.build.denoise.mode}, {scope}"

    def require_plain(self, checkpoint: StrPath, denoised_input: bool) -> None:
        """Refuse a front end that would be given other sound than the model was trained on.

        Parameters
        ----------
        checkpoint : path
            For the message.
        denoised_input : bool
            The caller's word that the sound will be denoised first.

        Raises
        ------
        ConfigurationError
            For a model of denoised sound without that word, and for that word where there is no denoising.
        """
        if self.denoising and not denoised_input:
            raise ConfigurationError(
                f"{os.fspath(checkpoint)}: was trained on denoised sound ({self.denoising}), and a front end does not "
                "denoise: give `denoised_input=True` if the sound will be denoised in the same way before, or train on "
                "a file that was built with `denoise.mode='none'`"
            )
        if denoised_input and not self.denoising:
            raise ConfigurationError(
                f"`denoised_input=True` has no effect: {os.fspath(checkpoint)} was trained on sound as it is"
            )


def stated_build(checkpoint: StrPath, contents: dict[str, Any], like: StrPath | None = None) -> BuildConfig:
    """Return how the features of new sound are made; ``contents["build"]`` then says it, too.

    Parameters
    ----------
    checkpoint : path
        For messages.
    contents : dict
        Of the checkpoint.
    like : path, optional
        The egoaudio file that an earlier version's checkpoint was trained on.

    Raises
    ------
    CheckpointError
        The checkpoint does not say it, and no file does; or what is said makes another feature.
    ConfigurationError
        ``like`` is given in vain.
    """
    if contents["build"] is None and like is None:
        raise CheckpointError(
            f"{checkpoint}: egoaudio {contents['egoaudio_version']} wrote it, and it does not say how its features "
            "were made: give `like=FILE`, the egoaudio file that it was trained on"
        )
    if like is not None:
        if contents["build"] is not None:
            raise ConfigurationError(
                f"`like={os.fspath(like)!r}` has no effect: {checkpoint} says itself how its features were made"
            )
        with reader.open(like) as file:
            checkpoints.require_match(contents, file, same_plan=True)
            contents["build"] = json.dumps(file.config)
    feature = contents["feature"]
    build = from_json(BuildConfig, contents["build"])
    build = replace(build, features=replace(build.features, features=(feature,)))
    made = feature_extractor(build).shapes[feature]
    if feature != "waveform" and list(made) != contents["feature_shape"]:
        raise CheckpointError(
            f"{checkpoint}: it was trained on {feature} of {contents['feature_shape']}, and its configuration makes "
            f"{list(made)}: its file was not built with the options that it states"
        )
    return build


def sound_input(checkpoint: StrPath, contents: dict[str, Any], like: StrPath | None = None) -> SoundInput:
    """Return the sound that a checkpoint takes; parameters and errors are those of ``stated_build``."""
    build = stated_build(checkpoint, contents, like)
    # A row of waveforms holds the clip alone, whatever the context of the other features.
    is_waveform = contents["feature"] == "waveform"
    row_samples = (
        contents["feature_shape"][0] if is_waveform else clips.count_samples(build.clips, build.sample_rate)[1]
    )
    return SoundInput(build, int(row_samples), context_clips(contents))


def context_clips(contents: Mapping[str, Any]) -> int:
    """Return how many neighbouring clips on each side a checkpoint's network sees."""
    return from_json(TrainConfig, contents["config"]).data.context_clips or 0
