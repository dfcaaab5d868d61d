"""The commands: parse, make one library call, print.

``command`` makes flags of configurations and messages of errors. Libraries are imported inside the commands, so that
``--help`` takes a tenth of a second.

Exit status: 0 done; 1 ``egoaudio-inspect --verify`` found damage; 2 wrong input, or the run had to stop; 3 a video that
should have given data gave none; 130 and 143 interrupted by Ctrl-C or SIGTERM.
"""

import os
from typing import Any

import click
from click.core import ParameterSource

from egoaudio.command import command, configured
from egoaudio.config.build import BUILD_PRESETS, BuildConfig
from egoaudio.config.export import ExportConfig
from egoaudio.config.predict import PredictConfig
from egoaudio.config.report import ReportConfig
from egoaudio.config.train import POOLS, SPLITS, TRAIN_PRESETS, TrainConfig
from egoaudio.system import terminal
from egoaudio.system.launch import launched

# Help by stage, the options that people need first at the top; tests/test_cli.py checks that each option is in one.
_BUILD_GROUPS = {
    "Inputs and output": "--annotations --test-annotations --classes --videos --output --follow-links",
    "Run": "--workers --preset --dry-run --list --skip-failed --retry-failed --force --video-timeout",
    "Many machines": "--shard --remove-shards --cluster --shards",
    "Sound": "--sample-rate --audio-track --skip-silent --compensate-delay",
    "Denoising": "--denoise --denoise-scope --denoise-engine",
    "Clips and labels": "--clip-seconds --hop-seconds --context-seconds --min-overlap --no-action",
    "Features": "--features --dtype --waveform-dtype --n-fft --hop-length --window --n-mfcc --n-mels --f-min --f-max",
    "About": "--version --help",
}
_TRAIN_GROUPS = {
    "Most used": "--output --model --pretrained --preset --epochs --device",
    "Data": "--feature --on-the-fly --context-clips --validation-fraction --split-unit --normalize --label-mode "
    "--class-weights --balanced-sampling --shuffle --loader-workers",
    "Augmentation": "--gain-db --time-shift --mix-snr-db --filter-db --mixup --spec-augment",
    "Model": "--freeze --dropout --patchout --hidden-size --num-layers --num-heads --patch-size --stride",
    "Optimisation": "--batch-size --learning-rate --optimizer --weight-decay --schedule --warmup-fraction --ema "
    "--clip-gradient --loss --label-smoothing --patience --smooth-clips --teacher --teacher-weight "
    "--teacher-temperature",
    "Memory and speed": "--amp --amp-dtype --activation-checkpointing --micro-batch-size --compile",
    "Run": "--seed --force --checkpoint-minutes --tensorboard --version --help",
}
_PREDICT_GROUPS = {
    "Recordings and output": "--output --annotations --videos --classes --follow-links --format --top",
    "Run": "--workers --device --batch-size --skip-failed --retry-failed --force --video-timeout --like",
    "Scores": "--hop-seconds --on-the-fly",
    "Segments": "--threshold --offset-ratio --smooth-seconds --min-seconds --merge-gap-seconds",
    "About": "--version --help",
}


def _cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def _given(name: str) -> bool:
    """Return whether an option was typed."""
    return click.get_current_context().get_parameter_source(name) is ParameterSource.COMMANDLINE


_THERE = click.Path(exists=True)  # checked before torch is loaded
_FORCE = "Start over and replace what is there."
_ANNOTATIONS = (
    "CSV of training videos; repeatable. Charades, Charades-Ego, EPIC-SOUNDS, or video,start,end,label[,split]."
)
_OUTPUT = "The HDF5 file to make; OUTPUT.partial until it is complete. Of a symbolic link, the target is written."
_TIMEOUT = "Mark a video as failed when it makes no progress for this many seconds."
_SHARD = (
    "Build OUTPUT.shard-K-of-N only: the K-th (from 0) of N shares of the videos. The same command without --shard "
    "merges the finished shards beside OUTPUT, and builds the rest."
)
_CLUSTER = (
    "Have the workers of the Dask cluster whose scheduler is at ADDRESS (tcp://login1:8786) build --shards, and take "
    "them over; --workers is then the processes of one shard, 1 if not given. Needs egoaudio[cluster]."
)
_EXPORT = "Write clip N as .wav (its waveform) or .png (its features)."

