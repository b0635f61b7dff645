"""Lets `import torchaudio` work beside a CPU-only torch.

torchaudio's wheels link their C++ extension against libc10_cuda.so, which a CPU-only torch does not
have. Resampling, mel spectrograms, Griffin-Lim, lfilter and time stretching do not need the extension,
so on such a torch we import torchaudio with its extension switched off. With a CUDA torch, nothing is touched.
"""

import importlib.abc
import importlib.machinery
import sys
from types import ModuleType

EXTENSION = "torchaudio._extension"


class _CpuExtension(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds `torchaudio._extension` before the real one, on a torch without CUDA only."""

    def find_spec(self, fullname, path=None, target=None):  # type: ignore[no-untyped-def]
        if fullname != EXTENSION:
            return None
        import torch  # torchaudio is being imported, so torch is wanted anyway

        if torch.version.cuda is not None:
            return None
        return importlib.machinery.ModuleSpec(fullname, self)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return ModuleType(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        def needs_alignment(function):  # type: ignore[no-untyped-def]
            def refuse(*_, **__):  # type: ignore[no-untyped-def]
                raise RuntimeError("torchaudio's forced alignment needs a CUDA build of torch.")

            return refuse

        module.__dict__.update(
            _IS_TORCHAUDIO_EXT_AVAILABLE=False,
            _IS_ALIGN_AVAILABLE=False,
            _check_cuda_version=lambda: None,
            fail_if_no_align=needs_alignment,
        )


def install() -> None:
    """Put the finder first on `sys.meta_path`, once. Imports nothing."""
    if not any(isinstance(finder, _CpuExtension) for finder in sys.meta_path):
        sys.meta_path.insert(0, _CpuExtension())
