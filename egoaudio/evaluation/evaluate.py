"""Evaluate a checkpoint on a split of a file: from the two files to an ``Evaluation`` and the files written of it.

Scores (num_clips, num_classes) are sigmoids of the logits, or a softmax for a model trained with
``label_mode="single"`` (``models.scorer``); ``evaluation.scores`` computes the metrics.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from egoaudio.config.options import from_json
from egoaudio.config.predict import SegmentConfig
from egoaudio.config.train import POOLS, SPLITS, TrainConfig
from egoaudio.data.dataset import ClipDataset
from egoaudio.data.loader import Loader
from egoaudio.data.ranks import ALONE, Group, joined
from egoaudio.data.splits import split_rows
from egoaudio.errors import ConfigurationError, TrainingError
from egoaudio.evaluation import results
from egoaudio.evaluation.ground_truth import GroundTruth, class_frequencies, read_ground_truth
from egoaudio.evaluation.scores import NUM_RESAMPLES, evaluate_scores
from egoaudio.evaluation.segments import SegmentRules, rules_of
from egoaudio.evaluation.smoothing import smooth
from egoaudio.hdf5 import reader
from egoaudio.models import checkpoints, seal
from egoaudio.models.device import choose_device, inference_dtype
from egoaudio.models.frontend import front_end_of_file
from egoaudio.models.scorer import Scored, Scorer, score
from egoaudio.system import allocator
from egoaudio.system.files import StrPaths, as_paths
from egoaudio.system.progress import Progress


def evaluate(
    checkpoint: str | os.PathLike[str],
    path: StrPaths,
    *,
    split: str = "test",
    pool: str = "max",
    output: str | os.PathLike[str] | None = None,
    submission: str | os.PathLike[str] | None = None,
    frame_submission: str | os.PathLike[str] | None = None,
    device: str | None = None,
    num_resamples: int = NUM_RESAMPLES,
    on_the_fly: bool = False,
) -> results.Evaluation:
    """Evaluate a checkpoint on a split of a file, and write the results.

    In a program that ``torchrun`` has started several of, each scores a share of the clips; the first alone writes.

    Parameters
    ----------
    checkpoint, path : path
        Of a run's ``best.pt`` or ``last.pt``, and of an egoaudio file, or several as one.
    split : str
        ``test``: the file's test videos, also those without sound. ``validation``, ``train``: as the run divided the
        train videos, which is known only for the file that it was trained on.
    pool : str
        How a video's scores follow from its clips': ``max`` or ``mean``.
    output : path, optional
        Folder for evaluation.json, per_class.csv and per_class.png; the checkpoint's if not given.
    submission, frame_submission : path, optional
        Files for the scores of the videos, and of their frames, in the official text formats.
    device : str, optional
        Such as ``cpu`` or ``cuda:1``; if not given, the GPU if there is one.
    num_resamples : int
        Of the bootstrap, for the intervals.
    on_the_fly : bool
        Compute the features from the file's waveforms, as is done anyway for a model that was trained so.

    Returns
    -------
    Evaluation

    Raises
    ------
    CheckpointError
        If the checkpoint cannot be used, or does not fit the file.
    StoreError
        If the file cannot be used.
    TrainingError
        If the split is empty, or a result cannot be written.
    ConfigurationError
        If there is no such split, way of pooling, or device.

    Examples
    --------
    >>> import egoaudio
    >>> evaluation = egoaudio.evaluate("runs/example/best.pt", "ego.h5", num_resamples=0)
    >>> 0 <= evaluation.scores["map"].value <= 1
    True
    """
    with joined(device) as group:
        _check_choices(split, pool)
        loaded = _Loaded(checkpoint, path, split, choose_device(group.device_name(device)), on_the_fly)
        folder = Path(checkpoint).parent if output is None else Path(output)
        loaded.require_same(group)
        if group.is_first:
            results.prepare(folder, (submission, frame_submission), (checkpoint, *as_paths(path)))
        scores = loaded.score(group)
        evaluation = group.from_first(lambda: scores.evaluate(pool, num_resamples))
        if group.is_first:
            results.write(evaluation, folder)
            if submission is not None:
                results.write_submission(evaluation, submission)
            if frame_submission is not None:
                results.write_submission(evaluation, frame_submission, frames=True)
        return evaluation


@dataclass(frozen=True, eq=False)
class SplitScores:
    """A checkpoint's scores of a split, with all that is needed to evaluate them."""

    scores: np.ndarray
    """float32 (n, C), of ``truth.rows``: each clip's own, not smoothed."""
    truth: GroundTruth
    prior: np.ndarray | None
    """float64 (C,): class frequencies in training."""
    contents: dict[str, Any]
    """Of the checkpoint."""
    config: TrainConfig
    about: dict[str, Any]
    """Names of the checkpoint, the file and the split."""

    @property
    def smoothed(self) -> np.ndarray:
        """The scores that are evaluated: averaged over neighbouring clips as the checkpoint says."""
        return smooth(self.scores, self.truth.rows, self.truth.clip_video, self.contents["smooth_clips"])

    @property
    def rules(self) -> SegmentRules | None:
        """How the scores become segments by default; None where no validation split has chosen thresholds."""
        if self.contents["thresholds"] is None:
            return None
        return rules_of(self.contents, SegmentConfig(), self.contents["smooth_clips"])

    def evaluate(self, pool: str = "max", num_resamples: int = NUM_RESAMPLES) -> results.Evaluation:
        """Return the evaluation of the scores."""
        evaluation = evaluate_scores(
            self.scores,
            self.truth,
            thresholds=self.contents["thresholds"],
            prior=self.prior,
            pool=pool,
            smooth_clips=self.contents["smooth_clips"],
            num_resamples=num_resamples,
            seed=self.config.optimization.seed,
            rules=self.rules,
        )
        return replace(evaluation, about=self.about)


