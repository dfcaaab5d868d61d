"""An egoaudio file -> a trained model."""
