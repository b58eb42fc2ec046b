"""Tasks that read one output: how it is chosen, decoded and scored, by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trtq.errors import DataError, UsageError
from trtq.tasks import TASKS, Facts, find_task
from trtq.tasks.distances import class_divergence
from trtq.tasks.edit_distance import edit_distance
from trtq.tasks.embedding import neighbours
from trtq.tasks.multi_label import average_precision

NAN = float("nan")
TEXT = Facts(outputs={"last_hidden_state": ("batch", 7, 4), "pooler_output": ("batch", 4)})


def figures(score):
    return {f.name: f.value for f in score.figures}


def scored(task, answer, targets, ignore=-100):
    score = task.score(ignore=ignore)
    score.add(answer, targets)
    return figures(score)


def agreed(task, answer, reference):
    score = task.agreement()
    score.add(answer, reference)
    return figures(score)


def test_the_only_output_of_the_form_is_read_and_named():
    task = find_task("embedding").bound(TEXT)
    assert task.label == "embedding:pooler_output"
    assert find_task(task.label).bound(TEXT) == task
    answer = task.decode({"last_hidden_state": np.zeros((2, 7, 4)), "pooler_output": "these"}, None)
    assert answer == "these"
    first = Facts(outputs={"embeds": (2, 4), "other": (2, 9)})
    assert find_task("embedding").bound(first).label == "embedding"
    assert find_task("embedding:other").bound(first).output == "other"
    assert find_task("multi-label:logits").bound(first).label == "multi-label:logits"
    both = find_task("multi-label:other,logits").bound(first)
    assert (both.label, both.output, both.has_word("logits")) == (
        "multi-label:logits,other",
        "other",
        True,
    )


def test_outputs_that_do_not_fit_are_refused():
    with pytest.raises(UsageError) as caught:
        find_task("embedding").bound(Facts(outputs={"hidden": (2, 7, 4)}))
    assert "No output fits the task embedding" in str(caught.value)
    assert "one vector a sample, [N, D]; the outputs are hidden [2, 7, 4]" in str(caught.value)
    several = Facts(outputs={"h": (2, 7, 4), "a": (2, 4), "b": (2, 4)})
    with pytest.raises(UsageError, match=r"Several outputs fit.*a and b are one vector") as caught:
        find_task("embedding").bound(several)
    assert caught.value.hint == "Choose one: --task embedding:a"
    with pytest.raises(UsageError, match=r"c is no output; the outputs are h \[2, 7, 4\], a"):
        find_task("embedding:c").bound(several)
    with pytest.raises(UsageError, match="No output fits the task embedding"):
        find_task("embedding:h").bound(several)
    with pytest.raises(UsageError, match="no output pooler_output to read"):
        find_task("embedding").bound(TEXT).decode({"last_hidden_state": np.zeros(1)}, None)
    with pytest.raises(UsageError, match="logits has one column") as caught:
        find_task("text-classification").bound(Facts(outputs={"logits": (2, 1)}))
    assert caught.value.hint == "For the logit of yes or no: --task multi-label:logits"


def test_text_classification_counts_what_came_first():
    task = find_task("text-classification").bound(Facts(outputs={"logits": (4, 3)}))
    answer = np.array([[3, 1, 0], [0, 1, 2], [0, 5, 1], [NAN, 9, 0]], dtype=np.float32)
    assert scored(task, answer, np.array([0, 1, 1, 1])) == {"accuracy": 50.0}
    assert scored(task, answer, np.array([0, -100, 1, 1])) == {"accuracy": pytest.approx(66.6667)}
    other = np.array([[3, 1, 0], [0, 3, 2], [0, 5, 1], [0, 9, 0]], dtype=np.float32)
    assert agreed(task, answer, other) == {"agreement": 50.0}
    assert (
        task.mismatch(answer, np.array([0.5])) == "its targets are float64, expected class indices"
    )
    assert "the labels are [4, 3]" in task.mismatch(answer, np.zeros((4, 3), np.int64))
    second = Facts(outputs={"h": (4, 7, 3), "logits": (4, 3)})
    assert find_task("text-classification").bound(second).kind is None
    assert task.kind == "classes"


def test_classification_differs_by_probability():
    task = TASKS["classification"]
    one, other = (np.array(v, dtype=np.float32) for v in ([0.75, 0.25], [0.25, 0.75]))
    assert task.difference(one, one) == 0.0
    assert task.difference(one, other) == pytest.approx(1.5)  # half the mass, another class
    logits = np.log(np.array([3.0, 1.0], dtype=np.float32)) + 7
    assert task.difference(one, logits) == pytest.approx(0.0, abs=1e-6)
    assert task.difference(one, np.array([NAN, 0.0])) == 2.0


def test_average_precision_by_hand():
    # found at rank 1 of 1, and 2 of 3
    assert average_precision(np.array([0.9, 0.8, 0.7]), np.array([1, 0, 1]) > 0) == 83.3333
    # equal scores are found together: 1 of 2
    assert average_precision(np.array([0.5, 0.5]), np.array([0, 1]) > 0) == 50.0
    assert average_precision(np.array([0.5, 0.1]), np.array([0, 0]) > 0) is None


def test_multi_label_by_hand():
    task = find_task("multi-label").bound(Facts(outputs={"p": (3, 2)}))
    answer = np.array([[0.9, 0.6], [0.8, 0.1], [0.7, 0.2]], dtype=np.float32)
    targets = np.array([[1, 0], [0, 0], [1, 0]])
    # the second label is nowhere; 4 decisions, 2 of them right, 2 wanted
    assert scored(task, answer, targets) == {"mAP": 83.3333, "F1": pytest.approx(66.6667)}
    ignored = np.array([[1, -100], [-100, 0], [1, 0]])
    assert scored(task, answer, ignored) == {"mAP": 100.0, "F1": 100.0}
    none = np.zeros((3, 2), np.int64)
    assert scored(task, answer, none) == {"mAP": None, "F1": 0.0}
    assert scored(task, answer * 0, none) == {"mAP": None, "F1": None}
    ruined = answer.copy()
    ruined[0, 0] = NAN
    # the first sample ranks last: found at 1 of 2 and 2 of 3
    assert scored(task, ruined, targets)["mAP"] == pytest.approx(58.3333)
    assert agreed(task, ruined, answer) == {"agreement": pytest.approx(83.333333)}
    assert task.difference(answer[0], answer[1]) == pytest.approx(1.5)
    assert task.difference(answer[0], ruined[0]) == 2.0


def test_a_label_that_is_neither_0_nor_1_is_counted_only_by_name():
    task = find_task("multi-label").bound(Facts(outputs={"p": (2, 2)}))
    answer, unsure = np.full((2, 2), 0.9, np.float32), np.array([[1, -1], [1, 0]])
    with pytest.raises(DataError, match="a target is -1, expected 0 or 1. .*--ignore-index -1"):
        scored(task, answer, unsure)
    assert scored(task, answer, unsure, ignore=-1)["F1"] == 80.0  # 2 of 3 chosen, 2 wanted


def test_multi_label_refuses_what_are_no_probabilities_or_labels():
    task = find_task("multi-label").bound(Facts(outputs={"p": (2, 2)}))
    logits = np.array([[4.0, -3.0], [0.0, 0.1]], dtype=np.float32)
    with pytest.raises(UsageError, match="they are between -3 and 4, expected 0 to 1") as caught:
        task.decode({"p": logits}, None)
    assert caught.value.hint.endswith("--task multi-label:logits")
    as_logits = find_task("multi-label:logits").bound(Facts(outputs={"p": (2, 2)}))
    np.testing.assert_allclose(as_logits.decode({"p": logits}, None)[1], [0.5, 0.524979], 1e-5)
    quantized = np.array([[1.01, NAN]], dtype=np.float32)
    assert task.decode({"p": quantized}, None)[0, 0] == np.float32(1.01)
    assert "the targets are [2]; expected 0 or 1" in task.mismatch(logits, np.array([0, 1]))
    assert task.mismatch(logits, np.array([[0, 3], [1, -100]])) == "a target is 3, expected 0 or 1"
    assert task.mismatch(logits, np.array([[0, 1], [1, -100]])) == ""


def test_neighbours_and_recall_by_hand():
    task = find_task("embedding").bound(Facts(outputs={"e": (4, 2)}))
    vectors = np.array([[1, 0], [5, 0.5], [0, 1], [0.1, 3]], dtype=np.float32)
    assert neighbours(vectors).tolist() == [1, 0, 3, 2]
    assert scored(task, vectors, np.array([0, 0, 1, 1])) == {"recall@1": 100.0}
    # the last one is alone, so no query; the third one's neighbour is another class
    assert scored(task, vectors, np.array([0, 0, 0, 2])) == {"recall@1": pytest.approx(66.6667)}
    assert scored(task, vectors, np.array([3, 3, 3, 3])) == {"recall@1": None}
    assert scored(task, vectors, np.array([0, 1, 2, 3])) == {"recall@1": None}
    assert scored(task, vectors, None) == {}


def test_agreement_of_embeddings_needs_no_labels():
    task = find_task("embedding").bound(Facts(outputs={"e": (4, 2)}))
    vectors = np.array([[1, 0], [5, 0.5], [0, 1], [0.1, 3]], dtype=np.float32)
    seen = agreed(task, 2 * vectors, vectors)
    assert seen == {
        "top-1 retrieval agreement": 100.0,
        "mean cosine": pytest.approx(1.0),
        "least cosine": pytest.approx(1.0),
    }
    turned = vectors.copy()
    turned[0] = [0.05, 2]  # now beside the third and the fourth
    seen = agreed(task, turned, vectors)
    assert seen["top-1 retrieval agreement"] == 0.0  # 1 lost its neighbour, 2 and 3 have a nearer
    assert seen["least cosine"] == pytest.approx(0.024992, abs=1e-5)
    ruined = vectors.copy()
    ruined[3] = NAN
    assert agreed(task, ruined, vectors)["top-1 retrieval agreement"] == 50.0
    assert agreed(task, ruined, vectors)["least cosine"] == -1.0
    assert agreed(task, vectors[:2], vectors[:2])["top-1 retrieval agreement"] is None
    assert task.difference(vectors[0], vectors[2]) == pytest.approx(1.0)
    assert task.mismatch(vectors, np.zeros((4, 2))) == (
        "its targets are float64 [4, 2], expected one label a sample"
    )
    assert "no numbers [2]" in task.mismatch(vectors, np.array(["a", "b"], dtype=object))


def test_neighbours_of_many_vectors_are_those_of_a_plain_search():
    vectors = np.random.default_rng(0).normal(size=(2500, 3)).astype(np.float32)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    angles = unit @ unit.T
    np.fill_diagonal(angles, -2)
    found = neighbours(vectors)
    best = np.take_along_axis(angles, found[:, None], axis=1)[:, 0]
    np.testing.assert_allclose(best, angles.max(axis=1), rtol=1e-6)


@pytest.mark.parametrize(
    ("one", "other", "changes"),
    [("", "", 0), ("", "abc", 3), ("kitten", "sitting", 3), ("flaw", "lawn", 2), ((1, 2), (2,), 1)],
)
def test_edit_distance(one, other, changes):
    assert edit_distance(one, other) == changes
    assert edit_distance(other, one) == changes


def one_hot(rows, classes):
    return np.eye(classes, dtype=np.float32)[np.asarray(rows)]


def test_lines_are_read_without_repeats_and_blanks():
    lettered = Facts(outputs={"o": (2, 6, 5)}, metadata={"character": "a\nb\nc"})
    task = find_task("text-lines").bound(lettered)
    assert task.characters == ("a", "b", "c", " ")
    scores = one_hot([[1, 1, 0, 1, 2, 4], [0, 0, 3, 3, 3, 0]], 5)
    assert task.decode({"o": scores}, None) == ["aab ", "c"]
    scores[1, 0] = NAN
    assert task.decode({"o": scores}, None) == ["aab ", "\N{REPLACEMENT CHARACTER}c"]
    ended = Facts(outputs={"o": (2, 6, 4)}, metadata={"character": "a\nb\nc\n"})
    assert find_task("text-lines").bound(ended).characters == ("a", "b", "c")
    last = find_task("text-lines:blank-last").bound(Facts(outputs={"o": (1, 4, 3)}))
    assert last.decode({"o": one_hot([[2, 0, 2, 0]], 3)}, None) == [(0, 0)]
    other = Facts(outputs={"o": (2, 6, 9)}, metadata={"character": "a\nb\nc"})
    assert find_task("text-lines").bound(other).characters == ()  # of another number of classes


def test_character_accuracy_by_hand():
    task = find_task("text-lines").bound(
        Facts(outputs={"o": (2, 6, 4)}, metadata={"character": "a\nb\nc"})
    )
    texts = np.array(["abc", "aabb"], dtype=object)
    # one of seven characters is missing
    assert scored(task, ["abc", "aab"], texts) == {
        "character accuracy": pytest.approx(85.7143),
        "equal lines": 50.0,
    }
    assert scored(task, ["xyzxyzxyz"], ["a"])["character accuracy"] == 0.0
    assert scored(task, [""], [""]) == {"character accuracy": None, "equal lines": 100.0}
    assert agreed(task, ["abc"], ["abd"]) == {
        "agreement character accuracy": pytest.approx(66.6667),
        "agreement equal lines": 0.0,
    }
    indices = find_task("text-lines").bound(Facts(outputs={"o": (2, 6, 4)}))
    assert scored(indices, [(1, 2)], np.array([[1, 2, -100]]))["equal lines"] == 100.0
    assert task.difference("abc", "abd") == 1.0
    assert "the file does not say its characters" in indices.mismatch([], texts)
    assert "expected texts: the file says" in task.mismatch([], np.array([[1, 2]]))
    assert task.mismatch([], texts) == ""
    assert task.mismatch([], np.array([1.0])) == "its targets are float64 [1], expected texts"
    assert "no texts [1]" in task.mismatch([], np.array([None], dtype=object))


def test_the_divergence_of_a_segmentation_is_that_of_the_output_it_reads():
    task = find_task("segmentation:mask").bound(
        Facts(outputs={"other": (1, 2, 2, 2), "mask": (1, 2, 2, 2)})
    )
    same, scores = torch.zeros(1, 2, 2, 2), torch.randn(1, 2, 2, 2)
    apart = task.divergence({"other": same, "mask": scores}, {"other": same, "mask": -scores})
    assert float(apart) > 0.0


def test_the_divergence_of_one_map_is_not_that_of_a_single_class():
    task = find_task("segmentation").bound(Facts(outputs={"mask": (1, 1, 2, 2)}))
    one, other = torch.full((1, 1, 2, 2), 0.2), torch.full((1, 1, 2, 2), 0.9)
    assert float(task.divergence({"mask": one}, {"mask": other})) > 0.0
    assert float(task.divergence({"mask": one}, {"mask": one})) == 0.0


def test_the_divergence_of_sure_answers_has_a_gradient():
    answer = torch.tensor([[0.0, 200.0, 1.0]], requires_grad=True)
    alike = class_divergence(answer, torch.tensor([[0.0, 150.0, 1.0]]))
    alike.sum().backward()
    assert float(alike.detach()) == 0.0 and answer.grad.tolist() == [[0.0, 0.0, 0.0]]
    other = torch.tensor([[0.0, 200.0]], requires_grad=True)
    apart = class_divergence(other, torch.tensor([[200.0, 0.0]]))
    apart.sum().backward()
    assert float(apart.detach()) == pytest.approx(np.log(2.0)) and torch.isfinite(other.grad).all()
