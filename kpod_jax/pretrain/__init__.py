r"""Pre-trains the two small models that ship with the built-in task.

    python -m kpod_jax.pretrain --what=student --output=kpod_jax/assets/tiny_t5
    python -m kpod_jax.pretrain --what=answerer --output=kpod_jax/assets/tiny_answerer

`student.py` describes the training of the student, `answerer.py` that of the answerer of the token
weighting. Both use the task's "fresh" split, which shares no question with the other splits.
"""
