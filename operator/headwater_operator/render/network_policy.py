"""The NetworkPolicy: who may connect to the pods of a deployment.

An engine's port takes more than requests: whoever reaches it can load adapters or flush the cache, and KV events tell
what is in the prompts. So only those get in who have something to do there. Policies add up: one that a user makes
beside this one lets in more.
"""

from collections.abc import Sequence

from headwater.kubernetes import EVENTS_PORT, HTTP_PORT, MOST_RANKS, REPLAY_PORT, engine_service
from headwater.resource import ModelDeployment
from headwater_operator.render.context import Access, Context, Manifest, metadata
from headwater_operator.render.deployment import selector


def network_policy(deployment: ModelDeployment, context: Context, access: Access) -> Manifest:
    """Of probes it says nothing: they come from the pod's own node, which no policy keeps out."""
    rules = [_rule([*access.routers, *access.clients], HTTP_PORT)]
    if context.pin.publishes_kv_events:
        rules.append(_rule(access.routers, EVENTS_PORT, MOST_RANKS))
    if context.pin.repeats_kv_events:
        rules.append(_rule(access.routers, REPLAY_PORT, MOST_RANKS))
    if deployment.spec.parallelism.nodes > 1:
        own: Manifest = {"podSelector": {"matchLabels": selector(deployment)}}
        rules.append({"from": [own]})  # at all ports: the processes of a group agree on theirs as they start
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(deployment, context, engine_service(deployment.name), "engine"),
        "spec": {
            "podSelector": {"matchLabels": selector(deployment)},
            "policyTypes": ["Ingress"],
            "ingress": rules,
        },
    }


def _rule(peers: Sequence[Manifest], port: int, count: int = 1) -> Manifest:
    """`count`: of ports, from that one on."""
    ports: Manifest = {"protocol": "TCP", "port": port}
    if count > 1:
        ports["endPort"] = port + count - 1
    return {"from": list(peers), "ports": [ports]}
