"""Faults, counted: builds killed at random moments, and broken media, each told from lost.

Every kill hits the parent, a worker or the whole process group of a real ``egoaudio-build`` at a seeded random moment; the
unfinished file must open and verify, and the same command must end in the bytes of a build that was never stopped.

    python benchmarks/faults.py [--full] [--output faults.json]
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import h5py
import measuring

from egoaudio import store
from egoaudio.build import build
from egoaudio.configuration import BuildConfig
from egoaudio.errors import Status
from egoaudio.plan import Inputs

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "bin"), str(ROOT / "tests")]
import demo_data  # noqa: E402
import mutations  # noqa: E402

COMMAND = [sys.executable, "-c", "import sys; from egoaudio.cli import build; build(sys.argv[1:])"]


def content(path):
    """Return all that two builds of the same input have in common: the bytes without ``created_utc``.

    The stamp's page also holds a checksum over it, so that page is replaced by the attributes themselves.
    """
    raw = Path(path).read_bytes()
    with h5py.File(path, "r") as file:
        attributes = {name: value for name, value in file.attrs.items()}
    stamp = attributes.pop("created_utc")
    page = raw.index(stamp if isinstance(stamp, bytes) else stamp.encode()) // 4096 * 4096
    return raw[:page] + raw[page + 4096 :], repr(sorted(attributes.items()))


def _children(pid):
    """Return the process numbers of a process's children that decode."""
    try:
        pids = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [int(child) for child in pids if b"popen_loky" in Path(f"/proc/{child}/cmdline").read_bytes()]
    except OSError:
        return []


def _left_by(pid):
    """Return whether processes of a session, or files of it in shared memory, are left."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, session = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0:4:3]
            except OSError:
                continue
            if int(session) == pid and state != "Z":
                return True
    return any(f"-{pid}-" in name or f"_{pid}_" in name for name in os.listdir("/dev/shm"))


def count_kills(folder, num_kills, seed=0):
    """Kill ``num_kills`` builds; return ``(tried, survived, reasons of the others)``."""
    demo_data.make(folder, num_videos=8, seed=1, shortest_seconds=2.2, longest_seconds=3.9)
    arguments = ["--annotations", folder / "train.csv", "--test-annotations", folder / "test.csv", "--classes", folder / "classes.txt"]
    arguments += ["--videos", folder / "videos", "--workers", "2", "--skip-failed", "--output"]
    started = time.monotonic()
    subprocess.run([*COMMAND, *arguments, folder / "whole.h5"], check=True, capture_output=True)
    seconds, expected = time.monotonic() - started, content(folder / "whole.h5")
    source, lost = random.Random(seed), []
    for number in range(num_kills):
        place = folder / f"kill{number}"
        place.mkdir()
        command = [*COMMAND, *arguments, place / "ego.h5"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        target = ("parent", "worker", "group")[number % 3]
        time.sleep(source.uniform(0, seconds))
        victims = _children(process.pid) if target == "worker" else [process.pid]
        for victim in victims[:1]:
            try:
                (os.killpg if target == "group" else os.kill)(victim, signal.SIGKILL)
            except ProcessLookupError:
                pass
        process.wait()
        problem = _look_at(place, process.pid)
        again = subprocess.run(command, capture_output=True, text=True)
        if again.returncode or content(place / "ego.h5") != expected:
            problem = problem or f"not finished to the same bytes: {again.stderr[-300:]}"
        if [path.name for path in place.iterdir()] != ["ego.h5"]:
            problem = problem or f"left {sorted(path.name for path in place.iterdir())}"
        if problem:
            lost.append(f"{target}: {problem}")
    return num_kills, num_kills - len(lost), lost


def _look_at(place, pid):
    """Return what is wrong after a kill, or None."""
    deadline = time.monotonic() + 10
    while _left_by(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    if _left_by(pid):
        return "processes or shared memory are left"
    partial = place / "ego.h5.partial"
    if partial.exists():
        with h5py.File(partial, "r"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with store.open(partial) as file:
                problems = store.verify(file)
        return problems[0] if problems else None
    return None


def count_broken_media(folder, num_files, seed=0):
    """Build ``num_files`` mutated videos at once; return ``(tried, survived, lost, how many gave sound)``."""
    demo_data.make(folder, num_videos=3, seed=2, shortest_seconds=1.1, longest_seconds=1.5)
    whole = [path.read_bytes() for path in sorted((folder / "videos").iterdir())]
    (folder / "broken").mkdir()
    lines = ["video,start,end,label"]
    for number in range(num_files):
        (folder / "broken" / f"v{number:04d}.mp4").write_bytes(mutations.mutate(whole[number % len(whole)], seed + number))
        lines.append(f"v{number:04d},0,1,sound")
    (folder / "all.csv").write_text("\n".join(lines))
    inputs = Inputs((str(folder / "all.csv"),), str(folder / "broken"))
    build(inputs, BuildConfig(), folder / "broken.h5", num_workers=2, patience_seconds=30)
    with store.open(folder / "broken.h5") as file:
        problems, statuses = store.verify(file), file.video_table["status"]
    told = (statuses != Status.PLANNED).sum()
    return num_files, int(told) if not problems else 0, problems, int((statuses == Status.OK).sum())


def main(full, output):
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        (scratch / "kills").mkdir()
        (scratch / "media").mkdir()
        tried, survived, lost = count_kills(scratch / "kills", 100 if full else 6)
        rows.append(["kill -9 of parent, worker or group; resumed to equal bytes", tried, survived, tried - survived])
        print("\n".join(lost))
        tried, survived, lost, sounding = count_broken_media(scratch / "media", 500 if full else 50)
        rows.append([f"mutated media in one build ({sounding} still gave sound, the others were told as failed)", tried, survived, tried - survived])
        print("\n".join(lost))
    measuring.table(["fault", "tried", "survived", "lost"], rows)
    measuring.write_json(output, rows=rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--output")
    arguments = parser.parse_args()
    main(arguments.full, arguments.output)
