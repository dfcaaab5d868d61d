"""What can only be seen on a GPU: memory that really runs out, copies in flight, the same numbers as on a CPU.

Skipped where there is none; ``benchmarks/gpu.py`` runs them, too.
"""

import contextlib
import os
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import sound_files
import synthetic

import egoaudio
from egoaudio.audio.features import FeatureExtractor
from egoaudio.config.build import FeatureConfig
from egoaudio.config.train import DataConfig, ModelConfig, OptimizationConfig, TrainConfig
from egoaudio.data import augment
from egoaudio.data.dataset import ClipDataset
from egoaudio.data.loader import Loader
from egoaudio.hdf5 import reader
from egoaudio.models import create_model
from egoaudio.models.dropout import ELEMENTS_PER_DRAW, ClipDropout, place_micro_batch
from egoaudio.models.frontend import create_front_end, front_end_of_file
from egoaudio.models.scorer import Scorer
from egoaudio.training.losses import Loss
from egoaudio.training.pending_loss import PendingLoss
from egoaudio.training.step import Stepper

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
CUDA = torch.device("cuda")
NUM_CLASSES, SHAPE, BATCH = 5, (64, 128), 256
PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


@pytest.fixture(autouse=True)
def whole_gpu():
    """Take away what a test held, and its limit."""
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


def batch(seed=0, num_clips=BATCH):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(num_clips, *SHAPE, generator=generator)
    labels = (torch.rand(num_clips, NUM_CLASSES, generator=generator) < 0.4).float()
    return features.to(CUDA), labels.to(CUDA)


def make_stepper(name="ast", precision="float32", micro_batch_size=None, device=CUDA, patchout=0.0):
    torch.manual_seed(0)
    config = ModelConfig(model=name)
    if name == "ast":
        config = ModelConfig(model=name, hidden_size=48, num_layers=2, num_heads=2, dropout=0.3, patchout=patchout)
    model = create_model(name, NUM_CLASSES, SHAPE, config).to(device)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
    scaler = torch.amp.GradScaler("cuda", init_scale=1024.0) if precision == "float16" else None
    return Stepper(
        model,
        optimizer,
        Loss("multi", device=device),
        device=device,
        micro_batch_size=micro_batch_size,
        amp_dtype=PRECISIONS[precision],
        scaler=scaler,
        log=[].append,
    )


def losses(stepper, num_steps=4):
    return [stepper.step(*batch(seed)) for seed in range(num_steps)]


def run_out():
    """Ask for more than any GPU has: a real error of the allocator."""
    torch.empty(2**44, dtype=torch.uint8, device=CUDA)


@pytest.mark.parametrize("precision", list(PRECISIONS))
@pytest.mark.parametrize("where", ["forward", "backward", "optimizer"])
@pytest.mark.parametrize("name", ["ast", "cnn"])
def test_a_step_that_runs_out_of_memory_is_done_again_in_smaller_micro_batches(name, where, precision):
    expected = losses(make_stepper(name, precision))
    stepper, left = make_stepper(name, precision), [1]

    def strike(*_):
        if left[0]:
            left[0] -= 1
            run_out()

    layer = next(m for m in reversed(list(stepper.model.modules())) if isinstance(m, torch.nn.Linear))
    if where == "forward":
        layer.register_forward_hook(strike)
    elif where == "backward":
        layer.register_full_backward_hook(strike)
    else:
        stepper._prepare(batch()[0])
        stepper.optimizer.register_step_pre_hook(strike)
    found = losses(stepper)
    assert left == [0] and stepper.micro_batch_size == BATCH // 2
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_batch_that_does_not_fit_is_trained_in_micro_batches_that_do(precision):
    torch.cuda.reset_peak_memory_stats()
    expected = losses(make_stepper(precision=precision))
    needed = torch.cuda.max_memory_allocated()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    stepper = make_stepper(precision=precision)
    limit = torch.cuda.memory_allocated() + (needed - torch.cuda.memory_allocated()) // 3
    torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.get_device_properties(0).total_memory)
    found = losses(stepper)
    assert stepper.micro_batch_size < BATCH
    assert torch.cuda.max_memory_allocated() <= limit
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", ["ast", "cnn", "cnn-small"])
def test_a_gpu_computes_what_a_cpu_does(name):
    stepper = make_stepper(name)
    own = make_stepper(name, device=torch.device("cpu"), micro_batch_size=BATCH)
    for other in (stepper.model, own.model):
        for module in other.modules():
            if isinstance(module, ClipDropout):
                module.p = 0.0  # masks of a CPU and of a GPU are different draws
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        for seed in range(3):
            features, labels = batch(seed)
            assert stepper.step(features, labels) == pytest.approx(own.step(features.cpu(), labels.cpu()), rel=1e-4)
    finally:
        torch.backends.cudnn.allow_tf32 = allowed


