"""A fleet of modelled engines in virtual time, driven by the router's own dispatcher, pickers and index.

`python -m benchmarks.fleet --help` says how to run it.
"""
