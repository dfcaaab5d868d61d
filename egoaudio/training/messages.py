"""The messages of a training run: progress, an epoch's line, problems with their fix, and the result."""

import os
import shlex
from pathlib import Path
from typing import Any

import numpy as np

from egoaudio._version import __version__
from egoaudio.config.options import differences
from egoaudio.config.train import DataConfig, TrainConfig
from egoaudio.hdf5.reader import EgoAudioFile
from egoaudio.system.files import StrPaths, as_paths
from egoaudio.system.progress import Progress, rate
from egoaudio.training.run_folder import State, TrainingRun

FEW_VIDEOS = 10  # held out: fewer show only what is heard well


class RunProgress(Progress):
    """The progress of a run: its epoch, the loss, the share of time spent waiting for data."""

    note = ""

    def step(self, state: State, num_epochs: int, num_clips: int) -> None:
        """Count a batch."""
        waits = state.wait_seconds / max(state.train_seconds, 1e-9)
        loss = state.loss_sum / max(state.num_clips, 1)  # the first of a GPU is not known yet
        self.note = f"epoch {state.epoch + 1}/{num_epochs}, loss {loss:.4f}, {waits:.0%} waiting"
        self.advance(num_clips)

    def _speed(self) -> str:
        return f"{super()._speed()}, {self.note}" if self.note else super()._speed()


def describe_epoch(row: dict[str, Any], num_epochs: int, better: bool) -> str:
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


def describe_resume(folder: Path, state: State, num_batches: int, begun_by: str) -> str:
    """Return where a stopped run is resumed, with a warning if another version began it."""
    place = f"batch {state.batch + 1} of {num_batches}" if state.batch < num_batches else "its validation"
    line = f"resuming {folder} at epoch {state.epoch + 1}, {place}"
    if begun_by == __version__:
        return line
    return (
        f"{line}\nwarning: the run was begun by egoaudio {begun_by}, and this is {__version__}: "
        "its weights may differ from those of a run by either version alone"
    )


def describe_wait(share: float, file: EgoAudioFile, feature: str, config: DataConfig) -> str:
    """Return what to change when the loop waits for data."""
    if config.mix_snr_db or config.filter_db:
        changes = " and ".join(f"`{name}`" for name in ("mix_snr_db", "filter_db") if getattr(config, name))
        fix = f"the sound is changed ({changes}) while the model trains: without that, or on a GPU, it takes less time"
    elif config.on_the_fly:
        fix = f"{feature} is computed on the fly; to read it takes less time: build with `features={(feature,)!r}`"
    elif not file.is_mapped(feature):
        fix = f"the array is compressed: unpack it with `h5repack -f {feature}:NONE`, or give `loader_workers=2`"
    elif file.num_bytes > os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2:
        block = (
            ""
            if config.shuffle == "block"
            else ", `shuffle='block'` where only sequential reading is fast (spinning disks, network)"
        )
        fix = (
            f"the file ({file.num_bytes / 1e9:.0f} GB) does not stay in memory: use a faster disk{block}, or build "
            "with `dtype='float16'`"
        )
    else:
        fix = (
            "the first epoch reads from the disk, later ones from memory; if it stays so, use a faster disk, or check "
            "what else is busy here"
        )
    return f"data: {share:.0%} of the time was spent waiting for it; {fix}"


def describe_batch_norm(batch_size: int, num_ranks: int) -> str:
    """Return what a batch that is divided among ranks means for batch norm."""
    return (
        f"batch norm takes its statistics from a rank's share of a batch ({-(-batch_size // num_ranks)} of "
        f"{batch_size} clips): the results depend on the number of ranks, as those of a model without batch norm do not"
    )


def describe_bad_loss(value: float, rows: np.ndarray, bad: np.ndarray, number: int, epoch: int, folder: Path) -> str:
    """Return what is known about a batch, the ``number``-th of its epoch, whose loss is not finite.

    ``rows`` are its rows of the file, and ``bad`` those with values that are not finite.
    """
    if len(bad):
        cause = (
            f"of these, {_list(bad)} hold values that are not finite, themselves or in their context: "
            "check the file with egoaudio-inspect --verify"
        )
    else:
        cause = (
            "their values are finite, so the training diverged: give a lower `learning_rate`, `clip_gradient=1`, or "
            "`amp=False`"
        )
    return (
        f"the loss is {value} in epoch {epoch + 1}, batch {number}, of the clips (rows of the file) "
        f"{_list(rows)}; {cause}. The checkpoints in {folder} are from earlier batches"
    )


