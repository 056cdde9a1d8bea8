"""Tokenized records: prompts, targets, and the step of every rationale token.

Rationale and answer sentence are tokenized as ONE text, just as the student writes them, and then
separated by the tokenizer's offsets.

Letters: N examples; flat arrays over all of them have M tokens or Z characters.
"""

import dataclasses
import datetime
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from kpod_jax.data import chat_template
from kpod_jax.data.characters import Characters
from kpod_jax.data.records import Ragged, Record, Rejected, offsets_of
from kpod_jax.utils.errors import UserError, one_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_WHITESPACE = np.array([c for c in range(0x3001) if chr(c).isspace()], np.uint32)


@dataclasses.dataclass(frozen=True)
class TokenizedSet:
    """N tokenized examples.

    Attributes:
      records: the N records, in characters that the tokenizer knows. A step without any token (a
        tokenizer may merge "..." or a run of unknown characters across its end) is joined to the
        step before it.
      questions: int32, the input: the prompt with the question, then EOS; for a decoder-only
        student without the prompt's last token, which is the decoder's first input.
      targets: int32, the tokens of the rationale, those of the answer sentence, then EOS.
      steps: int32 parallel to `targets`: 0-based step of each rationale token, n_i from the
        answer sentence on; nondecreasing, and every step 0 ... n_i - 1 occurs.
      answers: int32, the tokens of y alone, then EOS.
      num_steps: [N] int32, n_i.
      rationale_lengths: [N] int32, n: the first n tokens of a target are its rationale.
      rationale_char_spans: int32 [*, 2] parallel to the rationale's tokens: (start, end) of each
        token's characters in `record.rationale`, without leading whitespace. Empty for a whitespace
        token; the byte tokens of one character share a span.
    """

    records: tuple[Record, ...]
    questions: Ragged
    targets: Ragged
    steps: Ragged
    answers: Ragged
    num_steps: np.ndarray
    rationale_lengths: np.ndarray
    rationale_char_spans: Ragged

    def __len__(self) -> int:
        return len(self.records)


def in_rationale(tokenized: TokenizedSet) -> np.ndarray:
    """Returns a bool mask of the rationale tokens among all target tokens, concatenated."""
    targets = tokenized.targets
    example = np.repeat(np.arange(len(targets)), targets.lengths)
    place = np.arange(len(targets.values)) - targets.offsets[example]
    return place < tokenized.rationale_lengths[example]


def step_starts(tokenized: TokenizedSet) -> np.ndarray:
    """Returns a bool mask, as `in_rationale`, of the first tokens of each step and the answer."""
    steps = tokenized.steps
    first = np.diff(steps.values, prepend=-1) != 0
    first[steps.offsets[:-1]] = True
    return first


