"""Feature rows from the processes that make them to the one that scores them: a socket, a connection a recording.

A worker's ``Sender`` connects to the parent's ``Receiver``, says which recording it is about to send, sends blocks of
rows, and the end; a connection that closes before the end was a worker that died or gave the recording up. Nothing is
stored on the way: who sends waits until who scores has room (``MOST_WAITING`` blocks), so that memory is bounded
whatever the length and number of the recordings. The rows are bytes of an array, never pickled.

The socket has a name in Linux' abstract namespace, which goes with the process and leaves nothing behind. Both sides
see who is at the other end (SO_PEERCRED), and the parent wants to hear a secret that only its workers were told.
"""

import contextlib
import os
import queue
import secrets
import selectors
import socket
import struct
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from egoaudio.builder.pool import heartbeat
from egoaudio.errors import ResourceError

MOST_WAITING = 8  # blocks that have come and are not scored yet: 16 MB of spectrograms
_HELLO = struct.Struct("<16s16sqq")  # secret, attempt, recording, number of its clips
_BLOCK = struct.Struct("<qq")  # first clip (-1: that was all), number of clips; then a byte a clip, and the rows
_LOOK_SECONDS = 0.2  # between two looks at whether to stop
_SILENT_SECONDS = 600.0  # a sender that stops in the middle of a block is given up
_CREDENTIALS = struct.Struct("3i")  # process, user, group


@dataclass(frozen=True)
class Address:
    """Where the receiver listens; goes to the workers."""

    name: bytes
    secret: bytes


@dataclass(frozen=True)
class Begun:
    """A recording's rows are about to come."""

    attempt: bytes
    """Which try; a recording whose worker died is tried again."""
    recording: int
    num_clips: int


@dataclass(frozen=True, eq=False)
class Block:
    """Rows of consecutive clips."""

    attempt: bytes
    first_clip: int
    usable: np.ndarray
    """bool (n,): whether a clip has enough sound to be scored."""
    rows: np.ndarray
    """(n, T, F)."""


@dataclass(frozen=True)
class Ended:
    """No more comes: all rows have come, or the sender is gone."""

    attempt: bytes
    whole: bool


class Disconnected(ResourceError):
    """Raised in a worker when the process that scores is not there any more."""


class Sender:
    """Sends the rows of one recording; a context manager.

    Parameters
    ----------
    address : Address
    recording, num_clips : int

    Attributes
    ----------
    attempt : bytes
        Which try this is, for the receiver to know the rows by.
    """

    def __init__(self, address: Address, recording: int, num_clips: int) -> None:
        self.attempt = secrets.token_bytes(16)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.connect(b"\0" + address.name)
            self._socket.settimeout(_LOOK_SECONDS)
            if _peer(self._socket)[1] != os.getuid():
                raise Disconnected("another user's process answers in place of the one that scores")
            self._send(_HELLO.pack(address.secret, self.attempt, recording, num_clips))
        except OSError as error:
            self._socket.close()
            raise Disconnected(f"the process that scores does not answer ({error.strerror or error})") from error
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> "Sender":
        return self

    def __exit__(self, *exception: object) -> None:
        self._socket.close()

    def send(self, first_clip: int, usable: np.ndarray, rows: np.ndarray) -> None:
        """Send rows (n, T, F) of consecutive clips, and which of them are usable (n,); waits until there is room."""
        self._send(_BLOCK.pack(first_clip, len(rows)) + usable.astype("u1").tobytes())
        self._send(np.ascontiguousarray(rows).reshape(-1).view("u1").data)

    def end(self) -> None:
        """Say that all rows were sent."""
        self._send(_BLOCK.pack(-1, 0))

    def _send(self, raw: bytes | memoryview) -> None:
        view = memoryview(raw)
        while len(view):
            try:
                view = view[self._socket.send(view) :]
            except TimeoutError:
                heartbeat()  # the network is the slow one: that is no fault of this recording
            except OSError as error:
                raise Disconnected(f"the process that scores is gone ({error.strerror or error})") from error


