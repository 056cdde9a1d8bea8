"""Students in Flax, and their weights from and to Hugging Face's formats.

Nothing here knows of KPOD: a model sees tokens, whatever they are trained for.
"""
