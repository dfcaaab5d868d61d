"""The step: one batch whatever its slices, and the same training with memory that runs out as without."""

import json
import math
import multiprocessing
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn

from egoaudio.configuration import ModelConfig
from egoaudio.errors import TrainingError
from egoaudio.losses import Loss
from egoaudio.microbatch import Stepper
from egoaudio.models import create_model
from egoaudio.slices import KEPT_TO_PEAK, KEPT_TO_PEAK_OF_ONE, Scorer, mixed_precision

NUM_CLASSES, SHAPE = 5, (8, 20)
OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    MemoryError(),
    MemoryError("std::bad_alloc"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
]


def batch(num_clips=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(num_clips, *SHAPE, generator=generator)
    return features, (torch.rand(num_clips, NUM_CLASSES, generator=generator) < 0.4).float()


def make_stepper(name="cnn", loss=None, learning_rate=1e-2, dropout=0.0, **options):
    torch.manual_seed(0)
    config = ModelConfig(model=name, dropout=dropout, hidden_size=16, num_layers=2, num_heads=2, patch_size=8, stride=8)
    model = create_model(name, NUM_CLASSES, SHAPE, config)
    optimizer = torch.optim.Adam(model.parameters(), learning_rate, fused=True)
    options = {"device": torch.device("cpu"), "log": [].append, **options}
    return Stepper(model, optimizer, loss or Loss("multi"), **options)


def weights(stepper):
    return torch.cat([parameter.detach().flatten() for parameter in stepper.model.parameters()])


def catch_gradient(stepper):
    """Return the gradient that the optimiser is given in one step."""
    caught = []
    stepper.optimizer.register_step_pre_hook(lambda optimizer, *_: caught.append(torch.cat([p.grad.flatten().clone() for p in stepper.model.parameters()])))
    stepper.step(*batch())
    return caught[-1]


def fail(stepper, where, times=1, error=OUT_OF_MEMORY[0], limit=0):
    """Let ``where`` (forward, backward, optimizer) raise ``error`` the first ``times`` times it sees more than ``limit`` clips."""
    left = [times]

    def strike(num_clips=math.inf):
        if left[0] > 0 and num_clips > limit:
            left[0] -= 1
            raise error

    if where == "forward":
        stepper.model.register_forward_pre_hook(lambda _, inputs: strike(len(inputs[0])))
    elif where == "backward":
        head = [module for module in stepper.model.modules() if isinstance(module, nn.Linear)][-1]  # its gradient is there by then
        head.register_full_backward_hook(lambda _, inputs, outputs: strike(len(outputs[0])))
    else:
        step = stepper.optimizer.step
        stepper.optimizer.step = lambda: (strike(), step())
    return left


# ----------------------------------------------------------------------------------------------- one batch, any slices


@pytest.mark.parametrize("name, dropout", [("cnn", 0.0), ("ast", 0.0), ("ast", 0.4)])
@pytest.mark.parametrize("label_mode", ["multi", "single"])
def test_gradient_does_not_depend_on_the_slices(name, dropout, label_mode):
    loss = Loss(label_mode, class_weights=[0.2, 3.0, 1.0, 0.0, 0.7])
    whole = catch_gradient(make_stepper(name, loss, dropout=dropout, micro_batch_size=64))
    for size in (16, 5, 1):
        sliced = catch_gradient(make_stepper(name, loss, dropout=dropout, micro_batch_size=size))
        assert float((sliced - whole).norm() / whole.norm()) < 1e-5


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


def test_loss_of_a_batch_in_which_nothing_counts_is_zero():
    labels = nn.functional.one_hot(torch.tensor([3, 3]), NUM_CLASSES).float()
    assert float(Loss("single", [1, 1, 1, 0, 1]).mean(torch.randn(2, NUM_CLASSES), labels)) == 0.0


def test_step_is_the_plain_step():
    stepper = make_stepper(micro_batch_size=7)
    plain = make_stepper()
    for seed in range(3):
        features, labels = batch(seed=seed)
        loss = nn.functional.binary_cross_entropy_with_logits(plain.model(features), labels)
        plain.optimizer.zero_grad()
        loss.backward()
        plain.optimizer.step()
        assert stepper.step(features, labels) == pytest.approx(float(loss.detach()), rel=1e-5)
    torch.testing.assert_close(weights(stepper), weights(plain), rtol=1e-4, atol=1e-5)


def test_gradient_is_clipped_after_the_last_slice():
    gradient = catch_gradient(make_stepper(micro_batch_size=5, clip_gradient=0.01))
    assert float(gradient.norm()) == pytest.approx(0.01, rel=1e-3)


def test_a_loss_that_is_not_finite_leaves_the_weights_alone():
    stepper = make_stepper()
    before = weights(stepper)
    features, labels = batch()
    features[3] = math.nan
    assert math.isnan(stepper.step(features, labels))
    assert torch.equal(weights(stepper), before)


# ----------------------------------------------------------------------------------------------- memory that runs out


def losses_and_weights(stepper, num_steps=4):
    losses = [stepper.step(*batch(seed=seed)) for seed in range(num_steps)]
    return losses, weights(stepper), stepper


@pytest.mark.parametrize("name, dropout", [("cnn", 0.0), ("ast", 0.3)])
@pytest.mark.parametrize("where", ["forward", "backward", "optimizer"])
def test_out_of_memory_anywhere_gives_the_same_training(name, dropout, where):
    expected, expected_weights, _ = losses_and_weights(make_stepper(name, dropout=dropout, micro_batch_size=64))
    stepper = make_stepper(name, dropout=dropout, micro_batch_size=64)
    left = fail(stepper, where, times=2)
    losses, trained, _ = losses_and_weights(stepper)
    assert left == [0]
    assert losses == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(trained, expected_weights, rtol=1e-3, atol=1e-4)
    assert int(next(iter(stepper.optimizer.state.values()))["step"]) == 4


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: f"{type(error).__name__}-{str(error)[:24]}")
def test_every_kind_of_out_of_memory_halves(error):
    stepper = make_stepper(micro_batch_size=64)
    fail(stepper, "forward", times=100, error=error, limit=20)
    stepper.step(*batch())
    assert stepper.micro_batch_size == 16


