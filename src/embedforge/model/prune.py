"""A decoder made smaller before it is trained: fewer layers, and a vocabulary cut to what texts need.

What comes out is a decoder like any other, in a folder, its language-model head included where it has one.
It is read again and held to the given one, bit by bit: the kept layers run one after the other, the final
norm behind them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from embedforge.errors import EmbedforgeError
from embedforge.files import read_object, replace_folder, whole_or_nothing, write_json
from embedforge.model.decoder import quiet, read_config, read_decoder, read_tokenizer, stock_states
from embedforge.model.folder import find_folder
from embedforge.model.probe import decoder_layers
from embedforge.model.shards import list_tensors
from embedforge.text.contract import FILE_NAME as CONTRACT
from embedforge.text.vocabulary import CutVocabulary, cut_vocabulary, prove_cut

FILE_NAME = "prune.json"
"""What was pruned, in the folder of a pruned decoder."""

_CHECK_TEXT = "The river is deepest where it bends: 42 metres.\nNobody has measured it since 1987, said Zoë."
_CHECK_TOKENS = 48
_OTHER_LAYERS = (
    "Something in its layers goes by their number: keep the first so many, or choose another decoder"
)
_OTHER_VOCABULARIES = ("vocab.json", "merges.txt", "tokenizer.model")
"""Files of a tokenizer beside tokenizer.json, which some classes would read in its place."""


@dataclass(frozen=True, slots=True)
class Size:
    """How large a decoder is."""

    layers: int
    tokens: int
    """Rows of the embedding matrix."""
    parameters: int
    """All of them, tied ones once."""
    weight_bytes: int
    """Of its weights on the disk."""

    def __str__(self) -> str:
        return (
            f"{self.layers} layers, {self.tokens:,} tokens, {self.parameters / 1e6:.1f}M parameters, "
            f"{self.weight_bytes / 1e6:.1f} MB"
        )


def prune(
    base: str,
    out: Path | str,
    *,
    layers: int | Sequence[int] | None = None,
    texts: Iterable[str] | None = None,
    min_count: int = 1,
    always: Sequence[str] = (),
    trust_remote_code: bool = False,
    record: Mapping[str, Any] | None = None,
) -> tuple[Size, Size]:
    """Write a smaller decoder, which is a base like any other.

    Takes memory for the whole decoder once, in the dtype that it is stored in.

    Args:
        base: `embedforge:base`, a folder or a hub id.
        out: folder to write; new, empty, or of an earlier call.
        layers: keep the first so many layers, or those of these numbers, counted from 0; all when None.
        texts: keep the tokens that these need, see `cut_vocabulary`; all tokens when None.
        min_count: cut tokens off that occur less often in the texts.
        always: texts, and tokens by name, that are kept however rare.
        trust_remote_code: allow a repository to run its code.
        record: stored in prune.json, beside what was kept.

    Returns:
        The sizes before and after.

    Raises:
        EmbedforgeError: nothing to prune; no such layer; a finished embedding model; a tokenizer that cannot
            be cut (`cut_vocabulary`); a family whose decoder is another one when layers are taken out.
    """
    folder, out = find_folder(base), Path(out)
    _refuse(folder, out, layers, texts)
    model = _read(folder, trust_remote_code)
    tokenizer = read_tokenizer(folder, model, trust_remote_code=trust_remote_code)
    before = _size(model, folder)
    kept = _layer_numbers(before.layers, layers)
    cut = None
    if texts is not None:
        always = [*always, *_named_tokens(model, tokenizer)]
        cut = cut_vocabulary(tokenizer, before.tokens, texts, min_count=min_count, always=always)
    ids = _check_ids(tokenizer, cut)
    with _refusal(out), _without_layers(model, kept):
        expected = _states(model, ids)
    _cut_layers(model, kept)
    if cut is not None:
        _cut_rows(model, cut)
        ids = [cut.new_ids[number] for number in ids]
    with whole_or_nothing(out), replace_folder(out, FILE_NAME) as partial:
        with _refusal(out, partial):
            _write(model, tokenizer, cut, partial)
            parameters = sum(weight.numel() for weight in model.parameters())
            del model
            decoder = read_decoder(partial, trust_remote_code=trust_remote_code, dtype="auto")
            found = _states(decoder, ids)
        _prove(expected, found, decoder)
        if cut is not None:
            prove_cut(tokenizer, read_tokenizer(partial, decoder), cut)
        tokens = before.tokens if cut is None else len(cut.new_ids)
        after = Size(len(kept), tokens, parameters, _weight_bytes(partial))
        write_json(
            partial / FILE_NAME, {"base": base, "layers": kept, "tokens": after.tokens, **(record or {})}
        )
    return before, after


def _refuse(folder: Path, out: Path, layers: int | Sequence[int] | None, texts: Iterable[str] | None) -> None:
    """Refuse what cannot be meant, before anything is loaded."""
    if layers is None and texts is None:
        raise EmbedforgeError("nothing is to be pruned: say which layers, or for which texts, or both")
    if (folder / CONTRACT).exists():
        raise EmbedforgeError(
            f"{folder}: this is a finished embedding model, whose vectors would mean nothing with layers or "
            "tokens taken out; prune the decoder that it was made of, and train that"
        )
    if folder.resolve() == out.resolve():
        raise EmbedforgeError(f"{out}: the pruned decoder would replace its source; name another folder")


def _read(folder: Path, trust_remote_code: bool) -> PreTrainedModel:
    """Load a decoder in its stored dtype, with its language-model head where the folder has one."""
    config = read_config(folder, trust_remote_code)
    list_tensors(folder)
    with contextlib.suppress(Exception), quiet():  # `read_decoder` says what it is
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype="auto",
            trust_remote_code=trust_remote_code and config.model_type not in CONFIG_MAPPING_NAMES,
            use_safetensors=True,
            output_loading_info=True,
        )
        if not report["missing_keys"]:
            return model.eval()
    return read_decoder(folder, trust_remote_code=trust_remote_code, dtype="auto")


def _layer_numbers(count: int, layers: int | Sequence[int] | None) -> list[int]:
    """Return the numbers of the layers to keep, of `count`."""
    if layers is None:
        return list(range(count))
    kept = list(range(layers)) if isinstance(layers, int) else list(layers)
    if not kept or kept != sorted(set(kept)) or kept[0] < 0:
        raise EmbedforgeError(f"layers are a number from 1, or numbers from 0 in their order, not {layers}")
    if kept[-1] >= count:
        last = f"layer {kept[-1]}" if not isinstance(layers, int) else f"the first {layers} layers"
        raise EmbedforgeError(f"{last} cannot be kept: the decoder has {count}, numbered 0 to {count - 1}")
    return kept


def _check_ids(tokenizer: PreTrainedTokenizerBase, cut: CutVocabulary | None) -> list[int]:
    """Return some token ids of the given tokenizer that are kept, from the texts where there are any."""
    texts = [_CHECK_TEXT] if cut is None else [*cut.sample, _CHECK_TEXT]
    ids: list[int] = []
    for text in texts:
        found = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        ids += [number for number in found if cut is None or number in cut.new_ids]
        if len(ids) >= _CHECK_TOKENS:
            break
    return ids[:_CHECK_TOKENS]


@contextlib.contextmanager
def _without_layers(model: PreTrainedModel, kept: Sequence[int]) -> Iterator[None]:
    """While open, every layer that is not kept hands on the states that it gets."""

    def skip(_: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        states = args[0] if args else kwargs["hidden_states"]
        return states if isinstance(output, Tensor) else (states, *output[1:])

    with contextlib.ExitStack() as stack:
        for number, layer in enumerate(decoder_layers(model)):
            if number not in kept:
                stack.callback(layer.register_forward_hook(skip, with_kwargs=True).remove)
        yield


@torch.no_grad()
def _states(model: PreTrainedModel, ids: Sequence[int]) -> Tensor:
    """Return the last hidden states of one text, [1, tokens, hidden]."""
    batch = torch.tensor([ids])
    return stock_states(model.base_model, batch, torch.ones_like(batch))


def _cut_layers(model: PreTrainedModel, kept: Sequence[int]) -> None:
    """Leave the kept layers, and what the config says of each of them."""
    layers = decoder_layers(model)
    count = len(layers)
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and list(module) == layers:
            del module[:]
            module.extend(layers[number] for number in kept)
    config = model.config.get_text_config()
    for key, value in list(vars(config).items()):
        if isinstance(value, list | tuple) and len(value) == count and ("layer" in key or "block" in key):
            setattr(config, key, type(value)(value[number] for number in kept))
    config.num_hidden_layers = len(kept)


def _cut_rows(model: PreTrainedModel, cut: CutVocabulary) -> None:
    """Leave the kept rows of the embeddings and of the head, which stay tied if they were."""
    rows = torch.tensor(list(cut.new_ids))
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    is_tied = head is not None and head.weight is embeddings.weight
    embeddings.weight = nn.Parameter(embeddings.weight.detach()[rows])
    embeddings.num_embeddings = len(rows)
    if head is not None:
        head.weight = embeddings.weight if is_tied else nn.Parameter(head.weight.detach()[rows])
        head.out_features = len(rows)
        if getattr(head, "bias", None) is not None:
            head.bias = nn.Parameter(head.bias.detach()[rows])
    for config, key, value in _token_ids(model):
        new = cut.new_ids
        renumbered = (
            [new.get(each, each) for each in value] if isinstance(value, list) else new.get(value, value)
        )
        setattr(config, key, renumbered)  # an id that no token had stays one
    model.config.get_text_config().vocab_size = len(rows)


def _token_ids(model: PreTrainedModel) -> list[tuple[PreTrainedConfig, str, int | list[int]]]:
    """List what the config says of special tokens: where, under which key, and the ids."""
    configs = {id(config): config for config in (model.config, model.config.get_text_config())}.values()
    return [
        (config, key, value)
        for config in configs
        for key, value in vars(config).items()
        if key.endswith("token_id") and value is not None
    ]


def _named_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the tokens that the config names, which need not be special ones to the tokenizer."""
    values = [value if isinstance(value, list) else [value] for _, _, value in _token_ids(model)]
    ids = {number for each in values for number in each if 0 <= number < len(tokenizer)}
    return [str(token) for token in tokenizer.convert_ids_to_tokens(sorted(ids))]


