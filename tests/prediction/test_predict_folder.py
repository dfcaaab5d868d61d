"""The folder of a prediction: stopped at any place it resumes to the same bytes, and what is broken costs itself."""

import os
import re
import shutil
from pathlib import Path

import h5py
import misbehaving
import numpy as np
import pandas
import pytest
from click.testing import CliRunner
from conftest import make_wav
from small_models import make_checkpoint, make_file, make_videos

import egoaudio
from egoaudio import cli
from egoaudio.config.options import from_flat
from egoaudio.config.predict import FORMATS, PredictConfig
from egoaudio.errors import PredictionError, Status
from egoaudio.prediction import predict as predicting
from egoaudio.prediction import score
from egoaudio.prediction.predict import predict, predict_to_folder
from egoaudio.prediction.recording import to_bytes

pytestmark = pytest.mark.usefixtures("kept_workers")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return make_videos(tmp_path_factory.mktemp("videos"))


@pytest.fixture(scope="module")
def data(tmp_path_factory, inputs):
    return make_file(inputs, tmp_path_factory.mktemp("file") / "ego.h5")


@pytest.fixture(scope="module")
def best(tmp_path_factory, data):
    return make_checkpoint(data, tmp_path_factory.mktemp("run") / "cnn", context_clips=0)


@pytest.fixture
def sounds(tmp_path):
    """Return a folder of short sounds of different lengths, one of them below another folder."""
    generator = np.random.default_rng(0)
    (tmp_path / "sounds" / "more").mkdir(parents=True)
    for number, seconds in enumerate((1.4, 3.1, 0.3, 2.0, 5.2)):
        samples = 0.1 * generator.standard_normal(round(8000 * seconds))
        make_wav(tmp_path / "sounds" / ("more" if number == 3 else "") / f"s{number}.wav", samples, 8000)
    return tmp_path / "sounds"


