"""What leaves the house: graph, weights and card say and compute what the product does, where it is not installed."""

import json
import os
import re
import shutil
import subprocess
import sys
import wave

import huggingface_hub
import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors.torch
import torch
import transformers
from click.testing import CliRunner
from conftest import make_media
from exported_models import MODELS, NAMES, make_checkpoint, make_sound

import egoaudio
from egoaudio import cli
from egoaudio.audio.features import FeatureExtractor
from egoaudio.config.options import from_json
from egoaudio.evaluation.calibration import Calibration
from egoaudio.exporting import card, graph
from egoaudio.models import checkpoints
from egoaudio.models.sound import SoundInput
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


@pytest.mark.parametrize("key", MODELS)
def test_load_model_gives_the_products_probabilities(exported, key):
    folder, report, contents, build = exported(key)
    model = egoaudio.load_model(folder / "best.pt", front_end=True, device="cpu")
    sound = make_sound(5, *model.input_shape)
    with torch.inference_mode():
        found = model(torch.from_numpy(sound)).numpy()
    assert np.abs(found - own_probabilities(folder / "best.pt", build, sound)).max() < 1e-4
    assert model.input_shape == (report.num_samples,) and model.class_names == tuple(NAMES)


def test_a_model_that_began_with_published_weights_needs_them_no_more(tmp_path):
    """A small AST as transformers saves AudioSet's: 1,024 frames, 527 classes, stride 10; the clip has 98 frames."""
    torch.manual_seed(5)
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    published = transformers.ASTForAudioClassification(transformers.ASTConfig(**small, num_labels=527))
    for parameter in published.parameters():
        parameter.data.normal_(std=0.1)
    published.save_pretrained(tmp_path / "published")
    options = {"pretrained": str(tmp_path / "published"), "normalize": "paper"}
    _, build = make_checkpoint(tmp_path / "best.pt", "ast", "logmel", **options)
    shutil.rmtree(tmp_path / "published")
    report = egoaudio.export(tmp_path / "best.pt", tmp_path / "model.onnx")
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


