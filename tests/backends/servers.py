"""The real servers, each as its recipe starts it, `RECIPE serve FOLDER ARGUMENTS`, with the flags of Headwater."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import httpx
import psutil

from benchmarks.servers import free_ports
from headwater import __version__, backends
from headwater.resource import ModelDeployment
from tests.backends.requests import CONTEXT, MODEL

PATIENCE: Final = 900
"""Seconds until a server answers; the first start of some compiles."""
LIMIT: Final = 4
"""Requests that a server with such a limit is to take at once. SGLang has as many wait."""
_ARGUMENTS: Final[Mapping[str, str]] = {
    "headwater": "--threads 1 --kv-cache-gib 0.25 --kv-events tcp://127.0.0.1:{events}",
    "vllm": (
        "--dtype float32 --enforce-eager --max-num-seqs {limit} --kv-events-config {config} "
        "--enable-auto-tool-choice --tool-call-parser hermes --shutdown-timeout 60 "
        "--reasoning-parser deepseek_v3 --reasoning-config {reasoning}"
    ),
    "sglang": (
        "--max-running-requests {limit} --max-queued-requests {limit} --kv-events-config {config} "
        "--max-total-tokens 16384 --tool-call-parser qwen25 --reasoning-parser deepseek-v3"
    ),
    "tgi": "--max-concurrent-requests {limit} --max-batch-prefill-tokens {context}",
    "transformers": "--device cpu --dtype float32",
}
"""Beside Headwater's own; `config` is that of KV events. Parsers of reasoning are such as think only when asked to."""
_REASONING: Final = '{"reasoning_start_str":"<think>","reasoning_end_str":"</think>"}'
"""Without it, vLLM knows no budget of a parser that may do nothing."""
_LAUNCHERS: Final = {
    "vllm": ("vllm", "serve"),
    "sglang": ("python3", "-m", "sglang.launch_server", "--model-path"),
    "tgi": ("text-generation-launcher", "--model-id"),
}
"""What a recipe stands in for: all before the model. A view of the model's folder is written before that."""
_VERSIONS: Final = {"vllm": "/version", "sglang": "/server_info", "tgi": "/info"}
"""Where a server tells its own."""


@dataclass(slots=True)
class Server:
    backend: str
    recipe: str
    """Empty: our own engine, and transformers of this environment."""
    folder: Path
    """Of the model; its name is the model's."""
    name: str = ""
    """Among others of the same backend."""
    limit: int = LIMIT
    more: tuple[str, ...] = ()
    """Arguments of its own."""
    port: int = 0
    events: int = 0
    replay: int = 0
    process: subprocess.Popen[bytes] | None = None
    log: Path = field(init=False)

    def __post_init__(self) -> None:
        self.port, self.events, self.replay = free_ports(3)
        self.name = self.name or self.backend
        self.log = self.folder.parent / f"{self.name}.log"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def endpoint(self) -> str:
        """As a flag of the router."""
        flag = f"{self.url},name={self.name},backend={self.backend}"
        if backends.get(self.backend).answers_to_any_name:
            flag += f",model={MODEL}"
        if not backends.get(self.backend).publishes_kv_events:
            return flag
        flag += f",kv_events=tcp://127.0.0.1:{self.events}"
        return flag if self.backend == "headwater" else f"{flag},kv_replay=tcp://127.0.0.1:{self.replay}"

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command(), stdout=log, stderr=log, cwd=self.folder.parent, env=self._environment(),
                start_new_session=True,
            )  # fmt: skip

    async def until_ready(self) -> None:
        """Until it has answered a request. Raises RuntimeError where it ends, or takes too long."""
        body = {"model": MODEL, "prompt": "a", "max_tokens": 1}
        async with asyncio.timeout(PATIENCE), httpx.AsyncClient(base_url=self.url, timeout=PATIENCE) as http:
            while True:
                if self.process is None or self.process.poll() is not None:
                    raise RuntimeError(f"{self.name} ended: {self.log.read_text(errors='replace')[-2000:]}")
                try:
                    if (await http.post("/v1/completions", json=body)).status_code == 200:
                        return
                except httpx.TransportError:
                    pass
                await asyncio.sleep(0.5)

    async def version(self) -> str:
        if self.backend == "headwater":
            return __version__
        if (path := _VERSIONS.get(self.backend)) is None:
            told = await asyncio.to_thread(subprocess.check_output, [_transformers(), "version"], text=True)
            return str(told.split()[-1])
        async with httpx.AsyncClient(timeout=PATIENCE) as http:
            return str((await http.get(self.url + path)).json()["version"])

    def help(self) -> str:
        """What its launcher says of its flags."""
        start = [self.recipe, "serve", str(self.folder)] if self.recipe else [_transformers(), "serve"]
        flag = "--help=all" if self.backend == "vllm" else "-h"
        return subprocess.check_output([*start, flag], text=True, stderr=subprocess.DEVNULL, env=self._environment())

    def kill(self) -> None:
        """With all its children, which may have groups of their own, and without a word."""
        if self.process is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(self.process.pid)
                for each in [process, *process.children(recursive=True)]:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        each.kill()
            self.process.wait()

    def terminate(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)

    def _deployment(self) -> ModelDeployment:
        told = {"publisher": "zmq", "endpoint": f"tcp://*:{self.events}", "replay_endpoint": f"tcp://*:{self.replay}"}
        config = json.dumps(told | ({"enable_kv_cache_events": True} if self.backend == "vllm" else {}))
        words = {"events": self.events, "limit": self.limit, "context": CONTEXT}
        words |= {"config": config, "reasoning": _REASONING}
        given = [each.format_map(words) for each in _ARGUMENTS[self.backend].split()] + [*self.more]
        context = {} if self.backend == "transformers" else {"maxTokens": CONTEXT}
        spec = {
            "model": {"source": f"file://{MODEL if self.backend == 'transformers' else self.folder}"},
            "context": context,
            "backend": {"type": self.backend, "args": given},
        }
        described = {"apiVersion": "headwater.dev/v1alpha1", "kind": "ModelDeployment", "metadata": {"name": MODEL}}
        return ModelDeployment.model_validate(described | {"spec": spec})

    def _command(self) -> list[str]:
        command = backends.get(self.backend).command(self._deployment(), port=self.port)
        if self.backend == "transformers":
            return [_transformers(), *command[1:]]
        if not self.recipe:
            return command
        launcher = _LAUNCHERS[self.backend]
        place = command.index(launcher[0])
        assert tuple(command[place : place + len(launcher)]) == launcher
        return [*command[:place], self.recipe, "serve", *command[place + len(launcher) :]]

    def _environment(self) -> dict[str, str]:
        own = backends.get(self.backend).environment(self._deployment())
        return os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"} | dict(own)


def _transformers() -> str:
    beside = Path(sys.executable).with_name("transformers")
    return str(beside) if beside.exists() else shutil.which("transformers") or "transformers"
