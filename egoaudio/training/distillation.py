"""Distillation: the student learns its teachers' scores as well as the labels.

    loss = (1 - w) * labels' loss + w * T^2 * distance(student's logits / T, teachers' scores at T)

In: checkpoints (``DistillationConfig.teacher``), each of which scores the student's training clips once, before
training, with its own feature, normalisation and context, without augmentation. Kept is the mean over the teachers of
sigmoid(logits / T), or softmax(logits / T) with ``label_mode="single"``: float32 (num_clips, num_classes). The loader
appends these scores to the labels as further columns, so that mixup mixes both by the same shares and partners.

``teacher.npz`` in the run's folder holds them, and a resumed run reads them from there: computed again, in other
micro-batches or with another number of threads, they would differ in their last digits, and so would every weight.

Source: Hinton et al. 2015, https://arxiv.org/abs/1503.02531. T^2 keeps the size of the gradient independent of T.
"""

import hashlib
import io
import json
import warnings
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from egoaudio.config.options import from_json
from egoaudio.config.train import DistillationConfig, TrainConfig
from egoaudio.data.dataset import ClipDataset
from egoaudio.data.loader import Loader
from egoaudio.data.ranks import ALONE, Group
from egoaudio.data.splits import split_rows
from egoaudio.errors import CheckpointError, ConfigurationError, TrainingError
from egoaudio.evaluation import results
from egoaudio.hdf5.reader import EgoAudioFile
from egoaudio.models import checkpoints
from egoaudio.models.frontend import front_end_of_file
from egoaudio.models.scorer import Scorer, score
from egoaudio.system.files import StrPaths
from egoaudio.system.progress import Progress
from egoaudio.training.losses import Loss

SCORES_FILE = "teacher.npz"


# --------------------------------------------------------------------------------------------------------- the loss


