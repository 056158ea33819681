"""The command lines of the pages, run as they stand there: ``python -m tests.documented FOLDER``.

Every ```bash block of README.md and docs/*.md is run in its order, in a copy of the repository's folder. DIR and the
like become synthetic data; trainings are shortened by options that every training takes. What is not run stands in
:data:`LEFT_OUT` with the reason; comparisons are planned and their configurations written, no more, as each of their
runs would take its time.
"""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import ignite.engine  # noqa: F401 - loaded before the forks, as all that follows
import matplotlib.figure  # noqa: F401
import nibabel
import numpy as np
import SimpleITK  # noqa: F401
import torch.utils.tensorboard  # noqa: F401
from monai.engines import SupervisedTrainer  # noqa: F401

from tests.forks import FORK, ROOT, run_module

LEFT_OUT = {
    "make ": "the targets are what this is a part of; tests/bundle/test_demo.py runs the demo",
    ". .venv/": "this runs in the environment already",
    "tensorboard ": "a server",
    "mlflow ui": "a server",
    "hf ": "uploads",
    "push_to_hf_hub": "uploads",
    "metadata_update": "uploads",
    "monai.bundle download": "downloads; tests/bundle/share/test_pack.py does from a server of its own",
    "cd bundles/": "lies in what was downloaded",
    "bundle send": "needs an archive; tests/bundle/dicom/test_sending.py has one",
    "cpc_sam.json": "needs SAM's weights",
    "torchrun --nnodes": "needs two machines",
    "torchrun --standalone --nproc_per_node=2": "tests/test_engine.py trains under torchrun",
    "torchrun --standalone --nproc_per_node=4": "tests/test_cohort_inference.py infers under torchrun",
    "bundle global_model": "wants a server's file; tests/bundle/federated/test_global_model.py has one",
    "bundle.federated.simulation": "trains four arms; tests/test_federated.py trains each for a step",
    "bundle bench": "minutes for each objective; tests/bundle/bench/test_command.py runs each for a step",
    "0.zip --run": "a minute; tests/bundle/share/test_verify.py does",
    "verify_metadata": "downloads the schema; tests/test_repository.py has it where SEMSIM_DATA is set",
    "report output/compare": "wants finished runs; tests/bundle/report/test_command.py has some",
}
"""What is in no command line that is run, and why."""

SHORT = [
    *("--train#trainer#epoch_length=1", "--image_size=32", "--batch_size=2", "--val_interval=1", "--device=cpu"),
]
EPOCHS = "--train#trainer#max_epochs"


class Line(NamedTuple):
    """A command line of a page."""

    page: str
    text: str

    @property
    def layout(self) -> str:
        """The data that it is about."""
        if "lesions.json" in self.text:
            return "lesions"
        custom = any(words in self.text for words in ("--dataset custom", " prepare custom", "datasets/custom.json"))
        return "custom" if custom else "isic" if "datasets/isic.json" in self.text else "acdc"


