"""Put the tables of benchmarks into a page, each between `<!-- begin NAME -->` and `<!-- end NAME -->`.

    python benchmarks/page.py docs/performance.md avx2/memory
    python benchmarks/page.py docs/performance-training.md avx2/train_kinds avx512_bf16/latent

NAME is that of a run's `benchmarks/results/NAME.md`, the kind of processor first.
"""

from __future__ import annotations

import sys
from pathlib import Path

from common import RESULTS

sys.path.append(str(Path(__file__).parent.parent / "scripts"))
from sections import replace_section

ABOUT = ("command", "date", "threads", "torch")
"""What of the line below a table is told; the rest is in the JSON."""


def main() -> None:
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    page, *names = sys.argv[1:]
    for name in names:
        file = RESULTS / f"{name}.md"
        if not file.exists():
            sys.exit(f"{file}: there is no such result; run the benchmark first")
        table, _, about = file.read_text(encoding="utf-8").strip().partition("\n\n")
        told = dict(part.partition(" ")[::2] for part in about.split(", ") if " " in part)
        made = ", ".join(f"{key} {told[key]}" for key in ABOUT if key in told)
        replace_section(Path(page), name, f"\n{table}\n\nMade by: {made}.\n")


if __name__ == "__main__":
    main()
