"""The benchmarks run at a tiny size and print their results; no timing is asserted. Training's has its own module."""

import importlib
import json
import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))


@pytest.mark.parametrize("name", ["denoise", "build", "loader", "scale"])
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
