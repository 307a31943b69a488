#!/usr/bin/env python3
"""Print what pyproject.toml requires, with one of its extras: requirements.py EXTRA.

An image installs these in a layer of its own, before the sources: a changed source does not install them again.
"""

import sys
import tomllib
from pathlib import Path


def main(extra: str) -> None:
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    print("\n".join([*project["dependencies"], *project["optional-dependencies"][extra]]))


if __name__ == "__main__":
    main(sys.argv[1])
