"""Slurm: the README's lines for real, on one machine: a task is requeued, another killed; two ranks train by ``srun``.

    python benchmarks/slurm.py [--output slurm.json]

Needs root and Debian's ``slurm-wlm`` and ``munge``. The daemons (munged, slurmctld, slurmd) run in a folder and on
ports of their own, and end with the script. An array of four tasks builds the shards of a few short videos. While it
runs, one task is killed with ``kill -9``, so that its shard is never finished, and another is requeued (``scontrol
requeue``); the job that depends on the array then takes the finished shards over and decodes the others' videos. The
file must be that of a build without Slurm, byte for byte but ``created_utc``. Then ``srun`` trains on it with two
tasks, which must be two ranks of one run, with the losses of a run on one.
"""

import argparse
import contextlib
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import measuring
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1] / "bin"))
import demo_data  # noqa: E402
from trials import content  # noqa: E402

NUM_TASKS = 4
NUM_RANKS, BATCH = 2, 32
CONFIGURATION = """
ClusterName=egoaudio
SlurmctldHost={host}
SlurmctldPort={port}
SlurmdPort={node_port}
SlurmUser=root
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=1
ReturnToService=2
KillWait=5
MailProg=/bin/true
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", help="JSON of what was seen")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        videos = folder / "charades"
        demo_data.make(videos, num_videos=12, seed=3, shortest_seconds=8.0, longest_seconds=12.0)
        command = build_command(videos)
        subprocess.run([*command, "--output", folder / "alone.h5"], check=True, stdout=subprocess.DEVNULL)
        with running_slurm(folder):
            seen = build_with_slurm(folder, shlex.join(map(str, [*command, "--output", folder / "ego.h5"])))
            seen["equal to a build without Slurm"] = content(folder / "ego.h5") == content(folder / "alone.h5")
            seen |= train_with_slurm(folder)
    measuring.table(["what", "seen"], [[what, str(value)] for what, value in seen.items()])
    measuring.write_json(arguments.output, seen=seen)
    is_divided = f"rank's share of a batch ({BATCH // NUM_RANKS} of {BATCH} clips)" in str(seen)
    return 0 if seen["equal to a build without Slurm"] and is_divided else 1


def build_command(videos):
    """Return egoaudio-build with all but the output."""
    run = f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r}); from egoaudio.cli import build; build()"
    inputs = ["--annotations", videos / "train.csv", "--test-annotations", videos / "test.csv"]
    inputs += ["--classes", videos / "classes.txt", "--videos", videos / "videos"]
    return [sys.executable, "-c", run, *inputs, "--workers", "1", "--skip-failed"]


def build_with_slurm(folder, command):
    """Submit the README's two jobs, disturb the first; return what was seen."""
    options = ["--parsable", f"--output={folder}/job-%A-%a.log"]
    shard = f"{command} --shard $SLURM_ARRAY_TASK_ID/{NUM_TASKS}"
    array = slurm("sbatch", *options, f"--array=0-{NUM_TASKS - 1}", "--requeue", "--wrap", shard)
    last = slurm("sbatch", *options, "-d", f"afterany:{array}", "--wrap", command)
    path = f"{folder}/ego.h5.shard-0000{{}}-of-0000{NUM_TASKS}"
    wait(lambda: has_begun(path.format(1)))
    kill(f"--shard 1/{NUM_TASKS}")
    wait(lambda: has_begun(path.format(0)))
    slurm("scontrol", "requeue", f"{array}_0")
    wait(lambda: not slurm("squeue", "--noheader", f"--jobs={array}", check=False))
    finished = [number for number in range(NUM_TASKS) if os.path.exists(path.format(number))]
    wait(lambda: not slurm("squeue", "--noheader", f"--jobs={last}", check=False))
    said = Path(f"{folder}/job-{last}-4294967294.log").read_text(encoding="utf-8")
    return {
        "Slurm": slurm("sbatch", "--version"),
        "restarts of the task that was requeued": restarts(f"{array}_0"),
        "shards finished when the dependent job began": finished,
        "what the dependent job said of the others": next(
            (line for line in said.splitlines() if "missing, or not finished" in line), ""
        ),
    }


def train_with_slurm(folder):
    """Train on one rank without Slurm, and on two that ``srun`` starts; return what was seen."""
    command = [sys.executable, "-m", "egoaudio.training", folder / "ego.h5", "--device", "cpu"]
    command += ["--epochs", "3", "--batch-size", str(BATCH), "--validation-fraction", "0"]
    plain = ["--model", "cnn", "--output"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    how = {"check": True, "capture_output": True, "text": True, "env": environment}
    subprocess.run([*command, *plain, folder / "one"], **how)
    ranks = ["srun", f"--ntasks={NUM_RANKS}", "--cpus-per-task=1", "--time=5"]
    subprocess.run([*ranks, *command, *plain, folder / "two"], **how)
    said = subprocess.run([*ranks, *command, "--model", "cnn-small", "--output", folder / "batch norm"], **how).stderr
    one, two = (pd.read_csv(folder / name / "metrics.csv")["train_loss"] for name in ("one", "two"))
    return {
        "srun: training losses": two.round(6).tolist(),
        "srun: largest difference from one rank": float((one - two).abs().max()),
        "srun: what rank 0 says of batch norm": next((line for line in said.splitlines() if "batch norm" in line), ""),
    }


def has_begun(path):
    """Return whether a file is being built, or is done."""
    return os.path.exists(f"{path}.partial") or os.path.exists(path)


def restarts(task):
    """Return how often Slurm has started a task again."""
    return int(re.search(r"Restarts=(\d+)", slurm("scontrol", "show", "job", task))[1])


def kill(words):
    """End with SIGKILL the processes that were started with these words."""
    for process in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            line = Path("/proc", process, "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if line.strip().endswith(words) and int(process) != os.getpid():
                os.kill(int(process), signal.SIGKILL)


def wait(condition, seconds=300):
    stop = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > stop:
            raise TimeoutError(f"waited for {seconds} s in vain; the queue: {slurm('squeue', check=False)}")
        time.sleep(0.05)


def slurm(*command, check=True):
    """Run a command of Slurm; return what it prints."""
    return subprocess.run(command, check=check, capture_output=True, text=True).stdout.strip()


@contextlib.contextmanager
def running_slurm(folder):
    """Run a cluster of one node while the block runs."""
    for name in ("state", "spool"):
        (folder / name).mkdir()
    host = socket.gethostname()
    facts = {"folder": folder, "host": host, "port": free_port(), "node_port": free_port(), "cores": os.cpu_count()}
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    Path(os.environ["SLURM_CONF"]).write_text(CONFIGURATION.format(**facts), encoding="utf-8")
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    files = {name: f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "log", "seed")}
    daemons = [
        ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *files.values()],
        ["slurmctld", "-D", "-c"],
        ["slurmd", "-D", "-c", "-N", host],
    ]
    started = []
    try:
        for command in daemons:
            started.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
            time.sleep(2)
        wait(lambda: "idle" in slurm("sinfo", "--noheader", "--format=%T", check=False))
        yield
    finally:
        for process in reversed(started):
            process.terminate()
            process.wait()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    sys.exit(main())
