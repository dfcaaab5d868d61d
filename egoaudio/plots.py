"""Draw an egoaudio file: how the classes are spread, and what is in a clip.

In: an ``EgoAudioFile`` and a path. Out: a PNG. The only user of matplotlib besides the training curves; without a display, and
imported only when something is drawn (0.5 s).
"""

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from egoaudio.errors import StoreError

_BLUE, _GREY = "#33658a", "#9a9a9a"
_DPI = 120


def plot_classes(file, path):
    """Draw the samples per class, sorted, on a log scale (the paper's Figure 1); every class can be read, 158 of them too.

    Parameters
    ----------
    file : EgoAudioFile
    path : str or os.PathLike

    Raises
    ------
    StoreError
        The picture cannot be written.
    """
    counts = file.count_classes()
    order = np.argsort(-counts, kind="stable")
    names = [_class_name(file, k) for k in order]
    figure = Figure(figsize=(max(8.0, 2.0 + 0.125 * len(order)), 7.0 if len(order) > 60 else 5.0), layout="constrained")
    axes = figure.add_subplot()
    places = np.arange(len(order))
    heights = counts[order]
    axes.bar(places, np.maximum(heights, 1e-9), width=0.75, color=[_GREY if names[i].startswith("no_action") else _BLUE for i in places])
    axes.set_yscale("log")
    top = max(10, heights.max(initial=1))
    axes.set_ylim(0.7, top * 4)
    axes.set_xlim(-0.8, len(order) - 0.2)
    size = 6.5 if len(order) > 60 else 8
    axes.set_xticks(places, names, rotation=90, fontsize=size)
    for place, height in zip(places, heights, strict=True):
        axes.text(place, max(height, 0.7) * 1.12, f"{height:,}", rotation=90, ha="center", va="bottom", fontsize=size, color="#444444")
    axes.set_ylabel("clips (log scale)")
    axes.set_title(f"{counts.sum():,} labels on {np.count_nonzero(file.trainable):,} clips, {len(order)} classes", loc="left")
    _finish(figure, axes, path)


def plot_clip(file, number, path):
    """Draw every feature of one clip, one below the other, with the times and the classes that are on."""
    clip = file.clip_table[number]
    video = file.video_table[clip["video"]]["video_id"].decode("utf-8", errors="replace")
    figure = Figure(figsize=(9.0, 0.8 + 2.4 * len(file.features)), layout="constrained")
    panels = figure.subplots(len(file.features), 1, squeeze=False)[:, 0]
    for axes, name in zip(panels, file.features, strict=True):
        _draw_feature(figure, axes, file, name, number, float(clip["stop_seconds"] - clip["start_seconds"]))
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    panels[-1].set_xlabel("seconds in the clip")
    on = [_class_name(file, k) for k in np.flatnonzero(file.labels[number])]
    what = "; ".join(on) if clip["labelled"] else "not labelled"
    figure.suptitle(f"clip {number}: {video}, {clip['start_seconds']:.2f} to {clip['stop_seconds']:.2f} s\n{what or 'no class'}", fontsize=9, wrap=True)
    _finish(figure, None, path)


def _draw_feature(figure, axes, file, name, number, clip_seconds):
    """Draw one clip's feature: a line for the waveform, else an image with time to the right."""
    values = np.asarray(file[name][number], np.float32)
    if name == "waveform":
        axes.plot(np.arange(len(values)) / file.sample_rate, values, linewidth=0.4, color=_BLUE)
        axes.set_xlim(0, len(values) / file.sample_rate)
        axes.set_ylabel("waveform")
        return
    shape = values[:, 1:] if name == "mfcc" and values.shape[1] > 1 else values  # mfcc 0 is the level, and dwarfs the others
    low, high = np.percentile(shape, (1, 99.5))
    seconds = float(file.config.get("context_seconds") or clip_seconds)
    frequency = name == "spectrogram" and "frequency_hz" in file.axes and len(file.axes["frequency_hz"]) == values.shape[1]
    top = float(file.axes["frequency_hz"][-1]) / 1000 if frequency else values.shape[1]
    image = axes.imshow(values.T, origin="lower", aspect="auto", extent=(0, seconds, 0, top), vmin=low, vmax=high, cmap="magma", interpolation="nearest")
    axes.set_ylabel(f"{name}\n" + ("kHz" if frequency else {"mfcc": "coefficient"}.get(name, "band")))
    figure.colorbar(image, ax=axes, pad=0.01, label=str(file.attributes(name).get("units", "")))


def _class_name(file, k):
    """Return identity and name of a class, the name cut where it would fill the picture."""
    row = file.class_table[k]
    identity, name = (row[column].decode("utf-8", errors="replace") for column in ("class_id", "name"))
    text = identity if name in ("", identity) else f"{identity} {name}"
    text = text if len(text) <= 44 else text[:43] + "…"
    return text.replace("$", r"\$")  # matplotlib would read a formula


def _finish(figure, axes, path):
    """Write the picture; no date inside, so that the same file gives the same picture."""
    if axes is not None:
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    FigureCanvasAgg(figure)
    try:
        figure.savefig(path, dpi=_DPI, format="png", metadata={"Software": None})
    except OSError as error:
        raise StoreError(f"{path}: the picture cannot be written: {error.strerror or error}") from error
