"""One run on an output at a time.

The lock is a name in Linux' abstract socket namespace, made from the output's folder and name: it leaves no file
behind, goes with the process however that dies, does not disturb HDF5's own file locks, and the kernel says who holds
it. It holds between processes of one machine.
"""

import contextlib
import hashlib
import os
import socket
import struct
from pathlib import Path

from egoaudio.errors import BuildError


@contextlib.contextmanager
def held(output):
    """Hold ``output`` for this process while the block runs.

    Raises
    ------
    BuildError
        When another process holds it; says which.
    """
    folder = os.stat(Path(output).absolute().parent)
    key = hashlib.sha256(f"{folder.st_dev}:{folder.st_ino}:{Path(output).name}".encode()).hexdigest()
    address = f"\0egoaudio-build:{key}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as lock:
        try:
            lock.bind(address)
        except OSError as error:
            raise BuildError(f"{output} is in use by another process ({_holder(address)}): wait for it, stop it, or give another --output") from error
        lock.listen(128)  # only a listening socket tells its owner
        yield


def _holder(address):
    """Return who listens at ``address``: process number and command."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
        caller.setblocking(False)
        try:
            caller.connect(address)
            pid, _, _ = struct.unpack("3i", caller.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:
            return "it cannot be seen from here"
    return f"process {pid}: {command[:200]}"
