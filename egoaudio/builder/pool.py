"""Call a function on many items in worker processes that may die.

joblib's loky runs the calls, one item at a time and one thread a worker; results come in the order of completion. A decoder
can crash on a hostile file, the kernel can kill a worker for memory, a call can hang: loky then gives up its whole
pool. Here the pool is replaced, every item that was under way is tried once more, alone, and an item whose worker
dies again comes back as a ``Death`` with the reason. No other item is lost.

A worker guards itself with the kernel's means, so nobody has to poll: it ignores Ctrl-C (the parent decides), is
killed when its parent dies, and is killed by SIGALRM when ``heartbeat`` has not been called for ``timeout_seconds``.
It keeps the memory it has freed (``allocator``).
loky's semaphores and joblib's folders outlive a ``kill -9`` of the whole process group; ``_sweeper`` removes them then.
"""

import contextlib
import ctypes
import faulthandler
import glob
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from multiprocessing import resource_tracker

import joblib
from joblib.externals.loky import get_reusable_executor
from joblib.externals.loky.process_executor import BrokenProcessPool

from egoaudio.system import allocator, signals, surroundings

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
KEPT_BYTES = 64 << 20  # far more than a worker frees between two blocks
_keepers: list[bool] = []  # one entry while ``kept`` keeps the workers of this process
_SHARED_BYTES = 48 << 10  # a page for each of loky's semaphores
_ALONE = 2  # joblib runs n_jobs=1 in the calling process, where a crash is ours; with one call in flight, 2 is 1


@dataclass(frozen=True)
class Death:
    """What is left of an item whose worker died twice."""

    reason: str
    """In words, such as ``crashed (SIGSEGV)``."""


def each(function, items, *, workers, timeout_seconds):
    """Call ``function(item)`` in worker processes.

    Parameters
    ----------
    function : callable
        Picklable; may call ``heartbeat`` to say that it gets on.
    items : sequence
        Picklable; started in this order.
    workers : int
        Calls under way at once.
    timeout_seconds : float
        A call that gives no heartbeat for so long is killed.

    Yields
    ------
    item, result
        In the order of completion. ``result`` is a ``Death`` where the worker died on the item twice.
        An exception that ``function`` raises is raised here.
    """
    surroundings.require_open_files(32 + 4 * workers)
    call = partial(_guarded, function, timeout_seconds)
    remaining = list(items)
    with kept():
        while remaining:
            started: list[int] = []
            finished: set[int] = set()
            try:
                for position, result in _parallel(call, _noted(remaining, started), workers):
                    finished.add(position)
                    signals.check()
                    yield remaining[position], result
                return
            except BrokenProcessPool:
                suspects = [position for position in started if position not in finished]
            for position in suspects:
                yield remaining[position], _alone(call, remaining[position], timeout_seconds)
            remaining = remaining[len(started) :]


@contextlib.contextmanager
def kept():
    """Keep the workers from one ``each`` to the next until the block ends: starting two costs 0.5 s of processor time and more of waiting."""
    if _keepers:
        yield
        return
    surroundings.require_shared_memory(_SHARED_BYTES, "The processes that decode keep their locks in it")
    _keepers.append(True)
    try:
        with _sweeper(), _no_workers_left():
            yield
    finally:
        _keepers.pop()


def heartbeat(timeout_seconds=None):
    """Say that the call gets on: it has ``timeout_seconds`` (given once, by ``each``) from now until it is killed."""
    if timeout_seconds is None:
        _, timeout_seconds = signal.getitimer(
            signal.ITIMER_REAL
        )  # the kernel remembers it, as the interval; 0 where no alarm is set
    signal.setitimer(signal.ITIMER_REAL, timeout_seconds, timeout_seconds)


def _noted(items, started):
    """Yield ``(position, item)`` and note in ``started`` what has been handed out."""
    for position, item in enumerate(items):
        started.append(position)
        yield position, item


