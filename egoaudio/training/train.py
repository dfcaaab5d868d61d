"""The training loop: from an egoaudio file to a trained model, in a folder from which a stopped run is resumed.

In: the file, a folder, a ``TrainConfig``. Out: ``best.pt`` (the weights with the best validation score), ``last.pt``,
``metrics.csv``, ``curves.png``, ``config.json`` (see ``run_folder``).

A resumed run ends with the same weights, bit for bit on a CPU with the same number of threads: everything that a step
depends on is either in ``last.pt`` (weights and their average, optimiser, scaler, torch's random state, size of the
micro-batch) or follows from numbers that are (order and augmentation of an epoch from seed, epoch and batch; the
learning rate from the number of the step). Files are complete at every instant, so a run may be stopped by ``kill -9``.

In a command, signals are handled between two batches: ``last.pt`` is written first, then the signal takes its effect.
"""

import contextlib
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from egoaudio._version import __version__
from egoaudio.config.options import to_json
from egoaudio.config.train import OptimizationConfig, TrainConfig
from egoaudio.data.balance import class_weights
from egoaudio.data.dataset import ClipDataset
from egoaudio.data.loader import Batch, Loader
from egoaudio.data.normalization import normalization
from egoaudio.data.splits import Split, require_learnable, split_rows
from egoaudio.errors import TrainingError
from egoaudio.evaluation import results
from egoaudio.figures import curves_png
from egoaudio.hdf5 import reader
from egoaudio.models import check_feature, check_pretrained, check_sizes, checkpoints, create_model
from egoaudio.models.device import choose_device, mixed_precision
from egoaudio.models.memory import peak_memory_mb, reset_peak_memory
from egoaudio.models.scorer import Scorer
from egoaudio.system import lock, signals
from egoaudio.training import run_folder
from egoaudio.training.distillation import DistillationLoss, TeacherScores, prepare_teacher
from egoaudio.training.ema import WeightAverage
from egoaudio.training.losses import Loss
from egoaudio.training.messages import (
    RunProgress,
    describe_bad_loss,
    describe_epoch,
    describe_resume,
    describe_wait,
    summarize,
)
from egoaudio.training.optimizer import make_optimizer, set_learning_rate
from egoaudio.training.run import Run
from egoaudio.training.step import BatchLoss, Stepper
from egoaudio.training.validation import Validation, Validator, selection_score

# Above this share of time spent waiting for data, a message says what to change.
NOTABLE_WAIT_FRACTION = 0.05
# Drawing curves.png takes 0.2 s, as long as an epoch of a small file: it is not drawn more often than this.
DRAWING_SECONDS = 10


def train(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str],
    config: TrainConfig | None = None,
    *,
    force: bool = False,
    device: str | None = None,
    tensorboard: bool = False,
) -> run_folder.TrainingRun:
    """Train a model, or resume a run that was stopped.

    Ctrl-C stops it at once; the same call resumes from ``last.pt``, which is written after every epoch, and within one
    every ``checkpoint_minutes``. (In the command, Ctrl-C waits for the current batch, and nothing is done twice.)
    Afterwards torch's random state is what it was before the call.

    Parameters
    ----------
    path : str or os.PathLike
        The egoaudio file.
    output : str or os.PathLike
        Folder of the run; made if it does not exist.
    config : TrainConfig or None
        Every option; the defaults if not given.
    force : bool
        Start over, and replace the run that is in ``output``.
    device : str or None
        Such as ``cpu`` or ``cuda:1``; if not given, the GPU if there is one.
    tensorboard : bool
        Also write the table's columns for TensorBoard, into ``output/tensorboard``.

    Returns
    -------
    TrainingRun
        Its folder, its table as a DataFrame, its best epoch; ``str()`` is a summary of two lines.

    Raises
    ------
    TrainingError
        For a loss that is not finite, too little memory or disk space, data that changes, another run in ``output``.
    CheckpointError
        When ``last.pt`` is damaged or belongs to other data.

    Examples
    --------
    >>> import egoaudio
    >>> config = egoaudio.TrainConfig(optimization=egoaudio.OptimizationConfig(epochs=5))
    >>> run = egoaudio.train("ego.h5", "runs/example", config)
    >>> run.history["epoch"].tolist()
    [1, 2, 3, 4, 5]
    >>> run.best.name
    'best.pt'
    """
    config = (TrainConfig() if config is None else config).resolved()
    chosen = choose_device(device)
    check_sizes(config.model)
    check_pretrained(config.model)
    board_class = run_folder.find_tensorboard() if tensorboard else None
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(reader.open(path))
        feature = check_feature(config.model.model, file.features, config.model.feature, file.sample_rate)
        folder = Path(output)
        results.prepare(folder)
        stack.enter_context(lock.held(folder))
        run_folder.prepare(folder, path, config)
        earlier = None if force else run_folder.find_earlier(folder, config, file)
        state = run_folder.State() if earlier is None else run_folder.State(**earlier["resume"]["state"])
        if state.finished:
            return summarize(folder, state, file, path, already_finished=True)

        _restore_at_exit(stack, chosen)
        run = _prepare(stack, file, path, feature, folder, config, chosen, state, resumes=earlier is not None)
        _open_folder(stack, run, earlier, board_class)
        while not state.finished:
            if not _train_epoch(run):
                # The signal is ignored (nohup, & in a script), or its handler returned: the epoch continues.
                continue
            started = time.monotonic()
            validation = _validate(run)
            _close_epoch(run, validation, time.monotonic() - started)
        return summarize(folder, state, file, path)


