"""ONNX and OpenVINO: the model as a graph, in float32 or with weights in 8 bits, and what reads it."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

from embedforge.errors import EmbedforgeError
from embedforge.export import embed as reader
from embedforge.export.embed import Embedder
from embedforge.export.graph import write_onnx
from embedforge.export.parity import Floats, Parity, Reference
from embedforge.export.texts import Probe
from embedforge.model.embedding_model import EmbeddingModel

ROUNDS = 3
"""So often float32 and int8 are timed, in turn; the best time of each counts."""

USE = """`embed.py` beside this file runs it, and needs no more than `pip install numpy tokenizers {package}`:

```python
from embed import Embedder

model = Embedder(".")
queries = model.encode(["which river is the longest?"], "query")
documents = model.encode(["The Nile is 6,650 km long."])
print(queries @ documents.T)
```

The graph takes `input_ids`, `attention_mask` and `pooling_mask` (1 where a token enters the vector), int64
[texts, tokens], and gives `sentence_embedding`, float32 [texts, dim]: pooling is inside. A program that
brings its own tokenization has to make that mask as `embed.py` does."""


class _Files:
    """An exported folder under the reader that it holds a copy of."""

    def __init__(self, folder: Path) -> None:
        self.embedder = Embedder(folder)

    def tokens(self, probe: Probe) -> tuple[list[int], list[int] | None]:
        frame = self.embedder.frame(probe.kind)
        ids, mask, _ = self.embedder.render([probe.text], *frame)[0]
        return ids, mask

    def vectors(self, probes: Sequence[Probe]) -> Floats:
        rendered = [
            self.embedder.render([probe.text], *self.embedder.frame(probe.kind))[0] for probe in probes
        ]
        return self.embedder.embed(rendered)


def obstacle(model: EmbeddingModel) -> str | None:
    """Say what of a contract `embed.py` does not do; None when it does all."""
    limit = model.contract.text_max_tokens
    if limit is not None:
        return (
            f"its texts are shortened to {limit} tokens by whole words (text_max_tokens), which the reader "
            "of an exported file does not do; embedforge serve does"
        )
    return None


def write(
    form: str, model: EmbeddingModel, folder: Path, reference: Reference, int8: bool, least: float
) -> Sequence[Parity]:
    """Write graph, tokenizer, contract and reader into `folder`, checked; the last row is what stays."""
    model.tokenizer.save_pretrained(folder)
    model.contract.save(folder)
    shutil.copyfile(str(reader.__file__), folder / "embed.py")
    files = _openvino_files if form == "openvino" else _onnx_files
    return files(model, folder, reference, int8, least)


def _onnx_files(
    model: EmbeddingModel, folder: Path, reference: Reference, int8: bool, least: float
) -> Sequence[Parity]:
    file = folder / "model.onnx"
    write_onnx(model, file)
    exact = reference.compare("onnxruntime, float32", _Files(folder))
    if not int8:
        reference.require(exact, least)
        return [exact]
    _quantize_onnx(file)
    rounded = reference.compare("onnxruntime, int8", _Files(folder))
    reference.require(rounded, least)
    return [exact, rounded]


def _quantize_onnx(file: Path) -> None:
    """Put the weights of a graph into 8 bits, a scale a channel; activations are rounded as they come.

    Unsigned weights: with signed ones, sums of products overflow 16 bits on CPUs without VNNI (AVX2).
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    float_file = file.with_name("float32.onnx")
    data = file.with_name(f"{file.name}.data")
    large = data.exists()
    if not large:
        file.rename(float_file)
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)  # of a step of preparation, which changes nothing here
    try:
        quantize_dynamic(
            file if large else float_file,
            file.with_name("int8.onnx"),
            weight_type=QuantType.QUInt8,
            per_channel=True,
            use_external_data_format=large,
        )
    finally:
        logging.disable(disabled)
    for old in (file, float_file, data):
        old.unlink(missing_ok=True)
    if not large:
        file.with_name("int8.onnx").rename(file)
        return
    _rename_external(file.with_name("int8.onnx"), file)


def _rename_external(source: Path, file: Path) -> None:
    """Give a graph whose weights lie beside it another name, and them too."""
    import onnx

    graph = onnx.load(str(source))
    onnx.save_model(graph, str(file), save_as_external_data=True, location=f"{file.name}.data")
    for old in source.parent.glob(f"{source.name}*"):
        old.unlink()


def _openvino_files(
    model: EmbeddingModel, folder: Path, reference: Reference, int8: bool, least: float
) -> Sequence[Parity]:
    import openvino

    onnx_file = folder / "float32.onnx"
    write_onnx(model, onnx_file)
    graph = openvino.convert_model(str(onnx_file))
    xml = folder / "model.xml"
    # Half the bytes, in float16, would be other vectors in the float32 of the computation.
    openvino.save_model(graph, str(xml), compress_to_fp16=False)
    exact = reference.compare("openvino, float32", _Files(folder))
    if not int8:
        reference.require(exact, least)
        rows = [exact]
    else:
        rows = _openvino_int8(xml, reference, exact, least)
    del graph  # it has the ONNX file's weights mapped
    for old in folder.glob("float32.onnx*"):
        old.unlink()
    return rows


def _openvino_int8(xml: Path, reference: Reference, exact: Parity, least: float) -> list[Parity]:
    """Put the weights into 8 bits, and refuse that where it is no faster.

    Raises:
        EmbedforgeError: it is slower here than float32; or over the tolerance.
    """
    import nncf
    import openvino

    folder = xml.parent
    plain = _Files(folder)
    graph = openvino.Core().read_model(str(xml))
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        graph = nncf.compress_weights(graph, mode=nncf.CompressWeightsMode.INT8_ASYM)
    finally:
        logging.disable(disabled)
    openvino.save_model(graph, str(folder / "int8.xml"), compress_to_fp16=False)
    del graph
    for suffix in (".xml", ".bin"):
        (folder / f"model{suffix}").unlink()
        (folder / f"int8{suffix}").rename(folder / f"model{suffix}")
    small = _Files(folder)
    rounded = reference.compare("openvino, int8", small)
    reference.require(rounded, least)
    rows = [exact, rounded]
    for _ in range(ROUNDS - 1):
        again = (reference.compare(exact.name, plain), reference.compare(rounded.name, small))
        rows = [max(pair, key=lambda row: row.tokens_per_second) for pair in zip(rows, again, strict=True)]
    speeds = [row.tokens_per_second for row in rows]
    if speeds[1] <= speeds[0]:
        raise EmbedforgeError(
            f"--to openvino --int8: here int8 is not faster than float32 ({speeds[1]:,.0f} and "
            f"{speeds[0]:,.0f} tokens a second, the best of {ROUNDS}); nothing was written. Leave out "
            "--int8, or export on the machine that it is for"
        )
    return rows
