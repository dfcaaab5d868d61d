"""The segments of a recording with a tier a class: Praat's TextGrid, and ELAN's EAF.

In: a ``Prediction``. Out: the bytes of one file. Segments of a class never overlap, so each class is one interval tier;
classes of which nothing is heard have none.

Source: the TextGrid chapter of Praat's manual; the schema EAFv3.0.xsd of the Max Planck Institute for
Psycholinguistics.
"""

import os
from collections import Counter
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

from egoaudio._version import __version__
from egoaudio.prediction.result import Prediction, Segment
from egoaudio.system.terminal import one_line, printable

_SCHEMA = "http://www.mpi.nl/tools/elan/EAFv3.0.xsd"
_DATE = "1970-01-01T00:00:00+00:00"  # the schema wants one; the same scores are to give the same bytes
_SHORTEST_SECONDS = 0.001


def milliseconds(seconds: float) -> int:
    """Return a time in whole milliseconds."""
    return round(1000 * seconds)


def _by_class(prediction: Prediction) -> dict[str, list[Segment]]:
    """Return the segments of each class that has some, by a title that is its own, in the order of the classes."""
    labelling, found = prediction.labelling, prediction.named_segments()
    shown = [one_line(name) or "_" for name in labelling.class_names]
    counts = Counter(shown)
    titles = [
        name if counts[name] == 1 else f"{one_line(class_id)} {name} {index}"
        for index, (class_id, name) in enumerate(zip(labelling.class_ids, shown, strict=True))
    ]
    present = sorted({segment.class_index for segment in found})
    return {titles[index]: [segment for segment in found if segment.class_index == index] for index in present}


def textgrid(prediction: Prediction) -> bytes:
    """Return a TextGrid in the long text form; where nothing is heard, with one tier without text."""
    classes = _by_class(prediction) or {"nothing": []}
    stops = [segments[-1].stop_seconds for segments in classes.values() if segments]
    end = max([prediction.duration_seconds, _SHORTEST_SECONDS, *stops])
    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", "xmin = 0 ", f"xmax = {end!r} "]
    lines += ["tiers? <exists> ", f"size = {len(classes)} ", "item []: "]
    for number, (title, segments) in enumerate(classes.items(), 1):
        intervals = _intervals(segments, end)
        lines += [f"    item [{number}]:", '        class = "IntervalTier" ', f"        name = {_quoted(title)} "]
        lines += ["        xmin = 0 ", f"        xmax = {end!r} ", f"        intervals: size = {len(intervals)} "]
        for place, (start, stop, text) in enumerate(intervals, 1):
            lines += [
                f"        intervals [{place}]:",
                f"            xmin = {start!r} ",
                f"            xmax = {stop!r} ",
            ]
            lines.append(f"            text = {_quoted(text)} ")
    return ("\n".join(lines) + "\n").encode()


def _intervals(segments: list[Segment], end: float) -> list[tuple[float, float, str]]:
    """Return the intervals of a tier, the silent ones between the segments too: a tier has no gaps."""
    intervals, at = [], 0.0
    for segment in segments:
        if segment.start_seconds > at:
            intervals.append((at, segment.start_seconds, ""))
        intervals.append((max(at, segment.start_seconds), segment.stop_seconds, f"{segment.score:.2f}"))
        at = segment.stop_seconds
    return intervals + [(at, end, "")] * (end > at)


def _quoted(text: str) -> str:
    doubled = text.replace('"', '""')
    return f'"{doubled}"'


def eaf(prediction: Prediction) -> bytes:
    """Return an ELAN annotation document; it looks for the recording where it was heard."""
    classes = _by_class(prediction)
    slots, tiers, count = [], [], 0
    for title, segments in classes.items():
        annotations = []
        for segment in segments:
            count += 1
            start = milliseconds(segment.start_seconds)
            times = start, max(milliseconds(segment.stop_seconds), start + 1)
            slots += [
                f'<TIME_SLOT TIME_SLOT_ID="ts{2 * count - 1 + end}" TIME_VALUE="{times[end]}"/>' for end in (0, 1)
            ]
            annotations.append(
                f'<ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="a{count}" TIME_SLOT_REF1="ts{2 * count - 1}" '
                f'TIME_SLOT_REF2="ts{2 * count}"><ANNOTATION_VALUE>{escape(title)} {segment.score:.2f}'
                "</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION>"
            )
        name = quoteattr(title)
        tiers.append(f'<TIER LINGUISTIC_TYPE_REF="segments" TIER_ID={name}>\n' + "\n".join(annotations) + "\n</TIER>")
    media = ""
    if prediction.file:
        url = quoteattr(Path(os.path.abspath(printable(prediction.file))).as_uri())
        media = f'<MEDIA_DESCRIPTOR MEDIA_URL={url} MIME_TYPE="unknown"/>'
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        f'<ANNOTATION_DOCUMENT AUTHOR="egoaudio {__version__}" DATE="{_DATE}" FORMAT="3.0" VERSION="3.0" '
        f'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xsi:noNamespaceSchemaLocation="{_SCHEMA}">',
        f'<HEADER MEDIA_FILE="" TIME_UNITS="milliseconds">{media}</HEADER>',
        "<TIME_ORDER>",
        *slots,
        "</TIME_ORDER>",
        *tiers,
        '<LINGUISTIC_TYPE GRAPHIC_REFERENCES="false" LINGUISTIC_TYPE_ID="segments" TIME_ALIGNABLE="true"/>',
        "</ANNOTATION_DOCUMENT>",
    ]
    return ("\n".join(lines) + "\n").encode()
