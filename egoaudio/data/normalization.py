"""The mean and standard deviation by which features are normalised, from the sums that the file keeps per video."""

import numpy as np

from egoaudio.errors import TrainingError
from egoaudio.hdf5.reader import EgoAudioFile

# The student paper's normalisation, (x + 4.2677393) / (2 * 4.5689974): the constants of the published AST.
PAPER_NORMALIZATION = (-4.2677393, 2 * 4.5689974)


def normalization(file: EgoAudioFile, feature: str, train_rows: np.ndarray, how: str) -> tuple[float, float]:
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

    Raises
    ------
    TrainingError
        When the statistics are missing or the feature is constant.

    """
    if how == "none":
        return 0.0, 1.0
    if how == "paper":
        return PAPER_NORMALIZATION
    count, total, squares = file.statistics(feature)[np.unique(file.clip_table["video"][train_rows])].sum(axis=0)
    variance = squares / count - (total / count) ** 2 if count > 0 else 0.0
    # The comparison is relative: a constant feature leaves a rounding error, not zero.
    if not np.isfinite(variance) or variance <= 1e-12 * squares / max(count, 1):
        raise TrainingError(
            f"{file.path}: {feature} cannot be normalised with mean and standard deviation (count {count:g}, variance "
            f"{variance:g} over the training videos): check the sound with egoaudio-inspect --verify, or give "
            "`normalize='none'`"
        )
    return float(total / count), float(np.sqrt(variance))
