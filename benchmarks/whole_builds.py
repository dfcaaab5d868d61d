"""Whole builds, each in a fresh process like a command: time, the parent's processor time, everybody's memory.

In: inputs and a configuration. Out: a dict of numbers a build. Memory is looked at from outside, four times a second:
under 1 % of a core, and what a worker holds it holds from its first video on.
"""

import multiprocessing
import os
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from egoaudio.builder import build
from egoaudio.builder.extract import Outcome, extract
from egoaudio.errors import Status


def only_say_done(path, extents, config, job):
    """Stand in for ``extract``, to see what the parent does."""
    return Outcome(Status.OK)


def run(inputs, config, output, num_workers, process=extract):
    """Build in a fresh process.

    Returns
    -------
    dict
        ``wall`` seconds of all, ``fill`` seconds from the start of the workers to the end, ``parent_cpu`` seconds,
        seconds by ``stages``, ``parent_mb``, the parent's own memory at its peak, and ``worker_mb``, the private memory
        of the largest worker.
    """
    Path(output).unlink(missing_ok=True)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _be_quiet) as pool:
        parent = pool.submit(os.getpid).result()
        with _Watch(parent) as seen:
            numbers = pool.submit(_build, inputs, config, output, num_workers, process).result()
    return numbers | {"parent_mb": seen.parent_mb, "worker_mb": seen.worker_mb}


def _be_quiet():
    """Send the progress of builds nowhere; runs first in the fresh process."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _build(inputs, config, output, num_workers, process):
    cpu, wall = time.process_time(), time.perf_counter()
    build.extract = process
    report = build.build(inputs, output, config, num_workers=num_workers)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return {"wall": wall, "fill": report.seconds, "parent_cpu": cpu, "stages": report.stage_seconds}


class _Watch:
    """Look at the memory of a process and its children."""

    def __init__(self, parent):
        self.parent_mb = self.worker_mb = 0.0
        self._parent, self._stop = parent, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()

    def _run(self):
        children = Path(f"/proc/{self._parent}/task/{self._parent}/children")
        while not self._stop.wait(0.25):
            try:
                self.parent_mb = max(self.parent_mb, _megabytes(self._parent, "status", "RssAnon"))
                for child in children.read_text().split():
                    self.worker_mb = max(self.worker_mb, _megabytes(child, "smaps_rollup", "Private_"))
            except OSError:  # it ended between two looks
                continue


def _megabytes(pid, name, start):
    """Return the sum of the lines of a process's ``/proc`` file that begin with ``start``."""
    lines = Path(f"/proc/{pid}/{name}").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(start)) / 1024
