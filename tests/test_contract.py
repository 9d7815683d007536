from __future__ import annotations

import json

import pytest
import torch

from embedforge.errors import EmbedforgeError
from embedforge.text.contract import FILE_NAME, Contract
from embedforge.text.goldens import GOLDEN_TEXTS, check_goldens, make_goldens
from embedforge.text.render import Renderer
from tokenizers_for_tests import KINDS, byte_level


def embed(batch):
    """A stand-in for a model: unit vectors that depend on every pooled token."""
    table = torch.nn.functional.one_hot(batch["input_ids"] % 24, 24) * batch["pooling_mask"][..., None]
    return torch.nn.functional.normalize(table.sum(1).float(), dim=1)


def with_goldens(contract: Contract = Contract(), kind: str = "byte_level") -> tuple[Renderer, Contract]:  # noqa: B008
    renderer = Renderer(KINDS[kind](), contract)
    return renderer, contract.model_copy(update={"goldens": make_goldens(renderer, embed)})


def test_prefixes_and_suffix():
    contract = Contract(query_template="<q> {instruction} : {text} <e>", document_template="passage: {text}")
    assert contract.query_prefix("find") == "<q> find : "
    assert contract.query_prefix("") == ""
    assert contract.query_prefix() == f"<q> {contract.default_instruction} : "
    assert contract.query_suffix() == " <e>"
    assert contract.document_prefix() == "passage: "
    assert contract.document_prefix("find") == "<q> find : "


@pytest.mark.parametrize("template", ["Query:", "{text}{text}"])
def test_a_template_holds_the_text_once(template):
    with pytest.raises(ValueError, match="exactly once"):
        Contract(query_template=template)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_goldens_survive_saving(kind, tmp_path):
    renderer, contract = with_goldens(kind=kind)
    contract.save(tmp_path)
    renderer.tokenizer.save_pretrained(tmp_path)
    loaded = Contract.load(tmp_path)
    assert loaded == contract
    tokenizer = type(renderer.tokenizer).from_pretrained(tmp_path)
    check_goldens(Renderer(tokenizer, loaded), loaded, embed)
    assert len(loaded.goldens) == 2 * len(GOLDEN_TEXTS)
    assert {golden.prefix for golden in loaded.goldens} == {"", contract.query_prefix()}
    assert all(len(golden.vector) == 16 for golden in loaded.goldens)


def test_goldens_without_a_model_hold_ids_and_masks():
    renderer = Renderer(byte_level(), Contract())
    contract = Contract(goldens=make_goldens(renderer, None))
    assert all(golden.vector == () for golden in contract.goldens)
    check_goldens(renderer, contract)
    check_goldens(renderer, contract, embed)


def test_goldens_are_cut_at_max_tokens_and_keep_the_suffix():
    template = "{instruction} : {text} <e>"
    renderer, contract = with_goldens(
        Contract(query_template=template, default_instruction="find", max_tokens=16)
    )
    check_goldens(renderer, contract, embed)
    queries = [golden for golden in contract.goldens if golden.prefix]
    assert max(len(golden.input_ids) for golden in contract.goldens) == 16
    assert all(renderer.tokenizer.decode(golden.input_ids).endswith(" <e></s>") for golden in queries)


def test_changed_ids_are_shown():
    _, contract = with_goldens()
    other = Renderer(KINDS["byte_level_prefix_space"](), contract)
    with pytest.raises(
        EmbedforgeError, match=r"(?s)token ids .*how deep.*expected \[.*found .*tokenizer.json"
    ):
        check_goldens(other, contract, embed)


def test_changed_mask_is_shown():
    _, contract = with_goldens()
    other = Renderer(byte_level(), contract.model_copy(update={"pool_eos": False}))
    with pytest.raises(EmbedforgeError, match=r"(?s)pooling mask .*expected \[.*found .*pool_eos"):
        check_goldens(other, contract)


def test_changed_vector_is_shown_and_nan_is_no_agreement():
    renderer, contract = with_goldens()
    check_goldens(renderer, contract, lambda batch: embed(batch) + 5e-5)
    with pytest.raises(
        EmbedforgeError, match=r"(?s)vector \(tolerance 0.0001\).*expected \(.*found .*causal mask"
    ):
        check_goldens(renderer, contract, lambda batch: embed(batch) + 1e-3)
    check_goldens(renderer, contract, lambda batch: embed(batch) + 1e-3, tolerance=2e-3)
    for broken in (lambda batch: embed(batch) * float("nan"), lambda batch: embed(batch)[:, :8]):
        with pytest.raises(EmbedforgeError, match="vector"):
            check_goldens(renderer, contract, broken)


def test_a_contract_file_with_an_unknown_key_is_refused(tmp_path):
    Contract().save(tmp_path)
    content = json.loads((tmp_path / FILE_NAME).read_text()) | {"add_boss": True}
    (tmp_path / FILE_NAME).write_text(json.dumps(content))
    with pytest.raises(EmbedforgeError, match=r"contract.json.*(?s:.)*add_boss"):
        Contract.load(tmp_path)
