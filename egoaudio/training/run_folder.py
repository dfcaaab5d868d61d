"""The folder of a training run: its files, and whether the run in it can be resumed.

    config.json    every option, and the file that is trained on; for people and other programs
    last.pt        the state of the run, from which the same command resumes it
    best.pt        the weights with the best score so far
    teacher.npz    with a teacher: its scores, so that a resumed run learns from the same ones
    metrics.csv    a row per epoch, ``COLUMNS``; some are empty without a validation split
    curves.png, tensorboard/, evaluation.json, per_class.csv, per_class.png, submissions: derived from those

``last.pt`` is authoritative and written first: it holds the whole table, too, and the other files are written from it,
atomically. A run that was killed thus has no row twice, and none is missing.
"""

import csv
import dataclasses
import io
import json
import math
import os
import pathlib
import shutil
from typing import TYPE_CHECKING, Any

from egoaudio._version import __version__
from egoaudio.config.options import differences, from_json, to_flat
from egoaudio.config.train import TrainConfig
from egoaudio.errors import CheckpointError, ConfigurationError, TrainingError
from egoaudio.evaluation import results
from egoaudio.hdf5.reader import EgoAudioFile
from egoaudio.models import checkpoints
from egoaudio.system import files
from egoaudio.system.files import StrPaths

if TYPE_CHECKING:
    import pandas

COLUMNS = (
    "epoch",
    "train_loss",
    "val_loss",
    "top1",
    "top5",
    "map",
    "map_prior",
    "selection",
    "learning_rate",
    "clips_per_second",
    "data_wait_fraction",
    "micro_batch_size",
    "peak_memory_mb",
    "seconds",
)

# The files that ``force`` removes, in this order: without last.pt nothing can be mistaken for a run to resume.
_OURS = (
    "last.pt",
    "best.pt",
    "config.json",
    "metrics.csv",
    "curves.png",
    "evaluation.json",
    "per_class.csv",
    "per_class.png",
    "tensorboard",
    "teacher.npz",
)


@dataclasses.dataclass
class State:
    """The position and the results of a run so far; all of it is stored in ``last.pt``."""

    epoch: int = 0
    """Epochs that are done, including their validation."""
    batch: int = 0
    """Batches of the present epoch that are done."""
    loss_sum: float = 0.0
    """Of the present epoch: the sum of each batch's loss times its number of clips."""
    num_clips: int = 0
    train_seconds: float = 0.0
    wait_seconds: float = 0.0
    """Of ``train_seconds``, how long the loop waited for data."""
    peak_memory_mb: float = 0.0
    best_epoch: int = 0
    """Counted from 1, as in the table; 0 before the first epoch is done."""
    best_score: float = -math.inf
    """The table's ``selection``, or minus the training loss where there is none."""
    best_bar: float | None = None
    """What ``best_score`` exceeds if the model hears anything; None without a validation split."""
    basis: dict[str, int] | None = None
    """What the validation is computed from: ``Validation.basis``."""
    thresholds: list[float] | None = None
    """Of the newest epoch: a score per class."""
    calibration: dict[str, Any] | None = None
    """Of the newest epoch, if it was the best so far or the last one: how scores become probabilities."""
    smooth_clips: int = 0
    """Of the newest epoch: over how many neighbouring clips on each side scores are averaged."""
    selection_maps: list[float | None] = dataclasses.field(default_factory=list)
    """Of every epoch: the validation mAP of the classes by which the best epoch is chosen."""
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    """The rows of metrics.csv: ``{column: number or None}``."""
    finished: bool = False

    def close_epoch(self, row: dict[str, Any], bar: float | None = None) -> bool:
        """Add the finished epoch's row to the table and begin the next epoch; return whether it was the best so far.

        The second epoch always replaces the first one: its score is a mean over two epochs as all later ones are, while
        the first epoch's stands alone, so that it won 12 % of 20-epoch runs of noise.
        """
        score, validated = row["selection"], True
        if score is None or math.isnan(score):  # no validation split, or all its clips have the same classes
            score, validated = -row["train_loss"], False
        better = self.best_epoch == 0 or score > self.best_score or (validated and self.epoch == 1)
        self.history.append(row)
        self.epoch, self.batch = self.epoch + 1, 0
        self.loss_sum, self.num_clips, self.peak_memory_mb = 0.0, 0, 0.0
        self.train_seconds, self.wait_seconds = 0.0, 0.0
        if better:
            self.best_epoch, self.best_score, self.best_bar = self.epoch, score, bar
        return better


