"""The benchmark of training runs, on a tiny size, and says what it is asked: no timing is judged here."""

import importlib
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))


def test_a_tiny_run_prints_its_tables_and_writes_machine_and_raw_runs(tmp_path, capsys):
    threads = torch.get_num_threads()
    importlib.import_module("train").main(["--tiny", "--output", str(tmp_path / "out.json")])
    printed, facts = capsys.readouterr().out, json.loads((tmp_path / "out.json").read_text())
    assert torch.get_num_threads() == threads
    assert facts["machine"]["versions"]["torch"] and facts["load"] and facts["rows"] and facts["bars"]
    for row in facts["rows"] + facts["bars"]:
        assert row[0] in printed
    loops = importlib.import_module("loops")
    for part in ("cnn", "cnn-small"):
        measured = facts[part]
        assert measured["runs"].keys() | measured["not_measured"].keys() == loops.PEERS.keys() | loops.OURS.keys()
        assert all(run["wall"] > 0 for found in measured["runs"].values() for run in found)
        assert all(memory["peak_mb"] > 100 for memory in measured["memory"].values())
    assert list(facts["on_the_fly_runs"]) == ["cnn", "cnn-small", "ast"]
    ways = {"from stored features", "on the fly", "on the fly, the sound changed"}
    assert all(ways == runs.keys() for runs in facts["on_the_fly_runs"].values())


@pytest.mark.parametrize("module", ["lightning", "accelerate"])
def test_a_peer_that_is_not_installed_is_said_to_be_so(module, tmp_path, monkeypatch):
    import synthetic

    monkeypatch.setitem(sys.modules, module, None)
    path = synthetic.make_file(tmp_path / "clips.h5", 2, 2, {"spectrogram": (8, 16)})
    train, loops = importlib.import_module("train"), importlib.import_module("loops")
    names = [
        name for name in loops.PEERS if name.startswith({"lightning": "Lightning", "accelerate": "Hugging"}[module])
    ]
    monkeypatch.setattr(loops, "PEERS", {name: loops.PEERS[name] for name in [train.PLAIN, *names]})
    speeds, _, _, missing = train.measure_cnn(path, 2, 1, 1, 1, (), lambda: ThreadPoolExecutor(1))
    assert missing == {name: f"not installed ({module})" for name in names}
    assert [names[0], f"not installed ({module})", "", ""] in train.cnn_rows(speeds, {}, missing)


def test_the_peers_network_is_ours():
    """Rivals do the same work: as many weights, the same shapes."""
    from types import SimpleNamespace

    from egoaudio.models import create_model

    network = importlib.import_module("loops").papers_cnn(SimpleNamespace(feature_shape=(32, 1025), num_classes=158))
    assert [p.shape for p in network.parameters()] == [
        p.shape for p in create_model("cnn", 158, (32, 1025)).parameters()
    ]
