"""TFDS builders of the data sets that we prepare: ArrayRecord files, read without TensorFlow.

Bad lines of a source are kept, with their reasons, in the metadata of the prepared data set.
"""

import contextlib
import dataclasses
import hashlib
import io
import pathlib
from collections.abc import Iterator
from typing import Any, TypeVar, cast

import numpy as np
import requests
import tensorflow_datasets as tfds
from absl import logging
from etils import epath

from kpod_jax.data import arithmetic, gsm8k, jsonl
from kpod_jax.data.records import Rejected
from kpod_jax.errors import UserError

_AnyBuilder = TypeVar("_AnyBuilder", bound=tfds.core.GeneratorBasedBuilder)

# What is prepared of the built-in task unless more is asked for.
ARITHMETIC_SIZES = {"train": 2000, "validation": 200, "test": 400}


@dataclasses.dataclass
class ArithmeticConfig(tfds.core.BuilderConfig):
    """The built-in task of some seed.

    Attributes:
      sizes: examples of each split.
      seed: of the task.
    """

    sizes: dict[str, int] = dataclasses.field(default_factory=lambda: dict(ARITHMETIC_SIZES))
    seed: int = 0

    @classmethod
    def of(cls, sizes: dict[str, int], seed: int) -> "ArithmeticConfig":
        """A configuration whose name tells it from any other, older versions of the task too."""
        code = hashlib.sha256(pathlib.Path(arithmetic.__file__).read_bytes()).hexdigest()[:8]
        counts = "-".join(str(sizes[split]) for split in ARITHMETIC_SIZES)
        return cls(name=f"seed{seed}-{counts}-{code}", sizes=sizes, seed=seed)


class _Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    # TFDS would look for this file with a package that it uses but does not install.
    code_path = epath.Path(__file__)  # pyright: ignore[reportAssignmentType]


class KpodArithmetic(_Builder):
    """The built-in task, whose keypoints and hard steps are known."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [ArithmeticConfig(name="default")]  # noqa: RUF012 (TFDS's own convention)
    builder_config: ArithmeticConfig

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "id": tfds.features.Text(),
            "question": tfds.features.Text(),
            "steps": tfds.features.Sequence(tfds.features.Text()),
            "answer": tfds.features.Text(),
            "keypoints": tfds.features.Tensor(shape=(None, 2), dtype=np.int32),
            "hardness": tfds.features.Tensor(shape=(None,), dtype=np.float64),
        }
        return _info(self, "Word problems with known keypoints and hard steps.", features)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        del dl_manager
        return {split: self._generate_examples(split) for split in self.builder_config.sizes}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        config = self.builder_config
        records = arithmetic.generate(split, config.sizes[split], config.seed)
        for key, record in enumerate(records):
            yield (
                key,
                {
                    "id": record.id,
                    "question": record.question,
                    "steps": list(record.steps),
                    "answer": record.answer,
                    "keypoints": np.array(record.keypoints or (), np.int32).reshape(-1, 2),
                    "hardness": np.array(record.hardness or (), np.float64),
                },
            )


@dataclasses.dataclass
class Gsm8kConfig(tfds.core.BuilderConfig):
    """GSM8K, downloaded or from a folder.

    Attributes:
      splits: "paper" or "official".
      folder: holds train.jsonl and test.jsonl; empty downloads them.
    """

    splits: gsm8k.Splits = "paper"
    folder: str = ""

    @classmethod
    def of(cls, splits: gsm8k.Splits, folder: str = "") -> "Gsm8kConfig":
        """A configuration whose name tells the contents of a folder from any other's.

        Raises:
          UserError: the folder lacks a file.
        """
        if not folder:
            return next(config for config in KpodGsm8k.BUILDER_CONFIGS if config.splits == splits)
        contents = hashlib.sha256(folder.encode())
        for path in _files_in(folder).values():
            contents.update(_sha256(path).encode())
        return cls(name=f"{splits}-{contents.hexdigest()[:12]}", splits=splits, folder=folder)


class KpodGsm8k(_Builder):
    """Grade school word problems with human solutions, in the paper's splits or the official ones.

    Calculator annotations are removed from the solutions; the final number is the answer.
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [  # noqa: RUF012 (TFDS's own convention)
        Gsm8kConfig(
            name="paper",
            description="The official train split; its test split in halves of 660 and 659.",
            splits="paper",
        ),
        Gsm8kConfig(
            name="official", description="The official train and test splits.", splits="official"
        ),
    ]
    builder_config: Gsm8kConfig

    def _info(self) -> tfds.core.DatasetInfo:
        columns = ("id", "question", "rationale", "answer")
        return _info(
            self,
            "GSM8K without calculator annotations.",
            {column: tfds.features.Text() for column in columns},
            homepage="https://github.com/openai/grade-school-math",
        )

    def rejected(self, split: str) -> list[Rejected]:
        """Lines of a prepared split that could not be used."""
        return [Rejected(*pair) for pair in self._metadata()["rejected"][split]]

    def _metadata(self) -> dict[str, Any]:
        return cast(dict[str, Any], self.info.metadata)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        config = self.builder_config
        files = _files_in(config.folder) if config.folder else _download(dl_manager)
        self._metadata()["rejected"] = {}
        generators = {}
        for split in gsm8k.SPLITS[config.splits]:
            file, lines = gsm8k.lines_of_split(config.splits, split)
            generators[split] = self._generate_examples(split, files[file], lines)
        return generators

    def _generate_examples(
        self, split: str, path: pathlib.Path, lines: frozenset[int] | None
    ) -> Iterator[tuple[int, dict[str, str]]]:
        rejected = self._metadata()["rejected"].setdefault(split, [])
        empty = True
        for number, row, problem in jsonl.read_rows(path):
            line = number - 1
            if lines is not None and line not in lines:
                continue
            name = f"gsm8k-{path.stem}-{line}"
            try:
                if row is None:
                    raise ValueError(problem)
                example = {"id": name, **gsm8k.parse(row)}
            except ValueError as error:
                rejected.append([name, f"{path}:{number} {error}"])
            else:
                empty = False
                yield line, example
        if empty:
            reasons = "".join(f"\n  {reason}" for _, reason in rejected[:3]) or " no line is of it."
            raise UserError(
                f"{path} holds no usable record of the {self.builder_config.splits} {split} split:"
                f"{reasons}\nExpected GSM8K's original file: a line is an object with 'question' "
                "and 'answer'."
            )


