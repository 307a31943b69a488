"""Records `make demo` as demo.cast, in asciinema's format: `python -m docs.pictures.record`."""

import fcntl
import json
import os
import pty
import struct
import sys
import termios
import time
from pathlib import Path
from typing import Final

CAST: Final = Path(__file__).with_name("demo.cast")
_COMMAND: Final = "make demo"
_WIDTH: Final = 104
_HEIGHT: Final = 27


def main() -> None:
    """Arguments are `make`'s, such as BIN of another environment; they are not shown."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ |= {"TERM": "xterm-256color", "COLUMNS": str(_WIDTH), "LINES": str(_HEIGHT)}
        os.execvp("make", [*_COMMAND.split(), *sys.argv[1:]])
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", _HEIGHT, _WIDTH, 0, 0))
    events = [(0.0, "o", f"$ {_COMMAND}\r\n"), *_written(terminal)]
    _, status = os.waitpid(pid, 0)
    if status:
        raise SystemExit("".join(text for _, _, text in events))
    header = {"version": 2, "width": _WIDTH, "height": _HEIGHT, "timestamp": int(time.time()), "title": _COMMAND}
    CAST.write_text("".join(f"{json.dumps(each, ensure_ascii=False)}\n" for each in (header, *events)))


def _written(terminal: int) -> list[tuple[float, str, str]]:
    """Until the program ends, which a terminal says as an error. What is drawn again as it was is told once."""
    began = time.monotonic()
    events: list[tuple[float, str, str]] = []
    while True:
        try:
            data = os.read(terminal, 65536)
        except OSError:
            return events
        text = data.decode(errors="replace")
        if not events or events[-1][2] != text:
            events.append((round(time.monotonic() - began, 2), "o", text))


if __name__ == "__main__":
    main()
