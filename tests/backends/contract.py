"""The requests, asked through a router, and what came of each."""

from collections import Counter
from dataclasses import dataclass

from tests.backends.answers import Answer, BrokenContractError, read
from tests.backends.requests import KINDS, REQUESTS
from tests.router.gateway import RunningGateway


@dataclass(frozen=True, slots=True)
class Seen:
    """What came of a request: "done"; "refused" or "failed", in OpenAI's shape; "ignored", with what was not done; and
    "broken", which is what no client understands."""

    verdict: str
    what: str = ""


async def ask_all(router: RunningGateway) -> dict[str, Seen]:
    before: dict[str, Answer] = {}
    seen = {}
    for each in REQUESTS:
        got = await router.client.post(
            each.path, content=each.body(before), headers={"content-type": "application/json"}
        )
        try:
            answer = read(got.status_code, got.headers.get("content-type", ""), got.content, streamed=each.streamed)
        except (BrokenContractError, ValueError, KeyError) as error:
            seen[each.name] = Seen("broken", str(error))
            continue
        before[each.name] = answer
        seen[each.name] = _judged(each.kind, answer, each.check(answer, before) if answer.status == 200 else "")
    return seen


def _judged(kind: str, answer: Answer, missing: str) -> Seen:
    if answer.failed:
        return Seen("failed", answer.message)
    if kind == "errors":
        return Seen("done", answer.message) if answer.refused else Seen("ignored", missing)
    if answer.refused:
        return Seen("refused", answer.message)
    return Seen("ignored", missing) if missing else Seen("done")


def summary(seen: dict[str, Seen]) -> dict[str, str]:
    """By kind: how many were done, and which were not."""
    told = {}
    for kind in KINDS:
        names = [each.name for each in REQUESTS if each.kind == kind]
        count = Counter(seen[name].verdict for name in names)
        parts = [f"{count['done']} of {len(names)}"]
        for verdict in ("refused", "failed", "ignored", "broken"):
            if count[verdict]:
                listed = ", ".join(name for name in names if seen[name].verdict == verdict)
                parts.append(f"{verdict}: {listed}")
        told[kind] = "; ".join(parts)
    return told
