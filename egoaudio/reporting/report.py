"""A report: one HTML page about an egoaudio file, the runs that were trained on it, and what they heard.

In: paths of what it is about. Out: a page, written whole or not at all, and a ``Report`` that says what it holds.
"""

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from egoaudio.config.options import as_flags
from egoaudio.config.report import ReportConfig
from egoaudio.errors import ConfigurationError, ReportError
from egoaudio.hdf5 import reader
from egoaudio.hdf5.reader import EgoAudioFile
from egoaudio.hdf5.scores_file import ScoresFile
from egoaudio.reporting import file_section, names
from egoaudio.reporting.cards import Cards
from egoaudio.reporting.excerpts import open_sounds
from egoaudio.reporting.gallery import Gallery
from egoaudio.reporting.page import Contents, render
from egoaudio.reporting.recordings import RecordingSounds
from egoaudio.reporting.sources import Sources, find_sources
from egoaudio.system import files
from egoaudio.system.terminal import describe_bytes

StrPath = str | os.PathLike[str]
_FLAGS = {"max_mb": "--max-mb", "videos": "--videos", "features": "--features"}  # whoever reads a page types these
_SCORES_SHARE = 0.3  # of a page that the scores of time lines may take
_SPARE_BYTES = 20_000  # for what a page says of sounds once they are there


@dataclass(frozen=True)
class Report:
    """A page that was written; ``str()`` is what the command prints."""

    path: str
    num_bytes: int
    num_clips: int
    """Clips that are seen on it, and heard where there is sound."""
    notes: tuple[str, ...]
    """What was left out, and why."""

    def __str__(self) -> str:
        head = (
            f"{self.path}: {describe_bytes(self.num_bytes)}, {self.num_clips:,} clips to look at; open it in a browser"
        )
        return "\n".join([head, *(f"note: {note}" for note in self.notes)])


def report(
    *paths: StrPath,
    output: StrPath,
    config: ReportConfig | None = None,
    videos: StrPath | None = None,
    device: str | None = None,
) -> Report:
    """Write a page about an egoaudio file, runs, and recordings that were heard.

    Parameters
    ----------
    *paths : path
        An egoaudio file or several as one, any number of runs' folders or checkpoints, and a folder of predictions, in
        any order: what each is, is found out. Without a file, the clips of runs are those of the file that the first
        run was trained on.
    output : path
        The HTML file.
    config : ReportConfig, optional
    videos : path, optional
        Folder of the videos that the file was built from, to hear clips from; if not given, they are heard from the
        file's ``/waveform``, where it has that. Recordings that were predicted are looked for there too, else where
        they were.
    device : str, optional
        For the runs' networks; the GPU if there is one.

    Returns
    -------
    Report

    Raises
    ------
    ReportError
        Nothing was given, or what is none of the above; the page cannot be written, or has no room even without clips.
    ConfigurationError
        For an option without effect.
    StoreError
        The file cannot be used.
    CheckpointError
        A checkpoint cannot be used, or does not fit the file.

    Examples
    --------
    >>> import egoaudio
    >>> made = egoaudio.report("ego.h5", "runs/example", output="report.html", videos="videos")
    >>> made.num_clips > 0
    True
    """
    config = ReportConfig() if config is None else config
    sources = find_sources(paths)
    if not sources.checkpoints:
        for name, value in (("split", config.split), ("device", device)):
            if value is not None:
                raise ConfigurationError(f"`{name}={value!r}` has no effect without a run: give one, or leave it out")
    _check_output(output, sources.every)
    with contextlib.ExitStack() as opened:
        clips_of = sources.clips_of
        file = opened.enter_context(reader.open(clips_of)) if clips_of else None
        gallery = Gallery.of_file(file, None if file is None else open_sounds(file, videos))
        _check_output(output, [*clips_of, *(gallery.sounds.files if gallery.sounds else ())])
        contents = Contents("Report on " + ", ".join(map(names.clean, sources.names)))
        contents.sound_note = gallery.sounds.note if gallery.sounds else ""
        if file is not None and sources.files:
            _add_file(contents, file, gallery, config)
        if file is not None and sources.checkpoints:
            _add_runs(contents, file, gallery, sources, config, device)
        if sources.scores is not None:
            scores = opened.enter_context(ScoresFile(sources.scores))
            sounds = RecordingSounds(scores, file if scores.source else None, videos)
            _check_output(output, sounds.files)
            _add_heard(contents, scores, file, sounds, config)
        return _write(output, config, contents, gallery)


def _add_file(contents: Contents, file: EgoAudioFile, gallery: Gallery, config: ReportConfig) -> None:
    """Put what is said of the file into the page."""
    contents.file = file_section.describe(file, config.examples)
    contents.anchors += [
        ("file", "File"),
        ("wrong", "What looks wrong"),
        ("classes", "Classes"),
        ("examples", "Examples"),
    ]
    for row in contents.file.classes:
        gallery.ask(row.examples)


