"""What faults are tried with: a sample to build, commands in sessions of their own, what must hold afterwards.

A trial is a function ``trial(place, seed)`` that works in a folder of its own and raises ``Lost`` for what a fault has
cost, ``Wrong`` where that is data; ``each`` calls it seed by seed and returns a ``Tally``, each reason with the seed
that repeats it. A trial whose fault came too late to hit anything, or is not allowed here, returns ``NOT_TRIED`` and is
not counted. ``in_children`` is for trials that need no folder.
"""

import contextlib
import functools
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import h5py

from egoaudio.builder.plan import Inputs
from egoaudio.errors import Status
from egoaudio.hdf5 import integrity, reader
from egoaudio.system import allocator

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "bin"), str(ROOT / "tests")]
import demo_data  # noqa: E402

BUILD = [sys.executable, "-c", "from egoaudio.cli import build; build()"]
NOT_TRIED = "not tried"
HANG_SECONDS = 120.0  # what takes a few seconds hangs when it takes so long
STOP_SECONDS = 5.0  # within which Ctrl-C and SIGTERM end a command


class Sample:
    """Eight short videos (one without sound, one cut off), and the file that a build without faults makes of them."""

    def __init__(self, folder):
        self.folder = Path(folder)
        demo_data.make(self.folder, num_videos=8, seed=1, shortest_seconds=2.2, longest_seconds=3.9)
        self.inputs = Inputs(
            (str(self.folder / "train.csv"),),
            str(self.folder / "videos"),
            (str(self.folder / "test.csv"),),
            str(self.folder / "classes.txt"),
        )
        self.whole = self.folder / "whole.h5"
        with started(self.command(self.whole), self.folder) as process:
            began = time.monotonic()
            require(process.wait(HANG_SECONDS) == 0, "the build without faults fails")
        self.seconds = time.monotonic() - began  # from when it hears signals
        self.content = content(self.whole)

    def command(self, output, *more, program=BUILD):
        """Return the command that builds ``output``."""
        arguments = [
            "--annotations",
            self.inputs.annotations[0],
            "--test-annotations",
            self.inputs.test_annotations[0],
            "--classes",
            self.inputs.classes,
        ]
        return [
            *program,
            *arguments,
            "--videos",
            self.inputs.videos,
            "--workers",
            "2",
            "--skip-failed",
            "--output",
            str(output),
            *more,
        ]

    def finish(self, place, *more):
        """Build ``place/ego.h5`` with no fault any more; require the bytes of the whole file, and no other file."""
        status, errors = run(self.command(place / "ego.h5", *more))
        require(status == 0, f"the same command does not finish it: {errors}")
        require_right(content(place / "ego.h5") == self.content, "it is not finished to the same bytes")
        require(
            [path.name for path in place.iterdir()] == ["ego.h5"],
            f"files are left: {sorted(path.name for path in place.iterdir())}",
        )


class Lost(Exception):
    """What was lost, in words."""


class Wrong(Lost):
    """Other data than the right ones, or no word where something is missing."""


def require(condition, words):
    if not condition:
        raise Lost(words)


def require_right(condition, words):
    if not condition:
        raise Wrong(words)


@dataclass(frozen=True)
class Tally:
    """What has become of the faults of a kind."""

    tried: int
    lost: tuple[str, ...] = ()
    """Why, of each that was lost: it crashed, hung, did not resume, or left something behind."""
    wrong: tuple[str, ...] = ()
    """Why, of each that was lost because data are wrong, or because nobody was told."""

    @property
    def reasons(self):
        return [*self.lost, *self.wrong]

    @property
    def survived(self):
        return self.tried - len(self.reasons)


def each(trial, folder, seeds):
    """Call ``trial(place, seed)`` in a folder of its own for each seed; return a ``Tally``."""
    lost, wrong, num_skipped = [], [], 0
    for seed in seeds:
        place = folder / f"trial{seed}"
        place.mkdir()
        try:
            num_skipped += trial(place, seed) == NOT_TRIED
        except Lost as error:
            (wrong if isinstance(error, Wrong) else lost).append(f"seed {seed}: {error}")
        except Exception:
            lost.append(f"seed {seed}: {traceback.format_exc(limit=-3)}")
        shutil.rmtree(place, ignore_errors=True)
    return Tally(len(seeds) - num_skipped, tuple(lost), tuple(wrong))


