"""Put a page together: templates, style and script into one HTML document that needs nothing else.

In: sections (values) and a gallery. Out: text. Everything is escaped by the templates; the document's Content-Security-Policy allows
its own script and style by their hashes, pictures and sounds that lie in it, and nothing from anywhere.
"""

import base64
import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import jinja2

from egoaudio._version import __version__


def render(contents: Mapping[str, Any], sounds: Mapping[str, str], card: Callable[[int], Any]) -> str:
    """Return a page.

    Parameters
    ----------
    contents : mapping
        What the template ``page.html`` asks for.
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
    style, script, timelines = (_source(environment, name) for name in ("style.css", "page.js", "timelines.js"))
    scripts = [script, timelines] if contents["heard"] else [script]
    policy = (
        "default-src 'none'; img-src data:; media-src data:; base-uri 'none'; form-action 'none'; "
        f"style-src {_hash(style)}; script-src {' '.join(map(_hash, scripts))}"
    )
    return environment.get_template("page.html").render(
        contents,
        sounds=dict(sounds),
        style=style,
        script=script,
        timelines_script=timelines,
        policy=policy,
        version=__version__,
    )


def _source(environment, name):
    """Return a file that lies beside the templates, as it is."""
    return environment.loader.get_source(environment, name)[0]


def _hash(text):
    """Return the source of a Content-Security-Policy that allows exactly this text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
