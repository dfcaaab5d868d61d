"""The objects that the stages of a training run share: file, model, state; and the checkpoints made of them."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from egoaudio.config.train import TrainConfig
from egoaudio.data.loader import Batch, Loader
from egoaudio.data.ranks import ALONE, Group
from egoaudio.errors import CheckpointError, TrainingError
from egoaudio.hdf5.reader import EgoAudioFile
from egoaudio.models import checkpoints
from egoaudio.models.device import name_of
from egoaudio.training import run_folder
from egoaudio.training.distillation import TeacherScores
from egoaudio.training.ema import WeightAverage
from egoaudio.training.messages import RunProgress, describe_bad_weights
from egoaudio.training.optimizer import learning_rate
from egoaudio.training.pending_loss import PendingLoss
from egoaudio.training.step import Stepper
from egoaudio.training.validation import Validator


@dataclass
class Run:
    """The objects that the stages of a run share."""

    file: EgoAudioFile
    """Open."""
    feature: str
    folder: Path
    config: TrainConfig
    device: torch.device
    state: run_folder.State
    """The run's position; changed by every batch."""
    loader: Loader
    teacher: TeacherScores | None
    model: torch.nn.Module
    """Not compiled; the model of ``stepper``, which may be, has the same weights."""
    stepper: Stepper
    average: WeightAverage | None
    """Of the model's weights, if the average is evaluated and kept (``ema``)."""
    validator: Validator | None
    progress: RunProgress
    num_steps: int
    """Of the optimiser, in the whole run."""
    description: dict[str, Any]
    """The fields that are the same in every checkpoint of the run, ``last.pt`` and ``best.pt``."""
    group: Group = ALONE
    """The ranks, of which the first alone writes and speaks."""
    unread: tuple[PendingLoss, Batch, int] | None = None
    """The loss of the last batch, which a GPU may still be computing; the batch, and its number in the epoch from 1."""
    board: Any = None
    """TensorBoard's writer, if asked for."""
    drawn_at: float = field(default_factory=time.monotonic)
    """When ``curves.png`` was last drawn, on the monotonic clock."""

    def learning_rate(self, batch: int) -> float:
        """Return the learning rate of a batch of the present epoch, counted from 0."""
        step = self.state.epoch * len(self.loader) + batch
        return learning_rate(step, self.num_steps, self.config.optimization)

    def checkpoint(self) -> dict[str, Any]:
        """Return the contents of ``best.pt``; ``last.pt`` has more."""
        weights = self.model if self.average is None else self.average
        return {
            **self.description,
            "epoch": self.state.epoch,
            "weights": dict(weights.state_dict()),
            "amp_dtype": name_of(self.stepper.amp_dtype),
            "thresholds": self.state.thresholds,
            "calibration": self.state.calibration,
            "smooth_clips": self.state.smooth_clips,
            "metrics": self.state.history[-1] if self.state.history else {},
        }

    def save_last(self) -> None:
        """Write ``last.pt``: the checkpoint, and everything that the next batch depends on. All ranks have the same.

        Raises
        ------
        TrainingError
            When the weights are not finite: the gradient can be infinite although the loss is not.
        """
        if not all(torch.isfinite(value).all() for value in self.model.parameters()):
            raise TrainingError(describe_bad_weights(self.state, self.folder))
        if not self.group.is_first:
            return
        scaler = self.stepper.scaler
        resume: dict[str, Any] = {
            "state": dict(vars(self.state)),
            "optimizer": self.stepper.optimizer.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "stepper": self.stepper.state_dict(),
            "random_state": torch.get_rng_state(),
        }
        if self.average is not None:  # "weights" are the averages
            resume |= {"weights": dict(self.model.state_dict()), "num_averaged": self.average.num_updates}
        checkpoints.save(self.folder / "last.pt", {**self.checkpoint(), "resume": resume})

    def restore(self, earlier: dict[str, Any]) -> None:
        """Restore the state in which ``last.pt`` was written; ``earlier`` is its contents.

        Raises
        ------
        CheckpointError
            When its weights are those of another network, such as that of an earlier version.
        """
        resume = earlier["resume"]
        weights = resume.get("weights", earlier["weights"])
        try:
            checkpoints.load_weights(self.folder / "last.pt", self.model, earlier, weights)
        except CheckpointError as error:
            raise CheckpointError(f"{error}: give another `output`, or `force=True` to start over") from error
        if self.average is not None:
            self.average.load_state_dict(earlier["weights"], resume["num_averaged"])
        self.stepper.optimizer.load_state_dict(resume["optimizer"])
        if self.stepper.scaler is not None:
            self.stepper.scaler.load_state_dict(resume["scaler"])
        self.stepper.load_state_dict(resume["stepper"])
        torch.set_rng_state(resume["random_state"])
