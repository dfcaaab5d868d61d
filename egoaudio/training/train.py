"""The one loop: from an egoaudio file to a trained model, in a folder from which it can go on whenever it was stopped.

In: the file, a folder, a ``TrainConfig``. Out: ``best.pt`` (the weights with the best validation mAP), ``last.pt``,
``metrics.csv``, ``curves.png``, ``config.json`` (see ``runs``).

Going on gives the same weights, bit for bit on a CPU with the same number of threads, because everything that a step
depends on is either in ``last.pt`` (weights, optimiser, scaler, torch's random state, the size of the micro-batch) or
follows from numbers that are (the order and the augmentation of an epoch from seed, epoch and batch; the learning
rate from the number of the step). What is written is whole at every instant, so ``kill -9`` is a way to stop.

A signal is heard between two batches: ``last.pt`` is written first, then the signal does what it would have done.
"""

import contextlib
import math
import os
import shlex
import signal
import threading
import time
from pathlib import Path

import numpy as np
import torch

from egoaudio._version import __version__
from egoaudio.config.options import TrainConfig, to_json
from egoaudio.data.dataset import ClipDataset, Loader
from egoaudio.data.splits import class_weights, normalization, split_rows
from egoaudio.errors import ConfigurationError, TrainingError
from egoaudio.evaluation import evaluate, results
from egoaudio.figures import curves_png
from egoaudio.hdf5 import reader
from egoaudio.models import check_feature, check_sizes, checkpoints, create_model
from egoaudio.models.memory import peak_memory_mb, reset_peak_memory
from egoaudio.models.micro_batch import Scorer, mixed_precision
from egoaudio.system import lock
from egoaudio.system import signals as interrupts
from egoaudio.system.progress import Progress, rate
from egoaudio.training import run_folder
from egoaudio.training.losses import Loss
from egoaudio.training.step import Stepper

# Above this share of the time spent waiting for data the loop says what to change.
WAIT_WORTH_SAYING = 0.05
# Drawing curves.png takes 0.2 s, as long as an epoch of a small file: it is not drawn more often than this.
DRAWING_SECONDS = 10


