"""A clip's scores are its own: the same bits beside any other clips, at any place of the batch."""

import numpy as np
import pytest
import torch

from egoaudio.config.train import ModelConfig
from egoaudio.errors import ResourceError
from egoaudio.models import create_model
from egoaudio.models.steady_scorer import BATCH_BYTES, SteadyScorer

CPU = torch.device("cpu")
MODELS = {"cnn": (32, 65), "cnn-small": (3 * 98, 128), "ast": (98, 128), "yamnet": (98, 64)}


def make_scorer(name, label_mode="multi", num_classes=5, **options):
    torch.manual_seed(0)
    config = ModelConfig(model=name, hidden_size=24, num_layers=1) if name == "ast" else ModelConfig(model=name)
    model = create_model(name, num_classes, MODELS[name], config, context_clips=1 if name == "cnn-small" else 0).eval()
    return SteadyScorer(model, MODELS[name], label_mode, device=CPU, **options)


@pytest.mark.parametrize(("batch_size", "num_classes"), [(8, 5), (13, 158), (32, 13)])
@pytest.mark.parametrize("name", MODELS)
def test_a_clip_scores_the_same_to_the_bit_wherever_it_stands_and_beside_whatever(name, batch_size, num_classes):
    scorer = make_scorer(name, num_classes=num_classes, batch_size=batch_size)
    generator = np.random.default_rng(1)
    clips = generator.standard_normal((batch_size, *MODELS[name]), np.float32)
    whole = scorer(clips)
    assert whole.shape == (batch_size, num_classes) and whole.dtype == np.float32 and ((whole > 0) & (whole < 1)).all()
    order = generator.permutation(batch_size)
    np.testing.assert_array_equal(scorer(clips[order]), whole[order])
    for count in (1, 2, batch_size - 1):  # what came before in the batch leaves nothing behind
        scorer(100 * clips)
        np.testing.assert_array_equal(scorer(clips[-count:]), whole[-count:])


def test_a_model_of_one_class_a_clip_gives_shares_of_one():
    scores = make_scorer("cnn", "single", batch_size=4)(np.ones((3, *MODELS["cnn"]), np.float32))
    np.testing.assert_allclose(scores.sum(axis=1), 1, rtol=1e-6)


def test_the_size_follows_from_the_model_alone(monkeypatch):
    scorer = make_scorer("cnn-small")
    assert scorer.batch_size == 32
    monkeypatch.setattr("egoaudio.system.memory.free_memory", lambda device: 0)
    assert make_scorer("cnn-small").batch_size == 32
    monkeypatch.setattr("egoaudio.models.steady_scorer.BATCH_BYTES", BATCH_BYTES // 1000)
    assert 1 <= make_scorer("cnn-small").batch_size < 16


def test_memory_that_runs_out_is_told_with_the_size_to_give():
    scorer = make_scorer("cnn", batch_size=4)
    scorer.model.forward = lambda features: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(ResourceError, match="4 clips at once .*batch_size=2"):
        scorer(np.zeros((1, *MODELS["cnn"]), np.float32))
