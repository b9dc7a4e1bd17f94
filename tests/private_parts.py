"""The private parts of other projects that moe4 touches, and the test of each that notices when it has moved.

What is listed is no public interface: it may move in any version. `test_private_parts.py` holds the list to
the source and to the versions that are installed.
"""

CONFIG = "tests/vllm_plugin/test_plugin.py::test_registering_twice_gives_our_configuration"
EXPERTS = "tests/vllm_plugin/test_plugin.py::test_parameters_have_the_checkpoints_layout"
LOADER = "tests/vllm_plugin/loader/test_mapped_loader.py::test_answers_are_those_of_vllms_loader"
MLA = "tests/vllm_plugin/cpu/test_mla_layout.py::test_vllm_takes_the_plugins_backend"
REST = "tests/vllm_plugin/rest/test_convert_rest.py::test_what_is_converted_and_what_is_kept"
CODES = "tests/vllm_plugin/rest/test_convert_rest.py::test_a_releases_codes_are_used_as_they_are"
THREADS = "tests/vllm_plugin/cpu/test_threads.py::test_vllm_is_changed_only_where_it_was_asked_for"
WAITING = "tests/vllm_plugin/cpu/test_threads.py::test_a_reader_waits_asleep_and_misses_nothing"
COLLECTIVES = "tests/vllm_plugin/cpu/test_collectives.py::test_vllm_gets_them_where_it_lacks_them"
EAGER = "tests/vllm_plugin/cpu/test_eager.py::test_the_sampler_counts_ranks_plainly"
ROTARY = "tests/vllm_plugin/cpu/test_rotary.py::test_queries_in_any_layout_are_rotated"
MARLIN = (
    "tests/vllm_plugin/marlin/test_marlin_scales.py"
    "::test_the_plugin_attaches_on_cuda_and_changes_nothing_else"
)
TOOL_PARSER = "tests/vllm_plugin/test_tool_parser.py::test_known_texts"
MODEL = "tests/model/test_architecture.py"
FAMILIES = "tests/quantize/run/test_families.py"
HARNESS = "tests/evaluate/harness/test_eval_command.py"
RANKS = "tests/quantize/transfer/test_ranks.py"

LAYERS = "vllm.model_executor.layers"
COMMUNICATORS = "vllm.distributed.device_communicators"
SCHEMES = f"{LAYERS}.quantization.compressed_tensors.compressed_tensors"

