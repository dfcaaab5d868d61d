"""The validation split of a run: scored after each epoch, for the table and for the choice of ``best.pt``.

A mean over all classes of a few videos is mostly chance, and more so its maximum over the epochs. The best epoch is
therefore chosen by the classes that are active in enough videos, as a mean over two epochs (``selection_score``); the
first epoch, which has none before it, is the best only of a run of one. A run has learnt something if its score is
above what the same scores reach when they are compared with the labels of other clips (``Validation.bar``): of 16 runs
this bar separated all 8 with shuffled labels from the others, while all 16 were above the prior.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from egoaudio.config.train import TrainConfig
from egoaudio.data.dataset import ClipDataset
from egoaudio.data.loader import Loader
from egoaudio.data.ranks import ALONE, Group
from egoaudio.evaluation import calibration_fit, metrics
from egoaudio.evaluation.audible import selection_classes, unrelated_precision
from egoaudio.evaluation.ground_truth import read_ground_truth
from egoaudio.evaluation.scores import choose_thresholds, evaluate_scores
from egoaudio.evaluation.smoothing import choose_neighbours, smooth
from egoaudio.hdf5.reader import EgoAudioFile
from egoaudio.models.scorer import Scored, Scorer, score
from egoaudio.training.losses import Loss

# Standard deviations above the mean of unrelated scores: the best of 20 epochs of a model that has learnt nothing is
# above that in 3 % of runs.
_DEVIATIONS = 3


@dataclass(frozen=True)
class Validation:
    """The results of an epoch on the validation split; without one, ``Validation()``."""

    val_loss: float | None = None
    top1: float | None = None
    """This and the next three are fractions, of the scores averaged over neighbouring clips."""
    top5: float | None = None
    map: float | None = None
    map_prior: float | None = None
    """The mean average precision of the classes' frequencies."""
    selection_map: float | None = None
    """Mean average precision of the classes that are active in enough videos; NaN if all clips have the same."""
    bar: float | None = None
    """What ``selection_map`` exceeds if the model hears anything: its prior, and the precision of unrelated scores; NaN
    where that is."""
    smooth_clips: int = 0
    """Over how many neighbouring clips on each side the scores are averaged."""
    thresholds: list[float] | None = None
    """A score per class."""
    basis: dict[str, int] | None = None
    """What this is computed from: ``clips`` and ``videos``, ``active`` classes, and those of ``selection_map``."""

    def columns(self) -> dict[str, float | None]:
        """Return the columns of the table that come from here."""
        return {name: getattr(self, name) for name in ("val_loss", "top1", "top5", "map", "map_prior")}


class Validator:
    """Scores the validation split whenever it is called.

    Parameters
    ----------
    file : EgoAudioFile
        Open.
    feature : str
    rows : int64 array (n,)
        The validation split.
    normalization : (float, float)
        ``(mean, std)`` of the features.
    config : TrainConfig
        Resolved.
    loss : Loss
        The labels' loss.
    scorer : Scorer
        Of the model that is trained.
    group : Group
        The ranks, which divide the clips among them; the first computes the metrics for all.
    front_end : torch.nn.Module, optional
        Computes the features from the file's waveforms.
    """

    def __init__(
        self,
        file: EgoAudioFile,
        feature: str,
        rows: np.ndarray,
        normalization: tuple[float, float],
        config: TrainConfig,
        loss: Loss,
        scorer: Scorer,
        group: Group = ALONE,
        front_end: torch.nn.Module | None = None,
    ) -> None:
        self.truth = read_ground_truth(file, rows)
        # Every clip once, with all its labels, whatever the model was trained on.
        dataset = ClipDataset(
            file.paths,
            feature,
            rows,
            normalization=normalization,
            context_clips=config.data.context_clips or 0,
            front_end=front_end,
        )
        self.group = group
        self.loader = Loader(dataset, config.optimization.batch_size, config.data, device=scorer.device, group=group)
        self.label_mode, self.loss, self.scorer = config.data.label_mode, loss, scorer
        self.smooth_clips = config.optimization.smooth_clips
        labels, video = self._labelled(self.truth.labels), self._labelled(self.truth.clip_video)
        self.classes = selection_classes(labels, video)
        self.basis = {
            "clips": len(labels),
            "videos": len(np.unique(video)),
            "active": int(labels.any(axis=0).sum()),
            "classes": int(self.classes.sum()),
        }

    def __call__(self) -> Validation:
        """Return the ``Validation`` of the model's present weights."""
        scored = score(self.scorer, self.loader, self.label_mode, self.loss)
        return self.group.from_first(lambda: self._validate(scored))

    def _validate(self, scored: Scored) -> Validation:
        """Return the ``Validation`` of scores of all clips."""
        num_neighbours = self.smooth_clips
        if num_neighbours is None:
            num_neighbours = choose_neighbours(scored.scores, self.truth, self.classes) if self.classes.any() else 0
        scores = self._smoothed = smooth(scored.scores, self.truth.rows, self.truth.clip_video, num_neighbours)
        labels, video = self._labelled(self.truth.labels), self._labelled(self.truth.clip_video)
        prior = labels.mean(axis=0)  # the precision of any scores that are the same for all clips
        found = evaluate_scores(scores, self.truth, prior=prior)
        precision = np.array(found.per_class["average_precision"])[self.classes]
        top1, top5, mean_precision = (float(found.scores[name].value) for name in ("top1", "top5", "map"))
        return Validation(
            val_loss=scored.loss,
            top1=top1,
            top5=top5,
            map=mean_precision,
            map_prior=float(found.scores["map"].prior),
            selection_map=metrics.mean_over_classes(precision),
            bar=_bar(self._labelled(scores)[:, self.classes], labels[:, self.classes], video),
            smooth_clips=num_neighbours,
            thresholds=[float(value) for value in choose_thresholds(scores, self.truth)],
            basis=self.basis,
        )

    def calibrate(self) -> dict[str, Any]:
        """Return how the scores of the last call become probabilities, as a checkpoint holds it; on rank 0 only.

        It takes seconds for a large split, so it is asked for when a checkpoint is to be kept.
        """
        labels, video = self._labelled(self.truth.labels), self._labelled(self.truth.clip_video)
        return calibration_fit.fit(self._labelled(self._smoothed), labels, video).to_plain()

    def _labelled(self, values: np.ndarray) -> np.ndarray:
        """Return the values (n, ...) of the labelled clips."""
        return values[self.truth.labelled]


def _bar(scores: np.ndarray, labels: np.ndarray, video: np.ndarray) -> float:
    """Return what the mean average precision has to exceed; parameters as in ``unrelated_precision``.

    NaN where there is no class.
    """
    if scores.shape[1] == 0:
        return math.nan
    unrelated = unrelated_precision(scores, labels, video).mean(axis=1)
    bar = float(labels.mean())  # the mean over classes
    return max(bar, float(unrelated.mean() + _DEVIATIONS * unrelated.std())) if len(unrelated) else bar


def selection_score(selection_maps: Sequence[float | None]) -> float | None:
    """Return the score of the newest epoch, by which ``best.pt`` is chosen: the mean over it and the previous epoch.

    Parameters
    ----------
    selection_maps : sequence of float or None
        ``Validation.selection_map`` of every epoch so far; the newest last.

    Returns
    -------
    float or None
        None without a validation split.
    """
    newest = [value for value in selection_maps[-2:] if value is not None]
    return math.fsum(newest) / len(newest) if newest else None
