"""What the stages of one run share: configuration, directory, devices, student and tokens."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from kpod_jax import baselines
from kpod_jax.baselines import training_set
from kpod_jax.config.defaults import Config
from kpod_jax.data import records as records_io
from kpod_jax.data import sources, token_store, tokens
from kpod_jax.data.batches import BatchSource
from kpod_jax.data.records import Ragged, Record
from kpod_jax.evaluation import accuracy
from kpod_jax.models.layers import LoRAConfig
from kpod_jax.models.student import Student, load_student
from kpod_jax.parallel import sharding
from kpod_jax.training import forward, loop
from kpod_jax.utils import files
from kpod_jax.utils.errors import UserError
from kpod_jax.utils.workdir import Workdir

TOKENS = "records/train_tokens"  # Of `data.token_store`, without a suffix.


def say(line: str) -> None:
    """Prints a line for the user, once for all processes."""
    if jax.process_index() == 0:
        print(line, flush=True)


class Run:
    """A run's configuration and directory, and what stages share, made when first asked for."""

    def __init__(self, config: Config, workdir: Workdir) -> None:
        """Starts nothing yet."""
        self.config = config
        self.workdir = workdir

    @functools.cached_property
    def mesh(self) -> jax.sharding.Mesh:
        """The devices."""
        return sharding.make_mesh(**self.config.mesh)

    @functools.cached_property
    def student(self) -> Student:
        """Model and tokenizer, without parameters."""
        student = self.load_student(self.config.student.model)
        if self.config.distill.pack and not student.decoder_only:
            raise UserError(
                f"distill.pack={self.config.distill.pack}: the student {student.model!r} has an "
                "encoder, and only decoder-only students' rows are packed; expected 0."
            )
        if student.decoder_only and self.config.distill.input_steps == "encoder":
            raise UserError(
                f"distill.input_steps='encoder': the student {student.model!r} has no encoder; "
                "expected decoder."
            )
        return student

    def load_student(self, model: str, *, adapters: bool = True, **options: Any) -> Student:
        """A model under the student's settings, perhaps without its adapters.

        Args:
          model: directory, or id on the hub.
          adapters: whether it has those of `student.lora`.
          **options: of `models.student.load_student`, in place of the configuration's.
        """
        config = self.config.student
        lora = None
        if config.lora.rank and adapters:
            lora = LoRAConfig(**(config.lora.to_dict() | {"targets": tuple(config.lora.targets)}))
        settings: dict[str, Any] = {
            "family": config.family,
            "init": config.init,
            "tokenizer": config.tokenizer,
            "dtype": config.dtype,
            "scan_layers": config.scan_layers,
            "remat": config.remat,
            "attention": config.attention,
            "lora": lora,
            "seed": self.config.seed,
        }
        return load_student(model, **(settings | options))

    def records(self, split: str) -> list[Record]:
        """A split, as the first stage wrote it."""
        return records_io.read_records(self.workdir / f"records/{split}.jsonl")

    @functools.cached_property
    def train_set(self) -> tokens.TokenizedSet:
        """The training examples as tokens, as the first stage wrote them."""
        return token_store.load(self.workdir / TOKENS, self.records("train"))

    @functools.cached_property
    def prompt(self) -> str:
        """The template of prompts, in the student's form."""
        return self._resolved(self.config.student.prompt)

    @property
    def asked_prompt(self) -> str:
        """The template that a trained student is asked by, which is its method's."""
        return self.prompt if self.method is None else self._resolved(self.method.prompt)

    def _resolved(self, prompt: str) -> str:
        return tokens.resolve_prompt(
            self.student.tokenizer,
            prompt,
            decoder_only=self.student.decoder_only,
            chat=self.config.student.chat,
        )

    def tokenize(
        self, examples: Sequence[Record], prompt: str = ""
    ) -> tuple[tokens.TokenizedSet, list[records_io.Rejected]]:
        """Examples under the student's templates and limits, and those turned down.

        Args:
          examples: records.
          prompt: in the student's form; `self.prompt` by default.
        """
        config = self.config.student
        return tokens.tokenize(
            examples,
            self.student.tokenizer,
            prompt=prompt or self.prompt,
            answer_template=config.answer_template,
            max_question_tokens=config.max_question_tokens,
            max_target_tokens=config.max_target_tokens,
            decoder_only=self.student.decoder_only,
        )

    @functools.cached_property
    def method(self) -> baselines.Method | None:
        """The method, if it trains on examples of its own; None where records are the examples."""
        config, kind = self.config, baselines.class_of(self.config.method)
        if kind is None:
            return None
        tokenizer = self.student.tokenizer

        def token_lengths(texts: Sequence[str]) -> np.ndarray:
            ids = tokenizer(list(texts), add_special_tokens=False, verbose=False).input_ids
            return np.array([len(row) for row in ids], np.int64)

        return kind(
            baselines.Setting(
                options=config.baseline.to_dict(),
                data=config.data.name,
                answer_kind=sources.answer_kind(config.data.name, config.data.answer_kind),
                step_separator=config.data.step_separator,
                prompt=config.student.prompt,
                answer_template=config.student.answer_template,
                seed=config.seed,
                token_lengths=token_lengths,
                max_question_tokens=config.student.max_question_tokens,
                tokenizer=tokenizer,
            )
        )

    @functools.cached_property
    def training(self) -> baselines.TrainingSet:
        """What the student is trained on: the records, or its method's examples of them."""
        if self.method is None:
            return baselines.TrainingSet(self.train_set)
        student, resolved = self.config.student, functools.cache(self._resolved)
        start_of = self.student.decoder_start

        def tokenize(
            records: Sequence[Record], prompts: Sequence[str], sentences: Sequence[str]
        ) -> tuple[tokens.TokenizedSet, list[records_io.Rejected]]:
            if prompts and start_of(resolved(prompts[0])) != start_of(self.asked_prompt):
                raise UserError(
                    f"The prompt that the student is asked by, {self.asked_prompt!r}, ends in "
                    f"another token than those that it is trained on, {prompts[0][-80:]!r}; "
                    "expected prompts that end alike."
                )
            return tokens.tokenize(
                records,
                self.student.tokenizer,
                prompt=[resolved(prompt) for prompt in prompts],
                answer_template=sentences,
                max_question_tokens=student.max_question_tokens,
                max_target_tokens=student.max_target_tokens,
                decoder_only=self.student.decoder_only,
                need_rationale=False,
            )

        return training_set.make(self.method, self.records("train"), tokenize)

    def target_loss(self, records: Sequence[Record]) -> Callable[[Any], float] | None:
        """From parameters to the mean loss, nats, of a token of the rationales and answers.

        The student is asked by its method's prompt. None where there is no loss: no record has a
        rationale that the student's limits let through.
        """
        tokenized, _ = self.tokenize(records, self.asked_prompt)
        if not len(tokenized):
            return None
        source = self._source(tokenized, self.asked_prompt, buckets=2)
        return lambda params: forward.mean_target_loss(
            self.student.module,
            params,
            source,
            self.mesh,
            batch_size=self.config.distill.batch_size,
        )

    def batch_source(self, **options: Any) -> BatchSource:
        """Batches of the training records."""
        return self._source(self.train_set, self.prompt, **options)

    def training_source(self, **options: Any) -> BatchSource:
        """Batches of what the student is trained on."""
        training, config = self.training, self.config.distill
        return self._source(
            training.tokenized,
            self.asked_prompt,
            buckets=config.buckets,
            pack=config.pack,
            input_steps=config.input_steps,
            example_weights=training.weights,
            groups=training.groups,
            arrays=training.objective.arrays,
            # A method that names its tokens itself means these alone.
            step_starts=config.step_start_weight == "answer" and training.start_steps is None,
            **options,
        )

    def _source(self, tokenized: tokens.TokenizedSet, prompt: str, **options: Any) -> BatchSource:
        return BatchSource(
            tokenized,
            self.config.distill.batch_size,
            self.config.seed,
            pad_id=self.student.tokenizer.pad_token_id,
            decoder_start_id=self.student.decoder_start(prompt),
            **options,
        )

    @functools.cached_property
    def length(self) -> loop.Plan:
        """The training's length; one stage at least, for a schedule to speak of."""
        config = self.config.distill
        steps = self.training_source().steps_per_epoch
        length = loop.plan(config, steps, self.config.schedule.stage_steps)
        return length if length.stages else dataclasses.replace(length, total_steps=1)

    @functools.cached_property
    def difficulty(self) -> Ragged:
        """d_k of every step of the training rationales, as the scoring stage wrote them."""
        arrays = files.read_npz(self.workdir / "step_difficulty.npz")
        return Ragged(arrays["values"], arrays["offsets"])

    def weights(self) -> Ragged | None:
        """w_j of the training rationales; None where all are 1."""
        if self.config.weighting.weights == "uniform":
            return None
        arrays = files.read_npz(self.workdir / "token_weights.npz")
        return Ragged(arrays["values"], arrays["offsets"])

    def evaluator(self, records: Sequence[Record], **options: Any) -> accuracy.Evaluator:
        """For the questions of some records, greedy by default."""
        config = self.config
        return accuracy.Evaluator(
            self.student,
            records,
            self.mesh,
            prompt=self.asked_prompt,
            answer_kind=sources.answer_kind(config.data.name, config.data.answer_kind),
            batch_size=config.eval.batch_size,
            max_new_tokens=config.eval.max_new_tokens or config.student.max_target_tokens,
            **options,
        )
