"""The named errors, and the named outcomes of a row.

Everything that goes wrong for a reason a user can fix raises an ``EgoAudioError``; the commands print its message and
exit with its ``exit_code``. Any other exception is a defect of the package and keeps its traceback. ``Status`` says
what became of a video or a clip in the file (see FORMAT.md): a failure never becomes data.

    EgoAudioError
    ├── ConfigurationError   an option                            is a ValueError, too
    ├── AnnotationError      a CSV, a class list                  is a ValueError, too
    ├── EvaluationError      scores, labels, thresholds           is a ValueError, too
    ├── MediaError           a media file, the folder of them     is an OSError, too
    ├── StoreError           an egoaudio file                     is an OSError, too
    ├── CheckpointError      a checkpoint                         is an OSError, too
    ├── BuildError           a build that had to stop
    ├── TrainingError        a training run or an evaluation that had to stop
    ├── PredictionError      a prediction that had to stop
    ├── ReportError          a page that cannot be made
    ├── ExportError          a model that cannot be exported
    └── ResourceError        what the machine lacks

Messages name a parameter as Python has it, in backticks, alone or with its value: `` `hop_seconds` ``,
`` `hop_seconds=0.5` ``, `` `denoise.mode='none'` ``. The commands print the flag in its place
(``config.options.as_flags``): ``--hop-seconds 0.5``, ``--denoise none``.

``except OSError`` also catches the three in the middle: catch ``EgoAudioError`` before it.
"""

from enum import IntEnum


class EgoAudioError(Exception):
    """Raise for what a user can fix; the message says what, where, the value, and the fix."""

    exit_code = 2
    told = False
    """Whether another process of the same run tells of it (``data.ranks``), so that this one need not."""


class ConfigurationError(EgoAudioError, ValueError):
    """An option, or a combination of options, that cannot be carried out."""


class AnnotationError(EgoAudioError, ValueError):
    """A CSV or class list that cannot be read as one; names the file and the row."""


class EvaluationError(EgoAudioError, ValueError):
    """Scores, labels or thresholds of a shape or with values that cannot be evaluated."""


class MediaError(EgoAudioError, OSError):
    """A media file, or the folder of them, that cannot be used."""


class StoreError(EgoAudioError, OSError):
    """An HDF5 file that is not an egoaudio file, is damaged, or cannot be written."""


class BuildError(EgoAudioError):
    """A build that had to stop: no space, a held lock, an existing output, changed inputs."""


class TrainingError(EgoAudioError):
    """A training or evaluation run that had to stop: NaN in the loss, no memory, changed data."""


class PredictionError(EgoAudioError):
    """A prediction that had to stop: an output that exists or cannot be written, no space."""


class ReportError(EgoAudioError):
    """A report that cannot be made: nothing to report on, or a page that cannot be written."""


class ExportError(EgoAudioError):
    """An export that had to stop: a graph that cannot be made or is not the model, an output that cannot be written."""


class CheckpointError(EgoAudioError, OSError):
    """A checkpoint that is truncated, was not written by egoaudio, or does not fit the data."""


class ResourceError(EgoAudioError):
    """The machine lacks what a run needs: open files, memory, shared memory, a working folder, a writable output."""


class Status(IntEnum):
    """What became of a video or a clip; the values of ``status`` in ``/videos`` and ``/clips``."""

    PLANNED = 0
    OK = 1
    NO_AUDIO = 2
    UNREADABLE = 3
    MISSING = 4
    CRASHED = 5
    NO_SOUND = 6  # clips only: the recording decoded shorter than its plan

    @staticmethod
    def describe(status: int) -> str:
        """Return a status in words, also one that this version does not know."""
        return _STATUS_WORDS.get(status, f"status {status}")


_STATUS_WORDS: dict[int, str] = {
    Status.PLANNED: "planned, not done yet",
    Status.OK: "with sound",
    Status.NO_AUDIO: "without an audio stream",
    Status.UNREADABLE: "unreadable",
    Status.MISSING: "without a file",
    Status.CRASHED: "crashed or timed out",
    Status.NO_SOUND: "beyond the end of the sound",
}


def first_line(error: BaseException) -> str:
    r"""Return what an error says in one line of at most 200 characters; its class if it says nothing.

    >>> first_line(MemoryError()), first_line(OSError("no space\nleft"))
    ('MemoryError', 'no space')
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
