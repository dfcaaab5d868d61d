"""The machinery of configuration: what an option is, and every way in which options are read and written.

A configuration is a frozen dataclass whose fields are made by ``option``, each with its help and its limits, or a
dataclass of such dataclasses (``config.build``, ``config.train``). The commands make their flags from the fields
(``flags``), the file and the checkpoint store them as JSON (``to_json``), and ``differences`` says in words how two
runs differ. Values are checked on construction, so a configuration that exists is one that can be run.

Messages name parameters as Python has them, in backticks (see ``errors``); ``as_flags`` makes flags of them for the
commands. Standard library only, to keep ``--help`` fast.
"""

import ast
import dataclasses
import json
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from typing import Any, TypeVar

from egoaudio.errors import ConfigurationError

LARGEST_INT, LARGEST_FLOAT = 2**31 - 1, 1e9  # of an option without a limit of its own, so that nothing overflows
# `name`, `part.name` or `name=value`; a value that is a string may hold a backtick.
_PARAMETER = re.compile(r"""`(?:\w+\.)*(\w+)(?:=('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[^`]*))?`""")
_ALWAYS_STORED = object()
Config = TypeVar("Config", bound="Checked")


def option(
    default: Any,
    help: str,
    choices: Sequence[str] | None = None,
    flag: str | None = None,
    minimum: float | None = None,
    above: float | None = None,
    most: float | None = None,
    before: Any = _ALWAYS_STORED,
) -> Any:
    """Return a dataclass field that also carries its flag's name, help and limits.

    ``before`` is the value that a stored configuration without this option was run with: what versions without the
    option did.
    """
    metadata = {
        "help": help,
        "choices": choices,
        "flag": flag,
        "minimum": minimum,
        "above": above,
        "most": most,
        "before": before,
    }
    return field(default=default, metadata=metadata)


def flag_of(setting: dataclasses.Field[Any]) -> str:
    """Return the command-line flag of a dataclass field, such as ``--hop-seconds``."""
    return setting.metadata.get("flag") or "--" + setting.name.replace("_", "-")


@dataclasses.dataclass(frozen=True)
class Checked:
    """A base that holds every field to its declared type, choices and limits."""

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for setting in dataclasses.fields(self):
            value = getattr(self, setting.name)
            if dataclasses.is_dataclass(value) or not setting.metadata:
                continue
            _check(setting, hints[setting.name], value)


def _check(setting: dataclasses.Field[Any], hint: Any, value: Any) -> None:
    """Raise ConfigurationError unless ``value`` fits the field."""
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if hint == tuple[float, ...] and isinstance(value, tuple):
        for one in value:
            _check(setting, float, one)
        return
    kinds = tuple(typing.get_origin(kind) or kind for kind in kinds)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    fits = isinstance(value, kinds) or (float in kinds and number)
    if isinstance(value, bool) and bool not in kinds:
        fits = False
    if not fits:
        names = " or ".join(kind.__name__ for kind in kinds)
        raise ConfigurationError(f"`{setting.name}={value!r}`: expected {names}")
    choices, minimum, above = (setting.metadata[name] for name in ("choices", "minimum", "above"))
    if choices and value is not None:
        for one in value if isinstance(value, tuple) else (value,):
            if one not in choices:
                raise ConfigurationError(f"`{setting.name}={one!r}`: expected one of {', '.join(choices)}")
    if number and not abs(value) < float("inf"):
        raise ConfigurationError(f"`{setting.name}={value!r}`: expected a finite number")
    if number and minimum is not None and value < minimum:
        raise ConfigurationError(f"`{setting.name}={value!r}`: expected at least {minimum}")
    if number and above is not None and value <= above:
        raise ConfigurationError(f"`{setting.name}={value!r}`: expected more than {above}")
    most = setting.metadata["most"] or (LARGEST_INT if isinstance(value, int) else LARGEST_FLOAT)
    if number and value > most:
        raise ConfigurationError(f"`{setting.name}={value!r}`: expected at most {most}")


def flags(config_class: type) -> Iterator[tuple[dataclasses.Field[Any], Any]]:
    """Yield ``(setting, type_hint)`` for every field that is a flag, through nested configurations, in order."""
    hints = typing.get_type_hints(config_class)
    for setting in dataclasses.fields(config_class):
        if dataclasses.is_dataclass(hints[setting.name]):
            yield from flags(hints[setting.name])
        else:
            yield setting, hints[setting.name]


