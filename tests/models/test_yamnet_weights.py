"""Reading published weights: what is written is read, and nothing that is wrong crashes. No file is fetched."""

import zipfile

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from yamnet_reference import make_bundle, make_table, pb_field, random_tensors, reference_logits

from egoaudio.errors import CheckpointError
from egoaudio.models.crc32c import crc32c
from egoaudio.models.published_files import DamagedFile, Messages
from egoaudio.models.yamnet import BLOCKS, YAMNet
from egoaudio.models.yamnet_conversion import PublishedWeights
from egoaudio.models.yamnet_weights import create_yamnet, fill_trunk, load_published, read_published

NAMES = [f"Sound {number}, and so on" for number in range(521)]


@pytest.fixture(scope="module")
def tensors():
    """Random weights in Keras's layout."""
    return random_tensors()


@pytest.fixture(scope="module")
def saved(tmp_path_factory, tensors):
    """A SavedModel's folder with these weights and a class map."""
    folder = make_bundle(tmp_path_factory.mktemp("saved"), tensors)
    (folder / "assets").mkdir()
    rows = [f'{number},/m/{number},"{name}"' for number, name in enumerate(NAMES)]
    (folder / "assets" / "yamnet_class_map.csv").write_text("index,mid,display_name\n" + "\n".join(rows) + "\n")
    (folder / "saved_model.pb").write_bytes(b"\x08\x01")
    return folder


@pytest.fixture(scope="module")
def patches():
    """Four patches, float32 (4, 96, 64)."""
    return torch.from_numpy(np.random.default_rng(1).normal(-2, 2, (4, 96, 64)).astype(np.float32))


def same(published, other):
    """Whether two sets of weights are equal to the bit."""
    pairs = zip((*published.convolutions, published.classifier), (*other.convolutions, other.classifier), strict=True)
    return all(np.array_equal(a, b) for left, right in pairs for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize(
    "data, crc",
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
    ],
)
def test_checksums_are_those_of_the_standard(data, crc):
    assert crc32c(data) == crc


def test_a_checksum_of_any_length_is_that_of_one_byte_after_another():
    message = np.random.default_rng(0).integers(0, 256, 5000, dtype=np.uint8).tobytes()
    register, slow = 0xFFFFFFFF, [0]
    for byte in message:
        register ^= byte
        for _ in range(8):
            register = register >> 1 ^ (0x82F63B78 if register & 1 else 0)
        slow.append(register ^ 0xFFFFFFFF)
    for length in [*range(70), 255, 256, 257, 1023, 1024, 4097, 5000]:
        assert crc32c(message[:length]) == slow[length]


# ------------------------------------------------------------------------------------------------ TensorFlow


def test_a_saved_model_becomes_the_network_it_was(saved, tensors, patches):
    model, names = load_published(saved)
    assert names == tuple(NAMES) and not model.training
    torch.testing.assert_close(model(patches).double(), reference_logits(tensors, patches), atol=1e-5, rtol=1e-4)


def test_batch_norm_may_have_a_scale(tmp_path, patches):
    tensors = random_tensors(gamma=True)
    model, names = load_published(make_bundle(tmp_path, tensors))
    assert names is None
    torch.testing.assert_close(model(patches).double(), reference_logits(tensors, patches), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "name", ["variables", "variables/variables.index", "variables/variables.data-00000-of-00001", "saved_model.pb"]
)
def test_any_of_its_files_means_the_model(saved, name):
    published = read_published(saved / name)
    assert same(published, read_published(saved)) and published.class_names == tuple(NAMES)


def test_a_checkpoint_may_stand_alone(saved, tmp_path):
    for suffix in ("index", "data-00000-of-00001"):
        (tmp_path / f"mine.{suffix}").write_bytes((saved / "variables" / f"variables.{suffix}").read_bytes())
    assert same(read_published(tmp_path), read_published(saved))
    assert same(read_published(tmp_path / "mine.index"), read_published(saved))


