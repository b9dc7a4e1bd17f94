"""A training run of k2-tiny: configuration, the stream of rows, and the loop."""

import json
import random
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from tokenizers import Tokenizer
from torch import Tensor, nn

from k2tiny.corpus import encode, training_documents
from k2tiny.model import RECORDER, build_model, checkpoint_tensors, load_config, moe_layers
from k2tiny.muonclip import Muon, clip_attention_logits_, parameter_groups, update_balance_bias_
from k2tiny.packing import pack_rows
from k2tiny.places import CHECKPOINT
from k2tiny.state import load_state, optimizer_tensors, restore_optimizer, save_state

LOG_EVERY = 20  # steps


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingConfig:
    """Everything that decides a run; the presets for a GPU and for a CPU stand in training.toml."""

    total_tokens: int
    batch_tokens: int
    micro_tokens: int  # in one forward and backward pass
    row_tokens: tuple[int, ...]  # lengths of rows; a micro-batch has rows of one length
    row_shares: tuple[float, ...]  # how many of the micro-batches have each length
    learning_rate: float  # Muon's, at its peak
    adamw_learning_rate: float
    weight_decay: float
    warmup_fraction: float
    decay_fraction: float  # of all steps, linear to zero at the end
    tau: float  # QK-Clip's bound
    balance_rate: float
    gradient_norm: float
    seed: int
    workers: int

    def __post_init__(self) -> None:
        if self.batch_tokens % self.micro_tokens or any(self.micro_tokens % row for row in self.row_tokens):
            raise ValueError("batch_tokens must be a multiple of micro_tokens, and that of every row length")
        if len(self.row_tokens) != len(self.row_shares):
            raise ValueError("row_shares must have one share for each of row_tokens")

    @property
    def total_steps(self) -> int:
        return self.total_tokens // self.batch_tokens

    def schedule(self, step: int) -> float:
        """Return the learning rate at `step` as a fraction of its peak: warm up, hold, decay to zero."""
        warmup = max(1, int(self.total_steps * self.warmup_fraction))
        decay = max(1, int(self.total_steps * self.decay_fraction))
        return min(1.0, (step + 1) / warmup, (self.total_steps - step) / decay)