def content(path):
    """Return all that two builds of the same input have in common: the bytes without ``created_utc``.

    The stamp's page also holds a checksum over it, so that page is replaced by the attributes themselves.
    """
    with h5py.File(path, "r") as file:
        attributes = {name: value for name, value in file.attrs.items() if name != "created_utc"}
    page, raw = stamp_page(path), Path(path).read_bytes()
    return raw[: page.start] + raw[page.stop :], repr(sorted(attributes.items()))


def stamp_page(path):
    """Return where in a file the time of its build is, and the checksum over it."""
    with h5py.File(path, "r") as file:
        stamp = file.attrs["created_utc"]
    first = Path(path).read_bytes().index(stamp if isinstance(stamp, bytes) else stamp.encode()) // 4096 * 4096
    return slice(first, first + 4096)


def run(command, **options):
    """Run a command; return its status, None if it hangs, and what it said, at most 2,000 characters."""
    with tempfile.TemporaryFile("w+") as said:
        try:
            done = subprocess.run(
                command, stdout=said, stderr=said, timeout=HANG_SECONDS, start_new_session=True, **options
            )
        except subprocess.TimeoutExpired:
            return None, f"it hangs: no end after {HANG_SECONDS:g} s"
        said.seek(0)
        return done.returncode, said.read()[-2000:]


@contextlib.contextmanager
def started(command, place):
    """Start a command in a session of its own, its temporary files in ``place/tmp``; yield it once it hears signals."""
    (place / "tmp").mkdir()
    with open(place / "said", "wb") as said:
        process = subprocess.Popen(
            command, stdout=said, stderr=said, start_new_session=True, env={**os.environ, "TMPDIR": str(place / "tmp")}
        )
    try:
        while process.poll() is None and not _hears(process.pid):
            time.sleep(0.005)
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def stop(process, number, place):
    """Stop a command of ``started`` by a signal, SIGINT as Ctrl-C does to the whole group; return what it said."""
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise Lost(f"not stopped after {STOP_SECONDS:g} s") from error
    return (place / "said").read_text()


def _hears(pid):
    """Return whether a process has a handler for SIGTERM: it is at work, and no longer starting Python."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return False
    return any(line.startswith("SigCgt:") and int(line.split()[1], 16) >> (signal.SIGTERM - 1) & 1 for line in lines)


def workers_of(pid):
    """Return the process numbers of a build's children that decode."""
    try:
        pids = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [int(child) for child in pids if b"popen_loky" in Path(f"/proc/{child}/cmdline").read_bytes()]
    except OSError:
        return []


