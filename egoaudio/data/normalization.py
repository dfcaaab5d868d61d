"""The mean and standard deviation by which features are normalised, from the sums that the file keeps per video.

Features that are not in the file are computed once for these sums (``measure``).
"""

from collections.abc import Callable, Iterable

import numpy as np
import torch

from egoaudio.errors import TrainingError
from egoaudio.hdf5.reader import EgoAudioFile

# The student paper's normalisation, (x + 4.2677393) / (2 * 4.5689974): the constants of the published AST.
PAPER_NORMALIZATION = (-4.2677393, 2 * 4.5689974)


def normalization(
    file: EgoAudioFile,
    feature: str,
    train_rows: np.ndarray,
    how: str,
    compute: Callable[[np.ndarray], Iterable[torch.Tensor]] | None = None,
) -> tuple[float, float]:
    """Return ``(mean, std)``, where ``(x - mean) / std`` is what the model receives.

    Parameters
    ----------
    file : EgoAudioFile
        Its ``/statistics`` of the feature are used: count, sum and sum of squares of each video.
    feature : str
        Name of the array.
    train_rows : array of int, (n,)
        ``"dataset"`` takes all clips of the videos these rows are in. With ``split_unit="clip"`` those videos also hold
        the validation clips: two numbers over hours of sound, which tell a model nothing about a clip.
    how : {"dataset", "paper", "none"}
        One mean and standard deviation over all values, the paper's fixed numbers, or (0, 1).
    compute : callable, optional
        Gives the features of some rows, not normalised, in batches, where the file lacks them.

    Raises
    ------
    TrainingError
        When the statistics are missing or the feature is constant.

    """
    if how == "none":
        return 0.0, 1.0
    if how == "paper":
        return PAPER_NORMALIZATION
    videos = np.unique(file.clip_table["video"][train_rows])
    if compute is None:
        unit = file.scale(feature)  # statistics are of the stored numbers
        count, total, squares = file.statistics(feature)[videos].sum(axis=0) * (1, unit, unit**2)
    else:
        rows = np.flatnonzero(file.usable & np.isin(file.clip_table["video"], videos))
        count, total, squares = measure(compute(rows))
    variance = squares / count - (total / count) ** 2 if count > 0 else 0.0
    # The comparison is relative: a constant feature leaves a rounding error, not zero.
    if not np.isfinite(variance) or variance <= 1e-12 * squares / max(count, 1):
        raise TrainingError(
            f"{file.path}: {feature} cannot be normalised with mean and standard deviation (count {count:g}, variance "
            f"{variance:g} over the training videos): check the sound with egoaudio-inspect --verify, or give "
            "`normalize='none'`"
        )
    return float(total / count), float(np.sqrt(variance))


def measure(batches: Iterable[torch.Tensor]) -> tuple[float, float, float]:
    """Return count, sum and sum of squares of all values, added up in float64."""
    count, total, squares = 0.0, 0.0, 0.0
    for features in batches:
        count += features.numel()
        total += float(features.sum(dtype=torch.float64))
        squares += float(features.square().sum(dtype=torch.float64))
    return count, total, squares
