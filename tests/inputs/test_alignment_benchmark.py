"""The benchmark of alignment measures what it says; where ffmpeg is installed, a small run agrees with it."""

import importlib
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
alignment = importlib.import_module("alignment")
RATE = 16000


@pytest.fixture(scope="module")
def noise():
    return np.random.default_rng(0).uniform(-0.3, 0.3, 6 * RATE).astype(np.float32)


def test_there_are_sixty_pairs_and_none_comes_twice():
    names = [(container, codec) for container, codec, _ in alignment.PAIRS]
    assert len(set(names)) == len(names) >= 60


@pytest.mark.parametrize("samples", [-4000, -16, 0, 1, 320, 12000])
def test_a_shift_is_measured_to_a_fraction_of_a_sample(noise, samples):
    moved = np.concatenate([np.zeros(samples, np.float32), noise]) if samples >= 0 else noise[-samples:]
    found = alignment.lags(moved, noise)
    assert found[1:] == pytest.approx(samples * 1000 / RATE, abs=0.01)


def test_a_shift_in_one_place_is_seen(noise):
    moved = np.concatenate([noise[: 3 * RATE], np.zeros(160, np.float32), noise[3 * RATE :]])
    np.testing.assert_allclose(alignment.lags(moved, noise), [0, 0, 0, 10, 10, 10], atol=0.02)


def test_sound_that_is_not_there_is_no_number(noise):
    found = alignment.lags(noise[: 3 * RATE], noise)
    np.testing.assert_allclose(found[:3], 0, atol=0.01)
    assert np.isnan(found[4:]).all()
    assert len(alignment.lags(noise, np.zeros(3 * RATE, np.float32))) == 0  # silence has no place


@pytest.mark.parametrize(
    ("difference", "ours", "unexplained"), [(5.0, 5.0, True), (-7.0, 0.0, False), (float("nan"), float("nan"), True)]
)
def test_a_difference_needs_a_reason(difference, ours, unexplained):
    result = alignment.Comparison("mkv", "aac", "as made", difference, ours, ours - difference, 0.0)
    assert ("UNEXPLAINED" in alignment._reason(result, np.array([ours]), "mkv", "as made")) == unexplained


def test_the_benchmarks_page_holds_the_tables_of_the_run_beside_it(capsys):
    assert alignment.main(["--tables", str(BENCHMARKS / "results" / "alignment.json")]) == 0
    tables = capsys.readouterr().out
    assert "| mkv | libvorbis | +3.00 | +3.00 | +3.00 | +0.00 |" in tables and "nan" not in tables
    assert tables in (BENCHMARKS / "README.md").read_text(encoding="utf-8")


def test_what_is_not_there_is_no_figure():
    missing = alignment.Comparison(
        "mkv", "aac", "as made", float("nan"), -0.001, 2.0, float("nan"), "ours is where it was put in"
    )
    assert "| mkv | aac | +0.00 | +2.00 | - | - |" in alignment.page([missing])


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="the ffmpeg program is not installed")
def test_a_small_run_shows_no_difference(tmp_path, capsys):
    assert alignment.main(["--tiny", "--output", str(tmp_path / "out.json")]) == 0
    assert "| mp4 | aac | +0.00 | +0.00 | +0.00 | +0.00 |" in capsys.readouterr().out
    facts = json.loads((tmp_path / "out.json").read_text())
    assert {run["condition"] for run in facts["runs"]} == {"as made", "late 0.75 s", "pause"}
    assert all(abs(run["difference_ms"]) <= facts["limit_ms"] for run in facts["runs"])
    assert facts["machine"] and facts["ffmpeg"]
