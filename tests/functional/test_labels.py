import torch

from segmint.functional.labels import most_likely


def test_the_class_of_the_largest_score_and_the_first_of_equals():
    scores = torch.randn(3, 5, 7, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    assert torch.equal(most_likely(scores), scores.argmax(1))
    assert not most_likely(scores).requires_grad
    assert most_likely(torch.tensor([[[1.0, 0.0], [1.0, 2.0], [0.0, 2.0]]])).tolist() == [[0, 1]]
