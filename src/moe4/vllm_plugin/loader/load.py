"""`--load-format moe4`: routed experts stay in the release's files, all else is loaded as always."""

import dataclasses
import time
from collections.abc import Container, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor, nn
from vllm.config import ModelConfig, get_current_vllm_config
from vllm.config.load import LoadConfig
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

from moe4.checkpoint.header import Shard, StoredTensor, read_shard
from moe4.checkpoint.mapping import MappedShard
from moe4.errors import Moe4Error, ServeError
from moe4.machine.disk import measure_disk_rate
from moe4.machine.memory import available_memory_bytes
from moe4.vllm_plugin.loader.cache import ExpertCache, LayerOfCache
from moe4.vllm_plugin.loader.layer import ExpertLayout, MappedLayer, map_layer
from moe4.vllm_plugin.loader.log import logger, say_what_was_mapped, warn_of_speed
from moe4.vllm_plugin.loader.method import MappedW4A16ExpertsMethod
from moe4.vllm_plugin.loader.ops import add_supply
from moe4.vllm_plugin.loader.options import LOAD_FORMAT, take_options
from moe4.vllm_plugin.loader.supply import ReadAhead, Supply
from moe4.vllm_plugin.rest.convert import convert_rest


@register_model_loader(LOAD_FORMAT)
class MappedModelLoader(DefaultModelLoader):  # type: ignore[misc]  # vllm is untyped here
    """vLLM's loader for safetensors, except that it maps W4A16 routed experts instead of copying them."""

    def __init__(self, load_config: LoadConfig) -> None:
        self.options, rest = take_options(load_config.model_loader_extra_config)
        super().__init__(
            dataclasses.replace(load_config, load_format="safetensors", model_loader_extra_config=rest)
        )
        self._mapped_names: set[str] = set()

    def load_weights(self, model: nn.Module, model_config: ModelConfig) -> None:
        """Map the routed experts, load what is left, convert it if asked to, and see what memory is left."""
        experts = self._map_experts(model, model_config)
        super().load_weights(model, model_config)
        if self.options.rest != "bfloat16":
            convert_rest(model, self.options.rest)
        supplies = self._supplies(experts)
        for module, layer, supply in zip(experts.modules, experts.layers, supplies, strict=True):
            module.quant_method.attach(module, layer, add_supply(supply))

    def _get_weights_iterator(
        self, source: DefaultModelLoader.Source
    ) -> Generator[tuple[str, Tensor], None, None]:
        """Yield the tensors that are not mapped; those that are, are not even looked at."""
        _, files, _, _ = self._prepare_weights(
            source.model_or_path,
            source.subfolder,
            source.revision,
            source.fall_back_to_pt,
            source.allow_patterns_overrides,
        )
        self.counter_before_loading_weights = time.perf_counter()
        for file in sorted(files):
            with safe_open(file, framework="pt") as shard:
                for name in shard.keys():  # noqa: SIM118  # it is not a dictionary
                    if name not in self._mapped_names:
                        yield source.prefix + name, shard.get_tensor(name)

    def _map_experts(self, model: nn.Module, model_config: ModelConfig) -> "_Experts":
        """Find the experts of every layer of ours. Raises ServeError if there are none."""
        began = time.perf_counter()
        layers: dict[str, Any] = {  # vLLM's modules, whose type does not say what they have
            str(module.layer_name): module
            for module in model.modules()
            if isinstance(getattr(module, "quant_method", None), MappedW4A16ExpertsMethod)
        }
        if not layers:
            raise ServeError(
                f"--load-format {LOAD_FORMAT} maps W4A16 routed experts on CPUs, and {model_config.model} "
                "has none: use --load-format auto"
            )
        _, files, _, _ = self._prepare_weights(model_config.model, None, model_config.revision, False, None)
        mapper = getattr(model, "hf_to_vllm_mapper", None)
        stored: dict[str, StoredTensor] = {}
        shards: dict[Path, Shard] = {}
        for file in map(Path, sorted(files)):
            shard = read_shard(file)
            for name, tensor in shard.tensors.items():
                seen = mapper.map_name(name) if mapper else name
                if seen is not None and _is_expert_of(seen, layers):
                    stored[seen] = tensor
                    shards[file] = shard
                    self._mapped_names.add(name)
        maps = {path: MappedShard(shard) for path, shard in shards.items()}
        modules = list(layers.values())
        layouts = [module.quant_method.layout(module) for module in modules]
        mapped = [map_layer(layout, stored, maps) for layout in layouts]
        say_what_was_mapped(mapped, time.perf_counter() - began)
        return _Experts(modules=modules, layouts=layouts, layers=mapped, maps=maps)

    def _supplies(self, experts: "_Experts") -> Sequence[Supply]:
        """Return what brings each layer's experts into memory; warn where a disk will set the speed."""
        config = get_current_vllm_config()
        room = max(0, available_memory_bytes() - (config.cache_config.kv_cache_memory_bytes or 0))
        budget = self.options.cache_bytes(experts.all_bytes, room, config.parallel_config.local_world_size)
        fits = experts.all_bytes <= room if budget is None else experts.num_bytes <= budget
        cache = None
        if budget is not None:
            try:
                cache = ExpertCache(
                    list(zip(experts.layouts, experts.layers, strict=True)), budget, experts.top_k
                )
            except Moe4Error as error:
                if self.options.expert_cache_gb is not None:
                    raise
                logger.warning("moe4: no expert cache, the experts are mapped: %s", error)
        if not fits:
            kept = room if cache is None else cache.num_bytes
            rate = measure_disk_rate(list(experts.maps), huge_pages=cache is not None)
            warn_of_speed(experts.layers, experts.per_token, kept, rate, cached=cache is not None)
        if cache is not None:
            return [LayerOfCache(cache, number) for number in range(len(experts.layers))]
        if not fits:
            for shard in experts.maps.values():
                shard.advise_random()
        step = min(shard.readahead_bytes for shard in experts.maps.values())
        return [ReadAhead(layer.table, layer.ranges, step, once=fits) for layer in experts.layers]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Experts:
    """The model's layers of routed experts, and where the release has them."""

    modules: Sequence[Any]
    layouts: Sequence[ExpertLayout]
    layers: Sequence[MappedLayer]
    maps: Mapping[Path, MappedShard]

    @property
    def num_bytes(self) -> int:
        """Size of this rank's experts on disk."""
        return sum(layer.num_bytes for layer in self.layers)

    @property
    def all_bytes(self) -> int:
        """Size of all ranks' experts of these layers."""
        return sum(
            layer.num_bytes * int(module.global_num_experts) // len(layer.stored)
            for module, layer in zip(self.modules, self.layers, strict=True)
        )

    @property
    def top_k(self) -> int:
        """How many experts a token needs at once."""
        return max(int(module.top_k) for module in self.modules)

    @property
    def per_token(self) -> Sequence[float]:
        """How many of each layer's experts here a token needs on average."""
        return [
            module.top_k * len(layer.stored) / module.global_num_experts
            for module, layer in zip(self.modules, self.layers, strict=True)
        ]


def _is_expert_of(name: str, layers: Container[str]) -> bool:
    """Say whether a tensor belongs to a numbered expert of one of the layers."""
    prefix, *rest = name.rsplit(".", 3)
    return prefix in layers and len(rest) == 3 and rest[0].isdecimal()
