"""The losses, each against its formula written out, and as sums over micro-batches."""

import math

import pytest
import torch
from small_steps import NUM_CLASSES, batch, catch_gradient, make_stepper
from torch import nn

from egoaudio.errors import EvaluationError
from egoaudio.training.losses import Loss

WEIGHTS = [0.2, 3.0, 1.0, 0.0, 0.7]


def asymmetric(logit, label):
    """Return the loss of one label: Ridnik et al. 2021, equations 3 to 5, with gamma+ 0, gamma- 4, margin 0.05."""
    probability = 1 / (1 + math.exp(-logit))
    shifted = max(probability - 0.05, 0)
    return -label * math.log(probability) - (1 - label) * shifted**4 * math.log(1 - shifted)


def cross_entropy(logit, label):
    probability = 1 / (1 + math.exp(-logit))
    return -label * math.log(probability) - (1 - label) * math.log(1 - probability)


def soft_batch(num_clips=9, seed=0):
    """Return logits and labels of which some are mixed."""
    labels = batch(num_clips, seed)[1]
    return 3 * torch.randn(
        num_clips, NUM_CLASSES, generator=torch.Generator().manual_seed(seed)
    ), 0.7 * labels + 0.3 * labels.flip(0)


@pytest.mark.parametrize("kind", ["bce", "asymmetric"])
@pytest.mark.parametrize("class_weights", [None, WEIGHTS])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_losses_of_many_labels_are_their_formula_written_out(kind, class_weights, label_smoothing):
    logits, labels = soft_batch()
    one = {"bce": cross_entropy, "asymmetric": asymmetric}[kind]
    expected = 0.0
    for row in range(len(labels)):
        for column in range(NUM_CLASSES):
            towards = float(labels[row, column]) * (1 - 2 * label_smoothing) + label_smoothing
            expected += (class_weights or [1] * 5)[column] * one(float(logits[row, column]), towards)
    loss = Loss("multi", class_weights, kind=kind, label_smoothing=label_smoothing)
    assert float(loss.mean(logits, labels)) == pytest.approx(expected / labels.numel(), rel=1e-5)


@pytest.mark.parametrize("class_weights", [None, WEIGHTS])
@pytest.mark.parametrize("label_smoothing", [0.1, 0.4])
def test_label_smoothing_of_one_label_is_torchs(class_weights, label_smoothing):
    logits, classes = torch.randn(9, NUM_CLASSES), torch.randint(NUM_CLASSES, (9,))
    weight = None if class_weights is None else torch.tensor(class_weights)
    expected = nn.CrossEntropyLoss(weight=weight, label_smoothing=label_smoothing)(logits, classes)
    labels = nn.functional.one_hot(classes, NUM_CLASSES).float()
    found = Loss("single", class_weights, label_smoothing=label_smoothing).mean(logits, labels)
    torch.testing.assert_close(found, expected)


def test_label_smoothing_moves_labels_towards_a_half():
    labels = torch.tensor([[1.0, 0.0]])
    torch.testing.assert_close(Loss("multi", label_smoothing=0.1)._smoothed(labels), torch.tensor([[0.9, 0.1]]))
    torch.testing.assert_close(Loss("single", label_smoothing=0.1)._smoothed(labels), torch.tensor([[0.95, 0.05]]))
    assert (
        float(Loss("single", label_smoothing=0.1).sum(torch.randn(1, 2), torch.zeros(1, 2))) == 0.0
    )  # a clip of no class


def test_an_asymmetric_negative_that_the_model_is_sure_of_costs_nothing_and_less_than_cross_entropy_elsewhere():
    logits = torch.linspace(-60, 60, 241).requires_grad_()
    negatives = torch.zeros(241)
    loss = Loss("multi", kind="asymmetric")
    loss.sum(logits[:, None], negatives[:, None]).backward()
    assert torch.isfinite(logits.grad).all()
    sure = logits.detach().sigmoid() <= 0.05
    assert sure.any() and (logits.grad[sure] == 0).all()
    of_bce = logits.detach().sigmoid()
    assert (logits.grad <= of_bce + 1e-6).all()
    positive = torch.tensor([[-60.0, 60.0]], requires_grad=True)
    value = loss.sum(positive, torch.ones(1, 2))
    value.backward()
    assert float(value.detach()) == pytest.approx(60)
    torch.testing.assert_close(positive.grad, torch.tensor([[-1.0, 0.0]]))


@pytest.mark.parametrize(
    "options",
    [
        {"label_mode": "multi", "kind": "asymmetric", "label_smoothing": 0.1},
        {"label_mode": "multi", "label_smoothing": 0.1},
        {"label_mode": "single", "label_smoothing": 0.1},
    ],
)
def test_gradient_does_not_depend_on_the_micro_batch(options):
    loss = Loss(class_weights=WEIGHTS, **options)
    whole = catch_gradient(make_stepper("cnn", loss, micro_batch_size=64))
    for size in (16, 5):
        sliced = catch_gradient(make_stepper("cnn", loss, micro_batch_size=size))
        assert float((sliced - whole).norm() / whole.norm()) < 1e-5


@pytest.mark.parametrize(
    "arguments", [{"label_mode": "single", "kind": "asymmetric"}, {"label_mode": "multi", "kind": "focal"}]
)
def test_an_unknown_loss_is_refused(arguments):
    with pytest.raises(ValueError, match="expected bce, or asymmetric with multi"):
        Loss(**arguments)


@pytest.mark.parametrize("label_mode", ["multi", "single"])
@pytest.mark.parametrize("shape", [(4,), (4, 1), (1, 4), (3, 4)])
def test_labels_of_another_shape_are_refused_not_broadcast(label_mode, shape):
    with pytest.raises(
        EvaluationError, match=r"logits \(4, 4\) and labels .*: expected \(num_clips, num_classes\) of both"
    ):
        Loss(label_mode).sum(torch.zeros(4, 4), torch.zeros(shape))


@pytest.mark.parametrize("label_mode", ["multi", "single"])
@pytest.mark.parametrize("class_weights", [None, [0.2, 3.0, 1.0, 0.0, 0.7]])
def test_loss_is_torchs(label_mode, class_weights):
    logits, labels = torch.randn(9, NUM_CLASSES), batch(9)[1]
    weight = None if class_weights is None else torch.tensor(class_weights)
    if label_mode == "multi":
        expected = nn.BCEWithLogitsLoss(weight=weight)(logits, labels)
    else:
        classes = torch.randint(NUM_CLASSES, (9,))
        labels = nn.functional.one_hot(classes, NUM_CLASSES).float()
        expected = nn.CrossEntropyLoss(weight=weight)(logits, classes)
    torch.testing.assert_close(Loss(label_mode, class_weights).mean(logits, labels), expected)


def test_loss_of_a_batch_without_any_weight_is_zero():
    labels = nn.functional.one_hot(torch.tensor([3, 3]), NUM_CLASSES).float()
    assert float(Loss("single", [1, 1, 1, 0, 1]).mean(torch.randn(2, NUM_CLASSES), labels)) == 0.0
