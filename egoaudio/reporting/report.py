"""A report: one HTML page about an egoaudio file and the runs that were trained on it.

In: paths of what it is about. Out: a page, written whole or not at all, and a ``Report`` that says what it holds.
"""

import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from egoaudio.config.options import as_flags
from egoaudio.config.report import ReportConfig
from egoaudio.errors import ReportError
from egoaudio.hdf5 import reader
from egoaudio.reporting import file_section, names, page
from egoaudio.reporting.cards import Cards
from egoaudio.reporting.excerpts import open_sounds
from egoaudio.reporting.gallery import Gallery
from egoaudio.reporting.pictures import Painter
from egoaudio.reporting.sources import find_sources
from egoaudio.system import files
from egoaudio.system.terminal import describe_bytes

_FLAGS = {"max_mb": "--max-mb", "videos": "--videos", "features": "--features"}  # whoever reads a page types these


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
    *paths: str | os.PathLike[str],
    output: str | os.PathLike[str],
    config: ReportConfig | None = None,
    videos: str | os.PathLike[str] | None = None,
    device: str | None = None,
) -> Report:
    """Write a page about an egoaudio file and about runs.

    Parameters
    ----------
    *paths : path
        An egoaudio file, and any number of runs' folders or checkpoints, in any order: what each is, is found out. Without
        a file, clips are those of the file that the first run was trained on.
    output : path
        The HTML file.
    config : ReportConfig, optional
    videos : path, optional
        Folder of the videos that the file was built from, to hear clips from; if not given, they are heard from the file's
        ``/waveform``, where it has that.
    device : str, optional
        For the runs' networks; the GPU if there is one.

    Returns
    -------
    Report

    Raises
    ------
    ReportError
        Nothing was given, or what is none of the above; the page cannot be written, or has no room even without clips.
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
    _check_output(output, sources)
    with reader.open(sources.clips_of) as file:
        gallery = Gallery(file, Painter.of_file(file), open_sounds(file, videos))
        contents: dict[str, Any] = {
            "title": "Report on " + ", ".join(names.clean(name) for name in sources.names),
            "contents": [],
            "file": None,
            "comparison": None,
            "runs": [],
            "sound_note": gallery.sounds.note if gallery.sounds else "",
        }
        if sources.file is not None:
            _add_file(contents, gallery, config)
        if sources.checkpoints:
            _add_runs(contents, gallery, sources, config, device)
        return _write(output, config, contents, gallery)


def _add_file(contents, gallery, config):
    """Put what is said of the file into the page."""
    contents["file"] = file_section.describe(gallery.file, config.examples)
    contents["contents"] += [
        ("file", "File"),
        ("wrong", "What looks wrong"),
        ("classes", "Classes"),
        ("examples", "Examples"),
    ]
    for row in contents["file"].classes:
        gallery.ask(row.examples)


def _add_runs(contents, gallery, sources, config, device):
    """Score the runs, and put what is said of them into the page."""
    from egoaudio.evaluation.evaluate import score_split  # torch takes seconds to load
    from egoaudio.evaluation.scores import NUM_RESAMPLES
    from egoaudio.reporting import comparison_section, run_section

    split = config.split or _split(gallery.file)
    scored = [score_split(path, gallery.file.path, split, device) for path in sources.checkpoints]
    evaluations = [each.evaluate() for each in scored]
    titles = [names.clean(name) for name in sources.run_names]
    if len(scored) > 1:
        contents["comparison"] = comparison_section.describe(titles, scored, evaluations, NUM_RESAMPLES)
        contents["contents"].append(("comparison", "Side by side"))
    for number, pair in enumerate(zip(scored, evaluations, sources.checkpoints, titles, strict=True), start=1):
        section = run_section.describe(*pair, f"run-{number}", config.examples)
        contents["runs"].append(section)
        contents["contents"] += [(section.anchor, section.name), (f"{section.anchor}-heard", "What can be heard")]
        for clips in (section.missing_labels, section.empty_labels):
            gallery.ask([clip.row for clip in clips])
        for row in section.classes:
            for clips in (row.clips.best, row.clips.missed, row.clips.false_alarms):
                gallery.ask([clip.row for clip in clips])


def _split(file):
    """Return the split to score: test where the file has one with sound."""
    videos = np.flatnonzero(file.video_table["split"] == b"test")
    return "test" if (file.usable & np.isin(file.clip_table["video"], videos)).any() else "validation"


def _check_output(output, sources):
    """Refuse an output that cannot be written before anything is computed."""
    try:
        files.check_output(output, sources.every)
    except OSError as error:
        raise ReportError(f"`output={os.fspath(output)!r}`: {error.strerror}") from error


def _write(output, config, contents, gallery):
    """Fill a page as far as its size allows, and write it."""
    most = round(config.max_mb * 1e6)
    bare = len(_render(contents, gallery).encode())
    if bare > most:
        raise ReportError(
            f"`max_mb={config.max_mb:g}`: the page has {bare / 1e6:.1f} MB without any clip: give `max_mb={bare / 1e6 + 1:.0f}` or more"
        )
    gallery.fill(most - bare)
    text = _render(contents, gallery).encode()
    try:
        files.write_file(output, text)
    except OSError as error:
        raise ReportError(files.explain(output, error)) from error
    notes = (gallery.note,) if gallery.note else ()
    return Report(os.fspath(output), len(text), len(gallery.shown), notes)


def _render(contents, gallery):
    sounds = {str(row): shown.sound for row, shown in gallery.shown.items() if shown.sound}
    notes = [as_flags(gallery.note, _FLAGS)] if gallery.note else []
    return page.render({**contents, "notes": notes}, sounds, Cards(gallery))