def test_a_wheel_may_hold_it_among_others(saved, tmp_path):
    other = make_bundle(tmp_path / "other", {(0, "kernel"): np.zeros((3, 3, 1, 8))})
    path = tmp_path / "some-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        for folder, name in ((other, "a_other"), (saved, "b_yamnet")):
            for file in folder.rglob("*.*"):
                wheel.write(file, f"package/{name}/{file.relative_to(folder)}")
    published = read_published(path)
    assert same(published, read_published(saved)) and published.class_names == tuple(NAMES)


def refused(path, *words):
    """Check that ``path`` is refused in one line that names it and says ``words``."""
    with pytest.raises(CheckpointError) as refusal:
        read_published(path)
    message = str(refusal.value)
    assert message.startswith(f"{path}: ") and "\n" not in message and len(message) < 700
    for word in words:
        assert word in message, message
    assert "expected YAMNet's SavedModel" in message


def change(tensors, key, value):
    """Return ``tensors`` with one changed, or without it (None)."""
    return {name: array for name, array in {**tensors, key: value}.items() if array is not None}


@pytest.mark.parametrize(
    "key, value, words",
    [
        (
            (0, "kernel"),
            np.zeros((3, 3, 3, 32)),
            ["layer_with_weights-0/kernel", "(3, 3, 3, 32)", "YAMNet has (3, 3, 1, 32)"],
        ),
        ((4, "kernel"), None, ["there is no _yamnet/layer_with_weights-4/kernel"]),
        (
            (26, "depthwise_kernel"),
            np.zeros((5, 5, 512, 1)),
            ["layer_with_weights-26/depthwise_kernel", "(5, 5, 512, 1)"],
        ),
        ((9, "moving_variance"), -np.ones(128), ["variance of -1", "damaged"]),
        ((9, "moving_mean"), np.full(128, np.nan), ["not finite"]),
        (
            (54, "kernel"),
            np.zeros((1024, 527)),
            ["layer_with_weights-54/kernel", "(1024, 527)", "YAMNet has (1024, 521)"],
        ),
    ],
)
def test_another_network_is_named_by_the_first_tensor_that_does_not_fit(tmp_path, tensors, key, value, words):
    refused(make_bundle(tmp_path, change(tensors, key, value)), *words)


def test_what_a_bundle_says_of_its_data_is_checked(tmp_path, tensors):
    def put(number, value):
        return lambda key, entry: entry.update({number: value} if "weights-2/" in key else {})

    huge = b"".join(pb_field(2, pb_field(1, 2**40)) for _ in range(4))
    for name, edit, words in [
        ("integers", put(1, 3), "is not float32"),
        ("far", put(4, 2**62), "the data are truncated"),
        ("long", put(5, 2**40), "the data are truncated"),
        ("short", put(5, 4), "has 4 bytes"),
        ("shard", put(3, 7), "there is no variables/variables.data-00007-of-00001"),
        ("huge", put(2, huge), "1099511627776"),
        ("elsewhere", put(4, 0), "wrong checksum"),
    ]:
        refused(make_bundle(tmp_path / name, tensors, edit=edit), words)
    refused(make_bundle(tmp_path / "big", tensors, header=pb_field(1, 1) + pb_field(2, 1)), "byte order 1")
    refused(make_bundle(tmp_path / "snappy", tensors, compression=1), "compressed (1)")


