"""The house: which module may use which, which library lives where, and what nothing may load."""

import ast
import dataclasses
import functools
import inspect
import re
import subprocess
import sys
from enum import IntEnum
from pathlib import Path

import pytest

import egoaudio

ROOT = Path(egoaudio.__file__).parent

# The stages, in the order in which data passes them: a module may use only modules that stand before it.
MODULES = """
    _version errors
    system/launch system/signals system/files system/allocator system/surroundings system/terminal
    system/progress system/lock system/memory figures
    config/options config/build config/train_defaults config/train config/predict config/report config/export
    inputs/csv_rows inputs/videos inputs/annotations inputs/fingerprint inputs/timestamps inputs/containers
    inputs/tracks inputs/silence inputs/ogg
    inputs/find_media inputs/frames inputs/decoder inputs/probe inputs/encode
    audio/clips audio/labels audio/denoise_engine audio/denoise_masks audio/denoise audio/mel audio/framing
    audio/yamnet_features audio/features
    hdf5/schema hdf5/create hdf5/safe_access hdf5/tables hdf5/mapped_file hdf5/joined hdf5/reader hdf5/integrity
    hdf5/writer hdf5/scores_file hdf5/summary
    builder/pool builder/feature_stream builder/extract builder/recordings builder/plan builder/jobs
    builder/beyond builder/prepare builder/sound builder/summary
    builder/synced builder/finish builder/transfer builder/retry builder/shards builder/merging
    builder/shard_process builder/clusters builder/build
    data/ranks data/context data/joined_maps data/rows data/balance data/dataset data/seeds data/splits
    data/normalization data/sound_changes data/augment data/gpu_idle data/loader
    models/crc32c models/published_files models/tensorflow_bundle models/onnx_graph
    models/dropout models/sound_features models/frontend models/yamnet models/yamnet_conversion models/yamnet_weights
    models/cnn models/small_cnn models/transformer models
    models/seal models/checkpoints models/sound models/device models/micro_batch models/scorer
    models/steady_scorer models/classifier
    evaluation/metrics evaluation/charades evaluation/bootstrap evaluation/segment_metrics
    evaluation/ground_truth evaluation/results
    evaluation/smoothing evaluation/calibration evaluation/calibration_fit evaluation/segments evaluation/audible
    evaluation/reliability evaluation/segment_scores evaluation/scores evaluation/comparison evaluation/evaluate
    training/losses training/distillation training/ema training/optimizer training/gradients
    training/pending_loss training/captured_step training/memory_messages training/step training/run_folder
    training/validation training/messages training/run training/prepare training/train
    prediction/channel prediction/worker prediction/windows prediction/scoring
    prediction/find prediction/messages prediction/recording prediction/journal prediction/predictor prediction/score
    prediction/store prediction/result prediction/tiers prediction/formats prediction/output prediction/report
    prediction/predict
    exporting/graph exporting/facts exporting/scores exporting/card exporting/export
    reporting/sources reporting/names reporting/charts reporting/levels reporting/oddities reporting/file_section
    reporting/pictures reporting/excerpts reporting/gallery reporting/cards
    reporting/confusions reporting/notable_clips reporting/run_section reporting/comparison_section
    reporting/recordings reporting/timelines reporting/heard_section reporting/page reporting/report
    command cli training/__main__
""".split()
FOLDERS = {
    "system",
    "config",
    "inputs",
    "audio",
    "hdf5",
    "builder",
    "data",
    "evaluation",
    "training",
    "prediction",
    "exporting",
    "reporting",
}  # with an empty __init__

HOMES = {
    "av": {
        "inputs/containers",
        "inputs/tracks",
        "inputs/silence",
        "inputs/frames",
        "inputs/decoder",
        "inputs/probe",
        "inputs/encode",
    },
    "h5py": {"hdf5/create", "hdf5/safe_access"},
    "joblib": {"builder/pool"},
    "distributed": {"builder/clusters", "builder/shard_process"},
    "transformers": {"models/transformer"},
    "click": {"command", "cli"},
    "tqdm": {"system/progress"},
    "noisereduce": {"audio/denoise"},
    "matplotlib": {"figures"},
    "jinja2": {"reporting/page"},
    "onnxruntime": {"exporting/graph"},
    "safetensors": {"exporting/export"},
}