def lines(root: Path) -> Iterator[Line]:
    """The command lines of all ```bash blocks, in their order; loops are unrolled."""
    for page in (root / "README.md", *sorted((root / "docs").glob("*.md"))):
        for block in re.findall(r"^```bash\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
            block = block.replace("\\\n", " ").replace("/path/to/ACDC", "DIR").replace("/path/to/images", "IMAGES")
            for text in block.splitlines():
                text = " ".join(re.sub(r"(^|\s)#.*", "", text).split())
                loop = re.fullmatch(r"for (\w+) in ([^;]+); do (.*); done", text)
                names = loop[2].split() if loop else [""]
                for name in names if text else []:
                    one = loop[3].replace(f"${loop[1]}", name) if loop else text
                    yield Line(page.relative_to(root).as_posix(), one)


class Folder:
    """A copy of the repository with data to run on.

    Args:
        place: an empty folder.
    """

    def __init__(self, place: Path) -> None:
        self.root = place / "repository"
        self.data = place / "data"
        for name in ("bundle", "configs", "scripts", "models", "docs"):
            shutil.copytree(ROOT / name, self.root / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("README.md", "CHANGELOG.md", "LICENSE", "requirements.txt"):
            shutil.copyfile(ROOT / name, self.root / name)
        self.log = place / "log.txt"
        maker = FORK.Process(target=_make_data, args=(self.data,))
        maker.start()
        maker.join()
        if maker.exitcode:
            raise RuntimeError("the synthetic data could not be made")
        extending, own_data = ((self.root / "docs" / f"{name}.md").read_text() for name in ("extending", "own_data"))
        (self.root / "FOLDER").mkdir()
        for suffix, language in ((".py", "python"), (".json", "json")):
            (self.root / "FOLDER" / f"noise_consistency{suffix}").write_text(_block(extending, language))
        overlay = _block(own_data, "json").replace("/data/lesions", str(self.data / "lesions"))
        (self.root / "lesions.json").write_text(overlay)
        self.now: tuple[str, ...] = ()  # whose results lie in `output`

    def run(self, line: Line) -> str:
        """Run a command line; returns what went wrong, empty where nothing did."""
        variables, words = _split(line.text)
        if words[1] != "-m":
            words[1] = str(ROOT / words[1]) if words[1].endswith(".py") else words[1]
            done = subprocess.run([sys.executable, *words[1:]], cwd=self.root, capture_output=True, text=True)
            return "" if done.returncode == 0 else done.stderr[-1500:]
        module, given = words[2], [self.substitute(word, line.layout) for word in words[3:]]
        if given[:2] == ["run", "training"] and "--resume" not in given:
            shutil.rmtree(self.root / "output", ignore_errors=True)
            self.now = self.needed(line)
        elif (needed := self.needed(line)) != self.now or "--resume" in given:
            self.restore(*needed)  # what is resumed is a training of the same objective, not the page's last one
        if "--splits" in given:  # of real data
            del given[given.index("--splits") : given.index("--splits") + 2]
        shorter = self.shorter(line, given)  # of an option that is given twice the last one counts
        given += [word for word in shorter if word.startswith("--train#") or word.partition("=")[0] not in given]
        paths = [self.root / path for path in variables.get("PYTHONPATH", "").split(":") if path]
        before = partial(_begin, paths, given[0] == "compare")
        code, log = run_module(module, given, self.log, folder=self.root, before=before)
        return "" if code == 0 and "Traceback" not in log else f"exit code {code}: {' '.join(given)}\n{log[-1500:]}"

    def needed(self, line: Line) -> tuple[str, ...]:
        """The page, and the config files of the training whose results a command line works on."""
        kind = "isic" if line.layout == "lesions" else line.layout
        own = re.search("pseudo_labels|--resume", line.text)  # the objective must be that of the training
        files = re.findall(r"configs/methods/\w+\.json", line.text) if own else []
        return line.page, *([f"configs/datasets/{kind}.json"] if kind != "acdc" else []), *files

    def restore(self, page: str, *files: str) -> None:
        """Put a training's results into ``output``, as a page has them from an earlier command."""
        trained = self.root / "-".join(["trained", *(Path(file).stem for file in files)])
        kind = next((Path(file).stem for file in files if "datasets" in file), "acdc")
        if not trained.is_dir():
            options = [*SHORT, f"{EPOCHS}=1", "--labeled=3", f"--dataset_dir={self.data / kind}", *self.split(kind)]
            options += [f"--output_dir={trained}", f"--cache_dir={self.data / 'cache'}"]
            options += ["--num_classes=3"] if kind == "custom" else []
            words = ["run", "training", "--config_file", str(["configs/train.json", *files]), *options]
            code, log = run_module("monai.bundle", words, self.log, folder=self.root)
            if code:
                raise RuntimeError(log[-3000:])
        shutil.rmtree(self.root / "output", ignore_errors=True)
        for name in ("output", "output/a", "output/b"):
            shutil.copytree(trained, self.root / name, dirs_exist_ok=True)
        for name in ("model.pt", "model.json"):
            shutil.copyfile(trained / name, self.root / name)
        self.now = (page, *files)

    def split(self, layout: str) -> list[str]:
        """The option for a split that a synthetic cohort has for itself."""
        path = self.data / layout / "splits.json"
        return [f"--splits={path}"] if path.is_file() else []

    def substitute(self, word: str, layout: str) -> str:
        """A word of a command line with what the reader fills in."""
        images = self.data / ("lesions/ISIC2018_Task1-2_Training_Input" if layout == "lesions" else "custom")
        places = {"DIR": self.data / layout, "IMAGES": images, "OUT": self.root / "out", "RUN": self.root / "output"}
        name, slash, rest = word.partition("/")
        return f"{places[name]}{slash}{rest}" if name in places else word

    def shorter(self, line: Line, given: Sequence[str]) -> list[str]:
        """Options that the page's command takes as well, for small data and little time."""
        cache = f"--cache_dir={self.data / 'cache'}"
        split = [] if any(word.endswith("list.json") for word in given) else self.split(line.layout)
        if given[:2] == ["run", "training"]:
            epochs = 2 if "--resume" in given else 1
            labeled = ["--labeled=3"] if "--labeled" not in given and line.layout != "custom" else []
            return [*SHORT, f"{EPOCHS}={epochs}", *labeled, *split, cache]
        if given[:2] == ["run", "evaluating"]:
            data = (
                [] if "--dataset_dir" in given or line.layout == "lesions" else [f"--dataset_dir={self.data / 'acdc'}"]
            )
            size = ["--image_size=32"] if "--checkpoint" in given or "recipe.json" not in line.text else []
            return [*size, *data, *split, cache, "--device=cpu"]
        if given[0] == "run":
            return ["--device=cpu"]
        if given[0] == "suggest":
            return split
        if given[0] == "shift":
            return [*split, "--shifts=clean,noise", "--output=output/shift"]
        if given[0] in ("report", "doctor", "pseudo_labels"):
            size = ["--device=cpu"] if given[1] == "models" else [*SHORT, f"{EPOCHS}=1"]
            labeled = ["--labeled=3"] if "--labeled" not in given and given[1] != "models" else []
            return [*size, *labeled, *split, cache]
        return []


def _begin(paths: Sequence[Path], plan_only: bool) -> None:
    """In the process of a command line: comparisons check and write down every run, and train none."""
    sys.path[1:1] = map(str, paths)
    if plan_only:
        from bundle.compare import command

        command.isolated = lambda *_: ""


def _split(text: str) -> tuple[dict[str, str], list[str]]:
    """The variables before a command line, and its words."""
    words = shlex.split(text)
    variables = {}
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        name, _, value = words.pop(0).partition("=")
        variables[name] = value
    return variables, words


def _block(page: str, language: str) -> str:
    found = re.search(rf"^```{language}\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    assert found
    return found[1]


def _make_data(folder: Path) -> None:
    """Small synthetic data of each kind, in a process of its own."""
    from scripts.phantoms import make_phantom_cohort

    small = {"acdc": {"size": (48, 64), "spacing": (3.0, 3.6), "slices": (3, 4)}, "isic": {"size": (48, 64)}}
    for kind, sizes in small.items():
        make_phantom_cohort(folder / kind, patients=(8, 2, 2), kind=kind, **sizes)
    (folder / "custom").mkdir()
    frames = [path for path in sorted((folder / "acdc").glob("patient*/*.nii.gz")) if "_gt" not in path.name]
    for number, frame in enumerate(frames[:10]):
        shutil.copyfile(frame, folder / "custom" / frame.name)
        name = frame.name.replace(".nii.gz", "_gt.nii.gz")
        if number < 6:
            label = nibabel.load(frame.with_name(name))
            classes = np.minimum(np.asarray(label.dataobj), 2)
            nibabel.save(nibabel.Nifti1Image(classes, label.affine), folder / "custom" / name)
    shutil.copytree(folder / "isic", folder / "lesions", ignore=shutil.ignore_patterns("splits.json"))


def main() -> None:
    """Print a line for each command line; exit code 1 where one fails."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="", help="part of a page's name or of a command line")
    given = parser.parse_args()
    given.folder.mkdir(parents=True)
    folder = Folder(given.folder.absolute())
    failed = 0
    first: dict[str, Line] = {}
    for line in lines(ROOT):
        first.setdefault(line.text, line)
    for line in first.values():
        if given.only not in f"{line.page} {line.text}":
            continue
        if reason := next((why for part, why in LEFT_OUT.items() if part in line.text), ""):
            print(f"left out  {line.page}: {line.text[:100]} ({reason})", flush=True)
            continue
        start = time.monotonic()
        fault = folder.run(line)
        failed += bool(fault)
        took = f"{time.monotonic() - start:.1f} s"
        print(f"{'FAILED' if fault else 'right':<9} {line.page}: {line.text[:150]} ({took})")
        print(fault, end="\n" if fault else "", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
