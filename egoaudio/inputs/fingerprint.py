"""Tell whether a media file is unchanged, on any machine: its size and a hash of both ends.

In: a path. Out: 32 bytes, the SHA-256 of the size (8 bytes, little-endian), the first 64 KiB and the last 64 KiB.
Modification times are not included, as copies have others.
"""

import hashlib
import os
import stat

FINGERPRINT_BYTES = 32
UNKNOWN = bytes(FINGERPRINT_BYTES)
"""Of a file that is missing or cannot be read."""
_END_BYTES = 64 << 10


def fingerprint(path: str | os.PathLike[str]) -> bytes:
    """Return a file's fingerprint, ``UNKNOWN`` where it cannot be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return UNKNOWN
    try:
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode):
            return UNKNOWN
        digest = hashlib.sha256(info.st_size.to_bytes(8, "little"))
        for start in (0, max(0, info.st_size - _END_BYTES)):
            digest.update(os.pread(descriptor, _END_BYTES, start))
        return digest.digest()
    except OSError:
        return UNKNOWN
    finally:
        os.close(descriptor)
