"""A custom method: the student writes the last step of each rationale, then the answer."""

import dataclasses

from kpod_jax.baselines.protocol import Example, Method


class LastStep(Method):
    """Plain chain-of-thought distillation with short rationales."""

    def examples(self, records):
        """Returns one example per record, without the ground truth of the whole rationale."""
        return [
            Example(
                dataclasses.replace(r, steps=r.steps[-1:], keypoints=None, hardness=None),
                prompt=self.prompt,
            )
            for r in records
        ]
