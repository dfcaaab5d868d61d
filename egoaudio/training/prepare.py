"""Everything that a training run needs before its first step: from the file and the configuration to a ``Run``.

In: an open file, the folder, the resolved configuration, the state. Out: ``Run``, with the loader of the training rows,
the model with fresh weights, the stepper with a fresh optimiser, the validator. ``Run.restore`` loads a stopped run.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from egoaudio._version import __version__
from egoaudio.config.options import to_json
from egoaudio.config.train import OptimizationConfig, TrainConfig
from egoaudio.data.balance import class_weights
from egoaudio.data.dataset import ClipDataset
from egoaudio.data.loader import Loader
from egoaudio.data.normalization import normalization
from egoaudio.data.ranks import Group
from egoaudio.data.splits import Split, require_learnable, split_rows
from egoaudio.hdf5 import reader
from egoaudio.models import checkpoints, create_model
from egoaudio.models.device import computing_on, mixed_precision
from egoaudio.models.dropout import keep_uncompiled
from egoaudio.models.frontend import front_end_of_file
from egoaudio.models.scorer import ClipLoss, Scorer
from egoaudio.system.files import StrPaths
from egoaudio.system.progress import Progress
from egoaudio.training import run_folder
from egoaudio.training.distillation import DistillationLoss, TeacherScores, prepare_teacher
from egoaudio.training.ema import WeightAverage
from egoaudio.training.losses import Loss
from egoaudio.training.messages import RunProgress, describe_batch_norm
from egoaudio.training.optimizer import make_optimizer
from egoaudio.training.run import Run
from egoaudio.training.step import Stepper
from egoaudio.training.validation import Validator


def prepare_run(
    stack: contextlib.ExitStack,
    file: reader.EgoAudioFile,
    path: StrPaths,
    feature: str,
    folder: Path,
    config: TrainConfig,
    device: torch.device,
    state: run_folder.State,
    group: Group,
    earlier: dict[str, Any] | None,
) -> Run:
    """Make everything that the loop needs; return the ``Run``.

    Parameters
    ----------
    stack : contextlib.ExitStack
        Closes the progress at the end of the run.
    file : EgoAudioFile
        Open.
    path : path, or sequence of path
        Of the same file.
    feature : str
    folder : pathlib.Path
    config : TrainConfig
        Resolved.
    device : torch.device
    state : State
        Of a new run, or of the one to resume.
    group : Group
        The ranks.
    earlier : dict or None
        Contents of ``last.pt`` of the run to resume.
    """
    assert config.optimization.epochs is not None  # a resolved configuration
    split = split_rows(file, config.data, config.optimization.seed)
    require_learnable(file, split)
    front_end = None
    if config.data.on_the_fly:
        front_end, _ = front_end_of_file(file, feature, config.data.context_clips or 0)
    moments = _find_normalization(file, path, feature, split, config, device, group, earlier)
    resumes = earlier is not None
    teacher = prepare_teacher(file, path, split.train, folder, config, device, resumes=resumes, group=group)
    loader, loss = _prepare_data(file, path, feature, split, moments, config, device, teacher, group, front_end)
    model, computed = _prepare_model(file, loader.dataset.feature_shape, config, device)
    left = (config.optimization.epochs - state.epoch) * len(loader.dataset) - state.num_clips
    progress = stack.enter_context(RunProgress(left, "training", unit="clips", quiet=not group.is_first))
    if group.size > 1 and any(isinstance(layer, torch.nn.modules.batchnorm._BatchNorm) for layer in model.modules()):
        progress.write(describe_batch_norm(config.optimization.batch_size, group.size))
    distilled = loss if teacher is None else DistillationLoss(loss, config.distillation)
    stepper = _prepare_stepper(model, computed, distilled, config.optimization, device, progress.write, group)
    validator = _prepare_validator(file, feature, split.validation, moments, config, loss, stepper, front_end)
    description = {
        "egoaudio_version": __version__,
        "config": to_json(config),
        "network": checkpoints.describe_network(model),
        "normalization": {"mean": moments[0], "std": moments[1]},
        **checkpoints.describe_data(file, feature, config.data.on_the_fly),
    }
    average = WeightAverage(model, config.optimization.ema) if config.optimization.ema else None
    num_steps = config.optimization.epochs * len(loader)
    return Run(
        file,
        feature,
        folder,
        config,
        device,
        state,
        loader,
        teacher,
        model,
        stepper,
        average,
        validator,
        progress,
        num_steps,
        description,
        group,
    )


def restore_at_exit(stack: contextlib.ExitStack, device: torch.device) -> None:
    """Restore torch's random state and its precision of matrix products when the run ends."""
    stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
    stack.enter_context(computing_on(device))


