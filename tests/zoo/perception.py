"""Models of images and sound: Transformers' Flax classes, Haiku's, and those of flaxmodels."""

import functools
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import transformers as hf
from zoo.exhibits import Exhibit, attention, images, random_like

HEADS, WIDTH, WIDE = 3, 24, 40
HEAD = attention(HEADS, 8)
VIT = dict(
    hidden_size=WIDTH,
    num_hidden_layers=2,
    num_attention_heads=HEADS,
    image_size=16,
    patch_size=8,
    num_labels=5,
)


def image_classifier(prefix: str, side: int, **options: Any):
    """Logits of images."""
    config = getattr(hf, f"{prefix}Config")(**options)
    model = getattr(hf, f"Flax{prefix}ForImageClassification")(config, _do_init=False)

    def function(params: Any, x: Any) -> Any:
        return model(x, params=params, train=False).logits

    return function, random_like(model.params_shape_tree), (images(2, 3, side, side),)


def vision(name: str, prefix: str, groups: list, why: str, side: int, **options: Any) -> Exhibit:
    """A classifier of images."""
    return Exhibit(
        name, "transformers", lambda: image_classifier(prefix, side, **options), groups, why
    )


def clip():
    """Similarities of texts and images."""
    text = dict(
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        intermediate_size=WIDE,
        vocab_size=50,
        max_position_embeddings=12,
        eos_token_id=49,
    )
    picture = dict(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=20,
        image_size=16,
        patch_size=8,
    )
    config = hf.CLIPConfig(text_config=text, vision_config=picture, projection_dim=10)
    model = hf.FlaxCLIPModel(config, _do_init=False)

    def function(params: Any, ids: Any, x: Any) -> Any:
        return model(ids, x, params=params, train=False).logits_per_image

    inputs = jnp.arange(16).reshape(2, 8), images(2, 3, 16, 16)
    return function, random_like(model.params_shape_tree), inputs


def wav2vec():
    """Letters of sound."""
    config = hf.Wav2Vec2Config(
        vocab_size=12,
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        intermediate_size=WIDE,
        conv_dim=(8, 10),
        conv_stride=(5, 2),
        conv_kernel=(10, 3),
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
    )
    model = hf.FlaxWav2Vec2ForCTC(config, _do_init=False, input_shape=(1, 400))

    def function(params: Any, x: Any) -> Any:
        return model(x, params=params, train=False).logits

    return function, random_like(model.params_shape_tree), (images(2, 400),)


def whisper():
    """Tokens of a spectrogram."""
    config = hf.WhisperConfig(
        vocab_size=50,
        num_mel_bins=6,
        d_model=WIDTH,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS,
        encoder_ffn_dim=WIDE,
        decoder_ffn_dim=32,
        max_source_positions=8,
        max_target_positions=12,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=3,
    )
    model = hf.FlaxWhisperForConditionalGeneration(config, _do_init=False)

    def function(params: Any, x: Any, ids: Any) -> Any:
        return model(x, decoder_input_ids=ids, params=params, train=False).logits

    inputs = images(2, 6, 16), jnp.arange(16).reshape(2, 8)
    return function, random_like(model.params_shape_tree), inputs


def haiku(network: Any, *shape: int):
    """A Haiku network with state, ``network(images, is_training)``, in evaluation mode."""
    transformed = hk.transform_with_state(network)
    x = images(*shape)
    init = functools.partial(transformed.init, is_training=True)
    variables = random_like(jax.eval_shape(init, jax.random.key(0), x))
    return lambda v, x: transformed.apply(*v, None, x, is_training=False)[0], variables, (x,)


def residual(x: Any, is_training: bool) -> Any:
    """A block in each of four stages."""
    return hk.nets.ResNet((1, 1, 1, 1), 5, resnet_v2=True, channels_per_group=(8, 12, 16, 20))(
        x, is_training
    )


def mobile(x: Any, is_training: bool) -> Any:
    """Two depthwise convolutions."""
    return hk.nets.MobileNetV1((1, 2), (8, 12), 5)(x, is_training)


RESNET = "a stream of each stage; two interiors of each bottleneck, one of each basic block"
EXHIBITS = [
    vision(
        "ViT",
        "ViT",
        [(WIDTH,), *2 * [*HEAD, (WIDE,)]],
        "the stream; of each layer heads, their units, the MLP",
        16,
        **VIT,
        intermediate_size=WIDE,
    ),
    vision(
        "BEiT",
        "Beit",
        [(WIDTH,), *2 * [*HEAD, (WIDE,)]],
        "as ViT: relative positions go with the heads, layer scale with the stream",
        16,
        **VIT,
        intermediate_size=WIDE,
        use_relative_position_bias=True,
    ),
    vision("DINOv2", "Dinov2", [(WIDTH,), *2 * [*HEAD, (48,)]], "as ViT", 16, **VIT, mlp_ratio=2),
    vision(
        "ResNet, bottlenecks",
        "ResNet",
        [(8,), (16,), *4 * [(4,)], (24,), *4 * [(6,)]],
        f"the stem; {RESNET}",
        32,
        embedding_size=8,
        hidden_sizes=[16, 24],
        depths=[2, 2],
        layer_type="bottleneck",
        num_labels=5,
    ),
    vision(
        "ResNet, basic blocks",
        "ResNet",
        [*3 * [(8,)], *3 * [(16,)]],
        "the first stage adds to the stem's stream; one interior of each block",
        32,
        embedding_size=8,
        hidden_sizes=[8, 16],
        depths=[2, 2],
        layer_type="basic",
        num_labels=5,
    ),
    vision(
        "RegNetY",
        "RegNet",
        [(8,), (4,), (4, 4), (4,), (4, 4), (2,), (16,), *2 * [(6,), (6, 4), (6, 4)], (6,), (24,)],
        "grouped convolutions: their groups, and the units of each before and after; the interior "
        "of each squeeze-and-excitation",
        32,
        embedding_size=8,
        hidden_sizes=[16, 24],
        depths=[1, 2],
        groups_width=4,
        layer_type="y",
        num_labels=5,
    ),
    Exhibit(
        "CLIP",
        "transformers",
        clip,
        [(16,), *attention(2, 8), (20,), (WIDTH,), *2 * [*HEAD, (WIDE,)], (10,)],
        "two transformers, and the space that both project into",
    ),
    Exhibit(
        "wav2vec 2.0",
        "transformers",
        wav2vec,
        [(8,), (10,), (2,), (2, 12), *2 * [*HEAD, (WIDE,)]],
        "two convolutions; the stream is cut by the grouped positional convolution, whose groups "
        "may change places",
    ),
    Exhibit(
        "Whisper",
        "transformers",
        whisper,
        [*3 * [(WIDTH,)], *HEAD, (WIDE,), *2 * HEAD, (32,)],
        "the stem's convolution, the encoder's stream, the decoder's; a second attention there",
    ),
    Exhibit(
        "ResNet v2",
        "dm-haiku",
        lambda: haiku(residual, 2, 32, 32, 3),
        [(64,), (8,), *2 * [(2,)], (12,), *2 * [(3,)], (16,), *2 * [(4,)], (20,), *2 * [(5,)]],
        f"the stem; {RESNET}, normalised before they are read",
    ),
    Exhibit(
        "MobileNet v1",
        "dm-haiku",
        lambda: haiku(mobile, 2, 16, 16, 3),
        [(32,), (8,), (12,)],
        "a depthwise convolution leaves its channels where they are",
    ),
]
