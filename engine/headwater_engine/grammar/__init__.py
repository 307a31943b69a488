"""Answers of a form: which tokens may come next, so that the text stays one that a schema or a grammar allows."""
