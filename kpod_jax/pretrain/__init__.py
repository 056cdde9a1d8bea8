r"""Makes the two small models that the built-in task ships with.

    python -m kpod_jax.pretrain --what=student --output=kpod_jax/assets/tiny_t5
    python -m kpod_jax.pretrain --what=answerer --output=kpod_jax/assets/tiny_answerer

`student.py` says what the student learns, `answerer.py` what the answerer of the token weighting
does. Both learn from problems of the task's "fresh" split, which shares no question with others.
"""
