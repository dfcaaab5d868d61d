"""Call a function on many items in worker processes that may die.

joblib's loky runs the calls, one item at a time and one thread a worker; results come in the order of completion. A
decoder can crash on a hostile file, the kernel can kill a worker for memory, a call can hang: loky then abandons its
whole pool. Here the pool is replaced, every item that was running is tried once more, alone, and an item whose worker
dies again comes back as a ``Death`` with the reason. No other item is lost.

The kernel guards a worker, so nobody has to poll: it ignores Ctrl-C (the parent decides), is killed when its parent
dies, and is killed by SIGALRM when ``heartbeat`` has not been called for ``timeout_seconds``. It keeps the memory it
has freed (``allocator``). loky's semaphores and joblib's folders outlive a ``kill -9`` of the whole process group;
``_sweeper`` then removes them.
"""

import contextlib
import faulthandler
import glob
import os
import re
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import resource_tracker
from typing import Any, TypeVar

import joblib
from joblib.externals.loky import get_reusable_executor
from joblib.externals.loky.process_executor import BrokenProcessPool

from egoaudio.errors import ConfigurationError
from egoaudio.system import allocator, signals, surroundings

KEPT_BYTES = 64 << 20  # far more than a worker frees between two blocks
_SHARED_BYTES = 48 << 10  # a page for each of loky's semaphores
_SHORTEST_SECONDS, _LONGEST_SECONDS = 0.01, 1e6  # of a timeout
_ALONE = 2  # joblib runs n_jobs=1 in the calling process, which a crash would kill; with one call at a time, 2 act as 1
Item = TypeVar("Item")


@dataclass(frozen=True)
class Death:
    """The result of an item whose worker died twice."""

    reason: str
    """In words, such as ``crashed (SIGSEGV)``."""


@dataclass(frozen=True)
class Workers:
    """Worker processes that are kept from one call to the next; from ``start_workers``."""

    num_workers: int
    """Calls at the same time."""
    timeout_seconds: float
    """A call without a heartbeat for this long is killed."""

    def __post_init__(self) -> None:
        """Check that the kernel's timer takes the number."""
        if not _SHORTEST_SECONDS <= self.timeout_seconds <= _LONGEST_SECONDS:  # false for NaN
            raise ConfigurationError(
                f"`timeout_seconds={self.timeout_seconds}`: expected {_SHORTEST_SECONDS:g} to {_LONGEST_SECONDS:g}"
            )

    def map_unordered(
        self, function: Callable[[Item], Any], items: Sequence[Item], num_workers: int | None = None
    ) -> Iterator[tuple[Item, Any]]:
        """Call ``function(item)`` in the worker processes.

        Parameters
        ----------
        function : callable
            Picklable; may call ``heartbeat`` to show that it is still working.
        items : sequence
            Picklable; each is taken when a worker is free for it, in this order.
        num_workers : int, optional
            Fewer calls at the same time.

        Yields
        ------
        item, result
            In the order of completion. ``result`` is a ``Death`` where the worker died on the item twice.
            An exception that ``function`` raises is raised here.
        """
        num_workers = num_workers or self.num_workers
        surroundings.require_open_files(32 + 4 * num_workers)
        call = partial(_guarded, function, self.timeout_seconds)
        positions = iter(range(len(items)))
        running: dict[int, Item] = {}
        while True:
            try:
                for position, result in _parallel(call, _noted(items, positions, running), num_workers):
                    item = running.pop(position)
                    signals.check()
                    yield item, result
                return
            except BrokenProcessPool:
                suspects = list(running.values())
            running.clear()
            for item in suspects:
                yield item, _alone(call, item, self.timeout_seconds)


@contextlib.contextmanager
def start_workers(num_workers: int, timeout_seconds: float) -> Iterator[Workers]:
    """Yield worker processes for several calls, and end them with the block: starting two takes 0.5 s of CPU time."""
    surroundings.require_shared_memory(_SHARED_BYTES, "The processes that decode keep their locks in it")
    with _sweeper(), _no_workers_left():
        yield Workers(num_workers, timeout_seconds)


def map_unordered(
    function: Callable[[Item], Any], items: Sequence[Item], *, num_workers: int, timeout_seconds: float
) -> Iterator[tuple[Item, Any]]:
    """Call ``function(item)`` in worker processes of its own; see ``Workers.map_unordered``."""
    with start_workers(num_workers, timeout_seconds) as workers:
        yield from workers.map_unordered(function, items)


