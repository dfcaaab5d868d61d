"""Have the workers of a Dask cluster build the shards, each in a process of its own.

In: the scheduler's address, and what to build. Out: finished shards beside the output, which ``build`` then takes over.

Dask places the shards, and gives one whose worker died to another, which resumes it (``shard_process``). Workers see
the media and the output under the same paths. Not through joblib, whose Dask backend hangs when a task kills its
worker each time.

Source: https://distributed.dask.org/en/stable/client.html
"""

import os
import re
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from egoaudio._version import __version__
from egoaudio.builder import shard_process
from egoaudio.builder.plan import Inputs
from egoaudio.builder.plan import paths as paths_of
from egoaudio.builder.shards import Shard
from egoaudio.config.build import BuildConfig
from egoaudio.config.options import to_arguments
from egoaudio.errors import BuildError, ConfigurationError
from egoaudio.system import signals
from egoaudio.system.files import StrPath
from egoaudio.system.progress import Progress

_CONNECT_SECONDS = 15.0
# Text, so that a worker without egoaudio says so: one that cannot unpickle a function of ours, Dask 2026.8 kills.
_RUN = "__import__('egoaudio.builder.shard_process', fromlist=['run']).run(*given)"
_LOOK_SECONDS = 0.2  # between two looks at what is done
_COUNT_SECONDS = 2.0  # between two questions to the scheduler for its workers
_NO_WORKERS_SECONDS = 30.0  # after which it is said that there are none
_TRIES = 3  # of a shard whose process is killed
_SHOWN = 5  # shards that a message tells of


def arguments_of(
    inputs: Inputs, output: StrPath, config: BuildConfig, num_workers: int, timeout_seconds: float
) -> list[str]:
    """Return the arguments of ``egoaudio-build`` for these parameters of ``build``, as any folder understands them."""
    paths = [("--annotations", path) for path in paths_of(inputs.annotations)]
    paths += [("--test-annotations", path) for path in paths_of(inputs.test_annotations)]
    paths += [("--classes", inputs.classes)] if inputs.classes is not None else []
    paths += [("--videos", inputs.videos), ("--output", output)]
    arguments = [text for flag, path in paths for text in (flag, os.path.abspath(path))]
    arguments += ["--follow-links"] if inputs.follow_links else []
    arguments += ["--workers", str(num_workers), "--video-timeout", str(timeout_seconds), "--skip-failed"]
    return arguments + to_arguments(config)


def build_shards(address: str, shards: Mapping[Shard, int], arguments: Sequence[str]) -> None:
    """Build shards on a Dask cluster.

    Parameters
    ----------
    address : str
        Of the scheduler, such as ``tcp://login1:8786``.
    shards : mapping of Shard to int
        Those to build, and how many videos each has.
    arguments : sequence of str
        Of ``egoaudio-build``, besides ``--shard``; paths are absolute.

    Raises
    ------
    ConfigurationError
        Dask is not installed here, or the address has no port.
    BuildError
        No scheduler answers, a worker has no egoaudio or another version, or a shard cannot be built; finished shards
        are kept.
    """
    if not shards:
        return
    client = _connect(address)
    topic = f"egoaudio-{uuid.uuid4().hex}"
    futures: dict[Shard, Any] = {}
    try:
        with Progress(sum(shards.values()), "shards", unit="videos") as progress:
            followed = _Followed(client, topic, shards, progress)
            for shard in shards:
                given = {"given": ([*arguments, "--shard", str(shard)], __version__, topic, str(shard))}
                key = f"{topic}-{str(shard).replace('/', '-of-')}"
                futures[shard] = client.submit(eval, _RUN, given, key=key, retries=_TRIES - 1, pure=False)
            lost = _collect(futures, address, followed)
    finally:
        client.cancel(list(futures.values()), force=True)
        client.close(timeout=_CONNECT_SECONDS)
    if lost:
        shown = "\n".join(f"  shard {shard}: {reason}" for shard, reason in list(lost.items())[:_SHOWN])
        more = f"\n  and {len(lost) - _SHOWN:,} more" if len(lost) > _SHOWN else ""
        raise BuildError(
            f"{len(lost):,} of {len(futures):,} shards could not be built:\n{shown}{more}\nThe others are kept. The "
            "same command tries these again; without `cluster` and `shards` it takes over those that are finished, and "
            "builds the rest here"
        )