def train(path, output, config=None, *, force=False, device=None, tensorboard=False):
    """Train a model, or go on with a run that was stopped.

    Parameters
    ----------
    path : str or os.PathLike
        The egoaudio file.
    output : str or os.PathLike
        Folder of the run; made if it is not there.
    config : TrainConfig or None
        Every option; the defaults if not given.
    force : bool
        Start anew, and replace the run that is in ``output``.
    device : str or None
        Such as ``cpu`` or ``cuda:1``; the GPU if there is one.
    tensorboard : bool
        Also write the table's columns for TensorBoard, into ``output/tensorboard``.

    Returns
    -------
    str
        What came of it, in a few lines.

    Raises
    ------
    TrainingError
        For a loss that is not finite, memory or disk that do not suffice, data that changes, another run in ``output``.
    CheckpointError
        When ``last.pt`` is damaged or belongs to other data.
    """
    config = TrainConfig() if config is None else config
    options, seed = config.optimization, config.optimization.seed
    device = evaluate.choose_device(device)
    check_sizes(config.model)
    board_class = _find_tensorboard() if tensorboard else None
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(reader.open(path))
        feature = check_feature(config.model.model, file.features, config.model.feature)
        folder = Path(output)
        results.prepare(folder)
        stack.enter_context(lock.held(folder))
        earlier = None if force else run_folder.find_earlier(folder, config, file)
        state = run_folder.State() if earlier is None else run_folder.State(**earlier["resume"]["state"])
        if state.finished:
            return f"{folder} holds a finished run: nothing was done (--force starts anew)\n" + _summary(folder, state, file, path)

        # ---------------------------------------------------------------- data
        split = split_rows(file, config.data, seed)
        mean, std = normalization(file, feature, split.train, config.data.normalize)
        data = ClipDataset(path, feature, split.train, config.data.label_mode, (mean, std))
        loader = Loader(data, options.batch_size, config.data, seed, device, training=True)
        weights = class_weights(file, split.train, config.data.label_mode) if config.data.class_weights else None
        loss = Loss(config.data.label_mode, weights, device)

        # ---------------------------------------------------------------- model
        torch.manual_seed(seed)  # fresh weights now, and later a seed of dropout for each step
        model = create_model(config.model.model, file.num_classes, data.feature_shape, config.model, options.activation_checkpointing).to(device)
        computed = torch.compile(model) if options.compile else model  # the same weights
        if device.type == "cuda":
            torch.set_float32_matmul_precision("high")  # TF32; on a CPU it could mean bfloat16
        optimizer = make_optimizer(model, options)
        amp_dtype, scaler = mixed_precision(device, options.amp, options.amp_dtype)
        progress = stack.enter_context(_RunProgress((options.epochs - state.epoch) * len(data) - state.num_clips, "training", unit="clips"))
        stepper = Stepper(
            computed, optimizer, loss, device=device, micro_batch_size=options.micro_batch_size,
            amp_dtype=amp_dtype, scaler=scaler, clip_gradient=options.clip_gradient, log=progress.write,
        )
        validator = None
        if len(split.validation):
            scorer = Scorer(computed, device=device, amp_dtype=amp_dtype, log=progress.write)
            validator = _Validator(file, feature, split.validation, (mean, std), config, loss, scorer)
        else:
            progress.write("there is no validation split (--validation-fraction 0): best.pt will be the epoch with the lowest training loss")

        # ---------------------------------------------------------------- the folder
        description = {
            "egoaudio_version": __version__, "config": to_json(config), "network": checkpoints.describe_network(model),
            "normalization": {"mean": mean, "std": std}, **checkpoints.describe_data(file, feature),
        }

        def newest():
            metrics = state.history[-1] if state.history else {}
            return {**description, "epoch": state.epoch, "weights": dict(model.state_dict()), "thresholds": state.thresholds, "metrics": metrics}

        def save_last():
            if not all(torch.isfinite(value).all() for value in model.parameters()):  # the gradient can be infinite where the loss is not
                raise TrainingError(_describe_bad_weights(state, folder))
            resume = {
                "state": dict(vars(state)), "optimizer": optimizer.state_dict(), "scaler": None if scaler is None else scaler.state_dict(),
                "stepper": stepper.state_dict(), "random_state": torch.get_rng_state(),
            }
            checkpoints.save(folder / "last.pt", {**newest(), "resume": resume})

        if earlier is None:
            run_folder.clear(folder)
            save_last()
        else:
            _restore(earlier, model, optimizer, scaler, stepper)
            place = f"batch {state.batch + 1} of {len(loader)}" if state.batch < len(loader) else "its validation"
            progress.write(f"going on with {folder} at epoch {state.epoch + 1}, {place}")
        run_folder.write_config(folder, config, file, feature)
        run_folder.write_metrics(folder, state.history)
        board = stack.enter_context(board_class(folder / "tensorboard", purge_step=state.epoch + 1)) if tensorboard else None
        num_steps, drawn_at = options.epochs * len(loader), time.monotonic()

        # ---------------------------------------------------------------- the loop
        while not state.finished:
            saved_at, saved_size = time.monotonic(), stepper.micro_batch_size
            reset_peak_memory(device)
            model.train()
            with _DeferredSignals() as signals:
                started, seconds_before, waited_before = time.monotonic(), state.train_seconds, state.wait_seconds
                for batch in loader.epoch(state.epoch, state.batch):
                    for group in optimizer.param_groups:
                        group["lr"] = learning_rate(state.epoch * len(loader) + state.batch, num_steps, options)
                    value = stepper.step(batch.features, batch.labels)  # (b, T, F), (b, C)
                    if not math.isfinite(value):
                        raise TrainingError(_describe_bad_loss(value, batch, state, folder))
                    state.batch += 1
                    state.num_clips += len(batch.rows)
                    state.loss_sum += value * len(batch.rows)
                    state.train_seconds = seconds_before + time.monotonic() - started
                    state.wait_seconds = waited_before + loader.wait_seconds
                    state.peak_memory_mb = max(state.peak_memory_mb, peak_memory_mb(device))
                    progress.step(state, options.epochs, len(batch.rows))
                    if signals.received is not None:
                        break
                    # A size that was found just now is kept at once: a run that was killed must not find another one.
                    if stepper.micro_batch_size != saved_size or time.monotonic() - saved_at > 60 * options.checkpoint_minutes:
                        save_last()
                        saved_at, saved_size = time.monotonic(), stepper.micro_batch_size
            save_last()  # before the validation as well, which then can be stopped at any moment
            signals.deliver()
            if state.batch < len(loader):
                continue  # the signal is ignored (nohup, & in a script), or its handler returned: the epoch goes on where it was

            # ------------------------------------------------------------ the end of an epoch
            started = time.monotonic()
            scored = validator() if validator else dict.fromkeys(("val_loss", "top1", "top5", "map", "thresholds"))
            interrupts.check()  # the loader's finalisers may have swallowed one
            state.thresholds = scored.pop("thresholds")
            row = {
                "epoch": state.epoch + 1, "train_loss": state.loss_sum / state.num_clips, **scored,
                "learning_rate": learning_rate((state.epoch + 1) * len(loader) - 1, num_steps, options),
                "clips_per_second": state.num_clips / state.train_seconds, "data_wait_fraction": state.wait_seconds / state.train_seconds,
                "micro_batch_size": stepper.micro_batch_size, "peak_memory_mb": max(state.peak_memory_mb, peak_memory_mb(device)),
                "seconds": state.train_seconds + time.monotonic() - started,
            }
            better = state.close_epoch(row)
            if better:
                checkpoints.save(folder / "best.pt", newest())
            progress.write(_describe_epoch(row, options.epochs, better))
            if row["data_wait_fraction"] > WAIT_WORTH_SAYING:
                progress.write(_describe_wait(row["data_wait_fraction"], file, feature, config.data))
            if board is not None:
                for name in run_folder.COLUMNS[1:]:
                    if row[name] is not None:
                        board.add_scalar(name, row[name], state.epoch)
                board.flush()
            stale = options.patience > 0 and state.epoch - state.best_epoch >= options.patience
            if stale:
                progress.write(f"stopping early: no better epoch since {state.best_epoch} (--patience {options.patience})")
            state.finished = stale or state.epoch == options.epochs
            run_folder.write_metrics(folder, state.history)
            if state.finished or time.monotonic() - drawn_at > DRAWING_SECONDS:
                results.write_file(folder / "curves.png", curves_png(state.history))
                drawn_at = time.monotonic()
            save_last()  # last of all: a run that says it has finished has everything
        return _summary(folder, state, file, path)


