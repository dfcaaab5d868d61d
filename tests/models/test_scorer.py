"""Scoring: a model's own scores in the order of the rows, also when memory runs out."""

import numpy as np
import pytest
import synthetic
import torch
from small_steps import batch, fail, make_stepper

from egoaudio.config.options import from_flat
from egoaudio.config.train import TrainConfig
from egoaudio.data.dataset import ClipDataset
from egoaudio.data.loader import Loader
from egoaudio.errors import TrainingError
from egoaudio.hdf5 import reader
from egoaudio.models import create_model
from egoaudio.models.scorer import Scorer, score
from egoaudio.training.losses import Loss


@pytest.fixture
def path(tmp_path):
    return synthetic.make_file(
        tmp_path / "ego.h5", 24, 5, features={"spectrogram": (8, 16)}, num_classes=10, failed=(2,)
    )


@pytest.mark.parametrize("label_mode", ["multi", "single"])
def test_scores_are_the_models_own_in_the_order_of_the_rows(path, label_mode):
    torch.manual_seed(0)
    model = create_model("cnn-small", 10, (8, 16)).eval()
    with reader.open(path) as file:
        rows = np.flatnonzero(file.trainable)[::3]
        features, labels = np.array(file["spectrogram"][rows]), file.labels[rows].astype(np.float32)
    dataset = ClipDataset(path, "spectrogram", rows, normalization=(0.5, 2.0))
    loader = Loader(dataset, 7, from_flat(TrainConfig, {}).data)
    loss = Loss(label_mode, np.linspace(0.5, 2, 10))
    scored = score(Scorer(model, device=torch.device("cpu")), loader, label_mode, loss)
    with torch.no_grad():
        logits = model((torch.from_numpy(features) - 0.5) / 2)
        labels = torch.from_numpy(labels)
        expected = logits.sigmoid() if label_mode == "multi" else logits.softmax(1)
    np.testing.assert_array_equal(scored.rows, rows)
    np.testing.assert_allclose(scored.scores, expected, atol=1e-6)
    assert scored.loss == pytest.approx(float(loss.mean(logits, labels)), rel=1e-5)
    told = []
    assert np.isnan(score(Scorer(model, device=torch.device("cpu")), loader, label_mode, advance=told.append).loss)
    assert sum(told) == len(rows) and len(told) == len(loader)


def test_scoring_plans_for_a_pass_without_gradients(monkeypatch):
    stepper = make_stepper("ast")
    monkeypatch.setattr("egoaudio.models.micro_batch.free_memory", lambda _: stepper._measure(batch(64)[0]).kept)
    scorer = Scorer(stepper.model, device="cpu")
    scorer(batch()[0])
    stepper.step(*batch())
    assert scorer.micro_batch_size > stepper.micro_batch_size


def test_scores_are_the_models_and_survive_running_out_of_memory():
    stepper, lines = make_stepper("ast", dropout=0.4), []
    model, features = stepper.model, batch()[0]
    with torch.no_grad():
        expected = model.eval()(features)
    model.train()
    scorer = Scorer(model, device="cpu", log=lines.append)
    fail(stepper, "forward", times=100, limit=20)
    assert scorer.micro_batch_size is None
    scores = scorer(features)
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-5)
    assert scores.dtype == torch.float32 and not scores.requires_grad and model.training
    assert scorer.micro_batch_size == 16 and lines[-1] == "evaluation: 16 clips at a time, as memory ran out with 32"


def test_one_clip_that_does_not_fit_is_an_error_with_the_fix():
    stepper = make_stepper()
    fail(stepper, "forward", times=100)
    with pytest.raises(TrainingError, match="not even one clip can be scored"):
        Scorer(stepper.model, device="cpu", micro_batch_size=4)(batch(4)[0])
