"""The flags that a server's own help tells of, kept where ours are held against them."""

import re
from pathlib import Path
from typing import Final

FIXTURES: Final = Path(__file__).parents[1] / "fixtures"
FILE: Final = "launcher-help.txt"
_HEAD: Final = re.compile(r" {1,8}(-\S.*)")
"""The first line of a flag. What is told of it stands further right."""
_NAME: Final = re.compile(r"(?<![\w-])--?[A-Za-z][\w-]*")
_BRACES: Final = re.compile(r"\{([^{}]+)\}")
_FURTHER: Final = re.compile(r"\[possible values: [^\]]+\]|\[env: \w+")


def write_flags(backend: str, version: str, text: str) -> None:
    folder = FIXTURES / f"{backend}-{version}"
    folder.mkdir(exist_ok=True)
    head = f"# The flags of {backend} {version}, by its own help; descriptions are left out.\n"
    (folder / FILE).write_text(head + "".join(f"{line}\n" for line in flags_in(text)))


def flags_in(text: str) -> list[str]:
    """Of a help page of argparse, clap or typer: a line for each name, with the values and the variable of its flag."""
    found: dict[str, str] = {}
    names: list[str] = []
    for line in text.split("\n"):
        if head := _HEAD.match(line):
            usage = head[1].split("  ")[0]
            names = _NAME.findall(_BRACES.sub("", usage))
            values = _BRACES.search(usage)
            told = f" [possible values: {values[1].replace(',', ', ')}]" if values else ""
            found |= dict.fromkeys(names, told)
        for further in _FURTHER.findall(line):
            found |= {name: f"{found[name]} {further.rstrip(']')}]" for name in names}
    return [name + told for name, told in found.items()]
