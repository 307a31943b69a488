"""architecture.svg: the three programs, what stands around them, and who tells whom what."""

from typing import Final

from docs.pictures.drawing import arrow, box, picture, words

_BACKENDS: Final = ("our engine", "vLLM", "SGLang", "TGI", "TensorRT-LLM", "transformers serve")

_ROUTER: Final = (
    "router",
    "finds replicas by itself;",
    "keys, limits, a waiting room;",
    "predicts what a request costs",
    "at each replica, takes the least",
)


def architecture() -> str:
    parts = [
        box(20, 60, 150, 90, ["clients", "of OpenAI's API,", "or of Anthropic's"]),
        box(270, 30, 220, 150, _ROUTER, "ours"),
        arrow((170, 105), (268, 105)),
        words(220, 96, "one URL", "small"),
        box(270, 270, 220, 100, ["operator", "replicas, rollouts, scaling", "to zero and back, weights once"], "ours"),
        box(20, 275, 150, 90, ["ModelDeployment", "kubectl apply,", "or headwater up FILE"]),
        arrow((170, 320), (268, 320)),
        words(780, 26, "engine replicas", "bold"),
    ]
    for number, name in enumerate(_BACKENDS):
        y = 40 + 54 * number
        parts.append(box(690, y, 180, 42, [name], "" if number else "ours"))
        parts.append(arrow((640, y + 21), (688, y + 21)))
    last = 40 + 54 * (len(_BACKENDS) - 1) + 21
    parts += [
        f'<path d="M640 61L640 {last}" style="marker-end: none"/>',
        arrow((490, 90), (640, 90)),
        words(566, 82, "requests, streams", "small"),
        arrow((640, 140), (492, 140), told=True),
        words(566, 158, "KV events, load", "small"),
        arrow((490, 320), (640, 320)),
        words(566, 312, "starts, watches", "small"),
    ]
    return picture(890, 390, "Clients, router, operator and engines", parts)
