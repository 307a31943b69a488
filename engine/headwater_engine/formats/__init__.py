"""How models write reasoning and calls of functions: one file a format, to read and to enforce it.

    text ── Thinking ──> text ── CallFormat ──> Parts ── tidied ──> Content, Reasoning, Call, Arguments

`registry.py` has them all by name; `reader.py` puts a model's two together.
"""
