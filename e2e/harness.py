"""What e2e tests do to a cluster, in the words of kubectl; and waiting for conditions, with what was seen last."""

import json
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).parents[1]
SYSTEM = "headwater-system"
"""Namespace of operator and routers."""
GATEWAY = f"http://headwater-router.{SYSTEM}.svc:80"
"""The gateway as pods see it."""

Object = dict[str, Any]
T = TypeVar("T")


class CommandError(AssertionError):
    """A command failed that should not have."""


def run(*command: str, input: str | None = None, timeout: float = 120) -> str:
    """The standard output. Raises CommandError with the other one."""
    result = subprocess.run(command, input=input, capture_output=True, text=True, timeout=timeout, check=False)
    if result.returncode:
        raise CommandError(f"{' '.join(command)}: {result.returncode}\n{result.stdout[-2000:]}{result.stderr[-4000:]}")
    return result.stdout


def kubectl(*arguments: str, input: str | None = None, timeout: float = 120) -> str:
    return run("kubectl", *arguments, input=input, timeout=timeout)


def apply(*objects: Object, dry_run: bool = False) -> None:
    # As JSON: in PyYAML's words a text such as 1e5 would be a number to others. The escapes of JSON for an emoji are
    # none in YAML.
    text = "\n---\n".join(json.dumps(each, ensure_ascii=False) for each in objects)
    kubectl(
        "apply", "--server-side", "--force-conflicts", *(["--dry-run=server"] if dry_run else []), "-f", "-", input=text
    )


def get(kind: str, name: str, namespace: str) -> Object | None:
    text = kubectl("get", kind, name, "-n", namespace, "-o", "json", "--ignore-not-found")
    return json.loads(text) if text else None


def find(kind: str, namespace: str, selector: str = "") -> list[Object]:
    text = kubectl("get", kind, "-n", namespace, "-l", selector, "-o", "json")
    return list(json.loads(text)["items"])


def eventually(what: str, check: Callable[[], T], timeout: float = 120, every: float = 0.3) -> T:
    """The first true value of `check`; an AssertionError in it counts as not yet."""
    end = time.monotonic() + timeout
    seen: object = None
    while True:
        try:
            if value := check():
                return value
            seen = value
        except AssertionError as error:
            seen = error
        if time.monotonic() > end:
            raise AssertionError(f"{what}: not within {timeout:g} s; last: {seen}")
        time.sleep(every)


def eventually_told(namespace: str, reason: str, words: str = "", *, of: str = "") -> Object:
    """The event with `reason` and `words`, of the object `of`: it comes a moment later than what it tells of."""

    def told() -> Object | None:
        for event in find("events", namespace):
            said = event["reason"] == reason and words in event["message"]
            if said and of in ("", event["involvedObject"]["name"]):
                return event
        return None

    event = eventually(f"an event says {reason} {words}".rstrip(), told)
    assert event is not None
    return event


def condition(resource: Object | None, kind: str) -> Object:
    conditions = ((resource or {}).get("status") or {}).get("conditions") or []
    return next((each for each in conditions if each["type"] == kind), {})


def wait_ready(name: str, namespace: str, timeout: float = 240) -> Object:
    """Until the ModelDeployment is ready in its current generation."""

    def ready() -> Object | None:
        resource = get("md", name, namespace)
        found = condition(resource, "Ready")
        assert resource is not None
        assert found.get("status") == "True", (resource.get("status") or {}).get("message")
        assert found["observedGeneration"] == resource["metadata"]["generation"], "an earlier generation is"
        return resource

    return eventually(f"md/{name} ready", ready, timeout)


def wait_routable(name: str, namespace: str, timeout: float = 60) -> None:
    eventually(
        f"md/{name} routable",
        lambda: condition(get("md", name, namespace), "Routable").get("status") == "True",
        timeout,
    )


@dataclass(slots=True)
class Client:
    """A pod in the cluster that asks the gateway, as any application would."""

    namespace: str = SYSTEM
    name: str = "e2e-client"
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def ask(
        self,
        model: str,
        question: str,
        max_tokens: int = 8,
        timeout: float = 120,
        *,
        before: Iterable[Object] = (),
        gateway: str = GATEWAY,
        key: str | None = None,
    ) -> Object:
        """One chat, of the messages `before` and the question: its status, its headers of ours, its body.

        `key`: instead of the pod's own; an empty one is none.
        """
        messages = [*before, {"role": "user", "content": question}]
        body = {"model": model, "max_tokens": max_tokens, "messages": messages}
        return json.loads(self._python("ask", json.dumps(body), timeout=timeout, gateway=gateway, key=key))

    def converse(self, model: str, *questions: str, max_tokens: int = 8, timeout: float = 120) -> list[Object]:
        """The answers of one chat's turns, over one connection: without Redis, a router knows only its own."""
        body = json.dumps({"model": model, "max_tokens": max_tokens})
        return json.loads(self._python("converse", body, *questions, timeout=timeout))

    def begin_load(self, model: str, streams: int, seconds: float, tokens: int = 48) -> "Load":
        """Keep so many streams of so many tokens open until told to stop, `seconds` at most."""
        arguments = ["load", GATEWAY, model, str(streams), str(tokens), str(seconds)]
        process = subprocess.Popen(
            self._exec(*arguments), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.started.append(process)
        return Load(process)

    def _python(self, *arguments: str, timeout: float, gateway: str = GATEWAY, key: str | None = None) -> str:
        return run(*self._exec(arguments[0], gateway, *arguments[1:], key=key), timeout=timeout)

    def _exec(self, *arguments: str, key: str | None = None) -> list[str]:
        return [
            "kubectl",
            "exec",
            "-i",
            "-n",
            self.namespace,
            self.name,
            "--",
            *(["env", f"HEADWATER_API_KEY={key}"] if key is not None else []),
            "python3",
            "/client/client.py",
            *arguments,
        ]


@dataclass(slots=True)
class Load:
    """Streams that one client pod keeps open."""

    process: subprocess.Popen[str]

    def stop(self, timeout: float = 180) -> Object:
        """Let the open streams end. Returns what was seen: requests, whole, cut, refused and by which pods."""
        out, err = self.process.communicate(input="stop\n", timeout=timeout)
        if self.process.returncode:
            raise CommandError(f"the client failed: {err[-4000:]}")
        return json.loads(out)


def explain(namespaces: Iterable[str]) -> str:
    """All that helps to see why a test failed."""
    parts = []
    for namespace in namespaces:
        for command in (
            ["get", "md,deploy,sts,pods,svc,job,pvc,netpol", "-o", "wide"],
            ["get", "events", "--sort-by=.lastTimestamp"],
            ["describe", "md"],
        ):
            result = subprocess.run(
                ["kubectl", "-n", namespace, *command], capture_output=True, text=True, timeout=60, check=False
            )
            parts.append(f"--- {namespace}: kubectl {' '.join(command)}\n{result.stdout[-6000:]}")
    return "\n".join(parts)