def test_other_errors_pass():
    stepper = make_stepper()
    fail(stepper, "forward", error=RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1"):
        stepper.step(*batch())


def test_the_size_found_is_logged_in_one_line_and_kept():
    lines = []
    stepper = make_stepper(micro_batch_size=64, log=lines.append)
    left = fail(stepper, "forward", times=100, limit=20)
    for seed in range(3):
        stepper.step(*batch(seed=seed))
    assert lines == ["micro-batch: 16 of 64 clips at a time, as memory ran out with 64 of 64 clips at a time, then 32 of 64 clips at a time"]
    assert left == [98]
    resumed = make_stepper(micro_batch_size=None)
    resumed.load_state_dict(json.loads(json.dumps(stepper.state_dict())))
    left = fail(resumed, "forward", times=100, limit=20)
    resumed.step(*batch())
    assert left == [100]


@pytest.mark.parametrize("where", ["backward", "optimizer"])
def test_a_failed_try_leaves_no_trace_in_batch_norm_or_random_numbers(where):
    outcomes = []
    for fails in (False, True):
        stepper = make_stepper("cnn-small", dropout=0.5, micro_batch_size=2 if fails else 1)
        stepper._prepare(batch(2)[0])
        if fails:
            fail(stepper, where)
        stepper.step(*batch(2))
        assert stepper.micro_batch_size == 1
        outcomes.append((torch.get_rng_state(), *stepper.model.state_dict().values()))
    for failed, smooth in zip(*outcomes, strict=True):
        assert torch.equal(failed, smooth)


def test_one_clip_that_does_not_fit_turns_on_checkpointing():
    lines = []
    stepper = make_stepper(micro_batch_size=2, log=lines.append)
    fail(stepper, "forward", times=2)
    stepper.step(*batch(2))
    assert stepper.state_dict() == {"micro_batch_size": 1, "activation_checkpointing": True}
    assert lines[0].startswith("micro-batch: 1 of 2 clips at a time with activation checkpointing, as memory ran out with 2 of 2")
    resumed = make_stepper()
    resumed.load_state_dict(stepper.state_dict())
    assert resumed.model.activation_checkpointing


def test_giving_up_says_what_was_tried_and_what_would_fit():
    stepper = make_stepper(micro_batch_size=4)
    fail(stepper, "forward", times=100)
    before = weights(stepper)
    with pytest.raises(TrainingError) as caught:
        stepper.step(*batch(4))
    words = str(caught.value)
    assert "tried 4 of 4 clips at a time, then 2 of 4 clips at a time, then 1 of 4 clips at a time, then 1 of 4 clips at a time with activation checkp" in words
    assert "MB are free on cpu" in words and "a clip is 8 x 20" in words and "CUDA out of memory" in words and "--model cnn-small" in words
    assert torch.equal(weights(stepper), before)


def test_the_optimisers_state_is_there_before_the_first_forward_pass_and_changes_nothing():
    stepper, seen = make_stepper(), []
    before = weights(stepper)
    states = stepper.optimizer.state
    stepper.model.register_forward_pre_hook(lambda *_: seen.append([value.clone() for state in states.values() for value in state.values()]))
    torch.manual_seed(0)
    stepper._prepare(batch()[0])
    assert torch.equal(weights(stepper), before)
    stepper.step(*batch())
    assert len(seen[-1]) == 3 * len(list(stepper.model.parameters()))  # step, two moments
    assert all(float(value.abs().sum()) == 0 for value in seen[-1])


def test_an_optimiser_that_fails_half_way_stops_the_run():
    stepper = make_stepper(micro_batch_size=64)
    stepper.step(*batch())
    step = stepper.optimizer.step
    stepper.optimizer.step = lambda: (step(), (_ for _ in ()).throw(OUT_OF_MEMORY[0]))
    with pytest.raises(TrainingError, match="half-way between two steps and must not be used; the last checkpoint is whole"):
        stepper.step(*batch())


def test_scaler_survives_running_out_of_memory():
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    expected, expected_weights, _ = losses_and_weights(make_stepper(micro_batch_size=64, clip_gradient=1.0))
    stepper = make_stepper(micro_batch_size=64, clip_gradient=1.0, scaler=scaler)
    stepper.step(*batch(seed=0))
    fail(stepper, "optimizer", times=1)  # after unscale_, which may be called once a step
    losses = [stepper.step(*batch(seed=seed)) for seed in (1, 2, 3)]
    assert losses == pytest.approx(expected[1:], rel=1e-4)
    torch.testing.assert_close(weights(stepper), expected_weights, rtol=1e-3, atol=1e-4)
    assert stepper.micro_batch_size == 32 and scaler.get_scale() == 256.0


# ----------------------------------------------------------------------------------------------- the first size on a CPU


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
    monkeypatch.setattr("egoaudio.slices.free_memory", lambda _: stepper.needed(one, two, clips_that_fit))
    stepper.step(*batch())
    assert stepper.state_dict() == {"micro_batch_size": size, "activation_checkpointing": False}


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
    monkeypatch.setattr("egoaudio.slices.free_memory", lambda _: 2**10)
    stepper.model.register_forward_pre_hook(lambda model, _: tried.append(model.training and not model.activation_checkpointing))
    losses, trained, _ = losses_and_weights(stepper, num_steps=1)
    assert stepper.state_dict() == {"micro_batch_size": 1, "activation_checkpointing": True}
    assert lines[-1] == "activation checkpointing is on, as one clip seems not to fit into the 0 MB that are free without it"
    assert not any(tried)
    assert losses == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(trained, expected_weights, rtol=1e-3, atol=1e-4)


def test_scoring_plans_for_a_pass_without_gradients(monkeypatch):
    stepper = make_stepper("ast")
    monkeypatch.setattr("egoaudio.slices.free_memory", lambda _: stepper._measure(batch(64)[0]).kept)
    scorer = Scorer(stepper.model, device="cpu")
    scorer(batch()[0])
    stepper.step(*batch())
    assert scorer.micro_batch_size > stepper.micro_batch_size


# ----------------------------------------------------------------------------------------------- scoring


def test_scores_are_the_models_and_survive_running_out_of_memory():
    stepper, lines = make_stepper("ast", dropout=0.4), []
    model, features = stepper.model, batch()[0]
    with torch.no_grad():
        expected = model.eval()(features)
    model.train()
    scorer = Scorer(model, device="cpu", log=lines.append)
    fail(stepper, "forward", times=100, limit=20)
    assert scorer.micro_batch_size is None
    scores = scorer(features)
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-5)
    assert scores.dtype == torch.float32 and not scores.requires_grad and model.training
    assert scorer.micro_batch_size == 16 and lines[-1] == "evaluation: 16 clips at a time, as memory ran out with 32"


