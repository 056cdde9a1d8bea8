"""Question clusters, used to diversify a selection (C_1 ... C_K of Eq. 12).

A question is represented by the mean of its word vectors, as in the paper (GloVe), or, without a
file of word vectors, by the mean of the student's embeddings of its tokens. The clusters come from
k-means.

Letters: N questions, V words or tokens, D dimensions, K clusters.
"""

import dataclasses
import math
import os
import re
from array import array
from collections.abc import Collection, Iterable, Iterator, Sequence

import numpy as np
from scipy import sparse
from threadpoolctl import threadpool_limits

from kpod_jax.data.record_store import CHUNK, chunks
from kpod_jax.data.records import Ragged, offsets_of
from kpod_jax.data.scratch import ArrayFile
from kpod_jax.utils import files
from kpod_jax.utils.errors import UserError

# Letters and digits. Splits where word vectors do, as in "Janet" and "'s".
_WORD = re.compile(r"[^\W_]+")
# Above this number of questions, use mini-batches. Up to it, full k-means takes seconds.
_MAX_FULL = 20_000
_SILHOUETTE_SAMPLE = 2_000
# Above this number of values, fit a sample of the questions. Up to it, 0.5 GB are enough.
_MAX_VALUES = 1 << 26


@dataclasses.dataclass(frozen=True)
class Clusters:
    """A clustering of N questions.

    Attributes:
      labels: [N] int32, from 0.
      silhouette: mean silhouette of a sample, in [-1, 1]; higher means better separated clusters.
        NaN with one cluster, or with as many clusters as questions.
      warning: for the user; may be empty.
    """

    labels: np.ndarray
    silhouette: float
    warning: str = ""


def question_vectors(questions: Iterable[str], path: str | os.PathLike[str]) -> np.ndarray:
    """Returns the mean word vector of each question, after lowercasing.

    Words without a vector are skipped. A question in which no word has one gets the zero vector.

    Args:
      questions: N texts.
      path: word vectors in GloVe's text format (a word and its D values per line) or word2vec's
        (the same, after a header line with the number of words and D). Only the lines of words
        that occur in the questions are parsed.

    Returns:
      [N, D] float32.

    Raises:
      UserError: if the file cannot be read, a required line is malformed, or the file contains
        none of the words.
    """
    place_of: dict[str, int] = {}
    places, lengths = ArrayFile(), array("q")
    for chunk in chunks(questions):
        words = [_WORD.findall(question.lower()) for question in chunk]
        flat = [place_of.setdefault(w, len(place_of)) for question in words for w in question]
        places.append(np.array(flat, np.int32))
        lengths.extend(map(len, words))
    vectors = _read_vectors(path, place_of.keys())
    if not vectors:
        raise UserError(
            f"{path} has no vector for any word in the {len(lengths)} questions; expected "
            "lowercase words in the language of the questions. Use a different word vector file, "
            "or none to cluster by the student's embeddings."
        )
    row = {word: i for i, word in enumerate(vectors)}
    row_of_place = np.array([row.get(word, -1) for word in place_of], np.int32)
    ids = row_of_place[places.array()]
    known = offsets_of(ids >= 0)[offsets_of(lengths)]
    return mean_token_vectors(np.stack([*vectors.values()]), Ragged(ids[ids >= 0], known))


def read_question_vectors(path: str | os.PathLike[str], count: int) -> np.ndarray:
    """Loads custom question vectors, such as those of a sentence encoder.

    Args:
      path: a .npy file with an [N, D] array of any float type, one row per training record, in the
        order of `records/train.jsonl`.
      count: N.

    Raises:
      UserError: if the file cannot be read, or the array has the wrong shape or type.
    """
    try:
        vectors = np.load(files.expand(path), mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"Cannot read the question vectors in {path}: {error}. Expected a numeric array saved "
            "with numpy.save."
        ) from error
    if vectors.ndim != 2 or len(vectors) != count or vectors.dtype.kind != "f":
        raise UserError(
            f"{path} contains an array of shape {vectors.shape} and type {vectors.dtype}; expected "
            f"floats of shape ({count}, D), one row per record in records/train.jsonl, in the same "
            "order."
        )
    return vectors


def mean_token_vectors(embedding_table_VxD: np.ndarray, questions: Ragged) -> np.ndarray:
    """Returns the mean token embedding of each question; zero for an empty question.

    Args:
      embedding_table_VxD: [V, D], any float type.
      questions: N slices of token ids, 0 <= id < V.

    Returns:
      [N, D] float32.

    Raises:
      ValueError: if an id is out of range.
    """
    table_VxD = np.asarray(embedding_table_VxD, np.float32)
    ids = np.asarray(questions.values)
    if ids.size and not 0 <= ids.min() <= ids.max() < len(table_VxD):
        raise ValueError(
            f"Token ids range from {ids.min()} to {ids.max()}, but the embedding table has "
            f"{len(table_VxD)} rows."
        )
    lengths_N, offsets, result = questions.lengths, questions.offsets, ArrayFile(np.float32)
    for start in range(0, len(questions), CHUNK):
        stop = min(start + CHUNK, len(questions))
        lengths_n, bounds = lengths_N[start:stop], offsets[start : stop + 1]
        # Row i of this [n, V] matrix has 1 / length at each token of question i; repeats add up.
        weights = np.repeat(1 / np.maximum(lengths_n, 1), lengths_n).astype(np.float32)
        part = (weights, ids[bounds[0] : bounds[-1]], bounds - bounds[0])
        shape = (stop - start, len(table_VxD))
        result.append(sparse.csr_array(part, shape) @ table_VxD)
    return result.array().reshape(len(questions), table_VxD.shape[1])


