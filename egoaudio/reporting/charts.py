"""Where the marks of a chart stand: numbers in, places in the units of an SVG out; the template draws them.

A chart is ``WIDTH`` x ``HEIGHT`` units, of which its frame takes all but the margins for the labels; y grows downwards,
as in SVG. Nothing here knows what the numbers mean, and no text passes through here unescaped, for none is markup.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

WIDTH, HEIGHT = 440, 240
LEFT, RIGHT, TOP, BOTTOM = 46, 432, 10, 200
"""Edges of the frame."""
_NUM_TICKS = 5


@dataclass(frozen=True)
class Tick:
    """A labelled place on an axis."""

    place: float
    text: str


@dataclass(frozen=True)
class Bar:
    """A rectangle, with what is said of it."""

    x: float
    y: float
    width: float
    height: float
    text: str


@dataclass(frozen=True)
class Line:
    """A line through points, with its name; ``points`` is what SVG's polyline takes."""

    name: str
    points: str
    dots: tuple[tuple[float, float, str], ...] = ()
    """x, y and text of the points, where there are few."""


@dataclass(frozen=True)
class Chart:
    """All marks of a chart."""

    title: str
    description: str
    """What a reader who does not see it is told."""
    x_label: str
    y_label: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    bars: tuple[Bar, ...] = ()
    lines: tuple[Line, ...] = ()


@dataclass(frozen=True)
class Matrix:
    """A square of shares, of the same things down and across."""

    names: tuple[str, ...]
    cells: tuple[tuple[int, int, float], ...]
    """Row, column, share from 0 to 1, where it is not 0."""


@dataclass(frozen=True)
class _Axis:
    """A linear axis from ``low`` to ``high``, drawn from ``start`` to ``stop``."""

    low: float
    high: float
    start: float
    stop: float

    def place(self, value: float) -> float:
        """Return where a value stands."""
        return round(float(self.start + (value - self.low) / (self.high - self.low) * (self.stop - self.start)), 1)

    def ticks(self, whole: bool = False, suffix: str = "") -> tuple[Tick, ...]:
        """Return ticks at round numbers."""
        values = round_numbers(self.low, self.high, whole)
        return tuple(Tick(self.place(value), f"{value:,.10g}{suffix}") for value in values)


def round_numbers(low: float, high: float, whole: bool = False) -> list[float]:
    """Return about five round numbers from ``low`` to ``high``."""
    if not high > low:
        return [low]
    step = 10 ** math.floor(math.log10((high - low) / _NUM_TICKS))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (factor * step) <= _NUM_TICKS)
    if whole:
        step = max(1, round(step))
    first = math.ceil(low / step - 1e-9)
    return [round(number * step, 10) for number in range(first, math.floor(high / step + 1e-9) + 1)]


def histogram(values: np.ndarray, title: str, x_label: str, y_label: str, num_bins: int = 24) -> Chart | None:
    """Return how often values occur; None where there is none."""
    values = np.asarray(values, np.float64)
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    low, high = float(values.min()), float(values.max())
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    counts, edges = np.histogram(values, num_bins, (low, high))
    across, up = _Axis(low, high, LEFT, RIGHT), _Axis(0, 1.05 * float(counts.max()), BOTTOM, TOP)
    bars = [
        Bar(
            across.place(first),
            up.place(count),
            max(0.5, across.place(last) - across.place(first) - 1),
            BOTTOM - up.place(count),
            f"{first:,.4g} to {last:,.4g}: {count:,}",
        )
        for first, last, count in zip(edges[:-1], edges[1:], counts, strict=True)
        if count
    ]
    quarters = np.percentile(values, (0, 25, 50, 75, 100))
    description = (
        "least {:,.4g}, a quarter below {:,.4g}, half below {:,.4g}, three quarters below {:,.4g}, most {:,.4g}"
    )
    return Chart(
        title, description.format(*quarters), x_label, y_label, across.ticks(), up.ticks(whole=True), tuple(bars)
    )


def lines(
    x: Sequence[float] | np.ndarray,
    series: Mapping[str, Sequence[float] | np.ndarray],
    title: str,
    x_label: str,
    y_label: str,
    *,
    x_whole: bool = True,
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float | None, float | None] = (None, None),
) -> Chart | None:
    """Return lines over common places; NaN leaves a gap, and a series without any number is left out.

    Parameters
    ----------
    x : sequence of float
    series : mapping
        ``{name: values}``, a value for each of ``x``.
    title, x_label, y_label : str
    x_whole : bool
        Whether ticks across stand at whole numbers.
    x_range, y_range : tuple
        Ends of the axes; None is where the values end.
    """
    there = {name: np.asarray(values, np.float64) for name, values in series.items()}
    there = {name: values for name, values in there.items() if np.isfinite(values).any()}
    if not there:
        return None
    every = np.concatenate([values[np.isfinite(values)] for values in there.values()])
    low, high = (
        float(end if given is None else given) for given, end in zip(y_range, (every.min(), every.max()), strict=True)
    )
    high = high if high > low else low + 1
    first, last = (float(min(x)), float(max(x))) if x_range is None else x_range
    across = _Axis(first, last if last > first else first + 1, LEFT, RIGHT)
    up = _Axis(low, high + 0.03 * (high - low), BOTTOM, TOP)
    drawn = [_line(name, x, values, across, up) for name, values in there.items()]
    described = [
        f"{name}: from {values[np.isfinite(values)][0]:.4g} to {values[np.isfinite(values)][-1]:.4g}"
        for name, values in there.items()
    ]
    return Chart(title, "; ".join(described), x_label, y_label, across.ticks(x_whole), up.ticks(), lines=tuple(drawn))


def _line(name: str, x: Sequence[float] | np.ndarray, values: np.ndarray, across: _Axis, up: _Axis) -> Line:
    points = [
        (across.place(place), up.place(value), f"{name}: {value:.4g} at {place:g}")
        for place, value in zip(x, values, strict=True)
        if np.isfinite(value)
    ]
    return Line(name, " ".join(f"{px},{py}" for px, py, _ in points), tuple(points))
