"""Two small image encoders for timm, by the names that small OpenVLAs give theirs."""

import timm
from timm.models.vision_transformer import VisionTransformer

DINO = "vit_micro_patch14_reg4_dinov2"
SIGLIP = "vit_micro_patch14_siglip"
# What timm.create_model passes to every model, and these have no use for.
IGNORED = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")


def vit_micro_patch14_reg4_dinov2(**settings):
    return _encoder(
        settings, embed_dim=48, num_heads=3, init_values=0.1, reg_tokens=4, no_embed_class=True
    )


def vit_micro_patch14_siglip(**settings):
    return _encoder(
        settings, embed_dim=64, num_heads=4, mlp_ratio=2.5, class_token=False, global_pool="map"
    )


def _encoder(settings, **sizes):
    settings = {name: value for name, value in settings.items() if name not in IGNORED}
    return VisionTransformer(patch_size=14, depth=3, **sizes, **settings)


def register():
    """Makes both known to timm; again does no harm."""
    for encoder in (vit_micro_patch14_reg4_dinov2, vit_micro_patch14_siglip):
        if not timm.is_model(encoder.__name__):
            timm.models.register_model(encoder)


register()
