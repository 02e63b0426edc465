"""Which names of pycuda's driver we use, looked up in an installed pycuda; it needs no GPU, only to be imported.

    python scripts/pycuda_api.py >> tests/runtime/trt/pycuda_api.json    # one release; the file has one object of all

pycuda is compiled where it is installed, and wants nvcc, CUDA's headers and a libcuda.so.1 to link against. Where there
is no driver an empty library will do, which has every symbol that pycuda wants: nm -D --undefined-only shows them.
"""

from __future__ import annotations

import json
import operator
import sys

NAMES = (
    "Context.detach", "Context.pop", "Context.push", "Context.synchronize", "Device", "Device.compute_capability",
    "Device.count", "Device.get_attribute", "Device.name", "Device.retain_primary_context", "DeviceAllocation.__int__",
    "DeviceAllocation.free", "Error", "Event", "Event.record", "Event.time_since", "LogicError", "MemoryError",
    "PagelockedHostAllocation.get_device_pointer", "Stream", "Stream.handle", "Stream.synchronize",
    "device_attribute.INTEGRATED", "get_driver_version", "host_alloc_flags.DEVICEMAP", "init", "mem_alloc",
    "mem_get_info", "memcpy_dtod_async", "memcpy_dtoh", "memcpy_dtoh_async", "memcpy_htod", "memcpy_htod_async",
    "memset_d8_async", "pagelocked_zeros",
)  # fmt: skip


def main() -> int:
    """Print the table of the installed release."""
    import pycuda  # noqa: PLC0415 - optional
    from pycuda import driver  # noqa: PLC0415

    table = {pycuda.VERSION_TEXT: {name: _has(driver, name) for name in NAMES}}
    sys.stdout.write(json.dumps(table, indent=1, sort_keys=True) + "\n")
    return 0


def _has(module: object, dotted: str) -> bool:
    try:
        operator.attrgetter(dotted)(module)
    except AttributeError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
