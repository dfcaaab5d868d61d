"""What can be set when new recordings are scored: how they are scored, what counts as a segment, what is written.

The sound, the clips and the features are no options: they are the checkpoint's. Units are in the names.
"""

from dataclasses import dataclass, field

from egoaudio.config.options import Checked, option
from egoaudio.errors import ConfigurationError

FORMATS = ("audacity", "raven", "textgrid", "eaf", "srt", "webvtt", "rttm", "json", "parquet")


@dataclass(frozen=True)
class ScoringConfig(Checked):
    """What decides the scores, besides the checkpoint and the recordings."""

    hop_seconds: float | None = option(
        None, "From one clip's start to the next one's, for finer times; as in training if not given.", above=0
    )
    batch_size: int | None = option(
        None,
        "Clips that the network is given at once, always as many; by what it takes of memory if not given.",
        minimum=1,
        most=1 << 16,
    )
    on_the_fly: bool = option(
        False,
        "Compute the features from the sound, or the file's waveforms, on the device of the model, as is done anyway "
        "for a model that was trained so.",
        before=False,
    )


@dataclass(frozen=True)
class SegmentConfig(Checked):
    """How scores become segments; evaluation judges the same ones."""

    smooth_seconds: float | None = option(
        None,
        "Average a clip's scores with those up to so many seconds before and after it; as validation chose if not "
        "given.",
        minimum=0,
        most=600,
    )
    threshold: float | None = option(
        None,
        "A segment begins where a score reaches this, 0 to 1; each class's own from validation if not given.",
        minimum=0,
    )
    offset_ratio: float = option(
        0.7, "It ends where the score falls below this share of the threshold, 0 to 1.", minimum=0
    )
    min_seconds: float = option(0.0, "Shorter segments are left out, after merging.", minimum=0)
    merge_gap_seconds: float = option(
        0.0, "Segments of a class with at most so much between them become one.", minimum=0
    )

    def __post_init__(self) -> None:
        """Check that the thresholds are within what scores can be."""
        super().__post_init__()
        if self.threshold is not None and not self.threshold <= 1:
            raise ConfigurationError(
                f"`threshold={self.threshold:g}`: expected 0 to 1, as scores are probabilities; did you mean per cent?"
            )
        if not self.offset_ratio <= 1:
            raise ConfigurationError(
                f"`offset_ratio={self.offset_ratio:g}`: expected 0 to 1: a segment would end before it begins"
            )


@dataclass(frozen=True)
class OutputConfig(Checked):
    """What is written beside scores.h5 and segments.csv, and shown."""

    formats: tuple[str, ...] = option(
        (), "Comma-separated, a file of each a recording: " + ", ".join(FORMATS) + ".", choices=FORMATS, flag="--format"
    )
    top: int = option(0, "Show the N likeliest classes of each recording, with where they are likeliest.", minimum=0)

    def __post_init__(self) -> None:
        """Check that each format is there once."""
        super().__post_init__()
        for place, name in enumerate(self.formats):
            if name in self.formats[:place]:
                raise ConfigurationError(f"`formats={name!r}` was given twice")


@dataclass(frozen=True)
class PredictConfig(Checked):
    """Everything that decides a prediction, besides the checkpoint and the recordings."""

    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    segments: SegmentConfig = field(default_factory=SegmentConfig)
    output: OutputConfig = field(default_factory=OutputConfig)