_DEVICE = "cpu, cuda, cuda:1; the GPU if there is one."
_WORKERS = click.option(
    "--workers",
    "num_workers",
    type=click.IntRange(min=1, max=1024),
    default=_cores,
    show_default="one a core",
    help="Worker processes, one thread each.",
)
_LIKE = click.option(
    "--like", type=_THERE, help="The egoaudio file that a checkpoint of an earlier version was trained on."
)
_SECONDS = click.FloatRange(min=0.01, max=1e6)


@command(
    "  egoaudio-build --annotations CharadesEgo_v1_train_only1st.csv \\\n"
    "      --test-annotations CharadesEgo_v1_test_only1st.csv --classes Charades_v1_classes.txt \\\n"
    "      --videos CharadesEgo_v1_480 --output ego.h5 --workers 32",
    resumes=True,
    groups=_BUILD_GROUPS,
)
@click.option("--annotations", multiple=True, required=True, type=click.Path(), help=_ANNOTATIONS)
@click.option("--test-annotations", multiple=True, type=click.Path(), help="CSV of test videos; repeatable.")
@click.option("--classes", type=click.Path(), help="Class list, a line each: c000 Holding some clothes.")
@click.option("--videos", required=True, type=click.Path(), help="Folder that holds the videos, at any depth.")
@click.option("--follow-links", is_flag=True, help="Follow symbolic links that lead out of --videos.")
@click.option("--output", required=True, type=click.Path(), help=_OUTPUT)
@_WORKERS
@click.option("--video-timeout", "timeout_seconds", type=_SECONDS, default=600.0, show_default=True, help=_TIMEOUT)
@click.option("--dry-run", is_flag=True, help="Stop after the plan: videos, clips, size, and an estimate of the time.")
@click.option("--list", "list_all", is_flag=True, help="With --dry-run: name every video that would have no data.")
@click.option("--skip-failed", is_flag=True, help="Exit with 0 even if videos failed.")
@click.option(
    "--retry-failed",
    is_flag=True,
    help="Try failed videos of a complete or unfinished file again; the others are kept.",
)
@click.option("--force", is_flag=True, help=_FORCE)
@click.option("--shard", metavar="K/N", help=_SHARD)
@click.option("--remove-shards", is_flag=True, help="Remove each shard once all it holds is safe in OUTPUT.")
@click.option("--cluster", metavar="ADDRESS", help=_CLUSTER)
@click.option(
    "--shards", type=click.IntRange(min=1), metavar="N", help="With --cluster: how many shards, a few a worker."
)
@configured(BuildConfig, BUILD_PRESETS)
def build(
    config: BuildConfig,
    annotations: tuple[str, ...],
    test_annotations: tuple[str, ...],
    classes: str | None,
    videos: str,
    follow_links: bool,
    output: str,
    dry_run: bool,
    list_all: bool,
    skip_failed: bool,
    retry_failed: bool,
    force: bool,
    remove_shards: bool,
    cluster: str | None,
    shards: int | None,
    **settings: Any,
) -> int:
    """Make one HDF5 file of clips, features and labels from videos and their annotations.

    Run the same command again to resume a build that was stopped. The exit status is 3 when a video that should have
    given data gave none; the file is complete all the same.
    """
    from egoaudio.builder import build as building
    from egoaudio.builder.plan import Inputs

    inputs = Inputs(annotations, videos, test_annotations, classes, follow_links)
    if list_all and not dry_run:
        raise click.UsageError("--list has no effect without --dry-run: give both, or neither")
    if dry_run:
        terminal.say(building.preview(inputs, output, config, **settings).describe(list_all))
        return 0
    if cluster is not None and not _given("num_workers"):
        settings["num_workers"] = 1
    report = building.build(
        inputs, output, config, force=force, retry_failed=retry_failed, remove_shards=remove_shards, cluster=cluster,
        shards=shards, **settings,
    )  # fmt: skip
    terminal.say(report)
    return 3 if report.failures and not skip_failed else 0


@command("  egoaudio-merge ego.h5.shard-* --output ego.h5", resumes=True)
@click.argument("files", nargs=-1, required=True, type=_THERE, metavar="FILE...")
@click.option("--output", required=True, type=click.Path(), help=_OUTPUT)
@click.option(
    "--duplicates",
    type=click.Choice(["refuse", "first"]),
    default="refuse",
    show_default=True,
    help="A video that is in two files: an error (refuse), or taken from the first of them.",
)
@click.option("--force", is_flag=True, help=_FORCE)
def merge(files: tuple[str, ...], output: str, duplicates: str, force: bool) -> int:
    """Merge egoaudio files of one configuration and class list into one, such as the shards of a build.

    Merged shards are byte-identical to the file of a single build. Run the same command again to resume a merge that
    was stopped.
    """
    from egoaudio.builder.merging import merge as run

    terminal.say(run(files, output, force=force, duplicates=duplicates))
    return 0


