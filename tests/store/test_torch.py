"""torch tensors: equal afterwards, in place, writable, and sharing memory where they did."""

from __future__ import annotations

from typing import Any

import pytest

from dpool._store import serde
from tests.store.flat import again, flat_of, mapped

torch: Any = pytest.importorskip("torch")

FLOATS = ("float32", "float64", "float16", "bfloat16", "float8_e4m3fn", "complex64", "complex128")
DTYPES = (*FLOATS, "bool", "uint8", "int8", "int16", "int32", "int64", "uint16")
SHAPES = ((), (0,), (0, 3), (5,), (300, 200))


def bits(tensor: Any) -> bytes:
    return bytes(tensor.detach().contiguous().flatten().view(torch.uint8).numpy()) if tensor.numel() else b""


def check(tensor: Any) -> Any:
    """The tensor after its way, which is equal to the last bit and of the same type."""
    result = again(tensor)
    assert type(result) is type(tensor)
    facts = (tensor.dtype, tensor.shape, tensor.requires_grad, tensor.is_leaf)
    assert (result.dtype, result.shape, result.requires_grad, result.is_leaf) == facts
    assert bits(result) == bits(tensor)
    return result


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes_and_shapes(dtype, shape):
    check((torch.rand(shape, dtype=torch.float64) * 5).to(getattr(torch, dtype)))


@pytest.mark.parametrize(
    "make",
    [
        lambda base: base.T,
        lambda base: base[::2, ::3],
        lambda base: base[5],
        lambda base: base[:, 7],
        lambda base: base.flip(0),
        lambda base: base[:1].expand(500, 200),
        lambda base: base.reshape(10, 20, 15, 20).to(memory_format=torch.channels_last),
        lambda base: base.detach().requires_grad_(),
        lambda base: torch.nn.Parameter(base),
        lambda base: torch.nn.Parameter(base[3], requires_grad=False),
    ],
)
def test_views_gradients_and_parameters(make):
    check(make(torch.rand(300, 200)))


def test_a_whole_storage_keeps_its_strides():
    assert again(torch.rand(300, 200).T).stride() == (1, 200)
    assert again(torch.rand(300, 200)[:, ::2]).is_contiguous()


def test_a_tensor_lies_in_the_flat_form_and_keeps_it():
    with mapped([torch.ones(300, 200)]) as mapping:
        (tensor,) = mapping.load()
        assert mapping.holds(tensor.data_ptr(), tensor.numel() * 4)
        tensor.zero_()
        view = tensor[3:5]
        del tensor
        with pytest.raises(BufferError):
            mapping.memory.close()
        assert not view.any()
        del view


def test_a_slice_brings_only_its_own_bytes():
    assert len(flat_of(torch.rand(1000, 1000)[5])) < 6000


def test_a_read_only_mapping_does_not_serve_and_is_copied():
    flat = flat_of(torch.ones(300, 200))
    assert not serde.flat_readonly(memoryview(flat))
    tensor = serde.load(memoryview(flat).toreadonly())
    tensor.zero_()
    assert serde.load(memoryview(flat)).all()


def test_tensors_share_their_memory():
    base = torch.ones(300, 200)
    whole, row, turned, twice = again((base, base[3], base.T, base))
    assert twice is whole
    row.zero_()
    assert not whole[3].any()
    assert not turned[:, 3].any()
    assert len(flat_of((base, base[3], base.T))) < 1.1 * base.numel() * 4


def test_a_part_before_the_whole_travels_on_its_own():
    base = torch.ones(300, 200)
    row, whole = again((base[3], base))
    row.zero_()
    assert whole.all()


def test_a_module_with_tied_weights():
    module = torch.nn.Sequential(torch.nn.Linear(100, 100), torch.nn.BatchNorm1d(100), torch.nn.Linear(100, 100))
    module[2].weight = module[0].weight
    module.eval()
    result = again(module)
    assert result[2].weight is result[0].weight
    rows = torch.rand(5, 100)
    assert torch.equal(result(rows), module(rows))
    result(rows).sum().backward()
    assert result[0].weight.grad is not None


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.eye(50).to_sparse(),
        lambda: torch.rand(50, requires_grad=True) * 2,
        lambda: torch.rand(50, device="meta"),
        lambda: torch.rand(50, dtype=torch.complex64).conj(),
        lambda: torch.quantize_per_tensor(torch.rand(50), 0.1, 0, torch.qint8),
        lambda: named_attribute(torch.rand(50)),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_all_others_go_the_standard_way(make):
    tensor = make()
    assert serde.reducer_for(type(tensor))(tensor, serde.Parts()) is NotImplemented  # type: ignore[misc]
    result = again(tensor)
    assert (type(result), result.shape, result.dtype) == (type(tensor), tensor.shape, tensor.dtype)
    assert getattr(result, "note", None) == getattr(tensor, "note", None)


def named_attribute(tensor: Any) -> Any:
    tensor.note = "an attribute"
    return tensor


def test_subclasses_go_the_standard_way():
    assert serde.reducer_for(type("Mine", (torch.Tensor,), {})) is None
    assert serde.reducer_for(torch.nn.parameter.UninitializedParameter) is None
