"""Students and own data where requirements.txt alone is installed: no test tool, no torch.

    python -m tests.runtime_only

Exports a random chat student, loads it again from its directory and from a GGUF file, and has all
three answer the same questions. Reads a small data set in each shape and format. Exits with 1 and a
message where something is missing or differs.
"""

import csv
import gzip
import importlib.util
import io
import json
import pathlib
import sys
import tempfile
from typing import Any

import gguf
import jax
import numpy as np
import pyarrow
import pyarrow.parquet
import safetensors.numpy
import tokenizers
import transformers

from kpod_jax.config import defaults
from kpod_jax.data import sources, tokens
from kpod_jax.data.records import Record
from kpod_jax.evaluation.generation import Generator
from kpod_jax.models.student import Student, load_student
from kpod_jax.parallel import sharding
from kpod_jax.report import exported as exported_run
from kpod_jax.utils.errors import UserError

MESH = sharding.make_mesh(devices=jax.devices()[:1])
HEADS, KEY_VALUE_HEADS, LAYERS, WIDTH, HIDDEN, CONTEXT = 4, 2, 2, 32, 48, 256
BEGIN, END = "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PROMPT = "Q: {question} A: Let's think step by step."
QUESTIONS = ("Tom has 3 pens and buys 4. How many?", "Is 7 prime?", "What is 12 times 12?")
# Names of tensors in GGUF files.
GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_architecture(folder: pathlib.Path) -> None:
    """A config.json, and a tokenizer with a chat template."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[BEGIN, END],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(QUESTIONS, trainer)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=END,
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(folder)
    (folder / "config.json").write_text(
        json.dumps(
            {
                "model_type": "llama",
                "vocab_size": tokenizer.get_vocab_size(),
                "hidden_size": WIDTH,
                "intermediate_size": HIDDEN,
                "num_hidden_layers": LAYERS,
                "num_attention_heads": HEADS,
                "num_key_value_heads": KEY_VALUE_HEADS,
                "max_position_embeddings": CONTEXT,
                "tie_word_embeddings": False,
            }
        )
    )


def write_gguf(path: pathlib.Path, folder: pathlib.Path, student: Student) -> None:
    """An exported student as llama.cpp has it, in float32."""
    config: Any = student.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_VALUE_HEADS)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    vocabulary = student.tokenizer.get_vocab()
    names = sorted(vocabulary, key=vocabulary.__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(names)
    kinds = (gguf.TokenType.NORMAL, gguf.TokenType.CONTROL)
    writer.add_token_types([kinds[name in (BEGIN, END)] for name in names])
    merges = json.loads(student.tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_bos_token_id(vocabulary[BEGIN])
    writer.add_eos_token_id(vocabulary[END])
    writer.add_pad_token_id(vocabulary[END])
    writer.add_chat_template(CHAT_TEMPLATE)
    heads_of = {"self_attn.q_proj": HEADS, "self_attn.k_proj": KEY_VALUE_HEADS}
    for name, array in safetensors.numpy.load_file(folder / "model.safetensors").items():
        short, place = name.removesuffix(".weight"), ""
        if short.startswith("model.layers."):
            _, _, number, short = short.split(".", 3)
            place = f"blk.{number}."
        if heads := heads_of.get(short):  # Rotary pairs lie side by side.
            halves = array.reshape(heads, 2, -1, array.shape[1])
            array = np.ascontiguousarray(halves.swapaxes(1, 2).reshape(array.shape))
        writer.add_tensor(f"{place}{GGUF_NAMES[short]}.weight", array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def answers(student: Student, params: Any) -> np.ndarray:
    """[N, G] int32: what a student writes, asked in its chat template."""
    prompt = tokens.resolve_prompt(student.tokenizer, PROMPT, decoder_only=True, chat=True)
    if not prompt.startswith(f"{BEGIN}user\n"):
        raise ValueError(f"the chat template was not used: {prompt!r}")
    records = [Record(str(i), question, (), "") for i, question in enumerate(QUESTIONS)]
    asked = tokens.tokenize_questions(records, student.tokenizer, prompt=prompt, decoder_only=True)
    generator = Generator(
        student, MESH, student.decoder_start(prompt), batch_size=4, max_new_tokens=16
    )
    return generator(params, asked)[:, 0]


STEPS = "Half of 48 is 24, and 48 + 24 = 72."
TEXT = f"{STEPS} The answer is 72."
# One record in the formats that people have.
FORMATS: dict[str, dict[str, Any]] = {
    "ours": {"question": "How many?", "rationale": STEPS, "answer": "72"},
    "GSM8K": {"question": "How many?", "answer": f"{STEPS}\n#### 72"},
    "completion": {"prompt": "How many?", "completion": TEXT},
    "chat": {
        "messages": [
            {"role": "user", "content": "How many?"},
            {"role": "assistant", "content": TEXT},
        ]
    },
    "ShareGPT": {
        "conversations": [{"from": "human", "value": "How many?"}, {"from": "gpt", "value": TEXT}]
    },
    "Alpaca": {"instruction": "How many?", "input": "", "output": TEXT},
    "solution": {"problem": "How many?", "solution": STEPS + r" \boxed{72}", "answer": "72"},
    "thought": {"prompt": "How many?", "completion": f"<think>{STEPS}</think>\nThe answer is 72."},
}


def written(name: str, rows: list[dict[str, Any]]) -> bytes:
    """Rows as a file of this name holds them."""
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    if name.endswith(".gz"):
        return gzip.compress(lines)
    if name.endswith(".json"):
        return json.dumps(rows, indent=2).encode()
    if name.endswith(".csv"):
        text = io.StringIO()
        writer = csv.DictWriter(text, rows[0])
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue().encode()
    if name.endswith(".parquet"):
        buffer = pyarrow.BufferOutputStream()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), buffer)
        return buffer.getvalue().to_pybytes()
    return lines


def own_data(folder: pathlib.Path) -> str:
    """Why own data of some shape or format is not read; "" where all is."""
    for name in ("train.jsonl", "train.json", "train.jsonl.gz", "train.csv", "train.parquet"):
        for format_, row in FORMATS.items():
            if name.endswith(".csv") and format_ in ("chat", "ShareGPT"):
                continue  # A cell holds no list.
            path = folder / name.replace(".", "_") / format_
            path.mkdir(parents=True)
            texts = [json.dumps(row).replace("How many?", f"How many in {i}?") for i in range(9)]
            rows = list(map(json.loads, texts))
            (path / name).write_bytes(written(name, rows))
            records, _ = sources.load_records("jsonl", "train", path=str(path))
            if not records or {(r.rationale, r.answer) for r in records} != {(STEPS, "72")}:
                return f"{name} in the format {format_} is read as {records[:1]}"
    return ""


def main() -> str:
    """Why this fails; "" where all is well."""
    if importlib.util.find_spec("torch") is not None:
        return "torch is installed: this shows nothing. Install requirements.txt alone."
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        if problem := own_data(folder / "data"):
            return problem
        born, file = folder / "born", folder / "student.gguf"
        born.mkdir()
        write_architecture(born)
        student = load_student(str(born), init="random", seed=1)
        # Larger than a model starts with, so that attention prefers some tokens to others.
        params = jax.tree.map(lambda leaf: 5 * leaf, student.load(MESH))
        expected = answers(student, params)
        if len(np.unique(expected)) < len(QUESTIONS):
            return f"the random student always writes the same: {expected.tolist()}"
        settings = defaults.get_config()
        settings.student = student.settings
        exported_run.write(settings, student, params, 0, folder)
        exported = folder / "export"
        if "AutoModelForCausalLM" not in (exported / "README.md").read_text():
            return "the export has no model card that shows its use"
        write_gguf(file, exported, student)
        for path in (exported, file):
            student = load_student(str(path))
            found = answers(student, student.load(MESH))
            if not np.array_equal(found, expected):
                return f"{path.name} writes {found.tolist()}, not {expected.tolist()}"
    print(f"A chat student, its export and its GGUF file write the same {expected.size} tokens.")
    return ""


if __name__ == "__main__":
    try:
        sys.exit(main() or 0)  # An empty text would be a failure.
    except UserError as error:
        sys.exit(str(error))
