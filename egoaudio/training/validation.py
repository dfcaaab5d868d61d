"""The validation split of a run: scored after each epoch, for the table and for the choice of ``best.pt``."""

from egoaudio.data.dataset import ClipDataset
from egoaudio.data.loader import Loader
from egoaudio.evaluation.ground_truth import read_truth
from egoaudio.evaluation.scores import choose_thresholds, evaluate_scores
from egoaudio.models.scorer import score


class Validator:
    """Scores the validation split, as often as it is called."""

    def __init__(self, file, feature, rows, normalization, config, loss, scorer):
        self.truth = read_truth(file, rows)
        # Every clip once, with all its labels, whatever the model was trained on.
        dataset = ClipDataset(
            file.path, feature, rows, normalization=normalization, context_clips=config.data.context_clips
        )
        self.loader = Loader(dataset, config.optimization.batch_size, config.data, device=scorer.device)
        self.label_mode, self.loss, self.scorer = config.data.label_mode, loss, scorer

    def __call__(self):
        """Return the columns of the table that come from the validation split, and ``thresholds``, a list with a score per class."""
        scored = score(self.scorer, self.loader, self.label_mode, self.loss)
        found = evaluate_scores(scored.scores, self.truth).scores
        thresholds = [float(value) for value in choose_thresholds(scored.scores, self.truth)]
        return {"val_loss": scored.loss, **{name: float(found[name].value) for name in ("top1", "top5", "map")}, "thresholds": thresholds}
