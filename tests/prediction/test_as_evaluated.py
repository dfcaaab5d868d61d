"""What prediction says is what evaluation judged: the same thresholds, averages, segments and probabilities."""

import json
import re

import numpy as np
import pytest
import small_runs

from egoaudio.config.options import from_flat
from egoaudio.config.predict import PredictConfig
from egoaudio.evaluation import segment_metrics
from egoaudio.evaluation.calibration import Calibration
from egoaudio.evaluation.evaluate import evaluate, score_split
from egoaudio.evaluation.reliability import reliability
from egoaudio.models import checkpoints
from egoaudio.prediction.predict import predict
from egoaudio.training.train import train


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return small_runs.make_file(tmp_path_factory.mktemp("file") / "ego.h5", num_videos=16, clips_per_video=12)


@pytest.fixture(scope="module")
def run(tmp_path_factory, data):
    """A run of a few epochs, with validation."""
    config = small_runs.make_config(model="cnn-small", feature="spectrogram", context_clips=0, epochs=4)
    return train(data, tmp_path_factory.mktemp("run") / "cnn", config, device="cpu")


@pytest.fixture(scope="module")
def evaluation(run, data, tmp_path_factory):
    return evaluate(run.best, data, output=tmp_path_factory.mktemp("evaluation"), device="cpu", num_resamples=20)


def test_the_segments_that_are_written_are_those_that_were_judged(run, data, evaluation):
    split = score_split(run.best, data, "test", "cpu")
    truth = split.truth
    predictions = {prediction.name: prediction for prediction in predict(run.best, data, device="cpu")}
    segments = [predictions[video_id].segment_table for video_id in truth.video_ids]
    assert sum(map(len, segments)) > 10
    actions = [table[table["class_index"] < truth.num_actions] for table in segments]
    instances = [truth.instances[truth.instances["video"] == video] for video in range(len(truth.video_ids))]
    true = [segment_metrics.true_events(*pair) for pair in zip(instances, truth.video_seconds, strict=True)]
    counts = segment_metrics.count_all(true, actions, truth.video_seconds.tolist(), truth.num_actions)
    for name in segment_metrics.KINDS:
        found = evaluation.scores[name]
        assert found.value == pytest.approx(segment_metrics.mean_f1(counts[name]), nan_ok=True)
        assert 0 <= found.low <= found.value <= found.high <= 1 and 0 <= found.prior <= 1
        np.testing.assert_allclose(evaluation.per_class[name][: truth.num_actions], counts[name].f1())
        assert evaluation.per_class[name][truth.num_actions :] == [None]


def test_probabilities_are_those_whose_error_was_measured(run, data, evaluation):
    contents = checkpoints.load(run.best)
    found = Calibration.from_plain(contents["calibration"])
    assert found.method in ("temperature", "platt")
    split = score_split(run.best, data, "test", "cpu")
    clips = split.truth.labelled
    smoothed, labels = split.smoothed[clips], split.truth.labels[clips]
    errors = evaluation.calibration
    assert errors.method == found.method
    assert errors.before == pytest.approx(reliability(smoothed, labels).expected_calibration_error)
    assert errors.after == pytest.approx(reliability(found.apply(smoothed), labels).expected_calibration_error)
    video = np.flatnonzero(split.truth.clip_video == 0)
    name = split.truth.video_ids[0]
    (prediction,) = [one for one in predict(run.best, data, device="cpu") if one.name == name]
    np.testing.assert_allclose(prediction.probabilities.iloc[:, 2:], found.apply(split.smoothed[video]), atol=1e-6)
    peaks = prediction.segments.groupby("class_id")["score"].max()
    for class_id, peak in peaks.items():
        assert peak <= prediction.probabilities[class_id].max() + 1e-6


def test_a_threshold_that_is_given_is_a_probability(run, data):
    config = from_flat(PredictConfig, {"threshold": 0.5, "offset_ratio": 1.0})
    for prediction in predict(run.best, data, config, device="cpu"):
        clear = prediction.probabilities.iloc[:, 2:].to_numpy()
        active = (clear >= 0.5 + 1e-6).any(axis=0)
        assert set(np.flatnonzero(active)) <= set(prediction.segment_table["class_index"].tolist())
        assert (prediction.segment_table["score"] >= 0.5 - 1e-6).all()


def test_the_table_and_its_files_say_so(evaluation, run, data, tmp_path):
    text = str(evaluation)
    assert re.search(r"^event F1 \(collar 0.5 s\) +\d+\.\d +\d+\.\d to \d+\.\d +\d+\.\d", text, re.MULTILINE)
    assert re.search(
        r"^calibration: expected error [\d.]+ per cent of the scores, [\d.]+ of the probabilities "
        r"\((temperature|platt)\)$",
        text,
        re.MULTILINE,
    )
    evaluate(run.best, data, output=tmp_path, device="cpu", num_resamples=0)
    contents = json.loads((tmp_path / "evaluation.json").read_text())
    assert set(contents["calibration"]) == {"method", "before", "after"} and "segment_f1" in contents["scores"]
    assert (tmp_path / "per_class.csv").read_text().splitlines()[0].endswith("event_f1,intersection_f1,segment_f1")


def test_a_run_without_validation_says_so(data, tmp_path):
    config = small_runs.make_config(epochs=1, validation_fraction=0.0, feature="spectrogram")
    best = train(data, tmp_path / "run", config, device="cpu").best
    assert checkpoints.load(best)["calibration"] is None
    evaluation = evaluate(best, data, device="cpu", num_resamples=0)
    assert evaluation.calibration is None and "event_f1" not in evaluation.scores
    assert (
        "no macro F1, no segments, and no probabilities: thresholds and calibration are found on a validation split"
        in str(evaluation)
    )
    rules = next(predict(best, data, device="cpu")).labelling.rules
    assert set(rules.onset) == {0.5} and rules.calibration.method == "none"
