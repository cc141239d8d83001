import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from segmint.evaluation import charts


def words(svg: bytes) -> list[str]:
    root = ElementTree.fromstring(svg)
    return ["".join(node.itertext()).strip() for node in root.iter("{http://www.w3.org/2000/svg}text")]


def log(steps: int):
    lines = []
    for step in range(1, steps + 1):
        lines.append(
            {"step": step, "split": "train", "loss": 1000 / step**2, "l1_norm": 178000 + step, "lr": 1 / step**3}
        )
        if step % 10 == 0:
            lines.append({"step": step, "split": "val", "loss": 2 / step, "miou": 0.5, "miou_train": 0.6})
    return lines


@pytest.mark.parametrize("steps", [1, 30, 300])
def test_curves_have_a_titled_panel_per_term(steps):
    found = words(charts.curves(log(steps), ["loss", "miou", "l1_norm", "lr", "nothing"], best_step=20))
    for title in ("loss", "mIoU", "L1 norm of the weights", "learning rate", "nothing"):
        assert title in found
    assert ("train, as validated" in found) == (steps >= 10)
    assert any(word.endswith("k") for word in found)


def test_the_running_mean_is_a_mean():
    values = np.arange(10.0)
    np.testing.assert_allclose(charts._running_mean(values, 0), values)
    expected = [values[max(0, i - 2) : i + 3].mean() for i in range(10)]
    np.testing.assert_allclose(charts._running_mean(values, 2), expected)


def test_what_is_no_number_is_not_drawn():
    steps, values = charts._points(
        [{"step": 1, "split": "val", "x": float("nan")}, {"step": 2, "split": "val", "x": True},
         {"step": 3, "split": "val", "x": 4}, {"step": 4, "split": "train", "x": 5}], "x", "val"
    )  # fmt: skip
    assert steps.tolist() == [3]
    assert values.tolist() == [4]


def test_bars_and_intervals_name_their_rows_even_in_chinese():
    table = np.array([[50, 40, 60], [np.nan] * 3])
    found = words(charts.bar_chart(["sky", "道路"], {"one": table, "two": np.array([3.0, 4.0])}))
    assert {"sky", "道路", "one", "two", "%"} <= set(found)
    single = words(charts.bar_chart(["sky"], {"only": np.array([3.0])}, "pixels"))
    assert "only" not in single
    assert "pixels" in single
    found = words(charts.interval_chart(["a", "b", "c"], np.array([[1, 0.5, 2], [-1, -2, -0.5], [0, -1, 1]]), "points"))
    assert {"a", "b", "c", "points"} <= set(found)


def test_the_same_figures_give_the_same_picture():
    assert charts.curves(log(30), ["loss"]) == charts.curves(log(30), ["loss"])


def test_lines_have_their_labels():
    x = np.array([0.0, 50.0, 100.0])
    picture = charts.line_chart({"ours": (x, x / 100), "best": (x, x / 50)}, "share", "Dice")
    assert {"ours", "best", "share", "Dice"} <= set(words(picture))
