"""What a table of a family holds, and how any table reads and publishes a `config.json`. Imports no torch."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from nalar.config import ConfigError, nearest
from nalar.model.config import ModelConfig
from nalar.model.families.placement import (
    Placement,
    block_norms,
    feed_forward,
    model_placements,
    prediction,
)
from nalar.model.families.rope import ROPE_FIELDS, publish_rope, read_rope, refused, unusable

PerLayer = Callable[[ModelConfig, int], Iterator[Placement]]

# Fields of any family that say nothing about what the model computes from the ids it is given.
# Dropout acts in training only and no recipe here has any; quantization_config says how the weights
# are stored, and whoever reads the weights has to heed it.
HARMLESS = frozenset(
    (
        "_attn_implementation",
        "_attn_implementation_autoset",
        "_name_or_path",
        "architectures",
        "attention_dropout",
        "auto_map",
        "bos_token_id",
        "dtype",
        "eos_token_id",
        "output_router_logits",
        "pad_token_id",
        "pretraining_tp",
        "quantization_config",
        "router_aux_loss_coef",
        "tokenizer_class",
        "torch_dtype",
        "transformers.js_config",
        "transformers_version",
        "unsloth_fixed",
        "use_cache",
    )
)
_LABEL_FIELDS = frozenset(("num_labels", "id2label", "label2id"))
"""Of a model that scores, and of no other."""
_LANGUAGE, _SCORING = "ForCausalLM", "ForSequenceClassification"
"""How the names of architectures end."""
_WINDOW_FIELDS = frozenset(
    ("use_sliding_window", "sliding_window", "max_window_layers", "layer_types")
)


def same(*names: str) -> dict[str, str]:
    """Fields that the family and ModelConfig spell alike."""
    return {name: name for name in names}


SIZES = same(
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "rms_norm_eps",
    "initializer_range",
    "tie_word_embeddings",
)
"""What every family publishes."""
SIZES_DEFAULTS: Mapping[str, Any] = {
    "rms_norm_eps": 1e-6,
    "initializer_range": 0.02,
    "tie_word_embeddings": False,
}


@dataclass(frozen=True, kw_only=True)
class Family:
    """One published form of a model: how its config is spelled and where its weights lie."""

    model_type: str
    architecture: str
    fields: Mapping[str, str]
    """Published field to field of ModelConfig."""
    defaults: Mapping[str, Any]
    """What a published field means where it is absent, as in the family's own code."""
    implied: Mapping[str, Any] = field(default_factory=dict)
    """Fields of ModelConfig that the family has no word for, since they are always this."""
    equal: Mapping[str, str] = field(default_factory=dict)
    """Fields of ModelConfig that always equal another one."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Published fields of which one value is built. Absent means that value; written out in full."""
    only: Mapping[str, Any] = field(default_factory=dict)
    """The same, but of no interest to other readers, so not written."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Second spelling of a published field to the first."""
    written: Mapping[str, Any] = field(default_factory=dict)
    """Published fields that follow from nothing here, for the sake of other readers."""
    harmless: frozenset[str] = frozenset()
    """Further published fields that change nothing of what the model computes."""
    attention: PerLayer
    mixture: PerLayer | None = None

    def read_config(self, published: Mapping[str, Any]) -> ModelConfig:
        """The model that a `config.json` describes; ConfigError names the field that stands in the way."""
        published = {self.aliases.get(key, key): value for key, value in published.items()}
        self._check_fields(published)
        values: dict[str, Any] = {**self.implied, "num_labels": _read_labels(published)}
        for key, name in self.fields.items():
            if published.get(key, self.defaults.get(key)) is None and key not in self.defaults:
                raise unusable(key, "nothing", "a value")
            values[name] = published.get(key, self.defaults.get(key))
        values |= {name: values[other] for name, other in self.equal.items()}
        values |= read_rope(published, values["max_position_embeddings"])
        _check_windows(published, values["max_position_embeddings"])
        if values["kv_lora_rank"] is None:
            _complete_heads(values)
        else:
            _check_heads(published, values)
        try:
            return ModelConfig(**values, model_type=self.model_type)
        except ValidationError as error:
            raise refused(error) from error

    def publish_config(self, config: ModelConfig) -> dict[str, Any]:
        """The fields of `config.json`, without token ids and dtype.

        ConfigError where the family has no word for what the model does, so that other programs
        would read another model.
        """
        if not config.n_routed_experts and "first_k_dense_replace" in self.fields:
            # A mixture of no experts is a dense layer to us; other programs have to be told.
            layers = config.num_hidden_layers + config.num_nextn_predict_layers
            config = config.model_copy(update={"first_k_dense_replace": layers})
        published: dict[str, Any] = {
            "model_type": self.model_type,
            "architectures": [self.architecture],
            **self.fixed,
            **self.written,
            **{key: getattr(config, name) for key, name in self.fields.items()},
            **publish_rope(config),
        }
        if config.kv_lora_rank is not None:
            published["num_key_value_heads"] = config.num_attention_heads
        if config.num_labels is not None:
            scoring = self.architecture.replace(_LANGUAGE, _SCORING)
            published |= {"architectures": [scoring], "num_labels": config.num_labels}
        published = {k: list(v) if isinstance(v, tuple) else v for k, v in published.items()}
        self._check_understood(config, published)
        return published

    def placements(self, config: ModelConfig) -> Iterator[Placement]:
        """Every tensor of a published folder of this model, each once."""
        yield from model_placements(config)
        for layer in range(config.num_hidden_layers):
            yield from self._block(config, layer)
        for depth in range(config.num_nextn_predict_layers):
            yield from prediction(config, config.num_hidden_layers + depth)
            yield from self._block(config, config.num_hidden_layers + depth)

    def _block(self, config: ModelConfig, layer: int) -> Iterator[Placement]:
        yield from block_norms(config, layer)
        yield from self.attention(config, layer)
        if config.is_moe(layer):
            assert self.mixture is not None, "a family without mixtures read one"
            yield from self.mixture(config, layer)
        else:
            at = f"model.layers.{layer}.mlp"
            yield from feed_forward(at, config.hidden_size, config.intermediate_size)

    def is_skipped(self, key: str) -> bool:
        """Whether a published tensor that has no place holds nothing that a model keeps.

        Tables of rotary frequencies, which old folders have, follow from the config.
        """
        return key.endswith(".rotary_emb.inv_freq")

    def _check_understood(self, config: ModelConfig, published: Mapping[str, Any]) -> None:
        """What is published is read as the same model, here and elsewhere."""
        understood = self.read_config(published)
        for name in ModelConfig.model_fields:
            got, want = getattr(config, name), getattr(understood, name)
            if got != want:
                raise ConfigError(
                    at=f"model.{name}",
                    got=repr(got),
                    want=f"{want!r}: the {self.model_type} family can say nothing else",
                )

    def _check_fields(self, published: Mapping[str, Any]) -> None:
        """Every field is used, has its one value, or is known to be harmless."""
        for key, value in {**self.fixed, **self.only}.items():
            if published.get(key, value) != value:
                raise unusable(key, repr(published[key]), f"{value!r}: nothing else is built")
        derived = {"model_type", "num_key_value_heads", "head_dim"}
        used = {*self.fields, *self.fixed, *self.only, *ROPE_FIELDS, *_WINDOW_FIELDS, *derived}
        known = used | HARMLESS | self.harmless | {*self.written}
        known |= _LABEL_FIELDS if _is_scoring(published) else frozenset()
        for key, value in published.items():
            if key not in known and value is not None:
                close = nearest(key, used)
                raise ConfigError(
                    at=f"config.json {key}",
                    got=repr(value),
                    want=f"a field of the {self.model_type} family: this one might change the output",
                    hint=close and f"did you mean {close!r}?",
                )


