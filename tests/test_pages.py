"""The pages: their examples run, what they name exists, and what exists they name."""

import configparser
import contextlib
import doctest
import importlib
import inspect
import io
import re
import sys
from pathlib import Path

import click
import pytest

import egoaudio
from egoaudio import cli

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "bin"))
import demo_data  # noqa: E402

PAGES = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "FORMAT.md", "CONTRIBUTING.md")}
PAGES["benchmarks/README.md"] = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
COMMANDS = {f"egoaudio-{name}": command for name, command in vars(cli).items() if isinstance(command, click.Command)}
# pip's, sbatch's, torchrun's
FOREIGN = {"--no-deps", "--array", "--requeue", "--wrap", "--parsable", "--nproc-per-node"}
WITH_EXAMPLES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in sorted((ROOT / "egoaudio").rglob("*.py"))
    if ">>> " in path.read_text(encoding="utf-8")
]


def _flags(command):
    """Return the flags of a command, and those that turn them off."""
    return {flag for option in command.params for flag in (*option.opts, *option.secondary_opts)}


def _python(*pages):
    """Return the Python examples of some pages."""
    return [block for page in pages for block in re.findall(r"^```python\n(.*?)^```", PAGES[page], re.DOTALL | re.M)]


@pytest.fixture(scope="module")
def tried(tmp_path_factory):
    """Return the folder in which the pages' examples have run, what they named and what they printed."""
    folder = tmp_path_factory.mktemp("examples")
    demo_data.make(folder, 6, 1, 3.0, 4.0)
    blocks = _python("README.md", "FORMAT.md")
    names, said = {}, io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.chdir(folder)
        for block in sorted(blocks, key=lambda block: "egoaudio.build(" not in block):  # what builds runs first
            exec(compile(block, "an example", "exec"), names)
    return folder, names, said.getvalue()


def test_the_examples_run(tried):
    folder, names, said = tried
    assert names["spectrogram"].shape[1:] == (32, 1025) == names["row"].shape and names["loud"].shape == (10,)
    assert names["labels"].shape == (len(names["clips"]), 13)
    assert "would hold" in said and "gave no data: " in said and "train_loss" in said and "top-1 accuracy" in said
    assert (folder / "runs" / "example" / "best.pt").exists()


def test_the_example_from_videos_to_an_evaluated_model_is_short():
    (example,) = [block for block in _python("README.md") if "egoaudio.build(" in block]
    assert len([line for line in example.splitlines() if line.strip()]) <= 20


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_the_examples_of_docstrings_run(name, tried, monkeypatch):
    """In the folder where those of the pages have run, which build and train what these read."""
    monkeypatch.chdir(tried[0])
    failed, tests = doctest.testmod(importlib.import_module(name))
    assert tests > 0 and failed == 0


@pytest.mark.parametrize("name", [name for name in egoaudio.__all__ if inspect.isfunction(getattr(egoaudio, name))])
def test_every_public_function_has_an_example(name):
    assert ">>> " in getattr(egoaudio, name).__doc__


def test_no_page_has_an_example_that_nobody_runs():
    assert _python(*set(PAGES) - {"README.md", "FORMAT.md"}) == []


def test_the_readme_is_one_page():
    assert len(PAGES["README.md"].splitlines()) <= 150


@pytest.mark.parametrize("name", COMMANDS)
def test_the_readme_shows_every_command(name):
    assert re.search(rf"^ +(\$ |.*&& )?{name} ", PAGES["README.md"], re.M) or f"`{name}" in PAGES["README.md"]


@pytest.mark.parametrize("page", PAGES)
def test_every_command_and_flag_of_a_page_exists(page):
    known = set().union(FOREIGN, *map(_flags, COMMANDS.values()))
    if page == "README.md":
        assert set(re.findall(r"egoaudio-[a-z]+", PAGES[page])) == set(COMMANDS)
        assert len(re.findall(r"(?<![\w-])--[a-z]", PAGES[page])) > 20
        assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", PAGES[page])) <= known
    joined = PAGES[page].replace("\\\n", " ")
    for name, rest in re.findall(r"(egoaudio-[a-z]+)\b([^\n`]*)", joined):
        for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]*", rest.split("&&")[0]):
            assert flag in _flags(COMMANDS[name]), f"{name} has no {flag}"


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page):
    links = re.findall(r"\]\(([^)\s]+)\)", PAGES[page])
    headings = re.findall(r"^#+ (.*)", PAGES[page], re.M)
    anchors = {"#" + re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    for link in links:
        if link.startswith("#"):
            assert link in anchors
        elif not link.startswith("http"):
            assert ((ROOT / page).parent / link).exists(), link


def test_what_is_cited_is_this_version():
    cited = dict(re.findall(r"^([a-z-]+): (.*)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.M))
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert cited["version"] == egoaudio.__version__ and cited["license"] == setup["metadata"]["license"]
    assert cited["cff-version"] == "1.2.0" and {"message", "title", "type"} <= set(cited)
