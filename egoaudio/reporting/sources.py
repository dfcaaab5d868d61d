"""What each argument of a report is, found from what it is: a file, a run or its checkpoint, or predictions.

In: paths. Out: ``Sources``. Nothing is opened further than is needed to tell.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from egoaudio.errors import ReportError

_HDF5 = b"\x89HDF\r\n\x1a\n"
_CHECKPOINTS = ("best.pt", "last.pt")
SCORES = "scores.h5"  # as egoaudio-predict calls it
_BESIDE = ("config.json", "metrics.csv")  # what is read of a run besides its checkpoint
_LONGEST_CONFIG_BYTES = 1 << 20


@dataclass(frozen=True)
class Sources:
    """What a report is made of."""

    files: tuple[Path, ...]
    """An egoaudio file, or several as one; empty where the runs say which."""
    checkpoints: tuple[Path, ...]
    """Of runs, in the order in which they were given."""
    scores: Path | None = None
    """A file of scores, of recordings that were heard."""

    @property
    def every(self) -> tuple[Path, ...]:
        """All that is read, and may not be replaced."""
        beside = [path.parent / name for path in self.checkpoints for name in _BESIDE]
        return (*self.files, *self.checkpoints, *beside, *(() if self.scores is None else (self.scores,)))

    @property
    def names(self) -> tuple[str, ...]:
        """What the page is about."""
        heard = () if self.scores is None else (self.scores.resolve().parent.name,)
        more = f" and {len(self.files) - 1} more" if len(self.files) > 1 else ""
        return (*(path.name + more for path in self.files[:1]), *self.run_names, *heard)

    @property
    def run_names(self) -> tuple[str, ...]:
        """What the runs are called: their folders, with as much of the way to them as tells them apart."""
        folders = [path.resolve().parent for path in self.checkpoints]
        for length in range(1, max((len(folder.parts) for folder in folders), default=1) + 1):
            names = ["/".join(folder.parts[-length:]) for folder in folders]
            if len(set(names)) == len(names):
                return tuple(names)
        return tuple(f"{folder.name}/{path.name}" for folder, path in zip(folders, self.checkpoints, strict=True))

    @property
    def clips_of(self) -> tuple[Path, ...]:
        """The file or files whose clips are shown and scored: as given, else of the first run; empty without either.

        Raises
        ------
        ReportError
            None was given, and that of the run is not known or no longer there.
        """
        if self.files or not self.checkpoints:
            return self.files
        path = self.checkpoints[0].parent / "config.json"
        try:
            with open(path, "rb") as file:
                given = json.loads(file.read(_LONGEST_CONFIG_BYTES))["file"]
                named = tuple(map(Path, [given] if isinstance(given, str) else given))
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ReportError(
                f"{path} does not say which file {self.checkpoints[0]} was trained on: give the egoaudio file too"
            ) from error
        gone = [path for path in named if not path.is_file()]
        if gone or not named:
            raise ReportError(
                f"{gone[0] if gone else 'the file'}, which {self.checkpoints[0]} was trained on, is not there: "
                "give the egoaudio file too"
            )
        return named


def find_sources(paths: Sequence[str | os.PathLike[str]]) -> Sources:
    """Return what paths are.

    Raises
    ------
    ReportError
        There is none; one is not there, or none of these; two are files of scores.
    """
    if not paths:
        raise ReportError(
            "nothing to report on: give an egoaudio file, folders of runs or of predictions, or several of these"
        )
    files: list[Path] = []
    checkpoints: list[Path] = []
    scores: list[Path] = []
    for path in map(Path, paths):
        checkpoint = _checkpoint(path)
        if checkpoint is not None:
            checkpoints.append(checkpoint)
        elif path.is_dir() and (path / SCORES).is_file():
            scores.append(path / SCORES)
        elif _is_hdf5(path):
            (scores if path.name == SCORES else files).append(path)
        else:
            raise ReportError(_refusal(path))
    if len(scores) > 1:
        raise ReportError(f"{scores[0]} and {scores[1]} are two files of scores: a report is of one")
    twice = next((path for number, path in enumerate(checkpoints) if path in checkpoints[:number]), None)
    if twice is not None:
        raise ReportError(f"{twice} was given twice")
    return Sources(tuple(files), tuple(checkpoints), scores[0] if scores else None)


def _checkpoint(path: Path) -> Path | None:
    """Return the checkpoint of a run's folder, or the path itself where it is one; else None."""
    if path.is_dir():
        return next((path / name for name in _CHECKPOINTS if (path / name).is_file()), None)
    return path if path.suffix == ".pt" and path.is_file() else None


def _is_hdf5(path: Path) -> bool:
    """Return whether a path is an HDF5 file."""
    if not path.is_file():
        return False
    try:
        with open(path, "rb") as file:
            return file.read(len(_HDF5)) == _HDF5
    except OSError as error:
        raise ReportError(f"{path}: cannot be read: {error.strerror or error}") from error


def _refusal(path: Path) -> str:
    """Return why a path is none of what is expected."""
    expected = (
        "expected an egoaudio file (ego.h5), the folder of a run (with best.pt), a checkpoint, or a folder of "
        "predictions (with scores.h5)"
    )
    if not os.path.lexists(path):
        return f"{path} does not exist: {expected}"
    if path.is_dir():
        return f"{path} is a folder without best.pt, last.pt or scores.h5: {expected}"
    return f"{path} is neither HDF5 nor a checkpoint: {expected}"