def _connect(address: str) -> Any:
    """Return a client of the scheduler."""
    address = address.rstrip("/")
    if not re.fullmatch(r"(\w+://)?[^/\s]+:\d+", address):  # Dask would wait for one without a port
        raise ConfigurationError(
            f"`cluster={address!r}`: expected the scheduler's address with its port, such as tcp://login1:8786"
        )
    try:
        from distributed import Client
    except ImportError as error:
        raise ConfigurationError(
            f"`cluster={address!r}` needs Dask ({error}): pip install 'egoaudio[cluster]', here and on the workers"
        ) from error
    try:
        return Client(address, timeout=_CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        raise BuildError(
            f"`cluster={address!r}`: no Dask scheduler answers there ({error}): is `dask scheduler` running, and does "
            "the address begin with tcp:// and end with its port, such as tcp://login1:8786?"
        ) from error


class _Followed:
    """The progress over all shards, from what their workers report."""

    def __init__(self, client: Any, topic: str, shards: Mapping[Shard, int], progress: Progress) -> None:
        self.client, self.progress, self._shards = client, progress, shards
        self._shares = {str(shard): 0 for shard in shards}  # per cent
        self._shown, self._waits = 0, False
        self._had_workers = bool(client.scheduler_info()["workers"])  # asked before one can die of a shard
        self._asked = self._last_seen = time.monotonic()
        client.subscribe_topic(topic, self._note)

    def _note(self, event: tuple[float, dict[str, Any]]) -> None:
        """Note how much of a shard is done."""
        message = event[1]
        self._shares[message["shard"]] = max(message["share"], self._shares.get(message["shard"], 0))

    def finish(self, shard: Shard) -> None:
        """Count a shard as done."""
        self._shares[str(shard)] = 100

    def show(self) -> None:
        """Advance the bar by what has been done since."""
        done = sum(count * self._shares[str(shard)] // 100 for shard, count in self._shards.items())
        if done > self._shown:
            self.progress.advance(done - self._shown)
            self._shown = done

    def look_for_workers(self) -> None:
        """Say it, once each time, if there are no workers for ``_NO_WORKERS_SECONDS``: a job queue may send some."""
        now = time.monotonic()
        if now - self._asked < _COUNT_SECONDS:
            return
        self._asked = now
        if self.client.scheduler_info()["workers"]:
            self._had_workers, self._last_seen, self._waits = True, now, False
        elif now - self._last_seen > _NO_WORKERS_SECONDS and not self._waits:
            self._waits = True
            if self._had_workers:
                self.progress.write(
                    "all workers of the cluster are gone, and their own messages say why (often memory, or the end of "
                    "their job): waiting for others. Ctrl-C ends the build; finished shards are kept, and the same "
                    "command resumes"
                )
            else:
                self.progress.write("the cluster has no workers yet: waiting for some (`dask worker`, or a job queue)")


def _collect(futures: dict[Shard, Any], address: str, followed: _Followed) -> dict[Shard, str]:
    """Wait for all shards; return those that could not be built, with the reason.

    Raises
    ------
    BuildError
        What ends one shard would end all, or the scheduler is gone.
    """
    lost: dict[Shard, str] = {}
    waiting = dict(futures)
    while waiting:
        time.sleep(_LOOK_SECONDS)
        signals.check()
        for shard in [shard for shard, future in waiting.items() if future.done()]:
            future = waiting.pop(shard)
            reason = _why_not(shard, future, address)
            if reason:
                lost[shard] = reason
                followed.progress.write(f"warning: shard {shard}: {reason}")
            else:
                followed.finish(shard)
            future.release()
        followed.show()
        if waiting:
            followed.look_for_workers()
    return lost


def _why_not(shard: Shard, future: Any, address: str) -> str:
    """Return why a shard was not built, or nothing if it was."""
    if future.status in ("cancelled", "lost"):
        raise BuildError(
            f"`cluster={address!r}`: the connection to the scheduler is lost; finished shards are kept, and the same "
            "command resumes"
        )
    error = future.exception()
    if isinstance(error, ImportError):
        raise BuildError(
            f"a worker of the cluster cannot load egoaudio ({error}): install egoaudio {__version__} in the workers' "
            "Python environment"
        ) from error
    if error is not None:
        if type(error).__name__ == "KilledWorker":
            return "each worker that ran it died, perhaps for memory"
        return str(error) if isinstance(error, shard_process.Killed) else f"{type(error).__name__}: {error}"
    ended: shard_process.Ended = future.result()
    if ended.exit_code is None:
        raise BuildError(
            f"{ended.host} has egoaudio {ended.words}, and this is {__version__}: install the same version on all "
            "machines"
        )
    if ended.exit_code:
        raise BuildError(
            f"shard {shard} on {ended.host}: {ended.words}\n(the folders of videos, of annotations and of the output "
            "must be there under the same paths; finished shards are kept)"
        )
    return ""
