"""setup.cfg names the packages that are imported, and no others."""

import ast
import configparser
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = {
    "pympi-ling": "pympi",
    "webvtt-py": "webvtt",
    "kaldi-native-fbank": "kaldi_native_fbank",
    "scikit-learn": "sklearn",
}  # where a module has another name than its package

# distributed is the part of Dask that is used.
NOT_IMPORTED = {"dask"}
TRIED = {"onnxruntime"}  # an export is checked with it where it is installed
# Imported without being named: parts of moviepy and librosa, and what is measured only where somebody has it.
NOT_NAMED = {"audioread", "imageio_ffmpeg", "torchcodec"}


def _named(*extras):
    """Return the modules that setup.cfg installs: those that are required, and those of the extras."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    texts = [setup["options"]["install_requires"], *(setup["options.extras_require"][extra] for extra in extras)]
    names = [re.match(r"[\w.-]+", line)[0] for text in texts for line in text.strip().splitlines()]
    return {MODULES.get(name, name) for name in names}


def _imported(*folders):
    """Return the modules that the Python files of some folders import, besides the standard library's and our own."""
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    found = set()
    for node in (node for path in paths for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    scripts = {path.stem for folder in ("tests", "benchmarks", "bin") for path in (ROOT / folder).rglob("*.py")}
    return found - set(sys.stdlib_module_names) - scripts - {"egoaudio"}


def test_the_package_requires_what_it_imports_and_nothing_else():
    assert _named("cluster") - NOT_IMPORTED == _imported("egoaudio") - TRIED
    assert TRIED <= _named("export")


@pytest.mark.parametrize("folders, extras", [(["tests"], ["test"]), (["benchmarks", "bin"], ["test", "bench"])])
def test_what_tests_and_benchmarks_import_is_in_their_extras(folders, extras):
    assert _imported(*folders) - NOT_NAMED <= _named(*extras)


def test_everything_that_is_no_module_is_shipped():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    shipped = {
        path
        for package, patterns in setup["options.package_data"].items()
        for pattern in patterns.split()
        for path in (ROOT / package.replace(".", "/")).glob(pattern)
    }
    others = {
        path for path in (ROOT / "egoaudio").rglob("*.*") if path.is_file() and path.suffix not in (".py", ".pyc")
    }
    assert others <= shipped and ROOT / "egoaudio" / "py.typed" in shipped