@functools.cache
def _modules():
    """Return ``{module: path}``; a package is the module of its ``__init__``."""
    modules = {}
    for path in ROOT.rglob("*.py"):
        name = str(path.relative_to(ROOT).with_suffix(""))
        if name != "__init__":
            modules[name.removesuffix("/__init__")] = path
    return modules


@functools.cache
def _tree(path):
    """Return a file's syntax tree, for all tests."""
    return ast.parse(path.read_text())


@functools.cache
def _imports(path):
    """Return the modules that a file imports, inside functions too; not what only a type checker imports."""
    found = set()
    tree = ast.parse(path.read_text())  # of its own: it is changed
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _modules_used(path):
    """Return the modules of ours that a file imports."""
    modules, used = _modules(), set()
    for name in _imports(path):
        parts = name.split(".")
        if parts[0] == "egoaudio":
            candidates = ["/".join(parts[1:3]), parts[1]] if len(parts) > 1 else []
            used |= {next((module for module in candidates if module in modules), None)}
    return used - {None}


def test_every_module_has_its_place():
    assert set(_modules()) - FOLDERS == set(MODULES)


def test_contributing_shows_every_folder_and_only_modules_that_exist():
    page = (ROOT.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([a-z0-9]+)/` \|.*\| (.*) \|$", page, re.MULTILINE))
    assert set(rows) == {path.parent.name for path in ROOT.glob("*/__init__.py")} | {"egoaudio"}
    modules = set(_modules()) | {f"{folder}/__init__" for folder in rows} | {f"egoaudio/{name}" for name in _modules()}
    named = {f"{folder}/{module}" for folder, start in rows.items() for module in re.findall(r"`(\w+)`", start)}
    named |= {f"{folder}/{name}" for folder, name in re.findall(r"\b([a-z0-9]+)/([a-z_]+)\b", page) if folder in rows}
    assert named <= modules


def test_the_tests_mirror_the_folders():
    tests = ROOT.parent / "tests"
    assert {path.parent.name for path in tests.glob("*/test_*.py")} == {
        path.parent.name for path in ROOT.glob("*/*.py")
    }


@pytest.mark.parametrize("module", MODULES)
def test_a_module_uses_only_modules_before_it(module):
    later = {
        used
        for used in _modules_used(_modules()[module])
        if used != module and MODULES.index(used) > MODULES.index(module)
    }
    assert not later, f"{module} uses {sorted(later)}, which stand after it"


@pytest.mark.parametrize("library", sorted(HOMES))
def test_a_library_has_one_module(library):
    users = {
        module for module, path in _modules().items() if any(name.split(".")[0] == library for name in _imports(path))
    }
    assert users == HOMES[library]


@pytest.mark.parametrize("module", sorted(_modules()))
def test_no_module_or_function_is_long_and_no_name_is_the_standard_librarys(module):
    lines = _modules()[module].read_text().splitlines()
    assert len(lines) <= 400 and max(map(len, lines), default=0) <= 120
    long = [
        f"{node.name}: {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(_tree(_modules()[module]))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno - node.lineno >= 80
    ]
    assert not long
    assert module.split("/")[-1] not in sys.stdlib_module_names


@pytest.mark.parametrize(
    "module, heavy",
    [
        ("egoaudio", ["numpy", "h5py", "torch", "pandas"]),
        ("egoaudio.cli", ["numpy", "h5py", "torch", "pandas", "av"]),
        ("egoaudio.builder.build", ["torch", "torchaudio", "noisereduce", "pandas", "transformers", "matplotlib"]),
        (
            "egoaudio.builder.feature_stream",
            ["torch", "torchaudio", "noisereduce", "pandas", "transformers", "matplotlib"],
        ),
        ("egoaudio.prediction.worker", ["torch", "torchaudio", "noisereduce", "pandas", "transformers", "matplotlib"]),
        ("egoaudio.reporting.report", ["torch", "torchaudio", "noisereduce", "pandas", "transformers"]),
        (
            "egoaudio.models.small_cnn, egoaudio.prediction.predict",
            ["torch._dynamo", "torchaudio", "pandas", "transformers", "matplotlib"],
        ),
        ("egoaudio.builder.extract", ["torch", "torchaudio", "noisereduce", "pandas", "transformers", "matplotlib"]),
    ],
)
def test_importing_loads_nothing_heavy(module, heavy):
    code = f"import sys, {module}; print([name for name in {heavy!r} if name in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def _public_functions():
    """Return ``(where, function)`` of everything that ``egoaudio`` names, methods and properties of its classes too."""
    functions = []
    for name in sorted(set(egoaudio.__all__) - {"__version__"}):
        value = getattr(egoaudio, name)
        if inspect.isfunction(value):
            functions.append((name, value))
        elif not issubclass(value, (Exception, IntEnum)):
            for attribute, member in vars(value).items():
                function = member.fget if isinstance(member, property) else getattr(member, "func", member)
                own = inspect.isfunction(function) and function.__module__.startswith("egoaudio")
                generated = attribute in (
                    "__init__",
                    "__repr__",
                    "__eq__",
                    "__hash__",
                    "__setattr__",
                    "__delattr__",
                    "__replace__",
                )
                private = attribute.startswith("_") and not attribute.endswith("__")
                if own and not private and not (generated and dataclasses.is_dataclass(value)):
                    functions.append((f"{name}.{attribute}", function))
    return functions


@pytest.mark.parametrize(
    "where, function", _public_functions(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_everything_public_has_hints_and_says_what_it_does(where, function):
    parameters = [
        parameter for parameter in inspect.signature(function).parameters.values() if parameter.name != "self"
    ]
    assert [parameter.name for parameter in parameters if parameter.annotation is parameter.empty] == []
    assert "return" in function.__annotations__
    assert function.__doc__ or where.split(".")[-1].startswith("__")


@pytest.mark.parametrize("module", sorted(_modules()))
def test_no_function_has_a_default_that_can_change(module):
    """One list or dict would be shared by all calls: memory that nobody sees."""
    wrong = [
        node.name
        for node in ast.walk(_tree(_modules()[module]))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        for default in [*node.args.defaults, *node.args.kw_defaults]
        if isinstance(default, (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp))
    ]
    assert wrong == []


@pytest.mark.parametrize("module", sorted(_modules()))
def test_every_public_name_has_hints_and_a_docstring(module):
    tree = _tree(_modules()[module])
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]
    functions = [node for owner in (tree, *classes) for node in owner.body if isinstance(node, ast.FunctionDef)]
    public = [function for function in functions if not function.name.startswith("_")]
    assert [node.name for node in (*classes, *public) if ast.get_docstring(node) is None] == []
    without = []
    for function in functions:
        named = function.args
        given = [*named.posonlyargs, *named.args, *named.kwonlyargs, named.vararg, named.kwarg]
        missing = [one.arg for one in given if one and one.annotation is None and one.arg not in ("self", "cls")]
        without += [(function.name, missing)] if missing or function.returns is None else []
    assert without == []


COMMANDS = re.compile(r"\b(egoaudio-[a-z]+|pip|docker|h5repack)\b[^;:]*$")


@pytest.mark.parametrize("module", sorted(set(_modules()) - {"cli", "command"}))
def test_messages_name_parameters_and_flags_only_in_a_command_to_type(module):
    """``command`` makes flags of parameters; who calls the library from Python types none."""
    tree = _tree(_modules()[module])
    bodies = [node.body for node in ast.walk(tree) if isinstance(getattr(node, "body", None), list)]
    docstrings = {id(node.value) for body in bodies for node in body if isinstance(node, ast.Expr)}
    wrong = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            flags = list(re.finditer(r"(?<![\w-])--[a-z]", node.value))
            if not re.fullmatch(r"--[a-z-]+", node.value):  # which is an argument of a command, or an option's flag
                wrong += [node.value for flag in flags if not COMMANDS.search(node.value[: flag.start()])]
    assert wrong == []
