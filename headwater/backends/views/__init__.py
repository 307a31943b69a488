"""Folders of models as servers read them that do not read what transformers writes today: a file for each server.

A view is a folder of links, with those files beside them that had to be written anew. The program that makes it runs
where the server does, in its image, so it needs nothing but Python.
"""
