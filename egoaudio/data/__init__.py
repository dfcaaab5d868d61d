"""An egoaudio file -> batches. From here on torch may be loaded."""
