"""Generates rationales with a teacher, a large language model: `--mode=teach`.

Any endpoint compatible with OpenAI's chat completions works. Nothing here needs JAX.
"""

from kpod_jax.teacher.teach import NoAnswerError, teach

__all__ = ["NoAnswerError", "teach"]
