"""The arithmetic of a plan as text, and that of why there is none."""

import math
from collections.abc import Iterator

from headwater.pick.capabilities import Capability
from headwater.pick.hardware import FIGURES, Accelerator
from headwater.pick.layout import Layout, layouts
from headwater.pick.memory import (
    ALONE,
    Plan,
    adapter_bytes,
    copied_bytes,
    element_bytes,
    kv_token_bytes,
    padding,
    quantized_parameters,
    request_bytes,
    shared_tokens,
    step_of,
    weights_gib,
)
from headwater.pick.precision import bytes_of
from headwater.pick.reserve import DEFAULT_FRACTION, GIB, cache_gib, reserve_gib
from headwater.pick.shape import Kept, Shape, size_text
from headwater.pick.speed import SPREAD, Range, speed_of
from headwater.pick.workload import Workload


def weights_text(workload: Workload, shape: Shape, able: Capability, layout: Layout = ALONE) -> str:
    """`70.6B x 2 bytes = 131.4 GiB`."""
    quantized = quantized_parameters(shape, workload)
    each = bytes_of(workload.known_quantization, workload.model or "")
    if shape.stored is not None and not workload.online:
        text = f"{shape.stored:,.0f} bytes in its files"
    elif workload.known_quantization == "none":
        text = f"{size_text(shape.parameters)} x 2 bytes"
    else:
        text = f"{size_text(quantized)} x {each:.4g} byte{'s' * (each != 1)}"
        if (larger := padding(shape, workload)) > 1:
            text += f" x {larger:.3f} of padding"
        text += f" + {size_text(shape.parameters - quantized)} x 2 bytes"
    if workload.adapters:
        text += f" + {adapter_bytes(workload, shape, able.backend) / GIB:.2f} GiB of slots for adapters"
    if layout.data > 1:
        text += f" + {layout.data - 1} x {copied_bytes(workload, shape, able) / GIB:,.1f} GiB of all but experts"
    return f"{text} = {weights_gib(workload, shape, able, layout):,.1f} GiB"


def kv_text(workload: Workload, shape: Shape, tensor: int) -> str:
    """`80 layers x 8 heads x 256 x 2 bytes = 320 KiB`, and what windows take besides."""
    each = element_bytes(workload)
    grows = [kept for kept in shape.kept if kept.window is None]
    terms = [_kept_text(kept, tensor) for kept in grows]
    per = f"{each} byte{'s' * (each != 1)}"
    text = " + ".join(terms) + f" x {per}" if len(terms) == 1 else f"({' + '.join(terms)}) x {per}"
    text += f" = {kv_token_bytes(workload, shape, tensor) / 1024:,.1f} KiB"
    if fixed := shape.fixed_elements(tensor, workload.tokens) * each:
        text += f"; windows and states {fixed / 2**20:,.1f} MiB a request"
    return text


def _kept_text(kept: Kept, tensor: int) -> str:
    heads = f"{kept.heads} heads x {kept.width:g}" if kept.heads > 1 else f"{kept.width:g}"
    copies = f" x {kept.copies(tensor):g} copies" if kept.copies(tensor) > 1 else ""
    return f"{kept.layers} layers x {heads}{copies}"


def explain(workload: Workload, shape: Shape, able: Capability, plan: Plan) -> Iterator[tuple[str, str]]:
    """The plan's arithmetic, as lines of what and how."""
    yield "hardware", hardware_text(workload.accelerator)
    if (layout := plan.layout).expert or layout.pipeline > 1 or layout.data > 1:
        yield "GPUs", layout_text(layout)
    weights = weights_text(workload, shape, able, layout)
    yield "weights", weights + (" (estimated shape)" if shape.estimated else "")
    yield "KV, a token", kv_text(workload, shape, layout.tensor)
    yield "room for KV", _room_text(workload, shape, able, plan)
    yield "requests", _requests_text(workload, able, plan)
    yield "replicas", _replicas_text(workload, plan)
    yield from _speed_text(workload, shape, plan)


