"""Build one tiny random decoder of each family, switch it to bidirectional, write down what was measured.

    python scripts/probe_families.py [--only NAME ...]

Needs no network: models are made from configs. Without --only it writes docs/families.md. `tests/` take their
models from here as well, through `build` and `FAMILIES`.
"""

from __future__ import annotations

import argparse
import platform
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from transformers import AutoConfig, AutoModel, PreTrainedModel

from embedforge.errors import EmbedforgeError
from embedforge.files import write_text
from embedforge.model.attention import (
    ensure_attention,
    make_bidirectional,
    needs_module_flags,
    position_ids,
    probe,
    takes_position_ids,
)

PAGE = Path(__file__).resolve().parent.parent / "docs" / "families.md"

COMMON = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.2,
}
GROUPED = {"num_key_value_heads": 2}
MOE = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
WINDOW = {"sliding_window": 3}
SLIDING = WINDOW | {"layer_types": ["sliding_attention", "full_attention"]}
LATENT = {
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
}
LINEAR = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
MAMBA = {
    "mamba_d_state": 8,
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_n_groups": 1,
    "mamba_expand": 2,
    "mamba_chunk_size": 8,
}

FAMILIES: dict[str, dict[str, Any]] = {
    "apertus": GROUPED,
    "arcee": GROUPED | {"head_dim": 8},
    "biogpt": {},
    "bitnet": GROUPED,
    "bloom": {"n_head": 4, "n_layer": 2},
    "codegen": {"n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 64, "n_ctx": 64, "rotary_dim": 4},
    "cohere": GROUPED,
    "cohere2": GROUPED | SLIDING,
    "cwm": GROUPED | WINDOW | {"head_dim": 8, "layer_types": ["full_attention", "sliding_attention"]},
    "dbrx": {
        "d_model": 32,
        "n_heads": 4,
        "n_layers": 2,
        "max_seq_len": 64,
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10_000.0},
        "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 32},
    },
    "deepseek_v2": MOE | LATENT,
    "deepseek_v3": MOE | LATENT,
    "diffllama": GROUPED,
    "doge": GROUPED,
    "ernie4_5": GROUPED | {"head_dim": 8},
    "ernie4_5_moe": GROUPED | MOE | {"moe_num_experts": 4, "moe_k": 2, "head_dim": 8},
    "exaone4": GROUPED | SLIDING,
    "falcon": {"num_kv_heads": 2, "new_decoder_architecture": True},
    "falcon (alibi)": {"alibi": True, "multi_query": True, "new_decoder_architecture": False},
    "gemma": GROUPED | {"head_dim": 8},
    "gemma2": GROUPED | SLIDING | {"head_dim": 8},
    "gemma3_text": GROUPED | SLIDING | {"head_dim": 8},
    "gemma3n_text": GROUPED
    | WINDOW
    | {
        "head_dim": 8,
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 2,
        "activation_sparsity_pattern": [0.0] * 4,
        "vocab_size_per_layer_input": 64,
        "hidden_size_per_layer_input": 8,
        "laurel_rank": 4,
        "intermediate_size": 64,
    },
    "gemma4_text": GROUPED
    | SLIDING
    | {
        "head_dim": 8,
        "global_head_dim": 16,
        "vocab_size_per_layer_input": 64,
        "hidden_size_per_layer_input": 8,
    },
    "glm": GROUPED | {"head_dim": 8},
    "glm4": GROUPED | {"head_dim": 8},
    "glm4_moe": GROUPED | MOE | {"head_dim": 8, "n_routed_experts": 4, "first_k_dense_replace": 1},
    "gpt2": {},
    "gpt_bigcode": {},
    "gpt_neox": {"rotary_pct": 0.5},
    "gpt_oss": GROUPED | MOE | SLIDING | {"head_dim": 8},
    "gptj": {"rotary_dim": 4},
    "granite": GROUPED,
    "granitemoe": GROUPED | MOE,
    "helium": GROUPED | {"head_dim": 8},
    "hunyuan_v1_dense": GROUPED | {"head_dim": 8},
    "internlm3": GROUPED | {"head_dim": 8},
    "jetmoe": MOE | {"num_key_value_heads": 2, "kv_channels": 8},
    "llama": GROUPED,
    "ministral": GROUPED | SLIDING | {"head_dim": 8},
    "ministral3": GROUPED | {"head_dim": 8},
    "mistral": GROUPED | {"head_dim": 8},
    "mistral (window)": GROUPED | WINDOW | {"head_dim": 8},
    "mixtral": GROUPED | MOE | {"head_dim": 8},
    "nanochat": GROUPED,
    "nemotron": GROUPED | {"head_dim": 8},
    "olmo": GROUPED,
    "olmo2": GROUPED,
    "olmo3": GROUPED | SLIDING,
    "olmoe": MOE | {"num_key_value_heads": 4},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "persimmon": {},
    "phi": {},
    "phi3": GROUPED,
    "phi3 (window)": GROUPED | WINDOW,
    "phimoe": GROUPED | MOE,
    "qwen2": GROUPED,
    "qwen2 (window)": GROUPED
    | WINDOW
    | {"use_sliding_window": True, "layer_types": ["full_attention", "sliding_attention"]},
    "qwen2_moe": GROUPED | MOE | {"shared_expert_intermediate_size": 32},
    "qwen3": GROUPED | {"head_dim": 8},
    "qwen3_moe": GROUPED | MOE | {"head_dim": 8},
    "seed_oss": GROUPED | {"head_dim": 8},
    "smollm3": GROUPED,
    "stablelm": GROUPED,
    "starcoder2": GROUPED,
    "vaultgemma": GROUPED | SLIDING | {"head_dim": 8},
    "xglm": {"d_model": 32, "ffn_dim": 64, "num_layers": 2, "attention_heads": 4},
    # Families that cannot turn bidirectional, or not in every layer.
    "bamba": GROUPED | MAMBA | {"attn_layer_indices": [1]},
    "falcon_h1": GROUPED | MAMBA | {"head_dim": 8, "mamba_d_ssm": 64},
    "gpt_neo": {"num_layers": 2, "attention_types": [[["global"], 2]]},
    "jamba": GROUPED
    | MOE
    | {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False, "mamba_dt_rank": 4},
    "lfm2": GROUPED | {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    "llama4_text": GROUPED
    | MOE
    | {
        "head_dim": 8,
        "attention_chunk_size": 64,
        "intermediate_size_mlp": 64,
        "moe_layers": [],
        "use_qk_norm": False,
    },
    "mamba": {"state_size": 4, "time_step_rank": 4},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1, "state_size": 8, "expand": 2, "chunk_size": 8},
    "minimax": GROUPED
    | MOE
    | {"head_dim": 8, "layer_types": ["linear_attention", "full_attention"], "block_size": 4},
    "modernbert-decoder": {"local_attention": 6, "layer_types": ["sliding_attention", "full_attention"]},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64},
    "openai-gpt": {},
    "qwen3_5_text": GROUPED | LINEAR | {"head_dim": 8},
    "qwen3_next": GROUPED | MOE | LINEAR | {"head_dim": 8, "shared_expert_intermediate_size": 32},
    "recurrent_gemma": GROUPED | {"block_types": ["recurrent", "attention"], "attention_window_size": 64},
    "rwkv": {"context_length": 64, "attention_hidden_size": 32},
}
"""Config values by family; what stands in brackets after a name is a variant of the model type before it."""