# module:attribute
PARTS = {
    "vllm.platforms:current_platform": CONFIG,
    "vllm.logger:init_logger": CONFIG,
    f"{LAYERS}.quantization:register_quantization_config": CONFIG,
    f"{SCHEMES}:CompressedTensorsConfig": CONFIG,
    f"{SCHEMES}:CompressedTensorsLinearMethod": CODES,
    f"{LAYERS}.quantization.compressed_tensors.schemes:CompressedTensorsWNA16": CODES,
    f"{LAYERS}.fused_moe:RoutedExperts": CONFIG,
    f"{LAYERS}.fused_moe:FusedMoEMethodBase": EXPERTS,
    f"{LAYERS}.fused_moe.activation:MoEActivation": EXPERTS,
    f"{LAYERS}.fused_moe.routed_experts:FusedMoeWeightScaleSupported": EXPERTS,
    "vllm.model_executor.utils:set_weight_attrs": EXPERTS,
    "vllm.config:ModelConfig": LOADER,
    "vllm.config:get_current_vllm_config": LOADER,
    "vllm.config:get_current_vllm_config_or_none": LOADER,
    "vllm.config.load:LoadConfig": LOADER,
    "vllm.model_executor.model_loader:register_model_loader": LOADER,
    "vllm.model_executor.model_loader.default_loader:DefaultModelLoader": LOADER,
    f"{LAYERS}.linear:LinearBase": REST,
    f"{LAYERS}.linear:LinearMethodBase": REST,
    f"{LAYERS}.linear:UnquantizedLinearMethod": REST,
    f"{LAYERS}.vocab_parallel_embedding:ParallelLMHead": REST,
    f"{LAYERS}.vocab_parallel_embedding:UnquantizedEmbeddingMethod": REST,
    "vllm.v1.attention.backends.mla.cpu_mla:CPUMLABackend": MLA,
    "vllm.v1.attention.backends.mla.cpu_mla:CPUMLAImpl": MLA,
    "vllm.v1.attention.backends.registry:AttentionBackendEnum": MLA,
    "vllm.v1.attention.backends.registry:register_backend": MLA,
    "vllm.model_executor.custom_op:CustomOp": ROTARY,
    f"{LAYERS}.rotary_embedding.base:RotaryEmbedding": ROTARY,
    "vllm.v1.worker.cpu_worker:CPUWorker": THREADS,
    f"{COMMUNICATORS}:shm_broadcast": WAITING,
    f"{COMMUNICATORS}.shm_broadcast:SpinCondition": WAITING,
    f"{COMMUNICATORS}.base_device_communicator:DeviceCommunicatorBase": COLLECTIVES,
    f"{COMMUNICATORS}.cpu_communicator:CpuCommunicator": COLLECTIVES,
    "vllm.entrypoints.openai.chat_completion.serving:OpenAIServingChat": TOOL_PARSER,
    "vllm.tool_parsers.abstract_tool_parser:DeltaMessage": TOOL_PARSER,
    "vllm.tool_parsers.abstract_tool_parser:ExtractedToolCallInformation": TOOL_PARSER,
    "vllm.tool_parsers.abstract_tool_parser:ToolParser": TOOL_PARSER,
    "vllm.tool_parsers.abstract_tool_parser:ToolParserManager": TOOL_PARSER,
    "vllm.v1.sample.ops.logprobs:batched_count_greater_than": EAGER,
    "vllm.v1.sample.sampler:batched_count_greater_than": EAGER,
    f"{LAYERS}.fused_moe.oracle.int_wna16:marlin_moe_permute_scales": MARLIN,
    "vllm.entrypoints.cli.main:main": "tests/serve/test_guarded_server.py",
    "transformers.integrations.moe:ALL_EXPERTS_FUNCTIONS": MODEL,
    "transformers.integrations.moe:_default_apply_gate": FAMILIES,
    "transformers.conversion_mapping:PrefixChange": FAMILIES,
    "transformers.conversion_mapping:get_checkpoint_conversion_mapping": FAMILIES,
    "transformers.conversion_mapping:get_model_conversion_mapping": FAMILIES,
    "transformers.core_model_loading:WeightConverter": FAMILIES,
    "transformers.core_model_loading:rename_source_key": FAMILIES,
    "transformers.core_model_loading:revert_weight_conversion": FAMILIES,
    "transformers.modeling_outputs:BaseModelOutputWithPast": FAMILIES,
    "transformers:PreTrainedModel._init_weights": FAMILIES,
    "transformers:PreTrainedModel._from_config": FAMILIES,
    "transformers:PreTrainedModel._supports_sdpa": FAMILIES,
    "transformers:PreTrainedModel._keys_to_ignore_on_load_unexpected": FAMILIES,
    "transformers:PreTrainedConfig._decode_special_floats": FAMILIES,
    "transformers.integrations.finegrained_fp8:Fp8Dequantize": "tests/checkpoint/test_encodings.py",
    "transformers.integrations.mxfp4:convert_moe_packed_tensors": "tests/checkpoint/test_encodings.py",
    "transformers:PreTrainedModel._keep_in_fp32_modules_strict": MODEL,
    "lm_eval.api.model:LM": "tests/evaluate/harness/test_answer_cache.py",
    "lm_eval.api.registry:get_model": HARNESS,
    "lm_eval.tasks:TaskManager": HARNESS,
    "lm_eval.models.vllm_causallms:VLLM": HARNESS,
    "torch._C:set_num_threads": THREADS,
    "torch.distributed.distributed_c10d:PrefixStore": RANKS,
    "torch.distributed.rendezvous:rendezvous": RANKS,
}
# What is imported of submodules and is documented as public.
PUBLIC = {"torch.distributed", "torch.nn", "torch.nn.functional", "torch.utils.checkpoint"}
