"""The call by hand that the tests compare an adapted language model with."""

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
