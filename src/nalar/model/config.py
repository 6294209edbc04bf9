"""The shape of a model, spelled as in the published `config.json` of the deepseek_v3 family. Imports no torch."""

from pydantic import Field

from nalar.config import Config, ConfigError


class ModelConfig(Config):
    """A decoder-only transformer with latent attention and a sparse mixture of experts (arXiv:2412.19437)."""

    vocab_size: int = Field(ge=1)
    hidden_size: int = Field(ge=1)
    intermediate_size: int = Field(ge=1)
    """Hidden width of the dense feed-forward blocks."""
    moe_intermediate_size: int = Field(ge=1)
    """Hidden width of one expert."""
    num_hidden_layers: int = Field(ge=1)
    num_attention_heads: int = Field(ge=1)
    n_routed_experts: int = Field(ge=0)
    """0: every layer is dense."""
    num_experts_per_tok: int
    n_shared_experts: int = Field(default=1, ge=0)
    first_k_dense_replace: int = Field(default=1, ge=0)
    """This many first layers are dense."""
    q_lora_rank: int | None = None
    """None: queries are not compressed."""
    kv_lora_rank: int = Field(ge=1)
    qk_nope_head_dim: int = Field(ge=1)
    qk_rope_head_dim: int = Field(ge=2)
    v_head_dim: int = Field(ge=1)
    n_group: int = 1
    topk_group: int = 1
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 1.0
    rope_theta: float = Field(default=10000.0, gt=0)
    max_position_embeddings: int = Field(default=4096, ge=2)
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02

    @property
    def qk_head_dim(self) -> int:
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def latent_dim(self) -> int:
        """Width of what one token keeps in the cache of one layer."""
        return self.kv_lora_rank + self.qk_rope_head_dim

    def is_moe(self, layer: int) -> bool:
        return self.n_routed_experts > 0 and layer >= self.first_k_dense_replace

    def model_post_init(self, _context: object) -> None:
        if self.qk_rope_head_dim % 2:
            raise ConfigError(
                at="model.qk_rope_head_dim", got=str(self.qk_rope_head_dim), want="an even number"
            )
        if self.n_routed_experts and not 0 < self.num_experts_per_tok <= self.n_routed_experts:
            raise ConfigError(
                at="model.num_experts_per_tok",
                got=str(self.num_experts_per_tok),
                want=f"between 1 and n_routed_experts={self.n_routed_experts}",
            )
        if self.n_group != 1 or self.topk_group != 1:
            raise ConfigError(
                at="model.n_group",
                got=f"{self.n_group} (topk_group {self.topk_group})",
                want="1: groups are not built",
            )
