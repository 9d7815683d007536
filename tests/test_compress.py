"""Smaller vectors: what each variant compares, the rotation, and the curve on small tasks."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from conftest import Run
from embedforge.errors import EmbedforgeError
from embedforge.files import read_json
from embedforge.model.encoder import EmbeddingModel, embedding_model, load, save
from embedforge.model.projection import empty_map, rotate
from embedforge.quantize import principal_rotation, quantize
from embedforge.statistics import Interval
from models_for_tests import TEXTS, embed

pytest.importorskip("mteb")

from mteb.types import PromptType

from embedforge.compress.encoder import KeptVectors, RescoredSearch
from embedforge.compress.page import Judged, cheapest
from embedforge.compress.variants import Variant, variants_of
from embedforge.evaluate.encoders import Encoder
from embedforge.evaluate.run import evaluate

RNG = np.random.default_rng(0)


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_a_rotation_leaves_cosines_and_puts_most_into_the_first_numbers() -> None:
    """Vectors of rank 3 in 16 dimensions: three numbers are then enough, to float64's exactness."""
    vectors = unit(RNG.standard_normal((50, 3)) @ RNG.standard_normal((3, 16)))
    rotation = principal_rotation(vectors)
    turned = vectors.astype(np.float64) @ rotation
    assert np.allclose(turned @ turned.T, vectors.astype(np.float64) @ vectors.T, atol=1e-12)
    assert np.abs(turned[:, 3:]).max() < 1e-6
    cut = Variant(3, "float32", rotated=True).stored(vectors, rotation)
    assert np.allclose(cut @ cut.T, vectors @ vectors.T, atol=1e-5)
    with pytest.raises(EmbedforgeError, match="no vectors to find a rotation for"):
        principal_rotation(vectors[:0])


@pytest.mark.parametrize("has_map", [False, True])
def test_a_model_with_the_rotation_in_it_gives_the_rotated_vectors(
    tiny_model: EmbeddingModel, tmp_path: Path, has_map: bool
) -> None:
    if has_map:
        tiny_model.projection = empty_map(32, 24)
        tiny_model.projection.weight.data.normal_()
        tiny_model.projection.bias.data.normal_()
    before = embed(tiny_model.eval(), TEXTS)
    rotation = principal_rotation(before)
    rotate(tiny_model, rotation)
    assert np.allclose(embed(tiny_model, TEXTS), before @ rotation, atol=1e-5)
    save(tiny_model, tmp_path / "turned")
    stock = SentenceTransformer(str(tmp_path / "turned"), device="cpu")  # Dense is its own
    assert np.allclose(stock.encode(TEXTS[:1]), (before @ rotation)[:1], atol=1e-4)
    with pytest.raises(EmbedforgeError, match="orthogonal"):
        rotate(tiny_model, 2 * rotation)


def test_variants_compare_what_is_stored() -> None:
    vectors = unit(RNG.standard_normal((9, 16)))
    first = vectors[:, :8]
    packed = quantize(np.ascontiguousarray(first), "binary")[0]
    apart = np.unpackbits(packed[:, None] ^ packed[None], axis=2).sum(axis=2)
    stored = Variant(8, "binary").stored(vectors)
    assert np.allclose(stored @ stored.T / 8, 1 - 2 * apart / 8)
    numbers, scale = quantize(unit(first), "int8")
    assert scale is not None
    exact = numbers * scale[:, None].astype(np.float64)
    found, expected = unit(Variant(8, "int8").stored(vectors)), unit(exact)
    assert np.allclose(found @ found.T, expected @ expected.T, atol=1e-6)
    sizes = {form: Variant(64, form).bytes for form in ("float32", "float16", "int8", "binary")}
    assert sizes == {"float32": 256, "float16": 128, "int8": 64, "binary": 8}
    assert (Variant(64, "binary-int8").bytes, Variant(64, "binary-int8").searched_bytes) == (72, 8)


def test_all_lengths_by_default_and_those_that_cannot_be_are_refused() -> None:
    dims = [v.dim for v in variants_of(300, None, ["int8"], rotated=False) if v.form == "int8"]
    assert dims == [300, 144, 72, 32]
    assert not [v for v in variants_of(300, None, None, rotated=False) if "binary" in v.form and v.dim == 300]
    for dims, forms, message in [
        ([301], None, "301: the model's vectors have 300"),
        ([12], ["binary"], "multiple of 8"),
        ([8], ["int9"], "int9: there is float32.*Did you mean"),
    ]:
        with pytest.raises(EmbedforgeError, match=message):
            variants_of(300, dims, forms, rotated=False)