# ----------------------------------------------------------------------------------------------------------- prepare


def _prepare(
    stack: contextlib.ExitStack,
    file: reader.EgoAudioFile,
    path: str | os.PathLike[str],
    feature: str,
    folder: Path,
    config: TrainConfig,
    device: torch.device,
    state: run_folder.State,
    *,
    resumes: bool,
) -> Run:
    """Make everything that the loop needs from the file and the configuration; return the ``Run``."""
    assert config.optimization.epochs is not None  # a resolved configuration
    split = split_rows(file, config.data, config.optimization.seed)
    require_learnable(file, split)
    moments = normalization(file, feature, split.train, config.data.normalize)
    teacher = prepare_teacher(file, path, split.train, folder, config, device, resumes=resumes)
    loader, loss = _prepare_data(file, path, feature, split, moments, config, device, teacher)
    model, computed = _prepare_model(file, loader.dataset.feature_shape, config, device)
    left = (config.optimization.epochs - state.epoch) * len(loader.dataset) - state.num_clips
    progress = stack.enter_context(RunProgress(left, "training", unit="clips"))
    distilled = loss if teacher is None else DistillationLoss(loss, config.distillation)
    stepper = _prepare_stepper(model, computed, distilled, config.optimization, device, progress.write)
    validator = None
    if len(split.validation):
        scorer = Scorer(computed, device=device, amp_dtype=stepper.amp_dtype, log=progress.write)
        validator = Validator(file, feature, split.validation, moments, config, loss, scorer)
    else:
        progress.write(
            "there is no validation split (`validation_fraction=0`): best.pt will be the epoch with the lowest "
            "training loss"
        )
    description = {
        "egoaudio_version": __version__,
        "config": to_json(config),
        "network": checkpoints.describe_network(model),
        "normalization": {"mean": moments[0], "std": moments[1]},
        **checkpoints.describe_data(file, feature),
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
    )


def _restore_at_exit(stack: contextlib.ExitStack, device: torch.device) -> None:
    """Restore torch's random state and its precision of matrix products when the run ends."""
    stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
    if device.type == "cuda":
        stack.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
        torch.set_float32_matmul_precision("high")  # TF32; on a CPU it could mean bfloat16


