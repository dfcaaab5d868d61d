"""The scores that a model card shows: those of an evaluation, or, without one, of the run's own validation.

In: a checkpoint's contents and ``evaluation.json``. Out: a ``CardScores``. An evaluation of another checkpoint is
refused where it was asked for, and not used, with a note, where it only lies beside the checkpoint.
"""

import errno
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from egoaudio.config.train import SPLITS
from egoaudio.errors import ExportError
from egoaudio.evaluation.results import TITLES

StrPath = str | os.PathLike[str]
NAME = "evaluation.json"
RUN_NAME = "config.json"
_LONGEST_BYTES = 1 << 24  # of either file
_DIGEST = "checkpoint_sha256"  # tells a checkpoint from all others; evaluations of earlier versions lack it


@dataclass(frozen=True)
class CardScore:
    """One line of the table; fractions, None where a number is not defined or not known."""

    name: str
    """Of ``evaluation.results.TITLES``."""
    value: float
    low: float | None = None
    high: float | None = None
    prior: float | None = None

    @property
    def title(self) -> str:
        """The name as the table has it."""
        return TITLES[self.name]


@dataclass(frozen=True)
class CardScores:
    """The table, and what it is of."""

    rows: tuple[CardScore, ...]
    split: str
    """``test``, ``validation``, ``train``; empty where there are no scores."""
    about: str
    """What was scored, in words."""
    unused: str = ""
    """Why the evaluation beside the checkpoint is not used; empty where it is, or where there is none."""

    @property
    def is_test(self) -> bool:
        """Whether they are of recordings that took no part in training."""
        return self.split == "test"

    @property
    def notes(self) -> list[str]:
        """What is missing, in sentences."""
        notes = [self.unused] if self.unused else []
        if not self.is_test:
            notes.append("the card has no scores of a test: run egoaudio-evaluate first, and this command again")
        return notes


def read_scores(
    checkpoint: StrPath, contents: Mapping[str, Any], checkpoint_sha256: str, evaluation: StrPath | None = None
) -> CardScores:
    """Return the scores of a checkpoint.

    Parameters
    ----------
    checkpoint : path
    contents : mapping
        Of the checkpoint.
    checkpoint_sha256 : str
        As ``models.seal.digest`` returns it.
    evaluation : path, optional
        An ``evaluation.json``; if not given, the one beside the checkpoint, if it is of this checkpoint.

    Raises
    ------
    ExportError
        If ``evaluation`` is no such file, or of another checkpoint.
    """
    path = Path(os.fspath(checkpoint)).parent / NAME if evaluation is None else Path(evaluation)
    if evaluation is None and not os.path.lexists(path):
        return _of_validation(contents)
    try:
        return _of_evaluation(path, contents, checkpoint_sha256)
    except ExportError as error:
        if evaluation is not None:
            raise
        return replace(_of_validation(contents), unused=f"not used: {error}")


def _of_evaluation(path: Path, contents: Mapping[str, Any], checkpoint_sha256: str) -> CardScores:
    """Return the scores in an ``evaluation.json``."""
    try:
        found = _read_json(path)
    except OSError as error:
        raise ExportError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ExportError(f"{path}: is not the {NAME} of an evaluation: {error}") from error
    try:
        epoch, digest = found["epoch"], found.get(_DIGEST)
        rows = [_row(name, score) for name, score in found["scores"].items() if name in TITLES]
        smoothed, num_clips, num_videos = (_whole(found, key) for key in ("smooth_clips", "num_clips", "num_videos"))
        about, split = f"{num_clips:,} clips of {num_videos:,} recordings", found["split"]
        if split not in SPLITS:
            raise ValueError(f"split {split!r}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ExportError(f"{path}: is not the {NAME} of an evaluation: {error!r}") from error
    if digest is None:
        raise ExportError(
            f"{path}: an earlier version wrote it, and it does not say of which checkpoint it is: evaluate again"
        )
    if digest != checkpoint_sha256:
        raise ExportError(
            f"{path}: is the evaluation of another checkpoint ({_DIGEST} {str(digest)[:12]}... of epoch {epoch} there, "
            f"{checkpoint_sha256[:12]}... of epoch {contents['epoch']} here): evaluate this one"
        )
    if smoothed:
        about += f", each score averaged with those of {smoothed} neighbouring clips before and after it"
    return CardScores(tuple(row for row in rows if row is not None), split, about)


def _read_json(path: Path) -> Any:
    """Return what a JSON file holds."""
    if path.exists() and not path.is_file():  # a FIFO would be waited for
        raise OSError(errno.EINVAL, "it is no regular file")
    with open(path, "rb") as file:
        return json.loads(file.read(_LONGEST_BYTES))


def _whole(found: Mapping[str, Any], name: str) -> int:
    """Return a number of things; what stands there becomes part of the card."""
    value = found[name]
    if type(value) is not int or value < 0:
        raise ValueError(f"{name} {value!r}")
    return value


def _row(name: str, score: Mapping[str, Any]) -> CardScore | None:
    """Return a line of the table; None where the score is not defined."""
    value, low, high, prior = (score[part] for part in ("value", "low", "high", "prior"))
    if value is None:
        return None
    numbers = [None if number is None else float(number) for number in (value, low, high, prior)]
    if not all(number is None or 0 <= number <= 1 for number in numbers):
        raise ValueError(f"{name} {numbers}")
    return CardScore(name, float(value), *numbers[1:])


def _of_validation(contents: Mapping[str, Any]) -> CardScores:
    """Return the scores of the epoch on the run's validation split."""
    row = contents["metrics"]
    rows = [
        CardScore(name, float(row[name]), prior=row.get("map_prior") if name == "map" else None)
        for name in ("top1", "top5", "map")
        if row.get(name) is not None and math.isfinite(row[name])
    ]
    if not rows:
        return CardScores((), "", "")
    return CardScores(tuple(rows), "validation", "clips by which this epoch was chosen of all, so too high")


def trained_on(checkpoint: StrPath, contents: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names, without folders, of the files that a checkpoint was trained on, as its run's folder says them.

    Empty where the checkpoint is elsewhere.
    """
    try:
        found = _read_json(Path(os.fspath(checkpoint)).parent / RUN_NAME)
        paths = [found["file"]] if isinstance(found["file"], str) else list(found["file"])
        same = found["plan_sha256"] == contents["plan_sha256"]
        return tuple(os.path.basename(path) for path in paths) if same else ()
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ()  # of no run, or of a folder that holds something else
