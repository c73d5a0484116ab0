"""Files that are never half-written and say when they were damaged: JSON and safetensors, no pickle."""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load, save
from typeguard import CollectionCheckStrategy, TypeCheckError, check_type

from sparseirm.core import SettingError, Tensors

MOST_JSON = 1 << 28
"""Bytes of the largest JSON file that is read; a result takes a few thousand."""

_NOT_OURS = (
    *(SafetensorError, struct.error, RuntimeError, RecursionError, OverflowError, MemoryError),
    *(ValueError, KeyError, TypeError, AttributeError),
)
"""Errors of reading something else as safetensors."""


class DamagedFileError(SettingError):
    """A file whose content is not what was written."""


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file or nothing: to a neighbour first, flushed to disk, then renamed.

    Args:
        path: the file; one that exists is replaced, folders that are missing are made. Who may read it is up
            to the user's umask.
        content: all of it.

    Raises:
        SettingError: if the disk is full or the folder cannot be written to; an older file stays as it was.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("xb") as file:  # readable for whom the user's umask allows, as mkstemp's would not be
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException as error:
        with suppress(OSError):
            part.unlink()
        if isinstance(error, OSError):
            raise SettingError(
                f"{path} cannot be written ({error.strerror or error}); what was there before is intact. "
                "Make room or choose another folder, and run the same command again."
            ) from error
        raise


def writable(folder: Path) -> None:
    """Make an output folder if it is missing, and see that files can be written to it.

    Args:
        folder: the folder.

    Raises:
        SettingError: if they cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise SettingError(
            f"`out` {str(folder)!r} cannot be written to ({error}); choose another folder."
        ) from None


def parts(path: Path) -> Iterator[Path]:
    """What processes that were killed while writing ``path`` left behind; the name ``*`` is any."""
    yield from path.parent.glob(f".{path.name}.{'[0-9a-f]' * 16}.part")


def remove_parts(path: Path) -> None:
    """Remove what a process that was killed while writing ``path`` left behind; only under a lock."""
    for part in parts(path):
        part.unlink(missing_ok=True)


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Hold a lock file, which dies with its process; folders that are missing are made.

    Args:
        path: the lock file.

    Yields:
        bool: True while this process holds it; False, at once, if another process does.

    Raises:
        OSError: if the file cannot be made.
    """
    lock = FileLock(path)
    while not lock.is_locked:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except FileNotFoundError:
            continue  # its holder has just finished, and removed the folder
        except Timeout:
            yield False
            return
    try:
        yield True
    finally:
        lock.release()


def is_locked(path: Path) -> bool:
    """Whether another process holds a lock file (see `locked`) at this moment; nothing is made."""
    try:
        with FileLock(path, timeout=0) if path.exists() else nullcontext():
            return False
    except FileNotFoundError:
        return False  # its holder has just finished, and removed the folder
    except Timeout:
        return True


def digest(content: bytes) -> str:
    """SHA-256 in hexadecimal.

    >>> digest(b"")[:8]
    'e3b0c442'
    """
    return hashlib.sha256(content).hexdigest()


def canonical(payload: Any) -> str:
    """JSON in one form only: keys sorted, no spaces; what hashes and checksums are taken of.

    >>> canonical({"b": 1, "a": (0.5,)})
    '{"a":[0.5],"b":1}'
    """
    return json.dumps(payload, sort_keys=True, separators=(",", ":"), allow_nan=False)


