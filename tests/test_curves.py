"""The pictures: that they are drawn from what is there, whatever is missing, and leave nothing behind."""

import io
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from egoaudio import figures
from egoaudio.errors import TrainingError

ROW = {"epoch": 1, "train_loss": 0.5, "val_loss": 0.6, "top1": 0.25, "top5": 0.5, "map": 0.125}


@pytest.fixture
def drawn_figures(monkeypatch):
    """Keep the figures that are drawn."""
    drawn = []
    original = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda figure, *args, **kwargs: (drawn.append(figure), original(figure, *args, **kwargs))[1]
    )
    return drawn


def lines(axes):
    return {line.get_label(): line.get_ydata().tolist() for line in axes.lines}


def pixels(png):
    return imread(io.BytesIO(png), format="png")


def test_the_curves_are_the_columns_of_the_table(drawn_figures):
    rows = [ROW | {"map_prior": 0.0625}, {**ROW, "epoch": 2, "train_loss": 0.25, "map": 0.0, "map_prior": 0.0625}]
    assert pixels(figures.curves_png(rows)).shape[:2] == (400, 1000)
    losses, accuracies = drawn_figures[0].axes
    assert lines(losses) == {"training": [0.5, 0.25], "validation": [0.6, 0.6]}
    assert lines(accuracies) == {
        "top-1": [25, 25],
        "top-5": [50, 50],
        "mAP": [12.5, 0],
        "mAP of the prior": [6.25, 6.25],
    }
    assert losses.lines[0].get_xdata().tolist() == [1, 2]


def test_rows_read_back_from_csv_give_the_same_picture():
    text = {name: str(value) for name, value in ROW.items()}
    np.testing.assert_array_equal(pixels(figures.curves_png([ROW])), pixels(figures.curves_png([text])))


@pytest.mark.parametrize("missing", [None, "", "nan"])
def test_a_run_without_validation_shows_the_training_loss_alone(drawn_figures, missing):
    rows = [{"epoch": epoch, "train_loss": 1.0, "val_loss": missing, "top1": missing} for epoch in (1, 2)]
    figures.curves_png(rows)
    losses, accuracies = drawn_figures[0].axes
    assert list(lines(losses)) == ["training"] and not accuracies.lines
    assert [text.get_text() for text in accuracies.texts] == ["no validation split"]


def test_epochs_are_counted_in_whole_numbers_from_the_first_on(drawn_figures):
    figures.curves_png([ROW])
    for axes in drawn_figures[0].axes:
        low, high = axes.get_xlim()
        assert [tick for tick in axes.get_xticks() if low <= tick <= high] == [1]


@pytest.mark.parametrize("num_classes", [1, 13, 158])
def test_nothing_covers_the_bars_and_the_picture_says_which_split_it_is_of(drawn_figures, num_classes):
    figures.per_class_png(
        OfClasses(
            list(np.linspace(1, 0.9, num_classes)),
            [f"Somebody is going from standing to sitting {k}" for k in range(num_classes)],
        )
    )
    (figure,) = drawn_figures
    (axes,), (legend,) = figure.axes, figure.legends
    assert not legend.get_window_extent().overlaps(axes.get_window_extent())
    labels = [label.get_window_extent() for label in axes.get_yticklabels()]
    assert all(not one.overlaps(other) for one, other in zip(labels, labels[1:], strict=False))
    assert min(label.x0 for label in labels) >= 0
    assert "in the validation split" in figure.get_suptitle()


def test_an_empty_table_is_refused():
    with pytest.raises(TrainingError, match="no epoch"):
        figures.curves_png([])


class OfClasses:
    """The part of an evaluation that the picture is of."""

    def __init__(self, precisions, names=None):
        count = len(precisions)
        self.about = {"split": "validation"}
        self.per_class = {
            "average_precision": precisions,
            "prior": [0.1] * count,
            "num_clips": list(range(count)),
            "name": names or [f"N{k}" for k in range(count)],
        }


def test_classes_are_drawn_best_first_and_those_without_clips_left_out(drawn_figures):
    figures.per_class_png(OfClasses([0.25, float("nan"), 0.5, 0.25]))
    axes = drawn_figures[0].axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["N2 (2)", "N0 (0)", "N3 (3)"]
    assert [bar.get_width() for bar in axes.patches] == [50, 25, 25]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]


@pytest.mark.parametrize("precisions", [[float("nan")] * 3, [0.5], list(np.linspace(0, 1, 25))])
def test_any_number_of_classes_can_be_drawn(drawn_figures, monkeypatch, precisions):
    monkeypatch.setattr(figures, "_MOST_CLASSES", 20)
    figures.per_class_png(OfClasses(precisions))
    shown = [label.get_text() for label in drawn_figures[0].axes[0].get_yticklabels()]
    assert len(shown) == min(np.count_nonzero(~np.isnan(precisions)), 20)
    assert not {"N0 (0)", "N4 (4)"} & set(shown) or len(precisions) <= 20  # the rarest are left out


def test_names_are_shown_as_they_are(drawn_figures):
    figures.per_class_png(OfClasses([0.5, 0.4], ["$\\frac", "a_b^c"]))
    figures.per_class_png(OfClasses([0.5, 0.4], ["$x$ and $y", "100 %"]))  # a formula would lose its dollar signs
    shown = [
        label.get_text().replace(r"\$", "$") for figure in drawn_figures for label in figure.axes[0].get_yticklabels()
    ]
    assert shown == ["$\\frac (0)", "a_b^c (1)", "$x$ and $y (0)", "100 % (1)"]


def test_pyplot_is_never_loaded():
    code = (
        "import sys; from egoaudio import figures; figures.curves_png([{'epoch': 1, 'train_loss': 1}]); "
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
