"""Export to other programs: what is written gives the model's vectors, or is not written."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

import embedforge
from embedforge import EmbedforgeError
from embedforge.export import embed as reader
from embedforge.export import forms
from embedforge.export.parity import Reference
from embedforge.export.run import export_to
from embedforge.export.texts import probes
from embedforge.model.encoder import build, embedding_model
from embedforge.text.contract import Contract

TEXTS = ["how deep is the river?", "", " odd\n🙂", "bread and music " * 60]


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("texts") / "texts.txt"
    file.write_text(
        "how deep is the river?\n\nbread and music, as long as it lasts\nÜbung\n", encoding="utf-8"
    )
    return file


@pytest.fixture(scope="module")
def onnx_folder(saved_latent: Path, few: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The one export as ONNX: torch's exporter takes seconds."""
    for package in forms.NEEDS["onnx"]:
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("exports") / "onnx"
    export = export_to(str(saved_latent), folder, "onnx", int8=True, texts=few)
    assert [row.name for row in export.rows][1:] == ["onnxruntime, float32", "onnxruntime, int8"]
    assert export.rows[1].cosine_min > 0.99999
    assert 0.98 < export.rows[2].cosine_min < 0.99999
    return folder


def reader_of(folder: Path) -> ModuleType:
    """The folder's own embed.py, as a user imports it."""
    spec = importlib.util.spec_from_file_location("embed_of_folder", folder / "embed.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_folder_embeds_by_itself(onnx_folder: Path, saved_latent: Path) -> None:
    exported = reader_of(onnx_folder).Embedder(onnx_folder)
    model = embedforge.load(saved_latent, device="cpu")
    with pytest.warns(UserWarning, match="1 of 4 texts have more than 64 tokens"):
        documents = exported.encode(TEXTS, batch_size=3)
    cosines = (documents * model.encode_document(TEXTS)).sum(axis=1)
    assert cosines.min() > 0.98
    query = exported.encode(TEXTS[:1], "query")
    assert (query * model.encode_query(TEXTS[:1])).sum() > 0.98
    other = exported.encode(TEXTS[:1], "query", instruction="Find bread")
    assert not np.allclose(query, other)
    assert "int8" in (onnx_folder / "README.md").read_text(encoding="utf-8")
    check = json.loads((onnx_folder / "export.json").read_text(encoding="utf-8"))["check"]
    assert [row["tokens_equal"] for row in check["rows"]] == [check["texts"]] * 3


class Changed:
    """What an export gives that has gone wrong."""

    def __init__(self, ids: int = 0, vectors: float = 0.0) -> None:
        self.more_ids, self.noise = [5] * ids, vectors
        self.reference: Reference

    def tokens(self, probe):
        return probe.rendered.input_ids + self.more_ids, None

    def vectors(self, probes):
        return self.reference.expected + np.float32(self.noise)


@pytest.mark.parametrize(
    ("runner", "message"),
    [
        (Changed(ids=1), "13 of 13 texts have other token ids"),
        (Changed(vectors=0.2), "is the least that is accepted"),
        (Changed(vectors=float("nan")), "has a cosine of nan"),
    ],
)
def test_what_went_wrong_is_refused(
    runner: Changed, message: str, saved_latent: Path, few: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = embedding_model(embedforge.load(saved_latent, device="cpu"))
    reference = Reference(model, probes(model.renderer, few))
    runner.reference = reference
    parity = reference.compare("theirs", runner)
    with pytest.raises(EmbedforgeError, match=message):
        reference.require(parity, 0.9999)


def test_over_the_tolerance_nothing_is_written(
    model_folder: Path, few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    export_to(str(model_folder), out, "sentence-transformers", texts=few)
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    with pytest.raises(EmbedforgeError, match="nothing was written"):
        export_to(str(model_folder), out, "sentence-transformers", texts=few, min_cosine=1.1)
    assert {file: file.read_bytes() for file in out.rglob("*") if file.is_file()} == before
    assert list(tmp_path.iterdir()) == [out]
    stock = SentenceTransformer(str(out), device="cpu")
    model = embedforge.load(model_folder, device="cpu")
    assert np.allclose(stock.encode_query(TEXTS), model.encode_query(TEXTS), atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"isolate_prefix": False, "eos_survives_truncation": False, "pool_bos": "never"},
        {"chat_template": "[INST] {text} [/INST]", "strip_text_end": True, "padding_side": "left"},
        {
            "query_template": "query: {text}",
            "pool_instruction": True,
            "pool_bos": "always",
            "pool_eos": False,
        },
        {"add_bos": False, "add_eos": False},
    ],
)
def test_the_reader_renders_as_the_contract_does(
    settings: dict, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    renderer = build(base=str(tiny_base), contract=Contract(max_tokens=64, **settings)).renderer
    renderer.tokenizer.save_pretrained(tmp_path)
    renderer.contract.save(tmp_path)
    ids = {name: getattr(renderer.tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    (tmp_path / "export.json").write_text(json.dumps({"ids": ids}), encoding="utf-8")
    monkeypatch.setattr(reader, "_onnxruntime", lambda *_: None)
    theirs = reader.Embedder(tmp_path)
    for kind in ("query", "document"):
        frame = getattr(renderer.contract, f"{kind}_prefix")(), getattr(renderer.contract, f"{kind}_suffix")()
        assert theirs.frame(kind) == frame
        batch = renderer.batch(TEXTS, frame[0], suffix=frame[1])
        found = theirs.pad(theirs.render(TEXTS, *frame))
        for name, tensor in batch.items():
            assert (found[name] == tensor.numpy()).all(), name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--to", "sentence-transformers"), "there is no pooling 'latent'"),
        (("--to", "gguf"), "llama.cpp has no pooling 'latent'"),
        (("--to", "onxx"), "Did you mean 'onnx'?"),
        (
            ("--to", "sentence-transformers", "--int8"),
            "--int8 is for --to onnx, openvino, gguf, not for sentence-transformers",
        ),
        (("--to", "onnx", "--adapter", "MODEL"), "--to onnx has no use for --adapter"),
        (("--int8",), "--to embedforge has no use for --int8"),
    ],
)
def test_refusals(arguments: tuple[str, ...], message: str, saved_latent: Path, tmp_path: Path, run) -> None:
    given = [str(saved_latent) if part == "MODEL" else part for part in arguments]
    code, _, error = run("export", saved_latent, tmp_path / "out", *given)
    assert code == 1
    assert message in error
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named(run, saved_latent: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(forms.NEEDS, "openvino", ("no_such_runtime",))
    code, _, error = run("export", saved_latent, tmp_path / "out", "--to", "openvino")
    assert code == 1
    assert "pip install 'embedforge[openvino]'" in error


def test_texts_cut_by_words_are_refused(tiny_base: Path, tmp_path: Path) -> None:
    from embedforge.model.encoder import save

    contract = Contract(max_tokens=64, text_max_tokens=32)
    save(build(base=str(tiny_base), contract=contract), tmp_path / "model")
    with pytest.raises(EmbedforgeError, match="shortened to 32 tokens by whole words"):
        export_to(str(tmp_path / "model"), tmp_path / "out", "onnx")
    shutil.rmtree(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []
