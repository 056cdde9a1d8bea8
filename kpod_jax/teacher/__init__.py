"""Asking a teacher, a large language model, for rationales: `--mode=teach`.

Its endpoint is any that is compatible with OpenAI's chat completions. Nothing here needs JAX.
"""

from kpod_jax.teacher.teach import teach

__all__ = ["teach"]
