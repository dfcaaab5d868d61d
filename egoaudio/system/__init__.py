"""The operating system and the terminal: signals, files, locks, the allocator, progress bars."""
