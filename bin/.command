#!/usr/bin/env bash
# Every egoaudio command from a checkout, the one that its own name says: bin/egoaudio-build and the others are links to this file.
# Runs with the active virtual environment, else .venv, else python3.
root=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." && pwd)
python=${VIRTUAL_ENV:-$root/.venv}/bin/python
[ -x "$python" ] || python=python3
run='import sys; from egoaudio import cli; name = sys.argv.pop(1); sys.argv[0] = name; getattr(cli, name.removeprefix("egoaudio-"))()'
PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" exec "$python" -c "$run" "$(basename "${BASH_SOURCE[0]}")" "$@"
