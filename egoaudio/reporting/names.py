"""Texts of strangers, as a page shows them: ids, names of classes and files, reasons of failures.

What cannot be seen, or would turn the text around it (controls, line ends, overrides of direction), becomes ``?``, and
what is very long is cut. Escaping is the template's, which escapes everything.
"""

import numpy as np

from egoaudio.system.terminal import one_line

_LONGEST = 120  # characters of a name


def clean(raw: bytes | str, longest: int = _LONGEST) -> str:
    """Return a text in one line that can be shown."""
    text = one_line(raw.decode("utf-8", errors="replace") if isinstance(raw, bytes) else str(raw))
    return text if len(text) <= longest else text[: longest - 1] + "…"


def column(table: np.ndarray, name: str) -> list[str]:
    """Return a column of a table as texts that can be shown."""
    return [clean(raw) for raw in table[name].tolist()]


def class_names(table: np.ndarray) -> list[str]:
    """Return what each class of ``/classes`` is called: its id and its name."""
    pairs = zip(column(table, "class_id"), column(table, "name"), strict=True)
    return [class_title(*pair) for pair in pairs]


def class_title(class_id: str, name: str) -> str:
    """Return what a class is called."""
    class_id, name = clean(class_id), clean(name)
    return class_id if name in ("", class_id) else f"{class_id} {name}"


def seconds_in_words(seconds: float) -> str:
    """Return a place in a recording.

    >>> seconds_in_words(3.2), seconds_in_words(83), seconds_in_words(3723.25)
    ('3.20 s', '1:23.0', '1:02:03.2')
    """
    if seconds < 60:
        return f"{seconds:.2f} s"
    minutes, rest = divmod(round(seconds, 1), 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours}:{minutes:02d}:{rest:04.1f}" if hours else f"{minutes}:{rest:04.1f}"
