"""The language model: embeddings, layers of two experts, two final norms."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from sigma_model.attention import Attention
from sigma_model.config import LanguageConfig
from sigma_model.embed import Embedding, rotary
from sigma_model.experts import Layer


class Backbone(nn.Module):
    """Hidden states of both experts' tokens through all layers."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.config = config
        self.embed: nn.Embedding = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm_und = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.norm_gen = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self,
        und: Tensor,
        gen: Tensor,
        positions: Tensor,
        attend: Callable[[int], Attention],
        *,
        freeze_und: bool = False,
        rows: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """[n_und, D], [n_gen, D], positions [N] -> both after the final norms.

        `rows` [r_und], [r_gen] are the tokens wanted: [r_und, D], [r_gen, D] come back then.
        `attend(layer)` gives a layer's attention: the same for all in training, over that layer's
        cache in inference.
        """
        cosine, sine = (x.to(und.dtype) for x in rotary(positions, self.config.head_dim, self.config.rope_theta))
        split = len(und)
        rotaries = (cosine[:split], sine[:split]), (cosine[split:], sine[split:])
        if freeze_und:
            und = und.detach()
        last = len(self.layers) - 1
        for number, layer in enumerate(self.layers):
            und, gen = layer(und, gen, *rotaries, attend(number), freeze_und, rows if number == last else None)
        und = self.norm_und(und)
        return (und.detach() if freeze_und else und), self.norm_gen(gen)

    def embed_tokens(self, ids: Tensor) -> Tensor:
        """[T] -> [T, D]."""
        out: Tensor = self.embed(ids)
        return out


def same_for_all(attend: Attention) -> Callable[[int], Attention]:
    """One attention for every layer."""
    return lambda _layer: attend