def tokenize(
    records: Sequence[Record],
    tokenizer: "PreTrainedTokenizerFast",
    *,
    prompt: str | Sequence[str],
    answer_template: str | Sequence[str],
    max_question_tokens: int,
    max_target_tokens: int,
    decoder_only: bool = False,
    need_rationale: bool = True,
) -> tuple[TokenizedSet, list[Rejected]]:
    """Tokenizes records; those that do not fit whole are rejected with a reason, never truncated.

    Characters that the tokenizer does not know are first rewritten, see `characters.py`.

    A token belongs to the step of its first non-whitespace character; a whitespace token belongs to
    the step of the next such character.

    Args:
      records: the records; their order is kept.
      tokenizer: from `tokenizers.load_tokenizer`.
      prompt: the encoder's input, with `{question}` in it; one for all records, or one per record.
      answer_template: the answer sentence, with `{answer}` in it; one for all records, or one per
        record. In the latter case it may be "", and the target is the rationale alone.
      max_question_tokens: maximum length of a prompt, EOS included.
      max_target_tokens: maximum length of a target, EOS included.
      decoder_only: see `TokenizedSet.questions`.
      need_rationale: whether to reject records without steps; if False, the target of such a record
        is the answer sentence alone, and n_i = 0.

    Returns:
      The tokenized set, and the rejected records in their order.

    Raises:
      UserError: a template lacks its placeholder, or a decoder-only student's prompts end in
        different tokens.
    """
    prompts, templates = _broadcast(prompt, len(records)), _broadcast(answer_template, len(records))
    for template in dict.fromkeys(prompts):
        _check_template("prompt", template, "{question}")
    for template in dict.fromkeys(templates):
        if template or isinstance(answer_template, str):
            _check_template("answer_template", template, "{answer}")
    records = list(map(Characters(tokenizer).rewrite_record, records))
    rejected = {i: reason for i, r in enumerate(records) if (reason := _missing(r, need_rationale))}
    kept = [i for i in range(len(records)) if i not in rejected]

    questions = _prompts(
        tokenizer,
        [records[i].question for i in kept],
        [prompts[i] for i in kept],
        decoder_only,
    )
    answers = _encode(tokenizer, [records[i].answer for i in kept])
    texts = [_target_text(records[i], templates[i]) for i in kept]
    encoded = _call(tokenizer, texts, offsets=True)
    eos_id = _eos_id(tokenizer)
    special = {eos_id, cast(int, tokenizer.pad_token_id)}
    controls = {token for token in tokenizer.all_special_tokens if token != tokenizer.unk_token}
    for i, question, answer, target, spans in zip(
        kept, questions, answers, encoded["input_ids"], encoded["offset_mapping"], strict=True
    ):
        target.append(eos_id)
        if records[i].steps and spans[0][0] >= len(records[i].rationale.rstrip()):
            rejected[i] = "the tokenizer produces no tokens for its rationale"
        elif len(answer) == 1 or tokenizer.unk_token_id in answer:
            rejected[i] = (
                f"the tokenizer cannot represent its answer {records[i].answer!r}, so no student "
                "can write it"
            )
        elif len(question) > max_question_tokens:
            rejected[i] = (
                f"its prompt has {len(question)} tokens, more than max_question_tokens="
                f"{max_question_tokens}"
            )
        elif len(target) > max_target_tokens:
            rejected[i] = (
                f"its rationale and answer have {len(target)} tokens, more than "
                f"max_target_tokens={max_target_tokens}"
            )
        elif not special.isdisjoint(answer[:-1] + target[:-1]) or any(
            token in records[i].question for token in controls
        ):
            rejected[i] = (
                f"its text contains a special token, such as {tokenizer.eos_token} or "
                f"{tokenizer.pad_token}, which would end it, count as padding or begin a turn"
            )
    good = [place for place, i in enumerate(kept) if i not in rejected]
    aligned = _align(
        [records[kept[place]] for place in good],
        [texts[place] for place in good],
        Ragged.from_list([encoded["input_ids"][place] for place in good], np.int32),
        [encoded["offset_mapping"][place] for place in good],
    )
    result = dataclasses.replace(
        aligned,
        questions=Ragged.from_list([questions[place] for place in good], np.int32),
        answers=Ragged.from_list([answers[place] for place in good], np.int32),
    )
    return result, [Rejected(records[i].id, rejected[i]) for i in sorted(rejected)]


def tokenize_questions(
    records: Sequence[Record],
    tokenizer: "PreTrainedTokenizerFast",
    *,
    prompt: str,
    decoder_only: bool = False,
) -> Ragged:
    """Tokenizes only the prompts, of all records at any length, for generation.

    Returns:
      N slices of int32, as `TokenizedSet.questions`.

    Raises:
      UserError: the prompt lacks its placeholder.
    """
    _check_template("prompt", prompt, "{question}")
    rewrite = Characters(tokenizer).rewrite
    questions = [rewrite(record.question) for record in records]
    prompts = [prompt] * len(questions)
    return Ragged.from_list(_prompts(tokenizer, questions, prompts, decoder_only), np.int32)


def resolve_prompt(
    tokenizer: "PreTrainedTokenizerFast",
    prompt: str,
    *,
    decoder_only: bool,
    chat: bool,
    date: datetime.date | None = None,
) -> str:
    """Returns the final prompt template: `prompt`, or `prompt` inside the chat template.

    A decoder-only student's rationale directly follows the prompt. If the tokenizer would join them
    without a space ("step.Tom has"), a newline is appended to the template.

    Args:
      tokenizer: from `tokenizers.load_tokenizer`.
      prompt: template with `{question}` in it.
      decoder_only: whether prompt and target are one sequence.
      chat: whether prompt and target are a user turn and an assistant turn in the tokenizer's chat
        template.
      date: the current date to chat templates that ask for it; None: today's.

    Raises:
      UserError: the tokenizer has no usable chat template.
    """
    if chat:
        try:
            turns = [{"role": "user", "content": prompt}]
            dated = _dated(tokenizer.get_chat_template(), date or datetime.date.today())
            text = chat_template.render(tokenizer, turns, **dated)
        except (UserError, ValueError) as error:
            raise UserError(
                "student.chat=True, but the tokenizer has no usable chat template: "
                f"{one_line(error)} Set student.chat=False for a base model."
            ) from error
        if "{question}" in prompt and "{question}" not in text:
            raise UserError(
                "student.chat=True, but the tokenizer's chat template drops the question "
                "({question} in student.prompt). Set student.chat=False for a base model."
            )
        prompt = text
    elif decoder_only and not prompt[-1].isspace():
        ids = _call(tokenizer, ["a"])["input_ids"][0]
        if tokenizer.decode([*ids, *ids]) == "aa":
            prompt += "\n"
    return prompt