def prepared(
    builder_type: type[_AnyBuilder], config: tfds.core.BuilderConfig, cache_dir: str = ""
) -> _AnyBuilder:
    """A builder whose files are there, made now where they were not.

    Args:
      builder_type: which data set.
      config: which of its configurations.
      cache_dir: where files go; empty is TFDS's own choice: TFDS_DATA_DIR or ~/tensorflow_datasets.

    Raises:
      UserError: the files cannot be written.
    """
    try:
        with _quiet():
            builder = builder_type(
                config=config, data_dir=cache_dir or None, file_format="array_record"
            )
            builder.download_and_prepare()
    except OSError as error:
        raise UserError(
            f"Cannot prepare the data set {builder_type.name} in {cache_dir or 'the TFDS folder'}: "
            f"{error}. Free some space there, or choose another folder with --config.data.cache."
        ) from error
    return builder


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without TFDS's bars and banners: the stage that asked says what was made."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.enable_progress_bar()
        logging.set_verbosity(verbosity)


def _info(
    builder: tfds.core.GeneratorBasedBuilder,
    description: str,
    features: dict[str, Any],
    homepage: str | None = None,
) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
        builder=builder,
        description=description,
        features=tfds.features.FeaturesDict(features),
        homepage=homepage,
        metadata=tfds.core.MetadataDict(),
        disable_shuffling=True,  # Records stay in the order of their source.
    )


def _files_in(folder: str) -> dict[str, pathlib.Path]:
    paths = {name: pathlib.Path(folder).expanduser() / f"{name}.jsonl" for name in gsm8k.URLS}
    for path in paths.values():
        if not path.is_file():
            raise UserError(
                f"There is no {path}. Expected a folder with GSM8K's original train.jsonl and "
                "test.jsonl; set --config.data.path to it, or to nothing to download them."
            )
    return paths


def _download(dl_manager: tfds.download.DownloadManager) -> dict[str, pathlib.Path]:
    try:
        # TFDS tries again for minutes; where there is no network, this says so at once.
        requests.head(gsm8k.URLS["train"], timeout=30).raise_for_status()
        paths = dl_manager.download(gsm8k.URLS)
    except Exception as error:  # requests, urllib3, TFDS and the file system have their own each.
        raise UserError(
            f"Cannot download GSM8K from {gsm8k.URLS['train']}: {error}. Download train.jsonl and "
            "test.jsonl elsewhere and set --config.data.path to their folder."
        ) from error
    paths = {name: pathlib.Path(path) for name, path in cast(dict, paths).items()}
    for name, path in paths.items():
        if _sha256(path) != gsm8k.SHA256[name]:
            raise UserError(
                f"What was downloaded from {gsm8k.URLS[name]} to {path} is not the known file "
                "(its SHA-256 differs). Delete it and try again, or set --config.data.path to a "
                "folder with your own copy."
            )
    return paths


def _sha256(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
