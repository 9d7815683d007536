"""The two halves of an embedding model as modules of sentence-transformers.

`TextEncoder` turns texts into token states, `Pool` turns those into vectors; sentence-transformers' own
Normalize follows. Prompts, truncated dimensions, several processes and the rest of `encode` are
sentence-transformers' own. A saved folder names both in modules.json, and there are two ways to read it:

    embedforge.load(folder)
    SentenceTransformer(folder, trust_remote_code=True)

Both give a SentenceTransformer. From version 6 on sentence-transformers wants the flag for every class that
is not its own, those of an installed package included, and has no public way around it. The classes come
from this package, and no file of the folder is executed: with the flag, only where transformers does not
know the decoder's model type.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from sentence_transformers.base.modules import InputModule, Module
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from embedforge.errors import EmbedforgeError
from embedforge.files import read_object
from embedforge.model.attention import make_bidirectional
from embedforge.model.decoder import read_decoder, read_tokenizer, state_width, token_states, torch_dtype
from embedforge.model.inputs import render_inputs, warn_once
from embedforge.model.int8 import is_int8, save_int8
from embedforge.model.memory import parameter_bytes
from embedforge.model.pooling import LatentAttention, Pooler, pooler_class
from embedforge.model.precision import INT8, ExactRotary, named_dtype, save_decoder, saved_dtype
from embedforge.model.shards import WEIGHTS, read_header
from embedforge.text.contract import Contract
from embedforge.text.render import Renderer


class TextEncoder(ExactRotary, InputModule):
    """Texts to token states: renders under the contract and runs the decoder."""

    def __init__(self, decoder: PreTrainedModel, renderer: Renderer) -> None:
        super().__init__()
        self.decoder = decoder
        self.renderer = renderer
        self._max_tokens = renderer.contract.max_tokens

    @property
    def contract(self) -> Contract:
        """How a text becomes a vector."""
        return self.renderer.contract

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The contract's tokenizer; it cannot be exchanged."""
        return self.renderer.tokenizer

    @property
    def processor(self) -> PreTrainedTokenizerBase:
        """The tokenizer, under the name that sentence-transformers also uses."""
        return self.tokenizer

    @property
    def max_seq_length(self) -> int:
        """Tokens of a rendered text; can be set lower than the contract's limit, never higher."""
        return self._max_tokens

    @max_seq_length.setter
    def max_seq_length(self, tokens: int) -> None:
        if not 0 < tokens <= self.contract.max_tokens:
            raise EmbedforgeError(
                f"max_seq_length is at most the contract's {self.contract.max_tokens} tokens, not {tokens}"
            )
        self._max_tokens = tokens

    def preprocess(
        self,
        inputs: Sequence[Any],
        prompt: str | None = None,
        *,
        task: str | None = None,
        max_length: int | None = None,
        processing_kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> dict[str, Tensor]:
        """Render texts: int64 `input_ids`, `attention_mask`, `pooling_mask`, each [texts, tokens].

        What sentence-transformers accepts is accepted. What leaves the contract warns once: pairs of texts,
        which are read one after the other, each with BOS and EOS; a prompt that none of the templates makes;
        options that the contract decides about.

        Args:
            inputs: the texts; also {"text": text}, or pairs of two.
            prompt: what stands before each text, template included, as `contract.query_prefix` makes it. The
                beginning of the chat template may be left out; texts without a prompt are wrapped in it too.
            task: "query" from `encode_query`, "document" from `encode_document`; decides with `prompt`
                what follows each text.
            max_length: tokens of a rendered text, when fewer than `max_seq_length`.
            processing_kwargs: of these, `max_length` for text counts as the argument does.
            options: anything else has no effect.
        """
        text_options = dict((processing_kwargs or {}).get("text") or {})
        max_length = text_options.pop("max_length", None) or max_length
        stray = [name for name, value in options.items() if value is not None]
        stray += [*text_options, *(name for name in processing_kwargs or {} if name != "text")]
        if stray:
            warn_once(f"the contract decides how texts are tokenised; without effect: {sorted(set(stray))}")
        prefix, suffix = self._frame(prompt or "", task)
        if not self.renderer.knows_prefix(prefix):
            warn_once(
                f"the prompt {prompt!r} is none that the contract's templates make, so a token may span its "
                "end, and the model was not trained on it: contract.query_prefix(instruction) makes one"
            )
        limit = min(self.max_seq_length, max_length or self.max_seq_length)
        return self.renderer.pad(render_inputs(self.renderer, inputs, prefix, suffix, limit))

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Add `token_embeddings`, [texts, tokens, hidden], to the features of `preprocess`."""
        features["token_embeddings"] = token_states(
            self.decoder, features["input_ids"], features["attention_mask"]
        )
        return features

    def get_embedding_dimension(self) -> int:
        """Return the width of a token's state."""
        return state_width(self.decoder)

    def save(
        self,
        output_path: str,
        *_: Any,
        safe_serialization: bool = True,
        dtype: str | None = None,
        **__: Any,
    ) -> None:
        """Write decoder, tokenizer and contract into `output_path`, in the contract's dtype when None.

        The goldens keep their token ids and lose their vectors, which training may have changed.
        """
        if not safe_serialization:
            raise EmbedforgeError("embedforge saves safetensors only; leave safe_serialization at True")
        goldens = tuple(golden.model_copy(update={"vector": ()}) for golden in self.contract.goldens)
        dtype = dtype or saved_dtype(self.decoder, self.contract.dtype)
        if is_int8(self.decoder):
            save_int8(self.decoder, Path(output_path), dtype)
            dtype = INT8
        else:
            save_decoder(self.decoder, output_path, dtype)
        contract = self.contract.model_copy(update={"goldens": goldens, "dtype": dtype})
        self.tokenizer.save_pretrained(output_path)
        contract.save(Path(output_path))

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        subfolder: str = "",
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        trust_remote_code: bool = False,
        model_kwargs: dict[str, Any] | None = None,
        processor_kwargs: dict[str, Any] | None = None,
        config_kwargs: dict[str, Any] | None = None,
        backend: str = "torch",
        **_: Any,
    ) -> Self:
        """Read what `save` wrote; `model_kwargs` (dtype, attn_implementation, device_map) are honoured."""
        if processor_kwargs or config_kwargs or backend != "torch":
            raise EmbedforgeError(
                f"{model_name_or_path}: the contract decides about tokens and attention; "
                "processor_kwargs, config_kwargs and backends other than torch cannot be used with this model"
            )
        path = cls.load_dir_path(
            model_name_or_path, subfolder, token, cache_folder, revision, local_files_only
        )
        if path is None:
            raise EmbedforgeError(f"{model_name_or_path}: there is no such model")
        folder = Path(path)
        contract = Contract.load(folder)
        options = dict(model_kwargs or {})
        saved = named_dtype(folder) if contract.dtype == INT8 else contract.dtype
        dtype = options.pop("dtype", None) or options.pop("torch_dtype", None) or saved
        decoder = read_decoder(
            folder,
            trust_remote_code=trust_remote_code,
            dtype=torch_dtype(saved if dtype == "auto" else dtype),
            **options,
        )
        if contract.attention == "bidirectional":
            # The saved config has the windows as they were trained; only module flags are not saved.
            make_bidirectional(decoder, sliding_window="keep")
        return cls(decoder, Renderer(read_tokenizer(folder, decoder), contract))

    def _frame(self, prompt: str, task: str | None) -> tuple[str, str]:
        """Return what stands before and after a text: its prompt in the chat template, and what follows.

        What follows is known by the task, or else by the template that the prompt fits.
        """
        start, end = self.contract.chat_frame()
        inner = prompt.removeprefix(start)
        return start + inner, self._behind(inner, task) + end

    def _behind(self, prompt: str, task: str | None) -> str:
        """Return what query or document template have after a text; `prompt` is without the chat template."""
        contract = self.contract
        before, after = contract.query_template.split("{text}")
        document_before, document_after = contract.document_template.split("{text}")
        if task == "query":
            return "" if "{instruction}" in before and not prompt else after
        if prompt == document_before:
            return document_after
        like_query = re.escape(before).replace(re.escape("{instruction}"), ".+")
        if re.fullmatch(like_query, prompt, re.DOTALL):
            return after
        return document_after if task == "document" else ""


