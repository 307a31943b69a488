"""docs/choosing.md is true: each workload of its table is run, its example is recomputed, its tables are the code's."""

import json
import math
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from headwater import cli
from headwater.pick.capabilities import CAPABILITIES
from headwater.pick.hardware import ACCELERATORS
from headwater.pick.memory import GIB, weight_bytes
from headwater.pick.models import SHAPES, estimate, named
from headwater.pick.workload import Workload
from headwater.resource import load

PAGE = (Path(__file__).parents[2] / "docs/choosing.md").read_text()


def table(heading: str) -> list[list[str]]:
    """The cells of the rows under `## heading`, without the head."""
    section = re.search(rf"^## {heading}$(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert section
    lines = [line for line in section[1].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def codes(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


WORKLOADS = table("Workloads")
POSSIBLE = [row for row in WORKLOADS if not row[2].startswith("refused")]
REFUSED = [row for row in WORKLOADS if row[2].startswith("refused")]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = cli.main(["pick", *arguments])
    said = capsys.readouterr()
    return status, said.out, said.err


# Workloads


def test_the_table_shows_all_kinds_of_workloads() -> None:
    assert len(POSSIBLE) >= 10
    assert len(REFUSED) >= 2
    assert {codes(row[2])[0] for row in POSSIBLE} == {able.backend for able in CAPABILITIES}


@pytest.mark.parametrize("row", POSSIBLE, ids=lambda row: row[0])
def test_a_workload_gets_what_the_table_says(
    row: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    _, flags, places, size = row
    status, out, _ = run(capsys, *shlex.split(codes(flags)[0]), "--json")
    assert status == 0
    found: dict[str, Any] = json.loads(out)
    assert [each["backend"] for each in found["places"]] == codes(places)
    sizes = [f"{part['replicas']} x {part['tensor']}" for part in found["parts"]]
    weights = [str(part["weight"]) for part in found["parts"] if len(sizes) > 1]
    assert codes(size) == sizes + weights

    status, out, _ = run(capsys, *shlex.split(codes(flags)[0]), "--yaml")
    file = tmp_path / "picked.yaml"
    file.write_text(out)
    deployments = load(file)
    assert status == 0
    assert [each.spec.backend.type for each in deployments] == codes(places)[: len(sizes)]
    assert [each.spec.replicas for each in deployments] == [part["replicas"] for part in found["parts"]]


@pytest.mark.parametrize("row", REFUSED, ids=lambda row: row[0])
def test_a_workload_is_refused_with_what_the_table_says(row: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    _, flags, reason, ways = row
    status, out, err = run(capsys, *shlex.split(codes(flags)[0]))
    assert (status, out) == (1, "")
    assert codes(reason)[0] in err
    assert err.count("\n") == 1
    assert err.rstrip().endswith("; try " + " or ".join(codes(ways))) or not codes(ways)
    for way in codes(ways):
        assert run(capsys, *shlex.split(f"{codes(flags)[0]} {way}"))[0] == 0


# The arithmetic


def test_the_worked_example_is_what_the_command_prints(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "110")
    example = PAGE.partition("### A worked example")[2].partition("```console\n")[2].partition("\n```")[0]
    command, _, expected = example.partition("\n")
    _, out, _ = run(capsys, *shlex.split(command.removeprefix("$ headwater pick")))
    assert [line.rstrip() for line in out.splitlines()] == expected.splitlines()


def test_the_worked_example_by_hand_is_right() -> None:
    text = PAGE.partition("By hand: ")[2].partition("\n\n")[0]
    shape = named("Llama-3.3-70B")
    assert shape
    weights = weight_bytes(shape, "fp8")
    token = 80 * 2 * 8 * 128 * 2
    one, two = (int((gpus * (80 * 0.9 - 2) * GIB - weights) / token) for gpus in (1, 2))
    for figure in (
        f"({shape.parameters / 1e9:.3f} - {shape.embedding / 1e9:.3f}) x 10^9 x 1",
        f"{weights / 1e9:.3f} x 10^9 bytes = {weights / GIB:.1f} GiB",
        f"{token:,} bytes",
        f"({one:,} - 1,600) / 700 = {(one - 1600) // 700} requests",
        f"64 would take {math.ceil(64 / ((one - 1600) // 700))} GPUs",
        f"{140 - weights / GIB:.1f} GiB of room",
        f"({two:,} - 1,600) / 700 = {(two - 1600) // 700} requests",
    ):
        assert figure in " ".join(text.split()), f"docs/choosing.md, by hand: not {figure}"


@pytest.mark.parametrize(
    ("name", "claim"),
    [("Llama-3.1-8B", "{} % more KV than Llama-3.1-8B has"), ("Llama-3.1-70B", "{} % more than Llama-3.1-70B")],
)
def test_the_estimate_is_as_far_off_as_the_page_says(name: str, claim: str) -> None:
    shape = named(name)
    assert shape
    more = estimate(shape.parameters).kv_elements / shape.kv_elements - 1
    assert claim.format(round(100 * more)) in " ".join(PAGE.split())


def test_as_many_models_are_known_as_the_page_says() -> None:
    assert f"Shapes of {len(SHAPES)} well-known models" in PAGE


# Tables


def test_the_accelerators_are_those_of_the_code() -> None:
    expected = [
        [
            f"`{each.name}`",
            each.title,
            "–" if each.vendor == "cpu" else str(each.generation),
            f"{each.memory_gib:g}",
            f"{each.bandwidth_gbs:,}",
        ]
        for each in ACCELERATORS.values()
    ]
    assert table("Accelerators") == expected


def test_the_backends_are_those_of_the_code() -> None:
    def yes(able: bool) -> str:
        return "yes" if able else "–"

    expected = [
        [
            f"`{able.backend}`",
            ", ".join(
                f"{vendor} ({', '.join(sorted(known))})" if known else vendor
                for vendor, known in able.quantizations.items()
            ),
            ("nodes" if able.nodes else "GPUs of a node" if able.tensor else "–")
            + "; CPUs where asked" * ("cpu" in able.tensor),
            yes(able.adapters),
            yes(able.structured),
            yes(able.sampling),
            yes(able.host_cache),
            ", ".join(sorted(able.families)) if able.families else "any",
        ]
        for able in CAPABILITIES
    ]
    assert table("Backends") == expected


def test_the_flags_are_those_of_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["pick", "--help"])
    in_help = set(re.findall(r"--[a-z][a-z-]*", capsys.readouterr().out.partition("\n\n")[0]))
    documented = {codes(row[0])[0]: row for row in table("Flags")}
    assert documented.keys() == in_help
    for name, field in Workload.model_fields.items():
        assert documented[f"--{name.replace('_', '-')}"][2].startswith(str(field.description))
