"""Random changes: what they change, by how much, and that the generator alone decides."""

import numpy as np
import pytest
import torch

from egoaudio.audio import features
from egoaudio.config.build import FeatureConfig
from egoaudio.config.train import DataConfig
from egoaudio.data import augment
from egoaudio.data.ranks import Group
from egoaudio.errors import ConfigurationError


def augmented(values, labels, rng, config, change=None, max_shift_frames=0, part=None):
    return augment.Augmentation(config, change, max_shift_frames, 16000)(values, labels, rng, part)


def batch(num_clips=16, num_frames=32, num_bins=40):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(num_clips, num_frames, num_bins, generator=generator), torch.eye(num_clips)


@pytest.mark.parametrize("feature", ["spectrogram", "mfcc", "logmel", "yamnet", "waveform"])
def test_gain_equals_the_features_of_a_louder_sound(feature):
    sound = np.random.default_rng(0).standard_normal((4, 16000), np.float32) * 0.01
    extract = features.FeatureExtractor(FeatureConfig(features=(feature,)), 16000, 16000)
    soft, loud = (torch.from_numpy(extract(sound * level)[feature].copy()) for level in (1, 10 ** (3 / 20)))
    above_floor = (
        soft > soft.min() + 1 if feature == "logmel" else torch.ones_like(soft) == 1
    )  # it has bands with hardly a bin, near its floor
    assert above_floor.float().mean() > 0.95
    augment.level_change(feature, num_mel_bands=128, deviation=1.0)(soft, np.full(len(soft), 3.0))
    torch.testing.assert_close(soft[above_floor], loud[above_floor], rtol=1e-3, atol=0.02)


def test_gain_is_evenly_spread_within_its_limits_and_the_same_over_a_clip():
    values, _ = batch(1000, 3, 4)
    changed = values.clone()
    change = augment.level_change("spectrogram", 128, deviation=2.0)
    augment.change_gain(changed, np.random.default_rng(0), 6.0, change, augment.Part.whole(1000))
    shift = changed - values
    torch.testing.assert_close(shift, shift[:, :1, :1].expand_as(shift), rtol=0, atol=1e-5)
    assert -3 <= shift.min() < -2.9 and 2.9 < shift.max() <= 3


def test_gain_moves_the_first_coefficient_of_an_mfcc_alone():
    values, _ = batch()
    changed = values.clone()
    change = augment.level_change("mfcc", 128, 1.0)
    augment.change_gain(changed, np.random.default_rng(0), 6.0, change, augment.Part.whole(len(values)))
    torch.testing.assert_close(changed[..., 1:], values[..., 1:], rtol=0, atol=0)
    assert (changed[..., 0] != values[..., 0]).all()


def test_gain_of_an_unknown_feature_is_refused():
    with pytest.raises(
        ConfigurationError, match="`gain_db`.*'chroma': expected one of spectrogram, mfcc, logmel, yamnet, waveform"
    ):
        augment.level_change("chroma", 128, 1.0)


@pytest.mark.parametrize("decibels", [-20.0, 20.0])
def test_a_change_of_level_of_yamnets_log_mel_is_exact_down_to_its_offset(decibels):
    sound = torch.logspace(-6, 1, 50, dtype=torch.float64).reshape(1, 1, 50)
    features, louder = torch.log(sound + 0.001).float(), torch.log(sound * 10 ** (decibels / 20) + 0.001).float()
    augment.level_change("yamnet", 128, 1.0)(features, np.array([decibels]))
    torch.testing.assert_close(features, louder, rtol=0, atol=2e-3)
    silence = torch.full((1, 2, 3), float(np.log(0.001)))
    augment.level_change("yamnet", 128, 1.0)(silence, np.array([decibels]))
    torch.testing.assert_close(silence, torch.full_like(silence, float(np.log(0.001))), rtol=1e-5, atol=0)


def test_waveforms_are_scaled_and_mixed():
    values, labels = torch.randn(16, 400), torch.eye(16)
    changed, targets = augmented(
        values.clone(),
        labels,
        np.random.default_rng(0),
        DataConfig(gain_db=6),
        augment.level_change("waveform", 128, 1.0),
    )
    torch.testing.assert_close(changed / values, (changed[:, :1] / values[:, :1]).expand_as(values), rtol=1e-4, atol=0)
    assert 0.5 < float((changed / values).min()) < float((changed / values).max()) < 2
    mixed, targets = augmented(values.clone(), labels, np.random.default_rng(0), DataConfig(mixup=0.3))
    torch.testing.assert_close(mixed, targets @ values)


