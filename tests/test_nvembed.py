"""Official NV-Embed folders: golden agreement end to end, configuration, loading."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from embedforge.errors import EmbedforgeError
from embedforge.model.encoder import EmbeddingModel, load
from embedforge.model.nvembed import is_nvembed, load_nvembed, read_nvembed_config
from embedforge.model.shards import WEIGHTS
from embedforge.text.contract import Contract
from nvembed_for_tests import CASES, FACTS, GOLDEN, TEXTS, batch, change


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def model(request: pytest.FixtureRequest) -> EmbeddingModel:
    return load_nvembed(GOLDEN, attention_implementation=request.param)


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_golden_embeddings(model: EmbeddingModel, official_golden: dict[str, Tensor], case: str) -> None:
    tokens = batch(official_golden, case)
    states = model.token_states(tokens["input_ids"], tokens["attention_mask"])
    real = tokens["attention_mask"].bool()
    if f"{case}.last_hidden_state" in official_golden:
        expected = official_golden[f"{case}.last_hidden_state"]
        torch.testing.assert_close(states[real], expected[real], rtol=0, atol=2e-5)
        expected = official_golden[f"{case}.latent_tokens"]
        outputs = model.pooler.token_outputs(states)
        torch.testing.assert_close(outputs[real], expected[real], rtol=0, atol=5e-5)
    raw = model.pooler(states, tokens["pooling_mask"])
    torch.testing.assert_close(raw, official_golden[f"{case}.embeddings_raw"], rtol=0, atol=2e-5)
    torch.testing.assert_close(model(**tokens), official_golden[f"{case}.embeddings"], rtol=0, atol=2e-6)


@torch.no_grad()
def test_golden_without_padding(model: EmbeddingModel, official_golden: dict[str, Tensor]) -> None:
    """One text at a time no mask is needed, and a kernel that kept its own causal flag would show."""
    tokens = batch(official_golden, "plain")
    for row, expected in enumerate(official_golden["plain.embeddings"]):
        length = int(tokens["attention_mask"][row].sum())
        alone = {name: value[row : row + 1, :length] for name, value in tokens.items()}
        torch.testing.assert_close(model(**alone)[0], expected, rtol=0, atol=2e-6)


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_golden_from_texts(
    official_model: EmbeddingModel, official_golden: dict[str, Tensor], case: str
) -> None:
    """Through the contract's renderer: ids and pooling masks are the official ones, EOS cut off included."""
    facts, expected = FACTS["cases"][case], batch(official_golden, case)
    limit = min(facts["max_length"], official_model.contract.max_tokens)
    tokens = official_model.renderer.batch(TEXTS, facts["instruction"], max_tokens=limit)
    for name in ("attention_mask", "pooling_mask"):
        assert torch.equal(tokens[name], expected[name]), name
    real = tokens["attention_mask"].bool()
    assert torch.equal(tokens["input_ids"][real], expected["input_ids"][real])
    torch.testing.assert_close(
        official_model(**tokens), official_golden[f"{case}.embeddings"], rtol=0, atol=2e-6
    )


def test_template_gives_the_official_instruction(official_model: EmbeddingModel) -> None:
    task = "Given a question, retrieve passages"
    assert official_model.contract.query_prefix(task) == FACTS["instruction"]
    assert official_model.contract.query_prefix() == official_model.contract.document_prefix() == ""


def test_no_room_for_text_is_an_error_where_the_official_code_gives_nan(
    official_model: EmbeddingModel,
) -> None:
    with pytest.raises(EmbedforgeError, match="leave no room for text"):
        official_model.renderer.batch(
            TEXTS, FACTS["instruction"], max_tokens=FACTS["cases"]["instr"]["instruction_lens"]
        )


def test_is_nvembed(official_folder: Path, tmp_path: Path) -> None:
    assert is_nvembed(official_folder)
    assert not is_nvembed(tmp_path)
    change(official_folder, model_type="mistral")
    assert not is_nvembed(official_folder)
    with pytest.raises(EmbedforgeError, match="model_type is 'mistral'"):
        read_nvembed_config(official_folder)


def test_config_of_the_released_models(official_folder: Path) -> None:
    """They name only the type of the latent block and rely on the defaults of its class."""
    text = json.loads((official_folder / "config.json").read_text())["text_config"] | {"hidden_size": 4096}
    change(official_folder, latent_attention_config={"model_type": "latent_attention"}, text_config=text)
    (official_folder / "sentence_bert_config.json").write_text('{"max_seq_length": 32768}')
    config = read_nvembed_config(official_folder)
    assert config.latent == {"latents": 512, "heads": 8, "head_dim": 4096, "feed_forward_multiple": 4}
    assert (config.decoder.is_causal, config.decoder.sliding_window) == (False, None)
    assert config.decoder.rope_parameters["rope_theta"] == 10000.0
    assert config.contract == Contract(
        default_instruction="",
        max_tokens=32768,
        eos_survives_truncation=False,
        isolate_prefix=False,
        prefix_tokens="counted",
        pooling="latent",
    )


def test_config_is_honoured(official_folder: Path) -> None:
    assert read_nvembed_config(official_folder).contract.max_tokens == 4096  # the tokenizer's
    change(
        official_folder,
        add_eos=False,
        is_mask_instruction=False,
        latent_attention_config={"output_normalize": False},
    )
    contract = read_nvembed_config(official_folder).contract
    assert (contract.add_eos, contract.pool_instruction, contract.pool_bos) == (False, True, "always")
    assert not contract.normalize


def test_left_padding_switches_the_instruction_mask_off_as_in_the_official_code(
    official_folder: Path,
) -> None:
    change(official_folder, padding_side="left")
    contract = read_nvembed_config(official_folder).contract
    assert (contract.padding_side, contract.pool_instruction, contract.pool_bos) == ("left", True, "always")


def test_latents_of_another_width_are_refused(official_folder: Path) -> None:
    change(official_folder, latent_attention_config={"latent_dim": 32})
    with pytest.raises(EmbedforgeError, match=r"latent_dim is 32.*width 64"):
        read_nvembed_config(official_folder)


@pytest.mark.parametrize("dtype", [None, "bfloat16", torch.float64])
def test_dtype(official_folder: Path, dtype: str | torch.dtype | None) -> None:
    halves = {key: tensor.half() for key, tensor in load_file(official_folder / WEIGHTS).items()}
    save_file(halves, official_folder / WEIGHTS)
    model = load_nvembed(official_folder, dtype)
    assert model.contract.dtype == "float16"
    expected = {None: torch.float16, "bfloat16": torch.bfloat16}.get(dtype, dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {expected}
    assert not any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])
    assert model.decoder.rotary_emb.inv_freq.dtype == torch.float32


def test_loading_leaves_the_random_state_alone_and_can_be_trained(
    official_folder: Path, official_golden: dict[str, Tensor]
) -> None:
    state = torch.get_rng_state()
    model = load_nvembed(official_folder).train()
    assert torch.equal(torch.get_rng_state(), state)
    model(**batch(official_golden, "plain")).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_official_folder_loads_like_any_other_model(official_golden: dict[str, Tensor]) -> None:
    vectors = load(str(GOLDEN), device="cpu").encode(
        TEXTS, prompt=FACTS["instruction"], convert_to_tensor=True
    )
    torch.testing.assert_close(vectors, official_golden["instr.embeddings"], rtol=0, atol=2e-6)