# Defines the function with which chat templates ask for the current date. The empty expression
# keeps the whitespace after it.
_DATE_MACRO = (
    "{%- macro strftime_now(format) %}{% set date = namespace(text=format) %}"
    "{% for name, value in date_directives.items() %}"
    "{% set date.text = date.text.replace(name, value) %}{% endfor %}"
    "{{ date.text }}{% endmacro %}{{ '' }}"
)
_DIRECTIVES = ("%-d", "%-m", *(f"%{letter}" for letter in "aAbBcdeHIjmMpSUwWxXyYzZ%"))


def _dated(template: str, date: datetime.date) -> dict[str, Any]:
    """Returns the arguments with which a chat template has a fixed date.

    transformers passes no functions to templates, hence a macro.
    """
    if "strftime_now" not in template:
        return {}
    directives = {name: date.strftime(name) for name in _DIRECTIVES}
    return {"chat_template": _DATE_MACRO + template, "date_directives": directives}


def decoder_start(tokenizer: "PreTrainedTokenizerFast", prompt: str) -> int:
    """Returns the first input token of a decoder-only student's decoder, the last of each prompt.

    Raises:
      UserError: prompts end with the question, so their last token varies.
    """
    ends = {_call(tokenizer, [prompt.replace("{question}", q)])["input_ids"][0][-1] for q in "7.a"}
    if len(ends) > 1:
        raise UserError(
            f"student.prompt={prompt!r} ends with the question, but a decoder-only student needs "
            'text after it, such as "A: Let\'s think step by step.".'
        )
    return ends.pop()


def _prompts(
    tokenizer: "PreTrainedTokenizerFast",
    questions: list[str],
    prompts: list[str],
    decoder_only: bool,
) -> list[list[int]]:
    texts = [p.replace("{question}", q) for p, q in zip(prompts, questions, strict=True)]
    if not decoder_only:
        return _encode(tokenizer, texts)
    # Tokens the tokenizer puts before every text, such as LLaMA's <s>.
    full, plain = tokenizer("a").input_ids, _call(tokenizer, ["a"])["input_ids"][0]
    prefix = full[: len(full) - len(plain)] if full[-len(plain) :] == plain else []
    bos = tokenizer.bos_token
    result, ends = [], {}
    for prompt, ids in zip(prompts, _call(tokenizer, texts)["input_ids"], strict=True):
        ends.setdefault(ids[-1], prompt)
        # A chat template already includes BOS.
        has_prefix = bos is not None and prompt.startswith(str(bos))
        result.append([*([] if has_prefix else prefix), *ids[:-1]])
    if len(ends) > 1 and len(set(prompts)) > 1:  # `decoder_start` checks a single prompt.
        examples = " and ".join(repr(prompt[-40:]) for prompt in list(ends.values())[:2])
        raise UserError(
            f"Prompts end in different tokens: {examples}. A decoder-only student requires the "
            "same last token in all; change student.prompt or baseline.answer_prompt."
        )
    return result


def _broadcast(value: str | Sequence[str], count: int) -> Sequence[str]:
    return [value] * count if isinstance(value, str) else value


def _check_template(name: str, template: str, placeholder: str) -> None:
    if template.count(placeholder) != 1:
        raise UserError(
            f"{name}={template!r} must contain {placeholder} exactly once; change it in the "
            "configuration."
        )


def _missing(record: Record, need_rationale: bool) -> str | None:
    for what, text in (
        ("question", record.question),
        *((("rationale", record.rationale),) if need_rationale or record.steps else ()),
        ("answer", record.answer),
    ):
        if not text.strip():
            return f"its {what} is empty"
    return None


def _target_text(record: Record, answer_template: str) -> str:
    rationale, sentence = record.rationale, answer_template.replace("{answer}", record.answer)
    space = " " if rationale and sentence and not rationale[-1].isspace() else ""
    return rationale + space + sentence


def _call(tokenizer: "PreTrainedTokenizerFast", texts: list[str], offsets: bool = False):
    if not texts:
        return {"input_ids": [], "offset_mapping": []}
    return tokenizer(
        texts,
        add_special_tokens=False,
        return_attention_mask=False,
        return_offsets_mapping=offsets,
        verbose=False,
    )