def _add_runs(
    contents: Contents,
    file: EgoAudioFile,
    gallery: Gallery,
    sources: Sources,
    config: ReportConfig,
    device: str | None,
) -> None:
    """Score the runs, and put what is said of them into the page."""
    from egoaudio.evaluation.evaluate import score_split  # torch takes seconds to load
    from egoaudio.evaluation.scores import NUM_RESAMPLES
    from egoaudio.reporting import comparison_section, run_section

    split = config.split or _split(file)
    scored = [score_split(path, file.paths, split, device) for path in sources.checkpoints]
    evaluations = [each.evaluate() for each in scored]
    titles = [names.clean(name) for name in sources.run_names]
    if len(scored) > 1:
        contents.comparison = comparison_section.describe(titles, scored, evaluations, NUM_RESAMPLES)
        contents.anchors.append(("comparison", "Side by side"))
    for number, pair in enumerate(zip(scored, evaluations, sources.checkpoints, titles, strict=True), start=1):
        section = run_section.describe(*pair, f"run-{number}", config.examples)
        contents.runs.append(section)
        contents.anchors += [(section.anchor, section.name), (f"{section.anchor}-heard", "What can be heard")]
        for clips in (section.missing_labels, section.empty_labels):
            gallery.ask([clip.row for clip in clips])
        for row in section.classes:
            for clips in (row.clips.best, row.clips.missed, row.clips.false_alarms):
                gallery.ask([clip.row for clip in clips])


def _add_heard(
    contents: Contents, scores: ScoresFile, file: EgoAudioFile | None, sounds: RecordingSounds, config: ReportConfig
) -> None:
    """Put what was heard into the page."""
    from egoaudio.reporting import heard_section  # torch takes seconds to load
    from egoaudio.reporting.timelines import TimelineMaker

    maker, folder = TimelineMaker(scores, file), os.path.basename(os.path.dirname(scores.path))
    room = round(_SCORES_SHARE * 1e6 * config.max_mb)
    contents.heard = heard_section.describe(scores, maker, sounds, folder, room)
    contents.anchors.append(("heard", "What was heard"))
    if contents.heard.timelines:
        contents.anchors.append(("timelines", "Time lines"))


def _split(file: EgoAudioFile) -> str:
    """Return the split to score: test where the file has one with sound."""
    videos = np.flatnonzero(file.video_table["split"] == b"test")
    return "test" if (file.usable & np.isin(file.clip_table["video"], videos)).any() else "validation"


def _check_output(output: StrPath, inputs: Iterable[Path]) -> None:
    """Refuse an output that cannot be written, or is read, before anything is computed."""
    try:
        files.check_output(output, inputs)
        files.require_writable_folder(output)
    except OSError as error:
        raise ReportError(f"`output={os.fspath(output)!r}`: {error.strerror}") from error


def _write(output: StrPath, config: ReportConfig, contents: Contents, gallery: Gallery) -> Report:
    """Fill a page as far as its size allows, and write it."""
    most = round(config.max_mb * 1e6)
    left = most - len(_render(contents, gallery).encode())
    if left < 0:
        bare = (most - left) / 1e6
        raise ReportError(
            f"`max_mb={config.max_mb:g}`: the page has {bare:.1f} MB without any sound: "
            f"give `max_mb={bare + 1:.0f}` or more"
        )
    heard = contents.heard
    if heard is not None:
        left -= _SPARE_BYTES
        heard.fill(left // 2 if gallery.num_asked else left)
        left -= heard.num_bytes
    gallery.fill(left)
    text = _render(contents, gallery).encode()
    try:
        files.write_file(output, text)
    except OSError as error:
        raise ReportError(files.explain(output, error)) from error
    return Report(os.fspath(output), len(text), len(gallery.shown), _notes(contents, gallery))


def _notes(contents: Contents, gallery: Gallery) -> tuple[str, ...]:
    """Return what was left out, and why."""
    heard = () if contents.heard is None else contents.heard.notes
    return tuple(note for note in (gallery.note, *heard) if note)


def _no_cards(row: int) -> None:
    """Return nothing: a page of predictions alone has no clips."""


def _render(contents: Contents, gallery: Gallery) -> str:
    sounds = {str(row): shown.sound for row, shown in gallery.shown.items() if shown.sound}
    heard_notes = []
    if contents.heard is not None:
        sounds |= {f"recording-{video}": sound for video, sound in contents.heard.encoded.items()}
        heard_notes = [as_flags(note, _FLAGS) for note in contents.heard.notes]
    notes = [as_flags(gallery.note, _FLAGS)] if gallery.note else []
    cards = _no_cards if gallery.file is None else Cards(gallery.file, gallery.shown)
    return render(contents, notes, heard_notes, sounds, cards)