def contents(folder):
    """Return ``{relative path: bytes}`` of everything in a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


ALL = from_flat(PredictConfig, {"formats": FORMATS, "threshold": 0.4, "hop_seconds": 0.5})


def test_label_files_of_every_format_stand_in_folders_of_their_own(best, sounds, tmp_path):
    report = predict_to_folder(best, sounds, tmp_path / "out", ALL)
    found = contents(tmp_path / "out")
    names = {"s0.wav", "s1.wav", "s2.wav", "more/s3.wav", "s4.wav"}
    for name in FORMATS:
        mine = [path for path in found if path.startswith(f"{name}/")]
        assert (
            len(mine) == 5
            and {re.sub(r"\.(labels|selections)?\.?\w+$", "", path[len(name) + 1 :]) for path in mine} == names
        )
    assert len(found) == 2 + 5 * len(FORMATS) and report.num_segments > 0
    segments = pandas.read_csv(report.segments)
    assert len(segments) == sum(found[path].count(b"\n") for path in found if path.startswith("audacity/"))
    times = [prediction.scores["start_seconds"].tolist() for prediction in report]
    assert times[1] == [0.0, 0.5] and times[3] == [] and times[4][:3] == [0.0, 0.5, 1.0]  # of 1.4, 0.3 and 5.2 s


def test_stopped_after_any_recording_it_resumes_to_the_same_bytes(monkeypatch, best, sounds, tmp_path):
    predict_to_folder(best, sounds, tmp_path / "whole", ALL)
    whole = contents(tmp_path / "whole")
    real, scored = score.from_heard, []
    for stop_after in (1, 3):
        out = tmp_path / f"stopped{stop_after}"

        def stop(*arguments, stop_after=stop_after):
            scored.append(arguments[0])
            if len(scored) > stop_after:
                raise KeyboardInterrupt
            return real(*arguments)

        scored.clear()
        monkeypatch.setattr(score, "from_heard", stop)
        with pytest.raises(KeyboardInterrupt):
            predict_to_folder(best, sounds, out, ALL, num_workers=2)
        assert sorted(os.listdir(out)) == ["scores.partial"]
        with open(out / "scores.partial", "ab") as file:
            file.write(b"torn" * 100)
        monkeypatch.setattr(score, "from_heard", lambda *arguments: scored.append(arguments[0]) or real(*arguments))
        scored.clear()
        report = predict_to_folder(best, sounds, out, ALL)
        assert report.num_known == stop_after and len(scored) == 5 - stop_after
        assert contents(out) == whole


def test_stopped_while_it_writes_it_resumes_to_the_same_bytes(monkeypatch, best, sounds, tmp_path):
    predict_to_folder(best, sounds, tmp_path / "whole", ALL)
    for place in ("write_scores", "write_segments"):
        out = tmp_path / place
        monkeypatch.setattr(predicting.writing, place, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            predict_to_folder(best, sounds, out, ALL)
        monkeypatch.undo()
        assert predict_to_folder(best, sounds, out, ALL).num_known == 5
        assert contents(out) == contents(tmp_path / "whole")


def test_recordings_that_are_added_or_changed_cost_themselves(best, sounds, tmp_path):
    out = tmp_path / "out"
    predict_to_folder(best, sounds, out)
    shutil.copy(sounds / "s1.wav", sounds / "new.wav")
    make_wav(sounds / "s0.wav", np.full(16000, 0.1), 8000)
    report = predict_to_folder(best, sounds, out)
    assert (report.num_recordings, report.num_known) == (6, 4)
    (sounds / "s4.wav").unlink()
    assert predict_to_folder(best, sounds, out).num_recordings == 5
    predict_to_folder(best, sounds, tmp_path / "anew")
    assert contents(out) == contents(tmp_path / "anew")


def test_ids_that_cannot_be_names_of_files_are_heard_all_the_same(data, best, tmp_path):
    """Of a file that another program wrote, or whose ids are as long as an annotation may have them."""
    copy = tmp_path / "ego.h5"
    shutil.copy(data, copy)
    with h5py.File(copy, "r+") as file:
        videos = file["videos"][()]
        wide = [(name, "S255" if name == "video_id" else videos.dtype[name]) for name in videos.dtype.names]
        rows = videos.astype(wide)
        rows["video_id"] = [b"x" * 255, b"a\x1bb", b"a/../b", b"", b"y" * 254, b"z"]
        del file["videos"]
        file["videos"] = rows
    first = predict_to_folder(best, copy, tmp_path / "heard")
    assert sum(prediction.status == Status.OK for prediction in first) == 4
    before = contents(tmp_path / "heard")
    predict_to_folder(best, copy, tmp_path / "heard")
    assert contents(tmp_path / "heard") == before


def test_names_that_are_not_utf8_are_heard_once_and_written_in_every_format(best, sounds, tmp_path):
    for name in (b"caf\xe9.wav", b"more/\xff.wav"):
        shutil.copy(sounds / "s1.wav", os.fsencode(sounds) + b"/" + name)
    first = predict_to_folder(best, sounds, tmp_path / "out", ALL)
    assert (first.num_recordings, first.num_known, first.failures) == (7, 0, ())
    before = contents(tmp_path / "out")
    assert len(before) == 2 + 7 * len(FORMATS)
    assert predict_to_folder(best, sounds, tmp_path / "out", ALL).num_known == 7
    assert contents(tmp_path / "out") == before
    path = os.fsdecode(os.fsencode(sounds) + b"/caf\xe9.wav")
    (prediction,) = predict(best, path, ALL)
    assert len(prediction.segments) and set(prediction.segments["file"]) == {path}


def test_another_model_is_refused_unless_forced(best, data, sounds, tmp_path):
    out = tmp_path / "out"
    predict_to_folder(best, sounds, out)
    other = make_checkpoint(
        data, tmp_path / "other", context_clips=0, changes={"normalization": {"mean": 0.0, "std": 1.0}}
    )
    before = contents(out)
    for options in ({"checkpoint": other}, {"config": from_flat(PredictConfig, {"hop_seconds": 0.25})}):
        with pytest.raises(
            PredictionError, match="holds the scores of another model .* or with other options.*force=True"
        ):
            predict_to_folder(**{"checkpoint": best, "media": sounds, "output": out, **options})
    assert contents(out) == before
    predict_to_folder(other, sounds, out, force=True)
    assert contents(out)["scores.h5"] != before["scores.h5"]


def test_what_is_broken_silent_dies_or_hangs_costs_itself(monkeypatch, best, sounds, tmp_path):
    monkeypatch.setattr(score, "send_features", misbehaving.send_features)
    shutil.copy(sounds / "s4.wav", sounds / "late.wav")
    shutil.copy(sounds / "s0.wav", sounds / "hang.wav")
    (sounds / "broken.mp4").write_bytes(b"no media")
    (sounds / "empty.wav").write_bytes(b"")
    (sounds / "nowhere.mp3").symlink_to("gone.mp3")
    make_wav(sounds / "silent.wav", np.zeros(16000), 8000)
    report = predict_to_folder(best, sounds, tmp_path / "out", timeout_seconds=2)
    reasons = {Path(file).name: reason for file, reason in report.failures}
    assert set(reasons) == {"hang.wav", "broken.mp4", "empty.wav", "nowhere.mp3"}
    assert "no progress for 2 s" in reasons["hang.wav"]
    assert "gone" in reasons["nowhere.mp3"] or "No such file" in reasons["nowhere.mp3"]
    found = {prediction.name: prediction for prediction in report}
    np.testing.assert_array_equal(found["late.wav"].scored.scores, found["s4.wav"].scored.scores)
    assert found["silent.wav"].status == Status.OK and "silent videos: 1" in str(report)
    alone = {prediction.name: prediction for prediction in predict(best, sounds / "s1.wav")}
    np.testing.assert_array_equal(found["s1.wav"].scored.scores, alone["s1.wav"].scored.scores)
    monkeypatch.undo()
    again = predict_to_folder(best, sounds, tmp_path / "out")
    assert again.num_known == again.num_recordings and len(again.failures) == 4
    retried = predict_to_folder(best, sounds, tmp_path / "out", retry_failed=True)
    assert {Path(file).name for file, _ in retried.failures} == {"broken.mp4", "empty.wav", "nowhere.mp3"}


def test_a_network_that_gives_no_numbers_is_told(best, data, sounds, tmp_path):
    broken = make_checkpoint(
        data, tmp_path / "run", context_clips=0, changes={"normalization": {"mean": float("nan"), "std": 1.0}}
    )
    (prediction,) = predict(broken, sounds / "s1.wav")
    assert prediction.status == Status.UNREADABLE and "not numbers" in prediction.error
    assert {one.error for one in predict(broken, data) if one.status == Status.UNREADABLE} >= {prediction.error}


def test_links_in_the_folder_lead_nothing_out_of_it(best, sounds, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "srt").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PredictionError, match="a symbolic link there leads out of"):
        predict_to_folder(best, sounds, tmp_path / "out", from_flat(PredictConfig, {"formats": ("srt",)}))
    assert not os.listdir(tmp_path / "elsewhere") and os.listdir(tmp_path / "out") == ["srt"]
    (tmp_path / "out" / "srt").unlink()
    (tmp_path / "out" / "srt").write_text("mine")
    with pytest.raises(PredictionError, match="out/srt: is no folder, and label files go there: move it away"):
        predict_to_folder(best, sounds, tmp_path / "out", from_flat(PredictConfig, {"formats": ("srt",)}))
    assert os.listdir(tmp_path / "out") == ["srt"]  # told before anything is heard
    (tmp_path / "out" / "srt").unlink()
    (tmp_path / "out" / "srt").mkdir()
    (tmp_path / "out" / "srt" / "more").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PredictionError, match="a symbolic link there leads out of"):
        predict_to_folder(best, sounds, tmp_path / "out", from_flat(PredictConfig, {"formats": ("srt",)}))
    assert not os.listdir(tmp_path / "elsewhere")
    (tmp_path / "out" / "scores.partial").unlink()
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "out" / "scores.partial").symlink_to(tmp_path / "victim")
    with pytest.raises(PredictionError, match="scores.partial"):
        predict_to_folder(best, sounds, tmp_path / "out")
    assert (tmp_path / "victim").read_text() == "mine"


def test_the_command_says_what_it_heard_and_its_status_what_failed(best, sounds, tmp_path):
    (sounds / "broken.mp4").write_bytes(b"no media")
    command = [str(best), str(sounds), "--output", str(tmp_path / "out"), "--workers", "1", "--top", "2"]
    done = CliRunner().invoke(cli.predict, command)
    assert done.exit_code == 3, done.output
    lines = done.stdout.splitlines()
    assert re.fullmatch(rf"{sounds}/s1.wav: .+ 0\.\d\d at [\d.]+ s, .+ 0\.\d\d at [\d.]+ s", lines[3]), lines
    assert f"{tmp_path}/out is complete" in lines and "1 recording failed:" in lines
    assert "  (once the cause is fixed, --retry-failed tries them again)" in lines
    assert lines[-1] == f"next: egoaudio-report {tmp_path}/out --output {tmp_path}/out.html"
    assert CliRunner().invoke(cli.predict, [*command, "--skip-failed"]).exit_code == 0
    for options, words in (
        (["--threshold", "50"], "--threshold 50: expected 0 to 1, as scores are probabilities; did you mean per cent?"),
        (["--format", "mp3"], "--format mp3: expected one of audacity"),
        (["--hop-seconds", "0.00001"], "--hop-seconds 1e-05 is less than one sample"),
        (["--videos", str(sounds)], "media and --annotations were given"),
        (["--format", "json,srt,json"], "--format json was given twice"),
        (["--classes", str(sounds)], f"--classes {sounds} has no effect without --annotations"),
        (["--output", ""], "its name is empty, as that of a variable that is not set: name a folder"),
    ):
        refused = CliRunner().invoke(cli.predict, [*command, *options])
        assert refused.exit_code == 2 and words in refused.stderr, refused.stderr


def test_the_page_says_what_is_heard_for_longest(best, sounds, tmp_path):
    report = predict_to_folder(best, sounds, tmp_path / "out", ALL)
    table = pandas.read_csv(report.segments)
    seconds = (table["end_seconds"] - table["start_seconds"]).groupby(table["class_id"]).sum()
    expected = [seconds.get(class_id, 0.0) for class_id in report.labelling.class_ids]
    np.testing.assert_allclose(report.class_seconds, expected, atol=1e-4)
    heard, labels = str(report).splitlines()[4:6]
    longest = report.labelling.class_names[int(np.argmax(expected))]
    assert heard.startswith(f"  heard       {longest} {max(expected):.1f} s, ") and heard.endswith(" more")
    assert labels.startswith(f"  labels      a file a recording in {tmp_path}/out/audacity, {tmp_path}/out/raven")
    nothing = predict_to_folder(
        best, sounds, tmp_path / "out", from_flat(PredictConfig, {"threshold": 1.0, "hop_seconds": 0.5})
    )
    assert nothing.num_segments == 0 and "no class reaches its threshold: a lower `threshold`" in str(nothing)


def test_from_python_a_recording_is_two_data_frames(best, sounds):
    (prediction,) = egoaudio.predict(best, sounds / "s4.wav", from_flat(PredictConfig, {"threshold": 0.1}))
    scores, segments = prediction.scores, prediction.segments
    assert list(scores.columns[:3]) == ["start_seconds", "stop_seconds", "c000"] and len(scores) == 5
    assert scores["stop_seconds"].tolist() == [1, 2, 3, 4, 5]
    assert list(segments.columns) == ["file", "start_seconds", "end_seconds", "class_id", "name", "score", "mean_score"]
    assert len(segments) and (segments["file"] == str(sounds / "s4.wav")).all()
    smoothed = prediction.probabilities["c000"]
    expected = scores["c000"].rolling(3, center=True, min_periods=1).mean()
    np.testing.assert_allclose(smoothed, expected, rtol=1e-5)


def test_a_recording_comes_back_from_its_bytes(best, sounds):
    from egoaudio.prediction.recording import from_bytes

    (prediction,) = predict(best, sounds / "s1.wav")
    again = from_bytes(to_bytes(prediction.scored))
    assert again.video == prediction.scored.video and again.fingerprint == prediction.scored.fingerprint
    np.testing.assert_array_equal(again.scores, prediction.scored.scores)
    np.testing.assert_array_equal(again.clips, prediction.scored.clips)
