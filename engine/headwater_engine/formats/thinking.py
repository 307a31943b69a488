"""Reasoning within tags, before the answer: `<think>...</think>` and kin."""

from dataclasses import dataclass
from typing import Final

from headwater_engine.formats.parts import Reasoning
from headwater_engine.formats.text import Reading, Text


@dataclass(frozen=True, slots=True)
class Thinking:
    names: tuple[str, ...]
    """Of `--reasoning-parser`: ours first, then those that other servers have for it."""
    begin: str
    end: str
    unsaid: bool = False
    """Whether models leave `begin` out where the prompt does not have it either, and reason all the same."""

    @property
    def markers(self) -> tuple[str, ...]:
        return (self.begin, self.end)

    def is_open(self, prompt: str) -> bool:
        """Whether an answer to `prompt` begins within reasoning."""
        end = prompt.rstrip()
        return end.endswith(self.begin) or (self.unsaid and not end.endswith(self.end))

    def is_over(self, prompt: str) -> bool:
        """Whether an answer to `prompt` begins behind reasoning, which templates write for who is not to think."""
        return prompt.rstrip().endswith(self.end)

    def read(self, text: Text, *, is_open: bool, trigger: str) -> Reading[None]:
        """The reasoning, if there is some; the answer is what is not read then.

        `trigger`: of calls, or empty. Some models call without having ended their reasoning; a call begins a line.
        """
        text.mark()
        yield from text.skip_space()
        if (yield from text.begins(self.begin)):
            text.since_mark()
        else:
            text.back()
            if not is_open:
                return
        yield Reasoning("")
        if not trigger:
            yield from text.pass_until(Reasoning, self.end)
            return
        yield from text.skip_space()
        called = yield from text.begins(trigger)
        if not called:
            called = (yield from text.pass_until(Reasoning, self.end, f"\n{trigger}")) == f"\n{trigger}"
        if called:
            text.unread(trigger)


THINK: Final = Thinking(
    ("think", "qwen3", "glm45", "deepseek_v3", "kimi_k2", "minimax_m2", "nemotron_v3", "step3"), "<think>", "</think>"
)
DEEPSEEK_R1: Final = Thinking(("deepseek_r1", "qwq"), "<think>", "</think>", unsaid=True)
MISTRAL: Final = Thinking(("mistral",), "[THINK]", "[/THINK]")
SEED: Final = Thinking(("seed_oss",), "<seed:think>", "</seed:think>")
