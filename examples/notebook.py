# %% [markdown]
# # KPOD, step by step, on the built-in task
#
# Run this file as a notebook (VS Code, Jupytext) or a script. It takes a few minutes on a laptop.

# %%
import numpy as np

import kpod_jax as kpod

config = kpod.load_config("configs/quickstart.py")
student = kpod.load_student(config.student)
data = kpod.prepare_data(config.data, student)
print(data)
print(data.records("train")[0].question)

# %% [markdown]
# ## How much does each token matter? (Eq. 2-7)

# %%
weights = kpod.learn_token_weights(config.weighting, student, data)
print(weights)

# %%
kpod.heat_map(data, weights, range(3))

# %% [markdown]
# ## How difficult is each step? (Eq. 8)

# %%
difficulty = kpod.score_steps(config.difficulty, student, data, weights)
for step, nats in zip(data.train.records[0].steps, difficulty[0], strict=True):
    print(f"{nats:.2f}  {step}")

# %% [markdown]
# ## Which steps does the student write in each phase? (Eq. 9-13)
#
# Here, a phase is an epoch. In the early phases, the first steps are input, and the student writes
# the last steps and the answer.

# %%
schedule = kpod.make_schedule(config.schedule, student, data, difficulty, config.distill.epochs)
print("mean number of input steps, by phase:", schedule.start_steps.mean(axis=1).round(2))

# %% [markdown]
# ## Distillation (Eq. 15) and evaluation

# %%
trained = kpod.distill(config.distill, student, data, weights, schedule)
test = data.records("test")
result = kpod.evaluate(config.eval, student, trained.params, test)
print(result)
print(kpod.generate(student, trained.params, [test[0].question])[0])

# %% [markdown]
# Custom weights and schedules are plain arrays. Here, numbers have weight 1, all other tokens 0.3.

# %%
custom = [
    np.array([1.0 if r.rationale[a:b].strip().isdigit() else 0.3 for a, b in spans])
    for r, spans in zip(data.train.records, data.train.rationale_char_spans, strict=True)
]
trained = kpod.distill(config.distill, student, data, custom)
print(kpod.evaluate(config.eval, student, trained.params, test))
