"""Which GPUs are found: what NVML says, what CUDA_VISIBLE_DEVICES leaves of it, what was configured."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest

from dpool._core.config import Config
from dpool._core.machine import find_gpus, find_resources, nvml_gpus


class NVMLError(Exception):
    pass


def fake_nvml(parts: list[list[str] | None], broken: str = "") -> Any:
    """A pynvml with these devices: None for a whole one, or the ids of its parts (bytes, in old versions); what is
    named `broken` fails.
    """
    module: Any = types.ModuleType("pynvml")
    module.NVMLError = NVMLError
    module.NVML_DEVICE_MIG_ENABLE = 1
    module.begun = 0

    def begin(by: int) -> None:
        module.begun += by

    def mode(device: int) -> tuple[int, int]:
        if parts[device] is None:
            raise NVMLError("not supported")
        return 1, 1

    def part(device: int, number: int) -> str:
        found = parts[device] or []
        if number >= len(found):
            raise NVMLError("not found")
        return found[number]

    functions: dict[str, Any] = {
        "nvmlInit": lambda: begin(1),
        "nvmlShutdown": lambda: begin(-1),
        "nvmlDeviceGetCount": lambda: len(parts),
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetMigMode": mode,
        "nvmlDeviceGetMaxMigDeviceCount": lambda device: 7,
        "nvmlDeviceGetMigDeviceHandleByIndex": part,
        "nvmlDeviceGetUUID": lambda handle: handle.encode() if handle.endswith("b") else handle,
    }

    def fails(*args: Any) -> None:
        raise NVMLError(broken)

    for name, function in functions.items():
        setattr(module, name, fails if name == broken else function)
    return module


TWO: list[list[str] | None] = [None, None]
DIVIDED: list[list[str] | None] = [["MIG-1", "MIG-2b"], None, []]


@pytest.mark.parametrize(
    ("parts", "broken", "visible", "expected"),
    [
        (TWO, "", None, ["0", "1"]),
        (TWO, "nvmlInit", None, []),  # no driver
        (TWO, "nvmlInit", "0", []),
        (TWO, "nvmlDeviceGetCount", None, []),
        (TWO, "nvmlDeviceGetHandleByIndex", None, []),
        (TWO, "", "1", ["1"]),
        (TWO, "", "1, 0", ["1", "0"]),
        (TWO, "", "", []),
        (TWO, "", "-1", []),
        (TWO, "", "0,-1,1", ["0"]),  # what comes behind one that there is not is not seen
        (TWO, "", "0,5,1", ["0"]),
        (TWO, "", "NoDevFiles", []),
        (TWO, "", "GPU-8f,1", ["GPU-8f", "1"]),
        (DIVIDED, "", None, ["MIG-1", "MIG-2b", "1"]),
        (DIVIDED, "", "MIG-2b", ["MIG-2b"]),
    ],
)
def test_what_is_found(
    monkeypatch: pytest.MonkeyPatch,
    parts: list[list[str] | None],
    broken: str,
    visible: str | None,
    expected: list[str],
) -> None:
    module = fake_nvml(parts, broken)
    monkeypatch.setitem(sys.modules, "pynvml", module)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert find_gpus(Config()) == expected
    assert module.begun == 0
    assert find_resources(Config(), len(expected))["num_gpus"] == len(expected)


def test_without_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert nvml_gpus() == []


@pytest.mark.parametrize(
    ("count", "visible", "expected"),
    [
        (0, None, []),
        (3, None, ["0", "1", "2"]),
        (2, "3,MIG-7", ["3", "MIG-7"]),
        (1, "3,4", ["3"]),
        (4, "2,1", ["2", "1", "0", "3"]),
        (2, "", ["0", "1"]),
    ],
)
def test_a_number_that_was_configured(
    monkeypatch: pytest.MonkeyPatch, count: int, visible: str | None, expected: list[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert find_gpus(Config(num_gpus=count)) == expected