def build(
    name: str, implementation: str | None = "sdpa", *, dtype: torch.dtype = torch.float32, **values: Any
) -> PreTrainedModel:
    """Build the tiny random decoder of a family, in eval mode; `values` override its config."""
    given = COMMON | FAMILIES[name] | values
    config = AutoConfig.for_model(name.split(" ")[0], **given)
    torch.manual_seed(0)
    return AutoModel.from_config(config, attn_implementation=implementation, dtype=dtype).eval()


class Row(NamedTuple):
    """What was measured for one family under one attention implementation."""

    name: str
    implementation: str
    before: str
    after: str
    verdict: str
    right: str
    left: str
    flags: str


def measure(name: str, implementation: str) -> Row | None:
    """Probe one family before and after the switch; None where it has no such implementation."""
    try:
        model = build(name, implementation)
    except ValueError as error:
        if "does not support an attention implementation" in str(error) or "scaled_dot_product" in str(error):
            return None
        raise
    before = probe(model)
    make_bidirectional(model)
    after = probe(model)
    try:
        ensure_attention(model, "bidirectional")
        verdict = "works"
    except EmbedforgeError:
        verdict = "refused"
        if after.errors:
            verdict += ": the family's code fails"
        elif not all(layer.is_consistent for layer in after.layers):
            verdict += ": depends on padding"
        elif after.causal_layers:
            verdict += f": {after.causal_share:.0%} of the layers stay causal"
    plain = "yes" if verdict == "works" and needs_module_flags(model) else ""
    return Row(
        name,
        implementation,
        _sights(before),
        _sights(after),
        verdict,
        _padding(model, "right"),
        _padding(model, "left"),
        plain,
    )


