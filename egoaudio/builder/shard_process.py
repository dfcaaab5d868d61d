"""Build a shard in a process of its own: what a worker of a Dask cluster runs.

In: the arguments of ``egoaudio-build --shard K/N``. Out: how the process ended, and its progress as events meanwhile. A
decoder that crashes ends neither Dask's worker nor its other shards. The process ends when Dask no longer wants its
result (Ctrl-C, a client that is gone) or its worker dies. Loads nothing of a build itself: a worker stays small.

Source: https://distributed.dask.org/en/stable/client.html
"""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

from egoaudio._version import __version__

_LOOK_SECONDS = 0.2  # between two looks whether it is still wanted
_STOP_SECONDS = 20.0  # for the process to end by itself
_LINES = 12  # the last ones that it says are kept
_RUN = (
    "import sys; from egoaudio.system.signals import end_with; end_with(int(sys.argv.pop(1))); "
    "from egoaudio.cli import build; sys.argv[0] = 'egoaudio-build'; build()"
)


@dataclass(frozen=True)
class Ended:
    """How the process of a shard ended."""

    host: str
    """Name of the worker's machine."""
    exit_code: int | None
    """None where it was not started, as the worker has another version."""
    words: str
    """The last lines it said; or the worker's version."""


class Killed(Exception):
    """The process of a shard was killed: Dask tries again."""


def run(arguments: list[str], version: str, topic: str, shard: str) -> Ended:
    """Build a shard; runs in a thread of a Dask worker.

    Parameters
    ----------
    arguments : list of str
        Of ``egoaudio-build``.
    version : str
        Of the client's egoaudio.
    topic, shard : str
        Progress is reported as an event of this topic, ``{"shard": shard, "share": per cent}``.

    Returns
    -------
    Ended

    Raises
    ------
    Killed
    """
    from distributed import get_worker

    worker, host = get_worker(), os.uname().nodename
    if version != __version__:
        return Ended(host, None, __version__)
    key = worker.get_current_task()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}  # of its nanny
    process = subprocess.Popen(
        [sys.executable, "-c", _RUN, str(os.getpid()), *arguments],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace",
        env=environment,
    )  # fmt: skip
    said: deque[str] = deque(maxlen=_LINES)
    reader = threading.Thread(target=_follow, args=(process, said, worker, topic, shard), daemon=True)
    reader.start()
    while process.poll() is None:
        task = worker.state.tasks.get(key)
        if task is None or task.state == "cancelled":
            process.terminate()
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
        time.sleep(_LOOK_SECONDS)
    reader.join(_STOP_SECONDS)
    if process.returncode < 0:
        raise Killed(f"its process on {host} was killed by {signal.Signals(-process.returncode).name}")
    return Ended(host, process.returncode, "\n".join(said))


def _follow(process: "subprocess.Popen[str]", said: deque[str], worker: Any, topic: str, shard: str) -> None:
    """Keep what a process says, and report its progress to the client."""
    for line in process.stderr or ():
        found = re.match(r"(probe|take in|build) +(\d+)%", line)
        if found is None:
            said.append(line.rstrip())
        elif found[1] == "build":
            worker.log_event(topic, {"shard": shard, "share": int(found[2])})
