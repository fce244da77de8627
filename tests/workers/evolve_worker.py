"""Evolve a tiny model in a process of its own, so that a test can kill it: OUTPUT [GENERATIONS]."""

import hashlib
import json
import sys

import torch
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.utils import logging

from hf_connectome import GenerationalArguments, GenerationalTrainer
from hf_connectome.data import collate
from hf_connectome.runs import last_checkpoint


def blocks(count=96, length=16):
    tokens = torch.randint(0, 64, (count, length), generator=torch.Generator().manual_seed(3))
    return [{"input_ids": row} for row in tokens]


def model():
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(
            n_layer=2,
            n_embd=32,
            n_head=2,
            vocab_size=64,
            n_positions=32,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


def trainer(output, generations=3, **options):
    settings = {
        "generations": generations,
        "steps_per_generation": 6,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-2,
        "weight_decay": 0.1,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 2,
        "save_steps": 4,
        "logging_steps": 3,
        "use_cpu": True,
        "seed": 5,
        "disable_tqdm": True,
        "report_to": "none",
        **options,
    }
    data = blocks()
    return GenerationalTrainer(
        model(),
        GenerationalArguments(str(output), **settings),
        train_dataset=data,
        eval_dataset=data[:8],
        data_collator=collate,
    )


def outcome(run):
    """What must be equal, bit for bit, however often the run was interrupted."""
    weights = torch.cat([p.detach().flatten() for p in run.model.parameters()])
    keys = ("step", "loss", "eval_loss", "learning_rate", "grad_norm", "generation", "density")
    return {
        "digest": run.connectome.digest,
        "weights": hashlib.sha256(weights.numpy().tobytes()).hexdigest(),
        "losses": [
            {k: r[k] for k in keys if k in r} for r in run.state.log_history if "loss" in str(r)
        ],
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    run = trainer(sys.argv[1])
    found = last_checkpoint(run.output_folder)
    run.train(resume_from_checkpoint=str(found) if found else None)
    print(json.dumps(outcome(run)))
