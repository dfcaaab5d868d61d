"""The egoaudio file: its layout, writing its rows, reading and checking it."""
