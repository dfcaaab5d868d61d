"""What leaves the house: graph, weights and card say and compute what the product does, where it is not installed."""

import json
import re
import shutil
import subprocess
import sys
import tempfile
import wave
from pathlib import Path

import huggingface_hub
import noisereduce
import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors.torch
import torch
import transformers
from conftest import make_media
from exported_models import MODELS, NAMES, make_checkpoint, make_sound

import egoaudio
from egoaudio.audio.features import FeatureExtractor
from egoaudio.config.options import from_json, to_json
from egoaudio.evaluation.calibration import Calibration
from egoaudio.exporting import card, graph
from egoaudio.exporting import export as export_module
from egoaudio.models import checkpoints
from egoaudio.models.steady_scorer import SteadyScorer


def own_probabilities(path, build, sound):
    """Return the product's probabilities of clips with their neighbours, computed from the file's features."""
    network, contents = checkpoints.load_model(path)
    config = from_json(egoaudio.TrainConfig, contents["config"])
    num_rows = 2 * config.data.context_clips + 1
    rows = sound.reshape(len(sound) * num_rows, -1)
    features = FeatureExtractor(build.features, 16000, rows.shape[1])(rows)[contents["feature"]]
    features = features.reshape(len(sound), -1, *features.shape[2:])
    features = (features - contents["normalization"]["mean"]) / contents["normalization"]["std"]
    scorer = SteadyScorer(network, features.shape[1:], config.data.label_mode, device="cpu", batch_size=8)
    calibration = Calibration.from_plain(contents["calibration"])
    scores = scorer(features.astype(np.float32))
    return scores if calibration is None else calibration.apply(scores)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Export each model once, when it is first asked for; return ``(folder, report, contents, build)``."""
    done = {}

    def get(key):
        if key not in done:
            folder = tmp_path_factory.mktemp("exported")
            model, feature, options = MODELS[key]
            contents, build = make_checkpoint(folder / "best.pt", model, feature, **options)
            done[key] = folder, egoaudio.export(folder / "best.pt", folder / "model.onnx"), contents, build
        return done[key]

    return get


@pytest.mark.parametrize("key", MODELS)
def test_the_graph_gives_the_products_probabilities(exported, key):
    folder, report, _, build = exported(key)
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    sound = make_sound(7, report.num_samples)
    expected = own_probabilities(folder / "best.pt", build, sound)
    assert np.ptp(expected, axis=0).max() > 0.05  # clips differ
    for clips in (slice(0, 1), slice(0, 7)):
        (found,) = session.run(None, {"sound": sound[clips]})
        assert found.dtype == np.float32 and np.abs(found - expected[clips]).max() < 1e-4
    in_network = MODELS[key][1] == "waveform"
    assert in_network == ("DFT" in {node.op_type for node in onnx.load(folder / "model.onnx").graph.node})
    assert report.difference < 1e-4 and str(report).startswith(f"{folder / 'model.onnx'}: ")
    onnx.checker.check_model(folder / "model.onnx")


@pytest.mark.parametrize(("of_tones", "told"), [(3e-3, True), (5e-5, False)])
def test_what_is_not_the_same_of_pure_tones_is_told(monkeypatch, of_tones, told):
    """Far below a tone, a spectrogram is the rounding of float32, by which processors differ."""
    monkeypatch.setattr(graph, "attention_bytes", lambda classifier: 0)
    monkeypatch.setattr(graph, "largest_differences", lambda data, classifier: (2e-7, of_tones))
    difference, notes = export_module._checked(b"", None)
    assert difference == 2e-7 and len(notes) == told
    assert not told or "of pure tones onnxruntime differs from the model by 0.003: far below" in notes[0]


def test_the_report_says_how_far_the_graph_is_from_the_model(exported):
    assert "; of noise onnxruntime differs" in str(exported("cnn")[1])


@pytest.mark.parametrize("key", MODELS)
def test_load_model_gives_the_products_probabilities(exported, key):
    folder, report, contents, build = exported(key)
    model = egoaudio.load_model(folder / "best.pt", front_end=True, device="cpu")
    sound = make_sound(5, *model.input_shape)
    with torch.inference_mode():
        found = model(torch.from_numpy(sound)).numpy()
    assert np.abs(found - own_probabilities(folder / "best.pt", build, sound)).max() < 1e-4
    assert model.input_shape == (report.num_samples,) and model.class_names == tuple(NAMES)
    assert model(torch.zeros(0, *model.input_shape)).shape == (0, len(NAMES))


def folders_of_this_machine(report, tmp_path):
    """Return which of this machine's folders the files of an export name."""
    package, libraries = Path(egoaudio.__file__).parents[1], Path(torch.__file__).parents[1]
    folders = {str(folder) for folder in (tmp_path, package, libraries, Path.home(), tempfile.gettempdir())} - {"/"}
    written = b"".join(path.read_bytes() for path in (report.graph, report.weights, report.card))
    return [folder for folder in folders if f"{folder}/".encode() in written]


