import math
import warnings

import numpy as np
import pytest

from kpod_jax.data.records import Ragged
from kpod_jax.schedule import clusters
from kpod_jax.utils.errors import UserError


def write(tmp_path, text, name="vectors.txt"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_question_is_the_mean_of_its_known_words(tmp_path):
    path = write(tmp_path, "the 1 2\ncat 3 6\nunused 9 9\n7 -1 0.5\n")
    vectors = clusters.question_vectors(["The cat!", "THE the cat's zebra", "", "Zebra? 7"], path)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, [[2, 4], [5 / 3, 10 / 3], [0, 0], [-1, 0.5]], rtol=1e-6)


def test_word2vec_header_trailing_spaces_and_repeated_words(tmp_path):
    path = write(tmp_path, "3 2\nthe 1 2 \ncat 3 6 \nthe 50 50 \n")
    assert clusters.question_vectors(["the cat"], path).tolist() == [[2, 4]]


def test_phrases_and_strange_line_separators_are_no_words_and_no_errors(tmp_path):
    path = write(tmp_path, "the 1 2\nat name@domain.com 8 8\nx\u0085y 1 1\n\u2028 5 5\nat 3 4\n")
    assert clusters.question_vectors(["at"], path).tolist() == [[3, 4]]


def test_only_lines_that_are_needed_are_read_to_their_end(tmp_path):
    path = write(tmp_path, "the 1 2\ndog one two\ncat 3 6\n")
    assert clusters.question_vectors(["cat"], path).tolist() == [[3, 6]]


@pytest.mark.parametrize("line", ["cat", "cat 3", "cat 3 6 9", "cat 3 x", "cat nan 1", "cat 3  6"])
def test_a_malformed_line_is_named(tmp_path, line):
    path = write(tmp_path, f"the 1 2\n{line}\n")
    with pytest.raises(UserError, match=r"vectors\.txt:2: expected a word and 2 finite numbers"):
        clusters.question_vectors(["the cat"], path)


def test_a_line_that_contradicts_the_header_is_named(tmp_path):
    path = write(tmp_path, "1 3\ncat 3 6\n")
    with pytest.raises(UserError, match=r"vectors\.txt:2: expected a word and 3 finite numbers"):
        clusters.question_vectors(["cat"], path)


def test_files_that_are_no_word_vectors_are_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.txt: No such file"):
        clusters.question_vectors(["cat"], tmp_path / "nowhere.txt")
    binary = write(tmp_path, b"3 2\ncat \xff\xfe\x80\n")
    with pytest.raises(UserError, match=r"vectors\.txt is not UTF-8 .* binary word2vec"):
        clusters.question_vectors(["cat"], binary)
    foreign = write(tmp_path, "chat 1 2\n")
    with pytest.raises(UserError, match="no vector for any word in the 1 questions"):
        clusters.question_vectors(["cat"], foreign)
    with pytest.raises(UserError, match=r"vectors\.txt:1: expected a word and its"):
        clusters.question_vectors(["cat"], write(tmp_path, "\n"))


def test_vectors_of_ones_own(tmp_path):
    path = tmp_path / "vectors.npy"
    vectors = np.arange(6, dtype=np.float16).reshape(3, 2)
    np.save(path, vectors)
    np.testing.assert_array_equal(clusters.read_question_vectors(path, 3), vectors)
    with pytest.raises(UserError, match=r"shape \(3, 2\) and type float16; .* \(4, D\)"):
        clusters.read_question_vectors(path, 4)
    np.save(path, np.array([{"a": 1}]), allow_pickle=True)
    with pytest.raises(UserError, match="Python objects"):
        clusters.read_question_vectors(path, 1)
    path.write_text("no array")
    with pytest.raises(UserError, match="Cannot read"):
        clusters.read_question_vectors(path, 1)
    with pytest.raises(UserError, match="No such file"):
        clusters.read_question_vectors(tmp_path / "none.npy", 1)


def test_mean_token_vectors_by_hand():
    table = np.array([[1, 0], [0, 1], [4, 4]], np.float16)
    questions = Ragged.from_list([[2, 2, 0], [], [1]], np.int32)
    means = clusters.mean_token_vectors(table, questions)
    assert means.dtype == np.float32
    np.testing.assert_allclose(means, [[3, 8 / 3], [0, 0], [0, 1]], rtol=1e-6)
    assert clusters.mean_token_vectors(table, Ragged.from_list([], np.int32)).shape == (0, 2)


