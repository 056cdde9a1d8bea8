"""Students in Flax, and conversion of their weights from and to Hugging Face formats.

Nothing here depends on KPOD: a model sees tokens, whatever it is trained for.
"""
