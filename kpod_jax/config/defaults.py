"""The default configuration, the meaning of every key, and the methods.

A configuration file starts from the locked default tree, changes what it needs and returns it.
Brackets name the source of a value: "paper" is the KPOD paper, "ours" a choice it leaves open. The
paper's values and ranges are in kpod_jax/config/paper.py; allowed values are checked in
kpod_jax/cli/checks.py.
"""

from typing import Any, TypeAlias

from kpod_jax.utils import plugins
from kpod_jax.utils.config_dict import ConfigDict
from kpod_jax.utils.errors import UserError, one_of

# A ConfigDict; type checkers cannot know its values.
Config: TypeAlias = Any

_PLAIN = {"weighting.weights": "uniform", "schedule.curriculum": "full"}
_SEVERAL = _PLAIN | {"data.rationales_per_question": 5}
# Weights as they are, on whole rationales.
_WEIGHTED = _PLAIN | {
    "distill.weight_context": 0,
    "distill.step_start_weight": "learned",
    "distill.min_weight": 0.0,
}
METHODS = {
    # name: (display name, keys that define the method)
    "kpod": ("KPOD", {}),
    "scotd": ("SCoTD", _PLAIN),
    "none": ("no distillation", _PLAIN | {"distill.epochs": 0}),
    "scotd_equal_tokens": ("SCoTD, equal tokens", {"distill.equal_tokens": True}),
    "without_significance": ("KPOD w.o.-sig", {"weighting.weights": "uniform"}),
    "without_significance_in_difficulty": ("KPOD w.o.-sig-dif", {"difficulty.weights": "uniform"}),
    "without_progression": ("KPOD w.o.-prog", {"schedule.curriculum": "full"}),
    "without_diversity": ("KPOD w.o.-div", {"schedule.beta": 0.0}),
    "acl": ("KPOD-ACL", {"schedule.curriculum": "acl"}),
    "spl": ("KPOD-SPL", {"schedule.curriculum": "spl"}),
    "icl": ("KPOD-ICL", {"schedule.curriculum": "icl"}),
    "rho_1": ("Rho-1", _WEIGHTED | {"weighting.weights": "excess_loss"}),
    "surprisal": ("surprisal weights", _WEIGHTED | {"weighting.weights": "surprisal"}),
    # These build their own training examples: kpod_jax/baselines/, docs/baselines.md.
    "answer_only": ("answer only", _PLAIN),
    "specialized_kd": ("Specialized KD", _PLAIN),
    "scott": ("SCOTT", _PLAIN),
    "mcc_kd": ("MCC-KD", _SEVERAL),
    "mcc_kd_control": (
        "MCC-KD without consistency",
        _SEVERAL | {"baseline.consistency_weight": 0.0},
    ),
    "distilling_step_by_step": ("Distilling Step-by-Step", _PLAIN),
}


def method_name(method: str) -> str:
    """Returns a method's display name; for a custom method, its import path."""
    return METHODS[method][0] if method in METHODS else method


def trained_method(config: Config) -> str:
    """Returns the method that a run's student shows: "none" if it is not trained at all."""
    return config.method if config.distill.epochs else "none"


