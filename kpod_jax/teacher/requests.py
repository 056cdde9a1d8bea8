"""From questions to the bodies of chat completion requests."""

import dataclasses
import hashlib
import pathlib
from collections.abc import Sequence
from typing import Any

import kpod_jax
from kpod_jax.config.defaults import Config
from kpod_jax.data import jsonl
from kpod_jax.teacher.questions import Question
from kpod_jax.utils import files
from kpod_jax.utils.errors import UserError
from kpod_jax.utils.files import PathLike

# What a teacher's answers depend on, with the examples: else they are another teacher's.
_SETTINGS = ("model", "style", "prompt", "instruction", "temperature", "top_p", "max_tokens")
_OWN_EXAMPLES = pathlib.Path(kpod_jax.__file__).parent / "assets" / "few_shot.jsonl"


@dataclasses.dataclass(frozen=True)
class Request:
    """One sample that is asked for.

    Attributes:
      id: the record's.
      sample: from 0.
      digest: of the question's text, so that an answer is never taken for another question's.
      body: of the chat completion.
    """

    id: str
    sample: int
    digest: str
    body: dict[str, Any]

    @property
    def key(self) -> tuple[str, int, str]:
        """What tells it from every other."""
        return self.id, self.sample, self.digest

    @property
    def names(self) -> dict[str, Any]:
        """The same in a row of answers."""
        return {"id": self.id, "sample": self.sample, "question": self.digest}


def make_requests(questions: Sequence[Question], teacher: Config) -> list[Request]:
    """The first sample of each question, then the second of each, ...

    Args:
      questions: to ask.
      teacher: the configuration's block.

    Raises:
      UserError: the file of examples cannot be used.
    """
    before = _messages_before(teacher)
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
            {**options, "messages": [*before, _asked(question.question, teacher, not before)]},
        )
        for sample in range(teacher.samples)
        for question in questions
    ]


def settings(teacher: Config) -> dict[str, Any]:
    """What answers depend on; those made under other settings are not to be mixed with them.

    Raises:
      UserError: the file of examples cannot be read.
    """
    used = {f"teacher.{name}": teacher[name] for name in _SETTINGS}
    if teacher.logprobs:  # Without them, answers are as they were before there was such a key.
        used["teacher.logprobs"] = teacher.logprobs
    if teacher.style == "few_shot":
        used["teacher.examples"] = files.digest(teacher.examples or _OWN_EXAMPLES)
    return used


def read_examples(path: PathLike) -> list[dict[str, str]]:
    """Worked examples: question, rationale and answer of each line.

    Raises:
      UserError: the file cannot be read, is empty, or a line is none; the message names it.
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
                f"{path}:{number} {error}. Expected an example a line: "
                '{"question": …, "rationale": …, "answer": …}.'
            ) from error
    if not examples:
        raise UserError(
            f"{path} has no examples. Expected at least one, or teacher.style=zero_shot."
        )
    return examples


def _messages_before(teacher: Config) -> list[dict[str, str]]:
    """The examples as a talk that was had already."""
    if teacher.style == "zero_shot":
        return []
    messages = []
    for number, example in enumerate(read_examples(teacher.examples or _OWN_EXAMPLES)):
        messages.append(_asked(example["question"], teacher, number == 0))
        said = f"{example['rationale']} Therefore, the answer is {example['answer']}."
        messages.append({"role": "assistant", "content": said})
    return messages


def _asked(question: str, teacher: Config, first: bool) -> dict[str, str]:
    """A user's turn: models whose template knows no system turn take it as well."""
    text = teacher.prompt.replace("{question}", question)
    return {
        "role": "user",
        "content": f"{teacher.instruction}\n\n{text}" if first and teacher.instruction else text,
    }
