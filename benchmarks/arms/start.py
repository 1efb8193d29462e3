"""From the command line to an experiment with its questions in place."""

from __future__ import annotations

import argparse
from dataclasses import asdict, fields, replace
from pathlib import Path

from benchmarks.arms.demo_questions import write_questions
from benchmarks.arms.experiment import Experiment, Sizes
from benchmarks.arms.recipe import add_recipe, recipe_of
from benchmarks.arms.setting import STRONG, add_arguments, setting_of, take_lines
from benchmarks.arms.work import Work
from bon_server.demo.problems import Split

SIZES_HELP = {
    "train": "questions to harvest",
    "held_out": "questions to measure on",
    "n": "candidates of a harvested question",
    "samples": "answers of a tuned policy to a question",
    "kl_questions": "held-out questions to compute KL on",
    "seeds": "of harvest, random choice and training together",
}


def add_common(parser: argparse.ArgumentParser) -> None:
    """What both scripts take."""
    parser.add_argument("--work", type=Path, required=True, help="folder of the parts; the same command goes on there")
    parser.add_argument("--split", choices=("development", "test"), default="test", help="of the demo's questions")
    parser.add_argument("--out", type=Path, help="write the document here as well")
    parser.add_argument("--table", type=Path, help="write the figures as a page of Markdown here")
    for field in fields(Sizes):
        name = "--" + field.name.replace("_", "-")
        parser.add_argument(name, type=int, help=f"{SIZES_HELP[field.name]}, in place of the size's")
    add_recipe(parser)
    add_arguments(parser)


def sizes_of(options: argparse.Namespace, default: Sizes) -> Sizes:
    """The default sizes with those that were given."""
    given = {field.name: getattr(options, field.name) for field in fields(Sizes)}
    return replace(default, **{name: value for name, value in given.items() if value is not None})


def experiment_of(options: argparse.Namespace, sizes: Sizes) -> Experiment:
    """Takes the questions into the work folder. Raises ConfigError: it holds another run."""
    setting, recipe = setting_of(options), recipe_of(options.recipe)
    folder: Path = options.work
    files = {"train": options.train_prompts, "held-out": options.held_out_prompts}
    splits: dict[str, Split] = {"train": "train", "held-out": options.split}
    counts = {"train": sizes.train, "held-out": sizes.held_out}
    digests = {}
    for name, file in files.items():
        source = file or folder / f"questions-{name}.jsonl"
        if file is None and not source.exists():
            write_questions(splits[name], counts[name], source)
        digests[name] = take_lines(source, counts[name], folder / f"{name}.jsonl")
    about = {"setting": setting.about(), "recipe": asdict(recipe), "sizes": asdict(sizes), "questions": digests}
    return Experiment(Work(folder, about), setting, recipe, sizes, {STRONG: setting.reward})
