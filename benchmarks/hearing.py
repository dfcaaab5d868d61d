#!/usr/bin/env python3
"""Who hears? Every model on the set of ``hearing_set.py``, beside the prior, logistic regression and an MLP.

The set is made and built into FOLDER first, unless it is there (2.3 GB of packages, half an hour); training needs no
network. A run that is finished in FOLDER/runs is not trained again: remove it to do so.

Validation hears other sounds than training: two of the ten subjects are held out (``--split-unit subject``, other two
with each seed), and every choice of a default is made by the column ``validation``, or, as rows have one to three
seeds, by the next one: by how much more than the default network's with the same seeds. Test is reported beside it and
chose nothing.

Columns, in per cent: mean average precision over the clips of the classes that can be heard, on validation and on
test; of test also its 95 % interval over videos; both again of each clip's own scores. Elsewhere scores are averaged
over the clips beside it, as many as is best on validation: training chooses that, and the same is done for the
baselines. Then, of test, mAP over all classes, top-1, video mAP, segment-based F1 of one second over the audible
classes (thresholds from validation); seconds of training and clips/s. Means over the seeds.

On a CPU as many models train at once as it has cores, a thread each: 1.4 times as many clips/s on two cores as one
model at a time on both. What they say goes to FOLDER/runs/said.txt.

With ``--only`` those rows alone are trained, in the table of a run that was written, if ``--output`` is one.

    python benchmarks/hearing.py FOLDER [--quick] [--only NAME ...] [--processes N]
        [--output benchmarks/results/hearing.json]
    python benchmarks/hearing.py --tables benchmarks/results/hearing.json
"""

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from measuring import machine
from tqdm import tqdm

import egoaudio
from egoaudio.config.options import from_flat, from_json
from egoaudio.config.train import TrainConfig
from egoaudio.data.balance import class_counts
from egoaudio.data.dataset import ClipDataset
from egoaudio.data.loader import Loader
from egoaudio.data.splits import split_rows
from egoaudio.evaluation import bootstrap, metrics
from egoaudio.evaluation.ground_truth import read_ground_truth
from egoaudio.evaluation.scores import evaluate_scores
from egoaudio.evaluation.smoothing import CANDIDATES, choose_neighbours, smooth
from egoaudio.models import checkpoints
from egoaudio.models.frontend import front_end_of_file
from egoaudio.models.scorer import Scorer, score

SPLIT = {"split_unit": "subject", "validation_fraction": 0.2}
NUM_RESAMPLES = 200
DEFAULT = "cnn-small, every default"
# Each file of the set: what the build is told, and the features that its rows train on; ``sound`` is for those that
# compute theirs on the fly, denoised as ``clip``, 32 kB a clip.
DENOISING = {
    "clip": (["--denoise-scope", "clip"], "spectrogram,logmel,yamnet"),
    "none": (["--denoise", "none"], "logmel,yamnet"),
    "recording": (["--denoise-scope", "recording"], "logmel"),
    "sound": (["--denoise-scope", "clip", "--waveform-dtype", "int16"], "waveform"),
}
COLUMNS = (
    *("validation", "test", "low", "high", "validation_alone", "test_alone", "all", "top1", "video_map", "segment_f1"),
    *("seconds", "clips_per_second"),
)


@dataclass(frozen=True)
class Candidate:
    """One row: a model and its options, on a file with one kind of denoising."""

    name: str
    options: dict = field(default_factory=dict)
    denoising: str = "clip"
    quick: bool = False
    """Whether ``--quick`` trains it."""
    num_seeds: int = 3
    """Unless ``--seeds`` says otherwise."""


