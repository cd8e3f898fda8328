"""optimum-habana on Gaudi: its module names are those of transformers, with a few modules added."""

from inc_mp_plugin.targets.target import Target

OPTIMUM_HABANA = Target(
    name="optimum-habana",
    device="hpu",
    settings={"scale_method": "maxabs_hw"},
    undecided=(
        "KVCache",
        "ModuleFusedSDPA",
        "Softmax",
        "GaudiMixtralSparseMoeBlock",
        "GaudiDeepseekV3MoE",
    ),
    added={
        "k_cache": "KVCache",
        "v_cache": "KVCache",
        "fused_scaled_dot_product_attention": "ModuleFusedSDPA",
    },
    splits_experts=True,
)
