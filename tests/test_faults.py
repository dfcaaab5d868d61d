"""A share of the fault harness: the whole is ``benchmarks/faults.py --full``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import faults  # noqa: E402


def test_builds_killed_at_random_moments_end_in_the_same_bytes(tmp_path):
    _, survived, lost = faults.count_kills(tmp_path, 3, seed=7)
    assert (survived, lost) == (3, [])


def test_broken_media_cost_themselves_only(tmp_path):
    tried, survived, problems, _ = faults.count_broken_media(tmp_path, 30, seed=3)
    assert (survived, problems) == (tried, [])