def hardware_text(accelerator: Accelerator) -> str:
    """`H100: 79.2 GiB, 3,350 GB/s, 989 TFLOPS in 16 bits, link 900 GB/s`, and which of them are estimated."""
    shown = (
        f"{accelerator.memory_gib:g} GiB",
        f"{accelerator.bandwidth_gbs:,.0f} GB/s",
        f"{accelerator.tflops:,.0f} TFLOPS in 16 bits",
        f"link {accelerator.link_gbs:,.0f} GB/s",
    )
    marked = (
        f"{text} (estimated)" if figure in accelerator.estimated else text
        for figure, text in zip(FIGURES, shown, strict=True)
    )
    return f"{accelerator.title}: {', '.join(marked)}"


def layout_text(layout: Layout) -> str:
    """`16: 8 share each layer, 2 stages, on 2 machines`."""
    parts = [f"{layout.tensor} share each layer"] if layout.tensor > 1 else []
    if layout.data > 1:
        parts.append(f"{layout.data} groups, each with attention for requests of its own")
    if layout.expert:
        parts.append(f"experts whole on one of {layout.stage}")
    if layout.pipeline > 1:
        parts.append(f"{layout.pipeline} stages")
    if layout.nodes > 1:
        parts.append(f"on {layout.nodes} machines")
    return f"{layout.gpus}: {', '.join(parts)}"


def _room_text(workload: Workload, shape: Shape, able: Capability, plan: Plan) -> str:
    gpus, fullest = plan.layout.gpus, plan.layout.fullest(shape)
    memory, reserve = f"{workload.accelerator_gib:g}", f"{plan.reserve_gib:.1f} GiB"
    each = f"{plan.weights_gib / gpus * fullest:,.1f} GiB"
    share = f"{workload.fraction or DEFAULT_FRACTION:g}"
    if able.backend == "sglang":
        text = f"({memory} GiB - {reserve}"
        text = f"({memory} GiB x {share}" if workload.fraction else text
        text += f" - {each})"
    elif able.backend == "tensorrt-llm":
        text = f"{share} x ({memory} GiB - {each} - {reserve})"
    else:
        text = f"({memory} GiB x {share} - {reserve} - {each})"
    if fullest > 1:  # its requests are as many as the stage with the most layers holds
        text += f" / {fullest:.3f}"
    return f"{gpus} x {text} = {plan.kv_gib:,.1f} GiB = {plan.kv_tokens:,} tokens"


def _requests_text(workload: Workload, able: Capability, plan: Plan) -> str:
    shared = shared_tokens(workload, able)
    text = f"{workload.input_tokens:,} + {workload.output_tokens:,} tokens"
    if shared:
        text += f", of which {shared:,} are shared"
    text += f": {plan.kv_gib:,.1f} GiB holds {plan.fits:,}"
    if plan.requests < plan.fits:
        text += f"; the server runs {plan.requests:,} at once"
    return text


def _replicas_text(workload: Workload, plan: Plan) -> str:
    what = "machine" if workload.accelerator.vendor == "cpu" else "GPU"
    there = f"{workload.gpus:,} {what}{'s' if workload.gpus > 1 else ''}"
    wanted = math.ceil(workload.concurrency / plan.requests)
    text = f"{workload.concurrency:,} / {plan.requests:,} -> {wanted:,}"
    if plan.replicas > wanted:
        text += "; all GPUs" if workload.offline else f"; for {workload.rate:g} requests a second, {plan.replicas:,}"
    if wanted > plan.replicas:
        held = plan.replicas * plan.requests
        make = "make" if workload.gpus > 1 else "makes"
        text += f", but {there} {make} {plan.replicas}: {held:,} run at once, the others wait"
    return f"{text}; {plan.replicas} x {plan.layout.gpus} = {plan.gpus} of {there}"


