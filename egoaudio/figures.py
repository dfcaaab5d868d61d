"""Every picture: an egoaudio file's classes and clips, the curves of training, the precision of each class.

In: an ``EgoAudioFile``, rows of metrics.csv, an ``Evaluation``. Out: PNG files, or PNG bytes for an atomic write. The
one user of matplotlib; figures are made without pyplot, which keeps every figure in a global and needs a display. The
import takes half a second, so import this module where it is used.
"""

import io
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from egoaudio.errors import StoreError, TrainingError
from egoaudio.system import files
from egoaudio.system.terminal import one_line

if TYPE_CHECKING:
    from egoaudio.evaluation.results import Evaluation
    from egoaudio.hdf5.reader import EgoAudioFile

_BLUE, _GREY = "#33658a", "#9a9a9a"
_DPI = 120
_DOTS_PER_INCH = 100  # of curves and classes, whose height grows with the data
_CLASS_INCHES = 0.17  # height of one class
_MOST_CLASSES = 400  # a picture of 5,000 takes two minutes and is 85,000 pixels high


def plot_classes(file: "EgoAudioFile", path: str | os.PathLike[str]) -> None:
    """Draw the clips per class, sorted, on a log scale (the paper's Figure 1); 158 class names are legible, too.

    Parameters
    ----------
    file : EgoAudioFile
    path : str or os.PathLike

    Raises
    ------
    StoreError
        The picture cannot be written.
    """
    counts = file.count_classes()
    order = np.argsort(-counts, kind="stable")
    names = [_class_name(file, k) for k in order]
    figure = Figure(figsize=(max(8.0, 2.0 + 0.125 * len(order)), 7.0 if len(order) > 60 else 5.0), layout="constrained")
    axes = figure.add_subplot()
    places = np.arange(len(order))
    heights = counts[order]
    axes.bar(
        places,
        np.maximum(heights, 1e-9),
        width=0.75,
        color=[_GREY if names[i].startswith("no_action") else _BLUE for i in places],
    )
    axes.set_yscale("log")
    top = max(10, heights.max(initial=1))
    axes.set_ylim(0.7, top * 4)
    axes.set_xlim(-0.8, len(order) - 0.2)
    size = 6.5 if len(order) > 60 else 8
    axes.set_xticks(places, names, rotation=90, fontsize=size)
    for place, height in zip(places, heights, strict=True):
        axes.text(
            float(place),
            max(height, 0.7) * 1.12,
            f"{height:,}",
            rotation=90,
            ha="center",
            va="bottom",
            fontsize=size,
            color="#444444",
        )
    axes.set_ylabel("clips (log scale)")
    axes.set_title(
        f"{counts.sum():,} labels on {np.count_nonzero(file.trainable):,} clips, {len(order)} classes", loc="left"
    )
    _finish(figure, axes, path, file)


def plot_clip(file: "EgoAudioFile", number: int, path: str | os.PathLike[str]) -> None:
    """Draw every feature of one clip, one below the other, with the times and the active classes."""
    clip = file.clip_table[number]
    video = file.video_table[clip["video"]]["video_id"].decode("utf-8", errors="replace")
    figure = Figure(figsize=(9.0, 0.8 + 2.4 * len(file.features)), layout="constrained")
    panels = figure.subplots(len(file.features), 1, squeeze=False)[:, 0]
    for axes, name in zip(panels, file.features, strict=True):
        _draw_feature(figure, axes, file, name, number, float(clip["stop_seconds"] - clip["start_seconds"]))
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    panels[-1].set_xlabel("seconds in the clip")
    active = [_class_name(file, k) for k in np.flatnonzero(file.labels[number]).tolist()]
    what = "; ".join(active) if clip["labelled"] else "not labelled"
    place = f"{_plain(video)}, {clip['start_seconds']:.2f} to {clip['stop_seconds']:.2f} s"
    figure.suptitle(f"clip {number}: {place}\n{what or 'no class'}", fontsize=9, wrap=True)
    _finish(figure, None, path, file)


def _draw_feature(
    figure: Figure, axes: Axes, file: "EgoAudioFile", name: str, number: int, clip_seconds: float
) -> None:
    """Draw one clip's feature: a line for the waveform, else an image with time to the right."""
    values = file.values(name, number)
    if name == "waveform":
        axes.plot(np.arange(len(values)) / file.sample_rate, values, linewidth=0.4, color=_BLUE)
        axes.set_xlim(0, len(values) / file.sample_rate)
        axes.set_ylabel("waveform")
        return
    scaled = values[:, 1:] if name == "mfcc" and values.shape[1] > 1 else values  # mfcc 0, the level, dwarfs the others
    low, high = np.percentile(scaled, (1, 99.5))
    seconds = float(file.config.get("context_seconds") or clip_seconds)
    frequency = (
        name == "spectrogram" and "frequency_hz" in file.axes and len(file.axes["frequency_hz"]) == values.shape[1]
    )
    top = float(file.axes["frequency_hz"][-1]) / 1000 if frequency else values.shape[1]
    image = axes.imshow(
        values.T,
        origin="lower",
        aspect="auto",
        extent=(0, seconds, 0, top),
        vmin=low,
        vmax=high,
        cmap="magma",
        interpolation="nearest",
    )
    axes.set_ylabel(f"{name}\n" + ("kHz" if frequency else {"mfcc": "coefficient"}.get(name, "band")))
    figure.colorbar(image, ax=axes, pad=0.01, label=str(file.attributes(name).get("units", "")))


