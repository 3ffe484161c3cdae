"""Two small image encoders for timm, by the names that the goldens' OpenVLA gives them."""

import timm

# What timm.create_model passes to every model, and these have no use for.
IGNORED = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")


def register_encoder(name, build):
    """Makes a vision transformer known to timm."""

    def create(**settings):
        return build(**{key: value for key, value in settings.items() if key not in IGNORED})

    create.__name__, create.__module__ = name, __name__
    timm.models.register_model(create)


def register_dinov2(name, patch_size, embed_dim, num_heads):
    """A DINOv2 of three layers: registers, LayerScale, positions of the patches alone."""

    def build(**settings):
        return timm.models.VisionTransformer(
            patch_size=patch_size,
            embed_dim=embed_dim,
            depth=3,
            num_heads=num_heads,
            init_values=0.1,
            reg_tokens=4,
            no_embed_class=True,
            **settings,
        )

    register_encoder(name, build)


def register_siglip(name, patch_size, embed_dim, num_heads):
    """A SigLIP of three layers: no class token, and a pooling that nobody asks for."""

    def build(**settings):
        return timm.models.VisionTransformer(
            patch_size=patch_size,
            embed_dim=embed_dim,
            depth=3,
            num_heads=num_heads,
            mlp_ratio=2.5,
            class_token=False,
            global_pool="map",
            **settings,
        )

    register_encoder(name, build)


register_dinov2("vit_micro_patch14_reg4_dinov2", 14, embed_dim=48, num_heads=3)
register_siglip("vit_micro_patch14_siglip", 14, embed_dim=64, num_heads=4)
