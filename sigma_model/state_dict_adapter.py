"""Released names <-> ours: one table says which tensor is which.

Our names are those of a SigmaModel's parameters and buffers, released ones those in the files of BAGEL and SIGMA.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

PROJECTION = "attribute_projection.weight"
"""Ours alone; a file without it means zero."""

# Rows are (ours, released); {i} stands for a layer's number, {p} for weight and bias, {s} for the expert's suffix.
_EXPERT = (
    ("input_norm.weight", "input_layernorm{s}.weight"),
    ("q.{p}", "self_attn.q_proj{s}.{p}"),
    ("k.{p}", "self_attn.k_proj{s}.{p}"),
    ("v.{p}", "self_attn.v_proj{s}.{p}"),
    ("o.weight", "self_attn.o_proj{s}.weight"),
    ("q_norm.weight", "self_attn.q_norm{s}.weight"),
    ("k_norm.weight", "self_attn.k_norm{s}.weight"),
    ("post_norm.weight", "post_attention_layernorm{s}.weight"),
    ("mlp.gate.weight", "mlp{s}.gate_proj.weight"),
    ("mlp.up.weight", "mlp{s}.up_proj.weight"),
    ("mlp.down.weight", "mlp{s}.down_proj.weight"),
)
_VISION_LAYER = (
    *(("norm1", "layer_norm1"), ("norm2", "layer_norm2"), ("fc1", "mlp.fc1"), ("fc2", "mlp.fc2")),
    *((name, f"self_attn.{name}_proj") for name in ("q", "k", "v", "out")),
)
_TABLE = (
    ("backbone.embed.weight", "language_model.model.embed_tokens.weight"),
    *(
        (f"backbone.layers.{{i}}.{expert}.{ours}", f"language_model.model.layers.{{i}}.{theirs.replace('{s}', suffix)}")
        for expert, suffix in (("und", ""), ("gen", "_moe_gen"))
        for ours, theirs in _EXPERT
    ),
    ("backbone.norm_und.weight", "language_model.model.norm.weight"),
    ("backbone.norm_gen.weight", "language_model.model.norm_moe_gen.weight"),
    ("lm_head.weight", "language_model.lm_head.weight"),
    ("latent_in.{p}", "vae2llm.{p}"),
    ("latent_out.{p}", "llm2vae.{p}"),
    ("time_embedder.fc1.{p}", "time_embedder.mlp.0.{p}"),
    ("time_embedder.fc2.{p}", "time_embedder.mlp.2.{p}"),
    ("latent_positions", "latent_pos_embed.pos_embed"),
    ("vision.patch_embedding.{p}", "vit_model.vision_model.embeddings.patch_embedding.{p}"),
    ("vision.position_embedding.weight", "vit_model.vision_model.embeddings.position_embedding.weight"),
    *(
        (f"vision.layers.{{i}}.{ours}.{{p}}", f"vit_model.vision_model.encoder.layers.{{i}}.{theirs}.{{p}}")
        for ours, theirs in _VISION_LAYER
    ),
    ("vision.norm.{p}", "vit_model.vision_model.post_layernorm.{p}"),
    ("connector.fc1.{p}", "connector.fc1.{p}"),
    ("connector.fc2.{p}", "connector.fc2.{p}"),
    ("patch_positions", "vit_pos_embed.pos_embed"),
    (PROJECTION, PROJECTION),
)
_RELEASED = {a.replace("{p}", p): b.replace("{p}", p) for a, b in _TABLE for p in ("weight", "bias")}
_OURS = {released: ours for ours, released in _RELEASED.items()}
_LAYER = re.compile(r"\blayers\.(0|[1-9][0-9]*)\.")
PATCH_EMBEDDING = _RELEASED["vision.patch_embedding.weight"]


def released_name(ours: str) -> str:
    """The name that a parameter or buffer of ours has in a released file. Raises ValueError for one we do not have."""
    name = _translate(ours, _RELEASED)
    if name is None:
        raise ValueError(f"{ours!r} is no parameter or buffer of a SigmaModel")
    return name


def our_name(released: str) -> str | None:
    """The name of ours for one in a released file; None where no model has such a tensor."""
    return _translate(released, _OURS)


def _translate(name: str, table: Mapping[str, str]) -> str | None:
    layer = _LAYER.search(name)
    if layer is None:
        return table.get(name) if "{" not in name else None
    found = table.get(_LAYER.sub("layers.{i}.", name, count=1))
    return found and found.replace("{i}", layer[1])


WRAPPERS = (
    "_fsdp_wrapped_module.", "_fpw_module.", "_checkpoint_wrapped_module.", "_orig_mod.", "_forward_module.",
)  # fmt: skip
"""What FSDP, activation checkpointing, torch.compile and Fabric put anywhere into a name."""

_ROOTS = ("language_model", "vae2llm", "llm2vae", "time_embedder", "latent_pos_embed", "vit_model", "connector",
          "vit_pos_embed")  # fmt: skip
_ROOT = re.compile(rf"(?:^|\.)(?=(?:{'|'.join(_ROOTS)})\.)")


def unwrapped(name: str, strip: Sequence[str]) -> str:
    """A name without what is to be stripped: a wrapper's part wherever it stands, any other text at the beginning."""
    for prefix in strip:
        inside = re.sub(rf"(^|\.){re.escape(prefix)}", r"\1", name)
        name = inside if prefix in WRAPPERS else name.removeprefix(prefix)
    return name


def wrappers_in(names: Collection[str]) -> tuple[str, ...]:
    """What must be stripped from names that are not released ones so that some are; empty where nothing helps."""
    unknown = [name for name in names if our_name(name) is None]
    inside = tuple(wrapper for wrapper in WRAPPERS if any(f".{wrapper}" in f".{name}" for name in unknown))
    bare = [unwrapped(name, inside) for name in unknown]
    leading = {name[: match.end()] for name in bare if (match := _ROOT.search(name)) and match.end()}
    every = (*inside, *sorted(leading, key=len, reverse=True))
    return every if any(our_name(unwrapped(name, every)) for name in unknown) else ()
