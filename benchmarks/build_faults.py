"""Faults of a build: killed, interrupted, without power, with decoders that crash, on disks that are full or vanish.

Each function is ``count(sample, folder, num_faults)``, a row of ``fault_table``, and returns a ``Tally``.
"""

import contextlib
import functools
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from unittest import mock

import numpy as np
from trials import (
    BUILD,
    HANG_SECONDS,
    NOT_TRIED,
    content,
    each,
    require,
    require_nothing_left,
    require_right,
    require_whole_partial,
    run,
    stamp_page,
    started,
    stop,
    tiny_disk,
    workers_of,
)

from egoaudio.builder.build import build
from egoaudio.builder.extract import extract
from egoaudio.config.build import BuildConfig, ClipConfig
from egoaudio.errors import BuildError, Status
from egoaudio.hdf5 import integrity, reader
from egoaudio.hdf5.writer import RowWriter

# As on a file system that cannot reserve: rows then find the disk full while they are written.
BUILD_UNRESERVED = [
    sys.executable,
    "-c",
    "from egoaudio.system import files; files.reserve = lambda path: None; from egoaudio.cli import build; build()",
]


def kill_builds(target, sample, folder, num_faults, seed=0):
    """``kill -9`` the parent, the whole group, or a worker, whose death the build must survive by itself."""

    def trial(place, seed):
        moment = random.Random(seed)
        with started(sample.command(place / "ego.h5"), place) as process:
            time.sleep(
                moment.uniform(0, sample.seconds * (0.75 if target == "worker" else 1))
            )  # the end needs no workers
            while target == "worker" and process.poll() is None and not workers_of(process.pid):
                time.sleep(0.005)
            if process.poll() is not None:
                return NOT_TRIED
            if target == "worker":
                with contextlib.suppress(ProcessLookupError):
                    os.kill(moment.choice(workers_of(process.pid)), signal.SIGKILL)
                require(
                    process.wait(HANG_SECONDS) == 0, f"the build ends with its worker: {(place / 'said').read_text()}"
                )
            else:
                (os.killpg if target == "group" else os.kill)(process.pid, signal.SIGKILL)
            process.wait(HANG_SECONDS)
            require_nothing_left(process.pid, place)
        require_whole_partial(sample, place / "ego.h5.partial")
        sample.finish(place)

    return each(trial, folder, range(seed, seed + num_faults))


def interrupt_builds(number, sample, folder, num_faults, seed=0):
    """Send SIGINT to the group, as Ctrl-C does, or SIGTERM to the parent: it stops soon and says how to resume."""

    def trial(place, seed):
        with started(sample.command(place / "ego.h5"), place) as process:
            time.sleep(random.Random(seed).uniform(0, sample.seconds))
            if process.poll() is not None or (place / "ego.h5").exists():
                return NOT_TRIED
            said = stop(process, number, place)
            require(process.returncode == 128 + number, f"exit status {process.returncode}: {said}")
            require(
                "the same command resumes" in said and "Traceback" not in said,
                f"it does not just say how to resume: {said}",
            )
            require_nothing_left(process.pid, place)
        require_whole_partial(sample, place / "ego.h5.partial")
        sample.finish(place)

    return each(trial, folder, range(seed, seed + num_faults))


def kill_replacements(sample, folder, num_faults, seed=0):
    """``kill -9`` a build with ``--force`` while the file it is to replace is read: that stays until the rename."""
    old = folder / "old.h5"
    build(sample.inputs, old, BuildConfig(clips=ClipConfig(clip_seconds=0.5)))

    def trial(place, seed):
        shutil.copy(old, place / "ego.h5")
        with reader.open(place / "ego.h5") as file:
            before = np.array(file["spectrogram"])
            with started(sample.command(place / "ego.h5", "--force"), place) as process:
                time.sleep(random.Random(seed).uniform(0, sample.seconds))
                if process.poll() is not None:
                    return NOT_TRIED
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                require_nothing_left(process.pid, place)
            unchanged = (place / "ego.h5").read_bytes() == old.read_bytes()
            require_right(
                unchanged or content(place / "ego.h5") == sample.content,
                "neither the old file nor the new one is there",
            )
            sample.finish(place, "--force")
            require_right(np.array_equal(file["spectrogram"], before), "a reader of the old file sees other values")

    return each(trial, folder, range(seed, seed + num_faults))


