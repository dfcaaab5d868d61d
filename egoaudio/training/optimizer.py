"""The optimiser of a run, and its learning rate at each step."""

import math

import torch


def make_optimizer(model, options):
    """Return Adam or AdamW, fused into one pass over the weights."""
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[options.optimizer]
    return kind(model.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay, fused=True)


def learning_rate(step, num_steps, options):
    """Return the learning rate of a step of the run, counted from 0: up in a line, then down along half a cosine, or constant."""
    warmup = round(min(options.warmup_fraction, 1) * num_steps)
    if step < warmup:
        return options.learning_rate * (step + 1) / warmup
    if options.schedule == "constant":
        return options.learning_rate
    return options.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (num_steps - warmup)))
