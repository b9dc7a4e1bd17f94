"""`--load-format moe4`: routed experts stay in the release's files, all else is loaded as always."""

import dataclasses
import time
from collections.abc import Container, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor, nn
from vllm.config import ModelConfig
from vllm.config.load import LoadConfig
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

from moe4.checkpoint.disk import available_memory_bytes, measure_disk_rate
from moe4.checkpoint.header import Shard, StoredTensor, read_shard
from moe4.checkpoint.mapping import MappedShard
from moe4.errors import ServeError
from moe4.vllm_plugin.int8 import convert_rest
from moe4.vllm_plugin.loader_log import say_what_was_mapped, warn_of_speed
from moe4.vllm_plugin.loader_options import LOAD_FORMAT, take_options
from moe4.vllm_plugin.mapped_cache import ExpertCache, LayerOfCache
from moe4.vllm_plugin.mapped_layer import ExpertLayout, MappedLayer, map_layer
from moe4.vllm_plugin.mapped_method import MappedW4A16ExpertsMethod
from moe4.vllm_plugin.mapped_ops import add_supply
from moe4.vllm_plugin.mapped_supply import ReadAhead, Supply


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
        """Map the routed experts, then load what is left, and convert it if that was asked for."""
        self._map_experts(model, model_config)
        super().load_weights(model, model_config)
        if self.options.rest == "int8":
            convert_rest(model)

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

    def _map_experts(self, model: nn.Module, model_config: ModelConfig) -> None:
        """Give every layer of ours its experts' addresses."""
        began = time.perf_counter()
        layers: dict[str, Any] = {
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
        supplies = self._supplies(modules, layouts, mapped, maps)
        for module, layer, supply in zip(modules, mapped, supplies, strict=True):
            module.quant_method.attach(module, layer, add_supply(supply))

    def _supplies(
        self,
        modules: Sequence[Any],
        layouts: Sequence[ExpertLayout],
        mapped: Sequence[MappedLayer],
        maps: Mapping[Path, MappedShard],
    ) -> Sequence[Supply]:
        """Return what brings each layer's experts into memory; warn where a disk will set the speed."""
        total, free = sum(layer.num_bytes for layer in mapped), available_memory_bytes()
        budget = self.options.expert_cache_gb
        kept = free if budget is None else int(budget * 1e9)
        fits = total <= kept
        if not fits:
            experts_per_token = [
                module.top_k * len(layer.stored) / module.global_num_experts
                for module, layer in zip(modules, mapped, strict=True)
            ]
            warn_of_speed(mapped, experts_per_token, kept, measure_disk_rate(list(maps)))
        if budget is not None:
            cache = ExpertCache(
                list(zip(layouts, mapped, strict=True)), kept, max(module.top_k for module in modules)
            )
            return [LayerOfCache(cache, number) for number in range(len(mapped))]
        if not fits:
            for shard in maps.values():
                shard.advise_random()
        step = min(shard.readahead_bytes for shard in maps.values())
        return [ReadAhead(layer.table, layer.ranges, step, once=fits) for layer in mapped]


def _is_expert_of(name: str, layers: Container[str]) -> bool:
    """Say whether a tensor belongs to a numbered expert of one of the layers."""
    prefix, *rest = name.rsplit(".", 3)
    return prefix in layers and len(rest) == 3 and rest[0].isdecimal()