def kill_merges(sample, folder, num_faults, seed=0):
    """``kill -9`` a build that takes its shards in and removes each: at no moment is a video lost between the two."""
    for number in range(3):
        build(sample.inputs, folder / "ego.h5", shard=f"{number}/3")
    shards = sorted(folder.glob("ego.h5.shard-*"))

    def start(place):
        for shard in shards:
            shutil.copy(shard, place)
        return started(sample.command(place / "ego.h5", "--remove-shards"), place)

    (folder / "whole").mkdir()
    began = time.monotonic()
    with start(folder / "whole") as process:
        require(process.wait(HANG_SECONDS) == 0, "the shards are not taken in")
    seconds = time.monotonic() - began

    def trial(place, seed):
        with start(place) as process:
            time.sleep(random.Random(seed).uniform(0.3, 1) * seconds)  # before that, it reads the annotations
            if process.poll() is not None:
                return NOT_TRIED
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            require_nothing_left(process.pid, place)
        for shard in place.glob("ego.h5.shard-*"):
            with reader.open(shard) as file:
                require_right(integrity.verify(file) == [], f"{shard.name} was changed")
        sample.finish(place, "--remove-shards")

    return each(trial, folder, range(seed, seed + num_faults))


def build_twice_at_once(sample, folder, num_faults, seed=0):
    """Start two builds of one output, the second as it is, through a link of the folder, or in a network of its own.

    (As a container has.) One makes it, the other says who holds it, or finds it made.
    """

    def trial(place, seed):
        results, link = [], folder / f"link{seed}"
        link.symlink_to(place)
        second = sample.command((link if seed % 3 == 1 else place) / "ego.h5")
        if seed % 3 == 2:
            if os.getuid() != 0:
                return NOT_TRIED
            second = ["unshare", "--net", *second]
        threads = [
            threading.Thread(target=lambda words=words: results.append(run(words)))
            for words in (sample.command(place / "ego.h5"), second)
        ]
        for thread in threads:
            thread.start()
            time.sleep(random.Random(seed).uniform(0, sample.seconds / 2))
        for thread in threads:
            thread.join()
        link.unlink()
        (status, _), (second, said) = sorted(
            results, key=lambda result: (result[0] != 0, "complete already" in result[1])
        )
        require(status == 0, f"neither makes it: {results}")
        require(
            "complete already" in said
            if second == 0
            else second == 2 and "in use by another process (process " in said,
            f"status {second}: {said}",
        )
        sample.finish(place)

    return each(trial, folder, range(seed, seed + num_faults))


def replace_videos(sample, folder, num_faults, seed=0):
    """Stop a build and put another video of the same size and time in one's place: told; with it back, finished."""

    def trial(place, seed):
        generator = random.Random(seed)
        shutil.copytree(sample.folder / "videos", place.parent / f"videos{seed}")
        videos = place.parent / f"videos{seed}"
        command = [
            str(videos) if word == str(sample.inputs.videos) else word
            for word in map(str, sample.command(place / "ego.h5"))
        ]
        with started(command, place) as process:
            while process.poll() is None and not (place / "ego.h5.partial").exists():
                time.sleep(0.005)
            time.sleep(generator.uniform(0, sample.seconds / 4))
            if process.poll() is not None or (place / "ego.h5").exists():
                return NOT_TRIED
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(HANG_SECONDS)
        (place / "said").unlink()
        victim = generator.choice(sorted(videos.iterdir()))
        info, raw = victim.stat(), victim.read_bytes()
        end = generator.choice((0, max(0, len(raw) - 1000)))  # where players and people would see nothing
        other = bytearray(raw)
        other[end : end + 1000] = bytes(byte ^ 85 for byte in raw[end : end + 1000])
        victim.write_bytes(other)
        os.utime(victim, ns=(info.st_atime_ns, info.st_mtime_ns))
        status, said = run(command)
        require_right(
            status == 2 and "replaced by others of the same size: 1, such as" in said and "Traceback" not in said,
            f"status {status}: {said}",
        )
        victim.write_bytes(raw)
        status, said = run(command)
        require(status == 0, f"with the video back it is not finished: {said}")
        require_right(content(place / "ego.h5") == sample.content, "it is not finished to the same bytes")

    return each(trial, folder, range(seed, seed + num_faults))


