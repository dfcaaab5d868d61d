"""Faults of a prediction: killed, interrupted, on a disk that is full, with media that are broken.

Each function is ``count(sample, folder, num_faults)``, a row of ``fault_table``, and returns a ``Tally``.
"""

import contextlib
import functools
import os
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
from predict import PREDICT, make_checkpoint
from trials import (
    HANG_SECONDS,
    NOT_TRIED,
    Tally,
    each,
    measured,
    require,
    require_nothing_left,
    require_right,
    run,
    started,
    stop,
    tiny_disk,
    workers_of,
)

from egoaudio.errors import Status
from egoaudio.hdf5.scores_file import ScoresFile

MEGABYTES = 1500  # of the parent, most of it PyTorch


class Heard:
    """The sample's videos, a checkpoint of random weights, and what a prediction without faults makes of them."""

    def __init__(self, sample, folder):
        folder.mkdir()
        self.checkpoint, self.whole = make_checkpoint(folder / "model.pt", sample.whole), folder / "whole"
        self.media = sample.folder / "videos"
        place = folder / "first"
        place.mkdir()
        with started(self.command(self.whole), place) as process:
            began = time.monotonic()
            self.import_seconds = _until(self.whole, process) - began
            status = process.wait(HANG_SECONDS)
            self.seconds = time.monotonic() - began - self.import_seconds  # once its folder is there
        require(status == 0, f"the prediction without faults fails: {(place / 'said').read_text()}")
        self.contents = contents(self.whole)

    def wait_for_a_moment(self, process, output, generator):
        """Wait until a random moment; one of four is before the folder is there, while libraries are imported."""
        if generator.random() < 0.25:
            time.sleep(generator.uniform(0, self.import_seconds))
        else:
            _until(output, process)
            time.sleep(generator.uniform(0, self.seconds))

    def command(self, output, media=None):
        """Return the command that hears the videos."""
        options = [
            "--workers",
            "2",
            "--skip-failed",
            "--threshold",
            "0.4",
            "--format",
            "audacity,srt",
            "--output",
            output,
        ]
        return [*PREDICT, *map(str, (self.checkpoint, media or self.media, *options))]

    def finish(self, output):
        """Hear with no fault any more; require the same files, with the same bytes, and no others."""
        status, said = run(self.command(output))
        require(status == 0, f"the same command does not finish it: {said}")
        found = contents(output)
        require(found.keys() == self.contents.keys(), f"other files: {sorted(found.keys() ^ self.contents.keys())}")
        other = [name for name in found if found[name] != self.contents[name]]
        require_right(not other, f"other bytes: {other}")


def _until(path, process):
    """Wait until a path is there or a process has ended; return the time."""
    while not path.exists() and process.poll() is None:
        time.sleep(0.005)
    return time.monotonic()


@functools.lru_cache(maxsize=1)
def heard_of(sample):
    """Return the ``Heard`` of a sample, which is made once for all rows."""
    return Heard(sample, sample.folder / "heard")