def _speed_text(workload: Workload, shape: Shape, plan: Plan) -> Iterator[tuple[str, str]]:
    speed = speed_of(shape, workload, plan)
    yield (
        "decode step",
        f"at least {speed.step_seconds * 1e3:.1f} ms: what it reads, at {plan.layout.stage} x "
        f"{workload.accelerator.bandwidth_gbs:,.0f} GB/s",
    )
    if workload.rate and (wanted := workload.rate * workload.output_tokens) > speed.tokens.middle:
        yield "rate", f"{workload.rate:g} requests a second are {wanted:,.0f} tokens: more than these GPUs make"
    yield "tokens", f"{_range(speed.tokens, 1, '.0f')} a second from {plan.replicas} x {plan.layout.gpus}"
    yield (
        "latency",
        f"first token {_range(speed.first, 1e3, '.0f')} ms, each further one {_range(speed.each, 1e3, '.1f')} ms",
    )
    if price := workload.gpu_price:
        hour = price * plan.gpus
        million = hour / (speed.tokens.middle * 3600 / 1e6)
        yield "cost", f"{hour:,.2f} an hour, {million / SPREAD:.2f} to {million * SPREAD:.2f} for a million tokens"


def _range(what: Range, scale: float, form: str) -> str:
    return f"{format(what.low * scale, ',' + form)} to {format(what.high * scale, ',' + form)}"


# Why not


def shortfall(workload: Workload, shape: Shape, able: Capability) -> str:
    """Why not even one request fits: the arithmetic for as many GPUs as the backend can use together."""
    layout = _largest(workload, shape, able)
    if layout is None:
        return f"{workload.spread} of {workload.accelerator.title} cannot share {_cut(workload, shape)}"
    reserve = reserve_gib(able.backend, workload.accelerator, shape, layout, step_of(workload, able))
    cache = f"{_request_gib(workload, shape, layout):.1f} GiB of KV"
    return (
        f"{weights_text(workload, shape, able, layout)} of weights, + {cache} for one request of {workload.tokens:,} "
        f"tokens, + {layout.gpus} x {reserve:.1f} GiB for {able.backend} itself = "
        f"{_comparison(workload, shape, able, layout)}"
    )


def _largest(workload: Workload, shape: Shape, able: Capability) -> Layout | None:
    """Of the most GPUs, and with the fewest copies of weights."""
    return max(layouts(workload, shape, able), key=lambda each: (each.gpus, -each.data), default=None)


def lack(workload: Workload, shape: Shape, able: Capability) -> str:
    """The same in short, to follow a backend's name."""
    layout = _largest(workload, shape, able)
    if layout is None:
        return f"cannot have {workload.spread} of {workload.accelerator.title} share {_cut(workload, shape)}"
    return f"needs {_comparison(workload, shape, able, layout)}"


def _cut(workload: Workload, shape: Shape) -> str:
    if workload.accelerator.slice is not None:
        return "a layer: no link joins slices of GPUs"
    if workload.pipeline > shape.layers:
        return f"the {shape.layers} layers of {shape.name} as {workload.pipeline} stages"
    if shape.divides(workload.tensor or 1):
        return f"the blocks of {shape.name}'s experts evenly, which are {shape.expert_width:,} wide"
    return f"the {shape.heads} heads and {shape.kv_heads} KV heads of {shape.name} evenly"


def _comparison(workload: Workload, shape: Shape, able: Capability, layout: Layout) -> str:
    gpus = layout.gpus
    reserve = reserve_gib(able.backend, workload.accelerator, shape, layout, step_of(workload, able))
    there = gpus * cache_gib(able.backend, workload.accelerator_gib or 0, workload.fraction, 0.0, 0.0)
    needed = weights_gib(workload, shape, able, layout) + _request_gib(workload, shape, layout) + gpus * reserve
    share = f" x {workload.fraction or DEFAULT_FRACTION:g}" if able.backend != "sglang" or workload.fraction else ""
    if able.backend == "tensorrt-llm":  # its fraction is of what is left after loading
        needed += _request_gib(workload, shape, layout) * (1 / (workload.fraction or DEFAULT_FRACTION) - 1)
        there, share = gpus * (workload.accelerator_gib or 0), ""
    return f"{needed:,.1f} GiB > {gpus} x {workload.accelerator_gib:g} GiB{share} = {there:,.1f} GiB"


def _request_gib(workload: Workload, shape: Shape, layout: Layout) -> float:
    """Of one in each group, for a layout needs room for it in each."""
    return layout.data * request_bytes(workload, shape, layout.tensor, workload.tokens) / GIB
