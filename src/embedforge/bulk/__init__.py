"""`embedforge encode`: the texts of large files as files of vectors, by any number of processes.

Read `manifest.py` first (what the shards are), then `shard.py` (one of them, from rows to a file), then
`run.py` (which process does which). `ray_engine.py` hands the same shards to Ray.
"""

from embedforge.bulk.run import encode_files
from embedforge.bulk.settings import EncodeSettings

__all__ = ["EncodeSettings", "encode_files"]