def plain(value: Any) -> Any:
    """Anything as JSON has words for.

    Args:
        value: dictionaries, lists, tuples, arrays and numbers, within each other.

    Returns:
        The same with text as keys, lists for tuples and arrays, Python's numbers for numpy's, and None for
        numbers that are not finite.

    Example:
        >>> plain({1: (np.arange(2), np.float32(0.5)), "b": float("nan")})
        {'1': [[0, 1], 0.5], 'b': None}
    """
    if isinstance(value, dict):
        return {str(name): plain(part) for name, part in value.items()}
    if isinstance(value, (np.ndarray, np.generic)):
        return plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, payload: dict[str, Any]) -> None:
    """Write JSON, a line for each key, with a checksum of its own content under ``sha256``.

    Args:
        path: the file; one that exists is replaced, folders that are missing are made.
        payload: plain data without a key ``sha256``; tuples come back as lists.

    Raises:
        ValueError: if the payload holds NaN or infinity, which JSON has no words for.
        TypeError: if it holds something that is not plain data.
    """
    plain = json.loads(canonical(payload))
    sealed = {**plain, "sha256": digest(canonical(plain).encode())}
    lines = [f"{json.dumps(name)}: {json.dumps(value, allow_nan=False)}" for name, value in sealed.items()]
    write_bytes(path, ("{\n" + ",\n".join(lines) + "\n}\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Read what `write_json` wrote.

    Args:
        path: the file.

    Returns:
        The payload, without its checksum.

    Raises:
        DamagedFileError: if it is not JSON, its checksum is missing or wrong, or it exceeds `MOST_JSON`.
        OSError: if the file does not exist or cannot be read.
    """
    if path.stat().st_size > MOST_JSON:
        raise _damaged(path, f"it is larger than {MOST_JSON} bytes")
    try:
        payload = json.loads(path.read_bytes())
        intact = payload.pop("sha256") == digest(canonical(payload).encode())
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise _damaged(path, f"it is not a JSON object with a checksum ({error})") from None
    if not intact:
        raise _damaged(path, "its checksum does not match its content")
    return dict(payload)


def write_tensors(path: Path, tensors: Tensors, note: dict[str, Any]) -> None:
    """Write tensors and a JSON note as one safetensors file with a checksum of both; same values, same bytes.

    Args:
        path: the file; one that exists is replaced, folders that are missing are made.
        tensors: tensors by name, on any device.
        note: plain data.

    Raises:
        ValueError: if the note holds NaN or infinity.
        TypeError: if it holds something that is not plain data.
    """
    content = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    text, (_, rest) = canonical(note), _apart(content)
    meta = {"note": text, "sha256": digest(text.encode() + rest)}
    end = _end_of_header(content)  # written here, because safetensors puts its metadata in random order
    header = json.dumps({"__metadata__": meta, **json.loads(content[8:end])}).encode()
    header += b" " * (-len(header) % 8)
    write_bytes(path, struct.pack("<Q", len(header)) + header + content[end:])


def read_tensors(path: Path) -> tuple[Tensors, dict[str, Any]]:
    """Read what `write_tensors` wrote.

    Args:
        path: the file.

    Returns:
        The tensors by name, on the CPU, and the note.

    Raises:
        DamagedFileError: if the file is not safetensors, its checksum is missing or wrong, or its note is no
            object.
        OSError: if the file does not exist or cannot be read.
    """
    content = path.read_bytes()
    try:
        meta, rest = _apart(content)
        intact = meta["sha256"] == digest(meta["note"].encode() + rest)
        note = {**json.loads(meta["note"])}
        tensors = load(content) if intact else {}
    except _NOT_OURS as error:
        raise _damaged(path, f"it is not a safetensors file with a checksum ({error})") from None
    if not intact:
        raise _damaged(path, "its checksum does not match its content")
    return tensors, note


def check_types(thing: Any) -> None:
    """Refuse a dataclass made of a file's content if a value is not of the type its field says.

    Args:
        thing: an instance of a dataclass; dataclasses inside it are not looked into.

    Raises:
        SettingError: naming the first such field.

    Example:
        >>> from sparseirm.core import Layout
        >>> check_types(Layout(("a", 3), ()))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        sparseirm.core.SettingError: `names` of a Layout is of the wrong type: item 1 of tuple is not ...
    """
    hints = get_type_hints(type(thing))
    for field in fields(thing):
        try:
            check_type(
                getattr(thing, field.name),
                hints[field.name],
                collection_check_strategy=CollectionCheckStrategy.ALL_ITEMS,
            )
        except TypeCheckError as error:
            raise SettingError(
                f"`{field.name}` of a {type(thing).__name__} is of the wrong type: {error}."
            ) from None


def _apart(content: bytes) -> tuple[dict[str, str], bytes]:
    """Metadata of a safetensors file; and names, types, shapes and bytes of its tensors."""
    end = _end_of_header(content)
    header = json.loads(content[8:end])
    return header.pop("__metadata__", {}), canonical(header).encode() + content[end:]


def _end_of_header(content: bytes) -> int:
    return 8 + int(struct.unpack("<Q", content[:8])[0])


def _damaged(path: Path, why: str) -> DamagedFileError:
    return DamagedFileError(f"{path} is damaged: {why}. Delete it and run the same command again.")