def get_config() -> Config:
    """Returns the default configuration, locked: no key can be added."""
    config = ConfigDict()
    config.method = "kpod"  # Method: a key of METHODS or package.module:Class (docs/extending.md).
    # `apply_method` sets it together with the keys that define it.
    config.seed = 0  # Seed of all randomness: shuffling, masks, dropout, clusters.
    config.track = ("tensorboard",)  # Where to log metrics, configuration, results and report,
    # besides metrics.jsonl: any of tensorboard, wandb, trackio, mlflow (docs/launch.md).

    data = config.data = ConfigDict()
    data.name = "arithmetic"  # Data set: arithmetic (built in), gsm8k, asdiv, svamp,
    # commonsense_qa; jsonl, json, csv, parquet, huggingface (custom data; docs/data.md);
    # package.module:Class, a custom reader (docs/extending.md).
    data.path = ""  # Custom data: a file, a folder or, for huggingface, an id on the hub.
    # Otherwise: folder with the data set's original files. Empty: download or generate them.
    data.splits = "paper"  # Splits: paper: KPOD's train/validation/test; official: the data set's
    # own.
    data.rationales = ""  # Teacher's rationales: a JSONL, CSV or TSV file, or a data set on the
    # Hugging Face hub. Empty: the data set's own solutions.
    data.rationales_per_question = 1  # Maximum number of rationales per training question, each a
    # separate example. 0: all in the teacher's file. The built-in task generates this many.
    columns = data.columns = ConfigDict()  # Column names of custom data, otherwise of the teacher's
    # file. For a default that custom data lacks, its format is recognised (docs/data.md).
    columns.question = "question"  # Column of the question.
    columns.rationale = "rationale"  # Column of the rationale.
    columns.answer = "answer"  # Column of the gold answer.
    columns.id = "id"  # Column of the id. Records without one are identified by file and line.
    data.cache_dir = ""  # Folder for prepared TFDS files. Empty: TFDS_DATA_DIR or
    # ~/tensorflow_datasets.
    data.train_examples = 0  # Number of training questions to use, from the start of the split. 0:
    # all.
    data.validation_examples = 0  # Number of validation questions to use, from the start. 0: all.
    data.test_examples = 0  # Number of test questions to use, from the start. 0: all.
    data.answer_kind = ""  # Kind of the answers: number, choice, yes_no; text, equal up to case and
    # punctuation; math, equal by math-verify; package.module:function, a judge of your own
    # (docs/evaluation.md). Empty: the data set's kind; number for custom data.
    arithmetic = data.arithmetic = ConfigDict()  # The built-in task.
    arithmetic.verbosity = 0.6  # Amount of filler in the rationales. [0, 1]
    arithmetic.operations = (2, 4)  # Minimum and maximum number of operations per problem.
    data.max_rejected_fraction = 0.01  # Maximum fraction of unusable records per split; above it
    # the run stops. [0, 1]
    data.reject_unknown_characters = False  # Whether to reject training records with characters
    # that the tokenizer does not know and that have no equal. False: keep them; they become the
    # unknown token.
    data.step_separator = ""  # End of a step. Empty: our splitter [ours]; ".": the paper's.

    teacher = config.teacher = ConfigDict()  # Settings of --mode=teach; see docs/teacher.md.
    teacher.model = ""  # Name of the model at the endpoint.
    teacher.base_url = ""  # URL of an OpenAI-compatible endpoint. Empty: OPENAI_BASE_URL, else
    # OpenAI. The API key is read from OPENAI_API_KEY only.
    teacher.style = "zero_shot"  # Prompt style: zero_shot [paper], or few_shot, with worked
    # examples first.
    teacher.prompt = "Q: {question} A: Let's think step by step."  # Prompt for each question.
    # [paper]
    teacher.instruction = (  # Text before the prompt; the answer is read from the end. [ours]
        "Reason in short, plain sentences, without headings, lists or LaTeX. End with the sentence "
        '"Therefore, the answer is ANSWER.", with the answer alone for ANSWER.'
    )
    teacher.examples = ""  # few_shot: JSONL file with question, rationale, answer. Empty: three
    # built-in examples.
    teacher.samples = 1  # Number of rationales requested per question.
    teacher.temperature = 0.0  # Sampling temperature; above 0 if samples > 1. Below 0: the
    # endpoint's default.
    teacher.top_p = 1.0  # Nucleus sampling: total probability of the tokens to sample from. 0: the
    # endpoint's default.
    teacher.max_tokens = 512  # Maximum response length, with the thought; a response that is cut
    # off is rejected.
    teacher.max_tokens_name = "max_tokens"  # Parameter name: max_tokens, or max_completion_tokens
    # for OpenAI's reasoning models.
    teacher.extra_body = ""  # Further fields of every request, as a JSON object: '{"top_k": 20,
    # "seed": 1, "reasoning_effort": "low", "chat_template_kwargs": {"enable_thinking": false}}'.
    # They take precedence; null leaves a field out. A seed grows by 1 with each sample.
    teacher.logprobs = 0  # Number of top log probabilities requested per token, for
    # baseline.distributions. 0: none. OpenAI allows at most 20, and none for reasoning models.
    teacher.keep = "right"  # Rationales to keep: right: those whose answer matches the data set's;
    # all: every one.
    teacher.rationale_from = "answer"  # What becomes the rationale, for reasoning models: answer:
    # the text after the thought; thought: the thought; both: the thought, followed by the text.
    teacher.rationales_per_question = 0  # Maximum number of different rationales to keep per
    # question; a question that has them is not asked again. 0: no limit.
    teacher.concurrency = 8  # Maximum number of concurrent requests.
    teacher.requests_per_minute = 0.0  # Maximum request rate, evenly spaced. 0: no limit.
    teacher.timeout = 300.0  # Maximum time in seconds that the endpoint may stay silent.
    teacher.total_timeout = 1800.0  # Maximum time in seconds of a request until its response is
    # complete; one that takes longer is not retried. 0: no limit.
    teacher.retries = 8  # Maximum number of retries after 408, 409, 429, 5xx, a timeout or a lost
    # connection.
    teacher.input_price = 0.0  # Price in dollars per million prompt tokens, for the cost estimate.
    teacher.output_price = 0.0  # Price in dollars per million completion tokens.
    teacher.batch = "none"  # OpenAI's batch API: none: not used; write: write its request files;
    # read: read its results.
    teacher.batch_results = ""  # Results file to read with batch=read.

    # See docs/students.md.
    student = config.student = ConfigDict()
    student.model = "kpod_jax/assets/tiny_t5"  # Model: directory, Hugging Face hub id or GGUF file;
    # with init=random a config.json is enough.
    student.family = ""  # Custom architecture: package.module:FAMILY (docs/extending.md).
    student.init = "pretrained"  # Initial weights: pretrained, or random, which loads only the
    # architecture.
    student.tokenizer = ""  # Tokenizer: directory, hub id or SentencePiece .model file. Empty: the
    # model's.
    student.dtype = "float32"  # Dtype of activations and matrix products: float32 or bfloat16.
    student.scan_layers = True  # Whether to scan over one compiled layer. False: unroll, faster for
    # few layers on CPU.
    student.remat = "none"  # Activations to recompute in the backward pass: none, dots (all but the
    # results of matrix products), full.
    student.attention = "auto"  # Attention implementation: xla; without storing all scores: cudnn
    # (flash attention on a GPU), splash (decoder-only students on a TPU, from 512 tokens on) or
    # blocks (on a CPU); auto: cudnn on an NVIDIA GPU in bfloat16, splash on a TPU, blocks on a
    # single CPU device, else xla. cudnn sums gradients in no fixed order.
    student.prompt = "Q: {question} A: Let's think step by step."  # Prompt template. [paper]
    student.chat = False  # Whether to wrap the prompt as a user turn in the tokenizer's chat
    # template (Instruct models).
    student.system_prompt = ""  # System turn before the prompt; needs chat=True. Empty: none.
    student.chat_template_kwargs = ""  # Additional arguments of the chat template as a JSON object,
    # such as {"enable_thinking": false}; needs chat=True.
    student.date = ""  # Current date for chat templates that contain it, as YYYY-MM-DD. Empty: the
    # day on which the run first loaded its student.
    student.answer_template = "Therefore, the answer is {answer}."  # Answer sentence at the end of
    # a rationale. [paper]
    student.max_question_tokens = 256  # Maximum prompt length; longer records are rejected and
    # listed.
    student.max_target_tokens = 384  # Maximum length of rationale and answer; longer records are
    # rejected and listed.
    lora = student.lora = ConfigDict()
    lora.rank = 0  # Rank of the adapters. 0: train all parameters.
    lora.alpha = 16.0  # Scale of the adapters, divided by the rank (alpha / rank). [ours]
    lora.dropout = 0.0  # Dropout rate on the adapters' input. [0, 1)
    lora.targets = ("q", "v")  # Projections with adapters (T5: q k v o wi wi_0 wi_1 wo; LLaMA: q k
    # v o gate up down), or ("all-linear",).
    lora.base_dtype = "float32"  # Dtype of the frozen weights: float32, bfloat16 or int8.

    # See docs/token_weighting.md.
    weighting = config.weighting = ConfigDict()
    weighting.weights = "learned"  # Token weights: learned (Eq. 2-7); uniform: every w_j = 1;
    # surprisal, gradient, excess_loss (Rho-1) or numbers (docs/token_weighting.md); a .npz file in
    # the format of token_weights.npz; or package.module:function, a custom weighting
    # (docs/extending.md).
    weighting.preset = ""  # paper: the paper's literal mask learning instead of the keys below:
    # straight-through Gumbel-Softmax, all prefixes, joint training, no fit; see config/paper.py.
    weighting.answerer = ""  # Answerer model of any family: directory, hub id or GGUF file. Empty:
    # the student.
    weighting.tokenizer = ""  # Tokenizer of weighting.answerer. Empty: its own.
    weighting.reference = ""  # excess_loss: reference model with the student's tokenizer:
    # directory, hub id or GGUF file. Empty: two copies of the student, each fit on half of the
    # training set.
    weighting.reference_steps = 300  # excess_loss: number of steps to fit each copy. [ours]
    weighting.kept_fraction = 0.6  # excess_loss: fraction of the tokens that get weight 1, those
    # with the highest excess loss; the others get 0. [ours]
    weighting.alpha = 0.5  # Cost of a kept token (Eq. 7). [paper]
    weighting.alpha_warmup = 0.0  # Fraction of the steps over which alpha rises from 0; 0.25 suits
    # estimators other than score_function. [ours]
    weighting.prefixes = "sampled"  # Prefixes of each rationale: all (Eq. 5), or sampled uniformly.
    # Not estimates of Eq. 5: step_ends: sampled at step ends, for answerers too weak to continue
    # within a step; late: sampled, longer ones more often. [ours]
    weighting.encoding = "bidirectional"  # How T5 encodes prefixes: bidirectional: each one
    # separately, as in pretraining; causal: all prefixes of a rationale at once, for which the
    # answerer must be fit anew. [ours]
    weighting.prefix_samples = 2  # Sampled prefixes per example and step, each with its own mask if
    # the answerer reads them separately. [ours]
    weighting.steps = 300  # Number of mask-learning steps. [ours]
    weighting.batch_size = 32  # Examples per step. [ours]
    weighting.learning_rate = 3e-3  # Learning rate of the generator (Adam). [ours]
    weighting.clip_norm = 1.0  # Maximum norm of the generator's gradient. [ours]
    weighting.eval_every = 25  # Steps between evaluations of the held-out objective; the generator
    # with the lowest is used. 0: none; the last one is used. [ours]
    weighting.eval_examples = 256  # Maximum number of held-out examples for the objective and the
    # gap. [ours]
    weighting.patience = 4  # Evaluations in a row without improvement that end mask learning early.
    weighting.temperature_start = 1.0  # Initial temperature of the Gumbel-Softmax (Eq. 4). [ours]
    weighting.temperature_end = 0.5  # Temperature that the last steps approach. [ours]
    weighting.estimator = "score_function"  # Gradient estimator for the masks. score_function:
    # compares the losses of hard masks, unbiased if exploration is 0 [ours]; straight_through
    # [paper]: hard masks with the gradient of soft ones (Eq. 4); soft: soft masks.
    weighting.mask_samples = 8  # Masks per example and step for score_function. [ours]
    weighting.exploration = 0.1  # Minimum probability of masking, and of keeping, any token with
    # score_function: a token that is never masked is never found to be unnecessary. Above 0 the
    # gradient is that of the drawn masks, hence biased. [ours]
    weighting.initial_weight = 0.88  # Initial w_j; with lower weights, masks may let nothing
    # through.
    weighting.hidden_size = 64  # Width of the generator's MLP (Eq. 3). [ours]
    weighting.num_heads = 4  # Number of attention heads of the generator (Eq. 2). [ours]
    weighting.allow_failed = False  # Whether to continue, with a warning, if keeping every token,
    # or none, has a lower held-out Eq. 7 than the learned weights. For experiments. [ours]
    weighting.fit = "other_fold"  # Examples the answerer is fit on. other_fold: the half of the
    # training set whose weights are not being learned; fresh: new problems of the built-in task;
    # same: the same examples, as in the paper, at the risk of memorization.
    weighting.fit_fresh_examples = 4000  # Number of new problems generated for fit=fresh.
    weighting.fit_unmasked_steps = 300  # Number of fitting steps on whole, unmasked rationales.
    # [ours]
    weighting.fit_masked_steps = 600  # Number of subsequent fitting steps on masked prefixes.
    # [ours]
    weighting.fit_unmasked_fraction = 0.5  # Fraction of the rows of fit_masked_steps with the whole
    # rationale and, independently, of those without a mask.
    weighting.fit_learning_rate = 1e-3  # Learning rate of all fitting steps.
    weighting.fit_until_gap = 0.0  # Held-out gap, in nats, that ends the fitting early; measured
    # every 100 of fit_masked_steps. 0: all steps. [ours]
    weighting.joint_learning_rate = 0.0  # Learning rate of the answerer during mask learning. 0:
    # frozen.
    weighting.min_gap = 0.5  # Minimum held-out gap of L_p, in nats, between everything and nothing
    # masked.
    lora = weighting.lora = ConfigDict()
    lora.rank = 0  # Rank of the answerer's adapters. 0: fit all its weights.
    lora.alpha = 16.0  # Scale of the adapters, divided by the rank. [ours]
    lora.targets = ("q", "v")  # Projections with adapters; see student.lora.targets.
    lora.base_dtype = "bfloat16"  # Dtype of the frozen weights: float32, bfloat16 or int8.

    difficulty = config.difficulty = ConfigDict()
    difficulty.weights = "learned"  # Weights ŵ of Eq. 8: learned (the token weights) or uniform.
    difficulty.batch_size = 64  # Examples per scoring batch.

    # See docs/schedule.md.
    schedule = config.schedule = ConfigDict()
    schedule.curriculum = "kpod"  # Curriculum: kpod (Eq. 9-13); full: whole rationales from the
    # start; icl: suffixes that grow equally for all examples; spl, acl: the easiest examples first,
    # by the current loss or a mixture; package.module:Class: a custom one
    # (kpod_jax/schedule/protocol.py).
    schedule.phase_steps = 0  # Number of steps per phase. 0: one epoch. [paper]
    schedule.p = 0.5  # Exponent of the velocity (Eq. 10). [paper]
    schedule.initial_fraction = 0.3  # Initial fraction of the total difficulty, C0 / B (Eq. 10).
    # [paper] spl, acl: initial fraction of the examples.
    schedule.beta = 12.0  # Weight of diversity (Eq. 12). [paper]
    schedule.clusters = 5  # Number of question clusters, K. [paper]
    schedule.ramp_fraction = 0.5  # End of the ramp, T, as a fraction of the phases. [paper]
    schedule.solver = "greedy"  # Solver of Eq. 13: greedy [ours] or ftgp [paper].
    schedule.vectors = ""  # Vectors for clustering questions: a GloVe or word2vec text file [paper:
    # GloVe], or a .npy file with a vector per training record. Empty: student embeddings.
    schedule.growth = 1  # icl: number of steps added to each suffix per phase. [ours]
    schedule.mixing = 0.5  # acl: weight of the current loss; the initial loss has 1 - mixing.
    # [ours]

    distill = config.distill = ConfigDict()
    distill.epochs = 20  # Number of epochs. An epoch is a phase, unless schedule.phase_steps is
    # set.
    distill.batch_size = 32  # Examples per step, over all devices.
    distill.buckets = 4  # Maximum number of batch shapes; each is compiled once.
    distill.pack_length = 0  # Decoder-only: length of rows that pack several examples; batch_size
    # then counts rows. 0: one example per row.
    distill.loss = "cross_entropy"  # Loss per token: cross_entropy, or package.module:function, a
    # custom one (docs/extending.md).
    distill.min_weight = 0.0  # Minimum token weight, for students that cannot yet write what
    # learned weights leave out. 0: none. [ours]
    distill.weight_context = 2  # Context length for averaging: a token gets the mean weight of all
    # tokens that follow the same context of this many tokens, so that no continuation is favored
    # [ours]. 0: w_j itself, as in the paper.
    distill.step_start_weight = "answer"  # Weight of each step's first token, where the student
    # continues or answers. answer [ours]: 1, as for the answer's tokens, in input steps as well;
    # learned [paper]: w_j.
    distill.rescale_weights = "none"  # Rescaling of a rationale's weights after min_weight: none
    # [paper]; mean: divide them by their mean, except those set by step_start_weight=answer. [ours]
    distill.equal_tokens = False  # Whether to train on whole rationales with all weights 1, like
    # SCoTD, until as many rationale tokens are supervised as under the schedule. [ours]
    distill.optimizer = "adam"  # Optimizer: adam [paper], adamw or adafactor.
    distill.learning_rate = 1e-3  # Peak learning rate.
    distill.warmup_steps = 20  # Number of steps of linear warmup from 0.
    distill.decay = "constant"  # Learning rate after the warmup: constant [paper], linear or cosine
    # to 0.
    distill.weight_decay = 0.0  # Weight decay of adamw and adafactor.
    distill.clip_norm = 1.0  # Maximum norm of the global gradient. 0: no clipping.
    distill.skip_nonfinite = 0  # Maximum number of steps in a row that are skipped because their
    # loss or gradient is not finite. 0: the first one stops the training.
    distill.dropout = False  # Whether to train with the model's own dropout rates.
    distill.micro_batches = 1  # Number of parts in which a batch is processed; the result is the
    # same.
    distill.input_steps = "decoder"  # Where input steps go: decoder [ours], encoder [paper; T5].
    distill.log_every = 10  # Steps between lines of metrics.jsonl.
    distill.checkpoint_every = 200  # Steps between checkpoints; the last step is always saved.
    distill.max_to_keep = 2  # Number of latest checkpoints to keep, in addition to the best.
    distill.validate_every = 0  # Epochs between evaluations of the validation accuracy. 0: only at
    # the end.
    distill.max_steps = 0  # Maximum number of training steps. 0: train for all epochs.

    monitoring = config.monitoring = ConfigDict()  # Monitoring of the training; does not affect its
    # result.
    monitoring.hang_seconds = 3600.0  # Seconds without a finished step after which a process exits
    # with code 134, for example because another host hangs. Must exceed compilation and validation.
    # 0: never.
    monitoring.profile_steps = 0  # Number of steps to profile, soon after the start, into profile/.

    # Keys of individual methods, see docs/baselines.md. Brackets name the source of the value: a
    # method's paper, its authors' code, or ours.
    baseline = config.baseline = ConfigDict()
    baseline.answer_prompt = "Q: {question} A: Let's answer directly."  # answer_only,
    # specialized_kd, distilling_step_by_step: prompt for an answer without a rationale. [ours]
    baseline.rationale_weight = 1.0  # distilling_step_by_step: λ of the rationale task. [code: its
    # recommended alpha = 0.5 is equivalent]
    baseline.counterfactuals = ""  # scott: teacher's JSONL file with question, rationale and the
    # other answer that it supports. Empty: generated by the built-in task.
    baseline.counterfactual_weight = 0.5  # scott: α, fraction of the counterfactual loss. [code:
    # 0.5]
    baseline.consistency_weight = 0.01  # mcc_kd: λ of the divergence. [code: 0.01 for GSM8K]
    baseline.diverse_rationales = 2  # mcc_kd: number of rationales to keep per question. [code: 2]
    baseline.ngram = 3  # mcc_kd: N of the N-grams in the similarity measure. [ours]
    baseline.formats = (  # specialized_kd: formats of the data. [paper: these four]
        "zero_shot_answer_only",
        "zero_shot_chain_of_thought",
        "in_context_answer_only",
        "in_context_chain_of_thought",
    )
    baseline.format_weights = (2.0, 5.0, 4.0, 20.0)  # specialized_kd: relative weights of the
    # formats in the loss: zero-shot answers and rationales, in-context answers and rationales.
    # [code: of its 3B batches]
    baseline.demonstrations = 4  # specialized_kd: number of examples in an in-context prompt.
    # [code: 4]
    baseline.distributions = ""  # specialized_kd: JSONL file of the teacher's token distributions
    # (docs/baselines.md). Empty: only its text is matched.

    # Number of devices along each axis; their product is the number of devices. -1: all that
    # remain. See docs/scale.md.
    mesh = config.mesh = ConfigDict()
    mesh.data = -1  # Axis of data parallelism: parameters are copied, rows are split.
    mesh.fsdp = 1  # Axis along which parameters, optimizer state and rows are split.
    mesh.tensor = 1  # Axis along which heads and hidden units are split.

    # See docs/evaluation.md.
    evaluation = config.eval = ConfigDict()
    evaluation.split = "test"  # Split to evaluate: train, validation or test.
    evaluation.checkpoint = "best"  # Checkpoint: best (by validation accuracy), latest, or a step's
    # number.
    evaluation.batch_size = 64  # Prompts per batch.
    evaluation.max_new_tokens = 0  # Maximum number of generated tokens. 0:
    # student.max_target_tokens.
    evaluation.temperature = 0.0  # Sampling temperature. 0: greedy [ours].
    evaluation.top_p = 1.0  # Nucleus sampling: total probability of the tokens to sample from. (0,
    # 1]
    evaluation.samples = 1  # Generations per question; the most frequent answer counts.
    evaluation.ood = ()  # Names of other data sets whose test splits are also evaluated, such as
    # ("asdiv", "svamp") for a student of gsm8k. They are read only after training.
    evaluation.ood_paths = ()  # Folder of each, "" for one that needs none. (): none needs one.
    evaluation.ood_examples = 0  # Number of questions to use from the start of each. 0: all.

    # See docs/students.md.
    export = config.export = ConfigDict()
    export.lora = "merged"  # Form of LoRA: merged into the weights, or adapter: a directory that
    # PEFT loads.
    export.dtype = "float32"  # Dtype of the exported weights: float32 or bfloat16.
    export.license = ""  # License in the model card, by its id on the Hugging Face hub, such as
    # apache-2.0. Empty: that of student.model, if known.

    # --mode=push, see docs/students.md.
    push = config.push = ConfigDict()
    push.repo_id = ""  # Repository on the Hugging Face hub, USER/NAME; created if missing.
    push.private = True  # Whether the repository must be private: an existing public one is
    # refused.
    return config.lock()


def apply_method(config: Config, method: str) -> Config:
    """Sets, in place, the keys that define a method of METHODS or a custom method.

    Raises:
      UserError: the method is unknown; the message lists the existing ones.
    """
    if method not in METHODS and not plugins.is_path(method):
        raise UserError(
            f"Unknown method {method!r}; {one_of(method, METHODS, 'package.module:Class')}."
        )
    config.method = method
    config.update_from_flattened_dict(METHODS[method][1] if method in METHODS else _PLAIN)
    return config
