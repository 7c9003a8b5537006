"""Language models of Transformers' Flax classes, two layers of three heads of eight units each."""

from typing import Any

import jax.numpy as jnp
import transformers as hf
from zoo.exhibits import Exhibit, attention, random_like, rotary_attention

HEADS, UNITS, WIDTH, WIDE, VOCABULARY = 3, 8, 24, 40, 50
STREAM, POOLED, MLP, HEAD = (WIDTH,), (WIDTH,), (WIDE,), attention(HEADS, UNITS)
IDS = jnp.arange(16).reshape(2, 8) % VOCABULARY

BERT = dict(
    hidden_size=WIDTH,
    num_hidden_layers=2,
    num_attention_heads=HEADS,
    intermediate_size=WIDE,
    vocab_size=VOCABULARY,
    max_position_embeddings=14,
    type_vocab_size=2,
)
GPT = dict(vocab_size=VOCABULARY, n_positions=12, n_embd=WIDTH, n_layer=2, n_head=HEADS)
DECODER = {name: value for name, value in BERT.items() if name != "type_vocab_size"}
BART = dict(
    vocab_size=VOCABULARY,
    d_model=WIDTH,
    encoder_layers=2,
    decoder_layers=2,
    encoder_attention_heads=HEADS,
    decoder_attention_heads=HEADS,
    encoder_ffn_dim=WIDE,
    decoder_ffn_dim=32,
    max_position_embeddings=12,
    pad_token_id=1,
    bos_token_id=0,
    eos_token_id=2,
    decoder_start_token_id=2,
)


def tokens_to_logits(kind: str, configuration: str, **options: Any):
    """A model that reads tokens."""
    model = getattr(hf, kind)(getattr(hf, configuration)(**options), _do_init=False)

    def function(params: Any, ids: Any) -> Any:
        return model(ids, params=params, train=False).logits

    return function, random_like(model.params_shape_tree), (IDS,)


def tokens_to_tokens(kind: str, configuration: str, **options: Any):
    """An encoder and a decoder, which read the same tokens."""
    model = getattr(hf, kind)(getattr(hf, configuration)(**options), _do_init=False)

    def function(params: Any, ids: Any) -> Any:
        return model(ids, decoder_input_ids=ids, params=params, train=False).logits

    return function, random_like(model.params_shape_tree), (IDS,)


def reader(name: str, prefix: str, groups: list, why: str, **options: Any) -> Exhibit:
    """A classifier of texts, as BERT is."""
    config = f"{prefix}Config"
    kind = f"Flax{prefix}ForSequenceClassification"
    return Exhibit(
        name, "transformers", lambda: tokens_to_logits(kind, config, **options), groups, why
    )


def writer(name: str, kind: str, config: str, groups: list, why: str, **options: Any) -> Exhibit:
    """A model that predicts tokens."""
    return Exhibit(
        name, "transformers", lambda: tokens_to_logits(kind, config, **options), groups, why
    )


def translator(name: str, kind: str, config: str, groups: list, why: str) -> Exhibit:
    """An encoder with a decoder."""
    return Exhibit(
        name, "transformers", lambda: tokens_to_tokens(kind, config, **BART), groups, why
    )


ENCODED = [STREAM, POOLED, *2 * [*HEAD, MLP]]
TWO_STACKS = [*2 * [*HEAD, (WIDE,)], *2 * [*HEAD, *HEAD, (32,)]]
CLASSIFIER = "the stream; the classifier's hidden layer; of each layer heads, their units, the MLP"
TIED = "the stream, tied to the output's rows; of each layer heads, their units, the MLP"
SINES = "as GPT-2 or BART, but sinusoidal positions are added to the stream, which fixes its units"

