"""
A server that generates from embeddings with an untouched language model.

It has the part of vLLM's interface that `examples/vllm_client.py` uses, and reads embeddings as vLLM does: base64 of a file
of `torch.save`, which is loaded without running code, and which is one tensor of `(num_tokens, hidden_size)`.
"""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch


@contextmanager
def serving(llm: Any, tokenizer: Any) -> Iterator[str]:
    """The `base_url` of a server with this language model."""

    def complete(body: dict[str, Any]) -> dict[str, Any]:
        content = base64.b64decode(body["prompt_embeds"], validate=True)
        embeds = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
        assert body["prompt"] == "" and embeds.ndim == 2 and embeds.is_floating_point()
        assert embeds.shape[1] == llm.config.hidden_size
        tokens = llm.generate(
            inputs_embeds=embeds[None].to(llm.dtype),
            attention_mask=torch.ones(1, len(embeds), dtype=torch.long),
            max_new_tokens=body["max_tokens"],
            do_sample=body["temperature"] > 0,
            eos_token_id=body["stop_token_ids"] or None,
        )
        text = tokenizer.decode(tokens[0], skip_special_tokens=True)
        choice = {"index": 0, "text": text, "finish_reason": "length", "logprobs": None}
        return {"id": "1", "object": "text_completion", "created": 0, "model": body["model"], "choices": [choice]}

    class Handler(BaseHTTPRequestHandler):
        def answer(self, body: dict[str, Any]) -> None:
            content = json.dumps(body).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self) -> None:
            assert self.path == "/v1/models"
            model = {"id": "llm", "object": "model", "created": 0, "owned_by": "nobody"}
            self.answer({"object": "list", "data": [model]})

        def do_POST(self) -> None:
            assert self.path == "/v1/completions"
            self.answer(complete(json.loads(self.rfile.read(int(self.headers["Content-Length"])))))

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
