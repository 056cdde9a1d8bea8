"""Tokenized records: prompts, targets, and the step of every rationale token.

Rationale and answer sentence are tokenized as ONE text, just as the student writes them, and then
separated by the tokenizer's offsets.

Letters: N examples; flat arrays over all of them have M tokens or Z characters.
"""

import dataclasses
import datetime
import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from kpod_jax.data import chat_template
from kpod_jax.data.characters import Characters
from kpod_jax.data.record_store import RecordStore, chunks
from kpod_jax.data.records import Ragged, Record, Rejected, offsets_of
from kpod_jax.data.scratch import ArrayFile
from kpod_jax.data.text_files import MAX_SPACE, has_endless_space
from kpod_jax.utils.errors import UserError, one_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_WHITESPACE = np.array([c for c in range(0x3001) if chr(c).isspace()], np.uint32)

# Characters that every text may have, and by how much longer than its tokens a text may be.
_MIN_CHARACTERS, _MARGIN = 1 << 16, 8


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

    records: Sequence[Record]
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
    lengths_N = tokenized.rationale_lengths
    counts_Nx2 = np.stack([lengths_N, tokenized.targets.lengths - lengths_N], axis=1)
    return np.repeat(np.tile([True, False], len(lengths_N)), counts_Nx2.ravel())


def step_starts(tokenized: TokenizedSet) -> np.ndarray:
    """Returns a bool mask, as `in_rationale`, of the first tokens of each step and the answer."""
    steps = tokenized.steps
    first = np.diff(steps.values, prepend=-1) != 0
    first[steps.offsets[:-1]] = True
    return first