def require_nothing_left(pid, place):
    """Require that a session has no processes any more, and left nothing in shared memory or as temporary files."""
    deadline = time.monotonic() + 10
    while (left := [*_processes(pid), *_shared_memory(pid)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    left += os.listdir(place / "tmp")
    require(not left, f"left behind: {left}")
    (place / "tmp").rmdir()
    (place / "said").unlink()


def _processes(session):
    """Yield the processes of a session that are alive."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                state, found = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0:4:3]
                if int(found) == session and state != "Z":
                    yield f"process {entry.name}"


def _shared_memory(pid):
    """Return what a process has in shared memory."""
    return [name for name in os.listdir("/dev/shm") if f"-{pid}-" in name or f"_{pid}_" in name]


def require_whole_partial(sample, path):
    """Require that an unfinished file, if there is one, opens and holds only finished videos as done."""
    if not path.exists():
        return
    with h5py.File(path, "r"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with reader.open(path) as file, reader.open(sample.whole) as whole:
            problems = integrity.verify(file)
            require_right(not problems, f"the unfinished file is damaged: {problems[:3]}")
            done = file.video_table["status"] != Status.PLANNED
            require_right(
                (file.video_table[done] == whole.video_table[done]).all(),
                "a video that is done differs from that of a build without faults",
            )
            for name in file.features:
                require_right(
                    (file.checksums(name)[done] == whole.checksums(name)[done]).all(),
                    "rows of a done video differ from a build without faults",
                )


# ------------------------------------------------------------------------------------------------- other ways to try


@contextlib.contextmanager
def tiny_disk(folder, num_bytes):
    """Mount a real file system of ``num_bytes`` at ``folder``; yield False where that is not allowed."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs", folder]
    mounted = shutil.which("mount") is not None and subprocess.run(command, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", folder], check=True)


# Linux counts what a process was forked from as its own peak, so the command is started from a small one.
_PEAK_OF = """
import resource, subprocess, sys
status = subprocess.call(sys.argv[2:])
open(sys.argv[1], "w").write(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
sys.exit(status if status >= 0 else 128 - status)
"""


def measured(command, seconds):
    """Run a command; return its status, what it said, and the most MB that one of its processes has held."""
    with tempfile.TemporaryFile("w+") as said, tempfile.NamedTemporaryFile("r") as peak:
        process = subprocess.Popen(
            [sys.executable, "-S", "-E", "-c", _PEAK_OF, peak.name, *command],
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            status = process.wait()
        said.seek(0)
        return status, said.read()[-2000:], int(peak.read() or 0) // 1024


def in_children(trial, seeds, seconds=10, megabytes=100):
    """Call ``trial(seed)`` for each seed in a child process; return a ``Tally``.

    Lost are: an exception, a child that crashes, no answer within ``seconds``, and a peak that grows by more than
    ``megabytes``; an exception that is ``Wrong`` or an assertion tells of wrong data.
    """
    context, lost, wrong, left = multiprocessing.get_context("fork"), [], [], list(seeds)

    def work(sender):
        allocator.return_freed_memory()  # in free blocks of its parent's heap, growth would stay unseen
        with contextlib.suppress(OSError):  # where it is not allowed, growth below the parent's size stays unseen
            Path("/proc/self/clear_refs").write_text("5")  # a forked process begins with its parent's peak
        peak = _peak_megabytes()
        for seed in left:
            try:
                trial(seed)
                before, peak = peak, _peak_megabytes()
                sender.send((False, f"took {peak - before} MB") if peak - before > megabytes else None)
            except Exception as error:
                sender.send((isinstance(error, (Wrong, AssertionError)), traceback.format_exc(limit=-3)))

    while left:
        receiver, sender = context.Pipe(duplex=False)
        child = context.Process(target=work, args=(sender,))
        child.start()
        sender.close()
        with contextlib.suppress(EOFError):
            while left and receiver.poll(seconds):
                reason = receiver.recv()
                seed = left.pop(0)
                if reason is not None:
                    (wrong if reason[0] else lost).append(f"seed {seed}: {reason[1]}")
        if left:
            child.kill()
            child.join()
            how = f"the process crashed, or gave no answer in {seconds} s (exit status {child.exitcode})"
            lost.append(f"seed {left.pop(0)}: {how}")
        child.join()
    return Tally(len(seeds), tuple(lost), tuple(wrong))


def _peak_megabytes():
    """Return the most that this process has held."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) // 1024


def suite_tests(tests, faults_a_test, sample, folder, num_faults):
    """Count tests of the suite in a pytest of their own, ``faults_a_test`` faults each; skipped ones are not counted.

    A test that fails by an assertion tells of wrong data, one that fails otherwise of a crash.
    """
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={folder / 'junit.xml'}"]
    # Ctrl-C is ignored in what a script starts with &, and children inherit that: tests of it would fail for no fault.
    hear = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    done = subprocess.run(
        [*command, *(str(ROOT / "tests" / test) for test in tests)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        preexec_fn=hear,
    )
    if done.returncode not in (0, 1):
        raise RuntimeError(f"pytest could not run {tests}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    cases = [case for case in ElementTree.parse(folder / "junit.xml").iter("testcase") if case.find("skipped") is None]
    lost, wrong = [], []
    for case in cases:
        for problem in (*case.findall("failure"), *case.findall("error")):
            said = problem.get("message", "")
            asserted = problem.tag == "failure" and said.startswith(("AssertionError", "assert ", "Failed: "))
            (wrong if asserted else lost).append(f"{case.get('classname')}::{case.get('name')}: {said[:500]}")
            break
    return Tally(len(cases) * faults_a_test, tuple(lost) * faults_a_test, tuple(wrong) * faults_a_test)
