"""Put a page together: templates, style and script into one HTML document that needs nothing else.

In: sections (values) and a gallery. Out: text. Everything is escaped by the templates; the document's
Content-Security-Policy allows its own script and style by their hashes, pictures and sounds that lie in it, and nothing
from anywhere.
"""

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import jinja2

from egoaudio._version import __version__
from egoaudio.reporting.names import seconds_in_words

if TYPE_CHECKING:
    from egoaudio.reporting.cards import Card
    from egoaudio.reporting.comparison_section import ComparisonSection
    from egoaudio.reporting.file_section import FileSection
    from egoaudio.reporting.heard_section import HeardSection
    from egoaudio.reporting.run_section import RunSection


@dataclass
class Contents:
    """What a page is about; a section that is not there is None."""

    title: str
    sound_note: str = ""
    """Where the sound of clips comes from."""
    anchors: list[tuple[str, str]] = field(default_factory=list)
    """Ids of headings, and what they are called in the page's navigation."""
    file: "FileSection | None" = None
    comparison: "ComparisonSection | None" = None
    runs: "list[RunSection]" = field(default_factory=list)
    heard: "HeardSection | None" = None


def render(
    contents: Contents,
    notes: Sequence[str],
    heard_notes: Sequence[str],
    sounds: Mapping[str, str],
    card: Callable[[int], "Card | None"],
) -> str:
    """Return a page.

    Parameters
    ----------
    contents : Contents
    notes, heard_notes : sequence of str
        What is not there, and why: on the whole, and of the recordings that were heard.
    sounds : mapping
        ``{name: base64}``, Opus in WebM.
    card : callable
        From a row of ``/clips`` to its ``Card``, or None.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("egoaudio.reporting"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["card"] = card
    environment.filters["place"] = seconds_in_words
    style, script, timelines = (_source(environment, name) for name in ("style.css", "page.js", "timelines.js"))
    scripts = [script, timelines] if contents.heard else [script]
    policy = (
        "default-src 'none'; img-src data:; media-src data:; base-uri 'none'; form-action 'none'; "
        f"style-src {_hash(style)}; script-src {' '.join(map(_hash, scripts))}"
    )
    return environment.get_template("page.html").render(
        vars(contents),
        notes=notes,
        heard_notes=heard_notes,
        sounds=dict(sounds),
        style=style,
        script=script,
        timelines_script=timelines,
        policy=policy,
        version=__version__,
    )


def _source(environment: jinja2.Environment, name: str) -> str:
    """Return a file that lies beside the templates, as it is."""
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


def _hash(text: str) -> str:
    """Return the source of a Content-Security-Policy that allows exactly this text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