@pytest.mark.parametrize("key", MODELS)
def test_published_files_name_no_folder_of_this_machine(exported, key):
    folder, report, *_ = exported(key)
    assert not folders_of_this_machine(report, folder)


def test_a_model_that_began_with_published_weights_needs_them_no_more(tmp_path):
    """A small AST as transformers saves AudioSet's: 1,024 frames, 527 classes, stride 10; the clip has 98 frames."""
    torch.manual_seed(5)
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    published = transformers.ASTForAudioClassification(transformers.ASTConfig(**small, num_labels=527))
    for parameter in published.parameters():
        parameter.data.normal_(std=0.1)
    published.save_pretrained(tmp_path / "published")
    options = {"pretrained": str(tmp_path / "published"), "normalize": "paper"}
    options["teacher"] = (str(tmp_path / "teacher" / "best.pt"), "runs/other.pt")
    _, build = make_checkpoint(tmp_path / "best.pt", "ast", "logmel", **options)
    shutil.rmtree(tmp_path / "published")
    report = egoaudio.export(tmp_path / "best.pt", tmp_path / "model.onnx")
    assert (
        "starting from published\n" in report.card.read_text() and "teacher best.pt other.pt" in report.card.read_text()
    )
    with safetensors.safe_open(report.weights, "pt") as file:
        config = json.loads(file.metadata()["config"])
    assert config["pretrained"] == "published" and config["teacher"] == ["best.pt", "other.pt"]
    assert not folders_of_this_machine(report, tmp_path)
    sound = make_sound(7, report.num_samples)
    expected = own_probabilities(tmp_path / "best.pt", build, sound)
    assert np.ptp(expected, axis=0).max() > 0.05 and report.difference < 1e-4
    for clips in (slice(0, 1), slice(0, 7)):
        (found,) = onnxruntime.InferenceSession(report.graph).run(None, {"sound": sound[clips]})
        assert np.abs(found - expected[clips]).max() < 1e-4


def test_the_input_of_a_model_with_context_is_the_sound_around_the_clip(exported):
    facts = metadata(exported("ast-paper")[1].graph)
    assert facts["clip_seconds"] == "0.3" and facts["context_seconds"] == "0.6" and facts["num_samples"] == "9600"


def test_load_model_takes_the_files_features(exported):
    folder, _, contents, build = exported("cnn")
    model = egoaudio.load_model(folder / "best.pt", device="cpu")
    sound = make_sound(5, 16000)
    features = FeatureExtractor(build.features, 16000, 16000)(sound)["spectrogram"]
    assert model.input_shape == tuple(contents["feature_shape"]) == features.shape[1:] and model.front_end is None
    with torch.inference_mode():
        found = model(torch.from_numpy(features)).numpy()
    assert np.abs(found - own_probabilities(folder / "best.pt", build, sound)).max() < 1e-5