def _write(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cut: CutVocabulary | None, folder: Path
) -> None:
    if model.can_generate():  # its token ids, and nothing of how the given model liked to sample
        model.generation_config = GenerationConfig.from_model_config(model.config)
    with quiet():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    if cut is not None:
        write_json(folder / "tokenizer.json", cut.tokenizer_json)
        for name in _OTHER_VOCABULARIES:
            (folder / name).unlink(missing_ok=True)
        settings = read_object(folder / "tokenizer_config.json")
        settings.pop("added_tokens_decoder", None)  # by old ids; tokenizer.json has them too
        write_json(folder / "tokenizer_config.json", settings)


@contextlib.contextmanager
def _refusal(out: Path, partial: Path | None = None) -> Iterator[None]:
    """Say in our words what a family's own code has against a decoder with other layers.

    Args:
        out: the folder that is meant.
        partial: the one that stands for it while it is written, and is of no use in a message.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise EmbedforgeError(
            f"{out}: the pruned decoder could not be written, nothing was changed ({error})"
        ) from error
    except Exception as error:  # whatever the code of the family raises
        reason = " ".join(str(error).split()).replace(str(partial), str(out)).rstrip(".")
        raise EmbedforgeError(
            f"this decoder cannot be pruned in this way: {reason}. {_OTHER_LAYERS}"
        ) from error


def _prove(expected: Tensor, found: Tensor, decoder: PreTrainedModel) -> None:
    """Hold the states of what was written to those of the given decoder."""
    if not torch.equal(found, expected):
        raise EmbedforgeError(
            f"this decoder cannot be pruned in this way: read again, the layers of a "
            f"{decoder.config.model_type} make other states than before. {_OTHER_LAYERS}"
        )


def _size(model: PreTrainedModel, folder: Path) -> Size:
    return Size(
        layers=len(decoder_layers(model)),
        tokens=model.get_input_embeddings().num_embeddings,
        parameters=sum(weight.numel() for weight in model.parameters()),
        weight_bytes=_weight_bytes(folder),
    )


def _weight_bytes(folder: Path) -> int:
    return sum(entry.end - entry.begin for entry in list_tensors(folder))