@pytest.mark.parametrize("bad", [-1, 3])
def test_mean_token_vectors_refuses_ids_outside_the_table(bad):
    with pytest.raises(ValueError, match="table has 3 rows"):
        clusters.mean_token_vectors(np.zeros((3, 2)), Ragged.from_list([[0, bad]], np.int32))


def blobs(sizes, seed=0):
    """Points around far corners, and the corner of each."""
    corner = np.repeat(np.arange(len(sizes)), sizes)
    noise = np.random.default_rng(seed).normal(size=(len(corner), len(sizes)))
    return np.eye(len(sizes))[corner] * 50 + noise, corner


@pytest.mark.parametrize("full", [True, False])
def test_plain_clusters_are_found_and_are_the_same_each_time(monkeypatch, full):
    if not full:
        monkeypatch.setattr(clusters, "_MAX_FULL", 10)
    points, corner = blobs([40, 30, 20])
    found = clusters.cluster_questions(points, 3, seed=1)
    assert found.labels.dtype == np.int32 and found.labels.shape == (90,)
    # One label a corner, and three in all.
    assert {len(set(found.labels[corner == k])) for k in range(3)} == {1}
    assert set(found.labels) == {0, 1, 2}
    assert 0.9 < found.silhouette <= 1 and not found.warning
    again = clusters.cluster_questions(points, 3, seed=1)
    np.testing.assert_array_equal(again.labels, found.labels)
    assert again.silhouette == found.silhouette


def test_a_silhouette_of_a_sample_is_close_to_that_of_all(monkeypatch):
    points, _ = blobs([200, 200])
    whole = clusters.cluster_questions(points, 2, seed=0).silhouette
    monkeypatch.setattr(clusters, "_SILHOUETTE_SAMPLE", 50)
    assert clusters.cluster_questions(points, 2, seed=0).silhouette == pytest.approx(
        whole, abs=0.02
    )


def test_fewer_distinct_questions_make_fewer_clusters_with_a_warning():
    points = np.array([[0.0, 1.0], [5.0, 5.0], [0.0, 1.0], [5.0, 5.0]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = clusters.cluster_questions(points, 5, seed=0)
    assert found.labels[0] == found.labels[2] != found.labels[1] == found.labels[3]
    assert found.warning == "only 2 of 4 questions are distinct; using 2 clusters instead of 5"
    assert found.silhouette == 1


@pytest.mark.parametrize("points", [np.zeros((0, 3)), np.zeros((1, 3)), np.ones((4, 3))])
def test_where_no_two_questions_differ_there_is_one_cluster(points):
    found = clusters.cluster_questions(points, 5, seed=0)
    assert found.labels.tolist() == [0] * len(points)
    assert math.isnan(found.silhouette) and found.warning


def test_one_cluster_is_no_warning_and_as_many_as_questions_have_no_silhouette():
    points, _ = blobs([2, 2])
    one = clusters.cluster_questions(points, 1, seed=0)
    assert one.labels.tolist() == [0] * 4 and math.isnan(one.silhouette) and not one.warning
    each = clusters.cluster_questions(points, 4, seed=0)
    assert sorted(each.labels) == [0, 1, 2, 3] and math.isnan(each.silhouette)


def test_bad_arguments_are_named():
    with pytest.raises(UserError, match="clusters=0"):
        clusters.cluster_questions(np.zeros((2, 2)), 0, seed=0)
    points = np.zeros((3, 2))
    points[1, 0] = np.nan
    with pytest.raises(UserError, match=r"question 1 .* is not finite"):
        clusters.cluster_questions(points, 2, seed=0)


def test_glove_puts_alike_questions_together(shared_data):
    questions = [
        "How many apples and pears are in the basket of fruit?",
        "She eats an orange, a banana and some grapes each day.",
        "The train drives at 60 miles per hour. How far is the city?",
        "A car travels for three hours on the road; what is its speed?",
    ]
    (path,) = (shared_data / "glove").glob("*.txt")
    vectors = clusters.question_vectors(questions, path)
    assert vectors.shape == (4, 50)
    labels = clusters.cluster_questions(vectors, 2, seed=0).labels
    assert labels[0] == labels[1] != labels[2] == labels[3]
