"""EvaluationArguments: which models to evaluate, on what, and what is refused at once."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from hf_connectome.errors import ConfigError, UnknownNameError, did_you_mean, some
from hf_connectome.reset import resets

TASKS = ("loss", "lm", "reading", "brain")


@dataclass
class EvaluationArguments:
    """Which models to evaluate, and on what."""

    models: list[str] = field(
        metadata={
            "help": "Folders or Hub ids (owner/name, owner/name@revision) of connectomes, which "
            "are put on a fresh model, and of checkpoints, sparse or not."
        }
    )
    output_dir: str = field(metadata={"help": "Where results go; what is there is not redone."})
    tasks: list[str] = field(
        default_factory=lambda: ["loss"], metadata={"help": f"Of {', '.join(TASKS)}."}
    )
    seeds: list[int] = field(
        default_factory=lambda: [0], metadata={"help": "Of the fresh models of a connectome."}
    )
    reset: str | None = field(
        default=None,
        metadata={"help": "First values of fresh models; by default what a connectome records."},
    )
    tokenizer: str | None = field(
        default=None, metadata={"help": "For models that come without one: a folder or Hub id."}
    )
    dataset: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Corpora of which the documents are read that evolve.py and inherit.py hold "
            "out of the same --dataset with the same --eval_fraction."
        },
    )
    eval_dataset: list[str] = field(
        default_factory=list,
        metadata={"help": "Corpora that are held out as a whole: no model was trained on them."},
    )
    eval_fraction: float = field(
        default=0.05, metadata={"help": "Fraction of the documents of --dataset, in (0, 1)."}
    )
    max_bytes: int | None = field(
        default=None, metadata={"help": "Upper bound on the bytes read of each text."}
    )
    context: int | None = field(
        default=None,
        metadata={"help": "Tokens a model sees at most in loss and reading; null: all it can."},
    )
    lm_tasks: list[str] = field(
        default_factory=lambda: ["hellaswag", "arc_easy", "lambada_openai"],
        metadata={"help": "Tasks, groups or tags of lm-eval; hellaswag_per_token, mmlu_cloze."},
    )
    data_dir: str | None = field(
        default=None,
        metadata={"help": "Folder with the rows of --lm_tasks, <dataset>/<config>/<split>.jsonl."},
    )
    limit: int | None = field(
        default=None, metadata={"help": "First rows of each of --lm_tasks only."}
    )
    num_fewshot: int | None = field(
        default=None, metadata={"help": "Examples before each question of --lm_tasks."}
    )
    natural_stories: str | None = field(
        default=None, metadata={"help": "Folder of the Natural Stories corpus, for reading."}
    )
    frequency: str | None = field(
        default=None,
        metadata={"help": "Text to count words in, for reading; by default the first held-out."},
    )
    brain_table: str | None = field(
        default=None,
        metadata={"help": "A .csv or .tsv with a column 'sentence' and one a region, for brain."},
    )
    num_shuffles: int = field(
        default=20, metadata={"help": "How often brain gives responses to other sentences."}
    )
    batch_size: int = field(default=16, metadata={"help": "Texts in one forward pass."})
    device: str | None = field(
        default=None, metadata={"help": "Such as cpu or cuda:0; by default a GPU if there is one."}
    )

    def __post_init__(self) -> None:
        """Refuse what can be refused before anything is read."""
        for name in ("models", "tasks", "seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ConfigError(f"{name} is {values}; expected at least one, each once.")
        for task in self.tasks:
            if task not in TASKS:
                raise UnknownNameError(f"tasks names {task!r}. {did_you_mean(task, TASKS)}")
        needs = {"loss": self.texts, "reading": self.natural_stories, "brain": self.brain_table}
        options = {"loss": "eval_dataset", "reading": "natural_stories", "brain": "brain_table"}
        for task in self.tasks:
            if task in needs and not needs[task]:
                raise ConfigError(
                    f"tasks names {task!r}, but --{options[task]} is not given. Name the data, or "
                    f"leave {task!r} out."
                )
        if "reading" in self.tasks and not (self.frequency or self.texts):
            raise ConfigError(
                "reading needs word frequencies, but neither --frequency nor a held-out text is "
                "given. Name a text to count words in: --frequency PATH."
            )
        self._check_numbers()
        if self.reset is not None and resets.get(self.reset) and self.reset == "rewind":
            raise ConfigError(
                "reset is 'rewind', which needs weights stored early in training; a connectome "
                "carries none. Use 'sign_constant', or leave it out."
            )
        if self.device is None:
            self.device = "cuda" if torch.cuda.is_available() else "cpu"

    @property
    def texts(self) -> list[str]:
        """All held-out corpora, those that are held out as a whole first."""
        return [*self.eval_dataset, *self.dataset]

    def _check_numbers(self) -> None:
        for name, least in (("max_bytes", 1), ("limit", 1), ("batch_size", 1), ("context", 2)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name} is {value}; expected at least {least}.")
        if self.num_shuffles < 0 or (self.num_fewshot or 0) < 0 or min(self.seeds) < 0:
            raise ConfigError(
                f"num_shuffles is {self.num_shuffles}, num_fewshot {self.num_fewshot} and seeds "
                f"{self.seeds}; expected nothing below 0."
            )
        if not 0 < self.eval_fraction < 1:
            raise ConfigError(
                f"eval_fraction is {self.eval_fraction}; expected a number between 0 and 1, both "
                "excluded. A corpus that is held out as a whole is an --eval_dataset."
            )
        if len(set(self.texts)) < len(self.texts):
            raise ConfigError(f"a text is named twice: {some(self.texts, 9)}. Name each once.")
