"""Read the plain data in a pickle (lists, dicts, numbers, text, arrays) and run nothing of it.

ROxford and RParis publish their ground truth as `gnd_*.pkl`. A pickle is a program: here its
opcodes are first checked against a list, and each of the few names that numpy arrays need is
answered by a stand-in of our own, so that neither numpy nor anything else is called with what the
file says.
"""

import io
import math
import pickle
import pickletools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cwf_milvus.errors import SettingsError

MAX_BYTES = 16 << 20
"""Far more than the truth about some thousand images takes."""

_OPCODES = """
    PROTO FRAME STOP MARK POP POP_MARK DUP NONE NEWTRUE NEWFALSE INT LONG LONG1 LONG4 BININT BININT1
    BININT2 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE
    BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8 EMPTY_LIST LIST APPEND APPENDS
    EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_DICT DICT SETITEM SETITEMS GET BINGET LONG_BINGET
    PUT BINPUT LONG_BINPUT MEMOIZE GLOBAL STACK_GLOBAL REDUCE BUILD
"""


def read_plain_pickle(path: str | Path) -> Any:
    """The data of a pickle of any protocol, Python 2's included (its text read as Latin-1).

    Numpy arrays and numbers come as stand-ins or Python numbers: see `as_list`.

    Raises:
        SettingsError: the file cannot be read, is larger than `MAX_BYTES`, damaged, or holds
            anything but plain data. Nothing in it is executed.
    """
    source = Path(path)
    try:
        with source.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise SettingsError(f"cannot read {str(path)!r}: {error.strerror}") from error
    if len(data) > MAX_BYTES:
        raise SettingsError(f"{str(path)!r} is larger than {MAX_BYTES} bytes; no ground truth is")
    try:
        _check_opcodes(data)
        return _PlainUnpickler(data).load()
    except SettingsError as error:
        raise SettingsError(f"{str(path)!r} is refused: {error}") from None
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise SettingsError(
            f"{str(path)!r} is no readable pickle ({type(error).__name__}); download it again"
        ) from error


def as_list(value: Any) -> list[Any] | None:
    """The items of a list, tuple or array that `read_plain_pickle` gave (flat); None if neither."""
    if isinstance(value, _Array):
        return list(value.items)
    return list(value) if isinstance(value, list | tuple) else None


def _check_opcodes(data: bytes) -> None:
    allowed = frozenset(_OPCODES.split())
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name not in allowed:
            raise SettingsError(f"it holds {opcode.name}, and plain data does not")
        # The reader makes room for as many entries as the largest number says.
        if opcode.name in ("PUT", "LONG_BINPUT") and int(str(argument)) > len(data):
            raise SettingsError(f"it numbers an entry {argument}, beyond its own length")


class _PlainUnpickler(pickle.Unpickler):
    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding="latin1")
        # What stand-ins may copy: without a limit, naming one long string again and again would
        # fill the memory from a small file.
        self._room = 4 * len(data)
        array = _Name(_refuse)
        known: dict[tuple[str, str], _Name] = {
            ("numpy", "ndarray"): array,
            ("numpy", "dtype"): _Name(_DType),
            ("_codecs", "encode"): _Name(self._encode),
        }
        for bytes_module in ("builtins", "__builtin__"):
            known[bytes_module, "bytes"] = _Name(lambda: b"")  # empty bytes, in old protocols
        for core in ("numpy.core", "numpy._core"):
            known[f"{core}.multiarray", "_reconstruct"] = _Name(lambda *_: _Array(self._spend))
            known[f"{core}.multiarray", "scalar"] = _Name(self._scalar)
            known[f"{core}.numeric", "_frombuffer"] = _Name(self._from_buffer)
        self._known = known

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._known:
            raise SettingsError(f"it asks for {module}.{name}, and plain data does not")
        return self._known[module, name]

    def _spend(self, n_bytes: int) -> None:
        self._room -= n_bytes
        if self._room < 0:
            raise SettingsError("its arrays are larger than the file can hold")

    def _encode(self, text: str, encoding: str) -> bytes:
        if encoding != "latin1":
            raise SettingsError(f"it holds bytes in the encoding {encoding!r}")
        self._spend(len(text))
        return text.encode("latin1")

    def _scalar(self, dtype: "_DType", data: bytes | str) -> Any:
        (value,) = dtype.items(data, self._spend)
        return value

    def _from_buffer(self, data: bytes, dtype: "_DType", shape: tuple[int, ...], _: str) -> Any:
        array = _Array(self._spend)
        array.__setstate__((1, shape, dtype, False, data))
        return array


class _Name:
    """What a name in the pickle stands for: it can be called, and not altered."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise SettingsError("it alters what it names")


class _DType:
    """Stands for numpy.dtype: a number of some bytes, or "O", any plain object."""

    __slots__ = ("_code", "_order")

    def __init__(self, code: str, *_: Any) -> None:
        if not isinstance(code, str) or not re.fullmatch(r"b1|[iu][1248]|f[248]|O8?|O4", code):
            raise SettingsError("it holds an array of something else than numbers")
        self._code = code
        self._order = "|"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] not in ("<", ">", "|", "="):
            raise SettingsError("it holds an array in an unknown byte order")
        self._order = state[1]

    def items(self, data: Any, spend: Callable[[int], None]) -> list[Any]:
        """The values in an array's data as Python's own numbers."""
        if self._code.startswith("O"):
            if not isinstance(data, list):
                raise SettingsError("it holds an array of objects without the objects")
            spend(len(data))
            return list(data)
        if isinstance(data, str):  # Python 2 wrote bytes as text
            data = data.encode("latin1")
        spend(len(data))
        return np.frombuffer(data, np.dtype(self._order + self._code)).tolist()


class _Array:
    """Stands for numpy.ndarray: its items, flat, in the order they are stored."""

    __slots__ = ("_spend", "items")

    def __init__(self, spend: Callable[[int], None]) -> None:
        self._spend = spend
        self.items: list[Any] = []

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, _, data = state
        if not isinstance(dtype, _DType):
            raise SettingsError("it holds an array without a type")
        self.items = dtype.items(data, self._spend)
        if math.prod(shape) != len(self.items):
            raise SettingsError("it holds an array that is not as long as it says")


def _refuse(*_: Any) -> None:
    raise SettingsError("it makes an array in a way that numpy does not")