def candidates(weights):
    """Return what is trained; ``weights`` is a file of YAMNet's, or None."""
    rows = [
        Candidate(DEFAULT, quick=True),
        Candidate("cnn-small, without denoising", denoising="none", quick=True),
        Candidate("cnn-small, denoised per recording", denoising="recording"),
        Candidate("cnn-small, no context", {"context_clips": 0}, quick=True),
        Candidate("cnn (the paper's), 10 epochs", {"model": "cnn", "epochs": 10}, num_seeds=1),
        Candidate("ast, from nothing", {"model": "ast"}, num_seeds=1),
    ]
    if weights is not None:
        yamnet = {"model": "yamnet", "pretrained": str(weights)}
        taught = {"teacher": "yamnet, fine-tuned, without denoising"}
        rows += [
            Candidate("yamnet, fine-tuned", yamnet, num_seeds=1),
            Candidate("yamnet, fine-tuned, without denoising", yamnet, denoising="none", quick=True),
            Candidate("yamnet, frozen, without denoising", yamnet | {"freeze": True}, denoising="none"),
            Candidate("cnn-small, without denoising, taught by yamnet", taught, denoising="none", quick=True),
        ]
    options = {
        "context 2": {"context_clips": 2},
        "no change of level": {"gain_db": 0.0},
        "time shift 0.25 s": {"time_shift_seconds": 0.25},
        "mixup 0.3": {"mixup": 0.3},
        "spec-augment": {"spec_augment": True},
        "balanced sampling": {"balanced_sampling": True},
        "EMA 0.99": {"ema": 0.99},
        "asymmetric loss": {"loss": "asymmetric"},
        "label smoothing 0.05": {"label_smoothing": 0.05},
        "10 epochs": {"epochs": 10},
    }
    rows += [Candidate(f"cnn-small, {name}", changed, num_seeds=1) for name, changed in options.items()]
    sound = {  # each with the default's random level, here of the sound itself
        "on the fly": {},
        "on the fly, time shift 0.25 s": {"time_shift_seconds": 0.25},
        "on the fly, another clip's sound 5 to 25 dB below": {"mix_snr_db": (5.0, 25.0)},
        "on the fly, filter 6 dB": {"filter_db": 6.0},
    }
    return rows + [
        Candidate(f"cnn-small, {name}", {"on_the_fly": True, **changed}, denoising="sound", num_seeds=1)
        for name, changed in sound.items()
    ]


# ------------------------------------------------------------------------------------------------------------ the set


def prepare(folder):
    """Make the set and its three files in ``folder``, unless they are there."""
    if not (folder / "truth.json").exists():
        subprocess.run([sys.executable, Path(__file__).with_name("hearing_set.py"), folder], check=True)
    for name, (options, features) in DENOISING.items():
        if not (folder / f"{name}.h5").exists():
            arguments = [
                "--annotations",
                folder / "train.csv",
                "--test-annotations",
                folder / "test.csv",
                "--classes",
                folder / "classes.txt",
                "--videos",
                folder / "videos",
                "--output",
                folder / f"{name}.h5",
                "--features",
                features,
                *options,
            ]
            code = "import sys; from egoaudio.cli import build; sys.argv[0] = 'egoaudio-build'; build()"
            subprocess.run([sys.executable, "-c", code, *map(str, arguments)], check=True)


def audible_columns(folder, file):
    """Return the columns of the classes that sound in the set."""
    ids = [name.decode() for name in file.class_table["class_id"]]
    return np.array([ids.index(name) for name in json.loads((folder / "truth.json").read_text())["audible_classes"]])


# ------------------------------------------------------------------------------------------------- scores -> numbers


@dataclass(frozen=True)
class Judged:
    """What the scores of one split come to; fractions."""

    values: dict
    resampled: np.ndarray
    """(num_resamples,) mAP over the audible classes."""


def judge(raw, truth, audible, num_neighbours, thresholds):
    """Return the numbers of raw scores (num_clips, num_classes) on a split, averaged over neighbours."""
    scores = smooth(raw, truth.rows, truth.clip_video, num_neighbours)
    clips = truth.labelled
    scores, labels, video = scores[clips], truth.labels[clips] == 1, truth.clip_video[clips]
    precision = metrics.average_precision(scores, labels)
    weights = bootstrap.draw_weights(len(truth.video_ids), NUM_RESAMPLES, 0)
    resampled = bootstrap.mean_over_classes(
        bootstrap.resample_ranking(scores[:, audible], labels[:, audible], video, weights)[0]
    )
    claimed = scores[:, audible] >= thresholds[audible]
    hits = np.count_nonzero(claimed & labels[:, audible])
    values = {
        "audible": float(np.nanmean(precision[audible])),
        "alone": float(np.nanmean(metrics.average_precision(raw[clips][:, audible], labels[:, audible]))),
        "all": float(np.nanmean(precision)),
        "top1": float(metrics.top_k_accuracy(scores, labels, 1)),
        "video_map": float(
            evaluate_scores(np.clip(scores_of(truth, scores, clips), 0, 1), truth).scores["video_map"].value
        ),
        "segment_f1": 2 * hits / max(np.count_nonzero(claimed) + np.count_nonzero(labels[:, audible]), 1),
    }
    return Judged(values, resampled)


def scores_of(truth, scores, clips):
    """Return the scores of all clips of a truth from those of the labelled ones."""
    whole = np.zeros(truth.labels.shape, np.float32)
    whole[clips] = scores
    return whole


def row_of(validation, tests, seconds, clips_per_second):
    """Return the table's row: means over the seeds, the interval that of the mean over the seeds."""
    mean = {name: float(np.mean([test.values[name] for test in tests])) for name in tests[0].values}
    low, high = bootstrap.interval(np.mean([test.resampled for test in tests], axis=0), mean["audible"])
    return {
        "validation": float(np.mean([one.values["audible"] for one in validation])),
        "test": mean["audible"],
        "low": low,
        "high": high,
        "validation_alone": float(np.mean([one.values["alone"] for one in validation])),
        "test_alone": mean["alone"],
        **{name: mean[name] for name in ("all", "top1", "video_map", "segment_f1")},
        "seconds": seconds,
        "clips_per_second": clips_per_second,
        "validation_by_seed": [one.values["audible"] for one in validation],
        "test_by_seed": [one.values["audible"] for one in tests],
    }


