"""Decoders made smaller: the same states, fewer layers and rows; by command, from a recipe, resumed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from conftest import Run, spread_weights
from embedforge.errors import EmbedforgeError
from embedforge.model.decoder import load_decoder, stock_states
from embedforge.model.encoder import load
from embedforge.model.language_head import load_head
from embedforge.model.prune import prune
from embedforge.recipe import parse_recipe
from embedforge.train.prune import FOLDER, vocabulary_examples, with_pruned_base
from embedforge.train.run import DONE, stage_folder, train
from embedforge.train.stages import model_after, prepare_model
from stages_for_tests import crash_in
from training_for_tests import assert_same_weights, tiny_recipe, write_pairs

TEXTS = ["the river is deep where it bends", "bread and music, 42 times\nand again"]


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: PreTrainedTokenizerFast) -> Path:
    """A random Qwen2 of six layers, every other one with a window; its head is untied."""
    return write(tmp_path_factory.mktemp("deep"), tiny_tokenizer, tied=False)


def write(folder: Path, tokenizer: PreTrainedTokenizerFast, *, tied: bool, dtype=torch.float32) -> Path:
    config = Qwen2Config(
        vocab_size=len(tokenizer) + 8,  # padded, as many are
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        use_sliding_window=True,
        sliding_window=5,
        layer_types=["full_attention", "sliding_attention"] * 3,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=[tokenizer.eos_token_id],
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=tied,
    )
    model = Qwen2ForCausalLM(config)
    spread_weights(model)
    model.to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@torch.no_grad()
def states(base: Path, text: str) -> Tensor:
    """What a decoder in its stored dtype makes of a text, by its own tokenizer."""
    decoder, tokenizer = load_decoder(str(base))
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    return stock_states(decoder, ids, torch.ones_like(ids))


@torch.no_grad()
def first_layers(base: Path, text: str, layers: int) -> Tensor:
    """The same of the first layers of a decoder and its final norm."""
    decoder, tokenizer = load_decoder(str(base))
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    hidden = decoder(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states[layers]
    return decoder.norm(hidden)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_the_first_layers_and_the_needed_tokens_give_the_same_states(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast, tied: bool
) -> None:
    base = write(tmp_path / "base", tiny_tokenizer, tied=tied)
    before, after = prune(str(base), tmp_path / "small", layers=3, texts=TEXTS)
    assert (before.layers, after.layers) == (6, 3)
    for text in TEXTS:
        assert torch.equal(states(tmp_path / "small", text), first_layers(base, text, 3))
    decoder, tokenizer = load_decoder(str(tmp_path / "small"))
    rows = decoder.get_input_embeddings().num_embeddings
    assert rows == len(tokenizer) == after.tokens < before.tokens
    assert decoder.config.layer_types == ["full_attention", "sliding_attention", "full_attention"]
    assert decoder.config.eos_token_id == [tokenizer.eos_token_id]
    assert decoder.config.pad_token_id == tokenizer.pad_token_id
    head = load_head(str(tmp_path / "small"), decoder)
    weight = head.causal_lm.get_output_embeddings().weight
    assert (weight is decoder.get_input_embeddings().weight) == tied
    assert len(weight) == rows
    stored = load_file(tmp_path / "small" / "model.safetensors")
    assert after.weight_bytes == sum(tensor.nbytes for tensor in stored.values()) < before.weight_bytes
    assert ("lm_head.weight" in stored) != tied


def test_named_layers_run_one_after_the_other(deep: Path, tmp_path: Path) -> None:
    prune(str(deep), tmp_path / "small", layers=[0, 2, 5])
    decoder, _ = load_decoder(str(tmp_path / "small"))
    assert decoder.config.layer_types == ["full_attention", "full_attention", "sliding_attention"]
    whole, _ = load_decoder(str(deep))
    for number, layer in zip((0, 2, 5), decoder.layers, strict=True):
        for name, weight in layer.state_dict().items():
            assert torch.equal(weight, whole.layers[number].state_dict()[name])
    assert json.loads((tmp_path / "small" / "prune.json").read_text())["layers"] == [0, 2, 5]


def test_weights_keep_their_dtype(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    base = write(tmp_path / "base", tiny_tokenizer, tied=True, dtype=torch.bfloat16)
    prune(str(base), tmp_path / "small", layers=2)
    stored = load_file(tmp_path / "small" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}


def test_other_families(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    """Layers under other names, positions learnt, norms and rotary embeddings that differ by layer."""
    sizes = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    gpt2 = GPT2LMHeadModel(
        GPT2Config(vocab_size=len(tiny_tokenizer), n_embd=32, n_layer=4, n_head=2, **sizes)
    )
    gemma = Gemma3ForCausalLM(
        Gemma3TextConfig(
            vocab_size=len(tiny_tokenizer),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=4,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            sliding_window=4,
            layer_types=["sliding_attention", "full_attention"] * 2,
            **sizes,
        )
    )
    for name, model in (("gpt2", gpt2), ("gemma", gemma)):
        spread_weights(model)
        model.save_pretrained(tmp_path / name)
        tiny_tokenizer.save_pretrained(tmp_path / name)
        _, after = prune(str(tmp_path / name), tmp_path / f"{name}-small", layers=[0, 1, 3], texts=TEXTS)
        assert after.layers == 3
        assert states(tmp_path / f"{name}-small", TEXTS[0]).isfinite().all()


def test_a_decoder_without_its_head_stays_one(tiny_base: Path, tmp_path: Path) -> None:
    decoder, tokenizer = load_decoder(str(tiny_base))
    decoder.save_pretrained(tmp_path / "bare")
    tokenizer.save_pretrained(tmp_path / "bare")
    prune(str(tmp_path / "bare"), tmp_path / "small", layers=1, texts=TEXTS)
    assert torch.equal(states(tmp_path / "small", TEXTS[0]), first_layers(tiny_base, TEXTS[0], 1))


def test_a_token_that_only_the_config_names_is_kept(tmp_path: Path, tiny_base: Path) -> None:
    """And an id that is no token's is left alone."""
    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    config = json.loads((base / "config.json").read_text())
    _, whole = load_decoder(str(base))
    rare = next(token for token in whole.get_vocab() if len(token) > 3 and "<" not in token)
    changes = {"pad_token_id": whole.get_vocab()[rare], "sep_token_id": 5000}
    (base / "config.json").write_text(json.dumps(config | changes))
    prune(str(base), tmp_path / "small", texts=["1 2"])
    decoder, tokenizer = load_decoder(str(tmp_path / "small"))
    assert decoder.config.pad_token_id == tokenizer.get_vocab()[rare]
    assert decoder.config.sep_token_id == 5000


