"""The named errors, and the named outcomes of a row.

Everything that goes wrong for a reason a user can mend raises an ``EgoAudioError``; the commands print its
message and exit with its ``exit_code``. Anything else that escapes is a defect of ours and keeps its traceback.
``Status`` says what became of a video or a clip in the file (see the format): a failure never becomes data.
"""

from enum import IntEnum


class EgoAudioError(Exception):
    """Raise for what a user can mend; the message says what, where, the value, and the fix."""

    exit_code = 2


class ConfigurationError(EgoAudioError):
    """An option, or a combination of options, that cannot be carried out."""


class AnnotationError(EgoAudioError):
    """A CSV or class list that cannot be read as one; names the file and the row."""


class MediaError(EgoAudioError):
    """A media file, or the folder of them, that cannot be used."""


class StoreError(EgoAudioError):
    """An HDF5 file that is not an egoaudio file, is damaged, or cannot be written."""


class BuildError(EgoAudioError):
    """A build that had to stop: no space, a held lock, an existing output, changed inputs."""


class TrainingError(EgoAudioError):
    """A training or evaluation run that had to stop: NaN in the loss, no memory, changed data."""


class CheckpointError(EgoAudioError):
    """A checkpoint that is truncated, foreign, or does not fit the data."""


class Status(IntEnum):
    """What became of a video or a clip; the values of ``status`` in ``/videos`` and ``/clips``."""

    PLANNED = 0
    OK = 1
    NO_AUDIO = 2
    UNREADABLE = 3
    MISSING = 4
    CRASHED = 5
    NO_SOUND = 6  # clips only: the recording decoded shorter than its plan