class Receiver:
    """Takes rows from any number of senders, in a thread; a context manager.

    Parameters
    ----------
    row_shape : tuple of int
        (T, F) of the rows that will come.
    dtype : numpy.dtype

    Attributes
    ----------
    address : Address
        For the senders.
    """

    def __init__(self, row_shape: Sequence[int], dtype: np.dtype) -> None:
        self._row_shape, self._dtype = tuple(row_shape), np.dtype(dtype)
        self.address = Address(b"egoaudio-" + secrets.token_hex(16).encode(), secrets.token_bytes(16))
        self._messages: queue.Queue[Begun | Block | Ended] = queue.Queue(MOST_WAITING)
        self._stopping = threading.Event()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(b"\0" + self.address.name)
        self._listener.listen(128)
        self._listener.setblocking(False)
        self._attempts: dict[socket.socket, bytes] = {}
        self._thread = threading.Thread(target=self._receive, name="egoaudio-receiver", daemon=True)
        self._thread.start()

    def __enter__(self) -> "Receiver":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def get(self, timeout_seconds: float | None = None) -> Begun | Block | Ended | None:
        """Return the next message, ``Begun``, ``Block`` or ``Ended``; None when none comes for ``timeout_seconds``."""
        try:
            return self._messages.get(timeout=timeout_seconds)
        except queue.Empty:
            return None

    def close(self) -> None:
        """Listen no more; senders that are connected find it out."""
        self._stopping.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # the thread need not look for it: it wakes at once
        for connection in list(self._attempts):  # one of which the thread may be reading
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        for connection in [*self._attempts, self._listener]:
            connection.close()
        self._attempts.clear()

    def _receive(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            while not self._stopping.is_set():
                for key, _ in selector.select(_LOOK_SECONDS):
                    if self._stopping.is_set():
                        return
                    if isinstance(key.fileobj, socket.socket) and key.fileobj is not self._listener:
                        self._read(selector, key.fileobj)
                    else:
                        self._accept(selector)

    def _accept(self, selector: selectors.BaseSelector) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionError):
            connection, _ = self._listener.accept()
            connection.settimeout(_SILENT_SECONDS)
            hello = _take(connection, _HELLO.size) if _peer(connection)[1] == os.getuid() else None
            if hello is None:
                connection.close()
                return
            secret, attempt, recording, num_clips = _HELLO.unpack(hello)
            if not secrets.compare_digest(secret, self.address.secret):
                connection.close()
                return
            self._attempts[connection] = attempt
            selector.register(connection, selectors.EVENT_READ)
            self._put(Begun(attempt, recording, num_clips))

    def _read(self, selector: selectors.BaseSelector, connection: socket.socket) -> None:
        """Read one block, or the end, of a connection that has something to say."""
        attempt = self._attempts[connection]
        message: Block | Ended | None = None
        with contextlib.suppress(OSError):
            head = _take(connection, _BLOCK.size)
            if head is not None:
                first_clip, num_rows = _BLOCK.unpack(head)
                message = Ended(attempt, True) if first_clip < 0 else self._read_rows(connection, first_clip, num_rows)
        if not isinstance(message, Block):
            selector.unregister(connection)
            del self._attempts[connection]
            connection.close()
        self._put(message or Ended(attempt, False))

    def _read_rows(self, connection: socket.socket, first_clip: int, num_rows: int) -> Block | None:
        usable, rows = np.empty(num_rows, "u1"), np.empty((num_rows, *self._row_shape), self._dtype)
        if not (_fill(connection, usable) and _fill(connection, rows)):
            return None
        return Block(self._attempts[connection], first_clip, usable == 1, rows)

    def _put(self, message: Begun | Block | Ended) -> None:
        """Hand a message on, and wait for room as long as somebody may still take it."""
        while not self._stopping.is_set():
            with contextlib.suppress(queue.Full):
                self._messages.put(message, timeout=_LOOK_SECONDS)
                return


def _peer(connection: socket.socket) -> tuple[int, int, int]:
    """Return process, user and group at the other end."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    process, user, group = _CREDENTIALS.unpack(raw)
    return process, user, group


def _take(connection: socket.socket, num_bytes: int) -> bytes | None:
    """Return the next bytes, None where the connection ends before them."""
    raw = np.empty(num_bytes, "u1")
    return raw.tobytes() if _fill(connection, raw) else None


def _fill(connection: socket.socket, array: np.ndarray) -> bool:
    """Fill an array from a connection; return whether enough came."""
    view = array.reshape(-1).view("u1").data
    while len(view):
        count = connection.recv_into(view)
        if not count:
            return False
        view = view[count:]
    return True
