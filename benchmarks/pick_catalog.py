"""Make headwater/pick/catalog/*.yaml from public configs.

    python -m benchmarks.pick_catalog --aiconfigurator DIR --litgpt DIR --kaito DIR --recipes DIR

Each DIR is a git checkout (bare or not) of the project of that name; what its newest commit says is read, and that
commit is written into the file as its revision. transformers is read where it is installed. Nothing else is: a model
of which no source says its layers gets no layers, and `headwater pick` then says that it estimates.
"""

import argparse
import ast
import importlib.metadata
import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from headwater.pick import names
from headwater.pick.config import ConfigError, read_config
from headwater.pick.precision import precision_in
from headwater.pick.shape import Shape

CATALOG = Path(__file__).parents[1] / "headwater/pick/catalog"
Entry = dict[str, Any]

_CONFIGS = "aic-core/src/aiconfigurator_core/model_configs/"
_UNSAID = {"name", "hub", "source", "estimated", "stored", "kept"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("aiconfigurator", "litgpt", "kaito", "recipes"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    given = parser.parse_args()
    write("1-vllm-recipes", "github.com/vllm-project/recipes", given.recipes, _recipes)
    write("2-kaito", "github.com/kaito-project/kaito", given.kaito, _kaito)
    version = importlib.metadata.version("transformers")
    _dump("3-transformers", "the transformers library, defaults of its configurations", version, _transformers())
    write("4-litgpt", "github.com/Lightning-AI/litgpt", given.litgpt, _litgpt)
    write("5-aiconfigurator", "github.com/ai-dynamo/aiconfigurator", given.aiconfigurator, _aiconfigurator)


def write(name: str, source: str, checkout: Path, read: Any) -> None:
    _dump(name, source, git(checkout, "rev-parse", "HEAD").strip(), read(checkout))


def _dump(name: str, source: str, revision: str, found: Iterator[tuple[str, Entry]]) -> None:
    models = dict(found)
    lines = [f"# Made by benchmarks/pick_catalog.py.\nsource: {source}\nrevision: {revision}\nmodels:\n"]
    for hub, entry in models.items():
        text = yaml.safe_dump(entry, default_flow_style=True, width=10_000, sort_keys=False).strip()
        lines.append(f"  {hub}: {text}\n")
    (CATALOG / f"{name}.yaml").write_text("".join(lines))


def git(checkout: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", checkout, *arguments], capture_output=True, text=True, check=True).stdout


def entry_of(shape: Shape) -> Entry:
    entry: Entry = {}
    for field in fields(shape):
        value = getattr(shape, field.name)
        if field.name in _UNSAID or value == field.default or value is None:
            continue
        entry[field.name] = round(value) if isinstance(value, float) else value
    entry["kept"] = [
        [kept.layers, kept.heads, kept.width, *([kept.window] if kept.window else [])] for kept in shape.kept
    ]
    return entry


# Sources


def _aiconfigurator(checkout: Path) -> Iterator[tuple[str, Entry]]:
    taken: set[str] = set()
    files = git(checkout, "ls-tree", "--name-only", "HEAD", _CONFIGS).split()
    hubs = {file: file.rpartition("/")[2].removesuffix("_config.json").replace("--", "/", 1) for file in files}
    # The repository of a model itself before those of its quantized forms.
    for file, hub in sorted(hubs.items(), key=lambda pair: (precision_in(pair[1]) is not None, pair[1])):
        if not file.endswith("_config.json") or file.endswith("hf_quant_config.json") or names.base(hub) in taken:
            continue
        config = json.loads(git(checkout, "show", f"HEAD:{file}"))
        try:
            shape = read_config(config, hub)
        except ConfigError as error:
            print(f"left out: {hub}: {error}")
            continue
        taken.add(names.base(hub))
        yield hub, entry_of(shape)


_LITGPT = re.compile(
    r"Llama-[23]|Meta-Llama|CodeLlama|gemma|Mistral-|Mathstral|Mixtral|Phi-[34]|phi-4|Qwen|QwQ|OLMo|SmolLM|"
    r"DeepSeek-R1|Nemotron|Falcon3"
)
_TIED = re.compile(
    r"gemma|SmolLM2|Llama-3\.2-[13]B|Qwen2\.5-(?:Coder-|Math-)?(?:0\.5|1\.5|3)B|Qwen3-(?:0\.6|1\.7|4)B|Phi-4-mini"
)


def _litgpt(checkout: Path) -> Iterator[tuple[str, Entry]]:
    space: dict[str, Any] = {}
    # Its table is a program: classes and loops that make more entries. It is run as it is.
    exec(compile(ast.parse(git(checkout, "show", "HEAD:litgpt/config.py")), "config.py", "exec"), space)
    for each in space["configs"]:
        own = space["Config"](**each)
        if own.hf_config.get("org") and _LITGPT.search(own.hf_config["name"]):
            hub = f"{own.hf_config['org']}/{own.hf_config['name']}"
            yield hub, entry_of(read_config(_as_config(own, hub), hub))


def _as_config(own: Any, hub: str) -> Entry:
    """What litgpt calls by other names, as config.json does."""
    windows = own.sliding_window_indices or [1] * own.n_layer
    types = ["sliding_attention" if own.sliding_window_size and each else "full_attention" for each in windows]
    many = {"num_local_experts": own.n_expert, "num_experts_per_tok": own.n_expert_per_token}
    kind = "llama" if "llama" in hub.lower() else hub.partition("/")[2].lower().replace("-", "_")
    return {
        "model_type": ("mixtral" if own.n_expert and "ixtral" in hub else "qwen3_moe" if own.n_expert else kind),
        "hidden_size": own.n_embd,
        "num_hidden_layers": own.n_layer,
        "num_attention_heads": own.n_head,
        "num_key_value_heads": own.n_query_groups,
        "head_dim": own.head_size,
        "intermediate_size": own.intermediate_size,
        "moe_intermediate_size": own.moe_intermediate_size,
        "vocab_size": own.vocab_size if own.padded_vocab_size < own.vocab_size else own.padded_vocab_size,
        "max_position_embeddings": own.block_size,
        "sliding_window": own.sliding_window_size,
        "layer_types": types[: own.n_layer],
        "tie_word_embeddings": bool(_TIED.search(hub)),
        "mlp_hidden_act": "silu" if own.mlp_class_name != "GptNeoxMLP" else "relu2",
        **(many if own.n_expert else {}),
    }


_TRANSFORMERS = {
    # Configurations whose defaults are a model's own, and the size that the model's card says, in billions.
    "qwen3_next": ("Qwen/Qwen3-Next-80B-A3B-Instruct", 80),
    "ernie4_5_moe": ("baidu/ERNIE-4.5-21B-A3B-PT", 21),
    "smollm3": ("HuggingFaceTB/SmolLM3-3B", 3),
    "solar_open": ("upstage/Solar-Open-100B", 102.6),
    "ministral3": ("mistralai/Ministral-3-8B-Reasoning-2512", 8.5),
    "qwen2_moe": ("Qwen/Qwen1.5-MoE-A2.7B", 14.3),
}


def _transformers() -> Iterator[tuple[str, Entry]]:
    from transformers import CONFIG_MAPPING

    for kind, (hub, billions) in _TRANSFORMERS.items():
        config = json.loads(json.dumps(CONFIG_MAPPING[kind]().to_dict(), default=str))
        try:
            shape = read_config(config, hub)
        except ConfigError as error:
            print(f"left out: {hub}: {error}")
            continue
        # Defaults that make another size are not that model's.
        if abs(shape.parameters / billions / 1e9 - 1) > 0.05:
            print(f"left out: {hub}: {shape.parameters / 1e9:.1f}B by the defaults, {billions}B by its card")
            continue
        # What the library takes by default is often less than the model's own.
        yield hub, {name: value for name, value in entry_of(shape).items() if name != "positions"}


def _kaito(checkout: Path) -> Iterator[tuple[str, Entry]]:
    """Layers, heads and the size of the files, which is that of the weights; of dense models of one kind of layer."""
    catalog = yaml.safe_load(git(checkout, "show", "HEAD:presets/workspace/models/model_catalog.yaml"))
    for each in catalog["models"]:
        how, kind = each.get("quantMethod"), each["architectures"][0]
        if (
            how not in (None, "fp8")
            or not re.match(r"Phi3|Llama|Qwen2For|Mistral|Granite", kind)
            or "kvLoraRank" in each
        ):
            continue
        size = float(each["modelFileSize"].removesuffix("Gi")) * 2**30
        parameters = round(size / (1 if how else 2))
        layers, heads = each["numHiddenLayers"], each["numAttentionHeads"]
        width = each.get("headDim") or each["hiddenSize"] // heads
        yield (
            each["name"],
            {
                "family": re.match("[A-Z][a-z]+", kind)[0].lower(),  # type: ignore[index]
                "parameters": parameters,
                "active": parameters,
                "embedding": 0,
                "layers": layers,
                "hidden": each["hiddenSize"],
                "heads": heads,
                "positions": each["modelTokenLimit"],
                "vision": "ConditionalGeneration" in kind,
                "published": how or "none",
                "kept": [[layers, each["numKeyValueHeads"], 2 * width]],
            },
        )


def _recipes(checkout: Path) -> Iterator[tuple[str, Entry]]:
    """Sizes alone."""
    taken = set[str]()
    for file in git(checkout, "ls-tree", "-r", "--name-only", "HEAD", "models/").split():
        recipe = yaml.safe_load(git(checkout, "show", f"HEAD:{file}"))
        model = recipe["model"]
        # Where a recipe tells of several sizes, what it says at its head is that of the first.
        many = {names.size_in(variant.get("model_id") or "") for variant in recipe["variants"].values()} - {None}
        for variant in recipe["variants"].values():
            hub = variant.get("model_id") or model["model_id"]
            said, active = (names.size_in(str(model.get(name))) for name in ("parameter_count", "active_parameters"))
            size = (names.size_in(hub) or said) if len(many) > 1 else (said or names.size_in(hub))
            if size and names.base(hub) not in taken:
                taken.add(names.base(hub))
                entry = {"parameters": size, "active": active if active and active < size else None}
                entry |= {"positions": model.get("context_length"), "published": _RECIPE.get(variant["precision"])}
                yield hub, {name: value for name, value in entry.items() if value}


_RECIPE = {"fp8": "fp8", "mxfp4": "mxfp4", "int4": "int4", "nvfp4": "nvfp4", "mxfp8": "mxfp8"}


if __name__ == "__main__":
    main()
