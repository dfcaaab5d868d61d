"""The ranks: processes that train or evaluate one model together, each with its share of every batch.

``joined`` makes the group that ``torchrun`` has started processes for; a process on its own is a group of one, in which
nothing is sent. All that ranks say to each other, apart from sums of tensors, is an *exchange*: every rank gives a few
numbers, or an object, and gets those of all. A rank that fails, or is stopped by a signal, gives that instead, whatever
the others were about to exchange. So they neither wait for it nor mistake one message for another, and the reason is
told once: an error by the rank that failed, a signal by rank 0.

Exchanges use gloo, on the CPU; tensors on a GPU are summed by NCCL. The state of a rank that was killed is known from
its connections, which the kernel closes.
Source: https://docs.pytorch.org/docs/stable/distributed.html
"""

import contextlib
import datetime
import functools
import os
import pickle
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import distributed

from egoaudio.errors import ConfigurationError, EgoAudioError, TrainingError, first_line
from egoaudio.system import signals
from egoaudio.system.launch import Launch, launched

Value = TypeVar("Value")

_NUMBERS = 6  # that an exchange can hold, besides an object
_SAID, _FAILED, _STOPPED = 0.0, 1.0, 2.0  # what an exchange begins with
# How long a rank that fails or is stopped, and those that hear of it, wait for each other.
_FAREWELL_SECONDS = 10
_MEETING = datetime.timedelta(minutes=10)  # until which all ranks have to be there


class GroupError(TrainingError):
    """The group is no more: another rank has failed, or has ended without a word."""


class _StoppedByAnother(signals.Interrupted):
    """A signal that another rank was given, and has told of."""


