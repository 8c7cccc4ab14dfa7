"""The calls by hand that the tests compare an adapted language model with."""

from contextlib import contextmanager

import torch


class ByHand:
    """The call by hand: the base model, uncached, on `[V_selected; E]`."""

    def __init__(self, base, model):
        self.base, self.model = base, model

    @property
    def pool(self):
        return self.model.base_model.layer.active_pool

    def embed(self, input_ids):
        return self.base.get_input_embeddings()(input_ids)

    def indices(self, query):
        similarity = torch.nn.functional.cosine_similarity(query[None], self.pool.keys, dim=-1)
        return similarity.argsort(descending=True, stable=True)[: self.pool.config.prompt_length]

    def prompts(self, input_ids):
        """Prompts of rows without padding, `(batch_size, k, embedding_size)`."""
        return torch.stack([self.pool.values[self.indices(row.float().mean(dim=0))] for row in self.embed(input_ids)])

    def inputs_embeds(self, input_ids, prompts=None):
        embeds = self.embed(input_ids)
        prompts = self.prompts(input_ids) if prompts is None else prompts
        return torch.cat([prompts.to(embeds), embeds], dim=1)

    def __call__(self, input_ids, prompts=None, **kwargs):
        return self.base(inputs_embeds=self.inputs_embeds(input_ids, prompts), use_cache=False, **kwargs)

    @torch.no_grad()
    def next_logits(self, row, prompts):
        """Logits behind each of some rows of tokens that share their prompts `(k, embedding_size)`."""
        return self(row, prompts.expand(len(row), -1, -1)).logits[:, -1]

    @torch.no_grad()
    def greedy(self, row, new_tokens):
        """Tokens of one row without padding, `(length,)`, followed by its greedy continuation."""
        prompts, row = self.prompts(row[None]), row[None]
        for _ in range(new_tokens):
            row = torch.cat([row, self.next_logits(row, prompts).argmax(dim=-1, keepdim=True)], dim=1)
        return row[0]


# Paths of the decoder's layers, where they are not at `model.layers`.
LAYERS = {
    "gpt2": "transformer.h",
    "bloom": "transformer.h",
    "falcon": "transformer.h",
    "gpt_neox": "gpt_neox.layers",
    "opt": "model.decoder.layers",
    "qwen2_vl": "model.language_model.layers",
    "qwen3_vl": "model.language_model.layers",
    "llava": "model.language_model.layers",
}


class DeepByHand(ByHand):
    """The call by hand with deep values: vectors at the input of some layers, at all places of the prompt but the first."""

    @property
    def layers(self):
        return self.base.get_submodule(LAYERS.get(self.base.config.model_type, "model.layers"))

    def vectors(self, indices):
        """For each value layer, the vectors of the prompts of these indices `(k,)`, `(k - 1, hidden_size)`."""
        deep, k = self.pool.deep, len(indices)
        vectors = []
        for layer in range(len(deep.layers)):
            added = torch.zeros(k, deep.values.shape[-1])
            for place, index in enumerate(indices.tolist()):
                added[place] = deep.values[layer, index]
                if deep.shared_values is not None:
                    added[place] += deep.shared_values[layer, place]
            vectors.append(deep.scales[layer] * added[1:])
        return vectors

    def vectors_of(self, input_ids):
        """For each value layer, the vectors of rows without padding, `(batch_size, k - 1, hidden_size)`."""
        queries = [row.float().mean(dim=0) for row in self.embed(input_ids)]
        rows = [self.vectors(self.indices(query)) for query in queries]
        return [torch.stack(layer) for layer in zip(*rows, strict=True)]

    @contextmanager
    def adding(self, vectors, first=1):
        """Adds vectors at the input of the value layers, from the position `first` on."""

        def hook(added):
            def before(module, args):
                hidden_states = args[0].clone()
                hidden_states[:, first : first + added.shape[1]] += added.to(hidden_states)
                return hidden_states, *args[1:]

            return before

        numbers = self.pool.deep.layers
        handles = [
            self.layers[n].register_forward_pre_hook(hook(added)) for n, added in zip(numbers, vectors, strict=True)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def __call__(self, input_ids, prompts=None, vectors=None, **kwargs):
        with self.adding(self.vectors_of(input_ids) if vectors is None else vectors):
            return super().__call__(input_ids, prompts, **kwargs)

    @torch.no_grad()
    def greedy(self, row, new_tokens):
        prompts, vectors, row = self.prompts(row[None]), self.vectors_of(row[None]), row[None]
        for _ in range(new_tokens):
            logits = self(row, prompts, vectors).logits[:, -1]
            row = torch.cat([row, logits.argmax(dim=-1, keepdim=True)], dim=1)
        return row[0]
