"""Write into the chart's schema what `operator.settings` and `router.settings` may hold: python -m charts.schema.

They are the fields of the programs' own settings, so that helm refuses what a program would refuse. A test fails when
the schema is not what this writes.
"""

import json
from pathlib import Path
from typing import Any

from pydantic_settings import BaseSettings

from headwater_operator.config import OperatorSettings
from headwater_router.config import RouterSettings

SCHEMA = Path(__file__).parent / "headwater" / "values.schema.json"

OF_THE_CHART: dict[type[BaseSettings], set[str]] = {
    OperatorSettings: {
        "namespaces",
        "lease_namespace",
        "lease_name",
        "gateway_url",
        "gateway_service",
        "engine_image",
        "engine_routers",
        "engine_clients",
        "max_replicas",
        "host",
        "port",
    },
    RouterSettings: {"host", "port", "kubernetes", "kubernetes_namespaces", "shutdown_timeout", "redis_url"}
    | {"admin_host", "admin_port", "admin_keys", "api_keys"}
    # Refer to files or to engines outside of the cluster.
    | {"endpoint", "endpoints_file", "tokenizer", "tokenizers_folder"},
}
"""What the chart sets by itself, or cannot set."""

_KEPT = ("description", "type", "enum", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "pattern")


def settings_schema(settings: type[BaseSettings]) -> dict[str, Any]:
    fields = settings.model_json_schema()["properties"]
    return {name: _reduced(field) for name, field in fields.items() if name not in OF_THE_CHART[settings]}


def _reduced(field: dict[str, Any]) -> dict[str, Any]:
    """Without pydantic's titles and defaults; of "this or null" only this, since null takes a value away in helm."""
    either = [each for each in field.get("anyOf", []) if each != {"type": "null"}]
    field = field | (either[0] if either else {})
    return {key: field[key] for key in _KEPT if key in field}


def complete(schema: dict[str, Any]) -> dict[str, Any]:
    for program, settings in (("operator", OperatorSettings), ("router", RouterSettings)):
        schema["properties"][program]["properties"]["settings"]["properties"] = settings_schema(settings)
    return schema


def main() -> None:
    SCHEMA.write_text(json.dumps(complete(json.loads(SCHEMA.read_text())), indent=2) + "\n")


if __name__ == "__main__":
    main()
