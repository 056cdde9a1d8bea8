"""Peak performance of accelerators, by JAX's name for the device.

Sources are the vendors' public specifications: Google Cloud's pages "TPU v3", "TPU v4", "TPU v5e",
"TPU v5p" and "TPU v6e" (cloud.google.com/tpu/docs); for the links of TPU v3, Jouppi et al., "TPU
v4", ISCA 2023, table 4; and NVIDIA's data sheets for A100, H100 and H200
(nvidia.com/en-us/data-center), with tensor core rates without sparsity.
"""

import dataclasses

_GIB = 1 << 30


@dataclasses.dataclass(frozen=True)
class Device:
    """Peak performance of one `jax.Device`: a chip, or one of the two cores of a TPU v3 chip.

    Attributes:
      peak_flops: FLOP/s of matrix products with bfloat16 factors and float32 sums.
      hbm_bytes: memory size.
      hbm_bandwidth: memory bandwidth, bytes/s.
      link_bandwidth: one-way bytes/s to other devices of its slice or node, over all of its links
        (ICI, NVLink).
    """

    peak_flops: float
    hbm_bytes: int
    hbm_bandwidth: float
    link_bandwidth: float


_H100 = Device(989e12, 80 * 10**9, 3350e9, 450e9)
_V5P = Device(459e12, 95 * _GIB, 2765e9, 600e9)

# By `jax.Device.device_kind`.
DEVICES = {
    "TPU v3": Device(61.5e12, 16 * _GIB, 450e9, 140e9),
    "TPU v4": Device(275e12, 32 * _GIB, 1200e9, 300e9),
    "TPU v5 lite": Device(197e12, 16 * _GIB, 819e9, 200e9),
    "TPU v5": _V5P,
    "TPU v5p": _V5P,
    "TPU v6 lite": Device(918e12, 32 * _GIB, 1638e9, 400e9),
    "NVIDIA A100-SXM4-80GB": Device(312e12, 80 * 10**9, 2039e9, 300e9),
    "NVIDIA A100 80GB PCIe": Device(312e12, 80 * 10**9, 1935e9, 300e9),
    "NVIDIA H100 80GB HBM3": _H100,
    "NVIDIA H100 PCIe": Device(756e12, 80 * 10**9, 2000e9, 300e9),
    "NVIDIA H200": Device(989e12, 141 * 10**9, 4800e9, 450e9),
}


def lookup(kind: str) -> Device | None:
    """Returns the peaks of a `jax.Device.device_kind`, or None if unknown, as for a CPU."""
    return DEVICES.get(kind)