@pytest.mark.parametrize("name", ["variables.index", "variables.data-00000-of-00001"])
def test_a_cut_file_is_refused(saved, tmp_path, name):
    copy = make_copy(saved, tmp_path)
    whole = (copy / "variables" / name).read_bytes()
    for length in (0, 1, 47, len(whole) // 2, len(whole) - 1):
        (copy / "variables" / name).write_bytes(whole[:length])
        refused(copy)
    (copy / "variables" / name).unlink()
    refused(copy)


def make_copy(saved, folder):
    """Return a copy of a SavedModel's variables in ``folder``."""
    (folder / "variables").mkdir()
    for file in (saved / "variables").iterdir():
        (folder / "variables" / file.name).write_bytes(file.read_bytes())
    return folder


def test_a_changed_byte_is_noticed_wherever_it_is(saved, tmp_path):
    copy, expected = make_copy(saved, tmp_path), read_published(saved)
    rng = np.random.default_rng(0)
    for name, count in (("variables.index", 60), ("variables.data-00000-of-00001", 4)):
        whole = (copy / "variables" / name).read_bytes()
        for place in rng.integers(0, len(whole), count):
            changed = bytearray(whole)
            changed[place] ^= 1 << rng.integers(8)
            (copy / "variables" / name).write_bytes(changed)
            try:
                assert same(read_published(copy), expected)  # a byte that nobody reads
            except CheckpointError:
                pass
            else:
                assert name == "variables.index"
        (copy / "variables" / name).write_bytes(whole)


def test_tables_made_to_grow_are_refused_at_once(tmp_path):
    """Keys that share a long beginning, blocks that are named again and again, and endless fields."""
    folder = tmp_path / "variables"
    folder.mkdir()
    (folder / "variables.data-00000-of-00001").write_bytes(b"")
    index = folder / "variables.index"
    index.write_bytes(make_table([(b"a" * 5000 + bytes([n]), b"") for n in range(100)]))
    refused(tmp_path, "does not fit in its block")
    index.write_bytes(make_table([(b"a", b"\x08\x01")], times=1000))
    refused(tmp_path, "the blocks of the index overlap")
    index.write_bytes(make_table([])[:-48] + b"\xff" * 40 + make_table([])[-8:])
    refused(tmp_path, "a number does not end")
    index.write_bytes(make_table([(b"", b"\x08\x01"), *((b"k%06d" % n, b"\x08\x01" * 300) for n in range(2000))]))
    refused(tmp_path, "more than 500,000 fields")


@pytest.mark.parametrize(
    "contents, words",
    [
        (b"", "there is no graph"),
        (
            b"\x89HDF\r\n\x1a\n" + bytes(100),
            "is an HDF5 file, as Keras and egoaudio write; expected YAMNet's SavedModel",
        ),
        (b"\x18\0\0\0TFL3" + bytes(100), "TensorFlow Lite"),
        (b"\x1f\x8b\x08" + bytes(100), "unpack it"),
        (b"PK\x03\x04" + bytes(100), "not a complete zip"),
        (b"hello, world", ""),
        (b"\xff" * 1000, "does not end"),
    ],
)
def test_other_files_are_refused_by_what_they_are(tmp_path, contents, words):
    path = tmp_path / "weights.onnx"
    path.write_bytes(contents)
    refused(path, words)


@pytest.mark.parametrize(
    "message, words",
    [
        (b"\x0a\x05abc", "a field of 5 bytes at byte 2, where 3 are left"),
        (b"\x0d\x01", "a field of 4 bytes at byte 1, where 1 are left"),
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "a field of 9,223,372,036,854,775,807 bytes"),
        (b"\x08", "a number does not end at byte 1"),
        (b"\x08" + b"\xff" * 11, "a number does not end"),
        (b"\x0b", "unknown kind 3"),
    ],
)
def test_a_message_is_held_against_its_length(message, words):
    with pytest.raises(DamagedFile, match=words):
        Messages().read(memoryview(message))


def test_nothing_there_is_said(tmp_path):
    refused(tmp_path / "none.onnx", "No such file")
    refused(tmp_path, "neither a TensorFlow checkpoint (.index) nor an ONNX file")
    with zipfile.ZipFile(tmp_path / "model.pt", "w") as archive:
        archive.writestr("data.pkl", b"")
    refused(tmp_path / "model.pt", "neither a TensorFlow checkpoint (.index) nor an ONNX file")


def test_a_zip_that_unpacks_into_too_much_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("variables.index", "w") as member:
            for _ in range(257):
                member.write(bytes(2**20))
    refused(tmp_path / "bomb.zip", "has 269,484,032 bytes; expected at most 268,435,456")


def test_a_class_map_of_other_classes_is_refused(saved, tmp_path):
    copy = make_copy(saved, tmp_path)
    (copy / "yamnet_class_map.csv").write_text("index,mid,display_name\n0,/m/0,Speech\n")
    refused(copy, "names 1 classes", "expected 521")


# ------------------------------------------------------------------------------------------------ ONNX


