"""The fast part of the fault harness (all of it: ``benchmarks/faults.py --full``), and that it detects losses."""

import faulthandler
import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import build_faults  # noqa: E402
import faults  # noqa: E402
import trials  # noqa: E402


@pytest.fixture(scope="session")
def sample(tmp_path_factory):
    return trials.Sample(tmp_path_factory.mktemp("sample"))


@pytest.mark.parametrize("fault", [fault for fault in faults.FAULTS if fault.fast], ids=lambda fault: fault.words)
def test_nothing_is_lost(sample, tmp_path, monkeypatch, fault):
    monkeypatch.setattr(build_faults, "STOP_SECONDS", trials.HANG_SECONDS)  # how soon is for an idle machine to say
    tried, survived, reasons = fault.count(sample, tmp_path, fault.fast)
    assert (reasons, survived) == ([], tried)


def test_every_test_that_a_row_counts_is_there():
    for fault in faults.FAULTS:
        if fault.fast is None:
            for test in fault.count.args[0]:
                file, _, name = test.partition("::")
                assert f"def {name}(" in (trials.ROOT / "tests" / file).read_text(), test


# ----------------------------------------------------------------------------------------------- what the harness sees


def _survive(seed):
    return None


def _raise(seed):
    if seed == 3:
        raise ValueError("a defect")


def _crash(seed):
    if seed == 3:
        faulthandler.disable()
        os.kill(os.getpid(), signal.SIGSEGV)


def _hang(seed):
    if seed == 3:
        time.sleep(60)


def _swell(seed):
    if seed == 3:
        bytearray(50 << 20)


@pytest.mark.parametrize(
    ("trial", "words"),
    [
        (_raise, "ValueError: a defect"),
        (_crash, "exit status -11"),
        (_hang, "no answer in 1 s"),
        (_swell, "took [456][0-9] MB"),
    ],
)
def test_a_trial_in_a_child_that_raises_crashes_hangs_or_swells_is_lost_with_its_seed(trial, words):
    tried, survived, reasons = trials.in_children(trial, range(6), seconds=1, megabytes=40)
    assert (tried, survived, len(reasons)) == (6, 5, 1)
    assert reasons[0].startswith("seed 3: ")
    assert re.search(words, reasons[0])
    assert trials.in_children(_survive, range(6)) == (6, 6, [])
