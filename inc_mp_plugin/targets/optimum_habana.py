"""optimum-habana on Gaudi: its module names are those of transformers, with a few modules added."""

from inc_mp_plugin.targets.target import Target

OPTIMUM_HABANA = Target(
    name="optimum-habana",
    device="hpu",
    settings={},
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
    scale_methods=(
        "maxabs_hw",
        "maxabs_pow2",
        "maxabs_arbitrary",
        "act_maxabs_hw_weights_pcs_maxabs_pow2",
        "act_maxabs_pow2_weights_pcs_maxabs_pow2",
    ),
)
