"""Find the media file of each video id in a folder: names are compared, nothing is opened.

In: ids from annotations, which may be hostile, and a folder. Out: ``{video id: path}`` for those that are found. Ids
are only compared with the names of files that exist, so none leads out of the folder. The folder is walked once, and
nothing but a symbolic link is asked for more than its entry says; links may not lead out of the folder unless that is
allowed, and loops of them end.
"""

import errno
import itertools
import os
import pathlib
import unicodedata
import warnings
from collections.abc import Iterable, Iterator

from egoaudio.errors import MediaError
from egoaudio.system.files import StrPath

MEDIA_EXTENSIONS = (
    ".mp4", ".m4v", ".mov", ".mkv", ".mka", ".m4b", ".weba", ".webm", ".avi", ".mpg", ".mpeg", ".vob", ".ts", ".mts",
    ".m2ts", ".3gp", ".3g2", ".flv", ".wmv", ".asf", ".ogv", ".mxf", ".m4a", ".aac", ".mp3", ".mp2", ".wav", ".w64",
    ".flac", ".ogg", ".oga", ".opus", ".wma", ".ac3", ".aif", ".aiff", ".caf", ".au", ".amr", ".wv", ".tta", ".dts",
    ".eac3", ".spx", ".aifc",
)  # fmt: skip


def find_files(video_ids: Iterable[str], root: StrPath, follow_links: bool = False) -> dict[str, pathlib.Path]:
    """Find each video's file, anywhere under ``root``: its id with a media extension, or the id itself if it has one.

    Accented letters match however they are encoded: macOS decomposes names (NFD), spreadsheets compose them (NFC).

    Parameters
    ----------
    video_ids : iterable of str
    root : str or os.PathLike
    follow_links : bool
        Whether symbolic links may lead out of ``root``.

    Returns
    -------
    dict of str to pathlib.Path
        In the order of ``video_ids``; those without a file are left out. An entry with a video's name that is not a
        regular file is returned if there is no other: ``probe`` says what it is.

    Raises
    ------
    MediaError
        ``root`` is not a folder, a video has two files, or a link that is needed leads out of ``root``.
    """
    wanted = dict.fromkeys(video_ids)
    spellings: dict[str, list[str]] = {}  # {composed id: the ids as given}
    for video_id in wanted:
        spellings.setdefault(_composed(video_id), []).append(video_id)
    if not os.path.isdir(root):
        raise MediaError(f"`videos={os.fspath(root)!r}`: there is no such folder")
    inside = os.path.realpath(root)
    refused: list[str] = []
    files: dict[str, dict[str, str]] = {}  # {video id: {real path: path}}
    others: dict[str, dict[str, str]] = {}  # likewise, of what has such a name but is not a regular file
    for entry, folder in _walk(root, inside, follow_links, refused):
        for video_id in itertools.chain.from_iterable(
            spellings.get(_composed(name), ()) for name in _names(entry.name)
        ):
            if not entry.is_symlink():
                place = files if entry.is_file() else others
                place.setdefault(video_id, {}).setdefault(os.path.join(folder, entry.name), entry.path)
                continue
            if not os.path.exists(entry.path):
                continue
            real = os.path.realpath(entry.path)
            if not follow_links and not _is_inside(real, inside):
                raise MediaError(
                    f"video {video_id!r}: {entry.path} is a symbolic link out of `videos`, to {real}; allow it with "
                    "`follow_links=True`, or remove it"
                )
            (files if os.path.isfile(real) else others).setdefault(video_id, {}).setdefault(real, entry.path)
    for video_id, paths in files.items():
        if len(paths) > 1:
            first, second = sorted(paths.values())[:2]
            raise MediaError(f"video {video_id!r} has two files, {first} and {second}: remove or rename one")
    found = {**others, **files}
    missing = [video_id for video_id in wanted if video_id not in found]
    if refused and missing:
        raise MediaError(
            f"{refused[0]}: a symbolic link to a folder outside `videos`, and {len(missing)} videos are missing, such "
            f"as {missing[0]!r}; allow such links with `follow_links=True`, or remove it"
        )
    return {video_id: pathlib.Path(min(found[video_id].values())) for video_id in wanted if video_id in found}


def _composed(name: str) -> str:
    """Return a name with each accented letter as one character."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def _names(name: str) -> tuple[str, ...]:
    """Return the video ids that a file of this name can belong to."""
    stem, extension = os.path.splitext(name)
    if extension.lower() not in MEDIA_EXTENSIONS:
        return ()
    return (name,) if os.path.splitext(stem)[1].lower() in MEDIA_EXTENSIONS else (name, stem)


def _walk(
    root: StrPath, inside: str, follow_links: bool, refused: list[str]
) -> "Iterator[tuple[os.DirEntry[str], str]]":
    """Yield every entry under ``root``, with the real path of its folder.

    Links to folders outside ``root`` are not followed but added to ``refused``.
    """
    folders, seen = [(os.fspath(root), inside)], {inside}
    while folders:
        folder, real_folder = folders.pop()
        try:
            with os.scandir(folder) as scanned:
                entries = list(scanned)
        except (PermissionError, FileNotFoundError, NotADirectoryError) as error:
            warnings.warn(f"{folder}: not searched for videos: {error.strerror}", stacklevel=4)
            continue
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise  # no fault of the folder
            raise MediaError(
                f"{folder}: cannot be searched for videos: {error.strerror}; is the disk or the network working?"
            ) from error
        for entry in entries:
            yield entry, real_folder
            if not (os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()):
                continue
            real = os.path.realpath(entry.path)
            if not follow_links and not _is_inside(real, inside):
                refused.append(entry.path)
            elif real not in seen and (follow_links or not entry.is_symlink()):
                seen.add(real)
                folders.append((entry.path, real))


def _is_inside(real: str, inside: str) -> bool:
    return os.path.commonpath([real, inside]) == inside


def list_media(root: str | os.PathLike[str], follow_links: bool = False) -> tuple[list[str], list[str]]:
    """List every file with a media extension anywhere under ``root``.

    Parameters
    ----------
    root : str or os.PathLike
    follow_links : bool
        Whether symbolic links may lead out of ``root``.

    Returns
    -------
    paths : list of str
        Relative to ``root``, sorted. A recording that is linked to inside ``root`` comes under each of its names.
    refused : list of str
        Links, relative to ``root``, that lead out of it and were not followed: to files, and to folders.

    Raises
    ------
    MediaError
        ``root`` is no folder, or a part of it cannot be read.
    """
    if not os.path.isdir(root):
        raise MediaError(f"{root}: there is no such folder")
    inside = os.path.realpath(root)
    folders: list[str] = []
    paths: list[str] = []
    links: list[str] = []
    for entry, _ in _walk(root, inside, follow_links, folders):
        if os.path.splitext(entry.name)[1].lower() not in MEDIA_EXTENSIONS:
            continue
        if os.path.isdir(entry.path):  # which a link that leads to itself is not; ``entry.is_dir`` raises
            continue
        leaves = not follow_links and entry.is_symlink() and not _is_inside(os.path.realpath(entry.path), inside)
        (links if leaves else paths).append(os.path.relpath(entry.path, root))
    return sorted(paths), sorted([*links, *(os.path.relpath(path, root) for path in folders)])