def _find_normalization(
    file: reader.EgoAudioFile,
    path: StrPaths,
    feature: str,
    split: Split,
    config: TrainConfig,
    device: torch.device,
    group: Group,
    earlier: dict[str, Any] | None,
) -> tuple[float, float]:
    """Return mean and standard deviation of the features; a resumed run's are those that it began with."""
    if earlier is not None:
        return earlier["normalization"]["mean"], earlier["normalization"]["std"]

    def compute(rows: np.ndarray) -> Iterator[torch.Tensor]:
        """Compute the features of rows."""
        dataset = ClipDataset(path, feature, rows, front_end=front_end_of_file(file, feature)[0])
        with Progress(len(rows), "normalization", unit="clips") as progress:
            for batch in Loader(dataset, config.optimization.batch_size, config.data, device=device).epoch(0):
                yield batch.features
                progress.advance(len(batch.rows))

    if not config.data.on_the_fly or feature in file.features:
        return normalization(file, feature, split.train, config.data.normalize)
    return group.from_first(lambda: normalization(file, feature, split.train, config.data.normalize, compute))


def _prepare_data(
    file: reader.EgoAudioFile,
    path: StrPaths,
    feature: str,
    split: Split,
    moments: tuple[float, float],
    config: TrainConfig,
    device: torch.device,
    teacher: TeacherScores | None,
    group: Group,
    front_end: torch.nn.Module | None,
) -> tuple[Loader, Loss]:
    """Return the loader of the training rows, and the labels' loss."""
    context_clips = config.data.context_clips or 0
    dataset = ClipDataset(path, feature, split.train, config.data.label_mode, moments, context_clips, front_end)
    loader = Loader(
        dataset,
        config.optimization.batch_size,
        config.data,
        config.optimization.seed,
        device,
        training=True,
        teacher=teacher,
        group=group,
    )
    weights = class_weights(file, split.train, config.data.label_mode) if config.data.class_weights else None
    options = config.optimization
    return loader, Loss(config.data.label_mode, weights, device, options.loss, options.label_smoothing)


def _prepare_model(
    file: reader.EgoAudioFile, feature_shape: tuple[int, ...], config: TrainConfig, device: torch.device
) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Return the model with fresh weights, and the module that computes with them: the same, or compiled."""
    options = config.optimization
    torch.manual_seed(options.seed)  # for the fresh weights now, and later for each step's seed of dropout
    model = create_model(
        config.model.model,
        file.num_classes,
        feature_shape,
        config.model,
        options.activation_checkpointing,
        context_clips=config.data.context_clips or 0,
    ).to(device)
    if options.compile:
        keep_uncompiled(model)
    computed: Any = torch.compile(model) if options.compile else model
    return model, computed


def _prepare_validator(
    file: reader.EgoAudioFile,
    feature: str,
    rows: np.ndarray,
    moments: tuple[float, float],
    config: TrainConfig,
    loss: Loss,
    stepper: Stepper,
    front_end: torch.nn.Module | None,
) -> Validator | None:
    """Return the ``Validator`` of the stepper's model; None if nothing is held out, which is said."""
    if not len(rows):
        stepper.log(
            "there is no validation split (`validation_fraction=0`): best.pt will be the epoch with the lowest "
            "training loss"
        )
        return None
    scorer = Scorer(stepper.model, device=stepper.device, amp_dtype=stepper.amp_dtype, log=stepper.log)
    scorer.num_sharing = stepper.num_sharing
    return Validator(file, feature, rows, moments, config, loss, scorer, stepper.group, front_end)


def _prepare_stepper(
    model: torch.nn.Module,
    computed: torch.nn.Module,
    loss: ClipLoss,
    options: OptimizationConfig,
    device: torch.device,
    log: Callable[[str], object],
    group: Group,
) -> Stepper:
    """Return the ``Stepper``, with a fresh optimiser over the model's weights."""
    amp_dtype, scaler = mixed_precision(device, options.amp, options.amp_dtype)
    if options.amp and amp_dtype is None:
        log("`amp`: computing in float32, as this processor has no instructions for bfloat16 and would emulate them")
    stepper = Stepper(
        computed,
        make_optimizer(model, options),
        loss,
        device=device,
        micro_batch_size=options.micro_batch_size,
        amp_dtype=amp_dtype,
        scaler=scaler,
        clip_gradient=options.clip_gradient,
        log=log,
        group=group,
    )
    stepper.times_precisions = device.type == "cpu" and amp_dtype is not None and options.amp_dtype is None
    return stepper
