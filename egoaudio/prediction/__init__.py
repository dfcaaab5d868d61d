"""New recordings -> scores, segments, files."""
