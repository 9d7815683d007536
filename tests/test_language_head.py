"""Heads of many families without their decoders, against the whole causal language models."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    T5Config,
    T5EncoderModel,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from conftest import spread_weights
from embedforge.errors import EmbedforgeError
from embedforge.model.adapter import add_lora
from embedforge.model.attention import make_bidirectional
from embedforge.model.decoder import load_decoder, read_decoder
from embedforge.model.encoder import build, save
from embedforge.model.language_head import LanguageModelHead, load_head
from embedforge.model.mask_token import add_mask_token
from embedforge.model.nvembed import load_nvembed
from embedforge.text.contract import Contract

_spec = importlib.util.spec_from_file_location(
    "probe_families", Path(__file__).parent.parent / "scripts" / "probe_families.py"
)
families = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(families)

IDS = torch.tensor([[5, 9, 2, 33, 33, 7, 0, 12]])

AFTER_THE_PROJECTION = {
    "cohere": {"logit_scale": 0.3},
    "falcon_h1": {"lm_head_multiplier": 0.3},
    "gemma2": {"final_logit_softcapping": 2.0},
    "granite": {"logits_scaling": 5.0},
    "modernbert-decoder": {},
    "nanochat": {"final_logit_softcapping": 2.0},
    "phi": {},
}
"""Families that do more than project, with values that show when it is left out; phi has a bias."""

OTHERS = [
    "bloom",
    "codegen",
    "falcon",
    "gemma",
    "gemma3_text",
    "gpt2",
    "gpt_neox",
    "llama",
    "mistral",
    "mixtral",
    "mpt",
    "olmo2",
    "opt",
    "phi3",
    "qwen2",
    "qwen3",
    "smollm3",
    "stablelm",
    "xglm",
]


def write(name: str, folder: Path, **values) -> PreTrainedModel:
    """Write a family's tiny causal language model, with weights that do not hide mistakes, and return it."""
    if name not in CONFIG_MAPPING_NAMES:
        pytest.skip(f"this transformers has no {name}")
    config = AutoConfig.for_model(name, **(families.COMMON | families.FAMILIES[name] | values))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith("bias"):
                parameter.normal_()
    model.save_pretrained(folder, max_shard_size=values.pop("max_shard_size", "1GB"))
    return model


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    return model(input_ids=IDS, use_cache=False).logits[0]


@torch.no_grad()
def apart(decoder: PreTrainedModel, head: LanguageModelHead) -> Tensor:
    return head(decoder(input_ids=IDS, use_cache=False).last_hidden_state[0])


@pytest.mark.parametrize("name", [*AFTER_THE_PROJECTION, *OTHERS])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_the_head_gives_the_logits_of_the_whole_model(name: str, tied: bool, tmp_path: Path) -> None:
    whole = write(name, tmp_path, tie_word_embeddings=tied, **AFTER_THE_PROJECTION.get(name, {}))
    decoder = read_decoder(tmp_path)
    random_state = torch.random.get_rng_state()
    head = load_head(str(tmp_path), decoder)
    assert torch.equal(torch.random.get_rng_state(), random_state)
    assert torch.allclose(apart(decoder, head), logits(whole), rtol=0, atol=1e-5)

    embeddings = decoder.get_input_embeddings().weight
    own = [parameter for parameter in head.parameters() if parameter is not embeddings]
    assert any(parameter is embeddings for parameter in head.parameters()) == tied
    assert not any(parameter.requires_grad for parameter in own)
    assert embeddings.requires_grad
    counts = [sum(weight.numel() for weight in weights) for weights in (own, whole.parameters())]
    assert counts[0] == counts[1] - sum(weight.numel() for weight in decoder.parameters())
    assert not any(parameter.is_meta for parameter in head.parameters())


@pytest.mark.parametrize("name", AFTER_THE_PROJECTION)
def test_a_projection_alone_would_not_do(name: str, tmp_path: Path) -> None:
    whole = write(name, tmp_path, **AFTER_THE_PROJECTION[name])
    decoder = read_decoder(tmp_path)
    with torch.no_grad():
        states = decoder(input_ids=IDS, use_cache=False).last_hidden_state[0]
        projected = states @ whole.get_output_embeddings().weight.T
    assert (projected - logits(whole)).abs().max() > 0.01


