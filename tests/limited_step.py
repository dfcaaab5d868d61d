"""Two steps of training in a process whose memory is limited; run as a script, or called where nothing is."""

import json
import resource
import sys

import torch

from egoaudio.models import create_model
from egoaudio.training.losses import Loss
from egoaudio.training.step import Stepper


def make_batches():
    """Return two batches of 64 clips."""
    torch.manual_seed(0)
    return [(torch.randn(64, 32, 257), (torch.rand(64, 5) < 0.4).float()) for _ in range(2)]


def train(batches, micro_batch_size):
    """Return what two steps gave, said and took."""
    torch.manual_seed(0)
    model = create_model("cnn", 5, (32, 257))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
    lines = []
    options = {"micro_batch_size": micro_batch_size, "log": lines.append}
    stepper = Stepper(model, optimizer, Loss("multi"), device="cpu", **options)
    losses = [stepper.step(features, labels) for features, labels in batches]
    steps = int(next(iter(optimizer.state.values()))["step"])
    return {"losses": losses, "size": stepper.micro_batch_size, "steps": steps, "lines": lines}


def main():
    """Train with so many MB more than there are in use; print the result as JSON."""
    torch.set_num_threads(1)
    limit_mb, micro_batch_size = json.loads(sys.argv[1])
    batches = make_batches()
    train([(features[:2], labels[:2]) for features, labels in batches], 2)  # what torch makes once is there
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + limit_mb * 2**20,) * 2)
    print(json.dumps(train(batches, micro_batch_size)))


if __name__ == "__main__":
    main()
