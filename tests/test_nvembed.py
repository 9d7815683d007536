"""Official NV-Embed folders: golden agreement end to end, conversion, writing, and damaged downloads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import MistralConfig, MistralModel

from embedforge.errors import EmbedforgeError
from embedforge.model.encoder import EmbeddingModel, load
from embedforge.model.latent import LatentAttention
from embedforge.model.nvembed import convert_nvembed, is_nvembed, load_nvembed, read_nvembed_config
from embedforge.model.nvembed_save import save_nvembed
from embedforge.model.pooling import build_pooler
from embedforge.model.shards import INDEX, WEIGHTS, list_tensors
from embedforge.text.contract import Contract

GOLDEN = Path(__file__).parent / "golden" / "nvembed_tiny"
FACTS = json.loads((GOLDEN / "golden.json").read_text())
TEXTS: list[str] = FACTS["texts"]
CASES = ["plain", "instr", "plain_trunc12", "instr_trunc32"]


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(GOLDEN / "golden.safetensors")


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def model(request: pytest.FixtureRequest) -> EmbeddingModel:
    return load_nvembed(GOLDEN, attention_implementation=request.param)


@pytest.fixture(scope="module")
def official() -> EmbeddingModel:
    return load_nvembed(GOLDEN)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the checkpoint that a test may change."""
    copy = tmp_path / "checkpoint"
    copy.mkdir()
    for file in GOLDEN.iterdir():
        if not file.name.startswith("golden"):
            shutil.copy(file, copy)
    return copy