class DistillationLoss:
    """A loss of which a share comes from the teachers' scores; a sum over clips, like the loss that it wraps.

    The distance is binary cross-entropy (``multi``) or the Kullback-Leibler divergence (``single``). Class weights
    apply to it as to the labels' loss: class by class, or clip by clip according to its label.

    Parameters
    ----------
    loss : Loss
        The labels' loss.
    config : DistillationConfig
        The teachers' share w and the temperature T.
    """

    def __init__(self, loss: Loss, config: DistillationConfig) -> None:
        self.loss, self.weight, self.temperature = loss, config.teacher_weight, config.teacher_temperature
        self.label_mode = loss.label_mode

    def sum(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the loss summed over the clips, of logits (b, C) and labels followed by teachers' scores (b, 2 C)."""
        labels, scores = labels.chunk(2, dim=1)
        distance = self._distance(logits.float() / self.temperature, labels, scores)
        return (1 - self.weight) * self.loss.sum(logits, labels) + self.weight * self.temperature**2 * distance

    def normaliser(self, labels: torch.Tensor) -> float:
        """Return the divisor of the sum over the whole batch, of labels followed by teachers' scores (b, 2 C)."""
        return self.loss.normaliser(labels.chunk(2, dim=1)[0])

    def divisor(self, labels: torch.Tensor) -> torch.Tensor | float:
        """Return the divisor of the sum of one batch where the labels are, not yet read; 1 if no label weighs."""
        return self.loss.divisor(labels.chunk(2, dim=1)[0])

    def mean(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the loss of a whole batch, a scalar tensor."""
        return self.sum(logits, labels) / self.divisor(labels)

    def _distance(self, logits: torch.Tensor, labels: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the distance of the student from the teachers, summed over the clips."""
        weights = self.loss.class_weights
        if self.label_mode == "multi":
            return functional.binary_cross_entropy_with_logits(logits, scores, weight=weights, reduction="sum")
        of_clips = functional.kl_div(functional.log_softmax(logits, dim=1), scores, reduction="none").sum(dim=1)
        return (of_clips if weights is None else of_clips * (labels * weights).sum(dim=1)).sum()


# ---------------------------------------------------------------------------------------------- the teachers' scores


@dataclass(frozen=True, eq=False)
class TeacherScores:
    """The teachers' scores of the student's training clips; call it with rows of the file."""

    rows: np.ndarray
    """int64 (n,), ascending: rows of the file."""
    scores: np.ndarray
    """float32 (n, C), from 0 to 1: the mean over the teachers, at the temperature."""
    identity: dict[str, Any]
    """What the scores were computed from: checkpoints, file, rows, temperature."""
    is_stored: bool
    """Whether they were read from ``teacher.npz``."""

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Return the scores (b, C) of rows (b,) of the file."""
        return self.scores[np.searchsorted(self.rows, rows)]

    def save(self, folder: Path) -> None:
        """Write ``teacher.npz`` into the run's folder, atomically, unless it is there already."""
        if self.is_stored:
            return
        contents = io.BytesIO()
        np.savez(contents, rows=self.rows, scores=self.scores, identity=np.array(json.dumps(self.identity)))
        results.write_file(folder / SCORES_FILE, contents.getvalue())


def prepare_teacher(
    file: EgoAudioFile,
    path: StrPaths,
    rows: np.ndarray,
    folder: Path,
    config: TrainConfig,
    device: torch.device,
    *,
    resumes: bool,
    group: Group = ALONE,
) -> TeacherScores | None:
    """Return the ``TeacherScores`` of a run, or None without a teacher.

    Parameters
    ----------
    file : EgoAudioFile
        Open.
    path : path, or sequence of path
        Of the same file.
    rows : int64 array (n,)
        The student's training clips, ascending.
    folder : pathlib.Path
        Of the run.
    config : TrainConfig
    device : torch.device
    resumes : bool
        Whether a ``teacher.npz`` in the folder belongs to this run.
    group : Group
        The ranks, which divide the clips among them; all get all scores.

    Raises
    ------
    CheckpointError
        When a teacher cannot be read or does not fit the file.
    ConfigurationError
        When a teacher is in the run's own folder, or has another label mode.
    TrainingError
        When a teacher's scores are not finite.
    """
    options = config.distillation
    if not options.teacher:
        return None
    for teacher in options.teacher:
        if Path(teacher).resolve().parent == folder.resolve():
            raise ConfigurationError(
                f"`teacher={teacher!r}` is in {folder}, where this run writes its own checkpoints: give another "
                "`output`, or copy the teacher to another folder"
            )
    identity: dict[str, Any] = {
        "plan_sha256": file.plan_sha256,
        "label_mode": config.data.label_mode,
        "temperature": options.teacher_temperature,
        "rows_sha256": hashlib.sha256(rows.tobytes()).hexdigest(),
    }
    stored = None
    if resumes:
        stored = group.from_first(lambda: _read(folder / SCORES_FILE, rows, identity, options.teacher))
    if stored is not None:
        return stored
    num_clips = len(rows) * len(options.teacher)
    with Progress(num_clips, "scoring by the teacher", unit="clips", quiet=not group.is_first) as progress:
        scores = np.zeros((len(rows), file.num_classes), np.float32)
        for teacher in options.teacher:
            scores += _score(teacher, file, path, rows, config, device, progress, group)
    scores /= len(options.teacher)
    identity["teachers"] = [_sha256(teacher) for teacher in options.teacher]
    return TeacherScores(rows, scores, identity, is_stored=False)


def _score(
    teacher: str,
    file: EgoAudioFile,
    path: StrPaths,
    rows: np.ndarray,
    config: TrainConfig,
    device: torch.device,
    progress: Progress,
    group: Group,
) -> np.ndarray:
    """Return one teacher's scores, float32 (n, C)."""
    try:
        model, contents = checkpoints.load_model(teacher, device)
    except CheckpointError as error:
        raise CheckpointError(f"`teacher`: {error}") from error
    try:
        computes = checkpoints.require_match(contents, file, on_the_fly=config.data.on_the_fly)
    except CheckpointError as error:
        raise CheckpointError(
            f"`teacher={teacher!r}`: {error}. Give a teacher of the same classes, trained on a feature of the file"
        ) from error
    its = from_json(TrainConfig, contents["config"])
    if its.data.label_mode != config.data.label_mode:
        raise ConfigurationError(
            f"`teacher={teacher!r}` was trained with `label_mode={its.data.label_mode!r}` and this run has "
            f"{config.data.label_mode!r}, so their scores mean different things: give both the same"
        )
    if contents["plan_sha256"] == file.plan_sha256:
        _warn_of_leaks(teacher, file, rows, its)
    normalization = contents["normalization"]["mean"], contents["normalization"]["std"]
    context_clips = its.data.context_clips or 0
    front_end = front_end_of_file(file, contents["feature"], context_clips)[0] if computes else None
    dataset = ClipDataset(
        path,
        contents["feature"],
        rows,
        normalization=normalization,
        context_clips=context_clips,
        front_end=front_end,
    )
    loader = Loader(dataset, config.optimization.batch_size, config.data, device=device, group=group)
    scorer, temperature = Scorer(model, device=device, log=progress.write), config.distillation.teacher_temperature
    with dataset.file:
        scores = score(lambda x: scorer(x) / temperature, loader, its.data.label_mode, advance=progress.advance).scores
    bad = rows[~np.isfinite(scores).all(axis=1)]
    if len(bad):
        raise TrainingError(
            f"`teacher={teacher!r}` gives {len(bad)} clips scores that are not numbers, the first in row {bad[0]}: "
            f"check {file.path} with egoaudio-inspect --verify, or give another teacher"
        )
    return scores


def _warn_of_leaks(teacher: str, file: EgoAudioFile, rows: np.ndarray, its: TrainConfig) -> None:
    """Warn if the teacher was trained on clips that the student holds out for validation."""
    num_leaks = len(np.setdiff1d(split_rows(file, its.data, its.optimization.seed).train, rows))
    if num_leaks:
        warnings.warn(
            f"`teacher={teacher!r}` was trained on {num_leaks:,} clips that this run holds out for validation, so "
            "validation mAP will be too high: give both runs the same `seed`, `split_unit` and `validation_fraction`",
            stacklevel=4,
        )


def _read(path: Path, rows: np.ndarray, identity: dict[str, Any], teachers: Sequence[str]) -> TeacherScores | None:
    """Return the ``TeacherScores`` of ``teacher.npz``, or None, with a warning, if the teachers have to score again."""
    try:
        with np.load(path, allow_pickle=False) as contents:
            scores, found = contents["scores"], json.loads(str(contents["identity"]))
    except FileNotFoundError:  # the run was killed before it was written, and so before the first step
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        warnings.warn(
            f"{path} cannot be read ({error}): the teachers score again, which may change the last digits",
            stacklevel=3,
        )
        return None
    shas = found.pop("teachers", ())
    if found != identity or len(shas) != len(teachers):
        warnings.warn(f"{path} belongs to another run: the teachers score again", stacklevel=3)
        return None
    for teacher, sha in zip(teachers, shas, strict=True):
        if Path(teacher).exists() and _sha256(teacher) != sha:
            warnings.warn(
                f"`teacher={teacher!r}` has changed since the run began. The run continues with the scores of then; "
                "`force=True` starts over with those of now",
                stacklevel=3,
            )
    return TeacherScores(rows, scores, {**identity, "teachers": shas}, is_stored=True)


def _sha256(path: str) -> str:
    """Return the hexadecimal SHA-256 of a file."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