@dataclass(frozen=True)
class Group(Launch):
    """The ranks, and the place of this process among them; ``Group()`` is a process on its own."""

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which alone writes and speaks."""
        return self.rank == 0

    def share(self, num_items: int) -> range:
        """Return which of so many items are this rank's: contiguous, of equal size up to one, the first the largest."""
        return range(*(-(-num_items * bound // self.size) for bound in (self.rank, self.rank + 1)))

    def numbers(self, *values: float) -> np.ndarray:
        """Return the numbers of every rank, float64 (size, len(values)); each gives as many."""
        return self._exchange(values)[0][:, : len(values)]

    def objects(self, value: Value) -> list[Value]:
        """Return the objects of every rank, which are pickled."""
        if self.size == 1:
            return [value]
        return [pickle.loads(payload) for payload in self._exchange((), pickle.dumps(value))[1]]

    def from_first(self, make: Callable[[], Value]) -> Value:
        """Return what ``make`` returns on rank 0; it is not called on the others."""
        if self.size == 1:
            return make()
        payload = pickle.dumps(make()) if self.is_first else b""
        return pickle.loads(self._exchange((), payload)[1][0])

    def in_turn(self, values: list[Value]) -> list[Value]:
        """Return one list of all ranks' values, one of each in turn: those of rank 0 are at 0, size, 2 * size, ..."""
        if self.size == 1:
            return values
        parts = self.objects(values)
        return [parts[at % self.size][at // self.size] for at in range(sum(map(len, parts)))]

    def add(self, tensor: torch.Tensor) -> None:
        """Replace a tensor by its sum over the ranks, in place."""
        if self.size > 1:
            with self._connected(), signals.held():
                distributed.all_reduce(tensor)

    def require_same(self, facts: Mapping[str, object]) -> None:
        """Raise ConfigurationError unless all ranks have the same facts, which are texts or have one."""
        if self.size == 1:
            return
        everyone = self.objects((socket.gethostname(), {name: str(value) for name, value in facts.items()}))
        (host, first), *others = everyone
        for rank, (its_host, its) in enumerate(others, start=1):
            for name, value in first.items():
                if its[name] != value:
                    raise ConfigurationError(
                        f"rank 0 on {host} has {name} {value}, and rank {rank} on {its_host} has {its[name]}: start "
                        "all ranks with the same arguments, files and version"
                    )

    def device_name(self, name: str | None) -> str | None:
        """Return the device of this rank: each has a GPU of its own if ``name`` is ``cuda`` or there are any.

        Raises
        ------
        ConfigurationError
            When two ranks would have the same GPU.
        """
        kind, _, number = (name or ("cuda" if torch.cuda.is_available() else "cpu")).partition(":")
        if self.size == 1 or kind != "cuda":
            return name
        if number and self.local_size > 1:
            raise ConfigurationError(
                f"`device={name!r}` is one GPU, for {self.local_size} ranks: give `device='cuda'`, a GPU for each"
            )
        if self.local_rank >= torch.cuda.device_count():
            raise ConfigurationError(
                f"{self.local_size} ranks were started on {socket.gethostname()}, which has "
                f"{torch.cuda.device_count()} GPUs: start one rank a GPU, or give `device='cpu'`"
            )
        return name if number else f"cuda:{self.local_rank}"

    # ---------------------------------------------------------------------------------------------------- exchanges

    def _exchange(
        self, values: tuple[float, ...], payload: bytes = b"", said: float = _SAID, seconds: float | None = None
    ) -> tuple[np.ndarray, list[bytes]]:
        """Return the numbers of all ranks, float64 (size, 6), and their objects, pickled; empty where there is none.

        Of ranks that say that they have failed, when this one does so, too, only theirs.

        Raises
        ------
        GroupError
            When another rank gives an error, and this one does not give its own; when one is gone.
        Interrupted
            When another rank was given a signal, likewise.
        """
        if self.size == 1:
            return np.array([values], dtype=np.float64), [payload]
        own = torch.zeros(2 + _NUMBERS, dtype=torch.float64)
        own[: 2 + len(values)] = torch.tensor([said, len(payload), *values])
        everyone = [torch.empty_like(own) for _ in range(self.size)]
        with signals.held():
            with self._connected():
                _wait(distributed.all_gather(everyone, own, async_op=True), seconds)
                received = torch.stack(everyone).numpy()
                payloads = [b""] * self.size
                for rank in np.flatnonzero(received[:, 1]).tolist():
                    content = torch.empty(int(received[rank, 1]), dtype=torch.uint8)
                    if rank == self.rank:
                        content = torch.frombuffer(bytearray(payload), dtype=torch.uint8)
                    _wait(distributed.broadcast(content, rank, async_op=True), seconds)
                    payloads[rank] = content.numpy().tobytes()
            failed, stopped = (np.flatnonzero(received[:, 0] == word) for word in (_FAILED, _STOPPED))
            if said == _SAID and len(failed):
                error = GroupError(pickle.loads(payloads[failed[0]]))
                error.told = True  # by that rank; it has 10 s until this one ends, and torchrun then ends the others
                self._wait_for_an_end()
                raise error
            if said == _SAID and len(stopped):
                raise _StoppedByAnother(int(received[stopped[0], 2]))
        if len(failed):
            payloads = [payload if rank in failed else b"" for rank, payload in enumerate(payloads)]
        return received[:, 2:], payloads

    def _wait_for_an_end(self) -> None:
        """Wait until a rank has ended, 10 s at most."""
        with contextlib.suppress(Exception, signals.Interrupted):
            _wait(distributed.all_reduce(torch.zeros(1), async_op=True), _FAREWELL_SECONDS)

    @contextlib.contextmanager
    def _connected(self) -> Iterator[None]:
        """Turn errors of the connection into a GroupError."""
        try:
            yield
        except RuntimeError as error:
            signals.check()  # a signal to all ranks ends one before the others
            reason = first_line(error)
            raise GroupError(
                f"rank {self.rank} of {self.size} had to stop, as another one has ended or cannot be reached "
                f"({reason}): its own message, or the system's log, says why. The same command resumes from what was "
                "saved last"
            ) from error

    def failed(self, error: Exception) -> Exception:
        """Give an error to the other ranks; return it as this one raises it, marked if another rank tells of it."""
        text = f"{error}" if isinstance(error, EgoAudioError) else f"{type(error).__name__}: {error}"
        message = text if self.is_first else f"rank {self.rank}: {text}"
        try:
            _, payloads = self._exchange((), pickle.dumps(message), _FAILED, _FAREWELL_SECONDS)
        except GroupError:  # there is nobody left to tell
            payloads = [b""] * self.size
        if any(payloads[: self.rank]):  # the first rank that fails tells it
            told = error if isinstance(error, EgoAudioError) else TrainingError(message)
            told.told = True
            return told
        return type(error)(message) if isinstance(error, EgoAudioError) and not self.is_first else error

    def stopped(self, stop: signals.Interrupted) -> None:
        """Tell the other ranks of a signal; all but rank 0, which speaks, wait for its end before they end.

        torchrun ends the others, by a signal, as soon as one has ended.
        """
        with contextlib.suppress(GroupError, signals.Interrupted):
            if not isinstance(stop, _StoppedByAnother):
                self._exchange((stop.number,), said=_STOPPED, seconds=_FAREWELL_SECONDS)
        if not self.is_first:
            self._wait_for_an_end()


ALONE = Group()


def _wait(work: Any, seconds: float | None) -> None:
    """Wait until a message is through, for ``seconds`` at most."""
    if seconds is None:
        work.wait()
    else:
        work.wait(datetime.timedelta(seconds=seconds))


@contextlib.contextmanager
def joined(device: str | None = None) -> Iterator[Group]:
    """Make the group that this process was started for, while the block runs; a program's own group is used as it is.

    An error that leaves the block ends the block in all ranks.

    Parameters
    ----------
    device : str or None
        Where the ranks will compute; if not given, on GPUs if there are any.

    Raises
    ------
    ConfigurationError
        When the environment does not say how to find the other ranks.
    TrainingError
        When they cannot be reached.
    """
    launch = launched()
    ours = not (distributed.is_available() and distributed.is_initialized())
    if ours and launch.size == 1:
        yield ALONE
        return
    if ours:
        _connect(device, launch)
    group = Group(distributed.get_rank(), distributed.get_world_size(), launch.local_rank, launch.local_size)
    speaks = False
    try:
        yield group
    except GroupError:
        raise
    except signals.Interrupted as stop:
        group.stopped(stop)
        speaks = group.is_first
        raise
    except Exception as error:
        raised = group.failed(error)
        if raised is error:
            raise
        raise raised from error
    finally:
        # The command of one that speaks ends after that, and its connections with it, for which the others wait.
        if ours and not speaks:
            with contextlib.suppress(RuntimeError):
                distributed.destroy_process_group()


@functools.cache
def _meet(*_place: str) -> Any:
    """Return the store in which the ranks of the environment find each other.

    One for each place, which is kept: that of rank 0 is the server where torchrun has none.
    """
    return next(distributed.rendezvous("env://", timeout=_MEETING))[0]


def _connect(device: str | None, launch: Launch) -> None:
    """Make torch's process group of the environment's ranks."""
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ConfigurationError(
            f"RANK and WORLD_SIZE are set, and {' and '.join(missing)} is not: start the ranks with torchrun, or unset "
            "RANK and WORLD_SIZE"
        )
    computes = torch.cuda.is_available() and not (device or "cuda").startswith("cpu")
    try:
        store = _meet(*(os.environ[name] for name in ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE")))
        # Of each group that the program makes, one after the other; else the second would find the addresses of the
        # first.
        number = store.add(f"egoaudio/groups of rank {launch.rank}", 1)
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if computes else "gloo",
            store=distributed.PrefixStore(f"egoaudio/{number}", store),
            rank=launch.rank,
            world_size=launch.size,
        )
    except (RuntimeError, ValueError, OSError) as error:
        reason = first_line(error)
        raise TrainingError(
            f"rank {launch.rank} of {launch.size} cannot reach the others at "
            f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} ({reason}): check that address, and that all "
            "ranks were started"
        ) from error
