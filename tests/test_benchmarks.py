"""The benchmarks run at a tiny size and print their results; no timing is asserted. Training's has its own module."""

import importlib
import json
import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))


@pytest.mark.parametrize("name", ["denoise", "build", "loader", "scale", "predict"])
def test_a_tiny_run_prints_its_table_and_writes_machine_and_raw_runs(name, tmp_path, capsys):
    before = os.sched_getaffinity(0), os.environ["PATH"]
    importlib.import_module(name).main(["--tiny", "--output", str(tmp_path / "out.json")])
    table, facts = capsys.readouterr().out, json.loads((tmp_path / "out.json").read_text())
    assert facts["machine"]["versions"]["numpy"] and facts["runs"] and facts["load"]
    for row in facts["rows"]:
        assert row[0] in table
    assert (os.sched_getaffinity(0), os.environ["PATH"]) == before


def test_our_own_work_is_measured_down_to_the_disk_and_equals_a_build(tmp_path):
    import egoaudio
    from egoaudio.builder.build import build

    benchmark, one_core = importlib.import_module("build"), importlib.import_module("one_core")
    inputs = benchmark.make_videos(tmp_path / "videos", 2, 2, tiny=True)
    laid = one_core.lay_out(inputs, benchmark.LOGMEL, tmp_path / "laid.h5")
    seconds = one_core.extract_all(*laid)
    build(inputs, tmp_path / "built.h5", benchmark.LOGMEL)
    assert seconds["write"] > 0
    with (
        pytest.warns(UserWarning),
        egoaudio.open(tmp_path / "laid.h5") as ours,
        egoaudio.open(tmp_path / "built.h5") as built,
    ):
        assert (ours["logmel"][:] == built["logmel"][:]).all()


@pytest.mark.parametrize("module", ["moviepy", "lhotse"])
def test_a_peer_that_is_not_installed_is_said_to_be_so(module, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", os.environ["PATH"])  # lhotse gets an ffmpeg
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(importlib.import_module("one_core"), "write_wavs", lambda paths, folder: [])
    _, missing = importlib.import_module("one_core").peers([tmp_path / "no.mp4"], tmp_path)
    assert f"not installed ({module})" in missing.values()


def test_sounds_of_the_benchmark_of_predictions_are_as_long_as_its_rows_say(tmp_path):
    from egoaudio.inputs.probe import probe

    benchmark = importlib.import_module("predict")
    benchmark.make_short_sounds(tmp_path / "short", 12, tmp_path / "one.wav")
    seconds = [probe(path).duration_seconds for path in sorted((tmp_path / "short").iterdir())]
    assert seconds == pytest.approx([1 + number % 10 / 10 for number in range(12)])
    assert probe(tmp_path / "one.wav").duration_seconds == pytest.approx(sum(seconds))
    benchmark.make_long_sound(tmp_path / "long.aac", 0.01, seconds=3)
    assert probe(tmp_path / "long.aac").duration_seconds == pytest.approx(36, abs=1.5)


def test_bars_of_predictions_follow_from_what_was_measured():
    benchmark = importlib.import_module("predict")
    speed = {"build, logmel (the floor)": 10, "predict, logmel, no network": 9, "predict, logmel, cnn-small": 8.0}
    speed |= {"build, denoised (the floor)": 8, "predict, denoised, no network": 4, "predict, denoised, cnn-small": 3}
    speed |= {"predict, logmel, ast": 3, "Hugging Face's pipeline, AST": 2}
    common = {"wall": 20.0, "cpu": 21.0, "files": 1}
    found = {
        "short sounds": {**common, "files": 1000, "hours": 0.4, "peak_mb": 900, "wall": 25.0},
        "the same length in one sound": {**common, "hours": 0.4, "peak_mb": 900},
        "one sound of 1 h": {**common, "hours": 1.0, "peak_mb": 900},
        "one sound of 8 h": {**common, "hours": 8.0, "peak_mb": 990},
    }
    assert [row[1] for row in benchmark.bar_rows(speed, found)] == ["0.90", "0.50", "8", "1.5", "1.10", "5.0"]
    assert benchmark.command_rows(found)[3] == ["one sound of 8 h", "1", "8.00", "20.0", "21.0", "1,440", "990"]