def test_integers_are_refused_with_the_scale_that_makes_sound_of_them(exported):
    model = egoaudio.load_model(exported("cnn")[0] / "best.pt", front_end=True, device="cpu")
    stored = torch.from_numpy(np.round(32767 * make_sound(2, 16000)).astype(np.int16))
    with pytest.raises(ValueError, match="an input of torch.int16: expected floats; .* attribute scale of"):
        model(stored)
    assert model(stored * (1 / 32767)).shape == (2, len(NAMES))


def test_logits_have_gradients(exported):
    model = egoaudio.load_model(exported("cnn")[0] / "best.pt", front_end=True, device="cpu")
    model.logits(torch.from_numpy(make_sound(2, 16000))).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_scores_at_the_ends_become_the_products_probabilities(exported):
    """Beyond 1e-7 from 0 and 1 the product cuts scores before it calibrates them."""
    contents = {**exported("cnn")[2], "feature_shape": [1, 4]}
    logits = torch.tensor([[-40.0, -16.5, -9.0, 0.0], [16.5, 40.0, 9.0, 5.0]])
    model = egoaudio.Classifier(torch.nn.Flatten(), {**contents, "normalization": {"mean": 0.0, "std": 1.0}})
    expected = Calibration.from_plain(contents["calibration"]).apply(torch.sigmoid(logits.double()).numpy())
    assert np.abs(model(logits[:, None]).numpy() - expected).max() < 1e-6


# ------------------------------------------------------------------------------------------- without egoaudio

WITHOUT = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "egoaudio", "torchaudio", "transformers", "h5py"):
            raise ImportError(f"{name} is not here")
sys.meta_path.insert(0, Refuse())
"""


def run_without(folder, code):
    """Run code in a folder, in a process that has neither torch nor egoaudio; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", WITHOUT + code], cwd=folder, capture_output=True, text=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def write_wav(path, samples, channels=1, sample_rate=16000):
    """Write 16-bit samples, of all channels in turn."""
    with wave.open(str(path), "wb") as file:
        file.setparams((channels, 2, sample_rate, 0, "NONE", ""))
        file.writeframes(samples.tobytes())


def example(report):
    """Return the code on a card."""
    (code,) = re.findall(r"^```python\n(.*?)^```", report.card.read_text(encoding="utf-8"), re.DOTALL | re.M)
    return "import sys; sys.stdout.reconfigure(encoding='utf-8')\n" + code


def test_the_lines_of_the_card_take_a_shorter_sound_and_refuse_another_kind(exported):
    folder, report, _, build = exported("cnn-small")
    code = example(report)
    sound = make_sound(3, report.num_samples)[2:]
    sound[:, 20_000:] = 0
    samples = np.round(32767 * sound[0, :20_000]).astype("<i2")
    write_wav(folder / "sound.wav", samples)
    (expected,) = own_probabilities(folder / "best.pt", build, sound)
    for line, name, probability in zip(run_without(folder, code).splitlines(), NAMES, expected, strict=True):
        assert abs(float(line.removeprefix(name).split()[0]) - probability) < 2e-3  # the samples were rounded
    for channels, sample_rate in ((2, 16000), (1, 44100)):
        write_wav(folder / "sound.wav", samples, channels, sample_rate)
        with pytest.raises(AssertionError, match="expected mono, 2 bytes a sample, 16000 Hz"):
            run_without(folder, code)


def test_the_ten_lines_of_the_card_run_without_torch(exported):
    folder, report, _, build = exported("cnn-small")
    code = example(report)
    assert len(code.splitlines()) == 1 + 10 and "torch" not in code and "egoaudio" not in code
    samples = np.round(32767 * make_sound(3, report.num_samples)[2]).astype("<i2")
    write_wav(folder / "sound.wav", samples)
    (expected,) = own_probabilities(folder / "best.pt", build, samples[None] / np.float32(32768))
    lines = run_without(folder, code).splitlines()
    thresholds = json.loads(metadata(report.graph)["thresholds"])
    assert thresholds[2] is None and None not in thresholds[:2]
    for line, name, probability, threshold in zip(lines, NAMES, expected, thresholds, strict=True):
        said, number, *heard = line.removeprefix(name).split(" ") if line.startswith(name) else pytest.fail(line)
        assert said == "" and abs(float(number) - probability) < 6e-4
        assert heard == ["heard" if threshold is not None and probability >= threshold else ""]
    with pytest.raises(AssertionError, match="torch is not here"):
        run_without(folder, "import torch")


