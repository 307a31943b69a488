"""`headwater bench`: load against a URL, and what answers took."""

import argparse
import asyncio
import contextlib
import dataclasses
import json
from collections import Counter
from typing import Final

import httpx
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from headwater.cli.flags import add_json
from headwater.cli.load import Answer, Shape, Summary
from headwater.cli.load import run as run_load
from headwater.cli.parser import CommandError, UsageError

_PATIENCE: Final = 600.0
_BARS: Final = "▁▂▃▄▅▆▇█"
_WIDTH: Final = 60


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Sends chat requests to an OpenAI-compatible URL, several at a time, and says how long answers took. A quarter "
        "of the requests each has the same beginning, as those of one application do."
    )
    parser.add_argument("url", metavar="URL", help="of the API, such as http://127.0.0.1:8080/v1")
    parser.add_argument("--model", metavar="NAME", help="which model to ask (default: the first that is served)")
    parser.add_argument("--api-key", metavar="KEY", default="none", help="what the server wants to see")
    for flag, default, text in (
        ("requests", 64, "how many"),
        ("concurrency", 8, "how many at a time"),
        ("prompt-words", 200, "words of a prompt"),
        ("max-tokens", 64, "tokens of an answer, at most"),
        ("seed", 1, "the same seed asks the same"),
    ):
        parser.add_argument(f"--{flag}", type=int, default=default, metavar="N", help=f"{text} (default: {default})")
    for flag, number, text in (
        ("shared", 0.5, "part of a prompt that a quarter of all have in common, 0 to 1"),
        ("ttft-ms", 1000.0, "milliseconds to the first token within which an answer counts for goodput"),
        ("tpot-ms", 100.0, "milliseconds for each further token, likewise"),
    ):
        parser.add_argument(
            f"--{flag}", type=float, default=number, metavar="NUMBER", help=f"{text} (default: {number:g})"
        )
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    shape = _shape(arguments)
    if not arguments.url.startswith(("http://", "https://")):
        raise UsageError(f"URL must begin with http:// or https://; did you mean http://{arguments.url}?")
    model, answers = asyncio.run(
        measure(arguments.url, shape, model=arguments.model, key=arguments.api_key, seed=arguments.seed)
    )
    summary = Summary.of(model, shape.concurrency, answers, arguments.ttft_ms, arguments.tpot_ms)
    if arguments.json:
        print(json.dumps(dataclasses.asdict(summary)))
    else:
        _print(Console(), summary, answers)
    return 1 if summary.failed == summary.requests else 0


def _shape(arguments: argparse.Namespace) -> Shape:
    """Raises UsageError."""
    for name in ("requests", "concurrency", "prompt_words", "max_tokens"):
        if getattr(arguments, name) < 1:
            raise UsageError(f"--{name.replace('_', '-')} must be at least 1, found {getattr(arguments, name)}")
    if not 0 <= arguments.shared <= 1:
        raise UsageError(f"--shared must be from 0 to 1, found {arguments.shared:g}")
    return Shape(
        arguments.requests, arguments.concurrency, arguments.prompt_words, arguments.shared, arguments.max_tokens
    )


async def measure(
    url: str, shape: Shape, *, model: str | None, key: str = "none", seed: int = 1, seconds: float | None = None
) -> tuple[str, list[Answer]]:
    """The model that was asked, and its answers: all of them, or those of so many seconds.

    Raises CommandError where there is nobody to ask.
    """
    limits = httpx.Limits(max_connections=None)
    headers = {"authorization": f"Bearer {key}"}
    answers: list[Answer] = []
    async with httpx.AsyncClient(base_url=url.rstrip("/"), headers=headers, timeout=_PATIENCE, limits=limits) as client:
        asked = model or await _first_model(client, url)
        columns = TextColumn(asked), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task(asked, total=shape.requests)

            def answered(answer: Answer) -> None:
                answers.append(answer)
                progress.advance(task)

            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await run_load(client, asked, shape, seed, answered)
    return asked, answers


async def _first_model(client: httpx.AsyncClient, url: str) -> str:
    """Raises CommandError."""
    try:
        answer = await client.get("/models", timeout=10)
        return str(answer.raise_for_status().json()["data"][0]["id"])
    except httpx.HTTPStatusError as error:
        raise CommandError(
            f"{url}/models answers {error.response.status_code}; is it the API's URL, with /v1?"
        ) from None
    except httpx.HTTPError as error:
        raise CommandError(f"{url} cannot be reached: {error}") from None
    except (ValueError, KeyError, IndexError, TypeError):
        raise CommandError(f"{url}/models names no model; --model does") from None


def _print(console: Console, summary: Summary, answers: list[Answer]) -> None:
    requests = ("requests", f"{summary.requests} in {summary.seconds:.1f} s, {summary.failed} failed")
    for name, value in (requests, *(_times(summary, answers) if summary.failed < summary.requests else ())):
        console.print(f"{name:14}{value}", highlight=False, markup=False, soft_wrap=True)
    for error, count in Counter(each.error for each in answers if each.error).most_common(3):
        console.print(f"{count} times: {error}", highlight=False, markup=False, soft_wrap=True)


def _times(summary: Summary, answers: list[Answer]) -> list[tuple[str, str]]:
    return [
        ("throughput", f"{summary.output_tokens_per_s:.1f} output tokens/s"),
        ("first token", f"{summary.ttft_p50:.0f} ms median, {summary.ttft_p99:.0f} ms p99"),
        (
            "each further",
            f"{summary.tpot_p50:.1f} ms median, {summary.tpot_p99:.1f} ms p99; pauses {summary.gap_p99:.0f} ms p99",
        ),
        ("cached", f"{summary.cached_share:.0%} of prompt tokens"),
        ("goodput", f"{summary.goodput:.2f} requests/s within the objectives"),
        ("first tokens", f"{plot([1000 * each.ttft for each in answers if not each.error])}  in the order of requests"),
    ]


def plot(values: list[float]) -> str:
    """A bar for each value, or for the largest of neighbours where there are many."""
    if not values:
        return ""
    step = -(-len(values) // _WIDTH)
    groups = [max(values[at : at + step]) for at in range(0, len(values), step)]
    top = max(groups) or 1.0
    return "".join(_BARS[min(len(_BARS) - 1, int(len(_BARS) * each / top))] for each in groups)
