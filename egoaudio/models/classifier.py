"""A trained model as one module: features or sound in, probabilities out.

``load_model`` reads a checkpoint into a ``Classifier``, which holds what belongs to the weights: normalisation, how
scores become probabilities and, if asked for, the front end. Its output is ``egoaudio-predict``'s for a clip alone;
averages over neighbouring clips are the caller's. ``egoaudio-export`` makes its graph of it.

In: float (batch, T, F) as the file holds them, not normalised, or sound (batch, num_samples), mono, [-1, 1]. Out:
float32 (batch, num_classes), from 0 to 1.
"""

import math
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from egoaudio.config.options import from_json
from egoaudio.config.train import TrainConfig
from egoaudio.data.context import joined_shape
from egoaudio.errors import ConfigurationError
from egoaudio.models import checkpoints
from egoaudio.models.device import choose_device
from egoaudio.models.frontend import create_front_end
from egoaudio.models.sound import SoundInput, context_clips, sound_input

# Scores closer than this to 0 and 1 count as that far away: beyond, calibration would amplify rounding (as
# ``evaluation.calibration.EDGE``).
EDGE = 1e-7
LARGEST_LOGIT = math.log(1 - EDGE) - math.log(EDGE)


class Classifier(nn.Module):
    """A trained network with all that turns its input into probabilities.

    Parameters
    ----------
    network : torch.nn.Module
        Normalised features in, logits out.
    contents : mapping
        Of the checkpoint.
    front_end : torch.nn.Module, optional
        Sound in, features out; without it the input is features.

    Attributes
    ----------
    network, front_end : torch.nn.Module
    class_ids, class_names : tuple of str
        In the order of the output's columns.
    sample_rate : int
        Hz, of the sound.
    input_shape : tuple of int
        Of one clip's input, (num_samples,) or (T, F), neighbours included.
    """

    mean: torch.Tensor
    scale: torch.Tensor
    slope: torch.Tensor
    intercept: torch.Tensor

    def __init__(self, network: nn.Module, contents: Mapping[str, Any], front_end: nn.Module | None = None) -> None:
        super().__init__()
        self.network, self.front_end = network, front_end
        self.class_ids, self.class_names = tuple(contents["class_ids"]), tuple(contents["class_names"])
        self.sample_rate: int = contents["sample_rate"]
        self.input_shape = joined_shape(contents["feature_shape"], context_clips(contents))
        self._is_single = from_json(TrainConfig, contents["config"]).data.label_mode == "single"
        calibration = contents["calibration"]
        self._is_calibrated = calibration is not None and calibration["method"] != "none"
        line = calibration if self._is_calibrated else {"slope": [1.0], "intercept": [0.0]}
        fixed = {
            "mean": contents["normalization"]["mean"],
            "scale": 1.0 / contents["normalization"]["std"],  # as the loader does
            "slope": line["slope"],
            "intercept": line["intercept"],
        }
        for name, value in fixed.items():
            self.register_buffer(name, torch.tensor(value, dtype=torch.float32), persistent=False)

    @classmethod
    def of_sound(
        cls, network: nn.Module, contents: Mapping[str, Any], sound: SoundInput, transform: str = "fft"
    ) -> "Classifier":
        """Return the classifier of a checkpoint's sound; ``transform`` is that of ``create_front_end``."""
        front_end = create_front_end(
            sound.feature,
            contents["feature_attributes"],
            sound.sample_rate,
            sound.row_samples,
            sound.context_clips,
            transform,
        )
        classifier = cls(network, contents, front_end)
        classifier.input_shape = (sound.num_samples,)
        return classifier.eval()

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Return the network's logits float (batch, num_classes) of ``x`` (batch, *input_shape).

        Raises
        ------
        ValueError
            For an input of another shape, or of integers.
        """
        if not x.is_floating_point():
            raise ValueError(
                f"an input of {x.dtype}: expected floats; sound that is stored as int16 is the number times the "
                "attribute scale of the file's /waveform, other 16-bit sound the number / 32768"
            )
        if tuple(x.shape[1:]) != self.input_shape:
            wanted = ", ".join(str(size) for size in self.input_shape)
            raise ValueError(f"an input of shape {tuple(x.shape)}: expected (batch, {wanted})")
        if not torch.compiler.is_compiling() and not len(x):  # a Fourier transform of nothing is an error
            return x.new_zeros((0, len(self.class_ids)))
        if self.front_end is not None:
            x = self.front_end(x)
        logits: torch.Tensor = self.network((x - self.mean) * self.scale)
        return logits

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return probabilities float32 (batch, num_classes) of ``x`` (batch, *input_shape)."""
        logits = self.logits(x).float()
        if self._is_single:
            scores = logits.softmax(dim=1)
            if not self._is_calibrated:
                return scores
            scores = scores.clamp(EDGE, 1 - EDGE)
            logits = scores.log() - torch.log1p(-scores)
        elif self._is_calibrated:
            logits = logits.clamp(-LARGEST_LOGIT, LARGEST_LOGIT)
        return torch.sigmoid(self.slope * logits + self.intercept)


def load_model(
    path: str | os.PathLike[str],
    *,
    front_end: bool = False,
    denoised_input: bool = False,
    like: str | os.PathLike[str] | None = None,
    device: str | None = None,
) -> Classifier:
    """Return a trained model as a module, in evaluation mode.

    Parameters
    ----------
    path : path
        A checkpoint: ``best.pt`` or ``last.pt`` of a run.
    front_end : bool
        Take sound instead of features.
    denoised_input : bool
        Say that this sound will have been denoised as in training, by ``egoaudio.audio.denoise.gate``, say: a front end
        does not denoise.
    like : path, optional
        The egoaudio file that a checkpoint of an earlier version was trained on, for the front end.
    device : str, optional
        Such as ``cpu`` or ``cuda:1``; if not given, the GPU if there is one.

    Returns
    -------
    Classifier
        A ``torch.nn.Module``: features (batch, T, F) or sound (batch, num_samples) in, probabilities out;
        ``logits`` returns the network's own output, for fine-tuning.

    Raises
    ------
    CheckpointError
        If the checkpoint cannot be used, or does not say how its features were made.
    ConfigurationError
        For a front end of a model that was trained on denoised sound, without ``denoised_input``; for an option without
        effect; if there is no such device.

    Examples
    --------
    >>> import egoaudio, torch
    >>> model = egoaudio.load_model("runs/example/best.pt", front_end=True, denoised_input=True, device="cpu")
    >>> sound = torch.zeros(2, *model.input_shape)  # mono, at model.sample_rate, a clip and its neighbours each
    >>> with torch.inference_mode():
    ...     probabilities = model(sound)
    >>> probabilities.shape == (2, len(model.class_names))
    True
    """
    chosen = choose_device(device)
    network, contents = checkpoints.load_model(path, chosen)
    if not front_end:
        for name, value in (("denoised_input", denoised_input), ("like", like)):
            if value:
                raise ConfigurationError(f"`{name}={value!r}` has no effect without a front end")
        return Classifier(network, contents).to(chosen).eval()
    sound = sound_input(path, contents, like)
    sound.require_plain(path, denoised_input)
    return Classifier.of_sound(network, contents, sound).to(chosen)
