"""The parts of every command: flags from a configuration's fields, help under headings, errors as messages.

Flags are made from the fields of the configurations, one to one, so a command can express all that the library can and
an unknown name fails. The library's messages name its parameters; here, and nowhere else, flags take their place. The
named errors end a command with their message and exit status; any other exception is a defect of the package and keeps
its traceback.
"""

import contextlib
import dataclasses
import functools
import inspect
import sys
import types
import typing
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from egoaudio._version import __version__
from egoaudio.config.options import Checked, as_flags, flag_of, flags, from_flat
from egoaudio.config.train import TrainConfig
from egoaudio.config.train_defaults import MODEL_DEFAULTS, describe_defaults
from egoaudio.errors import EgoAudioError
from egoaudio.system import allocator, signals, surroundings, terminal
from egoaudio.system.launch import launched

Function = TypeVar("Function", bound=Callable[..., Any])

_TERM_COLUMNS = 30  # of help for an option and its type; longer ones have their explanation on the next line


class CommaSeparated(click.ParamType):
    """Names, or numbers, with commas between them."""

    def __init__(self, kind: click.ParamType = click.STRING) -> None:
        self.kind = kind
        self.name = "names" if kind is click.STRING else "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        """Return a tuple of names or numbers."""
        if isinstance(value, tuple):
            return value
        return tuple(self.kind.convert(part.strip(), param, ctx) for part in value.split(",") if part.strip())


class SizeOrAuto(click.ParamType):
    """A number, or ``auto``."""

    name = "n|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        """Return an int, or None for ``auto``."""
        return None if value == "auto" else int(click.INT.convert(value, param, ctx))


class Command(click.Command):
    """A command whose messages about its arguments, which may be file names, cannot drive a terminal.

    ``groups`` puts the options in its help under headings: ``{heading: flags}``, in the order in which they are shown.
    """

    def __init__(self, *args: Any, groups: Mapping[str, str] | None = None, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.groups = {heading: names.split() for heading, names in (groups or {}).items()}

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the arguments."""
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            message = terminal.printable(error.format_message())
            try:
                surroundings.require_working_folder()  # without it no relative path exists
            except EgoAudioError as gone:
                message = f"{gone} ({message})"
            raise click.UsageError(message, error.ctx) from error

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options under their groups' headings, all explanations in one column."""
        options = [parameter for parameter in self.get_params(ctx) if isinstance(parameter, click.Option)]
        records = {option.opts[-1]: record for option in options if (record := option.get_help_record(ctx))}
        grouped = {flag for names in self.groups.values() for flag in names}
        groups = self.groups | {
            "Other options" if grouped else "Options": [flag for flag in records if flag not in grouped]
        }
        width = min(max(len(term) for term, _ in records.values()), _TERM_COLUMNS)
        for heading, names in groups.items():
            if names:
                rows = [records[flag] for flag in names]
                with formatter.section(heading):
                    formatter.write_dl(
                        [(f"{term:<{width}}", explanation) for term, explanation in rows], col_max=_TERM_COLUMNS
                    )


def _kind(option: dataclasses.Field[Any], hint: Any) -> click.ParamType:
    """Return the click type of a field."""
    hint = (
        next((kind for kind in typing.get_args(hint) if kind is not type(None)), hint)
        if isinstance(hint, types.UnionType)
        else hint
    )
    if typing.get_origin(hint) is tuple:
        return CommaSeparated(click.FLOAT if hint == tuple[float, ...] else click.STRING)
    if option.name == "micro_batch_size":
        return SizeOrAuto()
    if option.metadata["choices"]:
        return click.Choice(option.metadata["choices"])
    kinds: dict[Any, click.ParamType] = {int: click.INT, float: click.FLOAT, str: click.STRING, bool: click.BOOL}
    return kinds[hint]


