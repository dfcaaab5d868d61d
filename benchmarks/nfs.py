"""NFS for real, on one machine: two hosts build one output in shards, and share its lock; one of them dies.

    python benchmarks/nfs.py [--output nfs.json]
    python benchmarks/nfs.py --tables nfs.json

Needs root and Debian's user-mode-linux, nfs-ganesha, nfs-ganesha-vfs, kmod and iproute2 (``nfs_hosts``).

- Both hosts build a shard of a few short videos at the same time; then the same command without ``--shard`` takes them
  in. The file must verify, and be that of a build on the local disk, byte for byte but ``created_utc``.
- A host builds alone and is halted in the middle; the other's same command must be refused and name it. Then the first
  host is killed: once its lease has expired, the other resumes, to the same bytes.
- The same in the folder of a training run, to the weights of a run on the local disk, bit for bit.
"""

import argparse
import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import measuring
import nfs_hosts
from nfs_hosts import Host, steps

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "bin")]
import demo_data  # noqa: E402
from trials import content  # noqa: E402

NUM_VIDEOS = 6
ALL_SECONDS = 1800
BAR = r" +\d+%\|[^|]*\| (\d+)/(\d+)"  # of progress: what is done, of how much


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", help="JSON of what was seen")
    parser.add_argument("--tables", help="print the table of such a JSON, and run nothing")
    parser.add_argument("--inside", help=argparse.SUPPRESS)  # a folder: this process is in the namespaces
    arguments = parser.parse_args(argv)
    if arguments.inside:
        return inside(Path(arguments.inside))
    if arguments.tables:
        seen = json.loads(Path(arguments.tables).read_text(encoding="utf-8"))["seen"]
    else:
        nfs_hosts.require_all()
        with tempfile.TemporaryDirectory() as folder:
            command = nfs_hosts.apart([sys.executable, __file__, "--inside", folder])
            environment = {**os.environ, "TMPDIR": folder}
            subprocess.run(command, check=True, timeout=ALL_SECONDS, stdin=subprocess.DEVNULL, env=environment)
            seen = json.loads(Path(folder, "seen.json").read_text(encoding="utf-8"))
        measuring.write_json(arguments.output, seen=seen)
    measuring.table(["what", "seen"], [[what, in_words(value)] for what, value in seen.items()])
    return 1 if any(value is False for value in seen.values()) else 0


def in_words(value):
    return {True: "yes", False: "**no**"}[value] if isinstance(value, bool) else str(value)


def inside(folder):
    """Show everything, and write what was seen into the folder."""
    demo_data.make(folder / "export", NUM_VIDEOS, seed=3, shortest_seconds=6.0, longest_seconds=8.0)
    inputs = ["--annotations", "train.csv", "--test-annotations", "test.csv", "--classes", "classes.txt"]
    build = [*egoaudio("build"), *inputs, "--videos", "videos", "--workers", "1", "--skip-failed"]
    train = [*egoaudio("train"), "ego.h5", "--model", "cnn-small", "--epochs", "30"]
    on_this_disk([*build, "--output", folder / "ego.h5"], folder)
    with nfs_hosts.serving(folder):
        seen = {**nfs_hosts.versions(), **build_shards(folder, build)}
        seen |= {f"one output: {what}": value for what, value in build_one_output(folder, build).items()}
        seen |= {f"one run: {what}": value for what, value in train_one_run(folder, train).items()}
    (folder / "seen.json").write_text(json.dumps(seen), encoding="utf-8")
    return 0


def egoaudio(command):
    """Return a command of this checkout."""
    run = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from egoaudio.cli import {command}; {command}()"
    return [sys.executable, "-c", run]


def on_this_disk(command, folder):
    """Run a command where the server's folder is, without NFS."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run(command, check=True, cwd=folder / "export", env=environment, **quiet)


def build_shards(folder, build):
    """Build two shards at once, a host each, then the file from them; return what was seen."""
    whole = [*build, "--output", "ego.h5"]
    with contextlib.ExitStack() as running:
        hosts = [
            running.enter_context(Host(folder, number, steps([*whole, "--shard", f"{number}/2"])))
            for number in range(2)
        ]
        shards = [host.end()[0] for host in hosts]
    both = min(shard.stop for shard in shards) - max(shard.start for shard in shards)
    with Host(folder, 1, steps(whole, [*egoaudio("inspect"), "ego.h5", "--verify"])) as host:
        host.end()
        said = host.said()
    taken, all_videos = re.findall(f"take in{BAR}", said)[-1]
    return {
        "shards: seconds in which both hosts built": round(both),
        "shards: videos taken in by the same command without `--shard`": f"{taken} of {all_videos}",
        "shards: clips that it built itself": int(re.findall(f"build{BAR}", said)[-1][1]),
        "shards: `egoaudio-inspect --verify` over NFS": re.search("all .* as they were written", said)[0],
        "shards: equal to a build on the local disk": equal(folder, "ego.h5"),
    }


def equal(folder, name):
    return content(folder / "export" / name) == content(folder / "ego.h5")


def build_one_output(folder, build):
    """Have both hosts build one output; the first dies in the middle. Return what was seen."""
    seen = outlive(folder, [*build, "--output", "again.h5"], "build")
    return {**seen, "equal to a build on the local disk": equal(folder, "again.h5")}


def train_one_run(folder, train):
    """Have both hosts train in one folder; the first dies in the middle. Return what was seen."""
    seen = outlive(folder, [*train, "--output", "run"], "training")
    on_this_disk([*train, "--output", folder / "run"], folder)
    return {
        **seen,
        "weights of a run on the local disk, bit for bit": same_weights(folder / "export/run", folder / "run"),
    }


def same_weights(run, other):
    import torch

    from egoaudio.models import checkpoints

    ours, theirs = (checkpoints.load(folder / "last.pt")["weights"] for folder in (run, other))
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def outlive(folder, command, progress):
    """Halt a command on the first host, try it on the second, kill the first, and try until the second may.

    Parameters
    ----------
    progress : str
        How the command calls what it does; it is halted after a third of that.

    Returns
    -------
    dict
        What was seen.
    """
    words = shlex.join(map(str, command))
    with (
        Host(folder, 0, f"{words} &\necho holder=$!\nread _\nkill -STOP $! && echo halted\nsleep 9999") as first,
        Host(folder, 1, f"read _\ntry {words}\nread _\nuntil try {words}; do sleep 1; done") as second,
    ):
        holder = first.wait_for(r"\nholder=(\d+)")[1]
        first.wait_for(rf"{progress} +[3-7]\d%")
        first.tell()
        first.wait_for("\nhalted")  # it goes on renewing its lease: the kernel does that
        second.tell()
        second.wait_for(r"\nends")
        killed = time.time()
        first.kill()
        second.tell()
        refused, *tried = second.end()
        begun, resumed = first.said(), second.said()
    told = re.search(r"\nerror: (.*? is in use by another process \(process (\d+) on (\w+), since)", resumed)
    return {
        "exit status of the second host while the first one is at it": refused.status,
        "what it says": f"{told[1]} ...",
        "that is the process and the host": [told[2], told[3]] == [holder, nfs_hosts.NAMES[0]],
        "refusals after `kill -9` of the first host": len(tried) - 1,
        "the attempt that succeeded began, s after that": round(tried[-1].start - killed),
        "clips left for it": " of ".join(re.findall(f"{progress}{BAR}", said)[-1][1] for said in (resumed, begun)),
    }


if __name__ == "__main__":
    sys.exit(main())