def test_the_ten_lines_of_the_card_run_without_torch(exported):
    folder, report, _, build = exported("cnn-small")
    (code,) = re.findall(r"^```python\n(.*?)^```", report.card.read_text(encoding="utf-8"), re.DOTALL | re.M)
    assert len(code.splitlines()) == 10 and "torch" not in code and "egoaudio" not in code
    samples = np.round(32767 * make_sound(3, report.num_samples)[2]).astype("<i2")
    with wave.open(str(folder / "sound.wav"), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes(samples.tobytes())
    (expected,) = own_probabilities(folder / "best.pt", build, samples[None] / np.float32(32768))
    lines = run_without(folder, "sys.stdout.reconfigure(encoding='utf-8')\n" + code).splitlines()
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


# ---------------------------------------------------------------------------------------------- what is refused


@pytest.fixture
def small(tmp_path):
    """A checkpoint whose graph is made fast."""
    make_checkpoint(tmp_path / "best.pt", "cnn", "mfcc")
    return tmp_path / "best.pt"


@pytest.fixture
def no_exporter(monkeypatch):
    """Have everything up to the graph happen, and make no graph."""
    monkeypatch.setattr(graph, "make_graph", lambda classifier, facts, opset: b"a graph")
    monkeypatch.setattr(graph, "largest_difference", lambda data, classifier: None)


def test_a_model_of_denoised_sound_needs_the_users_word(tmp_path, no_exporter):
    make_checkpoint(tmp_path / "best.pt", "cnn", "mfcc", denoise="stationary")
    with pytest.raises(egoaudio.ConfigurationError, match=r"denoised sound \(stationary, each clip by itself\)"):
        egoaudio.export(tmp_path / "best.pt", tmp_path / "model.onnx")
    with pytest.raises(egoaudio.ConfigurationError, match="`denoised_input=True` if"):
        egoaudio.load_model(tmp_path / "best.pt", front_end=True)
    assert egoaudio.load_model(tmp_path / "best.pt", device="cpu").front_end is None  # features have been denoised
    assert not (tmp_path / "model.onnx").exists()
    config = egoaudio.ExportConfig(denoised_input=True)
    report = egoaudio.export(tmp_path / "best.pt", tmp_path / "model.onnx", config)
    assert "note: the sound has to be denoised before" in str(report)
    text = report.card.read_text()
    assert "The sound has to be denoised before" in text and "stationary=True)` (noisereduce 3), each 1 s" in text


def test_the_command_says_what_to_type(tmp_path):
    make_checkpoint(tmp_path / "best.pt", "cnn", "mfcc", denoise="nonstationary")
    result = CliRunner().invoke(cli.export, [str(tmp_path / "best.pt"), str(tmp_path / "model.onnx")])
    assert result.exit_code == 2 and not (tmp_path / "model.onnx").exists()
    assert "give --denoised-input if" in result.stderr and "built with --denoise none" in result.stderr
    result = CliRunner().invoke(cli.export, [str(tmp_path / "best.pt"), "model.onnx", "--opset", "17"])
    assert result.exit_code == 2 and "--opset 17: expected at least 18" in result.stderr


def test_features_that_this_version_does_not_make_are_told_without_an_option_that_export_lacks(tmp_path):
    contents, _ = make_checkpoint(tmp_path / "best.pt", "cnn", "mfcc")
    described = json.dumps(json.loads(contents["feature_attributes"]) | {"mel_scale": "htk"})
    checkpoints.save(tmp_path / "best.pt", {**contents, "feature_attributes": described})
    result = CliRunner().invoke(cli.export, [str(tmp_path / "best.pt"), str(tmp_path / "model.onnx")])
    assert result.exit_code == 2 and "mel_scale htk (here slaney): build again with this version" in result.stderr
    assert "fly" not in result.stderr


def test_what_torch_cannot_express_is_told_with_what_to_try(small, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("No ONNX function found for aten.roll\nand two pages more")

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(egoaudio.ExportError, match=r"`opset=18`: No ONNX function found for aten.roll: try another"):
        egoaudio.export(small, small.with_name("model.onnx"))


def test_a_word_in_vain_is_refused(small):
    with pytest.raises(egoaudio.ConfigurationError, match="has no effect: .* on sound as it is"):
        egoaudio.export(small, small.with_name("a.onnx"), egoaudio.ExportConfig(denoised_input=True))
    with pytest.raises(egoaudio.ConfigurationError, match="no effect without a front end"):
        egoaudio.load_model(small, denoised_input=True)


@pytest.mark.parametrize(
    "name, fix", [("model.pt", "give .*model.onnx"), ("model", "model.onnx"), (".", "/model.onnx")]
)
def test_a_name_that_is_no_graphs_is_refused(small, name, fix):
    with pytest.raises(egoaudio.ExportError, match=f"end in .onnx: {fix if fix.startswith('give') else '.*' + fix}"):
        egoaudio.export(small, small.parent / name)


def test_an_input_is_never_replaced(small):
    link = small.with_name("model.onnx")
    link.symlink_to(small)
    before = small.read_bytes()
    with pytest.raises(egoaudio.ExportError, match="it is an input of this command"):
        egoaudio.export(small, link)
    link.unlink()
    small.with_name("model.safetensors").symlink_to(small)
    with pytest.raises(egoaudio.ExportError, match=r"model.safetensors: .* it is an input"):
        egoaudio.export(small, link)
    assert small.read_bytes() == before


def test_somebodys_readme_is_kept(small, no_exporter):
    readme = small.with_name("README.md")
    readme.write_text("# My thesis\n")
    with pytest.raises(egoaudio.ExportError, match="is not a model card of egoaudio's"):
        egoaudio.export(small, small.with_name("model.onnx"))
    assert readme.read_text() == "# My thesis\n" and not small.with_name("model.safetensors").exists()
    egoaudio.export(small, small.with_name("model.onnx"), force=True)
    egoaudio.export(small, small.with_name("model.onnx"))  # over its own card
    assert card.MARK in readme.read_text()


def test_an_earlier_checkpoint_needs_its_file(tmp_path, no_exporter):
    contents, _ = make_checkpoint(tmp_path / "best.pt", "cnn", "mfcc")
    checkpoints.save(tmp_path / "best.pt", {**contents, "build": None, "calibration": None, "thresholds": None})
    with pytest.raises(egoaudio.CheckpointError, match="`like=FILE`"):
        egoaudio.export(tmp_path / "best.pt", tmp_path / "model.onnx")
    with pytest.raises(egoaudio.CheckpointError, match="`like=FILE`"):
        egoaudio.load_model(tmp_path / "best.pt", front_end=True)


def evaluation(**changes):
    """Return an evaluation.json of ``small``."""
    scores = {
        "map": {"value": 0.5, "low": 0.4, "high": 0.625, "prior": 0.1},
        "mauc": dict.fromkeys(("value", "low", "high", "prior")),
    }
    found = {"epoch": 3, "plan_sha256": "ab" * 32, "split": "test", "num_clips": 1200, "num_videos": 30}
    return json.dumps({**found, "smooth_clips": 2, "scores": scores, **changes})


def test_scores_are_those_of_this_checkpoints_evaluation(small, no_exporter):
    beside, other = small.with_name("evaluation.json"), small.with_name("other.json")
    beside.write_text(evaluation())
    report = egoaudio.export(small, small.with_name("model.onnx"))
    text = report.card.read_text()
    assert "| mAP | 50.0 | 40.0 to 62.5 | 10.0 |" in text and "mAUC" not in text and "The test split: 1,200" in text
    assert not any("egoaudio-evaluate" in note for note in report.notes)
    beside.write_text(evaluation(epoch=2))  # of last.pt, say
    report = egoaudio.export(small, small.with_name("model.onnx"))
    assert "| mAP | 25.0 | - | 12.5 |" in report.card.read_text() and "egoaudio-evaluate" in str(report)
    for written, said in ((evaluation(epoch=2), "epoch 2 there, 3 in"), ("{}", "is not the"), ("no", "is not the")):
        other.write_text(written)
        with pytest.raises(egoaudio.ExportError, match=said):
            egoaudio.export(small, small.with_name("model.onnx"), evaluation=other)


@pytest.mark.parametrize(
    "text, said",
    [
        (evaluation(scores={"map": {"value": 50, "low": None, "high": None, "prior": None}}), r"map \[50.0"),
        (evaluation(split="test\nlicense: mit"), "split 'test"),
        (evaluation(smooth_clips="<b>"), "smooth_clips '<b>'"),
        (evaluation(num_clips=1.5), "num_clips 1.5"),
        (evaluation(num_videos=True), "num_videos True"),
        ("[" * 100_000, "recursion"),
    ],
    ids=lambda text: text[:20],
)
def test_scores_of_a_stranger_put_nothing_into_the_card(small, no_exporter, text, said):
    other, beside = small.with_name("other.json"), small.with_name("evaluation.json")
    for path in (other, beside, small.with_name("config.json")):
        path.write_text(text)
    with pytest.raises(egoaudio.ExportError, match=f"is not the evaluation.json of an evaluation: .*{said}"):
        egoaudio.export(small, small.with_name("model.onnx"), evaluation=other)
    beside.unlink()
    os.mkfifo(beside)
    egoaudio.export(small, small.with_name("model.onnx"))  # with those of the validation
    with pytest.raises(egoaudio.ExportError, match="no regular file"):
        egoaudio.export(small, small.with_name("model.onnx"), evaluation=beside)


def test_a_folder_that_cannot_be_written_to_is_told_before_anything_is_computed(small, monkeypatch):
    monkeypatch.setattr(graph, "make_graph", lambda *_: pytest.fail("it makes a graph"))
    monkeypatch.setattr("egoaudio.system.files.os.access", lambda path, mode: str(path) != str(small.parent))
    with pytest.raises(egoaudio.ExportError, match=f"the folder {small.parent} cannot be written to"):
        egoaudio.export(small, small.parent / "new" / "model.onnx")


def test_a_full_disk_leaves_the_earlier_export(small, no_exporter, monkeypatch):
    target = small.with_name("model.onnx")
    egoaudio.export(small, target)
    before = {path.name: path.read_bytes() for path in small.parent.iterdir()}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("egoaudio.system.files.os.fsync", full)
    with pytest.raises(egoaudio.ExportError, match="No space left on device"):
        egoaudio.export(small, target)
    assert {path.name: path.read_bytes() for path in small.parent.iterdir()} == before


def test_a_graph_that_is_not_the_model_is_not_written(exported, tmp_path, monkeypatch):
    folder, report, *_ = exported("cnn")

    def spoilt(classifier, facts, opset):
        classifier.intercept += 0.5
        return report.graph.read_bytes()

    monkeypatch.setattr(graph, "make_graph", spoilt)
    with pytest.raises(egoaudio.ExportError, match="differ from the model's by 0.1"):
        egoaudio.export(folder / "best.pt", tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_missing_packages_are_named(small, monkeypatch):
    found = graph.importlib.util.find_spec
    monkeypatch.setattr(graph.importlib.util, "find_spec", lambda name: None if name == "onnxscript" else found(name))
    with pytest.raises(egoaudio.ExportError, match="pip install onnxscript$"):
        egoaudio.export(small, small.with_name("model.onnx"))


def test_attention_that_no_runtime_holds_is_not_tried(exported, monkeypatch, small):
    """ast-paper on a spectrogram: 17,172 tokens, each of which attends to each."""
    sizes = type("Sizes", (), {"num_mel_bins": 1025, "max_length": 32, "patch_size": 16, "num_attention_heads": 6})
    sizes.frequency_stride = sizes.time_stride = 1
    network = torch.nn.Module()
    network.network = type("Network", (), {"config": sizes})
    assert graph.attention_bytes(type("Model", (), {"network": network})) == 4 * 6 * 17172**2
    monkeypatch.setattr(graph, "attention_bytes", lambda classifier: 7 << 30)
    monkeypatch.setattr(graph, "make_graph", lambda *_: b"a graph")
    assert "not tried: one clip's attention alone takes 7" in str(egoaudio.export(small, small.with_name("m.onnx")))


def test_the_graph_can_have_other_spectra_and_operators(small):
    config = egoaudio.ExportConfig(transform="fft", opset=20)
    report = egoaudio.export(small, small.with_name("model.onnx"), config)
    model = onnx.load(report.graph)
    assert "DFT" in {node.op_type for node in model.graph.node} and report.difference < 1e-4
    assert [one.version for one in model.opset_import if not one.domain] == [20]


@pytest.mark.parametrize(
    "feature, sample_rate, n_fft, expected",
    [
        ("spectrogram", 16000, 2048, "matrix"),
        ("mfcc", 16000, 4096, "fft"),
        ("logmel", 16000, 1 << 18, "matrix"),  # whose frames are 25 ms, whatever the others are
        ("logmel", 192000, 2048, "fft"),
        ("yamnet", 16000, 2048, "matrix"),
    ],
)
def test_a_matrix_that_is_large_is_not_put_into_the_graph(feature, sample_rate, n_fft, expected):
    features = egoaudio.FeatureConfig(features=(feature,), n_fft=n_fft)
    build = egoaudio.BuildConfig(sample_rate=sample_rate, features=features)
    assert graph.choose_transform(SoundInput(build, sample_rate, 0)) == expected


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