def change(folder: Path, **values: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def shard(folder: Path, count: int) -> list[Path]:
    """Cut model.safetensors into `count` shards, tensors dealt out in turn."""
    tensors = load_file(folder / WEIGHTS)
    names = [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    where = {key: names[i % count] for i, key in enumerate(tensors)}
    for name in names:
        save_file({key: tensors[key] for key in tensors if where[key] == name}, folder / name)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    (folder / WEIGHTS).unlink()
    return [folder / name for name in names]


def batch(golden: dict[str, Tensor], case: str) -> dict[str, Tensor]:
    return {
        "input_ids": golden[f"{case}.input_ids"].long(),
        "attention_mask": golden[f"{case}.attention_mask"].long(),
        "pooling_mask": golden[f"{case}.pool_mask"].long(),
    }


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_golden_embeddings(model: EmbeddingModel, golden: dict[str, Tensor], case: str) -> None:
    tokens = batch(golden, case)
    states = model.token_states(tokens["input_ids"], tokens["attention_mask"])
    real = tokens["attention_mask"].bool()
    if f"{case}.last_hidden_state" in golden:
        expected = golden[f"{case}.last_hidden_state"]
        torch.testing.assert_close(states[real], expected[real], rtol=0, atol=2e-5)
        expected = golden[f"{case}.latent_tokens"]
        outputs = model.pooler.token_outputs(states)
        torch.testing.assert_close(outputs[real], expected[real], rtol=0, atol=5e-5)
    raw = model.pooler(states, tokens["pooling_mask"])
    torch.testing.assert_close(raw, golden[f"{case}.embeddings_raw"], rtol=0, atol=2e-5)
    torch.testing.assert_close(model(**tokens), golden[f"{case}.embeddings"], rtol=0, atol=2e-6)


@torch.no_grad()
def test_golden_without_padding(model: EmbeddingModel, golden: dict[str, Tensor]) -> None:
    """One text at a time no mask is needed, and a kernel that kept its own causal flag would show."""
    tokens = batch(golden, "plain")
    for row, expected in enumerate(golden["plain.embeddings"]):
        length = int(tokens["attention_mask"][row].sum())
        alone = {name: value[row : row + 1, :length] for name, value in tokens.items()}
        torch.testing.assert_close(model(**alone)[0], expected, rtol=0, atol=2e-6)


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_golden_from_texts(official: EmbeddingModel, golden: dict[str, Tensor], case: str) -> None:
    """Through the contract's renderer: ids and pooling masks are the official ones, EOS cut off included."""
    facts, expected = FACTS["cases"][case], batch(golden, case)
    limit = min(facts["max_length"], official.contract.max_tokens)
    tokens = official.renderer.batch(TEXTS, facts["instruction"], max_tokens=limit)
    for name in ("attention_mask", "pooling_mask"):
        assert torch.equal(tokens[name], expected[name]), name
    real = tokens["attention_mask"].bool()
    assert torch.equal(tokens["input_ids"][real], expected["input_ids"][real])
    torch.testing.assert_close(official(**tokens), golden[f"{case}.embeddings"], rtol=0, atol=2e-6)


def test_template_gives_the_official_instruction(official: EmbeddingModel) -> None:
    task = "Given a question, retrieve passages"
    assert official.contract.query_prefix(task) == FACTS["instruction"]
    assert official.contract.query_prefix() == official.contract.document_prefix() == ""


def test_no_room_for_text_is_an_error_where_the_official_code_gives_nan(official: EmbeddingModel) -> None:
    with pytest.raises(EmbedforgeError, match="leave no room for text"):
        official.renderer.batch(
            TEXTS, FACTS["instruction"], max_tokens=FACTS["cases"]["instr"]["instruction_lens"]
        )


def test_is_nvembed(folder: Path, tmp_path: Path) -> None:
    assert is_nvembed(folder)
    assert not is_nvembed(tmp_path)
    change(folder, model_type="mistral")
    assert not is_nvembed(folder)
    with pytest.raises(EmbedforgeError, match="model_type is 'mistral'"):
        read_nvembed_config(folder)


def test_config_of_the_released_models(folder: Path) -> None:
    """They name only the type of the latent block and rely on the defaults of its class."""
    text = json.loads((folder / "config.json").read_text())["text_config"] | {"hidden_size": 4096}
    change(folder, latent_attention_config={"model_type": "latent_attention"}, text_config=text)
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 32768}')
    config = read_nvembed_config(folder)
    assert config.latent == {"latents": 512, "heads": 8, "head_dim": 4096, "feed_forward_multiple": 4}
    assert (config.decoder.is_causal, config.decoder.sliding_window) == (False, None)
    assert config.decoder.rope_parameters["rope_theta"] == 10000.0
    assert config.contract == Contract(
        default_instruction="",
        max_tokens=32768,
        eos_survives_truncation=False,
        isolate_prefix=False,
        pooling="latent",
    )


def test_config_is_honoured(folder: Path) -> None:
    assert read_nvembed_config(folder).contract.max_tokens == 4096  # the tokenizer's
    change(
        folder, add_eos=False, is_mask_instruction=False, latent_attention_config={"output_normalize": False}
    )
    contract = read_nvembed_config(folder).contract
    assert (contract.add_eos, contract.pool_instruction, contract.pool_bos) == (False, True, "always")
    assert not contract.normalize


def test_left_padding_switches_the_instruction_mask_off_as_in_the_official_code(folder: Path) -> None:
    change(folder, padding_side="left")
    contract = read_nvembed_config(folder).contract
    assert (contract.padding_side, contract.pool_instruction, contract.pool_bos) == ("left", True, "always")


def test_latents_of_another_width_are_refused(folder: Path) -> None:
    change(folder, latent_attention_config={"latent_dim": 32})
    with pytest.raises(EmbedforgeError, match=r"latent_dim is 32.*width 64"):
        read_nvembed_config(folder)


@torch.no_grad()
@pytest.mark.parametrize("count", [2, 5])
def test_shards(folder: Path, golden: dict[str, Tensor], count: int) -> None:
    shard(folder, count)
    vectors = load_nvembed(folder)(**batch(golden, "instr"))
    torch.testing.assert_close(vectors, golden["instr.embeddings"], rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", [None, "bfloat16", torch.float64])
def test_dtype(folder: Path, dtype: str | torch.dtype | None) -> None:
    halves = {key: tensor.half() for key, tensor in load_file(folder / WEIGHTS).items()}
    save_file(halves, folder / WEIGHTS)
    model = load_nvembed(folder, dtype)
    assert model.contract.dtype == "float16"
    expected = {None: torch.float16, "bfloat16": torch.bfloat16}.get(dtype, dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {expected}
    assert not any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])
    assert model.decoder.rotary_emb.inv_freq.dtype == torch.float32


def test_loaded_weights_do_not_depend_on_the_file(folder: Path, golden: dict[str, Tensor]) -> None:
    model = load_nvembed(folder)
    (folder / WEIGHTS).write_bytes(bytes((folder / WEIGHTS).stat().st_size))
    with torch.no_grad():
        vectors = model(**batch(golden, "plain"))
    torch.testing.assert_close(vectors, golden["plain.embeddings"], rtol=0, atol=2e-6)


def test_loading_leaves_the_random_state_alone_and_can_be_trained(
    folder: Path, golden: dict[str, Tensor]
) -> None:
    state = torch.get_rng_state()
    model = load_nvembed(folder).train()
    assert torch.equal(torch.get_rng_state(), state)
    model(**batch(golden, "plain")).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_missing_shard_is_named(folder: Path) -> None:
    lost = shard(folder, 3)[1]
    lost.unlink()
    with pytest.raises(EmbedforgeError, match=rf"{lost.name}.*download"):
        load_nvembed(folder)


@pytest.mark.parametrize("kept", [0, 5, 100, 50_000, -1])
def test_a_cut_off_shard_is_named_with_its_sizes(folder: Path, tmp_path: Path, kept: int) -> None:
    damaged = shard(folder, 3)[2]
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:kept])
    size = damaged.stat().st_size
    with pytest.raises(
        EmbedforgeError, match=rf"{damaged.name}.*{size} bytes(.|\n)*download it again"
    ) as caught:
        convert_nvembed(folder, tmp_path / "out")
    assert kept in (0, 5, 100) or str(len(whole)) in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_placeholder_of_git_lfs_is_no_download(folder: Path) -> None:
    (folder / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1160072\n")
    with pytest.raises(EmbedforgeError, match="placeholder"):
        load_nvembed(folder)


def test_no_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    with pytest.raises(EmbedforgeError, match="only safetensors are read"):
        load_nvembed(folder)


def test_tensors_that_do_not_fit_are_listed(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors["lm_head.weight"] = tensors.pop("embedding_model.norm.weight")
    tensors["latent_attention_model.latents"] = torch.zeros(3, 64)
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(EmbedforgeError) as caught:
        load_nvembed(folder)
    message = str(caught.value)
    assert "1 missing: embedding_model.norm.weight" in message
    assert "1 unexpected: lm_head.weight" in message
    assert "latent_attention_model.latents has shape [3, 64] instead of [16, 64]" in message


def test_nobody_is_asked(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' Auto classes would stop at this folder and wait for an answer."""
    assert "auto_map" in json.loads((folder / "config.json").read_text())
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question on stdin"))
    load_nvembed(folder)
    convert_nvembed(folder, tmp_path / "out")


def test_official_folder_loads_like_any_other_model(golden: dict[str, Tensor]) -> None:
    vectors = load(str(GOLDEN), device="cpu").encode(
        TEXTS, prompt=FACTS["instruction"], convert_to_tensor=True
    )
    torch.testing.assert_close(vectors, golden["instr.embeddings"], rtol=0, atol=2e-6)


@pytest.mark.parametrize("count", [1, 4])
def test_converted_folder_is_a_saved_model(
    folder: Path, tmp_path: Path, golden: dict[str, Tensor], count: int
) -> None:
    if count > 1:
        shard(folder, count)
    out = tmp_path / "out"
    convert_nvembed(folder, out)
    stored = {entry.name: entry for entry in list_tensors(out)}
    assert "embed_tokens.weight" in stored
    loaded = load(str(out), device="cpu")
    for case in ("plain", "instr"):
        vectors = loaded.encode(TEXTS, prompt=FACTS["cases"][case]["instruction"], convert_to_tensor=True)
        torch.testing.assert_close(vectors, golden[f"{case}.embeddings"], rtol=0, atol=2e-6)


def test_conversion_keeps_every_byte(folder: Path, tmp_path: Path) -> None:
    original = load_file(folder / WEIGHTS)
    shard(folder, 4)
    convert_nvembed(folder, tmp_path / "out")
    decoder = {}
    for file in sorted((tmp_path / "out").glob("*.safetensors")):
        decoder |= load_file(file)
    pooler = load_file(tmp_path / "out" / "1_Pool" / WEIGHTS)
    found = {f"embedding_model.{key}": value for key, value in decoder.items()}
    found |= {f"latent_attention_model.{key}": value for key, value in pooler.items()}
    assert found.keys() == original.keys()
    assert all(torch.equal(found[key], original[key]) for key in original)


def test_conversion_in_place_is_refused(folder: Path) -> None:
    with pytest.raises(EmbedforgeError, match="in place"):
        convert_nvembed(folder, folder)


def small_model(
    official: EmbeddingModel, hidden: int = 64, layers: int = 1, **contract: Any
) -> EmbeddingModel:
    """An NV-Embed of other shapes: wide heads in the decoder, few latents, three narrow latent heads."""
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=512,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=hidden,
        rope_parameters={"rope_type": "default", "rope_theta": 50_000.0},
        sliding_window=None,
        is_causal=False,
    )
    return EmbeddingModel(
        MistralModel(config).eval(),
        LatentAttention(hidden, latents=4, heads=3, head_dim=8).eval(),
        official.tokenizer,
        official.contract.model_copy(update=contract),
        {"latents": 4, "heads": 3, "head_dim": 8, "feed_forward_multiple": 4},
    )


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("max_shard_bytes", [10**9, 60_000])
def test_saved_model_is_read_back_bit_for_bit(
    official: EmbeddingModel, tmp_path: Path, dtype: torch.dtype, max_shard_bytes: int
) -> None:
    model = small_model(official, max_tokens=100, normalize=False, default_instruction="Find it")
    for parameter in model.parameters():  # model.to(dtype) would round the rotary frequencies as well
        parameter.data = parameter.data.to(dtype)
    save_nvembed(model, tmp_path / "out", max_shard_bytes)
    assert is_nvembed(tmp_path / "out")
    assert (tmp_path / "out" / INDEX).exists() == (max_shard_bytes < 10**9)
    again = load_nvembed(tmp_path / "out")
    before, after = model.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(
        torch.equal(before[key], after[key]) and before[key].dtype == after[key].dtype for key in before
    )
    assert again.contract == model.contract.model_copy(update={"dtype": str(dtype).removeprefix("torch.")})
    tokens = model.renderer.batch(TEXTS, "Instruct: a\nQuery: ")
    assert all(
        torch.equal(tokens[key], other)
        for key, other in again.renderer.batch(TEXTS, "Instruct: a\nQuery: ").items()
    )
    assert torch.equal(model(**tokens), again(**tokens))


def test_saved_official_model_has_the_official_names_and_numbers(
    official: EmbeddingModel, tmp_path: Path
) -> None:
    save_nvembed(official, tmp_path / "out")
    assert sorted(load_file(tmp_path / "out" / WEIGHTS)) == FACTS["param_names"]
    ours = json.loads((tmp_path / "out" / "config.json").read_text())
    theirs = json.loads((GOLDEN / "config.json").read_text())
    assert ours["latent_attention_config"] == theirs["latent_attention_config"]
    ignored = {"_name_or_path", "sliding_window", "use_cache"}  # of no effect on a vector
    for key, value in theirs["text_config"].items():
        assert key in ignored or ours["text_config"][key] == value, key
    for key in ("model_type", "add_eos", "is_mask_instruction", "padding_side", "mask_type", "hidden_size"):
        assert ours[key] == theirs[key], key


@pytest.mark.parametrize(
    ("contract", "message"),
    [
        ({"isolate_prefix": True}, "isolate_prefix is True"),
        ({"eos_survives_truncation": True}, "eos_survives_truncation is True"),
        ({"pool_bos": "never"}, "pool_bos is 'never'"),
        ({"attention": "causal"}, "attention is 'causal'"),
    ],
)
def test_a_contract_the_layout_cannot_keep_is_refused(
    official: EmbeddingModel, tmp_path: Path, contract: dict[str, Any], message: str
) -> None:
    with pytest.raises(EmbedforgeError, match=message):
        save_nvembed(small_model(official, **contract), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_models_the_layout_cannot_hold_are_refused(official: EmbeddingModel, tmp_path: Path) -> None:
    model = small_model(official)
    windowed = small_model(official)
    windowed.decoder.config.sliding_window = 8
    with pytest.raises(EmbedforgeError, match="sliding window of 8"):
        save_nvembed(windowed, tmp_path / "out")
    mixed = small_model(official)
    mixed.pooler.bfloat16()
    with pytest.raises(EmbedforgeError, match="one dtype"):
        save_nvembed(mixed, tmp_path / "out")
    model.pooler = build_pooler("mean", 64)
    with pytest.raises(EmbedforgeError, match="MistralModel with StatelessPooler"):
        save_nvembed(model, tmp_path / "out")


def peak_growth(work: Callable[[], object]) -> int:
    """Return by how many bytes the process grew at most while working; Linux only."""
    status = Path("/proc/self/status")
    try:
        Path("/proc/self/clear_refs").write_text("5")  # The peak starts anew at what is resident now.
    except OSError:
        pytest.skip("no resettable peak of memory here")

    def kilobytes(key: str) -> int:
        return int(next(line for line in status.read_text().splitlines() if line.startswith(key)).split()[1])

    before = kilobytes("VmRSS")
    work()
    return 1024 * (kilobytes("VmHWM") - before)


def test_memory_of_conversion_and_loading(official: EmbeddingModel, folder: Path, tmp_path: Path) -> None:
    """Converting takes memory that does not grow with the model; loading takes one copy of it."""
    big = tmp_path / "big"
    save_nvembed(small_model(official, hidden=512, layers=6), big, max_shard_bytes=16 * 2**20)
    total = sum(file.stat().st_size for file in big.glob("*.safetensors"))
    assert len(list(big.glob("*.safetensors"))) >= 6
    convert_nvembed(folder, tmp_path / "warm up")
    converting = peak_growth(lambda: convert_nvembed(big, tmp_path / "out"))
    loading = peak_growth(lambda: load_nvembed(big))
    assert converting < total / 3, (converting, total)
    assert loading < 1.5 * total, (loading, total)
