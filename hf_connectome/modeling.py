"""ConnectomeModel: a model and its connectome in one call, fresh from a name or on given weights.

Reading is storage.py's, wiring hosts.py's, switching adapter.py's; this is where users enter.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel

from hf_connectome.adapter import ConnectomeTuner  # noqa: TC001 (registers it with PEFT)
from hf_connectome.architecture import build_host
from hf_connectome.bound import BoundConfig
from hf_connectome.errors import ConfigError
from hf_connectome.hosts import check_depth, check_host, fresh_reset
from hf_connectome.hub import Pushed, fetch, with_origin
from hf_connectome.reset import resets
from hf_connectome.storage import read, write

if TYPE_CHECKING:
    from torch import nn

    from hf_connectome.connectome import Connectome

    PathOrRepo = str | os.PathLike[str]


class ConnectomeModel(PeftModel):
    """A PeftModel whose adapters are connectomes.

    Give ``get_base_model()``, not this object, to a Trainer: its checkpoints of a PeftModel hold
    adapter files only, and the trained weights would be lost.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> from hf_connectome import ConnectomeConfig
        >>> host = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=16))
        >>> model = ConnectomeModel(host, ConnectomeConfig(density=0.25, reset="sign_constant"))
        >>> round(model.connectome.density, 2)
        0.25
        >>> model.get_base_model().transformer.wte.weight.unique().tolist()
        [-0.019999999552965164, 0.0, 0.019999999552965164]
    """

    base_model: ConnectomeTuner

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Put a connectome on a model: (model, config, adapter_name), as PeftModel."""
        with warnings.catch_warnings():
            # peft 0.21 asks transformers 5 for a property by its deprecated name.
            warnings.filterwarnings("ignore", ".*gradient_checkpointing", FutureWarning)
            super().__init__(*args, **kwargs)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        model: nn.Module | PathOrRepo,
        model_id: PathOrRepo | None = None,
        adapter_name: str = "default",
        is_trainable: bool | None = None,
        *,
        seed: int = 0,
        reset: str | None = None,
        magnitude: float | None = None,
        dtype: torch.dtype = torch.float32,
        subfolder: str | None = None,
        **download: Any,
    ) -> ConnectomeModel:
        """Read a connectome and put it on a fresh model, or on the model given.

        ``from_pretrained(path, seed=0)`` builds the recorded architecture, initialised by ``seed``,
        wires it and gives it first values: ready to train, nothing but the connectome downloaded.
        ``from_pretrained(model, path)`` is PEFT's form: ``W * mask`` on the weights of ``model``,
        which can be switched off again; with ``is_trainable=True`` the mask is put in place.

        Args:
            model: the model to put it on; or the folder or Hub id, for a fresh one.
            model_id: folder or Hub id, where ``model`` is a model.
            adapter_name: what to call the connectome on this model.
            is_trainable: in place, under guard rails (the fresh form's way), or frozen in layers
                (the default on a given model).
            seed: of the fresh model's initialisation; on a given model without meaning.
            reset: first values of the survivors (reset.py). By default what the connectome records
                for a fresh model, where 'keep' and 'rewind' mean sign_constant because random
                weights are nothing to keep, and 'keep' on a given model.
            magnitude: the constant of sign_constant; by default the recorded one.
            dtype: of the fresh model's weights.
            subfolder: where in the folder or repository the connectome is.
            download: ``revision``, ``token``, ``cache_dir``, ``local_files_only``,
                ``force_download`` of a Hub id.

        Raises:
            FormatError: no connectome is there, or its files are damaged or altered.
            HubError: the Hub refused or could not be reached.
            HostMismatchError: the connectome is not of this model.
            UnsupportedError: it covers a parameter that no layer can wrap; see ``is_trainable``.
            ConfigError: options that exclude each other, or no architecture recorded.
        """
        host = None if isinstance(model, (str, os.PathLike)) else model
        source = model if host is None else model_id
        _check_form(model, model_id, is_trainable, reset if reset is not None else magnitude)
        assert isinstance(source, (str, os.PathLike))
        connectome = _read(source, host, subfolder=subfolder, **download)
        assert connectome.config is not None
        if host is None:
            is_trainable, reset = True, reset or fresh_reset(connectome)
            unread = () if resets.get(reset).needs_weights else tuple(connectome)
            host = build_host(connectome.config, seed=seed, dtype=dtype, overwritten=unread)
        config = BoundConfig.of(connectome, connectome.config, inference_mode=not is_trainable)
        config.first_reset, config.first_magnitude = reset or "keep", magnitude
        return cls(host, config, adapter_name).train(bool(is_trainable))

    def load_adapter(  # type: ignore[override]
        self,
        model_id: PathOrRepo,
        adapter_name: str,
        is_trainable: bool = False,
        *,
        subfolder: str | None = None,
        **download: Any,
    ) -> None:
        """Read one more connectome onto the same base; ``set_adapter`` makes it active.

        Args:
            model_id: folder or Hub id.
            adapter_name: what to call it; not in use yet.
            is_trainable: refused unless it is the only one.
            subfolder: where in the folder or repository the connectome is.
            download: as in :meth:`from_pretrained`.
        """
        base = self.get_base_model()
        connectome = _read(model_id, base, subfolder=subfolder, **download)
        assert connectome.config is not None
        config = BoundConfig.of(connectome, connectome.config, inference_mode=not is_trainable)
        self.add_adapter(adapter_name, config)
        self.train(is_trainable)

    @property
    def connectome(self) -> Connectome:
        """The active connectome (of several, the first)."""
        return self.base_model.connectome(self.base_model.active_adapters[0])

    def get_base_model(self) -> nn.Module:
        """Return the plain model: for a Trainer, or to save an ordinary checkpoint."""
        base: nn.Module = self.base_model.model
        return base

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Make one connectome active, or several: then a weight lives if all of them keep it.

        Raises:
            UnknownNameError: no such adapter.
        """
        self.base_model.set_adapter(adapter_name, inference_mode=inference_mode)
        self.active_adapter = self.base_model.active_adapters[0]

    def delete_adapter(self, adapter_name: str) -> None:
        """Forget a frozen skill; the last one leaves by ``unload()``.

        Raises:
            UnknownNameError: no such adapter.
            UnsupportedError: it is the last one, or in place.
        """
        self.base_model.delete_adapter(adapter_name)
        self.active_adapter = self.base_model.active_adapters[0]

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | os.PathLike[str],
        *,
        selected_adapters: list[str] | None = None,
        is_main_process: bool = True,
        **ignored: Any,
    ) -> None:
        """Write the connectomes, 'default' into the folder itself, others into folders in it.

        Weights are not written: save ``get_base_model()`` or ``merge_and_unload()`` for those.

        Args:
            save_directory: created if need be.
            selected_adapters: which; by default all.
            is_main_process: whether this process writes.
            ignored: options of PEFT about how weights are saved.

        Raises:
            UnknownNameError: no such adapter.
            StorageError: the file system refused.
        """
        del ignored
        names = list(self.peft_config) if selected_adapters is None else selected_adapters
        connectomes = {name: self.base_model.connectome(name) for name in names}
        for name, connectome in connectomes.items() if is_main_process else ():
            write(connectome, Path(save_directory, "" if name == "default" else name))

    def push_to_hub(self, repo_id: str, **options: Any) -> Pushed:  # type: ignore[override]
        """Push the active connectome as one commit, without weights.

        Args:
            repo_id: ``owner/name``, created if need be.
            options: as in :func:`hf_connectome.publishing.publish`.
        """
        return self.connectome.push_to_hub(repo_id, **options)

    def create_or_update_model_card(self, output_dir: str) -> None:
        """Write nothing: PEFT's card would name a local path as the base model."""

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """Count trainable weights, less the dead ones of a connectome in place, and all weights."""
        trainable, total = super().get_nb_trainable_parameters()
        for enforcer in self.base_model.enforcers.values():
            parameters = check_host(enforcer.connectome, self.base_model.model)
            trainable -= sum(
                entry.num_weights - entry.num_survivors
                for name, entry in enforcer.connectome.items()
                if parameters[name].requires_grad
            )
        return trainable, total


