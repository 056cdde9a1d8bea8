from tests.data.conftest import byte_tokenizer, byte_tokenizer_dir

__all__ = ["byte_tokenizer", "byte_tokenizer_dir"]
