"""The default configuration, with every key's meaning, and the methods that change it.

A configuration file makes the default tree, which is locked, changes what it needs and returns it.
Sources in brackets: "paper" is the value of the KPOD paper, "ours" a choice that it leaves open.
All of the paper's values and ranges are data in kpod_jax/config/paper.py; the values that a key may
have are checked in kpod_jax/cli/checks.py.
"""

from typing import Any, TypeAlias

import ml_collections

from kpod_jax.utils import plugins
from kpod_jax.utils.errors import UserError
from kpod_jax.utils.renamed import ConfigDict

# A ConfigDict, whose values type checkers cannot know.
Config: TypeAlias = Any

_PLAIN = {"weighting.weights": "uniform", "schedule.curriculum": "full"}
_SEVERAL = _PLAIN | {"data.rationales_per_question": 5}
METHODS = {
    # name: (what it is called in tables, the keys that make it)
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
    # These train on examples of their own making: kpod_jax/baselines/, docs/baselines.md.
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
    """What a method is called; its import path, where it is one of your own."""
    return METHODS[method][0] if method in METHODS else method


def get_config() -> Config:
    """The whole tree, locked: a key that is not here does not exist."""
    config = ConfigDict()
    config.method = "kpod"  # A name of METHODS, or package.module:Class, your own
    # (docs/extending.md); set it with `apply_method`.
    config.seed = 0  # Of everything random: shuffling, masks, dropout, clusters.

    data = config.data = ConfigDict()
    data.name = "arithmetic"  # Data set: arithmetic (built in), gsm8k, asdiv, svamp,
    # commonsense_qa; jsonl, csv, huggingface (your own; docs/data.md), or package.module:Class, a
    # reader of yours (docs/extending.md).
    data.path = ""  # Folder with the data set's own files; empty: download or generate.
    data.splits = "paper"  # paper: KPOD's train/validation/test; official: the data set's own.
    data.rationales = ""  # A teacher's JSONL, CSV or TSV file, or a data set on the Hugging Face
    # hub; empty: the data set's own solutions.
    data.rationales_per_question = 1  # Most of a training question; each is an example. 0: all that
    # the teacher's file has. The built-in task makes as many as are asked for.
    columns = data.columns = ConfigDict()  # What your data, or else the teacher's
    # file, call their columns.
    columns.question = "question"  # The question's.
    columns.rationale = "rationale"  # The rationale's.
    columns.answer = "answer"  # The gold answer's.
    columns.id = "id"  # The id's; records without one are called by file and line.
    data.cache_dir = (
        ""  # Where prepared TFDS files go; empty: TFDS_DATA_DIR or ~/tensorflow_datasets.
    )
    data.train_examples = 0  # First so many questions of the training split; 0: all.
    data.validation_examples = 0  # Likewise, of the validation split.
    data.test_examples = 0  # Likewise, of the test split.
    data.answer_kind = ""  # What is looked for in a generation: number, choice, yes_no; empty: the
    # data set's own kind, number for your own data.
    arithmetic = data.arithmetic = ConfigDict()  # The built-in task.
    arithmetic.verbosity = 0.6  # How much filler its rationales have. [0, 1]
    arithmetic.operations = (2, 4)  # Least and most operations of a problem.
    data.max_rejected_fraction = (
        0.01  # Share of unusable records from which on the run stops. [0, 1]
    )
    data.step_separator = ""  # Ends a step; empty: our splitter [ours]; ".": the paper's.

    teacher = config.teacher = ConfigDict()  # --mode=teach, see docs/teacher.md.
    teacher.model = ""  # Its name at the endpoint.
    teacher.base_url = ""  # Of an OpenAI-compatible endpoint; empty: OPENAI_BASE_URL, else OpenAI.
    # The key comes from OPENAI_API_KEY alone.
    teacher.style = "zero_shot"  # zero_shot [paper], or few_shot: worked examples come first.
    teacher.prompt = "Q: {question} A: Let's think step by step."  # What it is asked. [paper]
    teacher.instruction = (  # Comes before it; the answer is read from the end. [ours]
        "Reason in short, plain sentences, without headings, lists or LaTeX. End with the sentence "
        '"Therefore, the answer is ANSWER.", with the answer alone for ANSWER.'
    )
    teacher.examples = ""  # few_shot: JSONL of question, rationale, answer; empty: three of ours.
    teacher.samples = 1  # Rationales asked for each question.
    teacher.temperature = 0.0  # Above 0 where samples are several; below 0: the endpoint's default.
    teacher.top_p = 1.0  # Probability of the likeliest tokens that are drawn from; 0: the
    # endpoint's default.
    teacher.max_tokens = 512  # Longest answer; one that is cut off there is rejected.
    teacher.max_tokens_name = "max_tokens"  # max_completion_tokens for OpenAI's reasoning models.
    teacher.logprobs = 0  # Likeliest tokens whose log probabilities are asked for at each place,
    # for baseline.distributions; 0: none. OpenAI gives at most 20, and reasoning models none.
    teacher.keep = "right"  # right: rationales whose answer is the data set's; all: every one.
    teacher.concurrency = 8  # Requests under way at a time.
    teacher.requests_per_minute = 0.0  # Most that are sent, evenly spaced; 0: no limit.
    teacher.timeout = 300.0  # Seconds that the endpoint may be silent.
    teacher.retries = 8  # Of a request that meets 408, 409, 429, 5xx, silence or a lost connection.
    teacher.input_price = 0.0  # Dollars for a million prompt tokens, for the cost that is shown.
    teacher.output_price = 0.0  # Likewise, for completion tokens.
    teacher.batch = "none"  # write: files for OpenAI's batch API instead; read: its results.
    teacher.batch_results = ""  # The file of results that batch=read takes in.

    # See docs/students.md.
    student = config.student = ConfigDict()
    student.model = "kpod_jax/assets/tiny_t5"  # Directory, id on the Hugging Face hub, GGUF file;
    # with init=random a config.json will do.
    student.family = ""  # package.module:FAMILY: an architecture of yours (docs/extending.md).
    student.init = "pretrained"  # pretrained, or random: the architecture alone is loaded.
    student.tokenizer = ""  # Directory, hub id or SentencePiece .model file; empty: the model's.
    student.dtype = "float32"  # Of activations and matrix products: float32 or bfloat16.
    student.scan_layers = True  # One compiled layer; False unrolls, faster for few layers on CPU.
    student.remat = "none"  # What is computed anew in the backward pass: none, dots, full.
    student.attention = "auto"  # auto: flash attention (cudnn) on an NVIDIA GPU, in bfloat16; on
    # one CPU device blocks of scores, which never holds them all; else xla; or one of these. Sums
    # of cudnn's gradients come in no fixed order.
    student.prompt = "Q: {question} A: Let's think step by step."  # What it reads. [paper]
    student.chat = False  # The prompt is a user's turn in the tokenizer's chat template (Instruct).
    student.answer_template = "Therefore, the answer is {answer}."  # Ends a rationale. [paper]
    student.max_question_tokens = 256  # Longest prompt; a longer record is rejected by name.
    student.max_target_tokens = 384  # Longest rationale and answer; likewise rejected.
    lora = student.lora = ConfigDict()
    lora.rank = 0  # 0 trains all parameters.
    lora.alpha = 16.0  # Scale of the adapters is alpha / rank. [ours]
    lora.dropout = 0.0  # On the adapters' input. [0, 1)
    lora.targets = ("q", "v")  # Projections with an adapter (T5: q k v o wi wi_0 wi_1 wo; LLaMA:
    # q k v o gate up down), or ("all-linear",).
    lora.base_dtype = "float32"  # Of the frozen weights: float32, bfloat16 or int8.

    # See docs/token_weighting.md.
    weighting = config.weighting = ConfigDict()
    weighting.weights = "learned"  # learned (Eq. 2-7); uniform: every w_j = 1; or a .npz file with
    # weights of your own, of the form of token_weights.npz.
    weighting.answerer = ""  # Directory or hub id; empty: the student.
    weighting.alpha = 0.5  # Price of a kept token (Eq. 7). [paper]
    weighting.alpha_warmup = 0.0  # Share of the steps over which alpha rises from 0, 0.25 for the
    # estimators other than score_function. [ours]
    weighting.prefixes = "sampled"  # sampled of each rationale, or all (Eq. 5); no estimates of
    # Eq. 5 are step_ends: sampled of those that end with a step, which suits answerers too weak to
    # go on inside one; and late: sampled, the more often the longer they are. [ours]
    weighting.encoding = "bidirectional"  # How T5 reads prefixes: each by itself, as it was
    # pre-trained, so that it reads from the start; or causal: all of a rationale's at once, for
    # which it has to be fit anew. [ours]
    weighting.prefix_samples = 2  # Prefixes per example and step, each with its own mask where the
    # answerer reads them one by one. [ours]
    weighting.steps = 300  # Steps of mask learning. [ours]
    weighting.batch_size = 32  # Examples a step. [ours]
    weighting.learning_rate = 3e-3  # Of the generator, Adam. [ours]
    weighting.clip_norm = 1.0  # Of its gradient. [ours]
    weighting.eval_every = 25  # Steps between looks at the held-out objective; the generator with
    # the lowest is taken. 0: none, and the last one is taken. [ours]
    weighting.eval_examples = 256  # Held-out examples at most, for that and for the gap. [ours]
    weighting.patience = 4  # Looks in a row without a lower one that end mask learning early.
    weighting.temperature_start = 1.0  # Of the Gumbel-Softmax (Eq. 4). [ours]
    weighting.temperature_end = 0.5  # Approached until the last step. [ours]
    weighting.estimator = "score_function"  # Of the gradient by the masks. score_function: the
    # losses of hard masks are compared, without bias where exploration is 0 [ours];
    # straight_through [paper]: hard masks with the gradient of soft ones (Eq. 4); soft: soft masks.
    weighting.mask_samples = 8  # Masks of an example and step for score_function. [ours]
    weighting.exploration = 0.1  # Least probability with which score_function masks, and keeps, a
    # token, whatever its weight: what is never masked is never found to be needless. Above 0 the
    # gradient is that of the masks drawn, hence biased. [ours]
    weighting.initial_weight = 0.88  # w_j before training: a mask of less may let nothing through.
    weighting.hidden_size = 64  # Width of the generator's MLP (Eq. 3). [ours]
    weighting.num_heads = 4  # Of the generator's attention (Eq. 2). [ours]
    weighting.allow_failed = False  # Goes on, with a warning, where held-out examples say that
    # keeping every token, or none, serves Eq. 7 better than the weights. For trials. [ours]
    weighting.fit = "other_fold"  # What the answerer is fit on: examples whose weights are not
    # being learned. other_fold: the other half of the training set; fresh: new problems of the
    # built-in task; same: the very examples, as in the paper, at the risk of memorisation.
    weighting.fit_fresh_examples = 4000  # New problems made for fit=fresh.
    weighting.fit_unmasked_steps = 300  # Steps on whole, unmasked rationales. [ours]
    weighting.fit_masked_steps = 600  # Then steps on masked prefixes. [ours]
    weighting.fit_unmasked_fraction = (
        0.5  # Of their rows, see the whole rationale, and likewise no mask.
    )
    weighting.fit_learning_rate = 1e-3  # For both of these.
    weighting.joint_learning_rate = 0.0  # Of the answerer while masks are learned; 0: frozen.
    weighting.min_gap = 0.5  # Least held-out gap of L_p, nats, between all and nothing masked.

    difficulty = config.difficulty = ConfigDict()
    difficulty.weights = "learned"  # ŵ of Eq. 8: from the token weights, or uniform.
    difficulty.batch_size = 64  # Examples a scoring pass.

    # See docs/schedule.md.
    schedule = config.schedule = ConfigDict()
    schedule.curriculum = "kpod"  # kpod (Eq. 9-13); full: whole rationales from the start; icl:
    # suffixes that grow by as much for all; spl, acl: the easiest examples first, by the current
    # loss or a mixture; package.module:Class: your own (kpod_jax/schedule/protocol.py).
    schedule.phase_steps = 0  # Steps of a phase; 0: an epoch. [paper]
    schedule.p = 0.5  # Exponent of the velocity (Eq. 10). [paper]
    schedule.initial_fraction = 0.3  # C0 / B (Eq. 10). [paper]
    schedule.beta = 12.0  # Weight of diversity (Eq. 12). [paper]
    schedule.clusters = 5  # K question clusters. [paper]
    schedule.ramp_fraction = 0.5  # T as a fraction of the phases. [paper]
    schedule.solver = "greedy"  # greedy [ours] or ftgp [paper] (Eq. 13).
    schedule.vectors = ""  # What questions are clustered by: a GloVe or word2vec text file [paper:
    # GloVe], or a .npy file of a vector for each training record; empty: student embeddings.
    schedule.growth = 1  # icl: steps by which suffixes grow at each phase. [ours]
    schedule.mixing = 0.5  # acl: share of the current loss, the rest being the initial one. [ours]

    distill = config.distill = ConfigDict()
    distill.epochs = 20  # An epoch is a phase, unless schedule.phase_steps is set.
    distill.batch_size = 32  # Examples a step, over all devices.
    distill.buckets = 4  # Shapes of batches at most; each is compiled once.
    distill.pack_length = (
        0  # Decoder-only: tokens of a row that holds several examples; batch_size then
    )
    # counts rows. 0: an example a row.
    distill.loss = "cross_entropy"  # Of a token, or package.module:function, your own
    # (docs/extending.md).
    distill.min_weight = 0.0  # Token weights below it count as much as it says, for students
    # that have yet to learn to write what learned weights leave out. 0: none does. [ours]
    distill.weight_context = 2  # A token's weight is the mean of those that follow the same tokens,
    # so many, and favours no continuation [ours]; 0, as in the paper: w_j itself.
    distill.step_start_weight = "answer"  # Of the first token of each step, at which the student
    # goes on or answers. answer [ours]: 1, as the answer's tokens have, in input steps, too;
    # learned [paper]: w_j.
    distill.rescale_weights = "none"  # none [paper], or mean: a rationale's weights (but those of
    # step_start_weight=answer) are divided by their mean, after min_weight. [ours]
    distill.equal_tokens = False  # True: whole rationales, every weight 1, as SCoTD learns them,
    # until as many rationale tokens were supervised as would be under the schedule. [ours]
    distill.optimizer = "adam"  # adam [paper], adamw or adafactor.
    distill.learning_rate = 1e-3  # Peak.
    distill.warmup_steps = 20  # Linear, from 0.
    distill.decay = "constant"  # After the warm-up: constant [paper], linear or cosine to 0.
    distill.weight_decay = 0.0  # adamw and adafactor.
    distill.clip_norm = 1.0  # Of the global gradient; 0: none.
    distill.dropout = False  # The model's own dropout rates, in training.
    distill.micro_batches = 1  # A batch is worked off in so many parts; the result is the same.
    distill.input_steps = "decoder"  # Where input steps are: decoder [ours], encoder [paper; T5].
    distill.log_every = 10  # Steps between lines of metrics.jsonl.
    distill.checkpoint_every = 200  # Steps between checkpoints; the last step is always saved.
    distill.max_to_keep = 2  # Latest checkpoints kept, besides the best.
    distill.validate_every = 0  # Epochs between validations by accuracy; 0: only at the end.
    distill.max_steps = 0  # Stops after so many steps; 0: after the epochs.

    monitoring = config.monitoring = ConfigDict()  # Of the training; changes nothing in it.
    monitoring.hang_seconds = (
        3600.0  # A process in which no step ends for so long stops with exit code
    )
    # 134, as when another host hangs; a compilation or a validation must fit in. 0: never.
    monitoring.profile_steps = (
        0  # Steps that the profiler traces, into profile/, soon after the start.
    )

    # Methods' own keys, see docs/baselines.md. In brackets the source of the value: a method's
    # paper, its authors' code, or ours.
    baseline = config.baseline = ConfigDict()
    baseline.answer_prompt = "Q: {question} A: Let's answer directly."  # answer_only,
    # specialized_kd, distilling_step_by_step: asks for an answer without a rationale. [ours]
    baseline.rationale_weight = 1.0  # distilling_step_by_step: λ of the rationale task. [code: its
    # recommended alpha = 0.5 is the same]
    baseline.counterfactuals = ""  # scott: a teacher's JSONL file of question, rationale and the
    # other answer that it supports; empty: made by the built-in task.
    baseline.counterfactual_weight = 0.5  # scott: α, share of the counterfactual loss. [code: 0.5]
    baseline.consistency_weight = 0.01  # mcc_kd: λ of the divergence. [code: 0.01 for GSM8K]
    baseline.diverse_rationales = 2  # mcc_kd: rationales of a question that are kept. [code: 2]
    baseline.ngram = 3  # mcc_kd: N of the N-grams that similarity is measured by. [ours]
    baseline.formats = (  # specialized_kd: of the data. [paper: these four]
        "zero_shot_answer_only",
        "zero_shot_chain_of_thought",
        "in_context_answer_only",
        "in_context_chain_of_thought",
    )
    baseline.format_weights = (2.0, 5.0, 4.0, 20.0)  # specialized_kd: of the loss, in proportion:
    # zero-shot answers and rationales, in-context answers and rationales. [code: of its 3B batches]
    baseline.demonstrations = 4  # specialized_kd: examples in an in-context prompt. [code: 4]
    baseline.distributions = ""  # specialized_kd: the teacher's token distributions, a JSONL file
    # (docs/baselines.md); empty: its text alone is matched.

    # Devices along each axis, whose product they are; -1 takes what is left. See docs/scale.md.
    mesh = config.mesh = ConfigDict()
    mesh.data = -1  # Each has a copy of the parameters and rows of its own.
    mesh.fsdp = 1  # Parameters and optimiser state are split, and so are rows.
    mesh.tensor = 1  # Heads and hidden units are split.

    # See docs/evaluation.md.
    evaluation = config.eval = ConfigDict()
    evaluation.split = "test"  # That is asked: train, validation or test.
    evaluation.checkpoint = "best"  # best (by validation accuracy), latest, or a step's number.
    evaluation.batch_size = 64  # Prompts that are answered at a time.
    evaluation.max_new_tokens = 0  # Longest generation. 0: student.max_target_tokens.
    evaluation.temperature = 0.0  # 0: greedy [ours]; else tokens are drawn.
    evaluation.top_p = 1.0  # Drawn from the likeliest tokens with this probability. (0, 1]
    evaluation.samples = 1  # Generations a question; the answer that most of them give counts.
    evaluation.ood = ()  # Other data sets, by name, whose test splits are asked as well: a student
    # of gsm8k is tried on ("asdiv", "svamp"). They are read after training alone.
    evaluation.ood_paths = ()  # The folder of each, "" where it needs none; (): none needs one.
    evaluation.ood_examples = 0  # First so many questions of each; 0: all.

    # See docs/students.md.
    export = config.export = ConfigDict()
    export.lora = "merged"  # merged into the weights, or adapter: a directory that PEFT loads.
    export.dtype = "float32"  # Of the exported weights: float32 or bfloat16.
    return config.lock()


def apply_method(config: Config, method: str) -> Config:
    """Sets the keys that make a method of METHODS or of your own, in place.

    Raises:
      UserError: the method is unknown; the message names those that exist.
    """
    if method not in METHODS and not plugins.is_path(method):
        raise UserError(
            f"Unknown method {method!r}; expected one of {', '.join(METHODS)}, or "
            "package.module:Class."
        )
    config.method = method
    config.update_from_flattened_dict(METHODS[method][1] if method in METHODS else _PLAIN)
    return config


def flatten(config: Config) -> dict[str, object]:
    """Dotted keys and their values, in order."""
    result: dict[str, object] = {}
    for key, value in config.items():
        if isinstance(value, ml_collections.ConfigDict):
            result |= {f"{key}.{k}": v for k, v in flatten(value).items()}
        else:
            result[key] = value
    return result
