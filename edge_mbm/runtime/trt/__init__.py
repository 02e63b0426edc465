"""TensorRT on the device: engines are built here from a bundle's graphs, kept in a cache, and run.

::

    release.py      what differs between TensorRT's releases; the only module that knows
    device.py       the GPU: name, compute capability, driver, memory
    place.py        the two together: what engines are built with and run on
    layers.py       which precision each layer of an engine got
    cache.py        engines on disk: found by all that they depend on, trusted only when whole and ours
    builder.py      one engine built, again with less when memory runs out
    build_*.py      in a process of its own: the side that waits, the side that builds, what they say to each other
    phases.py       TensorRT's nested progress as one share
    compiling.py    every engine of a bundle, built one at a time and measured
    choosing.py     which of a component's engines pays here
    cuda.py         the CUDA driver, as much of it as running an engine takes
    memory.py       what a loaded engine holds, and the states that stay with it
    engine.py       an engine at work, as the runtime's ``Engine``
    backend.py      engines of a session: which variant, from the cache, or what else

Nothing here is imported before TensorRT is asked for.
"""

__all__: list[str] = []
