"""What is to be heard: files and folders as a user names them, or the videos of annotation CSVs -> recordings.

In: paths. Out: ``Recordings``: each file once, in an order that the disk does not decide, with a name that is its own
and cannot lead out of a folder. Nothing is opened: whatever is wrong with a file is found out, and told, when it is
heard.
"""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from egoaudio.errors import MediaError
from egoaudio.inputs.annotations import read_annotations
from egoaudio.inputs.find_media import find_files, list_media

StrPath = str | os.PathLike[str]
_HDF5 = b"\x89HDF\r\n\x1a\n"
_LONGEST_PART = 150  # bytes of a part of a name; endings and temporary names need room, and 255 are the most
_KIND = "video or sound"


@dataclass
class Recordings:
    """Recordings to hear, by number."""

    names: list[str] = field(default_factory=list)
    """Each its own: a relative path with ``/``, from which names of output files are made."""
    files: list[str] = field(default_factory=list)
    """As the user can open them; empty where there is no file."""
    refused: dict[int, str] = field(default_factory=dict)
    """``{number: why it is not heard}``."""
    _taken: set[str] = field(default_factory=set, repr=False)

    def __len__(self) -> int:
        return len(self.names)

    def key(self, number: int) -> str:
        """Return by what a recording is known again: its file, or its name where there is none."""
        return self.files[number] or self.names[number]

    def add(self, name: str, file: str, refused: str = "", place: int = 1) -> None:
        """Add a recording; a name that is taken gets the number of the place that it was found in before it."""
        name = wanted = safe_name(name)
        while name in self._taken:
            name, place = f"{place}/{wanted}", place + 1
        self._taken.add(name)
        if refused:
            self.refused[len(self.names)] = refused
        self.names.append(name)
        self.files.append(file)

    def sizes(self) -> Iterator[int]:
        """Yield the size of each file in bytes; 0 where there is none."""
        for file in self.files:
            try:
                yield os.stat(file).st_size if file else 0
            except OSError:
                yield 0


# Control characters, and halves of surrogate pairs but for those that stand for bytes of a name that is not UTF-8.
_NO_NAME = r"[\x00-\x1f\x7f\ud800-\udc7f\udd00-\udfff]"


def safe_name(text: str) -> str:
    """Return a relative path without anything that leads elsewhere, cannot be a file's name, or is too long for one."""
    parts = [re.sub(_NO_NAME, "_", part) for part in text.split("/") if part not in ("", ".")]
    parts = ["_" if part == ".." else part for part in parts]
    return "/".join(_shortened(part) for part in parts) or "_"


def _shortened(part: str) -> str:
    """Return a part of a path with at most ``_LONGEST_PART`` bytes; what is cut is its middle."""
    raw = os.fsencode(part)
    if len(raw) <= _LONGEST_PART:
        return part
    half = _LONGEST_PART // 2 - 1
    return os.fsdecode(raw[:half]) + "~" + os.fsdecode(raw[-half:])


def is_hdf5(path: StrPath) -> bool:
    """Return whether a file is HDF5, as an egoaudio file is."""
    if not os.path.isfile(path):  # a FIFO would be waited for
        return False
    try:
        with open(path, "rb") as file:
            return file.read(len(_HDF5)) == _HDF5
    except OSError:
        return False


def find_recordings(media: Sequence[StrPath], follow_links: bool = False) -> Recordings:
    """Return the recordings that files and folders hold.

    Parameters
    ----------
    media : sequence of path
        Files, whatever their extension, and folders, which are searched at any depth for files with a media extension.
    follow_links : bool
        Whether symbolic links may lead out of a folder.

    Raises
    ------
    MediaError
        A path leads nowhere, a folder holds no media, or nothing was given.
    """
    if not media:
        raise MediaError(f"no recordings were given: name {_KIND} files, or folders that hold some")
    found, seen = Recordings(), set()
    for place, given in enumerate(media, 1):
        root = os.fspath(given)
        if not os.path.isdir(root):
            if not os.path.exists(root):
                raise MediaError(f"{root}: there is no such file or folder")
            found_here = [(os.path.basename(root), root, "")]
        else:
            found_here = list(_in_folder(root, follow_links))
        for name, file, refused in found_here:
            identity = _identity(file)
            if identity not in seen:
                seen.add(identity)
                found.add(name, file, refused, place)
    return found


def _in_folder(root: str, follow_links: bool) -> Iterator[tuple[str, str, str]]:
    paths, refused = list_media(root, follow_links)
    if not paths and not refused:
        raise MediaError(
            f"{root}: holds no media, at any depth: expected {_KIND} files with extensions such as .mp4, .mkv, .wav, "
            ".mp3; a file with another one can be named itself"
        )
    for path in paths:
        yield path, os.path.join(root, path), ""
    for path in refused:
        reason = f"a symbolic link that leads out of {root}: allow it with `follow_links=True`, or remove it"
        yield path, os.path.join(root, path), reason


def _identity(file: str) -> object:
    """Return what two paths of one file share; links are told apart, for their names are."""
    try:
        info = os.stat(os.path.dirname(file) or ".")
    except OSError:
        return file
    return info.st_dev, info.st_ino, os.path.basename(file)


def find_annotated(
    annotations: Iterable[StrPath], videos: StrPath, classes: StrPath | None = None, follow_links: bool = False
) -> Recordings:
    """Return the recordings that annotation CSVs name, in their order; one without a file is refused.

    Parameters
    ----------
    annotations : iterable of path
        CSV files, as of a build.
    videos : path
        Folder that holds the media files, at any depth.
    classes : path, optional
        Class list, for CSVs with other classes than Charades'.
    follow_links : bool
        Whether symbolic links may lead out of ``videos``.

    Raises
    ------
    AnnotationError, MediaError
        As ``annotations.read_annotations`` and ``find_media.find_files``; or none of the videos has a file.
    """
    ids = [video.video_id for video in read_annotations(annotations, (), classes).videos]
    files = find_files(ids, videos, follow_links=follow_links)
    if not files:
        raise MediaError(
            f"`videos={os.fspath(videos)!r}`: none of the {len(ids):,} annotated videos is there; looked for "
            f"{ids[0]}.mp4 and the like at any depth"
        )
    found = Recordings()
    for video_id in ids:
        path = files.get(video_id)
        found.add(video_id, str(path or ""), "" if path else f"no media file of this name under {Path(videos)}")
    return found