def configured(
    config_class: type[Checked], presets: Mapping[str, Mapping[str, Any]] | None = None
) -> Callable[[Function], Function]:
    """Add the flags of ``config_class``, and ``--preset`` if there are any; the command is called with ``config=``."""

    def decorate(function: Any) -> Any:
        @functools.wraps(function)
        def run(preset: str | None = None, **values: Any) -> Any:
            context = click.get_current_context()
            names = [option.name for option, _ in flags(config_class)]
            chosen = {name: values.pop(name) for name in names}
            for name, value in (presets[preset] if presets and preset else {}).items():
                if context.get_parameter_source(name) is not ParameterSource.COMMANDLINE:
                    chosen[name] = value
            return function(config=from_flat(config_class, chosen), **values)

        named = {option.name: flag_of(option) for option, _ in flags(config_class)}
        for option, hint in reversed(list(flags(config_class))):
            text, flag = as_flags(option.metadata["help"], named), flag_of(option)
            if config_class is TrainConfig and option.name in MODEL_DEFAULTS[TrainConfig().model.model]:
                text += f"  [default: {describe_defaults(option.name)}]"
            default = ",".join(option.default) if isinstance(option.default, tuple) else option.default
            if hint is bool:
                run = click.option(
                    f"{flag}/--no-{flag[2:]}", option.name, default=default, show_default=True, help=text
                )(run)
            else:
                default = "auto" if option.name == "micro_batch_size" else default
                shown = "none" if default == "" else default is not None
                run = click.option(
                    flag, option.name, type=_kind(option, hint), default=default, show_default=shown, help=text
                )(run)
        if not presets:
            return run
        text = "Start from a named configuration; flags that are given win. paper: what the student paper did."
        return click.option("--preset", type=click.Choice(sorted(presets)), help=text)(run)

    return decorate


@contextlib.contextmanager
def _warnings() -> Iterator[None]:
    """Print the warnings of the package as lines while the block runs."""
    with warnings.catch_warnings():
        if launched().rank == 0:
            warnings.showwarning = lambda message, *_, **__: terminal.say(f"warning: {message}", err=True)
        else:  # rank 0 has the same ones
            warnings.showwarning = lambda *_, **__: None
        warnings.filterwarnings("always", category=UserWarning, module="egoaudio")
        warnings.filterwarnings("ignore", category=UserWarning, module="joblib")  # about workers stopped on purpose
        warnings.filterwarnings("ignore", category=UserWarning, message="Glyph ")  # one a letter of a picture's names
        yield


def command(
    example: str, resumes: bool = False, groups: Mapping[str, str] | None = None
) -> Callable[[Callable[..., int]], click.Command]:
    """Make a command of a function: its errors become messages, signals an exit status, ``example`` ends its help.

    With ``resumes`` the same command, given again, resumes an interrupted run. ``groups`` are those of its help.
    """

    def decorate(function: Callable[..., int]) -> click.Command:
        def with_flags(text: str) -> str:
            """Return a message with the flags of all commands of the module: one may say how to use another."""
            module: dict[str, Any] = inspect.unwrap(function).__globals__
            commands = [value for value in module.values() if isinstance(value, click.Command)]
            options = [option for each in commands for option in each.params if isinstance(option, click.Option)]
            return as_flags(text, {option.name: option.opts[-1] for option in options})

        @functools.wraps(function)
        @terminal.spelling(with_flags)
        def run(*args: Any, **kwargs: Any) -> None:
            try:
                with terminal.streams(), allocator.owned(), signals.listening(), surroundings.lacking(), _warnings():
                    surroundings.require_working_folder()
                    surroundings.raise_open_files()
                    sys.exit(function(*args, **kwargs) or 0)
            except EgoAudioError as error:
                if not error.told:
                    terminal.say(f"error: {error}", err=True)
                sys.exit(error.exit_code)
            except signals.Interrupted as interrupted:
                kept = "; what was done is kept, and the same command resumes from there" if resumes else ""
                if launched().rank == 0:
                    terminal.say(f"interrupted{kept}", err=True)
                sys.exit(interrupted.exit_code)

        epilog = "\b\nExample:\n" + example
        settings = {"help_option_names": ["-h", "--help"], "max_content_width": 110}
        made = click.command(cls=Command, groups=groups, context_settings=settings, epilog=epilog)
        return made(click.version_option(__version__, prog_name="egoaudio")(run))

    return decorate
