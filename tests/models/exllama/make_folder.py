"""The default model as a folder that ExLlama loads on a GPU: 16-bit weights, dequantised from its GGUF.

``make test-gpu`` makes it where no other folder is named, since a machine may reach no hub of models. Also a
program: ``make_folder.py GGUF FOLDER``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from p2pnode.models.gguf import GgufHeader, read_header

_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_CONTROL = 3


def make_folder(gguf: Path, folder: Path) -> Path:
    """Write the folder of the llama in ``gguf``. Takes seconds, and a few bytes for each of the file's."""
    folder.mkdir(parents=True, exist_ok=True)
    header = read_header(gguf)
    for name, value in (
        ("config.json", _config(header)),
        ("tokenizer.json", _tokenizer(header)),
        ("tokenizer_config.json", _tokenizer_config(header)),
    ):
        (folder / name).write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    _write_weights(gguf, header, folder / "model.safetensors")
    return folder


def _number(header: GgufHeader, key: str) -> Any:
    return header.values[f"llama.{key}"]


def _config(header: GgufHeader) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": _number(header, "embedding_length"),
        "intermediate_size": _number(header, "feed_forward_length"),
        "num_attention_heads": _number(header, "attention.head_count"),
        "num_key_value_heads": _number(header, "attention.head_count_kv"),
        "num_hidden_layers": _number(header, "block_count"),
        "rms_norm_eps": _number(header, "attention.layer_norm_rms_epsilon"),
        "rope_theta": _number(header, "rope.freq_base"),
        "max_position_embeddings": _number(header, "context_length"),
        "vocab_size": len(list(header.array("tokenizer.ggml.tokens").strings())),
        "bos_token_id": header.values["tokenizer.ggml.bos_token_id"],
        "eos_token_id": header.values["tokenizer.ggml.eos_token_id"],
        "tie_word_embeddings": True,
        "torch_dtype": "float16",
    }


def _tokenizer(header: GgufHeader) -> dict[str, Any]:
    """Byte-level BPE that cuts digits apart, as SmolLM's makers have it."""
    words = [each.decode() for each in header.array("tokenizer.ggml.tokens").strings()]
    kinds = header.array("tokenizer.ggml.token_type").integers()
    merges = [each.decode() for each in header.array("tokenizer.ggml.merges").strings()]
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    bytes_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": token, "content": word, **plain}
            for token, word in enumerate(words)
            if kinds[token] == _CONTROL
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, bytes_level],
        },
        "post_processor": None,
        "decoder": bytes_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {word: token for token, word in enumerate(words)},
            "merges": [each.split(" ", 1) for each in merges],
        },
    }


def _tokenizer_config(header: GgufHeader) -> dict[str, Any]:
    words = [each.decode() for each in header.array("tokenizer.ggml.tokens").strings()]
    bos, eos = (header.values[f"tokenizer.ggml.{which}_token_id"] for which in ("bos", "eos"))
    assert isinstance(bos, int)
    assert isinstance(eos, int)
    return {
        "bos_token": words[bos],
        "eos_token": words[eos],
        "chat_template": header.text("tokenizer.chat_template"),
        "tokenizer_class": "GPT2Tokenizer",
    }


def _write_weights(gguf: Path, header: GgufHeader, path: Path) -> None:
    import torch
    from gguf import GGUFReader
    from gguf.quants import dequantize
    from safetensors.torch import save_file

    heads = {
        "attn_q": _number(header, "attention.head_count"),
        "attn_k": _number(header, "attention.head_count_kv"),
    }
    weights: dict[str, Any] = {}
    for tensor in GGUFReader(gguf).tensors:
        values = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        parts = tensor.name.split(".")
        if parts[0] == "blk":
            if parts[2] in heads:
                # A GGUF has the pairs that turn together side by side, and this form in two halves.
                rows = values.view(heads[parts[2]], -1, 2, values.shape[-1])
                values = rows.transpose(1, 2).reshape(values.shape)
            name = f"model.layers.{parts[1]}.{_NAMES[parts[2]]}.weight"
        else:
            name = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}[parts[0]] + ".weight"
        weights[name] = values.half().contiguous()
    save_file(weights, path)


if __name__ == "__main__":
    make_folder(Path(sys.argv[1]), Path(sys.argv[2]))
