"""A report: one HTML page about an egoaudio file.

In: paths of what it is about. Out: a page, written whole or not at all, and a ``Report`` that says what it holds.
"""

import os
from dataclasses import dataclass

from egoaudio.config.options import as_flags
from egoaudio.config.report import ReportConfig
from egoaudio.errors import ReportError
from egoaudio.hdf5 import reader
from egoaudio.reporting import file_section, names, page
from egoaudio.reporting.cards import Cards
from egoaudio.reporting.excerpts import open_sounds
from egoaudio.reporting.gallery import Gallery
from egoaudio.reporting.pictures import Painter
from egoaudio.reporting.sources import Sources, find_sources
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
) -> Report:
    """Write a page about an egoaudio file.

    Parameters
    ----------
    *paths : path
        An egoaudio file.
    output : path
        The HTML file.
    config : ReportConfig, optional
    videos : path, optional
        Folder of the videos that the file was built from, to hear clips from; if not given, they are heard from the file's
        ``/waveform``, where it has that.

    Returns
    -------
    Report

    Raises
    ------
    ReportError
        Nothing was given, or what is none of the above; the page cannot be written, or has no room even without clips.
    StoreError
        The file cannot be used.

    Examples
    --------
    >>> import egoaudio
    >>> made = egoaudio.report("ego.h5", output="report.html", videos="videos")
    >>> made.num_clips > 0
    True
    """
    config = ReportConfig() if config is None else config
    sources = find_sources(paths)
    _check_output(output, sources)
    if sources.file is None or sources.checkpoints:
        raise ReportError(f"{sources.every[0]}: pages about runs are not made yet: give an egoaudio file alone")
    with reader.open(sources.file) as file:
        gallery = Gallery(file, Painter.of_file(file), open_sounds(file, videos))
        section = file_section.describe(file, config.examples)
        for row in section.classes:
            gallery.ask(row.examples)
        contents = {
            "title": _title(sources),
            "contents": [
                ("file", "The file"),
                ("wrong", "What looks wrong"),
                ("classes", "Classes"),
                ("examples", "Examples"),
            ],
            "file": section,
            "sound_note": gallery.sounds.note if gallery.sounds else "",
        }
        return _write(output, config, contents, gallery)


def _title(sources: Sources) -> str:
    """Return what a page is called."""
    return "Report on " + ", ".join(
        names.clean(path.name if path.suffix != ".pt" else path.parent.name) for path in sources.every
    )


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