class Pool(Module):
    """Token states and pooling mask to `sentence_embedding`, [texts, hidden], not yet of unit length."""

    config_keys: ClassVar[list[str]] = ["kind", "hidden_size", "options"]

    def __init__(self, pooler: Pooler, kind: str, hidden_size: int, options: dict[str, Any]) -> None:
        super().__init__()
        self.pooler = pooler
        self.kind = kind
        self.hidden_size = hidden_size
        self.options = options
        """The settings of its kind: latents, heads, ..."""

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Add `sentence_embedding`, [texts, hidden], float32.

        Raises:
            EmbedforgeError: features that a bare tokenizer made, which do not say what is pooled.
        """
        if "pooling_mask" not in features:
            raise EmbedforgeError(
                "there is no pooling_mask, which the contract makes beside the token ids: give the texts to "
                "model.encode, or to model.preprocess in place of model.tokenizer"
            )
        features["sentence_embedding"] = self.pooler(features["token_embeddings"], features["pooling_mask"])
        return features

    def get_embedding_dimension(self) -> int:
        """Return the width of a vector."""
        return self.hidden_size

    def get_config_dict(self) -> dict[str, Any]:
        """Return what `load` needs, and, of a pooling that is not embedforge's, the module it is from."""
        module = self.pooler.defined_in()
        return super().get_config_dict() | ({"defined_in": module} if module else {})

    def save(self, output_path: str, *_: Any, dtype: str | None = None, **__: Any) -> None:
        """Write the pooler's shape and, where it has any, its weights, as they are when `dtype` is None."""
        self.save_config(output_path)
        if any(True for _ in self.pooler.parameters()):
            pooler = self.pooler if dtype is None else copy.deepcopy(self.pooler).to(torch_dtype(dtype))
            save_model(pooler, str(Path(output_path) / WEIGHTS))

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **options: Any) -> Self:
        """Read what `save` wrote.

        Raises:
            EmbedforgeError: a damaged folder, or a pooling of somebody's own whose module is not imported.
        """
        names = ("token", "cache_folder", "revision", "local_files_only")
        hub = {name: options[name] for name in names if name in options}
        config = cls.load_file_path(model_name_or_path, cls.config_file_name, subfolder, **hub)
        if config is None:
            raise _missing(model_name_or_path, subfolder, cls.config_file_name)
        shape = read_object(Path(config))
        try:
            pooler_type = _pooler_class(config, shape["kind"], shape.pop("defined_in", ""))
            # Earlier versions wrote the settings of latent attention beside those of any other.
            stray = set(LatentAttention.settings()) - set(pooler_type.settings())
            shape["options"] = {key: shape["options"][key] for key in shape["options"] if key not in stray}
            pooler = _sized(pooler_type, shape, Path(config))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise EmbedforgeError(
                f"{model_name_or_path}: {subfolder}/{cls.config_file_name} does not describe a pooler "
                f"({error}); restore the file as it was saved"
            ) from None
        if any(True for _ in pooler.parameters()):
            weights = cls.load_file_path(model_name_or_path, WEIGHTS, subfolder, **hub)
            if weights is None:
                raise _missing(model_name_or_path, subfolder, WEIGHTS)
            _load_weights(pooler, weights)
        return cls(pooler, **shape)


