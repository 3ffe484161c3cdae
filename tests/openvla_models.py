"""Two small image encoders for timm, by the names that the goldens' OpenVLA gives them."""

import timm

# What timm.create_model passes to every model, and these have no use for.
IGNORED = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")


def register_encoder(build):
    """Makes a vision transformer known to timm by its function's name."""

    def create(**settings):
        return build(**{name: value for name, value in settings.items() if name not in IGNORED})

    create.__name__, create.__module__ = build.__name__, build.__module__
    return timm.models.register_model(create)


@register_encoder
def vit_micro_patch14_reg4_dinov2(**settings):
    return timm.models.VisionTransformer(
        patch_size=14,
        embed_dim=48,
        depth=3,
        num_heads=3,
        init_values=0.1,
        reg_tokens=4,
        no_embed_class=True,
        **settings,
    )


@register_encoder
def vit_micro_patch14_siglip(**settings):
    return timm.models.VisionTransformer(
        patch_size=14,
        embed_dim=64,
        depth=3,
        num_heads=4,
        mlp_ratio=2.5,
        class_token=False,
        global_pool="map",
        **settings,
    )