def test_scoring_gives_up_in_words():
    stepper = make_stepper()
    fail(stepper, "forward", times=100)
    with pytest.raises(TrainingError, match="not even one clip can be scored"):
        Scorer(stepper.model, device="cpu", micro_batch_size=4)(batch(4)[0])


# ----------------------------------------------------------------------------------------------- precision


@pytest.mark.parametrize("wanted, dtype, expected, scaled", [
    (False, None, None, False), (True, None, torch.bfloat16, False), (True, "float16", torch.float16, True), (True, "bfloat16", torch.bfloat16, False),
])
def test_mixed_precision_on_a_cpu(wanted, dtype, expected, scaled):
    amp_dtype, scaler = mixed_precision(torch.device("cpu"), wanted, dtype)
    assert amp_dtype == expected and (scaler is not None) == scaled


@pytest.mark.parametrize("name", ["cnn", "cnn-small", "ast"])
def test_bfloat16_trains_nearly_as_float32_does(name):
    expected, _, _ = losses_and_weights(make_stepper(name, learning_rate=1e-3))
    losses, _, _ = losses_and_weights(make_stepper(name, learning_rate=1e-3, amp_dtype=torch.bfloat16))
    assert losses == pytest.approx(expected, rel=0.02)
    assert losses != expected


# ----------------------------------------------------------------------------------------------- a real limit

