"""What a checkpoint's file declares, held against its bytes before any library reads it.

Neither the restricted unpickler of PyTorch nor the reader of safetensors runs code, but a small
file can have both take all the memory, or minutes. So pickles are read once with stand-ins in
place of tensors, which add up what is asked for.
"""

from __future__ import annotations

import json
import math
import pickle
import pickletools
import struct
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from io import BytesIO
from typing import IO, Any

FILE_BYTES = 8 * 2**30
"""Larger checkpoints are not read."""
_PICKLE_BYTES = 32 * 2**20
_HEADER_BYTES = 4 * 2**20  # of safetensors: about 40,000 tensors
_STEPS = 10**6  # of a pickle; the largest networks with an optimizer take half
_TENSORS = 20_000
_PARTS = 50_000  # of a zip file
_SIDES = 16  # of a tensor

_OPCODES = frozenset(
    (
        *("PROTO", "STOP", "MARK", "GLOBAL", "REDUCE", "BUILD", "BINPERSID", "NONE", "NEWTRUE"),
        *("NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"),
        *("SHORT_BINSTRING", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST"),
        *("APPEND", "APPENDS", "EMPTY_DICT", "SETITEM", "SETITEMS", "EMPTY_SET", "BINGET"),
        *("LONG_BINGET", "BINPUT", "LONG_BINPUT"),
    )
)
"""Of protocol 2, which is what PyTorch writes and reads."""
_ELEMENT_BYTES = {
    **dict.fromkeys(("Byte", "Char", "Bool"), 1),
    **dict.fromkeys(("Short", "Half", "BFloat16"), 2),
    **dict.fromkeys(("Int", "Float"), 4),
    **dict.fromkeys(("Long", "Double", "ComplexFloat"), 8),
    "ComplexDouble": 16,
}
_DTYPES = frozenset(
    (
        *("float16", "bfloat16", "float32", "float64", "complex64", "complex128"),
        *("uint8", "int8", "int16", "int32", "int64", "bool"),
    )
)


def check_zip(file: IO[bytes], size: int) -> None:
    """Check a file as `torch.save` writes it: a ZIP archive of a pickle and raw storages.

    Args:
        file: open for reading.
        size: its bytes.

    Raises:
        ValueError: it declares what it has not, or that it is to be unpacked.
        Exception: whatever `zipfile` and `pickle` raise of a damaged one.
    """
    file.seek(max(0, size - 98))
    end = file.read()
    if size < 22 or end[-22:-18] != b"PK\5\6" or end[-2:] != b"\0\0":
        raise ValueError("it does not end as a ZIP archive of torch.save")
    # PyTorch and Python look for the directory each in its way: there must be one place alone.
    place = size - 22
    n_parts, n_bytes, start = struct.unpack("<HII", end[-12:-2])
    if end[-42:-38] == b"PK\6\7":  # as torch.save has it, of 64 bits
        place = struct.unpack("<Q", end[-34:-26])[0]
        n_parts, n_bytes, start = struct.unpack("<QQQ", end[-66:-42])
        if place != size - 98 or end[:4] != b"PK\6\6":
            raise ValueError("its ZIP directory is not where it says")
    if start + n_bytes != place or n_parts > _PARTS:
        raise ValueError("its ZIP directory is not where it says, or too long")
    with zipfile.ZipFile(file) as archive:
        parts = archive.infolist()
        if any(one.compress_type or one.file_size != one.compress_size for one in parts):
            raise ValueError("compressed, which torch.save never does")
        sizes = {one.filename: one.file_size for one in parts}
        if len(sizes) != len(parts) or sum(sizes.values()) > size:
            raise ValueError("its parts lie over each other")
        folders = [name.removesuffix("/data.pkl") for name in sizes if name.endswith("/data.pkl")]
        if len(folders) != 1 or f"{folders[0]}/constants.pkl" in sizes:
            raise ValueError("a TorchScript archive, or none of torch.save")
        if sizes[f"{folders[0]}/data.pkl"] > _PICKLE_BYTES:
            raise ValueError("its pickle is too large")
        seen = _Seen()
        _walk(BytesIO(archive.read(f"{folders[0]}/data.pkl")), seen)
    for key, n_bytes in seen.storages.items():
        if sizes.get(f"{folders[0]}/data/{key}") != n_bytes:
            raise ValueError(f"storage {key[:50]!r} is missing, or not as large as declared")


def check_pickles(file: IO[bytes], size: int) -> None:
    """Check a file of the older kind of `torch.save`: pickles, and raw storages behind them.

    Args:
        file: open for reading.
        size: its bytes.

    Raises:
        ValueError: it declares what it has not.
        Exception: whatever `pickle` raises of a damaged one.
    """
    file.seek(0)
    head = BytesIO(file.read(_PICKLE_BYTES))
    seen = _Seen()
    for _ in ("magic number", "version", "machine", "contents"):
        _walk(head, seen)
    keys = _walk(head, seen)
    if sum(seen.storages.values()) > size:
        raise ValueError("its storages are larger than the file")
    if not isinstance(keys, list) or {*seen.storages} != {*keys} or len({*keys}) != len(keys):
        raise ValueError("storages are missing")


def check_safetensors(file: IO[bytes]) -> None:
    """Check the header of a safetensors file; its places are for that library to check.

    Raises:
        ValueError: it is too long, no JSON, or has a tensor of too many sides, or two of a name.
    """
    file.seek(0)
    (n_bytes,) = struct.unpack("<Q", file.read(8))
    if n_bytes > _HEADER_BYTES:
        raise ValueError(f"its header has more than {_HEADER_BYTES:,} bytes")
    try:
        header = json.loads(file.read(n_bytes), object_pairs_hook=_each_once)
    except RecursionError as error:
        raise ValueError("its header is nested too deep") from error
    if not isinstance(header, dict) or len(header) > _TENSORS:
        raise ValueError(f"its header names more than {_TENSORS:,} tensors, or none")
    for about in header.values():
        shape = about.get("shape", ()) if isinstance(about, dict) else ()
        if not isinstance(shape, list | tuple) or len(shape) > _SIDES:
            raise ValueError(f"a tensor has more than {_SIDES} sides")


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("its header has a name twice")
    return found


def _walk(pickled: BytesIO, seen: _Seen) -> Any:
    """Return what one pickle holds, with stand-ins for tensors, and go to its end."""
    start = pickled.tell()
    for opcode, argument, _ in pickletools.genops(pickled):
        seen.steps += 1
        if opcode.name not in _OPCODES or seen.steps > _STEPS:
            raise ValueError(f"its pickle has {opcode.name}, or more than {_STEPS:,} steps")
        if opcode.name == "PROTO" and argument != 2:
            raise ValueError(f"its pickle is of protocol {argument}")
        # The place is allocated up to there.
        if opcode.name == "LONG_BINPUT" and not 0 <= int(argument or 0) <= _STEPS:
            raise ValueError("its pickle keeps too many values")
    end = pickled.tell()
    pickled.seek(start)
    found = _StandIns(BytesIO(pickled.read(end - start)), seen).load()
    pickled.seek(end)
    return found


class _Seen:
    """What a checkpoint's pickles ask for: the bytes of storages by key, and how many steps."""

    def __init__(self) -> None:
        self.storages: dict[str, int] = {}
        self.steps = self.copied = self.tensors = 0

    def copy(self, values: Iterable[Any]) -> None:
        """Count values that are copied in one step."""
        self.copied += len(list(values))
        if self.copied > _STEPS:
            raise ValueError(f"its pickle copies more than {_STEPS:,} values")


class _StandIns(pickle.Unpickler):
    """Reads what PyTorch would, and makes nothing of it.

    No name leads to anything but a function or class of this module, or a text.
    """

    def __init__(self, file: BytesIO, seen: _Seen) -> None:
        super().__init__(file, encoding="ascii")
        self._seen = seen

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in of a name."""
        if module == "torch" and name in _DTYPES:
            return name
        kind = name.removesuffix("Storage")
        if module == "torch" and name != kind and kind in _ELEMENT_BYTES:
            return _Storage(_ELEMENT_BYTES[kind])
        made: dict[str, Callable[..., Any]] = {
            "torch._utils._rebuild_tensor": self._tensor,
            "torch._utils._rebuild_tensor_v2": self._tensor,
            "torch._utils._rebuild_parameter": self._parameter,
            "collections.OrderedDict": self._ordered,
            "collections.Counter": lambda values: self._gathered(Counter, values),
            "builtins.set": lambda values: self._gathered(set, values),
            "__builtin__.set": lambda values: self._gathered(set, values),
            "torch.Size": lambda values: self._gathered(tuple, values),
            "torch.device": self._device,
        }
        found = made.get(f"{module}.{name}")
        if found is None:
            raise pickle.UnpicklingError(f"it asks for {module[:50]}.{name[:50]}")
        return found

    def persistent_load(self, asked: Any) -> Any:
        """Return a storage's stand-in, and note its bytes."""
        kind, storage, key, location, n = asked[:5]
        known = isinstance(storage, _Storage) and isinstance(key, str) and type(n) is int
        if kind != "storage" or not known or n < 0 or not isinstance(location, str):
            raise pickle.UnpicklingError("it asks for no storage")
        n_bytes = n * storage.element_bytes
        if self._seen.storages.setdefault(key, n_bytes) != n_bytes:
            raise pickle.UnpicklingError("it has two sizes of a storage")
        return storage

    def _tensor(self, storage: Any, offset: Any, size: Any, *_: Any) -> _Tensor:
        self._seen.tensors += 1
        if self._seen.tensors > _TENSORS or not isinstance(storage, _Storage):
            raise pickle.UnpicklingError(f"it has more than {_TENSORS:,} tensors")
        if not isinstance(size, tuple) or len(size) > _SIDES or not math.prod(size) < 2**62:
            raise pickle.UnpicklingError("it has a tensor of no shape")
        return _Tensor()

    def _parameter(self, data: Any, *_: Any) -> _Tensor:
        self._seen.tensors += 1
        if not isinstance(data, _Tensor) or self._seen.tensors > _TENSORS:
            raise pickle.UnpicklingError("it has a parameter of no tensor")
        return data

    def _ordered(self) -> _Ordered:
        made = _Ordered()
        made.seen = self._seen
        return made

    def _gathered(self, kind: Callable[[Any], Any], values: Any) -> Any:
        self._seen.copy(values)
        return kind(values)

    def _device(self, *_: Any) -> None:
        return None


class _Storage:
    def __init__(self, element_bytes: int) -> None:
        self.element_bytes = element_bytes


class _Tensor:
    def __setstate__(self, _: Any) -> None:
        raise pickle.UnpicklingError("it builds a tensor of parts")


class _Ordered(OrderedDict[Any, Any]):
    seen: _Seen

    def __setstate__(self, state: Any) -> None:
        self.seen.copy(state)
