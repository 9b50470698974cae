"""Models small enough to build in milliseconds, saved as any published one is, with random but seeded weights.

They go through the loading code that opens the big ones: same configuration classes, same files, no hub.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    CLIPProcessor,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Siglip2Config,
    Siglip2Model,
    Siglip2Processor,
    SiglipConfig,
    SiglipModel,
    SiglipProcessor,
)
from transformers.models.clip import CLIPImageProcessorPil
from transformers.models.siglip import SiglipImageProcessorPil
from transformers.models.siglip2 import Siglip2ImageProcessorPil

END = "<|im_end|>"
SPECIAL = ["<|endoftext|>", "<|im_start|>", END]
CORPUS = ["title brand category description visual representation", "red blue green lamp chair mug", "the next item is"]
TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
VISION = {**TEXT, "image_size": 32, "patch_size": 8}


def tiny_tokenizer(*, adds_end: bool = False, max_tokens: int = 512) -> PreTrainedTokenizerFast:
    """Byte-level BPE of 300 tokens: ids 0 to 2 are special, every text has an encoding; `adds_end` appends id 2."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    if adds_end:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"$A {END}", special_tokens=[(END, SPECIAL.index(END))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=SPECIAL[1],
        eos_token=END,
        pad_token=END,
        unk_token=SPECIAL[0],
        padding_side="right",
        model_max_length=max_tokens,
    )


def tiny_language_model(folder: Path, **config: Any) -> Path:
    """A LLaMA of width 32, two layers, four heads on two key-value heads; `config` overrides any field."""
    tokenizer = tiny_tokenizer()
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }
    return _save(folder, _seeded(LlamaForCausalLM, LlamaConfig(**{**shape, **config})), tokenizer)


def tiny_siglip(folder: Path) -> Path:
    """Width 32, pictures of 32 x 32, texts of at most 16 tokens."""
    config = SiglipConfig(
        text_config={**TEXT, "vocab_size": 300, "max_position_embeddings": 16, **_ids()}, vision_config=VISION
    )
    pictures = SiglipImageProcessorPil(size={"height": 32, "width": 32})
    processor = SiglipProcessor(pictures, tiny_tokenizer(adds_end=True, max_tokens=16))
    return _save(folder, _seeded(SiglipModel, config), processor)


def tiny_siglip2(folder: Path) -> Path:
    """The variant that keeps the aspect ratio: at most 16 patches of 8 x 8."""
    vision = {**TEXT, "patch_size": 8, "num_patches": 16}
    config = Siglip2Config(
        text_config={**TEXT, "vocab_size": 300, "max_position_embeddings": 16, **_ids()}, vision_config=vision
    )
    pictures = Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16)
    processor = Siglip2Processor(pictures, tiny_tokenizer(adds_end=True, max_tokens=16))
    return _save(folder, _seeded(Siglip2Model, config), processor)


def tiny_clip(folder: Path) -> Path:
    """Shared width 24, pictures of 32 x 32, texts of at most 16 tokens."""
    # CLIP takes the state at the first end token; id 2 would select its older rule, the highest id.
    text = {**TEXT, "vocab_size": 300, "max_position_embeddings": 16, **_ids(), "eos_token_id": 1}
    config = CLIPConfig(text_config=text, vision_config=VISION, projection_dim=24)
    tokenizer = tiny_tokenizer(max_tokens=16)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|im_start|>", special_tokens=[("<|im_start|>", 1)]
    )
    pictures = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return _save(folder, _seeded(CLIPModel, config), CLIPProcessor(pictures, tokenizer))


def tiny_sentence_encoder(folder: Path) -> Path:
    """A BERT of width 16 with mean pooling, in the format of sentence-transformers."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    shape = {**TEXT, "hidden_size": 16, "vocab_size": 300, "max_position_embeddings": 64, "pad_token_id": 2}
    bare = _save(folder.with_name(f"{folder.name}-bare"), _seeded(BertModel, BertConfig(**shape)), tiny_tokenizer())
    transformer = Transformer(str(bare), max_seq_length=64)
    SentenceTransformer(modules=[transformer, Pooling(16, "mean")], device="cpu").save(str(folder))
    return folder


def _ids() -> dict[str, int]:
    return {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}


def _seeded(kind: Any, config: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind(config).eval()


def _save(folder: Path, model: Any, text_or_processor: Any) -> Path:
    model.save_pretrained(folder)
    text_or_processor.save_pretrained(folder)
    return folder