def test_a_chat_template_and_pad_as_eos_stay(
    tmp_path: Path, tiny_base: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    config = json.loads((base / "tokenizer_config.json").read_text())
    config.pop("pad_token")
    config["chat_template"] = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    (base / "tokenizer_config.json").write_text(json.dumps(config))
    prune(str(base), tmp_path / "small", texts=TEXTS)
    _, tokenizer = load_decoder(str(tmp_path / "small"))
    assert tokenizer.pad_token == tokenizer.eos_token
    assert tokenizer.chat_template == config["chat_template"]


# --- refusals --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (None, "nothing is to be pruned"),
        (7, "the first 7 layers cannot be kept: the decoder has 6, numbered 0 to 5"),
        ([0, 9], "layer 9 cannot be kept"),
        ([2, 1], "in their order"),
        (0, "a number from 1"),
    ],
)
def test_layers_that_are_not_there(deep: Path, tmp_path: Path, layers, message: str) -> None:
    with pytest.raises(EmbedforgeError, match=message):
        prune(str(deep), tmp_path / "small", layers=layers)
    assert not (tmp_path / "small").exists()


def test_a_finished_model_is_not_pruned(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(EmbedforgeError, match=r"finished embedding model.*prune the decoder"):
        prune(str(saved), tmp_path / "small", layers=1)


def test_the_source_is_not_replaced(deep: Path) -> None:
    with pytest.raises(EmbedforgeError, match="replace its source"):
        prune(str(deep), deep, layers=1)


def test_layers_that_go_by_their_number_are_found_out(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    """Here the first layer has no experts, because it is the first; the first two can be kept."""
    config = Qwen3MoeConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=32,
        intermediate_size=48,
        moe_intermediate_size=16,
        num_experts=4,
        num_experts_per_tok=2,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        mlp_only_layers=[0],
    )
    Qwen3MoeForCausalLM(config).save_pretrained(tmp_path / "base")
    tiny_tokenizer.save_pretrained(tmp_path / "base")
    with pytest.raises(EmbedforgeError, match="cannot be pruned in this way"):
        prune(str(tmp_path / "base"), tmp_path / "small", layers=[1, 2])
    assert not (tmp_path / "small").exists()
    prune(str(tmp_path / "base"), tmp_path / "small", layers=2)


# --- the command -----------------------------------------------------------------------------------------


def test_the_command_writes_a_base(run: Run, deep: Path, tmp_path: Path) -> None:
    write_pairs(tmp_path / "pairs.jsonl")
    (tmp_path / "notes.txt").write_text("\n".join(TEXTS))
    files = [word for name in ("pairs.jsonl", "notes.txt") for word in ("--vocabulary", tmp_path / name)]
    code, said, _ = run("prune", deep, tmp_path / "small", "--layers", "0,1,3", *files)
    assert code == 0
    assert "before: 6 layers, " in said
    assert "after:  3 layers, " in said
    assert load_decoder(str(tmp_path / "small"))[0].config.num_hidden_layers == 3


def test_the_command_says_what_is_wrong(run: Run, deep: Path, tmp_path: Path) -> None:
    code, _, said = run("prune", deep, tmp_path / "small", "--layers", "six")
    assert code == 1
    assert "--layers takes numbers with commas between them, got 'six'" in said
    code, _, said = run("prune", deep, tmp_path / "small", "--layers", "2", "--min-count", "3")
    assert code == 1
    assert "--vocabulary" in said
    code, _, said = run("prune", deep, tmp_path / "small", "--vocabulary", tmp_path / "none.txt")
    assert code == 1
    assert "no such file" in said


# --- in a recipe -----------------------------------------------------------------------------------------


def pruning(base: Path, data: Path, **changes):
    """Two stages on a pruned base, the adapter aside."""
    model = tiny_recipe(base, data).model.model_dump(mode="json")
    prune_settings = {"layers": 2, "vocabulary": {"texts": [str(data)]}}
    return tiny_recipe(base, data, model=model | {"prune": prune_settings} | changes)


def test_a_run_prunes_resumes_and_says_so(
    deep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pairs(tmp_path / "pairs.jsonl")
    recipe = pruning(deep, tmp_path / "pairs.jsonl")
    model = train(recipe, tmp_path / "whole", device="cpu", quiet=True)
    with crash_in(monkeypatch, "two", 2):
        train(recipe, tmp_path / "broken", device="cpu", quiet=True)
    made = (tmp_path / "broken" / FOLDER / "config.json").stat().st_mtime_ns
    resumed = train(recipe, tmp_path / "broken", device="cpu", quiet=True, resume=True)
    assert (tmp_path / "broken" / FOLDER / "config.json").stat().st_mtime_ns == made
    assert_same_weights(model, resumed)
    saved = parse_recipe(json.loads((model / "recipe.json").read_text()), "saved")
    assert saved == recipe
    assert load(model, device="cpu").encode(["find river stone 1"]).shape == (1, 32)
    built = with_pruned_base(recipe, tmp_path / "whole", vocabulary_examples(recipe))
    done = [stage_folder(tmp_path / "whole", recipe, number) / DONE for number in range(2)]
    after = model_after(built, done, "cpu")
    for name, weight in load_file(model / "model.safetensors").items():
        assert torch.equal(after.decoder.state_dict()[name], weight)


def test_other_texts_are_no_resume(deep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pairs(tmp_path / "pairs.jsonl")
    shutil.copy(tmp_path / "pairs.jsonl", tmp_path / "texts.jsonl")
    settings = {"vocabulary": {"texts": ["texts.jsonl"]}}
    recipe = pruning(deep, tmp_path / "pairs.jsonl", prune=settings)
    with crash_in(monkeypatch, "two", 2):
        train(recipe, tmp_path / "run", device="cpu", quiet=True, source_folder=tmp_path)
    write_pairs(tmp_path / "texts.jsonl", seed=1)
    with pytest.raises(EmbedforgeError, match=r"cannot resume, the data differs.*model\.prune\.vocabulary"):
        train(recipe, tmp_path / "run", device="cpu", quiet=True, source_folder=tmp_path, resume=True)


def test_what_a_run_writes_beside_its_texts_is_kept(deep: Path, tmp_path: Path) -> None:
    """Templates and instructions, whatever `min_count`."""
    (tmp_path / "one.txt").write_text("q\n")
    write_pairs(tmp_path / "pairs.jsonl")
    vocabulary = {"texts": ["one.txt"], "min_count": 50}
    recipe = pruning(deep, tmp_path / "pairs.jsonl", prune={"vocabulary": vocabulary})
    built = with_pruned_base(recipe, tmp_path, vocabulary_examples(recipe, tmp_path))
    _, whole = load_decoder(str(deep))
    model = prepare_model(built, "cpu")
    prefix = recipe.contract.query_prefix("Find the document")
    assert model.tokenizer.tokenize(prefix, add_special_tokens=False) == whole.tokenize(
        prefix, add_special_tokens=False
    )


def test_a_recipe_that_was_not_pruned_yet_is_not_built(deep: Path, tmp_path: Path) -> None:
    write_pairs(tmp_path / "pairs.jsonl")
    with pytest.raises(EmbedforgeError, match="with_pruned_base"):
        prepare_model(pruning(deep, tmp_path / "pairs.jsonl"), "cpu")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "prune has no effect"),
        ({"layers": [3, 1]}, r"in their order: \[1, 3\]"),
        ({"layers": 0}, "greater than or equal to 1"),
        ({"vocabulary": {"texts": []}}, "at least 1 item"),
        ({"vocabulary": {"texts": "a.txt"}}, "a list of files"),
    ],
)
def test_settings_are_checked_without_a_model(
    tiny_base: Path, tmp_path: Path, settings, message: str
) -> None:
    with pytest.raises(EmbedforgeError, match=message):
        pruning(tiny_base, tmp_path / "pairs.jsonl", prune=settings)


def test_a_path_is_a_source_of_its_kind(tiny_base: Path, tmp_path: Path) -> None:
    texts = ["a.txt", "b.jsonl", "c.txt.gz", {"path": "d.csv", "kind": "texts"}]
    recipe = pruning(tiny_base, tmp_path / "pairs.jsonl", prune={"vocabulary": {"texts": texts}})
    assert recipe.model.prune is not None
    assert recipe.model.prune.vocabulary is not None
    assert [source.kind for source in recipe.model.prune.vocabulary.texts] == [
        "texts",
        "examples",
        "texts",
        "texts",
    ]
