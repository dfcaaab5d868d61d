"""Pictures of training and evaluation, as PNG bytes.

``curves_png`` shows what the paper's Figures 2 and 3 do: loss of training and validation, and top-1, top-5 and mAP of the
validation split, over the epochs. ``per_class_png`` shows the average precision of each class beside its prior.
In: rows of metrics.csv, an ``Evaluation``; out: bytes, for ``results.write_file``. Figures are made without pyplot, which
keeps every figure in a global and wants a display. Takes half a second to import: import it where it is called.
"""

import io

import numpy as np
from matplotlib.figure import Figure

from egoaudio.errors import TrainingError

_DOTS_PER_INCH = 100
_CLASS_INCHES = 0.17  # height of one class
_MOST_CLASSES = 400  # a picture of 5,000 takes two minutes, and would be 85,000 pixels high


def curves_png(rows):
    """Return loss and accuracy over the epochs as a PNG.

    Parameters
    ----------
    rows : sequence of mapping
        Of metrics.csv, one an epoch, numbers or their text: ``epoch``, ``train_loss``, ``val_loss``, ``top1``, ``top5``, ``map``; what
        is empty or missing (there may be no validation split) leaves a gap.

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
    panels = (losses, 1, {"train_loss": "training", "val_loss": "validation"}), (accuracies, 100, {"top1": "top-1", "top5": "top-5", "map": "mAP"})
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


def per_class_png(evaluation):
    """Return the average precision of each class, best first, with its prior, as a PNG.

    Classes without positives are left out, and of more than 400 the rarer ones.
    """
    precision, prior, counts = (np.array(evaluation.per_class[name], dtype=np.float64) for name in ("average_precision", "prior", "num_clips"))
    commonest = np.argsort(-counts, kind="stable")
    shown = np.sort(commonest[~np.isnan(precision[commonest])][:_MOST_CLASSES])
    best_first = shown[np.argsort(-precision[shown], kind="stable")]
    rows = np.arange(len(best_first))
    figure = Figure(figsize=(9, 1.4 + _CLASS_INCHES * max(len(rows), 4)), dpi=_DOTS_PER_INCH, layout="constrained")
    axes = figure.subplots()
    axes.barh(rows, 100 * precision[best_first], height=0.8, color="tab:blue", label="average precision")
    axes.plot(100 * prior[best_first], rows, "|", color="tab:orange", markersize=8, markeredgewidth=2, label="frequency in training (the prior)")
    names = evaluation.per_class["name"]
    axes.set_yticks(rows, [_plain(f"{names[column]} ({counts[column]:,.0f})") for column in best_first], fontsize=7)
    axes.set_ylim(max(len(rows), 1) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.set_xlabel("per cent")
    figure.suptitle(f"Average precision of each class{_of_split(evaluation)}; in brackets, the clips with it", fontsize=11)
    _dress(axes, "x")
    figure.legend(loc="outside lower right", ncols=2, frameon=False)
    return _png(figure)


def _of_split(evaluation):
    """Return which split is shown, where that is known."""
    return f" in the {evaluation.about['split']} split" if "split" in evaluation.about else ""


def _dress(axes, grid):
    """Take away what says nothing, and put the grid behind what is drawn."""
    axes.grid(axis=grid, alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _column(rows, name):
    """Return a column of metrics.csv as floats, NaN where it is empty or missing."""
    return np.array([float("nan" if row.get(name) in (None, "") else row[name]) for row in rows])


def _plain(text):
    """Return text that matplotlib shows as it is: a dollar sign would start a formula."""
    return text.replace("$", r"\$")


def _png(figure):
    """Return a figure as PNG bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