def test_masks_hide_spans_behind_the_mean_of_each_bin_and_leave_the_rest():
    values, _ = batch(num_clips=200, num_frames=32, num_bins=40)
    masked = values.clone()
    augment.mask(masked, np.random.default_rng(0), augment.Part.whole(200))
    hidden = masked != values
    for clip, before, where in zip(masked, values, hidden, strict=True):
        torch.testing.assert_close(clip[where], before.mean(dim=0).expand_as(before)[where])
        frames, bins = where.all(dim=1), where.all(dim=0)
        assert torch.equal(where, frames[:, None] | bins[None, :])  # whole frames and whole bins, nothing else
        assert frames.sum() <= 2 * 4 and bins.sum() <= 2 * 5  # two masks of up to an eighth
    assert 0.05 < hidden.float().mean() < 0.3


@pytest.mark.parametrize("shape", [(3, 1, 1), (3, 4, 7), (1, 32, 1025)])
def test_masks_fit_small_features(shape):
    values = torch.ones(shape)
    augment.mask(values, np.random.default_rng(0), augment.Part.whole(shape[0]))
    assert values.shape == shape and torch.isfinite(values).all()


def test_mixup_blends_clips_and_labels_by_the_same_share():
    values, labels = batch()
    mixed, targets = augmented(values, labels, np.random.default_rng(0), DataConfig(mixup=0.4))
    # Labels are rows of the identity, so that the targets are the shares.
    torch.testing.assert_close(mixed, torch.einsum("ij,jtf->itf", targets, values))
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(len(targets)))
    assert ((targets > 0.01) & (targets < 0.99)).any()


CONFIGS = [
    DataConfig(gain_db=6),
    DataConfig(spec_augment=True),
    DataConfig(mixup=0.3),
    DataConfig(gain_db=6, spec_augment=True, mixup=0.3),
]
SOUND_CONFIGS = [DataConfig(mix_snr_db=(5.0,)), DataConfig(filter_db=3.0)]


@pytest.mark.parametrize("config", CONFIGS + SOUND_CONFIGS)
def test_the_generator_alone_decides(config):
    results = []
    for seed in (0, 0, 1):
        values, labels = batch()
        values = values.flatten(1) if config in SOUND_CONFIGS else values
        results.append(
            augmented(
                values, labels, np.random.default_rng(seed), config, augment.level_change("spectrogram", 128, 1.0)
            )
        )
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])
    assert not torch.equal(results[0][0], results[2][0])
    assert results[0][0].dtype == torch.float32


SOUND = {"mix_snr_db": (0.0, 20.0), "filter_db": 6.0, "gain_db": 6.0}


@pytest.mark.parametrize("num_ranks", [2, 3, 20])
@pytest.mark.parametrize(
    "feature, config",
    [
        ("spectrogram", DataConfig(gain_db=6, spec_augment=True)),
        ("spectrogram", DataConfig(gain_db=6, mixup=0.3)),
        ("waveform", DataConfig(**SOUND)),
        ("waveform", DataConfig(**SOUND, mixup=0.3)),
    ],
)
def test_the_parts_of_ranks_are_the_whole_batch(feature, config, num_ranks):
    values, labels = batch()
    values = values.flatten(1) if feature == "waveform" else values
    change = augment.level_change(feature, 128, 1.0)
    rng = np.random.default_rng
    whole = augmented(values.clone(), labels, rng(0), config, change, 5)
    parts = []
    for rank in range(num_ranks):
        own = Group(rank, num_ranks).share(len(values))
        part = augment.Part.of(own, len(values), augment.Partners.draw(len(values), rng(0), config))
        times = (2 if config.mixup else 1) * (2 if config.mix_snr_db else 1)
        assert part.num_own == len(own) and len(set(part.places)) == len(part.places) <= times * len(own)
        here = torch.from_numpy(part.places)
        parts.append(augmented(values[here].clone(), labels[here], rng(0), config, change, 5, part))
        assert len(parts[-1][0]) == len(parts[-1][1]) == len(own)
    for all_parts, expected in zip(zip(*parts, strict=True), whole, strict=True):
        torch.testing.assert_close(torch.cat(all_parts), expected, rtol=0, atol=1e-6 if config.filter_db else 0)


@pytest.mark.parametrize("num_clips", [1, 2, 3, 64])
def test_the_sound_that_is_added_is_another_clips(num_clips):
    """And each clip's is added to one other: batches of one clip have no other."""
    for seed in range(20):
        sources = augment.Partners.draw(num_clips, np.random.default_rng(seed), DataConfig(mix_snr_db=(5.0,))).noise
        assert sorted(sources) == list(range(num_clips))
        assert num_clips == 1 or (sources != np.arange(num_clips)).all()


def test_nothing_changes_by_default():
    values, labels = batch()
    same, targets = augmented(values.clone(), labels.clone(), np.random.default_rng(0), DataConfig(), None)
    assert torch.equal(same, values) and torch.equal(targets, labels)
