"""Writing that never leaves half a file: a temporary name beside the target, then a rename."""

from __future__ import annotations

import contextlib
import functools
import glob
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from embedforge.bounds import MOST_JSON_BYTES, require_plain
from embedforge.errors import EmbedforgeError
from embedforge.parse import RepeatedKeyError, parse_json

logger = logging.getLogger(__name__)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` in one step: readers see the old file or the new one, never a part."""
    with replace_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON in one step."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a row a line as JSON, in one step."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def hash_of(value: object) -> str:
    """Return a short hash of what JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


def read_json(path: Path) -> Any:
    """Read a JSON file; a missing or broken one, or a key given twice, is an error with file and line."""
    require_plain(path, MOST_JSON_BYTES)
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise EmbedforgeError(f"{path}: there is no such file") from None
    except OSError as error:
        raise EmbedforgeError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise EmbedforgeError(f"{path}: not JSON, byte {error.start} is not valid UTF-8") from None
    except json.JSONDecodeError as error:
        raise EmbedforgeError(f"{path}, line {error.lineno}: not valid JSON ({error.msg})") from None
    except RepeatedKeyError as error:
        raise EmbedforgeError(f"{path}, line {error.line}: {error}") from None


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object, as `read_json` does."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise EmbedforgeError(f"{path}: must hold a JSON object, found {value!r:.60}")
    return value


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write NumPy arrays to an .npz file in one step."""
    import numpy as np  # of no use to the commands that read text only

    with replace_file(path) as partial, partial.open("wb") as file:  # savez adds an ending to a name
        np.savez(file, allow_pickle=False, **arrays)


def follow_umask(path: Path) -> None:
    """Give a file or folder, and all in it, the permissions that the umask asks for.

    What is written by way of a temporary file, as safetensors does, is otherwise the user's alone.
    """
    umask = os.umask(0o077)
    os.umask(umask)
    for item in (path, *path.rglob("*")):
        item.chmod((0o777 if item.is_dir() else 0o666) & ~umask)


def refuse_file(path: Path) -> None:
    """Raise an `EmbedforgeError` if `path`, where a folder is to be written, is something else or no path."""
    if "\0" in str(path):
        raise EmbedforgeError(f"{str(path)!r}: no path can hold this character; name another folder")
    if path.exists() and not path.is_dir():
        raise EmbedforgeError(f"{path}: this is a file, a folder is to be written here; name another one")
    above = next(place for place in (path, *path.parents) if place.exists() or place.is_symlink())
    if not above.is_dir():
        state = "a file" if above.exists() else "a link to nothing, or to itself"
        raise EmbedforgeError(f"{path}: {above} is {state}, and a folder is to be written here; name another")


@contextlib.contextmanager
def replace_file(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yield the path of a file to write beside `path`; on success it takes `path`'s place, else it vanishes.

    What a killed process has left of an attempt at the same file is removed. `durable`: file and name are on
    the disk, not only in the system's memory, when this returns; no power cut takes them back.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with naming(path):
            yield partial
            if durable:
                _sync(partial)
            partial.replace(path)
            if durable:
                _sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    if os.name != "posix" and path.is_dir():  # Windows opens no folder
        return
    handle = os.open(path, os.O_RDWR if os.name != "posix" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def lock_file(file: IO[Any], *, wait: bool = False) -> bool:
    """Lock an open file for this process; False if another one has it.

    The system keeps the lock and lets it go when the file is closed or the process ends, however that
    happens: there is no stale one to wait for. It holds between machines where their shared folder supports
    locks (NFS 4, Lustre with -o flock). Windows has none of this kind: there the lock is everybody's.

    Args:
        file: open for writing.
        wait: until the other process lets it go.

    Raises:
        OSError: no locks in this file system.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def try_lock(path: Path, holder: str = "") -> Iterator[bool]:
    """Hold the lock file `path` while inside, and yield True; or yield False if another process holds it.

    See `lock_file`; where the file system has no locks, a warning says so, and the lock is everybody's. The
    file is there only while it is held.

    Args:
        path: of the lock file; its folder is made if it is not there.
        holder: is written into it, for those who find it held.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        while True:
            try:
                file = stack.enter_context(path.open("a+b", buffering=0))
            except FileNotFoundError:  # the folder was cleared up at this moment, so all is done
                yield False
                return
            try:
                if not lock_file(file):
                    yield False
                    return
            except OSError as error:
                _warn_of_no_locks(path.parent, error.strerror)
                break
            if _is_file_at(file.fileno(), path):
                break  # else its last holder took it away between our two calls
        with contextlib.suppress(OSError):  # of a full disk: whatever is written next will name it
            file.truncate(0)
            file.write(holder.encode())
        stack.callback(_remove_lock, file, path)
        yield True


def _remove_lock(file: IO[bytes], path: Path) -> None:
    """Remove a lock's file while it is held; Windows, without locks, removes none that is open."""
    if os.name != "posix":
        file.close()
    with contextlib.suppress(OSError):
        path.unlink()


@functools.cache
def _warn_of_no_locks(folder: Path, reason: str) -> None:
    logger.warning(
        "%s: no locks on this file system (%s): nothing keeps a second process out", folder, reason
    )


def _is_file_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name the file in an error of the system that names none, as that of a full disk does not."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


@contextlib.contextmanager
def whole_or_nothing(folder: Path) -> Iterator[None]:
    """Say of a folder that `replace_folder` could not write that nothing was changed, and what to do.

    Raises:
        EmbedforgeError: the disk is full, or another error of the system, which safetensors and tokenizers
            put into errors of their own, with the system's number in their text.
    """
    try:
        yield
    except Exception as error:
        if not (isinstance(error, OSError) or "(os error " in str(error)):
            raise
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise EmbedforgeError(
            f"{folder}: could not be written, nothing was changed ({reason}). What was there before is as it "
            "was; make room, and run the same command again"
        ) from error


@contextlib.contextmanager
def replace_folder(path: Path, marker: str) -> Iterator[Path]:
    """Yield an empty folder beside `path`; on success it takes `path`'s place, on failure it vanishes.

    A full disk or a crash while writing therefore leaves an older folder at `path` untouched; what a killed
    process has left is removed at the next attempt. Only a folder that is empty or holds the file `marker`,
    as the new one will, is replaced: no other was ours to delete.

    Raises:
        EmbedforgeError: there is a file at `path`, or a folder with something else in it.
    """
    path = path.resolve()  # What a link points to is replaced, not the link.
    refuse_file(path)
    if path.exists() and any(path.iterdir()) and not (path / marker).exists():
        raise EmbedforgeError(
            f"{path}: this folder holds something else, there is no {marker} in it; name a new or empty one"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path)
    partial = Path(
        tempfile.mkdtemp(prefix=f".{path.name}.", suffix=f".{os.getpid()}.partial", dir=path.parent)
    )
    try:
        with naming(path):
            yield partial
        follow_umask(partial)
        if path.exists():
            old = partial.with_suffix(".old")
            path.rename(old)
            try:
                partial.rename(path)
            except OSError:
                old.rename(path)
                raise
            shutil.rmtree(old)
        else:
            partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _sweep(path: Path) -> None:
    """Clear up after processes that were killed while they replaced `path`.

    A folder is set aside (`.old`) for the moment in which the new one takes its place: killed there, the
    process has left none at `path`, and the old one goes back.
    """
    for left in path.parent.glob(f".{glob.escape(path.name)}.*"):
        parts = left.name.removeprefix(f".{path.name}.").split(".")  # of a folder with what mkdtemp drew
        if len(parts) not in (2, 3) or parts[-1] not in ("partial", "old"):  # more: the name goes on
            continue
        if not parts[-2].isdecimal() or _is_alive(int(parts[-2])):
            continue
        if parts[-1] == "old" and not path.exists():
            left.rename(path)
        elif left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    if os.name != "posix":  # signal 0 asks there only
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's; or no process number at all
        return True
    return True