# ------------------------------------------------------------------------------------------------ parts of the loop


def make_optimizer(model, options):
    """Return Adam or AdamW, fused into one pass over the weights."""
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[options.optimizer]
    return kind(model.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay, fused=True)


def learning_rate(step, num_steps, options):
    """Return the learning rate of a step of the run, counted from 0: up in a line, then down along half a cosine, or constant."""
    warmup = round(min(options.warmup_fraction, 1) * num_steps)
    if step < warmup:
        return options.learning_rate * (step + 1) / warmup
    if options.schedule == "constant":
        return options.learning_rate
    return options.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (num_steps - warmup)))


class _Validator:
    """Scores the validation split, as often as it is called."""

    def __init__(self, file, feature, rows, normalization, config, loss, scorer):
        self.truth = evaluate.read_truth(file, rows)
        # Every clip once, with all its labels, whatever the model was trained on.
        dataset = ClipDataset(file.path, feature, rows, normalization=normalization)
        self.loader = Loader(dataset, config.optimization.batch_size, config.data, device=scorer.device)
        self.label_mode, self.loss, self.scorer = config.data.label_mode, loss, scorer

    def __call__(self):
        """Return the columns of the table that come from the validation split, and ``thresholds``, a list with a score per class."""
        scored = evaluate.score(self.scorer, self.loader, self.label_mode, self.loss)
        found = evaluate.evaluate_scores(scored.scores, self.truth).scores
        thresholds = [float(value) for value in evaluate.choose_thresholds(scored.scores, self.truth)]
        return {"val_loss": scored.loss, **{name: float(found[name].value) for name in ("top1", "top5", "map")}, "thresholds": thresholds}


def _restore(earlier, model, optimizer, scaler, stepper):
    """Put everything back to where ``last.pt`` was written."""
    resume = earlier["resume"]
    model.load_state_dict(earlier["weights"])
    optimizer.load_state_dict(resume["optimizer"])
    if scaler is not None:
        scaler.load_state_dict(resume["scaler"])
    stepper.load_state_dict(resume["stepper"])
    torch.set_rng_state(resume["random_state"])


_STOPPING = b"\nstopping as soon as this batch is done and saved; once more stops at once\n"


class _DeferredSignals:
    """Ctrl-C and SIGTERM wait while the block runs; a second one does not."""

    def __init__(self):
        self.received = None
        self._former = {}
        self._process = os.getpid()

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():  # Python hears signals in no other
            for number in (signal.SIGINT, signal.SIGTERM):
                self._former[number] = signal.signal(number, self._hear)
        return self

    def __exit__(self, *_):
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _hear(self, number, _frame):
        if os.getpid() != self._process:
            # A reading process that was forked in the block. Ctrl-C reaches it too, but we still wait for its batch.
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        if self.received is not None:
            self.__exit__()
            signal.raise_signal(number)
        else:
            with contextlib.suppress(OSError):  # a terminal that is gone
                os.write(2, _STOPPING)  # not sys.stderr: it may be in the middle of a line of its own
        self.received = number

    def deliver(self):
        """Let the signal do what it would have done at once, if there was one."""
        if self.received is not None:
            signal.raise_signal(self.received)


