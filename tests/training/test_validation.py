"""The choice of the best epoch, and the warning about a run that has learnt nothing."""

import math
import re

import numpy as np
import pytest
from small_runs import make_config, make_file, table

from egoaudio.config.options import from_flat
from egoaudio.config.train import TrainConfig
from egoaudio.data.splits import split_rows
from egoaudio.evaluation import evaluate, metrics
from egoaudio.evaluation.ground_truth import read_ground_truth
from egoaudio.evaluation.scores import choose_thresholds, evaluate_scores
from egoaudio.hdf5 import reader, writer
from egoaudio.models import checkpoints
from egoaudio.training import run_folder, train, validation
from egoaudio.training.messages import _warn, describe_epoch
from egoaudio.training.validation import _bar, selection_score

NAN = float("nan")


@pytest.fixture(autouse=True)
def plain_curves(monkeypatch):
    """Draw no curves, which takes longer than the runs here."""
    monkeypatch.setattr(train, "curves_png", lambda rows: b"curves")


@pytest.mark.parametrize(
    ("selection_maps", "expected"),
    [
        ([0.4], 0.4),
        ([0.4, 0.2], 0.3),
        ([0.9, 0.4, 0.2], 0.3),  # no further back
        ([NAN], NAN),
        ([0.4, NAN], NAN),
        ([None], None),  # no validation split
        ([None, None], None),
    ],
)
def test_an_epoch_is_scored_with_the_one_before(selection_maps, expected):
    assert selection_score(selection_maps) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(
    ("unrelated", "bar"),
    [
        ([[0.1, 0.1]] * 8, 0.2),  # the prior
        ([[0.1, 0.3], [0.3, 0.5]] * 4, 0.3 + 3 * 0.1),  # three deviations above the mean of unrelated scores
        (np.empty((0, 2)), 0.2),
    ],
)
def test_the_bar_is_the_prior_or_the_precision_of_unrelated_scores(monkeypatch, unrelated, bar):
    monkeypatch.setattr(validation, "unrelated_precision", lambda *_: np.array(unrelated))
    labels = np.repeat([[1, 0], [0, 1], [0, 1], [0, 0], [0, 0]], 2, axis=0)  # of 20 and 40 per cent of the clips
    labels[4:6, 1] = 0
    assert _bar(np.zeros(labels.shape), labels, np.repeat([0, 1], 5)) == pytest.approx(bar)


def test_without_a_class_there_is_no_bar():
    assert math.isnan(_bar(np.zeros((4, 0)), np.zeros((4, 0)), np.zeros(4, int)))


def row(selection, train_loss=1.0):
    return {"train_loss": train_loss, "selection": selection}


@pytest.mark.parametrize(
    ("selections", "best_epoch"),
    [
        ([0.2, 0.3, 0.3, 0.1], 2),
        ([0.2], 1),
        ([0.9, 0.3, 0.2], 2),  # the first epoch stands alone
        ([0.9, 0.3, 0.4], 3),
        ([NAN, NAN], 2),
        ([None, None, None], 3),
    ],
)
def test_the_best_epoch_is_the_first_with_the_best_selection_and_its_bar_is_kept(selections, best_epoch):
    state = run_folder.State()
    for number, selection in enumerate(selections):
        state.close_epoch(row(selection, 1.0 - number / 10), bar=number / 10)
    assert state.best_epoch == best_epoch
    assert state.best_bar == (best_epoch - 1) / 10


def test_without_validation_the_first_epoch_may_be_the_best():
    state = run_folder.State()
    for loss in (0.5, 0.7, 0.6):
        state.close_epoch(row(None, loss))
    assert state.best_epoch == 1


