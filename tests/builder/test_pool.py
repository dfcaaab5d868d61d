"""Worker processes that die take nothing with them."""

import glob
import os
import platform
import resource
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

from egoaudio.builder import pool
from egoaudio.errors import ConfigurationError


def _square(number):
    return number * number


def _square_or_die(number):
    if number == 3:
        os.kill(os.getpid(), signal.SIGSEGV)
    if number == 5:
        time.sleep(60)
    return number * number


def _die_once(path):
    """Die when the file is not there yet, and make it."""
    if path and not os.path.exists(path):
        open(path, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return "done"


def _slow_but_alive(_):
    for _ in range(4):
        time.sleep(0.4)
        pool.heartbeat()
    return "done"


@pytest.mark.parametrize("num_workers", [1, 2])
def test_every_item_comes_back_once_with_its_result(num_workers):
    results = dict(pool.map_unordered(_square, range(20), num_workers=num_workers, timeout_seconds=30))
    assert results == {number: number * number for number in range(20)}


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
def test_a_timeout_that_no_timer_takes_is_refused(seconds):
    with pytest.raises(ConfigurationError, match="`timeout_seconds=.*: expected 0.01 to 1e.06"):
        dict(pool.map_unordered(_square, range(2), num_workers=1, timeout_seconds=seconds))


def test_items_whose_worker_dies_or_hangs_come_back_as_deaths_and_no_other_is_harmed():
    results = dict(pool.map_unordered(_square_or_die, range(10), num_workers=2, timeout_seconds=1))
    assert "SIGSEGV" in results.pop(3).reason
    assert "timed out: no progress for 1 s" in results.pop(5).reason
    assert results == {number: number * number for number in range(10) if number not in (3, 5)}


def test_an_item_is_tried_once_more_alone(tmp_path):
    results = list(pool.map_unordered(_die_once, [str(tmp_path / "tried"), "", ""], num_workers=2, timeout_seconds=30))
    assert [result for _, result in results] == ["done"] * 3


def test_a_heartbeat_keeps_a_long_call_alive():
    assert list(pool.map_unordered(_slow_but_alive, ["item"], num_workers=1, timeout_seconds=1)) == [("item", "done")]


def test_an_exception_of_the_function_is_raised_here():
    with pytest.raises(TypeError):
        list(pool.map_unordered(_square, ["text"], num_workers=2, timeout_seconds=30))


def test_calls_run_in_other_processes_with_one_thread(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    def look(_):
        return os.getpid(), os.environ.get("OMP_NUM_THREADS")

    ((_, (pid, threads)),) = pool.map_unordered(look, [0], num_workers=1, timeout_seconds=30)
    assert pid != os.getpid()
    assert threads == "1"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no mallopt")
def test_a_worker_keeps_the_memory_that_it_frees():
    def count_faults(_):
        def fill():
            for array in [np.empty(1 << 20, np.uint8) for _ in range(16)]:
                array.fill(1)

        fill()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        fill()
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    ((_, faults),) = pool.map_unordered(count_faults, [0], num_workers=1, timeout_seconds=30)
    assert faults < 16 * 256 / 4  # a page is 4 KiB


def _pids(workers, number_of_calls=6):
    return {result for _, result in workers.map_unordered(_pid, range(number_of_calls))}


def _pid(number):
    time.sleep(0.2)
    return os.getpid()


def test_workers_are_kept_within_a_block_and_gone_after_it_and_after_every_call_without_one():
    with pool.start_workers(2, 30) as workers:
        first = _pids(workers)
        assert _pids(workers) == first
    assert not any(os.path.exists(f"/proc/{pid}") for pid in first)
    alone = {result for _, result in pool.map_unordered(_pid, range(6), num_workers=2, timeout_seconds=30)}
    assert not first & alone
    assert not any(os.path.exists(f"/proc/{pid}") for pid in alone)


def test_a_death_within_a_block_is_survived_and_an_exception_ends_the_workers():
    with pytest.raises(KeyError), pool.start_workers(2, 30) as workers:
        first = _pids(workers)
        results = dict(workers.map_unordered(_square_or_die, [2, 3, 4]))
        assert isinstance(results[3], pool.Death) and results[4] == 16
        second = _pids(workers)
        raise KeyError
    assert not any(os.path.exists(f"/proc/{pid}") for pid in first | second)


def test_a_worker_is_deaf_to_ctrl_c_from_its_first_instant():
    """Not only once it ignores it: while it starts, Ctrl-C would have it print a traceback on the user's terminal."""
    ((_, held),) = pool.map_unordered(
        lambda _: signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []), [0], num_workers=1, timeout_seconds=30
    )
    assert held
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


@pytest.mark.filterwarnings("ignore:.*tasks which were still being processed")
@pytest.mark.parametrize("num_results", [1, 4])
def test_nothing_is_left_in_shared_memory_by_a_process_that_goes_on(num_results):
    """It may be killed later, when nobody sweeps any more."""
    folders = f"/dev/shm/joblib_memmapping_folder_{os.getpid()}_*"
    before = glob.glob(folders)
    results = pool.map_unordered(_square, range(4), num_workers=2, timeout_seconds=30)
    for _ in range(num_results):
        next(results)
    assert len(glob.glob(folders)) > len(before)
    results.close()
    assert set(glob.glob(folders)) <= set(before)


PARENT = """
    import time
    from egoaudio.builder import pool

    def sleep(number):
        print("started", flush=True)
        time.sleep(60)

    if __name__ == "__main__":
        list(pool.map_unordered(sleep, range(4), num_workers=2, timeout_seconds=600))
"""


@pytest.mark.parametrize("whole_group", [False, True])
def test_nothing_is_left_when_the_parent_is_killed(tmp_path, whole_group):
    script = tmp_path / "parent.py"
    script.write_text(textwrap.dedent(PARENT))
    parent = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    )
    parent.stdout.readline()
    (os.killpg if whole_group else os.kill)(parent.pid, signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 20
    while (left := _left_by(parent.pid, script)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == []


def _left_by(pid, script):
    """Return the processes of a session and the files in shared memory that a parent left."""
    left = glob.glob(f"/dev/shm/*{pid}*")
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat") as stat:
                    state, session = stat.read().rsplit(")", 1)[1].split()[0::3][:2]
            except OSError:
                continue
            if int(session) == pid and state != "Z":
                left.append(f"process {entry}")
    return left