# ------------------------------------------------------------------------------------------------ words


class _RunProgress(Progress):
    """The bar, or the lines, of a run: where it is, the loss, the time spent waiting for data."""

    note = ""

    def step(self, state, num_epochs, num_clips):
        """Count a batch."""
        waits = state.wait_seconds / max(state.train_seconds, 1e-9)
        self.note = f"epoch {state.epoch + 1}/{num_epochs}, loss {state.loss_sum / state.num_clips:.4f}, {waits:.0%} waiting"
        self.advance(num_clips)

    def _speed(self):
        return f"{super()._speed()}, {self.note}" if self.note else super()._speed()


def _describe_epoch(row, num_epochs, better):
    """Return an epoch's line."""
    validation = "" if row["val_loss"] is None else f", val_loss {row['val_loss']:.4f}, top-1 {row['top1']:.3f}, top-5 {row['top5']:.3f}, mAP {row['map']:.4f}"
    return (
        f"epoch {row['epoch']}/{num_epochs}: loss {row['train_loss']:.4f}{validation}{' (best)' if better else ''}; "
        f"{rate(row['clips_per_second'], 1)} clips/s, {row['peak_memory_mb']:,.0f} MB, {row['seconds']:.1f} s"
    )


def _describe_wait(share, file, feature, config):
    """Return what to change when the loop waits for data."""
    if not file.is_mapped(feature):
        fix = f"the array is compressed: unpack it with `h5repack -f {feature}:NONE`, or give --loader-workers 2"
    elif file.num_bytes > os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2:
        block = "" if config.shuffle == "block" else ", --shuffle block where reading is sequential (spinning disks, network)"
        fix = f"the file ({file.num_bytes / 1e9:.0f} GB) does not stay in memory: use a faster disk{block}, or build with --dtype float16"
    else:
        fix = "the first epoch reads from the disk, later ones from memory; if it stays so, use a faster disk, or check what else is busy here"
    return f"data: {share:.0%} of the time was spent waiting for it; {fix}"


def _describe_bad_loss(value, batch, state, folder):
    """Return what is known about a batch whose loss is not finite."""
    bad = batch.rows[~torch.isfinite(batch.features).flatten(1).all(dim=1).cpu().numpy()]
    if len(bad):
        cause = f"of these, {_list(bad)} hold values that are not finite: check the file with egoaudio-inspect --verify"
    else:
        cause = "their values are finite, so the training diverged: give a lower --learning-rate, --clip-gradient 1, or no --amp"
    return (
        f"the loss is {value} in epoch {state.epoch + 1}, batch {state.batch + 1}, of the clips (rows of the file) {_list(batch.rows)}; {cause}. "
        f"The checkpoints in {folder} are from before"
    )


def _describe_bad_weights(state, folder):
    """Return what to do about weights that a step has made infinite, or no number."""
    return (
        f"the weights are not finite after epoch {state.epoch + 1}, batch {state.batch}: the training diverged, so give a lower --learning-rate, "
        f"--clip-gradient 1, or no --amp, with --force. The checkpoints in {folder} are from before"
    )


def _list(rows):
    """Return numbers in words."""
    return ", ".join(str(row) for row in np.asarray(rows).tolist())


def _find_tensorboard():
    """Return TensorBoard's writer.

    Raises
    ------
    ConfigurationError
        When it is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigurationError("--tensorboard needs a package that is not installed: pip install tensorboard") from error
    return SummaryWriter


def _summary(folder, state, file, path):
    """Return what came of a run, and the command that comes next."""
    best = state.history[state.best_epoch - 1]
    score = f"training loss {best['train_loss']:.4f}, not validated"
    if best["map"] is not None:
        score = f"validation mAP {best['map']:.4f}, top-1 {best['top1']:.3f}"
    split = "test" if (file.video_table["split"] == b"test").any() else "train" if best["map"] is None else "validation"
    command = shlex.join(["egoaudio-evaluate", str(folder / "best.pt"), os.fspath(path), "--split", split])
    return f"{state.epoch} epoch{'s' * (state.epoch > 1)}; the best is {state.best_epoch}: {score}\nnext: {command}"
