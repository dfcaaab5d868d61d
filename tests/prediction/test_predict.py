"""New recordings hear as a built file does, whatever made the features; and what a folder of them comes to."""

import os
from pathlib import Path

import numpy as np
import pandas
import pytest
from small_models import evaluated_scores, make_checkpoint, make_file, make_videos
from synthetic import divide

import egoaudio
from egoaudio.config.options import from_flat
from egoaudio.config.predict import PredictConfig
from egoaudio.errors import CheckpointError, ConfigurationError, MediaError, PredictionError, Status, StoreError
from egoaudio.hdf5.scores_file import ScoresFile
from egoaudio.models import checkpoints
from egoaudio.prediction.predict import predict, predict_to_folder

pytestmark = pytest.mark.usefixtures("kept_workers")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return make_videos(tmp_path_factory.mktemp("videos"))


@pytest.fixture(scope="module")
def data(tmp_path_factory, inputs):
    return make_file(inputs, tmp_path_factory.mktemp("file") / "ego.h5")


@pytest.fixture(scope="module")
def best(tmp_path_factory, data):
    return make_checkpoint(data, tmp_path_factory.mktemp("run") / "cnn")


@pytest.fixture(scope="module")
def heard(tmp_path_factory, inputs, best):
    """The report of a folder of videos that was heard."""
    return predict_to_folder(best, inputs.videos, tmp_path_factory.mktemp("heard") / "out", num_workers=2)


def assert_as_evaluated(predictions, checkpoint, path):
    """Hold the scores of recordings to those of ``evaluate``; return how many clips were compared."""
    wanted, compared = evaluated_scores(checkpoint, path), 0
    for prediction in predictions:
        video_id = Path(prediction.file).stem
        if prediction.status == Status.OK:
            np.testing.assert_allclose(prediction.scored.scores, wanted[video_id], rtol=0, atol=1e-6)
            compared += len(wanted[video_id])
        else:
            assert not len(prediction.scored.scores)
    return compared


MADE = {
    "clip": ({"mode": "nonstationary", "scope": "clip"}, {}),
    "recording": ({"mode": "nonstationary", "scope": "recording"}, {"context_clips": 0}),
    "stationary": ({"mode": "stationary", "scope": "clip"}, {"context_clips": 0}),
    "stationary recording": ({"mode": "stationary", "scope": "recording"}, {"context_clips": 0}),
    "spectrogram": ({"features": ("spectrogram",)}, {"feature": "spectrogram", "model": "cnn"}),
    "mfcc": ({"features": ("mfcc", "spectrogram"), "n_mfcc": 13}, {"feature": "mfcc", "context_clips": 2}),
    "yamnet": ({"features": ("yamnet",)}, {"feature": "yamnet", "model": "yamnet", "context_clips": 0}),
    "waveform": ({"features": ("waveform",)}, {"feature": "waveform", "model": "yamnet", "context_clips": 0}),
    "float16": ({"dtype": "float16"}, {}),
    "seen context": ({"clip_seconds": 0.5, "context_seconds": 1.0}, {}),
    "hop": ({"hop_seconds": 0.5, "sample_rate": 8000}, {}),
    "softmax": ({}, {"label_mode": "single", "context_clips": 0}),
}


@pytest.mark.parametrize("made", MADE)
def test_scores_of_recordings_are_those_of_their_file(tmp_path, inputs, made):
    build_options, model_options = MADE[made]
    path = make_file(inputs, tmp_path / "ego.h5", **build_options)
    checkpoint = make_checkpoint(path, tmp_path / "run", **model_options)
    assert assert_as_evaluated(predict(checkpoint, inputs.videos), checkpoint, path) > 8


def test_a_file_is_scored_as_it_is(data, best):
    predictions = list(predict(best, data))
    with egoaudio.open(data) as file:
        assert [prediction.name for prediction in predictions] == file.videos["video_id"].tolist()
    assert assert_as_evaluated(predictions, best, data) > 8


def test_scores_depend_on_nothing_but_the_recording(tmp_path, inputs, best, heard):
    whole = {prediction.file: prediction.scored for prediction in heard}
    for options in ({"num_workers": 1}, {"num_workers": 3, "config": from_flat(PredictConfig, {"batch_size": 64})}):
        for prediction in predict(best, inputs.videos, **options):
            np.testing.assert_array_equal(prediction.scored.scores, whole[prediction.file].scores)
    for file in [file for file, scored in whole.items() if scored.status == Status.OK][:2]:
        (alone,) = predict(best, file)
        np.testing.assert_array_equal(alone.scored.scores, whole[file].scores)
        np.testing.assert_array_equal(alone.scored.clips, whole[file].clips)


