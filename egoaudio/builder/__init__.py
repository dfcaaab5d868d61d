"""Videos -> one egoaudio file, in worker processes."""