def test_a_head_in_another_shard_and_a_head_of_an_older_name_are_found(tmp_path: Path) -> None:
    whole = write("gpt_neox", tmp_path / "sharded", max_shard_size="20KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    for folder in (tmp_path / "sharded", tmp_path / "older"):
        if folder.name == "older":  # as published: Pythia's head is called embed_out
            write("gpt_neox", folder)
            weights = load_file(folder / "model.safetensors")
            for name in [key for key in weights if key.startswith(("lm_head", "embed_out"))]:
                weights["embed_out.weight"] = weights.pop(name)
            save_file(weights, folder / "model.safetensors", {"format": "pt"})
        decoder = read_decoder(folder)
        assert torch.allclose(apart(decoder, load_head(str(folder), decoder)), logits(whole), atol=1e-5)


def test_a_head_of_its_own_wins_over_a_config_that_ties(tmp_path: Path) -> None:
    write("llama", tmp_path, tie_word_embeddings=False)
    config = AutoConfig.from_pretrained(tmp_path)
    config.tie_word_embeddings = True
    config.save_pretrained(tmp_path)
    decoder = read_decoder(tmp_path)
    head = load_head(str(tmp_path), decoder)
    assert not any(weight is decoder.get_input_embeddings().weight for weight in head.parameters())
    upstream = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.allclose(apart(decoder, head), logits(upstream), atol=1e-5)


def test_the_bundled_decoder_has_a_head() -> None:
    decoder, _ = load_decoder("embedforge:base")
    head = load_head("embedforge:base", decoder)
    assert apart(decoder, head).shape == (IDS.shape[1], decoder.get_input_embeddings().num_embeddings)


def test_a_tied_head_follows_the_embeddings_through_lora_and_training(tmp_path: Path) -> None:
    write("qwen2", tmp_path, tie_word_embeddings=True)
    plain = read_decoder(tmp_path)
    make_bidirectional(plain)
    decoder = add_lora(plain, rank=2, dropout=0.0)
    head = load_head(str(tmp_path), decoder)
    weight = plain.get_input_embeddings().weight
    assert any(parameter is weight for parameter in head.parameters())
    before = apart(decoder, head)
    with torch.no_grad():
        weight[40] *= 3
    changed = (apart(decoder, head) - before).abs().amax(0)
    assert changed[40] > 0.1
    assert changed[41:].max() == 0  # 40 is not among the tokens that were read


def test_gradients_reach_the_states_and_not_the_head(tmp_path: Path) -> None:
    write("llama", tmp_path, tie_word_embeddings=False)
    decoder = read_decoder(tmp_path)
    head = load_head(str(tmp_path), decoder)
    states = torch.randn(3, 32, requires_grad=True)
    head(states).logsumexp(-1).sum().backward()
    assert states.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in head.parameters())
    assert head(torch.zeros(0, 32)).shape == (0, 64)


def test_modes_and_dtypes(tmp_path: Path) -> None:
    write("llama", tmp_path, tie_word_embeddings=False)
    decoder = read_decoder(tmp_path, dtype=torch.bfloat16).train()
    decoder.layers[0].eval()
    head = load_head(str(tmp_path), decoder)
    assert decoder.training
    assert not decoder.layers[0].training
    assert decoder.layers[1].training
    assert head(torch.zeros(2, 32, dtype=torch.bfloat16)).dtype == torch.bfloat16
    exact = load_head(str(tmp_path), read_decoder(tmp_path), dtype="float32")
    assert exact(torch.zeros(2, 32, dtype=torch.bfloat16)).dtype == torch.float32