def cluster_questions(vectors_NxD: np.ndarray, clusters: int, seed: int) -> Clusters:
    """Clusters the questions with k-means; deterministic, whatever the number of cores.

    Args:
      vectors_NxD: [N, D] finite values, from `question_vectors` or `mean_token_vectors`.
      clusters: K, at least 1; 5 in the paper. With fewer distinct questions than this, K is reduced
        and a warning is set.
      seed: for the initial centers, the mini-batches and the silhouette sample.

    Raises:
      UserError: if K is below 1, or a vector is not finite.
    """
    if clusters < 1:
        raise UserError(
            f"Invalid schedule setting clusters={clusters}; expected at least 1 (K of Eq. 12). "
            "Change it in the configuration."
        )
    size = len(vectors_NxD)
    finite = [np.isfinite(part).all(axis=1) for part in _parts(vectors_NxD)]
    bad = np.flatnonzero(~np.concatenate([np.ones(0, bool), *finite]))
    if bad.size:
        raise UserError(
            f"The vector of question {bad[0]} (counting from 0) is not finite, and neither are "
            f"those of {bad.size - 1} others. Check the word vectors and the student's embedding "
            "table for NaN."
        )
    rows = (row.tobytes() for part in _parts(vectors_NxD) for row in part)
    distinct, warning = _count_distinct(rows, clusters), ""
    if distinct < clusters:
        warning = (
            f"only {distinct} of {size} questions are distinct; using {distinct} clusters instead "
            f"of {clusters}"
        )
        clusters = distinct
    if clusters < 2:
        return Clusters(np.zeros(size, np.int32), math.nan, warning)
    # Imported here because it takes a second and most commands do not need it.
    from sklearn.cluster import KMeans, MiniBatchKMeans

    algorithm = KMeans if size <= _MAX_FULL else MiniBatchKMeans
    model = algorithm(clusters, n_init=10, random_state=seed)  # pyright: ignore[reportArgumentType]
    with threadpool_limits(1):  # With several threads, the order of summation varies.
        if vectors_NxD.size <= _MAX_VALUES:
            labels_N = model.fit_predict(np.asarray(vectors_NxD, np.float64))
        else:
            count = _MAX_VALUES // (2 * vectors_NxD.shape[1])
            sample = np.sort(np.random.default_rng(seed).choice(size, count, replace=False))
            model.fit(np.asarray(vectors_NxD[sample], np.float64))
            labels_N = np.concatenate([model.predict(part) for part in _parts(vectors_NxD)])
        labels_N = labels_N.astype(np.int32)
        return Clusters(labels_N, _silhouette(vectors_NxD, labels_N, seed), warning)


def _parts(vectors_NxD: np.ndarray) -> Iterator[np.ndarray]:
    """Yields consecutive rows as float64."""
    for start in range(0, len(vectors_NxD), CHUNK):
        yield np.asarray(vectors_NxD[start : start + CHUNK], np.float64)


def _count_distinct(items: Iterable[bytes], enough: int) -> int:
    """Returns the number of distinct items, or `enough` if there are at least as many."""
    found = set()
    for item in items:
        found.add(item)
        if len(found) >= enough:
            break
    return len(found)


def _silhouette(vectors_NxD: np.ndarray, labels_N: np.ndarray, seed: int) -> float:
    size = min(len(labels_N), _SILHOUETTE_SAMPLE)
    sample = np.random.default_rng(seed).choice(len(labels_N), size, replace=False)
    if not 2 <= len(np.unique(labels_N[sample])) < size:
        return math.nan  # Undefined.
    from sklearn.metrics import silhouette_score

    vectors = np.asarray(vectors_NxD[sample], np.float64)
    return float(silhouette_score(vectors, labels_N[sample]))


def _read_vectors(path: str | os.PathLike[str], wanted: Collection[str]) -> dict[str, np.ndarray]:
    """Reads the vectors of the wanted words, in file order; a repeated word keeps its first."""
    vectors: dict[str, np.ndarray] = {}
    dimensions = 0
    try:
        # Only "\n" ends a line: some files have words that contain other line separators.
        with files.expand(path).open(encoding="utf-8", newline="\n") as file:
            for number, line in enumerate(file, 1):
                word = line[: line.find(" ")]
                if dimensions and (word not in wanted or word in vectors):
                    continue
                fields = line.rstrip().split(" ")
                if number == 1 and len(fields) == 2 and all(map(str.isdecimal, fields)):
                    dimensions = int(fields[1])  # word2vec header.
                    continue
                dimensions = dimensions or len(fields) - 1
                if len(fields) > dimensions + 1 and _parse_vector(fields[1:2]) is None:
                    continue  # A phrase that starts with the word, such as "at name@domain.com".
                vector = _parse_vector(fields[1:])
                if vector is None or len(vector) != dimensions or not dimensions:
                    raise UserError(
                        f"{path}:{number}: expected a word and {dimensions or 'its'} finite "
                        f"numbers, separated by single spaces, got {line.rstrip()[:60]!r}. Fix or "
                        "remove the line, or use a different word vector file."
                    )
                if word in wanted:
                    vectors[word] = vector
    except OSError as error:
        raise UserError(
            f"Cannot read the word vectors in {path}: {error.strerror or error}. Use a different "
            "file, or none to cluster by the student's embeddings."
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 text ({error.reason}). Expected the text format of GloVe or "
            "word2vec; convert a binary word2vec file to text first."
        ) from error
    return vectors


def _parse_vector(fields: Sequence[str]) -> np.ndarray | None:
    """Parses the fields as numbers; None if any is not a finite number."""
    try:
        vector = np.array(fields, np.float32)
    except ValueError:
        return None
    return vector if np.isfinite(vector).all() else None