# -------------------------------------------------------------------------------------------------------- baselines


def statistics_of(file):
    """Return mean, deviation and maximum over time of each log-mel band, float32 (num_clips, 3 * num_bands)."""
    logmel = file["logmel"]
    return np.concatenate(
        [np.concatenate([part.mean(1), part.std(1), part.max(1)], axis=1) for part in np.array_split(logmel, 20)]
    )


def baselines(folder, seed):
    """Yield (name, what ``train`` returns) of the prior, logistic regression and an MLP on log-mel statistics."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.neural_network import MLPClassifier
    from sklearn.preprocessing import StandardScaler

    with egoaudio.open(folder / "none.h5") as file:
        audible, labels = audible_columns(folder, file), np.array(file.labels)
        split = split_rows(file, from_flat(TrainConfig, SPLIT).data, seed)
        features = statistics_of(file)
        features = StandardScaler().fit(features[split.train]).transform(features)
        truths = [read_ground_truth(file, split.validation), read_ground_truth(file, split.test)]
    frequencies = class_counts(labels, split.train) / len(split.train)

    def judged(predict, started, candidates=CANDIDATES):
        scored = [np.tile(frequencies, (len(truth.rows), 1)).astype(np.float32) for truth in truths]
        for scores, truth in zip(scored, truths, strict=True):
            predict(scores, features[truth.rows])
        heard = np.isin(np.arange(scored[0].shape[1]), audible)
        num_neighbours = choose_neighbours(scored[0], truths[0], heard, candidates)
        smoothed = smooth(scored[0], truths[0].rows, truths[0].clip_video, num_neighbours)
        thresholds = metrics.best_thresholds(smoothed, truths[0].labels)
        found = [judge(*pair, audible, num_neighbours, thresholds) for pair in zip(scored, truths, strict=True)]
        return *found, time.perf_counter() - started, 0.0

    def regression(scores, of):
        for column, model in models.items():
            scores[:, column] = model.predict_proba(of)[:, 1]

    yield "prior", judged(lambda scores, of: None, time.perf_counter(), candidates=[0])  # means differ by rounding
    started = time.perf_counter()
    models = {
        column: LogisticRegression(C=0.01, max_iter=300).fit(features[split.train], labels[split.train, column])
        for column in audible
        if 0 < np.count_nonzero(labels[split.train, column]) < len(split.train)
    }
    yield "logistic regression on log-mel statistics", judged(regression, started)
    started = time.perf_counter()
    mlp = MLPClassifier((128,), alpha=1.0, max_iter=20, random_state=seed).fit(
        features[split.train], labels[split.train]
    )
    yield (
        "MLP on log-mel statistics",
        judged(lambda scores, of: np.copyto(scores, mlp.predict_proba(of)), started),
    )


# ----------------------------------------------------------------------------------------------------------- models


def train(candidate, folder, runs, seed):
    """Train one model with one seed; return its judgement on validation and on test, its seconds and its clips/s."""
    options = dict(candidate.options)
    if "teacher" in options:
        options["teacher"] = (str(runs / name_of(options["teacher"], seed) / "best.pt"),)
    path, run = folder / f"{candidate.denoising}.h5", runs / name_of(candidate.name, seed)
    trained = egoaudio.train(path, run, from_flat(TrainConfig, {**SPLIT, **options, "seed": seed}))
    model, contents = checkpoints.load_model(trained.best)
    stored = from_json(TrainConfig, contents["config"])
    found = []
    with egoaudio.open(path) as file:
        audible, split = audible_columns(folder, file), split_rows(file, stored.data, seed)
        for rows in (split.validation, split.test):
            truth = read_ground_truth(file, rows)
            moments = contents["normalization"]["mean"], contents["normalization"]["std"]
            feature, context_clips = contents["feature"], stored.data.context_clips
            front_end = front_end_of_file(file, feature, context_clips)[0] if stored.data.on_the_fly else None
            dataset = ClipDataset(path, feature, rows, "multi", moments, context_clips, front_end)
            scored = score(Scorer(model, device="cpu"), Loader(dataset, 64, stored.data), "multi")
            thresholds = np.asarray(contents["thresholds"])
            found.append(judge(scored.scores, truth, audible, contents["smooth_clips"], thresholds))
    return *found, float(trained.history["seconds"].sum()), float(trained.history["clips_per_second"].median())


def train_all(jobs, folder, num_processes):
    """Yield (name, what ``train`` returns) of each job (candidate, seed), in their order."""
    runs = folder / "runs"
    if num_processes == 1:
        yield from ((candidate.name, train(candidate, folder, runs, seed)) for candidate, seed in jobs)
        return
    runs.mkdir(exist_ok=True)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_processes, context, initializer=work_alone, initargs=(runs / "said.txt",)) as pool:
        results, waiting = {}, list(jobs)
        for name, seed in [(candidate.name, seed) for candidate, seed in jobs]:
            for job in list(waiting):
                teacher = results.get((job[0].options.get("teacher"), job[1]))
                if "teacher" not in job[0].options or teacher is None or teacher.done():
                    results[job[0].name, job[1]] = pool.submit(train, job[0], folder, runs, job[1])
                    waiting.remove(job)
            yield name, results[name, seed].result()


def work_alone(path):
    """Prepare a process: one thread, and its words go to a file."""
    torch.set_num_threads(1)
    sys.stderr = open(path, "a", buffering=1, encoding="utf-8")  # noqa: SIM115 (until the process ends)


def name_of(name, seed):
    """Return the folder of a run."""
    return "".join(letter if letter.isalnum() else "-" for letter in name) + f"-{seed}"


# ---------------------------------------------------------------------------------------------------------- the table


def show(table):
    """Print the table in Markdown."""
    print(
        "| model | seeds | validation | more than the default | test, audible classes | each clip's own scores | all "
        "| top-1 | video mAP | segment F1 | s | clips/s |"
    )
    print("|---" * 12 + "|")
    default = table.get(DEFAULT, {}).get("validation_by_seed", [])
    for name, row in table.items():
        percent = {key: f"{100 * row[key]:.1f}" for key in COLUMNS[:-2]}
        test = f"{percent['test']} ({percent['low']} to {percent['high']})"
        alone = f"{percent['validation_alone']} / {percent['test_alone']}"
        others = " | ".join(percent[key] for key in ("all", "top1", "video_map", "segment_f1"))
        pairs = list(zip(row["validation_by_seed"], default, strict=False))
        more = f"{100 * np.mean([one - other for one, other in pairs]):+.1f}" if pairs else ""
        print(
            f"| {name} | {len(row['test_by_seed'])} | {percent['validation']} | {more} | {test} | {alone} | {others} "
            f"| {row['seconds']:.0f} | {row['clips_per_second']:,.0f} |"
        )


def main(arguments=None):
    """Make the set, train everything, print the table, keep the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--tables", type=Path, metavar="FILE", help="only print the table of a run that was written")
    parser.add_argument("--quick", action="store_true", help="one seed and the main rows: ten minutes")
    parser.add_argument(
        "--only",
        nargs="*",
        default=[],
        help="models whose name contains one of these; other rows that --output has already are kept",
    )
    parser.add_argument("--seeds", type=int, help="as many for every row; three, or one for some, if not given")
    parser.add_argument("--processes", type=int, help="models that train at once; one a core, on a GPU one")
    parser.add_argument("--yamnet", type=Path, help="a file of YAMNet's weights; its rows are left out without")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "hearing.json")
    given = parser.parse_args(arguments)
    if given.tables is not None:
        show(json.loads(given.tables.read_text())["rows"])
        return
    if given.folder is None:
        parser.error("give the folder of the set, or --tables")
    seeds = 1 if given.quick else given.seeds
    prepare(given.folder)
    table, found = {}, {}
    if given.only and given.output.exists():
        table = json.loads(given.output.read_text())["rows"]

    def keep(name, result):
        found.setdefault(name, []).append(result)
        validation, tests, seconds, speeds = zip(*found[name], strict=True)
        table[name] = row_of(validation, tests, float(np.mean(seconds)), float(np.median(speeds)))
        given.output.write_text(json.dumps({"machine": machine(), "rows": table}, indent=1) + "\n")
        tqdm.write(
            f"seed {len(found[name]) - 1}, validation {100 * validation[-1].values['audible']:.1f}: {name}",
            file=sys.stderr,
        )

    for seed in range(0 if given.only else seeds or Candidate.num_seeds):
        for name, result in baselines(given.folder, seed):
            keep(name, result)
    jobs = [
        (candidate, seed)
        for candidate in candidates(given.yamnet)
        if candidate.quick or not given.quick
        if not given.only or any(part in candidate.name for part in given.only)
        for seed in range(seeds or candidate.num_seeds)
    ]
    num_processes = given.processes or (1 if torch.cuda.is_available() else len(os.sched_getaffinity(0)))
    for name, result in tqdm(train_all(jobs, given.folder, num_processes), "models", len(jobs), unit="model"):
        keep(name, result)
    show(table)


if __name__ == "__main__":
    main()
