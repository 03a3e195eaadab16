"""From checked settings to a trainer: data, policy, reference, sequence-parallel groups."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch.distributed as dist
from omegaconf import DictConfig, OmegaConf
from transformers import (
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    PrinterCallback,
    set_seed,
)
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK

import align
from align.adapters.adapter import adapter_with_routers, add_adapter
from align.core.errors import UserError
from align.core.kept_state import Kept
from align.core.telling import tell
from align.data.bad_rows import write_dropped
from align.data.dataset import PreferenceData
from align.data.mixture import mixture_words
from align.data.notices import notices
from align.data.settings import PositionSettings
from align.data.unread import unused_short
from align.distributed.agreement import check_agreement, check_same_settings
from align.distributed.names import check_quantised
from align.distributed.wrappers import check_launch, expected_wrapper, launched_wrapper
from align.longseq.checkpointing import apply_checkpointing
from align.longseq.parallel import SequenceParallel, choose_exchange, make_groups, start_parallel
from align.longseq.settings import attention_name
from align.longseq.support import check_readable
from align.models.extra_tokens import say_of_extra_tokens
from align.models.loading import load_causal_lm, model_tokenizer, native_window
from align.models.reach import position_limit
from align.models.routers import freeze_routers
from align.models.soft_prompt import soft_ids
from align.models.text_part import frozen_words, of_layers, text_config
from align.patterns.layers import patterns_words
from align.reference.build import build_reference, frozen_model
from align.training.collate import Collator
from align.training.following import follow
from align.training.learning_rates import optimizer_with_rates
from align.training.method_settings import read_again_words
from align.training.methods import Method
from align.training.preparation import read_rows_of_model
from align.training.progress import ProgressDisplay
from align.training.redrawn import training_rows
from align.training.row_costs import attention_notice
from align.training.run import Run
from align.training.soft_prompts import soft_prompt_words
from align.training.trainer import PreferenceTrainer


def launched_settings(config: DictConfig, run: Run) -> dict[str, Any]:
    """What every process has to have been started with: the configuration and the launcher's wrapper."""
    settings: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    return {**settings, "wrapper": expected_wrapper(run.arguments), "align version": align.__version__}


def check_processes(run: Run, config: DictConfig) -> None:
    """Refuses a launch that was turned into another one, and processes that were started with different settings."""
    check_launch(run.arguments)
    make_groups(run.arguments.world_size, run.parallel.degree)
    check_quantised(run.model.quantization, launched_wrapper(run.arguments))
    check_same_settings(launched_settings(config, run))


def check_same_data(data: PreferenceData, run: Run) -> None:
    """Processes with unlike rows would wait for each other, or train on a mixture that no one named."""
    if run.arguments.world_size > 1:
        rows = {**data.counts, "digest": data.digest}
        check_agreement(rows, dist.group.WORLD, what="data")


def tokenizer_of(run: Run) -> PreTrainedTokenizerBase:
    """The model's tokenizer, with the chat template that rows are rendered with: the policy is asked with it."""
    model = run.model
    tokenizer = model_tokenizer(model)
    source = run.data.template_source()
    if source is not None:
        tokenizer.chat_template = source
    return tokenizer


def read_data(run: Run, tokenizer: PreTrainedTokenizerBase) -> PreferenceData:
    """Tokenised rows, cut to the model's window, split and with their positions."""
    return read_rows_of_model(
        run.method, run.data, tokenizer, model=run.model, positions=run.positions, seed=run.seed
    )


def check_held_out(data: PreferenceData, run: Run, *, suites: bool) -> None:
    """Refuses what measures held-out rows where there are none.

    Raises:
        UserError: `trainer.eval_strategy`, `trainer.load_best_model_at_end` or `suites` ask for them.
    """
    asking = {
        "trainer.eval_strategy": run.arguments.eval_strategy != "no",
        "trainer.load_best_model_at_end": run.arguments.load_best_model_at_end,
        "suites": suites,
    }
    if data.eval is None and any(asking.values()):
        key = next(name for name, asked in asking.items() if asked)
        raise UserError(
            f"{key} measures held-out rows, and there are none: set data.eval_size or data.eval_path, or leave it out."
        )


def say_of_rows(data: PreferenceData, run: Run) -> None:
    """Says, once for all processes, what of the rows is cut, left out, or read in an unusual way."""
    if run.arguments.process_index == 0:
        window = native_window(run.model) if run.data.max_length is None else None
        placed = data.positions.placement is not None
        reach = position_limit(run.model) if placed else window
        unused = [] if run.method.needs.short else unused_short(data)
        costs = attention_notice(data, run.model.attention)
        mixed = mixture_words(data.ingredients)
        again = read_again_words(run.method.needs, run.arguments.gradient_accumulation_steps)
        plain = unweighted_words(run.method)
        soft = soft_prompt_words(run.model.adapter)
        said = notices(data, window=window, reach=reach)
        for sentence in [*mixed, *soft, *said, *unused, *costs, *again, *plain]:
            tell(sentence)


