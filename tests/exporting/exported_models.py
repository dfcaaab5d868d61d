"""Checkpoints with random weights of models that take real features, for tests of what leaves the house."""

import json

import numpy as np
import torch

from egoaudio.audio.features import FeatureExtractor
from egoaudio.config.build import BuildConfig, ClipConfig, DenoiseConfig, FeatureConfig
from egoaudio.config.options import from_flat, to_json
from egoaudio.config.train import TrainConfig
from egoaudio.data.context import joined_shape
from egoaudio.models import checkpoints, create_model

NAMES = ["Closing a door", 'Pouring | <b>"water"</b>', "Wäsche, 洗", "No action"]
AST = {"hidden_size": 32, "num_layers": 2, "num_heads": 2}
# model, feature, other options of the training; ast-paper in small clips, as 17,172 tokens attend to each other in it.
MODELS = {
    "cnn": ("cnn", "spectrogram", {}),
    "cnn on mfcc": ("cnn", "mfcc", {"label_mode": "single"}),
    "cnn-small": ("cnn-small", "logmel", {"context_clips": 1}),
    "ast": ("ast", "logmel", AST),
    "ast-paper": ("ast-paper", "mfcc", {"clip_seconds": 0.3, "context_seconds": 0.6}),
    "yamnet": ("yamnet", "yamnet", {"normalize": "none"}),
    "yamnet on waveform": ("yamnet", "waveform", {"context_clips": 1, "normalize": "none"}),
}


def make_sound(num_clips, num_samples, seed=0):
    """Return clips float32 (num_clips, num_samples) of noise under tones, loud and faint, one of them silent."""
    generator = np.random.default_rng(seed)
    times = np.arange(num_samples) / 16000
    tones = np.sin(2 * np.pi * generator.uniform(100, 4000, (num_clips, 1)) * times)
    noise = generator.standard_normal((num_clips, num_samples))
    loudness = np.geomspace(1e-3, 0.3, num_clips)[:, None]
    sound = (loudness * (tones + 0.3 * noise)).astype(np.float32)
    sound[0] = 0
    return sound


def make_checkpoint(path, model, feature, *, clip_seconds=1.0, context_seconds=None, denoise="none", **options):
    """Write a checkpoint and return its contents and its ``BuildConfig``."""
    torch.manual_seed(0)
    config = from_flat(TrainConfig, {"model": model, "feature": feature, "context_clips": 0, **options})
    build = BuildConfig(
        clips=ClipConfig(clip_seconds=clip_seconds, context_seconds=context_seconds),
        denoise=DenoiseConfig(mode=denoise),
        features=FeatureConfig(features=(feature,)),
    )
    extractor = FeatureExtractor(build.features, 16000, round(16000 * (context_seconds or clip_seconds)))
    shape = extractor.shapes[feature]
    values = extractor(make_sound(4, extractor.num_samples))[feature]
    context_clips = config.data.context_clips
    joined = joined_shape(shape, context_clips)
    network = create_model(model, len(NAMES), joined, config.model, context_clips=context_clips).eval()
    mean, std = (0.0, 1.0) if options.get("normalize") == "none" else (float(values.mean()), float(values.std()))
    spread_logits(network, (np.concatenate([values] * (2 * context_clips + 1), axis=1) - mean) / std)
    contents = {
        "egoaudio_version": "0.0.1",
        "config": to_json(config),
        "epoch": 3,
        "weights": network.state_dict(),
        "network": checkpoints.describe_network(network),
        "class_ids": ["c000", "c001", "c002", "no_action"],
        "class_names": NAMES,
        "feature": feature,
        "feature_shape": list(shape),
        "feature_attributes": json.dumps(extractor.attributes(feature), sort_keys=True),
        "sample_rate": 16000,
        "normalization": {"mean": mean, "std": std},
        "build": to_json(build),
        "plan_sha256": "ab" * 32,
        "thresholds": [0.3, 0.6, float("inf"), 0.5],
        "calibration": {"method": "platt", "slope": [0.5, 1.0, 2.0, 1.3], "intercept": [0.1, 0.0, -1.0, 0.4]},
        "metrics": {"epoch": 3, "map": 0.25, "map_prior": 0.125, "top1": 0.5, "top5": 1.0, "train_loss": 0.1},
        "smooth_clips": 2,
    }
    checkpoints.save(path, contents)
    return contents, build


def spread_logits(network, features):
    """Scale the last layer, so that different clips have different scores."""
    last = [module for module in network.modules() if isinstance(module, torch.nn.Linear)][-1]
    with torch.no_grad():
        last.weight *= 2 / network(torch.from_numpy(features.astype(np.float32))).std(dim=0).mean()