@command("  egoaudio-inspect ego.h5 --verify")
@click.argument("files", nargs=-1, required=True, type=click.Path(), metavar="FILE...")
@click.option("--failed", is_flag=True, help="List the videos without data, each with its reason.")
@click.option(
    "--verify", is_flag=True, help="Read everything, compare checksums and statuses; exit 1 if something is damaged."
)
@click.option("--plot", type=click.Path(), help="Write a PNG: samples per class, sorted, on a log scale.")
@click.option("--export-clip", nargs=2, type=(click.INT, click.Path()), default=None, help=_EXPORT, metavar="N PATH")
def inspect(
    files: tuple[str, ...], failed: bool, verify: bool, plot: str | None, export_clip: tuple[int, str] | None
) -> int:
    """Show what an egoaudio file holds, or several as one; without options, a summary."""
    from egoaudio.hdf5 import reader, summary

    with reader.open(files) as opened:
        if not (failed or verify or plot or export_clip):
            terminal.say(summary.summary(opened))
        if failed:
            terminal.say(summary.failed(opened))
        if plot:
            from egoaudio import figures

            figures.plot_classes(opened, plot)
            terminal.say(f"wrote {plot}")
        if export_clip:
            summary.export_clip(opened, *export_clip)
            terminal.say(f"wrote {export_clip[1]}")
        if verify:
            from egoaudio.system.progress import Progress

            with Progress(opened.num_videos, "verify") as progress:
                problems = summary.verify(opened, progress=progress.advance)
            whole = f"{', '.join(files)}: all {opened.num_videos:,} videos are as they were written"
            terminal.say("\n".join(problems) or whole)
            return 1 if problems else 0
    return 0


@command("  egoaudio-train ego.h5 --output runs/cnn --model cnn --amp", resumes=True, groups=_TRAIN_GROUPS)
@click.argument("files", nargs=-1, required=True, type=_THERE, metavar="FILE...")
@click.option(
    "--output",
    required=True,
    type=click.Path(),
    help="Folder of the run: checkpoints, config.json, metrics.csv, curves.png.",
)
@click.option("--device", help=_DEVICE)
@click.option("--tensorboard", is_flag=True, help="Also write TensorBoard logs into OUTPUT.")
@click.option("--force", is_flag=True, help=_FORCE)
@configured(TrainConfig, TRAIN_PRESETS)
def train(
    config: TrainConfig, files: tuple[str, ...], output: str, device: str | None, tensorboard: bool, force: bool
) -> int:
    """Train a classifier on an egoaudio file, or on several as one, such as shards.

    Run the same command again to resume a run that was stopped; the weights are the same. When memory runs out, the
    batch is computed in smaller micro-batches, with the same result, except for cnn-small's batch norm.
    """
    from egoaudio.training.train import train as run

    result = run(files, output, config, device=device, tensorboard=tensorboard, force=force)
    if launched().rank == 0:
        terminal.say(result)
    return 0


@command("  egoaudio-evaluate runs/cnn/best.pt ego.h5 --split test")
@click.argument("checkpoint", type=_THERE)
@click.argument("files", nargs=-1, required=True, type=_THERE, metavar="FILE...")
@click.option(
    "--split",
    type=click.Choice(SPLITS),
    default="test",
    show_default=True,
    help="The file's test videos, or the train videos as the run divided them.",
)
@click.option(
    "--pool",
    type=click.Choice(POOLS),
    default="max",
    show_default=True,
    help="How a video's scores follow from its clips'.",
)
@click.option(
    "--output",
    type=click.Path(),
    help="Folder for evaluation.json, per_class.csv and per_class.png; the checkpoint's if not given.",
)
@click.option("--submission", type=click.Path(), help="Write the scores per video in Charades' official text format.")
@click.option("--frame-submission", type=click.Path(), help="The same for 25 frames per video, for localization.")
@click.option(
    "--on-the-fly",
    is_flag=True,
    help="Compute the features from the file's waveforms, as is done anyway for a model that was trained so.",
)
@click.option("--device", help=_DEVICE)
def evaluate(checkpoint: str, files: tuple[str, ...], **settings: Any) -> int:
    """Evaluate a trained model on a split of an egoaudio file, or of several as one.

    Each score stands beside that of the prior, the classes' frequencies in training.
    """
    from egoaudio.evaluation.evaluate import evaluate as run

    result = run(checkpoint, files, **settings)
    if launched().rank == 0:
        terminal.say(result)
    return 0


