"""The samples of README and docs/: fenced blocks, and the commands in those of a shell."""

import argparse
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
_BLOCK: Final = re.compile(r"^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_SUBSTITUTED: Final = re.compile(r"^(?P<name>[A-Z_]+)=\$\((?P<command>.*)\)$")
_BETWEEN: Final = {"|", "&", "&&", ";"}


@dataclass(frozen=True)
class Sample:
    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def samples(*languages: str) -> list[Sample]:
    found = []
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = path.read_text()
        for block in _BLOCK.finditer(text):
            line = text.count("\n", 0, block.start()) + 1
            found.append(Sample(path.relative_to(ROOT).as_posix(), line, block["language"], block["text"]))
    return [each for each in found if not languages or each.language in languages]


def commands(sample: Sample) -> Iterator[list[str]]:
    """Words of each program that is called. Of a `console`, only what stands behind a `$`."""
    text = sample.text
    if sample.language == "console":
        text = "\n".join(line.removeprefix("$ ") for line in text.splitlines() if line.startswith("$ "))
    for statement in _statements(text.replace("\\\n", " ")):
        yield from _programs(statement)


def _statements(text: str) -> Iterator[str]:
    """A line each, and more than one where a quote is open."""
    whole = ""
    for line in text.splitlines():
        whole += line + "\n"
        try:
            shlex.split(whole, comments=True)
        except ValueError:
            continue
        yield whole
        whole = ""
    assert not whole.strip(), f"a quote is open: {whole}"


def _programs(statement: str) -> Iterator[list[str]]:
    if (inside := _SUBSTITUTED.match(statement.strip())) is not None:
        statement = inside["command"]
    lexer = shlex.shlex(statement, posix=True, punctuation_chars="|&;")
    lexer.whitespace_split = True
    words: list[str] = []
    tokens = iter([*lexer, ";"])
    for word in tokens:
        if word == ">":
            next(tokens)  # where what it prints goes
        elif word not in _BETWEEN:
            words.append(word)
        elif words:
            yield words
            words = []


def curl(words: list[str]) -> argparse.Namespace:
    """`url`, `headers` and `body` of a call of curl. Only flags that samples have."""
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("url")
    parser.add_argument("-H", dest="headers", action="append", default=[])
    parser.add_argument("-d", dest="body")
    parser.add_argument("--retry")
    parser.add_argument("--retry-connrefused", action="store_true")
    return parser.parse_args(words[1:])