def from_flat(config_class: type[Config], values: Mapping[str, Any]) -> Config:
    """Build a configuration from ``{field name: value}``; names that no field has raise ConfigurationError."""
    config, unknown = _take(config_class, dict(values))
    if unknown:
        raise ConfigurationError(
            f"unknown options {', '.join(sorted(unknown))}: not among those of {config_class.__name__}"
        )
    return config


def _take(config_class: type[Config], values: dict[str, Any]) -> tuple[Config, dict[str, Any]]:
    """Take the fields of ``config_class`` out of ``values``; return the configuration and what is left over."""
    hints = typing.get_type_hints(config_class)
    chosen = {}
    for setting in dataclasses.fields(config_class):
        if dataclasses.is_dataclass(hints[setting.name]):
            chosen[setting.name], values = _take(hints[setting.name], values)
        elif setting.name in values:
            value = values.pop(setting.name)
            chosen[setting.name] = tuple(value) if isinstance(value, list) else value
    return config_class(**chosen), values


def to_flat(config: Checked) -> dict[str, Any]:
    """Return ``{field name: value}`` through nested configurations."""
    flat: dict[str, Any] = {}
    for setting in dataclasses.fields(config):
        value = getattr(config, setting.name)
        flat |= to_flat(value) if isinstance(value, Checked) else {setting.name: value}
    return flat


def to_arguments(config: Checked) -> list[str]:
    """Return the flags that give a command this configuration; those of values that are None are left out."""
    arguments, values = [], to_flat(config)
    for setting, _ in flags(type(config)):
        flag, value = flag_of(setting), values[setting.name]
        if isinstance(value, bool):
            arguments.append(flag if value else f"--no-{flag[2:]}")
        elif value is not None:
            arguments += [flag, _typed(value)]
    return arguments


def to_json(config: Checked) -> str:
    """Return the configuration as canonical JSON (sorted, no spaces): equal configurations give equal text."""
    return json.dumps(to_flat(config), sort_keys=True, separators=(",", ":"))


def from_json(config_class: type[Config], text: str) -> Config:
    """Return the configuration that ``to_json`` wrote, in this version or an earlier one."""
    settings = [setting for setting, _ in flags(config_class) if setting.metadata["before"] is not _ALWAYS_STORED]
    return from_flat(
        config_class, {setting.name: setting.metadata["before"] for setting in settings} | json.loads(text)
    )


def differences(config: Checked, other: Checked) -> list[str]:
    """Return a line for each option whose value differs: `` `clip_seconds`: 1.0, now 0.1 ``."""
    before, after = to_flat(config), to_flat(other)
    return [
        f"`{setting.name}`: {_typed(before[setting.name])}, now {_typed(after[setting.name])}"
        for setting, _ in flags(type(config))
        if before[setting.name] != after[setting.name]
    ]


def _typed(value: Any) -> str:
    """Return a value as it would be typed."""
    return "not given" if value is None else ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def as_flags(text: str, names: Mapping[str, str]) -> str:
    """Return a message with flags in place of the parameters it names, ``{parameter: flag}``, and without their quotes.

    >>> as_flags("`clips.hop_seconds=0.5` in `output='a b.h5'`", {"hop_seconds": "--hop-seconds", "output": "--output"})
    '--hop-seconds 0.5 in --output a b.h5'
    >>> as_flags("`amp=True`, or `amp=False`; `h5repack -f mfcc:NONE`", {"amp": "--amp"})
    '--amp, or --no-amp; `h5repack -f mfcc:NONE`'
    """

    def flag(found: re.Match[str]) -> str:
        name, value = found.groups()
        if name not in names:
            return found[0]
        if value in (None, "True"):
            return names[name]
        if value == "False":
            return f"--no-{names[name][2:]}"
        try:
            literal = ast.literal_eval(value)
        except (SyntaxError, ValueError):
            return f"{names[name]} {value}"
        return f"{names[name]} {_typed(literal) if isinstance(literal, (str, tuple)) else value}"

    return _PARAMETER.sub(flag, text)