def unweighted_words(method: Method) -> list[str]:
    """What is said of a method that reads weights of tokens where there are none."""
    if not method.needs.token_weights or method.token_weights is not None:
        return []
    return [
        f"method={method.name} reads weights of tokens, and with token_weights=none each of them weighs 1."
    ]


def list_dropped(data: PreferenceData, run: Run) -> None:
    """Leaves a list of the rows that were left out in the run's folder, and says so."""
    if run.arguments.process_index == 0:
        path = write_dropped(data.dropped, run.output)
        if path is not None:
            sentence = f"The rows that are left out are listed in {path}."
            tell(sentence)


def read_pairs(run: Run, tokenizer: PreTrainedTokenizerBase, path: str) -> PreferenceData:
    """The rows of another path, none held out but what it names so itself, at their own positions."""
    data = replace(run.data, path=path, eval_path=None, eval_size=0, mix=[])
    return read_data(replace(run, data=data, positions=PositionSettings()), tokenizer)


def load_policy(run: Run, tokenizer: PreTrainedTokenizerBase) -> Any:
    """The model that trains, with its adapter and its memory levers."""
    base = load_causal_lm(run.model, attention=attention_name(run.model.attention))
    check_readable(base, run.model.attention)
    said = patterns_words(text_config(base.config))
    if said is not None and run.arguments.process_index == 0:
        tell(said)
    adapter = adapter_with_routers(base, run.model)
    policy = add_adapter(base, adapter and adapter.with_tokenizer(tokenizer))
    if run.model.adapter is not None:
        run.model.adapter.begin(policy, tokenizer)
    freeze_routers(policy, run.model)
    say_of_extra_tokens(policy, run.model.extra_tokens)
    said = frozen_words(base)
    if said is not None:
        tell(said)
    apply_checkpointing(policy, run.memory.checkpointing, **run.memory.levers())
    return policy


def build_trainer(run: Run, tokenizer: PreTrainedTokenizerBase, data: PreferenceData) -> PreferenceTrainer:
    """Loads policy and reference and puts them, the data and the display into a trainer."""
    set_seed(run.seed)  # adapters draw their weights
    # A cache is filled by the reference alone, which then stands in the policy's place.
    policy = (
        frozen_model(run.reference, run.model, run.arguments)
        if run.reference.fill_only
        else load_policy(run, tokenizer)
    )
    parallel = start_sequence_parallel(run, policy.config, data)
    trainer = PreferenceTrainer(
        model=policy,
        args=run.arguments,
        method=run.method,
        reference=build_reference(
            run.reference,
            source=run.reference_source,
            model=run.model,
            policy=policy,
            arguments=run.arguments,
            logits_chunk=run.memory.logits_chunk,
            parallel=parallel,
        ),
        parallel=parallel,
        attention=run.model.attention,
        order=run.order,
        memory=run.memory,
        train_dataset=training_rows(data),
        eval_dataset=data.eval,
        data_collator=Collator.of(
            run.method.needs, tokens_per_row=run.data.tokens_per_row, soft=soft_ids(policy)
        ),
        processing_class=tokenizer,
        balance=0.0 if run.reference.fill_only else run.model.moe.balance,
    )
    if run.model.adapter is not None and not run.reference.fill_only:
        rates = run.model.adapter.rates(policy)
        decayed = trainer.get_decay_parameter_names(policy)
        trainer.optimizer_cls_and_kwargs = optimizer_with_rates(policy, run.arguments, rates, decayed=decayed)
    for callback in (DEFAULT_PROGRESS_CALLBACK, PrinterCallback):  # the former is another one in a notebook
        trainer.remove_callback(callback)
    trainer.add_callback(ProgressDisplay())
    if run.reference.follow_steps is not None:
        follow(trainer, steps=run.reference.follow_steps, alpha=run.reference.follow_alpha)
    if run.model.adapter is not None and not run.reference.fill_only:
        for callback in run.model.adapter.callbacks(policy):
            trainer.add_callback(callback)
            if isinstance(callback, Kept):
                trainer.kept = (*trainer.kept, callback)
    return trainer


def start_sequence_parallel(
    run: Run, config: PreTrainedConfig, data: PreferenceData
) -> SequenceParallel | None:
    """Forms the sequence-parallel groups; `parallel=auto` takes the exchange that fits and says why."""
    kind = run.parallel.kind
    if kind == "auto" and run.parallel.degree > 1:
        kind, reason = choose_exchange(
            heads=min(of_layers(config, "num_attention_heads")),
            kv_heads=min(
                of_layers(config, "num_key_value_heads") or of_layers(config, "num_attention_heads")
            ),
            degree=run.parallel.degree,
            length=data.counts["longest_sequence"],
        )
        if run.arguments.process_index == 0:
            tell(reason)
    return start_parallel("none" if run.parallel.degree == 1 else kind, run.parallel.degree)