def _sized(pooler_type: type[Pooler], shape: dict[str, Any], config: Path) -> Pooler:
    """Build a pooler, unless its configuration asks for many times what its weights hold."""

    def make() -> Pooler:
        return pooler_type(shape["hidden_size"], **shape["options"])

    needed, weights = parameter_bytes(make, str(config)), config.with_name(WEIGHTS)
    if weights.exists() and needed > 8 * weights.stat().st_size:
        raise EmbedforgeError(
            f"{config}: it describes a pooler of {needed:,} bytes, and {WEIGHTS} beside it has "
            f"{weights.stat().st_size:,}; restore the file as it was saved"
        )
    return make()


def _pooler_class(config: str, kind: str, defined_in: str) -> type[Pooler]:
    try:
        return pooler_class(kind, defined_in)
    except EmbedforgeError as error:
        raise EmbedforgeError(f"{config}: {error}") from None


def _missing(folder: str, subfolder: str, name: str) -> EmbedforgeError:
    return EmbedforgeError(f"{Path(folder, subfolder, name)}: there is no such file; download it again")


def _load_weights(pooler: nn.Module, weights: str) -> None:
    read_header(Path(weights))  # Refuses a file that was cut off.
    try:
        load_model(pooler, weights)
    except (SafetensorError, RuntimeError, OSError) as error:
        raise EmbedforgeError(
            f"{weights}: these are not the weights of the pooler in config.json beside it; download both "
            f"again, from one folder ({error})"
        ) from None
