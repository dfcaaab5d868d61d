"""The house: which room may use which, which library lives where, and what nothing may load."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import egoaudio

ROOT = Path(egoaudio.__file__).parent

# From the ground up: a room may use only rooms that stand before it.
ROOMS = """
    _version errors interrupts configuration tables annotations
    timeline containers finding media clips gating masks denoise mel features
    disk layout extents integrity reader store
    heap workers progress extraction plan report lock build plots inspection
    gather splits augment dataset
    models/dropout models/cnn models/transformer models
    metrics charades bootstrap truth curves results
    memory losses ranks slices microbatch checkpoints evaluation runs training cli
""".split()

ONE_ROOM = {
    "av": {"media", "containers"},
    "h5py": {"layout", "extents"},
    "joblib": {"workers"},
    "transformers": {"models/transformer"},
    "click": {"cli"},
    "tqdm": {"progress"},
    "noisereduce": {"denoise"},
    "matplotlib": {"plots", "curves"},
}


def _rooms():
    """Return ``{room: path}``; a package is the room of its ``__init__``."""
    rooms = {}
    for path in ROOT.rglob("*.py"):
        name = str(path.relative_to(ROOT).with_suffix(""))
        if name != "__init__":
            rooms[name.removesuffix("/__init__")] = path
    return rooms


def _imports(path):
    """Return the modules that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _rooms_used(path):
    """Return the rooms of ours that a file imports."""
    rooms, used = _rooms(), set()
    for name in _imports(path):
        parts = name.split(".")
        if parts[0] == "egoaudio":
            candidates = ["/".join(parts[1:3]), parts[1]] if len(parts) > 1 else []
            used |= {next((room for room in candidates if room in rooms), None)}
    return used - {None}


def test_every_room_has_its_place():
    assert set(_rooms()) == set(ROOMS)


@pytest.mark.parametrize("room", sorted(_rooms()))
def test_a_room_uses_only_rooms_before_it(room):
    later = {used for used in _rooms_used(_rooms()[room]) if used != room and ROOMS.index(used) > ROOMS.index(room)}
    assert not later, f"{room} uses {sorted(later)}, which stand after it"


@pytest.mark.parametrize("library", sorted(ONE_ROOM))
def test_a_library_has_one_room(library):
    users = {room for room, path in _rooms().items() if any(name.split(".")[0] == library for name in _imports(path))}
    assert users == ONE_ROOM[library]


@pytest.mark.parametrize("room", sorted(_rooms()))
def test_no_room_is_long_or_named_like_the_standard_library(room):
    assert len(_rooms()[room].read_text().splitlines()) <= 400
    assert room.split("/")[-1] not in sys.stdlib_module_names


@pytest.mark.parametrize(
    "module, heavy",
    [
        ("egoaudio", ["numpy", "h5py", "torch", "pandas"]),
        ("egoaudio.cli", ["numpy", "h5py", "torch", "pandas", "av"]),
        ("egoaudio.build", ["torch", "torchaudio", "noisereduce", "pandas", "transformers", "matplotlib"]),
        ("egoaudio.extraction", ["torch", "torchaudio", "noisereduce", "pandas", "transformers", "matplotlib"]),
    ],
)
def test_importing_loads_nothing_heavy(module, heavy):
    code = f"import sys, {module}; print([name for name in {heavy!r} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
