"""Which recordings have scores already: those of the unfinished prediction, and of the finished one that is there.

In: an output folder and what decides the scores. Out: a ``Store``, in which a recording is known by its key, as long as
its file is still the one that was heard. So the same command resumes, and a folder to which recordings were added costs
those alone.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from egoaudio.errors import PredictionError, Status
from egoaudio.hdf5.schema import CLIP_DTYPE, encode
from egoaudio.hdf5.scores_file import ScoresFile
from egoaudio.prediction.journal import Journal
from egoaudio.prediction.recording import COLUMNS, FAILED, Scored


class Store:
    """The scores that are there; made by ``opened``."""

    def __init__(self, journal: Journal, finished: ScoresFile | None) -> None:
        self._journal, self._finished = journal, finished
        self._videos: dict[bytes, int] = {}  # by the key as it is stored: a name that is not UTF-8 has "?" in it
        if finished is not None:
            column = "video_id" if finished.source else "file"
            for video, row in enumerate(finished.video_table):
                self._videos[row[column] or row["video_id"]] = video

    def add(self, scored: Scored) -> None:
        """Keep a recording."""
        self._journal.add(scored)

    def finish(self) -> None:
        """Forget what the finished file has now."""
        self._journal.remove()

    def read(self, key: str) -> Scored:
        """Return a recording that is known."""
        if key in self._journal:
            return self._journal.read(key)
        return read_scored(self._finished, self._videos[encode(key)], key)

    def missing(self, keys: Sequence[str], prints: Iterable[bytes], retry_failed: bool) -> list[int]:
        """Return the numbers of the recordings that have no scores yet, or are other ones than were scored.

        Parameters
        ----------
        keys : sequence of str
        prints : iterable of bytes
            The fingerprint of each recording as it is now.
        retry_failed : bool
            Whether recordings that failed count as not scored.
        """
        numbers = []
        for number, (key, found) in enumerate(zip(keys, prints, strict=True)):
            known, failed = self._state(key)
            if known != found or (failed and retry_failed):
                numbers.append(number)
        return numbers

    def _state(self, key: str) -> tuple[bytes | None, bool]:
        """Return the fingerprint of what was scored under a key, None where nothing was, and whether that failed."""
        if key in self._journal:
            return self._journal.state(key)
        video = self._videos.get(encode(key))
        if self._finished is None or video is None:
            return None, False
        return self._finished.fingerprints[video].tobytes(), self._finished.video_table["status"][video] in FAILED


@contextlib.contextmanager
def opened(folder: Path, scoring_sha256: str, force: bool) -> Iterator[Store]:
    """Open what a folder has of these scores.

    Raises
    ------
    PredictionError
        It has others, and ``force`` is not given.
    """
    scores, journal = folder / "scores.h5", folder / "scores.partial"
    if force:
        journal.unlink(missing_ok=True)
    with contextlib.ExitStack() as stack:
        finished = None
        if scores.exists() and not force:
            finished = stack.enter_context(ScoresFile(scores))
            if finished.scoring_sha256 != scoring_sha256:
                raise PredictionError(
                    f"{scores} holds the scores of another model ({finished.checkpoint}), or with other options: "
                    "give another `output`, or `force=True` to replace it"
                )
        yield Store(stack.enter_context(Journal(journal, scoring_sha256)), finished)


def read_scored(file: ScoresFile | None, video: int, key: str) -> Scored:
    """Return a recording of a file of scores."""
    assert file is not None
    rows, row = file.rows_of(video), file.video_table[video]
    columns = {
        name: row[name].decode(errors="replace") if isinstance(row[name], bytes) else row[name].item()
        for name in COLUMNS
    }
    columns["status"] = int(Status(columns["status"]))
    clips = np.array(file.clip_table[rows], CLIP_DTYPE)
    clips["video"] = 0
    return Scored(key, columns, file.fingerprints[video].tobytes(), clips, np.array(file.scores[rows]))
