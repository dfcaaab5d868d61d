"""What a page says of recordings that were heard: a table of all, and time lines of as many as there is room for.

In: a file of scores. Out: a ``HeardSection``. ``fill`` listens to the recordings, and adds their spectrograms and as
much of their sound as a number of bytes allows: all of each where that is enough, else a stretch of each around what is
likeliest.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from egoaudio.errors import Status
from egoaudio.hdf5.scores_file import ScoresFile
from egoaudio.inputs import encode
from egoaudio.reporting import names
from egoaudio.reporting.pictures import paint_all
from egoaudio.reporting.recordings import Impression, RecordingSounds
from egoaudio.reporting.timelines import Timeline, TimelineMaker, describe_rules
from egoaudio.system.progress import Progress

_MOST_ROWS = 300  # of the table of recordings
_MOST_TIMELINES = 40
_LIKELIEST = 3  # classes that are named for a recording
_PICTURE_BYTES = 60_000  # of a recording's spectrogram in the page, at most
_FEWEST_SECONDS = 5.0  # of sound that are worth having
_LEAD_SECONDS = 2.0  # that are heard before what is likeliest


@dataclass(frozen=True)
class RecordingRow:
    """A recording in the table of all."""

    name: str
    duration_seconds: float
    num_segments: int
    classes: tuple[str, ...]
    """Those with the longest segments."""
    failure: str
    """Why it has no scores; else empty."""
    anchor: str
    """Of its time line; empty where it has none."""


@dataclass(eq=False)
class HeardSection:
    """All that is said of recordings that were heard."""

    folder: str
    checkpoint: str
    rows: tuple[RecordingRow, ...]
    num_recordings: int
    num_segments: int
    """Of all recordings that were looked at."""
    timelines: tuple[Timeline, ...]
    rules: dict[str, Any]
    sounds: RecordingSounds
    spectrograms: dict[int, str] = field(default_factory=dict)
    """``{row of /videos: PNG, base64}``, from ``fill``."""
    stretches: dict[int, tuple[float, float]] = field(default_factory=dict)
    """``{row of /videos: (start, stop)}`` of the sound, in seconds."""
    encoded: dict[int, str] = field(default_factory=dict)
    """``{row of /videos: Opus in WebM, base64}``."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What is not there, and why."""
        found = []
        num_shown, num_scored = len(self.timelines), sum(not row.failure for row in self.rows)
        if num_shown < num_scored:
            found.append(f"{num_shown:,} of {num_scored:,} recordings have a time line: there is no room for more.")
        if len(self.rows) < self.num_recordings:
            found.append(f"{len(self.rows):,} of {self.num_recordings:,} recordings are in the table.")
        mute = sum(timeline.video not in self.encoded for timeline in self.timelines)
        if mute and self.spectrograms:
            found.append(f"{mute:,} of {num_shown:,} recordings cannot be listened to here.")
        elif mute:
            found.append(
                "The recordings cannot be listened to: they are not where they were when they were scored. "
                "Give their folder as `videos`."
            )
        cut = sum(self._is_cut(timeline) for timeline in self.timelines)
        if cut:
            found.append(
                f"Of {cut:,} recordings a stretch can be listened to, so that the page is no larger than `max_mb` "
                "allows."
            )
        return tuple(found)

    def _is_cut(self, timeline: Timeline) -> bool:
        start, stop = self.stretches.get(timeline.video, (0.0, timeline.duration_seconds))
        return stop - start < timeline.duration_seconds - 0.1

    @property
    def num_bytes(self) -> int:
        """How much of the page pictures and sounds take."""
        return sum(len(text) for texts in (self.spectrograms, self.encoded) for text in texts.values())

    @property
    def data(self) -> dict[str, Any]:
        """For the page's script."""
        recordings = []
        for timeline in self.timelines:
            sound = {}
            if timeline.video in self.encoded:
                start, stop = self.stretches[timeline.video]
                sound = {"sound": f"recording-{timeline.video}", "sound_start": start, "sound_stop": stop}
            recordings.append({**timeline.data, **sound})
        return {**self.rules, "recordings": recordings}

    def fill(self, num_bytes: int) -> None:
        """Listen to the recordings, and keep of each as much as so many bytes of a page allow."""
        impressions: dict[int, Impression] = {}
        stretches = _share_out(self.timelines, num_bytes)
        with Progress(len(stretches), "listening", unit="recordings") as progress:
            for timeline, (start, stop) in stretches:
                found = self.sounds.listen(timeline.video, timeline.duration_seconds, start, stop)
                if found is not None:
                    impressions[timeline.video] = found
                    if found.sound:
                        self.encoded[timeline.video] = base64.b64encode(found.sound).decode("ascii")
                        self.stretches[timeline.video] = (start, found.stop_seconds)
                progress.advance(1, timeline.duration_seconds)
        pictures = paint_all(
            {video: found.spectrogram for video, found in impressions.items()}, self.sounds.sample_rate
        )
        self.spectrograms = {video: base64.b64encode(raw).decode("ascii") for video, raw in pictures.items()}
        for timeline in reversed(self.timelines):  # should they have turned out larger than expected
            if self.num_bytes <= num_bytes:
                break
            self.encoded.pop(timeline.video, None)
            self.stretches.pop(timeline.video, None)
            if self.num_bytes > num_bytes:
                self.spectrograms.pop(timeline.video, None)