def _check_form(model: object, model_id: object, is_trainable: bool | None, first: object) -> None:
    """Refuse arguments that belong to the other of the two forms of from_pretrained."""
    fresh = isinstance(model, (str, os.PathLike))
    if fresh and model_id is not None:
        raise ConfigError(
            f"the first argument is {model!r}, expected a model beside {model_id!r}. Load it "
            "first: ConnectomeModel.from_pretrained(AutoModel….from_pretrained(name), path)."
        )
    if not fresh and model_id is None:
        raise ConfigError(
            f"a {type(model).__name__} was given but no connectome for it. Use "
            "ConnectomeModel.from_pretrained(model, path)."
        )
    if fresh and is_trainable is False:
        raise ConfigError(
            "is_trainable=False asks for a frozen skill, but a fresh model has no weights worth "
            "freezing. Give a trained model, or call eval() on the fresh one."
        )
    if not fresh and not is_trainable and first is not None:
        raise ConfigError(
            f"{first!r} asks for first values of the survivors, but a frozen skill leaves the "
            "weights as they are. Leave reset and magnitude out, or set is_trainable=True."
        )


def _read(source: PathOrRepo, host: nn.Module | None, **download: Any) -> Connectome:
    """Read and check a connectome, and that it fits the host, before anything is built or changed.

    The recorded architecture is asked first: by it every size in the file is known, which tells a
    host of other sizes from a damaged file.
    """
    folder = fetch(source, **download)
    try:
        connectome = read(folder)
    except ConfigError:
        if host is None:
            raise
        connectome = read(folder, host=host)
    if host is not None:
        check_host(connectome, host)
        check_depth(connectome, host)
    return with_origin(connectome, source, folder)
