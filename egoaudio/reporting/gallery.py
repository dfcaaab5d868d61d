"""Which clips of a page are heard and seen: as many as its size allows, the most important first.

Sections ask for clips, each with a rank; when all have asked, ``fill`` makes pictures and sounds in the order of the
ranks until the bytes are used up. A clip that several sections show is encoded once. What was left out is counted.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from egoaudio.hdf5.reader import EgoAudioFile
from egoaudio.inputs import encode
from egoaudio.reporting.excerpts import Excerpt, Sounds
from egoaudio.reporting.pictures import Painter
from egoaudio.system.progress import Progress

_CARD_BYTES = 1000  # of a clip's own text in the page


@dataclass(frozen=True)
class Shown:
    """A clip as a page has it; base64 text."""

    picture: str
    """A PNG."""
    sound: str
    """Opus in WebM; empty where there is no sound to be had."""


@dataclass
class Gallery:
    """The clips of one file that a page shows."""

    file: EgoAudioFile | None
    """None for a page without clips."""
    painter: Painter | None
    sounds: Sounds | None
    shown: dict[int, Shown] = field(default_factory=dict)
    """``{row: Shown}`` of what ``fill`` had room for."""
    _ranks: dict[int, tuple[int, int]] = field(default_factory=dict)
    _uses: dict[int, int] = field(default_factory=dict)

    @classmethod
    def of_file(cls, file: EgoAudioFile | None, sounds: Sounds | None) -> "Gallery":
        """Return the gallery of an open file."""
        return cls(file, None if file is None else Painter.of_file(file), sounds)

    def ask(self, rows: Sequence[int], rank: int = 0) -> None:
        """Ask for clips, the most important first; ``rank`` is that of the first of them."""
        for place, row in enumerate(rows):
            row = int(row)
            self._ranks[row] = min(
                self._ranks.get(row, (rank + place, len(self._ranks))), (rank + place, len(self._ranks))
            )
            self._uses[row] = self._uses.get(row, 0) + 1

    @property
    def num_asked(self) -> int:
        """How many clips were asked for."""
        return len(self._ranks)

    @property
    def note(self) -> str:
        """What is to be said of pictures and sound that are not there; empty where all are."""
        left = self.num_asked - len(self.shown)
        words = []
        if self.num_asked and self.painter is None:
            words.append("The file has no array to draw, so there are no pictures.")
        elif left:
            words.append(
                f"{left:,} of {self.num_asked:,} clips were left out, so that the page is no larger than `max_mb` "
                "allows."
            )
        mute = sum(not shown.sound for shown in self.shown.values())
        if mute and self.sounds is None:
            words.append(
                "There is no sound: the file holds no waveform. Give the folder of the videos as `videos`, or build "
                "with `features=('waveform',)` too."
            )
        elif mute:
            words.append(
                f"{mute:,} clips are without sound: their videos are not there, or others than were built from."
            )
        return " ".join(words)

    def fill(self, num_bytes: int) -> None:
        """Make pictures and sounds for what was asked, as far as so many bytes of a page go."""
        self.shown = {}
        waiting = sorted(self._ranks, key=self._ranks.__getitem__)
        if self.file is None or self.painter is None:
            return
        while waiting:
            added = self._add(waiting, num_bytes - sum(map(self._bytes, self.shown)))
            if not added:
                break
            waiting = waiting[added:]
        for row in reversed(list(self.shown)):  # should sounds have turned out larger than expected
            if sum(map(self._bytes, self.shown)) <= num_bytes:
                break
            del self.shown[row]

    def _add(self, waiting: list[int], num_bytes: int) -> int:
        """Show the first of some clips, as many as are expected to fit; return how many these were."""
        assert self.file is not None and self.painter is not None
        excerpts, pictures = [], []
        for row in waiting:
            excerpt = Excerpt.of_clip(self.file, row)
            picture = _base64(self.painter.paint(self.file.values(self.painter.feature, row)))
            num_bytes -= self._uses[row] * (len(picture) + _CARD_BYTES)
            if self.sounds is not None:
                num_bytes -= 4 * encode.expected_bytes(excerpt.stop_seconds - excerpt.start_seconds) // 3
            if num_bytes < 0:
                break
            excerpts.append(excerpt)
            pictures.append(picture)
        encoded = self._encode(excerpts)
        for excerpt, picture in zip(excerpts, pictures, strict=True):
            self.shown[excerpt.row] = Shown(picture, encoded.get(excerpt.row, ""))
        return len(excerpts)

    def _encode(self, excerpts: list[Excerpt]) -> Mapping[int, str]:
        """Return the sounds, ``{row: base64}``."""
        if self.sounds is None or not excerpts:
            return {}
        encoded = {}
        with Progress(len(excerpts), "sound", unit="clips") as progress:
            for excerpt, samples in self.sounds.read(excerpts):
                if len(samples):
                    encoded[excerpt.row] = _base64(encode.encode_opus(samples, self.sounds.sample_rate))
                progress.advance(1, excerpt.stop_seconds - excerpt.start_seconds)
        return encoded

    def _bytes(self, row: int) -> int:
        """Return about how much of the page a clip takes."""
        shown = self.shown[row]
        return self._uses[row] * (len(shown.picture) + _CARD_BYTES) + len(shown.sound)


def _base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii")