def padding_difference(model: PreTrainedModel, side: str) -> float:
    """Largest change of a real token's output through 3 pads on `side`, relative to the largest output."""
    text = torch.arange(5, 17)[None] % 60
    pads = torch.full((1, 3), 63)  # not the padding token: its embedding is zero and would hide a leak
    rows = [text, pads] if side == "right" else [pads, text]
    mask = torch.cat([torch.full_like(part, part is text) for part in rows], 1)
    extra = {"position_ids": position_ids(mask)} if takes_position_ids(model) else {}
    with torch.no_grad():
        alone = model(input_ids=text, attention_mask=torch.ones_like(text), use_cache=False)[0]
        padded = model(input_ids=torch.cat(rows, 1), attention_mask=mask, use_cache=False, **extra)[0]
    return float((padded[mask.bool()] - alone[0]).abs().max() / alone.abs().max())


def _padding(model: PreTrainedModel, side: str) -> str:
    try:
        return f"{padding_difference(model, side):.0e}"
    except Exception as error:  # the family's own code fails: the page says so
        return type(error).__name__


def _sights(report: Any) -> str:
    """One word where all conditions and layers agree, else the four conditions of each layer."""
    rows = [layer.sight for layer in report.layers]
    if len({see for row in rows for see in row}) == 1:
        return str(rows[0][0])
    return " / ".join(row[0] if len(set(row)) == 1 else ", ".join(row) for row in rows)


HEADER = """# Decoder families

Made by `python scripts/probe_families.py` with transformers {transformers}, torch {torch} (CPU, float32),
Python {python}. Do not edit by hand.

Each family is a tiny random model, probed layer by layer with no mask, an all-ones mask, a right-padded and
a left-padded batch (`embedforge.model.probe`), with windows switched off.

- **before, after** the switch: one word where layers and conditions agree; else layers are separated by `/`,
  and conditions by commas in the order above. `all`: the first token sees the last; `none`: it sees no later
  token; `error`: the family's own code fails.
- **right, left padding**: largest change of a real token's output through three padding tokens, relative to
  the largest output, after the switch, with position ids that count real tokens only.
- **flags at load**: plain `AutoModel` loading is not enough; embedforge clears the modules' own flags after
  each load.
- A name in brackets is a variant of the family before it. falcon_h1 has attention and a state-space mixer
  side by side in each layer: each layer sees ahead, its state-space half does not.

**{works} of {count} work**; the others are refused, with the reason.

| family | attention | before | after | verdict | right padding | left padding | flags at load |
|---|---|---|---|---|---|---|---|
"""


def page(rows: list[Row]) -> str:
    """Render the measurements as docs/families.md."""
    works = {row.name for row in rows if row.verdict == "works"}
    names = {row.name for row in rows}
    head = HEADER.format(
        transformers=transformers.__version__,
        torch=torch.__version__.split("+")[0],
        python=platform.python_version(),
        works=len(works),
        count=len(names),
    )
    lines = ["| " + " | ".join(str(value) for value in row) + " |" for row in rows]
    return head + "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", help="measure and print these; write nothing")
    only = parser.parse_args().only
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    rows = []
    for name in only or FAMILIES:
        for implementation in ("sdpa", "eager"):
            if row := measure(name, implementation):
                rows.append(row)
                print(" | ".join(str(value) for value in row), flush=True)
    if not only:
        write_text(PAGE, page(rows))
        print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