def _parallel(call, numbered_items, workers):
    """Yield ``(position, result)`` as they come."""
    in_flight = "2*n_jobs" if workers > 1 else 1
    with joblib.parallel_config("loky", inner_max_num_threads=1, initializer=_settle, initargs=(os.getpid(),)):
        pool = joblib.Parallel(
            n_jobs=max(workers, _ALONE),
            return_as="generator_unordered",
            batch_size=1,
            pre_dispatch=in_flight,
            max_nbytes=None,
        )
        with _ctrl_c_held():  # the workers start here
            results = pool(joblib.delayed(call)(position, item) for position, item in numbered_items)
        with contextlib.closing(results):
            yield from results


def _alone(call, item, timeout_seconds):
    """Return the result of one call with nothing else under way, or the ``Death`` of its worker."""
    try:
        ((_, result),) = _parallel(call, [(0, item)], 1)
        return result
    except BrokenProcessPool as error:
        return Death(_reason(str(error), timeout_seconds))


def _reason(text, timeout_seconds):
    """Return in words why a worker died, from loky's message."""
    received = re.findall(r"(SIG[A-Z]+)\(-\d+\)", text)
    if "SIGALRM" in received:
        return f"ran out of time: no progress for {timeout_seconds:g} s"
    # loky ends the workers that are left with SIGTERM; what is not SIGTERM is the cause.
    causes = sorted(set(received) - {"SIGTERM"}) or sorted(set(received))
    if causes:
        hint = ", perhaps for memory" if "SIGKILL" in causes else ""
        return f"the decoding process crashed ({', '.join(causes)}{hint})"
    codes = sorted(set(re.findall(r"EXIT\((\d+)\)", text)))
    return f"the decoding process ended (exit code {', '.join(codes)})" if codes else "the decoding process died"


def _guarded(function, timeout_seconds, position, item):
    """Call ``function`` under the alarm; runs in the worker."""
    faulthandler.disable()  # loky's is on; a decoder's crash is told by ``Death``, not by a stack on the user's terminal
    heartbeat(timeout_seconds)
    try:
        return position, function(item)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


@contextlib.contextmanager
def _ctrl_c_held():
    """Hold Ctrl-C back while processes start: they inherit that, and importing takes them a second before ``_settle`` ignores it."""
    resource_tracker.ensure_running()  # it starts with the first worker, and up to Python 3.11 lets Ctrl-C through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _settle(parent):
    """Make this process a worker: the parent alone answers to Ctrl-C, and its death is ours."""
    allocator.keep_freed_memory(KEPT_BYTES)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


@contextlib.contextmanager
def _no_workers_left():
    """End the workers at once when the block is left early, and in peace when it is left at its end."""
    finished = False
    try:
        yield
        finished = True
    finally:
        executor = get_reusable_executor(reuse=True)
        # joblib's own way out also removes its folders in shared memory, which would stay until this process ends, or for good if it is killed.
        getattr(executor, "terminate", executor.shutdown)(kill_workers=not finished)
        for folder in glob.glob(
            f"/dev/shm/joblib_memmapping_folder_{os.getpid()}_*"
        ):  # it forgets some, all of them empty
            with contextlib.suppress(OSError):
                os.rmdir(folder)


@contextlib.contextmanager
def _sweeper():
    """Have a process in a session of its own remove what loky leaves, should this one be killed with its whole group."""
    code = (
        "import glob, os, shutil, sys\n"
        "sys.stdin.read()\n"
        "for name in glob.glob('/dev/shm/sem.loky-%s-*' % sys.argv[1]):\n"
        "    os.unlink(name)\n"
        "for name in glob.glob('/dev/shm/joblib_memmapping_folder_%s_*' % sys.argv[1]):\n"
        "    shutil.rmtree(name, ignore_errors=True)\n"
    )
    command = [sys.executable, "-S", "-E", "-c", code, str(os.getpid())]
    if not os.path.isdir("/dev/shm"):
        yield
        return
    sweeper = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        yield
    finally:
        sweeper.kill()
        sweeper.wait()
        if sweeper.stdin is not None:
            sweeper.stdin.close()
