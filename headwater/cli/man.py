"""`headwater man`: the manual page, made of what the parser knows."""

import argparse
from collections.abc import Iterator

from headwater import __version__


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.description = "Prints the manual page: headwater man | man -l -"


def run(arguments: argparse.Namespace) -> int:
    from headwater.cli.program import make_parser

    print("\n".join(page(make_parser())))
    return 0


def page(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Lines of roff, in the macros of man(7)."""
    yield f'.TH HEADWATER 1 "" "headwater {__version__}"'
    yield f".SH NAME\nheadwater \\- {_text(parser.description or '')}"
    yield ".SH SYNOPSIS\n.B headwater\nCOMMAND [FLAGS]\n.SH COMMANDS"
    (commands,) = (each for each in parser._actions if isinstance(each, argparse._SubParsersAction))
    for name, command in commands.choices.items():
        usage = " ".join(command.format_usage().partition("usage: ")[2].split())
        yield f".SS {name}\n{_text(command.description or '')}\n.PP\n.B {_text(usage)}"
        for group in command._action_groups:
            if (flags := [action for action in group._group_actions if _is_told(action)]) and group.title:
                yield f".PP\n.I {_text(group.title)}"
            for action in flags:
                yield from _flag(action)
    yield f".SH EXIT STATUS\n{_text('0: done; 1: failed; 2: asked for in a wrong way, which one sentence says.')}"


def _is_told(action: argparse.Action) -> bool:
    return action.help != argparse.SUPPRESS and not isinstance(action, argparse._HelpAction)


def _flag(action: argparse.Action) -> Iterator[str]:
    value = "" if action.nargs == 0 else f" {action.metavar or action.dest.upper()}"
    names = ", ".join(action.option_strings) or str(action.metavar or action.dest)
    yield f".TP\n.B {_text(names + (value if action.option_strings else ''))}"
    yield _text((action.help or "").replace("%%", "%"))


def _text(text: str) -> str:
    """No character of it is a command of roff."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{text}" if text.startswith((".", "'")) else text
