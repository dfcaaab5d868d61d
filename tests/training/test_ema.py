"""The average of the weights: against its formula, in place, with frozen weights and compiled models, and in a run."""

import signal

import numpy as np
import pytest
import torch
from small_runs import HARD, assert_same_run, make_config, make_file, on_step, table
from small_steps import batch, make_stepper
from torch import nn

from egoaudio.evaluation import evaluate
from egoaudio.models import checkpoints
from egoaudio.training import train
from egoaudio.training.ema import WeightAverage
from egoaudio.training.step import Stepper


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """One file for all tests that only read it."""
    return make_file(tmp_path_factory.mktemp("data") / "ego.h5")


@pytest.fixture(autouse=True)
def plain_curves(monkeypatch):
    """Draw no curves, which takes longer than the runs here."""
    monkeypatch.setattr(train, "curves_png", lambda rows: b"curves")


def floats(state):
    """Return the floating-point tensors of a state, as float64."""
    return {name: value.double().clone() for name, value in state.items() if value.is_floating_point()}


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.9999])
def test_it_is_the_formula_written_out(decay):
    stepper = make_stepper("cnn-small", dropout=0.3)
    average = WeightAverage(stepper.model, decay)
    expected = floats(stepper.model.state_dict())
    for step in range(12):
        stepper.step(*batch(seed=step))
        average.update()
        kept = min(decay, (1 + step) / (10 + step))
        for name, value in floats(stepper.model.state_dict()).items():
            expected[name] = kept * expected[name] + (1 - kept) * value
    found = average.state_dict()
    assert found.keys() == stepper.model.state_dict().keys()
    assert any("running_var" in name for name in expected)  # batch norm's statistics are averaged, too
    for name, value in found.items():
        if value.is_floating_point():
            torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6)
            assert not torch.equal(value, stepper.model.state_dict()[name]), name
        else:
            assert torch.equal(value, stepper.model.state_dict()[name])


def test_the_average_of_a_short_run_hardly_depends_on_its_initial_weights():
    model = nn.Linear(2, 1)
    nn.init.zeros_(model.weight)
    average = WeightAverage(model, 0.9999)
    nn.init.ones_(model.weight)
    for _ in range(20):
        average.update()
    assert (average.state_dict()["weight"] > 0.99).all()


def test_the_model_computes_with_the_average_while_applied_and_with_its_own_weights_afterwards():
    stepper = make_stepper("cnn-small")
    average = WeightAverage(stepper.model, 0.5)
    for seed in range(3):
        stepper.step(*batch(seed=seed))
        average.update()
    own, averaged = (
        ({name: value.clone() for name, value in each.state_dict().items()}) for each in (stepper.model, average)
    )
    alone = make_stepper("cnn-small").model
    alone.load_state_dict(averaged)
    features = batch(8)[0]
    with average.applied():
        assert torch.equal(stepper.model.eval()(features), alone.eval()(features))
    with pytest.raises(KeyboardInterrupt), average.applied():
        raise KeyboardInterrupt
    for name, value in stepper.model.state_dict().items():
        assert torch.equal(value, own[name]) and torch.equal(average.state_dict()[name], averaged[name]), name


def test_frozen_weights_stay_what_they_are_and_are_not_kept_twice():
    stepper = make_stepper("cnn-small")
    frozen = next(iter(dict(stepper.model.named_parameters())))
    stepper.model.get_parameter(frozen).requires_grad_(False)
    average = WeightAverage(stepper.model, 0.9)
    stepper.step(*batch())
    average.update()
    assert average.state_dict()[frozen].data_ptr() == stepper.model.get_parameter(frozen).data_ptr()
    with average.applied():
        stepper.model(batch(4)[0])


def test_weights_that_two_layers_share_are_averaged_once():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    average = WeightAverage(model, 0.5)
    own = model[0].weight.detach().clone()
    with torch.no_grad():
        model[0].weight += 1
    average.update()
    expected = own + 0.9  # the first update keeps a tenth
    for name in ("0.weight", "1.weight"):
        torch.testing.assert_close(average.state_dict()[name], expected)
    with average.applied():
        torch.testing.assert_close(model[1].weight.detach(), expected)
    torch.testing.assert_close(model[1].weight.detach(), own + 1)


def test_a_compiled_model_computes_with_the_average_too():
    stepper = make_stepper("cnn-small")
    average = WeightAverage(stepper.model, 0.5)
    compiled = torch.compile(stepper.model.eval(), backend="eager")
    features = batch(4)[0]
    before = compiled(features).detach()
    with torch.no_grad():
        for parameter in stepper.model.parameters():
            parameter += 0.1
    assert not torch.equal(compiled(features), before)
    with average.applied():  # it has not been told of the change
        assert torch.equal(compiled(features), before)


# ------------------------------------------------------------------------------------------------ in a run


@pytest.mark.parametrize(
    "changes", [{}, {**HARD, "micro_batch_size": 5}, {"smooth_clips": 2, "validation_fraction": 0.0}]
)
def test_interrupted_and_run_again_it_ends_in_the_same_average(tmp_path, data, monkeypatch, changes):
    config = make_config(ema=0.9, **changes)
    train.train(data, tmp_path / "whole", config)
    for stop in (2, 3, 5):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            on_step(patch, {stop: lambda: signal.raise_signal(signal.SIGINT)})
            train.train(data, tmp_path / "stopped", config)
    train.train(data, tmp_path / "stopped", config)
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")
    assert checkpoints.load(tmp_path / "whole/last.pt")["resume"]["num_averaged"] > 5
    if "smooth_clips" in changes:
        assert checkpoints.load(tmp_path / "whole/best.pt")["smooth_clips"] == 2


def test_the_average_is_what_is_validated_and_kept_and_the_steps_are_the_same_as_without(tmp_path, data, monkeypatch):
    weights, step = [], Stepper.launch

    def noted(self, features, labels):
        value = step(self, features, labels)
        weights.append({name: tensor.clone() for name, tensor in self.model.state_dict().items()})
        return value

    monkeypatch.setattr(Stepper, "launch", noted)
    for name, ema in (("plain", 0.0), ("averaged", 0.9)):
        train.train(data, tmp_path / name, make_config(ema=ema, epochs=2))
    plain, averaged = weights[: len(weights) // 2], weights[len(weights) // 2 :]
    assert len(plain) == len(averaged) == 8
    for one, other in zip(plain, averaged, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
    losses = [[row["val_loss"] for row in table(tmp_path / name)] for name in ("plain", "averaged")]
    assert all(one != other for one, other in zip(*losses, strict=True))  # of other weights
    last = checkpoints.load(tmp_path / "averaged/last.pt")
    assert all(torch.equal(last["resume"]["weights"][name], value) for name, value in averaged[-1].items())
    assert not any(
        torch.equal(last["weights"][name], value) for name, value in averaged[-1].items() if "weight" in name
    )
    assert "weights" not in checkpoints.load(tmp_path / "plain/last.pt")["resume"]
    best = checkpoints.load(tmp_path / "averaged/best.pt")
    found = evaluate.evaluate(tmp_path / "averaged/best.pt", data, split="validation", output=tmp_path, num_resamples=0)
    np.testing.assert_allclose(found.scores["map"].value, best["metrics"]["map"])
