"""What may be asked, checked before anything is computed. An unknown field is refused, never ignored."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool

from embedforge.errors import did_you_mean
from embedforge.quantize import Precision
from embedforge.search.repeats import PER_FILE

InputType = Literal["query", "document"]
MOST_HITS = 1000


def _number(given: Any) -> Any:
    """Refuse what pydantic would turn into a number: a text, true."""
    if isinstance(given, str | bool):
        raise ValueError("must be a number")
    return given


Count = Annotated[int, BeforeValidator(_number)]
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1, strict=True)]
TokenIds = Annotated[list[TokenId], Field(min_length=1)]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid")

    truncate: StrictBool = False
    """Cut texts that are too long; otherwise they are an error. The answer says how many were cut."""


class EmbeddingsRequest(_Request):
    """OpenAI's request for embeddings, with what an embedding contract needs besides."""

    input: (
        str
        | Annotated[list[str], Field(min_length=1)]
        | TokenIds
        | Annotated[list[TokenIds], Field(min_length=1)]
    )
    """A text, texts, or token ids of this model's tokenizer (see `tokenizer`)."""
    model: str | None = None
    """A name that /v1/models lists; any other is refused."""
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[Count, Field(ge=1)] | None = None
    """The first so many numbers, of unit length again where the contract asks for it."""
    user: str | None = None
    """Taken for OpenAI's sake, and not used."""
    input_type: InputType | None = None
    """What the texts are: a query has the contract's instruction before it. Documents unless said."""
    instruction: str | None = None
    """Instead of the contract's default; "" for none."""
    precision: Precision = "float32"
    """Of the numbers: int8 keeps cosines, binary is the signs, eight to a byte; see `quantize`."""
    tokenizer: str | None = None
    """For token ids: the name of the model whose tokenizer made them, which must be this one."""


class EmbedRequest(_Request):
    """TEI's request for embeddings, with `input_type`, `instruction` and `precision` besides."""

    inputs: str | Annotated[list[str], Field(min_length=1)]
    normalize: StrictBool | None = None
    """The contract decides unless said; vectors that it makes of unit length cannot be had otherwise."""
    truncation_direction: Annotated[str, Field(pattern="(?i)^right$")] = "right"
    """Texts lose their end, never their beginning."""
    prompt_name: InputType | None = None
    """TEI's word for `input_type`."""
    dimensions: Annotated[Count, Field(ge=1)] | None = None
    input_type: InputType | None = None
    instruction: str | None = None
    precision: Precision = "float32"


class SearchRequest(_Request):
    """A search in the index that the server was started with."""

    query: Annotated[str, Field(min_length=1)]
    k: Annotated[Count, Field(ge=1, le=MOST_HITS)] = 10
    filters: Annotated[list[str], Field(max_length=32)] = []
    """All must hold: lang=en, year>=2020, file=docs/*; see docs/search.md."""
    mode: Literal["fused", "dense", "lexical"] | None = None
    """By meaning and words, by meaning, by words; what the index says unless given."""
    per_file: Annotated[Count, Field(ge=0, le=MOST_HITS)] = PER_FILE
    """Passages of one file, unless other files have too few; 0 for no limit."""
    instruction: str | None = None


_TEXTS = "a text, or a list of at least one text"
_SHAPES = {"input": f"{_TEXTS}, or of token ids", "inputs": _TEXTS}


def explain_request(errors: list[Any]) -> tuple[str, str | None]:
    """Return what is wrong with a request, a line for each field, and the first field it is about."""
    said: dict[str, str] = {}
    for error in errors:
        place = [str(part) for part in error["loc"] if part != "body"]
        field = place[0] if place else ""
        if error["type"] == "json_invalid":
            return "the body is not valid JSON", None
        if not place:
            return "the body must be a JSON object, sent with Content-Type: application/json", None
        if error["type"] == "extra_forbidden":
            said[field] = f"there is no field '{field}'.{did_you_mean(field, _FIELDS)}"
        elif field in _SHAPES:
            said[field] = f"{field} must be {_SHAPES[field]}"
        else:
            said.setdefault(field, f"{field}: {error['msg']}")
    return "; ".join(said.values()), next(iter(said))


_FIELDS = sorted(
    {name for kind in (EmbeddingsRequest, EmbedRequest, SearchRequest) for name in kind.model_fields}
)
