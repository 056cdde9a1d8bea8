"""Finds question, rationale and answer in rows of the formats that people have."""

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from kpod_jax.data import answers, jsonl, solutions

COLUMNS = {"question": "question", "rationale": "rationale", "answer": "answer", "id": "id"}

# Usual names of columns, the first choice first; upper case, spaces and hyphens do not matter.
_CHATS = ("messages", "conversations", "conversation")
_QUESTIONS = ("question", "problem", "query", "instruction", "prompt", "input")
# What else belongs to the question, such as Alpaca's input.
_CONTEXTS = {"instruction": ("input", "context")}
_RATIONALES = (
    *("rationale", "reasoning_content", "reasoning", "thinking", "thought", "cot"),
    *("chain_of_thought", "complex_cot", "explanation", "steps"),
)
# A text of rationale and answer.
_SOLUTIONS = ("solution", "generated_solution", "response", "completion", "output", "generation")
_ANSWERS = ("answer", "final_answer", "expected_answer", "ground_truth", "gold_answer", "target")
_ROLES = {
    "user": ("user", "human", "prompter"),
    "assistant": ("assistant", "gpt", "model", "chatgpt", "bot"),
    "system": ("system", "developer"),
}
_ROLE_OF = {name: role for role, names in _ROLES.items() for name in names}
# What a missing value becomes when it is written as text.
_MISSING = frozenset(
    "nan NaN NAN -nan None none null NULL Null <NA> N/A n/a #N/A NaT undefined".split()
)
# Rows that are looked at to recognise a format.
SAMPLE = 100


class Format(NamedTuple):
    """The columns that a record is read from.

    Attributes:
      question: column of the question.
      context: column of text that follows the question, or "".
      rationale: column of the rationale, or "".
      solution: column of a text with rationale and answer, or "".
      answer: column of the answer alone, or "".
      id: column of the id.
    """

    question: str
    context: str
    rationale: str
    solution: str
    answer: str
    id: str

    def __str__(self) -> str:
        """Returns a sentence about the columns."""
        named = {"the question": self.question, "the context": self.context}
        named |= {"the rationale": self.rationale or self.solution}
        named |= {"the answer": self.answer or self.solution or self.rationale}
        by_column: dict[str, list[str]] = {}
        for what, column in named.items():
            if column:
                by_column.setdefault(column, []).append(what)
        texts = [f"{' and '.join(what)} from {column!r}" for column, what in by_column.items()]
        chat = " (without system messages)" if self.question == self.solution else ""
        return f"read {', '.join(texts)}{chat}"


def recognize(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str] = COLUMNS) -> Format:
    """Returns the format of a data set by the names of its columns.

    Args:
      rows: some of its rows.
      columns: columns by the names in COLUMNS; others than these names are taken as they are.
    """
    names = dict.fromkeys(itertools.chain.from_iterable(rows))
    by_plain = {_plain_name(name): name for name in reversed(names)}
    given = {what: column for what, column in columns.items() if column != COLUMNS[what]}

    def first(candidates: Sequence[str], what: str = "") -> str:
        found = (by_plain[name] for name in candidates if name in by_plain)
        return given.get(what) or next(found, "")

    question = first(_QUESTIONS, "question")
    answer, solution, chat = first(_ANSWERS, "answer"), first(_SOLUTIONS), first(_CHATS)
    # A column of flags, such as Nemotron's `reasoning`, is no rationale.
    texts = [n for n in _RATIONALES if n == "rationale" or _has_sentence(rows, by_plain.get(n, ""))]
    rationale = first(texts, "rationale")
    if _plain_name(rationale) == "reasoning_content":
        solution = solution or first(("content",))
    if chat and not (question and (rationale or solution or answer)):
        question, solution = given.get("question", chat), chat
    question = question or COLUMNS["question"]
    context = "" if "question" in given else first(_CONTEXTS.get(_plain_name(question), ()))
    if not solution and (not rationale or rationale == answer):
        # The answer's column may hold a whole solution, such as GSM8K's.
        rationale, solution, answer = "", answer or COLUMNS["answer"], ""
    elif not solution and not answer:
        rationale, solution = "", rationale
    return Format(question, context, rationale, solution, answer, first(("id",), "id") or "id")


def is_usual(format_: Format, rows: Sequence[Mapping[str, Any]]) -> bool:
    """Returns whether rows have the columns of COLUMNS, so that there is nothing to say."""
    named = {format_.question, format_.rationale, format_.answer or format_.solution}
    has_solution = _has_sentence(rows, format_.solution) and not format_.answer
    return not format_.context and not has_solution and named - {""} <= set(COLUMNS.values())


def read_question(row: Mapping[str, Any], format_: Format) -> str:
    """Returns the question of a row.

    Raises:
      ValueError: there is none, or the row is a conversation of several turns.
    """
    text = _text(row, "question", format_.question, "user")
    context = _text(row, "question", format_.context, required=False)
    return f"{text}\n\n{context}" if context else text


