"""Errors of the engine whose message is a sentence for the user."""


class LoadError(Exception):
    """A model cannot be loaded; the message says what was found, and what to do about it where that is known."""
