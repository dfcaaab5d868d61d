"""Slices of a batch: the first size on a CPU, and precision."""

import pytest
import torch
from small_steps import batch, losses_and_weights, make_stepper, weights

from egoaudio.models.micro_batch import KEPT_TO_PEAK, KEPT_TO_PEAK_OF_ONE

# --------------------------------------------------------------------------------------- the first size on a CPU


def kept_by_backward(model, features):
    """Return the bytes that a forward pass keeps, all of them held until the end: the oracle."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(features)
    return sum(storage.nbytes() for address, storage in kept.items() if address not in weights)


@pytest.mark.parametrize("name", ["cnn", "cnn-small", "ast"])
def test_what_a_pass_would_keep_is_counted_without_keeping_it(name):
    stepper = make_stepper(name)
    features = batch(3)[0]
    buffers = [buffer.clone() for buffer in stepper.model.buffers()]
    measured = stepper._measure(features)
    assert measured.kept == kept_by_backward(stepper.model.eval(), features)
    assert 0 < measured.largest < measured.kept
    stepper.model.train()
    stepper.model.enable_activation_checkpointing()  # cannot be looked into: it counts as if it were off
    assert stepper._measure(features) == measured
    assert stepper.model.training and all(map(torch.equal, stepper.model.buffers(), buffers))


@pytest.mark.parametrize("clips_that_fit, size", [(64, 64), (63, 32), (8, 8), (1.5, 1)])
def test_first_size_follows_from_what_is_free(clips_that_fit, size, monkeypatch):
    stepper = make_stepper()
    one, two = (stepper._measure(batch(num_clips)[0]) for num_clips in (1, 2))
    monkeypatch.setattr("egoaudio.models.micro_batch.free_memory", lambda _: stepper.needed(one, two, clips_that_fit))
    stepper.step(*batch())
    assert stepper.state_dict() == {"micro_batch_size": size, "activation_checkpointing": False, "amp_dtype": None}


def test_what_seems_needed_grows_with_the_clips_beside_the_gradients():
    stepper = make_stepper()
    gradients = 4 * len(weights(stepper))
    one, two = (stepper._measure(batch(num_clips)[0]) for num_clips in (1, 2))
    whole = kept_by_backward(stepper.model.eval(), batch(64)[0])
    assert stepper.needed(one, two, 64) == pytest.approx(gradients + KEPT_TO_PEAK * whole, rel=1e-3)
    assert stepper.needed(one, two, 1) == gradients + KEPT_TO_PEAK_OF_ONE * one.kept


def test_one_clip_that_seems_not_to_fit_is_never_tried_without_checkpointing(monkeypatch):
    expected, expected_weights, _ = losses_and_weights(make_stepper("ast", dropout=0.3), num_steps=1)
    lines, tried = [], []
    stepper = make_stepper("ast", dropout=0.3, log=lines.append)
    monkeypatch.setattr("egoaudio.models.micro_batch.free_memory", lambda _: 2**10)
    stepper.model.register_forward_pre_hook(
        lambda model, _: tried.append(model.training and not model.activation_checkpointing)
    )
    losses, trained, _ = losses_and_weights(stepper, num_steps=1)
    assert stepper.state_dict() == {"micro_batch_size": 1, "activation_checkpointing": True, "amp_dtype": None}
    assert (
        lines[-1]
        == "activation checkpointing is on, as one clip seems not to fit into the 0 MB that are free without it"
    )
    assert not any(tried)
    assert losses == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(trained, expected_weights, rtol=1e-3, atol=1e-4)


# ----------------------------------------------------------------------------------------------- precision


@pytest.mark.parametrize("name", ["cnn", "cnn-small", "ast"])
def test_bfloat16_trains_nearly_as_float32_does(name):
    expected, _, _ = losses_and_weights(make_stepper(name, learning_rate=1e-3))
    losses, _, _ = losses_and_weights(make_stepper(name, learning_rate=1e-3, amp_dtype=torch.bfloat16))
    assert losses == pytest.approx(expected, rel=0.02)
    assert losses != expected