def read_answer_and_rationale(
    row: Mapping[str, Any], format_: Format, question: str, kind: str, *, need_rationale: bool
) -> tuple[str, str]:
    """Returns the answer of a row, and its rationale without the sentence that states the answer.

    Args:
      row: values by column.
      format_: from `recognize`.
      question: from `read_question`.
      kind: kind of the answer.
      need_rationale: whether the rationale is required; if False, it may be "".

    Raises:
      ValueError: a text is missing or empty, or the answer is not of the kind.
    """
    if kind == "yes_no":
        words = {True: "yes", False: "no"}
        row = {key: words[v] if isinstance(v, bool) else v for key, v in row.items()}
    answer = _text(row, "answer", format_.answer, required=not format_.solution)
    answer = solutions.stated_answer(answer) if "####" in answer else answer
    answer = solutions.plain_answer(answer, kind) or answer
    needed = not answer or (need_rationale and not format_.rationale)
    what = "rationale" if answer else "answer"
    solution = _text(row, what, format_.solution, "assistant", required=needed)
    if answer:
        reasoning = solutions.rationale_of(solution, answer, kind)
    else:
        reasoning, answer = solutions.split_solution(solution, kind)
    if not answer:
        answers.parse_gold(solution, kind, question)  # Usually raises a better error.
        raise ValueError(f"states no answer in {format_.solution!r}")
    answers.parse_gold(answer, kind, question)
    rationale = _text(
        row,
        "rationale",
        format_.rationale,
        required=need_rationale and bool(format_.rationale),
    )
    if rationale:
        rationale = solutions.rationale_of(rationale, answer, kind) or rationale
    rationale = rationale or reasoning
    if need_rationale and not rationale:
        if format_.solution == COLUMNS["answer"]:
            column(row, "rationale", COLUMNS)
        raise ValueError(f"has no rationale in {format_.solution!r}, only an answer")
    return answer, rationale


def column(
    row: Mapping[str, Any], name: str, columns: Mapping[str, str], *, required: bool = True
) -> str:
    """Returns the text of a column in COLUMNS, or "" if it is missing and not required.

    Raises:
      ValueError: it is missing, empty, not text, or the text of a missing value, such as "nan"; the
        message lists the existing columns and how to select one.
    """
    return _text(row, name, columns.get(name, name), required=required)


def _text(
    row: Mapping[str, Any], what: str, actual: str, role: str = "", *, required: bool = True
) -> str:
    """Returns the text of a column, or of a conversation's turn of a role in it."""
    if not actual and not required:
        return ""
    if actual not in row and required:
        names = [*map(repr, itertools.islice(row, 20)), *(["…"] if len(row) > 20 else [])]
        raise ValueError(
            f"has no {actual!r}; its columns are {', '.join(names) or 'none'} (set "
            f"--config.data.columns.{what} to the right one)"
        )
    value = row.get(actual)
    value = value.tolist() if isinstance(value, np.ndarray) else value
    if isinstance(value, list | tuple) and value:
        if role and all(isinstance(turn, Mapping) for turn in value):
            row = {actual: _turn(value, role)}
        elif what == "rationale" and all(isinstance(step, str) for step in value):
            joined = "".join(s if s[-1:].isspace() else f"{s}\n" for s in value)
            row = {actual: joined}
    text = jsonl.text_column(row, actual, required=required)
    if text in _MISSING:
        if required:
            raise ValueError(f"has an empty {actual!r}: {text!r} stands for a missing value")
        return ""
    return text


def _turn(messages: Sequence[Mapping[str, Any]], role: str) -> str:
    """Returns what one role says in a conversation, with its thought in `<think>`.

    Raises:
      ValueError: the conversation has more than one question and one reply, or anything but text.
    """
    names = [str(turn.get("role") or turn.get("from") or "").lower() for turn in messages]
    if unknown := next((name for name in names if name not in _ROLE_OF), None):
        raise ValueError(f"has a turn of {unknown!r}; expected turns of user and assistant")
    turns = [(_ROLE_OF.get(n), turn) for n, turn in zip(names, messages, strict=True)]
    turns = [(name, turn) for name, turn in turns if name != "system"]
    if [name for name, _ in turns] not in (["user", "assistant"], ["user"], ["assistant"]):
        raise ValueError(
            f"is a conversation of {len(turns)} turns; expected one question and one reply"
        )
    turn = next((turn for name, turn in turns if name == role), {})
    text = next((turn[key] for key in ("content", "value", "text") if turn.get(key)), "")
    keys = ("reasoning_content", "reasoning", "thinking")
    thought = next((turn[key] for key in keys if turn.get(key)), "")
    if isinstance(text, list):
        parts = [part if isinstance(part, Mapping) else {"text": part} for part in text]
        thought = thought or "".join(str(part.get("thinking") or "") for part in parts)
        if kinds := {part.get("type", "text") for part in parts} - {"text", "thinking"}:
            raise ValueError(f"has a turn with a part of type {kinds.pop()!r}; expected text")
        text = "".join(str(part.get("text") or "") for part in parts)
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"has no text of the {role}")
    return f"<think>{thought}</think>{text}" if thought else text


def _plain_name(name: Any) -> str:
    return re.sub(r"[\s-]+", "_", str(name).strip().lower())


def _has_sentence(rows: Sequence[Mapping[str, Any]], name: str) -> bool:
    values = [row[name] for row in rows if name in row]
    return any(isinstance(v, list) or (isinstance(v, str) and " " in v) for v in values)
