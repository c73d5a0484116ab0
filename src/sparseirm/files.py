"""Files that are never half-written and say when they were damaged: JSON and safetensors, no pickle."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import tempfile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save

from sparseirm.core import SettingError, Tensors


class DamagedFileError(SettingError):
    """A file whose content is not what was written."""


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file or nothing: to a neighbour first, flushed to disk, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


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
        DamagedFileError: if it is not JSON, or its checksum is missing or wrong.
        OSError: if the file does not exist or cannot be read.
    """
    try:
        payload = json.loads(path.read_bytes())
        intact = payload.pop("sha256") == digest(canonical(payload).encode())
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise _damaged(path, f"it is not a JSON object with a checksum ({error})") from None
    if not intact:
        raise _damaged(path, "its checksum does not match its content")
    return dict(payload)


def write_tensors(path: Path, tensors: Tensors, note: dict[str, Any]) -> None:
    """Write tensors and a JSON note as one safetensors file with a checksum of both.

    Args:
        path: the file; one that exists is replaced, folders that are missing are made.
        tensors: tensors by name, on any device.
        note: plain data.

    Raises:
        ValueError: if the note holds NaN or infinity.
        TypeError: if it holds something that is not plain data.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = canonical(note)
    _, rest = _apart(save(plain))
    write_bytes(path, save(plain, {"note": text, "sha256": digest(text.encode() + rest)}))


def read_tensors(path: Path) -> tuple[Tensors, dict[str, Any]]:
    """Read what `write_tensors` wrote.

    Args:
        path: the file.

    Returns:
        The tensors by name, on the CPU, and the note.

    Raises:
        DamagedFileError: if the file is not safetensors, or its checksum is missing or wrong.
        OSError: if the file does not exist or cannot be read.
    """
    content = path.read_bytes()
    try:
        tensors = load(content)
        meta, rest = _apart(content)
        intact = meta["sha256"] == digest(meta["note"].encode() + rest)
        note = json.loads(meta["note"])
    except (SafetensorError, ValueError, KeyError, TypeError, struct.error) as error:
        raise _damaged(path, f"it is not a safetensors file with a checksum ({error})") from None
    if not intact:
        raise _damaged(path, "its checksum does not match its content")
    return tensors, note


def _apart(content: bytes) -> tuple[dict[str, str], bytes]:
    """Metadata of a safetensors file; and names, types, shapes and bytes of its tensors."""
    end = 8 + struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8:end])
    return header.pop("__metadata__", {}), canonical(header).encode() + content[end:]


def _damaged(path: Path, why: str) -> DamagedFileError:
    return DamagedFileError(f"{path} is damaged: {why}. Delete it and run the same command again.")