def make_onnx(
    path, published, *, norm=False, summed=False, linear="Gemm", quantized="", transposed=False, external=None
):
    """Write an ONNX file of ``published`` in one of the forms that exporters write, and return its path."""
    nodes, arrays, x = [], {}, "audio"
    strides = [2, *(step for stride, _ in BLOCKS for step in (stride, 1))]
    for place, ((weight, offset), stride) in enumerate(zip(published.convolutions, strides, strict=True)):
        weight_name, kernel = f"w{place}", weight.shape[2]
        arrays[weight_name] = weight.transpose(3, 2, 0, 1) if transposed else weight
        if transposed:
            nodes.append(helper.make_node("Transpose", [weight_name], [f"{weight_name}_t"], perm=[2, 3, 1, 0]))
            weight_name += "_t"
        if quantized:
            arrays |= {"scale": np.float32(0.01), "zero": np.uint8(128)}
            if quantized == "floats":  # as in simulated quantisation: the floats are there
                nodes.append(helper.make_node("QuantizeLinear", [weight_name, "scale", "zero"], [f"{weight_name}_q"]))
                nodes.append(
                    helper.make_node("DequantizeLinear", [f"{weight_name}_q", "scale", "zero"], [f"{weight_name}_qdq"])
                )
            else:
                arrays[weight_name] = np.zeros(weight.shape, np.uint8)
                nodes.append(
                    helper.make_node("DequantizeLinear", [weight_name, "scale", "zero"], [f"{weight_name}_qdq"])
                )
            weight_name += "_qdq"
        inputs = [x, weight_name]
        if norm:
            ones = np.ones(len(offset), np.float32)
            arrays |= {
                f"g{place}": 2 * ones,
                f"b{place}": offset + 1.5 * ones,
                f"m{place}": 1.5 * ones,
                f"v{place}": 3.99 * ones,
            }  # times 1, plus offset
        else:
            arrays[f"o{place}"] = offset[None, :, None, None] if summed else offset
            inputs += [] if summed else [f"o{place}"]
        pads = [0, 0, 0, 0] if kernel == 1 else [0, 0, 1, 1] if stride == 2 else [1, 1, 1, 1]
        group = weight.shape[0] if weight.shape[1] == 1 and place else 1
        nodes.append(
            helper.make_node(
                "Conv", inputs, [f"c{place}"], kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=pads, group=group
            )
        )
        x = f"c{place}"
        if norm:
            nodes.append(
                helper.make_node(
                    "BatchNormalization", [x, *(f"{one}{place}" for one in "gbmv")], [f"n{place}"], epsilon=0.01
                )
            )
            x = f"n{place}"
        if summed:
            nodes.append(helper.make_node("Add", [f"o{place}", x], [f"s{place}"]))
            x = f"s{place}"
        nodes.append(helper.make_node("Relu", [x], [f"r{place}"]))
        x = f"r{place}"
    arrays |= {
        "cw": published.classifier[0] if linear == "Gemm" else published.classifier[0].T,
        "cb": published.classifier[1],
    }
    nodes += [
        helper.make_node("GlobalAveragePool", [x], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["embedding"]),
    ]
    if linear == "Gemm":
        nodes.append(helper.make_node("Gemm", ["embedding", "cw", "cb"], ["scores"], transB=1))
    else:
        nodes += [
            helper.make_node("MatMul", ["embedding", "cw"], ["product"]),
            helper.make_node("Add", ["cb", "product"], ["scores"]),
        ]
    inputs = [helper.make_tensor_value_info("audio", TensorProto.FLOAT, ["batch", 1, 96, 64])]
    outputs = [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 521])]
    initializers = [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in arrays.items()]
    model = helper.make_model(
        helper.make_graph(nodes, "yamnet", inputs, outputs, initializers), opset_imports=[helper.make_opsetid("", 17)]
    )
    onnx.save(model, path, save_as_external_data=external is not None, location=external, size_threshold=100)
    return path


@pytest.fixture(scope="module")
def published(saved):
    """The random weights as they are read."""
    return read_published(saved)


