"""The benchmark for GPUs, on a tiny size on the CPU: that every section runs, and is kept if another fails."""

import importlib
import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))


def test_a_tiny_run_prints_its_tables_and_keeps_what_it_measured(tmp_path, capsys):
    sections = ["fast", "memory", "frontend", "build"]
    importlib.import_module("gpu").main(
        ["--tiny", "--device", "cpu", "--sections", *sections, "--output", str(tmp_path / "gpu.json")]
    )
    printed, facts = capsys.readouterr().out, json.loads((tmp_path / "gpu.json").read_text())
    assert facts["machine"]["versions"]["torch"] and facts["device"] == "cpu"
    assert not any("error" in facts[name] for name in sections)
    for words in ("egoaudio, TF32", "egoaudio, activation checkpointing", "8 GB", "logmel", "times one worker"):
        assert words in printed
    assert min(facts["fast"]["cnn: egoaudio, TF32"]["clips_per_second"]) > 0
    by_default = [name for name in facts["fast"] if "egoaudio, patchout 0.5 as by default" in name]
    assert [name.partition(":")[0] for name in by_default] == 2 * ["ast, 32 frames"]  # in both precisions
    assert all(min(facts["fast"][name]["clips_per_second"]) > 0 for name in by_default)
    assert (
        max(found["error"] for name, found in facts["frontend"]["alone"].items() if name in ("mfcc", "logmel")) < 1e-5
    )
    assert facts["memory"]["runs"]["8"]["micro-batch"] >= 1


def test_a_section_that_fails_leaves_the_others(tmp_path, capsys, monkeypatch):
    gpu = importlib.import_module("gpu")

    def broken(device, tiny, networks):
        raise RuntimeError("no such kernel")

    monkeypatch.setitem(gpu.SECTIONS, "fast", broken)
    gpu.main(["--tiny", "--device", "cpu", "--sections", "fast", "frontend", "--output", str(tmp_path / "gpu.json")])
    facts = json.loads((tmp_path / "gpu.json").read_text())
    assert "no such kernel" in facts["fast"]["error"] and facts["frontend"]["alone"]["logmel"]["seconds"]


def test_a_section_that_would_take_longer_than_all_may_is_left_out(tmp_path, capsys, monkeypatch):
    gpu = importlib.import_module("gpu")
    done = []
    for name in gpu.SECTIONS:
        monkeypatch.setitem(gpu.SECTIONS, name, lambda *given, name=name: done.append(name) or {"result": "done"})
    gpu.main(["--tiny", "--device", "cpu"])
    assert done == list(gpu.SECTIONS)
    monkeypatch.setattr(gpu, "TOTAL_SECONDS", 130)
    gpu.main(["--tiny", "--device", "cpu", "--output", str(tmp_path / "gpu.json")])
    facts = json.loads((tmp_path / "gpu.json").read_text())
    assert [name for name in gpu.SECTIONS if facts[name]["result"] == "done"] == [
        "right",
        "memory",
        "frontend",
        "build",
    ]
    assert facts["fast"]["result"] == "not run: 130 of 130 s were left; --sections fast runs it"
    gpu.main(["--tiny", "--device", "cpu", "--sections", "compiled"])
    assert done[-1] == "compiled"


@pytest.mark.parametrize("name", ["ast, 32 frames", "cnn"])
def test_the_peers_network_has_our_weights(name):
    gpu = importlib.import_module("gpu")
    loops = importlib.import_module("gpu_loops")
    case = next(case for case in gpu.cases(True) if case.name == name)
    ours, theirs = loops.our_network(case), loops.Peer(case)
    count = [sum(parameter.numel() for parameter in model.parameters()) for model in (ours, theirs)]
    assert count[0] == count[1]
