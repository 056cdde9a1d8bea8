"""TFDS builders of the built-in and published data sets.

They write ArrayRecord files, which are read without TensorFlow. Rejected records are stored, with
their reasons, in the metadata of the prepared data set.
"""

import contextlib
import dataclasses
import hashlib
import io
import pathlib
from collections.abc import Iterator
from typing import Any, TypeVar, cast

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from etils import epath

from kpod_jax.data import (
    arithmetic,
    asdiv,
    commonsense_qa,
    download,
    gsm8k,
    published,
    stories,
    svamp,
)
from kpod_jax.data.records import Rejected
from kpod_jax.utils import files
from kpod_jax.utils.errors import UserError
from kpod_jax.utils.printable import printable

_AnyBuilder = TypeVar("_AnyBuilder", bound=tfds.core.GeneratorBasedBuilder)

# Minimum sizes of the splits prepared for the built-in task.
ARITHMETIC_SIZES = {"train": 2000, "validation": 500, "test": 1000}


@dataclasses.dataclass
class ArithmeticConfig(tfds.core.BuilderConfig):
    """Configuration of the built-in task.

    Attributes:
      sizes: number of examples in each split.
      task: its settings.
    """

    sizes: dict[str, int] = dataclasses.field(default_factory=lambda: dict(ARITHMETIC_SIZES))
    task: arithmetic.Task = arithmetic.Task()  # noqa: RUF009 (frozen)

    @classmethod
    def of(cls, sizes: dict[str, int], task: arithmetic.Task) -> "ArithmeticConfig":
        """Returns a configuration whose name is unique to sizes, settings and source code."""
        texts = (pathlib.Path(str(part.__file__)).read_bytes() for part in (arithmetic, stories))
        code = hashlib.sha256(b"".join(texts) + str(task).encode()).hexdigest()[:8]
        counts = "-".join(str(sizes[split]) for split in ARITHMETIC_SIZES)
        return cls(name=f"{counts}-{code}", sizes=sizes, task=task)


class _Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    # Otherwise TFDS locates this file with a package that it does not install.
    code_path = epath.Path(__file__)  # pyright: ignore[reportAssignmentType]


class KpodArithmetic(_Builder):
    """The built-in task, with known keypoints and hard steps."""

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
        records = arithmetic.generate(split, config.sizes[split], task=config.task)
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
class PublishedConfig(tfds.core.BuilderConfig):
    """Configuration of a published data set.

    Attributes:
      splits: "paper" or "official".
      folder: folder with the original files; "" downloads them.
    """

    splits: published.Splits = "paper"
    folder: str = ""


class Published(_Builder, skip_registration=True):
    """Builds DATA_SET, a published data set, in the paper's or the official splits."""

    VERSION = tfds.core.Version("2.0.0")
    DATA_SET: published.DataSet
    builder_config: PublishedConfig

    @classmethod
    def config_of(cls, splits: published.Splits, folder: str = "") -> PublishedConfig:
        """Returns a configuration whose name is unique to the folder and its contents.

        Raises:
          UserError: the data set has no such splits, or the folder lacks a file.
        """
        if splits not in cls.DATA_SET.files:
            raise UserError(
                f"{cls.DATA_SET.title} has no {splits} splits; expected data.splits="
                f"{' or '.join(cls.DATA_SET.files)}."
            )
        if not folder:
            return PublishedConfig(name=splits, splits=splits)
        contents = hashlib.sha256(folder.encode())
        for path in download.files_in(cls.DATA_SET, splits, folder):
            contents.update(f"{path.name} {files.digest(path)}".encode())
        name = f"{splits}-{contents.hexdigest()[:12]}"
        return PublishedConfig(name=name, splits=splits, folder=folder)

    def _info(self) -> tfds.core.DatasetInfo:
        columns = ("id", "question", "rationale", "answer", "problem")
        return _info(
            self,
            f"{self.DATA_SET.title}: questions, rationales and answers.",
            {column: tfds.features.Text() for column in columns},
            homepage=self.DATA_SET.homepage,
        )

    def rejected(self, split: str) -> list[tuple[Rejected, bool]]:
        """Returns the rejected records of a prepared split, and whether each is broken."""
        rows = self._metadata()["rejected"][split]
        return [(Rejected(id_, reason), broken) for id_, reason, broken in rows]

    def _metadata(self) -> dict[str, Any]:
        return cast(dict[str, Any], self.info.metadata)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        config, data_set = self.builder_config, self.DATA_SET
        if config.folder:
            paths = download.files_in(data_set, config.splits, config.folder)
        else:
            paths = download.download(data_set, config.splits, dl_manager)
        parts = published.read_parts(data_set, config.splits, paths)
        if not any(part.examples for part in parts.values()):
            reasons = [reason for part in parts.values() for _, reason, _ in part.rejected]
            details = "".join(f"\n  {printable(reason)}" for reason in reasons[:3])
            raise UserError(
                f"Found no usable {data_set.title} records in {', '.join(map(str, paths))}:"
                f"{details or ' the files hold no records.'}\n  "
                "Expected the data set's original files."
            )
        self._metadata()["rejected"] = {split: part.rejected for split, part in parts.items()}
        # TFDS does not support empty splits.
        return {
            split: self._generate_examples(part.examples)
            for split, part in parts.items()
            if part.examples
        }

    def _generate_examples(
        self, examples: list[dict[str, str]]
    ) -> Iterator[tuple[int, dict[str, str]]]:
        yield from enumerate(examples)


class KpodGsm8k(Published):
    """Grade school word problems with human solutions."""

    DATA_SET = gsm8k.DATA_SET


class KpodAsdiv(Published):
    """Diverse elementary school word problems, with formulas."""

    DATA_SET = asdiv.DATA_SET


class KpodSvamp(Published):
    """Word problems with one or two operations, with equations."""

    DATA_SET = svamp.DATA_SET


class KpodCommonsenseQa(Published):
    """Multiple-choice commonsense questions, without rationales."""

    DATA_SET = commonsense_qa.DATA_SET


PUBLISHED: dict[str, type[Published]] = {
    builder.DATA_SET.name: builder
    for builder in (KpodGsm8k, KpodAsdiv, KpodSvamp, KpodCommonsenseQa)
}


def prepare_builder(
    builder_type: type[_AnyBuilder], config: tfds.core.BuilderConfig, cache_dir: str = ""
) -> _AnyBuilder:
    """Returns a builder whose files exist, preparing them if needed.

    Args:
      builder_type: builder class of the data set.
      config: configuration of the builder.
      cache_dir: directory of the files; "" is TFDS's default, TFDS_DATA_DIR or
        ~/tensorflow_datasets.

    Raises:
      UserError: the files cannot be written.
    """
    folder = str(files.as_path(cache_dir)) if cache_dir else None

    def make() -> _AnyBuilder:
        return builder_type(config=config, data_dir=folder, file_format="array_record")

    try:
        with _quiet():
            builder = make()
            try:
                builder.download_and_prepare()
            except OSError:
                builder = make()
                if not builder.is_prepared():  # By another process, meanwhile.
                    raise
    except OSError as error:
        raise UserError(
            f"Cannot prepare the data set {builder_type.name} in {cache_dir or 'the TFDS folder'}: "
            f"{str(error).rstrip('.')}. Free some space there, or set --config.data.cache_dir to "
            "another folder."
        ) from error
    return builder


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences TFDS's progress bars and banners; the calling stage logs the result."""
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
        disable_shuffling=True,  # Keeps records in source order.
    )