def _share_out(timelines: Sequence[Timeline], num_bytes: int) -> list[tuple[Timeline, tuple[float, float]]]:
    """Return which stretch of each recording is kept: short recordings whole, of the others equally much.

    Returns
    -------
    list of tuple
        ``(timeline, (start, stop))``, in seconds.
    """
    per_second = 4 / 3 * (encode.expected_bytes(100.0) - encode.expected_bytes(0.0)) / 100
    fixed = _PICTURE_BYTES + 4 / 3 * encode.expected_bytes(0.0)
    number = int(min(len(timelines), num_bytes // (fixed + per_second * _FEWEST_SECONDS)))
    left, shares = num_bytes - number * fixed, {}
    for place, timeline in enumerate(sorted(timelines[:number], key=lambda each: each.duration_seconds)):
        seconds = min(timeline.duration_seconds, left / per_second / (number - place))
        shares[timeline.video] = seconds
        left -= seconds * per_second
    stretches = []
    for timeline in timelines[:number]:
        seconds, duration = shares[timeline.video], timeline.duration_seconds
        start = min(max(0.0, timeline.best_seconds - _LEAD_SECONDS), max(0.0, duration - seconds))
        stretches.append((timeline, (start, start + seconds)))
    return stretches


def describe(
    scores: ScoresFile, maker: TimelineMaker, sounds: RecordingSounds, folder: str, num_bytes: int
) -> HeardSection:
    """Return what a page says of the recordings of a file of scores.

    Parameters
    ----------
    scores : ScoresFile
    maker : TimelineMaker
    sounds : RecordingSounds
    folder : str
        What the predictions are called.
    num_bytes : int
        That the scores of the time lines may take in the page.
    """
    table = scores.video_table
    looked_at = range(min(scores.num_videos, _MOST_ROWS))
    every = {video: maker.make(video) for video in looked_at}
    there = [timeline for timeline in every.values() if timeline is not None]
    there.sort(key=lambda timeline: timeline.num_segments == 0)  # in their order, those with segments first
    shown: list[Timeline] = []
    for timeline in there[:_MOST_TIMELINES]:
        num_bytes -= len(timeline.data["scores"]) + sum(len(str(part)) for part in timeline.data["times"].values())
        if num_bytes < 0:
            break
        shown.append(timeline)
    with_one = {timeline.video for timeline in shown}
    rows = []
    for video, found in every.items():
        status = int(table["status"][video])
        failure = "" if status == Status.OK else names.clean(table["error"][video]) or Status.describe(status)
        rows.append(
            RecordingRow(
                names.clean(table["video_id"][video]),
                float(table["duration_seconds"][video]),
                0 if found is None else found.num_segments,
                () if found is None else _longest(found),
                failure,
                f"recording-{video}" if video in with_one else "",
            )
        )
    return HeardSection(
        names.clean(folder),
        names.clean(scores.checkpoint),
        tuple(rows),
        scores.num_videos,
        sum(timeline.num_segments for timeline in there),
        tuple(shown),
        describe_rules(scores),
        sounds,
    )


def _longest(timeline: Timeline) -> tuple[str, ...]:
    """Return the classes that are heard for longest."""
    seconds = {
        track.title: sum(segment.stop_seconds - segment.start_seconds for segment in track.segments)
        for track in timeline.tracks
        if track.segments
    }
    return tuple(sorted(seconds, key=lambda title: -seconds[title])[:_LIKELIEST])
