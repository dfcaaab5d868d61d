"""What an export refuses, and what it leaves alone: models, names, folders, scores of strangers."""

import json
import os
import re

import onnx
import pytest
import torch
from click.testing import CliRunner
from exported_models import make_checkpoint

import egoaudio
from egoaudio import cli
from egoaudio.exporting import card, graph
from egoaudio.models import checkpoints, seal
from egoaudio.models.sound import SoundInput


@pytest.fixture
def small(tmp_path):
    """A checkpoint whose graph is made fast."""
    make_checkpoint(tmp_path / "best.pt", "cnn", "mfcc")
    return tmp_path / "best.pt"


@pytest.fixture
def no_exporter(monkeypatch):
    """Have everything up to the graph happen, and make no graph."""
    monkeypatch.setattr(graph, "make_graph", lambda classifier, facts, opset: b"a graph")
    monkeypatch.setattr(graph, "largest_differences", lambda data, classifier: None)


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


def test_the_card_of_another_graph_is_kept(small, no_exporter):
    first = egoaudio.export(small, small.with_name("a.onnx")).card.read_text()
    with pytest.raises(egoaudio.ExportError, match=r"README.md: is the card of another graph, .* of b.onnx would"):
        egoaudio.export(small, small.with_name("b.onnx"))
    assert small.with_name("README.md").read_text() == first and not small.with_name("b.safetensors").exists()
    second = egoaudio.export(small, small.with_name("b.onnx"), force=True)
    assert 'InferenceSession("b.onnx")' in second.card.read_text()


def test_an_earlier_checkpoint_needs_its_file(tmp_path, no_exporter):
    contents, _ = make_checkpoint(tmp_path / "best.pt", "cnn", "mfcc")
    checkpoints.save(tmp_path / "best.pt", {**contents, "build": None, "calibration": None, "thresholds": None})
    with pytest.raises(egoaudio.CheckpointError, match="`like=FILE`"):
        egoaudio.export(tmp_path / "best.pt", tmp_path / "model.onnx")
    with pytest.raises(egoaudio.CheckpointError, match="`like=FILE`"):
        egoaudio.load_model(tmp_path / "best.pt", front_end=True)


def evaluation(checkpoint=None, **changes):
    """Return an evaluation.json of a checkpoint, or of one that is not there."""
    scores = {
        "map": {"value": 0.5, "low": 0.4, "high": 0.625, "prior": 0.1},
        "mauc": dict.fromkeys(("value", "low", "high", "prior")),
    }
    digest = seal.digest(checkpoint) if checkpoint else "cd" * 32
    found = {"epoch": 3, "plan_sha256": "ab" * 32, "checkpoint_sha256": digest, "smooth_clips": 2}
    found |= {"split": "test", "num_clips": 1200, "num_videos": 30}
    return json.dumps({**found, "scores": scores, **changes})


def test_scores_are_those_of_this_checkpoints_evaluation(small, no_exporter):
    beside, other = small.with_name("evaluation.json"), small.with_name("other.json")
    beside.write_text(evaluation(small))
    report = egoaudio.export(small, small.with_name("model.onnx"))
    text = report.card.read_text()
    assert "| mAP | 50.0 | 40.0 to 62.5 | 10.0 |" in text and "mAUC" not in text and "The test split: 1,200" in text
    assert not report.notes[1:]  # but that there is no onnxruntime
    for written, said in (
        (evaluation(epoch=2), f"{'cd' * 6}... of epoch 2 there, {seal.digest(small)[:12]}... of epoch 3 here"),
        (evaluation(small, checkpoint_sha256=None), "an earlier version wrote it, .* evaluate again"),
        ("{}", "is not the"),
        ("no", "is not the"),
    ):
        other.write_text(written)
        with pytest.raises(egoaudio.ExportError, match=said):
            egoaudio.export(small, small.with_name("model.onnx"), evaluation=other)
        beside.write_text(written)
        report = egoaudio.export(small, small.with_name("model.onnx"))
        assert "| mAP | 25.0 | - | 12.5 |" in report.card.read_text() and "run egoaudio-evaluate first" in str(report)
        assert re.search(f"note: not used: {beside}: .*{said}", str(report))


def test_the_scores_of_a_run_that_differs_in_its_weights_alone_are_not_used(small, no_exporter):
    """Two runs on one file, their best epochs the same, in one folder: the evaluation is of one of them."""
    contents = checkpoints.load(small)
    contents["weights"] = {name: tensor * 2 for name, tensor in contents["weights"].items()}
    checkpoints.save(small.with_name("other.pt"), contents)
    small.with_name("evaluation.json").write_text(evaluation(small.with_name("other.pt")))
    report = egoaudio.export(small, small.with_name("model.onnx"))
    assert "| mAP | 25.0 |" in report.card.read_text() and "is the evaluation of another checkpoint" in str(report)


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


@pytest.mark.parametrize("output", ["/proc/x/m.onnx", "/sys/kernel/m.onnx"])
def test_a_folder_that_takes_no_file_is_told_before_anything_is_computed(small, monkeypatch, output):
    monkeypatch.setattr(graph, "make_graph", lambda *_: pytest.fail("it makes a graph"))
    with pytest.raises(
        egoaudio.ExportError, match=r"the folder /\w+(/kernel)? (takes no new file|cannot be written to)"
    ):
        egoaudio.export(small, output)


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


def test_missing_packages_are_named(small, monkeypatch):
    found = graph.importlib.util.find_spec
    monkeypatch.setattr(graph.importlib.util, "find_spec", lambda name: None if name == "onnxscript" else found(name))
    with pytest.raises(egoaudio.ExportError, match="pip install onnxscript$"):
        egoaudio.export(small, small.with_name("model.onnx"))


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


def test_attention_that_no_runtime_holds_is_not_tried(small, monkeypatch):
    """ast-paper on a spectrogram: 17,172 tokens, each of which attends to each."""
    sizes = type("Sizes", (), {"num_mel_bins": 1025, "max_length": 32, "patch_size": 16, "num_attention_heads": 6})
    sizes.frequency_stride = sizes.time_stride = 1
    network = torch.nn.Module()
    network.network = type("Network", (), {"config": sizes})
    assert graph.attention_bytes(type("Model", (), {"network": network})) == 4 * 6 * 17172**2
    monkeypatch.setattr(graph, "attention_bytes", lambda classifier: 7 << 30)
    monkeypatch.setattr(graph, "make_graph", lambda *_: b"a graph")
    assert "not tried: one clip's attention alone takes 7" in str(egoaudio.export(small, small.with_name("m.onnx")))