def metadata(path):
    return onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map


def test_the_metadata_say_what_goes_in_and_comes_out(exported):
    _, report, contents, _ = exported("cnn-small")
    facts = metadata(report.graph)
    assert facts.keys() == set(card.MEANINGS)
    assert json.loads(facts["class_names"]) == NAMES and json.loads(facts["class_ids"]) == contents["class_ids"]
    assert facts["num_samples"] == "48000" and facts["sample_rate"] == "16000" and facts["context_seconds"] == "3"
    assert facts["clip_seconds"] == facts["hop_seconds"] == "1" and facts["smooth_clips"] == "2"
    calibration = Calibration.from_plain(contents["calibration"])
    thresholds = json.loads(facts["thresholds"])
    expected = calibration.apply(np.array([0.3, 0.6, 0.5, 0.5]))
    assert np.allclose([thresholds[k] for k in (0, 1, 3)], expected[[0, 1, 3]]) and thresholds[2] is None
    assert facts["denoise"] == "none" and facts["calibration"] == "platt"
    assert facts["egoaudio_version"] == egoaudio.__version__ and facts["trained_with"] == "0.0.1"


@pytest.mark.parametrize("key", ["cnn", "ast", "yamnet"])
def test_the_weights_are_the_networks(exported, key):
    _, report, contents, _ = exported(key)
    weights = safetensors.torch.load_file(report.weights)
    assert weights.keys() == contents["weights"].keys()
    assert all(torch.equal(weights[name], contents["weights"][name]) for name in weights)
    with safetensors.safe_open(report.weights, "pt") as file:
        assert json.loads(file.metadata()["class_names"]) == NAMES and file.metadata()["config"] == contents["config"]


def test_the_card_is_one_for_the_hub(exported):
    _, report, _, _ = exported("cnn-small")
    text = report.card.read_text(encoding="utf-8")
    data = huggingface_hub.ModelCard(text).data
    assert data.pipeline_tag == "audio-classification" and data.model_name == "model"
    assert [(result.metric_type, result.metric_value) for result in data.eval_results] == [
        ("accuracy", 0.5),
        ("mean_average_precision", 0.25),
    ]
    assert "| mAP | 25.0 | - | 12.5 |" in text and "has not been evaluated" in text
    assert r"Pouring \| \<b\>" in text and "<b>" not in text  # names are text, not HTML
    assert "averaged over neighbouring clips (2" in text and "The input is 3 s: the 1 s" in text