def describe_bad_weights(state: State, folder: Path) -> str:
    """Return what to do about weights that are no longer finite after a step."""
    return (
        f"the weights are not finite after epoch {state.epoch + 1}, batch {state.batch}: the training diverged, so "
        "give a lower `learning_rate`, `clip_gradient=1`, or `amp=False`, with `force=True`. The checkpoints in "
        f"{folder} are from earlier batches"
    )


def _list(rows: np.ndarray) -> str:
    """Return row numbers separated by commas."""
    return ", ".join(str(row) for row in np.asarray(rows).tolist())


def summarize(
    folder: Path,
    state: State,
    config: TrainConfig,
    file: EgoAudioFile,
    path: StrPaths,
    already_finished: bool = False,
) -> TrainingRun:
    """Return the ``TrainingRun`` of a finished state, with the command to run next."""
    validated = state.history[state.best_epoch - 1]["map"] is not None
    split = "test" if (file.video_table["split"] == b"test").any() else "validation" if validated else "train"
    command = shlex.join(["egoaudio-evaluate", str(folder / "best.pt"), *as_paths(path), "--split", split])
    return TrainingRun(
        folder,
        state.epoch,
        state.best_epoch,
        tuple(state.history),
        already_finished,
        command,
        _warn(state, config, file),
        _criterion(state),
    )


def _criterion(state: State) -> str:
    """Return what the best epoch was chosen by; empty without a validation split."""
    if state.basis is None:
        return ""
    if state.basis["classes"] == 0:
        return "by the training loss"
    classes = f"by the mAP of {state.basis['classes']} of {state.basis['active']} classes"
    return f"{classes}, the mean over two epochs" if state.best_epoch > 1 else classes


def _warn(state: State, config: TrainConfig, file: EgoAudioFile) -> str:
    """Return what to try if nothing was learnt; empty if something was, or there is no validation split."""
    best, basis = state.history[state.best_epoch - 1], state.basis
    if best["top1"] == 0:
        return (
            "no clip of the validation split was classified correctly: do the annotations belong to these videos "
            "(egoaudio-inspect), is the learning rate too high, or are there too few epochs?"
        )
    if basis is None or state.best_bar is None:
        return ""
    held_out = f"{basis['clips']:,} clips of {basis['videos']:,} video{'s' * (basis['videos'] > 1)}"
    if basis["classes"] == 0:
        return (
            f"validation cannot say whether this model hears anything: of {held_out}, none lacks a class that another "
            "has. Annotate when a class is not heard, too, or add videos without it"
        )
    if state.best_score > state.best_bar:
        return ""
    if best["map"] <= best["map_prior"]:
        found = (
            f"this model does not beat the prior: its validation mAP is {100 * best['map']:.1f} per cent, the prior's "
            f"{100 * best['map_prior']:.1f}"
        )
    else:
        found = (
            f"this model cannot be told from chance on {held_out}: its validation mAP over {basis['classes']} of "
            f"{basis['active']} classes is {100 * state.best_score:.1f} per cent, and scores unrelated to the clips "
            f"reach {100 * state.best_bar:.1f}"
        )
    return f"{found}. {_advise(config, file, basis['videos'])}; perhaps these classes make no sound of their own"


def _advise(config: TrainConfig, file: EgoAudioFile, num_held_out: int) -> str:
    """Return what may help a model that has learnt nothing, or cannot be seen to have, and is not done already."""
    start = "Hold out more videos (`validation_fraction`), and try" if num_held_out < FEW_VIDEOS else "Try"
    ways = ["more `epochs`"]
    if config.model.pretrained is None:
        if differences(TrainConfig().resolved(), config):
            ways.append("`model='cnn-small'` with its defaults")
        ways.append("published weights (`model='yamnet'` with `pretrained`)")
    if file.config.get("mode") != "none":
        ways.append("features built without denoising (`denoise.mode='none'`)")
    return f"{start} {', '.join(ways[:-1])} or {ways[-1]}" if len(ways) > 1 else f"{start} {ways[0]}"
