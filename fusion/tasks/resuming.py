"""Where a run that was stopped or killed goes on."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_warn

from fusion.checkpoint import read_plain
from fusion.tasks.atomic_io import is_remote, sweep


def checkpoint_folders(trainer: Trainer) -> list[Path]:
    """The local folders that a trainer saves to, before or after it was started."""
    found: dict[Path, None] = {}
    for callback in trainer.checkpoint_callbacks:
        if not isinstance(callback, ModelCheckpoint):
            continue
        folder = callback.dirpath
        if folder is None and trainer.logger is not None:  # as Lightning will choose it
            logger, root = trainer.logger, trainer.default_root_dir
            version = logger.version
            version = version if isinstance(version, str) else f"version_{version}"
            folder = Path(logger.save_dir or root, str(logger.name), version, "checkpoints")
        elif folder is None:
            folder = Path(trainer.default_root_dir, "checkpoints")
        if not is_remote(folder):
            found[Path(folder)] = None
    return list(found)


def newest_checkpoint(folders: Iterable[Path], module: LightningModule) -> Path | None:
    """The newest checkpoint in some folders from which training of a module can go on.

    Others, such as damaged ones, are passed over with a warning that names them. What killed
    processes left of checkpoints that they were writing is removed.

    Args:
        folders: where to look; they need not exist.
        module: what is trained.

    Returns:
        None if there is no checkpoint at all.

    Raises:
        ValueError: there are checkpoints, and none to go on from.
    """
    folders = [folder for folder in folders if folder.is_dir()]
    for folder in folders:
        sweep(folder)
    paths = [path for folder in folders for path in folder.glob("*.ckpt") if path.is_file()]
    for path in sorted(paths, key=lambda path: path.stat().st_mtime_ns, reverse=True):
        try:
            check_resumable(path, module)
            return path
        except (ValueError, OSError) as error:
            rank_zero_warn(f"Passed over: {error}")
    if paths:
        raise ValueError(
            f"There is no checkpoint to go on from among the {len(paths)} in "
            f"{', '.join(map(str, folders))}; move them away to start anew."
        )
    return None


def check_resumable(path: Path, module: LightningModule) -> None:
    """Refuses a file from which training of a module cannot go on.

    Raises:
        ValueError: it is damaged, holds weights only, or is of another model.
        OSError: it cannot be read.
    """
    content = read_plain(path, mmap=True)
    missing = {"state_dict", "loops", "optimizer_states", "lr_schedulers"}
    if isinstance(content, Mapping):
        missing -= content.keys()
    if missing:
        raise ValueError(
            f"{path} is no checkpoint to go on from: it lacks {', '.join(sorted(missing))}; give "
            "one that a training run saved with all its state."
        )
    state = content["state_dict"]
    for name, parameter in module.named_parameters():
        if name not in state or state[name].shape != parameter.shape:
            raise ValueError(
                f"{path} is of another model: {name} is "
                f"{tuple(state[name].shape) if name in state else 'not in it'}, and this model has "
                f"{tuple(parameter.shape)}; give a checkpoint of this model."
            )
