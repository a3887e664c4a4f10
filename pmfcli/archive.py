"""Untrusted files of ``torch.save``: what they hold, if that is nothing but tensors and plain values."""

import contextlib
import io
import pickle
import pickletools
import struct
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from pmfcli.errors import ModelError
from pmfcli.memory import of_this_machine

_NAMES = {"torch._utils _rebuild_tensor_v2", "collections OrderedDict"}  # that tensors are saved by, beside their storages
_BEGIN, _PIECE = b"PK\x03\x04", 1 << 24  # bytes of a pipe at a time
_END = struct.Struct("<4s36xQQ4s4xQ4x4s16xH")  # of a directory: how long it is, where; where this record is; its comment


def read(path: Path | None) -> bytes:
    """The bytes of a file, or of standard input. A pipe or device may be endless: if it is no such file, only its beginning.

    Raises:
        ModelError: it is longer than there is memory to load it.
        OSError: it cannot be read.
    """
    if path is not None and path.is_file():
        return path.read_bytes()
    most, kept = of_this_machine() // 2, bytearray()  # what is in it takes as much again
    with contextlib.nullcontext(sys.stdin.buffer) if path is None else path.open("rb") as stream:
        while (piece := stream.read(_PIECE)) and len(kept) <= most:
            kept += piece
            if not kept.startswith(_BEGIN):
                break
    if len(kept) > most:
        raise ModelError(f"{path or 'standard input'}: more than {most / 1e9:.1f} GB, too much for the memory of this machine")
    return bytes(kept)


def load(content: bytes, name: str, what: str, remedy: str) -> Any:
    """What a file holds. No code in it is run, and it unpacks to no more than its own length.

    Args:
        name: of the file. what: what it should be. remedy: what to do if it is damaged. All are for messages.

    Raises:
        ModelError: it is damaged, or holds something else.
    """
    _check_records(content, name, what, remedy)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise _refused(name) from None
    except Exception as error:
        raise ModelError(f"{name}: damaged {what} ({type(error).__name__}); {remedy}") from None


def _check_records(content: bytes, name: str, what: str, remedy: str) -> None:
    """Records are stored as they are, with checksums, and one of them names all that is called, which is little."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as box:
            stored = all(member.compress_type == zipfile.ZIP_STORED for member in box.infolist())
            if not stored or sum(member.file_size for member in box.infolist()) > len(content):
                raise ModelError(f"{name}: unpacks to more than it holds; refused")
            damaged = box.testzip()
            if damaged is not None:
                raise ModelError(f"{name}: damaged {what} (checksum of {damaged}); {remedy}")
            members = {one.orig_filename.lower(): one for one in box.infolist()}  # torch does not tell them apart by case
            pickles = [one for label, one in members.items() if label.endswith("data.pkl")]
            if not _is_of_torch(content) or len(members) < len(box.infolist()) or len(pickles) != 1:
                raise ModelError(f"{name}: not a {what}; {remedy}")
            if not _is_plain(box.read(pickles[0])):
                raise _refused(name)
    except (zipfile.BadZipFile, EOFError, OSError, ValueError, RuntimeError):
        raise ModelError(f"{name}: not a {what}, or cut short, or damaged; {remedy}") from None


def _is_of_torch(content: bytes) -> bool:
    """Whether it begins and ends as torch writes it, so that torch finds no other records in it than ``zipfile`` does."""
    if not content.startswith(_BEGIN) or len(content) < _END.size:
        return False
    place = len(content) - _END.size
    first, size, start, second, where, third, comment = _END.unpack_from(content, place)
    signed = (first, second, third) == (b"PK\x06\x06", b"PK\x06\x07", b"PK\x05\x06")
    return signed and start + size == where == place and not comment


def _is_plain(pickled: bytes) -> bool:
    """Whether it calls nothing but what makes tensors: of what ``weights_only`` allows, ``bytearray`` takes any memory."""
    for code, argument, _ in pickletools.genops(pickled):
        if code.name == "GLOBAL":
            module, _, kind = str(argument).partition(" ")
            if argument not in _NAMES and not (module == "torch" and kind.endswith("Storage")):
                return False
        elif code.name in ("STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"):
            return False
    return True


def _refused(name: str) -> ModelError:
    return ModelError(f"{name}: holds something other than tensors and text; refused, none of it was run")
