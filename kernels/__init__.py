"""Compiled inner loops and their plain twins; this package imports nothing else of ours."""
