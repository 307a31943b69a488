"""Chooses where a request goes, and is told what became of it."""
