"""The optimiser of a run, and its learning rate at each step."""

import math
from typing import Any

import torch

from egoaudio.config.train import OptimizationConfig


def make_optimizer(model: torch.nn.Module, options: OptimizationConfig) -> torch.optim.Optimizer:
    """Return Adam or AdamW, fused into one pass over the weights.

    A model whose weights have different learning rates has ``parameter_groups()``: a list of (parameters, factor of the
    learning rate). Frozen parameters are left out.
    """
    # A resolved configuration (``TrainConfig.resolved``).
    assert options.optimizer is not None and options.learning_rate is not None and options.weight_decay is not None
    own_groups: Any = getattr(model, "parameter_groups", None)
    groups = [(model.parameters(), 1.0)] if own_groups is None else own_groups()
    trained = [
        ([parameter for parameter in parameters if parameter.requires_grad], factor) for parameters, factor in groups
    ]
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[options.optimizer]
    optimizer = kind(
        [{"params": parameters, "factor": factor} for parameters, factor in trained if parameters],
        lr=options.learning_rate,
        weight_decay=options.weight_decay,
        fused=True,
    )
    set_learning_rate(optimizer, options.learning_rate)
    return optimizer


def trained(optimizer: torch.optim.Optimizer) -> list[torch.nn.Parameter]:
    """Return the optimiser's parameters that are trained."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"] if parameter.requires_grad]


def make_state(optimizer: torch.optim.Optimizer) -> None:
    """Let an optimiser make its state now, by a step that changes nothing: gradient 0, learning rate 0."""
    rates = [group["lr"] for group in optimizer.param_groups]
    try:
        for parameter in trained(optimizer):
            parameter.grad = torch.zeros_like(parameter)
        for group in optimizer.param_groups:
            group["lr"] = 0.0
        optimizer.step()
    finally:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
    for state in optimizer.state.values():
        for value in state.values():
            if torch.is_tensor(value):
                value.zero_()


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of each group to its share of ``rate``."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("factor", 1.0)  # runs of version 0.1.0 have one group, without a factor


def learning_rate(step: int, num_steps: int, options: OptimizationConfig) -> float:
    """Return the learning rate of a step of the run, counted from 0: linear warm-up, then half a cosine or constant."""
    assert options.learning_rate is not None and options.warmup_fraction is not None
    warmup = round(options.warmup_fraction * num_steps)
    if step < warmup:
        return options.learning_rate * (step + 1) / warmup
    if options.schedule == "constant":
        return options.learning_rate
    return options.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (num_steps - warmup)))
