"""Find the media file of each video id in a folder: names are compared, nothing is opened.

In: ids from annotations, which may be hostile, and a folder. Out: ``{video id: path}`` for those that are there. Ids are only
compared with the names of files that exist, so none reaches outside the folder, whatever it holds. The folder is walked
once; symbolic links may not lead out of it unless that is allowed, and loops of them end.
"""

import itertools
import os
import pathlib
import unicodedata
import warnings

from egoaudio.errors import MediaError

MEDIA_EXTENSIONS = (
    ".mp4", ".m4v", ".mov", ".mkv", ".mka", ".m4b", ".weba", ".webm", ".avi", ".mpg", ".mpeg", ".vob", ".ts", ".mts",
    ".m2ts", ".3gp", ".3g2", ".flv", ".wmv", ".asf", ".ogv", ".mxf", ".m4a", ".aac", ".mp3", ".mp2", ".wav", ".w64",
    ".flac", ".ogg", ".oga", ".opus", ".wma", ".ac3", ".aif", ".aiff", ".caf", ".au", ".amr", ".wv", ".tta", ".dts",
    ".eac3", ".spx", ".aifc",
)  # fmt: skip


def find_files(video_ids, root, follow_links=False):
    """Find each video's file: its id with a media extension, or the id itself where it has one, anywhere under ``root``.

    Accented letters are the same however they are encoded: macOS takes names apart (NFD), spreadsheets keep them together (NFC).

    Parameters
    ----------
    video_ids : iterable of str
    root : str or os.PathLike
    follow_links : bool
        Whether symbolic links may lead out of ``root``.

    Returns
    -------
    dict of str to pathlib.Path
        In the order of ``video_ids``; those without a file are left out. What has a video's name but is no regular file is
        given too, where there is nothing better: ``probe`` says what it is.

    Raises
    ------
    MediaError
        ``root`` is no folder, a video has two files, or a link that is needed leaves ``root``.
    """
    video_ids = dict.fromkeys(video_ids)
    spellings = {}  # {composed id: the ids as given}
    for video_id in video_ids:
        spellings.setdefault(_composed(video_id), []).append(video_id)
    if not os.path.isdir(root):
        raise MediaError(f"--videos {root}: there is no such folder")
    inside, refused = os.path.realpath(root), []
    files, others = {}, {}  # {video id: {real path: path}}, of regular files and of what only has such a name
    for entry in _walk(root, inside, follow_links, refused):
        for video_id in itertools.chain.from_iterable(
            spellings.get(_composed(name), ()) for name in _names(entry.name)
        ):
            if not os.path.exists(entry.path):
                continue
            real = os.path.realpath(entry.path)
            if not follow_links and not _is_inside(real, inside):
                raise MediaError(
                    f"video {video_id!r}: {entry.path} is a symbolic link out of --videos, to {real}; allow it with --follow-links, or remove it"
                )
            (files if os.path.isfile(real) else others).setdefault(video_id, {}).setdefault(real, entry.path)
    for video_id, paths in files.items():
        if len(paths) > 1:
            first, second = sorted(paths.values())[:2]
            raise MediaError(f"video {video_id!r} has two files, {first} and {second}: remove or rename one")
    found = {**others, **files}
    missing = [video_id for video_id in video_ids if video_id not in found]
    if refused and missing:
        raise MediaError(
            f"{refused[0]}: a symbolic link to a folder outside --videos, and {len(missing)} videos are missing, {missing[0]!r} for one; "
            "allow such links with --follow-links, or remove it"
        )
    return {video_id: pathlib.Path(min(found[video_id].values())) for video_id in video_ids if video_id in found}


def _composed(name):
    """Return a name with its accented letters in one piece each."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def _names(name):
    """Return the video ids that a file of this name can belong to."""
    stem, extension = os.path.splitext(name)
    if extension.lower() not in MEDIA_EXTENSIONS:
        return ()
    return (name,) if os.path.splitext(stem)[1].lower() in MEDIA_EXTENSIONS else (name, stem)


def _walk(root, inside, follow_links, refused):
    """Yield every entry under ``root``; links to folders that leave it are not entered but put into ``refused``."""
    folders, seen = [os.fspath(root)], {inside}
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(folder) as entries:
                entries = list(entries)
        except OSError as error:
            warnings.warn(f"{folder}: not searched for videos: {error.strerror}", stacklevel=4)
            continue
        for entry in entries:
            yield entry
            if not (os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()):
                continue
            real = os.path.realpath(entry.path)
            if not follow_links and not _is_inside(real, inside):
                refused.append(entry.path)
            elif real not in seen and (follow_links or not entry.is_symlink()):
                seen.add(real)
                folders.append(entry.path)


def _is_inside(real, inside):
    return os.path.commonpath([real, inside]) == inside