def lose_power(sample, folder, num_faults, seed=0):
    """Have a part of what was written since the last sync never reach the disk, page by page or sector by sector."""

    def stop_after(num_videos, output):
        def process(path, extents, config, job):
            outcome = extract(path, extents, config, job) if num_videos else None
            with RowWriter(path, extents) as writer:
                done = writer.read("videos", 0, extents["videos"].shape[0])["status"] == Status.OK
            if done.sum() >= num_videos:
                raise BuildError("stopped")
            return outcome

        with contextlib.suppress(BuildError), mock.patch("egoaudio.builder.build.extract", process):
            build(sample.inputs, output)
        return np.fromfile(f"{output}.partial", "u1")

    synced, written = stop_after(0, folder / "planned.h5"), stop_after(5, folder / "written.h5")
    page = stamp_page(folder / "written.h5.partial")
    synced[page] = written[page]

    def trial(place, seed):
        generator = np.random.default_rng(seed)
        size = (4096, 512)[seed % 2]
        reached = np.repeat(generator.random(-(-len(written) // size)) < generator.choice([0.1, 0.5, 0.9]), size)[
            : len(written)
        ]
        np.where(reached, written, synced).tofile(place / "ego.h5.partial")
        sample.finish(place)

    return each(trial, folder, range(seed, seed + num_faults))


def kill_decoders(sample, folder, num_faults, seed=0):
    """Have one video crash, exhaust or hang its worker, whenever it is tried: it costs that video only."""
    ways = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGKILL, None)
    with reader.open(sample.whole) as file:
        numbers = np.flatnonzero(file.video_table["status"] == Status.OK)
        ids = [file.video_table["video_id"][number].decode() for number in numbers]

    def trial(place, seed):
        victim, way = ids[seed % len(ids)], ways[seed % len(ways)]

        def process(path, extents, config, job):
            outcome = extract(path, extents, config, job)
            if victim in job.path:  # its rows are written: they must go
                if way is None:
                    time.sleep(3600)
                os.kill(os.getpid(), way)
            return outcome

        with mock.patch("egoaudio.builder.build.extract", process):
            report = build(sample.inputs, place / "ego.h5", num_workers=2, timeout_seconds=5)
        words = "timed out: no progress for 5 s" if way is None else f"the decoding process crashed ({way.name}"
        require(dict(report.failures)[victim].startswith(words), f"its reason: {dict(report.failures)[victim]}")
        with reader.open(place / "ego.h5") as file, reader.open(sample.whole) as whole:
            require_right(integrity.verify(file) == [], f"the file is damaged: {integrity.verify(file)[:3]}")
            lost = file.video_table["status"] != whole.video_table["status"]
            require_right(
                np.flatnonzero(lost).tolist() == [numbers[seed % len(ids)]],
                f"videos {np.flatnonzero(lost).tolist()} are lost",
            )
            require(file.video_table["status"][lost] == Status.CRASHED, "its status")
            kept = (file.clip_table["status"] != Status.CRASHED) & (whole.clip_table["status"] == Status.OK)
            for name in file.features:
                require_right(np.array_equal(file[name][kept], whole[name][kept]), "another video is harmed")

    return each(trial, folder, range(seed, seed + num_faults))


def fill_disks(sample, folder, num_faults, seed=0):
    """Build on a disk that is too small, read-only, or limited; then give it room.

    Too small is told before, and in the middle where nothing can be reserved.
    """
    size = sample.whole.stat().st_size

    def trial(place, seed):
        disk, room = place / "disk", int(size * random.Random(seed).uniform(0.02, 0.98))
        disk.mkdir()
        with tiny_disk(disk, room) as mounted:
            kind = ("unreserved", "reserved", "limited", "read-only")[seed % 4] if mounted else "limited"
            program = BUILD_UNRESERVED if kind == "unreserved" else BUILD
            limit = (
                functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (room, room))
                if kind == "limited"
                else None
            )
            if kind == "read-only":
                _remount(disk, "ro")
            status, said = run(sample.command(disk / "ego.h5", program=program), preexec_fn=limit)
            words = {"limited": "ulimit -f", "read-only": "cannot be written to"}.get(kind, "no space left")
            require(status == 2 and words in said, f"{kind}, {room} bytes: status {status}: {said}")
            require("bytes are needed" in said or kind == "read-only", f"it does not say what it needs: {said}")
            require("Traceback" not in said, said)
            require(kind == "unreserved" or not os.listdir(disk), f"{kind}: it leaves {os.listdir(disk)}")
            if mounted:
                _remount(disk, f"rw,size={3 * size}")
            # Not before there is room: unlike a disk, a tmpfs needs space to map a hole that could not be reserved.
            require_whole_partial(sample, disk / "ego.h5.partial")
            sample.finish(disk)

    return each(trial, folder, range(seed, seed + num_faults))


def _remount(disk, options):
    subprocess.run(["mount", "-o", f"remount,{options}", disk], check=True)


def lose_targets(sample, folder, num_faults, seed=0):
    """Remove the unfinished file, or its whole folder, under a build."""

    def trial(place, seed):
        target = place / "target"
        target.mkdir()
        with started(sample.command(target / "ego.h5"), place) as process:
            while process.poll() is None and not (target / "ego.h5.partial").exists():
                time.sleep(0.005)
            time.sleep(random.Random(seed).uniform(0, sample.seconds / 4))
            if process.poll() is not None or (target / "ego.h5").exists():
                return NOT_TRIED
            if seed % 2:
                shutil.rmtree(target)
            else:
                (target / "ego.h5.partial").unlink(missing_ok=True)
            process.wait(HANG_SECONDS)
            said = (place / "said").read_text()
            named = process.returncode == 2 and "error: " in said and str(target) in said
            require(named or (target / "ego.h5").exists(), f"status {process.returncode}: {said}")
            require("Traceback" not in said, said)
            require_nothing_left(process.pid, place)
        target.mkdir(exist_ok=True)
        sample.finish(target)

    return each(trial, folder, range(seed, seed + num_faults))
