"""The tree of errors is as it is drawn, and every error of it can be caught by its name in ``egoaudio``."""

import re

import egoaudio
from egoaudio import errors

LINE = re.compile(r"^    [├└]── (\w+)(?: .*?is an? (\w+), too)?", re.MULTILINE)


def test_the_tree_is_as_it_is_drawn():
    drawn = dict(LINE.findall(errors.__doc__))
    classes = {
        name: value
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, Exception) and value is not errors.EgoAudioError
    }
    assert drawn.keys() == classes.keys()
    builtin = {"ValueError": ValueError, "OSError": OSError}
    for name, value in classes.items():
        also = {word for word, base in builtin.items() if issubclass(value, base)}
        assert issubclass(value, errors.EgoAudioError) and also == {drawn[name]} - {""}, name


def test_every_error_is_public():
    for name in ("EgoAudioError", *dict(LINE.findall(errors.__doc__))):
        assert getattr(egoaudio, name) is getattr(errors, name)