class RowStream(torch.utils.data.IterableDataset[tuple[Tensor, Tensor]]):
    """Endless micro-batches of fresh documents; every worker has a seed of its own."""

    def __init__(self, config: TrainingConfig, epoch: int) -> None:
        self.config = config
        self.epoch = epoch  # the step a run was resumed at, so that no document is seen twice

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield micro-batches: ids [rows, tokens] int64 and loss weights [rows, tokens] float32."""
        worker = torch.utils.data.get_worker_info()
        seed = (self.config.seed * 1_000_003 + self.epoch) * 1_009 + (worker.id if worker else 0)
        tokenizer = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
        encoded = (encode(document, tokenizer) for document in training_documents(seed))
        pad_id = tokenizer.token_to_id("[EOS]")
        streams = {
            length: pack_rows(encoded, row_tokens=length, pad_id=pad_id) for length in self.config.row_tokens
        }
        rng = random.Random(seed)
        while True:
            (length,) = rng.choices(self.config.row_tokens, self.config.row_shares)
            rows = [next(streams[length]) for _ in range(self.config.micro_tokens // length)]
            yield torch.tensor([row.ids for row in rows]), torch.tensor([row.weights for row in rows])


class Trainer:
    """One run: a BF16 model, its float32 master weights, two optimizers."""

    def __init__(self, config: TrainingConfig, run: Path, device: torch.device) -> None:
        self.config, self.run, self.device = config, run, device
        self.step = 0
        self.seconds = 0.0
        torch.manual_seed(config.seed)
        self.model = build_model(load_config(), dtype=torch.float32)
        # Masters in float32 hold the weights; the model holds their BF16 images, which compute.
        master = {name: p.detach().clone().to(device) for name, p in self.model.named_parameters()}
        self.master = {name: nn.Parameter(value) for name, value in master.items()}
        for parameter in self.model.parameters():
            parameter.data = parameter.data.to(torch.bfloat16)
        self.model.to(device).train()
        muon, adamw = parameter_groups(self.model)
        of = {id(parameter): self.master[name] for name, parameter in self.model.named_parameters()}
        for group in muon:
            group["params"] = [of[id(parameter)] for parameter in group["params"]]
        self.muon = Muon(muon, lr=config.learning_rate, weight_decay=config.weight_decay)
        self.adamw = torch.optim.AdamW(
            [of[id(parameter)] for parameter in adamw],
            lr=config.adamw_learning_rate,
            betas=(0.9, 0.95),
            weight_decay=0.0,
            fused=True,
        )
        self.loads = [
            torch.zeros(layer.mlp.gate.num_experts, device=device) for layer in moe_layers(self.model)
        ]
        for layer, loads in zip(moe_layers(self.model), self.loads, strict=True):
            layer.mlp.gate.register_forward_hook(count_loads(loads))

    def train_step(self, batches: list[tuple[Tensor, Tensor]]) -> dict[str, Any]:
        """Take one optimizer step over the micro-batches; return what the log records."""
        total_weight = sum(float(weights[:, 1:].sum()) for _, weights in batches)
        loss_sum = torch.zeros((), device=self.device)
        RECORDER.take()  # what passes of any model have noted between steps
        for ids, weights in batches:
            ids = ids.to(self.device, non_blocking=True)
            weights = weights.to(self.device, non_blocking=True)
            logits = self.model(input_ids=ids, use_cache=False).logits[:, :-1]
            losses = nn.functional.cross_entropy(
                logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
            )
            loss = (losses * weights[:, 1:].flatten()).sum() / total_weight
            loss.backward()
            loss_sum += loss.detach()
        gradient_norm = self.update()
        largest = self.clip_attention()
        spread = self.balance()
        self.publish_masters()
        self.step += 1
        return {"loss": loss_sum, "gradient_norm": gradient_norm, "max_logit": largest, "load": spread}

    def update(self) -> Tensor:
        """Step both optimizers on the masters."""
        for name, parameter in self.model.named_parameters():
            self.master[name].grad = None if parameter.grad is None else parameter.grad.float()
            parameter.grad = None
        norm = nn.utils.clip_grad_norm_(list(self.master.values()), self.config.gradient_norm)
        scale = self.config.schedule(self.step)
        for optimizer, peak in (
            (self.muon, self.config.learning_rate),
            (self.adamw, self.config.adamw_learning_rate),
        ):
            for group in optimizer.param_groups:
                group["lr"] = peak * scale
            optimizer.step()
        return norm

    def clip_attention(self) -> Tensor:
        """Apply QK-Clip to every layer; return the largest logits of this step [layers, heads]."""
        largest = RECORDER.take()
        settings = self.model.config
        for layer, logits in largest.items():
            stem = f"model.layers.{layer}.self_attn"
            clip_attention_logits_(
                self.master[f"{stem}.q_b_proj.weight"],
                self.master[f"{stem}.kv_b_proj.weight"],
                logits,
                tau=self.config.tau,
                nope_dim=settings.qk_nope_head_dim,
                rope_dim=settings.qk_rope_head_dim,
            )
        return torch.stack([largest[layer] for layer in sorted(largest)])

    def balance(self) -> Tensor:
        """Update the correction biases; return the load of every expert over the mean [layers, experts]."""
        # The bias rests while the learning rate decays, so that routing settles.
        rate = self.config.balance_rate * min(1.0, 2 * self.config.schedule(self.step))
        spread = torch.stack([loads / loads.mean() for loads in self.loads])
        for layer, loads in zip(moe_layers(self.model), self.loads, strict=True):
            update_balance_bias_(layer.mlp.gate.e_score_correction_bias, loads, rate=rate)
            loads.zero_()
        return spread

    @torch.no_grad()
    def publish_masters(self) -> None:
        parameters = list(self.model.parameters())
        torch._foreach_copy_([p.data for p in parameters], list(self.master.values()))

    def save(self) -> None:
        tensors = {f"master.{name}": value for name, value in self.master.items()}
        tensors |= {
            f"bias.{index}": layer.mlp.gate.e_score_correction_bias
            for index, layer in enumerate(moe_layers(self.model))
        }
        tensors |= optimizer_tensors("muon", self.muon) | optimizer_tensors("adamw", self.adamw)
        values = {"step": self.step, "seconds": self.seconds, "config": asdict(self.config)}
        save_state(self.run / "state.safetensors", tensors, values)

    def resume(self) -> bool:
        """Load the last state of this run, if there is one; refuse another configuration's."""
        path = self.run / "state.safetensors"
        if not path.exists():
            return False
        tensors, values = load_state(path, self.device)
        # A run may be made longer or shorter on the way; any other change would make it another run.
        begun, asked = values["config"], json.loads(json.dumps(asdict(self.config)))
        if begun | {"total_tokens": 0} != asked | {"total_tokens": 0}:
            raise SystemExit(
                f"{path}: begun with another configuration; use another --run folder or delete it"
            )
        for name, parameter in self.master.items():
            parameter.data.copy_(tensors[f"master.{name}"])
        for index, layer in enumerate(moe_layers(self.model)):
            layer.mlp.gate.e_score_correction_bias.copy_(tensors[f"bias.{index}"])
        restore_optimizer("muon", self.muon, tensors)
        restore_optimizer("adamw", self.adamw, tensors)
        self.step, self.seconds = values["step"], values["seconds"]
        self.publish_masters()
        return True

    def fit(self, *, stop_after_seconds: float, save_every_seconds: float) -> bool:
        """Train to the end or to the time limit; return whether the run is complete."""
        config = self.config
        loader = torch.utils.data.DataLoader(
            RowStream(config, self.step),
            batch_size=None,
            num_workers=config.workers,
            prefetch_factor=8 if config.workers else None,
            pin_memory=self.device.type == "cuda",
        )
        stream = iter(loader)
        micro_batches = config.batch_tokens // config.micro_tokens
        started = logged = saved = time.monotonic()
        with (self.run / "log.jsonl").open("a") as log:
            while self.step < config.total_steps:
                record = self.train_step([next(stream) for _ in range(micro_batches)])
                if self.step % LOG_EVERY == 0 or self.step == config.total_steps:
                    values = describe(record)
                    now = time.monotonic()
                    self.seconds += now - logged
                    steps = self.step % LOG_EVERY or LOG_EVERY
                    rate = steps * config.batch_tokens / (now - logged)
                    logged = now
                    values |= {"step": self.step, "tokens": self.step * config.batch_tokens}
                    values |= {"seconds": round(self.seconds, 1), "tokens_per_second": round(rate)}
                    log.write(json.dumps(values) + "\n")
                    log.flush()
                    left = (config.total_steps - self.step) * config.batch_tokens / rate
                    print(
                        f"step {self.step}/{config.total_steps}  loss {values['loss']:.4f}  "
                        f"largest logit {max(map(max, values['max_logit'])):.1f}  {rate:,.0f} tokens/s  "
                        f"{left / 60:.0f} min left",
                        flush=True,
                    )
                    if now - saved > save_every_seconds:
                        self.save()
                        saved = now
                    if now - started > stop_after_seconds:
                        break
        self.save()
        return self.step >= config.total_steps

    def export(self, folder: Path) -> None:
        """Write the weights as a checkpoint: shards, index and the tokenizer's files."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.publish_masters()
        save_torch_state_dict(checkpoint_tensors(self.model), folder, max_shard_size=14_000_000)
        for file in CHECKPOINT.iterdir():
            if file.is_file() and not file.name.startswith("model"):
                shutil.copy2(file, folder / file.name)


def count_loads(loads: Tensor) -> Any:
    """Return a hook that adds the tokens each expert was given to `loads`."""

    def hook(module: nn.Module, inputs: Any, outputs: tuple[Tensor, Tensor, Tensor]) -> None:
        # histc, since bincount would make the GPU wait for the CPU
        loads.add_(torch.histc(outputs[2].float(), bins=loads.numel(), min=0, max=loads.numel() - 1))

    return hook


def describe(record: dict[str, Any]) -> dict[str, Any]:
    """Turn a step's tensors into JSON-able numbers."""
    return {
        "loss": round(float(record["loss"]), 5),
        "gradient_norm": round(float(record["gradient_norm"]), 4),
        "max_logit": [[round(value, 2) for value in heads] for heads in record["max_logit"].tolist()],
        "load": [[round(value, 3) for value in experts] for experts in record["load"].tolist()],
    }