def _is_scoring(published: Mapping[str, Any]) -> bool:
    names = published.get("architectures")
    return isinstance(names, list) and any(str(name).endswith(_SCORING) for name in names)


def _read_labels(published: Mapping[str, Any]) -> int | None:
    """1 of a model that gives one score; None of one that predicts tokens. Some give the number, some name labels."""
    if not _is_scoring(published):
        return None
    names = published.get("id2label")
    count = published.get("num_labels", len(names) if isinstance(names, dict) else None)
    if count != 1:
        raise unusable("num_labels", repr(count), "1: a head with one score; no other is built")
    return 1


def _complete_heads(values: dict[str, Any]) -> None:
    """Grouped-query attention: what configs leave out when every head has its own keys."""
    if values["num_key_value_heads"] is None:
        values["num_key_value_heads"] = values["num_attention_heads"]
    if values["head_dim"] is None:
        values["head_dim"] = values["hidden_size"] // values["num_attention_heads"]


def _check_heads(published: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Latent attention: the published number of key heads says nothing new, but must not say another."""
    heads = values["num_attention_heads"]
    if published.get("num_key_value_heads") not in (None, heads):
        got = repr(published["num_key_value_heads"])
        raise unusable("num_key_value_heads", got, f"num_attention_heads={heads}")


def _check_windows(published: Mapping[str, Any], max_positions: int) -> None:
    """Attention to a window of the past is not built: an error where a window cuts anything off."""
    kinds = set(published.get("layer_types") or ()) - {"full_attention"}
    if kinds:
        raise unusable("layer_types", ", ".join(sorted(map(str, kinds))), "full_attention alone")
    window = published.get("sliding_window")
    if published.get("use_sliding_window") and window is not None and window < max_positions:
        want = f"false, or a window of max_position_embeddings={max_positions}"
        raise unusable("use_sliding_window", f"a window of {window}", want)
