"""`headwater pick --interactive`: the questions of docs/choosing.md, one after the other, as flags."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from headwater.pick.workload import WorkloadError, workload


@dataclass(frozen=True, slots=True)
class Question:
    field: str
    """Of the workload."""
    text: str
    usual: str
    """What an empty answer means."""


QUESTIONS: Final = (
    Question("model", "Which model? hf://OWNER/NAME, a known name, or a size such as 8b", "8b"),
    Question("gpu", "Which accelerator? Such as h100, l4, mi300x, cpu", "h100"),
    Question("gpus", "How many of them?", "1"),
    Question("concurrency", "How many requests are in flight at the same time, at peak?", "32"),
    Question("input_tokens", "How many tokens has a typical prompt?", "1000"),
    Question("output_tokens", "How many tokens has a typical answer?", "250"),
    Question("shared_prefix", "Which share of the prompt do many requests have in common, 0 to 1?", "0"),
    Question("agentic", "Are they agents, which send the conversation so far again each turn? yes or no", "no"),
    Question("structured", "Must answers follow a JSON schema or a grammar? yes or no", "no"),
    Question("mixed", "Is only a part of the requests like that? yes or no", "no"),
    Question("adapters", "How many LoRA adapters are served beside the model?", "0"),
    Question("build_time", "How long may a build before the first start take? Such as 40m", "0s"),
    Question("broad_models", "Must any architecture do, also one that is new or rare? yes or no", "no"),
    Question("hugging_face", "Are operations built around Hugging Face's own servers? yes or no", "no"),
)

_ANSWERS: Final = {"yes": True, "y": True, "no": False, "n": False}


def ask(given: dict[str, Any], answer: Callable[[str], str], say: Callable[[str], None]) -> dict[str, Any]:
    """Values of a workload: those given, and for the others answers. A wrong answer is told, and asked for again."""
    values = dict(given)
    for question in QUESTIONS:
        while question.field not in values:
            said = answer(f"{question.text} [{question.usual}] ").strip() or question.usual
            value = _ANSWERS.get(said.lower(), said)
            try:
                workload({"model": "8b", "gpu": "h100"} | values | {question.field: value})
                values[question.field] = value
            except WorkloadError as error:
                say(str(error))
    return values


def as_flags(values: dict[str, Any]) -> str:
    """What would have been the same on the command line."""
    flags = []
    for name, value in values.items():
        flag = f"--{name.replace('_', '-')}"
        if value is not False:
            flags.append(flag if value is True else f"{flag} {value}")
    return " ".join(flags)