EXHIBITS = [
    reader("BERT", "Bert", ENCODED, CLASSIFIER, **BERT),
    writer(
        "BERT (masked)",
        "FlaxBertForMaskedLM",
        "BertConfig",
        [STREAM, *2 * [*HEAD, MLP]],
        "the output's transform adds to no stream, but is normalised and read by the tied "
        "embedding: it is the stream's group",
        **BERT,
    ),
    reader("RoBERTa", "Roberta", ENCODED, CLASSIFIER, **BERT),
    reader("RoBERTa (pre-norm)", "RobertaPreLayerNorm", ENCODED, CLASSIFIER, **BERT),
    reader("XLM-RoBERTa", "XLMRoberta", ENCODED, CLASSIFIER, **BERT),
    reader(
        "ELECTRA",
        "Electra",
        [(16,), *ENCODED],
        "as BERT, with an embedding of its own width before the stream",
        **BERT,
        embedding_size=16,
    ),
    reader(
        "ALBERT",
        "Albert",
        [(16,), STREAM, POOLED, *HEAD, MLP],
        "as ELECTRA; the layers share their weights",
        **BERT,
        embedding_size=16,
    ),
    reader(
        "DistilBERT",
        "DistilBert",
        ENCODED,
        CLASSIFIER,
        vocab_size=VOCABULARY,
        dim=WIDTH,
        n_layers=2,
        n_heads=HEADS,
        hidden_dim=WIDE,
        max_position_embeddings=12,
    ),
    reader(
        "RoFormer",
        "RoFormer",
        [STREAM, POOLED, *2 * [*rotary_attention(HEADS, UNITS), MLP]],
        "as BERT, but query and key units turn with the position",
        **BERT,
        embedding_size=WIDTH,
    ),
    reader("BigBird", "BigBird", ENCODED, CLASSIFIER, **BERT, attention_type="original_full"),
    writer(
        "GPT-2",
        "FlaxGPT2LMHeadModel",
        "GPT2Config",
        [STREAM, *2 * [*HEAD, (4 * WIDTH,)]],
        TIED,
        **GPT,
    ),
    writer(
        "GPT-Neo",
        "FlaxGPTNeoForCausalLM",
        "GPTNeoConfig",
        [STREAM, *2 * [*HEAD, MLP]],
        TIED,
        vocab_size=VOCABULARY,
        max_position_embeddings=12,
        hidden_size=WIDTH,
        num_layers=2,
        num_heads=HEADS,
        attention_types=[[["global", "local"], 1]],
        intermediate_size=WIDE,
    ),
    writer(
        "GPT-J",
        "FlaxGPTJForCausalLM",
        "GPTJConfig",
        [STREAM, *2 * [*attention(HEADS, 4, UNITS), MLP]],
        "as GPT-2, but four of eight query and key units turn with the position",
        **GPT,
        rotary_dim=4,
        n_inner=WIDE,
    ),
    writer(
        "Mistral",
        "FlaxMistralForCausalLM",
        "MistralConfig",
        [STREAM, *2 * [(2,), (2, 2), (2, 6), MLP]],
        "two heads of keys and values, two of queries for each; rotary; the gated MLP is one group",
        **DECODER | dict(num_attention_heads=4, num_key_value_heads=2),
    ),
    writer(
        "LLaMA",
        "FlaxLlamaForCausalLM",
        "LlamaConfig",
        [STREAM, *2 * [(4,), (4, 6), MLP]],
        "rotary; the gated MLP is one group",
        **DECODER | dict(num_attention_heads=4),
    ),
    writer(
        "XGLM",
        "FlaxXGLMForCausalLM",
        "XGLMConfig",
        2 * [*HEAD, MLP],
        SINES,
        vocab_size=VOCABULARY,
        max_position_embeddings=12,
        d_model=WIDTH,
        ffn_dim=WIDE,
        num_layers=2,
        attention_heads=HEADS,
    ),
    *(
        translator(
            name,
            f"Flax{name}ForConditionalGeneration",
            f"{name}Config",
            [STREAM, *TWO_STACKS],
            "one stream, as both stacks share the embedding; a second attention in the decoder",
        )
        for name in ("Bart", "MBart", "Blenderbot", "BlenderbotSmall")
    ),
    translator(
        "Pegasus", "FlaxPegasusForConditionalGeneration", "PegasusConfig", TWO_STACKS, SINES
    ),
    translator("Marian", "FlaxMarianMTModel", "MarianConfig", TWO_STACKS, SINES),
]
"""All of them. T5, mT5, LongT5, BLOOM and OPT are not among them: their Flax code calls functions
that this JAX no longer has, or takes no `train`."""
