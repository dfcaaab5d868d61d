"""An egoaudio file, runs and predictions -> a page to look at and to listen to."""
