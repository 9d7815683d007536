"""Encoding against sentence-transformers at its best: the same weights, texts and precision, in turns.

    python benchmarks/encode.py                              # the bundled decoder, 300 passages
    python benchmarks/encode.py --model smollm2-135m --passages 40
    python benchmarks/encode.py --int8                       # and the same model with int8 weights
    python benchmarks/encode.py --openvino                   # and the exported int8 graph

sentence-transformers is first tried with every batch size from 1 to 64 in the dtype that is native here
(bfloat16 with AVX512-BF16 or AMX, else float32), and with some in the other, on a part of the texts; the
two fastest take part in the rounds, and the faster one is what is compared with. Least cosines: with its
float32 vectors.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import Entry, clock, gemm_peak, measure, native_dtype, peak_of, report
from texts import passages

BATCHES = (1, 2, 4, 8, 16, 32, 64)
GEMM, OURS, BYTES, PLAIN = "gemm", "embedforge", "embedforge int8", "default"
GRAPH = "openvino int8"


# --- competitors, each in a process of its own ----------------------------------------------------------


def embedforge(folder: str, texts: Sequence[str]) -> Callable[[], np.ndarray]:
    import embedforge as package
    from embedforge.model.encoder import embedding_model

    model = embedding_model(package.load(folder, device="cpu"))
    return lambda: package.encode(model, texts)


def sentence_transformers(folder: str, texts: Sequence[str], dtype: str, batch: int) -> Callable[[], Any]:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(folder, device="cpu", model_kwargs={"dtype": dtype})
    return lambda: model.encode(texts, batch_size=batch, show_progress_bar=False)


def peer_of(folder: Path, texts: Sequence[str], setting: str) -> Entry:
    """Return a setting of the sweep as an entry of its name."""
    dtype, batch = setting.split()
    return Entry(setting, sentence_transformers, (str(folder), texts, dtype, int(batch)))


def openvino(folder: str, texts: Sequence[str]) -> Callable[[], Any]:
    from embedforge.export.embed import Embedder

    model = Embedder(folder)
    return lambda: model.encode(texts, batch_size=8)


# --- the benchmark --------------------------------------------------------------------------------------


def prepare(base: str, folder: Path) -> Path:
    """Save the decoder with mean pooling in a folder that both sides read."""
    import embedforge as package

    contract = package.Contract(pooling="mean", max_tokens=512, dtype="bfloat16")
    package.save(package.build(base=base, contract=contract), folder / "model")
    return folder / "model"


def work_of(folder: Path, texts: Sequence[str]) -> tuple[int, float]:
    """Tokens of the texts, and operations of a token in the decoder's products, attention not counted."""
    import embedforge as package
    from embedforge.model.encoder import embedding_model

    model = embedding_model(package.load(folder, device="cpu"))
    tokens = sum(len(text.input_ids) for text in model.renderer.render(texts))
    sizes = [p.numel() for p in model.decoder.layers.parameters() if p.dim() == 2]
    return tokens, 2.0 * sum(sizes)


def best_settings(folder: Path, texts: Sequence[str], threads: int | None) -> list[str]:
    """The two settings of sentence-transformers that are fastest on these texts, best of two tries each."""
    entry = Entry("sweep", sweep, (str(folder), texts))
    values = measure([entry], rounds=2, warm_up=0, threads=threads)["sweep"].values
    return sorted(values[0], key=lambda name: min(seconds[name] for seconds in values))[:2]


def sweep(folder: str, texts: Sequence[str]) -> Callable[[], dict[str, float]]:
    """Return what times every setting once, seconds by "dtype batch"."""
    native = native_dtype()
    other = "float32" if native == "bfloat16" else "bfloat16"
    runs = {
        f"{dtype} {batch}": sentence_transformers(folder, texts, dtype, batch)
        for dtype, batches in ((native, BATCHES), (other, (8, 32)))
        for batch in batches
    }

    def seconds(run: Callable[[], Any]) -> float:
        start = clock()
        run()
        return clock() - start

    return lambda: {name: seconds(run) for name, run in runs.items()}


def cosine(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float((ours * theirs).sum(axis=1).min())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="embedforge:base", help="a decoder")
    parser.add_argument("--passages", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, help="with one, the clock is the processor's")
    parser.add_argument("--peer", help="a setting found before (bfloat16:8), instead of the sweep")
    parser.add_argument("--int8", action="store_true", help="also embedforge compress weights --int8")
    parser.add_argument("--openvino", action="store_true", help="also embedforge export --to openvino --int8")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        folder = prepare(arguments.model, Path(work))
        texts = passages(arguments.passages)
        tokens, operations = work_of(folder, texts)
        if arguments.peer:
            settings = [arguments.peer.replace(":", " ")]
        else:
            settings = best_settings(folder, texts[: max(16, len(texts) // 6)], arguments.threads)
        entries = [
            Entry(GEMM, gemm_peak),
            Entry(OURS, embedforge, (str(folder), texts)),
            *(peer_of(folder, texts, setting) for setting in settings),
            Entry(PLAIN, sentence_transformers, (str(folder), texts, "float32", 32)),
        ]
        if arguments.int8:
            command = ["compress", "weights", str(folder), "--int8", "--out", str(Path(work) / "int8")]
            subprocess.run([sys.executable, "-m", "embedforge", *command], check=True)
            entries.insert(2, Entry(BYTES, embedforge, (str(Path(work) / "int8" / "model"), texts)))
        if arguments.openvino:
            graph = Path(work) / "openvino"
            command = ["export", str(folder), str(graph), "--to", "openvino", "--int8"]
            subprocess.run([sys.executable, "-m", "embedforge", *command], check=True)
            entries.append(Entry(GRAPH, openvino, (str(graph), texts)))
        timings = measure(entries, arguments.rounds, threads=arguments.threads)
    peak, exact = peak_of(timings[GEMM]), timings[PLAIN].values[0]
    told = "given" if arguments.peer else "its best"
    best = min(settings, key=lambda setting: timings[setting].median)
    names = {
        OURS: f"embedforge, {native_dtype()}",
        BYTES: "embedforge compress weights --int8",
        GRAPH: "embedforge export, OpenVINO int8",
        best: f"sentence-transformers, {best.replace(' ', ', batch ')} ({told})",
        PLAIN: "sentence-transformers, float32, batch 32 (its default)",
    }
    rows = []
    for key, name in names.items():
        if key not in timings:
            continue
        timing = timings[key]
        turns = zip(timings[best].seconds, timing.seconds, strict=True)
        ratios = [peer / own for peer, own in turns]
        rows.append(
            {
                "what": name,
                "tokens/s": tokens / timing.median,
                "times its best": statistics.median(ratios),
                "of the GEMM peak": f"{operations * tokens / timing.median / peak / 1e12:.0%}",
                "least cosine": f"{cosine(timing.values[0], exact):.4f}",
            }
        )
    name = f"encode-{arguments.model.rpartition(':')[2]}"
    about = {
        "model": arguments.model,
        "passages": len(texts),
        "tokens": tokens,
        "peak TFLOP/s": round(peak, 3),
        "threads": arguments.threads,
    }
    report(name, rows, timings, **about)


if __name__ == "__main__":
    main()
