"""The weights of a model that a recipe quantizes."""

from collections.abc import Collection, Iterator

from moe4.model.outline import Outline
from moe4.recipe import Target

# A decoder layer's Linears by target, in the order they run. Those in one row share their input, and so a
# Hessian. kv_b_proj stays as it is: vLLM's MLA takes its plain weights apart instead of calling it.
LINEAR_STAGES: tuple[tuple[Target, tuple[str, ...]], ...] = (
    ("attention", ("self_attn.q_a_proj", "self_attn.kv_a_proj_with_mqa")),
    ("attention", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    ("attention", ("self_attn.q_b_proj",)),
    ("attention", ("self_attn.o_proj",)),
    ("shared_experts", ("mlp.shared_experts.gate_proj", "mlp.shared_experts.up_proj")),
    ("shared_experts", ("mlp.shared_experts.down_proj",)),
    ("shared_experts", ("mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj")),
    ("shared_experts", ("mlp.shared_expert.down_proj",)),
    ("dense_mlps", ("mlp.gate_proj", "mlp.up_proj")),
    ("dense_mlps", ("mlp.down_proj",)),
)


def targeted(targets: Collection[Target], network: Outline) -> Iterator[str]:
    """Yield the names of all weights that are to be quantized."""
    for experts in filter(None, network.experts):
        for expert in range(experts.num_experts):
            yield from experts.weight_names(expert)
    yield from linear_shapes(targets, network)


def linear_shapes(targets: Collection[Target], network: Outline) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the weights beside routed experts that are to be quantized."""
    modules = [module for target, stage in LINEAR_STAGES if target in targets for module in stage]
    found = {}
    for layer in range(network.num_layers):
        shapes = network.layer_tensors(layer)
        names = (f"{network.layer_prefix(layer)}{module}.weight" for module in modules)
        found.update({name: shapes[name] for name in names if name in shapes})
    return found
