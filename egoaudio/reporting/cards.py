"""What stands beside a clip on a page: whose it is, where in the recording, which classes are on, its picture.

In: a row of ``/clips`` and what the gallery shows. Out: a ``Card``, texts ready to be shown.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from egoaudio.hdf5.reader import EgoAudioFile
from egoaudio.reporting import names
from egoaudio.reporting.excerpts import Excerpt
from egoaudio.reporting.gallery import Shown


@dataclass(frozen=True)
class Card:
    """A clip that is seen, and heard where there is sound."""

    row: int
    video: str
    place: str
    labels: tuple[str, ...] | None
    """Names of the classes that are on; None where the annotations say nothing."""
    picture: str
    """A PNG, base64."""
    has_sound: bool
    offset: float
    """Seconds from the picture's start to the sound's."""
    length: float
    """Seconds of the picture."""


class Cards:
    """Makes the cards of one file."""

    def __init__(self, file: EgoAudioFile, shown: Mapping[int, Shown]) -> None:
        self._file, self._shown = file, shown
        self._videos = names.column(file.video_table, "video_id")
        self._classes = names.class_names(file.class_table)

    def __call__(self, row: int) -> Card | None:
        """Return a clip's card; None where the page had no room for it."""
        shown = self._shown.get(int(row))
        if shown is None:
            return None
        file = self._file
        clip, excerpt = file.clip_table[row], Excerpt.of_clip(file, row)
        labels = tuple(self._classes[k] for k in np.flatnonzero(file.labels[row] == 1)) if clip["labelled"] else None
        return Card(
            int(row),
            self._videos[excerpt.video],
            names.seconds_in_words(float(clip["start_seconds"])),
            labels,
            shown.picture,
            bool(shown.sound),
            round(excerpt.start_seconds - excerpt.picture_start_seconds, 6),
            round(excerpt.picture_stop_seconds - excerpt.picture_start_seconds, 6),
        )