def score_split(
    checkpoint: str | os.PathLike[str], path: StrPaths, split: str, device: str | None = None
) -> SplitScores:
    """Return a checkpoint's scores of a split of a file; nothing is written.

    Parameters and errors are those of ``evaluate``.
    """
    _check_choices(split, POOLS[0])
    return _Loaded(checkpoint, path, split, choose_device(device)).score()


class _Loaded:
    """A checkpoint and a split of a file that fit each other, before anything is scored."""

    def __init__(
        self,
        checkpoint: str | os.PathLike[str],
        path: StrPaths,
        split: str,
        device: torch.device,
        on_the_fly: bool = False,
    ) -> None:
        self._model, self._contents = checkpoints.load_model(checkpoint, device)
        self._config = from_json(TrainConfig, self._contents["config"])
        self._path, self._device = path, device
        with reader.open(path) as file:
            computes = checkpoints.require_match(self._contents, file, split != "test", on_the_fly)
            self._front_end = None
            if computes:
                context_clips = self._config.data.context_clips or 0
                self._front_end, _ = front_end_of_file(file, self._contents["feature"], context_clips)
            self._rows, self._truth, self._prior = _read_split(file, self._contents, self._config, split)
        self._about = {"checkpoint": str(checkpoint), "file": ", ".join(as_paths(path)), "split": split}
        self._about |= {name: self._contents[name] for name in ("epoch", "plan_sha256")}
        self._about["checkpoint_sha256"] = seal.digest(checkpoint)

    def require_same(self, group: Group) -> None:
        """Raise ConfigurationError unless all ranks have the same checkpoint and split."""
        weights = {name: float(value.double().sum()) for name, value in self._contents["weights"].items()}
        group.require_same({**self._about, "weights that add up to": sum(weights.values()), "clips": len(self._rows)})

    def score(self, group: Group = ALONE) -> SplitScores:
        """Return the scores of the split, of which each rank has computed its share."""
        scored = _score(
            self._model, self._contents, self._config, self._path, self._rows, self._device, group, self._front_end
        )
        return SplitScores(scored.scores, self._truth, self._prior, self._contents, self._config, self._about)


def _check_choices(split: str, pool: str) -> None:
    """Raise ConfigurationError for a split or a way of pooling that does not exist."""
    for name, value, choices in (("split", split, SPLITS), ("pool", pool, POOLS)):
        if value not in choices:
            raise ConfigurationError(f"`{name}={value!r}`: expected one of {', '.join(choices)}")


def _read_split(
    file: reader.EgoAudioFile, contents: dict[str, Any], config: TrainConfig, split: str
) -> tuple[np.ndarray, GroundTruth, np.ndarray | None]:
    """Return the split's clips (rows of the file), their ground truth, and the prior: class frequencies in training."""
    rows, videos, train = _choose_rows(file, contents, config, split)
    prior = class_frequencies(file.labels, train) if len(train) else None
    return rows, read_ground_truth(file, rows, videos), prior


def _choose_rows(
    file: reader.EgoAudioFile, contents: dict[str, Any], config: TrainConfig, split: str
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Return the split's clips, its videos (None: those of its clips), and the clips to count classes in."""
    if contents["plan_sha256"] != file.plan_sha256:
        # Another file than the run's: require_match has allowed only its test split.
        of_train_videos = (file.video_table["split"] == b"train")[file.clip_table["video"]]
        return *_test_split(file), np.flatnonzero(file.trainable & of_train_videos)
    divided = split_rows(file, config.data, config.optimization.seed)
    if split == "test":
        return *_test_split(file), divided.train
    return divided.rows(split), None, divided.train


def _score(
    model: torch.nn.Module,
    contents: dict[str, Any],
    config: TrainConfig,
    path: StrPaths,
    rows: np.ndarray,
    device: torch.device,
    group: Group = ALONE,
    front_end: torch.nn.Module | None = None,
) -> Scored:
    """Score clips with a progress bar, in the precision that the run chose."""
    normalization = contents["normalization"]["mean"], contents["normalization"]["std"]
    dataset = ClipDataset(
        path,
        contents["feature"],
        rows,
        normalization=normalization,
        context_clips=config.data.context_clips or 0,
        front_end=front_end,
    )
    loader = Loader(dataset, config.optimization.batch_size, config.data, device=device, group=group)
    amp_dtype = inference_dtype(device, config.optimization, contents)
    with Progress(len(rows), "scoring", unit="clips", quiet=not group.is_first) as progress:
        if device.type == "cpu":
            allocator.reuse_blocks()  # the next micro-batch takes the same blocks again
        scorer = Scorer(model, device=device, amp_dtype=amp_dtype, log=progress.write)
        scorer.num_sharing = group.local_size if device.type == "cpu" else 1
        return score(
            scorer,
            loader,
            config.data.label_mode,
            advance=progress.advance,
        )


def _test_split(file: reader.EgoAudioFile) -> tuple[np.ndarray, np.ndarray]:
    """Return the clips of the test split (rows of /clips) and all its videos (rows of /videos)."""
    videos = np.flatnonzero(file.video_table["split"] == b"test")
    rows = np.flatnonzero(file.usable & np.isin(file.clip_table["video"], videos))
    if not len(rows):
        raise TrainingError(
            f"{file.path}: {len(videos)} videos of the split test, none with sound: build with `test_annotations`, or "
            "give another `split`"
        )
    return rows, videos
