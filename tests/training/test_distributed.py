"""Process groups: ranks halve together, and train on the whole batch."""

import multiprocessing

import pytest
import torch
from small_steps import (
    batch,
    fail,
    losses_and_weights,
    make_stepper,
    weights,
)


def _train_one_rank(rank, address, results):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{address}", rank=rank, world_size=2)
    stepper = make_stepper(micro_batch_size=32)
    if rank == 1:
        fail(stepper, "forward", times=1)
    losses = []
    for seed in range(3):
        features, labels = batch(seed=seed)
        losses.append(stepper.step(features[rank * 32 : rank * 32 + 32], labels[rank * 32 : rank * 32 + 32]))
    results.put((rank, losses, weights(stepper).tolist(), stepper.micro_batch_size))
    torch.distributed.destroy_process_group()


def test_processes_of_a_group_halve_together_and_train_on_the_whole_batch(tmp_path):
    expected, expected_weights, _ = losses_and_weights(make_stepper(), num_steps=3)
    context = multiprocessing.get_context("forkserver")  # torch is imported once for both
    context.set_forkserver_preload(["pytest", "egoaudio.training.step", "egoaudio.models.cnn"])
    results = context.Queue()
    processes = [context.Process(target=_train_one_rank, args=(rank, tmp_path / "group", results)) for rank in (0, 1)]
    for process in processes:
        process.start()
    outcomes = [results.get(timeout=100) for _ in processes]
    for process in processes:
        process.join(timeout=30)
    for _, losses, trained, size in outcomes:
        assert size == 16
        assert losses == pytest.approx(expected, rel=1e-4)
        torch.testing.assert_close(torch.tensor(trained), expected_weights, rtol=1e-3, atol=1e-4)