@dataclasses.dataclass(frozen=True, eq=False)
class TrainingRun:
    """A finished run; ``str()`` is what the command prints."""

    folder: pathlib.Path
    epochs: int
    """Number of epochs that were trained."""
    best_epoch: int
    """Of ``best.pt``, counted from 1: the best ``selection``; without validation, the lowest training loss."""
    rows: tuple[dict[str, float | None], ...]
    """The rows of metrics.csv: ``{column of COLUMNS: number or None}``."""
    already_finished: bool
    """Whether the run had been finished before, so that nothing was done."""
    next_command: str
    """The command that evaluates it."""
    warning: str = ""
    """What to try if the validation split does not show that the model hears anything; else empty."""
    criterion: str = ""
    """What the best epoch was chosen by on the validation split; empty without one."""

    @property
    def history(self) -> "pandas.DataFrame":
        """The rows of metrics.csv, one an epoch, as a DataFrame."""
        import pandas  # takes 0.4 s, and the loop does not need it

        return pandas.DataFrame(list(self.rows), columns=list(COLUMNS))

    @property
    def best(self) -> pathlib.Path:
        """Path of the checkpoint to use."""
        return self.folder / "best.pt"

    @property
    def last(self) -> pathlib.Path:
        """Path of the newest checkpoint."""
        return self.folder / "last.pt"

    @property
    def curves(self) -> pathlib.Path:
        """Path of the picture of losses and scores."""
        return self.folder / "curves.png"

    def __str__(self) -> str:
        done = (
            f"{self.folder} holds a finished run: nothing was done (`force=True` starts over)\n"
            if self.already_finished
            else ""
        )
        best = self.rows[self.best_epoch - 1]
        score = f"training loss {best['train_loss']:.4f}, not validated"
        if best["map"] is not None:
            per_cent = {name: f"{100 * value:.1f}" for name, value in best.items() if value is not None}
            # A row of an earlier version has no prior.
            prior = f" (prior {per_cent['map_prior']})" if "map_prior" in per_cent else ""
            score = f"validation mAP {per_cent['map']}{prior}, top-1 {per_cent['top1']} per cent"
        epochs = f"{self.epochs} epoch{'s' * (self.epochs > 1)}"
        criterion = f" ({self.criterion})" if self.criterion else ""
        return f"{done}{epochs}; the best is {self.best_epoch}{criterion}: {score}\nnext: {self.next_command}" + (
            f"\nwarning: {self.warning}" if self.warning else ""
        )


def prepare(folder: pathlib.Path, path: StrPaths, config: TrainConfig) -> None:
    """Refuse a folder in which the run would replace its inputs; remove temporary files of a run that was killed.

    Raises
    ------
    TrainingError
        When the file, the published weights, or a teacher would be replaced.
    """
    pretrained = config.model.pretrained
    if (
        pretrained is not None
        and folder.exists()
        and os.path.exists(pretrained)
        and os.path.samefile(folder, pretrained)
    ):
        raise TrainingError(f"{folder} holds the weights of `pretrained={pretrained!r}`: give another `output`")
    for name in _OURS:
        try:
            if name != "tensorboard":
                read = [*files.as_paths(path), pretrained, *config.distillation.teacher]
                files.check_output(folder / name, read)
                files.remove_leftovers(folder / name)
        except OSError as error:
            raise TrainingError(f"{folder / name}: {error.strerror or error}") from error


def clear(folder: pathlib.Path) -> None:
    """Remove the files of an earlier run from its folder, and nothing else."""
    for name in _OURS:
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)
        else:
            (folder / name).unlink(missing_ok=True)


def find_earlier(folder: pathlib.Path, config: TrainConfig, file: EgoAudioFile) -> dict[str, Any] | None:
    """Return the contents of the folder's ``last.pt``, or None if no run has begun.

    Parameters
    ----------
    folder : pathlib.Path
    config : TrainConfig
        Of the present call.
    file : EgoAudioFile
        The file to train on.

    Raises
    ------
    TrainingError
        When the run in the folder has another configuration, with the options that differ. When there is no run, but
        files that a run would replace: they may be another program's.
    CheckpointError
        When ``last.pt`` is damaged, or belongs to another file.
    """
    path = folder / "last.pt"
    if not path.exists():
        there = [name for name in _OURS if (folder / name).exists()]
        if there:
            raise TrainingError(
                f"{folder} holds {', '.join(there)} but no last.pt to resume from: give another `output`, or "
                "`force=True` to replace them"
            )
        return None
    try:
        contents = checkpoints.load(path)
    except CheckpointError as error:
        raise CheckpointError(f"{error}: give another `output`, or `force=True` to start over") from error
    if "resume" not in contents:
        raise TrainingError(
            f"{path} holds a model but not the state of its run (is it a copy of best.pt?): give another `output`, or "
            "`force=True` to replace it"
        )
    changed = differences(from_json(TrainConfig, contents["config"]), config)
    if changed:
        raise TrainingError(
            f"{folder} holds a run with another configuration ({'; '.join(changed)}): give the same options, another "
            "`output`, or `force=True` to start over"
        )
    try:
        checkpoints.require_match(contents, file, same_plan=True)
    except CheckpointError as error:
        raise CheckpointError(
            f"{path}: {error}: give the file that the run began with, another `output`, or `force=True` to start over"
        ) from error
    return contents


def write_config(folder: pathlib.Path, config: TrainConfig, file: EgoAudioFile, feature: str) -> None:
    """Write config.json."""
    contents = {
        "egoaudio_version": __version__,
        "file": file.path if len(file.paths) == 1 else list(file.paths),
        "plan_sha256": file.plan_sha256,
        "options": {**to_flat(config), "feature": feature},
    }
    results.write_file(folder / "config.json", (json.dumps(contents, indent=2) + "\n").encode())


def write_metrics(folder: pathlib.Path, history: list[dict[str, float | None]]) -> None:
    """Write metrics.csv, each number with six digits."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    for row in history:
        # Rows of an earlier version lack the later columns.
        table.writerow("" if row.get(name) is None else f"{row[name]:.6g}" for name in COLUMNS)
    results.write_file(folder / "metrics.csv", text.getvalue().encode())


def find_tensorboard() -> type:
    """Return TensorBoard's writer.

    Raises
    ------
    ConfigurationError
        When it is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigurationError(
            "`tensorboard=True` needs a package that is not installed: pip install tensorboard"
        ) from error
    return SummaryWriter
