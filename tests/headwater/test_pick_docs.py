"""docs/choosing.md is true: each workload of its table is run, its example is recomputed, its tables are the code's."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from headwater import cli
from headwater.pick import speed
from headwater.pick.capabilities import CAPABILITIES
from headwater.pick.hardware import ACCELERATORS, FIGURES, SOURCES, Accelerator
from headwater.pick.memory import weight_bytes
from headwater.pick.models import catalog, estimate, named
from headwater.pick.reserve import GIB
from headwater.pick.workload import Workload, workload
from headwater.resource import load
from tests.headwater import test_pick_cases as cases
from tests.headwater import test_pick_speed as speeds

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "choosing.md").read_text()


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
    sizes = [f"{part['replicas']} x {part['gpus'] // part['replicas']}" for part in found["parts"]]
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
    weights = weight_bytes(shape, workload({"model": "Llama-3.3-70B", "quantization": "fp8"}))
    token = 80 * 8 * 256 * 2
    free = 79.2 - (1.5 * 8192 + 512 + 2 * 128) / 1024
    room = 2 * (free - weights / GIB / 2)
    for figure in (
        f"({shape.parameters / 1e9:.3f} - {shape.embedding / 1e9:.3f}) x 10^9 x 1",
        f"{weights / 1e9:.3f} x 10^9 bytes = {weights / GIB:.1f} GiB",
        f"80 x 8 x 256 x 2 = {token:,} bytes",
        f"79.2 - 12.75 = {free:.2f} GiB",
        f"2 x ({free:.2f} - {weights / GIB / 2:.2f}) = {room:.1f} GiB",
        f"= {int((room * GIB - 1600 * token) / (700 * token))} requests",
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
    exact = sum(not shape.estimated for shape in catalog().values())
    text = " ".join(PAGE.split())
    assert f"{exact} models with their layers" in text
    assert f"the sizes alone of {len(catalog()) - exact} more" in text


# What was measured


def test_the_misses_are_those_that_the_page_tells() -> None:
    said = {row[0] for row in table_after("### Measured")}
    counts = {cases.name_of(case): cases.least(case) for case in cases.COUNTS}
    wrong = {name for name, least in counts.items() if least != documented(name)}
    wrong |= {cases.name_of(case) for case in cases.ROOMS if not 0.9 <= cases.room_ratio(case) <= 1.1}
    assert said == wrong
    text = " ".join(PAGE.split())
    assert f"{len(counts) - len([name for name in wrong if name in counts])} of {len(counts)} counts are right" in text


def test_every_line_of_the_issue_is_held_by_tests_that_are_there() -> None:
    rows = table_after("### Held by")
    assert {row[0] for row in rows} == {"1", "2", "3", "4"}
    root = DOCS.parent
    written = "".join(
        file.read_text() for file in (*root.glob("tests/headwater/test_pick*.py"), root / "e2e/test_pick.py")
    )
    for name in (name for row in rows for name in codes(row[2])):
        assert re.search(rf"^def {name}\(", written, re.MULTILINE), name


def documented(name: str) -> int:
    case = next(case for case in cases.COUNTS if cases.name_of(case) == name)
    return int(case["documented_fact"].rpartition(" ")[2])


def table_after(heading: str, page: str = PAGE) -> list[list[str]]:
    lines = page.partition(heading)[2].partition("\n|")[2].partition("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_table_of_speeds_is_what_is_predicted() -> None:
    page = (DOCS / "speed.md").read_text()
    rows = table_after("## Predicted and published", page)
    assert [row[6] for row in rows] == [f"{ratio:.2f}" for ratio in speeds.ratios().values()]
    near = sum(1 / 1.5 <= float(row[6]) <= 1.5 for row in rows)
    assert f"{near} of {len(rows)} are within 1.5 times" in " ".join(page.split())
    held_out = table_after("## Held out", page)
    assert [row[8] for row in held_out] == [f"{ratio:.2f}" for ratio in speeds.held_out().values()]
    near = sum(1 / 1.5 <= float(row[8]) <= 1.5 for row in held_out)
    assert f"{near} of {len(held_out)} are within 1.5 times, all within 2" in " ".join(page.split())
    for share in (speed.READING, speed.COMPUTING, speed.EXPERTS, speed.TELLING):
        assert f"{100 * share:g} %" in page


def latency_cells(number: int) -> list[str]:
    """Of the row with that number: the load, what was published of it, and what is estimated and possible."""
    row, (middle, floor) = speeds.latency_rows()[number], speeds.between_tokens()[number]
    return [
        f"{int(row['input']):,} + {int(row['output']):,}, {row['requests']}",
        f"{int(row['tokens']):,}" if row["tokens"] else "–",
        row["middle"] or "–",
        row["p99"] or "–",
        f"{middle / speed.SPREAD:.1f} to {middle * speed.SPREAD:.1f}",
        f"{floor:.1f}",
    ]


def test_the_table_of_servers_is_what_is_published_and_what_is_possible() -> None:
    rows = table_after("## Servers", (DOCS / "speed.md").read_text())
    assert {codes(row[0])[0] for row in rows} == {able.backend for able in CAPABILITIES}
    for number, published in enumerate(speeds.latency_rows()):
        assert rows[number][2:8] == latency_cells(number)
        assert published["source"] in rows[number][9]


# Tables


def sources_text(device: Accelerator) -> str:
    """Of its four figures: `[logs], [comparison], [comparison], *estimated*`; once where they are alike."""
    named = [f"[{device.sources[each]}]" if each in device.sources else "*estimated*" for each in FIGURES]
    return named[0] if len(set(named)) == 1 else ", ".join(named)


def test_every_source_of_an_accelerators_figures_has_an_address() -> None:
    assert dict(re.findall(r"^\[(.+?)\]: (\S+)$", PAGE, re.MULTILINE)) == SOURCES
    used = {source for device in ACCELERATORS.values() for source in device.sources.values()}
    assert used == SOURCES.keys()


def test_the_accelerators_are_those_of_the_code() -> None:
    expected = [
        [
            f"`{each.name}`",
            each.title,
            "–" if each.vendor == "cpu" else str(each.generation),
            f"{each.memory_gib:g}",
            f"{each.bandwidth_gbs:,}",
            " / ".join(f"{of:,}" if of else "–" for of in (each.tflops, each.tflops8, each.tflops4)),
            f"{each.link_gbs:,.0f}",
            sources_text(each),
            f"`{each.resource}`" if each.resource else "–",
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
            yes(able.pipeline),
            yes(able.data),
            yes(able.experts),
            yes(able.adapters),
            yes(able.structured),
            yes(able.sampling),
            yes(able.host_cache),
            ", ".join(able.kv_fp8_on) if able.kv_fp8_on else yes(able.kv_fp8),
            yes(able.vision),
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
        if field.exclude:
            continue
        assert documented[f"--{name.replace('_', '-')}"][2].startswith(str(field.description))
