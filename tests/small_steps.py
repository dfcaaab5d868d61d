"""Steps in tests: small models and batches, and memory that runs out at a chosen place."""

import math

import torch
from torch import nn

from egoaudio.config.train import ModelConfig
from egoaudio.models import create_model
from egoaudio.training.losses import Loss
from egoaudio.training.step import Stepper

NUM_CLASSES, SHAPE = 5, (8, 20)
OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    MemoryError(),
    MemoryError("std::bad_alloc"),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 "
        "bytes."
    ),
]


def batch(num_clips=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(num_clips, *SHAPE, generator=generator)
    return features, (torch.rand(num_clips, NUM_CLASSES, generator=generator) < 0.4).float()


def make_stepper(name="cnn", loss=None, learning_rate=1e-2, dropout=0.0, patchout=0.0, **options):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "patch_size": 8, "stride": 4}
    config = ModelConfig(model=name, dropout=dropout, patchout=patchout, **sizes)
    model = create_model(name, NUM_CLASSES, SHAPE, config)
    optimizer = torch.optim.Adam(model.parameters(), learning_rate, fused=True)
    options = {"device": torch.device("cpu"), "log": [].append, **options}
    return Stepper(model, optimizer, loss or Loss("multi"), **options)


def gradients(model):
    """Return the gradient of each parameter."""
    return [parameter.grad for parameter in model.parameters()]


def relative_error(actual, expected):
    return float((actual - expected).norm() / expected.norm())


def weights(stepper):
    return torch.cat([parameter.detach().flatten() for parameter in stepper.model.parameters()])


def catch_gradient(stepper):
    """Return the gradient that the optimiser gets in one step."""
    caught = []
    stepper.optimizer.register_step_pre_hook(
        lambda optimizer, *_: caught.append(torch.cat([p.grad.flatten().clone() for p in stepper.model.parameters()]))
    )
    stepper.step(*batch())
    return caught[-1]


def fail(stepper, where, times=1, error=OUT_OF_MEMORY[0], limit=0):
    """Let ``where`` (forward, backward, optimizer) raise ``error`` ``times`` times, with over ``limit`` clips."""
    left = [times]

    def strike(num_clips=math.inf):
        if left[0] > 0 and num_clips > limit:
            left[0] -= 1
            raise error

    if where == "forward":
        stepper.model.register_forward_pre_hook(lambda _, inputs: strike(len(inputs[0])))
    elif where == "backward":
        head = [module for module in stepper.model.modules() if isinstance(module, nn.Linear)][
            -1
        ]  # its gradient is there by then
        head.register_full_backward_hook(lambda _, inputs, outputs: strike(len(outputs[0])))
    else:
        step = stepper.optimizer.step
        stepper.optimizer.step = lambda: (strike(), step())
    return left


def losses_and_weights(stepper, num_steps=4):
    losses = [stepper.step(*batch(seed=seed)) for seed in range(num_steps)]
    return losses, weights(stepper), stepper