def test_in_pure_noise_no_epoch_is_favoured():
    rng, counts = np.random.default_rng(0), np.zeros(11)
    for maps in rng.random((4000, 10)):
        state = run_folder.State()
        for number in range(10):
            state.close_epoch(row(selection_score(maps[: number + 1])))
        counts[state.best_epoch] += 1
    shares = counts / counts.sum()
    assert shares[1] == 0 and (shares[2:] > 0.07).all() and (shares[2:] < 0.16).all()  # a fair share is 0.11


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs, of true labels and of shuffled ones: ``{name: (path of the file, folder, TrainingRun)}``."""
    folder, found = tmp_path_factory.mktemp("runs"), {}
    for name in ("true", "shuffled"):
        path = make_file(folder / f"{name}.h5", 40, 10, test_fraction=0.0)
        if name == "shuffled":
            with reader.open(path) as file:
                labels = np.random.default_rng(3).permutation(np.asarray(file.labels))
            with writer.RowWriter(path, writer.offsets(path)) as rows:
                rows.write("labels", 0, labels)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(train, "curves_png", lambda rows: b"curves")
            found[name] = path, folder / name, train.train(path, folder / name, make_config(epochs=6))
    return found


def test_a_run_that_learnt_nothing_says_so_in_its_last_line_and_one_that_did_does_not(runs):
    *_, true = runs["true"]
    *_, shuffled = runs["shuffled"]
    assert true.warning == "" and str(true).splitlines()[-1].startswith("next: egoaudio-evaluate ")
    last = str(shuffled).splitlines()[-1]
    assert last == f"warning: {shuffled.warning}"
    assert re.match(
        r"warning: this model cannot be told from chance on 100 clips of 10 videos: its validation mAP over 5 of 5 "
        r"classes is \d\d\.\d per cent, and scores unrelated to the clips reach \d\d\.\d\. Try more `epochs`, ",
        last,
    )
    assert "`model='cnn-small'`" in last and "`denoise.mode='none'`" in last


def few(**changes):
    """Return the state of a run of three epochs that has learnt nothing, on few clips of few videos."""
    state = run_folder.State(basis={"clips": 95, "videos": 4, "active": 13, "classes": 7} | changes)
    state.close_epoch({"train_loss": 1.0, "selection": 0.225, "map": 0.187, "map_prior": 0.114, "top1": 0.2}, bar=0.292)
    return state


class File:
    def __init__(self, mode="nonstationary"):
        self.config = {"mode": mode}


def test_a_model_above_the_prior_is_not_said_to_be_below_it_and_few_videos_are_named():
    warning = _warn(few(), make_config(), File())
    assert warning.startswith(
        "this model cannot be told from chance on 95 clips of 4 videos: its validation mAP over 7 of 13 classes is "
        "22.5 per cent, and scores unrelated to the clips reach 29.2. Hold out more videos (`validation_fraction`), "
        "and try more `epochs`, `model='cnn-small'`"
    )
    state = few(videos=10)
    state.history[0]["map"] = 0.113
    assert _warn(state, make_config(), File()).startswith(
        "this model does not beat the prior: its validation mAP is 11.3 per cent, the prior's 11.4. Try more `epochs`, "
    )


def test_nothing_is_advised_that_the_run_does_already():
    yamnet = from_flat(TrainConfig, {"model": "yamnet", "pretrained": "weights"})
    assert _warn(few(), yamnet, File("none")).endswith(
        "Hold out more videos (`validation_fraction`), and try more `epochs`; perhaps these classes make no sound of "
        "their own"
    )
    assert "cnn-small" not in _warn(few(), TrainConfig().resolved(), File())
    for words in ("`pretrained`", "`denoise.mode='none'`"):
        assert words in _warn(few(), TrainConfig().resolved(), File())


def test_where_no_clip_lacks_the_class_a_run_says_that_validation_shows_nothing(tmp_path):
    path = make_file(tmp_path / "ego.h5", num_classes=2)
    with reader.open(path) as file:
        labels = np.tile(np.array([[1, 0]], "u1"), (file.num_clips, 1))
    with writer.RowWriter(path, writer.offsets(path)) as rows:
        rows.write("labels", 0, labels)
    run = train.train(path, tmp_path / "run", make_config())
    assert run.warning == (
        "validation cannot say whether this model hears anything: of 20 clips of 2 videos, none lacks a class that "
        "another has. Annotate when a class is not heard, too, or add videos without it"
    )
    losses = [row["train_loss"] for row in run.rows]
    assert run.best_epoch == losses.index(min(losses)) + 1 and run.criterion == "by the training loss"


def test_the_summary_says_by_what_the_best_epoch_was_chosen(runs):
    *_, true = runs["true"]
    assert true.best_epoch > 1
    assert f"; the best is {true.best_epoch} (by the mAP of 5 of 5 classes, the mean over two epochs): " in str(true)


def test_a_finished_run_says_it_again(runs):
    path, folder, shuffled = runs["shuffled"]
    again = train.train(path, folder, make_config(epochs=6))
    assert again.already_finished and again.warning == shuffled.warning


def test_the_table_has_the_prior_and_the_score_that_chooses(runs):
    path, folder, run = runs["true"]
    rows = [{name: float(value) for name, value in one.items()} for one in table(folder)]
    best = max(rows, key=lambda one: one["selection"])
    assert run.best_epoch == best["epoch"] == checkpoints.load(folder / "best.pt")["epoch"]
    with reader.open(path) as file:
        labels = file.labels[split_rows(file, make_config().data, 0).validation]
    assert best["map_prior"] == pytest.approx(
        metrics.mean_over_classes(np.where(labels.any(axis=0), labels.mean(axis=0), NAN)), rel=1e-5
    )
    assert rows[-1]["map"] > 0.9 > rows[-1]["map_prior"] and rows[-1]["selection"] > 0.9


def test_the_scores_in_the_table_are_those_of_the_command_with_neighbours_and_without(runs, tmp_path):
    path, folder, _ = runs["true"]
    best = checkpoints.load(folder / "best.pt")
    found = evaluate.evaluate(folder / "best.pt", path, split="validation", output=tmp_path, num_resamples=0)
    assert found.scores["map"].value == pytest.approx(best["metrics"]["map"])
    assert found.scores["map"].prior == pytest.approx(best["metrics"]["map_prior"])
    assert best["smooth_clips"] == 0  # the labels of neighbouring clips are unrelated


@pytest.mark.parametrize("smooth_clips", [None, 2])
def test_the_number_of_neighbours_is_what_was_asked_for_or_what_validates_best(tmp_path, monkeypatch, smooth_clips):
    path = make_file(tmp_path / "ego.h5")
    asked = []
    monkeypatch.setattr(validation, "choose_neighbours", lambda *arguments: asked.append(arguments) or 3)
    judged = []
    monkeypatch.setattr(
        validation, "choose_thresholds", lambda scores, truth: judged.append(scores) or choose_thresholds(scores, truth)
    )
    train.train(path, tmp_path / "run", make_config(epochs=2, smooth_clips=smooth_clips))
    for name in ("best.pt", "last.pt"):
        assert checkpoints.load(tmp_path / "run" / name)["smooth_clips"] == (3 if smooth_clips is None else 2)
    assert len(asked) == (2 if smooth_clips is None else 0)
    found = evaluate.evaluate(tmp_path / "run/best.pt", path, split="validation", num_resamples=0)
    metrics_of_best = checkpoints.load(tmp_path / "run/best.pt")["metrics"]
    assert found.scores["map"].value == pytest.approx(metrics_of_best["map"])
    assert not math.isnan(found.scores["map"].unsmoothed)
    run = checkpoints.load(tmp_path / "run/best.pt")
    with reader.open(path) as file:
        truth = read_ground_truth(file, split_rows(file, make_config().data, 0).validation)
    again = evaluate_scores(judged[run["epoch"] - 1], truth)  # thresholds are chosen on smoothed scores, too
    assert again.scores["map"].value == pytest.approx(run["metrics"]["map"])
    assert found.per_class["threshold"] == checkpoints.load(tmp_path / "run/best.pt")["thresholds"]


def test_an_epochs_line_shows_the_map_beside_the_priors():
    numbers = {
        "epoch": 3,
        "train_loss": 0.12345,
        "val_loss": 0.2,
        "top1": 0.5,
        "top5": 0.75,
        "map": 0.3412,
        "map_prior": 0.0618,
        "clips_per_second": 812.0,
        "peak_memory_mb": 310.4,
        "seconds": 4.05,
    }
    line = describe_epoch(numbers, 20, better=True)
    assert line.startswith(
        "epoch 3/20: loss 0.1235, val_loss 0.2000; per cent: mAP 34.1 (prior 6.2), top-1 50.0, top-5 75.0 (best); 812"
    )
