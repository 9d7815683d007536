r"""A model's tokenizer under its contract: BOS and EOS explicit, and the instruction isolated from the text.

Everything is written into the tokenizer itself, so that a plain library that loads the saved tokenizer
and tokenises `prefix + text` in one string gets the ids that `embedforge.text.render` makes.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from embedforge.errors import EmbedforgeError
from embedforge.text.contract import Contract

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

_WAY_OUT = "set contract.isolate_prefix=false to let tokens span the end of the instruction"

# Starts that tokenizers treat specially: letters, spaces, line ends, digits, bytes, signs.
_PROBES = ("judo", " judo", "  two", "\nline", "\n\n", "42", "日本", "été", "🙂", ".", ": x", "Query: x", "")


def contract_tokenizer(tokenizer: PreTrainedTokenizerBase, contract: Contract) -> PreTrainedTokenizerFast:
    """Return a copy of `tokenizer` that does what `contract` says, also after saving and reloading.

    The copy is a plain `PreTrainedTokenizerFast`: classes made for one model family rebuild their pipeline
    when they are loaded and would lose the changes. (transformers 5.23 forces such a class on model type
    "qwen2" whatever is saved; see `embedforge.model.auto_tokenizer`.)

    It adds BOS and EOS as the contract says (truncation keeps both), pads on the contract's side (with EOS if
    there is no pad token), truncates on the right at `contract.max_tokens`, and, with
    `contract.isolate_prefix`, never lets a token span the prefix's end. Applying it again changes nothing.
    The given tokenizer stays as it is.

    Two things change with `isolate_prefix`. Tokenizers that put a space mark in front of a string (Llama 2,
    Mistral) put it in front of the prefix and of the text alike, but no second one before a text that starts
    with a space. And where a text itself contains the template's separator, a token ends there too.

    Raises EmbedforgeError for a slow tokenizer, for a missing BOS or EOS, and for a template or tokenizer
    that cannot be isolated.
    """
    _require_fast(tokenizer)
    _require_specials(tokenizer, contract)
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    # Left in the file by libraries that save while they truncate or pad; the arguments of a call decide.
    state["truncation"] = state["padding"] = None
    if contract.isolate_prefix:
        _isolate(state, contract)
    prepared = _plain_tokenizer(tokenizer, Tokenizer.from_str(json.dumps(state)), contract)
    if contract.isolate_prefix:
        _prove_isolation(prepared, contract)
    return prepared


def prefix_endings(contract: Contract) -> tuple[str, ...]:
    r"""Return the literal strings that may stand right before a text; isolation ends a token after each.

    >>> prefix_endings(Contract())
    ('\nQuery: ',)
    >>> prefix_endings(Contract(query_template="query: {text}", document_template="passage: {text}"))
    ('query: ', 'passage: ')
    >>> prefix_endings(Contract(chat_template="[INST] {text} [/INST]"))
    ('\nQuery: ', '[INST] ')
    """
    endings = []
    for before in _before_texts(contract):
        ending = before.rpartition("{instruction}")[2]
        if before and not re.search(r"\S", ending):
            raise EmbedforgeError(
                f"the templates' {before!r} before {{text}} has no word or sign behind {{instruction}}, so "
                f"the end of the instruction cannot be found in a string: put one there (as '\\nQuery: '), "
                f"or {_WAY_OUT}"
            )
        if ending and ending not in endings:
            endings.append(ending)
    return tuple(endings)


def _before_texts(contract: Contract) -> list[str]:
    """Return everything that may stand before a text, with `{instruction}` in place of one."""
    start, _ = contract.chat_frame()
    templates = (contract.query_template, contract.document_template)
    befores = [start + template.split("{text}")[0] for template in templates]
    return [*befores, start] if "{instruction}" in contract.query_template else befores


def _require_fast(tokenizer: PreTrainedTokenizerBase) -> None:
    if not getattr(tokenizer, "is_fast", False):
        raise EmbedforgeError(
            f"the tokenizer is a {type(tokenizer).__name__}, which gives no character offsets, and those "
            "decide what is pooled: use a fast tokenizer (a model folder with a tokenizer.json)"
        )


def _require_specials(tokenizer: PreTrainedTokenizerBase, contract: Contract) -> None:
    wanted = {"bos": contract.add_bos, "eos": contract.add_eos}
    for name, add in wanted.items():
        if add and getattr(tokenizer, f"{name}_token_id") is None:
            raise EmbedforgeError(
                f"contract.add_{name}=true, but the tokenizer has no {name}_token: set "
                f"contract.add_{name}=false, or give the tokenizer one "
                f"(tokenizer.{name}_token = '...')"
            )


def _plain_tokenizer(
    source: PreTrainedTokenizerBase, backend: Tokenizer, contract: Contract
) -> PreTrainedTokenizerFast:
    from transformers import PreTrainedTokenizerFast

    # As AddedToken, because a bare string would lose the token's own settings (such as rstrip) at reload.
    settings = {token.content: token for token in source.added_tokens_decoder.values()}
    specials: dict[str, Any] = {
        name: settings.get(str(token), token)
        for name, token in source.special_tokens_map.items()
        if name.endswith("_token")
    }
    if "pad_token" not in specials and "eos_token" in specials:
        specials["pad_token"] = specials["eos_token"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        # Both are given, always: from one alone the library infers that the other is off.
        add_bos_token=contract.add_bos,
        add_eos_token=contract.add_eos,
        padding_side=contract.padding_side,
        truncation_side="right",
        model_max_length=contract.max_tokens,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
        **specials,
    )
    tokenizer.chat_template = getattr(source, "chat_template", None)
    tokenizer.name_or_path = source.name_or_path
    return tokenizer


def _isolate(state: dict[str, Any], contract: Contract) -> None:
    """Edit the content of a tokenizer.json so that a token ends after each of the prefix endings."""
    endings = prefix_endings(contract)
    if not endings:
        return
    steps = _steps(state["pre_tokenizer"], "pretokenizers")
    prepended = _take_prepend(state)
    for step in steps:
        if step["type"] == "Metaspace" and step.get("prepend_scheme") == "first":
            step["prepend_scheme"] = "always"  # "first" marks the first piece of the string: the prefix only
    if prepended is not None:
        space_mark = {
            "type": "Metaspace",
            "replacement": prepended,
            "prepend_scheme": "always",
            "split": False,
        }
        steps.insert(0, space_mark)
    normalizer = Tokenizer.from_str(json.dumps(state | {"pre_tokenizer": None})).normalizer
    endings = tuple(_behind_tokens(ending, state["added_tokens"]) for ending in endings)
    seen = [_as_normalized(ending, normalizer) for ending in endings if ending]
    seen = [_unambiguous(ending, seen) for ending in seen]
    splits = _splits_behind(seen)
    steps = [*splits, *(step for step in steps if step not in splits)]
    state["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps} if steps else None


def _splits_behind(endings: list[str]) -> list[dict[str, Any]]:
    """Return the pre-tokenizer step that ends a token behind each ending; none where there is no ending."""
    if not endings:
        return []
    # Zero width: nothing but the position after an ending matters, and no occurrence hides the next one.
    pattern = "|".join(re.sub(r"[\\.^$|?*+()\[\]{}]", r"\\\g<0>", ending) for ending in endings)
    regex = {"Regex": f"(?<={pattern})"}
    return [{"type": "Split", "pattern": regex, "behavior": "Isolated", "invert": False}]


def _behind_tokens(ending: str, added_tokens: list[dict[str, Any]]) -> str:
    """Return what of `ending` follows the last added token (<|im_start|>, say) in it.

    The pre-tokenizer never sees such a token, only the string behind it; nothing spans the token anyway.
    """
    ends = [
        ending.rindex(token["content"]) + len(token["content"])
        for token in added_tokens
        if token["content"] in ending
    ]
    return ending[max(ends, default=0) :]


def _steps(component: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    """Return the steps of a tokenizer.json component, nested sequences flattened."""
    if component is None:
        return []
    if component["type"] != "Sequence":
        return [component]
    return [step for part in component[key] for step in _steps(part, key)]


def _take_prepend(state: dict[str, Any]) -> str | None:
    """Remove the normalizer that puts a space mark before the whole string; return the mark, None if absent.

    It would mark the prefix and leave the text behind it without a mark, unlike the same text alone.
    """
    steps = _steps(state["normalizer"], "normalizers")
    marks = [step["prepend"] for step in steps if step["type"] == "Prepend"]
    if not marks:
        return None
    if len(marks) > 1 or len(marks[0]) != 1:
        raise EmbedforgeError(
            f"the tokenizer's normalizer prepends {marks!r}: it cannot be isolated; {_WAY_OUT}"
        )
    rest = [step for step in steps if step["type"] != "Prepend"]
    state["normalizer"] = {"type": "Sequence", "normalizers": rest}
    return str(marks[0])


def _as_normalized(ending: str, normalizer: Any) -> str:
    """Return what the pre-tokenizer sees of `ending` (spaces as marks, lower case, ...)."""
    if normalizer is None:
        return ending
    inside = str(normalizer.normalize_str(f"x{ending}x"))
    return inside[inside.index("x") + 1 : inside.rindex("x")]


def _unambiguous(ending: str, endings: list[str]) -> str:
    """Return the longest end of `ending` that no text can complete behind a prefix.

    " | " after "x |" would also be found in "x | | y": "| " is found at the same positions, and only there.
    """
    for start in range(len(ending)):
        rest = ending[start:]
        completes = any(other.endswith(rest[:n]) for other in endings for n in range(1, len(rest)))
        if not completes and re.search(r"[^\s▁]", rest):
            return rest
    raise EmbedforgeError(
        f"the template's text before {{text}}, {ending!r}, begins as one of {endings!r} ends, so a text "
        f"could continue it: choose another separator (as '\\nQuery: '), or {_WAY_OUT}"
    )


def _prove_isolation(tokenizer: PreTrainedTokenizerFast, contract: Contract) -> None:
    """Check on texts of many kinds that prefix and text have together the tokens that each has alone."""

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    query = contract.query_prefix
    prefixes = {query("Given a question, find 3 answers"), query(""), contract.document_prefix()}
    for prefix in sorted(prefixes):
        for text in _PROBES:
            joint, apart = ids(prefix + text), ids(prefix) + ids(text)
            if joint != apart:
                raise EmbedforgeError(
                    f"the tokenizer cannot be isolated: {prefix + text!r} has the tokens "
                    f"{tokenizer.convert_ids_to_tokens(joint)}, prefix and text alone have "
                    f"{tokenizer.convert_ids_to_tokens(apart)}; {_WAY_OUT}"
                )
