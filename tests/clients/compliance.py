"""llm-comply, which holds each answer to the schema that its API has published: all of it but images."""

import asyncio
import json
from pathlib import Path

FORMS = ("openai-chat", "open-responses", "anthropic")
MODEL = "gpt-5-claude-4"
"""By this name the checker takes the model for one that thinks; of others it leaves out what it has on that."""
_IMAGES = ("chat-image-input", "image-input", "anth-image-input")


async def see_compliance(python: str, port: int, whom: str) -> bool:
    """Whether something failed. There are several models at that port: of one, a request needs not say which."""
    checker = Path(python).with_name("llm-comply")
    return any(await asyncio.gather(*(_see_form(checker, form, port, whom) for form in FORMS)))


async def _see_form(checker: Path, form: str, port: int, whom: str) -> bool:
    flags = [
        "run",
        "--json",
        "--format",
        form,
        "-u",
        f"http://127.0.0.1:{port}/v1",
        "-k",
        "x",
        "-m",
        MODEL,
        "--timeout",
        "600",
    ]
    run = await asyncio.create_subprocess_exec(checker, *flags, stdout=asyncio.subprocess.PIPE)
    told, _ = await run.communicate()
    failed, passed = failures(json.loads(told))
    print(f"{'FAILED' if failed else 'passed'} llm-comply {form} to {whom}: {passed} passed {failed or ''}", flush=True)
    return bool(failed)


def failures(told: dict[str, object]) -> tuple[dict[str, list[str]], int]:
    """What did not pass, and why, but for images; and how many did."""
    results = told["results"]
    assert isinstance(results, list)
    failed = {each["id"]: each.get("errors", []) for each in results if each["status"] != "passed"}
    return {name: why for name, why in failed.items() if name not in _IMAGES}, len(results) - len(failed)
