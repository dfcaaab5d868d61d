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
import fault_table  # noqa: E402
import faults  # noqa: E402
import trials  # noqa: E402

from egoaudio.system import allocator  # noqa: E402


@pytest.fixture(scope="session")
def sample(tmp_path_factory):
    return trials.Sample(tmp_path_factory.mktemp("sample"))


@pytest.mark.parametrize("fault", [fault for fault in faults.FAULTS if fault.fast], ids=lambda fault: fault.words)
@pytest.mark.usefixtures("kept_workers")  # of the builds that are not killed
def test_nothing_is_lost(sample, tmp_path, monkeypatch, fault):
    monkeypatch.setattr(trials, "STOP_SECONDS", trials.HANG_SECONDS)  # how soon is for an idle machine to say
    tally = fault.count(sample, tmp_path, fault.fast)
    assert (tally.reasons, tally.survived) == ([], tally.tried)


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


def _be_wrong(seed):
    if seed == 3:
        trials.require_right([1] == [2], "another value")


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
    ("trial", "words", "is_wrong"),
    [
        (_raise, "ValueError: a defect", False),
        (_be_wrong, "Wrong: another value", True),
        (_crash, "exit status -11", False),
        (_hang, "no answer in 3 s", False),
        (_swell, "took [456][0-9] MB", False),
    ],
)
def test_a_trial_in_a_child_that_raises_is_wrong_crashes_hangs_or_swells_is_lost_with_its_seed(trial, words, is_wrong):
    tally = trials.in_children(trial, range(6), seconds=3, megabytes=40)
    assert (tally.tried, tally.survived, len(tally.reasons), len(tally.wrong)) == (6, 5, 1, is_wrong)
    assert tally.reasons[0].startswith("seed 3: ")
    assert re.search(words, tally.reasons[0])
    assert trials.in_children(_survive, range(6)) == trials.Tally(6)


def test_growth_is_seen_in_a_child_whose_parent_keeps_freed_memory():
    allocator.keep_freed_memory()
    blocks = [bytearray(1 << 20) for _ in range(120)]
    del blocks
    try:
        tally = trials.in_children(_swell, range(6), seconds=5, megabytes=40)
    finally:
        allocator.return_freed_memory()
    assert (tally.tried, tally.survived) == (6, 5)
    assert re.search("took [456][0-9] MB", tally.reasons[0])


def test_a_trial_in_a_folder_is_not_tried_lost_or_wrong(tmp_path):
    def trial(place, seed):
        assert place.is_dir()
        trials.require(seed != 1, "it hangs")
        trials.require_right(seed != 2, "other bytes")
        return trials.NOT_TRIED if seed == 3 else None

    tally = trials.each(trial, tmp_path, range(5))
    assert tally == trials.Tally(4, ("seed 1: it hangs",), ("seed 2: other bytes",))
    assert tally.survived == 2 and not list(tmp_path.iterdir())


def test_tests_that_fail_are_wrong_or_lost_as_often_as_they_hold_faults(tmp_path):
    (tmp_path / "test_it.py").write_text(
        "import pytest\n"
        "def test_good(): pass\n"
        "def test_wrong(): assert 1 == 2\n"
        "def test_silent():\n    with pytest.raises(ValueError): pass\n"
        "def test_crash(): {}[1]\n"
        "@pytest.mark.skip\ndef test_skipped(): pass\n"
    )
    tally = trials.suite_tests([str(tmp_path / "test_it.py")], 10, None, tmp_path, None)
    assert (tally.tried, tally.survived, len(tally.lost), len(tally.wrong)) == (40, 10, 10, 20)
    assert "KeyError" in tally.lost[0] and "assert 1 == 2" in tally.wrong[0]


def test_the_pages_hold_the_table_of_the_run_beside_them(capsys):
    results = trials.ROOT / "benchmarks/results/faults.json"
    assert faults.main(["--tables", str(results)]) == 0
    table = capsys.readouterr().out
    assert table in (trials.ROOT / "benchmarks/README.md").read_text(encoding="utf-8")
    _, rows, _ = faults.read([results])
    tried, lost = sum(row[1] for row in rows), sum(row[3] for row in rows)
    assert f"| {tried:,} tried | {lost} lost |" in (trials.ROOT / "README.md").read_text(encoding="utf-8")


def test_runs_of_a_part_of_the_rows_make_one_table(tmp_path, capsys, monkeypatch):
    def tally(*tried_lost_wrong):
        return lambda sample, folder, num_faults: trials.Tally(num_faults, *tried_lost_wrong)

    rows = (
        ("media: one", tally(), 3), ("media: two", tally(("seed 1: it hangs",), ("seed 2: other bytes",)), 4),
        ("not asked for", tally(), 5), ("media: only in a full run", tally(), 0),
    )  # fmt: skip
    monkeypatch.setattr(faults, "FAULTS", tuple(fault_table.Fault(*row) for row in rows))
    monkeypatch.setattr(faults, "Sample", lambda folder: None)  # these rows do without
    paths = [str(tmp_path / f"{number}.json") for number in range(2)]
    for path, words, status in zip(paths, ["media: o", "media: two"], [0, 1], strict=True):
        assert faults.main(["--only", words, "--output", path]) == status
    assert "seed 1: it hangs\nwrong: seed 2: other bytes" in capsys.readouterr().out
    assert faults.main(["--tables", *paths]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.strip("| ").split(" | ") for line in lines[2:]] == [
        ["media: one", "3", "3", "0", "0"], ["media: two", "4", "2", "2", "1"], ["all", "7", "5", "2", "1"]
    ]  # fmt: skip


def test_a_full_run_tries_1800_faults_and_more():
    """Without those of tests that the suite counts; trials that come too late are not counted either."""
    assert sum(fault.full for fault in faults.FAULTS if fault.full is not None) > 1700