def heartbeat(timeout_seconds: float | None = None) -> None:
    """Show that the call is still working; it is killed ``timeout_seconds`` (given once, when it starts) from now."""
    if timeout_seconds is None:  # the kernel keeps it as the interval; 0 where no alarm is set
        _, timeout_seconds = signal.getitimer(signal.ITIMER_REAL)
    signal.setitimer(signal.ITIMER_REAL, timeout_seconds, timeout_seconds)


def _noted(items: Sequence[Any], positions: Iterator[int], running: dict[int, Any]) -> Iterator[tuple[int, Any]]:
    """Yield ``(position, item)`` for the positions that are left, and note in ``running`` what has been started."""
    for position in positions:
        running[position] = items[position]
        yield position, running[position]


def _parallel(
    call: Callable[[int, Any], tuple[int, Any]], numbered_items: Iterable[tuple[int, Any]], num_workers: int
) -> Iterator[tuple[int, Any]]:
    """Yield ``(position, result)`` as they come."""
    in_flight = "2*n_jobs" if num_workers > 1 else 1
    with joblib.parallel_config("loky", inner_max_num_threads=1, initializer=_settle, initargs=(os.getpid(),)):
        pool = joblib.Parallel(
            n_jobs=max(num_workers, _ALONE),
            return_as="generator_unordered",
            batch_size=1,
            pre_dispatch=in_flight,
            max_nbytes=None,
        )
        with _ctrl_c_held():  # the workers start here
            results = pool(joblib.delayed(call)(position, item) for position, item in numbered_items)
        try:
            for result in results:  # noqa: UP028 - ``yield from`` would close them itself, and let joblib speak
                yield result
        finally:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # joblib's advice on calls that nobody waits for any more
                results.close()


def _alone(call: Callable[[int, Any], tuple[int, Any]], item: Any, timeout_seconds: float) -> Any:
    """Return the result of one call with nothing else running, or the ``Death`` of its worker."""
    try:
        ((_, result),) = _parallel(call, [(0, item)], 1)
        return result
    except BrokenProcessPool as error:
        return Death(_reason(str(error), timeout_seconds))


def _reason(text: str, timeout_seconds: float) -> str:
    """Return in words why a worker died, from loky's message."""
    received = re.findall(r"(SIG[A-Z]+)\(-\d+\)", text)
    if "SIGALRM" in received:
        return f"timed out: no progress for {timeout_seconds:g} s"
    # loky ends the other workers with SIGTERM; any other signal is the cause.
    causes = sorted(set(received) - {"SIGTERM"}) or sorted(set(received))
    if causes:
        hint = ", perhaps for memory" if "SIGKILL" in causes else ""
        return f"the decoding process crashed ({', '.join(causes)}{hint})"
    codes = sorted(set(re.findall(r"EXIT\((\d+)\)", text)))
    return f"the decoding process ended (exit code {', '.join(codes)})" if codes else "the decoding process died"


def _guarded(function: Callable[[Any], Any], timeout_seconds: float, position: int, item: Any) -> tuple[int, Any]:
    """Call ``function`` under the alarm; runs in the worker."""
    faulthandler.disable()  # loky enables it; a crash is reported as a ``Death``, not as a stack on the user's terminal
    heartbeat(timeout_seconds)
    try:
        return position, function(item)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


@contextlib.contextmanager
def _ctrl_c_held() -> Iterator[None]:
    """Block Ctrl-C while processes start: they inherit that, and import for a second before ``_settle`` ignores it."""
    resource_tracker.ensure_running()  # starts with the first worker, and up to Python 3.11 unblocks Ctrl-C
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _settle(parent: int) -> None:
    """Make this process a worker: only the parent handles Ctrl-C, and this process dies with it."""
    allocator.keep_freed_memory(KEPT_BYTES)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signals.end_with(parent)


@contextlib.contextmanager
def _no_workers_left() -> Iterator[None]:
    """End the workers: kill them if the block raises, else let them finish."""
    finished = False
    try:
        yield
        finished = True
    finally:
        executor = get_reusable_executor(reuse=True)
        # joblib's ``terminate`` also removes its folders in shared memory, which would stay until this process ends, or
        # for good if it is killed; but it leaves some, all of them empty.
        getattr(executor, "terminate", executor.shutdown)(kill_workers=not finished)
        for folder in glob.glob(f"/dev/shm/joblib_memmapping_folder_{os.getpid()}_*"):
            with contextlib.suppress(OSError):
                os.rmdir(folder)


@contextlib.contextmanager
def _sweeper() -> Iterator[None]:
    """Run a process in its own session that removes what loky leaves if this one is killed with its whole group."""
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
