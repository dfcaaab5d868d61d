"""A file and a checkpoint that an earlier version made open, verify, resume and evaluate to the same numbers.

``fixtures/version_0_1`` was made by egoaudio 0.1.0 (before its modules moved into folders) from ten generated videos
of 6 s (``bin/demo_data.py``, seed 1): ``ego.h5`` holds 32 clips of 0.2 s as float16 ``logmel``; ``last.pt`` is a run of
three epochs that was stopped after the first batch of the second one; ``expected.json`` has its options (all of them
are in ``last.pt``, too), what that version said of both, and the table of the run that it finished. Only gzip was
added.
"""

import gzip
import hashlib
import json
from pathlib import Path

import pytest

from egoaudio.config.options import from_json
from egoaudio.config.train import TrainConfig
from egoaudio.evaluation.evaluate import evaluate
from egoaudio.hdf5 import integrity, reader
from egoaudio.models import checkpoints
from egoaudio.training.train import train

FIXTURES = Path(__file__).parent / "fixtures/version_0_1"
EXPECTED = json.loads((FIXTURES / "expected.json").read_text())
# Another processor adds in another order; a step of the optimiser carries that on.
CLOSE = {"rel": 1e-4, "abs": 1e-6}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The fixtures unpacked; the run's ``last.pt`` lies in a folder of its own."""
    folder = tmp_path_factory.mktemp("older")
    (folder / "run").mkdir()
    (folder / "ego.h5").write_bytes(gzip.decompress((FIXTURES / "ego.h5.gz").read_bytes()))
    (folder / "run/last.pt").write_bytes(gzip.decompress((FIXTURES / "last.pt.gz").read_bytes()))
    return folder


def test_an_older_file_opens_and_verifies(folder):
    expected = EXPECTED["file"]
    with reader.open(folder / "ego.h5") as file:
        assert integrity.verify(file) == []
        assert (file.num_clips, file.num_videos, int(file.usable.sum())) == tuple(
            expected[name] for name in ("clips", "videos", "usable")
        )
        assert (file.plan_sha256, int(file.labels.sum())) == (expected["plan_sha256"], expected["labels"])
        assert hashlib.sha256(file["logmel"].tobytes()).hexdigest() == expected["logmel_sha256"]


def test_an_older_checkpoint_evaluates_to_the_same_numbers(folder, tmp_path):
    found = evaluate(folder / "run/last.pt", folder / "ego.h5", device="cpu", output=tmp_path, num_resamples=0)
    known = EXPECTED["evaluation_of_last"]
    assert {name: found.scores[name].value for name in known} == pytest.approx(known, **CLOSE)
    assert found.calibration.method == "none" and "the scores are not calibrated: an earlier version" in str(found)


def test_an_older_run_resumes_and_ends_in_the_same_numbers(folder, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "last.pt").write_bytes((folder / "run/last.pt").read_bytes())
    contents = checkpoints.load(run / "last.pt")
    state = contents["resume"]["state"]
    assert (state["epoch"], state["batch"]) == (1, 1)
    train(folder / "ego.h5", run, from_json(TrainConfig, contents["config"]), device="cpu")
    history = checkpoints.load(run / "last.pt")["resume"]["state"]["history"]
    assert len(history) == 3
    for row, expected in zip(history, EXPECTED["history"], strict=True):
        assert {name: row[name] for name in expected} == pytest.approx(expected, **CLOSE)
    found = evaluate(run / "best.pt", folder / "ego.h5", device="cpu", num_resamples=0)
    assert {name: found.scores[name].value for name in EXPECTED["evaluation_of_finished_best"]} == pytest.approx(
        EXPECTED["evaluation_of_finished_best"], **CLOSE
    )
