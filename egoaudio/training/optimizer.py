"""The optimiser of a run, and its learning rate at each step."""

import math

import torch


def make_optimizer(model, options):
    """Return Adam or AdamW, fused into one pass over the weights.

    A model whose weights are not all to learn alike has ``parameter_groups()``: a list of (parameters, factor of the
    learning rate). What is frozen is left out.
    """
    groups = model.parameter_groups() if hasattr(model, "parameter_groups") else [(model.parameters(), 1.0)]
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


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of each group to its share of ``rate``."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("factor", 1.0)  # runs of version 0.1.0 have one group, without a factor


def learning_rate(step, num_steps, options):
    """Return the learning rate of a step of the run, counted from 0: up in a line, then down along half a cosine, or constant."""
    warmup = round(min(options.warmup_fraction, 1) * num_steps)
    if step < warmup:
        return options.learning_rate * (step + 1) / warmup
    if options.schedule == "constant":
        return options.learning_rate
    return options.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (num_steps - warmup)))
