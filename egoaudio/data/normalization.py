"""The mean and the deviation by which features are normalised, from the sums that the file keeps for each video."""

import numpy as np

from egoaudio.errors import TrainingError

# The student paper's normalisation, (x + 4.2677393) / (2 * 4.5689974): the constants of the published AST.
PAPER_NORMALIZATION = (-4.2677393, 2 * 4.5689974)


def normalization(file, feature, train_rows, how):
    """Return ``(mean, std)`` such that ``(x - mean) / std`` is what the model is given.

    Parameters
    ----------
    file : EgoAudioFile
        Its ``/statistics`` of the feature are used: count, sum and sum of squares of each video.
    feature : str
        Name of the array.
    train_rows : array of int, (n,)
        ``"dataset"`` takes all clips of the videos these rows are in. With ``--split-unit clip`` those videos hold the
        validation clips too: two numbers over hours of sound, which tell a model nothing about a clip.
    how : {"dataset", "paper", "none"}
        One mean and deviation over all values, the paper's fixed numbers, or (0, 1).

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
            f"{file.path}: {feature} cannot be normalised with mean and deviation (count {count:g}, variance {variance:g} over the "
            "training videos): check the sound with egoaudio-inspect --verify, or use --normalize none"
        )
    return float(total / count), float(np.sqrt(variance))