def _prepare_data(
    file: reader.EgoAudioFile,
    path: str | os.PathLike[str],
    feature: str,
    split: Split,
    moments: tuple[float, float],
    config: TrainConfig,
    device: torch.device,
    teacher: TeacherScores | None,
) -> tuple[Loader, Loss]:
    """Return the loader of the training rows, and the labels' loss."""
    dataset = ClipDataset(path, feature, split.train, config.data.label_mode, moments, config.data.context_clips or 0)
    loader = Loader(
        dataset,
        config.optimization.batch_size,
        config.data,
        config.optimization.seed,
        device,
        training=True,
        teacher=teacher,
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
    computed: Any = torch.compile(model) if options.compile else model
    return model, computed


def _prepare_stepper(
    model: torch.nn.Module,
    computed: torch.nn.Module,
    loss: BatchLoss,
    options: OptimizationConfig,
    device: torch.device,
    log: Callable[[str], object],
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
    )
    stepper.times_precisions = device.type == "cpu" and amp_dtype is not None and options.amp_dtype is None
    return stepper


def _open_folder(
    stack: contextlib.ExitStack, run: Run, earlier: dict[str, Any] | None, board_class: Any | None
) -> None:
    """Begin the run in its folder, or resume the one that is there."""
    state = run.state
    if earlier is None:
        run_folder.clear(run.folder)
        run.save_last()
    else:
        run.restore(earlier)
        run.progress.write(describe_resume(run.folder, state, len(run.loader), earlier["egoaudio_version"]))
    if run.teacher is not None:
        run.teacher.save(run.folder)
    run_folder.write_config(run.folder, run.config, run.file, run.feature)
    run_folder.write_metrics(run.folder, state.history)
    if board_class is not None:
        run.board = stack.enter_context(board_class(run.folder / "tensorboard", purge_step=state.epoch + 1))


# --------------------------------------------------------------------------------------------------------- one epoch


def _train_epoch(run: Run) -> bool:
    """Train from the state's batch to the end of the epoch, or to a signal; return whether the epoch is done.

    ``last.pt`` is written before a signal is delivered, and before the validation, which may be stopped at any moment.
    """
    assert run.config.optimization.epochs is not None  # a resolved configuration
    state, stepper = run.state, run.stepper
    reset_peak_memory(run.device)
    run.model.train()
    saved_at, saved_size = time.monotonic(), stepper.micro_batch_size
    with signals.DeferredSignals() as deferred:
        started, seconds_before, waited_before = time.monotonic(), state.train_seconds, state.wait_seconds
        for batch in run.loader.epoch(state.epoch, state.batch):
            _train_batch(run, batch)
            state.train_seconds = seconds_before + time.monotonic() - started
            state.wait_seconds = waited_before + run.loader.wait_seconds
            state.peak_memory_mb = max(state.peak_memory_mb, peak_memory_mb(run.device))
            run.progress.step(state, run.config.optimization.epochs, len(batch.rows))
            if deferred.received is not None:
                break
            # A newly found size is saved at once: a run that was killed must not find another one.
            due = time.monotonic() - saved_at > 60 * run.config.optimization.checkpoint_minutes
            if due or stepper.micro_batch_size != saved_size:
                run.save_last()
                saved_at, saved_size = time.monotonic(), stepper.micro_batch_size
    run.save_last()
    deferred.deliver()
    return state.batch == len(run.loader)


def _train_batch(run: Run, batch: Batch) -> None:
    """Do one step of the optimiser and count it.

    Raises
    ------
    TrainingError
        When the loss is not finite.
    """
    state = run.state
    set_learning_rate(run.stepper.optimizer, run.learning_rate(state.batch))
    value = run.stepper.step(batch.features, batch.labels)  # (b, T, F), (b, C)
    if not math.isfinite(value):
        raise TrainingError(describe_bad_loss(value, batch, state, run.folder))
    if run.average is not None:
        run.average.update()
    state.batch += 1
    state.num_clips += len(batch.rows)
    state.loss_sum += value * len(batch.rows)


# ------------------------------------------------------------------------------------- validation, the end of an epoch


def _validate(run: Run) -> Validation:
    """Return the results of the weights that ``best.pt`` would hold on the validation split."""
    if run.validator is None:
        return Validation(smooth_clips=run.config.optimization.smooth_clips or 0)
    run.validator.scorer.amp_dtype = run.stepper.amp_dtype  # the first step may have found float32 to be faster
    with contextlib.nullcontext() if run.average is None else run.average.applied():
        validation = run.validator()
    signals.check()  # the loader's finalisers may have swallowed one
    return validation


def _close_epoch(run: Run, validation: Validation, validation_seconds: float) -> None:
    """Write the epoch's row, the checkpoints and the picture; decide whether the run has finished."""
    state, options = run.state, run.config.optimization
    state.thresholds, state.smooth_clips = validation.thresholds, validation.smooth_clips
    state.selection_maps.append(validation.selection_map)
    row = {
        "epoch": state.epoch + 1,
        "train_loss": state.loss_sum / state.num_clips,
        **validation.columns(),
        "selection": selection_score(state.selection_maps),
        "learning_rate": run.learning_rate(len(run.loader) - 1),
        "clips_per_second": state.num_clips / state.train_seconds,
        "data_wait_fraction": state.wait_seconds / state.train_seconds,
        "micro_batch_size": run.stepper.micro_batch_size,
        "peak_memory_mb": max(state.peak_memory_mb, peak_memory_mb(run.device)),
        "seconds": state.train_seconds + validation_seconds,
    }
    better = state.close_epoch(row, validation.bar)
    if better:
        checkpoints.save(run.folder / "best.pt", run.checkpoint())
    _log_epoch(run, row, better)
    stale = options.patience > 0 and state.epoch - state.best_epoch >= options.patience
    if stale:
        run.progress.write(f"stopping early: no better epoch since {state.best_epoch} (`patience={options.patience}`)")
    state.finished = stale or state.epoch == options.epochs
    run_folder.write_metrics(run.folder, state.history)
    if state.finished or time.monotonic() - run.drawn_at > DRAWING_SECONDS:
        results.write_file(run.folder / "curves.png", curves_png(state.history))
        run.drawn_at = time.monotonic()
    run.save_last()  # last of all, so that a run that is marked as finished is complete


def _log_epoch(run: Run, row: dict[str, Any], better: bool) -> None:
    """Print an epoch's line, and log its numbers to TensorBoard."""
    assert run.config.optimization.epochs is not None  # a resolved configuration
    run.progress.write(describe_epoch(row, run.config.optimization.epochs, better))
    if row["data_wait_fraction"] > NOTABLE_WAIT_FRACTION:
        run.progress.write(describe_wait(row["data_wait_fraction"], run.file, run.feature, run.config.data))
    if run.board is not None:
        for name in run_folder.COLUMNS[1:]:
            if row[name] is not None:
                run.board.add_scalar(name, row[name], run.state.epoch)
        run.board.flush()