def contents(folder):
    """Return ``{relative path: bytes}`` of everything in a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def kill_predictions(target, sample, folder, num_faults, seed=0):
    """``kill -9`` the parent, the whole group, or a worker, whose death the prediction must survive by itself."""
    heard = heard_of(sample)

    def trial(place, seed):
        moment = random.Random(seed)
        with started(heard.command(place / "out"), place) as process:
            heard.wait_for_a_moment(process, place / "out", moment)
            while target == "worker" and process.poll() is None and not workers_of(process.pid):
                time.sleep(0.005)
            if process.poll() is not None:
                return NOT_TRIED
            if target == "worker":
                with contextlib.suppress(ProcessLookupError, IndexError):
                    os.kill(moment.choice(workers_of(process.pid)), signal.SIGKILL)
                require(process.wait(HANG_SECONDS) == 0, f"it ends with its worker: {(place / 'said').read_text()}")
            else:
                (os.killpg if target == "group" else os.kill)(process.pid, signal.SIGKILL)
            process.wait(HANG_SECONDS)
            require_nothing_left(process.pid, place)
        heard.finish(place / "out")

    return each(trial, folder, range(seed, seed + num_faults))


def interrupt_predictions(number, sample, folder, num_faults, seed=0):
    """Send SIGINT to the group, as Ctrl-C does, or SIGTERM to the parent: it stops soon and says how to resume."""
    heard = heard_of(sample)

    def trial(place, seed):
        with started(heard.command(place / "out"), place) as process:
            heard.wait_for_a_moment(process, place / "out", random.Random(seed))
            if process.poll() is not None:
                return NOT_TRIED
            said = stop(process, number, place)
            if "is complete" in said:  # it was done, and the signal met the end of Python
                return NOT_TRIED
            require(process.returncode == 128 + number, f"exit status {process.returncode}: {said}")
            require("the same command resumes" in said and "Traceback" not in said, f"it does not just say so: {said}")
            require_nothing_left(process.pid, place)
        heard.finish(place / "out")

    return each(trial, folder, range(seed, seed + num_faults))


def fill_disks(sample, folder, num_faults, seed=0):
    """Have the disk full, from the start or soon: told in a line; with room again, resumed to the same bytes."""
    heard = heard_of(sample)
    size = sum(map(len, heard.contents.values()))

    def trial(place, seed):
        disk = place / "disk"
        disk.mkdir()
        with tiny_disk(disk, 64 * 4096 + 2 * size) as mounted:
            if not mounted:
                return NOT_TRIED
            with contextlib.suppress(OSError), open(disk / "ballast", "wb", buffering=0) as ballast:
                while ballast.write(bytes(4096)):
                    pass
            left = random.Random(seed).randrange(0, size)  # it runs out somewhere on the way
            os.truncate(disk / "ballast", max(0, (disk / "ballast").stat().st_size - left))
            status, said = run(heard.command(disk / "out"))
            if status == 0:
                return NOT_TRIED
            require(
                status == 2 and "no space left" in said.lower() and "Traceback" not in said, f"status {status}: {said}"
            )
            (disk / "ballast").unlink()
            heard.finish(disk / "out")

    return each(trial, folder, range(seed, seed + num_faults))


def break_media(sample, folder, num_faults, seed=0):
    """Hear mutated media beside good ones: broken ones are told, good ones have their scores, memory is bounded."""
    import mutations  # of the tests, as ``trials`` made possible

    heard, media = heard_of(sample), folder / "media"
    shutil.copytree(heard.media, media)
    good = sorted(path for path in heard.media.iterdir())
    for number in range(seed, seed + num_faults):
        source = good[number % len(good)]
        (media / f"seed_{number}{source.suffix}").write_bytes(mutations.mutate(source.read_bytes(), number))
    status, said, megabytes = measured(heard.command(folder / "out", media), HANG_SECONDS + num_faults)
    if status != 0:
        reason = f"one of the seeds {seed} to {seed + num_faults - 1}: it ends with status {status}: {said}"
        return Tally(num_faults, (reason,) * num_faults)
    wrong = []
    with ScoresFile(folder / "out" / "scores.h5") as file, ScoresFile(heard.whole / "scores.h5") as expected:
        numbers = {os.path.basename(row["file"].decode()): number for number, row in enumerate(file.video_table)}
        for number, row in enumerate(expected.video_table):
            name = os.path.basename(row["file"].decode())
            mine, theirs = file.scores[file.rows_of(numbers[name])], expected.scores[expected.rows_of(number)]
            if not np.array_equal(mine, theirs, equal_nan=True):
                wrong.append(f"{name}: other scores than without broken media beside it")
        for row in file.video_table:
            if row["status"] == Status.PLANNED or (row["status"] != Status.OK and not row["error"]):
                wrong.append(f"{row['file'].decode()}: status {row['status']} without a reason")
    lost = (f"a process took {megabytes} MB",) if megabytes > MEGABYTES else ()
    return Tally(num_faults, lost, tuple(wrong))
