"""Scores -> numbers, tables and files."""
