"""The pictures of README and docs/. `python -m docs.pictures` makes them anew, and a test holds them to what it makes.

What a picture shows comes from what it is a picture of: commands are run, pages are asked for, figures are read from
benchmarks/results/, and the demo was recorded (`python -m docs.pictures.record`).
"""