def test_what_stands_in_the_folder(inputs, best, heard):
    assert sorted(os.listdir(heard.folder)) == ["scores.h5", "segments.csv"]
    with ScoresFile(heard.scores) as file:
        assert file.num_videos == 6 and file.num_classes == 13 and file.checkpoint == str(best)
        assert file.clips["start_seconds"].iloc[0] == 0 and file.videos["first_clip"].is_monotonic_increasing
        assert file.scores.shape == (file.num_clips, 13) and not np.isnan(file.scores[file.usable]).any()
        assert file.videos["file"].tolist() == sorted(str(path) for path in inputs.videos.iterdir())
        assert file.video_table["status"].tolist().count(Status.OK) == 4
        assert file.config["threshold"] is None and file.build["sample_rate"] == 16000
        assert file.classes["onset"].tolist() == [0.5] * 13
    segments = pandas.read_csv(heard.segments)
    assert len(segments) == heard.num_segments > 0
    expected = pandas.concat([prediction.segments for prediction in heard], ignore_index=True)
    for column in expected:
        if expected[column].dtype.kind == "f":
            np.testing.assert_allclose(segments[column], expected[column], atol=1e-6)
        else:
            assert segments[column].tolist() == expected[column].tolist()
    assert set(segments["checkpoint"]) == {str(best)}
    assert [reason for _, reason in heard.failures] == [
        "not a media file, or cut off before its index (Invalid data found when processing input)"
    ]
    assert "6: 4 with sound, 1 without, 1 failed" in str(heard)
    pandas.read_hdf(heard.scores, "videos")


def test_other_thresholds_take_the_scores_that_are_there(monkeypatch, inputs, best, heard):
    before = heard.scores.read_bytes()
    monkeypatch.setattr("egoaudio.prediction.predict.score_media", lambda *_, **__: iter(()))
    again = predict_to_folder(best, inputs.videos, heard.folder, from_flat(PredictConfig, {"threshold": 0.0}))
    assert again.num_known == 6 and again.num_segments == 4 * 13
    predict_to_folder(best, inputs.videos, heard.folder)
    assert heard.scores.read_bytes() == before


def test_a_checkpoint_from_before_takes_its_file(tmp_path, inputs, data, best):
    old = make_checkpoint(data, tmp_path / "old", changes={"build": None})
    with pytest.raises(CheckpointError, match="does not say how its features were made: give `like=FILE`"):
        next(predict(old, inputs.videos))
    files = [path for path in sorted(inputs.videos.iterdir())][:2]
    for ours, theirs in zip(predict(old, files, like=data), predict(best, files), strict=True):
        np.testing.assert_array_equal(ours.scored.scores, theirs.scored.scores)
    with pytest.raises(ConfigurationError, match="has no effect: .* says itself"):
        next(predict(best, inputs.videos, like=data))
    other = make_file(inputs, tmp_path / "other.h5", mode="stationary")
    with pytest.raises(CheckpointError, match="plan_sha256"):
        next(predict(old, inputs.videos, like=other))
    assert len(list(predict(old, data))) == 6  # whose features are there


def test_a_file_of_other_sound_is_refused(tmp_path, inputs, best):
    other = make_file(inputs, tmp_path / "other.h5", mode="stationary")
    with pytest.raises(CheckpointError, match="denoising: checkpoint none, file stationary"):
        next(predict(best, other))
    with pytest.raises(CheckpointError, match="denoising"):
        egoaudio.evaluate(best, other, output=tmp_path)


def test_what_cannot_be_heard_is_refused_before_anything_is_written(tmp_path, inputs, data, best):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    out = tmp_path / "out"
    cases = [
        ([tmp_path / "empty"], out, MediaError, "holds no media, at any depth"),
        ([], out, MediaError, "no recordings were given"),
        ([tmp_path / "none.mp4"], out, MediaError, "no such file"),
        ([data, inputs.videos], out, ConfigurationError, f"{data} is an egoaudio file, .* and {inputs.videos} is not"),
        ([inputs.videos], inputs.videos, PredictionError, "holds the recordings: give a folder of its own"),
        ([inputs.videos], tmp_path / "file", PredictionError, "is a file: name a folder"),
    ]
    for media, output, error, words in cases:
        with pytest.raises(error, match=words):
            predict_to_folder(best, media, output)
    assert sorted(os.listdir(tmp_path)) == ["empty", "file"]


def test_checkpoint_carries_what_new_sound_needs(best):
    contents = checkpoints.load(best)
    assert '"sample_rate":16000' in contents["build"] and '"mode":"none"' in contents["build"]


def test_several_files_are_scored_as_one(tmp_path, data, best):
    parts = divide(data, tmp_path, [0, 2, 6])
    whole, report = predict_to_folder(best, data, tmp_path / "whole"), predict_to_folder(best, parts, tmp_path / "out")
    with ScoresFile(whole.scores) as theirs, ScoresFile(report.scores) as ours:
        assert ours.source == "\n".join(parts) and theirs.source == str(data)
        np.testing.assert_array_equal(ours.scores, theirs.scores)
        np.testing.assert_array_equal(ours.clip_table, theirs.clip_table)
        assert ours.videos["video_id"].tolist() == theirs.videos["video_id"].tolist()
    assert report.segments.read_bytes() == whole.segments.read_bytes()
    assert predict_to_folder(best, data, tmp_path / "out").num_known == 6  # merged meanwhile: the same videos
    assert (tmp_path / "out/scores.h5").read_bytes() == whole.scores.read_bytes()
    with pytest.raises(StoreError, match="both hold .* 3 more: leave one of the files out"):
        next(predict(best, [*parts, data]))
