"""What decides a report, besides what it is of."""

from dataclasses import dataclass

from egoaudio.config.options import Checked, option
from egoaudio.config.train import SPLITS


@dataclass(frozen=True)
class ReportConfig(Checked):
    """How large a page may be, and what it shows of a file and of its runs."""

    max_mb: float = option(
        20.0,
        "Largest size of the page, in MB. Pictures and sounds are left out, the less important first, and the page "
        "says so.",
        minimum=0.2,
        most=1000,
    )
    examples: int = option(
        4, "So many clips of each class to be heard and seen; as many of each kind for a run.", minimum=0, most=100
    )
    split: str | None = option(
        None,
        "The split that runs are scored on; if not given, test where the file has it, else validation.",
        choices=SPLITS,
    )
