"""Builds chat completion requests from questions."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import kpod_jax
from kpod_jax.config.defaults import Config
from kpod_jax.data import jsonl
from kpod_jax.teacher import fields
from kpod_jax.teacher.questions import Question
from kpod_jax.utils import files
from kpod_jax.utils.errors import UserError
from kpod_jax.utils.files import PathLike

# Settings that answers depend on, in addition to the examples.
_SETTINGS = ("model", "style", "prompt", "instruction", "temperature", "top_p", "max_tokens")
_DEFAULT_EXAMPLES = pathlib.Path(kpod_jax.__file__).parent / "assets" / "few_shot.jsonl"


@dataclasses.dataclass(frozen=True)
class Request:
    """Request for one sample.

    Attributes:
      id: id of the record.
      sample: number of the sample, from 0.
      digest: digest of the question's text, so answers are never matched to another question.
      body: body of the chat completion request.
    """

    id: str
    sample: int
    digest: str
    body: dict[str, Any]

    @property
    def key(self) -> tuple[str, int, str]:
        """Unique key of the request."""
        return self.id, self.sample, self.digest

    @property
    def names(self) -> dict[str, Any]:
        """The key's fields, as stored in a row of answers."""
        return {"id": self.id, "sample": self.sample, "question": self.digest}


def make_requests(questions: Sequence[Question], teacher: Config) -> list[Request]:
    """Builds the requests: the first sample of each question, then the second of each, ...

    Args:
      questions: the questions.
      teacher: `teacher` of the configuration.

    Raises:
      UserError: the file of examples or `teacher.extra_body` is invalid.
    """
    examples, extra = _example_messages(teacher), fields.extra_fields(teacher)
    options: dict[str, Any] = {
        "model": teacher.model,
        teacher.max_tokens_name: teacher.max_tokens,
    }
    if teacher.temperature >= 0:
        options["temperature"] = teacher.temperature
    if teacher.top_p:
        options["top_p"] = teacher.top_p
    if teacher.logprobs:
        options |= {"logprobs": True, "top_logprobs": teacher.logprobs}
    return [
        Request(
            question.id,
            sample,
            hashlib.sha256(question.question.encode()).hexdigest()[:16],
            fields.apply(options, extra, sample)
            | {
                "messages": [
                    *examples,
                    _user_message(question.question, teacher, first=not examples),
                ],
            },
        )
        for sample in range(teacher.samples)
        for question in questions
    ]


def settings(teacher: Config) -> dict[str, Any]:
    """Returns the settings that answers depend on; answers under other settings must not mix.

    Raises:
      UserError: the file of examples cannot be read.
    """
    values = {f"teacher.{name}": teacher[name] for name in _SETTINGS}
    if teacher.logprobs:  # Left out if 0, so answers from before this key existed stay valid.
        values["teacher.logprobs"] = teacher.logprobs
    if extra := fields.extra_fields(teacher):  # Likewise.
        values["teacher.extra_body"] = json.dumps(extra, sort_keys=True, ensure_ascii=False)
    if teacher.style == "few_shot":
        values["teacher.examples"] = files.digest(teacher.examples or _DEFAULT_EXAMPLES)
    return values


def read_examples(path: PathLike) -> list[dict[str, str]]:
    """Reads worked examples, each with question, rationale and answer.

    Raises:
      UserError: the file cannot be read, is empty or has an invalid line; the message names it.
    """
    examples = []
    for number, row, problem in jsonl.read_rows(path):
        try:
            if row is None:
                raise ValueError(problem)
            names = ("question", "rationale", "answer")
            examples.append({name: jsonl.text_column(row, name) for name in names})
        except ValueError as error:
            raise UserError(
                f"{path}:{number} {error}. Expected one example per line: "
                '{"question": …, "rationale": …, "answer": …}.'
            ) from error
    if not examples:
        raise UserError(
            f"{path} has no examples. Expected at least one, or teacher.style=zero_shot."
        )
    return examples


def _example_messages(teacher: Config) -> list[dict[str, str]]:
    """Returns the examples as earlier turns of the conversation."""
    if teacher.style == "zero_shot":
        return []
    messages = []
    for number, example in enumerate(read_examples(teacher.examples or _DEFAULT_EXAMPLES)):
        messages.append(_user_message(example["question"], teacher, first=number == 0))
        reply = f"{example['rationale']} Therefore, the answer is {example['answer']}."
        messages.append({"role": "assistant", "content": reply})
    return messages


def _user_message(question: str, teacher: Config, *, first: bool) -> dict[str, str]:
    """Returns a user turn; the first one has the instruction, as some models lack system turns."""
    text = teacher.prompt.replace("{question}", question)
    return {
        "role": "user",
        "content": f"{teacher.instruction}\n\n{text}" if first and teacher.instruction else text,
    }