def _encode(tokenizer: "PreTrainedTokenizerFast", texts: list[str]) -> list[list[int]]:
    """Returns the token ids of each text, followed by EOS."""
    eos_id = _eos_id(tokenizer)
    return [[*ids, eos_id] for ids in _call(tokenizer, texts)["input_ids"]]


def _eos_id(tokenizer: "PreTrainedTokenizerFast") -> int:
    return cast(int, tokenizer.eos_token_id)  # Its type allows for lists of tokens.


def _align(
    records: list[Record],
    texts: list[str],
    targets: Ragged,
    offsets: list[list[tuple[int, int]]],
) -> TokenizedSet:
    """Finds the step and the characters of every token, for all records at once.

    The texts are concatenated, so that an index into all Z characters identifies both an example
    and a character in it. `questions` and `answers` of the result are left empty.
    """
    text_starts = offsets_of([len(text) for text in texts])
    lengths = targets.lengths
    # EOS, the last token of each target, is placed at the end of its text.
    spans_Mx2 = np.array(
        [
            pair
            for text, spans in zip(texts, offsets, strict=True)
            for pair in (*spans, (len(text),) * 2)
        ],
        np.int64,
    ).reshape(-1, 2)
    example_M = np.repeat(np.arange(len(records)), lengths)
    text_start_M = text_starts[example_M]

    # Position of the first non-whitespace character at or after each token's start.
    solid_Z = ~np.isin(np.frombuffer("".join(texts).encode("utf-32-le"), np.uint32), _WHITESPACE)
    next_solid = np.append(np.where(solid_Z, np.arange(len(solid_Z)), len(solid_Z)), len(solid_Z))
    next_solid = np.minimum.accumulate(next_solid[::-1])[::-1]
    place_M = np.minimum(next_solid[spans_Mx2[:, 0] + text_start_M], text_starts[example_M + 1])

    # A record's steps, then one more for the answer sentence, which starts at the rationale's end.
    step_counts = np.array([len(record.steps) for record in records], np.int64)
    step_starts = [offsets_of([len(step) for step in record.steps]) for record in records]
    starts = np.concatenate(
        [s + t for s, t in zip(step_starts, text_starts, strict=False)] or [np.zeros(0, np.int64)]
    )
    step_M = np.searchsorted(starts, place_M, side="right") - 1
    first_step = offsets_of(step_counts + 1)
    # EOS lies where the next text starts.
    step_M = np.minimum(step_M, first_step[example_M + 1] - 1)
    used = np.zeros(len(starts), bool)
    used[step_M] = True
    # Renumber within each example, skipping steps without tokens.
    rank = np.cumsum(used) - used
    step_M = rank[step_M] - rank[first_step[example_M]]

    num_steps = np.add.reduceat(used, first_step[:-1]) - 1 if records else np.zeros(0, np.int64)
    in_rationale_M = step_M < num_steps[example_M]
    rationale_lengths = np.bincount(example_M[in_rationale_M], minlength=len(records))

    rationale_ends = np.array([len(record.rationale) for record in records], np.int64)
    local_M = place_M - text_start_M
    end_M = np.minimum(spans_Mx2[:, 1], rationale_ends[example_M])
    char_spans = np.stack([np.minimum(local_M, end_M), end_M], axis=1)[in_rationale_M]
    empty = Ragged(np.zeros(0, np.int32), np.zeros(len(records) + 1, np.int64))
    return TokenizedSet(
        records=tuple(
            _join_steps(record, used[first : first + count])
            for record, first, count in zip(records, first_step, step_counts, strict=False)
        ),
        questions=empty,
        targets=targets,
        steps=Ragged(step_M.astype(np.int32), targets.offsets),
        answers=empty,
        num_steps=num_steps.astype(np.int32),
        rationale_lengths=rationale_lengths.astype(np.int32),
        rationale_char_spans=Ragged.from_lengths(char_spans.astype(np.int32), rationale_lengths),
    )


def _join_steps(record: Record, used: np.ndarray) -> Record:
    """Joins every step without tokens to the step before it (the first one to the next)."""
    if used.all():
        return record
    group = np.maximum(np.cumsum(used) - 1, 0)
    members = [np.flatnonzero(group == g) for g in range(group[-1] + 1)]
    steps = tuple("".join(record.steps[k] for k in ks) for ks in members)
    hardness = record.hardness
    if hardness is not None:
        hardness = tuple(max(hardness[k] for k in ks) for ks in members)
    return dataclasses.replace(record, steps=steps, hardness=hardness)
