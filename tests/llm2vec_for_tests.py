"""The official LLM2Vec package's numbers for tiny checkpoints, and adapters made by peft itself."""

from __future__ import annotations

import functools
import json
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel

from embedforge.model.encoder import EmbeddingModel
from embedforge.model.llm2vec import load_llm2vec

GOLDEN = Path(__file__).parent / "golden" / "llm2vec_tiny"

FACTS: dict[str, Any] = json.loads((GOLDEN / "golden.json").read_text())

TEXTS: list[str] = FACTS["texts"]

INSTRUCTION: str = FACTS["instruction"]

LLAMA_2_CHAT = "[INST] {text} [/INST]"


def cases() -> Iterator[tuple[str, str]]:
    for family, named in FACTS["cases"].items():
        for name, facts in named.items():
            if isinstance(facts, dict) and "pairs" in facts:
                yield family, name


@functools.cache
def tensors(family: str) -> dict[str, Tensor]:
    return load_file(GOLDEN / family / "golden.safetensors")


@functools.cache
def official_case(family: str, name: str) -> EmbeddingModel:
    """The checkpoint, loaded with the settings of a case; not to be changed."""
    facts = FACTS["cases"][family][name]
    return load_llm2vec(
        str(GOLDEN / family),
        pooling=facts["pooling_mode"],
        skip_instruction=facts["skip_instruction"],
        max_tokens=facts.get("max_length"),
        text_max_tokens=facts.get("doc_max_length"),
        attention="bidirectional" if facts.get("bidir", True) else "causal",
        chat_template=LLAMA_2_CHAT if "name_or_path" in facts else "{text}",
        normalize=False,
    )


def instruction_of(family: str, name: str) -> str:
    return INSTRUCTION if FACTS["cases"][family][name]["pairs"] == "instruction" else ""


def batch(model: EmbeddingModel, instruction: str, side: str = "left") -> dict[str, Tensor]:
    contract = model.contract
    prefix, suffix = contract.query_prefix(instruction), contract.query_suffix(instruction)
    return model.renderer.pad(model.renderer.render(TEXTS, prefix, suffix=suffix), side=side)


@torch.no_grad()
def vectors(model: EmbeddingModel, instruction: str = "", side: str = "left") -> Tensor:
    return model(**batch(model, instruction, side))


def base_folder(family: str, folder: Path) -> Path:
    """A copy of a base without goldens, which a test may change."""
    folder.mkdir(parents=True)
    for file in (GOLDEN / family).iterdir():
        if not file.name.startswith("golden"):
            shutil.copy(file, folder)
    return folder


def write_adapter(
    base: Path, folder: Path, seed: int, head: bool = False, size: float = 0.3, **settings: Any
) -> Path:
    """Save an adapter with random A and B by peft; `head` wraps the model with a language-model head."""
    plain = (AutoModelForCausalLM if head else AutoModel).from_pretrained(base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(
            plain,
            LoraConfig(
                **{"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"], **settings}
            ),
        )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".lora_" in name:
                weight.copy_(size * torch.randn(weight.shape, generator=generator))
    model.save_pretrained(str(folder))
    return folder


def merged_by_peft(base: Path, adapters: list[Path], dtype: torch.dtype) -> PreTrainedModel:
    """What the package's README does: each adapter put on by peft and merged in turn; bidirectional."""
    model: Any = AutoModel.from_pretrained(base, dtype=dtype)
    for adapter in adapters:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    model.config.is_causal = False
    return model.eval()


def edit(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
