"""The sound of predicted recordings, as a page needs it: a spectrogram, and a stretch to listen to.

In: a file of scores, and where its recordings may be. Out: ``Impression``s, made block by block, so that a recording of
many hours takes no more memory than one of minutes. A recording is used only if it is the one that was scored, by its
fingerprint.
"""

import os
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from egoaudio.errors import MediaError, Status
from egoaudio.hdf5.reader import EgoAudioFile
from egoaudio.hdf5.scores_file import ScoresFile
from egoaudio.inputs.decoder import Decoder
from egoaudio.inputs.encode import OpusWriter
from egoaudio.inputs.find_media import find_files
from egoaudio.inputs.fingerprint import fingerprint
from egoaudio.reporting.excerpts import Excerpt, StoredSounds
from egoaudio.reporting.pictures import power

MOST_COLUMNS = 1000
"""Of the spectrogram of a recording."""
_COLUMNS_PER_SECOND = 20
_SHORTEST_COLUMN = 512  # samples
_STORED_SECONDS = 30.0  # that are read of a file's waveform at a time


@dataclass(frozen=True, eq=False)
class Impression:
    """What a page shows and plays of a recording."""

    spectrogram: np.ndarray
    """float32 (num_columns, num_bins): power, from the recording's start to its end."""
    sound: bytes
    """The stretch that can be listened to, Opus in WebM; empty where nothing of it was there."""
    stop_seconds: float
    """Where that stretch ends."""


class RecordingSounds:
    """Where the sound of scored recordings comes from.

    Parameters
    ----------
    scores : ScoresFile
    file : EgoAudioFile or None
        The one whose features were scored, for its waveform.
    videos : path or None
        A folder to look for the recordings in; else they are where they were when they were scored.

    Raises
    ------
    MediaError
        ``videos`` is no folder, or holds two files of one name.
    """

    def __init__(self, scores: ScoresFile, file: EgoAudioFile | None, videos: str | os.PathLike[str] | None) -> None:
        self.sample_rate = scores.sample_rate
        self._settings = scores.build.get("audio_track"), bool(scores.build.get("compensate_delay", False))
        self._fingerprints = scores.fingerprints
        table = scores.video_table
        ids = [os.path.basename(raw.decode("utf-8", errors="surrogateescape")) for raw in table["video_id"].tolist()]
        given = [raw.decode("utf-8", errors="surrogateescape") for raw in table["file"].tolist()]
        found = {} if videos is None else find_files(ids, videos)
        self._paths = [found.get(name) or (Path(path) if path else None) for name, path in zip(ids, given, strict=True)]
        self._stored, self._rows = None, {}
        if file is not None and "waveform" in file.features and file.sample_rate == self.sample_rate:
            self._stored = StoredSounds(file)
            self._rows = {raw: number for number, raw in enumerate(file.video_table["video_id"].tolist())}
            self._ids, self._table = table["video_id"].tolist(), file.video_table

    @property
    def files(self) -> list[Path]:
        """The recordings that may be read."""
        return [path for path in self._paths if path is not None]

    def listen(
        self, video: int, duration_seconds: float, start_seconds: float, stop_seconds: float
    ) -> Impression | None:
        """Return a recording's impression, with its stretch from ``start_seconds`` on; None without sound."""
        blocks = self._blocks(video)
        if blocks is None:
            return None
        try:
            return _listen(blocks, self.sample_rate, duration_seconds, start_seconds, stop_seconds)
        except MediaError as error:
            warnings.warn(f"no sound from {error}", stacklevel=2)
            return None

    def _blocks(self, video: int) -> Iterable[np.ndarray] | None:
        path, known = self._paths[video], self._fingerprints[video]
        if path is not None and path.is_file():
            if not known.any() or fingerprint(path) == known.tobytes():
                return Decoder(path, self.sample_rate, *self._settings)
            warnings.warn(f"{path} is another file than was scored: its sound is left out", stacklevel=3)
        row = self._rows.get(self._ids[video]) if self._stored is not None else None
        return None if row is None or self._table["status"][row] != Status.OK else self._stored_blocks(row)

    def _stored_blocks(self, row: int) -> Iterator[np.ndarray]:
        """Yield the sound of a file's video."""
        assert self._stored is not None
        duration = float(self._table["duration_seconds"][row])
        for start in np.arange(0, duration, _STORED_SECONDS):
            stop = min(float(start) + _STORED_SECONDS, duration)
            excerpt = Excerpt(-1, row, float(start), stop, float(start), stop)
            for _, samples in self._stored.read([excerpt]):
                yield samples


def _listen(
    blocks: Iterable[np.ndarray], sample_rate: int, duration_seconds: float, start_seconds: float, stop_seconds: float
) -> Impression:
    """Return the impression of a sound that comes in blocks."""
    num_columns = max(1, min(MOST_COLUMNS, round(duration_seconds * _COLUMNS_PER_SECOND)))
    width = max(_SHORTEST_COLUMN, round(duration_seconds * sample_rate / num_columns))
    first, last = round(start_seconds * sample_rate), round(stop_seconds * sample_rate)
    columns, waiting, place, writer, num_kept = [], np.zeros(0, np.float32), 0, OpusWriter(sample_rate), 0
    for block in blocks:
        kept = block[max(0, first - place) : max(0, last - place)]
        writer.write(kept)
        num_kept += len(kept)
        place += len(block)
        waiting = np.concatenate([waiting, block])
        whole = len(waiting) // width
        columns += [power(part, sample_rate).mean(axis=0) for part in waiting[: whole * width].reshape(whole, width)]
        waiting = waiting[whole * width :]
    if len(waiting) >= _SHORTEST_COLUMN or not columns:
        columns.append(power(waiting, sample_rate).mean(axis=0))
    sound = writer.finish() if num_kept else b""
    spectrogram = np.stack(columns[:MOST_COLUMNS]).astype(np.float32)
    return Impression(spectrogram, sound, start_seconds + num_kept / sample_rate)
