"""Every test runs on the CPU, in full float32, with eight fake devices."""

import os

from tests.compilation import quick_flags

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["MUSICGEN_JAX_CACHE"] = "off"  # a test must compile what it tests
os.environ["XLA_FLAGS"] = quick_flags()

import jax

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_default_matmul_precision", "highest")