def tokenize(
    records: Iterable[Record],
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
    for template in _distinct(prompt):
        _check_template("prompt", template, "{question}")
    for template in _distinct(answer_template):
        if template or isinstance(answer_template, str):
            _check_template("answer_template", template, "{answer}")
    work = _Tokenization(
        tokenizer,
        Characters(tokenizer),
        (max_question_tokens, max_target_tokens),
        longest_piece(tokenizer),
        decoder_only,
        need_rationale,
        {} if len(_distinct(prompt)) > 1 else None,
    )
    examples = zip(_repeated(prompt), _repeated(answer_template), records, strict=False)
    rejected: list[Rejected] = []

    def parts() -> Iterator[TokenizedSet]:
        for chunk in chunks(examples):
            part, bad = work(*map(list, zip(*chunk, strict=True)))
            rejected.extend(bad)
            yield part

    return join(parts()), rejected


@dataclasses.dataclass(frozen=True)
class _Tokenization:
    """Tokenizes a chunk of records.

    Attributes:
      tokenizer: the tokenizer.
      characters: its characters.
      limits: maximum tokens of a prompt and of a target.
      longest: characters of its longest token.
      decoder_only: as for `tokenize`.
      need_rationale: as for `tokenize`.
      ends: a prompt for each last token, over all chunks; None if there is only one prompt.
    """

    tokenizer: "PreTrainedTokenizerFast"
    characters: Characters
    limits: tuple[int, int]
    longest: int
    decoder_only: bool
    need_rationale: bool
    ends: dict[int, str] | None

    def __call__(
        self, prompts: list[str], templates: list[str], records: list[Record]
    ) -> tuple[TokenizedSet, list[Rejected]]:
        """Returns the tokenized records, and the others."""
        tokenizer = self.tokenizer
        rejected = {i: why for i, record in enumerate(records) if (why := self._missing(record))}
        records = [
            record if i in rejected else self.characters.rewrite_record(record)
            for i, record in enumerate(records)
        ]
        kept = [i for i in range(len(records)) if i not in rejected]
        questions = _prompts(
            tokenizer,
            [records[i].question for i in kept],
            [prompts[i] for i in kept],
            self.decoder_only,
            self.ends,
        )
        answers = _encode(tokenizer, [records[i].answer for i in kept])
        texts = [_target_text(records[i], templates[i]) for i in kept]
        encoded = _call(tokenizer, texts, offsets=True)
        for i, question, answer, target, spans in zip(
            kept, questions, answers, encoded["input_ids"], encoded["offset_mapping"], strict=True
        ):
            target.append(_eos_id(tokenizer))
            if reason := self._misfit(records[i], question, answer, target, spans):
                rejected[i] = reason
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

    def _missing(self, record: Record) -> str | None:
        """Returns what is wrong with a record before it is tokenized."""
        needed = self.need_rationale or record.steps
        for what, text in (
            ("question", record.question),
            *((("rationale", record.rationale),) if needed else ()),
            ("answer", record.answer),
        ):
            if not text or text.isspace():
                return f"its {what} is empty"
        target = record.rationale + record.answer
        for what, text, name, tokens in (
            ("question has", record.question, "max_question_tokens", self.limits[0]),
            ("rationale and answer have", target, "max_target_tokens", self.limits[1]),
        ):
            if exceeds(text, tokens, self.longest):
                return f"its {what} {len(text):,} characters, too many for {name}={tokens}"
            if has_endless_space(text):
                return f"its {what} more than {MAX_SPACE:,} spaces in a row"
        return None

    @functools.cached_property
    def _special(self) -> set[int]:
        return {_eos_id(self.tokenizer), cast(int, self.tokenizer.pad_token_id)}

    @functools.cached_property
    def _controls(self) -> set[str]:
        return {*self.tokenizer.all_special_tokens} - {str(self.tokenizer.unk_token)}

    def _misfit(
        self,
        record: Record,
        question: list[int],
        answer: list[int],
        target: list[int],
        spans: list[tuple[int, int]],
    ) -> str | None:
        """Returns what is wrong with the tokens of a record."""
        tokenizer, (max_question_tokens, max_target_tokens) = self.tokenizer, self.limits
        if record.steps and spans[0][0] >= len(record.rationale.rstrip()):
            return "the tokenizer produces no tokens for its rationale"
        if len(answer) == 1 or tokenizer.unk_token_id in answer:
            return (
                f"the tokenizer cannot represent its answer {record.answer!r}, so no student can "
                "write it"
            )
        if len(question) > max_question_tokens:
            return (
                f"its prompt has {len(question)} tokens, more than max_question_tokens="
                f"{max_question_tokens}"
            )
        if len(target) > max_target_tokens:
            return (
                f"its rationale and answer have {len(target)} tokens, more than "
                f"max_target_tokens={max_target_tokens}"
            )
        if not self._special.isdisjoint(answer[:-1] + target[:-1]) or any(
            token in record.question for token in self._controls
        ):
            return (
                f"its text contains a special token, such as {tokenizer.eos_token} or "
                f"{tokenizer.pad_token}, which would end it, count as padding or begin a turn"
            )
        return None


def longest_piece(tokenizer: "PreTrainedTokenizerFast") -> int:
    """Returns the characters of the longest token in a vocabulary."""
    return max(map(len, tokenizer.get_vocab()), default=1)


def exceeds(text: str, tokens: int, longest: int) -> bool:
    """Returns whether a text is too long for a number of tokens, however it is tokenized.

    The margin is for tokenizers that compose characters, or take a run of unknown ones as one.

    Args:
      text: the text.
      tokens: the number of tokens.
      longest: from `longest_piece`.
    """
    return len(text) > max(_MIN_CHARACTERS, _MARGIN * tokens * longest)


def join(parts: Iterable[TokenizedSet]) -> TokenizedSet:
    """Joins consecutive examples; a single part is returned as it is.

    The result of several parts is in temporary files if it is large.
    """
    parts = iter(parts)
    first, second = next(parts, None), next(parts, None)
    if first is None:
        return _align([], [], Ragged.from_list([], np.int32), [])
    if second is None:
        return first
    records = RecordStore()
    names = [field.name for field in dataclasses.fields(TokenizedSet) if field.name != "records"]
    values = {name: ArrayFile() for name in names}
    lengths = {name: [] for name in values}
    for part in itertools.chain([first, second], parts):
        records.extend(part.records)
        for name in names:
            array = getattr(part, name)
            if isinstance(array, Ragged):
                lengths[name].append(array.lengths)
                array = array.values
            values[name].append(array)
    arrays: dict[str, Any] = {
        name: Ragged.from_lengths(
            file.array().reshape(-1, *getattr(first, name).values.shape[1:]),
            np.concatenate(lengths[name]),
        )
        if lengths[name]
        else file.array()
        for name, file in values.items()
    }
    return TokenizedSet(records=records, **arrays)


def tokenize_questions(
    records: Iterable[Record],
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
    values, lengths = ArrayFile(), [np.zeros(0, np.int64)]
    for chunk in chunks(records):
        questions = [rewrite(record.question) for record in chunk]
        ids = _prompts(tokenizer, questions, [prompt] * len(questions), decoder_only)
        part = Ragged.from_list(ids, np.int32)
        values.append(part.values)
        lengths.append(part.lengths)
    return Ragged.from_lengths(values.array(), np.concatenate(lengths))


def resolve_prompt(
    tokenizer: "PreTrainedTokenizerFast",
    prompt: str,
    *,
    decoder_only: bool,
    chat: bool,
    date: datetime.date | None = None,
    system: str = "",
    values: Mapping[str, Any] | None = None,
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
      system: system turn before the user turn; "": none.
      values: further arguments of the chat template.

    Raises:
      UserError: the tokenizer has no usable chat template.
    """
    if chat:
        try:
            turns = [{"role": "system", "content": system}] if system else []
            turns += [{"role": "user", "content": prompt}]
            dated = _dated(tokenizer.get_chat_template(), date or datetime.date.today())
            text = chat_template.render(tokenizer, turns, **(values or {}), **dated)
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
        if system.strip() not in text:
            raise UserError(
                "student.system_prompt: the tokenizer's chat template drops the system turn. Leave "
                "it empty, and write the text into student.prompt."
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
    ends: dict[int, str] | None = None,
) -> list[list[int]]:
    texts = [p.replace("{question}", q) for p, q in zip(prompts, questions, strict=True)]
    if not decoder_only:
        return _encode(tokenizer, texts)
    # Tokens the tokenizer puts before every text, such as LLaMA's <s>.
    full, plain = tokenizer("a").input_ids, _call(tokenizer, ["a"])["input_ids"][0]
    prefix = full[: len(full) - len(plain)] if full[-len(plain) :] == plain else []
    bos = tokenizer.bos_token
    result = []
    for prompt, ids in zip(prompts, _call(tokenizer, texts)["input_ids"], strict=True):
        if ends is not None:
            ends.setdefault(ids[-1], prompt)
        # A chat template already includes BOS.
        has_prefix = bos is not None and prompt.startswith(str(bos))
        result.append([*([] if has_prefix else prefix), *ids[:-1]])
    if ends is not None and len(ends) > 1:  # `decoder_start` checks a single prompt.
        examples = " and ".join(repr(prompt[-40:]) for prompt in list(ends.values())[:2])
        raise UserError(
            f"Prompts end in different tokens: {examples}. A decoder-only student requires the "
            "same last token in all; change student.prompt or baseline.answer_prompt."
        )
    return result


def _repeated(value: str | Sequence[str]) -> Iterable[str]:
    return itertools.repeat(value) if isinstance(value, str) else value


def _distinct(value: str | Sequence[str]) -> list[str]:
    return [value] if isinstance(value, str) else [*dict.fromkeys(value)]


def _check_template(name: str, template: str, placeholder: str) -> None:
    if template.count(placeholder) != 1:
        raise UserError(
            f"{name}={template!r} must contain {placeholder} exactly once; change it in the "
            "configuration."
        )


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
