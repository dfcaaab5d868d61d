"""CSV files and media files -> checked annotations and samples."""
