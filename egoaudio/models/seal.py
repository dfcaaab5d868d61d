r"""The seal of a checkpoint: the comment of its zip archive, the last bytes of the file.

    egoaudio checkpoint 1 sha256=<64 hexadecimal digits>\n

Magic, version, and the SHA-256 of all bytes before it. It detects damage; it is not a signature.
"""

import hashlib
import os
import re
from typing import BinaryIO

from egoaudio.errors import CheckpointError

VERSION = 1
_SEAL = re.compile(rb"egoaudio checkpoint (\d{1,6}) sha256=([0-9a-f]{64})\n")
_SEAL_BYTES = len(b"egoaudio checkpoint 1 sha256=") + 64 + 1


def add(file: BinaryIO) -> None:
    """Append the seal to the zip archive that ``file`` holds, as the archive's comment."""
    file.seek(-2, os.SEEK_END)  # the archive's last two bytes are its comment's length
    file.write(_SEAL_BYTES.to_bytes(2, "little"))
    file.seek(0)
    digest = _sha256(file, None)
    file.write(f"egoaudio checkpoint {VERSION} sha256={digest}\n".encode())


def check(path: str | os.PathLike[str], file: BinaryIO) -> None:
    """Raise CheckpointError unless ``file`` ends in a seal with the right checksum."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _SEAL_BYTES))
    seal = _SEAL.fullmatch(file.read())
    if seal is None:
        file.seek(0)
        if file.read(8) == b"\x89HDF\r\n\x1a\n":
            raise CheckpointError(
                f"{path}: is an HDF5 file, expected a checkpoint: the checkpoint comes first, then the file with the "
                "clips"
            )
        raise CheckpointError(
            f"{path}: {size} bytes that do not end as a checkpoint of egoaudio does: it was truncated, or another "
            "program wrote it; use another copy"
        )
    version, expected = int(seal[1]), seal[2].decode()
    if version != VERSION:
        raise CheckpointError(
            f"{path}: a checkpoint of version {version}, and this egoaudio reads version {VERSION}: use the egoaudio "
            "that wrote it"
        )
    file.seek(0)
    found = _sha256(file, size - _SEAL_BYTES)
    if found != expected:
        raise CheckpointError(
            f"{path}: damaged: its SHA-256 is {found[:12]}..., expected {expected[:12]}...; use another copy"
        )


def _sha256(file: BinaryIO, num_bytes: int | None) -> str:
    """Return the hexadecimal SHA-256 of the next ``num_bytes`` of ``file``, or of the rest of it if None."""
    digest, left = hashlib.sha256(), num_bytes
    while block := file.read(1 << 20 if left is None else min(left, 1 << 20)):
        digest.update(block)
        left = None if left is None else left - len(block)
    return digest.hexdigest()


def digest(path: str | os.PathLike[str]) -> str:
    """Return the hexadecimal SHA-256 in a checkpoint's seal, which ``load`` compares with the contents."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _SEAL_BYTES))
        seal = _SEAL.fullmatch(file.read())
    if seal is None:
        raise CheckpointError(f"{path}: was changed while it was in use: run the same command again")
    return seal[2].decode()