@command(
    "  egoaudio-predict runs/cnn/best.pt recordings/ --output heard --format audacity",
    resumes=True,
    groups=_PREDICT_GROUPS,
)
@click.argument("checkpoint", type=_THERE)
@click.argument("media", nargs=-1, type=_THERE)
@click.option("--output", required=True, type=click.Path(), help="Folder for scores.h5, segments.csv and label files.")
@click.option("--annotations", multiple=True, type=click.Path(), help="CSV of videos, in place of MEDIA; repeatable.")
@click.option("--videos", type=click.Path(), help="Folder that holds the videos of --annotations, at any depth.")
@click.option("--classes", type=click.Path(), help="Class list of --annotations.")
@click.option("--follow-links", is_flag=True, help="Follow symbolic links that lead out of a folder.")
@_WORKERS
@click.option("--video-timeout", "timeout_seconds", type=_SECONDS, default=600.0, show_default=True, help=_TIMEOUT)
@click.option("--device", help=_DEVICE)
@_LIKE
@click.option("--skip-failed", is_flag=True, help="Exit with 0 even if recordings failed.")
@click.option("--retry-failed", is_flag=True, help="Try recordings again that failed before.")
@click.option("--force", is_flag=True, help=_FORCE)
@configured(PredictConfig)
def predict(
    config: PredictConfig,
    checkpoint: str,
    media: tuple[str, ...],
    output: str,
    skip_failed: bool,
    **settings: Any,
) -> int:
    """Apply a trained model to new recordings: files, folders of them, or the features of egoaudio files.

    Run the same command again to resume it if it was stopped, or after recordings were added. The exit status is 3 when
    a recording that should have given scores gave none; the others have their scores all the same.
    """
    from egoaudio.prediction.predict import predict_to_folder
    from egoaudio.prediction.report import describe_top

    report = predict_to_folder(checkpoint, media, output, config, **settings)
    if config.output.top:
        for prediction in report:
            terminal.say(describe_top(prediction, config.output.top))
    terminal.say(report)
    return 3 if report.failures and not skip_failed else 0


@command("  egoaudio-report ego.h5 runs/cnn heard --videos CharadesEgo_v1_480 --output report.html")
@click.argument("paths", nargs=-1, required=True, type=_THERE, metavar="[EGO.H5]... [RUN]... [HEARD]")
@click.option("--output", required=True, type=click.Path(), help="The HTML file to make.")
@click.option(
    "--videos", type=click.Path(), help="Folder of the videos, for the sound of clips; else the file's waveform."
)
@click.option("--device", help=_DEVICE)
@configured(ReportConfig)
def report(config: ReportConfig, paths: tuple[str, ...], output: str, videos: str | None, device: str | None) -> int:
    """Make one HTML page about an egoaudio file, runs and predictions, with pictures and sounds.

    Each argument is an egoaudio file, the folder of a run, a checkpoint, or a folder of predictions. The page needs no
    network and no server.
    """
    from egoaudio.reporting.report import report as run

    terminal.say(run(*paths, output=output, config=config, videos=videos, device=device))
    return 0


@command("  egoaudio-export runs/cnn/best.pt exported/model.onnx")
@click.argument("checkpoint", type=_THERE)
@click.argument("graph", type=click.Path(), metavar="MODEL.ONNX")
@click.option(
    "--evaluation",
    type=_THERE,
    help="The evaluation.json whose scores the card shows; the one beside CHECKPOINT if not given.",
)
@_LIKE
@click.option("--force", is_flag=True, help="Replace a README.md that is not this graph's card.")
@configured(ExportConfig)
def export(
    config: ExportConfig, checkpoint: str, graph: str, evaluation: str | None, like: str | None, force: bool
) -> int:
    """Export a trained model as an ONNX graph from sound to probabilities, for use without egoaudio and PyTorch.

    Beside MODEL.ONNX come MODEL.SAFETENSORS with the weights and README.md, the model card: what the model was trained
    on, its scores and limits, and ten lines that use it. The graph holds the front end, not the denoising.
    """
    from egoaudio.exporting.export import export as run

    terminal.say(run(checkpoint, graph, config, evaluation=evaluation, like=like, force=force))
    return 0