LIMITED = """
    import json, resource, sys
    import torch
    from egoaudio.losses import Loss
    from egoaudio.microbatch import Stepper
    from egoaudio.models import create_model

    def train(batches, micro_batch_size):
        torch.manual_seed(0)
        model = create_model("cnn", 5, (32, 257))
        optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
        lines = []
        stepper = Stepper(model, optimizer, Loss("multi"), device="cpu", micro_batch_size=micro_batch_size, log=lines.append)
        losses = [stepper.step(features, labels) for features, labels in batches]
        steps = int(next(iter(optimizer.state.values()))["step"])
        return {"losses": losses, "size": stepper.micro_batch_size, "steps": steps, "lines": lines}

    torch.set_num_threads(1)
    torch.manual_seed(0)
    batches = [(torch.randn(64, 32, 257), (torch.rand(64, 5) < 0.4).float()) for _ in range(2)]
    limit_mb, micro_batch_size = json.loads(sys.argv[1])
    train([(features[:2], labels[:2]) for features, labels in batches], 2)  # what torch makes once is there
    if limit_mb:
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + limit_mb * 2**20,) * 2)
    print(json.dumps(train(batches, micro_batch_size)))
"""


def _train_limited(limit_mb, micro_batch_size):
    """Return what came of it in a process that may take so many MB more."""
    command = [sys.executable, "-c", textwrap.dedent(LIMITED), json.dumps([limit_mb, micro_batch_size])]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_a_real_memory_limit_changes_the_slices_and_nothing_else():
    """A child process may take 75 MB more, far less than the whole batch: one tries it, one plans."""
    free, tried, planned = (_train_limited(*arguments) for arguments in ((None, 64), (75, 64), (75, None)))
    assert free["size"] == 64 and free["lines"] == []
    assert tried["size"] < 64 and "as memory ran out with 64 of 64" in tried["lines"][0]
    assert planned["size"] < 64 and "MB that are free" in planned["lines"][0]
    for limited in (tried, planned):
        assert limited["steps"] == free["steps"] == 2
        assert limited["losses"] == pytest.approx(free["losses"], rel=1e-4)


# ----------------------------------------------------------------------------------------------- process groups


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
    context.set_forkserver_preload(["pytest", "egoaudio.microbatch", "egoaudio.models.cnn"])
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