@pytest.mark.parametrize("form", ["binary-rescored", "binary-int8"])
def test_a_search_by_bits_hands_its_first_hits_on_to_be_rescored(form: str) -> None:
    """Against the definition in float64: Hamming distances choose, finer scores order, the rest follows."""
    documents, queries = unit(RNG.standard_normal((40, 32))), unit(RNG.standard_normal((5, 32)))
    kept = SimpleNamespace(of=lambda loader, _, role: documents if role == PromptType.document else queries)
    search = RescoredSearch(kept, Variant(32, form), candidates=10)  # type: ignore[arg-type]
    from datasets import Dataset

    def rows(count: int) -> Dataset:
        return Dataset.from_list([{"id": f"{row}", "text": "x"} for row in range(count)])

    metadata = SimpleNamespace(
        name="t", type="Retrieval", modalities=["text"], get_modalities=lambda _: ["text"]
    )
    search.index(rows(40), task_metadata=metadata)
    for k in (4, 40):
        results = search.search(rows(5), task_metadata=metadata, top_k=k)
        for number, query in enumerate(queries):
            near = np.where(query > 0, 1.0, -1.0) @ np.where(documents > 0, 1.0, -1.0).T
            order = np.argsort(-near, kind="stable")
            stored = np.where(documents > 0, 1.0, -1.0) if form == "binary-rescored" else documents
            fine = stored @ query.astype(np.float64) / np.linalg.norm(stored, axis=1)
            first = sorted(order[:10], key=lambda row: -fine[row])
            hits = results[str(number)]
            found = [int(name) for name in sorted(hits, key=lambda name: -hits[name])]
            if form == "binary-rescored":
                assert found[: min(k, 10)] == [int(row) for row in first][:k]
            else:  # rounding may swap neighbours
                assert len(set(found[:4]) & set(first[:5])) == 4
            assert set(found[10:]) == {int(row) for row in order[10:]} if k == 40 else len(found) == 4


def judged(dim: int, form: str, mean: float, low: float) -> Judged:
    return Judged(Variant(dim, form), Interval(mean, 0, 1), None, mean / 0.8, low / 0.8)  # type: ignore[arg-type]


def test_the_cheapest_that_is_good_enough_is_named() -> None:
    whole = judged(64, "float32", 0.8, 0.8)
    rows = [
        whole,
        judged(64, "int8", 0.799, 0.795),
        judged(32, "int8", 0.793, 0.7),
        judged(8, "int8", 0.5, 0.4),
    ]
    assert cheapest(rows, 1.0).variant.label == "32 x int8"
    assert cheapest(rows, 1.0, surely=True).variant.label == "64 x int8"
    assert cheapest(rows, 50.0).variant.label == "8 x int8"
    assert cheapest(rows[:1] + rows[3:], 1.0) is whole


@pytest.fixture(scope="module")
def tasks(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    for name in ("retrieval", "sts"):
        (folder / name).symlink_to(data / name)
    return folder


def test_a_curve_is_drawn_from_one_embedding_pass(
    run: Run, tasks: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedded: list[int] = []
    honest = Encoder.encode

    def counted(self: Encoder, inputs, **options):  # type: ignore[no-untyped-def]
        found = honest(self, inputs, **options)
        embedded.append(len(found))
        return found

    monkeypatch.setattr(Encoder, "encode", counted)
    (tmp_path / "texts.txt").write_text("\n".join(f"a text about the {n} rivers of {n}" for n in range(60)))
    out = tmp_path / "out"
    command = ["compress", model_folder, "--tasks", tasks, "--out", out, "--device", "cpu"]
    command += ["--rotate", tmp_path / "texts.txt", "--forms", "float32,binary-rescored"]
    code, said, error = run(*command, "--dims", "32", "--save-rotated", tmp_path / "turned")
    assert code == 0, error
    assert "rotated 32 x binary-rescored" in said
    assert "The cheapest within 1 per cent" in said or "No variant with fewer bytes" in said
    once = list(embedded)
    results = read_json(out / "results.json")
    rows = {row["label"]: row for row in results["variants"]}
    assert next(iter(rows)) == "32 x float32"
    assert len(rows) == 3
    code, _, error = run(*command, "--dims", "32,16")
    assert code == 0, error
    assert embedded == once  # all from the same vectors
    assert len(read_json(out / "results.json")["variants"]) == 7
    assert "<svg" in (out / "report.html").read_text()
    vectors = embedding_model(load(str(tmp_path / "turned"), device="cpu"))
    assert vectors.projection is not None
    own = evaluate([str(model_folder)], str(tasks), tmp_path / "own", device="cpu")
    whole = rows["32 x float32"]["tasks"]
    assert whole == {name: own.score(own.models[0], name) for name in whole}


def test_kept_vectors_are_read_from_the_disk(model_folder: Path, tmp_path: Path) -> None:
    encoder = Encoder(str(model_folder), device="cpu")
    texts = ["one text", "another"]
    first = KeptVectors(encoder, tmp_path, {"model": "a"}).of_texts(texts)
    encoder.encode = None  # type: ignore[method-assign]
    assert np.array_equal(KeptVectors(encoder, tmp_path, {"model": "a"}).of_texts(texts), first)
    with pytest.raises(TypeError):
        KeptVectors(encoder, tmp_path, {"model": "b"}).of_texts(texts)


def test_what_cannot_be_is_said_before_anything_is_done(run: Run, tasks: Path, model_folder: Path) -> None:
    command = ["compress", model_folder, "--tasks", tasks]
    for extra, message in [
        (["--save-rotated", "x"], "needs a rotation"),
        (["--dims", "a"], "--dims takes whole numbers"),
        (["--rotate", "nothing.txt"], "nothing.txt"),
    ]:
        code, _, error = run(*command, *extra)
        assert code == 1
        assert message in error
