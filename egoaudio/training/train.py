"""The training loop: from an egoaudio file to a trained model, in a folder from which a stopped run is resumed.

In: the file, a folder, a ``TrainConfig``. Out: ``best.pt`` (the weights with the best validation score), ``last.pt``,
``metrics.csv``, ``curves.png``, ``config.json`` (see ``run_folder``).

A resumed run ends with the same weights, bit for bit on a CPU with the same number of threads: everything that a step
depends on is either in ``last.pt`` (weights and their average, optimiser, scaler, torch's random state, size of the
micro-batch) or follows from numbers that are (order and augmentation of an epoch from seed, epoch and batch; the
learning rate from the number of the step). Files are complete at every instant, so a run may be stopped by ``kill -9``.

In a command, signals are handled between two batches: ``last.pt`` is written first, then the signal takes its effect.

Started as several ranks (``torchrun --nproc-per-node 4 -m egoaudio.training ...``), each computes its share of every
batch, and the run is that of one process, up to rounding; it can be resumed by another number of ranks. Rank 0 alone
writes. A signal to one rank stops all of them at the same batch (``data.ranks``).
"""

import contextlib
import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from egoaudio._version import __version__
from egoaudio.config.options import to_flat
from egoaudio.config.train import TrainConfig
from egoaudio.data import ranks
from egoaudio.data.loader import Batch
from egoaudio.errors import ConfigurationError, TrainingError
from egoaudio.evaluation import results
from egoaudio.figures import curves_png
from egoaudio.hdf5 import reader
from egoaudio.models import check_feature, check_pretrained, check_sizes, checkpoints
from egoaudio.models.device import choose_device
from egoaudio.models.frontend import computable_features
from egoaudio.system import lock, signals
from egoaudio.system.files import StrPaths
from egoaudio.system.memory import peak_memory_mb, reset_peak_memory
from egoaudio.training import run_folder
from egoaudio.training.messages import (
    describe_bad_loss,
    describe_epoch,
    describe_resume,
    describe_wait,
    summarize,
)
from egoaudio.training.optimizer import set_learning_rate
from egoaudio.training.prepare import prepare_run, restore_at_exit
from egoaudio.training.run import Run
from egoaudio.training.validation import Validation, selection_score

# Above this share of time spent waiting for data, a message says what to change.
NOTABLE_WAIT_FRACTION = 0.05
# Drawing curves.png takes 0.2 s, as long as an epoch of a small file: it is not drawn more often than this.
DRAWING_SECONDS = 10


def train(
    path: StrPaths,
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
    Afterwards torch's random state is what it was before the call. Of several processes that ``torchrun`` has started,
    each computes its share, and the first alone writes.

    Parameters
    ----------
    path : path, or sequence of path
        The egoaudio file, or several as one, such as the shards of a build.
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
    with contextlib.ExitStack() as stack:
        group = stack.enter_context(ranks.joined(device))
        chosen = choose_device(group.device_name(device))
        _check_options(config, is_new=force or not (Path(output) / "last.pt").exists())
        board_class = run_folder.find_tensorboard() if tensorboard else None
        file = stack.enter_context(reader.open(path))
        feature = _choose_feature(file, config)
        _check_ranks(group, file, feature, config)
        folder = Path(output)
        earlier = group.from_first(lambda: _find_earlier(stack, folder, path, config, file, force))
        state = run_folder.State() if earlier is None else run_folder.State(**earlier["resume"]["state"])
        if state.finished:
            return summarize(folder, state, config, file, path, already_finished=True)

        restore_at_exit(stack, chosen)
        run = prepare_run(stack, file, path, feature, folder, config, chosen, state, group, earlier)
        _open_folder(stack, run, earlier, board_class)
        while not state.finished:
            if not _train_epoch(run):
                # The signal is ignored (nohup, & in a script), or its handler returned: the epoch continues.
                continue
            started = time.monotonic()
            validation = _validate(run)
            _close_epoch(run, validation, time.monotonic() - started)
        return summarize(folder, state, config, file, path)


# ------------------------------------------------------------------------------------------------------- the ranks


def _choose_feature(file: reader.EgoAudioFile, config: TrainConfig) -> str:
    """Return what the model is trained on: of what the file holds, or what can be computed on the fly."""
    available = computable_features(file) if config.data.on_the_fly else file.features
    return check_feature(config.model.model, available, config.model.feature, file.sample_rate)


def _check_ranks(group: ranks.Group, file: reader.EgoAudioFile, feature: str, config: TrainConfig) -> None:
    """Raise ConfigurationError unless all ranks are about to do the same, and each has a clip to do."""
    if config.optimization.batch_size < group.size:
        raise ConfigurationError(
            f"`batch_size={config.optimization.batch_size}` is less than a clip for each of {group.size} ranks: start "
            "fewer, or give a larger one, which is divided among all of them"
        )
    versions = {"egoaudio": __version__, "torch": torch.__version__}
    its = {"a file with the plan": file.plan_sha256, "clips": file.num_clips, "the feature": feature}
    group.require_same({**versions, **its, **to_flat(config)})


# -------------------------------------------------------------------------------------------- the run's folder


def _check_options(config: TrainConfig, is_new: bool) -> None:
    """Refuse options that make no sense for the model, or of a run that begins."""
    if is_new:
        config.check_new()
    check_sizes(config.model)
    check_pretrained(config.model)


def _find_earlier(
    stack: contextlib.ExitStack,
    folder: Path,
    path: StrPaths,
    config: TrainConfig,
    file: reader.EgoAudioFile,
    force: bool,
) -> dict[str, Any] | None:
    """Lock the folder, and return the contents of its ``last.pt`` if the run in it is to be resumed."""
    results.prepare(folder)
    stack.enter_context(lock.held(folder))
    run_folder.prepare(folder, path, config)
    return None if force else run_folder.find_earlier(folder, config, file)


def _open_folder(
    stack: contextlib.ExitStack, run: Run, earlier: dict[str, Any] | None, board_class: Any | None
) -> None:
    """Begin the run in its folder, or resume the one that is there."""
    state = run.state
    if earlier is None:
        if run.group.is_first:
            run_folder.clear(run.folder)
        run.save_last()
    else:
        run.restore(earlier)
        run.progress.write(describe_resume(run.folder, state, len(run.loader), earlier["egoaudio_version"]))
    if not run.group.is_first:
        return
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
    with signals.DeferredSignals(quiet=not run.group.is_first) as deferred:
        started, seconds_before, waited_before = time.monotonic(), state.train_seconds, state.wait_seconds
        for batch in run.loader.epoch(state.epoch, state.batch):
            _train_batch(run, batch)
            state.train_seconds = seconds_before + time.monotonic() - started
            state.wait_seconds = waited_before + run.loader.wait_seconds
            run.progress.step(state, run.config.optimization.epochs, batch.num_clips)
            if run.group.numbers(deferred.received or 0).any():
                break
            # A newly found size is saved at once: a run that was killed must not find another one.
            due = time.monotonic() - saved_at > 60 * run.config.optimization.checkpoint_minutes
            if due or stepper.micro_batch_size != saved_size:
                _read_loss(run)
                _save(run)
                saved_at, saved_size = time.monotonic(), stepper.micro_batch_size
        _read_loss(run)
        state.train_seconds = seconds_before + time.monotonic() - started
        _save(run)
        # One that has reached another rank counts as this one's, too. No rank ends before the first has saved.
        agreed = int(run.group.numbers(deferred.received or 0).max())
        deferred.received = deferred.received or agreed or None
    deferred.deliver()
    return state.batch == len(run.loader)


def _save(run: Run) -> None:
    """Write ``last.pt``, with the epoch's peak of memory so far."""
    run.state.peak_memory_mb = max(run.state.peak_memory_mb, peak_memory_mb(run.device))
    run.save_last()


def _train_batch(run: Run, batch: Batch) -> None:
    """Do one step of the optimiser; on a GPU it is launched, and the loss of the batch before is read meanwhile.

    Raises
    ------
    TrainingError
        When a loss is not finite.
    """
    state = run.state
    set_learning_rate(run.stepper.optimizer, run.learning_rate(state.batch))
    loss = run.stepper.launch(batch.features, batch.labels)  # (b, T, F), (b, C)
    if run.average is not None:
        run.average.update()
    state.batch += 1
    _read_loss(run)
    run.unread = loss, batch, state.batch
    if loss.is_known:
        _read_loss(run)


def _read_loss(run: Run) -> None:
    """Count the clips of the batch whose loss has not been read yet, and its loss.

    Raises
    ------
    TrainingError
        When the loss is not finite.
    """
    if run.unread is None:
        return
    (loss, batch, number), run.unread = run.unread, None
    value = float(loss)
    if not math.isfinite(value):
        bad = ~torch.isfinite(batch.features[: len(batch.rows)]).flatten(1).all(dim=1).cpu().numpy()
        rows, bad_rows = map(np.concatenate, zip(*run.group.objects((batch.rows, batch.rows[bad])), strict=True))
        raise TrainingError(describe_bad_loss(value, rows, bad_rows, number, run.state.epoch, run.folder))
    run.state.num_clips += batch.num_clips
    run.state.loss_sum += value * batch.num_clips


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
    _choose_by(run, validation.basis)
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
    stale = options.patience > 0 and state.epoch - state.best_epoch >= options.patience
    state.finished = stale or state.epoch == options.epochs
    state.calibration = None
    if not run.group.is_first:
        return
    if run.validator is not None and (better or state.finished):  # of checkpoints that people use
        state.calibration = run.validator.calibrate()
    if better:
        checkpoints.save(run.folder / "best.pt", run.checkpoint())
    _log_epoch(run, row, better)
    if stale:
        run.progress.write(f"stopping early: no better epoch since {state.best_epoch} (`patience={options.patience}`)")
    run_folder.write_metrics(run.folder, state.history)
    if state.finished or time.monotonic() - run.drawn_at > DRAWING_SECONDS:
        results.write_file(run.folder / "curves.png", curves_png(state.history))
        run.drawn_at = time.monotonic()
    run.save_last()  # last of all, so that a run that is marked as finished is complete


def _choose_by(run: Run, basis: dict[str, int] | None) -> None:
    """Note what the best epoch is chosen by; if another version began the run, choose it anew from here on."""
    state = run.state
    if state.basis != basis and basis is not None and state.selection_maps:
        run.progress.write(
            "the best epoch is chosen anew from here on, as the version of egoaudio before chose by other classes"
        )
        state.selection_maps, state.best_score = [], -math.inf
    state.basis = basis


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
