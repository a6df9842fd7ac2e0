"""Records of replayed episodes made of random numbers, for tests of the figures."""

from __future__ import annotations

import dataclasses

import numpy as np

from openvla_ros.action_specs import load_action_spec
from openvla_ros.evaluation.episode_record import EpisodeRecord
from openvla_ros.model.action_stats import ActionStats, parse_action_stats, unnormalize
from openvla_ros.model.action_tokenizer import ActionTokenizer

TOKENIZER = ActionTokenizer()
# Those of BridgeData, rounded; its own are in random_weights.py, which brings torch.
_QUANTILES = {
    "q01": [-0.0287, -0.0417, -0.0261, -0.0809, -0.0929, -0.2072, 0.0],
    "q99": [0.0283, 0.0409, 0.0402, 0.0819, 0.0779, 0.2038, 1.0],
    "mask": [True] * 6 + [False],
}
STATS = parse_action_stats("bridge_orig", {"action": _QUANTILES}, "synthetic_records.py")
SPEC = load_action_spec("bridge_orig")


def random_tokens(
    random: np.random.Generator, steps: int, stats: ActionStats = STATS
) -> np.ndarray:
    """Return (T, n) ids of motions, with a gripper that opens and closes every few steps."""
    bins = random.integers(0, 255, (steps, stats.action_dim))
    state = np.cumsum(random.random(steps) < 0.2) % 2  # 1 = open
    bins[:, -1] = np.where(state == 1, 254, 127)  # 127 is 0 of [-1, 1]: closed
    return TOKENIZER.vocab_size - 1 - bins


def record(
    name: str,
    recorded: np.ndarray,
    token_ids: np.ndarray,
    *,
    stats: ActionStats = STATS,
    rate_hz: float = 5.0,
    source: str = "a bag",
) -> EpisodeRecord:
    """Return the record of a policy that generated these (T, n) ids."""
    steps = len(recorded)
    normalized = TOKENIZER.decode(token_ids)
    return EpisodeRecord(
        episode=name,
        source=source,
        instruction=f"do what {name} says",
        rate_hz=rate_hz,
        stamps_ns=(np.arange(steps) / rate_hz * 1e9).astype(np.int64),
        recorded=recorded,
        predicted=unnormalize(normalized, stats),
        normalized=normalized,
        token_ids=token_ids,
        is_valid=TOKENIZER.is_action_token(token_ids).all(axis=1),
        latency_ms=np.arange(1.0, steps + 1.0),
        passes=np.full(steps, 7),
    )


def perfect_records(
    episodes: int = 4, steps: int = 12, *, seed: int = 0, stats: ActionStats = STATS
) -> list[EpisodeRecord]:
    """Return records whose recorded actions are the predicted ones."""
    random = np.random.default_rng(seed)
    records = []
    for index in range(episodes):
        token_ids = random_tokens(random, steps, stats)
        recorded = unnormalize(TOKENIZER.decode(token_ids), stats)
        records.append(record(f"episode_{index:03d}", recorded, token_ids, stats=stats))
    return records


def noisy(records: list[EpisodeRecord], bins: int, *, seed: int = 1) -> list[EpisodeRecord]:
    """Return the records of a policy whose motion ids are off by up to `bins`, both ways."""
    random = np.random.default_rng(seed)
    found = []
    for old in records:
        ids = old.token_ids.copy()
        ids[:, :6] += random.integers(-bins, bins + 1, (len(old), 6))
        ids = np.clip(ids, 31745, 31999)
        new = record(old.episode, old.recorded, ids, rate_hz=old.rate_hz, source=old.source)
        found.append(dataclasses.replace(new, stamps_ns=old.stamps_ns))
    return found


def with_predictions(old: EpisodeRecord, predicted: np.ndarray) -> EpisodeRecord:
    """Return the record with other (T, 7) predictions; the ids stay as they are."""
    return dataclasses.replace(old, predicted=predicted)
