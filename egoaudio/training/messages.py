"""What a training run says: its progress, an epoch's line, what is wrong and how to mend it, and what came of it."""

import os
import shlex

import numpy as np
import torch

from egoaudio._version import __version__
from egoaudio.system.progress import Progress, rate
from egoaudio.training.run_folder import TrainingRun


class RunProgress(Progress):
    """The bar, or the lines, of a run: where it is, the loss, the time spent waiting for data."""

    note = ""

    def step(self, state, num_epochs, num_clips):
        """Count a batch."""
        waits = state.wait_seconds / max(state.train_seconds, 1e-9)
        self.note = (
            f"epoch {state.epoch + 1}/{num_epochs}, loss {state.loss_sum / state.num_clips:.4f}, {waits:.0%} waiting"
        )
        self.advance(num_clips)

    def _speed(self):
        return f"{super()._speed()}, {self.note}" if self.note else super()._speed()


def describe_epoch(row, num_epochs, better):
    """Return an epoch's line."""
    validation = ""
    if row["val_loss"] is not None:
        map_, prior, top1, top5 = (f"{100 * row[name]:.1f}" for name in ("map", "map_prior", "top1", "top5"))
        validation = (
            f", val_loss {row['val_loss']:.4f}; per cent: mAP {map_} (prior {prior}), top-1 {top1}, top-5 {top5}"
        )
    return (
        f"epoch {row['epoch']}/{num_epochs}: loss {row['train_loss']:.4f}{validation}{' (best)' if better else ''}; "
        f"{rate(row['clips_per_second'], 1)} clips/s, {row['peak_memory_mb']:,.0f} MB, {row['seconds']:.1f} s"
    )


def describe_resume(folder, state, num_batches, begun_by):
    """Return where a run that was stopped goes on, and that another version began it."""
    place = f"batch {state.batch + 1} of {num_batches}" if state.batch < num_batches else "its validation"
    line = f"going on with {folder} at epoch {state.epoch + 1}, {place}"
    if begun_by == __version__:
        return line
    return (
        f"{line}\nwarning: the run was begun by egoaudio {begun_by}, and this is {__version__}: "
        "it may not end in the weights that either would come to alone"
    )


def describe_wait(share, file, feature, config):
    """Return what to change when the loop waits for data."""
    if not file.is_mapped(feature):
        fix = f"the array is compressed: unpack it with `h5repack -f {feature}:NONE`, or give --loader-workers 2"
    elif file.num_bytes > os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2:
        block = (
            ""
            if config.shuffle == "block"
            else ", --shuffle block where reading is sequential (spinning disks, network)"
        )
        fix = f"the file ({file.num_bytes / 1e9:.0f} GB) does not stay in memory: use a faster disk{block}, or build with --dtype float16"
    else:
        fix = "the first epoch reads from the disk, later ones from memory; if it stays so, use a faster disk, or check what else is busy here"
    return f"data: {share:.0%} of the time was spent waiting for it; {fix}"


def describe_bad_loss(value, batch, state, folder):
    """Return what is known about a batch whose loss is not finite."""
    bad = batch.rows[~torch.isfinite(batch.features).flatten(1).all(dim=1).cpu().numpy()]
    if len(bad):
        cause = (
            f"of these, {_list(bad)} hold values that are not finite, themselves or in their context: "
            "check the file with egoaudio-inspect --verify"
        )
    else:
        cause = "their values are finite, so the training diverged: give a lower --learning-rate, --clip-gradient 1, or no --amp"
    return (
        f"the loss is {value} in epoch {state.epoch + 1}, batch {state.batch + 1}, of the clips (rows of the file) {_list(batch.rows)}; {cause}. "
        f"The checkpoints in {folder} are from before"
    )


def describe_bad_weights(state, folder):
    """Return what to do about weights that a step has made infinite, or no number."""
    return (
        f"the weights are not finite after epoch {state.epoch + 1}, batch {state.batch}: the training diverged, so give a lower --learning-rate, "
        f"--clip-gradient 1, or no --amp, with --force. The checkpoints in {folder} are from before"
    )


def _list(rows):
    """Return numbers in words."""
    return ", ".join(str(row) for row in np.asarray(rows).tolist())


def summarize(folder, state, file, path, already_finished=False):
    """Return the ``TrainingRun`` of a finished state, with the command that comes next."""
    validated = state.history[state.best_epoch - 1]["map"] is not None
    split = "test" if (file.video_table["split"] == b"test").any() else "validation" if validated else "train"
    command = shlex.join(["egoaudio-evaluate", str(folder / "best.pt"), os.fspath(path), "--split", split])
    return TrainingRun(
        folder, state.epoch, state.best_epoch, tuple(state.history), already_finished, command, _warn(state)
    )


def _warn(state):
    """Return what to try where nothing was learnt; empty where it was, or nobody knows."""
    if state.history[state.best_epoch - 1]["top1"] == 0:
        return (
            "not one clip of the validation split was guessed right: do the annotations belong to these videos (egoaudio-inspect), "
            "is the learning rate too high, or are there too few epochs?"
        )
    if state.best_bar is None or state.best_score > state.best_bar:
        return ""
    return (
        f"this model does not beat the prior: its validation mAP over the classes with enough clips is "
        f"{100 * state.best_score:.1f} per cent, and scores that say nothing about the clips reach "
        f"{100 * state.best_bar:.1f}. Try more --epochs, --model cnn-small with its defaults, published weights "
        "(--model yamnet --pretrained), or features built without denoising (egoaudio-build --denoise none); or else "
        "these classes make no sound of their own"
    )