@pytest.mark.parametrize("name", ["llama", "codegen"])  # codegen's head has a bias
@pytest.mark.parametrize("tied", [False, True])
def test_an_added_mask_token(name: str, tied: bool, tmp_path: Path, tiny_tokenizer) -> None:
    whole = write(name, tmp_path, vocab_size=len(tiny_tokenizer), tie_word_embeddings=tied)
    tiny_tokenizer.save_pretrained(tmp_path)
    decoder, tokenizer = load_decoder(str(tmp_path))
    assert add_mask_token(decoder, tokenizer, "<mask>") == len(tiny_tokenizer)
    head = load_head(str(tmp_path), decoder)
    found = apart(decoder, head)
    assert found.shape[1] == len(tiny_tokenizer) + tied
    assert torch.allclose(found[:, : len(tiny_tokenizer)], logits(whole), rtol=0, atol=1e-5)
    assert found.isfinite().all()


def test_folders_without_a_head_are_refused(tiny_base: Path, tmp_path: Path, official_folder: Path) -> None:
    model = build(base=str(tiny_base), contract=Contract(max_tokens=64))
    save(model, tmp_path / "model")
    with pytest.raises(EmbedforgeError, match=r"model: .*no language-model head.*'lm_head\.weight'.*simcse"):
        load_head(str(tmp_path / "model"), model.decoder)
    assert load_head(str(tiny_base), model.decoder)
    with pytest.raises(EmbedforgeError, match=r"checkpoint: .*mistral decoder .* type 'nvembed'"):
        load_head(str(official_folder), load_nvembed(official_folder).decoder)


def test_a_tied_head_is_in_a_folder_that_embedforge_saved(tmp_path: Path, tiny_tokenizer) -> None:
    config = MistralConfig(
        **families.COMMON | {"vocab_size": len(tiny_tokenizer)},
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    whole = MistralForCausalLM(config).eval()
    spread_weights(whole)
    whole.save_pretrained(tmp_path / "base")
    tiny_tokenizer.save_pretrained(tmp_path / "base")
    save(build(base=str(tmp_path / "base"), contract=Contract(max_tokens=64)), tmp_path / "model")
    decoder, _ = load_decoder(str(tmp_path / "base"))
    head = load_head(str(tmp_path / "model"), decoder)
    assert torch.allclose(apart(decoder, head), logits(whole), rtol=0, atol=1e-5)


def test_families_whose_head_cannot_be_had_are_refused(tmp_path: Path) -> None:
    config = T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    with pytest.raises(EmbedforgeError, match="no causal language model of type 't5'"):
        load_head(str(tmp_path), T5EncoderModel(config))
    write("llama4_text", tmp_path)  # its causal model does not tell where its decoder is
    with pytest.raises(EmbedforgeError, match=r"cannot be loaded.*language_model"):
        load_head(str(tmp_path), AutoModel.from_pretrained(tmp_path))


def test_a_base_that_is_not_the_decoders_is_refused(tmp_path: Path) -> None:
    write("llama", tmp_path / "wide", hidden_size=64)
    write("qwen2", tmp_path / "qwen2")
    write("llama", tmp_path / "llama", tie_word_embeddings=False)
    decoder = read_decoder(tmp_path / "llama")
    with pytest.raises(EmbedforgeError, match=r"Is the base the one"):
        load_head(str(tmp_path / "wide"), decoder)
    with pytest.raises(EmbedforgeError, match=r"llama decoder .* type 'qwen2'"):
        load_head(str(tmp_path / "qwen2"), decoder)
    with pytest.raises(EmbedforgeError, match=r"no such folder. Did you mean"):
        load_head(str(tmp_path / "lama"), decoder)


def test_logits_of_more_than_the_states_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A made-up family: no real one of today does this."""
    from transformers import LlamaForCausalLM

    plain_forward = LlamaForCausalLM.forward

    def forward(self, input_ids=None, **arguments):  # adds a bonus for the tokens that were read
        output = plain_forward(self, input_ids=input_ids, **arguments)
        if input_ids is not None:
            output.logits[..., input_ids[0]] += 1
        return output

    write("llama", tmp_path)
    monkeypatch.setattr(LlamaForCausalLM, "forward", forward)
    with pytest.raises(EmbedforgeError, match=r"more than the last hidden states.*simcse"):
        load_head(str(tmp_path), read_decoder(tmp_path))