def test_a_graph_that_is_not_the_model_is_not_written(exported, tmp_path, monkeypatch):
    folder, report, *_ = exported("cnn")

    def spoilt(classifier, facts, opset):
        classifier.intercept += 0.5
        return report.graph.read_bytes()

    monkeypatch.setattr(graph, "make_graph", spoilt)
    with pytest.raises(egoaudio.ExportError, match="differ from the model's by 0.1"):
        egoaudio.export(folder / "best.pt", tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------ a real run, end to end


def test_a_trained_model_gives_what_evaluation_and_prediction_give(tmp_path, kept_workers):
    for number in range(4):
        make_media(tmp_path / f"v{number}.wav", 3.0, "pcm_s16le", sample_rate=16000, channels=1)
    rows = [f"v{number},{start},{start + 1},{'abc'[start]},train" for number in range(4) for start in range(3)]
    (tmp_path / "train.csv").write_text("\n".join(["video,start,end,label,split", *rows]) + "\n")
    build = egoaudio.BuildConfig(
        denoise=egoaudio.DenoiseConfig(mode="none"), features=egoaudio.FeatureConfig(features=("logmel", "waveform"))
    )
    inputs = egoaudio.Inputs(annotations=tmp_path / "train.csv", videos=tmp_path)
    egoaudio.build(inputs, tmp_path / "ego.h5", build, num_workers=1)
    config = egoaudio.TrainConfig(
        model=egoaudio.ModelConfig(model="cnn-small"), optimization=egoaudio.OptimizationConfig(epochs=1)
    )
    run = egoaudio.train(tmp_path / "ego.h5", tmp_path / "run", config, device="cpu")
    egoaudio.export(run.best, tmp_path / "exported" / "model.onnx")
    calibration = Calibration.from_plain(checkpoints.load(run.best)["calibration"])
    session = onnxruntime.InferenceSession(tmp_path / "exported" / "model.onnx")
    with egoaudio.open(tmp_path / "ego.h5") as file:
        sound = np.array(file["waveform"]).reshape(4, 3 * 16000)
    padded = np.pad(sound, ((0, 0), (16000, 16000)))  # the neighbours of the first and the last clip are silence
    windows = np.stack([padded[:, start : start + 48000] for start in (0, 16000, 32000)], axis=1)
    for prediction, clips in zip(egoaudio.predict(run.best, tmp_path / "ego.h5"), windows, strict=True):
        (found,) = session.run(None, {"sound": clips})
        assert np.abs(found - calibration.apply(prediction.scored.scores)).max() < 1e-4


def test_what_the_card_says_of_denoising_makes_the_files_sound(tmp_path, kept_workers):
    """A row of waveforms is denoised with the sound around it, then cut."""
    sound = make_sound(4, 4 * 16000)[3]
    make_media(tmp_path / "v.wav", 4.0, "pcm_s16le", sample_rate=16000, channels=1, sound=sound)
    (tmp_path / "train.csv").write_text("video,start,end,label,split\nv,0,2,a,train\n")
    options = {"denoise": egoaudio.DenoiseConfig(mode="stationary"), "features": egoaudio.FeatureConfig(("waveform",))}
    build = egoaudio.BuildConfig(clips=egoaudio.ClipConfig(context_seconds=2.0), **options)
    inputs = egoaudio.Inputs(annotations=tmp_path / "train.csv", videos=tmp_path)
    egoaudio.build(inputs, tmp_path / "ego.h5", build, num_workers=1)
    contents, _ = make_checkpoint(tmp_path / "best.pt", "yamnet", "waveform", normalize="none")
    checkpoints.save(tmp_path / "best.pt", {**contents, "build": to_json(build)})
    report = egoaudio.export(tmp_path / "best.pt", tmp_path / "m.onnx", egoaudio.ExportConfig(denoised_input=True))
    text = report.card.read_text(encoding="utf-8")
    assert metadata(report.graph)["denoise"] == "stationary, each clip with the sound around it, 2 s by themselves"
    assert "of each 1 s the 2 s around it, zeros beyond the recording, by themselves, then cut to the 1 s" in text
    (way,) = re.findall(r"`(noisereduce.*)` \(noisereduce 3\)", text)
    with egoaudio.open(tmp_path / "ego.h5") as file:
        stored = np.array(file["waveform"])
    with wave.open(str(tmp_path / "v.wav"), "rb") as file:
        padded = np.pad(np.frombuffer(file.readframes(4 * 16000), "<i2") / np.float32(32768), 8000)
    for clip, found in enumerate(stored):
        sound = padded[16000 * clip : 16000 * clip + 32000]
        denoised = eval(way, {"noisereduce": noisereduce, "sound": sound})  # the card's own line
        assert np.abs(denoised[8000:24000] - found).max() < 1e-3
    alone = noisereduce.reduce_noise(y=padded[24000:40000], sr=16000, stationary=True)
    assert np.abs(alone - stored[1]).max() > 0.01