def test_the_scorer_finds_its_own_size():
    model = make_stepper().model
    features, _ = batch()
    expected = Scorer(model, device=CUDA)(features)
    used = torch.cuda.memory_allocated()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    Scorer(model, device=CUDA)(features)
    needed = torch.cuda.max_memory_allocated() - used
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((used + needed // 3) / total)
    said = []
    scorer = Scorer(model, device=CUDA, log=said.append)
    torch.testing.assert_close(scorer(features), expected, rtol=1e-4, atol=1e-4)
    assert scorer.micro_batch_size < BATCH and "as memory ran out" in said[0]


@pytest.mark.parametrize("shape", [(7,), (300, 400), (2**20 + 5,)])
def test_dropout_masks_belong_to_clips(shape):
    layer, x = ClipDropout(0.4, layer=2), torch.ones(6, *shape, device=CUDA)
    place_micro_batch(layer.modules(), seed=9, first_clip=3)
    whole = layer(x)
    for sizes in ([2, 2, 2], [1, 5], [4, 1, 1]):
        parts, first = [], 3
        for size in sizes:
            place_micro_batch(layer.modules(), seed=9, first_clip=first)
            parts.append(layer(x[:size]))
            first += size
        assert torch.equal(torch.cat(parts), whole)
    assert len(torch.unique(whole.flatten(1)[:, :500], dim=0)) == 6
    assert abs(float((layer(torch.ones(200, 7000, device=CUDA)) == 0).float().mean()) - 0.4) < 0.01
    assert ELEMENTS_PER_DRAW["cuda"] > 1


@pytest.mark.parametrize("behind", ["the training", "the copies"])
def test_buffers_are_not_overwritten_while_their_copies_are_in_flight(tmp_path, behind):
    path = synthetic.make_file(tmp_path / "clips.h5", 8, 64, {"logmel": (98, 128)}, unlabelled=0.0)
    dataset = ClipDataset(path, "logmel", normalization=(0.3, 1.7))
    loader = Loader(dataset, 32, DataConfig(), device=CUDA, training=True)
    order, found = loader.order(0), []
    for batch_read in loader.epoch(0):
        with contextlib.nullcontext() if behind == "the training" else torch.cuda.stream(loader._copies):
            torch.cuda._sleep(20_000_000)  # the GPU falls behind by 10 ms a batch
        found.append((batch_read.features * 1.0, batch_read.rows))
    for number, (features, rows) in enumerate(found):
        items = order[number * 32 : (number + 1) * 32]
        assert np.array_equal(rows, dataset.rows[items])
        np.testing.assert_allclose(features.cpu().numpy(), dataset.fetch(items)[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("on_the_fly", [False, True])
@pytest.mark.parametrize("context_clips", [0, 1])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_rows_are_converted_and_normalised_on_the_gpu_as_on_a_cpu(tmp_path, dtype, context_clips, on_the_fly):
    how = {"dtype": dtype, "waveform_dtype": "int16" if dtype == "float16" else "float32", "f_min_hz": 20.0}
    path = sound_files.make_sound_file(tmp_path / "sound.h5", ("logmel", "waveform"), 4, 6, sample_rate=16000, **how)
    front_end = None
    if on_the_fly:
        with reader.open(path) as file:
            front_end, _ = front_end_of_file(file, "logmel", context_clips)
    found = []
    for device in ("cpu", "cuda"):
        dataset = ClipDataset(
            path, "logmel", normalization=(0.3, 1.7), context_clips=context_clips, front_end=front_end
        )
        found.append([batch.features.cpu() for batch in Loader(dataset, 7, DataConfig(), device=device).epoch(0)])
    torch.testing.assert_close(*(torch.cat(features) for features in found), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", ["cnn-small", "ast"])
@pytest.mark.parametrize("amp", [False, True])
def test_a_run_trains_resumes_and_is_evaluated(tmp_path, monkeypatch, name, amp):
    path = synthetic.make_file(tmp_path / "clips.h5", 16, 20, {"logmel": (98, 128)}, unlabelled=0.0)
    config = TrainConfig(
        model=ModelConfig(model=name, hidden_size=48, num_layers=2, num_heads=2) if name == "ast" else ModelConfig(),
        optimization=OptimizationConfig(epochs=3, amp=amp, batch_size=32),
    )
    whole = egoaudio.train(path, tmp_path / "whole", config)
    step, count = Stepper.launch, [0]

    def interrupted(self, *batch):
        count[0] += 1
        if count[0] == 9:
            raise KeyboardInterrupt
        return step(self, *batch)

    monkeypatch.setattr(Stepper, "launch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        egoaudio.train(path, tmp_path / "resumed", config)
    resumed = egoaudio.train(path, tmp_path / "resumed", config)
    losses = whole.history["train_loss"].to_numpy()
    assert np.isfinite(losses).all() and losses[-1] < losses[0]
    # Sums on a GPU are in no fixed order: two runs differ by 1e-4 after an epoch, and by more later.
    np.testing.assert_allclose(resumed.history["train_loss"], losses, rtol=0.05)
    on_gpu = egoaudio.evaluate(whole.best, path)
    on_cpu = egoaudio.evaluate(whole.best, path, device="cpu")
    assert on_gpu.scores["map"].value == pytest.approx(on_cpu.scores["map"].value, rel=0.02)


def without_graphs(stepper):
    """Launch each kernel by itself."""
    stepper._captures._off = True
    return stepper


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["ast", "cnn", "cnn-small"])
def test_a_captured_step_trains_as_launched_kernels_do(name, precision):
    found, sizes = {}, [64, 64, 64, 64, 64, 40, 64, 64]
    for way in ("captured", "launched"):
        stepper = make_stepper(name, precision, patchout=0.5)
        if way == "launched":
            without_graphs(stepper)
        found[way] = [stepper.step(*batch(seed, size)) for seed, size in enumerate(sizes)]
        assert (stepper._captures._captured is not None) == (way == "captured")
    assert found["captured"] == pytest.approx(found["launched"], rel=2e-3 if precision == "bfloat16" else 1e-3)
    assert len(set(found["captured"])) == len(sizes)


def test_a_loss_that_is_not_finite_leaves_the_weights_alone_on_the_gpu():
    stepper = make_stepper("cnn")
    for seed in range(5):
        stepper.step(*batch(seed))
    assert stepper._captures._captured is not None
    before = [parameter.clone() for parameter in stepper.model.parameters()]
    features, labels = batch()
    features[3] = float("nan")
    assert np.isnan(stepper.step(features, labels))
    assert all(torch.equal(now, then) for now, then in zip(stepper.model.parameters(), before, strict=True))
    assert np.isfinite(stepper.step(*batch(7)))
    assert not torch.equal(next(stepper.model.parameters()), before[0])


def test_a_loss_is_known_before_what_was_launched_after_it_is_done():
    later, after = PendingLoss(torch.full((), 3.5, device=CUDA)), torch.cuda.Event()
    torch.cuda._sleep(10**9)  # cycles: about half a second
    after.record()
    assert float(later) == 3.5
    assert not after.query()


def test_a_loss_stays_as_it_was_when_its_memory_is_written_again():
    loss = torch.full((), 3.5, device=CUDA)
    later = PendingLoss(loss)
    loss.fill_(4.5)
    assert float(later) == 3.5 and not later.is_known


@pytest.mark.parametrize("label_mode", ["multi", "single"])
def test_a_run_on_a_gpu_that_is_too_small_is_that_of_a_large_one(tmp_path, label_mode):
    path = synthetic.make_file(tmp_path / "clips.h5", 16, 40, {"logmel": (98, 128)}, unlabelled=0.0)
    config = TrainConfig(
        data=DataConfig(label_mode=label_mode, validation_fraction=0.2),
        model=ModelConfig(model="ast", hidden_size=48, num_layers=4, num_heads=2),
        optimization=OptimizationConfig(epochs=2, batch_size=256),
    )
    torch.cuda.reset_peak_memory_stats()
    expected = egoaudio.train(path, tmp_path / "large", config).history["train_loss"]
    needed = torch.cuda.max_memory_allocated()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + needed / 3) / total)
    found = egoaudio.train(path, tmp_path / "small", config).history["train_loss"]
    np.testing.assert_allclose(found, expected, rtol=1e-2)


def test_a_step_that_cannot_be_captured_is_launched_kernel_by_kernel():
    class Waits(torch.nn.Module):
        activation_checkpointing = False

        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(SHAPE[1], NUM_CLASSES)

        def forward(self, x):
            return self.linear(x.mean(dim=1)) * (1 + 0 * float(x.sum()))  # reads a number from the GPU

    said, model = [], Waits().to(CUDA)
    stepper = Stepper(
        model, torch.optim.Adam(model.parameters(), 1e-2, fused=True), Loss("multi"), device=CUDA, log=said.append
    )
    found = [stepper.step(*batch(0)) for _ in range(8)]
    assert sorted(found, reverse=True) == found and len(set(found)) == 8
    assert len(said) == 1 and "no CUDA graph" in said[0]


@pytest.mark.parametrize("feature", ["spectrogram", "mfcc", "logmel", "yamnet"])
@pytest.mark.parametrize("transform", ["fft", "matrix"])
def test_features_are_computed_in_float32_whatever_else_is_not(feature, transform):
    extractor = FeatureExtractor(FeatureConfig(features=(feature,)), 16000, 16000)
    levels = np.geomspace(0.3, 1e-3, 5)[:, None]
    clips = (np.random.default_rng(0).standard_normal((5, 16000)) * levels).astype(np.float32)
    front_end = create_front_end(feature, extractor.attributes(feature), 16000, 16000, transform=transform)
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cuda", torch.bfloat16):
            ours = front_end.to(CUDA)(torch.from_numpy(clips).to(CUDA)).cpu().numpy()
    finally:
        torch.set_float32_matmul_precision(precision)
    expected = extractor(clips)[feature]
    assert np.linalg.norm(ours - expected) / np.linalg.norm(expected) < 1e-4


def test_a_gpu_changes_sound_as_a_cpu_does():
    levels = torch.logspace(-0.5, -3, 8)[:, None]
    sound = torch.randn(8, 4000, generator=torch.Generator().manual_seed(0)) * levels
    sound[2] = 0
    config = DataConfig(mix_snr_db=(0.0, 20.0), filter_db=6.0, gain_db=6.0)
    change = augment.level_change("waveform", 128, 1.0)
    results = []
    for device in ("cpu", "cuda"):
        augmentation = augment.Augmentation(config, change, 500, 16000)
        with torch.autocast(device, torch.bfloat16):
            changed, _ = augmentation(sound.to(device, copy=True), torch.eye(8).to(device), np.random.default_rng(0))
        results.append(changed.cpu())
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)


# --------------------------------------------------------------------------------------------- ranks, on one GPU


def train_small(path, folder, name):
    """Train for two epochs on the first GPU; return the loss of each."""
    model = ModelConfig(model=name)
    if name == "ast":
        model = ModelConfig(model=name, hidden_size=48, num_layers=2, num_heads=2, dropout=0.2, patchout=0.0)
    optimization = OptimizationConfig(epochs=2, batch_size=50)
    config = TrainConfig(data=DataConfig(validation_fraction=0.2, gain_db=3.0), model=model, optimization=optimization)
    return egoaudio.train(path, folder, config, device="cuda:0").history["train_loss"].to_numpy()


def train_as_rank(rank, port, path, folder, name):
    """Train as one of two ranks that have one GPU, which NCCL refuses: gloo sums their tensors."""
    numbers = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1, "MASTER_PORT": port}
    os.environ |= {key: str(value) for key, value in numbers.items()} | {"MASTER_ADDR": "127.0.0.1"}
    torch.distributed.init_process_group("gloo")
    losses = train_small(path, folder / "ranks", name)
    if rank == 0:
        np.save(folder / "losses.npy", losses)
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("name", ["ast", "cnn"])
def test_two_ranks_train_as_one(tmp_path, name):
    shapes = {"logmel": (98, 128), "spectrogram": (32, 129)}
    path = synthetic.make_file(tmp_path / "clips.h5", 16, 20, shapes, unlabelled=0.0)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    torch.multiprocessing.start_processes(train_as_rank, (port, path, tmp_path, name), 2, start_method="spawn")
    np.testing.assert_allclose(np.load(tmp_path / "losses.npy"), train_small(path, tmp_path / "alone", name), rtol=1e-4)
