"""The baseline `DECODER@POOLING`: a decoder as it is, in an evaluation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from embedforge.errors import EmbedforgeError
from embedforge.evaluate.run import model_fingerprint
from embedforge.evaluate.untrained import load_untrained, split_name


def test_it_pools_the_causal_states_of_the_decoder(tiny_base: Path) -> None:
    text = "def add(a, b): return a + b"
    tokenizer, decoder = AutoTokenizer.from_pretrained(tiny_base), AutoModel.from_pretrained(tiny_base).eval()
    ids = torch.tensor(
        [[decoder.config.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]]
    )
    ids = torch.cat([ids, torch.tensor([[decoder.config.eos_token_id]])], dim=1)
    with torch.no_grad():
        states = decoder(ids).last_hidden_state[0]
    for pooling, expected in (("mean", states.mean(dim=0)), ("last", states[-1])):
        st = load_untrained(f"{tiny_base}@{pooling}", device="cpu")
        found = st.encode_query(text, convert_to_tensor=True)
        torch.testing.assert_close(found, expected / expected.norm(), atol=1e-5, rtol=0)
        np.testing.assert_allclose(found, st.encode_document(text), atol=1e-6)


def test_a_name_is_a_baseline_only_with_a_pooling_of_no_weights() -> None:
    assert split_name("org/model@last") == ("org/model", "last")
    assert split_name("org/model@latent") is None, "untrained latent attention says nothing"
    assert split_name("runs/me@home/model") is None
    with pytest.raises(EmbedforgeError, match=r"DECODER@POOLING with one of .*mean"):
        load_untrained("org/model@latent")


def test_a_result_is_not_reused_for_other_weights_or_another_pooling(tiny_base: Path) -> None:
    mean, last = model_fingerprint(f"{tiny_base}@mean"), model_fingerprint(f"{tiny_base}@last")
    assert mean != last
    config = tiny_base / "config.json"
    config.write_text(config.read_text() + " ")
    assert model_fingerprint(f"{tiny_base}@mean") != mean
