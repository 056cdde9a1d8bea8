"""A data set of one's own: sums that are made, not read. `data.path` may be a file of names."""

import pathlib
import random

from kpod_jax.data.custom import CustomDataSet

SIZES = {"train": 400, "validation": 40, "test": 80}


class Sums(CustomDataSet):
    """Three purchases, added up one by one."""

    answer_kind = "number"

    def rows(self, split):
        """Question, rationale and answer of each row; an id is made where there is none."""
        names = ["Tom", "Ann", "Eva"]
        if self.path:
            names = pathlib.Path(self.path).read_text(encoding="utf-8").split()
        draw = random.Random(split)
        for _ in range(SIZES[split]):
            name, (a, b, c) = draw.choice(names), (draw.randint(1, 20) for _ in range(3))
            yield {
                "question": f"{name} buys {a} pens, {b} books and {c} cards. How many things?",
                "rationale": f"{a} + {b} = {a + b}. {a + b} + {c} = {a + b + c}.",
                "answer": str(a + b + c),
            }
