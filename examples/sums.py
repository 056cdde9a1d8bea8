"""A custom data set of generated sums. `data.path` may be a file of names."""

import pathlib
import random

from kpod_jax.data.custom import CustomDataSet

SIZES = {"train": 400, "validation": 40, "test": 80}


class Sums(CustomDataSet):
    """Problems that add up three purchases, one by one."""

    answer_kind = "number"

    def rows(self, split):
        """Yields question, rationale and answer of each row; missing ids are generated."""
        names = ["Tom", "Ann", "Eva"]
        if self.path:
            names = pathlib.Path(self.path).read_text(encoding="utf-8").split()
        rng = random.Random(split)
        for _ in range(SIZES[split]):
            name, (a, b, c) = rng.choice(names), (rng.randint(1, 20) for _ in range(3))
            yield {
                "question": f"{name} buys {a} pens, {b} books and {c} cards. How many things?",
                "rationale": f"{a} + {b} = {a + b}. {a + b} + {c} = {a + b + c}.",
                "answer": str(a + b + c),
            }