@pytest.mark.parametrize(
    "form",
    [
        {},
        {"norm": True},
        {"summed": True},
        {"linear": "MatMul"},
        {"transposed": True},
        {"quantized": "floats"},
        {"external": "weights.data"},
    ],
    ids=["folded", "norm", "sum", "matmul", "transposed", "quantized", "external"],
)
def test_an_onnx_file_becomes_the_same_network(tmp_path, published, form):
    got = read_published(make_onnx(tmp_path / "yamnet.onnx", published, **form))
    pairs = zip((*got.convolutions, got.classifier), (*published.convolutions, published.classifier), strict=True)
    for left, right in pairs:
        for a, b in zip(left, right, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6 if form == {"norm": True} else 0)


def test_onnxruntime_and_our_network_agree(tmp_path, published, patches):
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is in the extra test")
    path = make_onnx(tmp_path / "yamnet.onnx", published, norm=True)
    (expected,) = runtime.InferenceSession(str(path)).run(None, {"audio": patches[:, None].numpy()})
    model, names = load_published(path)
    assert names is None
    np.testing.assert_allclose(model(patches).detach().numpy(), expected, atol=1e-4)


def with_changed(published, place, weight):
    """Return stand-in weights in which one convolution has other weights."""
    pairs = list(published.convolutions)
    pairs[place] = (weight, np.zeros(len(weight), np.float32))
    stand_in = object.__new__(PublishedWeights)
    object.__setattr__(stand_in, "convolutions", tuple(pairs))
    object.__setattr__(stand_in, "classifier", published.classifier)
    return stand_in


def test_another_onnx_network_is_named_by_its_first_weight_that_does_not_fit(tmp_path, published):
    path = tmp_path / "other.onnx"
    refused(
        make_onnx(path, with_changed(published, 4, np.zeros((130, 64, 1, 1), np.float32))),
        "w4 has shape (130, 64, 1, 1); YAMNet has (128, 64, 1, 1)",
    )
    refused(make_onnx(path, published, quantized="integers"), "w0", "quantised", "float weights")
    refused(make_onnx(path, with_changed(published, 4, np.full((128, 64, 1, 1), np.inf, np.float32))), "not finite")


def test_weights_beside_an_onnx_file_must_be_beside_it(tmp_path, published):
    path = make_onnx(tmp_path / "yamnet.onnx", published, external="weights.data")
    whole = path.read_bytes()
    for name in (b"/etc/pass.txt", b"../ghts.data.", b"a/weights.dat", b"missing.data1"):
        path.write_bytes(whole.replace(b"\x0cweights.data", b"\x0c" + name[:12]))
        refused(path, "same folder" if b"/" in name else "there is no missing.data")
    path.write_bytes(whole)
    data = tmp_path / "weights.data"
    data.write_bytes(data.read_bytes()[:-100])
    refused(path, "has", "bytes")


def test_a_changed_byte_of_a_graph_never_crashes(tmp_path, published):
    whole = make_onnx(tmp_path / "yamnet.onnx", published, norm=True, external="weights.data").read_bytes()
    rng, path = np.random.default_rng(0), tmp_path / "yamnet.onnx"
    refusals = 0
    for place in [*range(40), *rng.integers(0, len(whole), 80)]:
        changed = bytearray(whole)
        changed[place] = rng.integers(256)
        path.write_bytes(changed)
        try:
            read_published(path)
        except CheckpointError:
            refusals += 1
    assert refusals > 30
    for length in rng.integers(0, len(whole), 20):
        path.write_bytes(whole[:length])
        refused(path)


def test_numbers_that_are_not_finite_are_refused_from_python_too(published):
    bad = (np.full((521, 1024), np.nan, np.float32), published.classifier[1])
    with pytest.raises(ValueError, match="not finite"):
        PublishedWeights(published.convolutions, bad, None)
    with pytest.raises(ValueError, match="weights of shapes"):
        PublishedWeights((published.convolutions[2], *published.convolutions[1:]), published.classifier, None)


def test_what_the_trunk_holds_are_the_published_weights(published):
    model = YAMNet(3)
    fill_trunk(model, published)
    for name, (weight, offset) in zip(("0", "1.depthwise", "1.pointwise"), published.convolutions, strict=False):
        layer = model.trunk.get_submodule(name)
        np.testing.assert_array_equal(layer.weight.detach().numpy(), weight)
        np.testing.assert_array_equal(layer.bias.detach().numpy(), offset)
    assert create_yamnet(7, dropout=0.1, freeze=True).classifier.out_features == 7