def _class_name(file: "EgoAudioFile", k: int) -> str:
    """Return id and name of a class, cut where they would fill the picture."""
    row = file.class_table[k]
    identity, name = (row[column].decode("utf-8", errors="replace") for column in ("class_id", "name"))
    text = identity if name in ("", identity) else f"{identity} {name}"
    text = text if len(text) <= 44 else text[:43] + "…"
    return _plain(text)


def _finish(figure: Figure, axes: Axes | None, path: str | os.PathLike[str], file: "EgoAudioFile") -> None:
    """Write the picture, never over ``file`` itself; without a date, so that the same file gives the same picture."""
    if axes is not None:
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    FigureCanvasAgg(figure)
    try:
        files.check_output(path, file.paths)
        with files.replacing(path) as target:
            figure.savefig(target, dpi=_DPI, format="png", metadata={"Software": None})
    except OSError as error:
        raise StoreError(f"{path}: the picture cannot be written: {error.strerror or error}") from error


def curves_png(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Return loss and accuracy over the epochs as a PNG.

    Parameters
    ----------
    rows : sequence of mapping
        Of metrics.csv, one an epoch, numbers or their text: ``epoch``, ``train_loss``, ``val_loss``, ``top1``,
        ``top5``, ``map``; empty or missing ones (there may be no validation split) leave a gap.

    Raises
    ------
    TrainingError
        If there are no rows.
    """
    if not rows:
        raise TrainingError("no curves to draw: metrics.csv has no epoch yet")
    figure = Figure(figsize=(10, 4), dpi=_DOTS_PER_INCH, layout="constrained")
    losses, accuracies = figure.subplots(1, 2)
    epochs = _column(rows, "epoch")
    shares = {"top1": "top-1", "top5": "top-5", "map": "mAP", "map_prior": "mAP of the prior"}
    panels = (losses, 1, {"train_loss": "training", "val_loss": "validation"}), (accuracies, 100, shares)
    for axes, scale, names in panels:
        for name, title in names.items():
            values = _column(rows, name) * scale
            if not np.isnan(values).all():
                axes.plot(epochs, values, marker="." if len(rows) < 60 else None, label=title)
        if axes.lines:
            axes.legend(frameon=False)
        else:
            axes.text(0.5, 0.5, "no validation split", transform=axes.transAxes, ha="center", va="center")
            axes.set_yticks([])
        axes.set_xlabel("epoch")
        axes.set_xlim(epochs.min() - 0.5, epochs.max() + 0.5)
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        _dress(axes, "both")
    losses.set_title("Loss", loc="left")
    losses.set_ylabel("mean over the clips")
    accuracies.set_title("Accuracy of the validation split", loc="left")
    accuracies.set_ylabel("per cent")
    accuracies.set_ylim(bottom=0)
    return _png(figure)


def per_class_png(evaluation: "Evaluation") -> bytes:
    """Return the average precision of each class, best first, with its prior, as a PNG.

    Classes without positives are left out, and the rarest of more than 400.
    """
    precision, prior, counts = (
        np.array(evaluation.per_class[name], dtype=np.float64) for name in ("average_precision", "prior", "num_clips")
    )
    commonest = np.argsort(-counts, kind="stable")
    shown = np.sort(commonest[~np.isnan(precision[commonest])][:_MOST_CLASSES])
    best_first = shown[np.argsort(-precision[shown], kind="stable")]
    rows = np.arange(len(best_first))
    figure = Figure(figsize=(9, 1.4 + _CLASS_INCHES * max(len(rows), 4)), dpi=_DOTS_PER_INCH, layout="constrained")
    axes = figure.subplots()
    axes.barh(rows, 100 * precision[best_first], height=0.8, color="tab:blue", label="average precision")
    axes.plot(
        100 * prior[best_first],
        rows,
        "|",
        color="tab:orange",
        markersize=8,
        markeredgewidth=2,
        label="frequency in training (the prior)",
    )
    names = evaluation.per_class["name"]
    axes.set_yticks(rows, [_plain(f"{names[column]} ({counts[column]:,.0f})") for column in best_first], fontsize=7)
    axes.set_ylim(max(len(rows), 1) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.set_xlabel("per cent")
    figure.suptitle(
        f"Average precision of each class{_of_split(evaluation)}; in brackets, the clips with it", fontsize=11
    )
    _dress(axes, "x")
    figure.legend(loc="outside lower right", ncols=2, frameon=False)
    return _png(figure)


def palette(num_colours: int) -> bytes:
    """Return the colours of spectrograms, dark to bright: red, green and blue of each, a byte each."""
    colours = matplotlib.colormaps["magma"](np.linspace(0, 1, num_colours))[:, :3]
    return np.round(255 * colours).astype(np.uint8).tobytes()


def _of_split(evaluation: "Evaluation") -> str:
    """Return which split is shown, where that is known."""
    return f" in the {evaluation.about['split']} split" if "split" in evaluation.about else ""


def _dress(axes: Axes, grid: Literal["both", "x"]) -> None:
    """Remove the frame, and put the grid behind the data."""
    axes.grid(axis=grid, alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _column(rows: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    """Return a column of metrics.csv as floats, NaN where it is empty or missing."""
    return np.array([float("nan" if row.get(name) in (None, "") else row[name]) for row in rows])


def _plain(text: str) -> str:
    """Return text that matplotlib shows as it is: a dollar sign would start a formula, and an escape has no glyph."""
    return one_line(text).replace("$", r"\$")


def _png(figure: Figure) -> bytes:
    """Return a figure as PNG bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
