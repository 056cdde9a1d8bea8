import pytest

from kpod_jax.data.thoughts import split_thought


@pytest.mark.parametrize(
    ("text", "thought", "rest"),
    [
        ("<think>2 + 3 = 5</think>The answer is 5.", "2 + 3 = 5", "The answer is 5."),
        ("2 + 3 = 5\n</think>\n\nThe answer is 5.", "2 + 3 = 5", "The answer is 5."),
        ("\n<think>\nHm, 2 + 3 ", "Hm, 2 + 3", ""),
        ("[THINK]2 + 3[/THINK]5", "2 + 3", "5"),
        ("<think></think> 5", "", "5"),
        ("<think>I write </think> a lot</think>5", "I write </think> a lot", "5"),
        ("The answer is 5.", "", "The answer is 5."),
        ("In HTML, <b>5</b>", "", "In HTML, <b>5</b>"),
    ],
)
def test_split_thought(text: str, thought: str, rest: str) -> None:
    assert split_thought(text) == (thought, rest)
