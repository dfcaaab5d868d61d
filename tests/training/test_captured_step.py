"""A captured step, as the stepper does it; a real CUDA graph is captured in ``test_cuda``."""

import math

import pytest
import torch
from small_steps import batch, make_stepper, weights
from torch import nn

from egoaudio.training.captured_step import Captures, skipping_if_not_finite
from egoaudio.training.losses import Loss
from egoaudio.training.pending_loss import PendingLoss


class Step:
    """What ``CapturedStep`` is to a stepper, on a CPU: kernels are launched one by one."""

    def __init__(self, stepper):
        self.stepper, self.count = stepper, 0

    def replay(self, features, labels, seed):
        self.count += 1
        loss = self.stepper.loss.sum(self.stepper.model(features), labels) / self.stepper.loss.divisor(labels)
        loss.backward()
        with skipping_if_not_finite(self.stepper.optimizer, loss.detach()):
            self.stepper._update()
        self.stepper.optimizer.zero_grad(set_to_none=True)
        return PendingLoss(loss)


class Always:
    """Captures that have a step for every batch."""

    def __init__(self, one):
        self.one = one

    def find(self, features, capture):
        return self.one


def captured_stepper(**options):
    stepper = make_stepper(micro_batch_size=64, **options)
    stepper._captures = Always(Step(stepper))
    return stepper


def test_it_trains_as_without():
    captured, plain = captured_stepper(clip_gradient=0.1), make_stepper(micro_batch_size=64, clip_gradient=0.1)
    for seed in range(4):
        assert captured.step(*batch(seed=seed)) == pytest.approx(plain.step(*batch(seed=seed)), rel=1e-5)
    torch.testing.assert_close(weights(captured), weights(plain), rtol=1e-4, atol=1e-5)


def test_a_loss_that_is_not_finite_leaves_the_weights_alone():
    stepper = captured_stepper()
    stepper.step(*batch())
    before = weights(stepper)
    features, labels = batch()
    features[3] = math.nan
    assert math.isnan(stepper.step(features, labels))
    assert torch.equal(weights(stepper), before)
    assert math.isfinite(stepper.step(*batch(seed=1)))
    assert not torch.equal(weights(stepper), before)
    assert not hasattr(stepper.optimizer, "found_inf")


def test_labels_of_no_weight_are_no_division_by_zero():
    stepper = captured_stepper(loss=Loss("single", class_weights=[0.0, 1.0, 1.0, 1.0, 1.0]))
    features, _ = batch()
    labels = torch.zeros(len(features), 5)
    labels[:, 0] = 1
    assert stepper.step(features, labels) == 0.0


@pytest.mark.parametrize("why", ["a smaller micro-batch", "checkpointing", "compiled"])
def test_it_is_left_out_where_it_would_not_be_the_same(why):
    stepper = captured_stepper()
    if why == "a smaller micro-batch":
        stepper.micro_batch_size = 32
    elif why == "checkpointing":
        stepper.model.enable_activation_checkpointing()
    else:
        stepper.model._orig_mod = nn.Identity()
    assert math.isfinite(stepper.step(*batch()))
    assert stepper._captures.one.count == 0


def test_nothing_is_captured_on_a_cpu():
    captures = Captures(torch.device("cpu"), pytest.fail)
    assert [captures.find(torch.zeros(4, 8, 20), pytest.fail) for _ in range(9)] == [None] * 9
