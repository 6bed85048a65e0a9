"""torch tensors in the store: the storage as one buffer, and the tensor as a view of it.

Tensors of one value that show the same storage share it afterwards, too, as far as one of them that shows all of it
was pickled before the others. A tensor that shows a part of a storage which is not there yet travels on its own,
contiguous: a slice of a large tensor costs only its own bytes.

A tensor has no read-only form: its memory is marked writable, and copied if a reader gets it read-only nevertheless.
Storages in the store cannot be resized.

torch is loaded where such a value passes, and nowhere else.
"""

from __future__ import annotations

import ctypes
import importlib
import pickle
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dpool._store.serde import Parts


class Storage:
    """Pickles as a writable buffer with the bytes of a torch storage; loads as the storage."""

    def __init__(self, storage: Any) -> None:
        self.storage = storage

    def __reduce__(self) -> Any:
        memory = (ctypes.c_ubyte * self.storage.nbytes()).from_address(self.storage.data_ptr())
        memory.owner = self.storage
        return make_storage, (pickle.PickleBuffer(memory),)


def reduce(tensor: Any, parts: Parts) -> Any:
    """A dense tensor of this machine's memory, or a Parameter; NotImplemented for all others."""
    torch = sys.modules["torch"]
    if not _is_simple(torch, tensor):
        return NotImplemented
    storage = tensor.untyped_storage()
    key = (storage.data_ptr(), storage.nbytes())
    shared = parts.shared.get(key)
    if shared is None:
        if tensor.numel() * tensor.element_size() < storage.nbytes():
            tensor_data = tensor.detach().contiguous().clone()
            shared = Storage(tensor_data.untyped_storage())
            return _reduced(tensor, shared, 0, tensor_data.stride())
        shared = Storage(storage)
        if storage.nbytes():
            parts.shared[key] = shared
    return _reduced(tensor, shared, tensor.storage_offset(), tensor.stride())


def _is_simple(torch: Any, tensor: Any) -> bool:
    """Whether memory, dtype, shape and strides are all there is to it."""
    try:
        return (
            tensor.device.type == "cpu"
            and tensor.layout is torch.strided
            and not (tensor.is_quantized or tensor.is_nested or tensor.is_conj() or tensor.is_neg())
            and not (_has_names(tensor) or tensor.__dict__ or tensor._backward_hooks)
            and tensor.is_leaf
            and tensor.untyped_storage().device.type == "cpu"
        )
    except RuntimeError:  # it has no storage, as inside of torch.func
        return False


def _has_names(tensor: Any) -> bool:
    return any(name is not None for name in getattr(tensor, "names", ()))  # newer versions have none


def _reduced(tensor: Any, storage: Storage, offset: int, strides: tuple[int, ...]) -> Any:
    kind = str(tensor.dtype).removeprefix("torch.")
    parameter = type(tensor).__name__ == "Parameter"
    return make_tensor, (storage, kind, offset, tuple(tensor.shape), tuple(strides), tensor.requires_grad, parameter)


def make_storage(buffer: Any) -> Any:
    """The torch storage on this memory, or on a copy if it is read-only."""
    torch = importlib.import_module("torch")
    view = memoryview(buffer)
    if view.readonly:
        view = memoryview(bytearray(view))
    if not view.nbytes:
        return torch.UntypedStorage()
    return torch.frombuffer(view, dtype=torch.uint8).untyped_storage()


def make_tensor(
    storage: Any,
    kind: str,
    offset: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    requires_grad: bool,
    parameter: bool,
) -> Any:
    """The tensor of this dtype, shape and these strides (both in elements) on a storage."""
    torch = importlib.import_module("torch")
    tensor = torch.empty(0, dtype=getattr(torch, kind)).set_(storage, offset, shape, strides)
    if parameter:
        return torch.nn.Parameter(tensor, requires_grad)
    return tensor.requires_grad_(requires_grad)
