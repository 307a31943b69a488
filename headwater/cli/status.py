"""`headwater status`: the ModelDeployments of a cluster, and what each one says of itself."""

import argparse
import asyncio
import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from headwater.cli.flags import add_json
from headwater.cli.parser import CommandError
from headwater.cli.parts import part
from headwater.cli.tables import make_table, print_table

_GROUP: Final = ("headwater.dev", "v1alpha1")
_PLURAL: Final = "modeldeployments"
_PATIENCE: Final = 15
"""Seconds for the API server's answer."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Lists the ModelDeployments of the cluster of KUBECONFIG: which backend each one has, how many replicas take "
        "requests, and, where something is not as wanted, why."
    )
    parser.add_argument("--namespace", "-n", metavar="NAME", help="only this one (default: all)")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    items = asyncio.run(_list(arguments.namespace))
    if arguments.json:
        print(json.dumps([summary(each) for each in items], indent=2))
        return 0
    console = Console()
    if not items:
        where = f"namespace {arguments.namespace}" if arguments.namespace else "the cluster"
        console.print(f"there is no ModelDeployment in {where}", highlight=False)
    else:
        print_table(_table(items))
    for each in map(summary, items):
        for reason in each["reasons"]:
            console.print(
                f"{each['namespace']}/{each['name']}: {reason}", highlight=False, markup=False, soft_wrap=True
            )
    return 0


def summary(resource: Mapping[str, Any]) -> dict[str, Any]:
    """What is worth knowing of one, as a plain object."""
    status = resource.get("status") or {}
    return {
        "namespace": resource["metadata"].get("namespace", ""),
        "name": resource["metadata"]["name"],
        "model": resource["spec"]["model"]["source"],
        "backend": status.get("backend", ""),
        "phase": status.get("phase", "not seen by an operator"),
        "serving": status.get("readyReplicas", 0),
        "wanted": resource["spec"].get("replicas"),
        "url": status.get("url", ""),
        "reasons": _reasons(status.get("conditions", [])),
    }


def _reasons(conditions: Iterable[Mapping[str, str]]) -> list[str]:
    """A sentence each. What is on its way is not ready, either: that is not said twice."""
    news = [each for each in conditions if _is_news(each)]
    if any(each["type"] == "Progressing" for each in news):
        news = [each for each in news if each["type"] != "Ready"]
    return [_sentence(each) for each in news]


def _is_news(condition: Mapping[str, str]) -> bool:
    """What is not ready, is on its way, or will not pass by itself."""
    unwanted = "False" if condition["type"] == "Ready" else "True"
    return condition["type"] in ("Ready", "Progressing", "Degraded") and condition["status"] == unwanted


def _sentence(condition: Mapping[str, str]) -> str:
    name = "not ready" if condition["type"] == "Ready" else condition["type"].lower()
    return f"{name}: {condition.get('message') or condition.get('reason', '')}"


def _table(items: list[dict[str, Any]]) -> Table:
    table = make_table(("namespace", "name", "phase", "serving", "backend", "model", "url"))
    for each in map(summary, items):
        serving = f"{each['serving']}" if each["wanted"] is None else f"{each['serving']}/{each['wanted']}"
        name = (each["namespace"], each["name"], each["phase"], serving)
        table.add_row(*name, each["backend"], each["model"], each["url"])
    return table


async def _list(namespace: str | None) -> list[dict[str, Any]]:
    """Raises CommandError."""
    config, client = (part(f"kubernetes_asyncio.{each}", "operator") for each in ("config", "client"))
    try:
        await config.load_kube_config()
    except (config.ConfigException, OSError) as error:
        raise CommandError(f"there is no cluster to ask: {error}; KUBECONFIG names the file") from None
    async with client.ApiClient() as api:
        objects = client.CustomObjectsApi(api)
        try:
            if namespace:
                answer = objects.list_namespaced_custom_object(*_GROUP, namespace, _PLURAL, _request_timeout=_PATIENCE)
            else:
                answer = objects.list_cluster_custom_object(*_GROUP, _PLURAL, _request_timeout=_PATIENCE)
            return sorted((await answer)["items"], key=lambda each: str(each["metadata"].get("namespace")))
        except client.ApiException as error:
            missing = "Headwater's CRD is not installed; helm install headwater charts/headwater brings it"
            reason = missing if error.status == 404 else f"{error.status} {error.reason}"
            raise CommandError(f"the API server does not list ModelDeployments: {reason}") from None
        except (OSError, TimeoutError) as error:
            raise CommandError(f"the API server cannot be reached: {error or 'no answer'}") from None
