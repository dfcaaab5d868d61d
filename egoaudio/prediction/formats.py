"""The segments of a recording as the files of other programs: labels, subtitles, tables.

In: a ``Prediction``. Out: the bytes of one file. Each format has its ending and a function; ``tiers`` has those with a
tier a class. A name comes from anywhere: in each format it stays in its field, in one line, and can end nothing. Times
are in seconds from the recording's start.

Source: manual.audacityteam.org (labels), Raven Pro's user guide (selection tables), w3.org/TR/webvtt1, NIST's RT-09
evaluation plan, appendix A (RTTM). SRT has no standard; it is what SubRip wrote.
"""

import importlib.util
import io
import json
from collections.abc import Callable, Iterator
from html import escape

from egoaudio.errors import ConfigurationError
from egoaudio.prediction import tiers
from egoaudio.prediction.result import Prediction
from egoaudio.system.terminal import harmless, one_line, printable

_RAVEN_COLUMNS = (
    "Selection",
    "View",
    "Channel",
    "Begin Time (s)",
    "End Time (s)",
    "Low Freq (Hz)",
    "High Freq (Hz)",
    "Begin File",
    "Class ID",
    "Name",
    "Score",
    "Mean Score",
)


def render(name: str, prediction: Prediction) -> bytes:
    """Return the segments of a recording as a file of a format, one of ``config.predict.FORMATS``."""
    _, function = _FORMATS[name]
    return function(prediction)


def suffix_of(name: str) -> str:
    """Return the ending of a format's files."""
    return _FORMATS[name][0]


def require_available(names: tuple[str, ...]) -> None:
    """Raise ConfigurationError where a format needs a library that is not installed."""
    if "parquet" in names and importlib.util.find_spec("pyarrow") is None:
        raise ConfigurationError(
            "`formats='parquet'` needs a library that is not installed: pip install pyarrow, or leave parquet out"
        )


def _audacity(prediction: Prediction) -> bytes:
    lines = [
        f"{segment.start_seconds:.6f}\t{segment.stop_seconds:.6f}\t{one_line(segment.name)} {segment.score:.2f}\n"
        for segment in prediction.named_segments()
    ]
    return "".join(lines).encode()


def _raven(prediction: Prediction) -> bytes:
    rows = ["\t".join(_RAVEN_COLUMNS)]
    file = harmless(prediction.file.rsplit("/", 1)[-1])  # such tables are opened in spreadsheets, too
    highest = int(prediction.scored.video["sample_rate"]) / 2  # of the recording that Raven shows
    for number, segment in enumerate(prediction.named_segments(), 1):
        cells = [
            number,
            "Spectrogram 1",
            1,
            f"{segment.start_seconds:.6f}",
            f"{segment.stop_seconds:.6f}",
            0,
            f"{highest:g}",
            file,
        ]
        cells += [
            harmless(segment.class_id),
            harmless(segment.name),
            f"{segment.score:.4f}",
            f"{segment.mean_score:.4f}",
        ]
        rows.append("\t".join(map(str, cells)))
    return ("\n".join(rows) + "\n").encode()


def _srt(prediction: Prediction) -> bytes:
    cues = [
        f"{number}\n{start.replace('.', ',')} --> {stop.replace('.', ',')}\n{text}\n\n"
        for number, (start, stop, text) in enumerate(_cues(prediction), 1)
    ]
    return "".join(cues).encode()


def _webvtt(prediction: Prediction) -> bytes:
    cues = [f"{start} --> {stop}\n{escape(text, quote=False)}\n\n" for start, stop, text in _cues(prediction)]
    return ("WEBVTT\n\n" + "".join(cues)).encode()


def _cues(prediction: Prediction) -> Iterator[tuple[str, str, str]]:
    """Yield start, stop and text of each subtitle; none is shorter than a millisecond."""
    for segment in prediction.named_segments():
        start = tiers.milliseconds(segment.start_seconds)
        stop = max(tiers.milliseconds(segment.stop_seconds), start + 1)
        yield _clock(start), _clock(stop), f"{one_line(segment.name)} ({segment.score:.2f})"


def _clock(milliseconds: int) -> str:
    """Return a time as ``00:00:02.500``."""
    seconds, rest = divmod(milliseconds, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{seconds:02d}.{rest:03d}"


def _rttm(prediction: Prediction) -> bytes:
    """Spaces part the fields, so names have none; the ninth field is the confidence."""
    file = _one_word(prediction.name)
    lines = [
        f"SPEAKER {file} 1 {segment.start_seconds:.3f} {segment.stop_seconds - segment.start_seconds:.3f} <NA> <NA> "
        f"{_one_word(segment.name)} {segment.score:.4f} <NA>\n"
        for segment in prediction.named_segments()
    ]
    return "".join(lines).encode()


def _one_word(text: str) -> str:
    return "_".join(one_line(text).split()) or "_"


def _json(prediction: Prediction) -> bytes:
    contents = {
        "file": printable(prediction.file),
        "duration_seconds": prediction.duration_seconds,
        "checkpoint": printable(prediction.labelling.checkpoint),
        "segments": [
            {
                "start_seconds": round(segment.start_seconds, 6),
                "end_seconds": round(segment.stop_seconds, 6),
                "class_id": segment.class_id,
                "name": segment.name,
                "score": round(segment.score, 6),
                "mean_score": round(segment.mean_score, 6),
            }
            for segment in prediction.named_segments()
        ],
    }
    return (json.dumps(contents, indent=1, ensure_ascii=False) + "\n").encode(errors="backslashreplace")


def _parquet(prediction: Prediction) -> bytes:
    raw = io.BytesIO()
    frame = prediction.segments
    frame["file"] = [printable(file) for file in frame["file"]]
    frame.astype({"file": str, "class_id": str, "name": str}).to_parquet(raw, index=False)
    return raw.getvalue()


_FORMATS: dict[str, tuple[str, Callable[[Prediction], bytes]]] = {
    "audacity": (".labels.txt", _audacity),
    "raven": (".selections.txt", _raven),
    "textgrid": (".TextGrid", tiers.textgrid),
    "eaf": (".eaf", tiers.eaf),
    "srt": (".srt", _srt),
    "webvtt": (".vtt", _webvtt),
    "rttm": (".rttm", _rttm),
    "json": (".json", _json),
    "parquet": (".parquet", _parquet),
}
