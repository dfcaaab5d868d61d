"""A checkpoint, ready to hear new sound: how its features are made, its network, and what its scores mean.

In: a checkpoint and a configuration. Out: a ``Predictor``, whose parts say everything that the stages behind it need.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from egoaudio.audio.clips import count_samples
from egoaudio.config.build import BuildConfig
from egoaudio.config.options import from_json, to_json
from egoaudio.config.predict import PredictConfig
from egoaudio.config.train import TrainConfig
from egoaudio.data.context import joined_shape
from egoaudio.errors import ConfigurationError
from egoaudio.evaluation.segments import DEFAULT_THRESHOLD, SegmentRules, rules_of
from egoaudio.hdf5 import reader
from egoaudio.models import checkpoints, seal
from egoaudio.models.device import choose_device, inference_dtype
from egoaudio.models.frontend import WithFrontEnd, front_end_of_checkpoint
from egoaudio.models.sound import stated_build
from egoaudio.models.steady_scorer import SteadyScorer
from egoaudio.prediction.windows import WindowPlan, plan_windows

StrPath = str | os.PathLike[str]


@dataclass(frozen=True, eq=False)
class Predictor:
    """A checkpoint, ready to hear."""

    checkpoint: str
    """Its path, as given."""
    contents: dict[str, Any]
    """Of the checkpoint, without the weights."""
    sha256: str
    """Of the checkpoint."""
    build: BuildConfig
    """How the clips and their rows are made; of egoaudio files that are scored, how they were."""
    row: str
    """What the rows hold: ``feature``, or ``waveform`` where the network's front end computes the feature from it."""
    context_clips: int
    normalization: tuple[float, float]
    """Mean and standard deviation of the rows, by which they are normalised before the network has them."""
    scorer: SteadyScorer
    rules: SegmentRules

    @property
    def class_ids(self) -> list[str]:
        """Ids of the classes, in the order of the scores."""
        return self.contents["class_ids"]

    @property
    def class_names(self) -> list[str]:
        """Names of the classes."""
        return self.contents["class_names"]

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.class_ids)

    @property
    def feature(self) -> str:
        """What the network hears."""
        return self.contents["feature"]

    @property
    def label_mode(self) -> str:
        """``multi`` or ``single``."""
        return self.scorer.label_mode

    @property
    def scoring_sha256(self) -> str:
        """Hexadecimal, of all that decides a recording's scores but the recording."""
        parts = [self.sha256, to_json(self.build), *([self.row] if self.row != self.feature else [])]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences that say what is missing and why."""
        if self.contents["thresholds"] is not None:
            return ()
        return (
            f"no class has a threshold of its own, so each begins at {DEFAULT_THRESHOLD:g}: "
            "the checkpoint comes from a run without a validation split",
        )

    @property
    def windows(self) -> WindowPlan:
        """What the network sees of the rows that are made of new sound."""
        num_clips = 2 * self.context_clips + 1
        shape = (self.scorer.feature_shape[0] // num_clips, *self.scorer.feature_shape[1:])
        return plan_windows(self.build, self.row, shape, self.normalization, self.context_clips)


def load_predictor(
    checkpoint: StrPath,
    config: PredictConfig,
    *,
    scored_files: Sequence[StrPath] = (),
    like: StrPath | None = None,
    device: str | None = None,
) -> Predictor:
    """Load a checkpoint for new sound, or for the features of files.

    Parameters
    ----------
    checkpoint : path
    config : PredictConfig
    scored_files : sequence of path
        Egoaudio files whose features are to be scored as they are.
    like : path, optional
        The egoaudio file that an earlier version's checkpoint was trained on.
    device : str, optional
        The GPU if there is one.

    Raises
    ------
    CheckpointError
        The checkpoint cannot be used, does not say how its features were made, or does not fit a file.
    StoreError
        A file cannot be used.
    ConfigurationError
        For an option without effect, a hop that the network's context does not allow, or no such device.
    """
    chosen = choose_device(device)
    model, contents = checkpoints.load_model(checkpoint, chosen)
    options = from_json(TrainConfig, contents["config"])
    if scored_files:
        build, computes = _build_of_files(contents, config, scored_files, like)
    else:
        build, computes = _build_of(checkpoint, contents, config, like)
    context_clips = options.data.context_clips or 0
    normalization = contents["normalization"]["mean"], contents["normalization"]["std"]
    row, shape = contents["feature"], tuple(contents["feature_shape"])
    contents.pop("weights")
    if computes:
        front_end = front_end_of_checkpoint({**contents, "build": to_json(build)})
        model = WithFrontEnd(front_end, normalization, model).to(chosen).eval()
        row, shape, normalization = "waveform", (front_end.num_samples,), (0.0, 1.0)
        if not scored_files:
            build = replace(build, features=replace(build.features, features=(row,)))
    scorer = SteadyScorer(
        model,
        joined_shape(shape, context_clips),
        options.data.label_mode,
        device=chosen,
        amp_dtype=inference_dtype(chosen, options.optimization, contents),
        batch_size=config.scoring.batch_size,
    )
    rules = rules_of(contents, config.segments, _neighbours(contents, config, build))
    return Predictor(
        os.fspath(checkpoint),
        contents,
        seal.digest(checkpoint),
        build,
        row,
        context_clips,
        normalization,
        scorer,
        rules,
    )


def _build_of(
    checkpoint: StrPath, contents: dict[str, Any], config: PredictConfig, like: StrPath | None
) -> tuple[BuildConfig, bool]:
    """Return how the features of new sound are made, and whether the network's front end computes them."""
    build = stated_build(checkpoint, contents, like)
    computes = config.scoring.on_the_fly or from_json(TrainConfig, contents["config"]).data.on_the_fly
    computes = computes and contents["feature"] != "waveform"
    if config.scoring.hop_seconds is None:
        return build, computes
    build = replace(build, clips=replace(build.clips, hop_seconds=config.scoring.hop_seconds))
    count_samples(build.clips, build.sample_rate)  # refuses a hop of less than a sample
    return build, computes


def _build_of_files(
    contents: dict[str, Any], config: PredictConfig, paths: Sequence[StrPath], like: StrPath | None
) -> tuple[BuildConfig, bool]:
    """Return how the features of files were made, and whether they are to be computed from their waveforms."""
    with reader.open(paths) as file:
        for name, value in (("hop_seconds", config.scoring.hop_seconds), ("like", like)):
            if value is not None:
                raise ConfigurationError(
                    f"`{name}={value!r}` has no effect on {file.path}, whose features are scored as they are"
                )
        computes = checkpoints.require_match(contents, file, on_the_fly=config.scoring.on_the_fly)
        return from_json(BuildConfig, json.dumps(file.config)), computes


def _neighbours(contents: dict[str, Any], config: PredictConfig, build: BuildConfig) -> int:
    """Return over how many neighbouring clips on each side scores are averaged."""
    seconds, hop = config.segments.smooth_seconds, build.clips.step_seconds
    if seconds is None:
        trained_hop = hop if contents["build"] is None else from_json(BuildConfig, contents["build"]).clips.step_seconds
        seconds = contents["smooth_clips"] * trained_hop
    return round(seconds / hop)
