"""A method of one's own: the student writes the last step of each rationale, then the answer."""

import dataclasses

from kpod_jax.baselines.protocol import Example, Method


class LastStep(Method):
    """Short rationales; all else is as in plain chain-of-thought distillation."""

    def examples(self, records):
        """One a record; what is known of the tokens of the whole rationale does not hold here."""
        return [
            Example(
                dataclasses.replace(r, steps=r.steps[-1:], keypoints=None, hardness=None),
                prompt=self.prompt,
            )
            for r in records
        ]
