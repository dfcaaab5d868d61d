"""Mixed precision: never a type that the processor emulates, and on a CPU the faster one."""

from types import SimpleNamespace

import pytest
import torch
from small_steps import batch, make_stepper, weights

from egoaudio.models import device
from egoaudio.models.device import computes_bfloat16, mixed_precision, name_of
from egoaudio.training import step


@pytest.mark.parametrize(
    "machine, onednn, avx512, amx, native",
    [
        ("x86_64", True, True, False, True),
        ("x86_64", True, False, True, True),
        ("x86_64", True, False, False, False),  # AVX-512 without bfloat16: oneDNN converts
        ("x86_64", False, False, False, False),  # AVX2
        ("x86_64", False, True, True, False),  # oneDNN told to leave it (ONEDNN_MAX_CPU_ISA)
        ("aarch64", True, False, False, True),
        ("aarch64", False, False, False, False),
    ],
)
def test_bfloat16_is_native_where_the_processor_has_it_and_onednn_uses_it(
    monkeypatch, machine, onednn, avx512, amx, native
):
    monkeypatch.setattr(device.platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: onednn)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert computes_bfloat16() == native


@pytest.mark.parametrize(
    "wanted, dtype, native, expected, scaled",
    [
        (False, None, True, None, False),
        (True, None, True, torch.bfloat16, False),
        (True, None, False, None, False),
        (True, "float16", False, torch.float16, True),
        (True, "bfloat16", False, torch.bfloat16, False),
    ],
)
def test_mixed_precision_on_a_cpu(monkeypatch, wanted, dtype, native, expected, scaled):
    monkeypatch.setattr(device, "computes_bfloat16", lambda: native)
    amp_dtype, scaler = mixed_precision(torch.device("cpu"), wanted, dtype)
    assert amp_dtype == expected and (scaler is not None) == scaled


@pytest.mark.parametrize("slow, taken", [(torch.bfloat16, None), (None, torch.bfloat16)])
def test_the_first_step_takes_the_faster_precision_says_so_and_is_otherwise_the_same_step(slow, taken, monkeypatch):
    said, clock = [], [0.0]
    monkeypatch.setattr(step, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    stepper, plain = (
        make_stepper("cnn-small", dropout=0.5, amp_dtype=dtype, log=said.append) for dtype in (torch.bfloat16, taken)
    )
    stepper.times_precisions = True
    forward = stepper.model.forward

    def delayed(x):
        current = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
        clock[0] += 2.0 if current == slow else 1.0
        return forward(x)

    stepper.model.forward = delayed
    for _ in range(2):
        features, labels = batch(8)
        torch.manual_seed(5)
        loss = stepper.step(features, labels)
        torch.manual_seed(5)
        assert loss == plain.step(features, labels)
    assert stepper.amp_dtype == taken and torch.equal(weights(stepper), weights(plain))
    assert [line for line in said if line.startswith("`amp`: computing in " + (name_of(taken) or "float32"))]
    assert len([line for line in said if line.startswith("`amp`")]) == 1


@pytest.mark.parametrize("fitting", [None, torch.bfloat16])
def test_precisions_without_memory_are_not_compared(fitting):
    """No factor is made of passes that failed: where neither has memory, the step after finds out which is faster."""
    said = []
    stepper = make_stepper("cnn-small", amp_dtype=torch.bfloat16, micro_batch_size=8, log=said.append)
    stepper.times_precisions = True
    forward = stepper.model.forward

    def limited(x):
        current = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
        if len(x) > 4 and (fitting is None or current != fitting):
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate")
        return forward(x)

    stepper.model.forward = limited
    stepper.step(*batch(8))
    told = [line for line in said if line.startswith("`amp`")]
    if fitting is not None:
        assert told == ["`amp`: computing in bfloat16, as there is no memory for float32 here"]
        return
    assert not told and stepper.times_precisions and stepper.micro_batch_size == 4
    stepper.step(*batch(8))
    (line,) = (line for line in said if line.startswith("`amp`"))
    assert "times as fast" in line and "nan" not in line and not stepper.times_precisions


def test_to_time_the_precisions_costs_no_speed_afterwards(monkeypatch):
    released = []  # after which the heap keeps no freed block, and every step makes its memory anew
    monkeypatch.setattr("egoaudio.system.allocator.release_blocks", lambda: released.append(True))
    stepper = make_stepper("cnn-small", amp_dtype=torch.bfloat16, micro_batch_size=8)
    stepper.times_precisions = True
    stepper.step(*batch(8))
    assert not stepper.times_precisions and not released


def test_a_resumed_run_keeps_what_was_found():
    stepper = make_stepper("cnn", amp_dtype=None)
    again = make_stepper("cnn", amp_dtype=torch.bfloat16)
    again.times_precisions = True
    again.load_state_dict({**stepper.state_dict(), "micro_batch_size": 4})
    assert again.amp_dtype is None and not again.times_precisions
